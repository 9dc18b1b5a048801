/* dms-export: a trained checkpoint as files that other programs load. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/huggingface.h"
#include "checkpoints/source.h"

enum { DONE, FAILED, USAGE };

static const char help[] =
    "Usage: dms-export CHECKPOINT --to hf|adapter -o FOLDER [options]\n"
    "\n"
    "Writes a checkpoint of dms-train as files that others load.\n"
    "  hf        a Hugging Face folder: all weights, tokenizer, config with the dms_ keys\n"
    "  adapter   the adapter gate's own tensors alone, with those keys\n"
    "\n"
    "  -o, --output FOLDER    where to; must not exist, or be an empty folder\n"
    "      --dtype bf16|f32   type of the matrices (default: bf16)\n"
    "      --shard-gb N       start a new file after N gigabytes (default: 5)\n"
    "      --force            replace a folder that holds a model\n"
    "  -h, --help             this text\n"
    "\n"
    "Example: dms-export runs/quickstart/latest --to hf -o smollm2-dms\n";

typedef struct {
    const char *input, *to, *output;
    dms_dtype dtype;
    double shard_gb;
    bool force;
} arguments;

/* What to write: the weights' table, and where each tensor comes from. */
typedef struct {
    const dms_source *source;
    const dms_checkpoint *checkpoint; /* NULL where the source is no checkpoint of ours */
    dms_tensor_entry *entries;
    int64_t count;
} export_set;

static bool is_gate_tensor(const char *name)
{
    return strstr(name, ".dms_proj_alpha") != NULL;
}

/* The f32 master of a trained tensor, where there is one. */
static const dms_checkpoint_tensor *master_of(const export_set *set, const char *name)
{
    return set->checkpoint ? dms_checkpoint_find(set->checkpoint, "masters", name) : NULL;
}

/* Every tensor of the source, or the gate's only. Vectors and gate tensors stay f32 where a
 * matrix is bf16: they are small, and the gate needs them. */
static dms_status list_tensors(export_set *set, const arguments *a, bool gate_only)
{
    const int64_t n = dms_source_count(set->source);
    set->entries = calloc((size_t)n + 1, sizeof(*set->entries));
    if (!set->entries)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of %lld tensors", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        const dms_tensor_info *info = dms_source_info(set->source, i);
        if (gate_only && !is_gate_tensor(info->name))
            continue;
        dms_tensor_entry *e = &set->entries[set->count++];
        *e = (dms_tensor_entry){.name = info->name, .rank = info->rank};
        e->dtype = is_gate_tensor(info->name) ? DMS_F32 : a->dtype;
        memcpy(e->shape, info->shape, sizeof(e->shape));
    }
    return DMS_OK;
}

static dms_status fetch(void *context, int64_t i, void *dst)
{
    const export_set *set = context;
    const dms_tensor_entry *e = &set->entries[i];
    const dms_checkpoint_tensor *master = master_of(set, e->name);
    if (!master || e->dtype != DMS_F32)
        return dms_source_read(set->source, e->name, dst, e->dtype);
    memcpy(dst, master->data, master->bytes);
    return DMS_OK;
}

static dms_status export_hf(export_set *set, const arguments *a)
{
    size_t length = 0;
    DMS_TRY(list_tensors(set, a, false));
    const char *tokenizer = dms_source_tokenizer(set->source, &length);
    const dms_hf_model model = {.config = dms_source_config(set->source),
                                .tokenizer = tokenizer,
                                .tokenizer_length = length,
                                .chat_template = dms_source_chat_template(set->source),
                                .tensors = {set->entries, set->count, fetch, set},
                                .shard_bytes = (size_t)(a->shard_gb * 1e9),
                                .force = a->force};
    return dms_hf_write(a->output, &model);
}

/* The dms_ keys of the config, and which model they belong to. */
static json_t *adapter_config(const dms_source *s)
{
    const char *key;
    json_t *value, *out = json_object();
    json_object_foreach((json_t *)dms_source_config(s), key, value)
    {
        if (!strncmp(key, "dms_", 4) || !strcmp(key, "model_type"))
            json_object_set(out, key, value);
    }
    const char *hash = dms_source_text(s, "teacher_hash");
    if (hash)
        json_object_set_new(out, "base_model_hash", json_string(hash));
    return out;
}

static dms_status export_adapter(export_set *set, const arguments *a)
{
    DMS_TRY(list_tensors(set, a, true));
    if (!set->count)
        return dms_fail(DMS_ERR_ARG,
                        "%s has no adapter gate, expected one; a neuron gate lives in the model's "
                        "own weights: use --to hf",
                        a->input);
    json_t *config = adapter_config(set->source);
    if (!config)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the adapter's config");
    const dms_hf_model model = {
        .config = config, .tensors = {set->entries, set->count, fetch, set}, .force = a->force};
    const dms_status status = dms_hf_write(a->output, &model);
    json_decref(config);
    return status;
}

static dms_status verify(const dms_checkpoint *c)
{
    return c ? dms_checkpoint_verify(c) : DMS_OK;
}

static dms_status export_all(const arguments *a)
{
    dms_status status = DMS_OK;
    dms_source *source = NULL;
    dms_checkpoint *checkpoint = NULL;
    export_set set = {0};
    DMS_TRY_OR(done, dms_source_open(&source, a->input));
    if (!dms_source_config(source))
        DMS_TRY_OR(done, dms_fail(DMS_ERR_ARG, "%s has no config, expected a model", a->input));
    if (!strcmp(dms_source_format(source), "dms"))
        DMS_TRY_OR(done, dms_checkpoint_open(&checkpoint, a->input));
    DMS_TRY_OR(done, verify(checkpoint));
    set.source = source;
    set.checkpoint = checkpoint;
    DMS_TRY_OR(done, !strcmp(a->to, "hf") ? export_hf(&set, a) : export_adapter(&set, a));
done:
    free(set.entries);
    dms_checkpoint_close(checkpoint);
    dms_source_close(source);
    return status;
}

static bool parse_option(arguments *a, int option)
{
    switch (option) {
    case 't':
        a->to = optarg;
        return !strcmp(optarg, "hf") || !strcmp(optarg, "adapter");
    case 'o':
        a->output = optarg;
        return true;
    case 'd':
        a->dtype = strcmp(optarg, "f32") ? DMS_BF16 : DMS_F32;
        return !strcmp(optarg, "f32") || !strcmp(optarg, "bf16");
    case 's':
        a->shard_gb = atof(optarg);
        return a->shard_gb > 0;
    case 'f':
        a->force = true;
        return true;
    default:
        return false;
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"to", required_argument, NULL, 't'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"dtype", required_argument, NULL, 'd'},
                                            {"shard-gb", required_argument, NULL, 's'},
                                            {"force", no_argument, NULL, 'f'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    arguments a = {.dtype = DMS_BF16, .shard_gb = 5};
    int option;
    while ((option = getopt_long(argc, argv, "o:h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            return DONE;
        }
        if (!parse_option(&a, option)) {
            fprintf(stderr, "dms-export: bad option or value%s%s; see dms-export --help\n",
                    optarg ? ": " : "", optarg ? optarg : "");
            return USAGE;
        }
    }
    if (optind + 1 != argc || !a.to || !a.output) {
        fputs(help, stderr);
        return USAGE;
    }
    a.input = argv[optind];
    if (export_all(&a)) {
        fprintf(stderr, "dms-export: %s\n", dms_error_message());
        return FAILED;
    }
    printf("%s written to %s\n", a.to, a.output);
    return DONE;
}
