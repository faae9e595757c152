/* The bits of floating-point numbers, conversions of 16-bit types, and stubs for OpenMP. */
#ifndef LSM_FLOATBITS_H
#define LSM_FLOATBITS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_max_threads(void) { return 0; }
static inline int omp_get_num_places(void) { return 0; }
static inline int omp_get_num_procs(void) { return 0; }
static inline int omp_get_place_num_procs(int place) { return (void)place, 0; }
static inline int omp_get_thread_limit(void) { return 0; }
#endif

/* The low bits of t = n + magic are the integer n, plus the exponent bias contained in magic. Shifted into the exponent
   field they are 2**n, without a conversion to integer. */
static inline float lsm_power_of_two_f(float t)
{
    uint32_t bits;
    float scale;
    memcpy(&bits, &t, sizeof bits);
    bits <<= 23;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

static inline double lsm_power_of_two_d(double t)
{
    uint64_t bits;
    double scale;
    memcpy(&bits, &t, sizeof bits);
    bits <<= 52;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

/* v - n * L with an exact product; L is ln 2 rounded to float, (1 + LN2_ERROR) * ln 2. Without FMA, L is split into two
   numbers short enough for both products to be exact: the same bits. */
static inline float lsm_reduce_f(float v, float n)
{
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return fmaf(n, -0.693147182464599609375f, v); /* explicit: contraction of v - n * L depends on flags */
#else
    return (v - n * 0.693359375f) - n * -0.000212192535400390625f;
#endif
}

/* The bits of y minus those of limit < 0, unsigned: for -inf <= y <= limit at most the value of -inf, for any
   greater y and for NaN more. Two integer operations find the largest of many, where a floating-point maximum would
   lose a NaN. */
static inline uint32_t lsm_beyond_f(float y, float limit)
{
    uint32_t a, b;
    memcpy(&a, &y, sizeof a);
    memcpy(&b, &limit, sizeof b);
    return a - b;
}

static inline uint64_t lsm_beyond_d(double y, double limit)
{
    uint64_t a, b;
    memcpy(&a, &y, sizeof a);
    memcpy(&b, &limit, sizeof b);
    return a - b;
}

/* The bits of y as a signed integer: they increase from -0 down to -inf, and are outside that range for NaN and from +0
   up. So one integer maximum finds the smallest of many, or detects one outside. */
static inline int32_t lsm_depth_f(float y)
{
    int32_t bits;
    memcpy(&bits, &y, sizeof bits);
    return bits;
}

static inline int64_t lsm_depth_d(double y)
{
    int64_t bits;
    memcpy(&bits, &y, sizeof bits);
    return bits;
}

/* k, such that x is 2**k times a number from sqrt(1/2) to sqrt(2). */
static inline int32_t lsm_log2_above_half_root(float x)
{
    return (lsm_depth_f(x) - 0x3f3504f3) >> 23;
}

/* The exponent of x as in lsm_exponent, -126 for 0 and subnormal numbers. */
static inline int32_t lsm_exponent_f(float x)
{
    return (lsm_depth_f(x) >> 23 & 0xff) - 126;
}

/* 2**-k, if that is a normal float. */
static inline float lsm_power_of_minus(int32_t k)
{
    return lsm_power_of_two_f((float)(127 - k) + 12582912.0f);
}

/* The inverse; NaN for a value outside. */
static inline float lsm_least_f(int32_t depth)
{
    float y;
    memcpy(&y, &depth, sizeof y);
    return y <= 0 && depth < 0 ? y : NAN;
}

static inline double lsm_least_d(int64_t depth)
{
    double y;
    memcpy(&y, &depth, sizeof y);
    return y <= 0 && depth < 0 ? y : NAN;
}

/* x rounded to float, to nearest even, by integer operations: when gcc 12 vectorises a loop, it replaces
   (double)(float)x by x, so that x - (double)(float)x becomes 0. Below the normal range of float, 24 bits are kept. */
static inline double lsm_round_to_float(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += 0x0fffffff + (bits >> 29 & 1);
    bits &= ~(uint64_t)0x1fffffff;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 2**n, if that is a normal double. */
static inline double lsm_power_of_two_i(int n)
{
    return lsm_power_of_two_d((double)n + (6755399441055744.0 + 1023.0));
}

/* The exponent of a normal double x, with 1/2 <= |x| / 2**exponent < 1; unspecified for any other x. */
static inline int lsm_exponent(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (int)(bits >> 52 & 0x7ff) - 1022;
}

/* u = 2**k * f with f in [sqrt(1/2), sqrt(2)), for u >= 1; returns k as a double, by way of 2**52 + k. */
static inline double lsm_split(double u, double *f)
{
    uint64_t bits, above;
    double k;
    memcpy(&bits, &u, sizeof bits);
    above = bits - 0x3fe6a09e667f3bcd;
    bits -= above & 0xfff0000000000000;
    memcpy(f, &bits, sizeof bits);
    above = above >> 52 | 0x4330000000000000;
    memcpy(&k, &above, sizeof k);
    return k - 4503599627370496.0;
}

/* Whether the stages widen 16-bit types themselves, which triples their code: where the instructions exist, unless
   overridden (benchmarks/vectorised.py). */
#if defined(LSM_WIDENS)
#elif defined(__AVX2__) && defined(__F16C__)
#define LSM_WIDENS 1
#else
#define LSM_WIDENS 0
#endif

static inline float lsm_from_bfloat16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* To nearest even; a NaN stays a NaN. */
static inline uint16_t lsm_to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x00400000 : bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(bits >> 16);
}

/* Explicit vectors of 16 or 8: gcc 12 vectorises 32 16-bit numbers at once, and then splits the vectors again. */
static inline void lsm_from_bfloat16s(float *to, const uint16_t *x, ptrdiff_t n)
{
#if defined(__AVX512F__)
    for (; n >= 16; n -= 16, x += 16, to += 16) {
        __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
        _mm512_storeu_ps(to, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
    }
#endif
#if defined(__AVX2__)
    for (; n >= 8; n -= 8, x += 8, to += 8) {
        __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x));
        _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
    }
#endif
    for (; n > 0; n--, x++, to++)
        *to = lsm_from_bfloat16(*x);
}

/* To nearest even. */
static inline void lsm_to_bfloat16s(uint16_t *to, const float *x, ptrdiff_t n)
{
#if defined(__AVX512F__)
    for (; n >= 16; n -= 16, x += 16, to += 16) {
        __m512 v = _mm512_loadu_ps(x);
        __m512i bits = _mm512_castps_si512(v);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i to_nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        bits = _mm512_mask_or_epi32(to_nearest, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits,
                                    _mm512_set1_epi32(0x00400000));
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    }
#endif
    for (; n > 0; n--, x++, to++)
        *to = lsm_to_bfloat16(*x);
}

/* 32 numbers, the even elements first, then the odd ones: two instructions, where memory order takes six. */
static inline void lsm_from_bfloat16_pair(float *to, const uint16_t *x)
{
#if defined(__AVX512F__)
    __m512i both = _mm512_loadu_si512(x);
    _mm512_storeu_ps(to, _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
    _mm512_storeu_ps(to + 16, _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000))));
#elif defined(__AVX2__)
    for (int i = 0; i < 16; i += 8) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(x + 2 * i));
        __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000));
        _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)));
        _mm256_storeu_ps(to + 16 + i, _mm256_castsi256_ps(odd));
    }
#else
    for (int i = 0; i < 16; i++) {
        to[i] = lsm_from_bfloat16(x[2 * i]);
        to[16 + i] = lsm_from_bfloat16(x[2 * i + 1]);
    }
#endif
}

#if defined(__AVX512F__)
static inline __m512i lsm_nearest_bfloat16(const float *x)
{
    __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}
#elif defined(__AVX2__)
static inline __m256i lsm_nearest_bfloat16(const float *x)
{
    __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
#endif

/* The inverse. A NaN must be 0 in the bits that are dropped, as it is after widening bfloat16. */
static inline void lsm_to_bfloat16_pair(uint16_t *to, const float *x)
{
#if defined(__AVX512F__)
    __m512i even = _mm512_srli_epi32(lsm_nearest_bfloat16(x), 16);
    __m512i odd = _mm512_and_si512(lsm_nearest_bfloat16(x + 16), _mm512_set1_epi32((int)0xffff0000));
    _mm512_storeu_si512(to, _mm512_or_si512(even, odd));
#elif defined(__AVX2__)
    for (int i = 0; i < 16; i += 8) {
        __m256i even = _mm256_srli_epi32(lsm_nearest_bfloat16(x + i), 16);
        __m256i odd = _mm256_and_si256(lsm_nearest_bfloat16(x + 16 + i), _mm256_set1_epi32((int)0xffff0000));
        _mm256_storeu_si256((__m256i *)(to + 2 * i), _mm256_or_si256(even, odd));
    }
#else
    for (int i = 0; i < 16; i++) {
        to[2 * i] = lsm_to_bfloat16(x[i]);
        to[2 * i + 1] = lsm_to_bfloat16(x[16 + i]);
    }
#endif
}

/* Below AVX512-FP16 there is no float16 arithmetic, but conversions since F16C. */
static inline void lsm_from_half(float *to, const uint16_t *x, ptrdiff_t n)
{
#if defined(__AVX512F__)
    for (; n >= 16; n -= 16, x += 16, to += 16)
        _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)));
#endif
#if defined(__F16C__)
    for (; n >= 8; n -= 8, x += 8, to += 8)
        _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)));
#endif
    for (; n > 0; n--, x++, to++) {
        /* shift exponent and fraction into place, 2**-112 too small: exact for subnormals as well */
        uint32_t sign = (uint32_t)(*x & 0x8000) << 16, bits = (uint32_t)(*x & 0x7fff) << 13;
        float y;
        memcpy(&y, &bits, sizeof y);
        y *= 0x1p112f;
        memcpy(&bits, &y, sizeof bits);
        bits |= (*x & 0x7c00) == 0x7c00 ? sign | 0x7f800000 : sign;
        memcpy(to, &bits, sizeof bits);
    }
}

static inline uint16_t lsm_to_half_1(float x)
{
    uint32_t bits, sign, half;
    memcpy(&bits, &x, sizeof bits);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        half = 0x7e00;                                       /* NaN */
    else if (bits >= 0x477ff000)
        half = 0x7c00;                                       /* 65520 and above */
    else if (bits < 0x38800000) {                            /* subnormal: the sum rounds to multiples of 2**-24 */
        float y;
        memcpy(&y, &bits, sizeof y);
        y += 0.5f;
        memcpy(&half, &y, sizeof half);
        half -= 0x3f000000;
    } else
        half = (bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13;
    return (uint16_t)(sign | half);
}

/* To nearest even. */
static inline void lsm_to_half(uint16_t *to, const float *x, ptrdiff_t n)
{
#if defined(__AVX512F__)
    for (; n >= 16; n -= 16, x += 16, to += 16)
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(_mm512_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    for (; n >= 8; n -= 8, x += 8, to += 8)
        _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; n > 0; n--, x++, to++)
        *to = lsm_to_half_1(*x);
}

/* Sixteen numbers, without a loop: the compiler then keeps them in registers. */
static inline void lsm_from_half_lanes(float *to, const uint16_t *x)
{
#if defined(__F16C__) && !defined(__AVX512F__)
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)));
    _mm256_storeu_ps(to + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + 8))));
#else
    lsm_from_half(to, x, 16);
#endif
}

static inline void lsm_to_half_lanes(uint16_t *to, const float *x)
{
#if defined(__F16C__) && !defined(__AVX512F__)
    __m128i low = _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT);
    __m128i high = _mm256_cvtps_ph(_mm256_loadu_ps(x + 8), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256((__m256i *)to, _mm256_set_m128i(high, low));
#else
    lsm_to_half(to, x, 16);
#endif
}

#endif
