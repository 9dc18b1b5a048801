#include "kernels/nearest.h"

#include <string.h>

enum { LONGEST = 63 };

static int distance(const char *a, const char *b)
{
    int row[LONGEST + 1];
    const int m = (int)strnlen(a, LONGEST), n = (int)strnlen(b, LONGEST);
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int swap = diagonal + (a[i - 1] != b[j - 1]);
            const int skip = 1 + (row[j] < row[j - 1] ? row[j] : row[j - 1]);
            diagonal = row[j];
            row[j] = swap < skip ? swap : skip;
        }
    }
    return row[n];
}

const char *dms_nearest(const char *wanted, const char *const *names, size_t n)
{
    size_t best = 0;
    int least = LONGEST + 1;
    for (size_t i = 0; i < n; i++) {
        const int d = distance(wanted, names[i]);
        if (d < least) {
            least = d;
            best = i;
        }
    }
    return names[best];
}
