#include <math.h>

#include "checkpoints/inspect.h"
#include "checkpoints/source_diff.h"

typedef struct {
    json_t *list;
    int64_t other_type, by_kind[DMS_DIFF_UNREADABLE + 1];
    int64_t beyond_gate; /* differences that are not the gate's own */
    double max_abs;
} collection;

static json_t *shape_or_null(const dms_tensor_info *t)
{
    json_t *shape = t ? json_array() : json_null();
    int bad = 0;
    for (int i = 0; t && i < t->rank; i++)
        bad |= json_array_append_new(shape, json_integer(t->shape[i]));
    if (!bad)
        return shape;
    json_decref(shape);
    return NULL;
}

static json_t *type_or_null(const dms_tensor_info *t)
{
    return t ? json_string(dms_file_type_name(t->type)) : json_null();
}

static json_t *name_or_null(const dms_tensor_info *t)
{
    return t ? json_string(t->name) : json_null();
}

static json_t *real_or_null(bool known, double x)
{
    return known && isfinite(x) ? json_real(x) : json_null();
}

static json_t *integer_or_null(bool known, int64_t n)
{
    return known ? json_integer(n) : json_null();
}

static dms_status collect(void *context, const dms_tensor_diff *d)
{
    static const char *const kinds[] = {
        [DMS_DIFF_SAME] = "same",       [DMS_DIFF_VALUES] = "values",
        [DMS_DIFF_SHAPE] = "shape",     [DMS_DIFF_ONLY_A] = "only_a",
        [DMS_DIFF_ONLY_B] = "only_b",   [DMS_DIFF_NO_WEIGHT] = "no_weight",
        [DMS_DIFF_UNREADABLE] = "bytes"};
    collection *c = context;
    const bool values = d->kind == DMS_DIFF_VALUES;
    c->by_kind[d->kind]++;
    c->other_type += d->a && d->b && d->a->type != d->b->type;
    if (d->kind == DMS_DIFF_SAME || d->kind == DMS_DIFF_NO_WEIGHT)
        return DMS_OK;
    c->beyond_gate += !d->gate && !(values && d->borrowed == d->differing);
    if (values && d->max_abs > c->max_abs)
        c->max_abs = d->max_abs;
    json_t *item = json_pack(
        "{s:s, s:s, s:b, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "name",
        d->name, "kind", kinds[d->kind], "tied", d->tied, "gate", d->gate, "name_a",
        name_or_null(d->a), "name_b", name_or_null(d->b), "type_a", type_or_null(d->a), "type_b",
        type_or_null(d->b), "shape_a", shape_or_null(d->a), "shape_b", shape_or_null(d->b),
        "elements", integer_or_null(values, d->elements), "differing",
        integer_or_null(values, d->differing), "borrowed", integer_or_null(values, d->borrowed),
        "not_finite", integer_or_null(values, d->not_finite), "max_abs",
        real_or_null(values, d->max_abs), "relative", real_or_null(values, d->relative));
    if (json_array_append_new(c->list, item))
        return dms_fail(DMS_ERR_NOMEM, "no memory for the differences");
    return DMS_OK;
}

static json_t *side(const dms_source *s, const char *path)
{
    return json_pack("{s:o, s:s, s:I}", "path", dms_inspect_text(path), "format",
                     dms_source_format(s), "tensors", (json_int_t)dms_source_count(s));
}

static json_t *summary(const collection *c)
{
    const int64_t *n = c->by_kind;
    const int64_t compared = n[DMS_DIFF_SAME] + n[DMS_DIFF_VALUES] + n[DMS_DIFF_UNREADABLE];
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "compared", (json_int_t)compared, "same",
        (json_int_t)n[DMS_DIFF_SAME], "values", (json_int_t)n[DMS_DIFF_VALUES], "bytes",
        (json_int_t)n[DMS_DIFF_UNREADABLE], "shape", (json_int_t)n[DMS_DIFF_SHAPE], "only_a",
        (json_int_t)n[DMS_DIFF_ONLY_A], "only_b", (json_int_t)n[DMS_DIFF_ONLY_B], "no_weight",
        (json_int_t)n[DMS_DIFF_NO_WEIGHT], "other_type", (json_int_t)c->other_type);
}

static dms_status describe(json_t *out, dms_source *const s[2], const char *const paths[2],
                           double tolerance)
{
    collection c = {.list = json_array()};
    dms_status status = dms_source_diff(s[0], s[1], tolerance, collect, &c);
    int bad = json_object_set_new(out, "a", side(s[0], paths[0]));
    bad |= json_object_set_new(out, "b", side(s[1], paths[1]));
    bad |= json_object_set_new(out, "tolerance", json_real(tolerance));
    bad |= json_object_set_new(out, "equal", json_boolean(!json_array_size(c.list)));
    bad |= json_object_set_new(out, "gate_only",
                               json_boolean(json_array_size(c.list) && !c.beyond_gate));
    bad |= json_object_set_new(out, "max_abs", json_real(c.max_abs));
    bad |= json_object_set_new(out, "tensors", summary(&c));
    bad |= json_object_set_new(out, "differences", c.list);
    if (!status && bad)
        status = dms_fail(DMS_ERR_NOMEM, "no memory for the differences");
    return status;
}

dms_status dms_inspect_diff(json_t *out, const char *const paths[2], double tolerance)
{
    dms_source *s[2] = {NULL, NULL};
    dms_status status;
    DMS_TRY_OR(done, dms_source_open(&s[0], paths[0]));
    DMS_TRY_OR(done, dms_source_open(&s[1], paths[1]));
    DMS_TRY_OR(done, describe(out, s, paths, tolerance));
done:
    dms_source_close(s[0]);
    dms_source_close(s[1]);
    return status;
}
