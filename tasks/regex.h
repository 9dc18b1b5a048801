/* One search with a regular expression of a benchmark's rule, by PCRE2, in Python's reading. */
#ifndef DMS_REGEX_H
#define DMS_REGEX_H

#include "tasks/text.h"

typedef enum { DMS_MATCH_FIRST, DMS_MATCH_LAST } dms_regex_which;

/* The first or last of the matches that follow one another without overlap. *found: the first of
 * its groups that is not empty, or all of it where the expression has no group; bytes = NULL where
 * nothing matches. `text` is valid UTF-8. Errors: DMS_ERR_ARG (the expression is wrong),
 * DMS_ERR_FORMAT (too many steps on this text), DMS_ERR_NOMEM. */
dms_status dms_regex_search(dms_span *found, const char *regex, dms_span text,
                            dms_regex_which which);

#endif
