/* Bump allocation inside one block of device memory. */
#ifndef DMS_ARENA_H
#define DMS_ARENA_H

#include "kernels/tensor.h"

typedef struct {
    dms_device *device;
    char *base;  /* owned; NULL in an arena that only measures */
    size_t size; /* bytes */
    size_t used; /* bytes; save it to mark, restore it to rewind */
    size_t peak; /* the largest `used` so far */
} dms_arena;

/* The caller ends it with close, which is legal on a zeroed struct. */
dms_status dms_arena_open(dms_arena *out, dms_device *dev, size_t bytes);
/* An arena without memory: place only counts, `peak` says what would be needed, and the tensors'
 * data must not be touched. */
dms_arena dms_arena_measure(dms_device *dev);
void dms_arena_close(dms_arena *arena);
/* Gives *t storage that lives until the arena is rewound past it. The bytes are not cleared.
 * DMS_ERR_NOMEM when the arena is full. */
dms_status dms_arena_place(dms_arena *arena, dms_tensor *t);

#endif
