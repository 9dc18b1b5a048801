/* RULER's score of an output: which references lie in it (hsiehjackson/RULER, scripts/eval). */
#ifndef DMS_MATCH_H
#define DMS_MATCH_H

#include "tasks/text.h"

/* ALL: the fraction of references that are found. PART: 1 where any is found, else 0. */
typedef enum { DMS_MATCH_ALL, DMS_MATCH_PART } dms_match;

/* *score in [0, 1]. The output is stripped, its control characters below U+0020 become line breaks,
 * which are stripped again, and a reference is found where it is a substring, both in lower case. n
 * > 0. Errors: DMS_ERR_NOMEM. */
dms_status dms_match_score(double *score, dms_match match, dms_span output,
                           const char *const *references, size_t n);

#endif
