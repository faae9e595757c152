# The second reduction of groups of short rows, their sums; and both in turn.
#
# The number of chunks of the tail is a compile-time constant in every loop over frames.


cdef inline void count_tops(const floating* x, Py_ssize_t n_chunks, floating h, floating top,
                            floating* found) noexcept nogil:
    """Count the numbers of 1 to 4 chunks with x - h == top, lane by lane."""
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        found[k] += <floating> 1 if x[k] - h == top else <floating> 0
        if n_chunks > 1:
            found[k] += <floating> 1 if x[CHUNK + k] - h == top else <floating> 0
        if n_chunks > 2:
            found[k] += <floating> 1 if x[2 * CHUNK + k] - h == top else <floating> 0
        if n_chunks > 3:
            found[k] += <floating> 1 if x[3 * CHUNK + k] - h == top else <floating> 0


cdef inline void add_short_exponentials(const floating* x, Py_ssize_t n_chunks, const floating* of, floating* p,
                                        floating* found) noexcept nogil:
    """p += the exponentials of 1 to 4 chunks, 0 at the maximum. of: see sum_of_short."""
    cdef floating h = of[0], top = of[1], magic = of[2], floor = of[3]
    cdef Py_ssize_t k
    for k in range(n_chunks * CHUNK):  # hot
        p[k] += exp_below(x[k] - h, magic, floor, top, True)
    count_tops(x, n_chunks, h, top, found)


cdef inline void sum_of_exponentials(bint few, RowGroup x, Py_ssize_t n_tail, Py_ssize_t f, const floating* of,
                                     double* total, double* error, floating* found) noexcept nogil:
    """The lanes of the sum of the exponentials of frame f, in the order of lanes.pxi."""
    cdef floating p[ROW_CLASSES]
    cdef floating r, m = of[0]
    cdef const floating* v = frame_of_group(x, f, of)
    cdef Py_ssize_t i, k
    if few:
        for k in range(n_tail * CHUNK):  # hot
            r = exp_difference(v[k], m)
            p[k] = <floating> 0 if v[k] == m else r
        count_tops(v, n_tail, 0, m, found)
        add_groups(total, error, p, N_LANES, n_tail, floating is double)
    else:
        for k in range(ROW_CLASSES):
            p[k] = 0
        for i in range(x.n_rows):
            add_short_exponentials(v + i * ROW_CLASSES, 4, of, p, found)
            if i % BLOCK_ROWS == BLOCK_ROWS - 1:
                add_groups(total, error, p, N_LANES, 4, floating is double)
                for k in range(ROW_CLASSES):
                    p[k] = 0
        if n_tail > 1:
            add_short_exponentials(v + x.n_rows * ROW_CLASSES, n_tail - 1, of, p, found)
        add_short_exponentials(last_chunk(x, f, of), 1, of, &p[(n_tail - 1) * CHUNK], found)
        add_groups(total, error, p, N_LANES, 4, floating is double)


cdef inline void sum_of_terms(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail, Py_ssize_t f,
                              const floating* own, double zero, double* total, double* error) noexcept nogil:
    """The lanes of the sum of terms of frame f, in the order of lanes.pxi."""
    cdef double t[ROW_CLASSES]
    cdef const floating* v = frame_of_group(a, f, own)
    cdef const floating* w = frame_of_group(b, f, own)
    cdef const floating* last = last_chunk(a, f, own)
    cdef const floating* last_b = last_chunk(b, f, own)
    cdef Py_ssize_t g, rest = a.n_rows * ROW_CLASSES
    if few:
        for g in range(n_tail):
            terms_of_chunk(op, v + g * CHUNK, w + g * CHUNK, own, zero, &t[g * CHUNK])
        add_groups(total, error, t, N_LANES, n_tail, floating is double)
        return
    sum_of_rows(op, v, w, a.n_rows, v + rest, w + rest, last, last_b, n_tail, 0, own, zero, t)
    sum_of_rows(op, v, w, a.n_rows, v + rest, w + rest, last, last_b, n_tail, 1, own, zero, t)
    sum_of_rows(op, v, w, a.n_rows, v + rest, w + rest, last, last_b, n_tail, 2, own, zero, t)
    sum_of_rows(op, v, w, a.n_rows, v + rest, w + rest, last, last_b, n_tail, 3, own, zero, t)
    add_groups(total, error, t, N_LANES, 4, floating is double)


cdef inline void sum_of_rows(int op, const floating* v, const floating* w, Py_ssize_t n_rows, const floating* tail,
                             const floating* tail_b, const floating* last, const floating* last_b, Py_ssize_t n_tail,
                             Py_ssize_t g, const floating* own, double zero, double* t) noexcept nogil:
    """Group g of 16 sums: a chunk of each row, and of the tail if that is so long."""
    cdef double first[CHUNK]
    cdef double second[CHUNK]
    cdef double third[CHUNK]
    cdef Py_ssize_t at = g * CHUNK, r, k
    cdef const floating* end = last if g == n_tail - 1 else tail + at
    cdef const floating* end_b = last_b if g == n_tail - 1 else tail_b + at
    if multiplies(op):
        terms_of_chunk(op, v + at, w + at, own, zero, first)
        for r in range(1, n_rows):
            add_terms(op, v + r * ROW_CLASSES + at, w + r * ROW_CLASSES + at, own, first)
        if g < n_tail:
            add_terms(op, end, end_b, own, first)
    else:  # as `tree` of up to four rows, of which the last one is the tail
        in_double(v + at, first)
        if n_rows > 1:
            in_double(v + ROW_CLASSES + at, second)
            for k in range(CHUNK):
                first[k] += second[k]
        if n_rows > 2:
            in_double(v + 2 * ROW_CLASSES + at, second)
            if g < n_tail:
                in_double(end, third)
                for k in range(CHUNK):
                    second[k] += third[k]
            for k in range(CHUNK):
                first[k] += second[k]
        elif g < n_tail:
            in_double(end, second)
            for k in range(CHUNK):
                first[k] += second[k]
    for k in range(CHUNK):
        t[at + k] = first[k]


cdef inline floating sum_of_short(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail, Py_ssize_t n_frames,
                                  const char* y, Py_ssize_t gap, const floating* params, double* half,
                                  double* half_error, floating* n_equal) noexcept nogil:
    """The sum of each frame, in eight lanes, and the count of maxima over all frames.

    Of few classes, returns the minimum b if the operation limits it, NaN if any is NaN or not below 0. y: of the first
    frame, to be prefetched unless it is NULL; frames are `gap` bytes apart. params: of frames of few classes, the
    maximum; of others, the parameters of exp_below.
    """
    cdef floating found[CHUNK]
    cdef int32_t most_f[CHUNK]
    cdef int64_t most_d[CHUNK]
    cdef int32_t deepest_f = lsm_depth_f(<float> -0.0)
    cdef int64_t deepest_d = lsm_depth_d(-0.0)
    cdef floating own[CHUNK]
    cdef floating of[4]
    cdef double zero = lsm_unknown_zero()
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Py_ssize_t f, k
    for k in range(CHUNK):
        found[k] = 0
        most_f[k] = deepest_f
        most_d[k] = deepest_d
    for f in range(n_frames):
        if a.is_ahead:
            prefetch_next(a, f, n_frames, n_tail, own)
        if y != NULL:
            lsm_prefetch(y + f * gap, (a.n_rows * ROW_CLASSES + n_tail * CHUNK) * <Py_ssize_t> sizeof(floating), False)
        clear_lanes(total, error, N_LANES, own)
        if sums_exponentials(op):
            of[0] = params[f]
            if not few:
                of[1] = params[MAX_WIDTH + f]
                of[2] = params[2 * MAX_WIDTH + f]
                of[3] = params[3 * MAX_WIDTH + f]
            sum_of_exponentials(few, a, n_tail, f, of, total, error, found)
        else:
            for k in range(CHUNK):
                own[k] = params[f]
            sum_of_terms(op, few, a, b, n_tail, f, own, zero, total, error)
        if few and limits_range(op):
            deepen(frame_of_group(b, f, own), n_tail, most_f, most_d)
        half_lanes(total, error, &half[f * 8], &half_error[f * 8], own)
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


cdef inline void deepen(const floating* x, Py_ssize_t n_chunks, int32_t* most_f, int64_t* most_d) noexcept nogil:
    """Update the depths of the lowest numbers, lane by lane: see lsm_depth_f."""
    cdef Py_ssize_t g, k
    for g in range(n_chunks):
        for k in range(CHUNK):
            if floating is float:
                most_f[k] = max(most_f[k], lsm_depth_f(x[g * CHUNK + k]))
            else:
                most_d[k] = max(most_d[k], lsm_depth_d(x[g * CHUNK + k]))


cdef inline floating reduce_short_tail(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail,
                                       Py_ssize_t n_frames, const char* y, Py_ssize_t gap, floating* params,
                                       floating* m, double* half, double* half_error,
                                       floating* n_equal) noexcept nogil:
    cdef Py_ssize_t f
    if reduces_max(op):
        max_of_short(few, b if finds_largest(op) else a, n_tail, n_frames, m)
    if finds_largest(op):
        largest_of_short(few, a, b, n_tail, n_frames, m, params)
    elif sums_exponentials(op) and few:
        memcpy(params, m, n_frames * sizeof(floating))
    elif sums_exponentials(op):
        for f from 0 <= f < n_frames by GROUP_FRAMES:
            shift_frames(&m[f], GROUP_FRAMES, &params[f])
    return sum_of_short(op, few, a, b, n_tail, n_frames, y, gap, params, half, half_error, n_equal)


cdef inline floating reduce_short_of(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail, Py_ssize_t n_frames,
                                     const char* y, Py_ssize_t gap, floating* params, floating* m, double* half,
                                     double* half_error, floating* n_equal) noexcept nogil:
    """The maxima and sums of a group; see sum_of_short."""
    if n_tail == 1:
        return reduce_short_tail(op, few, a, b, 1, n_frames, y, gap, params, m, half, half_error, n_equal)
    if n_tail == 2:
        return reduce_short_tail(op, few, a, b, 2, n_frames, y, gap, params, m, half, half_error, n_equal)
    if n_tail == 3:
        return reduce_short_tail(op, few, a, b, 3, n_frames, y, gap, params, m, half, half_error, n_equal)
    return reduce_short_tail(op, few, a, b, 4, n_frames, y, gap, params, m, half, half_error, n_equal)


cdef inline Py_ssize_t count_equal(const floating* v, Py_ssize_t n, floating top) noexcept nogil:
    """How many of n numbers equal `top`."""
    cdef Py_ssize_t k
    cdef int n_equal = 0
    for k in range(n):  # hot
        n_equal += v[k] == top
    return n_equal
