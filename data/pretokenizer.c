#include "data/pretokenizer.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/keys.h"
#include "data/pattern.h"
#include "data/splitter.h"
#include "data/utf8.h"

typedef enum { SPLIT, DIGITS, PREFIX_SPACE } step_kind;

/* What becomes of a match; the names of Split's key "behavior". */
typedef enum { ISOLATED, REMOVED, WITH_PREVIOUS, WITH_NEXT, CONTIGUOUS } behavior;
static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};

typedef struct {
    step_kind kind;
    dms_splitter splitter; /* SPLIT, Isolated, by an expression that it knows */
    dms_pattern *pattern;  /* SPLIT by another, else NULL */
    behavior behavior;
    bool invert;     /* what lies between the pattern's matches is what matches */
    bool each_digit; /* DIGITS: a piece each, else a piece a run */
} step;

enum { MAX_STEPS = 16 };

struct dms_pretokenizer {
    step steps[MAX_STEPS];
    int n;
    bool byte_level;
    dms_text prefixed; /* scratch: " " and a piece */
};

static dms_status read_behavior(step *s, const json_t *json, const char *origin)
{
    const char *name;
    DMS_TRY(dms_key_text(&name, json, "behavior", origin));
    for (int i = ISOLATED; i <= CONTIGUOUS; i++)
        if (name && !strcmp(name, behaviors[i])) {
            s->behavior = (behavior)i;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: pre_tokenizer Split: behavior is \"%.64s\"; supported: Isolated, Removed, "
                    "MergedWithPrevious, MergedWithNext, Contiguous",
                    origin, name ? name : "missing");
}

static dms_status read_split(step *s, const json_t *json, const char *origin)
{
    char where[256];
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    s->kind = SPLIT;
    DMS_TRY(read_behavior(s, json, origin));
    DMS_TRY(dms_key_bool(&s->invert, json, "invert", origin, false));
    if (json_is_string(regex) && s->behavior == ISOLATED)
        s->splitter = dms_splitter_recognise(json_string_value(regex), json_string_length(regex));
    if (s->splitter)
        return DMS_OK;
    snprintf(where, sizeof(where), "%.200s: pre_tokenizer Split", origin);
    return dms_pattern_read(&s->pattern, pattern, where);
}

static dms_status read_byte_level(dms_pretokenizer *p, const json_t *json, const char *origin)
{
    bool use_regex, prefix_space;
    DMS_TRY(dms_key_bool(&prefix_space, json, "add_prefix_space", origin, true));
    DMS_TRY(dms_key_bool(&use_regex, json, "use_regex", origin, true));
    p->byte_level = true;
    if (prefix_space)
        p->steps[p->n++] = (step){.kind = PREFIX_SPACE};
    if (use_regex)
        p->steps[p->n++] = (step){.kind = SPLIT, .splitter = DMS_SPLIT_GPT2};
    return DMS_OK;
}

static dms_status read_one(dms_pretokenizer *p, const json_t *json, const char *origin)
{
    const char *type;
    DMS_TRY(dms_key_text(&type, json, "type", origin));
    if (p->n + 2 > MAX_STEPS) /* ByteLevel may take two */
        return dms_fail(DMS_ERR_FORMAT, "%s: pre_tokenizer has more than %d steps", origin,
                        MAX_STEPS - 1);
    if (p->byte_level)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: pre_tokenizer has \"%.64s\" after ByteLevel, which "
                        "must come last",
                        origin, type ? type : "missing");
    if (type && strcmp(type, "ByteLevel") == 0)
        return read_byte_level(p, json, origin);
    step *s = &p->steps[p->n++];
    if (type && strcmp(type, "Split") == 0)
        return read_split(s, json, origin);
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
    if (!json || json_is_null(json))
        return DMS_OK;
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
    DMS_TRY_OR(failed, read_all(p, json, origin));
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

/* A stretch that was found and is not handed on yet: the next one may join it. */
typedef struct {
    dms_pretokenizer *p;
    const dms_piece_sink *sink;
    const char *text;
    size_t start, end;
    bool open;    /* there is one */
    bool matched; /* what came last was a match */
    int at;       /* the step */
} joiner;

static dms_status hand_on(joiner *j)
{
    const bool some = j->open && j->end > j->start;
    j->open = false;
    return some ? run_from(j->p, j->at + 1, j->sink, j->text + j->start, j->end - j->start)
                : DMS_OK;
}

/* Takes a match or what lies between two; the names of behaviors are those of Hugging Face
 * tokenizers (SplitDelimiterBehavior), whose rules these are. */
static dms_status join(joiner *j, size_t start, size_t end, bool match)
{
    const behavior how = j->p->steps[j->at].behavior;
    const bool before = j->matched;
    j->matched = match;
    if (how == REMOVED && match)
        return hand_on(j);
    if (j->open &&
        ((how == CONTIGUOUS && match == before) || (how == WITH_PREVIOUS && match && !before) ||
         (how == WITH_NEXT && !match && before))) {
        j->end = end;
        return DMS_OK;
    }
    DMS_TRY(hand_on(j));
    j->open = true;
    j->start = start;
    j->end = end;
    return DMS_OK;
}

/* Matches and what lies between them are pieces; an empty match only parts what it lies between. */
static dms_status run_pattern(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                              const char *text, size_t n)
{
    const bool invert = p->steps[at].invert;
    joiner j = {.p = p, .sink = sink, .text = text, .at = at};
    size_t done = 0, from = 0, start, end;
    bool any = false;
    while (from < n) {
        DMS_TRY(dms_pattern_find(p->steps[at].pattern, &start, &end, text, n, from));
        if (start >= n)
            break;
        if (start > done)
            DMS_TRY(join(&j, done, start, invert));
        /* Oniguruma's iterator passes over an empty match where the last one ended. */
        if (end > start || !any || start > done)
            DMS_TRY(join(&j, start, end, !invert));
        any = true;
        done = end;
        int length = 0;
        if (end == start)
            dms_utf8_code(text + end, &length);
        from = end + (size_t)length;
    }
    if (done < n)
        DMS_TRY(join(&j, done, n, invert));
    return hand_on(&j);
}

static dms_status run_splitter(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                               const char *text, size_t n)
{
    const dms_splitter splitter = p->steps[at].splitter;
    for (size_t start = 0, end; start < n; start = end) {
        end = dms_splitter_next(splitter, text, n, start);
        DMS_TRY(at + 1 == p->n ? sink->piece(sink->user, text + start, end - start)
                               : run_from(p, at + 1, sink, text + start, end - start));
    }
    return DMS_OK;
}

/* Past the ASCII characters from `at` on that are no digits. */
static size_t skip_others(const char *text, size_t n, size_t at)
{
    while (at < n && (uint8_t)text[at] < 0x80 && (uint8_t)(text[at] - '0') > 9)
        at++;
    return at;
}

static dms_status run_digits(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                             const char *text, size_t n)
{
    const bool each = p->steps[at].each_digit;
    size_t done = 0; /* start of the run in hand */
    bool run_is_number = false;
    for (size_t i = 0; i < n;) {
        int length;
        if (!run_is_number)
            i = skip_others(text, n, i);
        if (i == n)
            break;
        const bool number = dms_code_is_number(dms_utf8_code(text + i, &length));
        if (i > done && (number != run_is_number || (number && each))) {
            DMS_TRY(run_from(p, at + 1, sink, text + done, i - done));
            done = i;
        }
        run_is_number = number;
        i += (size_t)length;
    }
    return run_from(p, at + 1, sink, text + done, n - done);
}

static dms_status run_prefix_space(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                                   const char *text, size_t n)
{
    if (text[0] == ' ')
        return run_from(p, at + 1, sink, text, n);
    p->prefixed.n = 0;
    DMS_TRY(dms_text_append(&p->prefixed, " ", 1));
    DMS_TRY(dms_text_append(&p->prefixed, text, n));
    return run_from(p, at + 1, sink, p->prefixed.bytes, p->prefixed.n);
}

static dms_status run_from(dms_pretokenizer *p, int at, const dms_piece_sink *sink,
                           const char *text, size_t n)
{
    if (at == p->n)
        return sink->piece(sink->user, text, n);
    switch (p->steps[at].kind) {
    case SPLIT:
        return p->steps[at].splitter ? run_splitter(p, at, sink, text, n)
                                     : run_pattern(p, at, sink, text, n);
    case DIGITS:
        return run_digits(p, at, sink, text, n);
    default:
        return run_prefix_space(p, at, sink, text, n);
    }
}

dms_status dms_pretokenizer_run(dms_pretokenizer *p, const dms_piece_sink *sink, const char *text,
                                size_t n)
{
    for (int i = 0; i < p->n; i++)
        if (p->steps[i].pattern)
            dms_pattern_begin(p->steps[i].pattern, n);
    return n > 0 ? run_from(p, 0, sink, text, n) : DMS_OK;
}

bool dms_pretokenizer_splits_at_spaces(const dms_pretokenizer *p)
{
    bool splits = false;
    for (int i = 0; i < p->n; i++) {
        if (p->steps[i].pattern || p->steps[i].kind == PREFIX_SPACE)
            return false;
        splits |= p->steps[i].splitter != DMS_SPLIT_UNKNOWN;
    }
    return splits;
}

bool dms_pretokenizer_is_byte_level(const dms_pretokenizer *p)
{
    return p->byte_level;
}
