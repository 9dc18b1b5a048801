/* What a tokenizer gave, compared with the JSON of a case. */
#ifndef DMS_TEST_TOKENS_H
#define DMS_TEST_TOKENS_H

#include <jansson.h>
#include <string.h>

#include "data/tokenizer.h"

static inline bool same_text(const dms_text *got, const json_t *want)
{
    return got->n == json_string_length(want) &&
           (got->n == 0 || memcmp(got->bytes, json_string_value(want), got->n) == 0);
}

static inline bool same_ids(const dms_tokens *got, const json_t *want)
{
    bool same = (size_t)got->n == json_array_size(want);
    for (int64_t i = 0; same && i < got->n; i++)
        same = got->ids[i] == json_integer_value(json_array_get(want, (size_t)i));
    return same;
}

#endif
