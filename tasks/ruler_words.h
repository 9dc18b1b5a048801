/* Random draws, words and filler of the RULER-style prompts. */
#ifndef DMS_RULER_WORDS_H
#define DMS_RULER_WORDS_H

#include "tasks/text.h"

/* A stream of random words; the same key and stream give the same ones. */
typedef struct {
    uint64_t key;
    uint32_t stream[2]; /* item, attempt */
    uint32_t drawn;
} dms_draws;

uint32_t dms_draw(dms_draws *d);
/* Uniform in [0, n), 0 < n. */
uint32_t dms_draw_below(dms_draws *d, uint32_t n);
/* k different indices below n in random order (k <= n). Errors: DMS_ERR_NOMEM. */
dms_status dms_draw_distinct(dms_draws *d, uint32_t *out, uint32_t k, uint32_t n);
void dms_draw_sort(uint32_t *indices, uint32_t n);

/* Adjectives times nouns: 0 <= index < dms_word_pairs(); no word lies within another. */
uint32_t dms_word_pairs(void);
dms_status dms_word_pair(dms_text *out, uint32_t index);
/* English words, and invented ones of six letters; in neither list lies a word within another. */
enum { DMS_WORDS_INVENTED = 1000000 };
uint32_t dms_words_english(void);
dms_status dms_word_english(dms_text *out, uint32_t index);
dms_status dms_word_invented(dms_text *out, uint32_t index);

dms_status dms_draw_number(dms_text *out, dms_draws *d, int digits);
/* RFC 4122, version 4. */
dms_status dms_draw_uuid(dms_text *out, dms_draws *d);
dms_status dms_draw_letters(dms_text *out, dms_draws *d, char first, int n);
/* One sentence of a story that says nothing. */
dms_status dms_draw_sentence(dms_text *out, dms_draws *d);
/* The noise that RULER's simplest tasks repeat, in our words. */
extern const char dms_ruler_noise[];

#endif
