/* Finds which of many texts a text has at each place, in time linear in it, however long they are.
 */
#ifndef DMS_FINDER_H
#define DMS_FINDER_H

#include <stddef.h>
#include <stdint.h>

#include "data/buffer.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_finder dms_finder;

/* The n texts, none empty, are copied; text i is known as ids[i] >= 0. Memory: some 40 times their
 * bytes. Errors: DMS_ERR_NOMEM; DMS_ERR_FORMAT where they have 2^30 bytes and more. */
dms_status dms_finder_open(dms_finder **out, const dms_text *const *texts, const int32_t *ids,
                           int64_t n);
/* NULL is legal. */
void dms_finder_close(dms_finder *f);

/* Before another text. */
void dms_finder_begin(dms_finder *f);
/* The longest of the texts that text + at begins with, or -1. Calls for places that only grow cost
 * together what is linear in n; the text must stay the one since dms_finder_begin. */
int32_t dms_finder_at(dms_finder *f, const char *text, size_t n, size_t at);

DMS_END_C
#endif
