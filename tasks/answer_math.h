/* The string normalisation of the MATH dataset (hendrycks/math, modeling/math_equivalence.py), and
 * numbers in its notation. */
#ifndef DMS_ANSWER_MATH_H
#define DMS_ANSWER_MATH_H

#include "tasks/text.h"

/* Appends the normal form of valid UTF-8. *fails = true, and `out` is of no use, where the
 * original's code raises an exception: it compares such answers as they are. Errors: DMS_ERR_NOMEM.
 */
dms_status dms_math_normalise(dms_text *out, bool *fails, dms_span answer);
/* The value of a decimal number (with or without commas between thousands), a/b or \frac{a}{b};
 * false where `s` is something else. */
bool dms_math_number(double *out, dms_span s);

#endif
