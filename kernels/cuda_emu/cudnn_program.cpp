/* Runs a cuDNN graph operation by operation, in plain loops over strided tensors; tensors inside
 * the graph are temporary and rounded to their type. */
#include "kernels/cuda_emu/cudnn_program.h"

#include "kernels/cuda/platform.cuh"

namespace cudnn_emu
{
/* A tensor with its memory. */
typedef struct {
    const tensor *of;
    char *base;
} view;

static size_t type_bytes(cudnnDataType_t type)
{
    return type == CUDNN_DATA_BOOLEAN ? 1 : type == CUDNN_DATA_BFLOAT16 ? 2 : 4;
}

static float load(const view &v, int64_t at)
{
    const char *p = v.base + at * (int64_t)type_bytes(v.of->type);
    switch (v.of->type) {
    case CUDNN_DATA_BFLOAT16:
        return __bfloat162float(*(const __nv_bfloat16 *)p);
    case CUDNN_DATA_INT32:
        return (float)*(const int32_t *)p;
    case CUDNN_DATA_BOOLEAN:
        return (float)*(const uint8_t *)p;
    default:
        return *(const float *)p;
    }
}

static void store(const view &v, int64_t at, float value)
{
    char *p = v.base + at * (int64_t)type_bytes(v.of->type);
    if (v.of->type == CUDNN_DATA_BFLOAT16)
        *(__nv_bfloat16 *)p = __float2bfloat16_rn(value);
    else if (v.of->type == CUDNN_DATA_INT32)
        *(int32_t *)p = (int32_t)value;
    else if (v.of->type == CUDNN_DATA_BOOLEAN)
        *(uint8_t *)p = value != 0;
    else
        *(float *)p = value;
}

/* Where the element that belongs to element i of a larger tensor lies. */
static int64_t spread(const tensor &t, const int64_t i[RANK])
{
    int64_t at = 0;
    for (int r = 0; r < RANK; r++)
        at += t.dims[r] == 1 ? 0 : i[r] * t.strides[r];
    return at;
}

static float apply(const operation &op, const int64_t i[RANK], float x, float b, float t)
{
    switch (op.mode) {
    case CUDNN_POINTWISE_EXP:
        return expf(x);
    case CUDNN_POINTWISE_LOG:
        return logf(x);
    case CUDNN_POINTWISE_GEN_INDEX:
        return (float)i[op.axis];
    case CUDNN_POINTWISE_ADD:
        return x + b;
    case CUDNN_POINTWISE_SUB:
        return x - b;
    case CUDNN_POINTWISE_MUL:
        return x * b;
    case CUDNN_POINTWISE_DIV:
        return x / b;
    case CUDNN_POINTWISE_CMP_GE:
        return x >= b;
    default: /* CUDNN_POINTWISE_BINARY_SELECT: no other passed check_pointwise */
        return t != 0 ? x : b;
    }
}

static void next(int64_t i[RANK], const int64_t dims[RANK])
{
    for (int r = RANK - 1; r >= 0; r--) {
        if (++i[r] < dims[r])
            return;
        i[r] = 0;
    }
}

static void pointwise(const operation &op, const view *all)
{
    const view &y = all[op.y], &x = all[op.x];
    const int64_t n = count_of(*y.of);
    int64_t i[RANK] = {};
    for (int64_t k = 0; k < n; k++, next(i, y.of->dims)) {
        const bool generated = op.mode == CUDNN_POINTWISE_GEN_INDEX; /* x gives only its shape */
        const float value = generated ? 0 : load(x, spread(*x.of, i));
        const float b = op.b < 0 ? 0 : load(all[op.b], spread(*all[op.b].of, i));
        const float t = op.t < 0 ? 0 : load(all[op.t], spread(*all[op.t].of, i));
        store(y, spread(*y.of, i), apply(op, i, value, b, t));
    }
}

static void reduce(const operation &op, const view *all)
{
    const view &y = all[op.y], &x = all[op.x];
    const int64_t n = count_of(*y.of), width = x.of->dims[RANK - 1];
    int64_t i[RANK] = {};
    for (int64_t k = 0; k < n; k++, next(i, y.of->dims)) {
        const int64_t row = spread(*x.of, i);
        float sum = load(x, row);
        for (int64_t c = 1; c < width; c++) {
            const float v = load(x, row + c * x.of->strides[RANK - 1]);
            sum = op.mode == CUDNN_REDUCE_TENSOR_ADD ? sum + v : v > sum ? v : sum;
        }
        store(y, spread(*y.of, i), sum);
    }
}

/* One matrix of the tensor as contiguous floats. */
static std::vector<float> matrix(const view &v, int64_t batch, int64_t head)
{
    const tensor &t = *v.of;
    const int64_t at = batch * t.strides[0] + head * t.strides[1];
    std::vector<float> m((size_t)(t.dims[2] * t.dims[3]));
    for (int64_t r = 0; r < t.dims[2]; r++)
        for (int64_t c = 0; c < t.dims[3]; c++)
            m[r * t.dims[3] + c] = load(v, at + r * t.strides[2] + c * t.strides[3]);
    return m;
}

static void multiply_one(const operation &op, const view *all, int64_t batch, int64_t head)
{
    const view &c = all[op.y], &b = all[op.b];
    const int64_t rows = c.of->dims[2], cols = c.of->dims[3], depth = b.of->dims[2];
    const int64_t shared = head / (c.of->dims[1] / b.of->dims[1]);
    const std::vector<float> left = matrix(all[op.x], batch, head);
    const std::vector<float> right = matrix(b, batch, shared);
    std::vector<float> sums((size_t)cols);
    for (int64_t r = 0; r < rows; r++) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < cols; j++)
                sums[j] += left[r * depth + k] * right[k * cols + j];
        const int64_t at =
            batch * c.of->strides[0] + head * c.of->strides[1] + r * c.of->strides[2];
        for (int64_t j = 0; j < cols; j++)
            store(c, at + j * c.of->strides[3], sums[j]);
    }
}

static void multiply(const operation &op, const view *all)
{
    for (int64_t batch = 0; batch < all[op.y].of->dims[0]; batch++)
        for (int64_t head = 0; head < all[op.y].of->dims[1]; head++)
            multiply_one(op, all, batch, head);
}

static __global__ void execute_kernel(call e)
{
    const std::vector<tensor> &tensors = e.plan->tensors;
    std::vector<std::vector<char>> temporary(tensors.size());
    view all[MOST_TENSORS];
    memset(e.workspace, 0xff, WORKSPACE); /* an engine may write all of it */
    for (size_t i = 0; i < tensors.size(); i++) {
        all[i] = {&tensors[i], (char *)e.memory[i]};
        if (tensors[i].by_value)
            all[i].base = (char *)&e.numbers[i];
        if (!tensors[i].internal)
            continue;
        temporary[i].resize((size_t)count_of(tensors[i]) * type_bytes(tensors[i].type));
        all[i].base = temporary[i].data();
    }
    for (const operation &op : e.plan->operations) {
        if (op.kind == operation::MULTIPLY)
            multiply(op, all);
        else if (op.kind == operation::REDUCE)
            reduce(op, all);
        else
            pointwise(op, all);
    }
}

cudaError_t queue(const call &c, cudaStream_t stream)
{
    DMS_LAUNCH(execute_kernel, 1, 1, 0, stream, c);
    return cudaGetLastError();
}
} // namespace cudnn_emu
