/* Operations on text with the meaning that Python's str gives them, which the benchmarks' rules are
 * written in. */
#ifndef DMS_EVAL_TEXT_H
#define DMS_EVAL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/buffer.h"
#include "kernels/status.h"

/* A part of a text that somebody else owns. */
typedef struct {
    const char *bytes;
    size_t n;
} dms_span;

dms_span dms_span_of(const char *text);
bool dms_span_equal(dms_span a, dms_span b);
/* s.strip(): without the white space (Unicode's, and U+001C to U+001F) at both ends; of valid
 * UTF-8.
 */
dms_span dms_span_strip(dms_span s);
/* The same at the end only. */
dms_span dms_span_strip_end(dms_span s);
/* Where `part` first or last lies in s; SIZE_MAX where it does not. */
size_t dms_span_find(dms_span s, const char *part);
size_t dms_span_find_last(dms_span s, const char *part);
/* Code points of valid UTF-8: Python's len. */
int64_t dms_span_length(dms_span s);

/* t.replace(from, to), from left to right, without overlap; `from` is not empty. Errors:
 * DMS_ERR_NOMEM. */
dms_status dms_text_replace(dms_text *t, const char *from, const char *to);
/* Appends s.lower(): Unicode's simple mapping, and U+0130 as i with a dot above; a capital sigma at
 * the end of a word becomes the inner small one. s is valid UTF-8. Errors: DMS_ERR_NOMEM. */
dms_status dms_text_lower(dms_text *out, dms_span s);
/* Appends what printf would print, without a 0. Errors: DMS_ERR_NOMEM. */
dms_status dms_text_format(dms_text *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A 0 behind the text, which t->n does not count. Errors: DMS_ERR_NOMEM. */
dms_status dms_text_end(dms_text *t);
/* Valid UTF-8 of any bytes: s itself where it is valid, else a copy in `store` in which invalid
 * parts are U+FFFD. Errors: DMS_ERR_NOMEM. */
dms_status dms_span_valid(dms_span *out, dms_text *store, dms_span s);

#endif
