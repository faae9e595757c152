/* What Cython cannot say: the bits of a float, and OpenMP where it may be absent. */
#ifndef LSM_HELPERS_H
#define LSM_HELPERS_H

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

/* x rounded to float.  gcc 12 takes (double)(float)x for x when it makes vectors of a loop, so that
   x - (double)(float)x is 0: the detour through memory keeps it from that. */
static inline float lsm_round_to_float(double x)
{
    volatile float rounded = (float)x;
    return rounded;
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

/* Order streamed stores before whatever tells another thread that they are done. */
static inline void lsm_stream_fence(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
