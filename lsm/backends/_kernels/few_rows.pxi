# Groups of rows of at most FEW_CLASSES classes, all stages of which are here but for few_row_reduce.pxi. The number of
# chunks is a compile-time constant in every loop over frames.


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


cdef inline Py_ssize_t count_whole(Py_ssize_t n_frames, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    """How many frames of a group may be written as whole chunks: the excess is overwritten by the next frames.

    In place it is safe, since those have been copied already. Not used where partial stores are as fast: at 1500x10 v3
    takes 14.9 instead of 18.8 ns, at 1000000x10 v4 would take 12.5, not 11.9.
    """
    cdef Py_ssize_t width = round_up(n, CHUNK)
    return max(<Py_ssize_t> 0, n_frames - (width + n - 1) // n + 1) if step == n and not LSM_HAS_PARTIAL_STORES else 0


cdef inline void write_few_of_shape(int op, const floating* a, Py_ssize_t step, const floating* b, Py_ssize_t step_b,
                                    Py_ssize_t n_chunks, Py_ssize_t n_frames, const floating* params, bint some_low,
                                    floating* y, Py_ssize_t step_y, Py_ssize_t n_whole, Py_ssize_t n_last,
                                    bint prefetch_b) noexcept nogil:
    cdef floating q[FEW_CLASSES]
    cdef floating p[N_PARAMS]
    cdef const floating* v
    cdef const floating* w
    cdef Py_ssize_t f, k
    for f in range(n_frames):
        v = &a[f * step]
        w = &b[f * step_b]
        if reads_two(op) and prefetch_b:
            prefetch_next(w + n_frames * step_b, n_chunks)
        for k in range(N_PARAMS):
            p[k] = params[k * MAX_WIDTH + f]
        for k in range(n_chunks * CHUNK):  # hot
            q[k] = epilogue(op, v[k], w[k], p[0], p[1], p[2], p[3], p[4], True, some_low)
        put_chunks(&y[f * step_y], q, n_chunks,
                   n_last if LSM_HAS_PARTIAL_STORES or f >= n_whole else <Py_ssize_t> CHUNK)


cdef inline void write_few_rows(int op, const floating* a, Py_ssize_t step, const floating* b, Py_ssize_t step_b,
                                Py_ssize_t n_chunks, Py_ssize_t n_frames, const floating* params, bint some_low,
                                floating* y, Py_ssize_t step_y, Py_ssize_t n_whole, Py_ssize_t n_last,
                                bint prefetch_b) noexcept nogil:
    """The result; after n_whole frames, only n_last numbers of the last chunk are stored."""
    if n_chunks == 1:
        write_few_of_shape(op, a, step, b, step_b, 1, n_frames, params, some_low, y, step_y, n_whole, n_last,
                           prefetch_b)
    elif n_chunks == 2:
        write_few_of_shape(op, a, step, b, step_b, 2, n_frames, params, some_low, y, step_y, n_whole, n_last,
                           prefetch_b)
    elif n_chunks == 3:
        write_few_of_shape(op, a, step, b, step_b, 3, n_frames, params, some_low, y, step_y, n_whole, n_last,
                           prefetch_b)
    else:
        write_few_of_shape(op, a, step, b, step_b, 4, n_frames, params, some_low, y, step_y, n_whole, n_last,
                           prefetch_b)


cdef inline bint some_out_of_range(const floating* b, Py_ssize_t step, Py_ssize_t n_frames, Py_ssize_t n,
                                   floating least) noexcept nogil:
    """Whether any frame is -inf throughout, or has an odd b."""
    cdef Py_ssize_t f
    if least > -INFINITY:
        return False
    for f in range(n_frames):
        if not least <= 0 and some_odd(&b[f * step], n):
            return True
        if b[f * step] == -INFINITY and is_masked(native(&b[f * step]), n, b):
            return True
    return False


cdef inline Py_ssize_t few_rows_of_group(Py_ssize_t n, const floating* of) noexcept nogil:
    """The frames of a group: as many as stay in the L1 cache between two stages, FEW_GROUP_FRAMES at most."""
    cdef Py_ssize_t n_floats = round_up(n, CHUNK) * (<Py_ssize_t> sizeof(floating) // 4)
    return min(<Py_ssize_t> FEW_GROUP_FRAMES, FEW_GROUP_FLOATS // n_floats // GROUP_FRAMES * GROUP_FRAMES)


cdef inline void run_few_rows(int op, Array a, Array b, Array y, Py_ssize_t n_frames, Py_ssize_t n, bint far,
                              const floating* of) noexcept nogil:
    """All stages of a group of frames of at most FEW_CLASSES classes."""
    cdef floating copies[FEW_GROUP_FLOATS]
    cdef floating copies_b[FEW_GROUP_FLOATS]
    cdef floating stage[FEW_GROUP_FLOATS + CHUNK]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[FEW_GROUP_FRAMES]
    cdef floating n_equal[FEW_GROUP_FRAMES]
    cdef double half[8 * FEW_GROUP_FRAMES]
    cdef double half_error[8 * FEW_GROUP_FRAMES]
    cdef double total[FEW_GROUP_FRAMES + 7 * GROUP_FRAMES]
    cdef double error[FEW_GROUP_FRAMES + 7 * GROUP_FRAMES]
    cdef Py_ssize_t f, n_chunks = round_up(n, CHUNK) // CHUNK, step = 0, step_b = 0, step_y = n, n_last = CHUNK
    cdef Py_ssize_t n_whole = 0
    cdef floating* to = stage
    cdef floating least
    cdef bint is_regular = True, some_low = False
    cdef const floating* v = find_few_rows(a, n_frames, n, far, <floating> -INFINITY if sums_exponentials(op)
                                           else <floating> 0, copies, &step)
    cdef const floating* w = v
    step_b = step
    if reads_two(op):
        w = find_few_rows(b, n_frames, n, far, <floating> -1 if limits_range(op) else <floating> 0, copies_b,
                          &step_b)
    least = reduce_few_rows(op, v, step, w, step_b, n_chunks, n_frames, v != copies,
                            next_row(y, 0, far and writes_elements(op), v), y.gap, params, m, half,
                            half_error, n_equal)
    end_sums(half, half_error, n_frames, total, error, v)
    if sums_exponentials(op):
        if is_one_each(n_equal, m, n_frames):
            for f in range(FEW_GROUP_FRAMES):
                n_equal[f] = 1
        else:
            for f in range(FEW_GROUP_FRAMES):
                n_equal[f] = <floating> count_equal(&v[f * step], n, m[f]) if f < n_frames else <floating> 1
    keep_normalisers(op, True, total, error, m, n_equal, n_frames)
    for f from 0 <= f < n_frames by GROUP_FRAMES:
        is_regular &= end_frames(op, True, &total[f], &error[f], &m[f], &n_equal[f], GROUP_FRAMES, &params[f])
    if not is_regular or (limits_range(op) and some_out_of_range(w, step_b, n_frames, n, least)):
        for f in range(n_frames):
            run_irregular_frame(op, frame_at(a, 0, f), frame_at(b, 0, f), frame_at(y, 0, f), n,
                                &params[f])
        return
    if not writes_elements(op):
        write_results(y, n_frames, params)
        return
    if limits_range(op):
        for f in range(n_frames):
            some_low |= not (params[4 * MAX_WIDTH + f] < least)
    if is_native(frame_at(y, 0, 0), v) and y.gap % <Py_ssize_t> sizeof(floating) == 0:
        to = <floating*> frame_at(y, 0, 0).at
        step_y = y.gap // <Py_ssize_t> sizeof(floating)
        n_last = n - (n_chunks - 1) * CHUNK
        n_whole = count_whole(n_frames, n, step_y)
    if some_low:
        write_few_rows(op, v, step, w, step_b, n_chunks, n_frames, params, True, to, step_y, n_whole, n_last,
                       w != copies_b)
    else:
        write_few_rows(op, v, step, w, step_b, n_chunks, n_frames, params, False, to, step_y, n_whole, n_last,
                       w != copies_b)
    if to == stage:
        write_group(stage, y, n_frames, n)


cdef inline void write_group(const floating* stage, Array y, Py_ssize_t n_frames, Py_ssize_t n) noexcept nogil:
    """Write the frames of a group, which are packed in the staging buffer."""
    cdef Py_ssize_t f
    for f in range(n_frames):
        write(frame_at(y, 0, f), 0, n, &stage[f * n], False)
