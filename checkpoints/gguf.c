#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/gguf_names.h"
#include "checkpoints/gguf_read.h"
#include "checkpoints/model_type.h"

/* The files of one model, most often one. */
typedef struct {
    dms_gguf_part *parts;
    char **paths; /* owned, as the parts' messages name them */
    int count;
} model_files;

/* ---- split files ---------------------------------------------------------------------------- */

static dms_status read_part(model_files *files, dms_source *s, int i, char *path)
{
    dms_mapping m;
    files->paths[i] = path;
    DMS_TRY(dms_source_add_file(s, &m, path));
    if (m.size < 4 || memcmp(m.bytes, "GGUF", 4) != 0)
        return dms_fail(DMS_ERR_FORMAT, "%s is no GGUF file", path);
    return dms_gguf_part_read(&files->parts[i], &m, path);
}

/* "FOLDER/NAME-00002-of-00003.gguf" with another number. */
static dms_status sibling_path(char **out, const char *path, int number, int count)
{
    enum { TAIL = sizeof("-00001-of-00002.gguf") - 1 };
    const size_t n = strlen(path);
    char tail[64];
    int found, all, end = 0;
    if (n <= TAIL || sscanf(path + n - TAIL, "-%5d-of-%5d.gguf%n", &found, &all, &end) != 2 ||
        end != TAIL || all != count)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s is one of %d parts of a model, expected a name that ends with "
                        "-%05d-of-%05d.gguf, by which the others are found",
                        path, count, 1, count);
    *out = malloc(n + sizeof(tail));
    if (!*out)
        return dms_fail(DMS_ERR_NOMEM, "no memory to open the parts of %s", path);
    snprintf(tail, sizeof(tail), "-%05d-of-%05d.gguf", number, count);
    memcpy(*out, path, n - TAIL);
    strcpy(*out + n - TAIL, tail);
    return DMS_OK;
}

/* Part `number` of `count` must say that it is just that. */
static dms_status check_part(const dms_gguf_part *part, int number, int count)
{
    const int64_t no = dms_gguf_int(&part->meta, "split.no", -1);
    const int64_t all = dms_gguf_int(&part->meta, "split.count", 0);
    if (no != number - 1 || all != count)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s says it is part %lld of %lld, expected part %d of %d: the parts are "
                        "mixed up",
                        part->meta.path, (long long)no + 1, (long long)all, number, count);
    return DMS_OK;
}

static dms_status open_part(model_files *files, dms_source *s, int number)
{
    char *path;
    DMS_TRY(sibling_path(&path, s->path, number, files->count));
    if (!dms_path_exists(path)) {
        const dms_status status = dms_fail(
            DMS_ERR_IO, "part %d of %d is missing: %s; put all parts of the model into one folder",
            number, files->count, path);
        free(path);
        return status;
    }
    DMS_TRY(read_part(files, s, number - 1, path));
    return check_part(&files->parts[number - 1], number, files->count);
}

static dms_status make_room(model_files *files, int count, const char *path)
{
    files->parts = calloc((size_t)count, sizeof(*files->parts));
    files->paths = calloc((size_t)count, sizeof(*files->paths));
    files->count = files->parts && files->paths ? count : 0;
    return files->count ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory for the parts of %s", path);
}

static dms_status check_total(const model_files *files)
{
    uint64_t n = 0;
    const int64_t wanted = dms_gguf_int(&files->parts[0].meta, "split.tensors.count", -1);
    for (int i = 0; i < files->count; i++)
        n += files->parts[i].n_tensors;
    if (wanted >= 0 && (uint64_t)wanted != n)
        return dms_fail(DMS_ERR_FORMAT, "%s: the parts have %llu tensors, expected %lld",
                        files->paths[0], (unsigned long long)n, (long long)wanted);
    return DMS_OK;
}

static void close_files(model_files *files)
{
    for (int i = 0; i < files->count; i++) {
        dms_gguf_part_free(&files->parts[i]);
        free(files->paths[i]);
    }
    free(files->parts);
    free(files->paths);
    *files = (model_files){0};
}

static dms_status open_alone(model_files *files, dms_source *s)
{
    DMS_TRY(make_room(files, 1, s->path));
    char *path = strdup(s->path);
    return path ? read_part(files, s, 0, path)
                : dms_fail(DMS_ERR_NOMEM, "no memory to open %s", s->path);
}

/* Any part may be the one that was named: it says how many there are. */
static dms_status open_files(model_files *files, dms_source *s)
{
    DMS_TRY(open_alone(files, s));
    const int64_t count = dms_gguf_int(&files->parts[0].meta, "split.count", 1);
    if (count < 0 || count > 9999)
        return dms_fail(DMS_ERR_FORMAT, "%s: split.count is %lld, expected 1 to 9999", s->path,
                        (long long)count);
    if (count <= 1)
        return DMS_OK;
    close_files(files);
    DMS_TRY(make_room(files, (int)count, s->path));
    for (int i = 1; i <= count; i++)
        DMS_TRY(open_part(files, s, i));
    return check_total(files);
}

/* ---- tensors -------------------------------------------------------------------------------- */

/* Where q and k rows are permuted (llama.cpp's convert_hf_to_gguf.py, LlamaModel). */
static dms_status set_rotary(dms_source *s)
{
    const dms_model_type *type = dms_model_type_of(s->config);
    const json_t *heads = json_object_get(s->config, type->heads);
    const json_t *groups = json_object_get(s->config, "num_key_value_heads");
    for (int64_t i = 0; i < s->n_tensors; i++) {
        dms_source_tensor *t = &s->tensors[i];
        const bool q = strstr(t->info.name, ".self_attn.q_proj.") != NULL;
        if (!q && !strstr(t->info.name, ".self_attn.k_proj."))
            continue;
        const int64_t n = json_integer_value(q ? heads : groups);
        size_t block;
        const bool vector_ok = t->info.rank == 1 && dms_file_type_block(t->info.type, &block) == 1;
        if (n < 1 || n > 1 << 20 || t->info.shape[0] % (2 * n) || !(t->info.rank == 2 || vector_ok))
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s does not split into %lld rotary heads",
                            s->path, t->info.name, (long long)n);
        t->rotary_heads = n;
    }
    return DMS_OK;
}

static dms_status add_tensor(dms_source *s, const dms_gguf_tensor *t, const char *family)
{
    char file_name[DMS_GGUF_NAME], name[DMS_GGUF_NAME];
    snprintf(file_name, sizeof(file_name), "%.*s", (int)t->name.length, t->name.text);
    dms_gguf_to_hf(name, sizeof(name), file_name, family);
    dms_source_tensor out = {.info = {.name = name, .type = t->type, .rank = t->rank},
                             .data = t->data,
                             .bytes = t->bytes,
                             .type_name = dms_file_type_name(t->type),
                             .transposed = t->rank == 2 && dms_gguf_is_transposed(name, family)};
    memcpy(out.info.shape, t->shape, sizeof(t->shape));
    if (out.transposed) {
        out.info.shape[0] = t->shape[1];
        out.info.shape[1] = t->shape[0];
    }
    return dms_source_add_tensor(s, &out);
}

/* The rope factors are no weight: they say how the frequencies are scaled. */
static dms_status take_factors(dms_gguf_factors *out, const dms_gguf_tensor *t, const char *path)
{
    if (t->type != DMS_FILE_F32 || (uintptr_t)t->data % sizeof(float))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: tensor rope_freqs.weight is stored as %s, expected aligned F32", path,
                        dms_file_type_name(t->type));
    out->values = (const float *)(const void *)t->data;
    out->n = (int64_t)(t->bytes / sizeof(float));
    return DMS_OK;
}

static dms_status add_parts(dms_source *s, const model_files *files)
{
    const dms_gguf_meta *meta = &files->parts[0].meta;
    dms_gguf_factors factors = {0};
    const char *family;
    DMS_TRY(dms_gguf_family(&family, meta));
    for (int i = 0; i < files->count; i++)
        for (uint64_t k = 0; k < files->parts[i].n_tensors; k++) {
            const dms_gguf_tensor *t = &files->parts[i].tensors[k];
            if (dms_gguf_is(t->name, "rope_freqs.weight"))
                DMS_TRY(take_factors(&factors, t, files->paths[i]));
            else
                DMS_TRY(add_tensor(s, t, family));
        }
    DMS_TRY(dms_gguf_make_config(s, meta, family, &factors));
    if (dms_model_type_find(family)->gguf_permuted)
        DMS_TRY(set_rotary(s));
    DMS_TRY(dms_gguf_add_gate(s, meta, family));
    return dms_gguf_make_tokenizer(s, meta);
}

dms_status dms_gguf_fill(dms_source *s, const char *path)
{
    dms_status status;
    model_files files = {0};
    (void)path; /* the source's own */
    s->format = "gguf";
    DMS_TRY_OR(done, open_files(&files, s));
    DMS_TRY_OR(done, add_parts(s, &files));
done:
    close_files(&files);
    return status;
}
