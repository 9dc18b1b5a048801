/* The graph of dense causal attention: fourteen operations, most of whose tensors exist only
 * inside the fused kernel. */
#include "kernels/cuda/dense_graph.h"

enum { FIRST_VIRTUAL = 100, CANDIDATES = DMS_DENSE_CANDIDATES };

static void note(dms_dense_graph *g, cudnnStatus_t status, const char *step)
{
    if (g->status == CUDNN_STATUS_SUCCESS && status != CUDNN_STATUS_SUCCESS) {
        g->status = status;
        g->failed = step;
    }
}

static cudnnBackendDescriptor_t make(dms_dense_graph *g, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = NULL;
    if (g->n_parts == DMS_DENSE_PARTS)
        note(g, CUDNN_STATUS_INTERNAL_ERROR, "counting parts");
    if (g->status != CUDNN_STATUS_SUCCESS)
        return NULL;
    note(g, g->api->BackendCreateDescriptor(type, &d), "creating a descriptor");
    if (g->status == CUDNN_STATUS_SUCCESS)
        g->parts[g->n_parts++] = d;
    return d;
}

static void set(dms_dense_graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (g->status == CUDNN_STATUS_SUCCESS)
        note(g, g->api->BackendSetAttribute(d, name, type, n, values), "setting an attribute");
}

static void set_part(dms_dense_graph *g, cudnnBackendDescriptor_t d,
                     cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t part)
{
    if (part)
        set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static void finish(dms_dense_graph *g, cudnnBackendDescriptor_t d, const char *what)
{
    if (g->status == CUDNN_STATUS_SUCCESS)
        note(g, g->api->BackendFinalize(d), what);
}

/* ---- tensors -------------------------------------------------------------------------------- */

typedef struct {
    int64_t uid; /* 0: exists only inside the graph */
    bool by_value;
    cudnnDataType_t type;
    int64_t dims[4], strides[4];
} tensor_spec;

static cudnnBackendDescriptor_t tensor(dms_dense_graph *g, const tensor_spec *spec)
{
    const int64_t uid = spec->uid ? spec->uid : FIRST_VIRTUAL + g->n_virtual++;
    const int64_t alignment = spec->by_value ? 4 : 16;
    const bool internal = spec->uid == 0;
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);

    set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &spec->type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, spec->dims);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, spec->strides);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &internal);
    set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &spec->by_value);
    finish(g, d, "describing a tensor");
    return d;
}

/* [B, T, heads, E] seen as [B, heads, T, E]; transposed: as [B, heads, E, T]. */
static cudnnBackendDescriptor_t view(dms_dense_graph *g, int64_t uid, int64_t heads,
                                     bool transposed)
{
    const dms_dense_shape *s = &g->shape;
    const int64_t row = heads * s->width;
    tensor_spec spec = {.uid = uid,
                        .type = CUDNN_DATA_BFLOAT16,
                        .dims = {s->batch, heads, s->tokens, s->width},
                        .strides = {s->tokens * row, s->width, row, 1}};
    if (transposed) {
        spec.dims[2] = s->width;
        spec.dims[3] = s->tokens;
        spec.strides[2] = 1;
        spec.strides[3] = row;
    }
    return tensor(g, &spec);
}

/* [B, H, T, T]. */
static cudnnBackendDescriptor_t scores(dms_dense_graph *g, cudnnDataType_t type)
{
    const dms_dense_shape *s = &g->shape;
    const int64_t t = s->tokens;
    return tensor(g, &(tensor_spec){.type = type,
                                    .dims = {s->batch, s->heads, t, t},
                                    .strides = {s->heads * t * t, t * t, t, 1}});
}

/* [B, H, T, 1]. */
static cudnnBackendDescriptor_t rows(dms_dense_graph *g, int64_t uid)
{
    const dms_dense_shape *s = &g->shape;
    return tensor(g, &(tensor_spec){.uid = uid,
                                    .type = CUDNN_DATA_FLOAT,
                                    .dims = {s->batch, s->heads, s->tokens, 1},
                                    .strides = {s->heads * s->tokens, s->tokens, 1, 1}});
}

static cudnnBackendDescriptor_t number(dms_dense_graph *g, int64_t uid)
{
    return tensor(g, &(tensor_spec){.uid = uid,
                                    .by_value = true,
                                    .type = CUDNN_DATA_FLOAT,
                                    .dims = {1, 1, 1, 1},
                                    .strides = {1, 1, 1, 1}});
}

/* ---- operations ----------------------------------------------------------------------------- */

static void add_op(dms_dense_graph *g, cudnnBackendDescriptor_t op, const char *what)
{
    finish(g, op, what);
    if (g->n_ops == DMS_DENSE_OPS)
        note(g, CUDNN_STATUS_INTERNAL_ERROR, "counting operations");
    if (g->status == CUDNN_STATUS_SUCCESS)
        g->ops[g->n_ops++] = op;
}

static void matmul(dms_dense_graph *g, cudnnBackendDescriptor_t a, cudnnBackendDescriptor_t b,
                   cudnnBackendDescriptor_t c)
{
    const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    finish(g, how, "describing a product");

    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_part(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    set_part(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_part(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_part(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    add_op(g, op, "adding a product");
}

/* y [B, H, T, 1] = the sum or the maximum over the last dimension of x [B, H, T, T]. */
static void reduce(dms_dense_graph *g, cudnnReduceTensorOp_t kind, cudnnBackendDescriptor_t x,
                   cudnnBackendDescriptor_t y)
{
    const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &kind);
    set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    finish(g, how, "describing a reduction");

    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_part(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    set_part(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_part(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    add_op(g, op, "adding a reduction");
}

/* y = mode(x), mode(x, b) or, for a selection, t ? x : b; those not used are NULL. */
typedef struct {
    cudnnBackendDescriptor_t y, x, b, t;
} operands;

static void pointwise(dms_dense_graph *g, cudnnPointwiseMode_t mode, int64_t axis,
                      const operands *of)
{
    const cudnnDataType_t type = mode == CUDNN_POINTWISE_CMP_GE      ? CUDNN_DATA_BOOLEAN
                                 : mode == CUDNN_POINTWISE_GEN_INDEX ? CUDNN_DATA_INT32
                                                                     : CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &type);
    if (mode == CUDNN_POINTWISE_GEN_INDEX)
        set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    finish(g, how, "describing a pointwise operation");

    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, of->x);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, of->b);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, of->t);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, of->y);
    add_op(g, op, "adding a pointwise operation");
}

/* The number of each element's row (axis 2) or column (3). */
static cudnnBackendDescriptor_t index_of(dms_dense_graph *g, cudnnBackendDescriptor_t x,
                                         int64_t axis)
{
    cudnnBackendDescriptor_t y = scores(g, CUDNN_DATA_INT32);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, axis, &(operands){.y = y, .x = x});
    return y;
}

/* scale * Q K^T, -infinity where the key comes after the query. */
static cudnnBackendDescriptor_t add_scores(dms_dense_graph *g)
{
    const dms_dense_shape *s = &g->shape;
    cudnnBackendDescriptor_t q = view(g, DMS_DENSE_Q, s->heads, false);
    cudnnBackendDescriptor_t k = view(g, DMS_DENSE_K, s->groups, true);
    cudnnBackendDescriptor_t product = scores(g, CUDNN_DATA_FLOAT);
    cudnnBackendDescriptor_t scaled = scores(g, CUDNN_DATA_FLOAT);
    cudnnBackendDescriptor_t seen = scores(g, CUDNN_DATA_BOOLEAN);
    cudnnBackendDescriptor_t masked = scores(g, CUDNN_DATA_FLOAT);

    matmul(g, q, k, product);
    const operands scaling = {.y = scaled, .x = product, .b = number(g, DMS_DENSE_SCALE)};
    pointwise(g, CUDNN_POINTWISE_MUL, 0, &scaling);
    cudnnBackendDescriptor_t query = index_of(g, scaled, 2), key = index_of(g, scaled, 3);
    pointwise(g, CUDNN_POINTWISE_CMP_GE, 0, &(operands){.y = seen, .x = query, .b = key});
    const operands selection = {
        .y = masked, .x = scaled, .b = number(g, DMS_DENSE_MASKED), .t = seen};
    pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, 0, &selection);
    return masked;
}

/* The weights exp(s - max) / sum, rounded to bf16, and lse. */
static cudnnBackendDescriptor_t add_softmax(dms_dense_graph *g, cudnnBackendDescriptor_t s)
{
    cudnnBackendDescriptor_t max = rows(g, 0), sum = rows(g, 0), log = rows(g, 0);
    cudnnBackendDescriptor_t lse = rows(g, DMS_DENSE_LSE);
    cudnnBackendDescriptor_t below = scores(g, CUDNN_DATA_FLOAT);
    cudnnBackendDescriptor_t power = scores(g, CUDNN_DATA_FLOAT);
    cudnnBackendDescriptor_t weight = scores(g, CUDNN_DATA_BFLOAT16);

    reduce(g, CUDNN_REDUCE_TENSOR_MAX, s, max);
    pointwise(g, CUDNN_POINTWISE_SUB, 0, &(operands){.y = below, .x = s, .b = max});
    pointwise(g, CUDNN_POINTWISE_EXP, 0, &(operands){.y = power, .x = below});
    reduce(g, CUDNN_REDUCE_TENSOR_ADD, power, sum);
    pointwise(g, CUDNN_POINTWISE_LOG, 0, &(operands){.y = log, .x = sum});
    pointwise(g, CUDNN_POINTWISE_ADD, 0, &(operands){.y = lse, .x = max, .b = log});
    pointwise(g, CUDNN_POINTWISE_DIV, 0, &(operands){.y = weight, .x = power, .b = sum});
    return weight;
}

/* ---- plans ---------------------------------------------------------------------------------- */

static cudnnBackendDescriptor_t operation_graph(dms_dense_graph *g)
{
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops, g->ops);
    set(g, d, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &g->handle);
    finish(g, d, "the graph");
    return d;
}

/* Engine configurations in the order of the heuristics' preference; returns how many. */
static int64_t candidates(dms_dense_graph *g, cudnnBackendDescriptor_t graph,
                          cudnnBackendDescriptor_t found[CANDIDATES])
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t n = 0;
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_part(g, d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(g, d, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finish(g, d, "the heuristics");
    for (int i = 0; i < CANDIDATES; i++)
        found[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (g->status != CUDNN_STATUS_SUCCESS)
        return 0;
    note(g,
         g->api->BackendGetAttribute(d, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, CANDIDATES, &n, found),
         "the heuristics' results");
    return n;
}

/* The first configuration that makes a plan; others refuse, which is no failure. */
static void choose_plan(dms_dense_graph *g, cudnnBackendDescriptor_t graph)
{
    cudnnBackendDescriptor_t found[CANDIDATES];
    const int64_t n = candidates(g, graph, found);
    for (int64_t i = 0; i < n && i < CANDIDATES && !g->plan; i++) {
        cudnnBackendDescriptor_t plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set_part(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, found[i]);
        set(g, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &g->handle);
        if (g->status == CUDNN_STATUS_SUCCESS &&
            g->api->BackendFinalize(plan) == CUDNN_STATUS_SUCCESS)
            g->plan = plan;
    }
    if (!g->plan)
        note(g, CUDNN_STATUS_NOT_SUPPORTED, "no engine takes the graph");
}

cudnnStatus_t dms_dense_graph_open(dms_dense_graph *g)
{
    const dms_dense_shape *s = &g->shape;
    int64_t n = 0;
    cudnnBackendDescriptor_t weights = add_softmax(g, add_scores(g));
    cudnnBackendDescriptor_t v = view(g, DMS_DENSE_V, s->groups, false);
    matmul(g, weights, v, view(g, DMS_DENSE_O, s->heads, false));
    choose_plan(g, operation_graph(g));
    if (g->status == CUDNN_STATUS_SUCCESS)
        note(g,
             g->api->BackendGetAttribute(g->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                         CUDNN_TYPE_INT64, 1, &n, &g->workspace_bytes),
             "the workspace's size");
    return g->status;
}

void dms_dense_graph_close(dms_dense_graph *g)
{
    while (g->n_parts)
        (void)g->api->BackendDestroyDescriptor(g->parts[--g->n_parts]);
    g->plan = NULL;
}

cudnnStatus_t dms_dense_graph_run(const dms_dense_graph *g, void *const *pointers, void *workspace)
{
    int64_t uids[DMS_DENSE_END - 1];
    dms_dense_graph call = {.api = g->api};
    for (int i = 0; i < DMS_DENSE_END - 1; i++)
        uids[i] = i + 1;
    cudnnBackendDescriptor_t pack = make(&call, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(&call, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, DMS_DENSE_END - 1, uids);
    set(&call, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, DMS_DENSE_END - 1,
        pointers);
    set(&call, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    finish(&call, pack, "naming the pointers");
    if (call.status == CUDNN_STATUS_SUCCESS)
        note(&call, g->api->BackendExecute(g->handle, g->plan, pack), "the execution");
    dms_dense_graph_close(&call);
    return call.status;
}
