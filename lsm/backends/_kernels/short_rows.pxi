# Groups of rows of at most SHORT_CLASSES classes: all stages in turn, and the last of them, which writes the result.
# The number of chunks of the tail is a compile-time constant in every loop over frames.


cdef inline void put_chunks(floating* to, const floating* p, Py_ssize_t n_chunks, Py_ssize_t n_last) noexcept nogil:
    """Copy n_chunks chunks, the last one only up to n_last numbers."""
    if n_chunks > 1:
        put_lanes(to, p, False)
    if n_chunks > 2:
        put_lanes(&to[CHUNK], &p[CHUNK], False)
    if n_chunks > 3:
        put_lanes(&to[2 * CHUNK], &p[2 * CHUNK], False)
    if n_last == CHUNK:
        put_lanes(&to[(n_chunks - 1) * CHUNK], &p[(n_chunks - 1) * CHUNK], False)
    else:
        put_some(&to[(n_chunks - 1) * CHUNK], &p[(n_chunks - 1) * CHUNK], n_last)


cdef inline Py_ssize_t count_whole(Py_ssize_t n_frames, Py_ssize_t n) noexcept nogil:
    """How many packed frames of a group may be written as whole chunks: the excess is overwritten by the next frames.

    In place it is safe, since those have been copied already. Not used where partial stores are as fast: at 1500x10 v3
    takes 14.9 instead of 18.8 ns, at 1000000x10 v4 would take 12.5, not 11.9.
    """
    cdef Py_ssize_t width = round_up(n, CHUNK)
    return max(<Py_ssize_t> 0, n_frames - (width + n - 1) // n + 1) if not LSM_HAS_PARTIAL_STORES else 0


cdef inline void results_of_run(int op, const floating* a, const floating* b, Py_ssize_t n_chunks, const floating* p,
                                bint some_large, bint some_low, floating* q) noexcept nogil:
    """The results of 1 to 4 chunks."""
    cdef Py_ssize_t k
    for k in range(n_chunks * CHUNK):  # hot
        q[k] = epilogue(op, a[k], b[k], p[0], p[1], p[2], p[3], p[4], some_large, some_low)


cdef inline void write_short_tail(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail,
                                  Py_ssize_t n_frames, const floating* params, bint some_large, bint some_low,
                                  char* y, Py_ssize_t step_y, Py_ssize_t n_whole, Py_ssize_t n_last) noexcept nogil:
    cdef floating q[ROW_CLASSES]
    cdef floating row[ROW_CLASSES]
    cdef floating p[N_PARAMS]
    cdef const floating* v
    cdef const floating* w
    cdef floating* to
    cdef Py_ssize_t f, r, k, rest = 0 if few else a.n_rows * ROW_CLASSES
    for f in range(n_frames):
        v = frame_of_group(a, f, q)
        w = frame_of_group(b, f, q)
        to = <floating*> (y + f * step_y)
        for k in range(N_PARAMS):
            p[k] = params[k * MAX_WIDTH + f]
        if reads_two(op) and b.is_ahead:
            prefetch_next(b, f, n_frames, n_tail, q)
        if few:
            results_of_run(op, v, w, n_tail, p, some_large, some_low, q)
        else:
            for r in range(a.n_rows):
                results_of_run(op, v + r * ROW_CLASSES, w + r * ROW_CLASSES, 4, p, some_large, some_low, row)
                put_chunks(to + r * ROW_CLASSES, row, 4, CHUNK)
            if n_tail > 1:
                results_of_run(op, v + rest, w + rest, n_tail - 1, p, some_large, some_low, q)
            results_of_run(op, last_chunk(a, f, q), last_chunk(b, f, q), 1, p, some_large, some_low,
                           &q[(n_tail - 1) * CHUNK])
        put_chunks(to + rest, q, n_tail, n_last if LSM_HAS_PARTIAL_STORES or f >= n_whole else <Py_ssize_t> CHUNK)


cdef inline void write_short_rows(int op, bint few, RowGroup a, RowGroup b, Py_ssize_t n_tail,
                                  Py_ssize_t n_frames, const floating* params, bint some_large, bint some_low,
                                  char* y, Py_ssize_t step_y, Py_ssize_t n_whole, Py_ssize_t n_last) noexcept nogil:
    """The result, step_y bytes from frame to frame; after n_whole, only n_last numbers of the last chunk are stored."""
    if n_tail == 1:
        write_short_tail(op, few, a, b, 1, n_frames, params, some_large, some_low, y, step_y, n_whole, n_last)
    elif n_tail == 2:
        write_short_tail(op, few, a, b, 2, n_frames, params, some_large, some_low, y, step_y, n_whole, n_last)
    elif n_tail == 3:
        write_short_tail(op, few, a, b, 3, n_frames, params, some_large, some_low, y, step_y, n_whole, n_last)
    else:
        write_short_tail(op, few, a, b, 4, n_frames, params, some_large, some_low, y, step_y, n_whole, n_last)


cdef inline bint some_out_of_range(RowGroup b, Py_ssize_t n_frames, Py_ssize_t n, floating least) noexcept nogil:
    """Whether any frame is -inf throughout, or has an odd b."""
    cdef const floating* w
    cdef Py_ssize_t f
    if least > -INFINITY:
        return False
    for f in range(n_frames):
        w = frame_of_group(b, f, &least)
        if not least <= 0 and some_odd(w, n):
            return True
        if w[0] == -INFINITY and is_masked(native(w), n, w):
            return True
    return False


cdef bint leave_nan(int op, Array a, Array b, Array y, const RowGroup* w, Py_ssize_t n_frames, Py_ssize_t n,
                    floating* params, bint* is_nan) noexcept nogil:
    """Whether only NaN frames of a group are irregular, for which is_nan is set. Otherwise all frames are computed."""
    cdef Shape s = shape_of_group(n, n_frames)
    cdef bint is_left = find_nan_frames(op, a, b, s, True, params, is_nan)
    cdef Py_ssize_t f
    for f in range(n_frames if limits_range(op) and is_left else 0):
        is_left &= is_nan[f] or not some_odd(frame_of_group(w[0], f, params), n)
    if not is_left:
        run_irregular_frames(op, a, b, y, s, True, params)
    return is_left


cdef inline bint is_short(int op, Py_ssize_t n) noexcept nogil:
    """Whether all stages are loops over a group. Where terms are summed, other groups are as fast from 257 on."""
    return n <= (SHORT_CLASSES if sums_exponentials(op) else BLOCK_CLASSES)


cdef inline Py_ssize_t most_short_rows(Py_ssize_t n, const floating* of) noexcept nogil:
    """The frames of a group: as many as stay in the L1 cache between two stages, FEW_GROUP_FRAMES at most."""
    cdef Py_ssize_t n_floats = round_up(n, CHUNK) * (<Py_ssize_t> sizeof(floating) // 4)
    cdef Py_ssize_t most = FEW_GROUP_FLOATS // n_floats // GROUP_FRAMES * GROUP_FRAMES
    return max(<Py_ssize_t> GROUP_FRAMES, min(<Py_ssize_t> FEW_GROUP_FRAMES, most))


cdef inline void run_short_rows(int op, Array a, Array b, Array y, Py_ssize_t n_frames, Py_ssize_t n, bint far,
                                bint stream, floating* scratch) noexcept nogil:
    """All stages of a group of frames of at most SHORT_CLASSES classes."""
    cdef double few_copies[FEW_GROUP_DOUBLES]
    cdef double few_copies_b[FEW_GROUP_DOUBLES]
    cdef double few_stage[FEW_GROUP_DOUBLES + CHUNK]
    cdef floating lasts[GROUP_FRAMES * CHUNK]
    cdef floating lasts_b[GROUP_FRAMES * CHUNK]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[FEW_GROUP_FRAMES]
    cdef floating n_equal[FEW_GROUP_FRAMES]
    cdef double half[8 * FEW_GROUP_FRAMES]
    cdef double half_error[8 * FEW_GROUP_FRAMES]
    cdef double total[FEW_GROUP_FRAMES + 7 * GROUP_FRAMES]
    cdef double error[FEW_GROUP_FRAMES + 7 * GROUP_FRAMES]
    cdef bint is_nan[FEW_GROUP_FRAMES]
    cdef bint few = is_few(n), is_regular = True, some_low = False
    cdef floating* copies = <floating*> &few_copies[0] if few else scratch
    cdef floating* copies_b = <floating*> &few_copies_b[0] if few else scratch + packed_numbers(scratch)
    cdef floating* stage = <floating*> &few_stage[0] if few else scratch + 2 * packed_numbers(scratch)
    cdef char* to = <char*> stage
    cdef Py_ssize_t f, n_last = CHUNK, n_whole = 0, step_y = n * <Py_ssize_t> sizeof(floating)
    cdef Py_ssize_t n_tail = (round_up(n, CHUNK) // CHUNK - 1) % 4 + 1
    cdef floating least, highest = 0
    cdef RowGroup v = find_row_group(op, a, n_frames, n, far, <floating> -INFINITY if sums_exponentials(op)
                                     else <floating> 0, copies, lasts)
    cdef RowGroup w = v
    if reads_two(op):
        w = find_row_group(op, b, n_frames, n, far, <floating> -1 if limits_range(op) else <floating> 0, copies_b,
                           lasts_b)
    stream &= reads_two(op) and lies_whole(y, n)  # others are bound by arithmetic
    least = reduce_short_rows(op, few, &v, &w, n_tail, n_frames,
                              next_row(y, 0, far and writes_elements(op) and not stream, params), y.gap, params, m,
                              half, half_error, n_equal)
    if limits_range(op) and not few:
        least = range_of_rows(<const floating*> w.at, w.step // <Py_ssize_t> sizeof(floating), n_frames, n, &highest)
    end_sums(half, half_error, n_frames, total, error, params)
    if sums_exponentials(op):
        if is_one_each(n_equal, m, n_frames):
            for f in range(FEW_GROUP_FRAMES):
                n_equal[f] = 1
        else:
            for f in range(FEW_GROUP_FRAMES):
                n_equal[f] = (<floating> count_equal(frame_of_group(v, f, params), n, m[f]) if f < n_frames
                              else <floating> 1)
    keep_normalisers(op, few, total, error, m, n_equal, n_frames)
    for f from 0 <= f < n_frames by GROUP_FRAMES:
        if few:
            is_regular &= end_frames(op, True, &total[f], &error[f], &m[f], &n_equal[f], GROUP_FRAMES, &params[f])
        else:
            is_regular &= end_frames(op, False, &total[f], &error[f], &m[f], &n_equal[f], GROUP_FRAMES, &params[f])
    is_regular &= not (limits_range(op) and some_out_of_range(w, n_frames, n, least))
    if not is_regular and not leave_nan(op, a, b, y, &w, n_frames, n, params, is_nan) and writes_elements(op):
        return
    if not writes_elements(op):
        write_results(y, n_frames, params)
        return
    if limits_range(op):
        for f in range(n_frames):
            some_low |= not (params[4 * MAX_WIDTH + f] < least)
    if is_native(frame_at(y, 0, 0), params) and not stream:
        to = frame_at(y, 0, 0).at
        step_y = y.gap
        n_last = (n - 1) % CHUNK + 1
        n_whole = count_whole(n_frames, n) if few and lies_whole(y, n) else <Py_ssize_t> 0
    if few and some_low:
        write_short_rows(op, True, v, w, n_tail, n_frames, params, True, True, to, step_y, n_whole, n_last)
    elif few:
        write_short_rows(op, True, v, w, n_tail, n_frames, params, True, False, to, step_y, n_whole, n_last)
    elif some_low:
        write_short_rows(op, False, v, w, n_tail, n_frames, params, True, True, to, step_y, n_whole, n_last)
    elif limits_range(op) and is_large(highest):
        write_short_rows(op, False, v, w, n_tail, n_frames, params, True, False, to, step_y, n_whole, n_last)
    else:
        write_short_rows(op, False, v, w, n_tail, n_frames, params, False, False, to, step_y, n_whole, n_last)
    if to == <char*> stage and stream:  # whole lines, where rows begin and end within lines
        write_long(frame_at(y, 0, 0), n_frames * n, stage, True)
    elif to == <char*> stage:
        for f in range(n_frames):
            write(frame_at(y, 0, f), 0, n, stage + f * n, False)
    if not is_regular:
        fill_nan_frames(y, shape_of_group(n, n_frames), is_nan, params)
