/* Numbers as text for people: rounded, and the shortest text that reads back as the same number. */
#ifndef DMS_NUMBER_H
#define DMS_NUMBER_H

#include <stdint.h>

enum { DMS_NUMBER_SIZE = 64 }; /* bytes of each `out` */

/* All return out; none depends on the locale's grouping. NaN is "NaN", infinities "∞" and "-∞".
 *
 * The shortest of 15 to 17 significant digits that strtod reads back as x ("0.153882811"). */
const char *dms_number_exact(char *out, double x);
/* `digits` significant digits (1 to 15) without trailing zeros; whole numbers below 10^15 are
 * never rounded, but grouped: "12,345"; else below 10^-4 and from 10^6 on "1.5×10⁻⁷". */
const char *dms_number_short(char *out, double x, int digits);
/* x as a multiple of a power of ten, with 0 to 9 decimals: "2.5×10⁻⁵" for power -5. */
const char *dms_number_power(char *out, double x, int power, int decimals);
/* "0.1539 ± 0.0021": the error with two significant digits, the value with as many decimals; an
 * error of 0 or one that is not finite is left out. */
const char *dms_number_measure(char *out, double x, double error);
/* "1.25 GiB"; whole bytes below 1 KiB. */
const char *dms_number_bytes(char *out, double bytes);
/* "2 h 05 min", "3 min 20 s", "12.4 s". */
const char *dms_number_seconds(char *out, double seconds);

#endif
