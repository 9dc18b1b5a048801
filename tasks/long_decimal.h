/* Equality of decimal numbers of any length, as Python's Decimal has it. */
#ifndef DMS_LONG_DECIMAL_H
#define DMS_LONG_DECIMAL_H

#include "tasks/text.h"

/* false where one of them is no decimal number (digits with one point, an exponent, infinity, NaN;
 * underscores are passed over); else *equal, which NaN never is. */
bool dms_decimal_equal(bool *equal, dms_span a, dms_span b);

#endif
