#include "tests/fuzz/fuzz.h"

void fuzz_gguf(const uint8_t *data, size_t size)
{
    (void)fuzz_use_source(fuzz_file(data, size));
}
