#include "kernels/arena.h"

dms_status dms_arena_open(dms_arena *out, dms_device *dev, size_t bytes)
{
    void *base = NULL;
    DMS_TRY(dev->alloc(dev, &base, bytes));
    *out = (dms_arena){.device = dev, .base = base, .size = bytes};
    return DMS_OK;
}

dms_arena dms_arena_measure(dms_device *dev)
{
    return (dms_arena){.device = dev, .size = SIZE_MAX};
}

void dms_arena_close(dms_arena *arena)
{
    if (arena->base)
        arena->device->release(arena->device, arena->base);
    *arena = (dms_arena){0};
}

dms_status dms_arena_place(dms_arena *arena, dms_tensor *t)
{
    const size_t need = (dms_tensor_bytes(t) + DMS_PIECE - 1) / DMS_PIECE * DMS_PIECE;
    if (need > arena->size - arena->used)
        return dms_fail(DMS_ERR_NOMEM, "arena of %zu bytes is full, %zu more needed", arena->size,
                        need - (arena->size - arena->used));
    t->device = arena->device;
    /* A measuring arena hands out distinct addresses that nobody may follow. */
    t->data =
        arena->base ? arena->base + arena->used : (void *)(uintptr_t)(arena->used + DMS_PIECE);
    arena->used += need;
    if (arena->used > arena->peak)
        arena->peak = arena->used;
    return DMS_OK;
}
