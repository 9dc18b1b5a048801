/* The lines of a file of results or metrics: a JSON object each, as reports read them. */
#ifndef DMS_LINES_H
#define DMS_LINES_H

#include <jansson.h>

#include "kernels/status.h"

/* A new array of the objects in their order; what a kill cut short, and what is no object, is
 * passed over. The caller ends it with json_decref. DMS_ERR_IO; DMS_ERR_NOMEM. */
dms_status dms_lines_read(json_t **out, const char *path);

/* A number of an object; NaN where it is missing, null or none. */
double dms_line_number(const json_t *object, const char *key);
/* A text of an object; "" where it is missing or none. */
const char *dms_line_text(const json_t *object, const char *key);

enum { DMS_DATE_SIZE = 32 };
/* Now, as "2026-01-31 23:59 UTC"; returns out. */
const char *dms_lines_date(char out[DMS_DATE_SIZE]);

#endif
