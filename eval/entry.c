#include "eval/entry.h"

#include <stdlib.h>
#include <string.h>

/* A block that is first only measured, then filled: the same calls in the same order. */
typedef struct {
    char *base; /* NULL while measuring */
    size_t used;
} block;

static void *put(block *b, const void *from, size_t bytes)
{
    char *at = b->base ? b->base + b->used : NULL;
    if (at && bytes)
        memcpy(at, from, bytes);
    b->used += (bytes + 15) / 16 * 16;
    return at;
}

static const char *put_text(block *b, const char *text)
{
    return text ? put(b, text, strlen(text) + 1) : NULL;
}

static const char *const *put_texts(block *b, const char *const *texts, size_t n)
{
    const char **copy = put(b, texts, n * sizeof(*texts));
    for (size_t i = 0; i < n; i++) {
        const char *text = put_text(b, texts[i]);
        if (copy)
            copy[i] = text;
    }
    return copy;
}

static const dms_message *put_messages(block *b, const dms_message *messages, size_t n)
{
    dms_message *copy = put(b, messages, n * sizeof(*messages));
    for (size_t i = 0; i < n; i++) {
        const dms_message m = {put_text(b, messages[i].role), put_text(b, messages[i].content),
                               put_text(b, messages[i].reasoning)};
        if (copy)
            copy[i] = m;
    }
    return copy;
}

static const dms_code_test *put_tests(block *b, const dms_code_test *tests, size_t n)
{
    dms_code_test *copy = put(b, tests, n * sizeof(*tests));
    for (size_t i = 0; i < n; i++) {
        const dms_code_test t = {put_text(b, tests[i].input), put_text(b, tests[i].output)};
        if (copy)
            copy[i] = t;
    }
    return copy;
}

static dms_item put_item(block *b, const dms_item *from)
{
    dms_item item = *from;
    item.id = put_text(b, from->id);
    item.group = put_text(b, from->group);
    item.prompt = put_text(b, from->prompt);
    item.messages = from->messages ? put_messages(b, from->messages, from->n_messages) : NULL;
    item.answer_prefix = put_text(b, from->answer_prefix);
    item.stops = put_texts(b, from->stops, from->n_stops);
    item.texts = put_texts(b, from->texts, from->n_texts);
    item.delimiter = put_text(b, from->delimiter);
    item.answer = put_text(b, from->answer);
    item.tests = put_tests(b, from->tests, from->n_tests);
    item.function = put_text(b, from->function);
    return item;
}

dms_status dms_entry_open(dms_entry *out, const dms_item *item)
{
    block b = {0};
    put_item(&b, item);
    void *store = malloc(b.used + 1);
    if (!store)
        return dms_fail(DMS_ERR_NOMEM, "no memory for item %s", item->id);
    b = (block){store, 0};
    *out = (dms_entry){put_item(&b, item), store};
    return DMS_OK;
}

void dms_entry_close(dms_entry *e)
{
    free(e->store);
    *e = (dms_entry){0};
}
