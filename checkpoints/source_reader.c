#include "checkpoints/source_reader.h"

static bool find(const void *context, const char *name, int *rank, int64_t shape[DMS_MAX_RANK])
{
    const dms_tensor_info *info = dms_source_find(context, name);
    if (!info)
        return false;
    *rank = info->rank;
    for (int i = 0; i < info->rank; i++)
        shape[i] = info->shape[i];
    return true;
}

static dms_status read(const void *context, const char *name, void *dst, dms_dtype dtype)
{
    return dms_source_read(context, name, dst, dtype);
}

dms_reader dms_source_reader(const dms_source *s)
{
    return (dms_reader){s, find, read};
}
