/* Batches of token ids from shards: any batch of any step in constant time, so that resuming is
 * asking for the next step. */
#ifndef DMS_LOADER_H
#define DMS_LOADER_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"

DMS_BEGIN_C

typedef struct {
    const char *const *shards; /* [n_shards] paths, read as one stream in this order */
    int n_shards;
    int64_t context;       /* T: tokens a sequence */
    int64_t sequences;     /* of one step, over all its micro-batches */
    uint64_t seed;         /* of the order, when shuffled */
    bool shuffled;         /* training; false: contexts in the order of the stream (evaluation) */
    bool verify;           /* read all shards once and check their CRC */
    const double *weights; /* [n_shards] a blend: how often each is drawn; NULL: one stream */
} dms_loader_options;

typedef struct dms_loader dms_loader;

/* The stream is cut into floor(tokens / T) contexts of T tokens; the rest is not used. Of a blend
 * each shard is a stream of its own, cut by itself. Errors: DMS_ERR_ARG (a size below 1; a weight
 * that is not above 0; a blend that is not shuffled, or with a shard without a context; fewer
 * contexts than one step takes: the message says how many tokens there are and are needed),
 * DMS_ERR_FORMAT (a damaged shard; shards of different tokenizers), DMS_ERR_IO, DMS_ERR_NOMEM.
 * Nothing in `o` is kept. */
dms_status dms_loader_open(dms_loader **out, const dms_loader_options *o);
/* NULL is legal. */
void dms_loader_close(dms_loader *l);

/* Sequences first .. first + n - 1 of step `step` (counted from 0): ids, next: [n, T]. next[t] is
 * the stream's token after ids[t], -1 where the stream ends; `next` may be NULL. Sequence q =
 * step * sequences + s is context q when not shuffled. Shuffled, it is context P_e(q mod N), where
 * N is the number of contexts, e = q div N the epoch and P_e a permutation of 0..N-1 made of seed
 * and e: each epoch shows each context once.
 * A blend deals by blocks of 1024 sequences: in each, shard i has the share of its weight, rounded
 * to a whole number of sequences of at least 1, in places that seed and block decide; the d-th
 * sequence that is drawn from a shard is its context P_e(d mod N_i), e = d div N_i. Reads nothing
 * but the shards; several threads may. Errors: DMS_ERR_ARG (step or sequence out of range; past the
 * end when not shuffled), DMS_ERR_FORMAT (a damaged shard). */
dms_status dms_loader_read(const dms_loader *l, int64_t step, int64_t first, int64_t n,
                           int32_t *ids, int32_t *next);

/* Tokens of the stream, contexts it was cut into, and what the shards say of their tokenizer: all
 * ids are below the vocabulary's size, and the CRC is 0 where no shard has one. */
int64_t dms_loader_tokens(const dms_loader *l);
int64_t dms_loader_contexts(const dms_loader *l);
int64_t dms_loader_vocab(const dms_loader *l);
uint32_t dms_loader_tokenizer_crc(const dms_loader *l);
/* What the user should know of the first token file of another tool among the shards; else NULL. */
const char *dms_loader_notice(const dms_loader *l);

DMS_END_C
#endif
