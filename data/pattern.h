/* A regular expression of a tokenizer.json, compiled by PCRE2. */
#ifndef DMS_PATTERN_H
#define DMS_PATTERN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_pattern dms_pattern;

/* Hugging Face tokenizers reads these expressions with Oniguruma, in Ruby's syntax. What PCRE2
 * reads otherwise is translated (\s, \w, \b, \h, \uHHHH, (?m, \p{Script}; ^ and $ are those of
 * lines) or refused (sets within sets, + after {n,m}, escapes and groups not known here). Both know
 * their own version of Unicode. Errors: DMS_ERR_FORMAT with what is wrong and where; DMS_ERR_NOMEM.
 */
dms_status dms_pattern_open(dms_pattern **out, const char *regex, size_t n, const char *origin);
/* The same of a key "pattern": {"Regex": text}, or {"String": text} to be found as it is. */
dms_status dms_pattern_read(dms_pattern **out, const json_t *json, const char *where);
/* NULL is legal. */
void dms_pattern_close(dms_pattern *p);

/* A text of n bytes begins: gives what is found in it, and in parts of it, its budget of steps, so
 * that the time is proportional to n whatever the expression is. Comes before dms_pattern_find. */
void dms_pattern_begin(dms_pattern *p, size_t n);
/* The first match in valid UTF-8 at or after `from`, which may be empty; *start = n + 1 where there
 * is none. Not for two threads at once. Errors: DMS_ERR_FORMAT (the expression needs too many steps
 * on this text, named with what to do). */
dms_status dms_pattern_find(dms_pattern *p, size_t *start, size_t *end, const char *text, size_t n,
                            size_t from);

DMS_END_C
#endif
