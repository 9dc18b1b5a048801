#include <string.h>

#include "tests/fuzz/fuzz.h"

void fuzz_safetensors(const uint8_t *data, size_t size)
{
    (void)fuzz_use_source(fuzz_file(data, size));
}

/* The header ends at its last brace: an input has no other way to say where. */
size_t fuzz_mend_safetensors(uint8_t *data, size_t size, size_t room)
{
    (void)room;
    const uint8_t *end = size > 8 ? memrchr(data + 8, '}', size - 8) : NULL;
    if (!end)
        return size;
    const uint64_t length = (uint64_t)(end + 1 - (data + 8));
    for (int i = 0; i < 8; i++)
        data[i] = (uint8_t)(length >> 8 * i);
    return size;
}
