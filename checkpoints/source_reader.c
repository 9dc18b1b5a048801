#include "checkpoints/source_reader.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoints/source_build.h"

/* The file's tensor that holds ours: of the same name, or (then *place says so) of another. */
static const dms_tensor_info *locate(dms_layout_place *place, const dms_source *s, const char *name)
{
    const dms_tensor_info *info = dms_source_find(s, name);
    place->name[0] = 0;
    if (info || !dms_layout_find(place, dms_source_config(s), name))
        return info;
    info = dms_source_find(s, place->name);
    return info ? info : dms_source_find(s, place->bare);
}

static bool find(const void *context, const char *name, int *rank, int64_t shape[DMS_MAX_RANK])
{
    dms_layout_place place;
    const dms_tensor_info *info = locate(&place, context, name);
    if (!info)
        return false;
    *rank = info->rank;
    memcpy(shape, info->shape, (size_t)info->rank * sizeof(*shape));
    /* A shape that cannot hold ours is shown as it is: no weight has it. */
    if (place.name[0])
        dms_layout_shape(shape, &place, info->rank, info->shape);
    return true;
}

/* Through memory for the whole of their tensor. */
static dms_status take_part(const dms_source *s, const dms_tensor_info *info,
                            const dms_layout_place *place, void *dst, dms_dtype dtype)
{
    int64_t shape[DMS_MAX_RANK] = {1, 1}, n = 1;
    if (info->rank < 1 || info->rank > 2 ||
        !dms_layout_shape(shape, place, info->rank, info->shape))
        return dms_fail(DMS_ERR_FORMAT, "tensor %s is no %s", info->name,
                        place->transposed ? "matrix of the expected shape" : "vector or matrix");
    for (int i = 0; i < info->rank; i++)
        n *= info->shape[i];
    void *whole = malloc((size_t)n * dms_dtype_bytes(dtype) + 1);
    if (!whole)
        return dms_fail(DMS_ERR_NOMEM, "no memory for tensor %s", info->name);
    const dms_status status = dms_source_read(s, info->name, whole, dtype);
    if (!status)
        dms_layout_take(dst, whole, place,
                        &(dms_layout_size){{shape[0], shape[1]}, dms_dtype_bytes(dtype)});
    free(whole);
    return status;
}

bool dms_source_is_adapter(const dms_source *s)
{
    const int64_t n = dms_source_count(s);
    for (int64_t i = 0; i < n; i++)
        if (!dms_layout_is_gate(dms_source_info(s, i)->name))
            return false;
    return n > 0;
}

dms_status dms_source_expect_model(const dms_source *s)
{
    if (!dms_source_is_adapter(s))
        return DMS_OK;
    return dms_fail(DMS_ERR_FORMAT,
                    "%s holds an adapter gate alone, without its base model; give the checkpoint "
                    "or folder that it was exported from",
                    s->path);
}

dms_status dms_source_read_part(const dms_source *s, const dms_tensor_info *info,
                                const dms_layout_place *place, void *dst, dms_dtype dtype)
{
    if (place->parts == 1 && !place->transposed)
        return dms_source_read(s, info->name, dst, dtype);
    return take_part(s, info, place, dst, dtype);
}

static dms_status read(const void *context, const char *name, void *dst, dms_dtype dtype)
{
    dms_layout_place place;
    const dms_tensor_info *info = locate(&place, context, name);
    if (!info || !place.name[0])
        return dms_source_read(context, name, dst, dtype);
    return dms_source_read_part(context, info, &place, dst, dtype);
}

dms_reader dms_source_reader(const dms_source *s)
{
    return (dms_reader){s, find, read};
}
