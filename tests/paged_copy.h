/* A host copy of a paged cache, pages and lists, for tests that look at what it holds. */
#ifndef DMS_TEST_PAGED_COPY_H
#define DMS_TEST_PAGED_COPY_H

#include <stdlib.h>

#include "infer/cache.h"
#include "tests/rig.h"

typedef struct {
    dms_paged c;         /* its pointers are to host memory */
    void **device_slabs; /* where its slabs lie */
    int64_t counters[DMS_PAGED_COUNTERS];
} copy;

static inline void *copied(dms_device *dev, const void *from, size_t bytes)
{
    void *to = malloc(bytes ? bytes : 1);
    if (bytes)
        must(dev->download(dev, to, from, bytes));
    return to;
}

static inline copy copy_open(const dms_cache *cache)
{
    copy y = {.c = *dms_cache_paged(cache)};
    dms_paged *c = &y.c;
    dms_device *dev = c->device;
    const size_t units = (size_t)c->sequences * (size_t)c->layers * (size_t)c->groups;
    const size_t slabs = (size_t)(c->pages / c->slab_pages);
    must(dev->download(dev, y.counters, c->counters, sizeof(y.counters)));
    y.device_slabs = copied(dev, c->slabs, slabs * sizeof(void *));
    c->slabs = copied(dev, c->slabs, slabs * sizeof(void *));
    for (size_t i = 0; i < slabs; i++)
        c->slabs[i] = copied(dev, c->slabs[i], (size_t)c->slab_pages * dms_page_bytes(c));
    c->free_pages = copied(dev, c->free_pages, (size_t)y.counters[DMS_PAGED_FREE] * 4);
    c->unit_list = copied(dev, c->unit_list, units * (size_t)c->unit_pages * 4);
    c->live = copied(dev, c->live, units * 4);
    c->borrowed = copied(dev, c->borrowed, units * 4);
    c->ring = copied(dev, c->ring, units * (size_t)c->ring_entries * 4);
    return y;
}

static inline void copy_close(copy *y)
{
    for (int i = 0; i < y->c.pages / y->c.slab_pages; i++)
        free(y->c.slabs[i]);
    free(y->c.slabs);
    free(y->device_slabs);
    free(y->c.free_pages);
    free(y->c.unit_list);
    free(y->c.live);
    free(y->c.borrowed);
    free(y->c.ring);
}

static inline dms_page copy_page(const copy *y, int64_t unit, int64_t slot)
{
    return dms_page_at(&y->c, y->c.unit_list[unit * y->c.unit_pages + slot / y->c.page_slots]);
}

#endif
