/* Timed runs of a model: whole texts through the forward pass, and decoding over the freed cache.
 */
#ifndef DMS_BENCH_RUN_H
#define DMS_BENCH_RUN_H

#include "infer/bench_rate.h"
#include "infer/cache.h"
#include "model/model.h"

/* Token ids without meaning: Philox words below the vocabulary. */
void dms_bench_ids(int32_t *ids, int64_t n, int64_t vocab, uint64_t seed);

/* Tokens a second of the forward pass up to the last hidden states, B = 1, after one run that is
 * not counted. gated: the model's own hard decisions mask the attention. */
dms_status dms_bench_prefill(dms_sample *rate, const dms_model *model, int64_t context, bool gated,
                             int repetitions);

/* The most sequences decoded together. */
enum { DMS_MAX_BENCH_BATCH = 1024 };

typedef struct {
    const dms_model *model;
    int batch;
    int64_t prompt, steps;
    bool dense; /* evict nothing */
    bool once;  /* repetitions follow each other on the same texts: prompts are entered once */
} dms_bench_decode_options;
/* Tokens a second of all sequences together, each repetition `steps` steps behind the prompt (with
 * `once`, behind the repetition before). The first step is not counted; where the device has graphs
 * two more are run before it and not counted, in which the step is recorded. *stats: of the cache
 * after the last repetition. */
dms_status dms_bench_decode(dms_sample *rate, dms_cache_stats *stats,
                            const dms_bench_decode_options *options, int repetitions);
/* Tokens that each sequence is long in the end, and decode steps of all repetitions. */
int64_t dms_bench_decode_tokens(const dms_bench_decode_options *options, int repetitions);
int64_t dms_bench_decode_steps(const dms_bench_decode_options *options, int repetitions);

/* Elements of all matrices that a token is multiplied with: the output head counts, an embedding
 * that is no head does not. mask: of the roles that count, bit 1 << role. */
int64_t dms_bench_matrix_count(const dms_model *model, unsigned mask);
/* Bytes of all weights that one decode step reads, one row of an embedding that is no head aside.
 */
size_t dms_bench_weight_bytes(const dms_model *model);

#endif
