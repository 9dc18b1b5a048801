/* The one-sided compression loss in CUDA: sums of decisions (0 and 1) in double, exact. */
#include "kernels/cuda/wide.cuh"

/* One block a layer and sequence: sums[l*B + b] of d[l,b,:,:]. */
static __global__ void __launch_bounds__(DMS_BLOCK)
    count_kernel(double *sums, const float *d, int64_t pairs, int64_t each)
{
    for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
        double sum = 0;
        for (int64_t i = threadIdx.x; i < each; i += DMS_BLOCK)
            sum += (double)d[pair * each + i];
        sum = dms_block_sum_double(sum);
        if (threadIdx.x == 0)
            sums[pair] = sum;
    }
}

typedef struct {
    float *loss, *frac, *pressure;
    const double *sums;
    int64_t layers, batch, each;
    float target, weight;
} compression;

/* One thread a sequence. */
static __global__ void __launch_bounds__(DMS_BLOCK) compression_kernel(const compression k)
{
    const int64_t count = k.layers * k.each;
    for (int64_t b = dms_thread(); b < k.batch; b += dms_threads()) {
        double sum = 0;
        for (int64_t l = 0; l < k.layers; l++)
            sum += k.sums[l * k.batch + b];
        const float frac = (float)(sum / (double)count);
        k.frac[b] = frac;
        k.loss[b] = frac < k.target ? k.target - frac : 0.0f;
        k.pressure[b] = frac < k.target ? -k.weight / (float)count : 0.0f;
    }
}

dms_status dms_cuda_compression(const dms_compression_out *out, const dms_tensor *d, float target,
                                float weight)
{
    const int64_t layers = d->shape[0], batch = d->shape[1], each = d->shape[2] * d->shape[3];
    const cudaStream_t stream = dms_cuda_stream(d->device);
    void *sums = NULL;

    DMS_TRY(dms_cuda_scratch(&sums, d->device, (size_t)(layers * batch) * sizeof(double)));
    const compression k = {(float *)out->loss->data,
                           (float *)out->frac->data,
                           (float *)out->pressure->data,
                           (const double *)sums,
                           layers,
                           batch,
                           each,
                           target,
                           weight};
    DMS_LAUNCH(count_kernel, dms_grid(layers * batch, 1, DMS_MOST_BLOCKS), DMS_BLOCK, 0, stream,
               (double *)sums, (const float *)d->data, layers * batch, each);
    DMS_LAUNCH(compression_kernel, dms_grid(batch, DMS_BLOCK, DMS_MOST_BLOCKS), DMS_BLOCK, 0,
               stream, k);
    return DMS_LAUNCHED();
}
