#include "data/tokenizer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "data/added.h"
#include "data/bpe.h"
#include "data/keys.h"
#include "data/normalizer.h"
#include "data/pretokenizer.h"
#include "data/surface.h"
#include "data/utf8.h"
#include "data/vocab.h"

struct dms_tokenizer {
    dms_vocab *vocab;
    dms_bpe *bpe;
    dms_pretokenizer *pretokenizer;
    dms_normalizer *normalizer;
    dms_surface surface;
    dms_added *raw;         /* added tokens looked for in the text as it is */
    dms_added *normalized;  /* and those looked for in normalised text */
    dms_text clean, normal; /* scratch: text made valid, a stretch of it normalised */
    uint32_t crc;
};

/* The steps that say what symbols the model has: all of them bytes, or all characters. */
static dms_status read_alphabet(dms_tokenizer *t, const json_t *root, const char *origin)
{
    DMS_TRY(dms_normalizer_open(&t->normalizer, json_object_get(root, "normalizer"), origin));
    DMS_TRY(
        dms_pretokenizer_open(&t->pretokenizer, json_object_get(root, "pre_tokenizer"), origin));
    DMS_TRY(dms_surface_read(&t->surface, json_object_get(root, "decoder"), origin));
    const bool split = dms_pretokenizer_is_byte_level(t->pretokenizer);
    if (split == t->surface.byte_level)
        return DMS_OK;
    return dms_fail(DMS_ERR_FORMAT, "%s: the %s is ByteLevel, but the %s has no ByteLevel", origin,
                    split ? "pre_tokenizer" : "decoder", split ? "decoder" : "pre_tokenizer");
}

static dms_status read_parts(dms_tokenizer *t, const json_t *root, const char *origin)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_object(model) || !json_is_object(vocab))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: %s is %s, expected an object; is this a "
                        "tokenizer.json?",
                        origin, json_is_object(model) ? "model.vocab" : "model",
                        dms_key_type(json_is_object(model) ? vocab : model));
    if (added && !json_is_null(added) && !json_is_array(added))
        return dms_fail(DMS_ERR_FORMAT, "%s: added_tokens is %s, expected an array", origin,
                        dms_key_type(added));
    DMS_TRY(read_alphabet(t, root, origin));
    DMS_TRY(dms_vocab_open(&t->vocab, vocab, added, &t->surface, origin));
    DMS_TRY(dms_bpe_open(&t->bpe, model, t->vocab, t->surface.byte_level, origin));
    t->surface.from = t->surface.to = NULL; /* they end with the JSON */
    DMS_TRY(dms_added_open(&t->raw, added, false, t->normalizer, origin));
    return dms_added_open(&t->normalized, added, true, t->normalizer, origin);
}

dms_status dms_tokenizer_open(dms_tokenizer **out, const char *json, size_t length,
                              const char *origin)
{
    json_error_t error;
    dms_status status = DMS_OK;
    json_t *root = json_loadb(json, length, JSON_ALLOW_NUL, &error);
    if (!root)
        return dms_fail(DMS_ERR_FORMAT, "%s: line %d, column %d: %s", origin, error.line,
                        error.column, error.text);
    dms_tokenizer *t = calloc(1, sizeof(*t));
    if (!t)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for a tokenizer"));
    t->crc = (uint32_t)crc32_z(0, (const Bytef *)json, length);
    DMS_TRY_OR(failed, read_parts(t, root, origin));
    json_decref(root);
    *out = t;
    return DMS_OK;
failed:
    json_decref(root);
    dms_tokenizer_close(t);
    return status;
}

void dms_tokenizer_close(dms_tokenizer *t)
{
    if (!t)
        return;
    dms_added_close(t->normalized);
    dms_added_close(t->raw);
    dms_pretokenizer_close(t->pretokenizer);
    dms_normalizer_close(t->normalizer);
    dms_bpe_close(t->bpe);
    dms_vocab_close(t->vocab);
    dms_text_free(&t->clean);
    dms_text_free(&t->normal);
    free(t);
}

typedef struct {
    dms_tokenizer *tokenizer;
    dms_tokens *out;
    bool specials;
} encoding;

static dms_status take_piece(void *user, const char *text, size_t n)
{
    const encoding *e = user;
    return dms_bpe_encode(e->tokenizer->bpe, e->out, text, n);
}

static dms_status encode_plain(encoding *e, const char *text, size_t n)
{
    const dms_piece_sink sink = {take_piece, e};
    return dms_pretokenizer_run(e->tokenizer->pretokenizer, &sink, text, n);
}

/* Splits text at the tokens of `a`; what lies between them goes to `rest`. */
static dms_status encode_between(encoding *e, const dms_added *a, const char *text, size_t n,
                                 dms_status (*rest)(encoding *, const char *, size_t))
{
    dms_added_match m = {0};
    size_t done = 0;
    while (dms_added_next(a, &m, text, n, e->specials)) {
        if (m.start > done)
            DMS_TRY(rest(e, text + done, m.start - done));
        DMS_TRY(dms_tokens_reserve(e->out, 1));
        e->out->ids[e->out->n++] = m.id;
        done = m.end;
    }
    return done < n ? rest(e, text + done, n - done) : DMS_OK;
}

static dms_status encode_stretch(encoding *e, const char *text, size_t n)
{
    dms_tokenizer *t = e->tokenizer;
    if (!dms_normalizer_is_empty(t->normalizer)) {
        t->normal.n = 0;
        DMS_TRY(dms_normalizer_apply(t->normalizer, &t->normal, text, n));
        text = t->normal.bytes;
        n = t->normal.n;
    }
    return encode_between(e, t->normalized, text, n, encode_plain);
}

dms_status dms_tokenizer_encode(dms_tokenizer *t, dms_tokens *out, const char *text, size_t length,
                                bool specials)
{
    encoding e = {t, out, specials};
    if (dms_utf8_valid(text, length) < length) {
        t->clean.n = 0;
        DMS_TRY(dms_utf8_replace(&t->clean, text, length));
        text = t->clean.bytes;
        length = t->clean.n;
    }
    return encode_between(&e, t->raw, text, length, encode_stretch);
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

size_t dms_tokenizer_cut(const dms_tokenizer *t, const char *text, size_t length)
{
    if (!dms_pretokenizer_splits_at_spaces(t->pretokenizer) ||
        !dms_normalizer_keeps_spaces(t->normalizer) || !dms_added_keeps_spaces(t->raw) ||
        !dms_added_keeps_spaces(t->normalized))
        return 0;
    for (size_t at = length; at-- > 1;)
        if (text[at] == ' ' && is_letter(text[at - 1]))
            return at;
    return 0;
}

/* NULL for an id without a token. */
static const dms_vocab_token *get_token(const dms_tokenizer *t, int32_t id)
{
    if (id < 0 || id >= dms_vocab_size(t->vocab))
        return NULL;
    const dms_vocab_token *token = dms_vocab_get(t->vocab, id);
    return token->text ? token : NULL;
}

dms_status dms_tokenizer_decode(const dms_tokenizer *t, dms_text *out, const int32_t *ids,
                                int64_t n, bool skip_specials)
{
    for (int64_t i = 0; i < n; i++) {
        const dms_vocab_token *token = get_token(t, ids[i]);
        if (token && !(skip_specials && token->special))
            DMS_TRY(dms_text_append(out, token->bytes, token->n_bytes));
    }
    return DMS_OK;
}

char dms_tokenizer_strips(const dms_tokenizer *t)
{
    return t->surface.strip;
}

int64_t dms_tokenizer_size(const dms_tokenizer *t)
{
    return dms_vocab_size(t->vocab);
}

int32_t dms_tokenizer_find(const dms_tokenizer *t, const char *token)
{
    return dms_vocab_find(t->vocab, token, strlen(token));
}

bool dms_tokenizer_is_special(const dms_tokenizer *t, int32_t id)
{
    const dms_vocab_token *token = get_token(t, id);
    return token && token->special;
}

static int32_t find_any(const dms_tokenizer *t, const char *const *names)
{
    for (; *names; names++) {
        const int32_t id = dms_tokenizer_find(t, *names);
        if (dms_tokenizer_is_special(t, id))
            return id;
    }
    return -1;
}

/* The last names are DeepSeek's: U+FF5C for the bars, U+2581 for the gaps. */
int32_t dms_tokenizer_begin_of_text(const dms_tokenizer *t)
{
    static const char *const names[] = {
        "<|begin_of_text|>",
        "<s>",
        "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>",
        NULL,
    };
    return find_any(t, names);
}

int32_t dms_tokenizer_end_of_text(const dms_tokenizer *t)
{
    static const char *const names[] = {
        "<|endoftext|>", "<|end_of_text|>", "</s>", "<\uFF5Cend\u2581of\u2581sentence\uFF5C>", NULL,
    };
    return find_any(t, names);
}

uint32_t dms_tokenizer_crc(const dms_tokenizer *t)
{
    return t->crc;
}
