/* The calls of cuDNN that kernels/cuda/dense_graph.c makes, on the CPU: descriptors are checked as
 * they are filled in, a graph is checked as a whole and evaluated by cudnn_program.cpp. */
#include "kernels/cuda/cudnn.h"

#include <cstdlib>
#include <map>
#include <memory>

#include "kernels/cuda_emu/cudnn_program.h"

using namespace cudnn_emu;

#define API extern "C" __attribute__((visibility("default")))

enum { ANY = 64 };

struct cudnnContext {
    cudaStream_t stream;
};

namespace
{
struct attribute {
    cudnnBackendAttributeType_t type;
    int64_t count;
    std::vector<unsigned char> bytes;
};

struct descriptor {
    cudnnBackendDescriptorType_t kind;
    bool finished;
    std::map<int, attribute> attributes;
    std::shared_ptr<program> made; /* of a graph and what is chosen for it */
};
} // namespace

static long plans_made; /* since the module was loaded */

/* ---- attributes ----------------------------------------------------------------------------- */

typedef struct {
    cudnnBackendDescriptorType_t kind;
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    bool required;
    int64_t least, most;
} rule;

#define TENSOR CUDNN_BACKEND_TENSOR_DESCRIPTOR
#define POINTWISE CUDNN_BACKEND_POINTWISE_DESCRIPTOR
#define REDUCTION CUDNN_BACKEND_REDUCTION_DESCRIPTOR
#define MATMUL CUDNN_BACKEND_MATMUL_DESCRIPTOR
#define OP_POINTWISE CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR
#define OP_REDUCTION CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR
#define OP_MATMUL CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR
#define GRAPH CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR
#define HEURISTICS CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR
#define CONFIG CUDNN_BACKEND_ENGINECFG_DESCRIPTOR
#define PLAN CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR
#define PACK CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR
#define PART CUDNN_TYPE_BACKEND_DESCRIPTOR

static const rule rules[] = {
    {TENSOR, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, true, 1, 1},
    {TENSOR, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, true, RANK, RANK},
    {TENSOR, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, true, RANK, RANK},
    {TENSOR, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, true, 1, 1},
    {TENSOR, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, true, 1, 1},
    {TENSOR, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, false, 1, 1},
    {TENSOR, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, false, 1, 1},
    {POINTWISE, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, true, 1, 1},
    {POINTWISE, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, true, 1, 1},
    {POINTWISE, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, false, 1, 1},
    {REDUCTION, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, true, 1, 1},
    {REDUCTION, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, true, 1, 1},
    {MATMUL, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, true, 1, 1},
    {OP_POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, PART, true, 1, 1},
    {OP_POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, PART, true, 1, 1},
    {OP_POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, PART, false, 1, 1},
    {OP_POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, PART, false, 1, 1},
    {OP_POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, PART, true, 1, 1},
    {OP_REDUCTION, CUDNN_ATTR_OPERATION_REDUCTION_DESC, PART, true, 1, 1},
    {OP_REDUCTION, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, PART, true, 1, 1},
    {OP_REDUCTION, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, PART, true, 1, 1},
    {OP_MATMUL, CUDNN_ATTR_OPERATION_MATMUL_DESC, PART, true, 1, 1},
    {OP_MATMUL, CUDNN_ATTR_OPERATION_MATMUL_ADESC, PART, true, 1, 1},
    {OP_MATMUL, CUDNN_ATTR_OPERATION_MATMUL_BDESC, PART, true, 1, 1},
    {OP_MATMUL, CUDNN_ATTR_OPERATION_MATMUL_CDESC, PART, true, 1, 1},
    {GRAPH, CUDNN_ATTR_OPERATIONGRAPH_OPS, PART, true, 1, ANY},
    {GRAPH, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, true, 1, 1},
    {HEURISTICS, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, PART, true, 1, 1},
    {HEURISTICS, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, true, 1, 1},
    {PLAN, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, PART, true, 1, 1},
    {PLAN, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, true, 1, 1},
    {PACK, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, true, 1, ANY},
    {PACK, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, true, 1, ANY},
    {PACK, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, true, 1, 1},
};

static size_t element_bytes(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN:
        return sizeof(bool);
    case CUDNN_TYPE_INT64:
        return sizeof(int64_t);
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return sizeof(void *);
    default:
        return sizeof(int); /* enumerations */
    }
}

static const attribute *find(const descriptor *d, cudnnBackendAttributeName_t name)
{
    const auto at = d->attributes.find(name);
    return at == d->attributes.end() ? nullptr : &at->second;
}

template <class T> static T value_of(const descriptor *d, cudnnBackendAttributeName_t name, T none)
{
    const attribute *a = find(d, name);
    if (a)
        memcpy(&none, a->bytes.data(), sizeof(none));
    return none;
}

static const descriptor *part_of(const descriptor *d, cudnnBackendAttributeName_t name)
{
    return (const descriptor *)value_of<void *>(d, name, nullptr);
}

/* Another kind of part than the attribute is named for is found out by whoever reads it: its own
 * attributes are missing. */
static bool all_finished(const void *values, int64_t count)
{
    void *const *parts = (void *const *)values;
    for (int64_t i = 0; i < count; i++)
        if (!parts[i] || !((const descriptor *)parts[i])->finished)
            return false;
    return true;
}

API cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t to,
                                           cudnnBackendAttributeName_t name,
                                           cudnnBackendAttributeType_t type, int64_t count,
                                           const void *values)
{
    descriptor *d = (descriptor *)to;
    if (!d || !values)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (d->finished)
        return CUDNN_STATUS_BAD_PARAM;
    for (const rule &r : rules) {
        if (r.kind != d->kind || r.name != name)
            continue;
        if (r.type != type)
            return CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE;
        if (count < r.least || count > r.most)
            return CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND;
        if (type == PART && !all_finished(values, count))
            return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
        const unsigned char *bytes = (const unsigned char *)values;
        const size_t size = (size_t)count * element_bytes(type);
        d->attributes[name] = {type, count, std::vector<unsigned char>(bytes, bytes + size)};
        return CUDNN_STATUS_SUCCESS;
    }
    return CUDNN_STATUS_NOT_SUPPORTED;
}

/* ---- graphs --------------------------------------------------------------------------------- */

static bool read_tensor(tensor *out, const descriptor *d)
{
    const attribute *dims = find(d, CUDNN_ATTR_TENSOR_DIMENSIONS);
    const attribute *strides = find(d, CUDNN_ATTR_TENSOR_STRIDES);
    if (d->kind != TENSOR || !dims || !strides)
        return false;
    memcpy(out->dims, dims->bytes.data(), sizeof(out->dims));
    memcpy(out->strides, strides->bytes.data(), sizeof(out->strides));
    out->uid = value_of<int64_t>(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, 0);
    out->alignment = value_of<int64_t>(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 0);
    out->type = value_of(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_DATA_FLOAT);
    out->internal = value_of(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, false);
    out->by_value = value_of(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, false);
    return true;
}

static cudnnStatus_t check_tensor(const tensor &t)
{
    const bool known = t.type == CUDNN_DATA_FLOAT || t.type == CUDNN_DATA_BFLOAT16 ||
                       t.type == CUDNN_DATA_INT32 || t.type == CUDNN_DATA_BOOLEAN;
    for (int i = 0; i < RANK; i++)
        if (t.dims[i] < 1 || t.strides[i] < 1)
            return CUDNN_STATUS_BAD_PARAM;
    if (t.alignment < 1 || (t.by_value && (t.internal || count_of(t) != 1)))
        return CUDNN_STATUS_BAD_PARAM;
    return known ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE;
}

/* The place of a tensor, known by its number; -1 where it is missing or is described twice in two
 * ways. */
static int place_of(program *p, const descriptor *d)
{
    tensor t;
    memset(&t, 0, sizeof(t)); /* with what lies between the fields: it is compared */
    if (!d || !read_tensor(&t, d))
        return -1;
    for (size_t i = 0; i < p->tensors.size(); i++)
        if (p->tensors[i].uid == t.uid)
            return memcmp(&p->tensors[i], &t, sizeof(t)) ? -1 : (int)i;
    p->tensors.push_back(t);
    return (int)p->tensors.size() - 1;
}

static operation read_operation(program *p, const descriptor *d)
{
    operation op = {operation::UNKNOWN, 0, 0, -1, -1, -1, -1};
    if (d->kind == OP_MATMUL) {
        op.kind = operation::MULTIPLY;
        op.x = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_MATMUL_ADESC));
        op.b = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_MATMUL_BDESC));
        op.y = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_MATMUL_CDESC));
    } else if (d->kind == OP_REDUCTION) {
        op.kind = operation::REDUCE;
        const descriptor *how = part_of(d, CUDNN_ATTR_OPERATION_REDUCTION_DESC);
        op.mode = value_of(how, CUDNN_ATTR_REDUCTION_OPERATOR, -1);
        op.x = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC));
        op.y = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
    } else if (d->kind == OP_POINTWISE) {
        op.kind = operation::MAP;
        const descriptor *how = part_of(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
        op.mode = value_of(how, CUDNN_ATTR_POINTWISE_MODE, -1);
        op.axis = value_of<int64_t>(how, CUDNN_ATTR_POINTWISE_AXIS, -1);
        op.x = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
        op.b = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
        op.t = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_POINTWISE_TDESC));
        op.y = place_of(p, part_of(d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    }
    return op;
}

/* How many operands a mode has beside x: b, then t. */
static int more_operands(int mode)
{
    switch (mode) {
    case CUDNN_POINTWISE_EXP:
    case CUDNN_POINTWISE_LOG:
    case CUDNN_POINTWISE_GEN_INDEX:
        return 0;
    case CUDNN_POINTWISE_ADD:
    case CUDNN_POINTWISE_SUB:
    case CUDNN_POINTWISE_MUL:
    case CUDNN_POINTWISE_DIV:
    case CUDNN_POINTWISE_CMP_GE:
        return 1;
    case CUDNN_POINTWISE_BINARY_SELECT:
        return 2;
    default:
        return -1;
    }
}

/* Each dimension that of y, or 1. */
static bool spreads(const program &p, int x, int y)
{
    for (int i = 0; i < RANK; i++)
        if (p.tensors[x].dims[i] != 1 && p.tensors[x].dims[i] != p.tensors[y].dims[i])
            return false;
    return true;
}

static cudnnStatus_t check_pointwise(const program &p, const operation &op)
{
    const int more = more_operands(op.mode);
    if (more < 0)
        return CUDNN_STATUS_NOT_SUPPORTED;
    if ((op.b >= 0) != (more > 0) || (op.t >= 0) != (more > 1))
        return CUDNN_STATUS_BAD_PARAM;
    if (op.mode == CUDNN_POINTWISE_GEN_INDEX && (op.axis < 0 || op.axis >= RANK))
        return CUDNN_STATUS_BAD_PARAM;
    const bool fits = spreads(p, op.x, op.y) && (op.b < 0 || spreads(p, op.b, op.y)) &&
                      (op.t < 0 || spreads(p, op.t, op.y));
    return fits ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
}

static cudnnStatus_t check_reduction(const program &p, const operation &op)
{
    const tensor &x = p.tensors[op.x], &y = p.tensors[op.y];
    if (op.mode != CUDNN_REDUCE_TENSOR_ADD && op.mode != CUDNN_REDUCE_TENSOR_MAX)
        return CUDNN_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < RANK - 1; i++)
        if (x.dims[i] != y.dims[i])
            return CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
    return y.dims[RANK - 1] == 1 ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
}

/* Heads of b serve equally many heads of a and c. An f32 c in memory is
 * refused, see dense_graph.h. */
static cudnnStatus_t check_matmul(const program &p, const operation &op)
{
    if (op.b < 0)
        return CUDNN_STATUS_BAD_PARAM;
    const tensor &a = p.tensors[op.x], &b = p.tensors[op.b], &c = p.tensors[op.y];
    const bool fits = a.dims[0] == c.dims[0] && b.dims[0] == c.dims[0] && a.dims[1] == c.dims[1] &&
                      c.dims[1] % b.dims[1] == 0 && a.dims[2] == c.dims[2] &&
                      b.dims[3] == c.dims[3] && a.dims[3] == b.dims[2];
    if (!fits)
        return CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
    const bool products = a.type == CUDNN_DATA_BFLOAT16 && b.type == CUDNN_DATA_BFLOAT16;
    const bool stored = c.internal || c.type == CUDNN_DATA_BFLOAT16;
    return products && stored ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE;
}

/* A value inside the graph is written once, before it is read. */
static bool in_order(const std::vector<bool> &written, const program &p, const operation &op)
{
    for (const int from : {op.x, op.b, op.t})
        if (from >= 0 && p.tensors[from].internal && !written[from])
            return false;
    return !written[op.y] && !p.tensors[op.y].by_value;
}

static cudnnStatus_t finish_graph(descriptor *d)
{
    const attribute *ops = find(d, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    std::vector<bool> written(MOST_TENSORS);
    d->made = std::make_shared<program>();
    for (int64_t i = 0; i < ops->count; i++) {
        const descriptor *from = ((descriptor *const *)ops->bytes.data())[i];
        const operation op = read_operation(d->made.get(), from);
        cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
        if (op.x < 0 || op.y < 0 || d->made->tensors.size() > MOST_TENSORS)
            return CUDNN_STATUS_BAD_PARAM;
        if (op.kind == operation::MULTIPLY)
            status = check_matmul(*d->made, op);
        else if (op.kind == operation::REDUCE)
            status = check_reduction(*d->made, op);
        else
            status = check_pointwise(*d->made, op);
        if (status != CUDNN_STATUS_SUCCESS)
            return status;
        if (!in_order(written, *d->made, op))
            return CUDNN_STATUS_BAD_PARAM;
        written[op.y] = true;
        d->made->operations.push_back(op);
    }
    return CUDNN_STATUS_SUCCESS;
}

/* What was made for a part; NULL where it is of another kind. */
static cudnnStatus_t inherit(descriptor *d, cudnnBackendAttributeName_t name)
{
    d->made = part_of(d, name)->made;
    return d->made ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE;
}

static cudnnStatus_t finish_tensor(const descriptor *d)
{
    tensor t = {};
    return read_tensor(&t, d) ? check_tensor(t) : CUDNN_STATUS_BAD_PARAM;
}

API cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t of)
{
    descriptor *d = (descriptor *)of;
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    if (!d)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    for (const rule &r : rules)
        if (r.kind == d->kind && r.required && !find(d, r.name))
            return CUDNN_STATUS_BAD_PARAM;
    if (d->kind == TENSOR)
        status = finish_tensor(d);
    else if (d->kind == GRAPH)
        status = finish_graph(d);
    else if (d->kind == HEURISTICS)
        status = inherit(d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    else if (d->kind == PLAN)
        status = inherit(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    else if (d->kind == PACK && find(d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS)->count !=
                                    find(d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS)->count)
        status = CUDNN_STATUS_BAD_PARAM;
    d->finished = status == CUDNN_STATUS_SUCCESS;
    plans_made += d->finished && d->kind == PLAN;
    return status;
}

/* Plans made since the module was loaded: tests see by it that one is used again. */
API long dms_cudnn_emulated_plans(void);
API long dms_cudnn_emulated_plans(void)
{
    return plans_made;
}

/* ---- descriptors ---------------------------------------------------------------------------- */

API cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t kind,
                                               cudnnBackendDescriptor_t *out)
{
    bool known = kind == CONFIG;
    for (const rule &r : rules)
        known |= r.kind == kind;
    if (!known)
        return CUDNN_STATUS_NOT_SUPPORTED;
    *out = new descriptor{kind, false, {}, nullptr};
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t of)
{
    delete (descriptor *)of;
    return CUDNN_STATUS_SUCCESS;
}

/* One engine takes every graph that is well formed: its configuration is the graph. */
static cudnnStatus_t give_results(const descriptor *d, int64_t room, void *out)
{
    descriptor *config = room > 0 ? *(descriptor **)out : nullptr;
    if (!config || config->kind != CONFIG)
        return CUDNN_STATUS_BAD_PARAM;
    config->made = d->made;
    config->finished = true;
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const of,
                                           cudnnBackendAttributeName_t name,
                                           cudnnBackendAttributeType_t type, int64_t room,
                                           int64_t *count, void *out)
{
    const descriptor *d = (const descriptor *)of;
    if (!d || !count || !out)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (!d->finished)
        return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    *count = 1;
    if (d->kind == HEURISTICS && name == CUDNN_ATTR_ENGINEHEUR_RESULTS && type == PART)
        return give_results(d, room, out);
    if (d->kind != PLAN || name != CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE ||
        type != CUDNN_TYPE_INT64 || room < 1)
        return CUDNN_STATUS_NOT_SUPPORTED;
    *(int64_t *)out = WORKSPACE;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- execution ------------------------------------------------------------------------------ */

/* Finds the memory of each tensor that has some; numbers are read now. */
static cudnnStatus_t bind(call *e, const descriptor *pack)
{
    const attribute *ids = find(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    const attribute *pointers = find(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    const std::vector<tensor> &tensors = e->plan->tensors;
    for (size_t i = 0; i < tensors.size(); i++) {
        const tensor &t = tensors[i];
        for (int64_t k = 0; k < ids->count && !t.internal; k++)
            if (((const int64_t *)ids->bytes.data())[k] == t.uid)
                e->memory[i] = ((void *const *)pointers->bytes.data())[k];
        if (!t.internal && !e->memory[i])
            return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
        if ((uintptr_t)e->memory[i] % (uintptr_t)t.alignment)
            return CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER;
        if (t.by_value)
            memcpy(&e->numbers[i], e->memory[i], sizeof(float));
    }
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                      cudnnBackendDescriptor_t pack)
{
    const descriptor *p = (const descriptor *)plan, *v = (const descriptor *)pack;
    if (!handle || !p || !v)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (p->kind != PLAN || v->kind != PACK || !p->finished || !v->finished)
        return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    call e = {};
    e.plan = p->made.get();
    e.workspace = value_of<void *>(v, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, nullptr);
    const cudnnStatus_t status = e.workspace ? bind(&e, v) : CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (status != CUDNN_STATUS_SUCCESS)
        return status;
    return queue(e, handle->stream) == cudaSuccess ? CUDNN_STATUS_SUCCESS
                                                   : CUDNN_STATUS_EXECUTION_FAILED;
}

/* ---- library -------------------------------------------------------------------------------- */

API size_t cudnnGetVersion(void)
{
    return CUDNN_VERSION;
}

API const char *cudnnGetErrorString(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_SUCCESS                            ? "CUDNN_STATUS_SUCCESS"
           : CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_BAD_PARAM ? "CUDNN_STATUS_BAD_PARAM"
                                                                     : "CUDNN_STATUS_NOT_SUPPORTED";
}

API cudnnStatus_t cudnnCreate(cudnnHandle_t *out)
{
    *out = new cudnnContext{};
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    delete handle;
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

/* DMS_CUDNN_EMULATED=absent: as where cuDNN is not installed. */
extern "C" const dms_cudnn *dms_cudnn_load(void)
{
    static const dms_cudnn api = {
#define X(name) cudnn##name,
        DMS_CUDNN_LIST(X)
#undef X
    };
    const char *given = getenv("DMS_CUDNN_EMULATED");
    return given && !strcmp(given, "absent") ? nullptr : &api;
}
