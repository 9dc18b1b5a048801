#include "tasks/ruler.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "data/hash.h"
#include "data/utf8.h"
#include "tasks/ruler_build.h"

enum { MAX_ANSWERS = 10, RETRIES = 32, MAX_LENGTH = 1 << 24, FEWEST_CODED = 8 };

#define NIAH dms_ruler_build_niah, 128
static const dms_ruler_task tasks[] = {
    {"niah_single_1", NIAH, 1, INT32_MAX, DMS_HAY_NOISE, false, false, 1, 1, 1},
    {"niah_single_2", NIAH, 4, INT32_MAX, DMS_HAY_ESSAY, false, false, 1, 1, 1},
    {"niah_single_3", NIAH, 4, INT32_MAX, DMS_HAY_ESSAY, false, true, 1, 1, 1},
    {"niah_multikey_1", NIAH, 4, INT32_MAX, DMS_HAY_ESSAY, false, false, 4, 1, 1},
    {"niah_multikey_2", NIAH, 1, INT32_MAX, DMS_HAY_NEEDLES, false, false, 1, 1, 1},
    {"niah_multikey_3", NIAH, 1, INT32_MAX, DMS_HAY_NEEDLES, true, true, 1, 1, 1},
    {"niah_multivalue", NIAH, 4, INT32_MAX, DMS_HAY_ESSAY, false, false, 1, 4, 1},
    {"niah_multiquery", NIAH, 4, INT32_MAX, DMS_HAY_ESSAY, false, false, 4, 1, 4},
    {.name = "vt", dms_ruler_build_vt, 30, 5, INT32_MAX, .hay = DMS_HAY_NOISE},
    {.name = "cwe", dms_ruler_build_cwe, 120, 11, DMS_WORDS_INVENTED, .hay = DMS_HAY_NOISE},
    /* From 80 words on the counts of the ranks 2 to 5 differ. */
    {.name = "fwe", dms_ruler_build_fwe, 50, 80, INT32_MAX, .hay = DMS_HAY_NOISE},
};

struct dms_ruler {
    const dms_ruler_task *task;
    dms_ruler_options options;
    dms_ruler_essay essay;
    dms_text essay_text; /* with one blank for every run of white space */
    dms_span *sentences; /* of it */
    uint32_t size;       /* that fits item 0 */
    dms_text prompt, prefix, answers, both;
    const char *texts[MAX_ANSWERS];
    char id[32];
    dms_item item;
};

bool dms_ruler_defaults(dms_item_defaults *out, const char *task)
{
    for (size_t i = 0; i < sizeof(tasks) / sizeof(*tasks); i++)
        if (!strcmp(task, tasks[i].name)) {
            *out = (dms_item_defaults){DMS_MATCH_ALL, tasks[i].new_tokens};
            return true;
        }
    if (strcmp(task, "qa_1") && strcmp(task, "qa_2"))
        return false;
    *out = (dms_item_defaults){DMS_MATCH_PART, 32};
    return true;
}

dms_status dms_ruler_essay_append(dms_text *out, const dms_ruler_essay *essay, uint32_t index)
{
    dms_draws draws = {.key = essay->seed, .stream = {index, UINT32_MAX}};
    if (!essay->sentences)
        return dms_draw_sentence(out, &draws);
    const dms_span s = essay->sentences[index % essay->n];
    return dms_text_append(out, s.bytes, s.n);
}

/* The essay with one blank for every run of white space. */
static dms_status normalise_essay(dms_text *out, dms_span s)
{
    const size_t valid = dms_utf8_valid(s.bytes, s.n);
    if (valid != s.n)
        return dms_fail(DMS_ERR_ARG, "the essay is not UTF-8 at byte %zu", valid);
    DMS_TRY(dms_text_reserve(out, s.n + 1));
    bool gap = false;
    int length;
    for (size_t at = 0; at < s.n; at += (size_t)length) {
        const int32_t code = dms_utf8_code(s.bytes + at, &length);
        if (code == 0 || dms_code_is_space(code)) {
            gap = out->n > 0;
            continue;
        }
        if (gap)
            DMS_TRY(dms_text_append(out, " ", 1));
        gap = false;
        DMS_TRY(dms_text_append(out, s.bytes + at, (size_t)length));
    }
    return DMS_OK;
}

/* A sentence ends with a full stop, a question or an exclamation mark before a blank; quotes and
 * brackets after it are its own. */
static size_t sentence_length(dms_span s)
{
    for (size_t i = 0; i < s.n; i++) {
        if (!strchr(".!?", s.bytes[i]))
            continue;
        while (i + 1 < s.n && strchr("\"')]", s.bytes[i + 1]))
            i++;
        if (i + 1 == s.n || s.bytes[i + 1] == ' ')
            return i + 1;
    }
    return s.n;
}

static dms_status split_essay(dms_ruler *r)
{
    uint32_t capacity = 0, n = 0;
    const dms_span essay = {r->options.essay, r->options.essay_n};
    DMS_TRY(normalise_essay(&r->essay_text, essay));
    dms_span rest = {r->essay_text.bytes, r->essay_text.n};
    while (rest.n > 0 && n < INT32_MAX) {
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            dms_span *more = realloc(r->sentences, capacity * sizeof(*more));
            if (!more)
                return dms_fail(DMS_ERR_NOMEM, "no memory for %u sentences of the essay", capacity);
            r->sentences = more;
        }
        const size_t length = sentence_length(rest);
        const size_t step = length + (length < rest.n); /* the blank */
        r->sentences[n++] = (dms_span){rest.bytes, length};
        rest = (dms_span){rest.bytes + step, rest.n - step};
    }
    if (n == 0)
        return dms_fail(DMS_ERR_ARG, "the essay has no sentence");
    r->essay.sentences = r->sentences;
    r->essay.n = n;
    return DMS_OK;
}

/* Builds an item and counts what it takes, *tokens with those of the answer. */
static dms_status build(dms_ruler *r, int64_t *tokens, uint32_t size, uint32_t index,
                        uint32_t attempt)
{
    const dms_ruler_options *o = &r->options;
    const int64_t vocabulary = (o->length - r->task->new_tokens) / 50; /* RULER's choice */
    dms_draws draws = {.key = r->essay.seed, .stream = {index, attempt}};
    const dms_ruler_build b = {
        .task = r->task,
        .essay = &r->essay,
        .size = size,
        .is_short = o->length<4096, .vocabulary = vocabulary> FEWEST_CODED ? (uint32_t)vocabulary
                                                                           : FEWEST_CODED,
        .draws = &draws,
        .prompt = &r->prompt,
        .prefix = &r->prefix,
        .answers = &r->answers,
    };
    r->prompt.n = r->prefix.n = r->answers.n = r->both.n = 0;
    DMS_TRY(r->task->build(&b));
    DMS_TRY(dms_text_append(&r->both, r->prompt.bytes, r->prompt.n));
    DMS_TRY(dms_text_append(&r->both, r->prefix.bytes, r->prefix.n));
    DMS_TRY(dms_text_end(&r->both));
    DMS_TRY(o->count(o->context, r->both.bytes, r->both.n, tokens));
    *tokens += r->task->new_tokens;
    return DMS_OK;
}

/* The largest size with which item 0 fits: doubled while it does, then by halves. */
static dms_status fit(dms_ruler *r)
{
    int64_t tokens;
    const int64_t length = r->options.length;
    DMS_TRY(build(r, &tokens, r->task->least, 0, 0));
    if (tokens > length)
        return dms_fail(DMS_ERR_ARG,
                        "%s: length is %" PRId64 " tokens, expected %" PRId64 " at least",
                        r->task->name, length, tokens);
    uint32_t low = r->task->least, high = 0; /* low fits, high does not */
    /* A piece of the haystack that takes no token would never fill it. */
    const uint32_t most = r->task->most < length ? r->task->most : (uint32_t)length;
    while (!high || high - low > 1) {
        const uint32_t size = high ? low + (high - low) / 2 : 2 * low < most ? 2 * low : most;
        if (size <= low)
            break;
        DMS_TRY(build(r, &tokens, size, 0, 0));
        if (tokens <= length)
            low = size;
        else
            high = size;
    }
    r->size = low;
    return DMS_OK;
}

static void set_item(dms_ruler *r, int64_t index, int64_t tokens)
{
    size_t n = 0;
    snprintf(r->id, sizeof(r->id), "%" PRId64, index);
    for (const char *at = r->answers.bytes; at < r->answers.bytes + r->answers.n;
         at += strlen(at) + 1)
        r->texts[n++] = at;
    r->item = (dms_item){.kind = DMS_ITEM_MATCH,
                         .id = r->id,
                         .group = r->task->name,
                         .prompt = r->prompt.bytes,
                         .answer_prefix = r->prefix.bytes,
                         .max_new_tokens = r->task->new_tokens,
                         .length = tokens,
                         .texts = r->texts,
                         .n_texts = n,
                         .match = DMS_MATCH_ALL};
}

dms_status dms_ruler_make(dms_ruler *r, int64_t index, const dms_item **item)
{
    uint32_t size = r->size;
    if (index < 0 || index >= UINT32_MAX)
        return dms_fail(DMS_ERR_ARG, "item %" PRId64 " of %s, expected 0 to 2^32 - 2", index,
                        r->task->name);
    for (uint32_t attempt = 0; attempt < RETRIES; attempt++) {
        int64_t tokens;
        DMS_TRY(build(r, &tokens, size, (uint32_t)index, attempt));
        if (tokens <= r->options.length) {
            DMS_TRY(dms_text_end(&r->prompt));
            DMS_TRY(dms_text_end(&r->prefix));
            set_item(r, index, tokens);
            *item = &r->item;
            return DMS_OK;
        }
        const uint32_t step = size / 50 + 1;
        size = size - r->task->least > step ? size - step : r->task->least;
    }
    return dms_fail(DMS_ERR_ARG,
                    "%s, item %" PRId64 ": does not fit %" PRId64
                    " tokens in %d attempts; ask for a greater length",
                    r->task->name, index, r->options.length, RETRIES);
}

void dms_ruler_close(dms_ruler *r)
{
    if (!r)
        return;
    dms_text *const texts[] = {&r->essay_text, &r->prompt, &r->prefix, &r->answers, &r->both};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        dms_text_free(texts[i]);
    free(r->sentences);
    free(r);
}

static dms_status check(const dms_ruler_task **task, const dms_ruler_options *o)
{
    *task = NULL;
    for (size_t i = 0; i < sizeof(tasks) / sizeof(*tasks); i++)
        if (!strcmp(o->task, tasks[i].name))
            *task = &tasks[i];
    if (!*task)
        return dms_fail(DMS_ERR_ARG,
                        "no generator for the task \"%.64s\", expected niah_single_1 to 3, "
                        "niah_multikey_1 to 3, niah_multivalue, niah_multiquery, vt, cwe or fwe",
                        o->task);
    if (o->length < 1 || o->length > MAX_LENGTH)
        return dms_fail(DMS_ERR_ARG, "%s: length is %" PRId64 " tokens, expected 1 to %d", o->task,
                        o->length, MAX_LENGTH);
    return DMS_OK;
}

dms_status dms_ruler_open(dms_ruler **out, const dms_ruler_options *options)
{
    dms_status status = DMS_OK;
    const dms_ruler_task *task;
    DMS_TRY(check(&task, options));
    dms_ruler *r = calloc(1, sizeof(*r));
    if (!r)
        return dms_fail(DMS_ERR_NOMEM, "no memory for prompts of %s", options->task);
    r->task = task;
    r->options = *options;
    r->essay.seed = dms_hash_mix(options->seed ^ dms_hash(task->name, strlen(task->name)));
    if (options->essay && task->hay == DMS_HAY_ESSAY)
        DMS_TRY_OR(failed, split_essay(r));
    DMS_TRY_OR(failed, fit(r));
    *out = r;
    return DMS_OK;
failed:
    dms_ruler_close(r);
    return status;
}
