/* A regular expression of a tokenizer.json, compiled by PCRE2. */
#ifndef DMS_PATTERN_H
#define DMS_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_pattern dms_pattern;

/* Hugging Face tokenizers reads these expressions with Oniguruma. What PCRE2 reads otherwise is
 * translated (\s: without U+180E) or refused (\w, \b, \h, sets within sets).
 * Errors: DMS_ERR_FORMAT with what is wrong and where; DMS_ERR_NOMEM. */
dms_status dms_pattern_open(dms_pattern **out, const char *regex, size_t n, const char *origin);
/* NULL is legal. */
void dms_pattern_close(dms_pattern *p);

/* The first match in valid UTF-8 at or after `from`, which may be empty; *start = n + 1 where there
 * is none. Not for two threads at once. Errors: DMS_ERR_FORMAT (the expression needs too many steps
 * on this text). */
dms_status dms_pattern_find(dms_pattern *p, size_t *start, size_t *end, const char *text, size_t n,
                            size_t from);

DMS_END_C
#endif
