/* dms-export: a model, retrofitted or not, as files that other programs load. */
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/export.h"
#include "checkpoints/files.h"
#include "checkpoints/gguf_write.h"
#include "checkpoints/huggingface.h"
#include "checkpoints/nvidia.h"
#include "checkpoints/source_reader.h"
#include "data/program.h"
#include "infer/model_file.h"
#include "model/gate.h"

static const char help[] =
    "Usage: dms-export MODEL --to hf|nvidia-dms|adapter|hdf5|gguf -o PATH [options]\n"
    "\n"
    "Writes a checkpoint of dms-train, or any model we read, as files that others load.\n"
    "  hf          a Hugging Face folder: all weights, tokenizer, config with the dms_ keys\n"
    "  nvidia-dms  the same with the config that NVIDIA's DMS classes read; put their two\n"
    "              Python files, which it names, beside it\n"
    "  adapter     a folder with the adapter gate's own tensors alone, and those keys\n"
    "  hdf5        one file of ours without the state of training\n"
    "  gguf        one file whose dense form llama.cpp runs; the gate is in its metadata\n"
    "Before the command ends well, what it wrote was opened again and compared.\n"
    "\n"
    "  -o, --output PATH      where to; must not exist, or be an empty folder\n"
    "      --type bf16|f32|f16|stored  type of all tensors but the gate's, which stay f32\n"
    "                         (bf16); stored: each as it is in MODEL; gguf: also q8_0, not\n"
    "                         stored, and vectors stay f32\n"
    "      --shard-size SIZE  folders: start a new file after this many bytes, with KB, MB, GB,\n"
    "                         KiB, MiB or GiB behind the number (5GB)\n"
    "      --compress         hdf5: gzip and shuffle, 1.2 to 1.4 times smaller, slower to open\n"
    "      --dms-shift 0|1    which token a decision governs, where MODEL leaves it open or\n"
    "                         follows FastDMS: its own (0) or the one before (1)\n"
    "      --force            replace the model in a folder, whose other files stay, or a file\n"
    "  -h, --help             this text\n"
    "\n"
    "Exit: 0 done, 1 failed, 2 wrong usage.\n"
    "Example: dms-export runs/quickstart/latest --to hf -o smollm2-dms\n";

typedef struct {
    const char *input, *to, *output;
    dms_export_type type;
    size_t shard_bytes;
    int64_t shift;                 /* -1: not said */
    bool force, compress, sharded; /* sharded: --shard-size was said */
    bool q8_0;                     /* gguf's own type, instead of `type` */
} arguments;

/* The config of the export before a format changes it. *usage: what failed is --dms-shift. */
static dms_status make_config(json_t **out, const dms_export *e, const arguments *a, bool *usage)
{
    dms_gate gate;
    dms_status status = DMS_OK;
    json_t *config = NULL;
    double trained = 0;
    DMS_TRY(dms_gate_parse(&gate, dms_source_config(e->source)));
    *usage = true; /* as in the programs that run the model */
    if (a->shift == 0 && dms_source_number(e->source, "shift", &trained) && trained == 1)
        return dms_fail(DMS_ERR_ARG, "--dms-shift is 0, but %s was trained with 1", a->input);
    DMS_TRY(dms_gate_settle(&gate, a->shift));
    *usage = false;
    DMS_TRY(dms_plain_config(&config, dms_source_config(e->source)));
    if (a->shift >= 0)
        json_object_del(config, "dms_shift");
    if (gate.own && json_object_set_new(config, "dms_shift", json_integer(0)))
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for the config's keys"));
    DMS_TRY_OR(failed, dms_export_note_type(config, a->type));
    *out = config;
    return DMS_OK;
failed:
    json_decref(config);
    return status;
}

/* Takes over the list. */
static void say_removed(const arguments *a, char *names)
{
    if (names)
        fprintf(stderr, "dms-export: of the old model in %s removed: %s\n", a->output, names);
    free(names);
}

static dms_status write_folder(dms_export *e, const arguments *a, const json_t *config)
{
    char *removed = NULL;
    DMS_TRY(dms_export_list(e, a->type, false, true));
    dms_hf_model model = {.config = config,
                          .chat_template = dms_source_chat_template(e->source),
                          .tensors = dms_export_set(e),
                          .shard_bytes = a->shard_bytes,
                          .force = a->force,
                          .removed = &removed};
    model.tokenizer_model =
        dms_source_bytes(e->source, "tokenizer.model", &model.tokenizer_model_length);
    model.tokenizer = dms_source_tokenizer(e->source, &model.tokenizer_length);
    for (int i = 0; i < DMS_HF_CARRIED; i++)
        model.carried[i] = dms_source_text(e->source, dms_hf_carried[i]);
    const dms_status status = dms_hf_write(a->output, &model);
    say_removed(a, removed);
    return status;
}

static dms_status export_nvidia(dms_export *e, const arguments *a, const json_t *config)
{
    json_t *nvidia = NULL;
    DMS_TRY(dms_nvidia_config(&nvidia, config));
    const dms_status status = write_folder(e, a, nvidia);
    json_decref(nvidia);
    return status;
}

/* The dms_ keys of the config, and which model they belong to. */
static json_t *adapter_config(const dms_source *s, const json_t *config)
{
    const char *key;
    json_t *value, *out = json_object();
    json_object_foreach((json_t *)(uintptr_t)config, key, value)
    {
        if (!strncmp(key, "dms_", 4) || !strcmp(key, "model_type"))
            json_object_set(out, key, value);
    }
    const char *hash = dms_source_text(s, "teacher_hash");
    if (hash)
        json_object_set_new(out, "base_model_hash", json_string(hash));
    return out;
}

static dms_status export_adapter(dms_export *e, const arguments *a, const json_t *config)
{
    DMS_TRY(dms_export_list(e, a->type, true, true));
    if (!e->count)
        return dms_fail(DMS_ERR_ARG,
                        "%s has no adapter gate, expected one; a neuron gate lives in the model's "
                        "own weights: use --to hf",
                        a->input);
    json_t *keys = adapter_config(e->source, config);
    if (!keys)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the adapter's config");
    char *removed = NULL;
    const dms_hf_model model = {
        .config = keys, .tensors = dms_export_set(e), .force = a->force, .removed = &removed};
    const dms_status status = dms_hf_write(a->output, &model);
    say_removed(a, removed);
    json_decref(keys);
    return status;
}

static dms_status export_hdf5(dms_export *e, const arguments *a, const json_t *config)
{
    DMS_TRY(dms_export_list(e, a->type, false, false));
    return dms_export_write_hdf5(
        e, &(dms_export_hdf5){
               .path = a->output, .config = config, .compress = a->compress, .force = a->force});
}

/* The last part of the input's path, for people. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* GGUF has keys for three tokens that end a text. */
static void say_left_out(const json_t *config)
{
    const json_t *ends = json_object_get(config, "eos_token_id");
    for (size_t i = 3; i < json_array_size(ends); i++)
        fprintf(stderr,
                "dms-export: end-of-text token %lld is left out: GGUF has room for three of the "
                "config's %zu\n",
                (long long)json_integer_value(json_array_get(ends, i)), json_array_size(ends));
}

/* Everything is fetched as f32 and rounded once, by the writer. */
static dms_status export_gguf(dms_export *e, const arguments *a, const json_t *config)
{
    static const dms_file_type types[] = {[DMS_EXPORT_BF16] = DMS_FILE_BF16,
                                          [DMS_EXPORT_F32] = DMS_FILE_F32,
                                          [DMS_EXPORT_F16] = DMS_FILE_F16};
    DMS_TRY(dms_export_list(e, DMS_EXPORT_F32, false, true));
    dms_gguf_model model = {.name = base_name(a->input),
                            .config = config,
                            .chat_template = dms_source_chat_template(e->source),
                            .tensors = dms_export_set(e),
                            .type = a->q8_0 ? DMS_FILE_Q8_0 : types[a->type],
                            .force = a->force};
    model.tokenizer = dms_source_tokenizer(e->source, &model.tokenizer_length);
    DMS_TRY(dms_gguf_write(a->output, &model));
    say_left_out(config);
    return DMS_OK;
}

static const struct {
    const char *name;
    dms_status (*run)(dms_export *e, const arguments *a, const json_t *config);
} formats[] = {{"hf", write_folder},
               {"nvidia-dms", export_nvidia},
               {"adapter", export_adapter},
               {"hdf5", export_hdf5},
               {"gguf", export_gguf}};

enum { FORMATS = sizeof(formats) / sizeof(*formats) };

static int format_of(const char *name)
{
    for (int i = 0; i < FORMATS; i++)
        if (!strcmp(formats[i].name, name))
            return i;
    return -1;
}

/* What runs no model of ours is no export of one. An adapter alone is passed on as it is. */
static dms_status check_model(const dms_export *e, const arguments *a)
{
    const dms_model_file_options options = {
        .path = a->input, .shift_given = a->shift >= 0, .shift = a->shift};
    if (!strcmp(a->to, "adapter") && dms_source_is_adapter(e->source))
        return DMS_OK;
    return dms_model_file_check(e->source, &options);
}

static void say_broken(const dms_export *e)
{
    if (e->broken)
        fprintf(stderr,
                "dms-export: %lld of the weights' numbers are NaN or infinite, the first in tensor "
                "%s; they are written as they are\n",
                (long long)e->broken, e->first_broken);
}

/* Exports into one folder take turns: two to one name would write the same temporaries. */
static dms_status export_all(const arguments *a, bool *usage)
{
    dms_status status = DMS_OK;
    dms_export *e = NULL;
    json_t *config = NULL;
    int lock = -1;
    DMS_TRY(dms_folder_lock(&lock, a->output));
    DMS_TRY_OR(done, dms_export_open(&e, a->input));
    DMS_TRY_OR(done, make_config(&config, e, a, usage));
    DMS_TRY_OR(done, check_model(e, a));
    DMS_TRY_OR(done, formats[format_of(a->to)].run(e, a, config));
    say_broken(e);
done:
    json_decref(config);
    dms_export_close(e);
    if (lock >= 0)
        close(lock);
    return status;
}

/* A number and a unit: 5GB, 500MB, 1.5GiB, 1000. */
static dms_status take_size(size_t *bytes)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1},      {"KB", 1e3},      {"MB", 1e6},      {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}};
    char *end;
    const double n = strtod(optarg, &end);
    for (size_t i = 0; end != optarg && i < sizeof(units) / sizeof(*units); i++)
        if (!strcmp(end, units[i].unit) && n * units[i].bytes >= 1 && n * units[i].bytes <= 1e15) {
            *bytes = (size_t)(n * units[i].bytes);
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_ARG,
                    "--shard-size is \"%s\", expected a size such as 5GB or 500MiB, up to 1000TB",
                    optarg);
}

static dms_status take(arguments *a, int option, char *const *argv)
{
    switch (option) {
    case 't':
        a->to = optarg;
        if (format_of(optarg) < 0)
            return dms_fail(DMS_ERR_ARG,
                            "--to is \"%s\", expected hf, nvidia-dms, adapter, hdf5 or gguf",
                            optarg);
        return DMS_OK;
    case 'o':
        a->output = optarg;
        if (!*optarg)
            return dms_fail(DMS_ERR_ARG, "--output is empty, expected a path");
        return DMS_OK;
    case 'd':
        a->q8_0 = !strcmp(optarg, "q8_0");
        return a->q8_0 ? DMS_OK : dms_export_type_from_name(&a->type, optarg);
    case 's':
        a->sharded = true;
        return take_size(&a->shard_bytes);
    case 'S':
        return dms_program_number(&a->shift, "--dms-shift", 0, 1);
    case 'c':
        a->compress = true;
        return DMS_OK;
    case 'f':
        a->force = true;
        return DMS_OK;
    default:
        return dms_program_bad_option(argv);
    }
}

static dms_status check(const arguments *a)
{
    if (a->compress && strcmp(a->to, "hdf5") != 0)
        return dms_fail(DMS_ERR_ARG, "--compress is for --to hdf5, not for %s", a->to);
    if (a->sharded && strcmp(a->to, "hf") != 0 && strcmp(a->to, "nvidia-dms") != 0)
        return dms_fail(DMS_ERR_ARG, "--shard-size is for --to hf and nvidia-dms, not for %s",
                        a->to);
    if (a->q8_0 && strcmp(a->to, "gguf") != 0)
        return dms_fail(DMS_ERR_ARG, "--type q8_0 is for --to gguf, not for %s", a->to);
    if (a->type == DMS_EXPORT_STORED && !strcmp(a->to, "gguf"))
        return dms_fail(DMS_ERR_ARG, "--type is stored, --to gguf expects f32, f16, bf16 or q8_0");
    return DMS_OK;
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-export";
    static const struct option options[] = {{"to", required_argument, NULL, 't'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"type", required_argument, NULL, 'd'},
                                            {"shard-size", required_argument, NULL, 's'},
                                            {"dms-shift", required_argument, NULL, 'S'},
                                            {"compress", no_argument, NULL, 'c'},
                                            {"force", no_argument, NULL, 'f'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    arguments a = {.type = DMS_EXPORT_BF16, .shard_bytes = 5000000000, .shift = -1};
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
    if (check(&a))
        return dms_program_refuse(program);
    a.input = argv[optind];
    signal(SIGXFSZ, SIG_IGN); /* a file too large for the limit is a failure of its write */
    bool usage = false;
    const dms_status status = export_all(&a, &usage);
    if (!status)
        printf("%s written to %s\n", a.to, a.output);
    return usage ? dms_program_refuse(program) : dms_program_end(program, status);
}
