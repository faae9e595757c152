# The reductions of groups of rows of at most FEW_CLASSES classes: 1 to 4 chunks a frame, filled up if necessary. See
# few_rows.pxi.
#
# The number of chunks is a compile-time constant in every loop over frames.


cdef inline const floating* find_few_rows(Array x, Py_ssize_t n_frames, Py_ssize_t n, bint far, floating fill,
                                          floating* copies, Py_ssize_t* step) noexcept nogil:
    """The first frame of the group; frames are `step` numbers apart. Where they lie if they need not be filled up."""
    cdef floating buffer[FEW_CLASSES]
    cdef Vector frame = frame_at(x, 0, 0)
    cdef Py_ssize_t f, width = round_up(n, CHUNK)
    if n == width and is_native(frame, copies) and x.gap % <Py_ssize_t> sizeof(floating) == 0:
        step[0] = x.gap // <Py_ssize_t> sizeof(floating)
        return <const floating*> frame.at
    step[0] = width
    for f in range(n_frames):
        frame = frame_at(x, 0, f)
        if far:
            lsm_prefetch(frame.at + n_frames * x.gap, n * size_of(x.kind), True)
        if n == width:
            read(frame, n, &copies[f * width])
        else:
            pad(&copies[f * width], load(frame, 0, n, buffer), n, width, fill)
    return copies


cdef inline void prefetch_next(const floating* x, Py_ssize_t n_chunks) noexcept nogil:
    """Prefetch a frame of the next group, spread over the arithmetic of this one."""
    lsm_prefetch(x, n_chunks * CHUNK * sizeof(floating), True)


cdef inline void max_of_few(const floating* x, Py_ssize_t step, Py_ssize_t n_chunks, Py_ssize_t n_frames,
                            floating* m) noexcept nogil:
    """The maxima of a group. They may miss a NaN, which the sum finds."""
    cdef floating half[8 * FEW_GROUP_FRAMES]
    cdef Py_ssize_t f, k
    cdef const floating* v
    for f in range(n_frames):
        v = &x[f * step]
        for k in range(8):
            if n_chunks == 1:
                half[f * 8 + k] = larger(v[k], v[k + 8])
            elif n_chunks == 2:
                half[f * 8 + k] = larger(larger(v[k], v[k + 8]), larger(v[k + 16], v[k + 24]))
            elif n_chunks == 3:
                half[f * 8 + k] = larger(larger(larger(v[k], v[k + 8]), larger(v[k + 16], v[k + 24])),
                                         larger(v[k + 32], v[k + 40]))
            else:
                half[f * 8 + k] = larger(larger(larger(v[k], v[k + 8]), larger(v[k + 16], v[k + 24])),
                                         larger(larger(v[k + 32], v[k + 40]), larger(v[k + 48], v[k + 56])))
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = 0
    end_maxima(half, n_frames, m)


cdef inline void largest_of_few(const floating* dy, Py_ssize_t step, const floating* p, Py_ssize_t step_p,
                                Py_ssize_t n_chunks, Py_ssize_t n_frames, const floating* m,
                                floating* m_dy) noexcept nogil:
    """The dy of the first of the classes whose p is the maximum m; NaN where some dy is huge."""
    cdef floating half[8 * FEW_GROUP_FRAMES]
    cdef floating half_high[8 * FEW_GROUP_FRAMES]
    cdef floating highest[FEW_GROUP_FRAMES]
    cdef floating found[CHUNK]
    cdef floating of_k[CHUNK]
    cdef floating high[CHUNK]
    cdef Py_ssize_t f, k
    cdef const floating* v
    cdef const floating* w
    for k in range(CHUNK):
        found[k] = 0
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = half_high[k] = 0
    for f in range(n_frames):
        v = &dy[f * step]
        w = &p[f * step_p]
        for k in range(CHUNK):
            of_k[k] = -INFINITY
            high[k] = 0
        match_chunks(v, w, n_chunks, m[f], of_k, found)
        raise_magnitude_once(v, high)
        if n_chunks > 1:
            raise_magnitude_once(&v[CHUNK], high)
        if n_chunks > 2:
            raise_magnitude_once(&v[2 * CHUNK], high)
        if n_chunks > 3:
            raise_magnitude_once(&v[3 * CHUNK], high)
        half_maxima(of_k, &half[f * 8])
        half_maxima(high, &half_high[f * 8])
    end_maxima(half, n_frames, m_dy)
    if not is_one_each(found, m, n_frames):
        for f in range(n_frames):
            m_dy[f] = dy_of_first(&dy[f * step], &p[f * step_p], n_chunks * CHUNK, m[f])
    end_maxima(half_high, n_frames, highest)
    spoil_huge(highest, n_frames, m_dy)


cdef inline floating sum_of_few(int op, const floating* a, Py_ssize_t step, const floating* b, Py_ssize_t step_b,
                                Py_ssize_t n_chunks, Py_ssize_t n_frames, bint prefetch_a,
                                const char* y, Py_ssize_t gap, const floating* params, double* half,
                                double* half_error, floating* n_equal) noexcept nogil:
    """The sum of each frame, in eight lanes, and the count of maxima over all frames.

    Returns the minimum b if the operation limits it, NaN if any is NaN or not below 0. y: of the first frame, to be
    prefetched unless it is NULL; frames are `gap` bytes apart.
    """
    cdef floating q[FEW_CLASSES]
    cdef double t[FEW_CLASSES]
    cdef floating found[CHUNK]
    cdef int32_t most_f[CHUNK]
    cdef int64_t most_d[CHUNK]
    cdef int32_t deepest_f = lsm_depth_f(<float> -0.0)
    cdef int64_t deepest_d = lsm_depth_d(-0.0)
    cdef floating own[CHUNK]
    cdef floating first, r
    cdef double zero = lsm_unknown_zero()
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef const floating* v
    cdef const floating* w
    cdef Py_ssize_t f, g, k
    for k in range(CHUNK):
        found[k] = 0
        most_f[k] = deepest_f
        most_d[k] = deepest_d
    for f in range(n_frames):
        v = &a[f * step]
        w = &b[f * step_b]
        first = params[f]
        for k in range(CHUNK):
            own[k] = first
        if prefetch_a:
            prefetch_next(v + n_frames * step, n_chunks)
        if y != NULL:
            lsm_prefetch(y + f * gap, n_chunks * CHUNK * sizeof(floating), False)
        clear_lanes(total, error, N_LANES, a)
        if sums_exponentials(op):
            for k in range(n_chunks * CHUNK):  # hot
                r = exp_difference(v[k], first)
                q[k] = <floating> 0 if v[k] == first else r
            for k in range(CHUNK):  # hot
                found[k] += <floating> 1 if v[k] == first else <floating> 0
                if n_chunks > 1:
                    found[k] += <floating> 1 if v[k + CHUNK] == first else <floating> 0
                if n_chunks > 2:
                    found[k] += <floating> 1 if v[k + 2 * CHUNK] == first else <floating> 0
                if n_chunks > 3:
                    found[k] += <floating> 1 if v[k + 3 * CHUNK] == first else <floating> 0
            add_groups(total, error, q, N_LANES, n_chunks, floating is double)
        else:
            for g in range(n_chunks):
                terms_of_chunk(op, &v[g * CHUNK], &w[g * CHUNK], own, zero, &t[g * CHUNK])
            add_groups(total, error, t, N_LANES, n_chunks, floating is double)
        if limits_range(op):
            for g in range(n_chunks):
                for k in range(CHUNK):
                    if floating is float:
                        most_f[k] = max(most_f[k], lsm_depth_f(w[g * CHUNK + k]))
                    else:
                        most_d[k] = max(most_d[k], lsm_depth_d(w[g * CHUNK + k]))
        half_lanes(total, error, &half[f * 8], &half_error[f * 8], a)
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = half_error[k] = 0
    for k in range(CHUNK):
        n_equal[k] = found[k]
    if floating is float:
        for k in range(CHUNK):
            deepest_f = max(deepest_f, most_f[k])
        return lsm_least_f(deepest_f)
    else:
        for k in range(CHUNK):
            deepest_d = max(deepest_d, most_d[k])
        return lsm_least_d(deepest_d)


cdef inline floating reduce_few_of_shape(int op, const floating* a, Py_ssize_t step, const floating* b,
                                         Py_ssize_t step_b, Py_ssize_t n_chunks, Py_ssize_t n_frames, bint prefetch_a,
                                         const char* y, Py_ssize_t gap, floating* params, floating* m,
                                         double* half, double* half_error, floating* n_equal) noexcept nogil:
    if reduces_max(op):
        max_of_few(b if finds_largest(op) else a, step_b if finds_largest(op) else step, n_chunks, n_frames, m)
        memcpy(params, m, n_frames * sizeof(floating))
    if finds_largest(op):
        largest_of_few(a, step, b, step_b, n_chunks, n_frames, m, params)
    return sum_of_few(op, a, step, b, step_b, n_chunks, n_frames, prefetch_a, y, gap, params, half,
                      half_error, n_equal)


cdef inline floating reduce_few_of(int op, const floating* a, Py_ssize_t step, const floating* b, Py_ssize_t step_b,
                                   Py_ssize_t n_chunks, Py_ssize_t n_frames, bint prefetch_a,
                                   const char* y, Py_ssize_t gap, floating* params, floating* m, double* half,
                                   double* half_error, floating* n_equal) noexcept nogil:
    """The maxima and sums of a group; see sum_of_few."""
    if n_chunks == 1:
        return reduce_few_of_shape(op, a, step, b, step_b, 1, n_frames, prefetch_a, y, gap, params, m,
                                   half, half_error, n_equal)
    if n_chunks == 2:
        return reduce_few_of_shape(op, a, step, b, step_b, 2, n_frames, prefetch_a, y, gap, params, m,
                                   half, half_error, n_equal)
    if n_chunks == 3:
        return reduce_few_of_shape(op, a, step, b, step_b, 3, n_frames, prefetch_a, y, gap, params, m,
                                   half, half_error, n_equal)
    return reduce_few_of_shape(op, a, step, b, step_b, 4, n_frames, prefetch_a, y, gap, params, m, half,
                               half_error, n_equal)


cdef inline Py_ssize_t count_equal(const floating* v, Py_ssize_t n, floating top) noexcept nogil:
    """How many of n numbers equal `top`."""
    cdef Py_ssize_t k
    cdef int n_equal = 0
    for k in range(n):  # hot
        n_equal += v[k] == top
    return n_equal
