#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "checkpoints/huggingface.h"
#include "checkpoints/sha256.h"
#include "tests/files.h"
#include "tests/fixtures.h"

/* A source's tensors as a set to be written, all in one dtype. */
typedef struct {
    dms_source *source;
    dms_tensor_entry *entries;
    dms_dtype dtype;
    int64_t fail_at; /* -1: never */
    int spoil_after; /* fetches until a bit is flipped; -1: never */
} copy;

static dms_status fetch(void *context, int64_t i, void *dst)
{
    copy *c = context;
    if (i == c->fail_at)
        return dms_fail(DMS_ERR_NOMEM, "the test wants a failure");
    DMS_TRY(dms_source_read(c->source, c->entries[i].name, dst, c->dtype));
    if (c->spoil_after >= 0 && c->spoil_after-- == 0)
        *(uint8_t *)dst ^= 1;
    return DMS_OK;
}

/* The same, with the embedding as head. */
static dms_status fetch_tied(void *context, int64_t i, void *dst)
{
    const copy *c = context;
    const char *name = c->entries[i].name;
    return dms_source_read(c->source,
                           strcmp(name, "lm_head.weight") ? name : "model.embed_tokens.weight", dst,
                           c->dtype);
}

static copy copy_of(const char *path, dms_dtype dtype)
{
    copy c = {.dtype = dtype, .fail_at = -1, .spoil_after = -1};
    must(dms_source_open(&c.source, path));
    c.entries = calloc((size_t)dms_source_count(c.source), sizeof(*c.entries));
    for (int64_t i = 0; i < dms_source_count(c.source); i++) {
        const dms_tensor_info *t = dms_source_info(c.source, i);
        c.entries[i] = (dms_tensor_entry){.name = t->name, .dtype = dtype, .rank = t->rank};
        memcpy(c.entries[i].shape, t->shape, sizeof(t->shape));
    }
    return c;
}

static void copy_close(copy *c)
{
    free(c->entries);
    dms_source_close(c->source);
}

static dms_hf_model model_of(copy *c)
{
    dms_hf_model m = {.config = dms_source_config(c->source)};
    m.tokenizer = dms_source_tokenizer(c->source, &m.tokenizer_length);
    m.chat_template = dms_source_chat_template(c->source);
    m.tensors = (dms_tensor_set){c->entries, dms_source_count(c->source), fetch, c};
    return m;
}

static void expect_equal(const dms_source *a, const dms_source *b, dms_dtype dtype)
{
    size_t n_a, n_b;
    cr_assert_eq(dms_source_count(a), dms_source_count(b));
    cr_expect(json_equal(dms_source_config(a), dms_source_config(b)), "the configurations differ");
    const char *x = dms_source_tokenizer(a, &n_a), *y = dms_source_tokenizer(b, &n_b);
    cr_expect(n_a == n_b && !memcmp(x, y, n_a), "the tokenizers differ");
    for (int64_t i = 0; i < dms_source_count(a); i++) {
        const dms_tensor_info *t = dms_source_info(a, i);
        const dms_tensor_info *u = dms_source_find(b, t->name);
        cr_assert(u && u->rank == t->rank && !memcmp(u->shape, t->shape, sizeof(t->shape)));
        const size_t bytes = (size_t)element_count(t) * dms_dtype_bytes(dtype);
        void *p = malloc(bytes), *q = malloc(bytes);
        must(dms_source_read(a, t->name, p, dtype));
        must(dms_source_read(b, t->name, q, dtype));
        cr_expect(!memcmp(p, q, bytes), "%s differs", t->name);
        free(p);
        free(q);
    }
}

Test(huggingface, reads_back_every_family_it_writes)
{
    static const char *const folders[] = {"tiny/llama", "tiny/llama3", "tiny/qwen2", "tiny/qwen3"};
    char path[1024];
    scratch dir = scratch_open();
    for (size_t i = 0; i < 2 * COUNT(folders); i++) {
        const dms_dtype dtype = i % 2 ? DMS_BF16 : DMS_F32;
        dms_source *back;
        copy c = copy_of(fixture(path, folders[i / 2]), dtype);
        dms_hf_model m = model_of(&c);
        m.shard_bytes = i % 2 ? 50000 : 0;
        m.force = i > 0;
        must(dms_hf_write(scratch_path(&dir, "m/"), &m));
        must(dms_source_open(&back, scratch_path(&dir, "m")));
        cr_expect_str_eq(dms_source_format(back), "huggingface");
        expect_equal(c.source, back, dtype);
        cr_expect_eq(count_files(dir.folder), 1, "a temporary folder is left");
        dms_source_close(back);
        copy_close(&c);
    }
    scratch_close(&dir);
}

Test(huggingface, writes_a_folder_from_a_gguf_file)
{
    char path[1024];
    scratch dir = scratch_open();
    dms_source *back;
    copy c = copy_of(fixture(path, "gguf/tiny-Q8_0.gguf"), DMS_F32);
    dms_hf_model m = model_of(&c);
    m.chat_template = "{{ messages }}";
    must(dms_hf_write(scratch_path(&dir, "m"), &m));
    must(dms_source_open(&back, scratch_path(&dir, "m")));
    expect_equal(c.source, back, DMS_F32);
    cr_expect_str_eq(dms_source_chat_template(back), "{{ messages }}");
    json_t *t = json_loads(dms_source_text(back, "tokenizer_config.json"), 0, NULL);
    json_t *g = json_loads(dms_source_text(back, "generation_config.json"), 0, NULL);
    cr_expect_str_eq(json_string_value(json_object_get(t, "eos_token")), "<|im_end|>");
    cr_expect_str_eq(json_string_value(json_object_get(t, "tokenizer_class")),
                     "PreTrainedTokenizerFast");
    cr_expect_eq(json_integer_value(json_object_get(g, "eos_token_id")), 2);
    json_decref(t);
    json_decref(g);
    dms_source_close(back);
    copy_close(&c);
    scratch_close(&dir);
}

Test(huggingface, touches_no_folder_it_was_not_meant_to_replace)
{
    char path[1024];
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/qwen2"), DMS_F32);
    dms_hf_model m = model_of(&c);
    mkdir(scratch_path(&dir, "m"), 0777);
    must(dms_hf_write(scratch_path(&dir, "m"), &m)); /* empty: fine */
    cr_expect_eq(dms_hf_write(scratch_path(&dir, "m"), &m), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "already holds a model"));
    m.force = true;
    must(dms_hf_write(scratch_path(&dir, "m"), &m));
    mkdir(scratch_path(&dir, "m/inner"), 0777);
    cr_expect_eq(dms_hf_write(scratch_path(&dir, "m"), &m), DMS_ERR_IO);
    mkdir(scratch_path(&dir, "home"), 0777);
    write_bytes(scratch_path(&dir, "home/letter"), "x", 1);
    cr_expect_eq(dms_hf_write(scratch_path(&dir, "home"), &m), DMS_ERR_IO);
    cr_expect_eq(count_files(scratch_path(&dir, "home")), 1);
    cr_expect_eq(dms_hf_write(scratch_path(&dir, "home/letter"), &m), DMS_ERR_IO);
    cr_expect_eq(count_files(dir.folder), 2);
    copy_close(&c);
    scratch_close(&dir);
}

Test(huggingface, keeps_the_old_model_when_an_export_fails)
{
    char path[1024];
    dms_source *back;
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/llama"), DMS_F32);
    dms_hf_model m = model_of(&c);
    must(dms_hf_write(scratch_path(&dir, "m"), &m));
    m.force = true;
    c.fail_at = 3;
    cr_expect_eq(dms_hf_write(scratch_path(&dir, "m"), &m), DMS_ERR_NOMEM);
    c.fail_at = -1;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old;
    getrlimit(RLIMIT_FSIZE, &old);
    const struct rlimit small = {20000, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const dms_status status = dms_hf_write(scratch_path(&dir, "m"), &m);
    setrlimit(RLIMIT_FSIZE, &old);
    cr_expect_eq(status, DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "free some space"), "%s", dms_error_text());
    cr_expect_eq(count_files(dir.folder), 1);
    must(dms_source_open(&back, scratch_path(&dir, "m")));
    expect_equal(c.source, back, DMS_F32);
    dms_source_close(back);
    copy_close(&c);
    scratch_close(&dir);
}

/* The export is opened again before it gets its name: one flipped bit, at the first fetch (what is
 * written) or the second (what it is compared with), and there is no export. */
Test(huggingface, writes_nothing_that_does_not_read_back_as_it_was)
{
    char path[1024];
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/qwen3"), DMS_BF16);
    dms_hf_model m = model_of(&c);
    const int n = (int)dms_source_count(c.source), spoiled[] = {0, n / 2, n, 2 * n - 1};
    for (size_t i = 0; i < COUNT(spoiled); i++) {
        c.spoil_after = spoiled[i];
        cr_expect_eq(dms_hf_write(scratch_path(&dir, "m"), &m), DMS_ERR_IO);
        cr_expect(strstr(dms_error_text(), "reads back with other bytes"), "%s", dms_error_text());
        cr_expect_eq(count_files(dir.folder), 0);
    }
    c.spoil_after = 2 * n; /* after the last fetch */
    must(dms_hf_write(scratch_path(&dir, "m"), &m));
    copy_close(&c);
    scratch_close(&dir);
}

Test(huggingface, carries_over_what_it_does_not_understand)
{
    static const char generation[] = "{\"top_p\": 0.95, \"eos_token_id\": [2, 0]}\n";
    static const char tokenizer[] = "{\"tokenizer_class\": \"LlamaTokenizer\",\n \"x\": 1e-05}";
    static const char specials[] = "{\"eos_token\": \"</s>\"}";
    size_t length;
    char path[1024];
    dms_source *back;
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/llama"), DMS_F32);
    dms_hf_model m = model_of(&c);
    m.carried[0] = generation;
    m.carried[1] = tokenizer;
    m.carried[2] = specials;
    m.carried[4] = "{\"a\": 0}";
    m.carried[5] = "#version: 0.2\na b\n";
    m.chat_template = "{{ x }}";
    must(dms_hf_write(scratch_path(&dir, "m"), &m));
    must(dms_source_open(&back, scratch_path(&dir, "m")));
    cr_expect_str_eq(dms_source_text(back, "generation_config.json"), generation);
    cr_expect_str_eq(dms_source_text(back, "tokenizer_config.json"), tokenizer);
    cr_expect_str_eq(dms_source_text(back, "special_tokens_map.json"), specials);
    cr_expect_str_eq(dms_source_text(back, "vocab.json"), "{\"a\": 0}");
    cr_expect_str_eq(dms_source_text(back, "merges.txt"), "#version: 0.2\na b\n");
    cr_expect_null(dms_source_text(back, "added_tokens.json"));
    char *template = read_bytes(scratch_path(&dir, "m/chat_template.jinja"), &length);
    cr_expect_str_eq(template, "{{ x }}");
    cr_expect_str_eq(dms_source_chat_template(back), "{{ x }}");
    free(template);
    dms_source_close(back);
    copy_close(&c);
    scratch_close(&dir);
}

/* tie_word_embeddings decides; a lm_head that contradicts it is refused. */
Test(huggingface, honours_tied_heads_both_ways)
{
    char path[1024];
    dms_source *back;
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/llama3"), DMS_F32); /* untied: has a lm_head */
    json_t *config = json_deep_copy(dms_source_config(c.source));
    dms_hf_model m = model_of(&c);
    m.config = config;
    must(dms_hf_write(scratch_path(&dir, "untied"), &m));
    must(dms_source_open(&back, scratch_path(&dir, "untied")));
    cr_expect_not_null(dms_source_find(back, "lm_head.weight"));
    dms_source_close(back);
    json_object_set_new(config, "tie_word_embeddings", json_true());
    cr_expect_eq(dms_hf_write(scratch_path(&dir, "tied"), &m), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "lm_head.weight that differs"), "%s", dms_error_text());
    m.tensors.fetch = fetch_tied; /* the embedding under both names: fine */
    must(dms_hf_write(scratch_path(&dir, "tied"), &m));
    json_decref(config);
    copy_close(&c);
    scratch_close(&dir);
}

/* Opening a folder with these contents must fail with this message. */
static void refuses(const char *config, const char *index, const char *expected)
{
    dms_source *s;
    scratch dir = scratch_open();
    if (config)
        write_bytes(scratch_path(&dir, "config.json"), config, strlen(config));
    if (index)
        write_bytes(scratch_path(&dir, "model.safetensors.index.json"), index, strlen(index));
    cr_expect_neq(dms_source_open(&s, dir.folder), DMS_OK);
    cr_expect(strstr(dms_error_text(), expected), "%s does not say %s", dms_error_text(), expected);
    scratch_close(&dir);
}

Test(huggingface, says_what_a_folder_lacks)
{
    refuses(NULL, NULL, "no config.json");
    refuses("{", NULL, "config.json is no JSON object: line 1");
    refuses("[]", NULL, "config.json is no JSON object");
    refuses("{}", NULL, "neither model.safetensors nor");
    refuses("{}", "{}", "no weight_map");
    refuses("{}", "{\"weight_map\": {\"a\": \"../x\"}}", "no file of this folder");
    refuses("{}", "{\"weight_map\": {\"a\": 7}}", "no file of this folder");
    refuses("{}", "{\"weight_map\": {\"a\": \"x.safetensors\"}}", "x.safetensors cannot be opened");
    cr_expect_eq(dms_source_open(&(dms_source *){NULL}, "/no/such/model"), DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "/no/such/model cannot be opened: No such file"));
}

Test(huggingface, refuses_more_layers_than_the_config_says)
{
    char path[1024];
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/llama"), DMS_F32);
    dms_hf_model m = model_of(&c);
    json_t *config = json_deep_copy(m.config);
    json_object_set_new(config, "num_hidden_layers", json_integer(1));
    m.config = config;
    cr_expect_eq(dms_hf_write(scratch_path(&dir, "m"), &m), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "num_hidden_layers is 1, but the weights have tensor "
                                       "model.layers.1."),
              "%s", dms_error_text());
    json_decref(config);
    copy_close(&c);
    scratch_close(&dir);
}

Test(huggingface, takes_the_default_of_several_chat_templates)
{
    static const char several[] = "{\"chat_template\": [{\"name\": \"tool\", \"template\": \"A\"}, "
                                  "{\"name\": \"default\", \"template\": \"B\"}]}";
    char path[1024];
    dms_source *s;
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/llama"), DMS_F32);
    dms_hf_model m = model_of(&c);
    must(dms_hf_write(scratch_path(&dir, "m"), &m));
    write_bytes(scratch_path(&dir, "m/tokenizer_config.json"), several, strlen(several));
    must(dms_source_open(&s, scratch_path(&dir, "m")));
    cr_expect_str_eq(dms_source_chat_template(s), "B");
    dms_source_close(s);
    copy_close(&c);
    scratch_close(&dir);
}

Test(huggingface, hashes_contents_not_places)
{
    char path[1024], one[65], two[65], other[65];
    dms_source *back;
    scratch dir = scratch_open();
    copy c = copy_of(fixture(path, "tiny/llama3"), DMS_F32);
    dms_hf_model m = model_of(&c);
    must(dms_hf_write(scratch_path(&dir, "m"), &m)); /* two shards become one file */
    must(dms_source_open(&back, scratch_path(&dir, "m")));
    must(dms_source_hash(c.source, one));
    must(dms_source_hash(back, two));
    cr_expect_str_eq(one, two);
    dms_source_close(back);
    copy_close(&c);
    must(dms_source_open(&back, fixture(path, "tiny/llama")));
    must(dms_source_hash(back, other));
    cr_expect_str_neq(one, other);
    dms_source_close(back);
    scratch_close(&dir);
}

/* FIPS 180-4's examples, and a million times "a". */
Test(huggingface, sha256_is_sha256)
{
    static const struct {
        const char *text, *hex;
        int times;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 1},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 1},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1", 1},
        {"a", "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", 1000000}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        char hex[65];
        dms_sha256 h;
        dms_sha256_start(&h);
        for (int k = 0; k < cases[i].times; k++)
            dms_sha256_add(&h, cases[i].text, strlen(cases[i].text));
        dms_sha256_finish(&h, hex);
        cr_expect_str_eq(hex, cases[i].hex);
    }
}
