#include "eval/yaml_tree.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { DEEPEST = 64 };

typedef struct {
    yaml_parser_t parser;
    const char *path;
    json_t *open[DEEPEST]; /* containers around the next value */
    char *key[DEEPEST];    /* of the value that an object waits for; NULL: it waits for a key */
    int depth;
    json_t *root;
} reader;

static dms_status refuse(const reader *r, const yaml_event_t *e, const char *what)
{
    return dms_fail(DMS_ERR_ARG, "%s, line %zu: %s", r->path, e->start_mark.line + 1, what);
}

/* A plain scalar's value; quoted ones are text. */
static json_t *scalar(const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    char *end;
    if (e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
        return json_string(text);
    if (!*text || !strcmp(text, "null") || !strcmp(text, "~"))
        return json_null();
    if (!strcmp(text, "true") || !strcmp(text, "false"))
        return json_boolean(text[0] == 't');
    errno = 0;
    const long long whole = strtoll(text, &end, 10);
    if (!*end && !errno)
        return json_integer(whole);
    errno = 0;
    const double real = strspn(text, "+-.0123456789eE") == strlen(text) ? strtod(text, &end) : 0;
    return end != text && !*end && !errno ? json_real(real) : json_string(text);
}

/* Puts a value where the document is; takes the reference. */
static dms_status put(reader *r, const yaml_event_t *e, json_t *value)
{
    if (!value)
        return refuse(r, e, "a value is not UTF-8 or there is no memory for it");
    if (!r->depth) {
        r->root = value;
        return DMS_OK;
    }
    json_t *top = r->open[r->depth - 1];
    if (json_is_array(top))
        return json_array_append_new(top, value) ? refuse(r, e, "no memory") : DMS_OK;
    char **key = &r->key[r->depth - 1];
    const int failed = json_object_set_new(top, *key, value);
    free(*key);
    *key = NULL;
    return failed ? refuse(r, e, "no memory, or a key is not UTF-8") : DMS_OK;
}

static bool waits_for_key(const reader *r)
{
    return r->depth && json_is_object(r->open[r->depth - 1]) && !r->key[r->depth - 1];
}

static dms_status on_scalar(reader *r, const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    if (strlen(text) != e->data.scalar.length)
        return refuse(r, e, "a zero byte in a value");
    if (!waits_for_key(r))
        return put(r, e, scalar(e));
    if (json_object_get(r->open[r->depth - 1], text))
        return refuse(r, e, "a key is given twice");
    r->key[r->depth - 1] = strdup(text);
    return r->key[r->depth - 1] ? DMS_OK : refuse(r, e, "no memory");
}

static dms_status on_open(reader *r, const yaml_event_t *e, json_t *container)
{
    if (waits_for_key(r) || r->depth == DEEPEST) {
        json_decref(container);
        return refuse(r, e, r->depth == DEEPEST ? "more than 64 levels" : "a key is no plain text");
    }
    DMS_TRY(put(r, e, container));
    r->open[r->depth++] = container; /* borrowed from the tree */
    return DMS_OK;
}

static dms_status on_event(reader *r, const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        return on_scalar(r, e);
    case YAML_MAPPING_START_EVENT:
        return on_open(r, e, json_object());
    case YAML_SEQUENCE_START_EVENT:
        return on_open(r, e, json_array());
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        r->depth--;
        return DMS_OK;
    case YAML_ALIAS_EVENT:
        return refuse(r, e, "a YAML alias, expected a plain value");
    default:
        return DMS_OK;
    }
}

static dms_status parse(reader *r)
{
    for (bool more = true; more;) {
        yaml_event_t e;
        if (!yaml_parser_parse(&r->parser, &e))
            return dms_fail(DMS_ERR_ARG, "%s, line %zu: %s", r->path,
                            r->parser.problem_mark.line + 1,
                            r->parser.problem ? r->parser.problem : "not YAML");
        const dms_status status = on_event(r, &e);
        more = e.type != YAML_STREAM_END_EVENT && e.type != YAML_DOCUMENT_END_EVENT;
        yaml_event_delete(&e);
        DMS_TRY(status);
    }
    return r->root ? DMS_OK : dms_fail(DMS_ERR_ARG, "%s is empty", r->path);
}

/* The document of `file`, or of `text`. */
static dms_status read_tree(json_t **out, const char *name, FILE *file, const char *text,
                            size_t length)
{
    reader r = {.path = name};
    if (!yaml_parser_initialize(&r.parser))
        return dms_fail(DMS_ERR_NOMEM, "no memory to parse %s", name);
    if (file)
        yaml_parser_set_input_file(&r.parser, file);
    else
        yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, length);
    const dms_status status = parse(&r);
    yaml_parser_delete(&r.parser);
    for (int i = 0; i < DEEPEST; i++)
        free(r.key[i]);
    if (status)
        json_decref(r.root);
    else
        *out = r.root;
    return status;
}

dms_status dms_yaml_read(json_t **out, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return dms_fail(DMS_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    const dms_status status = read_tree(out, path, file, NULL, 0);
    fclose(file);
    return status;
}

dms_status dms_yaml_parse(json_t **out, const char *text, size_t length, const char *name)
{
    return read_tree(out, name, NULL, text, length);
}
