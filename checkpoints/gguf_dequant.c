#include "checkpoints/gguf_dequant.h"

#include <math.h>
#include <string.h>

#include "checkpoints/f16.h"
#include "kernels/bf16.h"

/* Block layouts and formulas: ggml's quantised types (ggml-common.h, ggml-quants.c of llama.cpp).
 * A small block has 32 elements, a large one (K, IQ4_XS) 256. */

static float half_at(const uint8_t *x)
{
    return dms_f16_to_f32((uint16_t)(x[0] | x[1] << 8));
}

/* f16 d, 32 int8 q; y = d q. */
static void widen_q8_0(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 34) {
        const float d = half_at(x);
        for (int i = 0; i < 32; i++)
            y[i] = (float)(int8_t)x[2 + i] * d;
    }
}

/* f16 d, 16 bytes: element i in the low nibble of byte i, element i + 16 in its high nibble;
 * y = d (q - 8). */
static void widen_q4_0(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 18) {
        const float d = half_at(x);
        for (int i = 0; i < 16; i++) {
            y[i] = (float)((x[2 + i] & 15) - 8) * d;
            y[i + 16] = (float)((x[2 + i] >> 4) - 8) * d;
        }
    }
}

/* f16 d, f16 m, nibbles as in Q4_0; y = d q + m. */
static void widen_q4_1(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 20) {
        const float d = half_at(x), m = half_at(x + 2);
        for (int i = 0; i < 16; i++) {
            y[i] = (float)(x[4 + i] & 15) * d + m;
            y[i + 16] = (float)(x[4 + i] >> 4) * d + m;
        }
    }
}

/* Element i of a block of five bits: nibbles as in Q4_0, bit i of four bytes is the fifth. */
static int five_bits(const uint8_t *high, const uint8_t *low, int i)
{
    const int nibble = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
    return nibble | (high[i / 8] >> (i % 8) & 1) << 4;
}

/* f16 d, 4 bytes of fifth bits, 16 bytes of nibbles; y = d (q - 16). */
static void widen_q5_0(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 22) {
        const float d = half_at(x);
        for (int i = 0; i < 32; i++)
            y[i] = (float)(five_bits(x + 2, x + 6, i) - 16) * d;
    }
}

/* f16 d, f16 m, then as Q5_0; y = d q + m. */
static void widen_q5_1(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 24) {
        const float d = half_at(x), m = half_at(x + 2);
        for (int i = 0; i < 32; i++)
            y[i] = (float)five_bits(x + 4, x + 8, i) * d + m;
    }
}

/* 16 bytes of scale (low nibble) and minimum (high) for 16 elements each, 64 bytes of bit pairs,
 * f16 d, f16 dmin; y = d scale q - dmin minimum. Of 128 elements, number 32 j + l is bit pair j of
 * byte l. */
static void widen_q2_k(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 256, y += 256, x += 84) {
        const float d = half_at(x + 80), dmin = half_at(x + 82);
        for (int i = 0; i < 256; i++) {
            const float step = d * (float)(x[i / 16] & 15), low = dmin * (float)(x[i / 16] >> 4);
            const int q = x[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            y[i] = step * (float)q - low;
        }
    }
}

/* 32 bytes of third bits, 64 bytes of bit pairs as in Q2_K, 12 bytes with 16 scales of six bits,
 * f16 d; y = d (scale - 32) (q - 4), q of three bits. The scales' low nibbles are in 8 bytes (the
 * second 8 in the high halves), their upper bit pairs in 4 (scale k: pair k / 4 of byte k % 4). */
static void widen_q3_k(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 256, y += 256, x += 110) {
        const uint8_t *scales = x + 96;
        const float d = half_at(x + 108);
        for (int i = 0; i < 256; i++) {
            const int k = i / 16, low = scales[k % 8] >> (k / 8 * 4) & 15;
            const int scale = (low | (scales[8 + k % 4] >> (k / 4 * 2) & 3) << 4) - 32;
            const int pair = x[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            const int third = x[i % 32] >> (i / 32) & 1;
            y[i] = d * (float)scale * (float)((pair | third << 2) - 4);
        }
    }
}

/* Scale and minimum k of 8, six bits each, packed in 12 bytes (Q4_K, Q5_K): 4 and 4 in the low six
 * bits of 8 bytes, the rest as nibbles of 4 bytes and those 8 bytes' upper bit pairs. */
static void six_bits(int *scale, int *minimum, const uint8_t *packed, int k)
{
    if (k < 4) {
        *scale = packed[k] & 63;
        *minimum = packed[k + 4] & 63;
        return;
    }
    *scale = (packed[k + 4] & 15) | packed[k - 4] >> 6 << 4;
    *minimum = packed[k + 4] >> 4 | packed[k] >> 6 << 4;
}

/* f16 d, f16 dmin, 12 bytes of scales and minima for 32 elements each, [Q5_K: 32 bytes of fifth
 * bits, bit k of byte l for element 32 k + l,] 128 bytes of nibbles: of 64 elements the first 32
 * low, the others high; y = d scale q - dmin minimum. */
static void widen_q45_k(float *y, const uint8_t *x, const uint8_t *fifth, const uint8_t *nibbles)
{
    const float d = half_at(x), dmin = half_at(x + 2);
    for (int k = 0; k < 8; k++) {
        int scale, minimum;
        six_bits(&scale, &minimum, x + 4, k);
        const float step = d * (float)scale, low = dmin * (float)minimum;
        for (int l = 0; l < 32; l++) {
            const int nibble = nibbles[k / 2 * 32 + l] >> (k % 2 * 4) & 15;
            const int q = nibble | (fifth ? (fifth[l] >> k & 1) << 4 : 0);
            y[32 * k + l] = step * (float)q - low;
        }
    }
}

static void widen_q4_k(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 256, y += 256, x += 144)
        widen_q45_k(y, x, NULL, x + 16);
}

static void widen_q5_k(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 256, y += 256, x += 176)
        widen_q45_k(y, x, x + 16, x + 48);
}

/* Half a Q6_K block: 128 elements from 64 bytes of low nibbles, 32 bytes of upper bit pairs, 8
 * scales of 16 elements each. */
static void widen_q6_half(float *y, const uint8_t *low, const uint8_t *high, const int8_t *scale,
                          float d)
{
    for (int part = 0; part < 4; part++)
        for (int i = 0; i < 32; i++) {
            const int nibble = low[32 * (part & 1) + i] >> (part & 2 ? 4 : 0) & 15;
            const int q = (nibble | (high[i] >> (2 * part) & 3) << 4) - 32;
            y[32 * part + i] = d * (float)scale[2 * part + i / 16] * (float)q;
        }
}

/* 128 bytes low, 64 bytes high, 16 int8 scales, f16 d; y = d scale (q - 32). */
static void widen_q6_k(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 256, y += 256, x += 210) {
        int8_t scale[16];
        memcpy(scale, x + 192, sizeof(scale));
        const float d = half_at(x + 208);
        widen_q6_half(y, x, x + 128, scale, d);
        widen_q6_half(y + 128, x + 64, x + 160, scale + 8, d);
    }
}

/* The 16 levels of the IQ4 types. */
static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

/* f16 d, nibbles as in Q4_0; y = d level[q]. */
static void widen_iq4_nl(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 18) {
        const float d = half_at(x);
        for (int i = 0; i < 16; i++) {
            y[i] = d * (float)levels[x[2 + i] & 15];
            y[i + 16] = d * (float)levels[x[2 + i] >> 4];
        }
    }
}

/* f16 d, 16 bits and 4 bytes with 8 scales of six bits (upper pairs, low nibbles), then 8 times 16
 * bytes of nibbles as in Q4_0; y = d (scale - 32) level[q]. */
static void widen_iq4_xs(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 256, y += 256, x += 136) {
        const float d = half_at(x);
        const int upper = x[2] | x[3] << 8;
        for (int k = 0; k < 8; k++) {
            const int low = x[4 + k / 2] >> (k % 2 * 4) & 15;
            const float step = d * (float)((low | (upper >> (2 * k) & 3) << 4) - 32);
            const uint8_t *nibbles = x + 8 + 16 * k;
            for (int i = 0; i < 16; i++) {
                y[32 * k + i] = step * (float)levels[nibbles[i] & 15];
                y[32 * k + i + 16] = step * (float)levels[nibbles[i] >> 4];
            }
        }
    }
}

dms_widen_fn *dms_gguf_dequant(dms_file_type type)
{
    static dms_widen_fn *const table[] = {
        [DMS_FILE_Q8_0] = widen_q8_0,     [DMS_FILE_Q4_0] = widen_q4_0,
        [DMS_FILE_Q4_1] = widen_q4_1,     [DMS_FILE_Q5_0] = widen_q5_0,
        [DMS_FILE_Q5_1] = widen_q5_1,     [DMS_FILE_Q2_K] = widen_q2_k,
        [DMS_FILE_Q3_K] = widen_q3_k,     [DMS_FILE_Q4_K] = widen_q4_k,
        [DMS_FILE_Q5_K] = widen_q5_k,     [DMS_FILE_Q6_K] = widen_q6_k,
        [DMS_FILE_IQ4_NL] = widen_iq4_nl, [DMS_FILE_IQ4_XS] = widen_iq4_xs,
        [DMS_FILE_OTHER] = NULL};
    return table[type];
}

/* ---- Q8_0, the type that files are written in ----------------------------------------------- */

/* Whether a block's scale is infinite or a NaN. */
static bool is_wild(const uint8_t *x)
{
    return (x[1] & 0x7c) == 0x7c;
}

/* Blocks up to the first with a wild scale; how many they were. In these no product is a NaN or
 * infinite (65504 * 128 is far from the limit), so rounding is one addition. */
static int64_t round_base(uint16_t *y, const uint8_t *x, int64_t blocks)
{
    int64_t k = 0;
    for (; k < blocks && !is_wild(x); k++, y += 32, x += 34) {
        const float d = half_at(x);
        for (int i = 0; i < 32; i++) {
            const float value = (float)(int8_t)x[2 + i] * d;
            uint32_t bits;
            memcpy(&bits, &value, sizeof(bits));
            y[i] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
        }
    }
    return k;
}

typedef int64_t round_fn(uint16_t *y, const uint8_t *x, int64_t blocks);

#ifdef __x86_64__
#include <immintrin.h>

/* The same with vectors. What is larger than a second-level cache goes past the caches: it is not
 * read again soon, and a line that is written whole needs no fetching first. */
static bool goes_past_caches(const uint16_t *y, int64_t blocks)
{
    return blocks >= 1 << 13 && (uintptr_t)y % 64 == 0; /* of 64 bytes as bf16 */
}

#define V4 __attribute__((target("avx512f,avx512bw,f16c")))
#define V3 __attribute__((target("avx2,f16c")))
#define V4_BF16 __attribute__((target("avx512f,avx512bw,avx512bf16,f16c")))

V3 static float half_v3(const uint8_t *x)
{
    return _cvtsh_ss((unsigned short)(x[0] | x[1] << 8));
}

V4 static __m256i round16_v4(const uint8_t *x, __m512 d)
{
    const __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)x));
    const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(q), d));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}

V4 static void put_v4(uint16_t *y, __m512i block, bool past)
{
    if (past)
        _mm512_stream_si512((void *)y, block);
    else
        _mm512_storeu_si512((void *)y, block);
}

V4 static int64_t round_v4(uint16_t *y, const uint8_t *x, int64_t blocks)
{
    const bool past = goes_past_caches(y, blocks);
    int64_t k = 0;
    for (; k < blocks && !is_wild(x); k++, y += 32, x += 34) {
        const __m512 d = _mm512_set1_ps(half_v3(x));
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(round16_v4(x + 2, d)),
                                                round16_v4(x + 18, d), 1);
        put_v4(y, both, past);
    }
    if (past)
        _mm_sfence();
    return k;
}

/* 16 products, exact: 8 bits by 11. */
V4_BF16 static __m512 scaled_v4(const uint8_t *x, __m512 d)
{
    const __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)x));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(q), d);
}

/* With the processor's own rounding. It takes subnormal numbers for 0, but a product is 0 or at
 * least 2^-24. */
V4_BF16 static int64_t round_v4_bf16(uint16_t *y, const uint8_t *x, int64_t blocks)
{
    const bool past = goes_past_caches(y, blocks);
    int64_t k = 0;
    for (; k < blocks && !is_wild(x); k++, y += 32, x += 34) {
        /* the processor's own prefetching stops at each page */
        _mm_prefetch((const char *)((uintptr_t)x + 2048), _MM_HINT_NTA);
        const __m512 d = _mm512_set1_ps(half_v3(x));
        const __m512i both =
            (__m512i)_mm512_cvtne2ps_pbh(scaled_v4(x + 18, d), scaled_v4(x + 2, d));
        put_v4(y, both, past);
    }
    if (past)
        _mm_sfence();
    return k;
}

V3 static __m256i round8_v3(const uint8_t *x, __m256 d)
{
    const __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)x));
    const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(q), d));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    return _mm256_srli_epi32(sum, 16);
}

V3 static int64_t round_v3(uint16_t *y, const uint8_t *x, int64_t blocks)
{
    const bool past = goes_past_caches(y, blocks);
    int64_t k = 0;
    for (; k < blocks && !is_wild(x); k++, y += 32, x += 34) {
        const __m256 d = _mm256_set1_ps(half_v3(x));
        for (int i = 0; i < 32; i += 16) { /* packing takes quarters in turn */
            const __m256i packed =
                _mm256_packus_epi32(round8_v3(x + 2 + i, d), round8_v3(x + 10 + i, d));
            const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);
            if (past)
                _mm256_stream_si256((void *)(y + i), ordered);
            else
                _mm256_storeu_si256((void *)(y + i), ordered);
        }
    }
    if (past)
        _mm_sfence();
    return k;
}

static round_fn *choose_round(void)
{
    /* Every processor with AVX2 has F16C (x86-64-v3), a name that clang 14 cannot ask for. */
    if (!__builtin_cpu_supports("avx2"))
        return round_base;
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw"))
        return round_v4_bf16;
    return __builtin_cpu_supports("avx512bw") ? round_v4 : round_v3; /* bw includes f */
}
#else
static round_fn *choose_round(void)
{
    return round_base;
}
#endif

void dms_q8_0_to_bf16(uint16_t *y, const uint8_t *x, int64_t n)
{
    round_fn *round_tame = choose_round();
    for (int64_t k = 0, blocks = n / 32; k < blocks; k++) {
        float wide[32];
        k += round_tame(y + 32 * k, x + 34 * k, blocks - k);
        if (k == blocks)
            return;
        widen_q8_0(wide, x + 34 * k, 32);
        for (int i = 0; i < 32; i++)
            y[32 * k + i] = dms_bf16_from_f32(wide[i]);
    }
}

void dms_q8_0_from_f32(uint8_t *y, const float *x, int64_t n)
{
    for (; n > 0; n -= 32, x += 32, y += 34) {
        float most = 0;
        for (int i = 0; i < 32; i++)
            most = fmaxf(most, fabsf(x[i]));
        const float d = most / 127, inverse = d != 0 ? 1 / d : 0;
        const uint16_t half = dms_f16_bits(d);
        y[0] = (uint8_t)half;
        y[1] = (uint8_t)(half >> 8);
        for (int i = 0; i < 32; i++)
            y[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inverse);
    }
}
