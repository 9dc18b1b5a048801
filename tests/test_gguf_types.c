/* Every type that a GGUF file stores numbers in: the numbers, and the model that is made of them.
 */
#include "checkpoints/gguf_dequant.h"
#include "kernels/bf16.h"
#include "tests/fixtures.h"
#include "tests/logits.h"

/* Names of the fixtures; a file mixes types. */
static const char *const types[] = {"F32",  "F16",    "BF16",   "Q8_0",   "Q4_0",
                                    "Q4_1", "Q5_0",   "Q5_1",   "Q2_K",   "Q3_K_M",
                                    "Q6_K", "Q4_K_M", "Q5_K_M", "IQ4_NL", "IQ4_XS"};

static dms_source *open_fixture(const char *name)
{
    char path[1024];
    dms_source *s;
    must(dms_source_open(&s, fixture(path, name)));
    return s;
}

static dms_source *open_type(const char *type)
{
    char name[64];
    snprintf(name, sizeof(name), "gguf/tiny-%s.gguf", type);
    return open_fixture(name);
}

/* Every definition here fixes the order of its few roundings, so the bits are the reference's. */
static void expect_rows(const dms_source *model, const dms_source *reference, const char *type,
                        const char *part)
{
    char name[128], key[128];
    int64_t n, all;
    snprintf(name, sizeof(name), "model.layers.0.%s.weight", part);
    snprintf(key, sizeof(key), "%s.%s", type, part);
    float *want = read_f32(reference, key, &n);
    float *got = read_f32(model, name, &all); /* the reference has the first rows */
    cr_assert_leq(n, all);
    for (int64_t i = 0; i < n; i++)
        cr_assert(got[i] == want[i], "%s[%lld] is %.9g, expected %.9g", key, (long long)i,
                  (double)got[i], (double)want[i]);
    free(want);
    free(got);
}

Test(gguf_types, each_dequantises_to_the_bits_of_the_reference)
{
    dms_source *reference = open_fixture("gguf/reference.safetensors");
    bool seen[DMS_FILE_OTHER + 1] = {false};
    for (size_t i = 0; i < COUNT(types); i++) {
        dms_source *model = open_type(types[i]);
        expect_rows(model, reference, types[i], "mlp.down_proj");
        expect_rows(model, reference, types[i], "self_attn.q_proj");
        for (int64_t k = 0; k < dms_source_count(model); k++)
            seen[dms_source_info(model, k)->type] = true;
        dms_source_close(model);
    }
    for (int t = 0; t < DMS_FILE_OTHER; t++)
        cr_expect(seen[t] || t == DMS_FILE_I32 || t == DMS_FILE_I64, "no fixture has %s",
                  dms_file_type_name((dms_file_type)t));
    dms_source_close(reference);
}

Test(gguf_types, a_model_of_each_has_the_logits_of_the_reference)
{
    dms_source *reference = open_fixture("gguf/reference.safetensors");
    int32_t ids[32];
    must(dms_source_read(reference, "ids", ids, DMS_I32));
    for (size_t i = 0; i < COUNT(types); i++) {
        char path[1024], name[64], key[64];
        int64_t n, vocab;
        snprintf(name, sizeof(name), "gguf/tiny-%s.gguf", types[i]);
        snprintf(key, sizeof(key), "%s.logits", types[i]);
        float *want = read_f32(reference, key, &n);
        float *got = dense_logits(fixture(path, name), ids, 32, &vocab);
        cr_assert_eq(n, 32 * vocab);
        const double most = largest_difference(got, want, n);
        cr_expect(most <= 2e-4, "%s: off by %g", types[i], most);
        free(want);
        free(got);
    }
    dms_source_close(reference);
}

/* bf16 is f32 rounded once, whatever way was taken. */
Test(gguf_types, each_becomes_the_bf16_that_its_f32_rounds_to)
{
    for (size_t i = 0; i < COUNT(types); i++) {
        dms_source *s = open_type(types[i]);
        for (int64_t k = 0; k < dms_source_count(s); k++) {
            const char *name = dms_source_info(s, k)->name;
            int64_t n;
            float *wide = read_f32(s, name, &n);
            uint16_t *narrow = malloc((size_t)n * sizeof(*narrow));
            must(dms_source_read(s, name, narrow, DMS_BF16));
            for (int64_t j = 0; j < n; j++)
                cr_assert_eq(narrow[j], dms_bf16_from_f32(wide[j]), "%s %s[%lld]", types[i], name,
                             (long long)j);
            free(wide);
            free(narrow);
        }
        dms_source_close(s);
    }
}

/* All scales, infinite and NaN among them, with all quants: 2^24 products. */
Test(gguf_types, q8_0_becomes_the_bf16_of_the_definition_for_every_scale_and_quant)
{
    enum { BLOCKS = 8 };
    uint8_t x[BLOCKS * 34];
    uint16_t y[BLOCKS * 32];
    for (uint32_t h = 0; h < 0x10000; h++) {
        const float d = dms_f16_to_f32((uint16_t)h);
        for (int b = 0; b < BLOCKS; b++) {
            x[34 * b] = (uint8_t)h;
            x[34 * b + 1] = (uint8_t)(h >> 8);
            for (int i = 0; i < 32; i++)
                x[34 * b + 2 + i] = (uint8_t)(32 * b + i);
        }
        dms_q8_0_to_bf16(y, x, BLOCKS * 32);
        for (int i = 0; i < 256; i++)
            cr_assert(y[i] == dms_bf16_from_f32((float)(int8_t)i * d), "scale %x, quant %d: %x", h,
                      (int8_t)i, y[i]);
    }
}

/* Large tensors are written past the caches; one block's scale is infinite. */
Test(gguf_types, q8_0_of_a_large_tensor_becomes_the_bf16_of_its_f32)
{
    enum { LARGE = (1 << 13) + 5, PLACES = 2 };
    uint32_t seed = 5;
    const size_t n = (size_t)LARGE * 32;
    uint8_t *x = malloc((size_t)LARGE * 34);
    float *wide = malloc(n * sizeof(*wide));
    uint16_t *y = aligned_alloc(64, (2 * n + 127) / 64 * 64);
    cr_assert(x && wide && y);
    for (size_t i = 0; i < (size_t)LARGE * 34; i++)
        x[i] = (uint8_t)(i % 34 == 1 ? roll(&seed) >> 3 & 0x3b : roll(&seed) >> 5);
    x[34 * 4000 + 1] = 0x7c;
    x[34 * 4000] = 0;
    dms_gguf_dequant(DMS_FILE_Q8_0)(wide, x, (int64_t)n);
    for (size_t at = 0; at < PLACES; at++) { /* the second is not aligned */
        dms_q8_0_to_bf16(y + at, x, (int64_t)n);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(y[at + i], dms_bf16_from_f32(wide[i]), "element %zu", i);
    }
    free(x);
    free(wide);
    free(y);
}

Test(gguf_types, q8_0_is_written_as_the_nearest_step_of_its_block)
{
    uint32_t seed = 3;
    float x[32], back[32];
    uint8_t block[34];
    for (int trial = 0; trial < 1000; trial++) {
        float most = 0;
        for (int i = 0; i < 32; i++) {
            x[i] = ldexpf((float)roll(&seed) / 8388608 - 1, (int)(roll(&seed) % 8) - 4);
            most = fmaxf(most, fabsf(x[i]));
        }
        dms_q8_0_from_f32(block, x, 32);
        dms_gguf_dequant(DMS_FILE_Q8_0)(back, block, 32);
        /* half a step, and the step itself is rounded to 11 bits: at most 127 such errors */
        for (int i = 0; i < 32; i++)
            cr_assert(fabsf(back[i] - x[i]) <= most / 127 * (0.5f + 127 * 0x1p-11f) + 1e-7f);
    }
    const float zeros[32] = {0};
    dms_q8_0_from_f32(block, zeros, 32);
    for (int i = 0; i < 34; i++)
        cr_expect_eq(block[i], 0);
}
