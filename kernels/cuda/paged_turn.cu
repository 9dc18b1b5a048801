/* Keys of the first tokens of the paged cache, turned to positions next to the others. */
#include "kernels/cuda/paged.cuh"

enum { THREADS = 64 };

typedef struct {
    dms_paged_batch b;
    float *kept;        /* [U, first, E] */
    const float *k;     /* [n, T, G*E] */
    const float *table; /* [positions, E] */
    int first;
    int64_t positions;
} turning;

/* One block a key. Thread j turns channels j and j + E/2 as dms_rope does. */
template <class T> static __global__ void turn_kernel(turning x)
{
    const dms_paged *c = &x.b.c;
    const int64_t i = blockIdx.x / (unsigned)x.first, row = i / c->groups, group = i % c->groups;
    const int token = (int)(blockIdx.x % (unsigned)x.first), half = c->head_dim / 2;
    const int64_t unit = dms_paged_unit(&x.b, i), stride = (int64_t)c->groups * c->head_dim;
    const int32_t position = x.b.positions[row * x.b.tokens];
    const int live = c->live[unit];
    const int64_t by = (int64_t)position + x.b.tokens - live, at = (int64_t)token - position;
    if (token >= live)
        return;
    const dms_page page = dms_paged_page(c, unit, token);
    const float *entered = x.k + (row * x.b.tokens + at) * stride + group * c->head_dim;
    float *kept = x.kept + (unit * x.first + token) * c->head_dim;
    T *keys = (T *)page.k + token % c->page_slots;
    const bool known = by >= 0 && by < x.positions;
    const float *angles = x.table + (known ? by : 0) * c->head_dim;
    for (int j = (int)threadIdx.x; j < half; j += THREADS) {
        if (at >= 0) {
            kept[j] = entered[j];
            kept[j + half] = entered[j + half];
        }
        const float a = kept[j], b = kept[j + half];
        const float cosine = known ? angles[j] : NAN, sine = angles[j + half];
        dms_store(keys + j * c->page_slots, a * cosine - b * sine);
        dms_store(keys + (j + half) * c->page_slots, b * cosine + a * sine);
    }
}

dms_status dms_cuda_paged_turn(const dms_paged *cache, const dms_paged_rows *rows, dms_tensor *kept,
                               const dms_tensor *k, const dms_tensor *table)
{
    const cudaStream_t stream = dms_cuda_stream(cache->device);
    turning x;
    x.b = dms_paged_batch_of(cache, rows);
    x.kept = (float *)kept->data;
    x.k = (const float *)k->data;
    x.table = (const float *)table->data;
    x.first = (int)kept->shape[1];
    x.positions = table->shape[0];
    const unsigned blocks = (unsigned)(x.b.units * x.first);
    if (!blocks)
        return DMS_OK;
    if (cache->dtype == DMS_BF16)
        DMS_LAUNCH(turn_kernel<dms_bf16>, blocks, THREADS, 0, stream, x);
    else
        DMS_LAUNCH(turn_kernel<float>, blocks, THREADS, 0, stream, x);
    return DMS_LAUNCHED();
}
