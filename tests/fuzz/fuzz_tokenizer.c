#include "tests/fuzz/fuzz.h"

void fuzz_tokenizer(const uint8_t *data, size_t size)
{
    fuzz_use_tokenizer((const char *)data, size);
}
