/* dms-inspect diff: which tensors of two models differ, by how much, whatever their formats. */
#include "checkpoints/checkpoint.h"
#include "tests/inspect.h"

/* What the definition says of two tensors: in double, apart from the code under test. */
typedef struct {
    double max_abs, relative;
    int64_t differing;
} measured;

static measured measure(const float *a, const float *b, int64_t n, double tolerance)
{
    measured m = {0};
    double diff2 = 0, a2 = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        m.max_abs = fmax(m.max_abs, d);
        m.differing += d > tolerance;
        diff2 += d * d;
        a2 += (double)a[i] * (double)a[i];
    }
    m.relative = sqrt(diff2 / a2);
    return m;
}

static const json_t *difference(const json_t *view, const char *name)
{
    size_t i;
    json_t *item;
    json_array_foreach(find(view, "differences"), i, item)
    {
        if (!strcmp(json_string_value(json_object_get(item, "name")), name))
            return item;
    }
    cr_assert(false, "%s is not listed", name);
    return NULL;
}

static void expect_close(const json_t *d, const char *key, double want, double rtol)
{
    const double got = json_number_value(find(d, key));
    cr_assert(fabs(got - want) <= rtol * want, "%s is %.17g, expected %.17g", key, got, want);
}

/* JSON has 15 digits; the sums of squares are rounded in another order. */
static void expect_measured(const json_t *d, const measured *want)
{
    expect_text(d, "kind", "values");
    expect_close(d, "max_abs", want->max_abs, 1e-14);
    expect_close(d, "relative", want->relative, 1e-12);
    expect_number(d, "differing", (double)want->differing);
}

/* The file of a tiny model as a checkpoint of ours, with the same values as f32 or bf16. */
static void write_as_checkpoint(inspection *i, const char *relative, const char *name,
                                dms_dtype dtype)
{
    dms_source *s;
    char path[1024];
    dms_checkpoint_writer *w = NULL;
    must(dms_source_open(&s, fixture(path, relative)));
    char *config = json_dumps(dms_source_config(s), 0);
    must(dms_checkpoint_writer_open(&w, scratch_path(&i->dir, name)));
    must(dms_checkpoint_put_text(w, "config", config, strlen(config)));
    for (int64_t k = dms_source_count(s); k-- > 0;) { /* another order than the file's */
        const dms_tensor_info *t = dms_source_info(s, k);
        float *x = malloc((size_t)element_count(t) * sizeof(*x));
        must(dms_source_read(s, t->name, x, dtype));
        must(dms_checkpoint_put_tensor(w, "weights", t->name, dtype, t->rank, t->shape, x));
        free(x);
    }
    must(dms_checkpoint_writer_commit(w));
    free(config);
    dms_source_close(s);
}

Test(inspect_diff, the_same_values_in_two_formats_are_equal)
{
    static const char *const models[] = {"tiny/llama", "tiny/llama3", "tiny/qwen2",
                                         "gguf/tiny-F32.gguf", "gguf/tiny-Q4_0.gguf"};
    inspection i = inspection_open();
    for (size_t m = 0; m < COUNT(models); m++) {
        char arguments[256];
        write_as_checkpoint(&i, models[m], "m.h5", DMS_F32);
        snprintf(arguments, sizeof(arguments), "diff $FIX/%s m.h5", models[m]);
        const json_t *view = inspect(&i, DONE, arguments);
        expect_text(view, "view", "diff");
        expect_true(view, "equal", true);
        expect_number(view, "max_abs", 0);
        expect_number(view, "tensors.same", json_number_value(find(view, "a.tensors")));
        expect_text(view, "b.format", "dms");
        cr_assert_eq(json_array_size(find(view, "differences")), 0);
        const double other = json_number_value(find(view, "tensors.other_type"));
        cr_assert_eq(other > 0, !!strstr(models[m], "Q4"));
    }
    inspection_close(&i);
}

/* GGUF stores q and k of a Llama with permuted rows: both sides are compared in one order. */
Test(inspect_diff, quantised_tensors_differ_by_what_the_definition_says)
{
    static const char *const types[] = {"Q8_0", "Q4_0", "Q6_K"};
    static const char *const names[] = {"model.layers.0.self_attn.q_proj.weight",
                                        "model.layers.0.mlp.down_proj.weight",
                                        "model.embed_tokens.weight"};
    inspection i = inspection_open();
    dms_source *a, *b;
    char path[1024], relative[64], arguments[128];
    must(dms_source_open(&a, fixture(path, "gguf/tiny-F32.gguf")));
    for (size_t t = 0; t < COUNT(types); t++) {
        snprintf(relative, sizeof(relative), "gguf/tiny-%s.gguf", types[t]);
        must(dms_source_open(&b, fixture(path, relative)));
        snprintf(arguments, sizeof(arguments),
                 "diff $FIX/gguf/tiny-F32.gguf $FIX/%s --tolerance 1e-3", relative);
        const json_t *view = inspect(&i, FAILED, arguments);
        for (size_t k = 0; k < COUNT(names); k++) {
            int64_t n;
            float *x = read_f32(a, names[k], &n), *y = read_f32(b, names[k], &n);
            const measured want = measure(x, y, n, 1e-3);
            expect_measured(difference(view, names[k]), &want);
            expect_text(difference(view, names[k]), "type_b",
                        dms_file_type_name(dms_source_find(b, names[k])->type));
            expect_number(difference(view, names[k]), "elements", (double)n);
            free(x);
            free(y);
        }
        dms_source_close(b);
    }
    dms_source_close(a);
    inspection_close(&i);
}

/* Copies tiny/llama to m and overwrites the first value of its last tensor's last row; returns
 * that tensor's name, which the caller frees, and what was there. */
static char *change_one(inspection *i, float value, float *before)
{
    size_t n;
    uint64_t length;
    const char *name, *last = NULL;
    json_t *tensor;
    json_int_t end = -1;
    cr_assert_eq(shell(i, "rm -rf m; cp -r $FIX/tiny/llama m && chmod -R u+w m"), 0);
    char *bytes = read_bytes(scratch_path(&i->dir, "m/model.safetensors"), &n);
    memcpy(&length, bytes, sizeof(length));
    json_t *header = json_loadb(bytes + 8, length, 0, NULL);
    json_object_foreach(header, name, tensor)
    {
        const json_t *offsets = json_object_get(tensor, "data_offsets");
        const json_int_t here = json_integer_value(json_array_get(offsets, 1));
        if (here > end) {
            end = here;
            last = name;
        }
    }
    char *found = strdup(last);
    memcpy(before, bytes + n - sizeof(*before), sizeof(*before));
    memcpy(bytes + n - sizeof(value), &value, sizeof(value));
    write_bytes(scratch_path(&i->dir, "m/model.safetensors"), bytes, n);
    json_decref(header);
    free(bytes);
    return found;
}

Test(inspect_diff, one_changed_value_is_found)
{
    inspection i = inspection_open();
    float before, changed;
    free(change_one(&i, 0, &before));
    changed = before + 0.5f;
    char *name = change_one(&i, changed, &before);
    const json_t *view = inspect(&i, FAILED, "diff $FIX/tiny/llama m");
    const json_t *d = difference(view, name);
    expect_true(view, "equal", false);
    expect_number(view, "tensors.values", 1);
    expect_number(d, "differing", 1);
    expect_close(d, "max_abs", fabs((double)changed - (double)before), 1e-14);
    expect_close(view, "max_abs", fabs((double)changed - (double)before), 1e-14);
    expect_true(inspect(&i, DONE, "diff $FIX/tiny/llama m --tolerance 0.5001"), "equal", true);
    inspect(&i, FAILED, "diff $FIX/tiny/llama m --tolerance 0.4999");
    cr_assert_eq(shell(&i, "$BIN/dms-inspect diff $FIX/tiny/llama m"), FAILED);
    cr_assert(strstr(i.out, name) && strstr(i.out, "the models are different"), "%s", i.out);
    cr_assert(!*i.err, "%s", i.err);
    free(name);
    inspection_close(&i);
}

Test(inspect_diff, a_value_that_is_not_finite_differs_from_a_number_but_not_from_itself)
{
    inspection i = inspection_open();
    float before;
    char *name = change_one(&i, NAN, &before);
    const json_t *d =
        difference(inspect(&i, FAILED, "diff $FIX/tiny/llama m --tolerance 1e9"), name);
    expect_number(d, "not_finite", 1);
    expect_number(d, "differing", 1);
    expect_number(d, "max_abs", 0);
    cr_assert_eq(shell(&i, "cp -r m n"), 0);
    inspect(&i, DONE, "diff m n");
    free(name);
    inspection_close(&i);
}

/* The sets of names of a model and of those the other lacks, counted apart from the program. */
Test(inspect_diff, missing_tensors_and_other_shapes_are_named)
{
    dms_source *s[2];
    char path[1024];
    double only[2] = {0}, shapes = 0;
    inspection i = inspection_open();
    must(dms_source_open(&s[0], fixture(path, "tiny/qwen2")));
    must(dms_source_open(&s[1], fixture(path, "tiny/qwen3")));
    const json_t *view = inspect(&i, FAILED, "diff $FIX/tiny/qwen2 $FIX/tiny/qwen3");
    for (int side = 0; side < 2; side++)
        for (int64_t k = 0; k < dms_source_count(s[side]); k++) {
            const dms_tensor_info *t = dms_source_info(s[side], k);
            const dms_tensor_info *other = dms_source_find(s[!side], t->name);
            if (other) {
                shapes += !side && memcmp(t->shape, other->shape, sizeof(t->shape)) != 0;
                continue;
            }
            if (!strcmp(t->name, "lm_head.weight")) /* qwen2's is its embedding */
                continue;
            only[side]++;
            expect_text(difference(view, t->name), "kind", side ? "only_b" : "only_a");
        }
    cr_assert(only[0] > 0 && only[1] > 0 && shapes > 0);
    expect_number(view, "tensors.only_a", only[0]);
    expect_number(view, "tensors.only_b", only[1]);
    expect_number(view, "tensors.shape", shapes);
    dms_source_close(s[0]);
    dms_source_close(s[1]);
    inspection_close(&i);
}

Test(inspect_diff, a_tied_head_is_its_embedding)
{
    inspection i = inspection_open();
    write_as_checkpoint(&i, "gguf/tiny-F32.gguf", "a.h5", DMS_F32); /* has a head of its own */
    dms_source *s;
    must(dms_source_open(&s, scratch_path(&i.dir, "a.h5")));
    dms_checkpoint_writer *w = NULL;
    static const char config[] = "{\"model_type\": \"llama\", \"tie_word_embeddings\": true}";
    must(dms_checkpoint_writer_open(&w, scratch_path(&i.dir, "tied.h5")));
    must(dms_checkpoint_put_text(w, "config", config, strlen(config)));
    for (int64_t k = 0; k < dms_source_count(s); k++) {
        const dms_tensor_info *t = dms_source_info(s, k);
        int64_t n;
        if (!strcmp(t->name, "lm_head.weight"))
            continue;
        float *x = read_f32(s, t->name, &n);
        must(dms_checkpoint_put_tensor(w, "weights", t->name, DMS_F32, t->rank, t->shape, x));
        free(x);
    }
    must(dms_checkpoint_writer_commit(w));
    for (int order = 0; order < 2; order++) {
        const json_t *view = inspect(&i, FAILED, order ? "diff a.h5 tied.h5" : "diff tied.h5 a.h5");
        expect_number(view, "tensors.only_a", 0);
        expect_number(view, "tensors.only_b", 0);
        expect_true(difference(view, "lm_head.weight"), "tied", true);
        int64_t n;
        float *head = read_f32(s, "lm_head.weight", &n);
        float *embedding = read_f32(s, "model.embed_tokens.weight", &n);
        const measured want =
            order ? measure(head, embedding, n, 0) : measure(embedding, head, n, 0);
        expect_measured(difference(view, "lm_head.weight"), &want);
        free(head);
        free(embedding);
    }
    dms_source_close(s);
    inspection_close(&i);
}

Test(inspect_diff, ends_with_2_where_it_cannot_compare)
{
    static const struct {
        const char *arguments, *message;
    } cases[] = {{"diff", "0 are named"},
                 {"diff a", "1 are named"},
                 {"diff a b c", "3 are named"},
                 {"diff absent $FIX/tiny/llama", "absent"},
                 {"diff $FIX/tiny/llama absent", "absent"},
                 {"diff $FIX/tiny/llama cut.gguf", "cut.gguf"},
                 {"diff a b --tolerance x", "--tolerance is \"x\""},
                 {"diff a b --tolerance -1", "--tolerance is \"-1\""},
                 {"diff a b --tolerance nan", "--tolerance is \"nan\""},
                 {"diff a b --tensors", "--tensors"},
                 {"diff a b --families", "--families"},
                 {"diff $FIX/tiny/llama $FIX/tiny/llama >/dev/full", "standard output"}};
    inspection i = inspection_open();
    cr_assert_eq(shell(&i, "head -c 3000 $FIX/gguf/tiny-F32.gguf >cut.gguf"), 0);
    for (size_t k = 0; k < COUNT(cases); k++) {
        char command[256];
        snprintf(command, sizeof(command), "$BIN/dms-inspect %s", cases[k].arguments);
        const int code = shell(&i, command);
        cr_assert_eq(code, USAGE, "%s: exit code %d: %s", command, code, i.err);
        cr_assert(strstr(i.err, cases[k].message), "%s said: %s", command, i.err);
        cr_assert(strchr(i.err, '\n') == strrchr(i.err, '\n'), "%s said: %s", command, i.err);
    }
    inspection_close(&i);
}
