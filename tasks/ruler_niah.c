#include <string.h>

#include "tasks/ruler_build.h"

enum { MAX_KEYS = 4, MAX_NEEDLES = 4, DEPTHS = 40 };

/* The drawn keys and values; needle i tells values[i], of key i / values a key. */
typedef struct {
    uint32_t words[MAX_KEYS]; /* of word keys: which */
    dms_text keys[MAX_KEYS], values[MAX_NEEDLES];
    uint32_t n; /* needles */
} needles;

static dms_status draw_key(dms_text *out, const dms_ruler_build *b, uint32_t word)
{
    return b->task->uuid_keys ? dms_draw_uuid(out, b->draws) : dms_word_pair(out, word);
}

static dms_status draw_value(dms_text *out, const dms_ruler_build *b)
{
    return b->task->uuid_values ? dms_draw_uuid(out, b->draws) : dms_draw_number(out, b->draws, 7);
}

static bool has_value(const needles *k, uint32_t n, const dms_text *value)
{
    for (uint32_t i = 0; i < n; i++)
        if (dms_span_equal((dms_span){k->values[i].bytes, k->values[i].n},
                           (dms_span){value->bytes, value->n}))
            return true;
    return false;
}

static dms_status draw_needles(needles *k, const dms_ruler_build *b)
{
    const dms_ruler_task *t = b->task;
    k->n = t->keys * t->values;
    DMS_TRY(dms_draw_distinct(b->draws, k->words, t->keys, dms_word_pairs()));
    for (uint32_t i = 0; i < t->keys; i++)
        DMS_TRY(draw_key(&k->keys[i], b, k->words[i]));
    for (uint32_t i = 0; i < k->n; i++)
        do {
            k->values[i].n = 0;
            DMS_TRY(draw_value(&k->values[i], b));
        } while (has_value(k, i, &k->values[i]));
    return DMS_OK;
}

static const char *kind(const dms_ruler_build *b)
{
    return b->task->uuid_values ? "code" : "number";
}

static dms_status tell(dms_text *out, const dms_ruler_build *b, const dms_text *key,
                       const dms_text *value)
{
    return dms_text_format(out, "%s secret %s of %.*s is %.*s.", b->task->values > 1 ? "A" : "The",
                           kind(b), (int)key->n, key->bytes, (int)value->n, value->bytes);
}

/* A needle of a key and a value that nobody asks for. */
static dms_status distract(dms_text *out, const dms_ruler_build *b, const needles *k)
{
    dms_status status = DMS_OK;
    dms_text key = {0}, value = {0};
    uint32_t word;
    do
        word = dms_draw_below(b->draws, dms_word_pairs());
    while (word == k->words[0]);
    DMS_TRY_OR(end, draw_key(&key, b, word));
    do {
        value.n = 0;
        DMS_TRY_OR(end, draw_value(&value, b));
    } while (has_value(k, k->n, &value));
    DMS_TRY_OR(end, tell(out, b, &key, &value));
end:
    dms_text_free(&key);
    dms_text_free(&value);
    return status;
}

static dms_status append_hay(dms_text *out, const dms_ruler_build *b, const needles *k,
                             uint32_t index)
{
    switch (b->task->hay) {
    case DMS_HAY_NOISE:
        return dms_text_append(out, dms_ruler_noise, strlen(dms_ruler_noise));
    case DMS_HAY_ESSAY:
        return dms_ruler_essay_append(out, b->essay, index);
    default:
        return distract(out, b, k);
    }
}

/* Different places for n needles among `size` pieces, in order: of an essay those of 40 even depths
 * from 0 to 100 %, of other haystacks any. */
static dms_status draw_places(uint32_t *places, const dms_ruler_build *b, uint32_t n)
{
    uint32_t all[DEPTHS], n_all = 0;
    if (b->task->hay != DMS_HAY_ESSAY) {
        DMS_TRY(dms_draw_distinct(b->draws, places, n, b->size));
        dms_draw_sort(places, n);
        return DMS_OK;
    }
    for (uint32_t i = 0; i < DEPTHS; i++) {
        const uint32_t place = (uint32_t)((uint64_t)b->size * i / (DEPTHS - 1));
        if (n_all == 0 || all[n_all - 1] != place)
            all[n_all++] = place;
    }
    DMS_TRY(dms_draw_distinct(b->draws, places, n, n_all));
    dms_draw_sort(places, n);
    for (uint32_t i = 0; i < n; i++)
        places[i] = all[places[i]];
    return DMS_OK;
}

/* The haystack with needle order[i] before its piece places[i]. */
static dms_status append_context(const dms_ruler_build *b, const needles *k)
{
    uint32_t places[MAX_NEEDLES], order[MAX_NEEDLES];
    const char *gap = b->task->hay == DMS_HAY_ESSAY ? " " : "\n";
    DMS_TRY(draw_places(places, b, k->n));
    DMS_TRY(dms_draw_distinct(b->draws, order, k->n, k->n));
    for (uint32_t i = 0, next = 0; i <= b->size; i++) {
        for (; next < k->n && places[next] == i; next++) {
            const uint32_t which = order[next];
            DMS_TRY(tell(b->prompt, b, &k->keys[which / b->task->values], &k->values[which]));
            DMS_TRY(dms_text_append(b->prompt, gap, 1));
        }
        if (i == b->size)
            break;
        DMS_TRY(append_hay(b->prompt, b, k, i));
        DMS_TRY(dms_text_append(b->prompt, gap, 1));
    }
    b->prompt->n--; /* the last gap */
    return DMS_OK;
}

/* "a", or "a, b and c". */
static dms_status append_queries(dms_text *out, const needles *k, const uint32_t *queries,
                                 uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const dms_text *key = &k->keys[queries[i]];
        const char *gap = i == 0 ? "" : i + 1 < n ? ", " : " and ";
        DMS_TRY(dms_text_format(out, "%s%.*s", gap, (int)key->n, key->bytes));
    }
    return DMS_OK;
}

static dms_status append_all(const dms_ruler_build *b, needles *k)
{
    const dms_ruler_task *t = b->task;
    const bool one = t->values * t->queries == 1;
    uint32_t queries[MAX_KEYS];
    DMS_TRY(draw_needles(k, b));
    DMS_TRY(dms_text_format(b->prompt,
                            "The text below hides %s secret %s%s. Read it to the end and remember "
                            "what it says of %s: a question follows.\n",
                            one ? "a" : "some", kind(b), one ? "" : "s", one ? "it" : "them"));
    DMS_TRY(append_context(b, k));
    DMS_TRY(dms_draw_distinct(b->draws, queries, t->queries, t->keys));
    DMS_TRY(dms_text_format(b->prompt,
                            "\nQuestion: according to the text above, what %s the secret "
                            "%s%s of ",
                            one ? "is" : "are", kind(b), one ? "" : "s"));
    DMS_TRY(append_queries(b->prompt, k, queries, t->queries));
    DMS_TRY(dms_text_append(b->prompt, "?", 1));
    DMS_TRY(dms_text_format(b->prefix, " Answer: the secret %s%s of ", kind(b), one ? "" : "s"));
    DMS_TRY(append_queries(b->prefix, k, queries, t->queries));
    DMS_TRY(dms_text_format(b->prefix, one ? " is" : " are"));
    for (uint32_t i = 0; i < t->queries; i++)
        for (uint32_t j = 0; j < t->values; j++) {
            const dms_text *value = &k->values[queries[i] * t->values + j];
            DMS_TRY(dms_text_append(b->answers, value->bytes, value->n));
            DMS_TRY(dms_text_append(b->answers, "", 1));
        }
    return DMS_OK;
}

dms_status dms_ruler_build_niah(const dms_ruler_build *b)
{
    needles k = {.n = 0};
    const dms_status status = append_all(b, &k);
    for (uint32_t i = 0; i < MAX_KEYS; i++)
        dms_text_free(&k.keys[i]);
    for (uint32_t i = 0; i < MAX_NEEDLES; i++)
        dms_text_free(&k.values[i]);
    return status;
}
