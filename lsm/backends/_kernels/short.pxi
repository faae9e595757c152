# Groups of frames of at most SHORT_MAX_CLASSES classes: 1 to 4 vectors of N_LANES a frame, padded if necessary.
#
# The number of vectors is a compile-time constant in every loop over frames.


cdef inline Py_ssize_t count_vectors(Py_ssize_t n) noexcept nogil:
    """The number of vectors of N_LANES classes in a frame of n."""
    return (n + N_LANES - 1) // N_LANES


cdef inline const floating* find_short(Array x, Py_ssize_t i, Py_ssize_t first, Py_ssize_t n_frames, Py_ssize_t n,
                                       floating fill, floating* padded, Py_ssize_t* step) noexcept nogil:
    """The first frame of the group; frames are `step` numbers apart. In place if no padding is needed."""
    cdef floating buffer[SHORT_MAX_CLASSES]
    cdef Vector frame = frame_at(x, i, first)
    cdef Py_ssize_t f, width = count_vectors(n) * N_LANES
    if n == width and is_native(frame, padded) and x.gap % <Py_ssize_t> sizeof(floating) == 0:
        step[0] = x.gap // <Py_ssize_t> sizeof(floating)
        return <const floating*> frame.at
    step[0] = width
    for f in range(n_frames):
        if n == width:
            read(frame_at(x, i, first + f), n, &padded[f * width])
        else:
            pad(&padded[f * width], load(frame_at(x, i, first + f), 0, n, buffer), n, width, fill)
    return padded


cdef inline void maxima_of_vectors(const floating* x, Py_ssize_t step, Py_ssize_t n_vectors, Py_ssize_t n_frames,
                                   floating* half) noexcept nogil:
    """Reduce each frame to eight numbers that contain its maximum. May miss a NaN."""
    cdef Py_ssize_t f, k
    cdef const floating* v
    for f in range(n_frames):
        v = &x[f * step]
        for k in range(8):
            if n_vectors == 1:
                half[f * 8 + k] = larger(v[k], v[k + 8])
            elif n_vectors == 2:
                half[f * 8 + k] = larger(larger(v[k], v[k + 8]), larger(v[k + 16], v[k + 24]))
            elif n_vectors == 3:
                half[f * 8 + k] = larger(larger(larger(v[k], v[k + 8]), larger(v[k + 16], v[k + 24])),
                                         larger(v[k + 32], v[k + 40]))
            else:
                half[f * 8 + k] = larger(larger(larger(v[k], v[k + 8]), larger(v[k + 16], v[k + 24])),
                                         larger(larger(v[k + 32], v[k + 40]), larger(v[k + 48], v[k + 56])))


cdef inline void prefetch_next(const floating* x, Py_ssize_t step, Py_ssize_t n_vectors) noexcept nogil:
    """Prefetch the frame in this position of the next group, spread over the arithmetic of this one."""
    lsm_prefetch(&x[GROUP_FRAMES * step], n_vectors * N_LANES * sizeof(floating), True)


cdef inline void sum_vectors(const floating* x, Py_ssize_t step, Py_ssize_t n_vectors, Py_ssize_t n_frames,
                             bint in_place, const floating* m, double* half, double* half_error,
                             floating* n_equal) noexcept nogil:
    """The sum of exponentials of each frame, in eight lanes, and the count of maxima over all frames.

    in_place: whether the frames are in the user's array.
    """
    cdef floating p[SHORT_MAX_CLASSES]
    cdef floating found[N_LANES]
    cdef floating top, w
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef const floating* v
    cdef Py_ssize_t f, k
    for k in range(N_LANES):
        found[k] = 0
    for f in range(n_frames):
        v = &x[f * step]
        if in_place:
            prefetch_next(v, step, n_vectors)
        top = m[f]
        for k in range(n_vectors * N_LANES):  # hot
            w = exp_difference(v[k], top)
            p[k] = <floating> 0 if v[k] == top else w
        for k in range(N_LANES):  # hot
            found[k] += <floating> 1 if v[k] == top else <floating> 0
            if n_vectors > 1:
                found[k] += <floating> 1 if v[k + N_LANES] == top else <floating> 0
            if n_vectors > 2:
                found[k] += <floating> 1 if v[k + 2 * N_LANES] == top else <floating> 0
            if n_vectors > 3:
                found[k] += <floating> 1 if v[k + 3 * N_LANES] == top else <floating> 0
        clear_lanes(total, error, N_LANES, x)
        add_groups(total, error, p, N_LANES, n_vectors, floating is double)
        half_lanes(total, error, &half[f * 8], &half_error[f * 8], x)
    for k in range(N_LANES):
        n_equal[k] = found[k]


cdef inline void put_vectors(floating* to, const floating* p, Py_ssize_t n_vectors, Py_ssize_t n_last) noexcept nogil:
    """Copy n_vectors vectors, the last one only up to n_last numbers."""
    if n_vectors > 1:
        put_lanes(to, p, False)
    if n_vectors > 2:
        put_lanes(&to[N_LANES], &p[N_LANES], False)
    if n_vectors > 3:
        put_lanes(&to[2 * N_LANES], &p[2 * N_LANES], False)
    if n_last == N_LANES:
        put_lanes(&to[(n_vectors - 1) * N_LANES], &p[(n_vectors - 1) * N_LANES], False)
    else:
        put_some(&to[(n_vectors - 1) * N_LANES], &p[(n_vectors - 1) * N_LANES], n_last)


cdef inline Py_ssize_t count_whole(Py_ssize_t n_frames, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    """How many frames of a group may be written as whole vectors: the excess is overwritten by the next frames.

    In place it is safe, since those have been copied already. Not used where partial stores are as fast: at 1500x10 v3
    takes 14.9 instead of 18.8 ns, at 1000000x10 v4 would take 12.5, not 11.9.
    """
    cdef Py_ssize_t width = count_vectors(n) * N_LANES
    return max(<Py_ssize_t> 0, n_frames - (width + n - 1) // n + 1) if step == n and not LSM_HAS_PARTIAL_STORES else 0


cdef inline void write_vectors(const floating* x, Py_ssize_t step, Py_ssize_t n_vectors, Py_ssize_t n_frames,
                               const floating* c_hi, const floating* c_lo, floating* y, Py_ssize_t step_y,
                               Py_ssize_t n_whole, Py_ssize_t n_last) noexcept nogil:
    """y = (x - c_hi) - c_lo; after n_whole frames, only n_last numbers of the last vector are stored."""
    cdef floating p[SHORT_MAX_CLASSES]
    cdef floating hi, lo
    cdef Py_ssize_t f, k
    for f in range(n_frames):
        hi = c_hi[f]
        lo = c_lo[f]
        for k in range(n_vectors * N_LANES):  # hot
            p[k] = (x[f * step + k] - hi) - lo
        put_vectors(&y[f * step_y], p, n_vectors,
                    n_last if LSM_HAS_PARTIAL_STORES or f >= n_whole else <Py_ssize_t> N_LANES)


cdef void log_softmax_short(Array x, Array y, Py_ssize_t i, Py_ssize_t first, Py_ssize_t n_frames, Py_ssize_t n,
                            const floating* of, bint stream) noexcept nogil:
    """log_softmax_frame for n_frames adjacent frames of n <= SHORT_MAX_CLASSES; `of` gives the computed type."""
    cdef floating padded[GROUP_FRAMES * SHORT_MAX_CLASSES]
    cdef floating stage[GROUP_FRAMES * SHORT_MAX_CLASSES + N_LANES]
    cdef floating half_m[8 * GROUP_FRAMES]
    cdef floating m[GROUP_FRAMES]
    cdef floating c_hi[GROUP_FRAMES]
    cdef floating c_lo[GROUP_FRAMES]
    cdef floating n_equal[N_LANES]
    cdef double half[8 * GROUP_FRAMES]
    cdef double half_error[8 * GROUP_FRAMES]
    cdef double n_largest[GROUP_FRAMES]
    cdef floating* to = stage
    cdef Py_ssize_t n_vectors = count_vectors(n), step = 0, step_y = n, n_last = N_LANES, n_whole = 0, k
    cdef const floating* v = find_short(x, i, first, n_frames, n, <floating> -INFINITY, padded, &step)
    for k in range(n_frames * 8, 8 * GROUP_FRAMES):
        half_m[k] = 0
        half[k] = 0
        half_error[k] = 0
    if n_vectors == 1:
        maxima_of_vectors(v, step, 1, n_frames, half_m)
    elif n_vectors == 2:
        maxima_of_vectors(v, step, 2, n_frames, half_m)
    elif n_vectors == 3:
        maxima_of_vectors(v, step, 3, n_frames, half_m)
    else:
        maxima_of_vectors(v, step, 4, n_frames, half_m)
    end_maxima(half_m, m)
    if n_vectors == 1:
        sum_vectors(v, step, 1, n_frames, v != padded, m, half, half_error, n_equal)
    elif n_vectors == 2:
        sum_vectors(v, step, 2, n_frames, v != padded, m, half, half_error, n_equal)
    elif n_vectors == 3:
        sum_vectors(v, step, 3, n_frames, v != padded, m, half, half_error, n_equal)
    else:
        sum_vectors(v, step, 4, n_frames, v != padded, m, half, half_error, n_equal)
    for k in range(GROUP_FRAMES):
        n_largest[k] = 1
    if not is_one_each(n_equal, m, n_frames):
        for k in range(n_frames):
            n_largest[k] = count_equal(&v[k * step], n, m[k])
    end_group(half, half_error, m, n_largest, c_hi, c_lo)
    if is_native(frame_at(y, i, first), v) and y.gap % <Py_ssize_t> sizeof(floating) == 0:
        to = <floating*> frame_at(y, i, first).at
        step_y = y.gap // <Py_ssize_t> sizeof(floating)
        n_last = n - (n_vectors - 1) * N_LANES
        n_whole = count_whole(n_frames, n, step_y)
    if n_vectors == 1:
        write_vectors(v, step, 1, n_frames, c_hi, c_lo, to, step_y, n_whole, n_last)
    elif n_vectors == 2:
        write_vectors(v, step, 2, n_frames, c_hi, c_lo, to, step_y, n_whole, n_last)
    elif n_vectors == 3:
        write_vectors(v, step, 3, n_frames, c_hi, c_lo, to, step_y, n_whole, n_last)
    else:
        write_vectors(v, step, 4, n_frames, c_hi, c_lo, to, step_y, n_whole, n_last)
    if to == stage:
        write_group(stage, y, i, first, n_frames, n, stream)
