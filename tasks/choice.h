/* Multiple choice: which choice the log-likelihoods pick, as lm-evaluation-harness does. */
#ifndef DMS_CHOICE_H
#define DMS_CHOICE_H

#include "tasks/text.h"

/* What a choice's log-likelihood is divided by: 1, its characters (acc_norm: without the delimiter
 * before it), or its tokens. */
typedef enum { DMS_NORM_NONE, DMS_NORM_CHAR, DMS_NORM_TOKEN } dms_norm;

/* *best: the first of the largest log_likelihood[i]/length[i] for i < n; length NULL: as they are.
 * A length of 0 divides as IEEE does. Errors: DMS_ERR_NUMBER for a value that is NaN; DMS_ERR_ARG
 * for n < 1. */
dms_status dms_choice_pick(int64_t *best, const double *log_likelihood, const int64_t *length,
                           int64_t n);
/* Bytes of the context that is scored: white space at its end goes to the continuation, which is
 * what is cut off, the delimiter and the choice. `context` is valid UTF-8. */
size_t dms_choice_context(dms_span context);

#endif
