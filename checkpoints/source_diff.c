#include "checkpoints/source_diff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/file_types.h"
#include "checkpoints/source_build.h"

static int64_t element_count(const dms_tensor_info *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

static bool same_shape(const dms_tensor_info *a, const dms_tensor_info *b)
{
    bool same = a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++)
        same = a->shape[i] == b->shape[i];
    return same;
}

/* Whether both store the same bytes of one type in one order, with all of the values in them. */
static bool same_bytes(const dms_source *a, const dms_source *b, const dms_tensor_diff *d)
{
    const dms_source_tensor *x = dms_source_entry(a, d->a->name);
    const dms_source_tensor *y = dms_source_entry(b, d->b->name);
    return !x->own_rows && !y->own_rows && x->transposed == y->transposed &&
           !strcmp(x->type_name, y->type_name) && x->rotary_heads == y->rotary_heads && x->data &&
           y->data && x->bytes && x->bytes == y->bytes && !memcmp(x->data, y->data, x->bytes);
}

/* What comparing sums up. */
typedef struct {
    double tolerance, max_abs, diff2, a2; /* sums of squares */
    int64_t differing, not_finite;
} totals;

static void add_pair(totals *t, double a, double b)
{
    const bool finite = isfinite(a) && isfinite(b);
    if (finite) {
        const double d = fabs(b - a);
        t->a2 += a * a;
        t->diff2 += d * d;
        t->max_abs = d > t->max_abs ? d : t->max_abs;
        t->differing += d > t->tolerance;
    } else if (!(a == b || (isnan(a) && isnan(b)))) {
        t->differing++;
        t->not_finite++;
    }
}

static void set_numbers(dms_tensor_diff *d, const totals *t)
{
    d->differing = t->differing;
    d->not_finite = t->not_finite;
    d->max_abs = t->max_abs;
    d->relative = t->diff2 > 0 ? sqrt(t->diff2) / sqrt(t->a2) : 0;
    d->kind = t->differing ? DMS_DIFF_VALUES : DMS_DIFF_SAME;
}

static bool is_number(dms_file_type type)
{
    return type == DMS_FILE_I32 || dms_file_type_widen(type) != NULL;
}

/* x and y: room for `elements` values of 4 bytes each. */
static dms_status compare_values(dms_tensor_diff *d, const dms_source *a, const dms_source *b,
                                 totals *t, void *const xy[2])
{
    const bool whole = d->a->type == DMS_FILE_I32;
    const dms_dtype dtype = whole ? DMS_I32 : DMS_F32;
    DMS_TRY(dms_source_read(a, d->a->name, xy[0], dtype));
    DMS_TRY(dms_source_read(b, d->b->name, xy[1], dtype));
    for (int64_t i = 0; i < d->elements; i++) {
        if (whole)
            add_pair(t, ((const int32_t *)xy[0])[i], ((const int32_t *)xy[1])[i]);
        else
            add_pair(t, (double)((const float *)xy[0])[i], (double)((const float *)xy[1])[i]);
    }
    set_numbers(d, t);
    return DMS_OK;
}

/* Both sides are there. */
static dms_status compare(dms_tensor_diff *d, const dms_source *a, const dms_source *b,
                          double tolerance)
{
    totals t = {.tolerance = tolerance};
    if (!same_shape(d->a, d->b)) {
        d->kind = DMS_DIFF_SHAPE;
        return DMS_OK;
    }
    d->elements = element_count(d->a);
    if (!d->elements || same_bytes(a, b, d))
        return DMS_OK;
    const bool whole_a = d->a->type == DMS_FILE_I32, whole_b = d->b->type == DMS_FILE_I32;
    if (!is_number(d->a->type) || !is_number(d->b->type) || whole_a != whole_b) {
        d->kind = DMS_DIFF_UNREADABLE;
        return DMS_OK;
    }
    const size_t bytes = (size_t)d->elements * sizeof(float);
    void *const xy[2] = {malloc(bytes), malloc(bytes)};
    const dms_status status =
        xy[0] && xy[1] ? compare_values(d, a, b, &t, xy)
                       : dms_fail(DMS_ERR_NOMEM, "no memory for two tensors of %lld elements (%s)",
                                  (long long)d->elements, d->name);
    free(xy[0]);
    free(xy[1]);
    return status;
}

/* The tensor of that name, or the embedding that stands for a tied head. */
static const dms_tensor_info *find(const dms_source *s, const char *name, bool *tied)
{
    const dms_tensor_info *t = dms_source_find(s, name);
    if (t || strcmp(name, "lm_head.weight") != 0 ||
        !json_is_true(json_object_get(dms_source_config(s), "tie_word_embeddings")))
        return t;
    t = dms_source_find(s, "model.embed_tokens.weight");
    *tied = t != NULL;
    return t;
}

dms_status dms_source_diff(const dms_source *a, const dms_source *b, double tolerance,
                           dms_diff_fn *each, void *context)
{
    for (int64_t i = 0; i < dms_source_count(a); i++) {
        dms_tensor_diff d = {.a = dms_source_info(a, i), .kind = DMS_DIFF_SAME};
        d.name = d.a->name;
        d.b = find(b, d.name, &d.tied);
        if (d.b)
            DMS_TRY(compare(&d, a, b, tolerance));
        else
            d.kind = DMS_DIFF_ONLY_A;
        DMS_TRY(each(context, &d));
    }
    for (int64_t i = 0; i < dms_source_count(b); i++) {
        dms_tensor_diff d = {.b = dms_source_info(b, i), .kind = DMS_DIFF_SAME};
        d.name = d.b->name;
        if (dms_source_find(a, d.name))
            continue;
        d.a = find(a, d.name, &d.tied);
        if (d.a)
            DMS_TRY(compare(&d, a, b, tolerance));
        else
            d.kind = DMS_DIFF_ONLY_B;
        DMS_TRY(each(context, &d));
    }
    return DMS_OK;
}
