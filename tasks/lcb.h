/* The test cases of LiveCodeBench's files (LiveCodeBench/LiveCodeBench, code_generation.py). */
#ifndef DMS_LCB_H
#define DMS_LCB_H

#include <jansson.h>

#include "kernels/status.h"

/* Appends to `tests` the {input, output} of `text`: a JSON array of {input, output, testtype}, or
 * base64 of zlib of a Python pickle of that array's text, which holds nothing else and is not run
 * as pickles are. `where` names the text in messages. At most 256 MiB unpacked. Errors:
 * DMS_ERR_FORMAT, DMS_ERR_NOMEM. */
dms_status dms_lcb_tests(json_t *tests, const char *text, const char *where);

#endif
