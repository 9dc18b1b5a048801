/* Gradients of weights that every row adds to, the same bits each time: a block leaves the sum over
 * its rows, a second kernel adds those of all blocks in order. */
#ifndef DMS_CUDA_COLUMN_SUM_CUH
#define DMS_CUDA_COLUMN_SUM_CUH

#include "kernels/cuda/wide.cuh"

enum {
    DMS_PARTIALS = 512, /* the most blocks that leave a sum: does not depend on the GPU */
    DMS_SLICES = 8      /* parts in which those are added */
};

/* partial[block, :] = the sum, in order, of the rows of sums [teams, dim] in shared memory, which
 * the threads of this block have written. Every thread of the block calls it. */
static __device__ __forceinline__ void dms_leave_partial(float *partial, const float *sums,
                                                         int teams, int64_t dim)
{
    __syncthreads();
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) {
        float total = sums[i];
        for (int t = 1; t < teams; t++)
            total += sums[t * dim + i];
        partial[blockIdx.x * dim + i] = total;
    }
}

/* dw[c] += the sum of column c of partial: DMS_SLICES threads sum parts of it, one adds those. */
static __global__ void __launch_bounds__(DMS_WARP *DMS_SLICES)
    column_sum_kernel(float *dw, const float *partial, int64_t dim, int count)
{
    __shared__ float part[DMS_SLICES][DMS_WARP];
    const int64_t c = (int64_t)blockIdx.x * DMS_WARP + threadIdx.x;
    const int slice = (int)threadIdx.y, each = (count + DMS_SLICES - 1) / DMS_SLICES;
    const int end = (slice + 1) * each < count ? (slice + 1) * each : count;
    float sum = 0.0f;

    for (int p = slice * each; p < end && c < dim; p++)
        sum += partial[p * dim + c];
    part[slice][threadIdx.x] = sum;
    __syncthreads();
    if (slice != 0 || c >= dim)
        return;
    for (int s = 1; s < DMS_SLICES; s++)
        sum += part[s][threadIdx.x];
    dw[c] += sum;
}

/* dw [dim] += the sum over the rows of partial [count, dim]. */
static inline void dms_add_partials(dms_tensor *dw, const void *partial, unsigned count)
{
    const int64_t dim = dms_count(dw);
    DMS_LAUNCH(column_sum_kernel, (unsigned)((dim + DMS_WARP - 1) / DMS_WARP),
               dim3(DMS_WARP, DMS_SLICES), 0, dms_cuda_stream(dw->device), (float *)dw->data,
               (const float *)partial, dim, (int)count);
}

#endif
