/* Scanners for the regular expressions by which the supported families split text. */
#ifndef DMS_SPLITTER_H
#define DMS_SPLITTER_H

#include <stddef.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* The expressions cover every text, so that matches follow one another without a gap. */
typedef enum {
    DMS_SPLIT_UNKNOWN,
    DMS_SPLIT_GPT2,   /* what ByteLevel splits by with use_regex: GPT-2's encoder.py */
    DMS_SPLIT_LLAMA3, /* numbers of at most 3 digits; also DeepSeek-R1's distils of Llama */
    DMS_SPLIT_QWEN2   /* numbers digit by digit; also Qwen 3 and DeepSeek-R1's distils of Qwen */
} dms_splitter;

/* The expression as tokenizer.json files have it; NULL for DMS_SPLIT_UNKNOWN. */
const char *dms_splitter_regex(dms_splitter splitter);
/* Which expression this is, by its text. */
dms_splitter dms_splitter_recognise(const char *regex, size_t n);

/* The end of the match that begins at `from` < n of valid UTF-8: what dms_pattern_find of the
 * expression gives. Classes are those of utf8proc's version of Unicode. */
size_t dms_splitter_next(dms_splitter splitter, const char *text, size_t n, size_t from);

DMS_END_C
#endif
