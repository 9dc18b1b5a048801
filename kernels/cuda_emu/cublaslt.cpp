/* The calls of cuBLASLt that kernels/cuda/gemm.c makes, on the CPU: what they are told is checked,
 * the product is a launch of its own, so that it is queued, recorded and replayed like a kernel. */
#include <cublasLt.h>
#include <new>

#include "kernels/cuda/platform.cuh"

enum { TILE = 64, LANES = 8, STRIP = 4 }; /* TILE of every dimension */

typedef float lanes __attribute__((vector_size(LANES * 4)));

/* What the library's opaque structs hold here; `kind` tells that one was initialised. */
typedef struct {
    uint64_t kind;
    int64_t rows, cols, ld; /* column-major */
    cudaDataType type;
} layout;

typedef struct {
    uint64_t kind;
    const void *bias;
    int32_t transa, transb, bias_type;
    uint32_t epilogue;
    cublasComputeType_t compute;
    cudaDataType scale;
} operation;

typedef struct {
    uint64_t kind;
    uint64_t workspace;
    uint32_t reduction;
    uint32_t aligned[4]; /* A, B, C, D */
} preference;

/* An algorithm is good for what it was chosen for. */
typedef struct {
    uint64_t kind;
    uint64_t fingerprint;
    uint32_t aligned[4], bias_aligned;
} algorithm;

enum : uint64_t { HANDLE = 0x4a4d1e, LAYOUT = 0x1a507, OPERATION = 0x09e7a, PREFERENCE = 0x94ef5 };
enum : uint64_t { ALGORITHM = 0xa1904 };
enum { BIAS_ALIGNED = 16 }; /* what the epilogue asks for */

static_assert(sizeof(layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "layout");
static_assert(sizeof(operation) <= sizeof(cublasLtMatmulDescOpaque_t), "operation");
static_assert(sizeof(preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "preference");
static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "algorithm");

struct cublasLtContext {
    uint64_t kind;
};

/* ---- the product ---------------------------------------------------------------------------- */

/* d [m, n] = alpha op(a) op(b) + beta c, + bias[row]; all column-major. */
typedef struct {
    const void *a, *b;
    const float *c, *bias;
    float *d;
    int64_t m, n, k, lda, ldb, ldc, ldd;
    float alpha, beta;
    bool a_along, b_along; /* elements of one sum lie next to each other */
} product;

static float widened(float x)
{
    return x;
}

static float widened(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* to[k][i] = element (i, k) of the tile that begins at `from`, 0 beyond `width` and `depth`. */
template <typename T>
static void pack(float (*to)[TILE], const T *from, int64_t ld, bool along, int64_t width,
                 int64_t depth)
{
    if (width < TILE)
        memset(to, 0, sizeof(float) * TILE * TILE);
    if (along)
        for (int64_t i = 0; i < width; i++)
            for (int64_t k = 0; k < depth; k++)
                to[k][i] = widened(from[i * ld + k]);
    else
        for (int64_t k = 0; k < depth; k++)
            for (int64_t i = 0; i < width; i++)
                to[k][i] = widened(from[k * ld + i]);
}

/* sum[j][i] += a[k][i] b[k][j] for LANES rows i and STRIP columns j, in the order of k. */
static void add_strip(float (*sum)[TILE], const float (*a)[TILE], const float (*b)[TILE],
                      int64_t depth)
{
    lanes total[STRIP], row;
    for (int j = 0; j < STRIP; j++)
        memcpy(&total[j], sum[j], sizeof(lanes));
    for (int64_t k = 0; k < depth; k++) {
        memcpy(&row, a[k], sizeof(row));
        for (int j = 0; j < STRIP; j++)
            total[j] += row * b[k][j];
    }
    for (int j = 0; j < STRIP; j++)
        memcpy(sum[j], &total[j], sizeof(lanes));
}

static void store_tile(const product *p, const float (*sum)[TILE], int64_t i0, int64_t j0)
{
    for (int64_t j = 0; j < TILE && j0 + j < p->n; j++)
        for (int64_t i = 0; i < TILE && i0 + i < p->m; i++) {
            float value = p->alpha * sum[j][i];
            if (p->beta != 0.0f)
                value += p->beta * p->c[(j0 + j) * p->ldc + i0 + i];
            p->d[(j0 + j) * p->ldd + i0 + i] = value + (p->bias ? p->bias[i0 + i] : 0.0f);
        }
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* A block of one thread computes a tile of d; T is float, or uint16_t for bf16. */
template <typename T> static __global__ void product_kernel(product p)
{
    __shared__ float a[TILE][TILE], b[TILE][TILE], sum[TILE][TILE];
    const int64_t tiles = (p.m + TILE - 1) / TILE;
    const int64_t i0 = blockIdx.x % tiles * TILE, j0 = blockIdx.x / tiles * TILE;
    const int64_t rows = smaller(TILE, p.m - i0), cols = smaller(TILE, p.n - j0);
    const int64_t a_row = p.a_along ? p.lda : 1, a_k = p.a_along ? 1 : p.lda;
    const int64_t b_col = p.b_along ? p.ldb : 1, b_k = p.b_along ? 1 : p.ldb;

    memset(sum, 0, sizeof(sum));
    for (int64_t k = 0; k < p.k; k += TILE) {
        const int64_t depth = smaller(TILE, p.k - k);
        pack(a, (const T *)p.a + i0 * a_row + k * a_k, p.lda, p.a_along, rows, depth);
        pack(b, (const T *)p.b + j0 * b_col + k * b_k, p.ldb, p.b_along, cols, depth);
        for (int64_t j = 0; j < cols; j += STRIP)
            for (int64_t i = 0; i < rows; i += LANES)
                add_strip((float(*)[TILE]) & sum[j][i], (const float(*)[TILE]) & a[0][i],
                          (const float(*)[TILE]) & b[0][j], depth);
    }
    store_tile(&p, sum, i0, j0);
}

/* ---- descriptors ---------------------------------------------------------------------------- */

static bool is(const void *opaque, uint64_t kind)
{
    return opaque && *(const uint64_t *)opaque == kind;
}

/* The value of an attribute whose type is that of *to. */
template <typename T> static cublasStatus_t take(T *to, const void *from, size_t bytes)
{
    if (!from || bytes != sizeof(*to))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, from, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = new (std::nothrow) cublasLtContext{HANDLE};
    return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    if (!is(handle, HANDLE))
        return CUBLAS_STATUS_INVALID_VALUE;
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    default:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    }
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t out, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld)
{
    if (size < sizeof(*out))
        return CUBLAS_STATUS_ALLOC_FAILED;
    *(layout *)out = layout{LAYOUT, (int64_t)rows, (int64_t)cols, ld, type};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t out, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale)
{
    if (size < sizeof(*out))
        return CUBLAS_STATUS_ALLOC_FAILED;
    *(operation *)out =
        operation{OPERATION, nullptr, CUBLAS_OP_N, CUBLAS_OP_N, -1, CUBLASLT_EPILOGUE_DEFAULT,
                  compute,   scale};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t to,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    operation *op = (operation *)to;
    if (!is(to, OPERATION))
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return take(&op->transa, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return take(&op->transb, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return take(&op->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return take(&op->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return take(&op->bias, value, bytes);
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t out, size_t size)
{
    if (size < sizeof(*out))
        return CUBLAS_STATUS_ALLOC_FAILED;
    *(preference *)out =
        preference{PREFERENCE, 0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t to,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    preference *wanted = (preference *)to;
    if (!is(to, PREFERENCE))
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return take(&wanted->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return take(&wanted->reduction, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return take(&wanted->aligned[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return take(&wanted->aligned[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return take(&wanted->aligned[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return take(&wanted->aligned[3], value, bytes);
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
}

/* ---- checks --------------------------------------------------------------------------------- */

/* A problem as the heuristics and the product are given it. */
typedef struct {
    const operation *op;
    const layout *at[4]; /* A, B, C, D */
} problem;

static bool is_problem(const problem *p)
{
    bool all = is(p->op, OPERATION);
    for (int i = 0; i < 4; i++)
        all = all && is(p->at[i], LAYOUT);
    return all;
}

static bool fits(const layout *l, int32_t transposed, int64_t rows, int64_t cols)
{
    const bool turned = transposed == CUBLAS_OP_T;
    return (turned || transposed == CUBLAS_OP_N) && l->rows == (turned ? cols : rows) &&
           l->cols == (turned ? rows : cols) && l->rows > 0 && l->cols > 0 && l->ld >= l->rows;
}

static bool has_bias(const operation *op)
{
    return op->epilogue == CUBLASLT_EPILOGUE_BIAS;
}

static cublasStatus_t check(const problem *p)
{
    const operation *op = p->op;
    const layout *a = p->at[0], *b = p->at[1], *c = p->at[2], *d = p->at[3];
    if (!is_problem(p))
        return CUBLAS_STATUS_INVALID_VALUE;
    const int64_t depth = op->transa == CUBLAS_OP_T ? a->rows : a->cols;
    const bool bf16 = a->type == CUDA_R_16BF;
    if (!fits(a, op->transa, d->rows, depth) || !fits(b, op->transb, depth, d->cols) ||
        !fits(c, CUBLAS_OP_N, d->rows, d->cols) || !fits(d, CUBLAS_OP_N, d->rows, d->cols))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (has_bias(op) && !op->bias)
        return CUBLAS_STATUS_INVALID_VALUE;
    const bool types = (bf16 || a->type == CUDA_R_32F) && b->type == a->type &&
                       c->type == CUDA_R_32F && d->type == CUDA_R_32F && op->scale == CUDA_R_32F;
    const bool compute =
        op->compute == CUBLAS_COMPUTE_32F || (!bf16 && op->compute == CUBLAS_COMPUTE_32F_FAST_TF32);
    const bool epilogue = op->epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
                          (has_bias(op) && (op->bias_type == CUDA_R_32F || op->bias_type == -1) &&
                           (uintptr_t)op->bias % BIAS_ALIGNED == 0);
    return types && compute && epilogue ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static uint64_t fingerprint(const problem *p)
{
    uint64_t hash = 1469598103934665603u;
    const operation *op = p->op;
    const int64_t of_op[] = {op->transa,    op->transb,  op->epilogue,
                             op->bias_type, op->compute, op->scale};
    for (int64_t value : of_op)
        hash = (hash ^ (uint64_t)value) * 1099511628211u;
    for (const layout *l : p->at) {
        const int64_t of_layout[] = {l->rows, l->cols, l->ld, l->type};
        for (int64_t value : of_layout)
            hash = (hash ^ (uint64_t)value) * 1099511628211u;
    }
    return hash;
}

static size_t element_bytes(const layout *l)
{
    return l->type == CUDA_R_16BF ? 2 : 4;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preferred, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *returned)
{
    const problem p = {
        (const operation *)op,
        {(const layout *)a, (const layout *)b, (const layout *)c, (const layout *)d}};
    const preference *wanted = (const preference *)preferred;
    algorithm algo = {ALGORITHM, 0, {0, 0, 0, 0}, BIAS_ALIGNED};
    if (!is(handle, HANDLE) || !is(wanted, PREFERENCE) || requested < 1 || !results || !returned)
        return CUBLAS_STATUS_INVALID_VALUE;
    *returned = 0;
    const cublasStatus_t status = check(&p);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    for (int i = 0; i < 4; i++) {
        const uint32_t aligned = wanted->aligned[i];
        if (aligned & (aligned - 1) || aligned < element_bytes(p.at[i]))
            return CUBLAS_STATUS_INVALID_VALUE;
        algo.aligned[i] = aligned;
    }
    algo.fingerprint = fingerprint(&p);
    memset(&results[0], 0, sizeof(results[0]));
    memcpy(&results[0].algo, &algo, sizeof(algo));
    results[0].state = CUBLAS_STATUS_SUCCESS;
    *returned = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the call ------------------------------------------------------------------------------- */

static bool chosen_for(const algorithm *algo, const problem *p, const void *const at[4])
{
    bool good = is(algo, ALGORITHM) && algo->fingerprint == fingerprint(p);
    for (int i = 0; good && i < 4; i++)
        good = at[i] && (uintptr_t)at[i] % algo->aligned[i] == 0;
    return good;
}

/* C is D, in one layout, or lies apart from it. */
static bool apart(const problem *p, const void *C, const void *D)
{
    const layout *c = p->at[2], *d = p->at[3];
    const char *from = (const char *)C, *to = (const char *)D;
    if (C == D)
        return c->ld == d->ld;
    return from + c->cols * c->ld * 4 <= to || to + d->cols * d->ld * 4 <= from;
}

static cublasStatus_t launch(const product *p, bool bf16, cudaStream_t stream)
{
    const int64_t blocks = (p->m + TILE - 1) / TILE * ((p->n + TILE - 1) / TILE);
    if (bf16)
        DMS_LAUNCH(product_kernel<uint16_t>, (unsigned)blocks, 1, 0, stream, *p);
    else
        DMS_LAUNCH(product_kernel<float>, (unsigned)blocks, 1, 0, stream, *p);
    return cudaPeekAtLastError() == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                : CUBLAS_STATUS_EXECUTION_FAILED;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t a, const void *B,
                              cublasLtMatrixLayout_t b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    const problem p = {
        (const operation *)op,
        {(const layout *)a, (const layout *)b, (const layout *)c, (const layout *)d}};
    const void *const at[4] = {A, B, C, D};
    if (!is(handle, HANDLE) || !alpha || !beta || (workspace_bytes && !workspace))
        return CUBLAS_STATUS_INVALID_VALUE;
    const cublasStatus_t status = check(&p);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (!chosen_for((const algorithm *)algo, &p, at) || !apart(&p, C, D))
        return CUBLAS_STATUS_INVALID_VALUE;
    const product call = {.a = A,
                          .b = B,
                          .c = (const float *)C,
                          .bias = has_bias(p.op) ? (const float *)p.op->bias : nullptr,
                          .d = (float *)D,
                          .m = p.at[3]->rows,
                          .n = p.at[3]->cols,
                          .k = p.op->transa == CUBLAS_OP_T ? p.at[0]->rows : p.at[0]->cols,
                          .lda = p.at[0]->ld,
                          .ldb = p.at[1]->ld,
                          .ldc = p.at[2]->ld,
                          .ldd = p.at[3]->ld,
                          .alpha = *(const float *)alpha,
                          .beta = *(const float *)beta,
                          .a_along = p.op->transa == CUBLAS_OP_T,
                          .b_along = p.op->transb == CUBLAS_OP_N};
    return launch(&call, p.at[0]->type == CUDA_R_16BF, stream);
}
