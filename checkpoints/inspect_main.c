/* dms-inspect: what is inside a model file, and what differs between two. */
#include <jansson.h>

#include "checkpoints/inspect.h"
#include "checkpoints/inspect_text.h"
#include "data/program.h"
#include "data/shard.h"
#include "infer/describe.h"

static const char help[] =
    "Usage: dms-inspect MODEL [--tensors] [--verify] [--json]\n"
    "       dms-inspect diff A B [--tolerance X] [--json]\n"
    "       dms-inspect --families [--json]\n"
    "\n"
    "Says what is inside a file: tensors, types and sizes, network, tokenizer, chat template, DMS\n"
    "settings, integrity. MODEL, A and B are Hugging Face folders, GGUF files, safetensors files "
    "or\n"
    "dms.c checkpoints; MODEL may also be a token shard of dms-tokenize,\n"
    "a 1-D .npy of token ids, or a .bin of nanoGPT or llm.c.\n"
    "\n"
    "      --tensors       list every tensor with its type, size and shape\n"
    "      --verify        read everything: CRC-32s where there are, and that values are finite\n"
    "  diff                compare two models tensor by tensor, whatever their formats and types\n"
    "      --tolerance X   values that differ by at most X are the same (default: 0)\n"
    "      --families      the families of networks that run here, and what each is made of\n"
    "      --json          one JSON object (docs/inspect.md)\n"
    "  -h, --help          this text\n"
    "\n"
    "Exit: 0 done, 1 unreadable or corrupt, 2 wrong usage. diff: 0 equal, 1 different, 2 failed.\n"
    "Example: dms-inspect runs/quickstart/latest --verify\n";

typedef enum { MODEL, DIFF, FAMILIES } command;

typedef struct {
    command what;
    const char *paths[2];
    bool tensors, verify, json, help, tolerance_given;
    double tolerance;
} arguments;

static dms_status take_tolerance(arguments *a)
{
    char *end;
    a->tolerance = strtod(optarg, &end);
    a->tolerance_given = true;
    if (end == optarg || *end || !(a->tolerance >= 0 && a->tolerance <= 1e30))
        return dms_fail(DMS_ERR_ARG, "--tolerance is \"%s\", expected a number from 0", optarg);
    return DMS_OK;
}

static dms_status take(arguments *a, int option, char *const *argv)
{
    switch (option) {
    case 't':
        a->tensors = true;
        return DMS_OK;
    case 'v':
        a->verify = true;
        return DMS_OK;
    case 'j':
        a->json = true;
        return DMS_OK;
    case 'f':
        a->what = FAMILIES;
        return DMS_OK;
    case 'x':
        return take_tolerance(a);
    case 'h':
        a->help = true;
        return DMS_OK;
    default:
        return dms_program_bad_option(argv);
    }
}

/* What follows the options: MODEL, diff A B, or nothing. */
static dms_status take_names(arguments *a, int n, char *const *names)
{
    if (a->what == FAMILIES)
        return n || a->tensors || a->verify || a->tolerance_given
                   ? dms_fail(DMS_ERR_ARG, "--families goes with --json alone; see --help")
                   : DMS_OK;
    if (n && !strcmp(names[0], "diff")) {
        a->what = DIFF;
        if (n != 3)
            return dms_fail(DMS_ERR_ARG, "diff compares two models, %d are named; see --help",
                            n - 1);
        if (a->tensors || a->verify)
            return dms_fail(DMS_ERR_ARG, "--tensors and --verify do not go with diff");
        a->paths[0] = names[1];
        a->paths[1] = names[2];
        return DMS_OK;
    }
    if (n != 1)
        return dms_fail(DMS_ERR_ARG, "%d models are named, expected one; see --help", n);
    if (a->tolerance_given)
        return dms_fail(DMS_ERR_ARG, "--tolerance goes with diff alone; see --help");
    a->paths[0] = names[0];
    return DMS_OK;
}

static dms_status parse(arguments *a, int argc, char **argv)
{
    static const struct option options[] = {{"tensors", no_argument, NULL, 't'},
                                            {"verify", no_argument, NULL, 'v'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"families", no_argument, NULL, 'f'},
                                            {"tolerance", required_argument, NULL, 'x'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
        DMS_TRY(take(a, option, argv));
    return a->help ? DMS_OK : take_names(a, argc - optind, argv + optind);
}

static dms_status describe_source(json_t *out, const dms_source *s, const arguments *a)
{
    const char *path = a->paths[0];
    const json_t *config = dms_source_config(s);
    DMS_TRY(dms_inspect_weights(out, s, path, a->tensors));
    if (json_object_set_new(out, "config", config ? json_deep_copy(config) : json_null()))
        return dms_fail(DMS_ERR_NOMEM, "no memory to describe %s", path);
    DMS_TRY(dms_describe_architecture(out, s, path));
    DMS_TRY(dms_describe_texts(out, s, path));
    DMS_TRY(dms_describe_gate(out, s));
    DMS_TRY(dms_inspect_checkpoint(out, s, path));
    return dms_inspect_integrity(out, s, path, a->verify);
}

static dms_status describe_model(json_t *out, const arguments *a)
{
    dms_source *s;
    DMS_TRY(dms_source_open(&s, a->paths[0]));
    const dms_status status = describe_source(out, s, a);
    dms_source_close(s);
    return status;
}

static json_t *new_view(const char *name)
{
    return json_pack("{s:s, s:i}", "view", name, "version", 1);
}

static dms_status describe(json_t **out, const arguments *a)
{
    const bool shard = a->what == MODEL && dms_shard_recognise_any(a->paths[0]);
    *out = new_view(a->what == DIFF       ? "diff"
                    : a->what == FAMILIES ? "families"
                    : shard               ? "shard"
                                          : "model");
    if (!*out)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a description");
    if (shard && a->tensors)
        return dms_fail(DMS_ERR_ARG, "%s is a token shard: it has no --tensors", a->paths[0]);
    return a->what == DIFF       ? dms_inspect_diff(*out, a->paths, a->tolerance)
           : a->what == FAMILIES ? dms_describe_families(*out)
           : shard               ? dms_describe_shard(*out, a->paths[0], a->verify)
                                 : describe_model(*out, a);
}

static dms_status print(const json_t *view, bool json)
{
    if (!json) {
        dms_inspect_print(stdout, view);
        return DMS_OK;
    }
    if (json_dumpf(view, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15)))
        return dms_fail(DMS_ERR_IO, "the JSON object could not be written to standard output");
    putchar('\n');
    return DMS_OK;
}

/* A file that --verify found corrupt was described; it fails nevertheless. */
static dms_status verdict(const json_t *view)
{
    const json_t *problem = json_object_get(json_object_get(view, "integrity"), "problem");
    if (json_is_string(problem))
        return dms_fail(DMS_ERR_FORMAT, "%s", json_string_value(problem));
    return DMS_OK;
}

/* diff(1)'s exit codes. */
static int end_diff(const char *program, dms_status status, bool equal)
{
    if (dms_program_end(program, status))
        return DMS_EXIT_USAGE;
    return equal ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-inspect";
    arguments a = {0};
    json_t *view = NULL;
    if (parse(&a, argc, argv))
        return dms_program_refuse(program);
    if (a.help) {
        fputs(help, stdout);
        return dms_program_end(program, DMS_OK);
    }
    dms_status status = describe(&view, &a);
    if (!status)
        status = print(view, a.json);
    if (!status)
        status = verdict(view);
    const bool equal = json_is_true(json_object_get(view, "equal"));
    json_decref(view);
    return a.what == DIFF ? end_diff(program, status, equal) : dms_program_end(program, status);
}
