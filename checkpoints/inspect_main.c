#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/source.h"
#include "data/program.h"

static const char usage[] =
    "dms-inspect MODEL [--tensors] [--verify] [--json]: says what is inside a model file\n"
    "\n"
    "MODEL is a Hugging Face folder, a GGUF file, a safetensors file or a dms.c checkpoint.\n"
    "\n"
    "  --tensors  list every tensor with its type and shape\n"
    "  --verify   compare every tensor of a dms.c checkpoint with its CRC-32\n"
    "  --json     print one JSON object\n"
    "  -h, --help this page\n"
    "\n"
    "Exit: 0 done, 1 unreadable or corrupt, 2 wrong usage.\n"
    "\n"
    "Example:\n"
    "  dms-inspect runs/quickstart/checkpoints/step-000080.h5 --verify\n";

typedef struct {
    const char *path;
    int tensors, verify, json, help;
} options;

static dms_status parse(options *o, int argc, char **argv)
{
    const struct option known[] = {{"tensors", no_argument, &o->tensors, 1},
                                   {"verify", no_argument, &o->verify, 1},
                                   {"json", no_argument, &o->json, 1},
                                   {"help", no_argument, &o->help, 1},
                                   {0}};
    int c;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "h", known, NULL)) == 'h' || !c)
        o->help |= c == 'h';
    if (c != -1)
        return dms_program_bad_option(argv);
    if (!o->help && optind + 1 != argc)
        return dms_fail(DMS_ERR_ARG, "%d models are named, expected one; see --help",
                        argc - optind);
    o->path = argv[optind];
    return DMS_OK;
}

static int64_t elements(const dms_tensor_info *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

static json_t *tensor_list(const dms_source *s)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        const dms_tensor_info *t = dms_source_info(s, i);
        json_t *shape = json_array();
        for (int k = 0; k < t->rank; k++)
            json_array_append_new(shape, json_integer(t->shape[k]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", t->name, "type",
                                              dms_file_type_name(t->type), "shape", shape));
    }
    return list;
}

/* Elements and tensors a type. */
static json_t *type_totals(const dms_source *s, json_int_t *parameters)
{
    json_t *types = json_object();
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        const dms_tensor_info *t = dms_source_info(s, i);
        const char *name = dms_file_type_name(t->type);
        json_int_t count = json_integer_value(json_object_get(types, name));
        json_object_set_new(types, name, json_integer(count + 1));
        *parameters += elements(t);
    }
    return types;
}

/* The config's keys that hold DMS settings. */
static json_t *dms_keys(const json_t *config)
{
    json_t *keys = json_object(), *value;
    const char *name;
    json_object_foreach((json_t *)(uintptr_t)config, name, value)
    {
        if (!strncmp(name, "dms_", 4))
            json_object_set(keys, name, value);
    }
    return keys;
}

static json_t *describe(const dms_source *s, const options *o)
{
    static const char *const copied[] = {
        "model_type", "hidden_size",         "num_hidden_layers", "num_attention_heads",
        "head_dim",   "num_key_value_heads", "intermediate_size", "max_position_embeddings",
        "rope_theta", "rope_scaling",        "eos_token_id",      "tie_word_embeddings",
        "vocab_size"};
    size_t length;
    json_int_t parameters = 0;
    json_t *out = json_pack("{s:s, s:s}", "path", o->path, "format", dms_source_format(s));
    const json_t *config = dms_source_config(s);
    json_object_set_new(out, "stored_types", type_totals(s, &parameters));
    json_object_set_new(out, "tensors", json_integer(dms_source_count(s)));
    json_object_set_new(out, "parameters", json_integer(parameters));
    for (size_t i = 0; i < sizeof(copied) / sizeof(*copied); i++)
        json_object_set(out, copied[i], json_object_get(config, copied[i]));
    const bool tokenizer = dms_source_tokenizer(s, &length) != NULL;
    json_object_set_new(out, "tokenizer_bytes",
                        tokenizer ? json_integer((json_int_t)length) : json_null());
    json_object_set_new(out, "chat_template", json_boolean(dms_source_chat_template(s)));
    json_t *keys = dms_keys(config);
    if (json_object_size(keys))
        json_object_update(out, keys);
    json_decref(keys);
    if (o->tensors)
        json_object_set_new(out, "tensor_list", tensor_list(s));
    return out;
}

/* What only our checkpoints have: numbers, texts, groups, integrity. */
static dms_status describe_checkpoint(json_t *out, const options *o)
{
    dms_checkpoint *c;
    const char *name;
    dms_status status = DMS_OK;
    DMS_TRY(dms_checkpoint_open(&c, o->path));
    json_t *numbers = json_object(), *texts = json_object(), *groups = json_object();
    for (int i = 0; (name = dms_checkpoint_number_name(c, i)); i++) {
        double x = 0;
        int64_t n;
        dms_checkpoint_real(c, name, &x);
        json_object_set_new(numbers, name,
                            dms_checkpoint_int(c, name, &n) ? json_integer(n) : json_real(x));
    }
    for (int i = 0; (name = dms_checkpoint_text_name(c, i)); i++) {
        size_t length;
        const char *text = dms_checkpoint_text(c, name, &length);
        json_object_set_new(texts, name,
                            strncmp(name, "teacher_", 8) ? json_integer((json_int_t)length)
                                                         : json_string(text));
    }
    for (int64_t i = 0; i < dms_checkpoint_count(c); i++) {
        const dms_checkpoint_tensor *t = dms_checkpoint_info(c, i);
        const json_int_t bytes = json_integer_value(json_object_get(groups, t->group));
        json_object_set_new(groups, t->group, json_integer(bytes + (json_int_t)t->bytes));
    }
    json_object_set_new(out, "numbers", numbers);
    json_object_set_new(out, "texts_bytes", texts);
    json_object_set_new(out, "groups_bytes", groups);
    if (o->verify)
        DMS_TRY_OR(done, dms_checkpoint_verify(c));
    json_object_set_new(out, "integrity",
                        json_string(o->verify ? "every CRC-32 is right"
                                              : "structure is right; --verify reads the tensors"));
done:
    dms_checkpoint_close(c);
    return status;
}

/* Strings without their quotes, but in ASCII with JSON's escapes: a file's text must not steer a
 * terminal. Padded with spaces to `width`. */
static dms_status print_value(const json_t *value, int width)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
    if (!text)
        return dms_fail(DMS_ERR_NOMEM, "no memory to print a value");
    const int quotes = json_is_string(value);
    for (char *c = text; *c; c++)
        *c = *c == 0x7f ? '?' : *c; /* the one control character that JSON leaves as it is */
    printf("%-*.*s", width, (int)strlen(text) - 2 * quotes, text + quotes);
    free(text);
    return DMS_OK;
}

static dms_status print_name(const char *name, int width)
{
    json_t *value = json_string(name);
    const dms_status status = print_value(value, width);
    json_decref(value);
    return status;
}

static dms_status print_tensors(const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *t = json_array_get(list, i);
        printf("  %-56s %-7s ", json_string_value(json_object_get(t, "name")),
               json_string_value(json_object_get(t, "type")));
        DMS_TRY(print_value(json_object_get(t, "shape"), 0));
        putchar('\n');
    }
    return DMS_OK;
}

static dms_status print_lines(json_t *out)
{
    const char *name, *inner;
    json_t *value, *item;
    json_object_foreach(out, name, value)
    {
        if (json_is_object(value)) {
            DMS_TRY(print_name(name, 0));
            json_object_foreach(value, inner, item)
            {
                printf("\n  ");
                DMS_TRY(print_name(inner, 24));
                putchar(' ');
                DMS_TRY(print_value(item, 0));
            }
            putchar('\n');
        } else if (!strcmp(name, "tensor_list")) {
            printf("%s\n", name);
            DMS_TRY(print_tensors(value));
        } else {
            DMS_TRY(print_name(name, 26));
            putchar(' ');
            DMS_TRY(print_value(value, 0));
            putchar('\n');
        }
    }
    return DMS_OK;
}

static dms_status print_json(const json_t *out)
{
    if (json_dumpf(out, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15)))
        return dms_fail(DMS_ERR_IO, "the JSON object could not be written to standard output");
    putchar('\n');
    return DMS_OK;
}

static dms_status inspect(const options *o)
{
    dms_source *s;
    DMS_TRY(dms_source_open(&s, o->path));
    json_t *out = describe(s, o);
    dms_status status = out ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory for the description");
    if (!status && !strcmp(dms_source_format(s), "dms"))
        status = describe_checkpoint(out, o);
    if (!status)
        status = o->json ? print_json(out) : print_lines(out);
    json_decref(out);
    dms_source_close(s);
    return status;
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-inspect";
    options o = {0};
    if (parse(&o, argc, argv))
        return dms_program_refuse(program);
    if (!o.help)
        return dms_program_end(program, inspect(&o));
    fputs(usage, stdout);
    return dms_program_end(program, DMS_OK);
}
