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

/* In chunks of sixteen: of_m becomes the largest v whose p is m, and n_equal counts them, lane by lane. From loops gcc
   makes branches and masked stores, which take twice the time. */
static inline void lsm_match(const float *v, const float *p, ptrdiff_t n_chunks, float m, float *of_m, float *n_equal)
{
#if defined(__AVX512F__)
    __m512 largest = _mm512_loadu_ps(of_m), count = _mm512_loadu_ps(n_equal);
    for (ptrdiff_t c = 0; c < n_chunks; c++) {
        __mmask16 is_m = _mm512_cmp_ps_mask(_mm512_loadu_ps(p + 16 * c), _mm512_set1_ps(m), _CMP_EQ_OQ);
        largest = _mm512_mask_max_ps(largest, is_m, _mm512_loadu_ps(v + 16 * c), largest);
        count = _mm512_mask_add_ps(count, is_m, count, _mm512_set1_ps(1));
    }
    _mm512_storeu_ps(of_m, largest);
    _mm512_storeu_ps(n_equal, count);
#elif defined(__AVX__)
    for (int h = 0; h < 16; h += 8) {
        __m256 largest = _mm256_loadu_ps(of_m + h), count = _mm256_loadu_ps(n_equal + h);
        for (ptrdiff_t c = 0; c < n_chunks; c++) {
            __m256 is_m = _mm256_cmp_ps(_mm256_loadu_ps(p + 16 * c + h), _mm256_set1_ps(m), _CMP_EQ_OQ);
            __m256 chosen = _mm256_blendv_ps(largest, _mm256_loadu_ps(v + 16 * c + h), is_m);
            largest = _mm256_max_ps(chosen, largest);
            count = _mm256_add_ps(count, _mm256_and_ps(is_m, _mm256_set1_ps(1)));
        }
        _mm256_storeu_ps(of_m + h, largest);
        _mm256_storeu_ps(n_equal + h, count);
    }
#else
    for (ptrdiff_t i = 0; i < 16 * n_chunks; i++)
        if (p[i] == m) {
            of_m[i % 16] = v[i] > of_m[i % 16] ? v[i] : of_m[i % 16];
            n_equal[i % 16] += 1;
        }
#endif
}

#endif
