#include "tasks/convert.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "data/keys.h"
#include "tasks/convert_facts.h"
#include "tasks/records.h"

enum { MAX_FIELD_NAME = 64 };

/* The rendered shots of a group. */
typedef struct {
    char *group; /* NULL: of all */
    dms_text text;
    int n;
} shots;

typedef struct {
    const dms_convert_facts *facts;
    const dms_convert_options *options;
    int n_shots;
    shots *groups;
    size_t n_groups;
    /* Of the record in hand. */
    dms_conversion record;
    dms_text prompt;
    char id[32];
    dms_item item;
    const char **texts;
    dms_code_test *tests;
    dms_message message;
    json_t *answer, *group, *name; /* hold the item's texts */
} converter;

/* "a, b, c": the keys of an object. */
static dms_status list_keys(dms_text *out, const json_t *object)
{
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)object, key, value) if (out->n < 400)
        DMS_TRY(dms_text_format(out, out->n ? ", %.64s" : "%.64s", key));
    return DMS_OK;
}

dms_status dms_convert_field(json_t **out, const dms_conversion *c, const json_t *object,
                             const char *names)
{
    const json_t *value = NULL;
    for (const char *at = names; *at;) {
        const size_t n = strcspn(at, "|");
        char key[MAX_FIELD_NAME];
        snprintf(key, sizeof(key), "%.*s", (int)n, at);
        value = json_object_get(object, key);
        if (value && !json_is_null(value))
            break;
        at += n + (at[n] == '|');
    }
    if (json_is_integer(value)) {
        char digits[32];
        snprintf(digits, sizeof(digits), "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        *out = json_string(digits);
        return DMS_OK;
    }
    if (json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value)) {
        *out = json_incref((json_t *)value);
        return DMS_OK;
    }
    dms_text keys = {0};
    dms_status status = list_keys(&keys, c->record);
    if (!status)
        status =
            dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is %s, expected a string; the record has: %.*s",
                     c->where, names, dms_key_type(value), (int)keys.n, keys.bytes);
    dms_text_free(&keys);
    return status;
}

/* Appends the template with its fields. */
static dms_status render(const converter *v, dms_text *out, const char *template)
{
    while (*template) {
        const size_t n = strcspn(template, "{");
        DMS_TRY(dms_text_append(out, template, n));
        template += n;
        if (*template == 0)
            break;
        const size_t field = strcspn(template, "}");
        char names[MAX_FIELD_NAME];
        snprintf(names, sizeof(names), "%.*s", (int)field - 1, template + 1);
        template += field + 1;
        if (field == 1) {
            DMS_TRY(dms_text_append(out, "{}", 2));
            continue;
        }
        json_t *text;
        DMS_TRY(dms_convert_field(&text, &v->record, v->record.fields, names));
        const dms_status status =
            dms_text_append(out, json_string_value(text), json_string_length(text));
        json_decref(text);
        DMS_TRY(status);
    }
    return DMS_OK;
}

static void drop_record(converter *v)
{
    json_decref(v->record.fields);
    json_decref(v->answer);
    json_decref(v->group);
    json_decref(v->name);
    free((void *)v->texts);
    free(v->tests);
    v->record.fields = v->answer = v->group = v->name = NULL;
    v->texts = NULL;
    v->tests = NULL;
    v->item = (dms_item){0};
    v->prompt.n = 0;
}

/* The group's shots; NULL where it has none. */
static shots *find_shots(const converter *v, const char *group)
{
    for (size_t i = 0; i < v->n_groups; i++)
        if (!group || !strcmp(v->groups[i].group, group))
            return &v->groups[i];
    return NULL;
}

static dms_status fill_choice(converter *v)
{
    const json_t *list = json_object_get(v->record.fields, "choices");
    v->item.n_texts = json_array_size(list);
    v->texts = calloc(v->item.n_texts, sizeof(*v->texts));
    if (!v->texts)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for its choices", v->record.where);
    for (size_t i = 0; i < v->item.n_texts; i++)
        v->texts[i] = json_string_value(json_array_get(list, i));
    v->item.texts = v->texts;
    v->item.delimiter = " ";
    v->item.norm = v->facts->norm;
    v->item.label = (size_t)json_integer_value(json_object_get(v->record.fields, "label"));
    return DMS_OK;
}

static dms_status fill_code(converter *v)
{
    const json_t *list = json_object_get(v->record.fields, "tests");
    v->item.n_tests = json_array_size(list);
    if (v->item.n_tests == 0)
        return dms_fail(DMS_ERR_FORMAT, "%s: has no tests, expected one at least", v->record.where);
    v->tests = calloc(v->item.n_tests, sizeof(*v->tests));
    if (!v->tests)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for its tests", v->record.where);
    for (size_t i = 0; i < v->item.n_tests; i++) {
        const json_t *one = json_array_get(list, i);
        v->tests[i] = (dms_code_test){json_string_value(json_object_get(one, "input")),
                                      json_string_value(json_object_get(one, "output"))};
    }
    v->item.tests = v->tests;
    v->item.function = json_string_value(json_object_get(v->record.fields, "function"));
    v->item.timeout = 6; /* lcb_runner's */
    return DMS_OK;
}

static dms_status fill_extract(converter *v)
{
    const dms_convert_facts *f = v->facts;
    DMS_TRY(dms_convert_field(&v->answer, &v->record, v->record.fields, f->answer));
    v->item.answer = json_string_value(v->answer);
    memcpy(v->item.rules, f->rules, sizeof(f->rules));
    v->item.n_rules = f->n_rules;
    return DMS_OK;
}

/* What the item has besides its prompt. */
static dms_status fill(converter *v)
{
    const dms_convert_facts *f = v->facts;
    const json_t *fields = v->record.fields;
    v->item.kind = f->kind;
    v->item.max_new_tokens = f->max_new_tokens;
    v->item.stops = &f->stop;
    v->item.n_stops = f->stop != NULL;
    snprintf(v->id, sizeof(v->id), "%" PRId64, v->record.index);
    v->item.id = v->id;
    /* Some exports leave the id out. */
    if (f->id && !dms_convert_field(&v->name, &v->record, fields, f->id))
        v->item.id = json_string_value(v->name);
    if (f->group && !dms_convert_field(&v->group, &v->record, fields, f->group))
        v->item.group = json_string_value(v->group);
    if (f->kind == DMS_ITEM_CHOICE)
        return fill_choice(v);
    return f->kind == DMS_ITEM_CODE ? fill_code(v) : fill_extract(v);
}

static dms_status take(converter *v, const json_t *record, const char *where)
{
    const int64_t index = v->record.index;
    drop_record(v);
    v->record.record = record;
    v->record.where = where;
    v->record.fields = json_copy((json_t *)record);
    if (!v->record.fields)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for a record", where);
    v->record.index = index;
    if (v->facts->prepare)
        DMS_TRY(v->facts->prepare(&v->record));
    return fill(v);
}

/* Prompt, a blank and the right answer, and an empty line. */
static dms_status append_shot(converter *v, dms_text *out)
{
    const dms_item *item = &v->item;
    const char *answer = item->kind == DMS_ITEM_CHOICE ? item->texts[item->label] : item->answer;
    DMS_TRY(render(v, out, v->facts->prompt));
    return dms_text_format(out, " %s\n\n", answer);
}

static dms_status add_shot(converter *v)
{
    shots *s = find_shots(v, v->item.group);
    if (!s) {
        shots *more = realloc(v->groups, (v->n_groups + 1) * sizeof(*more));
        if (!more)
            return dms_fail(DMS_ERR_NOMEM, "no memory for the shots of %zu groups", v->n_groups);
        v->groups = more;
        s = &more[v->n_groups++];
        *s = (shots){.group = NULL};
        if (v->item.group && !(s->group = strdup(v->item.group)))
            return dms_fail(DMS_ERR_NOMEM, "no memory for the shots of %s", v->item.group);
    }
    return s->n++ < v->n_shots ? append_shot(v, &s->text) : DMS_OK;
}

static dms_status write_item(converter *v, FILE *out)
{
    const shots *s = v->n_shots ? find_shots(v, v->item.group) : NULL;
    if (v->n_shots && (!s || s->n < v->n_shots))
        return dms_fail(DMS_ERR_ARG, "%s: %s has %d examples%s%s, expected %d", v->record.where,
                        v->options->shots, s ? s->n : 0, v->item.group ? " of " : "",
                        v->item.group ? v->item.group : "", v->n_shots);
    if (v->facts->header)
        DMS_TRY(render(v, &v->prompt, v->facts->header));
    if (s)
        DMS_TRY(dms_text_append(&v->prompt, s->text.bytes, s->text.n));
    DMS_TRY(render(v, &v->prompt, v->facts->prompt));
    DMS_TRY(dms_text_end(&v->prompt));
    v->message = (dms_message){.role = "user", .content = v->prompt.bytes};
    if (v->facts->chat) {
        v->item.messages = &v->message;
        v->item.n_messages = 1;
    } else {
        v->item.prompt = v->prompt.bytes;
    }
    return dms_item_write(out, &v->item);
}

/* Every record of a file: to `out`, or to the shots where that is NULL. */
static dms_status read_all(converter *v, const char *path, FILE *out)
{
    dms_status status = DMS_OK;
    dms_records *r = NULL;
    const json_t *record;
    v->record.input = path;
    v->record.index = 0;
    DMS_TRY_OR(end, dms_records_open(&r, path, v->facts->columns));
    for (;; v->record.index++) {
        DMS_TRY_OR(end, dms_records_next(r, &record));
        if (!record)
            break;
        DMS_TRY_OR(end, take(v, record, dms_records_where(r)));
        DMS_TRY_OR(end, out ? write_item(v, out) : add_shot(v));
    }
end:
    drop_record(v); /* before the records that it borrows from */
    dms_records_close(r);
    return status;
}

static dms_status check(const dms_convert_facts **facts, const dms_convert_options *o)
{
    *facts = dms_convert_find(o->benchmark);
    if (!*facts)
        return dms_fail(DMS_ERR_ARG,
                        "no benchmark \"%.64s\", expected mmlu, hellaswag, gsm8k, aime, math500, "
                        "gpqa, gpqa_choice or livecodebench",
                        o->benchmark);
    if (o->shots && (*facts)->shots == 0)
        return dms_fail(DMS_ERR_ARG, "%s is asked without examples, expected no file of them",
                        o->benchmark);
    if (o->n_shots < 0 || (o->n_shots > 0 && !o->shots))
        return dms_fail(DMS_ERR_ARG, "%s: %d examples without a file of them", o->benchmark,
                        o->n_shots);
    return DMS_OK;
}

dms_status dms_convert(int64_t *n_items, FILE *out, const dms_convert_options *options)
{
    dms_status status = DMS_OK;
    converter v = {.options = options, .record = {.seed = options->seed}};
    DMS_TRY(check(&v.facts, options));
    if (options->shots) {
        v.n_shots = options->n_shots ? options->n_shots : v.facts->shots;
        DMS_TRY_OR(end, read_all(&v, options->shots, NULL));
    }
    DMS_TRY_OR(end, read_all(&v, options->input, out));
    *n_items = v.record.index;
    if (fflush(out))
        status = dms_fail(DMS_ERR_IO, "writing the items of %s failed", options->input);
end:
    for (size_t i = 0; i < v.n_groups; i++) {
        free(v.groups[i].group);
        dms_text_free(&v.groups[i].text);
    }
    free(v.groups);
    dms_text_free(&v.prompt);
    return status;
}
