/* What Cython cannot say: the bits of a float, and OpenMP where it may be absent. */
#ifndef LSM_HELPERS_H
#define LSM_HELPERS_H

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
#endif

/* The low bits of a sum `t = n + magic` hold the integer n (plus the exponent bias that was put
   into magic).  Shifted into the exponent field they are 2**n, without a conversion to integer. */
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

/* v - n * L without rounding the product; L is ln 2 rounded to float, (1 + LN2_ERROR) * ln 2.  Where there is no
   FMA, L is taken as two numbers of so few bits that both products are exact: the same bits. */
static inline float lsm_reduce_f(float v, float n)
{
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return fmaf(n, -0.693147182464599609375f, v); /* by name: whether v - n * L becomes one depends on flags */
#else
    return (v - n * 0.693359375f) - n * -0.000212192535400390625f;
#endif
}

/* How far the bits of y lie beyond those of limit < 0, as an unsigned number: for y from limit down to -inf
   at most that of -inf, for any greater y and for NaN more.  Two integer operations find the
   largest of many, where a floating-point maximum would lose a NaN. */
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

/* x rounded to float, to nearest even, by integers: gcc 12 takes (double)(float)x for x when it makes vectors
   of a loop, so that x - (double)(float)x is 0.  Below float's normal range 24 bits are kept. */
static inline double lsm_round_to_float(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += 0x0fffffff + (bits >> 29 & 1);
    bits &= ~(uint64_t)0x1fffffff;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 2**n of a normal double. */
static inline double lsm_power_of_two_i(int n)
{
    return lsm_power_of_two_d((double)n + (6755399441055744.0 + 1023.0));
}

/* The exponent of x, a normal double with 1/2 <= |x| / 2**exponent < 1; some number for any other x. */
static inline int lsm_exponent(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (int)(bits >> 52 & 0x7ff) - 1022;
}

/* u = 2**k * f with f in [sqrt(1/2), sqrt(2)), for u >= 1; k as a double, by the way of 2**52 + k. */
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

static inline float lsm_from_bfloat16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* To the nearest, ties to even; any NaN becomes one that 16 bits can tell. */
static inline uint16_t lsm_to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x00400000 : bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(bits >> 16);
}

/* float16 has no vector instructions of its own below AVX512-FP16, but conversions since F16C. */
static inline void lsm_from_half(float *to, const uint16_t *x, ptrdiff_t n)
{
    ptrdiff_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x + i))));
#endif
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
#endif
    for (; i < n; i++) {
        /* exponent and fraction in float's places, 2**-112 too small: exact for subnormals as well */
        uint32_t sign = (uint32_t)(x[i] & 0x8000) << 16, bits = (uint32_t)(x[i] & 0x7fff) << 13;
        float y;
        memcpy(&y, &bits, sizeof y);
        y *= 0x1p112f;
        memcpy(&bits, &y, sizeof bits);
        bits |= (x[i] & 0x7c00) == 0x7c00 ? sign | 0x7f800000 : sign;
        memcpy(to + i, &bits, sizeof bits);
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

/* To the nearest, ties to even. */
static inline void lsm_to_half(uint16_t *to, const float *x, ptrdiff_t n)
{
    ptrdiff_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++)
        to[i] = lsm_to_half_1(x[i]);
}

/* n < 64 numbers, and `fill` after them up to 64: a call of memcpy takes 12 ns, of 400 that 1000 classes take.
   AddressSanitizer does not look at masked loads, but at memcpy. */
static inline void lsm_pad_f(float *to, const float *x, ptrdiff_t n, float fill)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    uint64_t mask = ((uint64_t)1 << n) - 1;
    for (int i = 0; i < 4; i++)
        _mm512_storeu_ps(to + 16 * i,
                         _mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)(mask >> 16 * i), x + 16 * i));
#elif defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__)
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32((int)n);
    for (int i = 0; i < 8; i++, lane = _mm256_add_epi32(lane, _mm256_set1_epi32(8))) {
        __m256i mask = _mm256_cmpgt_epi32(count, lane);
        __m256 v = _mm256_maskload_ps(x + 8 * i, mask);
        _mm256_storeu_ps(to + 8 * i, _mm256_blendv_ps(_mm256_set1_ps(fill), v, _mm256_castsi256_ps(mask)));
    }
#else
    for (int i = 0; i < 64; i++)
        to[i] = fill;
    memcpy(to, x, (size_t)n * sizeof *x);
#endif
}

static inline void lsm_pad_d(double *to, const double *x, ptrdiff_t n, double fill)
{
    for (int i = 0; i < 64; i++)
        to[i] = fill;
    memcpy(to, x, (size_t)n * sizeof *x);
}

/* Ask for the cache lines of n bytes from p on, for the first cache if `near`, else for the second.
   Never faults, so it may look past an array's end. */
static inline void lsm_prefetch(const void *p, size_t n, int near)
{
#if defined(__GNUC__)
    const char *c = (const char *)p;
    if (near)
        for (size_t i = 0; i < n; i += 64)
            __builtin_prefetch(c + i, 0, 3);
    else
        for (size_t i = 0; i < n; i += 64)
            __builtin_prefetch(c + i, 0, 2);
#endif
}

/* Copy n bytes past the cache: a result that is larger than the cache is not read before it is evicted,
   and a plain store would read every line from memory first. */
static inline void lsm_stream(void *to, const void *from, size_t n)
{
#if defined(__SSE2__)
    char *t = (char *)to;
    const char *f = (const char *)from;
    size_t head = (64 - ((uintptr_t)t & 63)) & 63;
    if (head > n)
        head = n;
    memcpy(t, f, head);
    for (n -= head, t += head, f += head; n >= 64; n -= 64, t += 64, f += 64) {
#if defined(__AVX512F__)
        _mm512_stream_si512((__m512i *)t, _mm512_loadu_si512(f));
#elif defined(__AVX__)
        _mm256_stream_si256((__m256i *)t, _mm256_loadu_si256((const __m256i *)f));
        _mm256_stream_si256((__m256i *)t + 1, _mm256_loadu_si256((const __m256i *)f + 1));
#else
        for (int i = 0; i < 4; i++)
            _mm_stream_si128((__m128i *)t + i, _mm_loadu_si128((const __m128i *)f + i));
#endif
    }
    memcpy(t, f, n);
#else
    memcpy(to, from, n);
#endif
}

/* to[c * step_to + r] = from[r * step_from + c] for n_rows rows of n_columns.  Four by four where there are as many:
   a quarter of the time of single moves.  The last four columns overlap those before, which changes nothing. */
static inline void lsm_transpose_f(float *to, ptrdiff_t step_to, const float *from, ptrdiff_t step_from,
                                   ptrdiff_t n_rows, ptrdiff_t n_columns)
{
    ptrdiff_t r = 0, c;
#if defined(__SSE2__)
    if (n_columns >= 4)
        for (; r + 4 <= n_rows; r += 4)
            for (c = 0; c < n_columns; c += 4) {
                ptrdiff_t i = c + 4 <= n_columns ? c : n_columns - 4;
                const float *f = from + r * step_from + i;
                float *t = to + i * step_to + r;
                __m128 p = _mm_loadu_ps(f), q = _mm_loadu_ps(f + step_from);
                __m128 u = _mm_loadu_ps(f + 2 * step_from), v = _mm_loadu_ps(f + 3 * step_from);
                _MM_TRANSPOSE4_PS(p, q, u, v);
                _mm_storeu_ps(t, p);
                _mm_storeu_ps(t + step_to, q);
                _mm_storeu_ps(t + 2 * step_to, u);
                _mm_storeu_ps(t + 3 * step_to, v);
            }
#endif
    for (; r < n_rows; r++)
        for (c = 0; c < n_columns; c++)
            to[c * step_to + r] = from[r * step_from + c];
}

static inline void lsm_transpose_d(double *to, ptrdiff_t step_to, const double *from, ptrdiff_t step_from,
                                   ptrdiff_t n_rows, ptrdiff_t n_columns)
{
    ptrdiff_t r = 0, c;
#if defined(__SSE2__)
    if (n_columns >= 2)
        for (; r + 2 <= n_rows; r += 2)
            for (c = 0; c < n_columns; c += 2) {
                ptrdiff_t i = c + 2 <= n_columns ? c : n_columns - 2;
                const double *f = from + r * step_from + i;
                double *t = to + i * step_to + r;
                __m128d p = _mm_loadu_pd(f), q = _mm_loadu_pd(f + step_from);
                _mm_storeu_pd(t, _mm_unpacklo_pd(p, q));
                _mm_storeu_pd(t + step_to, _mm_unpackhi_pd(p, q));
            }
#endif
    for (; r < n_rows; r++)
        for (c = 0; c < n_columns; c++)
            to[c * step_to + r] = from[r * step_from + c];
}

/* Read n_x bytes and write n_y, those of x as far as they go, past the cache: what limits any function that
   does as much.  What is read beyond is added up, and the sum written, so that it is not left out. */
static inline void lsm_stream_through(void *y, size_t n_y, const void *x, size_t n_x)
{
    const char *f = (const char *)x;
    char *t = (char *)y;
    size_t n = n_x < n_y ? n_x : n_y, i;
    unsigned char sum = 0;
    lsm_stream(t, f, n);
    for (i = n; i < n_x; i++)
        sum += (unsigned char)f[i];
    if (n_x > n_y && n_y > 0)
        t[0] ^= sum == 255 ? 1 : 0;
    while (n > 0 && n < n_y) {
        size_t more = n < n_y - n ? n : n_y - n;
        lsm_stream(t + n, f, more);
        n += more;
    }
}

/* to = a + b, past the cache. */
static inline void lsm_stream_add(float *to, const float *a, const float *b, size_t n)
{
    float sum[1024];
    size_t i, k, m;
    for (i = 0; i < n; i += m) {
        m = n - i < 1024 ? n - i : 1024;
        for (k = 0; k < m; k++)
            sum[k] = a[i + k] + b[i + k];
        lsm_stream(to + i, sum, m * sizeof *sum);
    }
}

/* Order streamed stores before whatever tells another thread that they are done. */
static inline void lsm_stream_fence(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
