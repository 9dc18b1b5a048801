#include "checkpoints/source.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoints/source_build.h"

static const struct {
    const char *name;
    int64_t elements;
    size_t bytes;
} types[] = {
#define X(type, name, elements, bytes) {name, elements, bytes},
    DMS_FILE_TYPE_LIST(X)
#undef X
};

const char *dms_file_type_name(dms_file_type type)
{
    return types[type].name;
}

int64_t dms_file_type_block(dms_file_type type, size_t *bytes)
{
    *bytes = types[type].bytes;
    return types[type].elements;
}

dms_status dms_tensor_size(size_t *bytes, const dms_source_tensor *t)
{
    size_t block, total;
    const int64_t elements = dms_file_type_block(t->info.type, &block);
    const int64_t cols = t->info.rank ? t->info.shape[t->info.rank - 1] : 1;
    if (cols % elements)
        return dms_fail(DMS_ERR_FORMAT, "tensor %s: a row has %lld elements, no multiple of %lld",
                        t->info.name, (long long)cols, (long long)elements);
    total = block * (size_t)(cols / elements);
    bool huge = cols > (INT64_MAX >> 8);
    for (int i = 0; i + 1 < t->info.rank; i++)
        huge |= __builtin_mul_overflow(total, (size_t)t->info.shape[i], &total);
    if (huge || total > INT64_MAX)
        return dms_fail(DMS_ERR_FORMAT, "tensor %s: its shape is too large", t->info.name);
    *bytes = total;
    return DMS_OK;
}

dms_status dms_source_adopt(dms_source *s, dms_mapping *m)
{
    dms_mapping *maps = realloc(s->maps, (size_t)(s->n_maps + 1) * sizeof(*maps));
    if (!maps)
        return dms_fail(DMS_ERR_NOMEM, "no memory to open %s", s->path);
    s->maps = maps;
    maps[s->n_maps++] = *m;
    *m = (dms_mapping){0};
    return DMS_OK;
}

dms_status dms_source_add_file(dms_source *s, dms_mapping *out, const char *path)
{
    dms_mapping m;
    DMS_TRY(dms_mapping_open(&m, path));
    *out = m;
    const dms_status status = dms_source_adopt(s, &m);
    dms_mapping_close(&m);
    return status;
}

static bool printable(const char *name)
{
    for (const char *c = name; *c; c++)
        if (*c <= ' ' || *c > '~')
            return false;
    return *name != 0;
}

/* The largest models have a few thousand tensors; a file that lists millions wants our memory. */
enum { MOST_TENSORS = 1 << 18 };

static dms_status make_room(dms_source *s)
{
    if (!s->index && !(s->index = json_object()))
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of tensors");
    if (s->n_tensors < s->room)
        return DMS_OK;
    const int64_t room = s->room ? 2 * s->room : 64;
    if (room > MOST_TENSORS)
        return dms_fail(DMS_ERR_FORMAT, "%s has more than %d tensors", s->path, MOST_TENSORS);
    dms_source_tensor *grown = realloc(s->tensors, (size_t)room * sizeof(*grown));
    if (!grown)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of %lld tensors", (long long)room);
    s->tensors = grown;
    s->room = room;
    return DMS_OK;
}

dms_status dms_source_add_tensor(dms_source *s, const dms_source_tensor *t)
{
    if (!printable(t->info.name))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: the name of tensor %lld is empty or not printable ASCII", s->path,
                        (long long)s->n_tensors);
    DMS_TRY(make_room(s));
    if (json_object_get(s->index, t->info.name))
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s appears twice", s->path, t->info.name);
    char *name = strdup(t->info.name);
    if (!name || json_object_set_new(s->index, name, json_integer(s->n_tensors))) {
        free(name);
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of tensors");
    }
    dms_source_tensor *entry = &s->tensors[s->n_tensors++];
    *entry = *t;
    entry->info.name = name;
    for (int i = t->info.rank; i < 4; i++)
        entry->info.shape[i] = 1;
    return DMS_OK;
}

dms_status dms_source_take_text(dms_source *s, const char *name, char **text, size_t length)
{
    const char *zero = memchr(*text, 0, length);
    if (zero && strcmp(name, DMS_NOTE_SENTENCEPIECE) != 0)
        return dms_fail(DMS_ERR_FORMAT, "%s: text %s has a 0 at byte %zu of %zu, expected none",
                        s->path, name, (size_t)(zero - *text), length);
    dms_source_note *notes = realloc(s->notes, (size_t)(s->n_notes + 1) * sizeof(*notes));
    if (notes)
        s->notes = notes;
    const dms_source_note note = {notes ? strdup(name) : NULL, *text, length};
    if (!note.name)
        return dms_fail(DMS_ERR_NOMEM, "no memory for text %s of %s", name, s->path);
    s->notes[s->n_notes++] = note;
    *text = NULL;
    return DMS_OK;
}

dms_status dms_source_add_text(dms_source *s, const char *name, const char *text, size_t length)
{
    char *copy = malloc(length + 1);
    if (!copy)
        return dms_fail(DMS_ERR_NOMEM, "no memory for text %s of %s", name, s->path);
    memcpy(copy, text, length);
    copy[length] = 0;
    const dms_status status = dms_source_take_text(s, name, &copy, length);
    free(copy);
    return status;
}

dms_status dms_source_add_number(dms_source *s, const char *name, double value)
{
    if (!s->numbers && !(s->numbers = json_object()))
        return dms_fail(DMS_ERR_NOMEM, "no memory for the numbers of %s", s->path);
    if (json_object_set_new(s->numbers, name, json_real(value)))
        return dms_fail(DMS_ERR_FORMAT, "%s: number %s is not finite or its name no UTF-8", s->path,
                        name);
    return DMS_OK;
}

static bool looks_like_safetensors(const dms_mapping *m)
{
    uint64_t header = 0;
    for (size_t i = 8; m->size > 8 && i-- > 0;)
        header = header << 8 | m->bytes[i];
    return m->size > 8 && m->bytes[8] == '{' && (header <= m->size - 8 || header < 1u << 30);
}

static bool starts_with(const dms_mapping *m, const char *magic, size_t n)
{
    return m->size >= n && !memcmp(m->bytes, magic, n);
}

static dms_status fill_from_file(dms_source *s, const char *path)
{
    dms_mapping m;
    DMS_TRY(dms_mapping_open(&m, path));
    const bool gguf = starts_with(&m, "GGUF", 4), ours = starts_with(&m, "\x89HDF\r\n\x1a\n", 8);
    const bool pointer = starts_with(&m, "version https://git-lfs", 23);
    const bool safetensors = looks_like_safetensors(&m);
    const size_t size = m.size;
    dms_mapping_close(&m);
    if (gguf)
        return dms_gguf_fill(s, path);
    if (ours)
        return dms_checkpoint_fill(s, path);
    if (safetensors)
        return dms_safetensors_fill(s, path);
    if (pointer)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s is a Git LFS pointer, not the model: fetch it with "
                        "'git lfs pull'",
                        path);
    return dms_fail(DMS_ERR_FORMAT,
                    "%s (%zu bytes) is none of GGUF, safetensors, a dms.c checkpoint; give one of "
                    "these or a Hugging Face folder",
                    path, size);
}

dms_status dms_source_open(dms_source **out, const char *path)
{
    struct stat st;
    dms_status status;
    dms_source *s = calloc(1, sizeof(*s));
    if (!s || !(s->path = strdup(path))) {
        free(s);
        return dms_fail(DMS_ERR_NOMEM, "no memory to open %s", path);
    }
    const bool folder = !stat(path, &st) && S_ISDIR(st.st_mode);
    DMS_TRY_OR(failed, folder ? dms_hf_fill(s, path) : fill_from_file(s, path));
    *out = s;
    return DMS_OK;
failed:
    dms_source_close(s);
    return status;
}

void dms_source_close(dms_source *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n_maps; i++)
        dms_mapping_close(&s->maps[i]);
    for (int64_t i = 0; i < s->n_tensors; i++)
        free((char *)(uintptr_t)s->tensors[i].info.name);
    for (int i = 0; i < s->n_notes; i++) {
        free(s->notes[i].name);
        free(s->notes[i].text);
    }
    json_decref(s->index);
    json_decref(s->config);
    json_decref(s->numbers);
    free(s->maps);
    free(s->tensors);
    free(s->notes);
    free(s->path);
    free(s);
}

const char *dms_source_format(const dms_source *s)
{
    return s->format;
}

const json_t *dms_source_config(const dms_source *s)
{
    return s->config;
}

static const dms_source_note *find_note(const dms_source *s, const char *name)
{
    for (int i = 0; i < s->n_notes; i++)
        if (!strcmp(s->notes[i].name, name))
            return &s->notes[i];
    return NULL;
}

const char *dms_source_tokenizer(const dms_source *s, size_t *length)
{
    return dms_source_bytes(s, DMS_NOTE_TOKENIZER, length);
}

const char *dms_source_bytes(const dms_source *s, const char *name, size_t *length)
{
    const dms_source_note *note = find_note(s, name);
    if (length)
        *length = note ? note->length : 0;
    return note ? note->text : NULL;
}

const char *dms_source_chat_template(const dms_source *s)
{
    return dms_source_text(s, DMS_NOTE_CHAT_TEMPLATE);
}

const char *dms_source_text(const dms_source *s, const char *name)
{
    const dms_source_note *note = find_note(s, name);
    return note ? note->text : NULL;
}

bool dms_source_number(const dms_source *s, const char *name, double *out)
{
    const json_t *value = json_object_get(s->numbers, name);
    if (value)
        *out = json_number_value(value);
    return value != NULL;
}

int64_t dms_source_count(const dms_source *s)
{
    return s->n_tensors;
}

const dms_tensor_info *dms_source_info(const dms_source *s, int64_t i)
{
    return &s->tensors[i].info;
}

dms_source_tensor *dms_source_entry(const dms_source *s, const char *name)
{
    const json_t *at = json_object_get(s->index, name);
    return at ? &s->tensors[json_integer_value(at)] : NULL;
}

const dms_tensor_info *dms_source_find(const dms_source *s, const char *name)
{
    const dms_source_tensor *t = dms_source_entry(s, name);
    return t ? &t->info : NULL;
}
