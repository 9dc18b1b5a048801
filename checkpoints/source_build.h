/* How a format's reader fills a source; inside this folder only. */
#ifndef DMS_SOURCE_BUILD_H
#define DMS_SOURCE_BUILD_H

#include "checkpoints/files.h"
#include "checkpoints/source.h"
#include "checkpoints/tensor_set.h"

DMS_BEGIN_C

typedef struct {
    dms_tensor_info info;
    const uint8_t *data; /* in one of the mappings */
    size_t bytes;
    /* Rows of this many heads are permuted for interleaved rotary pairs (within a head of E rows,
     * file row 2j + r is Hugging Face row j + r*E/2); 0: rows are in order. */
    int64_t rotary_heads;
    /* The file holds the transpose of info's matrix: shape[1] rows of shape[0] elements. */
    bool transposed;
    /* Rows own_first + k own_step of the file, k < own_count, are replaced by row k of these, f32,
     * in one of the mappings (any alignment); NULL: none. */
    const uint8_t *own_rows;
    int64_t own_first, own_step, own_count;
    const char *type_name; /* as the format calls it, static */
} dms_source_tensor;

typedef struct {
    char *name, *text;
    size_t length;
} dms_source_note;

/* Zeroed at the start; everything in it is owned, and freed by dms_source_close. */
struct dms_source {
    const char *format;
    char *path;
    dms_mapping *maps;
    int n_maps;
    dms_source_tensor *tensors;
    int64_t n_tensors, room;
    json_t *index; /* name -> position in tensors */
    json_t *config;
    json_t *numbers;
    dms_source_note *notes;
    int n_notes;
};

/* Names under which the two best known texts are kept. */
#define DMS_NOTE_TOKENIZER "tokenizer.json"
#define DMS_NOTE_CHAT_TEMPLATE "chat_template"
/* The only one that may have zeros in it. */
#define DMS_NOTE_SENTENCEPIECE "tokenizer.model"

/* Maps a file for as long as the source lives; *bytes is borrowed. */
dms_status dms_source_add_file(dms_source *s, dms_mapping *out, const char *path);
/* Takes over a mapping; *m is emptied. */
dms_status dms_source_adopt(dms_source *s, dms_mapping *m);
/* Copies name and entry. Fails on a second tensor of that name and on names that are not printable
 * ASCII, so that messages can show them. */
dms_status dms_source_add_tensor(dms_source *s, const dms_source_tensor *t);
/* Copies name and `length` bytes of text. */
dms_status dms_source_add_text(dms_source *s, const char *name, const char *text, size_t length);
/* Takes over *text instead, allocated and with a 0 at [length]; *text becomes NULL. DMS_ERR_FORMAT
 * where there is a 0 before: whoever writes the text would cut it there. */
dms_status dms_source_take_text(dms_source *s, const char *name, char **text, size_t length);
dms_status dms_source_add_number(dms_source *s, const char *name, double value);
/* For readers that rename or permute after adding; NULL when absent. */
dms_source_tensor *dms_source_entry(const dms_source *s, const char *name);

/* bytes = elements in whole blocks along the fastest dimension; fails on overflow, and where a row
 * is no whole number of blocks. */
dms_status dms_tensor_size(size_t *bytes, const dms_source_tensor *t);
/* Elements and bytes a block of a type. */
int64_t dms_file_type_block(dms_file_type type, size_t *bytes);

/* Whether the source holds exactly this set, byte for byte: what a writer asks about its own file.
 * DMS_ERR_IO names the first tensor that differs. */
dms_status dms_source_compare(const dms_source *s, const dms_tensor_set *set);

/* The readers: each fills an empty source; on failure the caller closes it. */
dms_status dms_safetensors_fill(dms_source *s, const char *path);
dms_status dms_gguf_fill(dms_source *s, const char *path);
dms_status dms_hf_fill(dms_source *s, const char *folder);
dms_status dms_checkpoint_fill(dms_source *s, const char *path);

DMS_END_C
#endif
