/* What the machine can do: rates of matrix products and of reading memory, and samples of times. */
#ifndef DMS_BENCH_RATE_H
#define DMS_BENCH_RATE_H

#include "kernels/tensor.h"

/* Repetitions of one measurement. */
enum { DMS_MAX_REPETITIONS = 64 };
typedef struct {
    int n;
    double values[DMS_MAX_REPETITIONS];
} dms_sample;

/* Beyond DMS_MAX_REPETITIONS without effect. */
void dms_sample_add(dms_sample *s, double value);
double dms_sample_mean(const dms_sample *s);
/* Of the repetitions, with n - 1; 0 for a single one. */
double dms_sample_deviation(const dms_sample *s);
double dms_sample_best(const dms_sample *s);  /* the largest: values are rates */
double dms_sample_least(const dms_sample *s); /* the smallest; 0 without values */

/* Seconds of a clock that only goes forward. */
double dms_bench_now(void);
/* Waits for all that is queued on the device, by reading `t`'s first element. */
dms_status dms_bench_wait(const dms_tensor *t);

/* A product y[rows, out] = x[rows, in] w[out, in] through dms_linear, w frozen. */
typedef struct {
    dms_device *device;
    dms_dtype dtype; /* of w: the arithmetic */
    int64_t rows, out, in;
} dms_bench_product;
/* FLOP (2 rows*out*in a product) a second, `repetitions` times over at least 50 ms each. */
dms_status dms_bench_gemm(dms_sample *rate, const dms_bench_product *p, int repetitions);

/* Bytes a second that `threads` host threads read from a buffer of `bytes`, together. */
dms_status dms_bench_bandwidth(dms_sample *rate, int threads, size_t bytes, int repetitions);

/* Bytes a second, read and written ones together, of copies of `bytes` bytes within the device's
 * memory, by dms_cast of f32 to f32. DMS_ERR_NOMEM where there is no room for two such buffers. */
dms_status dms_bench_copy(dms_sample *rate, dms_device *device, size_t bytes, int repetitions);

#endif
