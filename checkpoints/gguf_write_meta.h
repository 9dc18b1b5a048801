/* What a GGUF file says beside its tensors; inside this folder only. */
#ifndef DMS_GGUF_WRITE_META_H
#define DMS_GGUF_WRITE_META_H

#include "checkpoints/gguf_put.h"
#include "checkpoints/gguf_write.h"

/* Sizes that the layout of tensors follows from. */
typedef struct {
    const char *family; /* static */
    int64_t layers, heads, groups, head_dim, width, vocab;
    bool adapter, neuron; /* the gate, of which a model has one at most */
    bool llama3;          /* has a rope_freqs tensor */
    dms_gguf_llama3 rope;
    double theta;
} dms_gguf_sizes;

/* Checks that the config has a form in GGUF. */
dms_status dms_gguf_sizes_read(dms_gguf_sizes *z, const json_t *config);
/* general.* and FAMILY.* keys, dms.* keys. */
dms_status dms_gguf_put_config(dms_gguf_out *out, const dms_gguf_sizes *z,
                               const dms_gguf_model *model);
/* tokenizer.* keys. */
dms_status dms_gguf_put_tokenizer(dms_gguf_out *out, const dms_gguf_sizes *z,
                                  const dms_gguf_model *model);

#endif
