#include "checkpoints/source_diff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/file_types.h"
#include "checkpoints/model_type.h"
#include "checkpoints/source_build.h"
#include "checkpoints/source_pairs.h"

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
static bool same_bytes(const dms_source *a, const dms_source *b, const dms_source_pair *p)
{
    const dms_source_tensor *x = dms_source_entry(a, p->a->info.name);
    const dms_source_tensor *y = dms_source_entry(b, p->b->info.name);
    const dms_layout_place *at = &p->a->place, *to = &p->b->place;
    const bool parts = at->parts > 1 || to->parts > 1 || at->transposed || to->transposed;
    return !parts && !x->own_rows && !y->own_rows && x->transposed == y->transposed &&
           !strcmp(x->type_name, y->type_name) && x->rotary_heads == y->rotary_heads && x->data &&
           y->data && x->bytes && x->bytes == y->bytes && !memcmp(x->data, y->data, x->bytes);
}

/* Rows of the query projection that a neuron gate borrows: the last channel of each group's first
 * query head (method.md). */
typedef struct {
    int64_t first, step, count; /* outputs; count 0: none */
    int64_t cols;               /* of the tensor as it is compared */
    bool across;                /* outputs are its columns */
} borrowed_rows;

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

static borrowed_rows find_borrowed(const dms_source *s, const dms_source_pair *p)
{
    char ours[96];
    dms_model_heads h;
    dms_layout_place place = {0};
    const json_t *config = dms_source_config(s);
    const dms_tensor_info *t = &p->a->info;
    const char *name = p->name;
    if (dms_layout_back(&place, ours, config, name, 0))
        name = ours;
    const bool weight = ends_with(name, ".self_attn.q_proj.weight");
    if (!(weight || ends_with(name, ".self_attn.q_proj.bias")) || !dms_model_type_borrows(config) ||
        !dms_model_type_heads(&h, config))
        return (borrowed_rows){0};
    return (borrowed_rows){.first = h.head_dim - 1,
                           .step = h.heads / h.groups * h.head_dim,
                           .count = h.groups,
                           .cols = weight ? t->shape[1] : 1,
                           .across = weight && place.transposed};
}

static bool is_borrowed(const borrowed_rows *r, int64_t i)
{
    const int64_t beyond = r->count ? (r->across ? i % r->cols : i / r->cols) - r->first : -1;
    return beyond >= 0 && beyond % r->step == 0 && beyond / r->step < r->count;
}

/* What comparing sums up. */
typedef struct {
    double tolerance, max_abs, diff2, a2; /* sums of squares */
    int64_t differing, borrowed, not_finite;
} totals;

/* Whether they differ. */
static bool add_pair(totals *t, double a, double b)
{
    bool differ = !(a == b || (isnan(a) && isnan(b)));
    if (isfinite(a) && isfinite(b)) {
        const double d = fabs(b - a);
        t->a2 += a * a;
        t->diff2 += d * d;
        t->max_abs = d > t->max_abs ? d : t->max_abs;
        differ = d > t->tolerance;
    } else if (differ) {
        t->not_finite++;
    }
    t->differing += differ;
    return differ;
}

static void set_numbers(dms_tensor_diff *d, const totals *t)
{
    d->differing = t->differing;
    d->borrowed = t->borrowed;
    d->not_finite = t->not_finite;
    d->max_abs = t->max_abs;
    d->relative = t->diff2 > 0 ? sqrt(t->diff2) / sqrt(t->a2) : 0;
    d->kind = t->differing ? DMS_DIFF_VALUES : DMS_DIFF_SAME;
}

static bool is_number(dms_file_type type)
{
    return type == DMS_FILE_I32 || dms_file_type_widen(type) != NULL;
}

typedef struct {
    const dms_source *a, *b;
    double tolerance;
    dms_diff_fn *each;
    void *context;
} comparison;

/* x and y: room for `elements` values of 4 bytes each. */
static dms_status compare_values(dms_tensor_diff *d, const comparison *c, const dms_source_pair *p,
                                 void *const xy[2])
{
    totals t = {.tolerance = c->tolerance};
    const bool whole = d->a->type == DMS_FILE_I32;
    const dms_dtype dtype = whole ? DMS_I32 : DMS_F32;
    const borrowed_rows a = find_borrowed(c->a, p), b = find_borrowed(c->b, p);
    const int32_t *const ints[2] = {xy[0], xy[1]};
    const float *const reals[2] = {xy[0], xy[1]};
    DMS_TRY(dms_pair_read(c->a, p->a, xy[0], dtype));
    DMS_TRY(dms_pair_read(c->b, p->b, xy[1], dtype));
    for (int64_t i = 0; i < d->elements; i++) {
        const double x = whole ? ints[0][i] : (double)reals[0][i];
        const double y = whole ? ints[1][i] : (double)reals[1][i];
        if (add_pair(&t, x, y))
            t.borrowed += is_borrowed(&a, i) || is_borrowed(&b, i);
    }
    set_numbers(d, &t);
    return DMS_OK;
}

/* Both sides are there. */
static dms_status compare(dms_tensor_diff *d, const comparison *c, const dms_source_pair *p)
{
    if (!same_shape(d->a, d->b)) {
        d->kind = DMS_DIFF_SHAPE;
        return DMS_OK;
    }
    d->elements = element_count(d->a);
    if (!d->elements || same_bytes(c->a, c->b, p))
        return DMS_OK;
    const bool whole_a = d->a->type == DMS_FILE_I32, whole_b = d->b->type == DMS_FILE_I32;
    if (!is_number(d->a->type) || !is_number(d->b->type) || whole_a != whole_b) {
        d->kind = DMS_DIFF_UNREADABLE;
        return DMS_OK;
    }
    const size_t bytes = (size_t)d->elements * sizeof(float);
    void *const xy[2] = {malloc(bytes), malloc(bytes)};
    const dms_status status =
        xy[0] && xy[1] ? compare_values(d, c, p, xy)
                       : dms_fail(DMS_ERR_NOMEM, "no memory for two tensors of %lld elements (%s)",
                                  (long long)d->elements, d->name);
    free(xy[0]);
    free(xy[1]);
    return status;
}

static dms_status take(void *context, const dms_source_pair *p)
{
    const comparison *c = context;
    dms_tensor_diff d = {.name = p->name,
                         .a = p->a ? &p->a->info : NULL,
                         .b = p->b ? &p->b->info : NULL,
                         .gate = dms_layout_is_gate(p->name),
                         .tied = p->tied,
                         .kind = p->no_weight ? DMS_DIFF_NO_WEIGHT
                                 : !p->b      ? DMS_DIFF_ONLY_A
                                 : !p->a      ? DMS_DIFF_ONLY_B
                                              : DMS_DIFF_SAME};
    if (p->a && p->b)
        DMS_TRY(compare(&d, c, p));
    return c->each(c->context, &d);
}

dms_status dms_source_diff(const dms_source *a, const dms_source *b, double tolerance,
                           dms_diff_fn *each, void *context)
{
    comparison c = {a, b, tolerance, each, context};
    return dms_source_pairs(a, b, take, &c);
}
