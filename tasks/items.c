#include "tasks/items.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/jsonl.h"
#include "data/keys.h"

enum { MAX_LINE_MIB = 256 };

struct dms_items {
    char *path;
    gzFile file;
    dms_jsonl *lines;
    dms_item_defaults defaults;
    dms_item item;
    const json_t *object; /* of the item in hand; owned by `lines` */
    char where[512];      /* "PATH, line N" */
    char id[32], answer[32];
    /* Owned, of the item in hand. */
    dms_message *messages;
    const char **texts, **stops;
    dms_code_test *tests;
};

static const char *const kinds[] = {
    [DMS_ITEM_MATCH] = "generate-and-match",
    [DMS_ITEM_CHOICE] = "multiple-choice",
    [DMS_ITEM_EXTRACT] = "generate-and-extract",
    [DMS_ITEM_CODE] = "code",
};

const char *dms_item_kind_name(dms_item_kind kind)
{
    return kinds[kind];
}

static dms_status wrong(const dms_items *r, const char *field, const json_t *found,
                        const char *expected)
{
    return dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is %s, expected %s", r->where, field,
                    dms_key_type(found), expected);
}

/* *out = `absent` where the key is missing or null; absent = NULL: then it must be there. */
static dms_status read_text(const dms_items *r, const char **out, const char *key,
                            const char *absent)
{
    DMS_TRY(dms_key_text(out, r->object, key, r->where));
    if (!*out && !absent)
        return wrong(r, key, json_object_get(r->object, key), "a string");
    *out = *out ? *out : absent;
    return DMS_OK;
}

/* A whole number from 0, 0 where it is absent. */
static dms_status read_count(const dms_items *r, int64_t *out, const char *key)
{
    const json_t *value = json_object_get(r->object, key);
    *out = 0;
    if (!value || json_is_null(value))
        return DMS_OK;
    *out = json_integer_value(value);
    if (!json_is_integer(value) || *out < 0 || *out > INT32_MAX)
        return wrong(r, key, value, "a whole number from 0 to 2^31 - 1");
    return DMS_OK;
}

/* Text, or a whole number that is written to `store`. */
static dms_status read_name(const dms_items *r, const char **out, const char *key, char store[32])
{
    const json_t *value = json_object_get(r->object, key);
    if (!json_is_integer(value))
        return read_text(r, out, key, NULL);
    snprintf(store, 32, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    *out = store;
    return DMS_OK;
}

static dms_status read_id(dms_items *r)
{
    const json_t *id = json_object_get(r->object, "id");
    const json_t *index = json_object_get(r->object, "index");
    if (id && !json_is_null(id))
        return read_name(r, &r->item.id, "id", r->id);
    if (index && !json_is_null(index))
        return read_name(r, &r->item.id, "index", r->id);
    snprintf(r->id, sizeof(r->id), "%lld", dms_jsonl_line(r->lines));
    r->item.id = r->id;
    return DMS_OK;
}

/* A text among others, at `key` of `from`, which the item is or holds. */
typedef struct {
    const json_t *from;
    const char *key;
    const char *const *names;
    int n;
} choice;

/* Its index; *out stays as it is where the key is missing or null. */
static dms_status read_choice(const dms_items *r, int *out, const choice *c)
{
    const char *text;
    DMS_TRY(dms_key_text(&text, c->from, c->key, r->where));
    if (!text)
        return DMS_OK;
    for (int i = 0; i < c->n; i++)
        if (!strcmp(text, c->names[i])) {
            *out = i;
            return DMS_OK;
        }
    dms_text list = {0};
    dms_status status = DMS_OK;
    for (int i = 0; i < c->n && !status; i++)
        status = dms_text_format(&list, i ? ", %s" : "%s", c->names[i]);
    if (!status)
        status = dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is \"%.64s\", expected one of %.*s", r->where,
                          c->key, text, (int)list.n, list.bytes);
    dms_text_free(&list);
    return status;
}

/* Array of texts without 0 -> owned array of pointers. */
static dms_status read_texts(dms_items *r, const char ***out, const char *key, size_t least)
{
    const json_t *list = json_object_get(r->object, key);
    const size_t n = json_array_size(list);
    if (!json_is_array(list) || n < least)
        return wrong(r, key, list,
                     least > 1 ? "an array of two strings at least"
                               : "an array of one string at least");
    const char **texts = malloc(n * sizeof(*texts));
    if (!texts)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for %zu strings", r->where, n);
    *out = texts;
    for (size_t i = 0; i < n; i++) {
        char field[64];
        const json_t *text = json_array_get(list, i);
        snprintf(field, sizeof(field), "%s[%zu]", key, i);
        texts[i] = json_string_value(text);
        if (!texts[i] || strlen(texts[i]) != json_string_length(text))
            return wrong(r, field, text, "a string without NUL");
    }
    return DMS_OK;
}

static dms_status read_item_texts(dms_items *r, const char *key, size_t least)
{
    DMS_TRY(read_texts(r, &r->texts, key, least));
    r->item.texts = r->texts;
    r->item.n_texts = json_array_size(json_object_get(r->object, key));
    return DMS_OK;
}

static dms_status read_stops(dms_items *r)
{
    const json_t *stops = json_object_get(r->object, "stop");
    if (!stops || json_is_null(stops))
        return DMS_OK;
    DMS_TRY(read_texts(r, &r->stops, "stop", 1));
    r->item.stops = r->stops;
    r->item.n_stops = json_array_size(stops);
    return DMS_OK;
}

static dms_status read_message(dms_items *r, dms_message *m, size_t i)
{
    char where[600];
    const json_t *one = json_array_get(json_object_get(r->object, "messages"), i);
    snprintf(where, sizeof(where), "%s, messages[%zu]", r->where, i);
    DMS_TRY(dms_key_text(&m->role, one, "role", where));
    DMS_TRY(dms_key_text(&m->content, one, "content", where));
    if (!m->role || !m->content)
        return dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is missing, expected a string", where,
                        m->role ? "content" : "role");
    if (strcmp(m->role, "system") && strcmp(m->role, "user") && strcmp(m->role, "assistant"))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: \"role\" is \"%.64s\", expected system, user or assistant", where,
                        m->role);
    return DMS_OK;
}

/* "prompt" or "messages". */
static dms_status read_prompt(dms_items *r)
{
    const json_t *messages = json_object_get(r->object, "messages");
    const size_t n = json_array_size(messages);
    if (!messages || json_is_null(messages))
        return read_text(r, &r->item.prompt, "prompt", NULL);
    if (json_object_get(r->object, "prompt"))
        return dms_fail(DMS_ERR_FORMAT, "%s: has \"prompt\" and \"messages\", expected one",
                        r->where);
    if (!json_is_array(messages) || n == 0)
        return wrong(r, "messages", messages, "an array of one message at least");
    r->messages = calloc(n, sizeof(*r->messages));
    if (!r->messages)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for %zu messages", r->where, n);
    for (size_t i = 0; i < n; i++)
        DMS_TRY(read_message(r, &r->messages[i], i));
    r->item.messages = r->messages;
    r->item.n_messages = n;
    return DMS_OK;
}

static dms_status read_match(dms_items *r)
{
    static const char *const names[] = {[DMS_MATCH_ALL] = "all", [DMS_MATCH_PART] = "part"};
    dms_item *item = &r->item;
    int match = r->defaults.match;
    DMS_TRY(read_text(r, &item->prompt, "input", NULL));
    DMS_TRY(read_choice(r, &match, &(choice){r->object, "metric", names, 2}));
    item->match = (dms_match)match;
    DMS_TRY(read_count(r, &item->length, "length"));
    if (item->max_new_tokens == 0)
        item->max_new_tokens = r->defaults.max_new_tokens;
    if (json_object_get(r->object, "outputs"))
        return read_item_texts(r, "outputs", 1);
    r->texts = calloc(1, sizeof(*r->texts));
    if (!r->texts)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for a string", r->where);
    DMS_TRY(read_text(r, &r->texts[0], "output", NULL));
    item->texts = r->texts;
    item->n_texts = 1;
    return DMS_OK;
}

static dms_status read_multiple_choice(dms_items *r)
{
    static const char *const norms[] = {
        [DMS_NORM_NONE] = "none", [DMS_NORM_CHAR] = "char", [DMS_NORM_TOKEN] = "token"};
    dms_item *item = &r->item;
    int norm = DMS_NORM_NONE;
    const json_t *label = json_object_get(r->object, "label");
    DMS_TRY(read_text(r, &item->prompt, "context", NULL));
    DMS_TRY(read_text(r, &item->delimiter, "delimiter", " "));
    DMS_TRY(read_item_texts(r, "choices", 2));
    DMS_TRY(read_choice(r, &norm, &(choice){r->object, "norm", norms, 3}));
    item->norm = (dms_norm)norm;
    if (!json_is_integer(label))
        return wrong(r, "label", label, "a whole number");
    const json_int_t index = json_integer_value(label);
    if (index < 0 || index >= (json_int_t)item->n_texts)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: \"label\" is %" JSON_INTEGER_FORMAT ", expected 0 to %zu", r->where,
                        index, item->n_texts - 1);
    item->label = (size_t)index;
    return DMS_OK;
}

static dms_status read_rule(dms_items *r, const json_t *from)
{
    const char *extractors[DMS_N_EXTRACTORS], *equalities[DMS_N_EQUALITIES];
    int extractor = -1, equality = -1;
    for (int i = 0; i < DMS_N_EXTRACTORS; i++)
        extractors[i] = dms_extractor_name((dms_extractor)i);
    for (int i = 0; i < DMS_N_EQUALITIES; i++)
        equalities[i] = dms_equality_name((dms_equality)i);
    DMS_TRY(read_choice(r, &extractor, &(choice){from, "extractor", extractors, DMS_N_EXTRACTORS}));
    DMS_TRY(read_choice(r, &equality, &(choice){from, "equality", equalities, DMS_N_EQUALITIES}));
    if (extractor < 0 || equality < 0)
        return wrong(r, extractor < 0 ? "extractor" : "equality", NULL, "a string");
    r->item.rules[r->item.n_rules++] =
        (dms_answer_rule){(dms_extractor)extractor, (dms_equality)equality};
    return DMS_OK;
}

static dms_status read_extract(dms_items *r)
{
    const json_t *also = json_object_get(r->object, "also");
    DMS_TRY(read_prompt(r));
    DMS_TRY(read_name(r, &r->item.answer, "answer", r->answer));
    DMS_TRY(read_rule(r, r->object));
    if (!also || json_is_null(also))
        return DMS_OK;
    return json_is_object(also) ? read_rule(r, also) : wrong(r, "also", also, "an object");
}

static dms_status read_test(dms_items *r, dms_code_test *test, size_t i)
{
    char where[600];
    const json_t *one = json_array_get(json_object_get(r->object, "tests"), i);
    snprintf(where, sizeof(where), "%s, tests[%zu]", r->where, i);
    DMS_TRY(dms_key_text(&test->input, one, "input", where));
    DMS_TRY(dms_key_text(&test->output, one, "output", where));
    if (!test->input || !test->output)
        return dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is missing, expected a string", where,
                        test->input ? "output" : "input");
    return DMS_OK;
}

static dms_status read_code(dms_items *r)
{
    const json_t *tests = json_object_get(r->object, "tests");
    const json_t *timeout = json_object_get(r->object, "timeout");
    const size_t n = json_array_size(tests);
    DMS_TRY(read_prompt(r));
    DMS_TRY(read_text(r, &r->item.function, "function", ""));
    if (*r->item.function == 0)
        r->item.function = NULL;
    r->item.timeout = timeout && !json_is_null(timeout) ? json_number_value(timeout) : 6;
    if (!(r->item.timeout > 0 && r->item.timeout <= 3600))
        return wrong(r, "timeout", timeout, "a number of seconds, above 0, to 3600");
    if (!json_is_array(tests) || n == 0)
        return wrong(r, "tests", tests, "an array of one {input, output} at least");
    r->tests = calloc(n, sizeof(*r->tests));
    if (!r->tests)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory for %zu tests", r->where, n);
    for (size_t i = 0; i < n; i++)
        DMS_TRY(read_test(r, &r->tests[i], i));
    r->item.tests = r->tests;
    r->item.n_tests = n;
    return DMS_OK;
}

/* From "kind", or from the field that only one kind has. */
static dms_status read_kind(dms_items *r)
{
    static const struct {
        const char *key;
        dms_item_kind kind;
    } signs[] = {{"outputs", DMS_ITEM_MATCH},
                 {"choices", DMS_ITEM_CHOICE},
                 {"tests", DMS_ITEM_CODE},
                 {"answer", DMS_ITEM_EXTRACT},
                 {"output", DMS_ITEM_MATCH}};
    int kind = -1;
    DMS_TRY(read_choice(r, &kind, &(choice){r->object, "kind", kinds, 4}));
    for (size_t i = 0; kind < 0 && i < sizeof(signs) / sizeof(*signs); i++)
        if (json_object_get(r->object, signs[i].key))
            kind = signs[i].kind;
    if (kind < 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: has none of \"kind\", \"outputs\", \"choices\", \"answer\" and "
                        "\"tests\", expected one; files as published go through `dms-eval convert`",
                        r->where);
    r->item.kind = (dms_item_kind)kind;
    return DMS_OK;
}

static dms_status read_item(dms_items *r)
{
    static dms_status (*const read[])(dms_items *) = {
        [DMS_ITEM_MATCH] = read_match,
        [DMS_ITEM_CHOICE] = read_multiple_choice,
        [DMS_ITEM_EXTRACT] = read_extract,
        [DMS_ITEM_CODE] = read_code,
    };
    snprintf(r->where, sizeof(r->where), "%.400s, line %lld", r->path, dms_jsonl_line(r->lines));
    DMS_TRY(read_kind(r));
    DMS_TRY(read_id(r));
    DMS_TRY(read_text(r, &r->item.group, "group", ""));
    if (*r->item.group == 0)
        r->item.group = NULL;
    DMS_TRY(read_text(r, &r->item.answer_prefix, "answer_prefix", ""));
    DMS_TRY(read_count(r, &r->item.max_new_tokens, "max_new_tokens"));
    DMS_TRY(read_stops(r));
    return read[r->item.kind](r);
}

static void drop_item(dms_items *r)
{
    free(r->messages);
    free((void *)r->texts);
    free((void *)r->stops);
    free(r->tests);
    r->messages = NULL;
    r->texts = r->stops = NULL;
    r->tests = NULL;
    r->item = (dms_item){0};
}

dms_status dms_items_next(dms_items *r, const dms_item **item)
{
    drop_item(r);
    DMS_TRY(dms_jsonl_next_object(r->lines, &r->object));
    if (r->object)
        DMS_TRY(read_item(r));
    *item = r->object ? &r->item : NULL;
    return DMS_OK;
}

void dms_items_close(dms_items *r)
{
    if (!r)
        return;
    drop_item(r);
    dms_jsonl_close(r->lines);
    if (r->file)
        gzclose(r->file);
    free(r->path);
    free(r);
}

static dms_status open_file(dms_items *r)
{
    struct stat st;
    const int fd = open(r->path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && !fstat(fd, &st) && S_ISDIR(st.st_mode)) {
        close(fd);
        return dms_fail(DMS_ERR_IO, "%s: is a folder, expected a file of JSON Lines", r->path);
    }
    r->file = fd < 0 ? NULL : gzdopen(fd, "rb");
    if (r->file)
        return DMS_OK;
    const dms_status status = dms_fail(DMS_ERR_IO, "%s: %s", r->path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return status;
}

dms_status dms_items_open(dms_items **out, const char *path, const dms_item_defaults *defaults)
{
    dms_status status = DMS_OK;
    dms_items *r = calloc(1, sizeof(*r));
    if (!r || !(r->path = strdup(path))) {
        free(r);
        return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", path);
    }
    if (defaults)
        r->defaults = *defaults;
    DMS_TRY_OR(failed, open_file(r));
    DMS_TRY_OR(failed, dms_jsonl_open(&r->lines, r->file, r->path));
    dms_jsonl_limit(r->lines, MAX_LINE_MIB);
    *out = r;
    return DMS_OK;
failed:
    dms_items_close(r);
    return status;
}
