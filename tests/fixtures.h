/* Where the reference values are: DMS_FIXTURES, or else the project's own copy. */
#ifndef DMS_TEST_FIXTURES_H
#define DMS_TEST_FIXTURES_H

#include <stdio.h>
#include <stdlib.h>

/* Writes "FIXTURES/relative" into out (at least 1024 bytes) and returns it. */
static inline const char *fixture(char *out, const char *relative)
{
    const char *root = getenv("DMS_FIXTURES");
    const int n =
        snprintf(out, 1024, "%s/%s", root ? root : DMS_SOURCE_DIR "/tests/fixtures", relative);
    if (n < 0 || n >= 1024)
        abort(); /* a path that was cut short would name another file */
    return out;
}

#endif
