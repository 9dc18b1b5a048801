/* The name that somebody who misspelt one probably meant. */
#ifndef DMS_NEAREST_H
#define DMS_NEAREST_H

#include <stddef.h>

/* Of n >= 1 names the one whose Levenshtein distance to `wanted` is the smallest, the first of
 * equals. What exceeds 63 characters of either is not looked at. */
const char *dms_nearest(const char *wanted, const char *const *names, size_t n);

#endif
