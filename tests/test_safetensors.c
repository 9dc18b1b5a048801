#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "checkpoints/f16.h"
#include "checkpoints/file_types.h"
#include "checkpoints/safetensors.h"
#include "kernels/bf16.h"
#include "tests/files.h"
#include "tests/fixtures.h"

/* A file with the given header text and n bytes of data, all 0x3f. */
static void write_file(const char *path, const char *header, size_t n)
{
    uint8_t bytes[4096] = {0};
    const size_t length = strlen(header);
    bytes[0] = (uint8_t)length;
    bytes[1] = (uint8_t)(length >> 8);
    memcpy(bytes + 8, header, length);
    memset(bytes + 8 + length, 0x3f, n);
    write_bytes(path, bytes, 8 + length + n);
}

/* Opening must fail and the message must say `expected`. */
static void refuses(const char *header, size_t n, const char *expected)
{
    dms_source *s = NULL;
    scratch dir = scratch_open();
    const char *path = scratch_path(&dir, "x");
    write_file(path, header, n);
    cr_expect_eq(dms_source_open(&s, path), DMS_ERR_FORMAT, "%s was accepted", header);
    cr_expect_null(s);
    cr_expect(strstr(dms_error_text(), expected), "%s does not say %s", dms_error_text(), expected);
    scratch_close(&dir);
}

Test(safetensors, refuses_each_lie_of_a_header_with_a_message_that_names_it)
{
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4,
            "tensor a lies at");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "want 8");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9,
            "1 bytes follow");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
            "begins at byte 4");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
            "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
            8, "begins at byte");
    refuses("{\"a\":{\"dtype\":\"F99\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "F99");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "impossible");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
            0, "impossible");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
            "at most 4");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,4]}}", 8, "lies at");
    refuses("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
            "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
            8, "duplicate");
    refuses("{\"a b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "printable");
    refuses("{\"a\":[]}", 0, "dtype");
    refuses("{\"a\":", 0, "no JSON object");
}

Test(safetensors, reads_every_number_type_it_promises)
{
    dms_source *s;
    scratch dir = scratch_open();
    const char *path = scratch_path(&dir, "x");
    float x[2];
    uint16_t b[2];
    write_file(path,
               "{\"f16\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},"
               "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[4,8]},"
               "\"f32\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[8,12]},"
               "\"i64\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[12,20]},"
               "\"none\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[20,20]}}",
               20);
    must(dms_source_open(&s, path));
    cr_expect_str_eq(dms_source_format(s), "safetensors");
    cr_expect_null(dms_source_config(s));
    must(dms_source_read(s, "f16", x, DMS_F32));
    /* 0x3f3f as half: exponent 15 - 15, mantissa 0x33f / 1024 */
    cr_expect_eq(x[1], 1.0f + 831.0f / 1024.0f);
    must(dms_source_read(s, "bf16", x, DMS_F32));
    cr_expect_eq(x[0], dms_bf16_to_f32(0x3f3f));
    must(dms_source_read(s, "bf16", b, DMS_BF16));
    cr_expect_eq(b[1], 0x3f3f);
    must(dms_source_read(s, "f32", b, DMS_BF16));
    cr_expect_eq(b[0], 0x3f3f); /* 0x3f3f3f3f rounds down */
    must(dms_source_read(s, "none", x, DMS_F32));
    cr_expect_eq(dms_source_read(s, "i64", x, DMS_F32), DMS_ERR_DTYPE);
    cr_expect(strstr(dms_error_text(), "i64 is stored as I64"));
    cr_expect_eq(dms_source_read(s, "nope", x, DMS_F32), DMS_ERR_ARG);
    dms_source_close(s);
    scratch_close(&dir);
}

/* Tensors of 24, 40, 4 and 6 bytes; fetch writes values that name tensor and element. */
static const dms_tensor_entry entries[] = {{"w.a", DMS_F32, 2, {2, 3}, false},
                                           {"w.b", DMS_BF16, 3, {5, 2, 2}, false},
                                           {"w.c", DMS_F32, 0, {0}, false},
                                           {"w.d", DMS_F32, 1, {3}, true}};

static dms_status fetch(void *context, int64_t i, void *dst)
{
    const int64_t n = dms_tensor_entry_count(&entries[i]);
    *(int *)context += 1;
    for (int64_t k = 0; k < n; k++) {
        const float x = (float)(i + 1) + (float)k / 8.0f;
        if (entries[i].dtype == DMS_F32)
            ((float *)dst)[k] = x;
        else
            ((uint16_t *)dst)[k] = dms_bf16_from_f32(x);
    }
    return DMS_OK;
}

static void expect_entries(const dms_source *s)
{
    cr_assert_eq(dms_source_count(s), (int64_t)COUNT(entries));
    for (int64_t i = 0; i < (int64_t)COUNT(entries); i++) {
        int64_t n;
        float *x = read_f32(s, entries[i].name, &n);
        const dms_tensor_info *t = dms_source_find(s, entries[i].name);
        cr_expect_eq(t->rank, entries[i].rank);
        for (int k = 0; k < t->rank; k++)
            cr_expect_eq(t->shape[k], entries[i].shape[k]);
        for (int64_t k = 0; k < n; k++)
            cr_expect_eq(x[k], (float)(i + 1) + (float)k / 8.0f);
        free(x);
    }
}

Test(safetensors, reads_back_what_it_wrote_in_one_file)
{
    int calls = 0;
    const dms_tensor_set set = {entries, COUNT(entries), fetch, &calls};
    dms_source *s;
    scratch dir = scratch_open();
    must(dms_safetensors_write(scratch_path(&dir, "m"), &set));
    cr_expect_eq(calls, 4);
    must(dms_source_open(&s, scratch_path(&dir, "m")));
    expect_entries(s);
    cr_expect_str_eq(dms_source_text(s, "format"), "pt");
    cr_expect_eq(count_files(dir.folder), 1);
    dms_source_close(s);
    scratch_close(&dir);
}

/* Every half is itself again; between two neighbours the nearer one is taken, and the even one of
 * two as near (IEEE 754). */
Test(safetensors, f16_rounds_to_the_nearest_half)
{
    for (uint32_t bits = 0; bits < 65536; bits++)
        cr_assert_eq(dms_f16_bits(dms_f16_to_f32((uint16_t)bits)), bits, "half %04x", bits);
    for (uint32_t bits = 0; bits < 0x7bff; bits++) {
        const float low = dms_f16_to_f32((uint16_t)bits),
                    high = dms_f16_to_f32((uint16_t)(bits + 1));
        const float middle = low + (high - low) / 2; /* exact: f32 has 13 more bits */
        const uint32_t even = bits + (bits & 1);
        cr_assert_eq(dms_f16_bits(middle), even, "between %04x and the next", bits);
        cr_assert_eq(dms_f16_bits(nextafterf(middle, 0)), bits);
        cr_assert_eq(dms_f16_bits(-nextafterf(middle, INFINITY)), 0x8000u + bits + 1);
    }
    cr_expect_eq(dms_f16_bits(65519.99f), 0x7bff);
    cr_expect_eq(dms_f16_bits(65520.0f), 0x7c00);
    cr_expect_eq(dms_f16_bits(1e-30f), 0);
}

static dms_status fetch_large(void *context, int64_t i, void *dst)
{
    (void)i;
    memcpy(dst, context, 2 * sizeof(float));
    return DMS_OK;
}

Test(safetensors, refuses_a_number_that_f16_cannot_hold)
{
    float values[2] = {1.0f, -70000.0f};
    const dms_tensor_entry large = {"w.large", DMS_F32, 1, {2}, true};
    const dms_tensor_set set = {&large, 1, fetch_large, values};
    scratch dir = scratch_open();
    cr_expect_eq(dms_safetensors_write(scratch_path(&dir, "m"), &set), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "w.large holds -70000"), "%s", dms_error_text());
    cr_expect_eq(count_files(dir.folder), 0);
    values[1] = -INFINITY; /* is what it is */
    must(dms_safetensors_write(scratch_path(&dir, "m"), &set));
    scratch_close(&dir);
}

Test(safetensors, splits_into_shards_that_read_back_as_one_model)
{
    int calls = 0;
    const dms_tensor_set set = {entries, COUNT(entries), fetch, &calls};
    for (size_t limit = 1; limit < 90; limit += 13) {
        dms_source *s;
        scratch dir = scratch_open();
        must(dms_safetensors_write_shards(dir.folder, &set, limit));
        write_bytes(scratch_path(&dir, "config.json"), "{}", 2);
        /* 74 bytes in all: one file from 74; the last three share a shard from 50, the last two
         * from 10; below, each tensor has its own. The index is one more file. */
        const int files = limit >= 74 ? 1 : limit >= 50 ? 3 : limit >= 10 ? 4 : 5;
        cr_expect_eq(count_files(dir.folder), files + 1, "limit %zu: %d files", limit,
                     count_files(dir.folder));
        must(dms_source_open(&s, dir.folder));
        expect_entries(s);
        dms_source_close(s);
        scratch_close(&dir);
    }
}

Test(safetensors, leaves_nothing_behind_and_the_old_file_whole_when_the_disk_is_full)
{
    int calls = 0;
    const dms_tensor_set set = {entries, COUNT(entries), fetch, &calls};
    dms_source *s;
    scratch dir = scratch_open();
    must(dms_safetensors_write(scratch_path(&dir, "m"), &set));
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){300, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const dms_status status = dms_safetensors_write(scratch_path(&dir, "m"), &set);
    setrlimit(RLIMIT_FSIZE, &old);
    cr_expect_eq(status, DMS_ERR_IO);
    cr_expect(strstr(dms_error_text(), "free some space"), "%s", dms_error_text());
    cr_expect_eq(count_files(dir.folder), 1);
    must(dms_source_open(&s, scratch_path(&dir, "m")));
    expect_entries(s);
    dms_source_close(s);
    scratch_close(&dir);
}

Test(safetensors, survives_a_file_cut_at_every_length_and_random_bytes)
{
    int calls = 0;
    const dms_tensor_set set = {entries, COUNT(entries), fetch, &calls};
    scratch dir = scratch_open();
    size_t n;
    uint32_t seed = 7;
    must(dms_safetensors_write(scratch_path(&dir, "m"), &set));
    char *bytes = read_bytes(scratch_path(&dir, "m"), &n);
    const char *path = strdup(scratch_path(&dir, "cut"));
    for (size_t k = 0; k < n; k++) {
        write_bytes(path, bytes, k);
        cr_expect_not(use_all(path), "cut to %zu of %zu bytes it opened", k, n);
    }
    for (int trial = 0; trial < 1000; trial++) {
        char *broken = malloc(n);
        memcpy(broken, bytes, n);
        for (uint32_t k = roll(&seed) % 4 + 1; k > 0; k--)
            broken[roll(&seed) % n] = (char)roll(&seed);
        write_bytes(path, broken, n);
        use_all(path);
        free(broken);
    }
    free(bytes);
    free((char *)(uintptr_t)path);
    scratch_close(&dir);
}

Test(safetensors, reads_the_fixtures_metadata)
{
    char path[1024];
    dms_source *s;
    must(dms_source_open(&s, fixture(path, "tiny/llama/dms_neuron.safetensors")));
    cr_expect_not_null(dms_source_text(s, "window"), "the window is in the metadata");
    const dms_tensor_info *ids = dms_source_find(s, "ids");
    cr_assert_not_null(ids);
    int32_t *x = malloc((size_t)element_count(ids) * sizeof(*x));
    if (ids->type == DMS_FILE_I32)
        must(dms_source_read(s, "ids", x, DMS_I32));
    free(x);
    dms_source_close(s);
}
