/* Rotary positions in CUDA. Positions are on the device, where a launcher cannot read them: one
 * outside the table turns its row into NaN. */
#include "kernels/cuda/wide.cuh"

typedef struct {
    float *y;
    const float *x, *table;
    const int32_t *ids;
    int64_t rows, positions;
    int cols, half; /* E/2 */
    int borrowed_every;
    float keep, sign; /* sign: 1 turns by +angle, -1 by -angle: the transpose, for the gradient */
} rotation;

/* Channels j.. and j + half.. of one head, N pairs. */
typedef struct {
    int64_t at; /* of the first channel in x and y */
    const float *cosine, *sine;
    float keep; /* of the last pair's second channel, or 1 */
    bool known; /* the position is in the table */
} pairs;

template <int N>
static __device__ __forceinline__ pairs pairs_at(const rotation *k, int64_t row, int p)
{
    const int64_t position = k->ids[row];
    const bool known = position >= 0 && position < k->positions;
    const int head = p / k->half, j = p % k->half;
    const bool borrowed = k->borrowed_every && head % k->borrowed_every == 0;
    const float *table = k->table + (known ? position * 2 * k->half : 0) + j;
    return {row * k->cols + head * 2 * k->half + j, table, table + k->half,
            borrowed && j + N == k->half ? k->keep : 1.0f, known};
}

/* N pairs of x, turned; the last channel of a head is scaled by keep on both sides. */
template <int N>
static __device__ __forceinline__ void turn(float a[N], float b[N], const rotation *k,
                                            const pairs *at)
{
    float cosine[N], sine[N];
    dms_load_few<N>(a, k->x + at->at, N);
    dms_load_few<N>(b, k->x + at->at + k->half, N);
    dms_load_few<N>(cosine, at->cosine, N);
    dms_load_few<N>(sine, at->sine, N);
    b[N - 1] *= at->keep;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float first = a[j], c = at->known ? cosine[j] : __int_as_float(0x7fc00000);
        a[j] = first * c - k->sign * b[j] * sine[j];
        b[j] = b[j] * c + k->sign * first * sine[j];
    }
    b[N - 1] *= at->keep;
}

/* One block a row; a thread reads its pairs before it writes them, so y may be x. */
template <int N> static __global__ void __launch_bounds__(DMS_BLOCK) rope_kernel(const rotation k)
{
    for (int64_t r = blockIdx.x; r < k.rows; r += gridDim.x)
        for (int p = N * (int)threadIdx.x; p < k.cols / 2; p += N * (int)blockDim.x) {
            const pairs at = pairs_at<N>(&k, r, p);
            float a[N], b[N];
            turn<N>(a, b, &k, &at);
            dms_store_few<N>(k.y + at.at, a, N);
            dms_store_few<N>(k.y + at.at + k.half, b, N);
        }
}

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK) rope_bwd_kernel(const rotation k)
{
    for (int64_t r = blockIdx.x; r < k.rows; r += gridDim.x)
        for (int p = N * (int)threadIdx.x; p < k.cols / 2; p += N * (int)blockDim.x) {
            const pairs at = pairs_at<N>(&k, r, p);
            float a[N], b[N];
            turn<N>(a, b, &k, &at);
            dms_add_few<N>(k.y + at.at, a, N);
            dms_add_few<N>(k.y + at.at + k.half, b, N);
        }
}

static rotation rotation_of(dms_tensor *y, const dms_tensor *x, const dms_rope_spec *spec,
                            float sign)
{
    return {(float *)y->data,
            (const float *)x->data,
            (const float *)spec->table->data,
            (const int32_t *)spec->ids->data,
            dms_rows(x),
            dms_rows(spec->table),
            (int)dms_cols(x),
            (int)dms_cols(spec->table) / 2,
            spec->borrowed_every,
            spec->keep,
            sign};
}

static bool is_wide(const rotation *k)
{
    const void *const all[] = {k->y, k->x, k->table};
    return k->half % 4 == 0 && dms_wide(all, 3);
}

dms_status dms_cuda_rope(dms_tensor *y, const dms_tensor *x, const dms_rope_spec *spec)
{
    const rotation k = rotation_of(y, x, spec, 1.0f);
    DMS_LAUNCH_ROWS(rope_kernel, is_wide(&k), k.rows, k.cols / 2, dms_cuda_stream(x->device), k);
    return DMS_LAUNCHED();
}

dms_status dms_cuda_rope_bwd(dms_tensor *dx, const dms_tensor *dy, const dms_rope_spec *spec)
{
    const rotation k = rotation_of(dx, dy, spec, -1.0f);
    DMS_LAUNCH_ROWS(rope_bwd_kernel, is_wide(&k), k.rows, k.cols / 2, dms_cuda_stream(dy->device),
                    k);
    return DMS_LAUNCHED();
}
