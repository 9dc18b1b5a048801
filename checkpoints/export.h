/* A model on its way out: the tensors of any source in the types that were asked for. */
#ifndef DMS_EXPORT_H
#define DMS_EXPORT_H

#include "checkpoints/checkpoint.h"
#include "checkpoints/layout.h"
#include "checkpoints/source.h"
#include "checkpoints/tensor_set.h"

DMS_BEGIN_C

/* Type of all tensors but the gate's own, which are f32: they are small, and their logits are
 * compared with 0. Stored: each as the source has it, the gate's too; quantised ones become bf16.
 * Vectors take the type of the matrices: transformers loads a model in one type. */
typedef enum { DMS_EXPORT_BF16, DMS_EXPORT_F32, DMS_EXPORT_F16, DMS_EXPORT_STORED } dms_export_type;

/* "bf16", "f32", "f16", "stored"; DMS_ERR_ARG for any other name. */
dms_status dms_export_type_from_name(dms_export_type *out, const char *name);

/* An entry's parts in the source: one tensor, or those that a model folder of the family has in one
 * (checkpoints/layout.h). */
typedef struct dms_export_origin {
    const char *parts[3];   /* names in the source; NULL: missing */
    dms_layout_place place; /* of part 0; parts 0: the source's tensor as it is */
    bool fetched;           /* its numbers are counted in `broken` */
} dms_export_origin;

typedef struct {
    dms_source *source;
    dms_checkpoint *checkpoint; /* NULL where the source is no checkpoint of ours */
    dms_tensor_entry *entries;
    dms_export_origin *origins; /* of each entry */
    int64_t count;
    int64_t broken;           /* NaN and infinite numbers of all that was fetched */
    const char *first_broken; /* the entry with the first of them; NULL: none */
} dms_export;

/* Opens a model of any format; a checkpoint's CRCs are checked, and one from before the end of the
 * fade is refused. The caller ends it with dms_export_close. */
dms_status dms_export_open(dms_export **out, const char *path);
void dms_export_close(dms_export *e);

/* Fills the list: every tensor (but a lm_head that the config ties to the embedding), or the
 * adapter gate's own. `outside`: under the names and in the shapes that model folders have. */
dms_status dms_export_list(dms_export *e, dms_export_type type, bool gate_only, bool outside);
/* The set of the list. What is trained comes from its f32 master where f32 is wanted. */
dms_tensor_set dms_export_set(dms_export *e);
/* What transformers should load the tensors as ("bfloat16", ...): the config's key dtype, or
 * torch_dtype, made to say so. Nothing for `stored`. */
dms_status dms_export_note_type(json_t *config, dms_export_type type);

/* Writes PATH, one of our checkpoints without the state of training: /weights, texts, numbers.
 * config: what the text "config" says. It is written beside PATH, opened again, compared with the
 * set, and then renamed. An existing PATH is only replaced with `force`. */
typedef struct {
    const char *path;
    const json_t *config;
    bool compress, force;
} dms_export_hdf5;
dms_status dms_export_write_hdf5(dms_export *e, const dms_export_hdf5 *options);

DMS_END_C
#endif
