#include "data/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "data/hash.h"
#include "data/keys.h"

struct dms_vocab {
    dms_surface surface; /* only while it is filled */
    int64_t size;
    dms_vocab_token *tokens; /* [size] */
    char *pool;              /* all texts, then all bytes */
    size_t pool_used;
    int32_t *slots; /* open addressing: id or -1; a power of two, at most half full */
    uint64_t mask;
};

/* What the file announces: how many tokens, how many bytes of text, the largest id. */
typedef struct {
    int64_t n;
    int64_t largest;
    size_t text_bytes;
} census;

static dms_status census_add(census *c, const json_t *id, size_t n_text, const char *origin,
                             const char *text)
{
    if (!json_is_integer(id))
        return dms_fail(DMS_ERR_FORMAT, "%s: the id of token \"%.64s\" is %s, expected a number",
                        origin, text, dms_key_type(id));
    const json_int_t value = json_integer_value(id);
    if (value < 0 || value > INT32_MAX - 1)
        return dms_fail(DMS_ERR_FORMAT, "%s: token \"%.64s\" has id %lld, expected 0 to %d", origin,
                        text, (long long)value, INT32_MAX - 1);
    if (n_text > UINT32_MAX / 2)
        return dms_fail(DMS_ERR_FORMAT, "%s: token %lld has a text of %zu bytes", origin,
                        (long long)value, n_text);
    c->n++;
    c->text_bytes += n_text;
    c->largest = value > c->largest ? value : c->largest;
    return DMS_OK;
}

static dms_status take_census(census *c, const json_t *vocab, const json_t *added,
                              const char *origin)
{
    const char *text;
    size_t n_text, i;
    json_t *id, *entry;
    *c = (census){.largest = -1};
    json_object_keylen_foreach((json_t *)vocab, text, n_text, id)
        DMS_TRY(census_add(c, id, n_text, origin, text));
    json_array_foreach(added, i, entry)
    {
        const json_t *content = json_object_get(entry, "content");
        if (!json_is_string(content))
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: added_tokens[%zu].content is %s, expected a string", origin, i,
                            dms_key_type(content));
        text = json_string_value(content);
        id = json_object_get(entry, "id");
        DMS_TRY(census_add(c, id, json_string_length(content), origin, text));
    }
    /* Files leave few holes; a table for a lone huge id would be memory the file does not justify.
     */
    if (c->largest >= 2 * c->n + 1024)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: the largest token id is %lld, but there are only %lld tokens", origin,
                        (long long)c->largest, (long long)c->n);
    if (c->n == 0)
        return dms_fail(DMS_ERR_FORMAT, "%s: the vocabulary is empty", origin);
    return DMS_OK;
}

static uint64_t find_slot(const dms_vocab *v, const char *text, size_t n)
{
    uint64_t slot = dms_hash(text, n) & v->mask;
    for (; v->slots[slot] >= 0; slot = (slot + 1) & v->mask) {
        const dms_vocab_token *token = &v->tokens[v->slots[slot]];
        if (token->n_text == n && memcmp(token->text, text, n) == 0)
            break;
    }
    return slot;
}

static dms_status put(dms_vocab *v, int32_t id, const char *text, size_t n, const char *origin)
{
    dms_vocab_token *token = &v->tokens[id];
    if (token->text)
        return dms_fail(DMS_ERR_FORMAT, "%s: id %d is given to \"%.*s\" and to \"%.64s\"", origin,
                        id, (int)(token->n_text < 64 ? token->n_text : 64), token->text, text);
    char *copy = v->pool + v->pool_used;
    memcpy(copy, text, n);
    token->text = copy;
    token->n_text = (uint32_t)n;
    token->bytes = copy + n;
    token->n_bytes = (uint32_t)dms_surface_of(&v->surface, copy + n, copy, n);
    v->pool_used += n + token->n_bytes;
    v->slots[find_slot(v, copy, n)] = id;
    return DMS_OK;
}

static dms_status put_added(dms_vocab *v, const json_t *entry, const char *origin)
{
    const json_t *content = json_object_get(entry, "content");
    const char *text = json_string_value(content);
    const size_t n = json_string_length(content);
    const int32_t id = (int32_t)json_integer_value(json_object_get(entry, "id"));
    bool special;
    DMS_TRY(dms_key_bool(&special, entry, "special", origin, false));
    const int32_t known = dms_vocab_find(v, text, n);
    if (known < 0)
        DMS_TRY(put(v, id, text, n, origin));
    else if (known != id)
        return dms_fail(DMS_ERR_FORMAT, "%s: added token \"%.64s\" has id %d, but %d before",
                        origin, text, id, known);
    v->tokens[id].special = special;
    return DMS_OK;
}

static dms_status fill(dms_vocab *v, const json_t *vocab, const json_t *added, const char *origin)
{
    const char *text;
    size_t n, i;
    json_t *id, *entry;
    json_object_keylen_foreach((json_t *)vocab, text, n, id)
    {
        DMS_TRY(put(v, (int32_t)json_integer_value(id), text, n, origin));
        v->tokens[json_integer_value(id)].in_model = true;
    }
    json_array_foreach(added, i, entry) DMS_TRY(put_added(v, entry, origin));
    return DMS_OK;
}

static dms_status allocate(dms_vocab *v, const census *c)
{
    uint64_t n_slots = 16;
    while (n_slots < 2 * (uint64_t)c->n)
        n_slots *= 2;
    v->size = c->largest + 1;
    v->mask = n_slots - 1;
    v->tokens = calloc((size_t)v->size, sizeof(*v->tokens));
    v->pool = malloc(2 * c->text_bytes + 1);
    v->slots = malloc(n_slots * sizeof(*v->slots));
    if (!v->tokens || !v->pool || !v->slots)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a vocabulary of %lld tokens",
                        (long long)c->n);
    memset(v->slots, 0xFF, n_slots * sizeof(*v->slots));
    return DMS_OK;
}

dms_status dms_vocab_open(dms_vocab **out, const json_t *vocab, const json_t *added,
                          const dms_surface *surface, const char *origin)
{
    census c;
    dms_status status = DMS_OK;
    DMS_TRY(take_census(&c, vocab, added, origin));
    dms_vocab *v = calloc(1, sizeof(*v));
    if (!v)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a vocabulary");
    v->surface = *surface;
    DMS_TRY_OR(failed, allocate(v, &c));
    DMS_TRY_OR(failed, fill(v, vocab, added, origin));
    v->surface = (dms_surface){0};
    *out = v;
    return DMS_OK;
failed:
    dms_vocab_close(v);
    return status;
}

void dms_vocab_close(dms_vocab *v)
{
    if (!v)
        return;
    free(v->tokens);
    free(v->pool);
    free(v->slots);
    free(v);
}

int64_t dms_vocab_size(const dms_vocab *v)
{
    return v->size;
}

const dms_vocab_token *dms_vocab_get(const dms_vocab *v, int32_t id)
{
    return &v->tokens[id];
}

int32_t dms_vocab_find(const dms_vocab *v, const char *text, size_t n)
{
    return v->slots[find_slot(v, text, n)];
}
