#include "checkpoints/gguf_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/files.h"
#include "checkpoints/gguf_encode.h"
#include "checkpoints/gguf_names.h"
#include "checkpoints/gguf_write_meta.h"
#include "checkpoints/layout.h"
#include "checkpoints/model_type.h"

enum { ALIGNMENT = 32 };

/* One tensor of the file. */
typedef struct {
    char name[DMS_GGUF_NAME];
    int64_t index; /* in the set; -1: the rope factors */
    dms_file_type type;
    int rank;
    int64_t rows, cols; /* of the file; a vector is one row */
    int64_t heads;      /* rotary ones whose rows are permuted; 0: none */
    bool transposed, query;
    size_t bytes;
} planned;

/* The whole file. */
typedef struct {
    const dms_gguf_model *model;
    const char *path;
    dms_gguf_sizes z;
    planned *tensors;
    int64_t n_tensors;
    float *buffer; /* any tensor of the set: room numbers */
    size_t room;
    dms_gguf_out keys, list;
} writer;

/* ---- what is written ------------------------------------------------------------------------ */

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

static dms_status set_layout(planned *p, const writer *w, const dms_tensor_entry *e)
{
    const bool permuted = dms_model_type_find(w->z.family)->gguf_permuted;
    const bool q = strstr(e->name, ".self_attn.q_proj.") != NULL;
    size_t block;
    if (e->shape[0] < 1 || (e->rank == 2 && e->shape[1] < 1))
        return dms_fail(DMS_ERR_ARG, "tensor %s is empty, expected numbers in it", e->name);
    p->rank = e->rank;
    p->transposed = e->rank == 2 && dms_gguf_is_transposed(e->name, w->z.family);
    p->rows = e->rank == 2 ? e->shape[p->transposed ? 1 : 0] : 1;
    p->cols = e->shape[e->rank == 2 && !p->transposed ? 1 : 0];
    p->query = w->z.neuron && (q || strstr(e->name, "attn.c_attn."));
    if (permuted && (q || strstr(e->name, ".self_attn.k_proj.")))
        p->heads = q ? w->z.heads : w->z.groups;
    if (p->heads && (e->rank == 2 ? p->rows : p->cols) != p->heads * w->z.head_dim)
        return dms_fail(DMS_ERR_ARG, "tensor %s has no %lld heads of width %lld", e->name,
                        (long long)p->heads, (long long)w->z.head_dim);
    p->type = e->rank == 1 || ends_with(e->name, "wpe.weight") ? DMS_FILE_F32 : w->model->type;
    if (p->type == DMS_FILE_Q8_0 && p->cols % 32)
        p->type = DMS_FILE_F16;
    const int64_t elements = dms_file_type_block(p->type, &block);
    p->bytes = (size_t)(p->rows * (p->cols / elements)) * block;
    return DMS_OK;
}

static dms_status plan_tensor(writer *w, int64_t i)
{
    const dms_tensor_entry *e = &w->model->tensors.entries[i];
    planned *p = &w->tensors[w->n_tensors];
    if (dms_layout_is_gate(e->name) || dms_layout_leaves_out(w->model->config, e->name))
        return DMS_OK;
    *p = (planned){.index = i};
    if (!dms_gguf_from_hf(p->name, sizeof(p->name), e->name, w->z.family) || e->rank < 1 ||
        e->rank > 2)
        return dms_fail(DMS_ERR_ARG, "tensor %s has no place in a GGUF file of family %s", e->name,
                        w->z.family);
    DMS_TRY(set_layout(p, w, e));
    w->n_tensors++;
    return DMS_OK;
}

static dms_status plan(writer *w)
{
    const int64_t n = w->model->tensors.count;
    w->tensors = calloc((size_t)n + 1, sizeof(*w->tensors));
    if (!w->tensors)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of %lld tensors", (long long)n);
    for (int64_t i = 0; i < n; i++)
        DMS_TRY(plan_tensor(w, i));
    if (w->z.llama3) {
        w->tensors[w->n_tensors++] = (planned){.name = "rope_freqs.weight",
                                               .index = -1,
                                               .type = DMS_FILE_F32,
                                               .rank = 1,
                                               .rows = 1,
                                               .cols = w->z.head_dim / 2,
                                               .bytes = (size_t)(w->z.head_dim / 2) * 4};
    }
    return DMS_OK;
}

/* ---- the gate, in the metadata -------------------------------------------------------------- */

static dms_status fetch(writer *w, int64_t i)
{
    return w->model->tensors.fetch(w->model->tensors.context, i, w->buffer);
}

static int layer_of(const char *name)
{
    const char *digits = strpbrk(name, "0123456789");
    return digits ? atoi(digits) : 0;
}

static dms_status put_adapter(writer *w)
{
    int64_t n = 0;
    for (int64_t i = 0; i < w->model->tensors.count; i++) {
        const dms_tensor_entry *e = &w->model->tensors.entries[i];
        const char *part = strstr(e->name, ".dms_proj_");
        char key[96];
        if (!part)
            continue;
        snprintf(key, sizeof(key), "dms.blk.%d.%.40s", layer_of(e->name),
                 part + strlen(".dms_proj_"));
        DMS_TRY(fetch(w, i));
        const int64_t elements = dms_tensor_entry_count(e);
        dms_gguf_key_array(&w->keys, key, GGUF_F32, (uint64_t)elements);
        dms_gguf_put(&w->keys, w->buffer, (size_t)elements * sizeof(float));
        n++;
    }
    return n ? DMS_OK
             : dms_fail(DMS_ERR_ARG, "the config says dms_separate_alpha, but there is no tensor "
                                     "dms_proj_alpha");
}

/* Row of the query tensor that group g borrows. */
static int64_t borrowed_row(const dms_gguf_sizes *z, int64_t g)
{
    return g * (z->heads / z->groups) * z->head_dim + z->head_dim - 1;
}

static dms_status put_rows_of(writer *w, const planned *p)
{
    char key[96];
    const dms_gguf_sizes *z = &w->z;
    const bool bias = p->rank == 1;
    const int64_t out = bias ? p->cols : p->rows, width = bias ? 1 : p->cols;
    if (borrowed_row(z, z->groups - 1) >= out)
        return dms_fail(DMS_ERR_ARG, "tensor %s is smaller than the config says",
                        w->model->tensors.entries[p->index].name);
    DMS_TRY(fetch(w, p->index));
    snprintf(key, sizeof(key), "dms.blk.%d.rows.%s", layer_of(p->name), bias ? "bias" : "weight");
    dms_gguf_key_array(&w->keys, key, GGUF_F32, (uint64_t)(z->groups * width));
    for (int64_t g = 0; g < z->groups; g++)
        for (int64_t i = 0; i < width; i++) {
            const int64_t row = borrowed_row(z, g);
            const float *x = w->buffer + (p->transposed ? i * out + row : row * width + i);
            dms_gguf_put(&w->keys, x, sizeof(*x));
        }
    return DMS_OK;
}

static dms_status put_gate(writer *w)
{
    if (w->z.adapter)
        return put_adapter(w);
    for (int64_t i = 0; i < w->n_tensors; i++)
        if (w->tensors[i].query)
            DMS_TRY(put_rows_of(w, &w->tensors[i]));
    return DMS_OK;
}

/* ---- numbers -------------------------------------------------------------------------------- */

/* Sets the borrowed rows of the fetched tensor to zero. */
static void zero_borrowed(writer *w, const planned *p)
{
    const bool bias = p->rank == 1;
    const int64_t out = bias ? p->cols : p->rows, width = bias ? 1 : p->cols;
    for (int64_t g = 0; g < w->z.groups; g++)
        for (int64_t i = 0; i < width; i++) {
            const int64_t row = borrowed_row(&w->z, g);
            w->buffer[p->transposed ? i * out + row : row * width + i] = 0;
        }
}

/* The row of Hugging Face's order that is the file's row r of a head of n rows. */
static int64_t unpermuted(int64_t r, int64_t n)
{
    return n ? r - r % n + r % n / 2 + r % 2 * (n / 2) : r;
}

/* Row r of the file, from the fetched tensor; `row` [cols] is used where it lies scattered. */
static const float *file_row(float *row, const writer *w, const planned *p, int64_t r)
{
    const int64_t head = p->heads ? w->z.head_dim : 0;
    if (p->rank == 1 && !head)
        return w->buffer;
    if (p->rank == 2 && !p->transposed)
        return w->buffer + unpermuted(r, head) * p->cols;
    for (int64_t i = 0; i < p->cols; i++)
        row[i] = p->rank == 1 ? w->buffer[unpermuted(i, head)] : w->buffer[i * p->rows + r];
    return row;
}

/* Where the bytes of a tensor go: into the file, or beside those that are in it. */
typedef dms_status sink_fn(void *context, const void *bytes, size_t n);

static dms_status sink_to_file(void *context, const void *bytes, size_t n)
{
    return dms_outfile_write(context, bytes, n);
}

static dms_status emit_rows(sink_fn *sink, void *context, const writer *w, const planned *p)
{
    const size_t row_bytes = p->bytes / (size_t)p->rows;
    const int64_t most = row_bytes < 1 << 20 ? (1 << 20) / (int64_t)row_bytes : 1;
    dms_status status = DMS_OK;
    float *row = malloc((size_t)p->cols * sizeof(*row));
    uint8_t *bytes = malloc((size_t)most * row_bytes);
    if (!row || !bytes)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for rows of %s", p->name));
    for (int64_t r = 0; r < p->rows; r += most) {
        const int64_t n = r + most < p->rows ? most : p->rows - r;
        for (int64_t k = 0; k < n; k++)
            if (!dms_gguf_encode(bytes + (size_t)k * row_bytes, file_row(row, w, p, r + k), p->cols,
                                 p->type))
                DMS_TRY_OR(done, dms_fail(DMS_ERR_ARG,
                                          "tensor %s holds a number that is too large for %s; "
                                          "write it as bf16 or f32",
                                          p->name, dms_file_type_name(p->type)));
        DMS_TRY_OR(done, sink(context, bytes, (size_t)n * row_bytes));
    }
done:
    free(row);
    free(bytes);
    return status;
}

static void make_factors(writer *w)
{
    const int64_t n = w->z.head_dim / 2;
    for (int64_t i = 0; i < n; i++)
        w->buffer[i] = (float)dms_gguf_llama3_factor(&w->z.rope, w->z.theta, (double)i / (double)n);
}

static size_t padded(size_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static dms_status write_padding(dms_outfile *f, size_t n)
{
    static const uint8_t zeros[ALIGNMENT];
    return dms_outfile_write(f, zeros, padded(n) - n);
}

static dms_status emit_tensor(sink_fn *sink, void *context, writer *w, const planned *p)
{
    if (p->index < 0)
        make_factors(w);
    else
        DMS_TRY(fetch(w, p->index));
    if (p->query)
        zero_borrowed(w, p);
    return emit_rows(sink, context, w, p);
}

/* ---- the file ------------------------------------------------------------------------------- */

static dms_status make_header(writer *w)
{
    uint64_t offset = 0;
    DMS_TRY(dms_gguf_put_config(&w->keys, &w->z, w->model));
    DMS_TRY(dms_gguf_put_tokenizer(&w->keys, &w->z, w->model));
    DMS_TRY(put_gate(w));
    for (int64_t i = 0; i < w->n_tensors; i++) {
        const planned *p = &w->tensors[i];
        dms_gguf_put_string(&w->list, p->name, strlen(p->name));
        dms_gguf_put_u32(&w->list, (uint32_t)p->rank);
        dms_gguf_put_u64(&w->list, (uint64_t)p->cols);
        if (p->rank == 2)
            dms_gguf_put_u64(&w->list, (uint64_t)p->rows);
        dms_gguf_put_u32(&w->list, dms_gguf_type_id(p->type));
        dms_gguf_put_u64(&w->list, offset);
        offset += padded(p->bytes);
    }
    return w->keys.failed || w->list.failed
               ? dms_fail(DMS_ERR_NOMEM, "no memory for the header of %s", w->path)
               : DMS_OK;
}

/* The first bytes of the file. */
typedef struct {
    char magic[4];
    uint32_t version;
    uint64_t tensors, keys;
} file_head;

static file_head head_of(const writer *w)
{
    return (file_head){"GGUF", 3, (uint64_t)w->n_tensors, w->keys.keys};
}

static dms_status write_all(dms_outfile *f, writer *w)
{
    const file_head head = head_of(w);
    DMS_TRY(dms_outfile_write(f, &head, sizeof(head)));
    DMS_TRY(dms_outfile_write(f, w->keys.bytes, w->keys.n));
    DMS_TRY(dms_outfile_write(f, w->list.bytes, w->list.n));
    DMS_TRY(write_padding(f, sizeof(head) + w->keys.n + w->list.n));
    for (int64_t i = 0; i < w->n_tensors; i++) {
        DMS_TRY(emit_tensor(sink_to_file, f, w, &w->tensors[i]));
        DMS_TRY(write_padding(f, w->tensors[i].bytes));
    }
    return DMS_OK;
}

/* A tensor of the written file, and how much of it was compared. */
typedef struct {
    const dms_gguf_tensor *tensor;
    size_t done;
} compared;

static dms_status sink_to_compare(void *context, const void *bytes, size_t n)
{
    compared *c = context;
    const dms_gguf_tensor *t = c->tensor;
    if (n > t->bytes - c->done || memcmp(t->data + c->done, bytes, n) != 0)
        return dms_fail(DMS_ERR_IO,
                        "tensor %.*s came back from the file with other numbers than were written",
                        (int)t->name.length, t->name.text);
    c->done += n;
    return DMS_OK;
}

static dms_status compare_header(const writer *w, const dms_mapping *m)
{
    const file_head head = head_of(w);
    const size_t a = sizeof(head), b = w->keys.n, c = w->list.n;
    if (m->size < a + b + c || memcmp(m->bytes, &head, a) != 0 ||
        memcmp(m->bytes + a, w->keys.bytes, b) != 0 ||
        memcmp(m->bytes + a + b, w->list.bytes, c) != 0)
        return dms_fail(DMS_ERR_IO,
                        "%s: the metadata came back from the file otherwise than written", w->path);
    return DMS_OK;
}

/* Numbers of the metadata are f32 where llama.cpp has them so. */
static bool same_value(const json_t *a, const json_t *b)
{
    const double x = json_number_value(a), y = json_number_value(b);
    if (json_is_number(a) && json_is_number(b))
        return x == y || fabs(x - y) <= 1e-6 * fabs(x);
    return json_equal((json_t *)(uintptr_t)a, (json_t *)(uintptr_t)b);
}

/* What the config of the file says beside what was meant: every key of the gate, and of the others
 * those that both have; of a list of ends GGUF holds three, and a null says nothing. */
static dms_status compare_config(const writer *w, const json_t *back)
{
    const json_t *meant = w->model->config;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)meant, key, value)
    {
        const json_t *found = json_object_get(back, key);
        const bool gate = !strncmp(key, "dms_", 4);
        if (json_is_null(value) || (!found && !gate) || json_is_object(value) ||
            json_is_array(value) || (!gate && !json_is_number(value) && !json_is_string(value)) ||
            !strcmp(key, "dtype") || !strcmp(key, "torch_dtype") ||
            (!strcmp(key, "rope_theta") && json_object_get(meant, "rope_parameters")))
            continue;
        if (!json_is_array(found) && !same_value(value, found))
            return dms_fail(DMS_ERR_IO, "%s: config key %s would be read back otherwise", w->path,
                            key);
    }
    return DMS_OK;
}

/* The gate's numbers of a tensor: all of an adapter's, the borrowed rows of a query. */
static dms_status compare_gate(writer *w, const dms_source *s, int64_t i, float *back)
{
    const dms_tensor_entry *e = &w->model->tensors.entries[i];
    const dms_tensor_info *t = dms_source_find(s, e->name);
    const planned *query = NULL;
    for (int64_t k = 0; k < w->n_tensors; k++)
        if (w->tensors[k].index == i && w->tensors[k].query)
            query = &w->tensors[k];
    if (!query && !dms_layout_is_gate(e->name))
        return DMS_OK;
    bool same =
        t && t->rank == e->rank && !memcmp(t->shape, e->shape, (size_t)e->rank * sizeof(*e->shape));
    if (same) {
        DMS_TRY(fetch(w, i));
        DMS_TRY(dms_source_read(s, e->name, back, DMS_F32));
    }
    const int64_t n = dms_tensor_entry_count(e), out = !query             ? n
                                                       : query->rank == 1 ? query->cols
                                                                          : query->rows;
    for (int64_t k = 0; same && k < n; k++) {
        const int64_t row = query && query->transposed ? k % out : k / (n / out);
        bool borrowed = !query;
        for (int64_t g = 0; query && g < w->z.groups; g++)
            borrowed |= row == borrowed_row(&w->z, g);
        same = !borrowed || !memcmp(&back[k], &w->buffer[k], sizeof(float));
    }
    return same ? DMS_OK
                : dms_fail(DMS_ERR_IO, "%s: the gate in tensor %s would be read back otherwise",
                           w->path, e->name);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : !a && !b;
}

/* The file as a model that is read: config, gate, tokenizer and template. */
static dms_status compare_model(writer *w, const dms_source *s)
{
    size_t length = 0;
    dms_status status = DMS_OK;
    const char *tokenizer = dms_source_tokenizer(s, &length);
    DMS_TRY(compare_config(w, dms_source_config(s)));
    if (!w->model->tokenizer != !tokenizer ||
        (tokenizer && (length != w->model->tokenizer_length ||
                       memcmp(tokenizer, w->model->tokenizer, length) != 0)))
        return dms_fail(DMS_ERR_IO, "%s: the tokenizer would be read back otherwise", w->path);
    if (!same_text(w->model->chat_template, dms_source_chat_template(s)))
        return dms_fail(DMS_ERR_IO, "%s: the chat template would be read back otherwise", w->path);
    float *back = malloc(w->room * sizeof(*back));
    if (!back)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a tensor of %zu numbers", w->room);
    for (int64_t i = 0; i < w->model->tensors.count && !status; i++)
        status = compare_gate(w, s, i, back);
    free(back);
    return status;
}

/* Opens what was written, and compares all of it with what was meant, the tensors fetched a second
 * time. */
static dms_status verify(writer *w, const char *temporary)
{
    dms_status status;
    dms_source *s = NULL;
    dms_mapping m = {0};
    dms_gguf_part part = {0};
    DMS_TRY_OR(done, dms_source_open(&s, temporary));
    DMS_TRY_OR(done, dms_mapping_open(&m, temporary));
    DMS_TRY_OR(done, compare_header(w, &m));
    DMS_TRY_OR(done, compare_model(w, s));
    DMS_TRY_OR(done, dms_gguf_part_read(&part, &m, temporary));
    for (int64_t i = 0; i < w->n_tensors; i++) {
        compared c = {&part.tensors[i], 0};
        DMS_TRY_OR(done, emit_tensor(sink_to_compare, &c, w, &w->tensors[i]));
    }
done:
    dms_gguf_part_free(&part);
    dms_mapping_close(&m);
    dms_source_close(s);
    return status;
}

static dms_status check_request(const char *path, const dms_gguf_model *model)
{
    const dms_file_type t = model->type;
    if (t != DMS_FILE_F32 && t != DMS_FILE_F16 && t != DMS_FILE_BF16 && t != DMS_FILE_Q8_0)
        return dms_fail(DMS_ERR_ARG, "GGUF is written as F32, F16, BF16 or Q8_0, not as %s",
                        dms_file_type_name(t));
    return dms_path_check_target(path, model->force);
}

static void close_writer(writer *w)
{
    dms_gguf_out_free(&w->keys);
    dms_gguf_out_free(&w->list);
    free(w->tensors);
    free(w->buffer);
}

/* Memory for any tensor, and for the rope factors. */
static dms_status open_buffer(writer *w)
{
    int64_t most = w->z.head_dim;
    for (int64_t i = 0; i < w->model->tensors.count; i++) {
        const int64_t n = dms_tensor_entry_count(&w->model->tensors.entries[i]);
        most = n > most ? n : most;
    }
    w->room = (size_t)most;
    w->buffer = malloc(w->room * sizeof(float));
    return w->buffer
               ? DMS_OK
               : dms_fail(DMS_ERR_NOMEM, "no memory for a tensor of %lld numbers", (long long)most);
}

dms_status dms_gguf_write(const char *path, const dms_gguf_model *model)
{
    dms_status status;
    dms_outfile f = DMS_OUTFILE_NONE;
    writer w = {.model = model, .path = path};
    DMS_TRY_OR(done, check_request(path, model));
    DMS_TRY_OR(done, dms_gguf_sizes_read(&w.z, model->config));
    DMS_TRY_OR(done, plan(&w));
    DMS_TRY_OR(done, open_buffer(&w));
    DMS_TRY_OR(done, make_header(&w));
    DMS_TRY_OR(done, dms_outfile_open(&f, path));
    DMS_TRY_OR(done, write_all(&f, &w));
    DMS_TRY_OR(done, verify(&w, f.temporary.path));
    DMS_TRY_OR(done, dms_outfile_commit(&f));
done:
    dms_outfile_abort(&f);
    close_writer(&w);
    return status;
}
