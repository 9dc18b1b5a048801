#include <math.h>

#include "checkpoints/file_types.h"
#include "tests/files.h"
#include "tests/fixtures.h"

static dms_source *open_fixture(const char *name)
{
    char path[1024];
    dms_source *s;
    must(dms_source_open(&s, fixture(path, name)));
    return s;
}

Test(gguf, half_to_single_is_exact_for_all_values)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        const int exponent = (int)(h >> 10 & 31);
        const double mantissa = (double)(h & 1023) / 1024, sign = h & 0x8000 ? -1 : 1;
        const float x = dms_f16_to_f32((uint16_t)h);
        if (exponent == 31 && (h & 1023))
            cr_assert(isnan(x));
        else if (exponent == 31)
            cr_assert(isinf(x) && (x > 0) == (sign > 0));
        else
            cr_assert_eq((double)x, exponent ? sign * ldexp(1 + mantissa, exponent - 15)
                                             : sign * ldexp(mantissa, -14));
    }
}

static json_int_t key(const dms_source *s, const char *name)
{
    return json_integer_value(json_object_get(dms_source_config(s), name));
}

Test(gguf, translates_the_configuration)
{
    dms_source *s = open_fixture("gguf/tiny-F32.gguf");
    const json_t *config = dms_source_config(s);
    const dms_tensor_info *embedding = dms_source_find(s, "model.embed_tokens.weight");
    cr_expect_str_eq(dms_source_format(s), "gguf");
    cr_expect_str_eq(json_string_value(json_object_get(config, "model_type")), "llama");
    cr_expect_eq(key(s, "hidden_size"), embedding->shape[1]);
    cr_expect_eq(key(s, "vocab_size"), embedding->shape[0]);
    cr_expect_eq(key(s, "num_attention_heads") * key(s, "head_dim"),
                 dms_source_find(s, "model.layers.0.self_attn.q_proj.weight")->shape[0]);
    cr_expect_eq(key(s, "num_key_value_heads") * key(s, "head_dim"),
                 dms_source_find(s, "model.layers.0.self_attn.k_proj.weight")->shape[0]);
    cr_expect_eq(key(s, "intermediate_size"),
                 dms_source_find(s, "model.layers.0.mlp.up_proj.weight")->shape[0]);
    cr_expect_eq(json_real_value(json_object_get(config, "rms_norm_eps")), 1e-5);
    cr_expect_eq(json_number_value(json_object_get(config, "rope_theta")), 10000.0);
    cr_expect(json_is_false(json_object_get(config, "tie_word_embeddings")));
    cr_expect(json_is_false(json_object_get(config, "attention_bias")));
    cr_expect_eq(key(s, "eos_token_id"), 2);
    dms_source_close(s);
}

/* The tiny model's tokenizer came from tiny/llama/tokenizer.json: what we make must say the same.
 */
Test(gguf, makes_the_tokenizer_it_was_made_from)
{
    char path[1024];
    dms_source *s = open_fixture("gguf/tiny-F32.gguf");
    json_t *made = json_loads(dms_source_tokenizer(s, NULL), 0, NULL);
    json_t *want = json_load_file(fixture(path, "tiny/llama/tokenizer.json"), 0, NULL);
    static const char *const keys[] = {"added_tokens", "normalizer", "pre_tokenizer", "decoder"};
    cr_assert(made && want);
    for (size_t i = 0; i < COUNT(keys); i++)
        cr_expect(json_equal(json_object_get(made, keys[i]), json_object_get(want, keys[i])),
                  "%s differs", keys[i]);
    const json_t *ours = json_object_get(made, "model"), *theirs = json_object_get(want, "model");
    cr_expect(json_equal(json_object_get(ours, "vocab"), json_object_get(theirs, "vocab")));
    cr_expect(json_equal(json_object_get(ours, "merges"), json_object_get(theirs, "merges")));
    json_decref(made);
    json_decref(want);
    dms_source_close(s);
}

/* A small GGUF file in memory, built key by key. */
typedef struct {
    uint8_t bytes[65536];
    size_t n;
} builder;

static void put(builder *b, const void *bytes, size_t n)
{
    cr_assert(b->n + n <= sizeof(b->bytes));
    memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
}

static void put_u32(builder *b, uint32_t x)
{
    put(b, &x, 4);
}

static void put_u64(builder *b, uint64_t x)
{
    put(b, &x, 8);
}

static void put_text(builder *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void put_key_text(builder *b, const char *name, const char *text)
{
    put_text(b, name);
    put_u32(b, 8);
    put_text(b, text);
}

static void put_key_int(builder *b, const char *name, uint32_t x)
{
    put_text(b, name);
    put_u32(b, 4);
    put_u32(b, x);
}

static void put_key_real(builder *b, const char *name, float x)
{
    put_text(b, name);
    put_u32(b, 6);
    put(b, &x, 4);
}

static void put_key_texts(builder *b, const char *name, const char *const *texts, uint64_t n)
{
    put_text(b, name);
    put_u32(b, 9);
    put_u32(b, 8);
    put_u64(b, n);
    for (uint64_t i = 0; i < n; i++)
        put_text(b, texts[i]);
}

/* One F32 tensor of the list; rows 0: a vector. */
static void put_tensor(builder *b, const char *name, uint64_t cols, uint64_t rows, uint64_t offset)
{
    put_text(b, name);
    put_u32(b, rows ? 2 : 1);
    put_u64(b, cols);
    if (rows)
        put_u64(b, rows);
    put_u32(b, 0);
    put_u64(b, offset);
}

static const char *const tokens[] = {"<s>", "a", "b", "ab", "<u>"};
static const char *const merges[] = {"a b"};

/* A model of one head pair, with Llama 3's tokenizer and the given rope divisors [4]; pre NULL: the
 * file does not name its pre-tokeniser. */
static void build(builder *b, const char *family, const char *pre, const float *divisors)
{
    const int32_t kinds[] = {3, 1, 1, 1, 4};
    char name[64];
    b->n = 0;
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, divisors ? 4 : 3);
    put_u64(b, pre ? 14 : 13);
    put_key_text(b, "general.architecture", family);
#define KEY(text) (snprintf(name, sizeof(name), "%s.%s", family, text), name)
    put_key_int(b, KEY("block_count"), 1);
    put_key_int(b, KEY("context_length"), 131072);
    put_key_int(b, KEY("embedding_length"), 16);
    put_key_int(b, KEY("feed_forward_length"), 8);
    put_key_int(b, KEY("attention.head_count"), 2);
    put_key_real(b, KEY("attention.layer_norm_rms_epsilon"), 1e-6f);
    put_key_real(b, KEY("rope.freq_base"), 500000.0f);
    put_key_text(b, "tokenizer.ggml.model", "gpt2");
    if (pre)
        put_key_text(b, "tokenizer.ggml.pre", pre);
    put_key_texts(b, "tokenizer.ggml.tokens", tokens, COUNT(tokens));
    put_text(b, "tokenizer.ggml.token_type");
    put_u32(b, 9);
    put_u32(b, 5);
    put_u64(b, COUNT(kinds));
    put(b, kinds, sizeof(kinds));
    put_key_texts(b, "tokenizer.ggml.merges", merges, COUNT(merges));
    put_key_int(b, "tokenizer.ggml.bos_token_id", 0);
    put_tensor(b, "token_embd.weight", 16, 5, 0);
    put_tensor(b, "blk.0.attn_q.bias", 16, 0, 320);
    put_tensor(b, "blk.0.attn_q.weight", 1, 16, 384);
    if (divisors)
        put_tensor(b, "rope_freqs.weight", 4, 0, 448);
    while (b->n % 32)
        put(b, "", 1);
    for (int i = 0; i < 112; i++) {
        const float x = (float)i;
        put(b, &x, 4);
    }
    if (divisors)
        put(b, divisors, 16);
}

static dms_source *open_built(const scratch *dir, const builder *b)
{
    dms_source *s;
    write_bytes(scratch_path(dir, "x"), b->bytes, b->n);
    must(dms_source_open(&s, scratch_path(dir, "x")));
    return s;
}

Test(gguf, undoes_the_permutation_of_llama_rows_and_biases_and_of_no_other_family)
{
    static builder b;
    scratch dir = scratch_open();
    for (int llama = 0; llama < 2; llama++) {
        int64_t n;
        build(&b, llama ? "llama" : "qwen2", llama ? "llama-bpe" : "qwen2", NULL);
        dms_source *s = open_built(&dir, &b);
        float *bias = read_f32(s, "model.layers.0.self_attn.q_proj.bias", &n);
        float *rows = read_f32(s, "model.layers.0.self_attn.q_proj.weight", &n);
        /* head width 8: row j + r*4 of a head is file row 2j + r */
        for (int i = 0; i < 16; i++) {
            const int from = llama ? i / 8 * 8 + 2 * (i % 4) + i % 8 / 4 : i;
            cr_expect_eq(bias[i], (float)(80 + from));
            cr_expect_eq(rows[i], (float)(96 + from));
        }
        const json_t *bias_key = json_object_get(dms_source_config(s), "attention_bias");
        cr_expect(llama ? json_is_true(bias_key) : !bias_key);
        free(bias);
        free(rows);
        dms_source_close(s);
    }
    scratch_close(&dir);
}

Test(gguf, recovers_llama_3_rope_scaling_from_the_stored_divisors)
{
    static builder b;
    const double factor = 32, original = 8192;
    float divisors[4];
    scratch dir = scratch_open();
    for (int i = 0; i < 4; i++) {
        const double length = 2 * acos(-1) * pow(500000, i / 4.0), ratio = original / length;
        const double smooth = (ratio - 1) / 3;
        divisors[i] = (float)(ratio > 4   ? 1
                              : ratio < 1 ? factor
                                          : 1 / ((1 - smooth) / factor + smooth));
    }
    build(&b, "llama", "llama-bpe", divisors);
    dms_source *s = open_built(&dir, &b);
    const json_t *scaling = json_object_get(dms_source_config(s), "rope_scaling");
    cr_assert(json_is_object(scaling));
    cr_expect_str_eq(json_string_value(json_object_get(scaling, "rope_type")), "llama3");
    cr_expect_eq(json_number_value(json_object_get(scaling, "factor")), 32.0);
    cr_expect_eq(json_number_value(json_object_get(scaling, "low_freq_factor")), 1.0);
    cr_expect_eq(json_number_value(json_object_get(scaling, "high_freq_factor")), 4.0);
    cr_expect_null(dms_source_find(s, "rope_freqs.weight"));
    dms_source_close(s);
    divisors[1] = 3;
    build(&b, "llama", "llama-bpe", divisors);
    write_bytes(scratch_path(&dir, "x"), b.bytes, b.n);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "rope_freqs"));
    scratch_close(&dir);
}

Test(gguf, refuses_rope_divisors_of_another_type_than_f32)
{
    static builder b;
    static const char name[] = "rope_freqs.weight";
    const float divisors[4] = {1, 1, 1, 1};
    dms_source *s;
    scratch dir = scratch_open();
    build(&b, "llama", "llama-bpe", divisors);
    char *at = memmem(b.bytes, b.n, name, strlen(name));
    cr_assert_not_null(at);
    at[strlen(name) + 4 + 8] = 1; /* after rank and size: the type, now F16 */
    write_bytes(scratch_path(&dir, "x"), b.bytes, b.n);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_message(), "rope_freqs.weight is stored as F16"), "%s",
              dms_error_message());
    scratch_close(&dir);
}

static json_t *tokenizer_of(const scratch *dir, const char *family, const char *pre)
{
    static builder b;
    build(&b, family, pre, NULL);
    dms_source *s = open_built(dir, &b);
    json_t *t = json_loads(dms_source_tokenizer(s, NULL), 0, NULL);
    dms_source_close(s);
    cr_assert_not_null(t);
    return t;
}

Test(gguf, makes_tokenizers_in_the_style_the_file_names)
{
    char path[1024];
    static const char *const styles[][3] = {{"llama", "llama-bpe", "llama3"},
                                            {"qwen2", "qwen2", "qwen2"},
                                            {"llama", "smollm", "smollm"},
                                            {"llama", "gpt-2", "gpt2"}};
    scratch dir = scratch_open();
    for (size_t i = 0; i < COUNT(styles); i++) {
        char name[64];
        snprintf(name, sizeof(name), "tokenizers/%s/tokenizer.json", styles[i][2]);
        json_t *want = json_load_file(fixture(path, name), 0, NULL);
        json_t *made = tokenizer_of(&dir, styles[i][0], styles[i][1]);
        cr_assert_not_null(want);
        static const char *const keys[] = {"normalizer", "pre_tokenizer", "decoder"};
        for (size_t k = 0; k < COUNT(keys); k++)
            cr_expect(json_equal(json_object_get(made, keys[k]), json_object_get(want, keys[k])),
                      "%s: %s differs", styles[i][1], keys[k]);
        const json_t *model = json_object_get(made, "model");
        cr_expect(json_equal(json_object_get(model, "ignore_merges"),
                             json_object_get(json_object_get(want, "model"), "ignore_merges")));
        const json_t *added = json_object_get(made, "added_tokens");
        cr_expect_eq(json_array_size(added), 2);
        cr_expect(json_is_true(json_object_get(json_array_get(added, 0), "special")));
        cr_expect(json_is_false(json_object_get(json_array_get(added, 1), "special")));
        cr_expect_eq(json_is_object(json_object_get(made, "post_processor")), i == 0,
                     "only Llama 3 puts its first token in front");
        json_decref(want);
        json_decref(made);
    }
    scratch_close(&dir);
}

/* Steps, ignore_merges and first token of every name; DeepSeek-R1's distils of Llama name Llama's.
 */
Test(gguf, knows_every_pre_tokeniser_of_its_families)
{
    static const struct {
        const char *pre, *like;
        int steps;
        bool ignores_merges, first;
    } names[] = {
        {"gpt-2", "gpt-2", 0, false, false},       {"smollm", "smollm", 2, false, false},
        {"llama-bpe", "llama-bpe", 2, true, true}, {"llama3", "llama-bpe", 2, true, true},
        {"llama-v3", "llama-bpe", 2, true, true},  {"smaug-bpe", "llama-bpe", 2, false, false},
        {"qwen2", "qwen2", 2, false, false},       {"deepseek-r1-qwen", "qwen2", 2, false, false},
        {"default", "default", 5, false, false}};
    scratch dir = scratch_open();
    for (size_t i = 0; i < COUNT(names); i++) {
        json_t *made = tokenizer_of(&dir, "llama", names[i].pre);
        json_t *like = tokenizer_of(&dir, "llama", names[i].like);
        const json_t *steps = json_object_get(made, "pre_tokenizer");
        cr_expect(json_equal(steps, json_object_get(like, "pre_tokenizer")), "%s", names[i].pre);
        cr_expect_eq(json_array_size(json_object_get(steps, "pretokenizers")), names[i].steps);
        cr_expect_eq(json_is_true(json_object_get(json_object_get(made, "model"), "ignore_merges")),
                     names[i].ignores_merges);
        cr_expect_eq(json_is_object(json_object_get(made, "post_processor")), names[i].first);
        json_decref(made);
        json_decref(like);
    }
    scratch_close(&dir);
}

/* Puts `with` [n] at `offset` bytes behind a tensor's name in the list; opening must then fail and
 * say `expected`. */
static void refuses(const char *name, size_t offset, uint64_t with, size_t n, const char *expected)
{
    static builder b;
    dms_source *s;
    scratch dir = scratch_open();
    build(&b, "llama", "llama-bpe", NULL);
    uint8_t *at = memmem(b.bytes, b.n, name, strlen(name));
    cr_assert_not_null(at);
    memcpy(at + strlen(name) + offset, &with, n);
    write_bytes(scratch_path(&dir, "x"), b.bytes, b.n);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x")), DMS_ERR_FORMAT, "%s", expected);
    cr_expect(strstr(dms_error_text(), expected), "%s does not say %s", dms_error_text(), expected);
    scratch_close(&dir);
}

Test(gguf, refuses_each_lie_of_the_tensor_list_with_a_message_that_names_it)
{
    /* behind the name: rank (4 bytes), dimensions (8 each), type (4), offset (8) */
    refuses("blk.0.attn_q.bias", 16, 288, 8,
            "tensors token_embd.weight and blk.0.attn_q.bias overlap");
    refuses("blk.0.attn_q.bias", 16, 321, 8, "does not lie within");
    refuses("blk.0.attn_q.bias", 16, UINT64_MAX - 31, 8, "does not lie within");
    refuses("blk.0.attn_q.bias", 4, 1ull << 40, 8, "does not lie within");
    refuses("blk.0.attn_q.bias", 4, 0, 8, "impossible dimension 0");
    refuses("blk.0.attn_q.bias", 0, 5, 4, "5 dimensions");
    refuses("blk.0.attn_q.bias", 12, 8, 4, "no multiple of 32");
    refuses("blk.0.attn_q.weight", 12, 1ull << 47, 8, "attn_q.weight");
    refuses("tokenizer.ggml.tokens", 4, 9, 4, "no known key uses");
    refuses("tokenizer.ggml.tokens", 8, UINT64_MAX, 8, "cut short or corrupt");
    refuses("llama.attention.head_count", 4, 3, 4, "3 rotary heads");
    refuses("llama.embedding_length", 4, 0, 4, "llama.embedding_length is missing");
}

/* Version 2 has the layout of 3 (the GGUF specification: 3 added byte order). */
Test(gguf, reads_version_2_as_3)
{
    char path[1024];
    size_t n;
    scratch dir = scratch_open();
    char *bytes = read_bytes(fixture(path, "gguf/tiny-Q8_0.gguf"), &n);
    cr_assert(bytes[4] == 3);
    bytes[4] = 2;
    write_bytes(scratch_path(&dir, "x"), bytes, n);
    dms_source *three = open_fixture("gguf/tiny-Q8_0.gguf"), *two;
    must(dms_source_open(&two, scratch_path(&dir, "x")));
    cr_expect_eq(dms_source_count(two), dms_source_count(three));
    cr_expect(json_equal((json_t *)(uintptr_t)dms_source_config(two),
                         (json_t *)(uintptr_t)dms_source_config(three)));
    for (int64_t i = 0; i < dms_source_count(three); i++) {
        const char *name = dms_source_info(three, i)->name;
        int64_t a, b;
        float *x = read_f32(three, name, &a), *y = read_f32(two, name, &b);
        cr_expect(a == b && !memcmp(x, y, (size_t)a * sizeof(*x)), "%s", name);
        free(x);
        free(y);
    }
    dms_source_close(two);
    dms_source_close(three);
    free(bytes);
    scratch_close(&dir);
}

Test(gguf, survives_a_file_cut_at_every_length_and_random_bytes)
{
    static builder b;
    uint32_t seed = 11;
    scratch dir = scratch_open();
    char path[1024];
    snprintf(path, sizeof(path), "%s/x", dir.folder);
    const float divisors[4] = {1, 1, 1, 1};
    build(&b, "llama", "llama-bpe", divisors);
    for (size_t k = 0; k < b.n; k++) {
        write_bytes(path, b.bytes, k);
        cr_expect_not(use_all(path), "cut to %zu of %zu bytes it opened", k, b.n);
    }
    for (int trial = 0; trial < 2000; trial++) {
        build(&b, "llama", "llama-bpe", NULL);
        for (uint32_t k = roll(&seed) % 4 + 1; k > 0; k--)
            b.bytes[roll(&seed) % b.n] = (uint8_t)roll(&seed);
        write_bytes(path, b.bytes, b.n);
        use_all(path);
    }
    scratch_close(&dir);
}

Test(gguf, refuses_families_and_tokenizers_it_does_not_know_by_name)
{
    static builder b;
    dms_source *s;
    scratch dir = scratch_open();
    build(&b, "gemma", "gpt-2", NULL);
    write_bytes(scratch_path(&dir, "x"), b.bytes, b.n);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "gemma"));
    build(&b, "llama", "tekken", NULL);
    write_bytes(scratch_path(&dir, "x"), b.bytes, b.n);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "tekken"));
    build(&b, "llama", NULL, NULL);
    write_bytes(scratch_path(&dir, "x"), b.bytes, b.n);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "no key tokenizer.ggml.pre"), "a tokenizer was guessed");
    b.bytes[4] = 1;
    write_bytes(scratch_path(&dir, "x"), b.bytes, b.n);
    cr_expect_eq(dms_source_open(&s, scratch_path(&dir, "x")), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "version 1"));
    scratch_close(&dir);
}

Test(gguf, opens_the_real_model_where_it_has_been_fetched)
{
    const char *path = DMS_SOURCE_DIR "/cache/SmolLM2-135M-Instruct.Q4_1.gguf";
    dms_source *s;
    if (access(path, R_OK))
        cr_skip_test("%s is not there: scripts/quickstart.sh fetches it", path);
    must(dms_source_open(&s, path));
    cr_expect_eq(key(s, "vocab_size"), 49152);
    cr_expect_eq(key(s, "num_hidden_layers"), 30);
    cr_expect_eq(key(s, "eos_token_id"), 2);
    cr_expect(json_is_true(json_object_get(dms_source_config(s), "tie_word_embeddings")));
    cr_expect(strstr(dms_source_chat_template(s), "<|im_start|>"));
    int64_t n;
    for (int64_t i = 0; i < dms_source_count(s); i++)
        free(read_f32(s, dms_source_info(s, i)->name, &n));
    json_t *tokenizer = json_loads(dms_source_tokenizer(s, NULL), 0, NULL);
    cr_expect_eq(json_object_size(json_object_get(json_object_get(tokenizer, "model"), "vocab")),
                 49152);
    json_decref(tokenizer);
    dms_source_close(s);
}
