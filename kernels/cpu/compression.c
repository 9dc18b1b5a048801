/* The one-sided compression loss on the CPU: a mean over few numbers, in plain loops. */
#include "kernels/cpu/isa.h"

dms_status DMS_CPU(compression)(const dms_compression_out *out, const dms_tensor *d, float target,
                                float weight)
{
    const int64_t layers = d->shape[0], batch = d->shape[1], each = d->shape[2] * d->shape[3];
    for (int64_t b = 0; b < batch; b++) {
        double sum = 0; /* of at most 2^53 ones: exact */
        for (int64_t l = 0; l < layers; l++) {
            const float *row = (const float *)d->data + (l * batch + b) * each;
            for (int64_t i = 0; i < each; i++)
                sum += (double)row[i];
        }
        const float frac = (float)(sum / (double)(layers * each));
        ((float *)out->frac->data)[b] = frac;
        ((float *)out->loss->data)[b] = frac < target ? target - frac : 0.0f;
        ((float *)out->pressure->data)[b] = frac < target ? -weight / (float)(layers * each) : 0.0f;
    }
    return DMS_OK;
}
