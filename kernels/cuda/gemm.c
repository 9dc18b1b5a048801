/* Matrix products by cuBLASLt, which is column-major: D is computed as D^T = B^T A^T, so that the
 * library's A is our B. */
#include "kernels/cuda/gemm.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Plans are kept in sets, found by a hash; the oldest of a set makes room for a new one, so that
 * prompts of every length do not fill the memory. A model has about 20 shapes a batch size. */
enum { SETS = 256, WAYS = 4, CANDIDATES = 8 };
/* No kernel of the library asks for more than 16 bytes: the widest load, and what TMA needs. Larger
 * alignments are not told apart, so that addresses do not decide the order of sums. */
enum { ALIGNED = 16 };
static const size_t workspace_bytes = DMS_CUDA_GEMM_WORKSPACE;

/* All that the choice of an algorithm may depend on; without padding: compared as bytes. */
typedef struct {
    int64_t m, n, k, lda, ldb, ldd;
    uint16_t a_aligned, b_aligned, c_aligned, d_aligned;
    uint16_t bias_aligned; /* 0: no bias */
    uint16_t a_transposed, b_transposed;
    uint8_t bf16, used; /* used: 1, but in a place that holds no plan */
} plan_key;

_Static_assert(sizeof(plan_key) == 8 * sizeof(int64_t), "padding would be compared");

typedef struct {
    plan_key key;
    bool bias_apart; /* no algorithm adds the bias */
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t a, b, d; /* as in gemm.h; d is C's too */
    cublasLtMatmulAlgo_t algo;
} gemm_plan;

struct dms_cuda_gemm_plans {
    cublasLtHandle_t handle;
    void *workspace;
    cublasComputeType_t f32_products;
    uint8_t oldest[SETS];
    gemm_plan plans[SETS][WAYS];
};

static dms_status failed(cublasStatus_t error, const plan_key *key)
{
    return dms_fail(DMS_ERR_DEVICE,
                    "cuBLASLt: %s, for the %s product [%" PRId64 ", %" PRId64 "] x [%" PRId64
                    ", %" PRId64 "] with rows of %" PRId64 ", %" PRId64 " and %" PRId64 " elements",
                    cublasLtGetStatusName(error), key->bf16 ? "bf16" : "f32", key->m, key->k,
                    key->k, key->n, key->lda, key->ldb, key->ldd);
}

#define TRY_LT(key, call)                        \
    do {                                         \
        const cublasStatus_t lt_error_ = (call); \
        if (lt_error_ != CUBLAS_STATUS_SUCCESS)  \
            DMS_TRY(failed(lt_error_, (key)));   \
    } while (0)

/* An attribute's size is that of the variable that holds it. */
#define SET_OP(op, name, value) \
    cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_##name, &(value), sizeof(value))
#define SET_PREFERENCE(to, name, value) \
    cublasLtMatmulPreferenceSetAttribute(to, CUBLASLT_MATMUL_PREF_##name, &(value), sizeof(value))

static dms_status open_plans(dms_device *dev)
{
    dms_status status = DMS_OK;
    const char *tf32 = getenv("DMS_TF32");
    dms_cuda_gemm_plans *plans = calloc(1, sizeof(*plans));
    if (!plans)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the plans of matrix products");
    plans->f32_products =
        tf32 && !strcmp(tf32, "1") ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    DMS_TRY_OR(fail, dev->alloc(dev, &plans->workspace, workspace_bytes));
    const cublasStatus_t error = cublasLtCreate(&plans->handle);
    if (error != CUBLAS_STATUS_SUCCESS) {
        status = dms_fail(DMS_ERR_DEVICE, "cublasLtCreate: %s", cublasLtGetStatusName(error));
        goto fail;
    }
    dms_cuda_of(dev)->plans = plans;
    return DMS_OK;
fail:
    dms_cuda_gemm_close(dev, plans);
    return status;
}

void dms_cuda_gemm_close(dms_device *dev, dms_cuda_gemm_plans *plans)
{
    if (!plans)
        return;
    if (plans->handle)
        (void)cublasLtDestroy(plans->handle);
    dev->release(dev, plans->workspace);
    free(plans);
}

/* Operation and layouts of `key`; with the bias's epilogue if bias is not NULL. The bias of a plan
 * changes from call to call, but not its alignment, which the library reads off the pointer. */
static dms_status describe(gemm_plan *plan, const dms_cuda_gemm_plans *plans, const void *bias)
{
    const plan_key *key = &plan->key;
    const cudaDataType_t operand = key->bf16 ? CUDA_R_16BF : CUDA_R_32F, f32 = CUDA_R_32F;
    const uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
    const bool at = key->a_transposed, bt = key->b_transposed;
    const int32_t op_a = at ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = bt ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int32_t bias_type = CUDA_R_32F;
    const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;

    TRY_LT(key, cublasLtMatmulDescInit(&plan->op,
                                       key->bf16 ? CUBLAS_COMPUTE_32F : plans->f32_products, f32));
    TRY_LT(key, SET_OP(&plan->op, TRANSA, op_b));
    TRY_LT(key, SET_OP(&plan->op, TRANSB, op_a));
    if (bias) {
        TRY_LT(key, SET_OP(&plan->op, EPILOGUE, epilogue));
        TRY_LT(key, SET_OP(&plan->op, BIAS_DATA_TYPE, bias_type));
        TRY_LT(key, SET_OP(&plan->op, BIAS_POINTER, bias));
    }
    TRY_LT(key, cublasLtMatrixLayoutInit(&plan->b, operand, bt ? k : n, bt ? n : k, key->ldb));
    TRY_LT(key, cublasLtMatrixLayoutInit(&plan->a, operand, at ? m : k, at ? k : m, key->lda));
    TRY_LT(key, cublasLtMatrixLayoutInit(&plan->d, f32, n, m, key->ldd));
    return DMS_OK;
}

/* Parts of a long sum are added in a step of their own, never in the order in which they finish. */
static dms_status prefer(cublasLtMatmulPreferenceOpaque_t *out, const plan_key *key)
{
    const uint64_t bytes = workspace_bytes;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t a = key->a_aligned, b = key->b_aligned;
    const uint32_t c = key->c_aligned, d = key->d_aligned;
    TRY_LT(key, cublasLtMatmulPreferenceInit(out));
    TRY_LT(key, SET_PREFERENCE(out, MAX_WORKSPACE_BYTES, bytes));
    TRY_LT(key, SET_PREFERENCE(out, REDUCTION_SCHEME_MASK, reduction));
    TRY_LT(key, SET_PREFERENCE(out, MIN_ALIGNMENT_A_BYTES, b));
    TRY_LT(key, SET_PREFERENCE(out, MIN_ALIGNMENT_B_BYTES, a));
    TRY_LT(key, SET_PREFERENCE(out, MIN_ALIGNMENT_C_BYTES, c));
    TRY_LT(key, SET_PREFERENCE(out, MIN_ALIGNMENT_D_BYTES, d));
    return DMS_OK;
}

/* The library's first choice among the algorithms that it can run; *found is false if none. */
static dms_status choose(gemm_plan *plan, const dms_cuda_gemm_plans *plans, bool *found)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    cublasLtMatmulPreferenceOpaque_t preference;
    int n = 0;
    *found = false;
    DMS_TRY(prefer(&preference, &plan->key));
    const cublasStatus_t error =
        cublasLtMatmulAlgoGetHeuristic(plans->handle, &plan->op, &plan->b, &plan->a, &plan->d,
                                       &plan->d, &preference, CANDIDATES, results, &n);
    if (error == CUBLAS_STATUS_NOT_SUPPORTED)
        return DMS_OK;
    TRY_LT(&plan->key, error);
    for (int i = 0; i < n && !*found; i++)
        if (results[i].state == CUBLAS_STATUS_SUCCESS &&
            results[i].workspaceSize <= workspace_bytes) {
            plan->algo = results[i].algo;
            *found = true;
        }
    return DMS_OK;
}

static dms_status make_plan(gemm_plan *out, const dms_cuda_gemm_plans *plans, const plan_key *key,
                            const void *bias)
{
    gemm_plan plan = {.key = *key};
    bool found = false;
    DMS_TRY(describe(&plan, plans, bias));
    DMS_TRY(choose(&plan, plans, &found));
    if (!found && bias) {
        plan.bias_apart = true;
        DMS_TRY(describe(&plan, plans, NULL));
        DMS_TRY(choose(&plan, plans, &found));
    }
    if (!found)
        return failed(CUBLAS_STATUS_NOT_SUPPORTED, key);
    *out = plan;
    return DMS_OK;
}

/* FNV-1a over words. */
static unsigned set_of(const plan_key *key)
{
    uint64_t words[sizeof(*key) / sizeof(uint64_t)], hash = 0xcbf29ce484222325u;
    memcpy(words, key, sizeof(words));
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        hash = (hash ^ words[i]) * 0x100000001b3u;
    return (unsigned)((hash ^ hash >> 32) % SETS);
}

static dms_status find_plan(gemm_plan **out, dms_cuda_gemm_plans *plans, const plan_key *key,
                            const void *bias)
{
    const unsigned set = set_of(key);
    for (int i = 0; i < WAYS; i++)
        if (!memcmp(&plans->plans[set][i].key, key, sizeof(*key))) {
            *out = &plans->plans[set][i];
            return DMS_OK;
        }
    gemm_plan *place = &plans->plans[set][plans->oldest[set]];
    DMS_TRY(make_plan(place, plans, key, bias));
    plans->oldest[set] = (uint8_t)((plans->oldest[set] + 1) % WAYS);
    *out = place;
    return DMS_OK;
}

static uint16_t alignment(const void *pointer)
{
    const uintptr_t bits = (uintptr_t)pointer | ALIGNED;
    return (uint16_t)(bits & -bits);
}

static plan_key key_of(const dms_cuda_gemm_operands *o, const dms_cuda_gemm_shape *shape)
{
    return (plan_key){.m = shape->m,
                      .n = shape->n,
                      .k = shape->k,
                      .lda = shape->lda,
                      .ldb = shape->ldb,
                      .ldd = shape->ldd,
                      .a_aligned = alignment(o->a),
                      .b_aligned = alignment(o->b),
                      .c_aligned = alignment(o->c ? o->c : o->d),
                      .d_aligned = alignment(o->d),
                      .bias_aligned = o->bias ? alignment(o->bias) : 0,
                      .a_transposed = shape->a_transposed,
                      .b_transposed = shape->b_transposed,
                      .bf16 = shape->bf16,
                      .used = 1};
}

dms_status dms_cuda_gemm(dms_device *dev, const dms_cuda_gemm_operands *operands,
                         const dms_cuda_gemm_shape *shape)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    const float one = 1.0f, zero = 0.0f;
    const plan_key key = key_of(operands, shape);
    dms_cuda_gemm_operands o = *operands;
    gemm_plan *plan = NULL;
    if (!shape->m || !shape->n)
        return DMS_OK;
    if (dev->dry)
        return dms_cuda_scratch(&(void *){NULL}, dev, 0);
    if (!cuda->plans)
        DMS_TRY(open_plans(dev));
    DMS_TRY(find_plan(&plan, cuda->plans, &key, o.bias));
    if (o.bias && plan->bias_apart) {
        DMS_TRY(dms_cuda_add_bias(dev, &o, shape));
        o.c = o.d;
    } else if (o.bias) {
        TRY_LT(&key, SET_OP(&plan->op, BIAS_POINTER, o.bias));
    }
    TRY_LT(&key,
           cublasLtMatmul(cuda->plans->handle, &plan->op, &one, o.b, &plan->b, o.a, &plan->a,
                          o.c ? &one : &zero, o.c ? o.c : o.d, &plan->d, o.d, &plan->d, &plan->algo,
                          cuda->plans->workspace, workspace_bytes, cuda->stream));
    return DMS_OK;
}
