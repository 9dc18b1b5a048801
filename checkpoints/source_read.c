#include <stdlib.h>
#include <string.h>

#include "checkpoints/gguf_dequant.h"
#include "checkpoints/sha256.h"
#include "checkpoints/source_build.h"
#include "kernels/bf16.h"

/* A tensor seen as the file's rows: a permuted one has heads of `head` rows, others have head 0. */
typedef struct {
    const dms_source_tensor *t;
    int64_t rows, cols, head;
    size_t row_bytes;
} row_view;

static row_view view_rows(const dms_source_tensor *t)
{
    size_t block;
    int64_t all = 1;
    const int64_t elements = dms_file_type_block(t->info.type, &block);
    const bool vector = t->info.rank < 2;
    row_view v = {.t = t};
    for (int i = 0; i < t->info.rank; i++)
        all *= t->info.shape[i];
    /* A permuted or patched vector (a bias) is a column of rows with one element each. */
    v.cols = t->info.rank ? t->info.shape[t->transposed ? 0 : t->info.rank - 1] : 1;
    if (t->rotary_heads)
        v.head = t->info.shape[0] / t->rotary_heads;
    if (vector && (t->rotary_heads || t->own_rows))
        v.cols = 1;
    v.rows = v.cols ? all / v.cols : 0;
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

/* Where a row is and how it is stored: in the tensor, or apart. */
static const uint8_t *find_row(dms_file_type *type, const row_view *v, int64_t row)
{
    const dms_source_tensor *t = v->t;
    const int64_t k = t->own_rows ? (row - t->own_first) / t->own_step : 0;
    const bool own = t->own_rows && row >= t->own_first && k < t->own_count &&
                     (row - t->own_first) % t->own_step == 0;
    *type = own ? DMS_FILE_F32 : t->info.type;
    return own ? t->own_rows + (size_t)(k * v->cols) * sizeof(float)
               : t->data + (size_t)row_in_file(v, row) * v->row_bytes;
}

static void widen_row(float *y, const row_view *v, int64_t row)
{
    dms_file_type type;
    const uint8_t *x = find_row(&type, v, row);
    dms_file_type_widen(type)(y, x, v->cols);
}

static void narrow_row(uint16_t *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = dms_bf16_from_f32(x[i]);
}

/* Rows to bf16, most through one row of f32. */
static void read_bf16(const row_view *v, uint16_t *dst, float *wide)
{
    if (v->t->info.type == DMS_FILE_Q8_0 && !v->head && !v->t->own_rows) {
        dms_q8_0_to_bf16(dst, v->t->data, v->rows * v->cols);
        return;
    }
    for (int64_t r = 0; r < v->rows; r++, dst += v->cols) {
        dms_file_type type;
        const uint8_t *src = find_row(&type, v, r);
        if (type == DMS_FILE_BF16) {
            memcpy(dst, src, v->row_bytes);
        } else if (type == DMS_FILE_Q8_0) {
            dms_q8_0_to_bf16(dst, src, v->cols);
        } else {
            dms_file_type_widen(type)(wide, src, v->cols);
            narrow_row(dst, wide, v->cols);
        }
    }
}

static void read_transposed(const row_view *v, void *dst, dms_dtype dtype, float *wide)
{
    for (int64_t r = 0; r < v->rows; r++) {
        widen_row(wide, v, r);
        for (int64_t i = 0; i < v->cols; i++)
            if (dtype == DMS_F32)
                ((float *)dst)[i * v->rows + r] = wide[i];
            else
                ((uint16_t *)dst)[i * v->rows + r] = dms_bf16_from_f32(wide[i]);
    }
}

static dms_status no_conversion(const dms_source *s, const dms_source_tensor *t, dms_dtype dtype)
{
    static const char *const names[] = {"F32", "BF16", "I32"};
    return dms_fail(DMS_ERR_DTYPE, "%s: tensor %s is stored as %s, which cannot be read as %s",
                    s->path, t->info.name, t->type_name, names[dtype]);
}

static dms_status read_view(const dms_source *s, const row_view *v, void *dst, dms_dtype dtype)
{
    const dms_file_type type = v->t->info.type;
    if (v->rows == 0 || v->cols == 0)
        return DMS_OK;
    if (dtype == DMS_I32 && type == DMS_FILE_I32) {
        memcpy(dst, v->t->data, (size_t)v->rows * v->row_bytes);
        return DMS_OK;
    }
    if (dtype == DMS_I32 || !dms_file_type_widen(type))
        return no_conversion(s, v->t, dtype);
    if (dtype == DMS_F32 && !v->t->transposed) {
        for (int64_t r = 0; r < v->rows; r++)
            widen_row((float *)dst + r * v->cols, v, r);
        return DMS_OK;
    }
    float *wide = malloc((size_t)v->cols * sizeof(*wide));
    if (!wide)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a row of %s", v->t->info.name);
    if (v->t->transposed)
        read_transposed(v, dst, dtype, wide);
    else
        read_bf16(v, dst, wide);
    free(wide);
    return DMS_OK;
}

dms_status dms_source_read(const dms_source *s, const char *name, void *dst, dms_dtype dtype)
{
    const dms_source_tensor *t = dms_source_entry(s, name);
    if (!t)
        return dms_fail(DMS_ERR_ARG, "%s has no tensor %s", s->path, name);
    const row_view v = view_rows(t);
    return read_view(s, &v, dst, dtype);
}

const void *dms_source_stored(const dms_source *s, const char *name, size_t *bytes)
{
    const dms_source_tensor *t = dms_source_entry(s, name);
    if (!t || t->rotary_heads || t->transposed || t->own_rows || t->info.type == DMS_FILE_OTHER)
        return NULL;
    *bytes = t->bytes;
    return t->data;
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
    if (t->own_rows) {
        const int64_t cols = view_rows(t).cols;
        dms_sha256_add(h, t->own_rows, (size_t)(t->own_count * cols) * sizeof(float));
    }
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
