/* A GGUF model in two files: the input up to its second "GGUF", and from there. */
#include <string.h>

#include "tests/fuzz/fuzz.h"

void fuzz_split(const uint8_t *data, size_t size)
{
    const uint8_t *second = size > 4 ? memmem(data + 4, size - 4, "GGUF", 4) : NULL;
    const size_t n = second ? (size_t)(second - data) : size;
    (void)fuzz_named_file("m-00002-of-00002.gguf", data + n, size - n);
    (void)fuzz_use_source(fuzz_named_file("m-00001-of-00002.gguf", data, n));
}
