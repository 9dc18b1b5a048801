#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "tasks/items.h"

/* Collects what goes wrong, so that the fields below read as a list. */
typedef struct {
    json_t *object;
    bool failed;
} writer;

/* Takes the value; NULL is a failure (no memory, or text that is not UTF-8). */
static void put(writer *w, const char *key, json_t *value)
{
    w->failed |= json_object_set_new(w->object, key, value) != 0;
}

static void put_text(writer *w, const char *key, const char *text)
{
    if (text)
        put(w, key, json_string(text));
}

static void put_count(writer *w, const char *key, int64_t n)
{
    if (n)
        put(w, key, json_integer(n));
}

static void put_texts(writer *w, const char *key, const char *const *texts, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        w->failed |= json_array_append_new(list, json_string(texts[i])) != 0;
    put(w, key, list);
}

static void put_prompt(writer *w, const dms_item *item)
{
    put_text(w, "prompt", item->prompt);
    if (!item->messages)
        return;
    json_t *list = json_array();
    for (size_t i = 0; i < item->n_messages; i++) {
        const dms_message *m = &item->messages[i];
        w->failed |= json_array_append_new(list, json_pack("{s:s, s:s}", "role", m->role, "content",
                                                           m->content)) != 0;
    }
    put(w, "messages", list);
}

static void put_rule(writer *w, const dms_answer_rule *rule)
{
    put_text(w, "extractor", dms_extractor_name(rule->extractor));
    put_text(w, "equality", dms_equality_name(rule->equality));
}

static void put_match(writer *w, const dms_item *item)
{
    put_text(w, "input", item->prompt);
    put_texts(w, "outputs", item->texts, item->n_texts);
    put_text(w, "metric", item->match == DMS_MATCH_ALL ? "all" : "part");
    put_count(w, "length", item->length);
}

static void put_choice(writer *w, const dms_item *item)
{
    static const char *const norms[] = {
        [DMS_NORM_NONE] = "none", [DMS_NORM_CHAR] = "char", [DMS_NORM_TOKEN] = "token"};
    put_text(w, "context", item->prompt);
    put_texts(w, "choices", item->texts, item->n_texts);
    put(w, "label", json_integer((json_int_t)item->label));
    put_text(w, "norm", norms[item->norm]);
    if (strcmp(item->delimiter, " "))
        put_text(w, "delimiter", item->delimiter);
}

static void put_extract(writer *w, const dms_item *item)
{
    put_prompt(w, item);
    put_text(w, "answer", item->answer);
    put_rule(w, &item->rules[0]);
    if (item->n_rules < 2)
        return;
    writer also = {.object = json_object()};
    put_rule(&also, &item->rules[1]);
    w->failed |= also.failed;
    put(w, "also", also.object);
}

static void put_code(writer *w, const dms_item *item)
{
    json_t *list = json_array();
    put_prompt(w, item);
    for (size_t i = 0; i < item->n_tests; i++) {
        const dms_code_test *t = &item->tests[i];
        w->failed |= json_array_append_new(list, json_pack("{s:s, s:s}", "input", t->input,
                                                           "output", t->output)) != 0;
    }
    put(w, "tests", list);
    put_text(w, "function", item->function);
    put(w, "timeout", json_real(item->timeout));
}

dms_status dms_item_write(FILE *file, const dms_item *item)
{
    static void (*const put_kind[])(writer *, const dms_item *) = {
        [DMS_ITEM_MATCH] = put_match,
        [DMS_ITEM_CHOICE] = put_choice,
        [DMS_ITEM_EXTRACT] = put_extract,
        [DMS_ITEM_CODE] = put_code,
    };
    writer w = {.object = json_object()};
    put_text(&w, "id", item->id);
    put_text(&w, "kind", dms_item_kind_name(item->kind));
    put_text(&w, "group", item->group);
    put_kind[item->kind](&w, item);
    if (item->answer_prefix && *item->answer_prefix)
        put_text(&w, "answer_prefix", item->answer_prefix);
    put_count(&w, "max_new_tokens", item->max_new_tokens);
    if (item->n_stops)
        put_texts(&w, "stop", item->stops, item->n_stops);
    dms_status status = DMS_OK;
    if (w.failed)
        status = dms_fail(DMS_ERR_FORMAT, "item %s: no memory, or text that is not UTF-8",
                          item->id ? item->id : "");
    else if (json_dumpf(w.object, file, JSON_COMPACT) || fputc('\n', file) == EOF)
        status = dms_fail(DMS_ERR_IO, "item %s: writing failed: %s", item->id, strerror(errno));
    json_decref(w.object);
    return status;
}
