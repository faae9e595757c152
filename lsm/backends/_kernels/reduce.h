/* Sixteen frames of eight numbers each, reduced to one number each, by maximum or sum. Number k meets k + 4, then
   k + 2, then k + 1, as in fold_lanes: the same bits at every level. Transposing first took a sixth of the time of
   1500x32. */
#ifndef LSM_REDUCE_H
#define LSM_REDUCE_H

#include <stddef.h>

#if defined(__AVX__)
#include <immintrin.h>

/* The halves that meet, of two frames a, b: numbers 0 to 3 of both and 4 to 7; 0 and 1, and 2 and 3. */
#define LSM_LOW_F(a, b) _mm256_permute2f128_ps(a, b, 0x20)
#define LSM_HIGH_F(a, b) _mm256_permute2f128_ps(a, b, 0x31)
#define LSM_LOW_D(a, b) _mm256_permute2f128_pd(a, b, 0x20)
#define LSM_HIGH_D(a, b) _mm256_permute2f128_pd(a, b, 0x31)

static inline __m256 lsm_max_pair_f(const float *x)  /* frames 0 and 4 */
{
    __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 32);
    return _mm256_max_ps(LSM_LOW_F(a, b), LSM_HIGH_F(a, b));
}

static inline __m256 lsm_max_quad_f(const float *x)  /* frames 0, 1, 4 and 5 */
{
    __m256 a = lsm_max_pair_f(x), b = lsm_max_pair_f(x + 8);
    return _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}

static inline __m256d lsm_max_one_d(const double *x)
{
    return _mm256_max_pd(_mm256_loadu_pd(x), _mm256_loadu_pd(x + 4));
}

static inline __m256d lsm_max_pair_d(const double *x)  /* frames 0 and 2 */
{
    __m256d a = lsm_max_one_d(x), b = lsm_max_one_d(x + 16);
    return _mm256_max_pd(LSM_LOW_D(a, b), LSM_HIGH_D(a, b));
}

static inline __m256d lsm_sum_one(const double *x)
{
    return _mm256_add_pd(_mm256_loadu_pd(x), _mm256_loadu_pd(x + 4));
}

static inline __m256d lsm_sum_pair(const double *x)  /* frames 0 and 2 */
{
    __m256d a = lsm_sum_one(x), b = lsm_sum_one(x + 16);
    return _mm256_add_pd(LSM_LOW_D(a, b), LSM_HIGH_D(a, b));
}
#endif

static inline void lsm_fold_max_f(float *to, const float *x)
{
#if defined(__AVX__)
    for (int f = 0; f < 16; f += 8) {
        __m256 a = lsm_max_quad_f(x + 8 * f), b = lsm_max_quad_f(x + 8 * f + 16);
        _mm256_storeu_ps(to + f, _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)));
    }
#else
    for (int f = 0; f < 16; f++) {
        to[f] = x[8 * f];
        for (int k = 1; k < 8; k++)
            to[f] = x[8 * f + k] > to[f] ? x[8 * f + k] : to[f];
    }
#endif
}

static inline void lsm_fold_max_d(double *to, const double *x)
{
#if defined(__AVX__)
    for (int f = 0; f < 16; f += 4) {
        __m256d a = lsm_max_pair_d(x + 8 * f), b = lsm_max_pair_d(x + 8 * f + 8);
        _mm256_storeu_pd(to + f, _mm256_max_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b)));
    }
#else
    for (int f = 0; f < 16; f++) {
        to[f] = x[8 * f];
        for (int k = 1; k < 8; k++)
            to[f] = x[8 * f + k] > to[f] ? x[8 * f + k] : to[f];
    }
#endif
}

static inline void lsm_fold_sum(double *to, const double *x)
{
#if defined(__AVX__)
    for (int f = 0; f < 16; f += 4) {
        __m256d a = lsm_sum_pair(x + 8 * f), b = lsm_sum_pair(x + 8 * f + 8);
        _mm256_storeu_pd(to + f, _mm256_add_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b)));
    }
#else
    for (int f = 0; f < 16; f++, x += 8)
        to[f] = ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
#endif
}

#if defined(__AVX512F__)
#define LSM_EQUAL_F(x, v) ((unsigned long long)_mm512_cmp_ps_mask(_mm512_loadu_ps(x), v, _CMP_EQ_OQ))
#elif defined(__AVX__)
#define LSM_EQUAL_8(x, v) ((unsigned long long)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), v, _CMP_EQ_OQ)))
#define LSM_EQUAL_F(x, v) (LSM_EQUAL_8(x, v) | LSM_EQUAL_8((x) + 8, v) << 8)
#endif

/* The index of the first of n numbers that equals m; n if there is none. Up to 256 numbers are all compared, from the
   last to the first: a branch would be mispredicted in most frames. */
static inline ptrdiff_t lsm_first_f(const float *x, ptrdiff_t n, float m)
{
    ptrdiff_t i = 0, found;
#if defined(__AVX__)
#if defined(__AVX512F__)
    __m512 v = _mm512_set1_ps(m);
#else
    __m256 v = _mm256_set1_ps(m);
#endif
    if (16 <= n && n <= 256) {
        unsigned long long bits = LSM_EQUAL_F(x + n - 16, v);
        found = bits ? n - 16 + __builtin_ctzll(bits) : n;
        for (bits = 0, i = n / 16 * 16; i > n / 64 * 64; i -= 16)
            bits = bits << 16 | LSM_EQUAL_F(x + i - 16, v);
        found = bits ? i + __builtin_ctzll(bits) : found;
        for (; i > 0; i -= 64) {
            bits = LSM_EQUAL_F(x + i - 64, v) | LSM_EQUAL_F(x + i - 48, v) << 16 | LSM_EQUAL_F(x + i - 32, v) << 32 |
                   LSM_EQUAL_F(x + i - 16, v) << 48;
            found = bits ? i - 64 + __builtin_ctzll(bits) : found;
        }
        return found;
    }
    for (; i + 16 <= n; i += 16) {
        unsigned long long bits = LSM_EQUAL_F(x + i, v);
        if (bits)
            return i + __builtin_ctzll(bits);
    }
#endif
    for (found = i; found < n && x[found] != m; found++)
        ;
    return found;
}

static inline ptrdiff_t lsm_first_d(const double *x, ptrdiff_t n, double m)
{
    ptrdiff_t i = 0;
#if defined(__AVX__)
    __m256d v = _mm256_set1_pd(m);
    for (; i + 8 <= n; i += 8) {
        unsigned bits = _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(x + i), v, _CMP_EQ_OQ));
        bits |= (unsigned)_mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(x + i + 4), v, _CMP_EQ_OQ)) << 4;
        if (bits)
            return i + __builtin_ctz(bits);
    }
#endif
    while (i < n && x[i] != m)
        i++;
    return i;
}

#endif
