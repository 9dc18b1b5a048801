/* Families that others store under other names, fused or transposed: where a tensor of ours is. */
#ifndef DMS_LAYOUT_H
#define DMS_LAYOUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"
#include "kernels/tensor.h"

DMS_BEGIN_C

/* Ours are the names and shapes of a Llama (model/model.h): q, k and v apart, matrices [out, in].
 * Our own checkpoints have those; model folders of others have what their modelling code has. */
typedef struct {
    char name[96];    /* of the tensor in a model folder */
    int part, parts;  /* ours is this part of that many equal ones, along its outputs */
    bool transposed;  /* a matrix [in, out] there */
    const char *bare; /* in `name`: without the prefix that some files leave out */
} dms_layout_place;

/* Where `ours` is in a model folder of the family that the config names; false where it has the
 * same name there, or none. config may be NULL. */
bool dms_layout_find(dms_layout_place *out, const json_t *config, const char *ours);

/* The other way: which of our tensors `theirs` (with the prefix or without) holds as its part of
 * that number. False where it is none of the family's, or has no such part. */
bool dms_layout_back(dms_layout_place *out, char ours[96], const json_t *config, const char *theirs,
                     int part);

/* Whether this is a tensor of the adapter gate, in any family and under either name. */
bool dms_layout_is_gate(const char *name);

/* Whether a file's tensor is no weight: causal masks and rotary frequencies that old folders hold,
 * and the head of a model whose embedding is the head. config may be NULL. */
bool dms_layout_leaves_out(const json_t *config, const char *name);

/* The shape of our tensor in a place of shape `theirs`; false where they do not go together. */
bool dms_layout_shape(int64_t ours[DMS_MAX_RANK], const dms_layout_place *place, int rank,
                      const int64_t *theirs);

/* Our part of their whole tensor, and the other way. Both in host memory, of elements of
 * element_bytes; ours has shape `shape` (a vector of n: [n, 1]). */
typedef struct {
    int64_t shape[2]; /* outputs, inputs */
    size_t element_bytes;
} dms_layout_size;
void dms_layout_take(void *ours, const void *theirs, const dms_layout_place *place,
                     const dms_layout_size *size);
void dms_layout_put(void *theirs, const void *ours, const dms_layout_place *place,
                    const dms_layout_size *size);

DMS_END_C
#endif
