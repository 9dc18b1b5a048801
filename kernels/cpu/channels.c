/* Channels of a row that come from elsewhere, on the CPU. */
#include <string.h>

#include "kernels/cpu/isa.h"

dms_status DMS_CPU(put_channels)(dms_tensor *y, const dms_tensor *x, const dms_tensor *channels,
                                 int64_t first, int64_t step)
{
    const int64_t rows = dms_rows(x), cols = dms_cols(x), n = dms_cols(channels);
    const float *from = channels->data;
    float *out = y->data;

    memcpy(out, x->data, dms_tensor_bytes(x));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < n; g++)
            out[r * cols + first + g * step] = from[r * n + g];
    return DMS_OK;
}

dms_status DMS_CPU(put_channels_bwd)(dms_tensor *dx, dms_tensor *dchannels, const dms_tensor *dy,
                                     int64_t first, int64_t step)
{
    const int64_t rows = dms_rows(dy), cols = dms_cols(dy), n = dms_cols(dchannels);
    const float *up = dy->data;

    for (int64_t r = 0; r < rows; r++) {
        const float *row = up + r * cols;
        float *grad = dx ? (float *)dx->data + r * cols : NULL;
        float *into = (float *)dchannels->data + r * n;
        int64_t next = first, g = 0;
        for (int64_t i = 0; i < cols; i++) {
            if (i == next && g < n) {
                into[g++] += row[i];
                next += step;
            } else if (grad) {
                grad[i] += row[i];
            }
        }
    }
    return DMS_OK;
}
