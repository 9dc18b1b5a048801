/* Writes the inputs that fuzzing begins with, from our own writers and the small files among the
 * fixtures: FOLDER/TARGET/name. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/files.h"
#include "checkpoints/safetensors.h"
#include "data/shard.h"
#include "tests/fixtures.h"
#include "tests/fuzz/gguf_builder.h"
#include "train/recipe.h"

static const char *root;

static void must(dms_status status)
{
    if (status) {
        fprintf(stderr, "fuzz_seeds: %s\n", dms_error_text());
        exit(1);
    }
}

/* "FOLDER/TARGET/name", in a buffer of its own until the next call. */
static const char *seed(const char *target, const char *name)
{
    static char path[1024];
    snprintf(path, sizeof(path), "%s/%s", root, target);
    mkdir(path, 0777);
    snprintf(path, sizeof(path), "%s/%s/%s", root, target, name);
    return path;
}

static void put_text(const char *target, const char *name, const char *text)
{
    must(dms_file_write(seed(target, name), text, strlen(text)));
}

/* A fixture as it is; one that is missing or larger than 64 KiB is left out. */
static void copy(const char *target, const char *name, const char *relative)
{
    char path[1024];
    char *text = NULL;
    size_t n = 0;
    must(dms_text_read(&text, &n, fixture(path, relative)));
    if (text && n <= 64 << 10)
        must(dms_file_write(seed(target, name), text, n));
    free(text);
}

/* A file of the tests. */
static void copy_own(const char *target, const char *name, const char *relative)
{
    char path[1024];
    char *text = NULL;
    size_t n = 0;
    snprintf(path, sizeof(path), "%s/tests/%s", DMS_SOURCE_DIR, relative);
    must(dms_text_read(&text, &n, path));
    if (text && n <= 64 << 10)
        must(dms_file_write(seed(target, name), text, n));
    free(text);
}

static dms_status count_up(void *context, int64_t i, void *dst)
{
    const dms_tensor_entry *e = (const dms_tensor_entry *)context + i;
    uint8_t *at = dst;
    for (size_t k = 0; k < dms_tensor_entry_bytes(e); k++)
        at[k] = (uint8_t)(i + (int64_t)k);
    return DMS_OK;
}

static void safetensors_seeds(void)
{
    dms_tensor_entry e[] = {{.name = "scalar", .dtype = DMS_F32, .rank = 0, .shape = {0}},
                            {.name = "model.layers.0.self_attn.q_proj.weight",
                             .dtype = DMS_BF16,
                             .rank = 2,
                             .shape = {3, 4}},
                            {.name = "ids", .dtype = DMS_I32, .rank = 1, .shape = {5}},
                            {.name = "empty", .dtype = DMS_F32, .rank = 2, .shape = {0, 7}},
                            {.name = "deep", .dtype = DMS_BF16, .rank = 4, .shape = {1, 2, 1, 2}}};
    must(dms_safetensors_write(seed("safetensors", "one"), &(dms_tensor_set){e, 1, count_up, e}));
    must(dms_safetensors_write(seed("safetensors", "five"), &(dms_tensor_set){e, 5, count_up, e}));
}

static void index_seeds(void)
{
    put_text("index", "two",
             "{\"metadata\": {\"total_size\": 8}, \"weight_map\": {\"a\": \"x\", \"b\": \"y\"}}");
    put_text("index", "astray", "{\"weight_map\": {\"a\": \"../x\", \"b\": \"config.json\"}}");
    copy("index", "llama3", "tiny/llama3/model.safetensors.index.json");
}

static void config_seeds(void)
{
    static const char *const families[] = {"llama", "llama3", "qwen2", "qwen3"};
    char path[256];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof(path), "tiny/%s/config.json", families[i]);
        copy("config", families[i], path);
    }
    copy_own("config", "gpt2", "data/gpt2/config.json");
    copy_own("config", "deepseek-llama", "data/deepseek-llama/config.json");
    copy_own("config", "deepseek-qwen2", "data/deepseek-qwen2/config.json");
    put_text("config", "nvidia",
             "{\"architectures\": [\"Qwen3ForCausalLM\"], \"auto_map\": {\"AutoConfig\": "
             "\"configuration_qwen3_dms.Qwen3Config\", \"AutoModelForCausalLM\": "
             "\"modeling_qwen3_dms.Qwen3ForCausalLM\"}, \"model_type\": \"qwen3\", "
             "\"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 2, "
             "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 32, "
             "\"vocab_size\": 320, \"rms_norm_eps\": 1e-6, \"rope_theta\": 1e6, "
             "\"dms_alpha_per\": \"head\", \"dms_alpha_scale\": 100.0, "
             "\"dms_initial_alpha_offset\": 5.0, \"dms_window_size\": 512, \"dms_cr\": 8, "
             "\"dms_tau\": 0.1, \"dms_paged_attention_block_size\": 256, "
             "\"dms_disable_eviction\": false, \"dms_manual_inference_mode\": false, "
             "\"dms_chunked_prefill\": null, \"dms_preallocate_for_tokens\": 4096, "
             "\"dms_separate_alpha\": false, \"dms_shift\": 1}");
    put_text("config", "dms",
             "{\"model_type\": \"qwen3\", \"hidden_size\": 64, \"intermediate_size\": 96,"
             "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
             "\"head_dim\": 32, \"vocab_size\": 320, \"rms_norm_eps\": 1e-6, \"rope_theta\": 1e6,"
             "\"max_position_embeddings\": 256, \"tie_word_embeddings\": false,"
             "\"hidden_act\": \"silu\", \"eos_token_id\": [1, 2], \"bos_token_id\": null,"
             "\"dms_window_size\": 256, \"dms_alpha_scale\": 100.0, \"dms_initial_alpha_offset\":"
             " 5.0, \"dms_separate_alpha\": true, \"dms_tau\": 0.1, \"dms_cr\": 8,"
             "\"rope_scaling\": {\"rope_type\": \"default\"}, \"use_sliding_window\": false}");
}

#define BYTE_LEVEL "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
#define TOKENIZER(model, added, normalizer, pre)                                             \
    "{\"version\": \"1.0\", \"added_tokens\": [" added "], \"normalizer\": " normalizer ", " \
    "\"pre_tokenizer\": " pre ", \"post_processor\": null, \"decoder\": " BYTE_LEVEL         \
    "\"use_regex\": true}, \"model\": {\"type\": \"BPE\", \"dropout\": null, " model "}}"

static void tokenizer_seeds(void)
{
    put_text("tokenizer", "plain",
             TOKENIZER("\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"abab\": 3}, "
                       "\"merges\": [\"a b\", \"ab ab\"]",
                       "", "null", BYTE_LEVEL "\"use_regex\": true}"));
    put_text("tokenizer", "pairs",
             TOKENIZER("\"ignore_merges\": true, \"unk_token\": null, \"byte_fallback\": false, "
                       "\"vocab\": {\"<s>\": 0, \"a\": 1, \"b\": 2, \"ab\": 3, \"\\u0120\": 4}, "
                       "\"merges\": [[\"a\", \"b\"]]",
                       "{\"id\": 0, \"content\": \"<s>\", \"single_word\": false, \"lstrip\": "
                       "true, \"rstrip\": true, \"normalized\": false, \"special\": true}, "
                       "{\"id\": 5, \"content\": \"n\xc3\xa4\", \"single_word\": true, "
                       "\"lstrip\": false, \"rstrip\": false, \"normalized\": true, "
                       "\"special\": false}",
                       "{\"type\": \"NFC\"}",
                       "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
                       "\"pattern\": {\"Regex\": \"(?i:'s|'t|'re)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?"
                       "\\\\p{L}+|\\\\p{N}{1,3}|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": "
                       "\"Isolated\", \"invert\": false}, " BYTE_LEVEL "\"use_regex\": false}]}"));
    put_text("tokenizer", "digits",
             TOKENIZER("\"vocab\": {\"1\": 0, \"2\": 1, \"12\": 2}, \"merges\": [\"1 2\"]", "",
                       "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]}",
                       "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", "
                       "\"individual_digits\": true}, " BYTE_LEVEL "\"use_regex\": true}]}"));
    put_text("tokenizer", "behaviors",
             TOKENIZER("\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]", "",
                       "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a{2,3}|^b*\"}, "
                       "\"content\": \"ab\"}",
                       "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
                       "\"pattern\": {\"Regex\": \"(a*)[bc]\\\\1|a\"}, \"behavior\": "
                       "\"MergedWithNext\", \"invert\": true}, " BYTE_LEVEL
                       "\"use_regex\": false}]}"));
    copy("tokenizer", "llama", "tiny/llama/tokenizer.json");
    copy_own("tokenizer", "gpt2", "data/gpt2/tokenizer.json");
    copy_own("tokenizer", "deepseek", "tokenizers/deepseek_v3.json");
    copy_own("tokenizer", "llama2", "tokenizers/llama2.json");
    copy_own("tokenizer", "flags", "tokenizers/flags.json");
}

static void gguf_seeds(void)
{
    static gguf_builder b;
    static const char *const families[] = {"gpt2", "llama", "qwen2", "qwen3"};
    static const char *const pres[] = {"gpt-2", "llama-bpe", "qwen2", "smollm"};
    for (int i = 0; i < 4; i++) {
        gguf_build(&b, families[i], pres[i]);
        must(dms_file_write(seed("gguf", families[i]), b.bytes, b.n));
    }
    b.bytes[4] = 2; /* the same in version 2 */
    must(dms_file_write(seed("gguf", "version2"), b.bytes, b.n));
    for (int i = 0; i < 2; i++) {
        gguf_begin(&b);
        gguf_put_meta(&b, families[i], pres[i]);
        gguf_put_gate(&b, i ? 1 : 2); /* GPT-2 has as many as query heads */
        gguf_put_attention(&b);
        if (i == 0)
            gguf_put_tensor(&b, "blk.0.attn_qkv.weight", 32, 96, 1, 96 * 64);
        gguf_end(&b);
        must(dms_file_write(seed("gguf", i ? "gate" : "gpt2-gate"), b.bytes, b.n));
    }
}

/* Metadata and some of the tensors in the first file, the others in the second. */
static void split_seeds(void)
{
    static gguf_builder first, second;
    gguf_begin(&first);
    gguf_put_split(&first, 0, 2, 16);
    gguf_put_meta(&first, "llama", "llama-bpe");
    gguf_put_attention(&first);
    gguf_end(&first);
    gguf_begin(&second);
    gguf_put_split(&second, 1, 2, 16);
    gguf_put_blocks(&second);
    gguf_end(&second);
    gguf_put(&first, second.bytes, second.n);
    must(dms_file_write(seed("split", "two"), first.bytes, first.n));
    gguf_build(&first, "qwen2", "qwen2");
    must(dms_file_write(seed("split", "one"), first.bytes, first.n));
}

/* 4 KiB are the least that is compressed. */
static void packed_seed(void)
{
    dms_checkpoint_writer *w;
    static const float x[64 * 16] = {1, 2, 3};
    must(dms_checkpoint_writer_open(&w, seed("hdf5", "packed")));
    dms_checkpoint_writer_compress(w);
    must(dms_checkpoint_put_tensor(w, "weights", "p", DMS_F32, 2, (const int64_t[]){64, 16}, x));
    must(dms_checkpoint_writer_commit(w));
}

static void hdf5_seeds(void)
{
    dms_checkpoint_writer *w;
    const int64_t shape[] = {2, 3};
    const float x[6] = {1, 2, 3, 4, 5, 6};
    const char config[] = "{\"model_type\": \"llama\", \"hidden_size\": 3}";
    char name[32];
    for (int many = 0; many < 2; many++) {
        must(dms_checkpoint_writer_open(&w, seed("hdf5", many ? "many" : "few")));
        must(dms_checkpoint_put_int(w, "step", 7));
        must(dms_checkpoint_put_real(w, "ratio", 2.5));
        must(dms_checkpoint_put_text(w, "config", config, strlen(config)));
        must(dms_checkpoint_put_text(w, "empty", "", 0));
        must(dms_checkpoint_put_tensor(w, "weights", "b", DMS_BF16, 2, shape, x));
        must(dms_checkpoint_put_tensor(w, "adam_m", "i", DMS_I32, 1, shape + 1, x));
        /* More than eight links of a group are kept in a heap, not in its header. */
        for (int i = 0; i < (many ? 12 : 1); i++) {
            snprintf(name, sizeof(name), "layer.%d", i);
            must(dms_checkpoint_put_tensor(w, "weights", name, DMS_F32, 2, shape, x));
        }
        must(dms_checkpoint_writer_commit(w));
    }
}

static void recipe_seeds(void)
{
    static const char *const configs[] = {"quickstart", "quickstart-adapter", "smollm2-8x"};
    const dms_recipe recipe = dms_recipe_defaults();
    char path[1024];
    for (int i = 0; i < 3; i++) {
        char *text = NULL;
        snprintf(path, sizeof(path), "%s/configs/%s.yaml", DMS_SOURCE_DIR, configs[i]);
        must(dms_text_read(&text, NULL, path));
        if (text)
            put_text("recipe", configs[i], text);
        free(text);
    }
    FILE *f = fopen(seed("recipe", "defaults"), "w");
    if (!f || dms_recipe_write(&recipe, f) || fclose(f))
        exit(1);
    put_text("recipe", "override", "optim.lr=1e-3\ndata.train=a,b\nrun.replay=true\n");
    put_text(
        "recipe", "tasks",
        "eval:\n  - {task: kld, every: 20, text: [a, 'b c']}\n  - task: items\n    name: \"q\"\n"
        "    file: x.jsonl\n");
}

static void corpus_seeds(void)
{
    char packed[256];
    put_text("corpus", "text", "One document.\nIt has two lines.\n");
    gzFile gz = gzopen(seed("corpus", "gzip"), "wb");
    if (!gz || gzputs(gz, "Packed, packed, packed text.\n") < 0 || gzclose(gz) != Z_OK)
        exit(1);
    char *text = NULL;
    size_t n = 0;
    must(dms_text_read(&text, &n, seed("corpus", "gzip")));
    /* A member after another is one document, too. */
    if (!text || 2 * n > sizeof(packed))
        exit(1);
    memcpy(packed, text, n);
    memcpy(packed + n, text, n);
    must(dms_file_write(seed("corpus", "members"), packed, 2 * n));
    free(text);
}

static void jsonl_seeds(void)
{
    put_text("jsonl", "texts", "{\"text\": \"One document.\"}\n\n{\"text\": \"Another\\n\"}\r\n");
    put_text("jsonl", "messages",
             "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", "
             "\"content\": \"u\"}, {\"role\": \"assistant\", \"content\": \"a\", "
             "\"reasoning_content\": \"r\", \"tool_calls\": []}]}\n");
}

static void shard_seeds(void)
{
    int32_t ids[40];
    for (int i = 0; i < 40; i++)
        ids[i] = i * 7 % 300;
    for (int wide = 0; wide < 2; wide++) {
        dms_shard_writer *w;
        must(dms_shard_writer_open(&w, seed("shard", wide ? "wide" : "narrow"), wide ? 100000 : 300,
                                   42));
        must(dms_shard_writer_append(w, ids, 40));
        must(dms_shard_writer_commit(w));
        dms_shard_writer_close(w);
    }
}

static void npy_seeds(void)
{
    static const char *const names[] = {"u2.npy",       "u4.npy",     "i4.npy",   "i8.npy",
                                        "version2.npy", "matrix.npy", "llmc.bin", "nanogpt.bin"};
    char path[256];
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        snprintf(path, sizeof(path), "token_files/%s", names[i]);
        copy_own("npy", names[i], path);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
        return 2;
    }
    root = argv[1];
    mkdir(root, 0777);
    safetensors_seeds();
    index_seeds();
    config_seeds();
    tokenizer_seeds();
    gguf_seeds();
    split_seeds();
    recipe_seeds();
    corpus_seeds();
    jsonl_seeds();
    shard_seeds();
    npy_seeds();
    hdf5_seeds();
    packed_seed();
    return 0;
}
