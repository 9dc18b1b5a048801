/* dms-export: a trained checkpoint as files that other programs load. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/huggingface.h"
#include "checkpoints/source.h"
#include "data/program.h"

static const char help[] =
    "Usage: dms-export CHECKPOINT --to hf|adapter -o FOLDER [options]\n"
    "\n"
    "Writes a checkpoint of dms-train as files that others load.\n"
    "  hf        a Hugging Face folder: all weights, tokenizer, config with the dms_ keys\n"
    "  adapter   the adapter gate's own tensors alone, with those keys\n"
    "\n"
    "  -o, --output FOLDER    where to; must not exist, or be an empty folder\n"
    "      --dtype bf16|f32   type of all tensors but the gate's, which stay f32 (default: bf16)\n"
    "      --shard-gb N       start a new file after N gigabytes, up to 1000000 (default: 5)\n"
    "      --force            replace a folder that holds a model, with all files in it\n"
    "  -h, --help             this text\n"
    "\n"
    "Exit: 0 done, 1 failed, 2 wrong usage.\n"
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

/* A trained tensor has a master, whose type is f32. */
static bool has_master(const export_set *set, const char *name)
{
    return set->checkpoint && dms_checkpoint_find(set->checkpoint, "masters", name);
}

/* Every tensor of the source, or the gate's only. Vectors take the type of the matrices:
 * transformers loads a model in one type. The gate's own tensors stay f32: they are small, and
 * their logits are compared with 0. */
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
    int64_t elements = 1;
    if (e->dtype != DMS_F32 || !has_master(set, e->name))
        return dms_source_read(set->source, e->name, dst, e->dtype);
    for (int k = 0; k < e->rank; k++)
        elements *= e->shape[k];
    return dms_checkpoint_read(set->checkpoint, "masters", e->name, DMS_F32, elements, dst);
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
    double dropped = 1;
    if (dms_source_number(source, "dropped", &dropped) && dropped == 0)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_ARG,
                                  "%s is from before the end of the fade and evicts nothing yet, "
                                  "expected a later checkpoint",
                                  a->input));
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

static dms_status take_name(const char **out, const char *option, const char *first,
                            const char *second)
{
    if (strcmp(optarg, first) != 0 && strcmp(optarg, second) != 0)
        return dms_fail(DMS_ERR_ARG, "%s is \"%s\", expected %s or %s", option, optarg, first,
                        second);
    *out = optarg;
    return DMS_OK;
}

static dms_status take_size(double *gb)
{
    const double most = 1e6;
    char *end;
    *gb = strtod(optarg, &end);
    if (end == optarg || *end || !(*gb > 0 && *gb <= most))
        return dms_fail(DMS_ERR_ARG,
                        "--shard-gb is \"%s\", expected a number of gigabytes above 0, up to %g",
                        optarg, most);
    return DMS_OK;
}

static dms_status take(arguments *a, int option, char *const *argv)
{
    const char *dtype;
    switch (option) {
    case 't':
        return take_name(&a->to, "--to", "hf", "adapter");
    case 'o':
        a->output = optarg;
        return DMS_OK;
    case 'd':
        DMS_TRY(take_name(&dtype, "--dtype", "bf16", "f32"));
        a->dtype = strcmp(dtype, "f32") ? DMS_BF16 : DMS_F32;
        return DMS_OK;
    case 's':
        return take_size(&a->shard_gb);
    case 'f':
        a->force = true;
        return DMS_OK;
    default:
        return dms_program_bad_option(argv);
    }
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-export";
    static const struct option options[] = {{"to", required_argument, NULL, 't'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"dtype", required_argument, NULL, 'd'},
                                            {"shard-gb", required_argument, NULL, 's'},
                                            {"force", no_argument, NULL, 'f'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    arguments a = {.dtype = DMS_BF16, .shard_gb = 5};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "o:h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            return dms_program_end(program, DMS_OK);
        }
        if (take(&a, option, argv))
            return dms_program_refuse(program);
    }
    if (optind + 1 != argc || !a.to || !a.output) {
        fputs(help, stderr);
        return DMS_EXIT_USAGE;
    }
    a.input = argv[optind];
    const dms_status status = export_all(&a);
    if (!status)
        printf("%s written to %s\n", a.to, a.output);
    return dms_program_end(program, status);
}
