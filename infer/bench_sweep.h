/* A sweep of decoding over batch and context: the points, and what one of them costs and yields. */
#ifndef DMS_BENCH_SWEEP_H
#define DMS_BENCH_SWEEP_H

#include "infer/bench_run.h"

enum { DMS_MAX_BENCH_LIST = 16 };
typedef struct {
    int n;
    int64_t values[DMS_MAX_BENCH_LIST];
} dms_bench_list;
/* Whole numbers from 1 to `most`, with commas between them. DMS_ERR_ARG names the option. */
dms_status dms_bench_list_read(dms_bench_list *out, const char *option, const char *text,
                               int64_t most);

typedef struct {
    bool fits;       /* false: the device has no memory for it, and nothing below is known */
    dms_sample rate; /* tokens a second of all sequences together */
    double weights;  /* bytes of weights that a step reads */
    double kv;       /* bytes of live keys and values that a step reads, on average */
    dms_cache_stats stats;
} dms_bench_point;
/* Decodes with prompts entered once; `once` is implied. A point for which memory runs out is no
 * failure. */
dms_status dms_bench_sweep_point(dms_bench_point *out, const dms_bench_decode_options *options,
                                 int repetitions);

#endif
