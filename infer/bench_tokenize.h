/* How fast a model's tokenizer reads text. */
#ifndef DMS_BENCH_TOKENIZE_H
#define DMS_BENCH_TOKENIZE_H

#include "infer/bench_rate.h"

/* What is read of a text at most. */
enum { DMS_BENCH_TEXT_BYTES = 4000000 };

/* Bytes of text a second, on one thread: *cold by a tokenizer that was just opened, *warm by one
 * that has read the same text before. *tokens: what it becomes. */
dms_status dms_bench_tokenize(dms_sample *cold, dms_sample *warm, int64_t *tokens,
                              const char *model, const char *text, size_t n, int repetitions);

/* Prints it for the first 4 MB of prose and of code, each a text, a gzip file or a folder of them;
 * NULL: without that one. */
typedef struct {
    const char *model, *prose, *code;
    int repetitions;
    bool json;
} dms_bench_tokenizing_options;
dms_status dms_bench_tokenizing(const dms_bench_tokenizing_options *o);

#endif
