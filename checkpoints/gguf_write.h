/* A model as one GGUF file that llama.cpp runs in its dense form, with the gate kept beside. */
#ifndef DMS_GGUF_WRITE_H
#define DMS_GGUF_WRITE_H

#include <jansson.h>
#include <stdbool.h>

#include "checkpoints/source.h"
#include "checkpoints/tensor_set.h"

DMS_BEGIN_C

typedef struct {
    const char *name;          /* general.name */
    const json_t *config;      /* the keys of a Hugging Face config.json; required */
    const char *tokenizer;     /* tokenizer.json, or NULL: a file of numbers alone */
    size_t tokenizer_length;   /* bytes */
    const char *chat_template; /* Jinja text, or NULL */
    dms_tensor_set tensors;    /* Hugging Face names and order; each is fetched as DMS_F32 */
    dms_file_type type;        /* of the matrices: F32, F16, BF16 or Q8_0 */
    bool force;                /* replace an existing file */
} dms_gguf_model;

/* Writes the file under a temporary name, opens it again and compares it with what `tensors`
 * fetches a second time, syncs and renames it. Vectors (and GPT-2's positions) are F32; a matrix
 * whose rows are no multiple of 32 is F16 where Q8_0 was asked for. Rows of q and k are permuted
 * for architecture llama.
 *
 * A retrofitted model (config keys dms_*) keeps its keys as dms.* in the metadata. llama.cpp
 * refuses tensors that it does not know, so the gate's are arrays there: dms.blk.I.alpha.weight
 * [G*D], .alpha.bias [G] and .alpha_norm.weight [D] of an adapter; dms.blk.I.rows.weight [G*D] and
 * .rows.bias [G] of the neuron gate, whose rows are zero in the query tensor itself: the dense form
 * ignores the borrowed channel. dms_source_open puts them back. The tokenizer is there twice: as
 * llama.cpp's keys and as tokenizer.huggingface.json.
 *
 * Errors: DMS_ERR_ARG names what has no form in GGUF (a family, a tensor, a pre-tokeniser, a rope
 * scaling, a neuron gate behind a query norm, a number too large for the type); DMS_ERR_IO (file
 * exists, disk full), DMS_ERR_NOMEM; after each there is no new file. */
dms_status dms_gguf_write(const char *path, const dms_gguf_model *model);

DMS_END_C
#endif
