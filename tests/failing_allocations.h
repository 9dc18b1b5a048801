/* Makes a chosen allocation of this program's own code fail, and counts what was not freed. For one
 * file a binary, linked with --wrap (tests/CMakeLists.txt): calls from our objects come here, also
 * under AddressSanitizer; calls inside libraries do not. One thread allocates: ops do not. */
#ifndef DMS_TEST_FAILING_ALLOCATIONS_H
#define DMS_TEST_FAILING_ALLOCATIONS_H

#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static struct {
    long fail_at; /* which allocation fails, counted from 1; 0: none */
    long asked;   /* allocations so far */
    long live;    /* of them, blocks not freed */
    bool active;
    bool spared;  /* counted, but none fails */
    bool jansson; /* the one that failed was jansson's */
} allocation;

/* Blocks in use, by address, as complements: LeakSanitizer must not find them here. 1: freed. */
enum { BLOCK_SLOTS = 1 << 17 };
static uintptr_t blocks[BLOCK_SLOTS];

static uintptr_t *block_slot(uintptr_t stored)
{
    size_t i = (~stored >> 4) * 0x9E3779B97F4A7C15ull >> 47;
    for (size_t n = 0; n < BLOCK_SLOTS && blocks[i] && blocks[i] != stored; n++)
        i = (i + 1) % BLOCK_SLOTS;
    return &blocks[i];
}

/* Whether this allocation is to fail. */
static bool allocation_fails(void)
{
    if (!allocation.active || allocation.spared)
        return false;
    errno = ENOMEM;
    return ++allocation.asked == allocation.fail_at;
}

static void *block_made(void *p)
{
    if (p && allocation.active) {
        *block_slot(~(uintptr_t)p) = ~(uintptr_t)p;
        allocation.live++;
    }
    return p;
}

static void block_freed(const void *p)
{
    uintptr_t *slot = p && allocation.active ? block_slot(~(uintptr_t)p) : NULL;
    if (slot && *slot == ~(uintptr_t)p) {
        *slot = 1;
        allocation.live--;
    }
}

/* From here on the n-th allocation fails (0: none) and blocks are counted. */
static void allocations_begin(long n)
{
    memset(blocks, 0, sizeof(blocks));
    allocation.fail_at = n;
    allocation.asked = allocation.live = 0;
    allocation.jansson = false;
    allocation.active = true;
}

static void allocations_end(void)
{
    allocation.active = false;
}

/* Functions that return a block or NULL: name, parameters, arguments. */
#define WRAPPED_ALLOCATIONS(X)                                     \
    X(malloc, (size_t bytes), (bytes))                             \
    X(calloc, (size_t n, size_t bytes), (n, bytes))                \
    X(aligned_alloc, (size_t align, size_t bytes), (align, bytes)) \
    X(strdup, (const char *text), (text))                          \
    X(strndup, (const char *text, size_t n), (text, n))

#define X(name, parameters, arguments)                                          \
    void *__real_##name parameters;                                             \
    void *__wrap_##name parameters;                                             \
    void *__wrap_##name parameters                                              \
    {                                                                           \
        return allocation_fails() ? NULL : block_made(__real_##name arguments); \
    }
WRAPPED_ALLOCATIONS(X)
#undef X

void *__real_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes)
{
    if (allocation_fails())
        return NULL;
    block_freed(p); /* before its address can be another's */
    void *grown = __real_realloc(p, bytes);
    return block_made(grown ? grown : p);
}

int __real_posix_memalign(void **out, size_t align, size_t bytes);
int __wrap_posix_memalign(void **out, size_t align, size_t bytes);
int __wrap_posix_memalign(void **out, size_t align, size_t bytes)
{
    if (allocation_fails())
        return ENOMEM;
    const int error = __real_posix_memalign(out, align, bytes);
    if (!error)
        block_made(*out);
    return error;
}

int __wrap_asprintf(char **out, const char *format, ...) __attribute__((format(printf, 2, 3)));
int __wrap_asprintf(char **out, const char *format, ...)
{
    va_list arguments;
    if (allocation_fails())
        return -1;
    va_start(arguments, format);
    const int n = vasprintf(out, format, arguments);
    va_end(arguments);
    if (n >= 0)
        block_made(*out);
    return n;
}

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p)
{
    block_freed(p);
    __real_free(p);
}

/* Hands jansson's allocations to the same count. Not those of its parser and its writer
 * (2.14): they drop bytes without a word, or end in an assert, when their buffers cannot grow. */
static void *json_block(size_t bytes)
{
    if (!allocation_fails())
        return block_made(__real_malloc(bytes));
    allocation.jansson = true;
    return NULL;
}

static void allocations_take_json(void)
{
    json_set_alloc_funcs(json_block, __wrap_free);
}

json_t *__real_json_loadb(const char *text, size_t n, size_t flags, json_error_t *error);
json_t *__wrap_json_loadb(const char *text, size_t n, size_t flags, json_error_t *error);
json_t *__wrap_json_loadb(const char *text, size_t n, size_t flags, json_error_t *error)
{
    allocation.spared = true;
    json_t *json = __real_json_loadb(text, n, flags, error);
    allocation.spared = false;
    return json;
}

json_t *__real_json_loads(const char *text, size_t flags, json_error_t *error);
json_t *__wrap_json_loads(const char *text, size_t flags, json_error_t *error);
json_t *__wrap_json_loads(const char *text, size_t flags, json_error_t *error)
{
    allocation.spared = true;
    json_t *json = __real_json_loads(text, flags, error);
    allocation.spared = false;
    return json;
}

char *__real_json_dumps(const json_t *json, size_t flags);
char *__wrap_json_dumps(const json_t *json, size_t flags);
char *__wrap_json_dumps(const json_t *json, size_t flags)
{
    allocation.spared = true;
    char *text = __real_json_dumps(json, flags);
    allocation.spared = false;
    return text;
}

#endif
