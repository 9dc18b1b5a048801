/* dms-inspect diff where the two sides name, fuse or transpose the same weights differently. */
#include <sys/wait.h>

#include "checkpoints/layout.h"
#include "tests/inspect.h"

#define GPT2 DMS_SOURCE_DIR "/tests/data/gpt2"

/* "$M", a small GPT-2, trained in f32 with each gate: run-GATE, and exported in every format. */
static inspection trained(const char *gate)
{
    char command[2048];
    inspection i = inspection_open();
    snprintf(
        command, sizeof(command),
        "M=" GPT2 "; for k in 1 2 3 4 5 6; do echo 'It is a truth universally acknowledged that"
        " a single man in possession of a good fortune must be in want of a wife'; done >t.txt;"
        "$BIN/dms-tokenize $M -o t.tok t.txt && printf 'model: {path: '$M'}\\n"
        "data: {train: t.tok, context: 32}\\ndms: {gate: %s, window: 4}\\n"
        "schedule: {steps: 2, ramp_steps: 2}\\noptim: {train: %s, lr: 1e-3}\\n"
        "device: {kind: cpu}\\nrun: {batch: 1, compute: f32, folder: run}\\n' >c.yaml &&"
        "$BIN/dms-train c.yaml --threads 1 && for k in hf nvidia-dms gguf; do"
        " $BIN/dms-export run/latest --to $k --type f32 -o $k || exit 1; done",
        gate, strcmp(gate, "adapter") ? "all" : "gate");
    cr_assert_eq(shell(&i, command), 0, "%s", i.err);
    return i;
}

/* q, k and v of a layer are one tensor on the other side, weight and bias: 2 layers, 8 more. */
static void expect_equal(inspection *i, const char *a, const char *b, int tensors)
{
    char arguments[256];
    snprintf(arguments, sizeof(arguments), "diff %s %s", a, b);
    const json_t *view = inspect(i, DONE, arguments);
    expect_true(view, "equal", true);
    expect_number(view, "tensors.compared", tensors);
    expect_number(view, "tensors.same", tensors);
    expect_number(view, "tensors.only_a", 0);
    expect_number(view, "tensors.only_b", 0);
}

Test(inspect_diff_names, a_trained_gpt2_equals_its_exports_in_every_format)
{
    static const char *const formats[] = {"hf", "nvidia-dms", "gguf"};
    static const char *const gates[] = {"neuron", "adapter"};
    for (int g = 0; g < 2; g++) {
        inspection i = trained(gates[g]);
        const int more = g ? 4 : 0; /* the adapter's tensors */
        for (size_t f = 0; f < COUNT(formats); f++) {
            expect_equal(&i, "run/latest", formats[f], 36 + more);
            expect_equal(&i, formats[f], "run/latest", 36 + more);
            expect_equal(&i, formats[f], formats[(f + 1) % 3], 28 + more);
        }
        inspection_close(&i);
    }
}

/* Parts and transposes are where they should be: each number by the definition. */
Test(inspect_diff_names, a_trained_gpt2_differs_from_its_base_by_what_was_trained)
{
    inspection i = trained("neuron");
    dms_source *base, *ours;
    must(dms_source_open(&base, GPT2));
    must(dms_source_open(&ours, scratch_path(&i.dir, "run/latest")));
    const json_t *item, *view = inspect(&i, FAILED, "diff " GPT2 " run/latest");
    size_t k;
    expect_number(view, "tensors.compared", 36);
    expect_true(view, "gate_only", false);
    json_array_foreach(find(view, "differences"), k, item)
    {
        int64_t n, m, differing = 0, borrowed = 0;
        dms_layout_place place = {.parts = 1};
        const char *name = json_string_value(find(item, "name"));
        const dms_tensor_info *t = dms_source_find(ours, name);
        cr_assert(t && dms_layout_find(&place, dms_source_config(base), name));
        expect_text(item, "name_a", place.name);
        expect_text(item, "name_b", name);
        float *x = read_f32(base, place.name, &n), *y = read_f32(ours, name, &m);
        const int64_t cols = t->rank == 2 ? t->shape[1] : 1, rows = t->shape[0];
        const int64_t all = rows * place.parts;
        cr_assert_eq(n, m * place.parts);
        double most = 0;
        for (int64_t o = 0; o < rows; o++)
            for (int64_t c = 0; c < cols; c++) {
                const int64_t r = place.part * rows + o;
                const float was = x[place.transposed ? c * all + r : r * cols + c];
                const double d = fabs((double)y[o * cols + c] - (double)was);
                most = fmax(most, d);
                differing += d > 0;
                borrowed += d > 0 && strstr(name, ".q_proj.") && o % 8 == 7; /* heads of 8 */
            }
        expect_number(item, "differing", (double)differing);
        expect_number(item, "borrowed", (double)borrowed);
        /* JSON has 15 digits */
        cr_assert_float_eq(json_number_value(find(item, "max_abs")), most, 1e-14 * most, "%s",
                           name);
        free(x);
        free(y);
    }
    cr_assert_eq(k, 36);
    dms_source_close(base);
    dms_source_close(ours);
    inspection_close(&i);
}

Test(inspect_diff_names, what_a_gate_brings_is_said_to_be_the_gates)
{
    inspection i = trained("adapter");
    const json_t *item, *view = inspect(&i, FAILED, "diff " GPT2 " run/latest");
    size_t k;
    expect_number(view, "tensors.same", 36); /* its base is frozen */
    expect_number(view, "tensors.only_b", 4);
    expect_true(view, "gate_only", true);
    json_array_foreach(find(view, "differences"), k, item) expect_true(item, "gate", true);
    cr_assert_eq(shell(&i, "$BIN/dms-inspect diff " GPT2 " run/latest"), FAILED);
    cr_assert(strstr(i.out, "the models are different in the gate alone"), "%s", i.out);
    inspection_close(&i);
    i = trained("neuron"); /* the same model twice, one with other numbers in a borrowed row */
    cr_assert_eq(shell(&i, "cp -r hf changed && $BIN/dms-inspect diff hf changed"), 0);
    size_t n;
    int64_t m;
    dms_source *s;
    must(dms_source_open(&s, scratch_path(&i.dir, "hf")));
    float *q = read_f32(s, "transformer.h.1.attn.c_attn.bias", &m);
    dms_source_close(s);
    char *bytes = read_bytes(scratch_path(&i.dir, "changed/model.safetensors"), &n);
    char *at = memmem(bytes, n, q, (size_t)m * sizeof(*q));
    cr_assert_not_null(at);
    memcpy(at + 15 * sizeof(float), &(float){123}, sizeof(float));
    write_bytes(scratch_path(&i.dir, "changed/model.safetensors"), bytes, n);
    expect_true(inspect(&i, FAILED, "diff run/latest changed"), "gate_only", true);
    expect_true(inspect(&i, FAILED, "diff hf changed"), "gate_only", true);
    memcpy(at + 14 * sizeof(float), &(float){123}, sizeof(float));
    write_bytes(scratch_path(&i.dir, "changed/model.safetensors"), bytes, n);
    expect_true(inspect(&i, FAILED, "diff run/latest changed"), "gate_only", false);
    free(bytes);
    free(q);
    inspection_close(&i);
}

/* A folder without "transformer." before its names, with a causal mask and the tied head. */
static void write_bare(inspection *i)
{
    size_t n;
    uint64_t length;
    const char *name;
    json_t *tensor;
    cr_assert_eq(shell(i, "cp -r " GPT2 " bare && chmod -R u+w bare"), 0);
    char *bytes = read_bytes(GPT2 "/model.safetensors", &n);
    memcpy(&length, bytes, sizeof(length));
    json_t *header = json_loadb(bytes + 8, length, 0, NULL), *bare = json_object();
    const size_t data = n - 8 - length;
    json_object_foreach(header, name, tensor)
    {
        const bool prefix = !strncmp(name, "transformer.", 12);
        json_object_set(bare, name + (prefix ? 12 : 0), tensor);
    }
    json_object_set_new(bare, "h.0.attn.bias",
                        json_pack("{s:s, s:[i,i], s:[I,I]}", "dtype", "F32", "shape", 2, 2,
                                  "data_offsets", (json_int_t)data, (json_int_t)(data + 16)));
    char *text = json_dumps(bare, JSON_COMPACT);
    length = strlen(text);
    FILE *f = fopen(scratch_path(&i->dir, "bare/model.safetensors"), "wb");
    cr_assert(f && fwrite(&length, 8, 1, f) == 1 && fputs(text, f) >= 0 &&
              fwrite(bytes + n - data, 1, data, f) == data &&
              fwrite((float[4]){1, 0, 1, 1}, 4, 4, f) == 4 && !fclose(f));
    json_decref(header);
    json_decref(bare);
    free(text);
    free(bytes);
}

Test(inspect_diff_names, prefixes_masks_and_tied_heads_make_no_difference)
{
    inspection i = trained("adapter");
    write_bare(&i);
    expect_equal(&i, GPT2, "bare", 28);
    expect_equal(&i, "bare", GPT2, 28);
    expect_number(i.view, "tensors.no_weight", 1);
    expect_true(inspect(&i, FAILED, "diff bare run/latest"), "gate_only", true);
    expect_true(inspect(&i, FAILED, "diff gguf bare"), "gate_only", true);
    /* a safetensors file alone has no config: the other side's says what family it is */
    expect_equal(&i, "bare/model.safetensors", GPT2, 28);
    expect_true(inspect(&i, FAILED, "diff bare/model.safetensors run/latest"), "gate_only", true);
    cr_assert_eq(shell(&i, "$BIN/dms-inspect diff " GPT2 " bare"), DONE);
    cr_assert(strstr(i.out, "1 masks or frequencies"), "%s", i.out);
    inspection_close(&i);
}
