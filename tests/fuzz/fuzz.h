/* What the fuzz targets share: the limits each input is held to, and files made of its bytes. */
#ifndef DMS_TEST_FUZZ_H
#define DMS_TEST_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A target is fuzz_NAME in fuzz_NAME.c: it reads the input as a file of the format NAME and uses
 * all that it holds. Any status is right. The second column is what one allocation may have beyond
 * 4 times the input, in KiB: the bar is 64 MiB, but inputs here are small, and a factor that is too
 * large shows only against a small constant. libhdf5's metadata cache has 516 KiB, zlib's buffers
 * 256 KiB, a line of JSON (8 MiB at most, and gzip makes one of little) 48 MiB, libyaml's list of
 * possible keys 80 KiB (it looks 1,024 characters ahead), a tokenizer's cache of words 4 MiB. */
#define FUZZ_TARGETS(X) \
    X(safetensors, 64)  \
    X(index, 64)        \
    X(config, 64)       \
    X(tokenizer, 64)    \
    X(gguf, 768)        \
    X(hdf5, 768)        \
    X(recipe, 256)      \
    X(corpus, 384)      \
    X(jsonl, 49152)     \
    X(shard, 64)        \
    X(split, 768)       \
    X(npy, 64)

typedef void fuzz_target(const uint8_t *data, size_t size);
#define X(name, spare) void fuzz_##name(const uint8_t *data, size_t size);
FUZZ_TARGETS(X)
#undef X
/* Added to the second column while a tokenizer is in use. */
enum { FUZZ_TOKENIZER_BYTES = 6 << 20 };

/* Rewrites what guards the format NAME (lengths, CRCs) after bytes were changed, so that the input
 * gets past the guard; returns the new size, at most `room`. */
size_t fuzz_mend_safetensors(uint8_t *data, size_t size, size_t room);
size_t fuzz_mend_hdf5(uint8_t *data, size_t size, size_t room);
size_t fuzz_mend_shard(uint8_t *data, size_t size, size_t room);
size_t fuzz_mend_npy(uint8_t *data, size_t size, size_t room);

/* Runs the target and aborts, with a message on stderr, where it takes more than a second of
 * processor time, where one allocation is larger than 4 times the input plus `spare` KiB, or
 * all that live at once larger than 4 times the input plus 64 MiB. Without AddressSanitizer
 * allocations go unseen. */
void fuzz_run(fuzz_target *target, int spare, const uint8_t *data, size_t size);

/* Path of a file with these bytes, without a disk; the next call replaces it. */
const char *fuzz_file(const uint8_t *data, size_t size);
/* The same under a name that counts, in fuzz_folder. */
const char *fuzz_named_file(const char *name, const uint8_t *data, size_t size);
/* Path of an empty folder of this process, removed at its end; made once. */
const char *fuzz_folder(void);
/* Opens a model file or folder, reads every tensor as f32 and bf16, its config, gate and tokenizer,
 * and hashes it. False where it does not open. */
bool fuzz_use_source(const char *path);
/* Opens a tokenizer, encodes and decodes texts with it. */
void fuzz_use_tokenizer(const char *json, size_t length);

#endif
