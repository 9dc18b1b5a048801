#include "checkpoints/inspect.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/file_types.h"
#include "checkpoints/source_build.h"

static dms_status no_memory(void)
{
    return dms_fail(DMS_ERR_NOMEM, "no memory to describe a file");
}

/* Bytes of the character at c, as jansson sees it; 0 where it is none. */
static size_t character(const char *c)
{
    const size_t most = strnlen(c, 4);
    for (size_t n = 1; n <= most; n++) {
        json_t *value = json_stringn(c, n);
        json_decref(value);
        if (value)
            return n;
    }
    return 0;
}

json_t *dms_inspect_text(const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    json_t *value = json_string(text);
    char *copy = value ? NULL : malloc(3 * strlen(text) + 1);
    size_t length = 0;
    if (!copy)
        return value;
    for (const char *c = text; *c;) {
        const size_t n = character(c);
        memcpy(copy + length, n ? c : replacement, n ? n : 3);
        length += n ? n : 3;
        c += n ? n : 1;
    }
    value = json_stringn(copy, length);
    free(copy);
    return value;
}

json_t *dms_inspect_problem(void)
{
    return dms_inspect_text(dms_error_message());
}

/* ---- weights -------------------------------------------------------------------------------- */

static int64_t element_count(const dms_tensor_info *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

static int add(json_t *object, const char *key, int64_t n)
{
    const json_int_t before = json_integer_value(json_object_get(object, key));
    return json_object_set_new(object, key, json_integer(before + n));
}

/* Adds one tensor to the totals {tensors, parameters, bytes}. */
static int count(json_t *totals, const dms_source_tensor *t)
{
    return add(totals, "tensors", 1) | add(totals, "parameters", element_count(&t->info)) |
           add(totals, "bytes", (int64_t)t->bytes);
}

static json_t *weights(const dms_source *s)
{
    json_t *types = json_object();
    json_t *all = json_pack("{s:i, s:i, s:i}", "tensors", 0, "parameters", 0, "bytes", 0);
    int bad = 0;
    for (int64_t i = 0; i < s->n_tensors; i++) {
        const char *type = s->tensors[i].type_name;
        if (!json_object_get(types, type))
            bad |= json_object_set_new(types, type, json_object());
        bad |= count(json_object_get(types, type), &s->tensors[i]) | count(all, &s->tensors[i]);
    }
    bad |= json_object_set_new(all, "types", types);
    if (!bad)
        return all;
    json_decref(all);
    return NULL;
}

static json_t *tensor_list(const dms_source *s)
{
    json_t *list = json_array();
    int bad = 0;
    for (int64_t i = 0; i < s->n_tensors; i++) {
        const dms_source_tensor *t = &s->tensors[i];
        json_t *shape = json_array();
        for (int k = 0; k < t->info.rank; k++)
            bad |= json_array_append_new(shape, json_integer(t->info.shape[k]));
        bad |= json_array_append_new(
            list, json_pack("{s:s, s:s, s:o, s:I, s:I}", "name", t->info.name, "type", t->type_name,
                            "shape", shape, "parameters", (json_int_t)element_count(&t->info),
                            "bytes", (json_int_t)t->bytes));
    }
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

/* Name and length of every text but tokenizer and template, which have keys of their own. */
static json_t *texts(const dms_source *s)
{
    json_t *all = json_object();
    int bad = 0;
    for (int i = 0; i < s->n_notes; i++) {
        const dms_source_note *note = &s->notes[i];
        if (!strcmp(note->name, DMS_NOTE_TOKENIZER) || !strcmp(note->name, DMS_NOTE_CHAT_TEMPLATE))
            continue;
        json_t *name = dms_inspect_text(note->name);
        bad |= !name || json_object_set_new(all, json_string_value(name),
                                            json_integer((json_int_t)note->length));
        json_decref(name);
    }
    if (!bad)
        return all;
    json_decref(all);
    return NULL;
}

/* The files that hold the tensors. Not all mappings of a checkpoint are files: compressed tensors
 * have memory of their own. */
static void count_files(int *files, size_t *bytes, const dms_source *s, const char *path)
{
    struct stat st;
    *files = 0;
    *bytes = 0;
    if (!strcmp(s->format, "dms") && !stat(path, &st)) {
        *files = 1;
        *bytes = (size_t)st.st_size;
        return;
    }
    for (; *files < s->n_maps; ++*files)
        *bytes += s->maps[*files].size;
}

dms_status dms_inspect_weights(json_t *out, const dms_source *s, const char *path, bool tensors)
{
    int files;
    size_t bytes;
    count_files(&files, &bytes, s, path);
    int bad = json_object_set_new(out, "path", dms_inspect_text(path));
    bad |= json_object_set_new(out, "format", json_string(s->format));
    bad |= json_object_set_new(out, "files", json_integer(files));
    bad |= json_object_set_new(out, "file_bytes", json_integer((json_int_t)bytes));
    bad |= json_object_set_new(out, "weights", weights(s));
    bad |= json_object_set_new(out, "texts", texts(s));
    if (tensors)
        bad |= json_object_set_new(out, "tensor_list", tensor_list(s));
    return bad ? no_memory() : DMS_OK;
}

/* ---- our checkpoints ------------------------------------------------------------------------ */

static json_t *numbers(const dms_checkpoint *c)
{
    json_t *all = json_object();
    const char *name;
    int bad = 0;
    for (int i = 0; (name = dms_checkpoint_number_name(c, i)); i++) {
        double x = 0;
        int64_t n;
        json_t *key = dms_inspect_text(name);
        dms_checkpoint_real(c, name, &x);
        json_t *value = dms_checkpoint_int(c, name, &n) ? json_integer(n)
                        : isfinite(x)                   ? json_real(x)
                                                        : json_null();
        bad |= !key || json_object_set_new(all, json_string_value(key), value);
        json_decref(key);
    }
    if (!bad)
        return all;
    json_decref(all);
    return NULL;
}

static json_t *groups(const dms_checkpoint *c)
{
    json_t *all = json_object();
    int bad = 0;
    for (int64_t i = 0; i < dms_checkpoint_count(c); i++) {
        const dms_checkpoint_tensor *t = dms_checkpoint_info(c, i);
        json_t *key = dms_inspect_text(t->group);
        const char *name = key ? json_string_value(key) : "";
        if (!json_object_get(all, name))
            bad |= json_object_set_new(all, name, json_object());
        json_t *totals = json_object_get(all, name);
        bad |= !key || add(totals, "tensors", 1) || add(totals, "bytes", (int64_t)t->bytes);
        json_decref(key);
    }
    if (!bad)
        return all;
    json_decref(all);
    return NULL;
}

static json_t *text_or_null(const dms_checkpoint *c, const char *name)
{
    const char *text = dms_checkpoint_text(c, name, NULL);
    return text ? dms_inspect_text(text) : json_null();
}

dms_status dms_inspect_checkpoint(json_t *out, const dms_source *s, const char *path)
{
    dms_checkpoint *c;
    if (strcmp(s->format, "dms") != 0)
        return json_object_set_new(out, "checkpoint", json_null()) ? no_memory() : DMS_OK;
    DMS_TRY(dms_checkpoint_open(&c, path));
    json_t *value = json_pack("{s:o, s:o, s:o, s:o}", "numbers", numbers(c), "groups", groups(c),
                              "teacher_path", text_or_null(c, "teacher_path"), "teacher_hash",
                              text_or_null(c, "teacher_hash"));
    dms_checkpoint_close(c);
    return json_object_set_new(out, "checkpoint", value) ? no_memory() : DMS_OK;
}

/* ---- integrity ------------------------------------------------------------------------------ */

/* What the reader of each format has checked before the file counts as opened. */
static const char *opening_checks(const dms_source *s)
{
    if (!strcmp(s->format, "dms"))
        return "signature, trailer, CRC-32 of structure and texts, places of tensors";
    if (!strcmp(s->format, "gguf"))
        return "version, counts, metadata, alignment, places of tensors without overlap";
    if (!strcmp(s->format, "huggingface"))
        return "config.json, index, headers, places of tensors without gap or overlap";
    return "header, places of tensors without gap or overlap";
}

static dms_status count_not_finite(int64_t *n, const dms_source *s, const dms_tensor_info *t)
{
    const int64_t elements = element_count(t);
    *n = 0;
    if (!dms_file_type_widen(t->type) || !elements)
        return DMS_OK;
    float *x = malloc((size_t)elements * sizeof(*x));
    if (!x)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %lld elements of %s", (long long)elements,
                        t->name);
    const dms_status status = dms_source_read(s, t->name, x, DMS_F32);
    for (int64_t i = 0; !status && i < elements; i++)
        *n += !isfinite(x[i]);
    free(x);
    return status;
}

static dms_status check_finite(int64_t *total, const dms_source *s)
{
    const char *first = NULL;
    *total = 0;
    for (int64_t i = 0; i < s->n_tensors; i++) {
        int64_t n;
        DMS_TRY(count_not_finite(&n, s, &s->tensors[i].info));
        if (n && !first)
            first = s->tensors[i].info.name;
        *total += n;
    }
    if (*total)
        return dms_fail(DMS_ERR_NUMBER, "%s: %lld values are not finite, the first of them in %s",
                        s->path, (long long)*total, first);
    return DMS_OK;
}

static dms_status check_crc(int64_t *tensors, const char *path)
{
    dms_checkpoint *c;
    DMS_TRY(dms_checkpoint_open(&c, path));
    *tensors = dms_checkpoint_count(c);
    const dms_status status = dms_checkpoint_verify(c);
    if (status)
        dms_trail_note("%s", path);
    dms_checkpoint_close(c);
    return status;
}

dms_status dms_inspect_integrity(json_t *out, const dms_source *s, const char *path, bool verify)
{
    const bool ours = !strcmp(s->format, "dms");
    int64_t tensors = 0, not_finite = 0;
    dms_status status = DMS_OK;
    if (verify && ours)
        status = check_crc(&tensors, path);
    if (verify && !status)
        status = check_finite(&not_finite, s);
    if (status == DMS_ERR_NOMEM)
        return status;
    json_t *value =
        json_pack("{s:s, s:o, s:b, s:o, s:o, s:o}", "opening", opening_checks(s), "checksums",
                  ours ? json_string("CRC-32") : json_null(), "verified", verify && !status,
                  "crc_tensors", verify && ours ? json_integer(tensors) : json_null(), "not_finite",
                  verify ? json_integer(not_finite) : json_null(), "problem",
                  status ? dms_inspect_problem() : json_null());
    return json_object_set_new(out, "integrity", value) ? no_memory() : DMS_OK;
}
