/* How fast a model's file opens, and how fast its numbers come out of it. */
#ifndef DMS_BENCH_OPEN_H
#define DMS_BENCH_OPEN_H

#include "infer/bench_rate.h"

/* Seconds from a path to usable tensors: the file is opened, every tensor found by name, and the
 * first and last byte of each that lies there as it is are read. Run once before, so that the file
 * is in memory. */
dms_status dms_bench_open(dms_sample *seconds, const char *path, int repetitions);

/* What dms_bench_read read. */
typedef struct {
    char types[48]; /* of the matrices, with commas */
    int64_t matrices, numbers;
} dms_bench_reading;
/* Bytes of bf16 a second, on one thread, that the file's matrices become, one behind the other in a
 * buffer of their size (at most 1 GiB, used in turn) that was written before. *write: of the same
 * buffer filled by memset. DMS_ERR_ARG where there is no matrix. */
dms_status dms_bench_read(dms_sample *read, dms_sample *write, dms_bench_reading *what,
                          const char *path, int repetitions);

/* Prints all of it. */
dms_status dms_bench_opening(const char *path, int repetitions, bool json);

#endif
