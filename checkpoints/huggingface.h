/* Hugging Face model folders: config.json, safetensors, tokenizer.json and what goes with them. */
#ifndef DMS_HUGGINGFACE_H
#define DMS_HUGGINGFACE_H

#include <jansson.h>
#include <stdbool.h>

#include "checkpoints/tensor_set.h"
#include "kernels/status.h"

DMS_BEGIN_C

/* Reading goes through dms_source_open. Of a folder's other files it keeps these as texts under
 * their names, and exports carry them over byte for byte; a chat_template.jinja beside them is kept
 * as the chat template. */
enum { DMS_HF_CARRIED = 6 };
extern const char *const dms_hf_carried[DMS_HF_CARRIED];

typedef struct {
    const json_t *config;      /* config.json; required */
    const char *tokenizer;     /* tokenizer.json, or NULL: then no tokenizer is written */
    size_t tokenizer_length;   /* bytes */
    const char *chat_template; /* Jinja text, or NULL */
    /* Texts of the files in dms_hf_carried, 0-terminated, or NULL: then generation_config.json (the
     * config's token ids) and tokenizer_config.json (a minimal one) are made. */
    const char *carried[DMS_HF_CARRIED];
    const char *tokenizer_model; /* bytes of SentencePiece's tokenizer.model, or NULL */
    size_t tokenizer_model_length;
    dms_tensor_set tensors;
    size_t shard_bytes; /* 0: one file */
    bool force;         /* replace an existing model folder */
    /* NULL, or where the names go of the old model's files that the new one has no file of, ", "
     * between them, printable; NULL where there are none. The caller frees it. */
    char **removed;
} dms_hf_model;

/* Writes a folder that the reference `transformers` loads: config.json, model.safetensors (or
 * shards and index), tokenizer.json and what is carried over or made beside them. All of it is made
 * in a temporary folder beside the target, opened again and compared (config, and every tensor with
 * what `tensors` fetches a second time), and then takes its name (checkpoints/model_folder.h): the
 * target never holds half a model. A target that exists must be an empty folder; with `force` it
 * may be a folder of a model, whose own files are replaced or removed, and all others stay. Errors:
 * DMS_ERR_IO (target exists, disk full), DMS_ERR_ARG, DMS_ERR_NOMEM; after each but one the target
 * is as it was: where the old model cannot be removed, the message says so. */
dms_status dms_hf_write(const char *folder, const dms_hf_model *model);

DMS_END_C
#endif
