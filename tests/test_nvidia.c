#include <stdarg.h>
#include <sys/wait.h>

#include "checkpoints/nvidia.h"
#include "checkpoints/safetensors.h"
#include "infer/model_file.h"
#include "model/gate.h"
#include "tests/files.h"
#include "tests/fixtures.h"

/* Everything happens in a folder of its own; $BIN and $FIX are set. */
static scratch dir;
static dms_device *dev;

static void set_up(void)
{
    char path[1024];
    dir = scratch_open();
    must(dms_cpu_open(&dev, 1));
    cr_assert_eq(chdir(dir.folder), 0);
    setenv("BIN", DMS_BINARY_DIR, 1);
    setenv("FIX", fixture(path, "tiny"), 1);
}

static void tear_down(void)
{
    cr_assert_eq(chdir("/"), 0);
    dev->close(dev);
    scratch_close(&dir);
}

TestSuite(nvidia, .init = set_up, .fini = tear_down);

/* The exit code; what a command says on standard error is left in the file err. */
static int run(const char *format, ...)
{
    char command[2048], whole[2200];
    va_list list;
    va_start(list, format);
    vsnprintf(command, sizeof(command), format, list);
    va_end(list);
    if (access(DMS_BINARY_DIR "/dms-export", X_OK))
        cr_skip_test("dms-export has not been built");
    snprintf(whole, sizeof(whole), "{ %s ; } >out 2>err", command);
    const int status = system(whole);
    cr_assert(WIFEXITED(status), "%s crashed", command);
    return WEXITSTATUS(status);
}

static void done(const char *format, const char *a, const char *b)
{
    size_t n;
    const int code = run(format, a, b);
    char *err = read_bytes("err", &n);
    cr_assert_eq(code, 0, "%s (%s, %s): %s", format, a, b, err);
    free(err);
}

static void refused(const char *expected, const char *format, const char *a)
{
    size_t n;
    const int code = run(format, a);
    char *err = read_bytes("err", &n);
    cr_expect_eq(code, 1, "%s (%s) exits %d", format, a, code);
    cr_expect(strstr(err, expected), "%s says %s expected %s", format, err, expected);
    free(err);
}

/* Both hold the same tensors: names, types, shapes and bytes. */
static void expect_same_tensors(const char *a, const char *b)
{
    dms_source *x, *y;
    char one[65], two[65];
    must(dms_source_open(&x, a));
    must(dms_source_open(&y, b));
    cr_expect_eq(dms_source_count(x), dms_source_count(y), "%s and %s", a, b);
    for (int64_t i = 0; i < dms_source_count(x); i++) {
        const dms_tensor_info *t = dms_source_info(x, i), *u = dms_source_find(y, t->name);
        cr_assert(u && u->type == t->type && u->rank == t->rank &&
                      !memcmp(u->shape, t->shape, sizeof(t->shape)),
                  "%s of %s and %s", t->name, a, b);
        const size_t n = (size_t)element_count(t);
        float *p = malloc(4 * n + 1), *q = malloc(4 * n + 1);
        must(dms_source_read(x, t->name, p, DMS_F32)); /* exact: from f32, f16 and bf16 */
        must(dms_source_read(y, t->name, q, DMS_F32));
        cr_expect(!memcmp(p, q, 4 * n), "%s of %s and %s differs", t->name, a, b);
        free(p);
        free(q);
    }
    must(dms_source_hash(x, one)); /* over stored bytes; tensors here are below its sampling */
    must(dms_source_hash(y, two));
    cr_expect_str_eq(one, two, "%s and %s", a, b);
    dms_source_close(x);
    dms_source_close(y);
}

static json_t *config_of(const char *folder)
{
    char path[1024];
    json_error_t error;
    snprintf(path, sizeof(path), "%s/config.json", folder);
    json_t *config = json_load_file(path, 0, &error);
    cr_assert_not_null(config, "%s: %s", path, error.text);
    return config;
}

static void write_config(const char *folder, json_t *config)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/config.json", folder);
    cr_assert_eq(json_dump_file(config, path, JSON_INDENT(1)), 0);
    json_decref(config);
}

static void expect_config(const json_t *config, const char *key, const char *value)
{
    char *text = json_dumps(json_object_get(config, key),
                            JSON_ENCODE_ANY | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    cr_expect(text ? value && !strcmp(text, value) : !value, "%s is %s, expected %s", key,
              text ? text : "absent", value ? value : "absent");
    free(text);
}

/* Tensors of two sources in one set. */
typedef struct {
    dms_source *base, *gates;
    dms_tensor_entry entries[256];
    int64_t count;
} joined;

static dms_status fetch_joined(void *context, int64_t i, void *dst)
{
    const joined *j = context;
    const char *name = j->entries[i].name;
    return dms_source_read(dms_source_find(j->base, name) ? j->base : j->gates, name, dst, DMS_F32);
}

static void join(joined *j, const dms_source *s, const char *part)
{
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        const dms_tensor_info *t = dms_source_info(s, i);
        if (strncmp(t->name, "grad.", 5) == 0 || !strstr(t->name, part))
            continue;
        dms_tensor_entry *e = &j->entries[j->count++];
        *e = (dms_tensor_entry){.name = t->name, .dtype = DMS_F32, .rank = t->rank};
        memcpy(e->shape, t->shape, sizeof(e->shape));
    }
}

/* A retrofitted model as a Hugging Face folder `name`: a fixture's weights, and for the adapter
 * gate the tensors that its own fixture has. */
static void make_model(const char *name, const char *family, bool adapter)
{
    char path[1024];
    joined j = {0};
    done("cp -r $FIX/%s %s; chmod -R u+w .", family, name);
    json_t *config = config_of(name);
    dms_gate gate = dms_gate_defaults();
    gate.kind = adapter ? DMS_GATE_ADAPTER : DMS_GATE_NEURON;
    gate.window = 300;
    gate.alpha_scale = 4;
    gate.alpha_offset = 1;
    must(dms_gate_write(config, &gate, 8));
    write_config(name, config);
    if (!adapter)
        return;
    snprintf(path, sizeof(path), "%s/dms_adapter.safetensors", name);
    must(dms_source_open(&j.gates, path));
    must(dms_source_open(&j.base, name));
    join(&j, j.base, "");
    join(&j, j.gates, ".dms_proj_alpha");
    snprintf(path, sizeof(path), "%s/model.safetensors", name);
    must(dms_safetensors_write(path, &(dms_tensor_set){j.entries, j.count, fetch_joined, &j}));
    dms_source_close(j.base);
    dms_source_close(j.gates);
}

Test(nvidia, lays_out_an_adapter_as_the_trainer_does)
{
    make_model("m", "qwen3", true);
    done("$BIN/dms-export m --to nvidia-dms -o n --type stored%s%s", "", "");
    json_t *c = config_of("n");
    expect_config(c, "auto_map",
                  "{\"AutoConfig\": \"configuration_qwen3_dms.Qwen3ConfigDMS\", "
                  "\"AutoModelForCausalLM\": \"modeling_qwen3_dms.Qwen3ForCausalLMDMS\"}");
    expect_config(c, "architectures", NULL);
    expect_config(c, "model_type", "\"qwen3\"");
    expect_config(c, "dms_alpha_scale", "4.0");
    expect_config(c, "dms_initial_alpha_offset", "1.0");
    expect_config(c, "dms_window_size", "300");
    expect_config(c, "dms_cr", "8");
    expect_config(c, "dms_separate_alpha", "true");
    expect_config(c, "dms_alpha_per", "\"head\"");
    expect_config(c, "dms_tau", "0.1");
    expect_config(c, "dms_paged_attention_block_size", "256");
    expect_config(c, "dms_disable_eviction", "false");
    expect_config(c, "dms_manual_inference_mode", "false");
    expect_config(c, "dms_chunked_prefill", "null");
    expect_config(c, "dms_preallocate_for_tokens", "4096");
    expect_config(c, "dms_shift", NULL);
    json_decref(c);
}

Test(nvidia, lays_out_a_neuron_gate_as_the_released_checkpoint_is)
{
    make_model("m", "qwen3", false);
    done("$BIN/dms-export m --to nvidia-dms -o n --shard-size 64KiB%s%s", "", "");
    json_t *c = config_of("n");
    expect_config(c, "auto_map",
                  "{\"AutoConfig\": \"configuration_qwen3_dms.Qwen3Config\", "
                  "\"AutoModelForCausalLM\": \"modeling_qwen3_dms.Qwen3ForCausalLM\"}");
    expect_config(c, "architectures", "[\"Qwen3ForCausalLM\"]");
    expect_config(c, "dms_cr", "8");
    expect_config(c, "dms_separate_alpha", NULL);
    expect_config(c, "dms_alpha_per", NULL);
    expect_config(c, "dms_tau", NULL);
    expect_config(c, "dms_paged_attention_block_size", NULL);
    json_decref(c);
    done("test -f n/model.safetensors.index.json && test ! -f n/model.safetensors%s%s", "", "");
}

Test(nvidia, gives_other_families_the_same_keys_and_our_name_for_the_class)
{
    static const struct {
        const char *family, *map;
    } cases[] = {{"llama", "{\"AutoConfig\": \"configuration_llama_dms.LlamaConfigDMS\", "
                           "\"AutoModelForCausalLM\": \"modeling_llama_dms.LlamaForCausalLMDMS\"}"},
                 {"qwen2",
                  "{\"AutoConfig\": \"configuration_qwen2_dms.Qwen2ConfigDMS\", "
                  "\"AutoModelForCausalLM\": \"modeling_qwen2_dms.Qwen2ForCausalLMDMS\"}"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        json_t *out = NULL;
        json_t *c = json_pack("{s:s, s:i, s:b}", "model_type", cases[i].family, "dms_window_size",
                              64, "dms_separate_alpha", 1);
        must(dms_nvidia_config(&out, c));
        expect_config(out, "auto_map", cases[i].map);
        expect_config(out, "dms_alpha_scale", "100.0");
        expect_config(out, "dms_initial_alpha_offset", "5.0");
        expect_config(out, "dms_paged_attention_block_size", "32"); /* below the window */
        json_decref(out);
        json_decref(c);
    }
}

/* Every way from a Hugging Face folder and back gives its tensors to the byte. */
Test(nvidia, comes_back_from_every_format_as_it_went)
{
    static const char *const families[] = {"llama", "qwen2", "qwen3"};
    for (size_t f = 0; f < 2 * COUNT(families); f++) {
        const char *back[] = {"there", "back", "file.h5", "small.h5", "folder"};
        make_model("m", families[f / 2], f % 2);
        done("$BIN/dms-export m --to nvidia-dms -o there --type stored%s%s", "", "");
        done("$BIN/dms-export there --to hf -o back --type stored --shard-size 50KB%s%s", "", "");
        done("$BIN/dms-export m --to hdf5 -o file.h5 --type stored%s%s", "", "");
        done("$BIN/dms-export m --to hdf5 -o small.h5 --type stored --compress%s%s", "", "");
        done("$BIN/dms-export small.h5 --to hf -o folder --type stored%s%s", "", "");
        for (size_t i = 0; i < COUNT(back); i++)
            expect_same_tensors("m", back[i]);
        json_t *c = config_of("back");
        expect_config(c, "auto_map", NULL);
        json_decref(c);
        done("rm -rf m there back folder *.h5%s%s", "", "");
    }
}

/* In f16 and bf16, too: what a folder of that type holds survives every format. */
Test(nvidia, keeps_f16_and_bf16_to_the_byte)
{
    static const char *const types[] = {"f16", "bf16", "f32"};
    static const dms_file_type stored[] = {DMS_FILE_F16, DMS_FILE_BF16, DMS_FILE_F32};
    for (size_t i = 0; i < COUNT(types); i++) {
        dms_source *s;
        done("$BIN/dms-export $FIX/llama3 --to hf -o a --type %s%s", types[i], "");
        done("$BIN/dms-export a --to hdf5 -o a.h5 --compress --type stored%s%s", "", "");
        done("$BIN/dms-export a.h5 --to hf -o b --type stored%s%s", "", "");
        done("$BIN/dms-export a --to hf -o c --type %s%s", types[i], "");
        expect_same_tensors("a", "a.h5");
        expect_same_tensors("a", "b");
        expect_same_tensors("a", "c");
        must(dms_source_open(&s, "a"));
        cr_expect_eq(dms_source_info(s, 0)->type, stored[i]);
        dms_source_close(s);
        done("rm -rf a b c a.h5%s%s", "", "");
    }
}

Test(nvidia, leaves_the_base_weights_of_an_adapter_export_untouched)
{
    dms_source *base, *out;
    int64_t n, m;
    make_model("m", "llama", true);
    done("$BIN/dms-export m --to nvidia-dms -o n --type f32%s%s", "", "");
    done("cp -r $FIX/llama plain%s%s", "", "");
    must(dms_source_open(&base, "plain"));
    must(dms_source_open(&out, "n"));
    for (int64_t i = 0; i < dms_source_count(base); i++) {
        const char *name = dms_source_info(base, i)->name;
        float *x = read_f32(base, name, &n), *y = read_f32(out, name, &m);
        cr_expect(n == m && !memcmp(x, y, (size_t)n * sizeof(float)), "%s changed", name);
        free(x);
        free(y);
    }
    cr_expect_gt(dms_source_count(out), dms_source_count(base));
    dms_source_close(base);
    dms_source_close(out);
}

/* The gate of config keys. */
static dms_gate parsed(const char *text)
{
    dms_gate gate;
    json_t *keys = json_loads(text, 0, NULL);
    must(dms_gate_parse(&gate, keys));
    json_decref(keys);
    return gate;
}

Test(nvidia, import_takes_the_gate_from_the_config_and_absent_keys_from_the_method)
{
    dms_gate g = parsed("{\"dms_alpha_scale\": 100.0, \"dms_initial_alpha_offset\": 5.0, "
                        "\"dms_window_size\": 512, \"dms_cr\": 8}"); /* the released checkpoint */
    cr_expect(g.kind == DMS_GATE_NEURON && g.window == 512 && g.alpha_scale == 100.0f &&
              g.alpha_offset == 5.0f && !g.own);
    g = parsed("{\"dms_separate_alpha\": true, \"dms_chunked_prefill\": null, \"dms_tau\": null}");
    cr_expect(g.kind == DMS_GATE_ADAPTER && g.window == 512 && g.alpha_scale == 100.0f &&
              g.alpha_offset == 5.0f && g.tau == 0.1f && !g.own);
    g = parsed("{\"dms_window_size\": 128}");
    cr_expect(g.kind == DMS_GATE_NEURON && g.window == 128 && g.alpha_scale == 100.0f);
    g = parsed("{\"dms_window_size\": 16, \"dms_shift\": 0}");
    cr_expect(g.own);
    cr_expect_eq(parsed("{\"dms_cr\": 8}").kind, DMS_GATE_NONE, "it is documentation only");
    cr_expect_eq(parsed("{}").kind, DMS_GATE_NONE);
}

Test(nvidia, import_refuses_what_it_would_have_to_approximate)
{
    static const char *const cases[] = {"{\"dms_window_size\": 8, \"dms_alpha_per\": \"layer\"}",
                                        "{\"dms_window_size\": 8, \"dms_disable_eviction\": true}",
                                        "{\"dms_window_size\": 8.5}",
                                        "{\"dms_window_size\": -1}",
                                        "{\"dms_window_size\": 8, \"dms_separate_alpha\": 1}",
                                        "{\"dms_window_size\": 8, \"dms_shift\": 2}",
                                        "{\"dms_window_size\": 8, \"dms_alpha_scale\": \"100\"}"};
    for (size_t i = 0; i < COUNT(cases); i++) {
        dms_gate gate;
        json_t *keys = json_loads(cases[i], 0, NULL);
        cr_expect_eq(dms_gate_parse(&gate, keys), DMS_ERR_FORMAT, "%s", cases[i]);
        cr_expect(strstr(dms_error_text(), "config key dms_"), "%s", dms_error_text());
        json_decref(keys);
    }
}

/* Opens a model folder as the programs do. */
static dms_status open_file(const char *path, dms_model_file **file, int64_t shift)
{
    const dms_model_file_options o = {.path = path,
                                      .device = dev,
                                      .compute = DMS_COMPUTE_F32,
                                      .without_tokenizer = true,
                                      .shift_given = shift >= 0,
                                      .shift = shift};
    return dms_model_file_open(file, &o);
}

Test(nvidia, names_the_gate_tensor_that_is_missing)
{
    dms_model_file *file = NULL;
    make_model("m", "qwen3", false);
    json_t *c = config_of("m");
    json_object_set_new(c, "dms_separate_alpha", json_true());
    write_config("m", c);
    cr_expect_eq(open_file("m", &file, -1), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "model.layers.0.self_attn.dms_proj_alpha"), "%s",
              dms_error_text());
}

/* dms_metadata.json is FastDMS's: its checkpoints run only where the user says so. */
Test(nvidia, a_fastdms_folder_runs_only_with_an_explicit_shift_of_0)
{
    static const char metadata[] = "{\"config\": {\"window_size\": 6, \"alpha_offset\": 2.0}}";
    dms_model_file *file = NULL;
    done("cp -r $FIX/llama m; chmod -R u+w .%s%s", "", "");
    write_bytes("m/dms_metadata.json", metadata, strlen(metadata));
    cr_expect_eq(open_file("m", &file, -1), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "--dms-shift 0"), "%s", dms_error_text());
    must(open_file("m", &file, 0));
    const dms_gate *g = &file->model->gate;
    cr_expect(g->kind == DMS_GATE_NEURON && g->own && g->window == 6 && g->alpha_offset == 2.0f &&
              g->alpha_scale == 100.0f);
    dms_model_file_close(file);
    done(
        "$BIN/dms-export m --to hf -o n 2>said; test $? = 2 && grep -q -e '--dms-shift 0' said%s%s",
        "", "");
    done("$BIN/dms-bench m decode 2>said; test $? = 2 && grep -q -e '--dms-shift 0' said%s%s", "",
         "");
    done("$BIN/dms-bench m decode --dms-shift 0 --prompt 8 --steps 2 --repetitions 1%s%s", "", "");
    refused("--to hf keeps it as it is", "$BIN/dms-export m --to nvidia-dms --dms-shift 0 -o n%s",
            "");
    done("$BIN/dms-export m --to hf --dms-shift 0 -o n%s%s", "", "");
    cr_expect_eq(open_file("n", &file, -1), DMS_ERR_ARG, "the convention was lost on the way");
    done("$BIN/dms-export m --to hf --dms-shift 1 -o o%s%s", "", "");
    must(open_file("o", &file, -1));
    cr_expect_not(file->model->gate.own);
    dms_model_file_close(file);
}

Test(nvidia, a_model_without_gate_has_no_such_layout)
{
    refused("has no gate", "$BIN/dms-export $FIX/llama --to nvidia-dms -o n%s", "");
    done("$BIN/dms-export $FIX/llama --to hf --dms-shift 0 -o n 2>said; test $? = 2 && "
         "grep -q 'for models with a gate' said%s%s",
         "", "");
    done("test ! -e n%s%s", "", "");
}
