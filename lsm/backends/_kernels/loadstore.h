/* Loads, stores, nontemporal stores and prefetches. */
#ifndef LSM_LOADSTORE_H
#define LSM_LOADSTORE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* Copy n < 64 numbers and fill up to `width`, a multiple of 16. A call of memcpy takes 12 ns of the 400 for 1000
   classes. AddressSanitizer checks memcpy, but not masked loads and stores. */
static inline void lsm_pad_f(float *to, const float *x, ptrdiff_t n, ptrdiff_t width, float fill)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    uint64_t mask = ((uint64_t)1 << n) - 1;
    for (ptrdiff_t i = 0; i < width; i += 16, mask >>= 16)
        _mm512_storeu_ps(to + i, _mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)mask, x + i));
#elif defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__)
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), left = _mm256_set1_epi32((int)(n & 7));
    __m256i mask = _mm256_cmpgt_epi32(left, lane);
    __m256 v;
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_loadu_ps(x + i));
    if (n >= 8) /* the last 8 numbers, rotated so that the remainder comes first */
        v = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + n - 8),
                                     _mm256_add_epi32(lane, _mm256_sub_epi32(_mm256_set1_epi32(8), left)));
    else
        v = _mm256_maskload_ps(x, mask);
    if (i < width)
        _mm256_storeu_ps(to + i, _mm256_blendv_ps(_mm256_set1_ps(fill), v, _mm256_castsi256_ps(mask)));
    for (i += 8; i < width; i += 8)
        _mm256_storeu_ps(to + i, _mm256_set1_ps(fill));
#else
    for (ptrdiff_t i = 0; i < width; i++)
        to[i] = fill;
    memcpy(to, x, (size_t)n * sizeof *x);
#endif
}

static inline void lsm_pad_d(double *to, const double *x, ptrdiff_t n, ptrdiff_t width, double fill)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    uint64_t mask = ((uint64_t)1 << n) - 1;
    for (ptrdiff_t i = 0; i < width; i += 8, mask >>= 8)
        _mm512_storeu_pd(to + i, _mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)mask, x + i));
#else
    for (ptrdiff_t i = 0; i < width; i++)
        to[i] = fill;
    memcpy(to, x, (size_t)n * sizeof *x);
#endif
}

/* Copy n bytes with nontemporal stores: a result larger than the cache is evicted before it is used, and a regular
   store would first read every line from memory. */
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

/* Copy 16 numbers as explicit vectors: the compiler then elides the preceding store to x. */
static inline void lsm_put_f(float *to, const float *x)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    _mm512_storeu_ps(to, _mm512_loadu_ps(x));
#elif defined(__AVX__) && !defined(__SANITIZE_ADDRESS__)
    _mm256_storeu_ps(to, _mm256_loadu_ps(x));
    _mm256_storeu_ps(to + 8, _mm256_loadu_ps(x + 8));
#else
    memcpy(to, x, 16 * sizeof *x);
#endif
}

static inline void lsm_put_d(double *to, const double *x)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    _mm512_storeu_pd(to, _mm512_loadu_pd(x));
    _mm512_storeu_pd(to + 8, _mm512_loadu_pd(x + 8));
#elif defined(__AVX__) && !defined(__SANITIZE_ADDRESS__)
    for (int i = 0; i < 16; i += 4)
        _mm256_storeu_pd(to + i, _mm256_loadu_pd(x + i));
#else
    memcpy(to, x, 16 * sizeof *x);
#endif
}

/* The same with nontemporal stores; `to` is aligned to a cache line. */
static inline void lsm_put_nontemporal_f(float *to, const float *x)
{
#if defined(__AVX512F__)
    _mm512_stream_ps(to, _mm512_loadu_ps(x));
#elif defined(__AVX__)
    _mm256_stream_ps(to, _mm256_loadu_ps(x));
    _mm256_stream_ps(to + 8, _mm256_loadu_ps(x + 8));
#else
    lsm_stream(to, x, 16 * sizeof *x);
#endif
}

static inline void lsm_put_nontemporal_d(double *to, const double *x)
{
#if defined(__AVX512F__)
    _mm512_stream_pd(to, _mm512_loadu_pd(x));
    _mm512_stream_pd(to + 8, _mm512_loadu_pd(x + 8));
#elif defined(__AVX__)
    for (int i = 0; i < 16; i += 4)
        _mm256_stream_pd(to + i, _mm256_loadu_pd(x + i));
#else
    lsm_stream(to, x, 16 * sizeof *x);
#endif
}

/* Copy 16 numbers of 16 bits; nontemporal stores require `to` to be a multiple of 32. */
static inline void lsm_put_16(void *to, const uint16_t *x, int nontemporal)
{
#if defined(__AVX__) && !defined(__SANITIZE_ADDRESS__)
    if (nontemporal)
        _mm256_stream_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)x));
    else
        _mm256_storeu_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)x));
#else
    (void)nontemporal;
    memcpy(to, x, 16 * sizeof *x);
#endif
}

/* Copy 32 numbers of 16 bits; nontemporal stores require `to` to be a multiple of 64. */
static inline void lsm_put_32(void *to, const uint16_t *x, int nontemporal)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    if (nontemporal)
        _mm512_stream_si512((__m512i *)to, _mm512_loadu_si512(x));
    else
        _mm512_storeu_si512(to, _mm512_loadu_si512(x));
#else
    lsm_put_16(to, x, nontemporal);
    lsm_put_16((uint16_t *)to + 16, x + 16, nontemporal);
#endif
}

/* Store the first n <= 16 numbers of x. */
#if defined(__AVX512F__)
#define LSM_HAS_PARTIAL_STORES 1 /* as fast as whole vectors */
#else
#define LSM_HAS_PARTIAL_STORES 0
#endif
static inline void lsm_put_some_f(float *to, const float *x, ptrdiff_t n)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    _mm512_mask_storeu_ps(to, (__mmask16)(((uint32_t)1 << n) - 1), _mm512_loadu_ps(x));
#elif defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__)
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32((int)n);
    _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(count, lane), _mm256_loadu_ps(x));
    count = _mm256_sub_epi32(count, _mm256_set1_epi32(8));
    _mm256_maskstore_ps(to + 8, _mm256_cmpgt_epi32(count, lane), _mm256_loadu_ps(x + 8));
#else
    memcpy(to, x, (size_t)n * sizeof *x);
#endif
}

static inline void lsm_put_some_d(double *to, const double *x, ptrdiff_t n)
{
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    uint32_t mask = ((uint32_t)1 << n) - 1;
    _mm512_mask_storeu_pd(to, (__mmask8)mask, _mm512_loadu_pd(x));
    _mm512_mask_storeu_pd(to + 8, (__mmask8)(mask >> 8), _mm512_loadu_pd(x + 8));
#else
    memcpy(to, x, (size_t)n * sizeof *x);
#endif
}

/* Prefetch n bytes from p, to the L1 cache if `near`, else to L2. Never faults, so it may run past the end of an
   array. */
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

/* 0, which the compiler does not know. Of the sum of two products it makes an FMA of one, and not of the same one
   everywhere; of products that are added to this 0, it makes FMAs that round each. */
static inline double lsm_unknown_zero(void)
{
    double zero = 0;
#if defined(__GNUC__) && defined(__SSE2__)
    __asm__("" : "+x"(zero));
#elif defined(__GNUC__)
    __asm__("" : "+m"(zero));
#endif
    return zero;
}

/* Sixteen numbers in double. The conversion of a vector in memory is one instruction; of one in a register, gcc makes
   five for both halves. */
static inline void lsm_widen(double *to, const float *x)
{
#if defined(__AVX512F__)
    _mm512_storeu_pd(to, _mm512_cvtps_pd(_mm256_loadu_ps(x)));
    _mm512_storeu_pd(to + 8, _mm512_cvtps_pd(_mm256_loadu_ps(x + 8)));
#elif defined(__AVX__)
    _mm256_storeu_pd(to, _mm256_cvtps_pd(_mm_loadu_ps(x)));
    _mm256_storeu_pd(to + 4, _mm256_cvtps_pd(_mm_loadu_ps(x + 4)));
    _mm256_storeu_pd(to + 8, _mm256_cvtps_pd(_mm_loadu_ps(x + 8)));
    _mm256_storeu_pd(to + 12, _mm256_cvtps_pd(_mm_loadu_ps(x + 12)));
#else
    for (int k = 0; k < 16; k++)
        to[k] = x[k];
#endif
}

/* Transpose 16 rows of 8 numbers. */
static inline void lsm_transpose(double *to, const double *from)
{
#if defined(__SSE2__)
    for (int r = 0; r < 16; r += 2)
        for (int c = 0; c < 8; c += 2) {
            const double *f = from + 8 * r + c;
            double *t = to + 16 * c + r;
            __m128d p = _mm_loadu_pd(f), q = _mm_loadu_pd(f + 8);
            _mm_storeu_pd(t, _mm_unpacklo_pd(p, q));
            _mm_storeu_pd(t + 16, _mm_unpackhi_pd(p, q));
        }
#else
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++)
            to[16 * c + r] = from[8 * r + c];
#endif
}

/* Read n_x bytes and write n_y with nontemporal stores: a bound for any function with that traffic. Bytes beyond n_y
   are summed, and the sum used, so that the compiler keeps the loads. */
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

/* to = a + b, with nontemporal stores. */
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

/* Order nontemporal stores before signalling completion to another thread. */
static inline void lsm_stream_fence(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
