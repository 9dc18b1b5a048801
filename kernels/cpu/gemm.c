/* Compiled once: the kernels of oneDNN that this process has made so far. */
#include "kernels/cpu/gemm.h"

#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>

enum { BUCKETS = 256, N_ARGS = 4 };

/* What one run at a time may use: memory objects are handles that a run points at its operands. */
typedef struct handles {
    struct handles *next;
    dnnl_stream_t stream;
    dnnl_exec_arg_t args[N_ARGS]; /* a, b, c, scratch */
} handles;

struct dms_gemm {
    struct dms_gemm *next;
    dms_gemm_shape shape;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    handles *idle;
    int n_handles; /* idle or in use */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards everything below and `idle` */
static dnnl_engine_t engine;
static dms_gemm *buckets[BUCKETS];

static bool same(const dms_gemm_shape *a, const dms_gemm_shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->lda == b->lda && a->ldb == b->ldb &&
           a->ldc == b->ldc && a->a_transposed == b->a_transposed &&
           a->b_transposed == b->b_transposed && a->bf16 == b->bf16 && a->add == b->add;
}

static dms_gemm **bucket_of(const dms_gemm_shape *s)
{
    const uint64_t mixed = (uint64_t)s->m * 0x9e3779b97f4a7c15u ^
                           (uint64_t)s->n * 0xc2b2ae3d27d4eb4fu ^
                           (uint64_t)s->k * 0x165667b19e3779f9u ^ (uint64_t)s->ldc;
    return &buckets[(mixed >> 32) % BUCKETS];
}

static dnnl_status_t matrix(dnnl_memory_desc_t *out, int64_t rows, int64_t cols, int64_t ld,
                            bool transposed, bool bf16)
{
    const dnnl_dims_t dims = {rows, cols}, plain = {ld, 1}, flipped = {1, ld};
    return dnnl_memory_desc_init_by_strides(out, 2, dims, bf16 ? dnnl_bf16 : dnnl_f32,
                                            transposed ? flipped : plain);
}

/* Scratch is the caller's, and `add` is beta = 1. */
static dnnl_status_t attributes(dnnl_primitive_attr_t *out, bool add)
{
    dnnl_post_ops_t chain = NULL;
    dnnl_status_t status = dnnl_primitive_attr_create(out);
    if (!status)
        status = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    if (!status && add) {
        status = dnnl_post_ops_create(&chain);
        if (!status)
            status = dnnl_post_ops_append_sum(chain, 1.0f);
        if (!status)
            status = dnnl_primitive_attr_set_post_ops(*out, chain);
        dnnl_post_ops_destroy(chain);
    }
    return status;
}

static dnnl_status_t compile(dms_gemm *gemm)
{
    const dms_gemm_shape *s = &gemm->shape;
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t op;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t status = engine ? dnnl_success : dnnl_engine_create(&engine, dnnl_cpu, 0);
    if (!status)
        status = matrix(&a, s->m, s->k, s->lda, s->a_transposed, s->bf16);
    if (!status)
        status = matrix(&b, s->k, s->n, s->ldb, s->b_transposed, s->bf16);
    if (!status)
        status = matrix(&c, s->m, s->n, s->ldc, false, false);
    if (!status)
        status = dnnl_matmul_desc_init(&op, &a, &b, NULL, &c);
    if (!status)
        status = attributes(&attr, s->add);
    if (!status)
        status = dnnl_primitive_desc_create(&gemm->desc, &op, attr, engine, NULL);
    if (!status)
        status = dnnl_primitive_create(&gemm->primitive, gemm->desc);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return status;
}

static void drop(dms_gemm *gemm)
{
    if (gemm->primitive)
        dnnl_primitive_destroy(gemm->primitive);
    if (gemm->desc)
        dnnl_primitive_desc_destroy(gemm->desc);
    free(gemm);
}

/* oneDNN cuts its work by the thread count it sees when a kernel is made, so it sees one. */
static dms_status make(dms_gemm **out, const dms_gemm_shape *shape)
{
    dms_gemm *gemm = calloc(1, sizeof(*gemm));
    if (!gemm)
        return dms_fail(DMS_ERR_NOMEM, "the cpu has no %zu bytes left", sizeof(*gemm));
    gemm->shape = *shape;
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const dnnl_status_t status = compile(gemm);
    omp_set_num_threads(threads);
    if (status) {
        drop(gemm);
        return dms_fail(status == dnnl_out_of_memory ? DMS_ERR_NOMEM : DMS_ERR_DEVICE,
                        "oneDNN has no %s product of %lld x %lld x %lld (status %d)",
                        shape->bf16 ? "bf16" : "f32", (long long)shape->m, (long long)shape->n,
                        (long long)shape->k, (int)status);
    }
    *out = gemm;
    return DMS_OK;
}

static const dnnl_memory_desc_t *described(const dms_gemm *gemm, dnnl_query_t what)
{
    return dnnl_primitive_desc_query_md(gemm->desc, what, 0);
}

size_t dms_gemm_scratch_bytes(const dms_gemm *gemm)
{
    return dnnl_memory_desc_get_size(described(gemm, dnnl_query_scratchpad_md));
}

static void drop_handles(handles *h)
{
    for (int i = 0; i < N_ARGS; i++)
        dnnl_memory_destroy(h->args[i].memory);
    dnnl_stream_destroy(h->stream);
    free(h);
}

static handles *make_handles(const dms_gemm *gemm)
{
    static const int ids[] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    static const dnnl_query_t queries[] = {dnnl_query_src_md, dnnl_query_weights_md,
                                           dnnl_query_dst_md, dnnl_query_scratchpad_md};
    handles *h = calloc(1, sizeof(*h));
    if (!h)
        return NULL;
    dnnl_status_t status = dnnl_stream_create(&h->stream, engine, dnnl_stream_default_flags);
    for (int i = 0; !status && i < N_ARGS; i++) {
        h->args[i].arg = ids[i];
        status = dnnl_memory_create(&h->args[i].memory, described(gemm, queries[i]), engine,
                                    DNNL_MEMORY_NONE);
    }
    if (!status)
        return h;
    drop_handles(h);
    return NULL;
}

/* Enough handles for every thread, so that no later run has to make any. */
static dms_status stock(dms_gemm *gemm)
{
    while (gemm->n_handles < omp_get_max_threads()) {
        handles *h = make_handles(gemm);
        if (!h)
            return dms_fail(DMS_ERR_NOMEM, "the cpu has no memory left for a matrix product");
        h->next = gemm->idle;
        gemm->idle = h;
        gemm->n_handles++;
    }
    return DMS_OK;
}

dms_status dms_gemm_get(dms_gemm **out, const dms_gemm_shape *shape)
{
    dms_status status = DMS_OK;
    pthread_mutex_lock(&lock);
    dms_gemm **bucket = bucket_of(shape), *gemm = *bucket;
    while (gemm && !same(&gemm->shape, shape))
        gemm = gemm->next;
    if (!gemm) {
        status = make(&gemm, shape);
        if (!status) {
            gemm->next = *bucket;
            *bucket = gemm;
        }
    }
    if (!status)
        status = stock(gemm);
    pthread_mutex_unlock(&lock);
    *out = gemm;
    return status;
}

/* Only where two teams of threads run one kernel at once is the stock too small. */
static handles *take(dms_gemm *gemm)
{
    pthread_mutex_lock(&lock);
    handles *h = gemm->idle;
    if (h)
        gemm->idle = h->next;
    else
        gemm->n_handles++;
    pthread_mutex_unlock(&lock);
    return h ? h : make_handles(gemm);
}

static void give_back(dms_gemm *gemm, handles *h)
{
    pthread_mutex_lock(&lock);
    h->next = gemm->idle;
    gemm->idle = h;
    pthread_mutex_unlock(&lock);
}

bool dms_gemm_run(dms_gemm *gemm, float *c, const void *a, const void *b, void *scratch)
{
    const void *operands[N_ARGS] = {a, b, c, scratch};
    handles *h = take(gemm);
    if (!h)
        return false;
    dnnl_status_t status = dnnl_success;
    for (int i = 0; !status && i < N_ARGS; i++)
        status = dnnl_memory_set_data_handle(h->args[i].memory, (void *)(uintptr_t)operands[i]);
    if (!status)
        status = dnnl_primitive_execute(gemm->primitive, h->stream, N_ARGS, h->args);
    give_back(gemm, h);
    return !status;
}

static int64_t tiles_in(int64_t n, int64_t tile)
{
    return (n + tile - 1) / tile;
}

/* Size of tile i of n elements. */
static int64_t tile_size(int64_t n, int64_t tile, int64_t i)
{
    return n - i * tile < tile ? n - i * tile : tile;
}

dms_status dms_gemm_tiles_get(dms_gemm_tiles *out, const dms_gemm_shape *whole, int64_t tile_m,
                              int64_t tile_n)
{
    *out = (dms_gemm_tiles){.whole = *whole, .tile_m = tile_m, .tile_n = tile_n};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            dms_gemm_shape tile = *whole;
            tile.m = tile_size(whole->m, tile_m, i ? tiles_in(whole->m, tile_m) - 1 : 0);
            tile.n = tile_size(whole->n, tile_n, j ? tiles_in(whole->n, tile_n) - 1 : 0);
            DMS_TRY(dms_gemm_get(&out->kernel[i][j], &tile));
            const size_t bytes = dms_gemm_scratch_bytes(out->kernel[i][j]);
            if (bytes > out->scratch_bytes)
                out->scratch_bytes = bytes;
        }
    return DMS_OK;
}

/* Row r of c += from + r*step. */
static void add_rows(float *c, int64_t ldc, const float *from, int64_t step, const int64_t size[2])
{
    for (int64_t r = 0; r < size[0]; r++)
        for (int64_t i = 0; i < size[1]; i++)
            c[r * ldc + i] += from[r * step + i];
}

/* The tile is still in the core's cache when bias and residual are added. */
static bool run_tile(const dms_gemm_tiles *t, const dms_gemm_operands *o, int64_t row, int64_t col,
                     void *scratch)
{
    const dms_gemm_shape *s = &t->whole;
    const int64_t bytes = s->bf16 ? 2 : 4, i = row * t->tile_m, j = col * t->tile_n;
    const int64_t size[2] = {tile_size(s->m, t->tile_m, row), tile_size(s->n, t->tile_n, col)};
    const bool last_row = row + 1 == tiles_in(s->m, t->tile_m);
    const bool last_col = col + 1 == tiles_in(s->n, t->tile_n);
    float *out = o->c + i * s->ldc + j;
    if (!dms_gemm_run(t->kernel[last_row][last_col], out,
                      (const char *)o->a + bytes * (s->a_transposed ? i : i * s->lda),
                      (const char *)o->b + bytes * (s->b_transposed ? j * s->ldb : j), scratch))
        return false;
    if (o->bias)
        add_rows(out, s->ldc, o->bias + j, 0, size);
    if (o->residual)
        add_rows(out, s->ldc, o->residual + i * s->ldc + j, s->ldc, size);
    return true;
}

dms_status dms_gemm_tiles_run(const dms_gemm_tiles *tiles, const dms_gemm_operands *operands,
                              char *scratch, size_t stride)
{
    const int64_t rows = tiles_in(tiles->whole.m, tiles->tile_m);
    const int64_t cols = tiles_in(tiles->whole.n, tiles->tile_n);
    int failed = 0;

#pragma omp parallel for schedule(dynamic) reduction(| : failed)
    for (int64_t i = 0; i < rows * cols; i++)
        failed |= !run_tile(tiles, operands, i % rows, i / rows,
                            scratch + (size_t)omp_get_thread_num() * stride);
    return failed ? dms_fail(DMS_ERR_DEVICE, "oneDNN could not run a matrix product") : DMS_OK;
}
