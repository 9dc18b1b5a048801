/* Retrofitted models in GGUF: the dense form in the tensors, the gate in the metadata. */
#include "tests/fixtures.h"
#include "tests/gguf_models.h"

/* ---- retrofitted models --------------------------------------------------------------------- */

/* Whether the file's own query tensor of layer 0 is zero in the borrowed rows, and only there. */
static void expect_dense_form(const char *path, const json_t *config, const char *name)
{
    raw_file r = raw_open(path);
    const dms_gguf_tensor *q = raw_find(&r, (dms_gguf_string){name, strlen(name)});
    const int64_t H = json_integer_value(json_object_get(config, "num_attention_heads"));
    const int64_t G = json_integer_value(json_object_get(config, "num_key_value_heads"));
    const int64_t rows = q->rank == 2 ? q->shape[0] : q->shape[0], E = rows / H;
    const int64_t cols = q->rank == 2 ? q->shape[1] : 1;
    for (int64_t row = 0; row < rows; row++) {
        bool zero = true;
        for (int64_t i = 0; i < cols * 4; i++)
            zero &= !q->data[(size_t)(row * cols * 4 + i)];
        /* E - 1 is the last also where the rows of a head are permuted: 2 (E/2 - 1) + 1 */
        const bool borrowed = row % E == E - 1 && row / E % (H / G) == 0;
        cr_expect_eq(zero, borrowed, "row %lld of %s", (long long)row, name);
    }
    raw_close(&r);
}

static void neuron_round_trip(const scratch *dir, const char *family, dms_file_type type)
{
    char name[64];
    tensor_list l;
    snprintf(name, sizeof(name), "tiny/%s", family);
    dms_source *from = open_fixture(name);
    dms_gguf_model m = model_of(&l, from, type);
    json_t *config = with_gate(m.config, false);
    m.config = config;
    m.force = true;
    must(dms_gguf_write(scratch_path(dir, "x.gguf"), &m));
    dms_source *back = open_path(scratch_path(dir, "x.gguf"));
    expect_config(back, config);
    if (type == DMS_FILE_F32) {
        expect_tensors(back, &l);
        expect_dense_form(scratch_path(dir, "x.gguf"), config, "blk.0.attn_q.weight");
        if (!strcmp(family, "qwen2"))
            expect_dense_form(scratch_path(dir, "x.gguf"), config, "blk.0.attn_q.bias");
    }
    dms_source_close(back);
    dms_source_close(from);
    json_decref(config);
}

Test(gguf_gate, a_neuron_gate_comes_back_and_its_dense_form_has_zeros)
{
    scratch dir = scratch_open();
    neuron_round_trip(&dir, "llama", DMS_FILE_F32);
    neuron_round_trip(&dir, "llama3", DMS_FILE_F32);
    neuron_round_trip(&dir, "qwen2", DMS_FILE_F32);
    neuron_round_trip(&dir, "qwen2", DMS_FILE_Q8_0);
    scratch_close(&dir);
}

/* The rows that decide evictions stay f32, whatever the type of the matrices. */
Test(gguf_gate, borrowed_rows_are_exact_beside_rounded_matrices)
{
    int64_t n;
    tensor_list l;
    scratch dir = scratch_open();
    dms_source *from = open_fixture("tiny/llama");
    dms_gguf_model m = model_of(&l, from, DMS_FILE_F16);
    json_t *config = with_gate(m.config, false);
    m.config = config;
    must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m));
    dms_source *back = open_path(scratch_path(&dir, "x.gguf"));
    const char *name = "model.layers.1.self_attn.q_proj.weight";
    float *want = read_f32(from, name, &n), *got = read_f32(back, name, &n);
    const int64_t D = dms_source_find(from, name)->shape[1], H = 9, E = n / D / H;
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = i / D;
        const bool borrowed = row % E == E - 1 && row / E % 3 == 0;
        cr_assert_eq(got[i], borrowed ? want[i] : rounded(want[i], DMS_FILE_F16));
    }
    free(want);
    free(got);
    dms_source_close(back);
    dms_source_close(from);
    json_decref(config);
    scratch_close(&dir);
}

Test(gguf_gate, an_adapter_gate_comes_back_to_the_bit_and_no_tensor_is_strange_to_llama_cpp)
{
    scratch dir = scratch_open();
    for (size_t i = 0; i < COUNT(families); i++) {
        char name[64], file[64];
        tensor_list l;
        snprintf(name, sizeof(name), "tiny/%s", families[i]);
        snprintf(file, sizeof(file), "tiny/%s/dms_adapter.safetensors", families[i]);
        dms_source *from = open_fixture(name), *gate = open_fixture(file);
        dms_gguf_model m = model_of(&l, from, DMS_FILE_F32);
        const int64_t plain = l.count;
        add_tensors(&l, gate, "model.layers");
        int64_t kept = plain; /* without the gradients of the fixture */
        for (int64_t k = plain; k < l.count; k++)
            if (!strncmp(l.entries[k].name, "model.layers", 12)) {
                l.entries[kept] = l.entries[k];
                l.from[kept++] = l.from[k];
            }
        l.count = m.tensors.count = kept;
        cr_assert_gt(l.count, plain);
        json_t *config = with_gate(m.config, true);
        m.config = config;
        m.force = true;
        must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m));
        dms_source *back = open_path(scratch_path(&dir, "x.gguf"));
        expect_config(back, config);
        expect_tensors(back, &l);
        raw_file r = raw_open(scratch_path(&dir, "x.gguf"));
        for (uint64_t k = 0; k < r.part.n_tensors; k++)
            cr_expect_not(
                memmem(r.part.tensors[k].name.text, r.part.tensors[k].name.length, "dms", 3));
        raw_close(&r);
        dms_source_close(back);
        json_decref(config);
        dms_source_close(from);
        dms_source_close(gate);
    }
    scratch_close(&dir);
}

/* The gate's rows are fetched for the metadata, once more for the tensor (where they are zero), and
 * once more to be compared. */
static int spoil_after;
static dms_status fetch_spoiled(void *context, int64_t i, void *dst)
{
    const tensor_list *l = context;
    const dms_tensor_entry *e = &l->entries[i];
    DMS_TRY(fetch(context, i, dst));
    if (!strcmp(e->name, "model.layers.0.self_attn.q_proj.weight") && spoil_after-- == 0)
        ((float *)dst)[7 * e->shape[1] + 3] += 1; /* heads of 8: row 7 is the first group's */
    return DMS_OK;
}

Test(gguf_gate, no_file_is_written_whose_gate_would_be_read_back_otherwise)
{
    scratch dir = scratch_open();
    tensor_list l;
    dms_source *from = open_fixture("tiny/llama");
    dms_gguf_model m = model_of(&l, from, DMS_FILE_F32);
    json_t *config = with_gate(m.config, false);
    m.config = config;
    m.tensors.fetch = fetch_spoiled;
    for (int at = 0; at <= 2; at += 2) {
        spoil_after = at;
        cr_expect_eq(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m), DMS_ERR_IO);
        cr_expect(strstr(dms_error_text(), "the gate in tensor model.layers.0"), "%s",
                  dms_error_text());
        cr_expect_eq(count_files(dir.folder), 0);
    }
    json_decref(config);
    dms_source_close(from);
    scratch_close(&dir);
}

/* Found by fuzzing: numbers of a bias in blocks were patched one by one. */
Test(gguf_gate, a_bias_in_blocks_beside_borrowed_rows_is_refused)
{
    static const char bias[] = "blk.0.attn_q.bias";
    scratch dir = scratch_open();
    dms_source *s;
    size_t n;
    neuron_round_trip(&dir, "qwen2", DMS_FILE_F32);
    char *bytes = read_bytes(scratch_path(&dir, "x.gguf"), &n);
    char *at = memmem(bytes, n, bias, strlen(bias));
    cr_assert_not_null(at);
    at[strlen(bias) + 4 + 8] = 8; /* after rank and size: the type, now Q8_0 */
    write_bytes(scratch_path(&dir, "x.gguf"), bytes, n);
    free(bytes);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x.gguf")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "q_proj.bias is stored as Q8_0"), "%s", dms_error_text());
    scratch_close(&dir);
}

/* ---- GPT-2 ---------------------------------------------------------------------------------- */

/* Two layers of width 32, two heads; number i of tensor t is t + i / 1024. */
static const dms_tensor_entry gpt2_tensors[] = {
    {.name = "transformer.wte.weight", .rank = 2, .shape = {50, 32}},
    {.name = "transformer.wpe.weight", .rank = 2, .shape = {16, 32}},
    {.name = "transformer.h.0.ln_1.weight", .rank = 1, .shape = {32}},
    {.name = "transformer.h.0.ln_1.bias", .rank = 1, .shape = {32}},
    {.name = "transformer.h.0.attn.c_attn.weight", .rank = 2, .shape = {32, 96}},
    {.name = "transformer.h.0.attn.c_attn.bias", .rank = 1, .shape = {96}},
    {.name = "transformer.h.0.attn.c_proj.weight", .rank = 2, .shape = {32, 32}},
    {.name = "transformer.h.0.attn.c_proj.bias", .rank = 1, .shape = {32}},
    {.name = "transformer.h.0.mlp.c_fc.weight", .rank = 2, .shape = {32, 128}},
    {.name = "transformer.h.0.mlp.c_proj.weight", .rank = 2, .shape = {128, 32}},
    {.name = "transformer.ln_f.weight", .rank = 1, .shape = {32}}};

static float gpt2_number(int64_t tensor, int64_t i)
{
    return (float)tensor + (float)i / 1024;
}

static dms_status fetch_gpt2(void *context, int64_t i, void *dst)
{
    (void)context;
    for (int64_t k = 0; k < dms_tensor_entry_count(&gpt2_tensors[i]); k++)
        ((float *)dst)[k] = gpt2_number(i, k);
    return DMS_OK;
}

Test(gguf_gate, conv1d_matrices_of_gpt_2_are_turned_and_turned_back)
{
    scratch dir = scratch_open();
    for (int neuron = 0; neuron < 2; neuron++) {
        json_t *config = json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:f}", "model_type", "gpt2",
                                   "n_embd", 32, "n_layer", 1, "n_head", 2, "n_positions", 16,
                                   "vocab_size", 50, "layer_norm_epsilon", 1e-5);
        json_t *gated = with_gate(config, false);
        const dms_gguf_model m = {.name = "gpt2",
                                  .config = neuron ? gated : config,
                                  .tensors = {gpt2_tensors, COUNT(gpt2_tensors), fetch_gpt2, NULL},
                                  .type = DMS_FILE_F32,
                                  .force = true};
        must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m));
        dms_source *back = open_path(scratch_path(&dir, "x.gguf"));
        expect_config(back, m.config);
        for (size_t t = 0; t < COUNT(gpt2_tensors); t++) {
            int64_t n;
            float *x = read_f32(back, gpt2_tensors[t].name, &n);
            cr_assert_eq(n, dms_tensor_entry_count(&gpt2_tensors[t]));
            for (int64_t i = 0; i < n; i++)
                cr_assert_eq(x[i], gpt2_number((int64_t)t, i), "%s[%lld]", gpt2_tensors[t].name,
                             (long long)i);
            free(x);
        }
        raw_file r = raw_open(scratch_path(&dir, "x.gguf"));
        const dms_gguf_tensor *q = raw_find(&r, (dms_gguf_string){"blk.0.attn_qkv.weight", 21});
        float x[32];
        cr_assert(q->shape[0] == 96 && q->shape[1] == 32);
        memcpy(x, q->data + (size_t)15 * sizeof(x), sizeof(x)); /* last channel of head 0 */
        cr_expect_eq(x[3], neuron ? 0 : gpt2_number(4, 3 * 96 + 15));
        memcpy(x, q->data + (size_t)47 * sizeof(x), sizeof(x)); /* of a key: not borrowed */
        cr_expect_eq(x[3], gpt2_number(4, 3 * 96 + 47));
        raw_close(&r);
        dms_source_close(back);
        json_decref(config);
        json_decref(gated);
    }
    scratch_close(&dir);
}
