/* GGUF files of our own: read back they are the model again, and others read them. */
#include "checkpoints/gguf_dequant.h"
#include "checkpoints/huggingface.h"
#include "tests/fixtures.h"
#include "tests/gguf_models.h"
#include "tests/logits.h"

/* ---- round trips ---------------------------------------------------------------------------- */

Test(gguf_write, a_folder_written_as_f32_is_read_back_to_the_bit_and_computes_the_same)
{
    scratch dir = scratch_open();
    for (size_t i = 0; i < COUNT(families); i++) {
        char name[64], path[1024], file[64];
        tensor_list l;
        snprintf(name, sizeof(name), "tiny/%s", families[i]);
        snprintf(file, sizeof(file), "%s.gguf", families[i]);
        dms_source *from = open_fixture(name);
        const dms_gguf_model m = model_of(&l, from, DMS_FILE_F32);
        must(dms_gguf_write(scratch_path(&dir, file), &m));
        dms_source *back = open_path(scratch_path(&dir, file));
        cr_expect_eq(dms_source_count(back), l.count);
        expect_tensors(back, &l);
        expect_config(back, dms_source_config(from));
        cr_expect_str_eq(dms_source_tokenizer(back, NULL), dms_source_tokenizer(from, NULL));
        dms_source_close(back);
        dms_source_close(from);
        int64_t vocab;
        const int32_t ids[] = {5, 17, 100, 3, 77, 250, 9, 41};
        float *want = dense_logits(fixture(path, name), ids, 8, &vocab);
        float *got = dense_logits(scratch_path(&dir, file), ids, 8, &vocab);
        cr_expect(largest_difference(got, want, 8 * vocab) <= 1e-5, "%s", families[i]);
        free(want);
        free(got);
    }
    scratch_close(&dir);
}

static bool has_number(const json_t *rope, const char *key, double want)
{
    return json_number_value(json_object_get(rope, key)) == want;
}

Test(gguf_write, rope_scaling_of_llama_3_survives_with_other_parameters_than_the_usual)
{
    scratch dir = scratch_open();
    dms_source *from = open_fixture("tiny/llama3");
    tensor_list l;
    dms_gguf_model m = model_of(&l, from, DMS_FILE_F32);
    json_t *config = json_deep_copy(dms_source_config(from));
    json_object_del(config, "rope_parameters");
    json_object_set_new(config, "rope_theta", json_real(5e5));
    json_object_set_new(config, "rope_scaling",
                        json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", 6.5,
                                  "low_freq_factor", 1.5, "high_freq_factor", 3.0,
                                  "original_max_position_embeddings", 100));
    m.config = config;
    must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m));
    dms_source *back = open_path(scratch_path(&dir, "x.gguf"));
    const json_t *rope = json_object_get(dms_source_config(back), "rope_scaling");
    cr_expect(has_number(rope, "factor", 6.5) && has_number(rope, "low_freq_factor", 1.5) &&
              has_number(rope, "high_freq_factor", 3) &&
              has_number(rope, "original_max_position_embeddings", 100));
    dms_source_close(back);
    json_decref(config);
    dms_source_close(from);
    scratch_close(&dir);
}

Test(gguf_write, all_tokens_that_end_a_text_come_back_in_order)
{
    scratch dir = scratch_open();
    dms_source *from = open_fixture("tiny/llama");
    for (int n = 1; n <= 3; n++) {
        tensor_list l;
        dms_gguf_model m = model_of(&l, from, DMS_FILE_F32);
        json_t *config = json_deep_copy(dms_source_config(from)), *ends = json_array();
        for (int i = 0; i < n; i++)
            json_array_append_new(ends, json_integer(2 - i));
        json_object_set_new(config, "eos_token_id", n > 1 ? ends : json_integer(2));
        m.config = config;
        m.force = true;
        must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m));
        dms_source *back = open_path(scratch_path(&dir, "x.gguf"));
        expect_config(back, config);
        dms_source_close(back);
        json_decref(config);
        if (n == 1)
            json_decref(ends);
    }
    dms_source_close(from);
    scratch_close(&dir);
}

static dms_status fetch_wide(void *context, int64_t i, void *dst)
{
    return fetch(context, i, dst);
}

Test(gguf_write, gguf_to_hugging_face_to_gguf_keeps_the_bytes_of_every_tensor)
{
    char path[1024];
    tensor_list l;
    scratch dir = scratch_open();
    const char *original = fixture(path, "gguf/tiny-F32.gguf");
    dms_source *first = open_path(original);
    const dms_gguf_model as = model_of(&l, first, DMS_FILE_F32);
    const dms_hf_model folder = {.config = as.config,
                                 .tokenizer = as.tokenizer,
                                 .tokenizer_length = as.tokenizer_length,
                                 .tensors = {l.entries, l.count, fetch_wide, &l}};
    must(dms_hf_write(scratch_path(&dir, "hf"), &folder));
    dms_source_close(first);
    dms_source *second = open_path(scratch_path(&dir, "hf"));
    const dms_gguf_model again = model_of(&l, second, DMS_FILE_F32);
    must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &again));
    dms_source_close(second);
    raw_file a = raw_open(original), b = raw_open(scratch_path(&dir, "x.gguf"));
    cr_assert_eq(a.part.n_tensors, b.part.n_tensors);
    for (uint64_t i = 0; i < a.part.n_tensors; i++) {
        const dms_gguf_tensor *x = &a.part.tensors[i], *y = raw_find(&b, x->name);
        cr_expect(x->type == y->type && x->bytes == y->bytes &&
                      !memcmp(x->shape, y->shape, sizeof(int64_t) * (size_t)x->rank) &&
                      !memcmp(x->data, y->data, x->bytes),
                  "%.*s differs", (int)x->name.length, x->name.text);
    }
    raw_close(&a);
    raw_close(&b);
    scratch_close(&dir);
}

static void expect_type(const dms_source *back, const dms_source *from, const char *name,
                        dms_file_type asked)
{
    const dms_tensor_info *t = dms_source_find(back, name);
    const dms_file_type type = t->rank == 1                                 ? DMS_FILE_F32
                               : asked == DMS_FILE_Q8_0 && t->shape[1] % 32 ? DMS_FILE_F16
                                                                            : asked;
    int64_t n;
    cr_expect_eq(t->type, type, "%s is %s", name, dms_file_type_name(t->type));
    float *want = read_f32(from, name, &n), *got = read_f32(back, name, &n);
    if (type == DMS_FILE_Q8_0) { /* rows are permuted whole, so blocks stay together */
        uint8_t *blocks = malloc((size_t)n / 32 * 34);
        dms_q8_0_from_f32(blocks, want, n);
        dms_gguf_dequant(DMS_FILE_Q8_0)(want, blocks, n);
        free(blocks);
    }
    for (int64_t i = 0; i < n; i++)
        cr_assert_eq(got[i], rounded(want[i], type), "%s[%lld]", name, (long long)i);
    free(want);
    free(got);
}

Test(gguf_write, each_type_holds_the_numbers_rounded_once_and_vectors_stay_f32)
{
    static const dms_file_type types[] = {DMS_FILE_F16, DMS_FILE_BF16, DMS_FILE_Q8_0};
    static const char *const models[] = {"gguf/tiny-F32.gguf", "tiny/llama"};
    scratch dir = scratch_open();
    for (size_t i = 0; i < 2 * COUNT(types); i++) {
        tensor_list l;
        dms_source *from = open_fixture(models[i % 2]);
        dms_gguf_model m = model_of(&l, from, types[i / 2]);
        m.force = true;
        must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m));
        dms_source *back = open_path(scratch_path(&dir, "x.gguf"));
        for (int64_t k = 0; k < l.count; k++)
            expect_type(back, from, l.entries[k].name, types[i / 2]);
        dms_source_close(back);
        dms_source_close(from);
    }
    scratch_close(&dir);
}

/* ---- refusals ------------------------------------------------------------------------------- */

/* Writing must fail with this code and message, and leave nothing. */
static void refuses(const scratch *dir, const dms_gguf_model *m, dms_status code, const char *says)
{
    cr_expect_eq(dms_gguf_write(scratch_path(dir, "no.gguf"), m), code);
    cr_expect(strstr(dms_error_text(), says), "%s does not say %s", dms_error_text(), says);
    cr_expect_eq(count_files(dir->folder), 0, "something is left");
}

Test(gguf_write, refuses_by_name_what_has_no_form_in_gguf)
{
    scratch dir = scratch_open();
    tensor_list l;
    dms_source *qwen3 = open_fixture("tiny/qwen3"), *llama = open_fixture("tiny/llama");
    dms_gguf_model m = model_of(&l, qwen3, DMS_FILE_F32);
    json_t *config = with_gate(m.config, false);
    m.config = config;
    refuses(&dir, &m, DMS_ERR_ARG, "q_norm sees the borrowed row");
    json_decref(config);
    m = model_of(&l, llama, DMS_FILE_F32);
    config = with_gate(m.config, true);
    m.config = config;
    refuses(&dir, &m, DMS_ERR_ARG, "no tensor dms_proj_alpha");
    json_decref(config);
    m = model_of(&l, llama, DMS_FILE_Q4_1);
    refuses(&dir, &m, DMS_ERR_ARG, "not as Q4_1");
    m = model_of(&l, llama, DMS_FILE_F32);
    l.entries[3].name = "model.layers.0.self_attn.strange.weight";
    refuses(&dir, &m, DMS_ERR_ARG, "strange.weight has no place");
    m = model_of(&l, llama, DMS_FILE_F32);
    json_t *tokenizer = json_loads(m.tokenizer, 0, NULL);
    json_object_set_new(tokenizer, "pre_tokenizer", json_pack("{s:s}", "type", "Whitespace"));
    char *text = json_dumps(tokenizer, 0);
    m.tokenizer = text;
    m.tokenizer_length = strlen(text);
    refuses(&dir, &m, DMS_ERR_ARG, "no name in GGUF");
    free(text);
    json_decref(tokenizer);
    dms_source_close(llama);
    dms_source_close(qwen3);
    scratch_close(&dir);
}

static dms_status fetch_large(void *context, int64_t i, void *dst)
{
    DMS_TRY(fetch(context, i, dst));
    *(float *)dst = 1e30f;
    return DMS_OK;
}

Test(gguf_write, keeps_the_old_file_when_a_number_does_not_fit_or_force_is_not_said)
{
    static const dms_file_type narrow[] = {DMS_FILE_F16, DMS_FILE_Q8_0};
    scratch dir = scratch_open();
    tensor_list l;
    dms_source *s = open_fixture("gguf/tiny-F32.gguf");
    write_bytes(scratch_path(&dir, "x.gguf"), "old", 3);
    dms_gguf_model m = model_of(&l, s, DMS_FILE_F32);
    cr_expect_eq(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "x.gguf exists"));
    for (int i = 0; i < 2; i++) {
        m = model_of(&l, s, narrow[i]);
        m.force = true;
        m.tensors.fetch = fetch_large;
        cr_expect_eq(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m), DMS_ERR_ARG);
        cr_expect(strstr(dms_error_text(), "too large for"), "%s", dms_error_text());
    }
    size_t n;
    char *bytes = read_bytes(scratch_path(&dir, "x.gguf"), &n);
    cr_expect(n == 3 && !memcmp(bytes, "old", 3));
    cr_expect_eq(count_files(dir.folder), 1);
    free(bytes);
    dms_source_close(s);
    scratch_close(&dir);
}

/* ---- other readers -------------------------------------------------------------------------- */

/* The program that runs Python: DMS_TEST_PYTHON, or python3. */
static const char *python(void)
{
    const char *named = getenv("DMS_TEST_PYTHON");
    return named ? named : "python3";
}

static bool python_has(const char *package)
{
    char command[512];
    snprintf(command, sizeof(command), "%s -c 'import %s' >/dev/null 2>&1", python(), package);
    return system(command) == 0;
}

/* Compares the file's tensors with those of the F32 fixture it was made of, through `gguf`. */
static const char script[] =
    "import gguf, numpy, sys\n"
    "a, b = gguf.GGUFReader(sys.argv[1]), gguf.GGUFReader(sys.argv[2])\n"
    "find = {t.name: t for t in b.tensors}\n"
    "assert len(a.tensors) == len(b.tensors)\n"
    "for t in a.tensors:\n"
    "    u = find[t.name]\n"
    "    x = gguf.quants.dequantize(t.data, t.tensor_type)\n"
    "    y = gguf.quants.dequantize(u.data, u.tensor_type)\n"
    "    want = sys.argv[3] if len(t.shape) > 1 else 'F32'\n"
    "    assert u.tensor_type.name == want, (t.name, u.tensor_type.name)\n"
    "    if want == 'Q8_0':\n"
    "        q = gguf.quants.quantize(x, u.tensor_type)\n"
    "        assert (q == u.data).all(), t.name\n"
    "    else:\n"
    "        assert numpy.abs(x - y).max() <= float(sys.argv[4]) * numpy.abs(x).max(), t.name\n"
    "for k in a.fields:\n"
    "    if k.startswith('GGUF') or 'file_type' in k or k == 'general.name': continue\n"
    "    x, y = a.get_field(k).contents(), b.get_field(k).contents()\n"
    "    assert x == y, k\n";

Test(gguf_write, the_reader_of_llama_cpp_finds_the_same_tensors_and_keys)
{
    static const struct {
        dms_file_type type;
        const char *name, *tolerance;
    } types[] = {{DMS_FILE_F32, "F32", "0"},
                 {DMS_FILE_F16, "F16", "0.0005"},
                 {DMS_FILE_BF16, "BF16", "0.004"},
                 {DMS_FILE_Q8_0, "Q8_0", "0"}};
    char path[1024], command[3072];
    tensor_list l;
    if (!python_has("gguf"))
        cr_skip_test("%s has no package gguf (name another with DMS_TEST_PYTHON)", python());
    scratch dir = scratch_open();
    write_bytes(scratch_path(&dir, "compare.py"), script, strlen(script));
    dms_source *s = open_fixture("gguf/tiny-F32.gguf");
    for (size_t i = 0; i < COUNT(types); i++) {
        dms_gguf_model m = model_of(&l, s, types[i].type);
        m.force = true;
        must(dms_gguf_write(scratch_path(&dir, "x.gguf"), &m));
        snprintf(command, sizeof(command), "%s %s/compare.py %s %s/x.gguf %s %s", python(),
                 dir.folder, fixture(path, "gguf/tiny-F32.gguf"), dir.folder, types[i].name,
                 types[i].tolerance);
        cr_expect_eq(system(command), 0, "%s", types[i].name);
    }
    dms_source_close(s);
    scratch_close(&dir);
}
