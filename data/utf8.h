/* UTF-8: validity, replacement of what is invalid, code points and the classes the tokenizer asks
 * for. */
#ifndef DMS_UTF8_H
#define DMS_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/buffer.h"
#include "kernels/status.h"

DMS_BEGIN_C

/* What the n > 0 bytes at `text` begin with: k > 0, a code point of k bytes; -k < 0, k bytes that
 * are the longest start of a code point which the next byte contradicts (or one byte that starts
 * none); 0, the start of a code point that the end cuts short. Unicode 15, table 3-7. */
int dms_utf8_step(const char *text, size_t n);
/* Length of the longest valid prefix. */
size_t dms_utf8_valid(const char *text, size_t n);
/* Appends text with each invalid part (as dms_utf8_step measures it) replaced by U+FFFD, as
 * Python's errors='replace' and Rust's from_utf8_lossy do. Errors: DMS_ERR_NOMEM. */
dms_status dms_utf8_replace(dms_text *out, const char *text, size_t n);
/* The code point at `text`, which must be valid there, and its length in bytes. */
int32_t dms_utf8_code(const char *text, int *length);

/* Unicode White_Space. */
bool dms_code_is_space(int32_t code);
/* Alphabetic, Mark, Decimal_Number, Connector_Punctuation or Join_Control: a regex's \w. */
bool dms_code_is_word(int32_t code);
/* General category Nd, Nl or No. */
bool dms_code_is_number(int32_t code);

DMS_END_C
#endif
