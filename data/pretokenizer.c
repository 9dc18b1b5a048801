#include "data/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "data/keys.h"
#include "data/pattern.h"
#include "data/utf8.h"

/* What ByteLevel splits by with use_regex: GPT-2's encoder.py. */
static const char gpt2_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Split's expressions of which splits_at_spaces is known: Llama 3 (3 digits), Qwen 2 (1 digit). */
static const char *const known_regexes[] = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

typedef enum { SPLIT, DIGITS, BYTE_LEVEL } step_kind;

typedef struct {
    step_kind kind;
    dms_pattern *pattern; /* SPLIT; BYTE_LEVEL with use_regex, else NULL */
    bool each_digit;      /* DIGITS: a piece each, else a piece a run */
    bool prefix_space;    /* BYTE_LEVEL */
} step;

enum { MAX_STEPS = 16 };

struct dms_pretokenizer {
    step steps[MAX_STEPS];
    int n;
    bool splits_at_spaces;
    dms_text prefixed; /* scratch: " " and a piece */
};

static dms_status read_split(dms_pretokenizer *p, step *s, const json_t *json, const char *origin)
{
    const char *behavior;
    bool invert;
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    DMS_TRY(dms_key_text(&behavior, json, "behavior", origin));
    DMS_TRY(dms_key_bool(&invert, json, "invert", origin, false));
    if (!json_is_string(regex))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: pre_tokenizer Split: pattern.Regex is %s, expected a "
                        "string (other patterns are not supported)",
                        origin, dms_key_type(regex));
    if (!behavior || strcmp(behavior, "Isolated") != 0 || invert)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: pre_tokenizer Split: behavior is \"%.64s\"%s; only "
                        "\"Isolated\" without invert is supported",
                        origin, behavior ? behavior : "missing", invert ? ", inverted" : "");
    const char *text = json_string_value(regex);
    bool known = false;
    for (size_t i = 0; i < sizeof(known_regexes) / sizeof(known_regexes[0]); i++)
        known |= strcmp(text, known_regexes[i]) == 0;
    p->splits_at_spaces &= known;
    s->kind = SPLIT;
    return dms_pattern_open(&s->pattern, text, json_string_length(regex), origin);
}

static dms_status read_byte_level(dms_pretokenizer *p, step *s, const json_t *json,
                                  const char *origin)
{
    bool use_regex;
    DMS_TRY(dms_key_bool(&s->prefix_space, json, "add_prefix_space", origin, true));
    DMS_TRY(dms_key_bool(&use_regex, json, "use_regex", origin, true));
    p->splits_at_spaces &= !s->prefix_space;
    s->kind = BYTE_LEVEL;
    if (!use_regex)
        return DMS_OK;
    return dms_pattern_open(&s->pattern, gpt2_regex, strlen(gpt2_regex), origin);
}

static dms_status read_one(dms_pretokenizer *p, const json_t *json, const char *origin)
{
    const char *type;
    DMS_TRY(dms_key_text(&type, json, "type", origin));
    if (p->n == MAX_STEPS)
        return dms_fail(DMS_ERR_FORMAT, "%s: pre_tokenizer has more than %d steps", origin,
                        MAX_STEPS);
    if (p->n > 0 && p->steps[p->n - 1].kind == BYTE_LEVEL)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: pre_tokenizer has \"%.64s\" after ByteLevel, which "
                        "must come last",
                        origin, type ? type : "missing");
    step *s = &p->steps[p->n++];
    if (type && strcmp(type, "ByteLevel") == 0)
        return read_byte_level(p, s, json, origin);
    if (type && strcmp(type, "Split") == 0)
        return read_split(p, s, json, origin);
    if (type && strcmp(type, "Digits") == 0) {
        s->kind = DIGITS;
        return dms_key_bool(&s->each_digit, json, "individual_digits", origin, false);
    }
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: pre_tokenizer.type is \"%.64s\"; supported: ByteLevel, "
                    "Split, Digits, and a Sequence of these",
                    origin, type ? type : "missing");
}

static dms_status read_all(dms_pretokenizer *p, const json_t *json, const char *origin)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type || strcmp(type, "Sequence") != 0)
        return read_one(p, json, origin);
    const json_t *list = json_object_get(json, "pretokenizers");
    if (!json_is_array(list))
        return dms_fail(DMS_ERR_FORMAT, "%s: pre_tokenizer.pretokenizers is %s, expected an array",
                        origin, dms_key_type(list));
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) DMS_TRY(read_one(p, entry, origin));
    return DMS_OK;
}

dms_status dms_pretokenizer_open(dms_pretokenizer **out, const json_t *json, const char *origin)
{
    dms_status status = DMS_OK;
    dms_pretokenizer *p = calloc(1, sizeof(*p));
    if (!p)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the pre-tokenizer");
    p->splits_at_spaces = true;
    DMS_TRY_OR(failed, read_all(p, json, origin));
    if (p->n == 0 || p->steps[p->n - 1].kind != BYTE_LEVEL)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_FORMAT,
                                    "%s: pre_tokenizer has no ByteLevel at its "
                                    "end; only byte-level BPE is supported",
                                    origin));
    *out = p;
    return DMS_OK;
failed:
    dms_pretokenizer_close(p);
    return status;
}

void dms_pretokenizer_close(dms_pretokenizer *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n; i++)
        dms_pattern_close(p->steps[i].pattern);
    dms_text_free(&p->prefixed);
    free(p);
}

static dms_status run_from(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                           const char *text, size_t n);

/* Matches and what lies between them are pieces; an empty match only parts what it lies between. */
static dms_status run_pattern(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                              const char *text, size_t n)
{
    size_t done = 0, from = 0, start, end;
    while (from < n) {
        DMS_TRY(dms_pattern_find(p->steps[at].pattern, &start, &end, text, n, from));
        if (start >= n)
            break;
        if (start > done)
            DMS_TRY(run_from(p, at + 1, sink, text + done, start - done));
        if (end > start)
            DMS_TRY(run_from(p, at + 1, sink, text + start, end - start));
        done = end;
        int length = 0;
        if (end == start)
            dms_utf8_code(text + end, &length);
        from = end + (size_t)length;
    }
    return done < n ? run_from(p, at + 1, sink, text + done, n - done) : DMS_OK;
}

static dms_status run_digits(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                             const char *text, size_t n)
{
    const bool each = p->steps[at].each_digit;
    size_t done = 0; /* start of the run in hand */
    bool run_is_number = false;
    int length;
    for (size_t i = 0; i < n; i += (size_t)length) {
        const bool number = dms_code_is_number(dms_utf8_code(text + i, &length));
        if (i > done && (number != run_is_number || (number && each))) {
            DMS_TRY(run_from(p, at + 1, sink, text + done, i - done));
            done = i;
        }
        run_is_number = number;
    }
    return run_from(p, at + 1, sink, text + done, n - done);
}

static dms_status run_byte_level(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                                 const char *text, size_t n)
{
    const step *s = &p->steps[at];
    if (s->prefix_space && text[0] != ' ') {
        p->prefixed.n = 0;
        DMS_TRY(dms_text_append(&p->prefixed, " ", 1));
        DMS_TRY(dms_text_append(&p->prefixed, text, n));
        text = p->prefixed.bytes;
        n = p->prefixed.n;
    }
    return s->pattern ? run_pattern(p, at, sink, text, n) : run_from(p, at + 1, sink, text, n);
}

static dms_status run_from(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                           const char *text, size_t n)
{
    if (at == p->n)
        return sink->piece(sink->user, text, n);
    switch (p->steps[at].kind) {
    case SPLIT:
        return run_pattern(p, at, sink, text, n);
    case DIGITS:
        return run_digits(p, at, sink, text, n);
    default:
        return run_byte_level(p, at, sink, text, n);
    }
}

dms_status dms_pretokenizer_run(dms_pretokenizer *p, const dms_piece_sink *sink, const char *text,
                                size_t n)
{
    return n > 0 ? run_from(p, 0, sink, text, n) : DMS_OK;
}

bool dms_pretokenizer_splits_at_spaces(const dms_pretokenizer *p)
{
    return p->splits_at_spaces;
}
