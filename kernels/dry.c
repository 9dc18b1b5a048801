/* The dry run of a device: what its memory would be, found out without having it. */
#include <string.h>

#include "kernels/device.h"

static dms_status count_alloc(dms_device *dev, void **out, size_t bytes)
{
    const size_t pieces = bytes / DMS_PIECE + 1 - (bytes && bytes % DMS_PIECE == 0);
    *out = (void *)(uintptr_t)(dev->dry_bytes + DMS_PIECE); /* distinct, aligned, not NULL */
    if (pieces > (SIZE_MAX - dev->dry_bytes) / DMS_PIECE - 1)
        return dms_fail(DMS_ERR_NOMEM, "%s has no %zu bytes", dev->name, bytes);
    dev->dry_bytes += pieces * DMS_PIECE;
    return DMS_OK;
}

static void forget_release(dms_device *dev, void *ptr)
{
    (void)dev;
    (void)ptr;
}

static dms_status no_upload(dms_device *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    (void)dst;
    (void)src;
    (void)bytes;
    return DMS_OK;
}

static dms_status download_zeros(dms_device *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    (void)src;
    memset(dst, 0, bytes);
    return DMS_OK;
}

static dms_status no_zero(dms_device *dev, void *dst, size_t bytes)
{
    (void)dev;
    (void)dst;
    (void)bytes;
    return DMS_OK;
}

void dms_device_dry(dms_device *dev)
{
    dev->dry = true;
    dev->dry_bytes = 0;
    dev->alloc = count_alloc;
    dev->release = forget_release;
    dev->upload = no_upload;
    dev->download = download_zeros;
    dev->zero = no_zero;
    dev->after_op = NULL;
    dev->record = NULL;
    dev->reserve = NULL;
}
