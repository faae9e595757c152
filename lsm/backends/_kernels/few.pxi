# Frames of at most FEW_CLASSES classes, where the work per frame costs as much as the exponentials. x - m is used with
# its rounding error, so that the sum needs neither a factor nor a correction, and log1p_few of float32 is computed in
# float32.


cdef inline bint is_few(Py_ssize_t n) noexcept nogil:
    return n <= FEW_CLASSES


cdef inline floating exp_difference(floating x, floating m) noexcept nogil:
    """exp(x - m) * 2**EXP_BIAS for x <= m; 0 where that is below the normal range. Propagates NaN."""
    cdef floating log2e, ln2_hi, ln2_lo, magic, lowest, d, z, e, t, n, r, scale
    log2e = 1.4426950408889634
    if floating is float:
        magic = 12582912.0 + 127 + EXP_BIAS_FLOAT
        ln2_hi = 0.693359375
        ln2_lo = -2.1219444005469058e-4
        lowest = -156
    else:
        magic = 6755399441055744.0 + 1023 + EXP_BIAS_DOUBLE
        ln2_hi = LN2_HI
        ln2_lo = LN2_LO
        lowest = -1331
    d = x - m
    z = d - x
    e = (x - (d - z)) - (m + z)  # d + e = x - m (Knuth's TwoSum)
    t = d * log2e + magic
    n = t - magic
    r = ((d - n * ln2_hi) - n * ln2_lo) + e
    scale = power_of_two(t)
    r = scale * expm1_reduced(r) + scale
    return <floating> 0 if d < lowest else r


cdef inline double unbias(const floating* of) noexcept nogil:
    """2**-EXP_BIAS."""
    return EXP_UNBIAS_FLOAT if floating is float else EXP_UNBIAS_DOUBLE


cdef inline floating log1p_few(double s, const floating* of) noexcept nogil:
    """log(1 + s) within 1 ulp of its type, for 0 <= s < 2**24; propagates NaN.

    In float32: 1 + s = 2**k * (1 + g), log(1 + g) = g - g**2 / 2 + g**3 * P(g), P minimax of error 2**-27.
    """
    cdef float sf, scale, kf, g, p, z
    cdef int32_t k
    if floating is double:
        return log1p_double(s)
    else:
        sf = <float> s
        k = lsm_log2_above_half_root(1 + sf)
        kf = <float> k
        scale = lsm_power_of_minus(k)
        g = sf * scale + (scale - 1)
        p = -0.07657700031995773
        p = p * g + <float> 0.12796710431575775
        p = p * g + <float> -0.13168206810951233
        p = p * g + <float> 0.14197608828544617
        p = p * g + <float> -0.16622166335582733
        p = p * g + <float> 0.20001359283924103
        p = p * g + <float> -0.25000855326652527
        p = p * g + <float> 0.3333333134651184
        z = g * g
        z = z * (p * g - <float> 0.5)
        return kf * <float> 0.693359375 + (g + (z + kf * <float> -2.1219444005469058e-4))


cdef inline void exp_rows_of_few(const floating* x, Py_ssize_t row, Py_ssize_t n, const floating* m, floating* p,
                                 floating* n_equal) noexcept nogil:
    """p = the exponentials of n rows of a chunk, 0 at the maximum; then rows of 0."""
    cdef floating top[CHUNK]
    cdef floating found[CHUNK]
    cdef floating v
    cdef Py_ssize_t i, k
    for k in range(CHUNK):
        top[k] = m[k]
        found[k] = 0
    for i in range(n):
        for k in range(CHUNK):  # hot
            v = exp_difference(x[i * row + k], top[k])
            p[i * CHUNK + k] = <floating> 0 if x[i * row + k] == top[k] else v
            found[k] += <floating> 1 if x[i * row + k] == top[k] else <floating> 0
    for i in range(n, rows_at_once(n)):
        for k in range(CHUNK):
            p[i * CHUNK + k] = 0
    for k in range(CHUNK):
        n_equal[k] = found[k]


ctypedef fused summed:  # the type of the terms
    float
    double


cdef inline double lane_of_few(const summed* p, Py_ssize_t k, Py_ssize_t n_rows) noexcept nogil:
    """Lane k of a frame: the sum of rows k, k + N_LANES, ..."""
    return <double> tree(p + k * CHUNK, N_LANES * CHUNK, (n_rows - k + N_LANES - 1) // N_LANES) if k < n_rows else 0


cdef inline double four_lanes_of_few(const summed* p, Py_ssize_t k, Py_ssize_t n_rows) noexcept nogil:
    """Lanes k, k + 8, k + 4 and k + 12, added as in fold_lanes."""
    return ((lane_of_few(p, k, n_rows) + lane_of_few(p, k + 8, n_rows))
            + (lane_of_few(p, k + 4, n_rows) + lane_of_few(p, k + 12, n_rows)))


cdef inline void sum_rows_at_once(const summed* p, Py_ssize_t n_rows, double* total) noexcept nogil:
    """The sums of n_rows rows of a chunk, in registers."""
    cdef Py_ssize_t j
    for j in range(CHUNK):  # hot
        total[j] = ((four_lanes_of_few(&p[j], 0, n_rows) + four_lanes_of_few(&p[j], 2, n_rows))
                    + (four_lanes_of_few(&p[j], 1, n_rows) + four_lanes_of_few(&p[j], 3, n_rows)))


cdef inline Py_ssize_t rows_at_once(Py_ssize_t n) noexcept nogil:
    """The number of rows that sum_in_registers adds: above four, a multiple of 8, to be padded with 0."""
    return n if n <= 4 else round_up(n, 8)


cdef inline void sum_in_registers(const summed* p, Py_ssize_t n, double* total) noexcept nogil:
    """The sums of n rows of a chunk, followed by rows of 0, in the order of lanes.pxi."""
    if n == 1:
        sum_rows_at_once(p, 1, total)
    elif n == 2:
        sum_rows_at_once(p, 2, total)
    elif n == 3:
        sum_rows_at_once(p, 3, total)
    elif n == 4:
        sum_rows_at_once(p, 4, total)
    elif n <= 8:
        sum_rows_at_once(p, 8, total)
    elif n <= 16:
        sum_rows_at_once(p, 16, total)
    elif n <= 24:
        sum_rows_at_once(p, 24, total)
    elif n <= 32:
        sum_rows_at_once(p, 32, total)
    elif n <= 40:
        sum_rows_at_once(p, 40, total)
    elif n <= 48:
        sum_rows_at_once(p, 48, total)
    elif n <= 56:
        sum_rows_at_once(p, 56, total)
    else:
        sum_rows_at_once(p, 64, total)


cdef inline void sum_rows_of_few(const floating* p, Py_ssize_t n, double* total, double* error) noexcept nogil:
    """The sums of n rows of a chunk, in the order of lanes.pxi."""
    cdef double lanes[N_LANES * CHUNK]
    cdef double errors[N_LANES * CHUNK]
    cdef Py_ssize_t i, k, n_lanes = min(n, <Py_ssize_t> N_LANES)
    if floating is float:
        sum_in_registers(p, n, total)
    else:
        for k in range(n_lanes * CHUNK):
            lanes[k] = p[k]
            errors[k] = 0
        for i from N_LANES <= i < n by N_LANES:
            add_groups(lanes, errors, p + i * CHUNK, min(<Py_ssize_t> N_LANES, n - i) * CHUNK, 1, True)
        fold_lanes(lanes, errors, n_lanes, CHUNK, p)
        for k in range(CHUNK):
            total[k] = lanes[k]
            error[k] = errors[k]


cdef inline void terms_of_chunk(int op, const floating* a, const floating* b, const floating* p, double zero,
                                double* t) noexcept nogil:
    cdef Py_ssize_t k
    if multiplies(op):
        for k in range(CHUNK):
            t[k] = zero
        add_terms(op, a, b, p, t)
    else:
        in_double(a, t)


cdef inline void sum_terms_of_few(int op, const floating* a, const floating* b, Py_ssize_t row, Py_ssize_t row_b,
                                  Py_ssize_t n, const floating* params, double* total, double* error) noexcept nogil:
    """The sums of the terms over n rows of a chunk, in the order of lanes.pxi."""
    cdef double lanes[N_LANES * CHUNK]
    cdef double errors[N_LANES * CHUNK]
    cdef double p[FEW_CLASSES * CHUNK]
    cdef floating first[CHUNK]
    cdef double zero = lsm_unknown_zero()
    cdef Py_ssize_t lane, i, k, n_lanes = min(n, <Py_ssize_t> N_LANES)
    if floating is float:
        for k in range(CHUNK):
            first[k] = params[k]
        for i in range(n):
            terms_of_chunk(op, a + i * row, b + i * row_b, first, zero, &p[i * CHUNK])
        for k in range((rows_at_once(n) - n) * CHUNK):
            p[n * CHUNK + k] = 0
        sum_in_registers(p, n, total)
        for k in range(CHUNK):  # as elsewhere, there is no sum of -0
            total[k] += zero
    else:
        clear_lanes(lanes, errors, n_lanes * CHUNK, params)
        for lane in range(n_lanes):
            sum_lane(op, True, a + lane * row, b + lane * row_b, N_LANES * row, N_LANES * row_b,
                     (n - lane + N_LANES - 1) // N_LANES, NULL, NULL, params, MAX_WIDTH, True, &lanes[lane * CHUNK],
                     &errors[lane * CHUNK], NULL)
        fold_lanes(lanes, errors, n_lanes, CHUNK, params)
        for k in range(CHUNK):
            total[k] = lanes[k]
            error[k] = errors[k]


cdef inline void sum_few(int op, Array a, Array b, Shape s, const floating* params, const floating* m, double* total,
                         double* error, floating* n_equal) noexcept nogil:
    """The sum of each frame of a plain block, in total + error."""
    cdef floating p[FEW_CLASSES * CHUNK]
    cdef Py_ssize_t c, at, row = a.step // <Py_ssize_t> sizeof(floating)
    cdef Py_ssize_t row_b = b.step // <Py_ssize_t> sizeof(floating)
    cdef const floating* x = <const floating*> a.at
    cdef const floating* y = <const floating*> b.at
    for c from 0 <= c < s.width by CHUNK:
        at = chunk_at(c, s.width)
        if sums_exponentials(op):
            exp_rows_of_few(x + at, row, s.n, &m[at], p, &n_equal[at])
            sum_rows_of_few(p, s.n, &total[at], &error[at])
        else:
            sum_terms_of_few(op, x + at, y + at, row, row_b, s.n, &params[at], &total[at], &error[at])
