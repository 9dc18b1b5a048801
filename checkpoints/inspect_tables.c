#include "checkpoints/inspect_view.h"

/* One line: a label, and a key of each family below its name. */
static void put_fact(FILE *out, const json_t *list, const char *label, const char *key)
{
    enum { COLUMN = 17 };
    int spaces = 0;
    dms_view_label(out, label);
    for (size_t f = 0; f < json_array_size(list); f++) {
        const json_t *value = dms_view_at(json_array_get(list, f), key);
        dms_view_pad(out, spaces);
        spaces = COLUMN - (json_is_string(value)
                               ? dms_view_text(out, value)
                               : fprintf(out, "%s", json_is_true(value) ? "yes" : "no"));
    }
    fputc('\n', out);
}

void dms_view_families(FILE *out, const json_t *view)
{
    const json_t *list = dms_view_at(view, "families");
    put_fact(out, list, "model_type", "model_type");
    put_fact(out, list, "norm", "norm");
    put_fact(out, list, "positions", "positions");
    put_fact(out, list, "feed-forward", "ffn");
    put_fact(out, list, "activation", "activation");
    put_fact(out, list, "q, k, v biases", "qkv_bias");
    put_fact(out, list, "o bias", "o_bias");
    put_fact(out, list, "q and k norms", "qk_norm");
    put_fact(out, list, "tied by default", "tied_by_default");
    fputc('\n', out);
    for (size_t f = 0; f < json_array_size(list); f++) {
        const json_t *family = json_array_get(list, f);
        dms_view_pad(out, DMS_VIEW_MARGIN - dms_view_text(out, dms_view_at(family, "model_type")));
        dms_view_string(out, family, "models");
        fputc('\n', out);
    }
}

static void put_side(FILE *out, const json_t *v, const char *key)
{
    const json_t *side = dms_view_at(v, key);
    fprintf(out, "%s  ", key);
    dms_view_string(out, side, "path");
    fputs(" (", out);
    dms_view_string(out, side, "format");
    fprintf(out, ", %lld tensors)\n", dms_view_int(side, "tensors"));
}

/* "BF16 [576, 49152]" */
static void put_stored(FILE *out, const json_t *d, const char *type, const char *shape)
{
    dms_view_string(out, d, type);
    fputc(' ', out);
    dms_view_shape(out, dms_view_at(d, shape));
}

static void put_real(FILE *out, const json_t *d, const char *key)
{
    if (json_is_real(dms_view_at(d, key)))
        fprintf(out, " %11.4g", dms_view_real(d, key));
    else
        fprintf(out, " %11s", "-");
}

static void put_difference(FILE *out, const json_t *d, int width)
{
    dms_view_pad(out, width - dms_view_text(out, dms_view_at(d, "name")));
    if (dms_view_is(d, "kind", "values")) {
        put_real(out, d, "max_abs");
        put_real(out, d, "relative");
        fprintf(out, " %11lld of %lld", dms_view_int(d, "differing"), dms_view_int(d, "elements"));
        if (dms_view_int(d, "borrowed"))
            fprintf(out, ", %lld in the gate's rows", dms_view_int(d, "borrowed"));
        if (dms_view_int(d, "not_finite"))
            fprintf(out, ", %lld not finite", dms_view_int(d, "not_finite"));
    } else if (dms_view_is(d, "kind", "only_a") || dms_view_is(d, "kind", "only_b")) {
        const bool a = dms_view_is(d, "kind", "only_a");
        fprintf(out, "   only in %s: ", a ? "a" : "b");
        put_stored(out, d, a ? "type_a" : "type_b", a ? "shape_a" : "shape_b");
    } else {
        fputs(dms_view_is(d, "kind", "shape") ? "   other shape: " : "   other bytes: ", out);
        put_stored(out, d, "type_a", "shape_a");
        fputs(" and ", out);
        put_stored(out, d, "type_b", "shape_b");
    }
    fputs(json_is_true(dms_view_at(d, "tied")) ? " (tied head)" : "", out);
    fputs(json_is_true(dms_view_at(d, "gate")) ? " (gate)\n" : "\n", out);
}

static void put_differences(FILE *out, const json_t *list)
{
    int width = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const int n = dms_view_text(NULL, dms_view_at(json_array_get(list, i), "name"));
        width = n > width ? n : width;
    }
    if (json_array_size(list))
        fprintf(out, "\n%-*s %11s %11s %11s\n", width, "tensor", "max |b-a|", "relative",
                "differing");
    for (size_t i = 0; i < json_array_size(list); i++)
        put_difference(out, json_array_get(list, i), width);
    fputc('\n', out);
}

void dms_view_diff(FILE *out, const json_t *view)
{
    const json_t *n = dms_view_at(view, "tensors");
    put_side(out, view, "a");
    put_side(out, view, "b");
    put_differences(out, dms_view_at(view, "differences"));
    fprintf(out, "%lld compared: %lld the same, %lld differ", dms_view_int(n, "compared"),
            dms_view_int(n, "same"), dms_view_int(n, "values") + dms_view_int(n, "bytes"));
    if (dms_view_real(view, "tolerance") > 0)
        fprintf(out, " by more than %g", dms_view_real(view, "tolerance"));
    if (dms_view_real(view, "max_abs") > 0)
        fprintf(out, ", at most by %.4g", dms_view_real(view, "max_abs"));
    if (dms_view_int(n, "other_type"))
        fprintf(out, "; %lld stored as another type", dms_view_int(n, "other_type"));
    fprintf(out, "\n%lld of another shape, %lld only in a, %lld only in b",
            dms_view_int(n, "shape"), dms_view_int(n, "only_a"), dms_view_int(n, "only_b"));
    if (dms_view_int(n, "no_weight"))
        fprintf(out, "; %lld masks or frequencies, which are no weights, on one side alone",
                dms_view_int(n, "no_weight"));
    fprintf(out, "\nthe models are %s\n",
            json_is_true(dms_view_at(view, "equal"))       ? "equal"
            : json_is_true(dms_view_at(view, "gate_only")) ? "different in the gate alone"
                                                           : "different");
}
