/* Channels of a row that come from elsewhere, in CUDA. */
#include "kernels/cuda/wide.cuh"

typedef struct {
    float *y;
    const float *channels;
    int64_t count, width, cols, first, step; /* count = rows*width */
} putting;

/* One thread a channel that is put; the rest of the rows was copied. */
static __global__ void __launch_bounds__(DMS_BLOCK) put_channels_kernel(const putting k)
{
    for (int64_t i = dms_thread(); i < k.count; i += dms_threads())
        k.y[i / k.width * k.cols + k.first + i % k.width * k.step] = k.channels[i];
}

dms_status dms_cuda_put_channels(dms_tensor *y, const dms_tensor *x, const dms_tensor *channels,
                                 int64_t first, int64_t step)
{
    const putting k = {(float *)y->data,
                       (const float *)channels->data,
                       dms_count(channels),
                       dms_cols(channels),
                       dms_cols(x),
                       first,
                       step};
    const cudaStream_t stream = dms_cuda_stream(x->device);

    if (y->data != x->data)
        DMS_TRY(dms_cuda_copy(x->device, y->data, x->data, dms_tensor_bytes(x)));
    DMS_LAUNCH(put_channels_kernel, dms_grid(k.count, DMS_BLOCK, DMS_MOST_BLOCKS), DMS_BLOCK, 0,
               stream, k);
    return DMS_LAUNCHED();
}

typedef struct {
    float *dx, *dchannels; /* dx may be NULL */
    const float *dy;
    int64_t rows;
    int cols, width, first, step;
} taking;

/* One block a row; the N channels from c on. */
template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK) put_channels_bwd_kernel(const taking k)
{
    for (int64_t r = blockIdx.x; r < k.rows; r += gridDim.x)
        for (int c = N * (int)threadIdx.x; c < k.cols; c += N * (int)blockDim.x) {
            float up[N];
            dms_load_few<N>(up, k.dy + r * k.cols + c, k.cols - c);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const int at = c + j - k.first, g = at / k.step;
                if (at < 0 || at % k.step || g >= k.width)
                    continue;
                k.dchannels[r * k.width + g] += up[j];
                up[j] = 0.0f;
            }
            if (k.dx)
                dms_add_few<N>(k.dx + r * k.cols + c, up, k.cols - c);
        }
}

dms_status dms_cuda_put_channels_bwd(dms_tensor *dx, dms_tensor *dchannels, const dms_tensor *dy,
                                     int64_t first, int64_t step)
{
    const taking k = {dx ? (float *)dx->data : NULL,
                      (float *)dchannels->data,
                      (const float *)dy->data,
                      dms_rows(dy),
                      (int)dms_cols(dy),
                      (int)dms_cols(dchannels),
                      (int)first,
                      (int)(step < dms_cols(dy) ? step : dms_cols(dy))};
    const void *const all[] = {k.dx, k.dy};
    DMS_LAUNCH_ROWS(put_channels_bwd_kernel, k.cols % 4 == 0 && dms_wide(all, 2), k.rows, k.cols,
                    dms_cuda_stream(dy->device), k);
    return DMS_LAUNCHED();
}
