#include <stdlib.h>
#include <string.h>

#include "checkpoints/file_types.h"
#include "checkpoints/sha256.h"
#include "checkpoints/source_build.h"
#include "kernels/bf16.h"

/* A tensor seen as rows: a permuted one has heads of `head` rows, others have head 0. */
typedef struct {
    const dms_source_tensor *t;
    int64_t cols, head;
    size_t row_bytes;
} row_view;

static row_view view_rows(const dms_source_tensor *t)
{
    size_t block;
    const int64_t elements = dms_file_type_block(t->info.type, &block);
    const bool vector = t->info.rank < 2;
    row_view v = {.t = t};
    /* A permuted vector (a bias) is a column of rows with one element each. */
    v.cols = t->info.rank ? t->info.shape[t->info.rank - 1] : 1;
    if (t->rotary_heads) {
        v.head = t->info.shape[0] / t->rotary_heads;
        v.cols = vector ? 1 : v.cols;
    }
    v.row_bytes = (size_t)(v.cols / elements) * block;
    return v;
}

static int64_t row_in_file(const row_view *v, int64_t row)
{
    if (!v->head)
        return row;
    const int64_t base = row - row % v->head, in_head = row % v->head, half = v->head / 2;
    return base + 2 * (in_head % half) + in_head / half;
}

/* Rows to bf16 through one row of f32. */
static void read_bf16(const row_view *v, int64_t rows, uint16_t *dst, float *row)
{
    dms_widen_fn *widen = dms_file_type_widen(v->t->info.type);
    for (int64_t r = 0; r < rows; r++, dst += v->cols) {
        const uint8_t *src = v->t->data + (size_t)row_in_file(v, r) * v->row_bytes;
        if (v->t->info.type == DMS_FILE_BF16) {
            memcpy(dst, src, v->row_bytes);
            continue;
        }
        widen(row, src, v->cols);
        for (int64_t i = 0; i < v->cols; i++)
            dst[i] = dms_bf16_from_f32(row[i]);
    }
}

static void read_f32(const row_view *v, int64_t rows, float *dst)
{
    dms_widen_fn *widen = dms_file_type_widen(v->t->info.type);
    for (int64_t r = 0; r < rows; r++)
        widen(dst + r * v->cols, v->t->data + (size_t)row_in_file(v, r) * v->row_bytes, v->cols);
}

static dms_status no_conversion(const dms_source *s, const dms_source_tensor *t, dms_dtype dtype)
{
    static const char *const names[] = {"F32", "BF16", "I32"};
    const bool later = t->info.type >= DMS_FILE_Q5_0;
    return dms_fail(DMS_ERR_DTYPE, "%s: tensor %s is stored as %s, which cannot be read as %s%s",
                    s->path, t->info.name, t->type_name, names[dtype],
                    later ? "; not supported yet: give the model as F16, BF16, Q8_0, Q6_K, Q4_1 or "
                            "Q4_0"
                          : "");
}

static dms_status read_view(const dms_source *s, const row_view *v, int64_t rows, void *dst,
                            dms_dtype dtype)
{
    const dms_file_type type = v->t->info.type;
    if (rows == 0 || v->cols == 0)
        return DMS_OK;
    if (dtype == DMS_I32 && type == DMS_FILE_I32) {
        memcpy(dst, v->t->data, (size_t)rows * v->row_bytes);
        return DMS_OK;
    }
    if (dtype == DMS_I32 || !dms_file_type_widen(type))
        return no_conversion(s, v->t, dtype);
    if (dtype == DMS_F32) {
        read_f32(v, rows, dst);
        return DMS_OK;
    }
    float *row = malloc((size_t)v->cols * sizeof(*row));
    if (!row)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a row of %s", v->t->info.name);
    read_bf16(v, rows, dst, row);
    free(row);
    return DMS_OK;
}

static int64_t total_rows(const row_view *v)
{
    int64_t n = 1;
    for (int i = 0; i < v->t->info.rank; i++)
        n *= v->t->info.shape[i];
    return v->cols ? n / v->cols : 0;
}

dms_status dms_source_read(const dms_source *s, const char *name, void *dst, dms_dtype dtype)
{
    const dms_source_tensor *t = dms_source_entry(s, name);
    if (!t)
        return dms_fail(DMS_ERR_ARG, "%s has no tensor %s", s->path, name);
    const row_view v = view_rows(t);
    return read_view(s, &v, total_rows(&v), dst, dtype);
}

static void hash_number(dms_sha256 *h, int64_t value)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)((uint64_t)value >> (8 * i));
    dms_sha256_add(h, bytes, 8);
}

static void hash_tensor(dms_sha256 *h, const dms_source_tensor *t)
{
    enum { WHOLE = 1 << 20, PIECE = 1 << 16, PIECES = 16 };
    dms_sha256_add(h, t->info.name, strlen(t->info.name) + 1);
    dms_sha256_add(h, t->type_name, strlen(t->type_name) + 1);
    hash_number(h, t->info.rank);
    for (int i = 0; i < t->info.rank; i++)
        hash_number(h, t->info.shape[i]);
    if (t->bytes <= WHOLE) {
        dms_sha256_add(h, t->data, t->bytes);
        return;
    }
    for (size_t k = 0; k < PIECES; k++)
        dms_sha256_add(h, t->data + k * (t->bytes - PIECE) / (PIECES - 1), PIECE);
}

static int by_name(const void *a, const void *b)
{
    const dms_source_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->info.name, (*y)->info.name);
}

dms_status dms_source_hash(const dms_source *s, char hex[65])
{
    dms_sha256 h;
    const size_t n = (size_t)s->n_tensors;
    const dms_source_tensor **order = calloc(n + 1, sizeof(*order));
    if (!order)
        return dms_fail(DMS_ERR_NOMEM, "no memory to hash %s", s->path);
    for (size_t i = 0; i < n; i++)
        order[i] = &s->tensors[i];
    qsort(order, n, sizeof(*order), by_name);
    dms_sha256_start(&h);
    for (size_t i = 0; i < n; i++)
        hash_tensor(&h, order[i]);
    dms_sha256_finish(&h, hex);
    free(order);
    return DMS_OK;
}
