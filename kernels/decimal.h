/* Floats as decimal numbers: what their author wrote. */
#ifndef DMS_DECIMAL_H
#define DMS_DECIMAL_H

/* The shortest decimal number, of 6 digits or more, that reads back as this float: 0.1 for 0.1f. */
double dms_decimal(float x);

#endif
