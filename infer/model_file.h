/* A model of any format, opened ready to run: weights on a device, gate, tokenizer, texts. */
#ifndef DMS_MODEL_FILE_H
#define DMS_MODEL_FILE_H

#include "checkpoints/source.h"
#include "data/tokenizer.h"
#include "model/model.h"

/* Type of the matrices. Auto: bf16 where the device multiplies it in hardware, else f32. */
typedef enum { DMS_COMPUTE_AUTO, DMS_COMPUTE_F32, DMS_COMPUTE_BF16 } dms_compute;

/* "auto", "f32", "bf16"; DMS_ERR_ARG for any other name. */
dms_status dms_compute_from_name(dms_compute *out, const char *name);

typedef struct {
    const char *path; /* Hugging Face folder, GGUF file or one of our checkpoints */
    dms_device *device;
    dms_compute compute;
    int64_t positions;      /* longest text, in tokens; 0: the model's own limit, at most 8192 */
    bool without_gate;      /* run a retrofitted model as if it had no gate */
    bool shift_given;       /* the user said which token a decision governs: */
    int64_t shift;          /* 1: the one before its own, 0: its own (dms_gate_settle) */
    bool without_tokenizer; /* for programs that see no text */
} dms_model_file_options;

/* Everything is owned; nothing refers to the file any more. */
typedef struct {
    dms_model *model;         /* with config, gate and rope table of `positions` rows */
    dms_tokenizer *tokenizer; /* NULL without_tokenizer */
    char *chat_template;      /* Jinja text, or NULL */
    char *generation_config;  /* text of generation_config.json, or NULL */
    char *teacher_path;       /* where a checkpoint's teacher was, or NULL */
    char format[16];          /* dms_source_format */
    double compression;       /* the ratio it says it was trained for; 0: it does not say */
} dms_model_file;

/* Errors: those of dms_source_open; DMS_ERR_FORMAT where config, tokenizer or a tensor is missing,
 * a tensor has another shape than the config says, or gate and tensors contradict each other;
 * DMS_ERR_NOMEM. Memory is asked for only after every tensor was found in the file. */
dms_status dms_model_file_open(dms_model_file **out, const dms_model_file_options *options);
/* Whether that would find all of the network in `source`, which options->path names: config, gate
 * and every tensor in its shape. No memory for weights, no tokenizer; `device` may be NULL. Errors:
 * the same, with the same messages. */
dms_status dms_model_file_check(const dms_source *source, const dms_model_file_options *options);
/* NULL is legal. The device stays open. */
void dms_model_file_close(dms_model_file *file);

/* What a message says of a context that is full: whether options->positions may be more. */
const char *dms_model_file_limit(const dms_model_file *file);

#endif
