# The reductions of one row over its classes, in the order of lanes.pxi: see traverse_rows.pxi.


cdef inline floating max_of_lanes(const floating* high) noexcept nogil:
    """The maximum of a chunk. It may miss a NaN, which the sum finds."""
    cdef floating h[8]
    cdef Py_ssize_t k
    for k in range(8):
        h[k] = larger(high[k + 8], high[k])
    for k in range(4):
        h[k] = larger(h[k + 4], h[k])
    return larger(larger(h[0], h[1]), larger(h[2], h[3]))


cdef inline bint has_peak(const floating* peaks, floating m) noexcept nogil:
    """Whether a block with these peaks has a class equal to m."""
    cdef int n_peaks = 0
    cdef Py_ssize_t k
    for k in range(CHUNK):
        n_peaks += peaks[k] == m
    return n_peaks != 0


cdef inline void raise_chunks(const floating* x, Py_ssize_t n_chunks, const floating* last, floating* peaks,
                              floating* high) noexcept nogil:
    """peaks = the maximum of n_chunks chunks and the last, lane by lane; high = that of all chunks so far."""
    cdef floating h[4 * CHUNK]
    cdef Py_ssize_t c, k
    for k in range(4 * CHUNK):
        h[k] = -INFINITY
    for c in range(n_chunks // 4):
        for k in range(4 * CHUNK):  # hot
            h[k] = larger(x[c * 4 * CHUNK + k], h[k])
    for c in range(n_chunks // 4 * 4, n_chunks):
        for k in range(CHUNK):  # hot
            h[k] = larger(x[c * CHUNK + k], h[k])
    for k in range(CHUNK):
        peaks[k] = larger(larger(h[k], h[CHUNK + k]), larger(h[2 * CHUNK + k], h[3 * CHUNK + k]))
        peaks[k] = larger(last[k], peaks[k])
    for k in range(CHUNK):
        high[k] = larger(peaks[k], high[k])


cdef inline void raise_magnitude_once(const floating* x, floating* high) noexcept nogil:
    """raise_magnitude of one chunk."""
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        high[k] = larger(fabs_of(x[k]), high[k])


cdef inline void raise_magnitude(const floating* x, Py_ssize_t n_chunks, floating* high) noexcept nogil:
    """high = the largest absolute number of each lane, over n_chunks chunks."""
    cdef floating h[4 * CHUNK]
    cdef Py_ssize_t c, k
    for k in range(4 * CHUNK):
        h[k] = 0
    for c in range(n_chunks // 4):
        for k in range(4 * CHUNK):  # hot
            h[k] = larger(fabs_of(x[c * 4 * CHUNK + k]), h[k])
    for c in range(n_chunks // 4 * 4, n_chunks):
        for k in range(CHUNK):  # hot
            h[k] = larger(fabs_of(x[c * CHUNK + k]), h[k])
    for k in range(CHUNK):
        high[k] = larger(larger(larger(h[k], h[CHUNK + k]), larger(h[2 * CHUNK + k], h[3 * CHUNK + k])), high[k])


cdef inline void half_maxima(const floating* high, floating* half) noexcept nogil:
    """The first step of the maximum of a chunk; end_maxima takes the others."""
    cdef Py_ssize_t k
    for k in range(8):
        half[k] = larger(high[k + 8], high[k])


cdef inline void find_max_of_row(int op, const floating* a, const floating* b, const floating* last_a,
                                 const floating* last_b, Py_ssize_t n, floating* high, floating* highest_dy,
                                 floating* peaks) noexcept nogil:
    """What the first stage reduces over n classes, in lanes. peaks: a chunk for each block, that contains its maximum.

    If `finds_largest`, these are maxima of b, and highest_dy those of the absolute a.
    """
    cdef Py_ssize_t c, k, start = (n - 1) // BLOCK_CLASSES * BLOCK_CLASSES
    cdef Py_ssize_t n_whole = (n - start - 1) // CHUNK  # chunks of the last block before the last
    cdef const floating* x = b if finds_largest(op) else a
    for k in range(CHUNK):
        high[k] = -INFINITY
        highest_dy[k] = 0
    for c from 0 <= c < start by BLOCK_CLASSES:
        raise_chunks(x + c, BLOCK_CLASSES // CHUNK, x + c, peaks + c // BLOCK_CLASSES * CHUNK, high)
        if finds_largest(op):
            raise_magnitude(a + c, BLOCK_CLASSES // CHUNK, highest_dy)
    raise_chunks(x + start, n_whole, last_b if finds_largest(op) else last_a, peaks + start // BLOCK_CLASSES * CHUNK,
                 high)
    if finds_largest(op):
        raise_magnitude(a + start, n_whole, highest_dy)
        raise_magnitude_once(last_a, highest_dy)


cdef inline Py_ssize_t first_equal(const floating* x, Py_ssize_t n, floating m) noexcept nogil:
    """The index of the first of n numbers that equals m; n if there is none."""
    if floating is float:
        return lsm_first_f(x, n, m)
    else:
        return lsm_first_d(x, n, m)


cdef inline floating dy_of_first(const floating* dy, const floating* p, Py_ssize_t n, floating m) noexcept nogil:
    """The dy of the first class whose p is m; of the last class if there is none."""
    return dy[min(first_equal(p, n, m), n - 1)]


cdef inline void sum_of_row(int op, const floating* a, const floating* b, const floating* last_a,
                            const floating* last_b, Py_ssize_t n, const floating* params, double* total,
                            double* error, floating* n_equal, floating m, const floating* peaks,
                            const char* next_a, const char* y) noexcept nogil:
    """The lanes of the sum over n classes. params: those of the frame, MAX_WIDTH apart.

    Prefetches the frame at next_a and, to be written, that at y, unless they are NULL.
    """
    cdef floating own[4 * CHUNK]
    cdef Py_ssize_t i, k, start = (n - 1) // BLOCK_CLASSES * BLOCK_CLASSES
    for k in range(CHUNK):
        own[k] = params[0]
        n_equal[k] = 0
        if sums_exponentials(op):
            own[CHUNK + k] = params[MAX_WIDTH]
            own[2 * CHUNK + k] = params[2 * MAX_WIDTH]
            own[3 * CHUNK + k] = params[3 * MAX_WIDTH]
    clear_lanes(total, error, CHUNK, own)
    for i from 0 <= i < start by BLOCK_CLASSES:
        if next_a != NULL:
            lsm_prefetch(next_a + i * <Py_ssize_t> sizeof(floating), BLOCK_CLASSES * sizeof(floating), True)
        if y != NULL:
            lsm_prefetch(y + i * <Py_ssize_t> sizeof(floating), BLOCK_CLASSES * sizeof(floating), False)
        if not sums_exponentials(op) or has_peak(&peaks[i // BLOCK_CLASSES * CHUNK], m):
            sum_lane(op, True, a + i, b + i, CHUNK, CHUNK, 16, NULL, NULL, own, CHUNK, False, total, error,
                     n_equal)
        else:
            sum_lane(op, False, a + i, b + i, CHUNK, CHUNK, 16, NULL, NULL, own, CHUNK, False, total, error,
                     n_equal)
    if next_a != NULL:
        lsm_prefetch(next_a + start * <Py_ssize_t> sizeof(floating), (n - start) * sizeof(floating), True)
    if y != NULL:
        lsm_prefetch(y + start * <Py_ssize_t> sizeof(floating), (n - start) * sizeof(floating), False)
    sum_lane(op, True, a + start, b + start, CHUNK, CHUNK, (n - start + CHUNK - 1) // CHUNK, last_a, last_b,
             own, CHUNK, False, total, error, n_equal)


cdef floating range_of_rows(const floating* y, Py_ssize_t step, Py_ssize_t n_rows, Py_ssize_t n,
                            floating* highest) noexcept nogil:
    """The minimum of rows of n >= CHUNK numbers, and the maximum; NaN if any is NaN, +0 or positive."""
    cdef int32_t low_f[CHUNK]
    cdef int32_t high_f[CHUNK]
    cdef int64_t low_d[CHUNK]
    cdef int64_t high_d[CHUNK]
    cdef Py_ssize_t r, c, k
    cdef const floating* v
    if step == n:  # packed rows are one
        n *= n_rows
        n_rows = 1
    for k in range(CHUNK):
        if floating is float:
            low_f[k] = high_f[k] = lsm_depth_f(y[k])
        else:
            low_d[k] = high_d[k] = lsm_depth_d(y[k])
    for r in range(n_rows):
        for c in range(n // (4 * CHUNK)):
            v = y + r * step + c * 4 * CHUNK
            if floating is float:
                for k in range(CHUNK):  # hot
                    low_f[k] = max(low_f[k], max(max(lsm_depth_f(v[k]), lsm_depth_f(v[CHUNK + k])),
                                                 max(lsm_depth_f(v[2 * CHUNK + k]), lsm_depth_f(v[3 * CHUNK + k]))))
                for k in range(CHUNK):  # hot
                    high_f[k] = min(high_f[k], min(min(lsm_depth_f(v[k]), lsm_depth_f(v[CHUNK + k])),
                                                   min(lsm_depth_f(v[2 * CHUNK + k]), lsm_depth_f(v[3 * CHUNK + k]))))
            else:
                for k in range(CHUNK):  # hot
                    low_d[k] = max(low_d[k], max(max(lsm_depth_d(v[k]), lsm_depth_d(v[CHUNK + k])),
                                                 max(lsm_depth_d(v[2 * CHUNK + k]), lsm_depth_d(v[3 * CHUNK + k]))))
                for k in range(CHUNK):  # hot
                    high_d[k] = min(high_d[k], min(min(lsm_depth_d(v[k]), lsm_depth_d(v[CHUNK + k])),
                                                   min(lsm_depth_d(v[2 * CHUNK + k]), lsm_depth_d(v[3 * CHUNK + k]))))
        for c in range(n // (4 * CHUNK) * 4, (n + CHUNK - 1) // CHUNK):
            v = y + r * step + chunk_at(c * CHUNK, n)
            if floating is float:
                for k in range(CHUNK):  # hot
                    low_f[k] = max(low_f[k], lsm_depth_f(v[k]))
                for k in range(CHUNK):  # hot
                    high_f[k] = min(high_f[k], lsm_depth_f(v[k]))
            else:
                for k in range(CHUNK):  # hot
                    low_d[k] = max(low_d[k], lsm_depth_d(v[k]))
                for k in range(CHUNK):  # hot
                    high_d[k] = min(high_d[k], lsm_depth_d(v[k]))
    for k in range(1, CHUNK):
        if floating is float:
            low_f[0] = max(low_f[0], low_f[k])
            high_f[0] = min(high_f[0], high_f[k])
        else:
            low_d[0] = max(low_d[0], low_d[k])
            high_d[0] = min(high_d[0], high_d[k])
    if floating is float:
        highest[0] = lsm_least_f(high_f[0])
        return lsm_least_f(low_f[0])
    else:
        highest[0] = lsm_least_d(high_d[0])
        return lsm_least_d(low_d[0])
