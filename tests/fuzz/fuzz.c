#include "tests/fuzz/fuzz.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "checkpoints/source.h"
#include "data/tokenizer.h"
#include "model/gate.h"

#ifndef __has_feature
#define __has_feature(x) 0
#endif

static atomic_bool limited;
static atomic_llong one_limit, all_limit, live;

static void give_up(const char *what, long long found, long long limit)
{
    atomic_store(&limited, false);
    fprintf(stderr, "fuzz: %s: %lld, at most %lld are allowed\n", what, found, limit);
    abort();
}

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
/* sanitizer/allocator_interface.h of the compiler runtime. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));
size_t __sanitizer_get_allocated_size(const volatile void *p);

static void on_malloc(const volatile void *p, size_t size)
{
    (void)p;
    if (!atomic_load(&limited))
        return;
    const long long n = (long long)size, all = atomic_fetch_add(&live, n) + n;
    if (n > atomic_load(&one_limit))
        give_up("bytes of one allocation", n, atomic_load(&one_limit));
    if (all > atomic_load(&all_limit))
        give_up("bytes of all allocations", all, atomic_load(&all_limit));
}

static void on_free(const volatile void *p)
{
    if (p && atomic_load(&limited))
        atomic_fetch_sub(&live, (long long)__sanitizer_get_allocated_size(p));
}

static void watch_allocations(void)
{
    static bool installed;
    if (!installed)
        __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    installed = true;
}
#else
static void watch_allocations(void)
{
}
#endif

static long long processor_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

void fuzz_run(fuzz_target *target, int spare, const uint8_t *data, size_t size)
{
    watch_allocations();
    atomic_store(&live, 0);
    atomic_store(&one_limit, 4 * (long long)size + 1024ll * spare);
    atomic_store(&all_limit, 4 * (long long)size + (64 << 20));
    const long long start = processor_ms();
    atomic_store(&limited, true);
    target(data, size);
    atomic_store(&limited, false);
    const long long spent = processor_ms() - start;
    if (spent > 1000)
        give_up("milliseconds of one input", spent, 1000);
}

static void must(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(2); /* the machine's fault, not the target's */
    }
}

const char *fuzz_file(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        must(fd >= 0, "memfd_create");
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    }
    must(pwrite(fd, data, size, 0) == (ssize_t)size && !ftruncate(fd, (off_t)size), "an input");
    return path;
}

static char folder[64];

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    if (system(command))
        fprintf(stderr, "fuzz: %s was not removed\n", folder);
}

const char *fuzz_folder(void)
{
    if (!*folder) {
        strcpy(folder,
               access("/dev/shm", W_OK) ? "/tmp/dms-fuzz-XXXXXX" : "/dev/shm/dms-fuzz-XXXXXX");
        must(mkdtemp(folder) != NULL, "mkdtemp");
        atexit(remove_folder);
    }
    return folder;
}

const char *fuzz_named_file(const char *name, const uint8_t *data, size_t size)
{
    static char path[256];
    snprintf(path, sizeof(path), "%s/%s", fuzz_folder(), name);
    FILE *f = fopen(path, "wb");
    must(f && fwrite(data, 1, size, f) == size && !fclose(f), path);
    return path;
}

static void use_tensor(const dms_source *s, const dms_tensor_info *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    /* The buffers are the caller's: a target of its own size, whatever the file stores. */
    atomic_store(&limited, false);
    void *x = n < 1 << 24 ? malloc((size_t)n * 4 + 1) : NULL;
    atomic_store(&limited, true);
    for (int type = DMS_F32; x && type <= DMS_I32; type++)
        if (t->type != DMS_FILE_OTHER)
            (void)dms_source_read(s, t->name, x, (dms_dtype)type);
    atomic_store(&limited, false);
    free(x);
    atomic_store(&limited, true);
}

bool fuzz_use_source(const char *path)
{
    char hex[65];
    size_t length;
    double number;
    dms_source *s;
    dms_config config;
    dms_gate gate;
    if (dms_source_open(&s, path))
        return false;
    for (int64_t i = 0; i < dms_source_count(s); i++)
        use_tensor(s, dms_source_info(s, i));
    (void)dms_source_hash(s, hex);
    (void)dms_source_number(s, "step", &number);
    if (dms_source_config(s)) {
        (void)dms_config_parse(&config, dms_source_config(s));
        (void)dms_gate_parse(&gate, dms_source_config(s));
    }
    const char *tokenizer = dms_source_tokenizer(s, &length);
    if (tokenizer)
        fuzz_use_tokenizer(tokenizer, length);
    dms_source_close(s);
    return true;
}

void fuzz_use_tokenizer(const char *json, size_t length)
{
    static const char text[] = "Hello,  world's 12345 n\xc3\xa4"
                               "chste\r\n\n  <s><|im_end|> \xe4\xbd\xa0\xe5\xa5\xbd\xff\xf0\x9f"
                               "aaaaaaaaaaaaaaaaaaaaaaaa bbbb\tab abab e\xcc\x81 don't";
    static char row[512]; /* beyond the windows of data/pattern.c */
    dms_tokenizer *t;
    dms_tokens ids = {0};
    dms_text out = {0};
    memset(row, 'a', sizeof(row));
    atomic_fetch_add(&one_limit, FUZZ_TOKENIZER_BYTES);
    if (dms_tokenizer_open(&t, json, length, "fuzz")) {
        atomic_fetch_sub(&one_limit, FUZZ_TOKENIZER_BYTES);
        return;
    }
    (void)dms_tokenizer_encode(t, &ids, text, sizeof(text), true);
    (void)dms_tokenizer_encode(t, &ids, text, sizeof(text) - 1, false);
    (void)dms_tokenizer_encode(t, &ids, row, sizeof(row), false);
    (void)dms_tokenizer_decode(t, &out, ids.ids, ids.n, true);
    dms_decoder decoder = {.tokenizer = t};
    for (int32_t id = -1; id < 300; id++)
        (void)dms_decoder_put(&decoder, &out, id);
    (void)dms_decoder_end(&decoder, &out);
    (void)dms_tokenizer_cut(t, text, sizeof(text) - 1);
    (void)dms_tokenizer_begin_of_text(t);
    (void)dms_tokenizer_end_of_text(t);
    dms_text_free(&out);
    dms_tokens_free(&ids);
    dms_tokenizer_close(t);
    atomic_fetch_sub(&one_limit, FUZZ_TOKENIZER_BYTES);
}
