#include "eval/number.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool named(char *out, double x)
{
    if (isfinite(x))
        return false;
    snprintf(out, DMS_NUMBER_SIZE, "%s", isnan(x) ? "NaN" : x > 0 ? "∞" : "-∞");
    return true;
}

const char *dms_number_exact(char *out, double x)
{
    if (named(out, x))
        return out;
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, DMS_NUMBER_SIZE, "%.*g", digits, x);
        if (strtod(out, NULL) == x)
            break;
    }
    return out;
}

static const char *grouped(char *out, double x)
{
    char digits[32];
    const int n = snprintf(digits, sizeof(digits), "%.0f", fabs(x));
    char *at = out;
    if (x < 0)
        *at++ = '-';
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0)
            *at++ = ',';
        *at++ = digits[i];
    }
    *at = 0;
    return out;
}

/* Appends 10⁻⁷ to the n bytes that are there. */
static const char *append_power(char *out, int n, int power)
{
    static const char *const superscript[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
    char digits[16];
    snprintf(digits, sizeof(digits), "%d", abs(power));
    n += snprintf(out + n, (size_t)(DMS_NUMBER_SIZE - n), "10%s", power < 0 ? "⁻" : "");
    for (const char *at = digits; *at && n < DMS_NUMBER_SIZE; at++)
        n += snprintf(out + n, (size_t)(DMS_NUMBER_SIZE - n), "%s", superscript[*at - '0']);
    return out;
}

static void drop_zeros(char *text)
{
    if (!strchr(text, '.'))
        return;
    char *end = text + strlen(text) - 1;
    while (*end == '0')
        *end-- = 0;
    if (*end == '.')
        *end = 0;
}

/* 1.5e-07 becomes 1.5×10⁻⁷, and 1e-07 becomes 10⁻⁷. */
static const char *raised(char *out, double x, int digits)
{
    char text[40];
    snprintf(text, sizeof(text), "%.*e", digits - 1, x);
    char *e = strchr(text, 'e');
    *e++ = 0;
    drop_zeros(text);
    const int n = strcmp(text, "1") ? snprintf(out, DMS_NUMBER_SIZE, "%s×", text) : 0;
    return append_power(out, n, (int)strtol(e, NULL, 10));
}

const char *dms_number_power(char *out, double x, int power, int decimals)
{
    if (named(out, x))
        return out;
    decimals = decimals < 0 ? 0 : decimals > 9 ? 9 : decimals;
    char text[40];
    snprintf(text, sizeof(text), "%.*f", decimals, fmin(fmax(x / pow(10, power), -1e9), 1e9));
    return append_power(out, snprintf(out, DMS_NUMBER_SIZE, "%s×", text), power);
}

const char *dms_number_short(char *out, double x, int digits)
{
    if (named(out, x))
        return out;
    if (x == floor(x) && fabs(x) < 1e15)
        return grouped(out, x);
    if (fabs(x) < 1e-4 || fabs(x) >= 1e6)
        return raised(out, x, digits);
    const int leading = (int)floor(log10(fabs(x)));
    const int decimals = digits - 1 - leading;
    if (decimals <= 0)
        return grouped(out, round(x));
    snprintf(out, DMS_NUMBER_SIZE, "%.*f", decimals, x);
    drop_zeros(out);
    return out;
}

const char *dms_number_measure(char *out, double x, double error)
{
    const bool has_error = isfinite(error) && error > 0;
    if (!has_error || !isfinite(x) || fabs(x) >= 1e6 || error < 1e-9 || error >= 1e6)
        return dms_number_short(out, x, 4);
    int decimals = 1 - (int)floor(log10(error));
    decimals = decimals < 0 ? 0 : decimals;
    snprintf(out, DMS_NUMBER_SIZE, "%.*f ± %.*f", decimals, x, decimals, error);
    return out;
}

const char *dms_number_bytes(char *out, double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int unit = 0;
    if (named(out, bytes))
        return out;
    for (; fabs(bytes) >= 1024 && unit < 5; unit++)
        bytes /= 1024;
    char digits[DMS_NUMBER_SIZE];
    snprintf(out, DMS_NUMBER_SIZE, "%.48s %s", dms_number_short(digits, bytes, 4), units[unit]);
    return out;
}

const char *dms_number_seconds(char *out, double seconds)
{
    if (named(out, seconds))
        return out;
    if (seconds < 60 || seconds > 1e12)
        snprintf(out, DMS_NUMBER_SIZE, "%.3g s", seconds);
    else if (seconds < 3600)
        snprintf(out, DMS_NUMBER_SIZE, "%.0f min %02.0f s", floor(seconds / 60),
                 floor(fmod(seconds, 60)));
    else
        snprintf(out, DMS_NUMBER_SIZE, "%.0f h %02.0f min", floor(seconds / 3600),
                 floor(fmod(seconds, 3600) / 60));
    return out;
}
