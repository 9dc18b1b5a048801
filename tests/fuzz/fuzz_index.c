/* The index of a sharded folder. The shards are sound: fuzz_safetensors breaks those. */
#include <stdio.h>
#include <stdlib.h>

#include "checkpoints/files.h"
#include "checkpoints/safetensors.h"
#include "tests/fuzz/fuzz.h"

static dms_status zeros(void *context, int64_t i, void *dst)
{
    (void)context;
    ((float *)dst)[0] = (float)i;
    return DMS_OK;
}

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof(path), "%s/%s", fuzz_folder(), name);
    return path;
}

static void make_folder(void)
{
    const dms_tensor_entry entries[] = {{.name = "a", .dtype = DMS_F32, .rank = 1, .shape = {1}},
                                        {.name = "b", .dtype = DMS_F32, .rank = 1, .shape = {1}}};
    if (dms_file_write(path_of("config.json"), "{}", 2) ||
        dms_safetensors_write(path_of("x"), &(dms_tensor_set){entries, 1, zeros, NULL}) ||
        dms_safetensors_write(path_of("y"), &(dms_tensor_set){entries + 1, 1, zeros, NULL}))
        exit(2);
}

void fuzz_index(const uint8_t *data, size_t size)
{
    static int made;
    if (!made++)
        make_folder();
    FILE *f = fopen(path_of("model.safetensors.index.json"), "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f))
        exit(2);
    (void)fuzz_use_source(fuzz_folder());
}
