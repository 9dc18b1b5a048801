#include "data/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/bytelevel.h"
#include "data/hash.h"
#include "data/keys.h"
#include "data/merges.h"
#include "data/utf8.h"

/* A cached piece fills one cache line of 64 bytes. Longer pieces and those of more tokens are
 * rare, and merged anew each time. */
enum { CACHED_BYTES = 34, CACHED_IDS = 7, CACHE_SLOTS = 1 << 16 };

typedef struct {
    int32_t ids[CACHED_IDS];
    uint8_t n_ids, n_bytes; /* n_bytes 0: a free slot, for no piece is empty */
    char bytes[CACHED_BYTES];
} cached;

/* One symbol of the piece in work; neighbours by index, -1 at the ends. `merged` is what this
 * symbol and the next one would become, or -1; `id` is -1 once swallowed by the one before. */
typedef struct {
    int32_t id, prev, next, merged;
} symbol;

/* A merge that was possible when it was entered: order is rank << 32 | position. */
typedef struct {
    uint64_t order;
    int32_t merged;
} candidate;

struct dms_bpe {
    const dms_vocab *vocab;
    dms_merges merges;
    bool byte_level;
    bool byte_fallback;
    int32_t byte_ids[256]; /* byte_level, byte_fallback; -1: no token */
    int32_t unknown;       /* the unknown token, or -1 */
    bool fuse_unknown;     /* one for a run of unknown bytes */
    bool ignore_merges;
    cached *cache;
    symbol *symbols; /* [room] */
    candidate *heap; /* [3 * room]: n - 1 at first, and two for each of at most n - 1 merges */
    int64_t room;
    int64_t n_heap;
};

static dms_status refuse_affix(const json_t *model, const char *key, const char *origin)
{
    const char *text;
    DMS_TRY(dms_key_text(&text, model, key, origin));
    if (text && text[0])
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: model.%s is \"%.64s\"; only models that have none are supported",
                        origin, key, text);
    return DMS_OK;
}

static dms_status check_options(const json_t *model, const char *origin)
{
    const char *type;
    DMS_TRY(dms_key_text(&type, model, "type", origin));
    if (type && strcmp(type, "BPE") != 0)
        return dms_fail(DMS_ERR_FORMAT, "%s: model.type is \"%.64s\", only \"BPE\" is supported",
                        origin, type);
    DMS_TRY(refuse_affix(model, "continuing_subword_prefix", origin));
    DMS_TRY(refuse_affix(model, "end_of_word_suffix", origin));
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: model.dropout is set; merges at random are not "
                        "supported, set it to null",
                        origin);
    return DMS_OK;
}

static dms_status read_unknown(dms_bpe *b, const json_t *model, const char *origin)
{
    const char *text;
    DMS_TRY(dms_key_text(&text, model, "unk_token", origin));
    DMS_TRY(dms_key_bool(&b->fuse_unknown, model, "fuse_unk", origin, false));
    b->unknown = text ? dms_vocab_find(b->vocab, text, strlen(text)) : -1;
    if (text && b->unknown < 0)
        return dms_fail(DMS_ERR_FORMAT, "%s: model.unk_token \"%.64s\" is not in the vocabulary",
                        origin, text);
    return DMS_OK;
}

/* Writes a byte's character in the byte-level alphabet; returns its length, 1 or 2. */
static size_t map_byte(char *out, uint8_t byte)
{
    const int32_t code = dms_bytelevel_code(byte);
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xC0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3F));
    return 2;
}

static int32_t find_in_model(const dms_vocab *vocab, const char *text, size_t n)
{
    const int32_t id = dms_vocab_find(vocab, text, n);
    return id >= 0 && dms_vocab_get(vocab, id)->in_model ? id : -1;
}

static dms_status read_bytes(dms_bpe *b, const json_t *model, const char *origin)
{
    DMS_TRY(dms_key_bool(&b->byte_fallback, model, "byte_fallback", origin, false));
    b->byte_fallback &= !b->byte_level; /* which has a token for each byte already */
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        const int n = b->byte_level ? (int)map_byte(text, (uint8_t)byte)
                                    : snprintf(text, sizeof(text), "<0x%02X>", (unsigned)byte);
        b->byte_ids[byte] = find_in_model(b->vocab, text, (size_t)n);
        if (b->byte_fallback && b->byte_ids[byte] < 0)
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: model.byte_fallback is true, but the vocabulary has no \"%s\"",
                            origin, text);
    }
    return DMS_OK;
}

dms_status dms_bpe_open(dms_bpe **out, const json_t *model, const dms_vocab *vocab, bool byte_level,
                        const char *origin)
{
    dms_status status = DMS_OK;
    DMS_TRY(check_options(model, origin));
    dms_bpe *b = calloc(1, sizeof(*b));
    if (!b)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tokenizer");
    b->vocab = vocab;
    b->byte_level = byte_level;
    b->cache = calloc(CACHE_SLOTS, sizeof(*b->cache));
    if (!b->cache)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for the tokenizer's cache"));
    DMS_TRY_OR(failed, read_unknown(b, model, origin));
    DMS_TRY_OR(failed, dms_key_bool(&b->ignore_merges, model, "ignore_merges", origin, false));
    DMS_TRY_OR(failed,
               dms_merges_open(&b->merges, json_object_get(model, "merges"), vocab, origin));
    DMS_TRY_OR(failed, read_bytes(b, model, origin));
    *out = b;
    return DMS_OK;
failed:
    dms_bpe_close(b);
    return status;
}

void dms_bpe_close(dms_bpe *b)
{
    if (!b)
        return;
    dms_merges_close(&b->merges);
    free(b->cache);
    free(b->symbols);
    free(b->heap);
    free(b);
}

static dms_status reserve(dms_bpe *b, int64_t n)
{
    if (n <= b->room)
        return DMS_OK;
    const int64_t room = n > 2 * b->room ? n : 2 * b->room;
    symbol *symbols = realloc(b->symbols, (size_t)room * sizeof(*symbols));
    b->symbols = symbols ? symbols : b->symbols;
    candidate *heap = realloc(b->heap, 3 * (size_t)room * sizeof(*heap));
    b->heap = heap ? heap : b->heap;
    if (!symbols || !heap)
        return dms_fail(DMS_ERR_NOMEM, "no memory to merge a word of %lld bytes", (long long)n);
    b->room = room;
    return DMS_OK;
}

static void heap_push(dms_bpe *b, candidate c)
{
    int64_t at = b->n_heap++;
    for (; at > 0; at = (at - 1) / 2) {
        const int64_t up = (at - 1) / 2;
        if (b->heap[up].order <= c.order)
            break;
        b->heap[at] = b->heap[up];
    }
    b->heap[at] = c;
}

static candidate heap_pop(dms_bpe *b)
{
    const candidate top = b->heap[0], last = b->heap[--b->n_heap];
    int64_t at = 0;
    for (int64_t down = 1; down < b->n_heap; down = 2 * at + 1) {
        if (down + 1 < b->n_heap && b->heap[down + 1].order < b->heap[down].order)
            down++;
        if (last.order <= b->heap[down].order)
            break;
        b->heap[at] = b->heap[down];
        at = down;
    }
    b->heap[at] = last;
    return top;
}

/* Looks up what symbol `at` and the next one make, and enters it. */
static void consider(dms_bpe *b, int32_t at)
{
    symbol *left = &b->symbols[at];
    left->merged = -1;
    if (left->next < 0)
        return;
    const dms_merge *m = dms_merges_find(&b->merges, left->id, b->symbols[left->next].id);
    if (!m)
        return;
    left->merged = m->merged;
    heap_push(b, (candidate){(uint64_t)m->rank << 32 | (uint32_t)at, m->merged});
}

/* The symbols of a piece, as they are added. */
typedef struct {
    dms_bpe *b;
    int32_t n;
    bool was_unknown;
} symbols;

static void add_symbol(symbols *s, int32_t id)
{
    s->b->symbols[s->n] = (symbol){.id = id, .prev = s->n - 1, .next = s->n + 1, .merged = -1};
    s->n++;
}

/* A byte or character: id, or -1 for one that the vocabulary lacks. */
static void add_known(symbols *s, int32_t id)
{
    const bool fused = id < 0 && s->was_unknown && s->b->fuse_unknown;
    s->was_unknown = id < 0;
    if (id < 0)
        id = s->b->unknown;
    if (id >= 0 && !fused)
        add_symbol(s, id);
}

static void split_bytes(symbols *s, const char *piece, size_t n)
{
    for (size_t i = 0; i < n; i++)
        add_known(s, s->b->byte_ids[(uint8_t)piece[i]]);
}

static void split_characters(symbols *s, const char *piece, size_t n)
{
    for (size_t at = 0; at < n;) {
        int length;
        dms_utf8_code(piece + at, &length);
        const int32_t id = find_in_model(s->b->vocab, piece + at, (size_t)length);
        if (id < 0 && s->b->byte_fallback)
            split_bytes(s, piece + at, (size_t)length);
        else
            add_known(s, id);
        at += (size_t)length;
    }
}

/* Returns how many there are. */
static int32_t split(dms_bpe *b, const char *piece, size_t n_bytes)
{
    symbols s = {b, 0, false};
    if (b->byte_level)
        split_bytes(&s, piece, n_bytes);
    else
        split_characters(&s, piece, n_bytes);
    if (s.n > 0)
        b->symbols[s.n - 1].next = -1;
    return s.n;
}

static void merge_all(dms_bpe *b)
{
    while (b->n_heap > 0) {
        const candidate c = heap_pop(b);
        const int32_t at = (int32_t)(uint32_t)c.order;
        symbol *left = &b->symbols[at];
        if (left->id < 0 || left->merged != c.merged) /* its pair has changed since */
            continue;
        symbol *right = &b->symbols[left->next];
        left->id = c.merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0)
            b->symbols[left->next].prev = at;
        consider(b, at);
        if (left->prev >= 0)
            consider(b, left->prev);
    }
}

static dms_status merge_piece(dms_bpe *b, dms_tokens *out, const char *piece, size_t n_bytes)
{
    DMS_TRY(reserve(b, (int64_t)n_bytes));
    const int32_t n = split(b, piece, n_bytes);
    b->n_heap = 0;
    for (int32_t i = 0; i + 1 < n; i++)
        consider(b, i);
    merge_all(b);
    for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = b->symbols[i].next)
        out->ids[out->n++] = b->symbols[i].id;
    return DMS_OK;
}

/* The token that is the whole piece, or -1. Texts of tokens are at most twice as long as pieces. */
static dms_status find_whole(int32_t *id, const dms_bpe *b, const char *piece, size_t n)
{
    dms_text mapped = {0};
    if (!b->byte_level) {
        *id = find_in_model(b->vocab, piece, n);
        return DMS_OK;
    }
    DMS_TRY(dms_text_reserve(&mapped, 2 * n));
    for (size_t i = 0; i < n; i++)
        mapped.n += map_byte(mapped.bytes + mapped.n, (uint8_t)piece[i]);
    *id = find_in_model(b->vocab, mapped.bytes, mapped.n);
    dms_text_free(&mapped);
    return DMS_OK;
}

static dms_status encode_anew(dms_bpe *b, dms_tokens *out, const char *piece, size_t n)
{
    int32_t whole = -1;
    if (b->ignore_merges)
        DMS_TRY(find_whole(&whole, b, piece, n));
    if (whole < 0)
        return merge_piece(b, out, piece, n);
    out->ids[out->n++] = whole;
    return DMS_OK;
}

static bool is_cached(const cached *c, const char *piece, size_t n)
{
    return c->n_bytes == n && memcmp(c->bytes, piece, n) == 0;
}

dms_status dms_bpe_encode(dms_bpe *b, dms_tokens *out, const char *piece, size_t n)
{
    if (n == 0)
        return DMS_OK;
    if (n > INT32_MAX)
        return dms_fail(DMS_ERR_ARG,
                        "a word of %zu bytes without a place to split it, at most %d "
                        "can be tokenised",
                        n, INT32_MAX);
    DMS_TRY(dms_tokens_reserve(out, (int64_t)n));
    if (n > CACHED_BYTES)
        return encode_anew(b, out, piece, n);
    /* Two places for each piece, the first for the one met last. */
    const uint64_t hash = dms_hash(piece, n) & (CACHE_SLOTS - 1);
    cached *first = &b->cache[hash], *second = &b->cache[hash ^ 1];
    const cached *hit = is_cached(first, piece, n)    ? first
                        : is_cached(second, piece, n) ? second
                                                      : NULL;
    if (hit) {
        memcpy(out->ids + out->n, hit->ids, hit->n_ids * sizeof(*hit->ids));
        out->n += hit->n_ids;
        return DMS_OK;
    }
    const int64_t before = out->n;
    DMS_TRY(encode_anew(b, out, piece, n));
    const int64_t made = out->n - before;
    if (made > CACHED_IDS)
        return DMS_OK;
    *second = *first;
    first->n_ids = (uint8_t)made;
    first->n_bytes = (uint8_t)n;
    memcpy(first->ids, out->ids + before, (size_t)made * sizeof(*first->ids));
    memcpy(first->bytes, piece, n);
    return DMS_OK;
}
