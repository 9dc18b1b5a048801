/* One line of dms-bench: for people, or as a JSON object. */
#ifndef DMS_BENCH_PRINT_H
#define DMS_BENCH_PRINT_H

#include "infer/bench_rate.h"
#include "infer/bench_sweep.h"

/* share < 0: none. A sample without values: not measured, see note. */
typedef struct {
    const char *bench, *unit;
    char what[64], note[96];
    double scale; /* values are divided by it */
    double share;
    bool least;                   /* the best is the smallest: a time, not a rate */
    const dms_bench_point *point; /* of a sweep, or NULL */
} dms_bench_result;

/* To standard output, at once. DMS_ERR_NOMEM, DMS_ERR_IO. */
dms_status dms_bench_print(const dms_bench_result *r, const dms_sample *s, bool json);

#endif
