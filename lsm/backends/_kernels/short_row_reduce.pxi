# The reductions of groups of rows of at most SHORT_CLASSES classes: multiples of ROW_CLASSES, and a tail of 1 to 4
# chunks, of which the last one is filled up if necessary. See short_rows.pxi.
#
# The number of chunks of the tail is a compile-time constant in every loop over frames.


# Where the frames of a group begin, and their last chunks.
cdef struct RowGroup:
    const char* at
    const char* last
    Py_ssize_t step, step_last  # bytes from one frame to the next
    Py_ssize_t n_rows           # whole rows before the tail
    bint is_ahead               # whether the next group is prefetched


cdef inline RowGroup find_row_group(int op, Array x, Py_ssize_t n_frames, Py_ssize_t n, bint far, floating fill,
                                    floating* copies, floating* lasts) noexcept nogil:
    """Frames where they lie if they have the computed type and only a last chunk to be filled up, else copied."""
    cdef floating buffer[FEW_CLASSES]
    cdef Vector frame = frame_at(x, 0, 0)
    cdef Py_ssize_t f, width = round_up(n, CHUNK), size = sizeof(floating)
    cdef bint in_place = is_native(frame, copies) and (n == width or not is_few(n))
    cdef RowGroup to
    to.is_ahead = in_place and (far or is_few(n) or sums_exponentials(op))
    to.n_rows = (width // CHUNK - 1) // 4
    to.at = frame.at if in_place else <const char*> copies
    to.step = x.gap if in_place else width * size
    to.last = to.at + (width - CHUNK) * size
    to.step_last = to.step
    for f in range(0 if in_place else n_frames):
        frame = frame_at(x, 0, f)
        if far:
            lsm_prefetch(frame.at + n_frames * x.gap, n * size_of(x.kind), True)
        if n < width and is_few(n):
            pad(&copies[f * width], load(frame, 0, n, buffer), n, width, fill)
        else:
            read(frame, n, &copies[f * width])
    if n < width and not is_few(n):
        for f in range(n_frames):
            pad(&lasts[f * CHUNK], <const floating*> (to.last + f * to.step), n % CHUNK, CHUNK, fill)
        to.last = <const char*> lasts
        to.step_last = CHUNK * size
    return to


cdef inline const floating* frame_of_group(RowGroup x, Py_ssize_t f, const floating* of) noexcept nogil:
    return <const floating*> (x.at + f * x.step)


cdef inline const floating* last_chunk(RowGroup x, Py_ssize_t f, const floating* of) noexcept nogil:
    return <const floating*> (x.last + f * x.step_last)


cdef inline void prefetch_next(RowGroup x, Py_ssize_t f, Py_ssize_t n_frames, Py_ssize_t n_tail,
                               const floating* of) noexcept nogil:
    """Prefetch a frame of the next group, spread over the arithmetic of this one."""
    lsm_prefetch(x.at + (n_frames + f) * x.step,
                 (x.n_rows * ROW_CLASSES + n_tail * CHUNK) * <Py_ssize_t> sizeof(floating), True)


cdef inline void raise_of_row(const floating* x, Py_ssize_t n_chunks, floating* high) noexcept nogil:
    """high = max(high, x), lane by lane, for 1 to 4 chunks."""
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        if n_chunks == 4:
            high[k] = larger(larger(larger(x[k], x[CHUNK + k]), larger(x[2 * CHUNK + k], x[3 * CHUNK + k])), high[k])
        elif n_chunks == 3:
            high[k] = larger(larger(larger(x[k], x[CHUNK + k]), x[2 * CHUNK + k]), high[k])
        elif n_chunks == 2:
            high[k] = larger(larger(x[k], x[CHUNK + k]), high[k])
        else:
            high[k] = larger(x[k], high[k])


cdef inline void half_maxima_of_few(const floating* x, Py_ssize_t n_chunks, floating* half) noexcept nogil:
    """Eight numbers that contain the maximum of 1 to 4 chunks."""
    cdef Py_ssize_t k
    for k in range(8):
        if n_chunks == 1:
            half[k] = larger(x[k], x[k + 8])
        elif n_chunks == 2:
            half[k] = larger(larger(x[k], x[k + 8]), larger(x[k + 16], x[k + 24]))
        elif n_chunks == 3:
            half[k] = larger(larger(larger(x[k], x[k + 8]), larger(x[k + 16], x[k + 24])),
                             larger(x[k + 32], x[k + 40]))
        else:
            half[k] = larger(larger(larger(x[k], x[k + 8]), larger(x[k + 16], x[k + 24])),
                             larger(larger(x[k + 32], x[k + 40]), larger(x[k + 48], x[k + 56])))


cdef inline void max_of_short(bint few, RowGroup x, Py_ssize_t n_tail, Py_ssize_t n_frames,
                              floating* m) noexcept nogil:
    """The maxima of a group. They may miss a NaN, which the sum finds."""
    cdef floating half[8 * FEW_GROUP_FRAMES]
    cdef floating high[CHUNK]
    cdef const floating* v
    cdef const floating* last
    cdef Py_ssize_t f, r, k
    for f in range(n_frames):
        v = frame_of_group(x, f, m)
        if few:
            half_maxima_of_few(v, n_tail, &half[f * 8])
            continue
        last = last_chunk(x, f, m)
        for k in range(CHUNK):
            high[k] = last[k]
        if n_tail > 1:
            raise_of_row(v + x.n_rows * ROW_CLASSES, n_tail - 1, high)
        for r in range(x.n_rows):
            raise_of_row(v + r * ROW_CLASSES, 4, high)
        half_maxima(high, &half[f * 8])
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = 0
    end_maxima(half, n_frames, m)


cdef inline void largest_of_short(RowGroup dy, RowGroup p, Py_ssize_t n_tail, Py_ssize_t n_frames,
                                  const floating* m, floating* m_dy) noexcept nogil:
    """The dy of the first of the classes whose p is the maximum m; NaN where some dy is huge."""
    cdef floating half[8 * FEW_GROUP_FRAMES]
    cdef floating half_high[8 * FEW_GROUP_FRAMES]
    cdef floating highest[FEW_GROUP_FRAMES]
    cdef floating found[CHUNK]
    cdef floating of_k[CHUNK]
    cdef floating high[CHUNK]
    cdef Py_ssize_t f, r, k, n_before = dy.n_rows * 4 + n_tail - 1
    cdef const floating* v
    for k in range(CHUNK):
        found[k] = 0
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = half_high[k] = 0
    for f in range(n_frames):
        v = frame_of_group(dy, f, m)
        for k in range(CHUNK):
            of_k[k] = -INFINITY
            high[k] = 0
        match_chunks(v, frame_of_group(p, f, m), n_before, m[f], of_k, found)
        match_chunks(last_chunk(dy, f, m), last_chunk(p, f, m), 1, m[f], of_k, found)
        for r in range(n_before):
            raise_magnitude_once(v + r * CHUNK, high)
        raise_magnitude_once(last_chunk(dy, f, m), high)
        half_maxima(of_k, &half[f * 8])
        half_maxima(high, &half_high[f * 8])
    end_maxima(half, n_frames, m_dy)
    if not is_one_each(found, m, n_frames):
        for f in range(n_frames):
            m_dy[f] = dy_of_group(dy, p, n_before * CHUNK, f, m)
    end_maxima(half_high, n_frames, highest)
    spoil_huge(highest, n_frames, m_dy)


cdef inline floating dy_of_group(RowGroup dy, RowGroup p, Py_ssize_t n_before, Py_ssize_t f,
                                 const floating* m) noexcept nogil:
    """The dy of the first class of frame f whose p is m[f]; n_before classes are before the last chunk."""
    cdef Py_ssize_t k
    cdef const floating* w = frame_of_group(p, f, m)
    for k in range(n_before):
        if w[k] == m[f]:
            return frame_of_group(dy, f, m)[k]
    return dy_of_first(last_chunk(dy, f, m), last_chunk(p, f, m), CHUNK, m[f])


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


cdef inline floating sum_of_short(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail,
                                  Py_ssize_t n_frames, const char* y, Py_ssize_t gap, const floating* params,
                                  double* half, double* half_error, floating* n_equal,
                                  floating* highest) noexcept nogil:
    """The sum of each frame, in eight lanes, and the count of maxima over all frames.

    Returns the minimum b if the operation limits it, and the maximum in `highest` if there are many classes; NaN if any
    is NaN or not below 0. y: of the first frame, to be prefetched unless it is NULL; frames are `gap` bytes apart.
    params: of frames of few classes, the maximum; of others, the parameters of exp_below.
    """
    cdef floating found[CHUNK]
    cdef int32_t most_f[CHUNK]
    cdef int32_t least_f[CHUNK]
    cdef int64_t most_d[CHUNK]
    cdef int64_t least_d[CHUNK]
    cdef int32_t zero_f = lsm_depth_f(<float> -0.0), deepest_f = lsm_depth_f(-INFINITY)
    cdef int64_t zero_d = lsm_depth_d(-0.0), deepest_d = lsm_depth_d(-INFINITY)
    cdef floating own[CHUNK]
    cdef floating of[4]
    cdef double zero = lsm_unknown_zero()
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef const floating* w
    cdef Py_ssize_t f, c, k
    for k in range(CHUNK):
        found[k] = 0
        most_f[k] = zero_f
        most_d[k] = zero_d
        least_f[k] = deepest_f
        least_d[k] = deepest_d
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
        if limits_range(op):
            w = frame_of_group(b, f, own)
            if few:
                deepen(w, n_tail, most_f, most_d)
            else:
                for c in range(b.n_rows):
                    deepen(w + c * ROW_CLASSES, 4, most_f, most_d)
                    shallow(w + c * ROW_CLASSES, 4, least_f, least_d)
                if n_tail > 1:
                    deepen(w + b.n_rows * ROW_CLASSES, n_tail - 1, most_f, most_d)
                    shallow(w + b.n_rows * ROW_CLASSES, n_tail - 1, least_f, least_d)
                deepen(last_chunk(b, f, own), 1, most_f, most_d)
                shallow(last_chunk(b, f, own), 1, least_f, least_d)
        half_lanes(total, error, &half[f * 8], &half_error[f * 8], own)
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = half_error[k] = 0
    for k in range(CHUNK):
        n_equal[k] = found[k]
    if floating is float:
        for k in range(CHUNK):
            zero_f = max(zero_f, most_f[k])
            deepest_f = min(deepest_f, least_f[k])
        highest[0] = lsm_least_f(deepest_f)
        return lsm_least_f(zero_f)
    else:
        for k in range(CHUNK):
            zero_d = max(zero_d, most_d[k])
            deepest_d = min(deepest_d, least_d[k])
        highest[0] = lsm_least_d(deepest_d)
        return lsm_least_d(zero_d)


cdef inline void deepen(const floating* x, Py_ssize_t n_chunks, int32_t* most_f, int64_t* most_d) noexcept nogil:
    """Update the depths of the lowest numbers, lane by lane: see lsm_depth_f."""
    cdef Py_ssize_t g, k
    for g in range(n_chunks):
        for k in range(CHUNK):
            if floating is float:
                most_f[k] = max(most_f[k], lsm_depth_f(x[g * CHUNK + k]))
            else:
                most_d[k] = max(most_d[k], lsm_depth_d(x[g * CHUNK + k]))


cdef inline void shallow(const floating* x, Py_ssize_t n_chunks, int32_t* least_f, int64_t* least_d) noexcept nogil:
    """The same for the highest numbers."""
    cdef Py_ssize_t g, k
    for g in range(n_chunks):
        for k in range(CHUNK):
            if floating is float:
                least_f[k] = min(least_f[k], lsm_depth_f(x[g * CHUNK + k]))
            else:
                least_d[k] = min(least_d[k], lsm_depth_d(x[g * CHUNK + k]))


cdef inline floating reduce_short_tail(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail,
                                       Py_ssize_t n_frames, const char* y, Py_ssize_t gap, floating* params,
                                       floating* m, double* half, double* half_error, floating* n_equal,
                                       floating* highest) noexcept nogil:
    cdef Py_ssize_t f
    if reduces_max(op):
        max_of_short(few, b if finds_largest(op) else a, n_tail, n_frames, m)
    if finds_largest(op):
        largest_of_short(a, b, n_tail, n_frames, m, params)
    elif sums_exponentials(op) and few:
        memcpy(params, m, n_frames * sizeof(floating))
    elif sums_exponentials(op):
        for f from 0 <= f < n_frames by GROUP_FRAMES:
            shift_frames(&m[f], GROUP_FRAMES, &params[f])
    return sum_of_short(op, few, a, b, n_tail, n_frames, y, gap, params, half, half_error, n_equal, highest)


cdef inline floating reduce_short_of(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail,
                                     Py_ssize_t n_frames, const char* y, Py_ssize_t gap, floating* params,
                                     floating* m, double* half, double* half_error, floating* n_equal,
                                     floating* highest) noexcept nogil:
    """The maxima and sums of a group; see sum_of_short."""
    if n_tail == 1:
        return reduce_short_tail(op, few, a, b, 1, n_frames, y, gap, params, m, half, half_error, n_equal, highest)
    if n_tail == 2:
        return reduce_short_tail(op, few, a, b, 2, n_frames, y, gap, params, m, half, half_error, n_equal, highest)
    if n_tail == 3:
        return reduce_short_tail(op, few, a, b, 3, n_frames, y, gap, params, m, half, half_error, n_equal, highest)
    return reduce_short_tail(op, few, a, b, 4, n_frames, y, gap, params, m, half, half_error, n_equal, highest)


cdef inline Py_ssize_t count_equal(const floating* v, Py_ssize_t n, floating top) noexcept nogil:
    """How many of n numbers equal `top`."""
    cdef Py_ssize_t k
    cdef int n_equal = 0
    for k in range(n):  # hot
        n_equal += v[k] == top
    return n_equal
