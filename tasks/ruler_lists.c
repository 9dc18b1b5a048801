/* Variable tracking, common words and frequent words. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tasks/ruler_build.h"

enum { HOPS = 4, VARIABLES = HOPS + 1, COMMON = 10, FREQUENT = 3, CODED = 6, MAX_NAME = 5 };

/* Different names of `letters` capital letters. */
static dms_status draw_names(char names[VARIABLES][MAX_NAME + 1], dms_draws *d, int letters)
{
    dms_status status = DMS_OK;
    dms_text name = {0};
    for (int i = 0; i < VARIABLES; i++) {
        bool taken;
        do {
            name.n = 0;
            DMS_TRY_OR(end, dms_draw_letters(&name, d, 'A', letters));
            DMS_TRY_OR(end, dms_text_end(&name));
            taken = false;
            for (int j = 0; j < i; j++)
                taken |= !strcmp(names[j], name.bytes);
        } while (taken);
        memcpy(names[i], name.bytes, (size_t)letters + 1);
    }
end:
    dms_text_free(&name);
    return status;
}

/* One chain of assignments in order, at random places in the noise, and the question after it;
 * without *prefix and *answers both follow in the prompt: an example. */
static dms_status append_chain(const dms_ruler_build *b, uint32_t size, int letters, bool example)
{
    char names[VARIABLES][MAX_NAME + 1];
    uint32_t places[VARIABLES];
    /* The example's value is never the other one's. */
    const uint32_t value =
        (example ? 10000 : 50000) + dms_draw_below(b->draws, example ? 40000 : 50000);
    DMS_TRY(draw_names(names, b->draws, letters));
    DMS_TRY(dms_draw_distinct(b->draws, places, VARIABLES, size));
    dms_draw_sort(places, VARIABLES);
    DMS_TRY(dms_text_format(b->prompt, "The text below assigns values to variables. Follow the "
                                       "assignments from the first to the last.\n\n"));
    for (uint32_t i = 0, next = 0; i < size; i++) {
        if (next < VARIABLES && places[next] == i) {
            DMS_TRY(next == 0 ? dms_text_format(b->prompt, "VAR %s = %u.\n", names[0], value)
                              : dms_text_format(b->prompt, "VAR %s = VAR %s.\n", names[next],
                                                names[next - 1]));
            next++;
        }
        DMS_TRY(dms_text_format(b->prompt, "%s\n", dms_ruler_noise));
    }
    DMS_TRY(dms_text_format(b->prompt,
                            "Question: which variables have the value %u after the "
                            "assignments above?",
                            value));
    DMS_TRY(dms_text_format(example ? b->prompt : b->prefix,
                            " Answer: %d variables have the value %u, namely:", VARIABLES, value));
    for (int i = 0; i < VARIABLES; i++)
        DMS_TRY(example ? dms_text_format(b->prompt, " %s", names[i])
                        : dms_text_append(b->answers, names[i], (size_t)letters + 1));
    return example ? dms_text_append(b->prompt, "\n\n", 2) : DMS_OK;
}

dms_status dms_ruler_build_vt(const dms_ruler_build *b)
{
    DMS_TRY(append_chain(b, VARIABLES, 3, true));
    return append_chain(b, b->size, MAX_NAME, false);
}

/* A list of `words` different words, the first ten of them `often` times each and the others
 * `seldom` times, and the question after it. */
typedef struct {
    uint32_t words, often, seldom;
    bool example;
} word_list;

static dms_status append_word(dms_text *out, bool english, uint32_t index)
{
    return english ? dms_word_english(out, index) : dms_word_invented(out, index);
}

static dms_status append_list(const dms_ruler_build *b, const word_list *w, uint32_t *words,
                              uint32_t *order)
{
    const uint32_t pool = dms_words_english();
    const bool english = w->words <= pool;
    const uint32_t n = COMMON * w->often + (w->words - COMMON) * w->seldom;
    DMS_TRY(dms_draw_distinct(b->draws, words, w->words, english ? pool : DMS_WORDS_INVENTED));
    DMS_TRY(dms_draw_distinct(b->draws, order, n, n));
    DMS_TRY(dms_text_format(b->prompt, "In the numbered list below some words come back more often "
                                       "than the others. Remember those.\n"));
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = order[i], often = COMMON * w->often;
        const uint32_t word = at < often ? at / w->often : COMMON + (at - often) / w->seldom;
        DMS_TRY(dms_text_format(b->prompt, "%s%u. ", i ? " " : "", i + 1));
        DMS_TRY(append_word(b->prompt, english, words[word]));
    }
    DMS_TRY(dms_text_format(b->prompt,
                            "\nQuestion: which %d words come back most often in the list "
                            "above?",
                            COMMON));
    DMS_TRY(dms_text_format(w->example ? b->prompt : b->prefix,
                            " Answer: the %d words that come back most often are:", COMMON));
    for (uint32_t i = 0; i < COMMON; i++) {
        if (w->example)
            DMS_TRY(dms_text_format(b->prompt, " %u. ", i + 1));
        DMS_TRY(append_word(w->example ? b->prompt : b->answers, english, words[i]));
        if (!w->example)
            DMS_TRY(dms_text_append(b->answers, "", 1));
    }
    return w->example ? dms_text_append(b->prompt, "\n\n", 2) : DMS_OK;
}

static dms_status build_list(const dms_ruler_build *b, const word_list *w)
{
    const size_t n = (size_t)COMMON * w->often + (size_t)(w->words - COMMON) * w->seldom;
    uint32_t *words = malloc((w->words + n) * sizeof(*words));
    if (!words)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of %zu words", n);
    const dms_status status = append_list(b, w, words, words + w->words);
    free(words);
    return status;
}

dms_status dms_ruler_build_cwe(const dms_ruler_build *b)
{
    const word_list example =
        b->is_short ? (word_list){20, 3, 1, true} : (word_list){40, 10, 3, true};
    const word_list list =
        b->is_short ? (word_list){b->size, 6, 1, false} : (word_list){b->size, 30, 3, false};
    DMS_TRY(build_list(b, &example));
    return build_list(b, &list);
}

/* How often the word of rank k >= 1 stands among n words: Zipf's law with exponent 2. */
static uint32_t zeta_count(uint32_t n, uint32_t k)
{
    static const double zeta2 = 1.6449340668482264; /* pi^2/6 */
    return (uint32_t)((double)n / ((double)k * k * zeta2));
}

/* Different words of six random letters, each without a 0. */
static dms_status draw_vocabulary(dms_text *out, const dms_ruler_build *b)
{
    for (uint32_t i = 0; i < b->vocabulary; i++) {
        bool taken;
        do {
            out->n = (size_t)i * CODED;
            DMS_TRY(dms_draw_letters(out, b->draws, 'a', CODED));
            taken = false;
            for (uint32_t j = 0; j < i && !taken; j++)
                taken = !memcmp(out->bytes + j * CODED, out->bytes + i * CODED, CODED);
        } while (taken);
    }
    return DMS_OK;
}

/* The words in random order; rank 1 is noise, three dots. */
static dms_status append_coded(const dms_ruler_build *b, const dms_text *vocabulary,
                               uint32_t *ranks, uint32_t *order)
{
    uint32_t n = 0;
    for (uint32_t k = 1; k <= b->vocabulary; k++)
        for (uint32_t i = zeta_count(b->size, k); i > 0; i--)
            ranks[n++] = k;
    DMS_TRY(dms_draw_distinct(b->draws, order, n, n));
    DMS_TRY(dms_text_format(b->prompt,
                            "In the coded text below some words come back more often than "
                            "the others. Count them; the dots are no word."));
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t rank = ranks[order[i]];
        const char *word = rank == 1 ? "..." : vocabulary->bytes + (rank - 1) * CODED;
        DMS_TRY(dms_text_format(b->prompt, " %.*s", rank == 1 ? 3 : CODED, word));
    }
    DMS_TRY(dms_text_format(b->prompt, "\nQuestion: which three words come back most often in the "
                                       "coded text above?"));
    DMS_TRY(dms_text_format(b->prefix, " Answer: the three words that come back most often are:"));
    for (int i = 1; i <= FREQUENT; i++) {
        DMS_TRY(dms_text_append(b->answers, vocabulary->bytes + i * CODED, CODED));
        DMS_TRY(dms_text_append(b->answers, "", 1));
    }
    return DMS_OK;
}

dms_status dms_ruler_build_fwe(const dms_ruler_build *b)
{
    dms_status status = DMS_OK;
    dms_text vocabulary = {0};
    uint32_t *ranks = malloc(2 * (size_t)b->size * sizeof(*ranks));
    if (!ranks)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %u words", b->size);
    DMS_TRY_OR(end, draw_vocabulary(&vocabulary, b));
    DMS_TRY_OR(end, append_coded(b, &vocabulary, ranks, ranks + b->size));
end:
    free(ranks);
    dms_text_free(&vocabulary);
    return status;
}
