#define PCRE2_CODE_UNIT_WIDTH 8
#include "tasks/regex.h"

#include <pcre2.h>

/* The group that the match in hand stands for. */
static dms_span chosen(const pcre2_match_data *match, int groups, dms_span text)
{
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer((pcre2_match_data *)match);
    for (int i = 1; i < groups; i++)
        if (at[2 * i] != PCRE2_UNSET && at[2 * i + 1] > at[2 * i])
            return (dms_span){text.bytes + at[2 * i], at[2 * i + 1] - at[2 * i]};
    return (dms_span){text.bytes + at[0], at[1] - at[0]};
}

static dms_status search(dms_span *found, const pcre2_code *code, pcre2_match_data *match,
                         dms_span text, dms_regex_which which)
{
    for (size_t from = 0; from <= text.n;) {
        /* groups + 1, or negative */
        const int rc = pcre2_match(code, (PCRE2_SPTR)text.bytes, text.n, from, PCRE2_NO_UTF_CHECK,
                                   match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH)
            return DMS_OK;
        if (rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_HEAPLIMIT)
            return dms_fail(DMS_ERR_NOMEM, "no memory to search an answer of %zu bytes", text.n);
        if (rc < 0)
            return dms_fail(DMS_ERR_FORMAT, "searching an answer of %zu bytes failed (PCRE2: %d)",
                            text.n, rc);
        *found = chosen(match, rc, text);
        const size_t end = pcre2_get_ovector_pointer(match)[1];
        if (which == DMS_MATCH_FIRST || end == from)
            return DMS_OK;
        from = end;
    }
    return DMS_OK;
}

dms_status dms_regex_search(dms_span *found, const char *regex, dms_span text,
                            dms_regex_which which)
{
    int error;
    PCRE2_SIZE at;
    *found = (dms_span){0};
    if (text.n == 0)
        text.bytes = "";
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &error, &at, NULL);
    if (!code)
        return dms_fail(DMS_ERR_ARG, "regular expression \"%s\" is wrong at character %zu", regex,
                        at);
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
    dms_status status = match ? search(found, code, match, text, which)
                              : dms_fail(DMS_ERR_NOMEM, "no memory for a regular expression");
    pcre2_match_data_free(match);
    pcre2_code_free(code);
    return status;
}
