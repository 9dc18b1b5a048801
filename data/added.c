#include "data/added.h"

#include <stdlib.h>
#include <string.h>

#include "data/finder.h"
#include "data/keys.h"
#include "data/utf8.h"

typedef struct {
    dms_text content;
    int32_t id;
    bool special, single_word, lstrip, rstrip;
} added_token;

/* A longer token is found by `finder`; that many bytes are compared at each place of a text. */
enum { SHORT = 64 };

struct dms_added {
    added_token *tokens; /* sorted by content, a start before what it starts */
    int64_t n;
    /* Tokens that begin with byte c are first[c] .. first[c + 1] - 1. */
    int64_t first[257];
    int lead;           /* the byte that all begin with, or -1 */
    dms_finder *finder; /* of the tokens above SHORT bytes, by their index; NULL: none */
};

static int by_content(const void *x, const void *y)
{
    const dms_text *a = &((const added_token *)x)->content, *b = &((const added_token *)y)->content;
    const int order = memcmp(a->bytes, b->bytes, a->n < b->n ? a->n : b->n);
    return order ? order : (a->n > b->n) - (a->n < b->n);
}

static dms_status read_token(added_token *token, const json_t *entry, bool normalized,
                             dms_normalizer *normalizer, const char *origin)
{
    const json_t *content = json_object_get(entry, "content");
    const char *text = json_string_value(content);
    const size_t n = json_string_length(content);
    token->id = (int32_t)json_integer_value(json_object_get(entry, "id"));
    DMS_TRY(dms_key_bool(&token->special, entry, "special", origin, false));
    DMS_TRY(dms_key_bool(&token->single_word, entry, "single_word", origin, false));
    DMS_TRY(dms_key_bool(&token->lstrip, entry, "lstrip", origin, false));
    DMS_TRY(dms_key_bool(&token->rstrip, entry, "rstrip", origin, false));
    if (normalized)
        return dms_normalizer_apply(normalizer, &token->content, text, n);
    return dms_text_append(&token->content, text, n);
}

static dms_status read_tokens(dms_added *a, const json_t *list, bool wanted,
                              dms_normalizer *normalizer, const char *origin)
{
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry)
    {
        bool special, normalized;
        DMS_TRY(dms_key_bool(&special, entry, "special", origin, false));
        DMS_TRY(dms_key_bool(&normalized, entry, "normalized", origin, !special));
        if (normalized != wanted || json_string_length(json_object_get(entry, "content")) == 0)
            continue;
        added_token *token = &a->tokens[a->n++];
        DMS_TRY(read_token(token, entry, wanted, normalizer, origin));
        if (token->content.n > 0)
            continue;
        dms_text_free(&token->content); /* the normalizer left nothing of it */
        a->n--;
    }
    return DMS_OK;
}

static void index_first_bytes(dms_added *a)
{
    int64_t i = 0;
    for (int c = 0; c < 257; c++) {
        while (i < a->n && (uint8_t)a->tokens[i].content.bytes[0] < c)
            i++;
        a->first[c] = i;
    }
    a->lead = a->n > 0 ? (uint8_t)a->tokens[0].content.bytes[0] : -1;
    if (a->n > 0 && (uint8_t)a->tokens[a->n - 1].content.bytes[0] != a->lead)
        a->lead = -1;
}

/* The next place from `at` on where a token may begin, or n. */
static size_t next_lead(const dms_added *a, const char *text, size_t n, size_t at)
{
    if (a->lead >= 0) {
        const char *found = memchr(text + at, a->lead, n - at);
        return found ? (size_t)(found - text) : n;
    }
    while (at < n && a->first[(uint8_t)text[at]] == a->first[(uint8_t)text[at] + 1])
        at++;
    return at;
}

static dms_status open_finder(dms_added *a)
{
    dms_status status = DMS_OK;
    int64_t n = 0;
    const dms_text **texts = calloc((size_t)a->n + 1, sizeof(*texts));
    int32_t *ids = calloc((size_t)a->n + 1, sizeof(*ids));
    if (!texts || !ids)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for added tokens"));
    for (int64_t i = 0; i < a->n; i++)
        if (a->tokens[i].content.n > SHORT) {
            texts[n] = &a->tokens[i].content;
            ids[n++] = (int32_t)i;
        }
    if (n)
        status = dms_finder_open(&a->finder, texts, ids, n);
done:
    free(texts);
    free(ids);
    return status;
}

dms_status dms_added_open(dms_added **out, const json_t *list, bool normalized,
                          dms_normalizer *normalizer, const char *origin)
{
    dms_status status = DMS_OK;
    dms_added *a = calloc(1, sizeof(*a));
    if (!a)
        return dms_fail(DMS_ERR_NOMEM, "no memory for added tokens");
    a->tokens = calloc(json_array_size(list) + 1, sizeof(*a->tokens));
    if (!a->tokens)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for added tokens"));
    DMS_TRY_OR(failed, read_tokens(a, list, normalized, normalizer, origin));
    qsort(a->tokens, (size_t)a->n, sizeof(*a->tokens), by_content);
    index_first_bytes(a);
    DMS_TRY_OR(failed, open_finder(a));
    *out = a;
    return DMS_OK;
failed:
    dms_added_close(a);
    return status;
}

void dms_added_close(dms_added *a)
{
    if (!a)
        return;
    for (int64_t i = 0; i < a->n; i++)
        dms_text_free(&a->tokens[i].content);
    free(a->tokens);
    dms_finder_close(a->finder);
    free(a);
}

/* The first of low..high-1 whose byte at `depth` is at least `byte`; high where none is. */
static int64_t lower_bound(const dms_added *a, int64_t low, int64_t high, size_t depth, int byte)
{
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if ((uint8_t)a->tokens[middle].content.bytes[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that text + at begins with, or NULL: narrows the sorted list byte by byte. */
static const added_token *longest_at(const dms_added *a, const char *text, size_t n, size_t at)
{
    const uint8_t *here = (const uint8_t *)text + at;
    int64_t low = a->first[*here], high = a->first[*here + 1];
    const added_token *best = NULL;
    for (size_t depth = 1; low < high; depth++) {
        /* All of low..high-1 share `depth` bytes with the text; the shortest comes first. */
        for (; low < high && a->tokens[low].content.n == depth; low++)
            best = &a->tokens[low];
        if (depth == n - at || low == high)
            break;
        if (depth == SHORT) {
            const int32_t found = dms_finder_at(a->finder, text, n, at);
            return found < 0 ? best : &a->tokens[found];
        }
        high = lower_bound(a, low, high, depth, here[depth] + 1);
        low = lower_bound(a, low, high, depth, here[depth]);
    }
    return best;
}

/* Start of the code point that ends before `at` > 0. */
static size_t step_back(const char *text, size_t at)
{
    do
        at--;
    while (((uint8_t)text[at] & 0xC0) == 0x80);
    return at;
}

static bool stands_alone(const char *text, size_t n, size_t start, size_t end)
{
    int length;
    if (start > 0 && dms_code_is_word(dms_utf8_code(text + step_back(text, start), &length)))
        return false;
    return end == n || !dms_code_is_word(dms_utf8_code(text + end, &length));
}

static size_t strip_left(const char *text, size_t start, size_t least)
{
    int length;
    while (start > least) {
        const size_t before = step_back(text, start);
        if (!dms_code_is_space(dms_utf8_code(text + before, &length)))
            break;
        start = before;
    }
    return start;
}

static size_t strip_right(const char *text, size_t n, size_t end)
{
    int length;
    while (end < n && dms_code_is_space(dms_utf8_code(text + end, &length)))
        end += (size_t)length;
    return end;
}

bool dms_added_next(const dms_added *a, dms_added_match *m, const char *text, size_t n,
                    bool specials)
{
    size_t at = m->resume;
    if (a->n == 0)
        return false;
    if (a->finder && !m->resume)
        dms_finder_begin(a->finder);
    while ((at = next_lead(a, text, n, at)) < n) {
        const added_token *token = longest_at(a, text, n, at);
        if (!token) {
            at++;
            continue;
        }
        const size_t start = at, end = at + token->content.n;
        at = end;
        if ((token->special && !specials) ||
            (token->single_word && !stands_alone(text, n, start, end)))
            continue;
        const size_t done = m->end;
        m->start = token->lstrip ? strip_left(text, start, done) : start;
        /* Up to `done` the match before has already gone over spaces. */
        m->end = token->rstrip ? strip_right(text, n, end > done ? end : done) : end;
        m->resume = end;
        m->id = token->id;
        /* The spaces that the match before took may hold this one. */
        m->start = m->start > done ? m->start : done;
        return true;
    }
    return false;
}

bool dms_added_keeps_spaces(const dms_added *a)
{
    for (int64_t i = 0; i < a->n; i++) {
        const added_token *token = &a->tokens[i];
        if (token->lstrip || token->rstrip || memchr(token->content.bytes, ' ', token->content.n))
            return false;
    }
    return true;
}
