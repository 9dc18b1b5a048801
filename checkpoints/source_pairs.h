/* Which tensors of two model files hold the same weights, whatever names their formats have. */
#ifndef DMS_SOURCE_PAIRS_H
#define DMS_SOURCE_PAIRS_H

#include "checkpoints/layout.h"
#include "checkpoints/source.h"

DMS_BEGIN_C

/* One side's tensor, or the part of it that is one of our tensors. */
typedef struct {
    dms_tensor_info info;   /* name and type in the file; the shape as it is compared */
    dms_layout_place place; /* parts 0: the file's tensor as it is */
} dms_pair_side;

typedef struct {
    const char *name;           /* as a has it; ours for a part of a tensor */
    const dms_pair_side *a, *b; /* NULL on the side that lacks it */
    bool tied;                  /* one side's output head is its embedding, and stands for it */
    bool no_weight;             /* on one side alone, and dms_layout_leaves_out */
} dms_source_pair;

/* What it gets is valid for that call. Anything but DMS_OK ends the list and is returned. */
typedef dms_status dms_pair_fn(void *context, const dms_source_pair *pair);

/* Every tensor of both, in a's order, then those that only b has. Names are those of the family in
 * the file's config, of the other's where it has none: with or without the prefix, q, k and v
 * together or apart. Where one side has them apart, they are compared apart. */
dms_status dms_source_pairs(const dms_source *a, const dms_source *b, dms_pair_fn *each,
                            void *context);

/* The values, as of dms_source_read, in the shape of side->info. */
dms_status dms_pair_read(const dms_source *s, const dms_pair_side *side, void *dst,
                         dms_dtype dtype);

DMS_END_C
#endif
