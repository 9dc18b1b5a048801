/* One target as libFuzzer runs it. FUZZ_TARGET is its name; FUZZ_MEND is defined where it has a
 * function that mends what was mutated. */
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"

#define JOIN(a, b) a##b
#define NAME(prefix, name) JOIN(prefix, name)

enum {
#define X(name, spare) SPARE_##name = (spare),
    FUZZ_TARGETS(X)
#undef X
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_run(NAME(fuzz_, FUZZ_TARGET), NAME(SPARE_, FUZZ_TARGET), data, size);
    return 0;
}

#ifdef FUZZ_MEND
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

/* One input in eight stays broken, so that the guard is tested, too. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, room);
    return seed % 8 ? NAME(fuzz_mend_, FUZZ_TARGET)(data, size, room) : size;
}
#endif
