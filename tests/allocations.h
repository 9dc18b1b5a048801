/* Counts what this program allocates: malloc and its kin are interposed. For one file a binary. */
#ifndef DMS_TEST_ALLOCATIONS_H
#define DMS_TEST_ALLOCATIONS_H

/* AddressSanitizer owns malloc: there is nothing to count then. */
#ifndef __SANITIZE_ADDRESS__
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

static atomic_bool counting;
static atomic_long allocations;

/* glibc's own entry points, for those who replace the public ones. */
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);

/* Where this program's own code lies (GNU ld). What oneDNN allocates inside a call of its own is
 * not ours to count. */
extern const char __executable_start, etext;

static void count(const void *caller)
{
    const char *at = caller;
    if (atomic_load(&counting) && at >= &__executable_start && at < &etext)
        atomic_fetch_add(&allocations, 1);
}

void *malloc(size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_calloc(n, bytes);
}

void *realloc(void *p, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_realloc(p, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    count(__builtin_return_address(0));
    return __libc_memalign(align, bytes);
}

int posix_memalign(void **out, size_t align, size_t bytes)
{
    count(__builtin_return_address(0));
    *out = __libc_memalign(align, bytes);
    return *out ? 0 : ENOMEM;
}
#endif

#endif
