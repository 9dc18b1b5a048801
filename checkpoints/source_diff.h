/* The tensors of two model files of any formats, compared by name and value. */
#ifndef DMS_SOURCE_DIFF_H
#define DMS_SOURCE_DIFF_H

#include "checkpoints/source.h"

DMS_BEGIN_C

typedef enum {
    DMS_DIFF_SAME,
    DMS_DIFF_VALUES,
    DMS_DIFF_SHAPE,  /* the values are not compared */
    DMS_DIFF_ONLY_A, /* b has no such tensor */
    DMS_DIFF_ONLY_B,
    DMS_DIFF_NO_WEIGHT, /* on one side alone, and nothing of the model: a causal mask, say */
    DMS_DIFF_UNREADABLE /* of a type that cannot be read as numbers; the stored bytes differ */
} dms_diff_kind;

/* One tensor, or one of ours in a tensor that holds several. The numbers are set for SAME and
 * VALUES, from the values as f32 (integers as such). */
typedef struct {
    const char *name; /* a's; ours where a tensor of the file holds several */
    const dms_tensor_info *a,
        *b; /* in the file, shaped as compared; NULL on the side that lacks it */
    dms_diff_kind kind;
    bool gate;          /* a tensor of the adapter gate */
    bool tied;          /* one side's output head is its embedding, and was compared as such */
    int64_t elements;   /* of each */
    int64_t differing;  /* |b - a| > tolerance, or one of the two not finite and not the same */
    int64_t borrowed;   /* of these, in rows that a neuron gate of one side borrows */
    int64_t not_finite; /* of differing, the latter; they count in no number below */
    double max_abs;     /* max |b - a| */
    double relative;    /* |b - a|_2 / |a|_2; infinite where a is 0 */
} dms_tensor_diff;

/* Called for each of dms_source_pairs, whose order and names it has; what it gets is valid for that
 * call. Anything but DMS_OK ends the comparison and is returned. */
typedef dms_status dms_diff_fn(void *context, const dms_tensor_diff *d);

/* Two zeros are equal whatever their signs, and so are two NaNs. A head that one side lacks is
 * compared with its embedding where its config says tie_word_embeddings. Holds two tensors as f32
 * at a time. Errors: DMS_ERR_NOMEM; those of dms_source_read and of `each`. */
dms_status dms_source_diff(const dms_source *a, const dms_source *b, double tolerance,
                           dms_diff_fn *each, void *context);

DMS_END_C
#endif
