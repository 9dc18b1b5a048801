/* Prompts in the style of RULER (hsiehjackson/RULER, arXiv:2404.06654): its tasks, sizes and
 * answers; words, filler and wording of our own, so that nothing is downloaded. Scores are
 * comparable among themselves, not with those of RULER's own files. */
#ifndef DMS_RULER_H
#define DMS_RULER_H

#include "tasks/items.h"

typedef struct {
    const char *task; /* niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, niah_multiquery,
                         vt, cwe, fwe */
    int64_t length;   /* tokens that prompt, answer prefix and answer may have together */
    uint64_t seed;
    const char *essay; /* haystack of the tasks that hide needles in prose: UTF-8, borrowed; NULL:
                          sentences of the seed */
    size_t essay_n;
    /* *tokens of `text`, with what the model's template adds. */
    dms_status (*count)(void *context, const char *text, size_t n, int64_t *tokens);
    void *context;
} dms_ruler_options;

typedef struct dms_ruler dms_ruler;

/* What RULER's settings say of a task: tokens of the answer and the match; also of qa_1 and qa_2,
 * which only its own files have. false: no such task. */
bool dms_ruler_defaults(dms_item_defaults *out, const char *task);

/* Finds the largest haystack that fits. Errors: DMS_ERR_ARG (unknown task, a length too short for
 * the task, an essay that is not UTF-8 or has no sentence), those of count, DMS_ERR_NOMEM. */
dms_status dms_ruler_open(dms_ruler **out, const dms_ruler_options *options);
/* Item `index`, the same for the same options whatever was made before; it belongs to r until the
 * next call. Its group is the task, its length the tokens used. Errors: DMS_ERR_ARG (even after 32
 * smaller haystacks it does not fit), those of count, DMS_ERR_NOMEM. */
dms_status dms_ruler_make(dms_ruler *r, int64_t index, const dms_item **item);
/* NULL is legal. */
void dms_ruler_close(dms_ruler *r);

#endif
