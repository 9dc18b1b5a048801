/* The scale of an axis: which values it spans, where they lie, and its ticks. */
#ifndef DMS_SCALE_H
#define DMS_SCALE_H

#include <stdbool.h>

typedef struct {
    double low, high; /* low < high */
    bool log;         /* then low > 0 */
    bool reversed;    /* low lies at 1, high at 0 */
} dms_scale;

enum { DMS_SCALE_TICKS = 24 }; /* the most there are */

/* Whether a scale has a place for x: finite, |x| <= 10^200, and 10^-200 or more on a log scale.
 * What has none is missing in a figure. */
bool dms_scale_takes(double x, bool log);
/* A scale over [low, high] (any order; what it cannot take counts as 1), with 4 % to spare on both
 * sides; equal ends are spread, by a factor of 2 on a log scale. */
dms_scale dms_scale_fit(double low, double high, bool log);
/* The place of x: 0 at the axis' begin, 1 at its end, beyond them outside; NaN for what has none.
 */
double dms_scale_place(const dms_scale *s, double x);
/* Values in ascending order in [low, high], about `wanted` of them (2 to 20) and never more than
 * DMS_SCALE_TICKS. Linear: all multiples of 1, 2 or 5 times a power of ten. Log: powers of ten, or
 * each k-th of them where there are too many; over less than two decades 1, 2 and 5 times them;
 * over less than a factor of 3 as linear ones. Returns how many. */
int dms_scale_ticks(double *ticks, const dms_scale *s, int wanted);
/* Tick i of n as text, of DMS_NUMBER_SIZE bytes: those of one linear axis have as many decimals as
 * their step needs, or below 10^-3 and from 10^6 on the same power of ten: "0.05", "0.10";
 * "2×10⁻⁵". Returns out. */
const char *dms_scale_text(char *out, const dms_scale *s, const double *ticks, int n, int i);

#endif
