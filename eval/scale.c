#include "eval/scale.h"

#include <math.h>
#include <stdio.h>

#include "eval/number.h"

bool dms_scale_takes(double x, bool log)
{
    return isfinite(x) && fabs(x) <= 1e200 && (!log || x >= 1e-200);
}

dms_scale dms_scale_fit(double low, double high, bool log)
{
    double a = dms_scale_takes(low, log) ? low : 1;
    double b = dms_scale_takes(high, log) ? high : 1;
    if (log) {
        a = log10(a);
        b = log10(b);
    }
    if (a > b) {
        const double kept = a;
        a = b;
        b = kept;
    }
    double spare = 0.04 * (b - a);
    if (b - a <= 1e-9 * fmax(fabs(a), fabs(b)) || b == a)
        spare = log ? log10(2) : fmax(fabs(b) * 0.1, b == 0 ? 0.5 : 0);
    a -= spare;
    b += spare;
    return (dms_scale){.low = log ? pow(10, a) : a, .high = log ? pow(10, b) : b, .log = log};
}

double dms_scale_place(const dms_scale *s, double x)
{
    if (!dms_scale_takes(x, s->log))
        return NAN;
    const double place =
        s->log ? log(x / s->low) / log(s->high / s->low) : (x - s->low) / (s->high - s->low);
    return s->reversed ? 1 - place : place;
}

/* The smallest of 1, 2, 5 times a power of ten that is not below x. */
static double round_step(double x)
{
    const double power = pow(10, floor(log10(x)));
    const double m = x / power;
    return power * (m <= 1.0000001 ? 1 : m <= 2.0000001 ? 2 : m <= 5.0000001 ? 5 : 10);
}

static int linear_ticks(double *ticks, const dms_scale *s, int wanted)
{
    const double step = round_step((s->high - s->low) / wanted);
    const double first = ceil(s->low / step - 1e-9);
    int n = 0;
    for (; n < DMS_SCALE_TICKS && (first + n) * step <= s->high + 1e-9 * step; n++)
        ticks[n] = first + n == 0 ? 0 : (first + n) * step;
    return n;
}

/* m * 10^k as the nearest number to it: 0.2, not 2*0.1. */
static double times_power(int m, int k)
{
    return k < 0 ? m / pow(10, -k) : m * pow(10, k);
}

static int log_ticks(double *ticks, const dms_scale *s, int wanted)
{
    static const int all[] = {1, 2, 5};
    const double decades = log10(s->high / s->low);
    const int k_first = (int)floor(log10(s->low)), k_last = (int)ceil(log10(s->high));
    const int per_decade = decades < 2 ? 3 : 1;
    const int every = per_decade == 3 ? 1 : (int)fmax(1, ceil(decades / wanted));
    int n = 0;
    for (int k = k_first; k <= k_last; k++)
        for (int i = 0; i < per_decade && n < DMS_SCALE_TICKS; i++) {
            const double x = times_power(all[i], k);
            const bool is_on = k % every == 0;
            if (is_on && x >= s->low * (1 - 1e-12) && x <= s->high * (1 + 1e-12))
                ticks[n++] = x;
        }
    return n;
}

int dms_scale_ticks(double *ticks, const dms_scale *s, int wanted)
{
    if (s->log && s->high / s->low >= 3)
        return log_ticks(ticks, s, wanted);
    return linear_ticks(ticks, s, wanted);
}

const char *dms_scale_text(char *out, const dms_scale *s, const double *ticks, int n, int i)
{
    const double most = fmax(fabs(ticks[0]), fabs(ticks[n - 1]));
    if (s->log || n < 2 || most == 0 || ticks[i] == 0)
        return dms_number_short(out, ticks[i], 4);
    const int of_step = (int)floor(log10(ticks[1] - ticks[0]) + 1e-6);
    const int of_most = (int)floor(log10(most) + 1e-6);
    if (of_most < -3 || of_most >= 6)
        return of_most - of_step <= 2 ? dms_number_power(out, ticks[i], of_step, 0)
                                      : dms_number_power(out, ticks[i], of_most, of_most - of_step);
    if (of_step >= 0 || of_step < -9)
        return dms_number_short(out, ticks[i], 12);
    snprintf(out, DMS_NUMBER_SIZE, "%.*f", -of_step, ticks[i]);
    return out;
}
