/* The merge table of a BPE model: a pair of token ids to rank and merged id. */
#ifndef DMS_MERGES_H
#define DMS_MERGES_H

#include <jansson.h>
#include <stdint.h>

#include "data/hash.h"
#include "data/vocab.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX where the slot is free */
    int32_t rank, merged;
} dms_merge;

/* Open addressing over a power of two of slots, at most half full. */
typedef struct {
    dms_merge *slots;
    uint64_t mask;
} dms_merges;

/* `list` is model.merges: "a b" or ["a", "b"], best first; of two equal pairs the later one counts.
 * Errors: DMS_ERR_FORMAT, naming the entry; DMS_ERR_NOMEM. */
dms_status dms_merges_open(dms_merges *m, const json_t *list, const dms_vocab *vocab,
                           const char *origin);
void dms_merges_close(dms_merges *m);

/* NULL where the pair does not merge. */
static inline const dms_merge *dms_merges_find(const dms_merges *m, int32_t left, int32_t right)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t slot = dms_hash_mix(pair) & m->mask;
    for (; m->slots[slot].pair != pair; slot = (slot + 1) & m->mask)
        if (m->slots[slot].pair == UINT64_MAX)
            return NULL;
    return &m->slots[slot];
}

DMS_END_C
#endif
