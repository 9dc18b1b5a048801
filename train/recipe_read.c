/* A recipe from YAML: sections of keys, scalars and lists of scalars, nothing else. */
#include <errno.h>
#include <string.h>
#include <yaml.h>

#include "train/recipe_keys.h"
#include "train/recipe_tasks.h"

/* Where the parser is: in no section, in a section waiting for a key, at a key waiting for its
 * value, in a list, in the list of tasks. */
typedef enum { TOP, SECTION_NAME, KEY, VALUE, LIST, TASKS, DONE } place;

typedef struct {
    dms_recipe *recipe;
    const char *path;
    place at;
    char section[64];
    const dms_recipe_key *key;
    unsigned char seen[128]; /* by index of the key */
    bool seen_tasks;
    dms_recipe_tasks tasks;
} reader;

static dms_status located(const reader *r, const yaml_event_t *e, dms_status status)
{
    if (status)
        dms_trail_note("%s, line %zu", r->path, e->start_mark.line + 1);
    return status;
}

static bool known_section(const char *name)
{
    size_t n;
    const dms_recipe_key *keys = dms_recipe_keys(&n);
    for (size_t i = 0; i < n; i++)
        if (!strcmp(keys[i].section, name))
            return true;
    return false;
}

static dms_status enter_section(reader *r, const char *name)
{
    if (!strcmp(name, "eval")) {
        if (r->seen_tasks)
            return dms_fail(DMS_ERR_ARG, "eval is given twice, expected once");
        r->seen_tasks = true;
        r->at = TASKS;
        dms_recipe_tasks_begin(&r->tasks, r->recipe);
        return DMS_OK;
    }
    if (!known_section(name))
        return dms_recipe_unknown(name, "");
    snprintf(r->section, sizeof(r->section), "%s", name);
    r->at = SECTION_NAME;
    return DMS_OK;
}

static dms_status enter_key(reader *r, const char *name)
{
    size_t n;
    r->key = dms_recipe_find(r->section, name);
    if (!r->key)
        return dms_recipe_unknown(r->section, name);
    unsigned char *seen = &r->seen[r->key - dms_recipe_keys(&n)];
    if (*seen)
        return dms_fail(DMS_ERR_ARG, "%s.%s is given twice, expected once", r->section, name);
    *seen = 1;
    r->at = VALUE;
    return DMS_OK;
}

static dms_status on_scalar(reader *r, const char *text)
{
    switch (r->at) {
    case TOP:
        return enter_section(r, text);
    case KEY:
        return enter_key(r, text);
    case VALUE:
        r->at = KEY;
        return dms_recipe_assign(r->recipe, r->key, text, false);
    case LIST:
        return dms_recipe_assign(r->recipe, r->key, text, true);
    case SECTION_NAME:
        if (text[0])
            return dms_fail(DMS_ERR_ARG, "section %s is \"%s\", expected keys below it", r->section,
                            text);
        r->at = TOP;
        return DMS_OK;
    default:
        return dms_fail(DMS_ERR_ARG, "found \"%s\", expected sections", text);
    }
}

static dms_status on_mapping_start(reader *r, bool *started)
{
    if (!*started) {
        *started = true;
        r->at = TOP;
        return DMS_OK;
    }
    if (r->at != SECTION_NAME)
        return dms_fail(DMS_ERR_ARG, "found a mapping inside section %s, expected key: value",
                        r->section);
    r->at = KEY;
    return DMS_OK;
}

static dms_status on_list_start(reader *r)
{
    if (r->at != VALUE || !dms_recipe_key_is_list(r->key))
        return dms_fail(DMS_ERR_ARG, "found a list in section %s, expected one value", r->section);
    dms_recipe_clear(r->recipe, r->key);
    r->at = LIST;
    return DMS_OK;
}

static dms_status on_task_event(reader *r, const yaml_event_t *e)
{
    bool done;
    DMS_TRY(dms_recipe_tasks_event(&r->tasks, e, &done));
    r->at = done ? TOP : TASKS;
    return DMS_OK;
}

static dms_status on_event(reader *r, const yaml_event_t *e, bool *started)
{
    if (r->at == TASKS)
        return on_task_event(r, e);
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        if (!*started)
            return dms_fail(DMS_ERR_ARG, "found \"%s\", expected sections of keys",
                            (const char *)e->data.scalar.value);
        if (strlen((const char *)e->data.scalar.value) != e->data.scalar.length)
            return dms_fail(DMS_ERR_ARG, "found a zero byte in a value");
        return on_scalar(r, (const char *)e->data.scalar.value);
    case YAML_MAPPING_START_EVENT:
        return on_mapping_start(r, started);
    case YAML_MAPPING_END_EVENT:
        r->at = r->at == KEY ? TOP : DONE;
        return DMS_OK;
    case YAML_SEQUENCE_START_EVENT:
        return on_list_start(r);
    case YAML_SEQUENCE_END_EVENT:
        r->at = KEY;
        return DMS_OK;
    case YAML_ALIAS_EVENT:
        return dms_fail(DMS_ERR_ARG, "found a YAML alias, expected a plain value");
    default:
        return DMS_OK;
    }
}

static dms_status parse(yaml_parser_t *parser, reader *r)
{
    bool started = false, more = true;
    while (more) {
        yaml_event_t e;
        if (!yaml_parser_parse(parser, &e))
            return dms_fail(DMS_ERR_ARG, "%s, line %zu: %s", r->path, parser->problem_mark.line + 1,
                            parser->problem ? parser->problem : "not YAML");
        const dms_status status = located(r, &e, on_event(r, &e, &started));
        more = e.type != YAML_STREAM_END_EVENT && e.type != YAML_DOCUMENT_END_EVENT;
        yaml_event_delete(&e);
        if (status)
            return status;
    }
    return DMS_OK;
}

static dms_status read_stream(dms_recipe *recipe, FILE *file, const char *name)
{
    yaml_parser_t parser;
    dms_recipe values = *recipe;
    reader r = {.recipe = &values, .path = name};
    if (!yaml_parser_initialize(&parser))
        return dms_fail(DMS_ERR_NOMEM, "no memory to parse %s", name);
    yaml_parser_set_input_file(&parser, file);
    const dms_status status = parse(&parser, &r);
    yaml_parser_delete(&parser);
    if (!status)
        *recipe = values;
    return status;
}

dms_status dms_recipe_read(dms_recipe *recipe, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return dms_fail(DMS_ERR_IO, "config %s cannot be read: %s", path, strerror(errno));
    const dms_status status = read_stream(recipe, file, path);
    fclose(file);
    return status;
}

dms_status dms_recipe_parse(dms_recipe *recipe, const char *text, size_t length, const char *name)
{
    FILE *file = fmemopen((void *)text, length, "rb"); /* opened for reading: text stays as it is */
    if (!file)
        return dms_fail(DMS_ERR_NOMEM, "no memory to parse %s", name);
    const dms_status status = read_stream(recipe, file, name);
    fclose(file);
    return status;
}
