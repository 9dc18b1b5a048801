/* What dms-inspect says of files of each format, against what the files say by definition. */
#include "checkpoints/checkpoint.h"
#include "data/shard.h"
#include "model/family.h"
#include "tests/inspect.h"

static const char *const families[] = {"llama", "llama3", "qwen2", "qwen3"};

static json_t *load_fixture(const char *folder, const char *name)
{
    char relative[128], path[1024];
    snprintf(relative, sizeof(relative), "tiny/%s/%s", folder, name);
    json_t *root = json_load_file(fixture(path, relative), 0, NULL);
    cr_assert_not_null(root, "%s", path);
    return root;
}

/* The header of a safetensors file (8 bytes of length, then JSON), read by its definition. */
static json_t *load_header(const char *path, size_t *file_bytes)
{
    char *bytes = read_bytes(path, file_bytes);
    uint64_t length = 0;
    memcpy(&length, bytes, sizeof(length));
    json_t *header = json_loadb(bytes + 8, length, 0, NULL);
    cr_assert_not_null(header, "%s", path);
    json_object_del(header, "__metadata__");
    free(bytes);
    return header;
}

static const json_t *listed(const json_t *view, const char *name)
{
    size_t i;
    json_t *item;
    json_array_foreach(find(view, "tensor_list"), i, item)
    {
        if (!strcmp(json_string_value(json_object_get(item, "name")), name))
            return item;
    }
    cr_assert(false, "tensor %s is not listed", name);
    return NULL;
}

/* Each tensor of the header is listed with its type, shape and size; adds to the totals. */
static void expect_tensors(const json_t *view, json_t *header, double totals[3])
{
    const char *name;
    json_t *value;
    json_object_foreach(header, name, value)
    {
        const json_t *t = listed(view, name), *offsets = json_object_get(value, "data_offsets");
        const json_int_t bytes = json_integer_value(json_array_get(offsets, 1)) -
                                 json_integer_value(json_array_get(offsets, 0));
        expect_text(t, "type", json_string_value(json_object_get(value, "dtype")));
        cr_assert(json_equal(find(t, "shape"), json_object_get(value, "shape")), "%s", name);
        expect_number(t, "bytes", (double)bytes);
        totals[0]++;
        totals[1] += json_number_value(find(t, "parameters"));
        totals[2] += (double)bytes;
    }
}

static void expect_totals(const json_t *view, const double totals[3])
{
    cr_assert_eq((double)json_array_size(find(view, "tensor_list")), totals[0]);
    expect_number(view, "weights.tensors", totals[0]);
    expect_number(view, "weights.parameters", totals[1]);
    expect_number(view, "weights.bytes", totals[2]);
}

Test(inspect, lists_the_tensors_of_a_folder_as_its_headers_do)
{
    inspection i = inspection_open();
    for (size_t f = 0; f < COUNT(families); f++) {
        static const char *const shards[] = {"model.safetensors",
                                             "model-00001-of-00002.safetensors",
                                             "model-00002-of-00002.safetensors"};
        const bool split = !strcmp(families[f], "llama3");
        char arguments[128], relative[128], path[1024];
        double totals[3] = {0}, file_bytes = 0;
        snprintf(arguments, sizeof(arguments), "--tensors $FIX/tiny/%s", families[f]);
        const json_t *view = inspect(&i, DONE, arguments);
        for (int k = split ? 1 : 0; k < (split ? 3 : 1); k++) {
            size_t n;
            snprintf(relative, sizeof(relative), "tiny/%s/%s", families[f], shards[k]);
            json_t *header = load_header(fixture(path, relative), &n);
            expect_tensors(view, header, totals);
            file_bytes += (double)n;
            json_decref(header);
        }
        expect_totals(view, totals);
        expect_number(view, "weights.types.F32.bytes", totals[2]);
        expect_number(view, "files", split ? 2 : 1);
        expect_number(view, "file_bytes", file_bytes);
        expect_text(view, "format", "huggingface");
        expect_text(view, "view", "model");
        expect_number(view, "version", 1);
    }
    inspection_close(&i);
}

Test(inspect, lists_a_safetensors_file_alone)
{
    size_t n;
    char path[1024];
    double totals[3] = {0};
    inspection i = inspection_open();
    const json_t *view = inspect(&i, DONE, "--tensors $FIX/tiny/qwen3/dms_adapter.safetensors");
    json_t *header = load_header(fixture(path, "tiny/qwen3/dms_adapter.safetensors"), &n);
    expect_tensors(view, header, totals);
    expect_totals(view, totals);
    expect_text(view, "format", "safetensors");
    expect_number(view, "file_bytes", (double)n);
    expect_number(view, "weights.types.I32.tensors", 1);
    expect_part(view, "architecture", NULL);
    expect_part(view, "config", NULL);
    expect_part(view, "tokenizer", NULL);
    expect_part(view, "checkpoint", NULL);
    find(view, "texts.alpha_scale");
    json_decref(header);
    inspection_close(&i);
}

/* Block sizes: the definitions of ggml's types. The tiny model is the same in each file. */
Test(inspect, knows_the_sizes_of_every_gguf_type)
{
    static const struct {
        const char *file, *type;
        int elements, bytes;
    } cases[] = {
        {"F32", "F32", 1, 4},         {"F16", "F16", 1, 2},         {"BF16", "BF16", 1, 2},
        {"Q8_0", "Q8_0", 32, 34},     {"Q4_0", "Q4_0", 32, 18},     {"Q4_1", "Q4_1", 32, 20},
        {"Q5_0", "Q5_0", 32, 22},     {"Q5_1", "Q5_1", 32, 24},     {"Q2_K", "Q2_K", 256, 84},
        {"Q3_K_M", "Q3_K", 256, 110}, {"Q4_K_M", "Q4_K", 256, 144}, {"Q5_K_M", "Q5_K", 256, 176},
        {"Q6_K", "Q6_K", 256, 210},   {"IQ4_NL", "IQ4_NL", 32, 18}, {"IQ4_XS", "IQ4_XS", 256, 136}};
    inspection i = inspection_open();
    double parameters = 0;
    for (size_t k = 0; k < COUNT(cases); k++) {
        char arguments[128];
        bool seen = false;
        size_t n;
        json_t *t;
        snprintf(arguments, sizeof(arguments), "--tensors $FIX/gguf/tiny-%s.gguf", cases[k].file);
        const json_t *view = inspect(&i, DONE, arguments);
        json_array_foreach(find(view, "tensor_list"), n, t)
        {
            if (strcmp(json_string_value(find(t, "type")), cases[k].type) != 0)
                continue;
            const double elements = json_number_value(find(t, "parameters"));
            expect_number(t, "bytes", elements / cases[k].elements * cases[k].bytes);
            seen = true;
        }
        cr_assert(seen, "%s has no tensor of type %s", arguments, cases[k].type);
        parameters = k ? parameters : json_number_value(find(view, "weights.parameters"));
        expect_number(view, "weights.parameters", parameters);
        expect_text(view, "format", "gguf");
        expect_text(view, "architecture.model_type", "llama");
        expect_true(view, "architecture.supported", true);
    }
    inspection_close(&i);
}

Test(inspect, tells_the_network_that_a_config_describes)
{
    static const char *const keys[][2] = {{"layers", "num_hidden_layers"},
                                          {"heads", "num_attention_heads"},
                                          {"kv_heads", "num_key_value_heads"},
                                          {"width", "hidden_size"},
                                          {"ffn", "intermediate_size"},
                                          {"vocabulary", "vocab_size"},
                                          {"positions", "max_position_embeddings"},
                                          {"bos", "bos_token_id"}};
    inspection i = inspection_open();
    for (size_t f = 0; f < COUNT(families); f++) {
        char arguments[128];
        json_t *config = load_fixture(families[f], "config.json");
        snprintf(arguments, sizeof(arguments), "$FIX/tiny/%s", families[f]);
        const json_t *view = inspect(&i, DONE, arguments);
        const json_t *network = find(view, "architecture");
        for (size_t k = 0; k < COUNT(keys); k++)
            if (json_is_integer(json_object_get(config, keys[k][1])))
                expect_number(network, keys[k][0],
                              json_number_value(json_object_get(config, keys[k][1])));
        expect_text(network, "model_type",
                    json_string_value(json_object_get(config, "model_type")));
        expect_true(network, "tied", json_is_true(json_object_get(config, "tie_word_embeddings")));
        expect_true(network, "qkv_bias", !strcmp(families[f], "qwen2"));
        expect_true(network, "qk_norm", !strcmp(families[f], "qwen3"));
        expect_true(network, "supported", true);
        expect_part(network, "problem", NULL);
        cr_assert(json_equal(find(view, "config"), config));
        json_decref(config);
    }
    inspection_close(&i);
}

Test(inspect, describes_the_tokenizer_as_its_file_does)
{
    inspection i = inspection_open();
    json_t *root = load_fixture("llama3", "tokenizer.json"), *added, *token;
    const json_t *view = inspect(&i, DONE, "$FIX/tiny/llama3");
    const json_t *t = find(view, "tokenizer");
    size_t k, specials = 0;
    expect_text(t, "kind", "byte-level BPE");
    expect_number(t, "vocabulary_entries", (double)json_object_size(find(root, "model.vocab")));
    expect_number(t, "merges", (double)json_array_size(find(root, "model.merges")));
    added = find(root, "added_tokens");
    expect_number(t, "added_tokens", (double)json_array_size(added));
    json_array_foreach(added, k, token)
    {
        if (!json_is_true(json_object_get(token, "special")))
            continue;
        const json_t *shown = json_array_get(find(t, "special_tokens"), specials++);
        expect_number(shown, "id", json_number_value(json_object_get(token, "id")));
        expect_text(shown, "text", json_string_value(json_object_get(token, "content")));
    }
    cr_assert_eq(json_array_size(find(t, "special_tokens")), specials);
    expect_true(t, "supported", true);
    expect_part(view, "chat_template", NULL);
    json_decref(root);
    inspection_close(&i);
}

/* Copies tiny/llama to m and puts keys before the first of its config. */
static void copy_with_keys(inspection *i, const char *family, const char *keys)
{
    char command[1024];
    snprintf(command, sizeof(command),
             "rm -rf m; cp -r $FIX/tiny/%s m && chmod -R u+w m && "
             "sed -i '1s/{/{ %s/' m/config.json",
             family, keys);
    cr_assert_eq(shell(i, command), 0, "%s", i->err);
}

Test(inspect, describes_the_gate_of_a_retrofitted_model)
{
    inspection i = inspection_open();
    expect_part(inspect(&i, DONE, "$FIX/tiny/llama"), "dms", NULL);
    copy_with_keys(&i, "llama",
                   "\"dms_window_size\": 24, \"dms_alpha_scale\": 50.0, \"dms_cr\": 8, "
                   "\"dms_initial_alpha_offset\": 4.5,");
    const json_t *view = inspect(&i, DONE, "m");
    expect_text(view, "dms.gate", "neuron");
    expect_number(view, "dms.window", 24);
    expect_number(view, "dms.alpha_scale", 50);
    expect_number(view, "dms.alpha_offset", 4.5);
    expect_number(view, "dms.tau", 0.1); /* method.md: absent keys take the default */
    expect_number(view, "dms.cr", 8);
    expect_number(view, "dms.shift", 1);
    expect_text(view, "dms.layout", "plain");
    expect_number(view, "dms.keys.dms_cr", 8);
    cr_assert_eq(json_object_size(find(view, "dms.keys")), 4);
    copy_with_keys(&i, "qwen3",
                   "\"dms_window_size\": 24, \"dms_separate_alpha\": false, \"auto_map\": "
                   "{\"AutoModelForCausalLM\": \"modeling_qwen3_dms.Qwen3ForCausalLM\"},");
    expect_text(inspect(&i, DONE, "m"), "dms.layout", "nvidia-released");
    copy_with_keys(&i, "llama", "\"dms_window_size\": -3,");
    expect_part(inspect(&i, DONE, "m"), "dms.problem", "dms_window_size");
    inspection_close(&i);
}

Test(inspect, says_which_weight_is_missing)
{
    inspection i = inspection_open();
    copy_with_keys(&i, "llama", "\"dms_window_size\": 24, \"dms_separate_alpha\": true,");
    const json_t *view = inspect(&i, DONE, "m");
    expect_text(view, "dms.gate", "adapter");
    expect_true(view, "architecture.supported", false);
    expect_part(view, "architecture.problem", "dms_proj_alpha");
    copy_with_keys(&i, "llama", "");
    cr_assert_eq(shell(&i, "sed -i 's/\"num_hidden_layers\": 2/\"num_hidden_layers\": 3/' "
                           "m/config.json"),
                 0);
    expect_part(inspect(&i, DONE, "m"), "architecture.problem", "model.layers.2.");
    inspection_close(&i);
}

Test(inspect, names_what_cannot_run_here_and_describes_the_rest)
{
    inspection i = inspection_open();
    copy_with_keys(&i, "llama", "");
    cr_assert_eq(shell(&i, "sed -i 's/\"model_type\": \"llama\"/\"model_type\": \"mamba\"/' "
                           "m/config.json; echo '{\"model\": 1}' >m/tokenizer.json; "
                           "printf '{%% for m in messages %%}[INST]' >m/chat_template.jinja"),
                 0);
    const json_t *view = inspect(&i, DONE, "m");
    expect_text(view, "architecture.model_type", "mamba");
    expect_part(view, "architecture.problem", "mamba");
    expect_true(view, "tokenizer.supported", false);
    expect_part(view, "tokenizer.problem", "model");
    expect_text(view, "chat_template.format", "unknown");
    cr_assert(json_is_string(find(view, "chat_template.problem")));
    cr_assert(json_integer_value(find(view, "weights.tensors")) > 0);
    inspection_close(&i);
}

Test(inspect, tells_an_adapter_from_a_model)
{
    static const char config[] = "{\"model_type\": \"llama\", \"dms_window_size\": 8, "
                                 "\"dms_separate_alpha\": true}";
    const float values[4] = {1, 2, 3, 4};
    inspection i = inspection_open();
    dms_checkpoint_writer *w = NULL;
    must(dms_checkpoint_writer_open(&w, scratch_path(&i.dir, "a.h5")));
    must(dms_checkpoint_put_text(w, "config", config, strlen(config)));
    must(dms_checkpoint_put_tensor(w, "weights", "model.layers.0.self_attn.dms_proj_alpha.weight",
                                   DMS_F32, 2, (int64_t[]){1, 4}, values));
    must(dms_checkpoint_writer_commit(w));
    const json_t *view = inspect(&i, DONE, "a.h5");
    expect_true(view, "architecture.adapter_only", true);
    expect_part(view, "architecture.problem", "adapter gate alone");
    expect_text(view, "dms.gate", "adapter");
    expect_number(view, "dms.window", 8);
    expect_number(view, "dms.gate_tensors", 1);
    inspection_close(&i);
}

Test(inspect, recognises_a_chat_template_or_says_unknown)
{
    inspection i = inspection_open();
    copy_with_keys(&i, "llama", "");
    cr_assert_eq(shell(&i,
                       "printf \"{{ '<|im_start|>user\\n' + message['content'] + '<|im_end|>' }}"
                       "{{ '<|im_start|>assistant\\n' }}\" "
                       ">m/chat_template.jinja; cp -r m u; printf '[INST]' >u/chat_template.jinja"),
                 0);
    const json_t *view = inspect(&i, DONE, "m");
    expect_part(view, "chat_template.problem", NULL);
    expect_text(view, "chat_template.format", "ChatML");
    view = inspect(&i, DONE, "u");
    expect_text(view, "chat_template.format", "unknown");
    expect_part(view, "chat_template.problem", "[INST]");
    inspection_close(&i);
}

static void write_checkpoint(inspection *i, const char *name, float last)
{
    static const char config[] = "{\"model_type\": \"llama\"}";
    const float values[6] = {1, 2, 3, 4, 5, last};
    dms_checkpoint_writer *w = NULL;
    must(dms_checkpoint_writer_open(&w, scratch_path(&i->dir, name)));
    must(dms_checkpoint_put_text(w, "config", config, strlen(config)));
    must(dms_checkpoint_put_text(w, "teacher_path", "there", 5));
    must(dms_checkpoint_put_int(w, "step", 7));
    must(dms_checkpoint_put_real(w, "loss", 0.25));
    must(dms_checkpoint_put_tensor(w, "weights", "w", DMS_F32, 2, (int64_t[]){2, 3}, values));
    must(dms_checkpoint_put_tensor(w, "adam_m", "w", DMS_F32, 1, (int64_t[]){6}, values));
    must(dms_checkpoint_writer_commit(w));
}

Test(inspect, shows_what_a_checkpoint_carries)
{
    inspection i = inspection_open();
    write_checkpoint(&i, "a.h5", 6);
    const json_t *view = inspect(&i, DONE, "a.h5 --verify");
    expect_text(view, "format", "dms");
    expect_number(view, "weights.parameters", 6);
    expect_number(view, "checkpoint.numbers.step", 7);
    cr_assert(json_is_integer(find(view, "checkpoint.numbers.step")));
    expect_number(view, "checkpoint.numbers.loss", 0.25);
    expect_number(view, "checkpoint.groups.adam_m.bytes", 24);
    expect_number(view, "checkpoint.groups.weights.tensors", 1);
    expect_text(view, "checkpoint.teacher_path", "there");
    expect_part(view, "checkpoint.teacher_hash", NULL);
    expect_true(view, "integrity.verified", true);
    expect_number(view, "integrity.crc_tensors", 2);
    expect_number(view, "integrity.not_finite", 0);
    expect_part(view, "integrity.problem", NULL);
    expect_true(inspect(&i, DONE, "a.h5"), "integrity.verified", false);
    inspection_close(&i);
}

Test(inspect, shows_a_compressed_checkpoint_with_both_sizes)
{
    enum { N = 1 << 16 };
    static float values[N];
    size_t n;
    uint32_t seed = 1;
    inspection i = inspection_open();
    dms_checkpoint_writer *w = NULL;
    for (int k = 0; k < N; k++)
        values[k] = (float)(roll(&seed) & 0xffff); /* two bytes of noise in four */
    must(dms_checkpoint_writer_open(&w, scratch_path(&i.dir, "a.h5")));
    dms_checkpoint_writer_compress(w);
    must(dms_checkpoint_put_tensor(w, "weights", "w", DMS_F32, 1, (int64_t[]){N}, values));
    must(dms_checkpoint_writer_commit(w));
    free(read_bytes(scratch_path(&i.dir, "a.h5"), &n));
    const json_t *view = inspect(&i, DONE, "a.h5 --verify");
    cr_assert_lt(n, sizeof(values), "it was not compressed");
    expect_number(view, "files", 1);
    expect_number(view, "file_bytes", (double)n);
    expect_number(view, "weights.bytes", sizeof(values));
    expect_true(view, "integrity.verified", true);
    inspection_close(&i);
}

Test(inspect, describes_a_damaged_checkpoint_and_fails)
{
    size_t n;
    const float pair[2] = {4, 5};
    inspection i = inspection_open();
    write_checkpoint(&i, "a.h5", 6);
    char *bytes = read_bytes(scratch_path(&i.dir, "a.h5"), &n);
    char *at = memmem(bytes, n, pair, sizeof(pair));
    cr_assert_not_null(at);
    at[1] ^= 1;
    write_bytes(scratch_path(&i.dir, "a.h5"), bytes, n);
    const json_t *view = inspect(&i, FAILED, "a.h5 --verify");
    expect_part(view, "integrity.problem", "CRC-32");
    expect_true(view, "integrity.verified", false);
    cr_assert(strstr(i.err, "CRC-32") && strchr(i.err, '\n') == strrchr(i.err, '\n'), "%s", i.err);
    inspect(&i, DONE, "a.h5");
    free(bytes);
    inspection_close(&i);
}

Test(inspect, counts_the_values_that_are_not_finite)
{
    inspection i = inspection_open();
    write_checkpoint(&i, "a.h5", NAN);
    const json_t *view = inspect(&i, FAILED, "a.h5 --verify");
    expect_number(view, "integrity.not_finite", 1);
    expect_part(view, "integrity.problem", "1 values are not finite, the first of them in w");
    inspection_close(&i);
}

Test(inspect, describes_token_shards)
{
    size_t n;
    inspection i = inspection_open();
    const int32_t ids[5] = {1, 2, 3, 2, 1};
    dms_shard_writer *w = NULL;
    must(dms_shard_writer_open(&w, scratch_path(&i.dir, "x.tok"), 70000, 0xabcd));
    must(dms_shard_writer_append(w, ids, 5));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
    const json_t *view = inspect(&i, DONE, "x.tok --verify");
    char *bytes = read_bytes(scratch_path(&i.dir, "x.tok"), &n);
    expect_text(view, "view", "shard");
    expect_number(view, "tokens", 5);
    expect_number(view, "vocabulary", 70000);
    expect_number(view, "id_bytes", 4);
    expect_number(view, "file_bytes", (double)n);
    expect_text(view, "tokenizer_crc32", "0000abcd");
    expect_true(view, "integrity.verified", true);
    bytes[n - 1] ^= 1;
    write_bytes(scratch_path(&i.dir, "x.tok"), bytes, n);
    expect_part(inspect(&i, FAILED, "x.tok --verify"), "integrity.problem", "CRC");
    free(bytes);
    inspection_close(&i);
}

Test(inspect, prints_the_table_that_the_parser_reads)
{
    inspection i = inspection_open();
    const json_t *list = find(inspect(&i, DONE, "--families"), "families");
    size_t k;
    for (k = 0; dms_family_at((int)k); k++) {
        const dms_family *f = dms_family_at((int)k);
        const json_t *shown = json_array_get(list, k);
        expect_text(shown, "model_type", f->model_type);
        expect_text(shown, "models", f->models);
        expect_text(shown, "norm", dms_norm_name(f->norm));
        expect_text(shown, "qkv_bias", dms_bias_name(f->qkv_bias));
        expect_true(shown, "qk_norm", f->qk_norm);
        expect_true(shown, "tied_by_default", f->tied_by_default);
    }
    cr_assert_eq(json_array_size(list), k);
    cr_assert_eq(shell(&i, "$BIN/dms-inspect --families"), 0);
    cr_assert(strstr(i.out, "llama") && strstr(i.out, "RMSNorm") && strstr(i.out, "Qwen2.5"));
    inspection_close(&i);
}

/* Objects whose keys are names from the file. */
static bool is_open(const char *key)
{
    static const char *const open[] = {"config", "types", "texts", "numbers", "groups", "keys"};
    for (size_t i = 0; i < COUNT(open); i++)
        if (!strcmp(open[i], key))
            return true;
    return false;
}

static void expect_documented(const char *page, json_t *value)
{
    const char *key;
    json_t *inner;
    size_t i;
    json_array_foreach(value, i, inner) expect_documented(page, inner);
    json_object_foreach(value, key, inner)
    {
        char quoted[64];
        snprintf(quoted, sizeof(quoted), "`%s`", key);
        cr_assert(strstr(page, quoted), "docs/inspect.md does not mention %s", quoted);
        if (!is_open(key))
            expect_documented(page, inner);
    }
}

Test(inspect, every_key_is_documented)
{
    size_t n;
    inspection i = inspection_open();
    char *page = read_bytes(DMS_SOURCE_DIR "/docs/inspect.md", &n);
    copy_with_keys(&i, "llama3", "\"dms_window_size\": 24,");
    write_checkpoint(&i, "a.h5", 6);
    expect_documented(page, inspect(&i, DONE, "m --tensors --verify"));
    expect_documented(page, inspect(&i, DONE, "a.h5"));
    expect_documented(page, inspect(&i, DONE, "--families"));
    expect_documented(page, inspect(&i, FAILED, "diff $FIX/tiny/qwen2 $FIX/tiny/qwen3"));
    cr_assert_eq(shell(&i, "$BIN/dms-tokenize $FIX/tiny/llama -o x.tok $FIX/README.md"), 0);
    expect_documented(page, inspect(&i, DONE, "x.tok"));
    free(page);
    inspection_close(&i);
}

/* Readable lines: the same facts, no space at an end, nothing but printable ASCII. */
Test(inspect, writes_readable_lines)
{
    static const char *const commands[] = {
        "$BIN/dms-inspect $FIX/tiny/llama3 --tensors --verify",
        "$BIN/dms-inspect $FIX/gguf/tiny-Q4_K_M.gguf",
        "$BIN/dms-inspect a.h5",
        "$BIN/dms-inspect $FIX/tiny/qwen3/dms_adapter.safetensors",
        "$BIN/dms-inspect --families",
        "$BIN/dms-inspect diff $FIX/tiny/qwen2 $FIX/tiny/qwen3 || true"};
    inspection i = inspection_open();
    write_checkpoint(&i, "a.h5", 6);
    for (size_t k = 0; k < COUNT(commands); k++) {
        cr_assert_eq(shell(&i, commands[k]), 0, "%s: %s", commands[k], i.err);
        cr_assert(*i.out && !strstr(i.out, " \n"), "%s: a line ends in a space", commands[k]);
        for (const char *c = i.out; *c; c++)
            cr_assert(*c == '\n' || (*c >= ' ' && *c <= '~'), "%s: byte %d", commands[k], *c);
    }
    cr_assert_eq(shell(&i, commands[0]), 0);
    static const char *const parts[] = {"Hugging Face folder",
                                        "2 files",
                                        "21 tensors, 117,056 parameters, 468 kB",
                                        "llama: 2 layers of width 64",
                                        "vocabulary 320",
                                        "byte-level BPE",
                                        "<|eot_id|> 2",
                                        "every value is finite",
                                        "model.layers.1.mlp.down_proj.weight"};
    for (size_t k = 0; k < COUNT(parts); k++)
        cr_assert(strstr(i.out, parts[k]), "no \"%s\" in: %s", parts[k], i.out);
    inspection_close(&i);
}

Test(inspect, wrong_usage_and_broken_files_get_one_message)
{
    static const struct {
        const char *arguments;
        int code;
        const char *message;
    } cases[] = {{"", USAGE, "0 models are named"},
                 {"a b", USAGE, "2 models are named"},
                 {"--what a", USAGE, "option --what"},
                 {"--tensors=3 a", USAGE, "--tensors"},
                 {"a --tolerance 1", USAGE, "--tolerance goes with diff"},
                 {"--families a", USAGE, "--families"},
                 {"--families --verify", USAGE, "--families"},
                 {"absent", FAILED, "absent"},
                 {"broken.gguf", FAILED, "broken.gguf"},
                 {"broken.safetensors", FAILED, "broken.safetensors"},
                 {"broken.h5", FAILED, "broken.h5"},
                 {"broken", FAILED, "config.json"},
                 {"empty", FAILED, "empty"},
                 {"x.tok", FAILED, "x.tok"}};
    inspection i = inspection_open();
    write_checkpoint(&i, "a.h5", 6);
    cr_assert_eq(
        shell(&i, "head -c 3000 $FIX/gguf/tiny-F32.gguf >broken.gguf; head -c 900 a.h5 >broken.h5;"
                  "head -c 9000 $FIX/tiny/llama/model.safetensors >broken.safetensors;"
                  "mkdir broken; cp $FIX/tiny/llama/model.safetensors broken;"
                  "echo '{' >broken/config.json; : >empty; printf DMSTOKS1 >x.tok"),
        0);
    for (size_t k = 0; k < COUNT(cases); k++) {
        char command[256];
        snprintf(command, sizeof(command), "$BIN/dms-inspect %s", cases[k].arguments);
        const int code = shell(&i, command);
        cr_assert_eq(code, cases[k].code, "%s: exit code %d: %s", command, code, i.err);
        cr_assert(strstr(i.err, cases[k].message), "%s said: %s", command, i.err);
        cr_assert(strchr(i.err, '\n') == strrchr(i.err, '\n'), "%s said: %s", command, i.err);
        cr_assert(!*i.out, "%s printed: %s", command, i.out);
    }
    inspection_close(&i);
}
