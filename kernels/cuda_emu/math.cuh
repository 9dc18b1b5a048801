/* Device functions that the C library lacks: fast math, conversions, bits, cached loads. The fast
 * forms are as exact here as the plain ones. */
#ifndef DMS_CUDA_EMU_MATH_CUH
#define DMS_CUDA_EMU_MATH_CUH

#include <math.h>
#include <stdint.h>
#include <string.h>

#define DMS_EMU_UNARY_(name, call) \
    inline float name(float x)     \
    {                              \
        return call;               \
    }
DMS_EMU_UNARY_(__expf, expf(x))
DMS_EMU_UNARY_(__exp10f, exp10f(x))
DMS_EMU_UNARY_(dms_exp2, exp2f(x))
DMS_EMU_UNARY_(__logf, logf(x))
DMS_EMU_UNARY_(__log2f, log2f(x))
DMS_EMU_UNARY_(__log10f, log10f(x))
DMS_EMU_UNARY_(__sinf, sinf(x))
DMS_EMU_UNARY_(__cosf, cosf(x))
DMS_EMU_UNARY_(__tanf, tanf(x))
DMS_EMU_UNARY_(__frcp_rn, 1.0f / x)
DMS_EMU_UNARY_(__fsqrt_rn, sqrtf(x))
DMS_EMU_UNARY_(__frsqrt_rn, 1.0f / sqrtf(x))
DMS_EMU_UNARY_(rsqrtf, 1.0f / sqrtf(x))
DMS_EMU_UNARY_(__saturatef, x > 0.0f ? fminf(x, 1.0f) : 0.0f)

#define DMS_EMU_BINARY_(name, call)     \
    inline float name(float x, float y) \
    {                                   \
        return call;                    \
    }
DMS_EMU_BINARY_(__powf, powf(x, y))
DMS_EMU_BINARY_(__fdividef, x / y)
DMS_EMU_BINARY_(fdividef, x / y)
DMS_EMU_BINARY_(__fdiv_rn, x / y)
DMS_EMU_BINARY_(__fadd_rn, x + y)
DMS_EMU_BINARY_(__fsub_rn, x - y)
DMS_EMU_BINARY_(__fmul_rn, x *y)

inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}

inline float __fmaf_rn(float x, float y, float z)
{
    return fmaf(x, y, z);
}

inline void __sincosf(float x, float *sine, float *cosine)
{
    *sine = sinf(x);
    *cosine = cosf(x);
}

/* The bits of one type as another. */
#define DMS_EMU_BITS_(name, To, From)   \
    inline To name(From from)           \
    {                                   \
        To to;                          \
        memcpy(&to, &from, sizeof(to)); \
        return to;                      \
    }
DMS_EMU_BITS_(__float_as_int, int, float)
DMS_EMU_BITS_(__float_as_uint, unsigned, float)
DMS_EMU_BITS_(__int_as_float, float, int)
DMS_EMU_BITS_(__uint_as_float, float, unsigned)
DMS_EMU_BITS_(__double_as_longlong, long long, double)
DMS_EMU_BITS_(__longlong_as_double, double, long long)

inline int __float2int_rn(float x)
{
    return static_cast<int>(lrintf(x));
}

inline int __float2int_rz(float x)
{
    return static_cast<int>(x);
}

inline int __float2int_rd(float x)
{
    return static_cast<int>(floorf(x));
}

inline int __float2int_ru(float x)
{
    return static_cast<int>(ceilf(x));
}

inline float __int2float_rn(int x)
{
    return static_cast<float>(x);
}

inline float __uint2float_rn(unsigned x)
{
    return static_cast<float>(x);
}

inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}

inline int __clz(int x)
{
    return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}

inline int __clzll(long long x)
{
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}

inline unsigned __brev(unsigned x)
{
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++)
        reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}

inline unsigned __umulhi(unsigned x, unsigned y)
{
    return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32);
}

inline int __mulhi(int x, int y)
{
    return static_cast<int>(static_cast<int64_t>(x) * y >> 32);
}

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both << (shift & 31) >> 32);
}

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both >> (shift & 31));
}

#define DMS_EMU_MIN_MAX_(T)   \
    inline T min(T a, T b)    \
    {                         \
        return b < a ? b : a; \
    }                         \
    inline T max(T a, T b)    \
    {                         \
        return a < b ? b : a; \
    }
DMS_EMU_MIN_MAX_(int)
DMS_EMU_MIN_MAX_(unsigned)
DMS_EMU_MIN_MAX_(long)
DMS_EMU_MIN_MAX_(unsigned long)
DMS_EMU_MIN_MAX_(long long)
DMS_EMU_MIN_MAX_(unsigned long long)

/* As fminf and fmaxf: the other one if one is NaN. */
inline float min(float a, float b)
{
    return fminf(a, b);
}

inline float max(float a, float b)
{
    return fmaxf(a, b);
}

inline double min(double a, double b)
{
    return fmin(a, b);
}

inline double max(double a, double b)
{
    return fmax(a, b);
}

/* Loads and stores that differ in how they use the caches. */
#define DMS_EMU_LOAD_(name)                       \
    template <class T> inline T name(const T *at) \
    {                                             \
        return *at;                               \
    }
DMS_EMU_LOAD_(__ldg)
DMS_EMU_LOAD_(__ldca)
DMS_EMU_LOAD_(__ldcg)
DMS_EMU_LOAD_(__ldcs)
DMS_EMU_LOAD_(__ldlu)
DMS_EMU_LOAD_(__ldcv)

#define DMS_EMU_STORE_(name)                            \
    template <class T> inline void name(T *at, T value) \
    {                                                   \
        *at = value;                                    \
    }
DMS_EMU_STORE_(__stwb)
DMS_EMU_STORE_(__stcg)
DMS_EMU_STORE_(__stcs)
DMS_EMU_STORE_(__stwt)

/* One thread runs at a time: what it wrote is seen by the next. */
inline void __threadfence()
{
}

inline void __threadfence_block()
{
}

inline void __threadfence_system()
{
}

#endif
