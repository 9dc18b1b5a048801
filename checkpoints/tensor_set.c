#include "checkpoints/tensor_set.h"

#include <math.h>
#include <stdlib.h>

#include "checkpoints/f16.h"

void *dms_tensor_set_buffer(const dms_tensor_set *set)
{
    size_t largest = 1;
    for (int64_t i = 0; i < set->count; i++) {
        const dms_tensor_entry *e = &set->entries[i];
        const size_t bytes = (size_t)dms_tensor_entry_count(e) * dms_dtype_bytes(e->dtype);
        largest = bytes > largest ? bytes : largest;
    }
    void *buffer = malloc(largest);
    if (!buffer)
        dms_fail(DMS_ERR_NOMEM, "no memory for a tensor of %zu bytes", largest);
    return buffer;
}

/* In place: a half never lies behind the number it comes from. */
static dms_status narrow(const dms_tensor_entry *e, void *buffer)
{
    const int64_t n = dms_tensor_entry_count(e);
    const char *from = buffer;
    char *to = buffer;
    for (int64_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, from + 4 * i, sizeof(value));
        const uint16_t half = dms_f16_bits(value);
        if ((half & 0x7fffu) == 0x7c00u && isfinite(value))
            return dms_fail(DMS_ERR_ARG,
                            "tensor %s holds %g, f16 ends at 65504; write it as bf16 or f32",
                            e->name, (double)value);
        memcpy(to + 2 * i, &half, sizeof(half));
    }
    return DMS_OK;
}

dms_status dms_tensor_set_fetch(const dms_tensor_set *set, int64_t i, void *buffer)
{
    DMS_TRY(set->fetch(set->context, i, buffer));
    return set->entries[i].half ? narrow(&set->entries[i], buffer) : DMS_OK;
}
