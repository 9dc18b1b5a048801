/* An item on its way from prompt to verdict: what must outlive the reader's line. */
#ifndef DMS_ENTRY_H
#define DMS_ENTRY_H

#include "tasks/items.h"

/* A copy whose texts are owned, in one block. */
typedef struct {
    dms_item item;
    void *store;
} dms_entry;

/* The caller ends it with dms_entry_close. DMS_ERR_NOMEM. */
dms_status dms_entry_open(dms_entry *out, const dms_item *item);
void dms_entry_close(dms_entry *e);

#endif
