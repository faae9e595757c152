# The gradient of a group of short frames.


# `Scaled` for a group.
cdef struct ScaledGroup:
    double s_hi[GROUP_FRAMES]
    double s_lo[GROUP_FRAMES]
    double s[GROUP_FRAMES]
    double magic[GROUP_FRAMES]
    double lowest[GROUP_FRAMES]


cdef inline bint scale_group(const double* half, const double* half_error, ScaledGroup* to,
                             const floating* of) noexcept nogil:
    """Finish the sums of a group and derive the parameters from them; False if any S is too large."""
    cdef double total[8 * GROUP_FRAMES]
    cdef double error[8 * GROUP_FRAMES]
    cdef Scaled scaled
    cdef int n_easy = 0
    cdef Py_ssize_t f
    end_sums(half, half_error, total, error, of)
    for f in range(GROUP_FRAMES):  # hot
        n_easy += scale_sum(total[f], <double> 0 if floating is float else error[f], &scaled, floating is float)
        to.s_hi[f] = scaled.s_hi
        to.s_lo[f] = scaled.s_lo
        to.s[f] = scaled.s
        to.magic[f] = scaled.magic
        to.lowest[f] = scaled.lowest
    return n_easy == GROUP_FRAMES


cdef inline floating sum_gradient_vectors(const floating* dy, Py_ssize_t step, const floating* y, Py_ssize_t step_y,
                                          Py_ssize_t n_vectors, Py_ssize_t n_frames, double* half,
                                          double* half_error) noexcept nogil:
    """The sum of dy of each frame, in eight lanes; returns the minimum y, NaN if any is NaN or not below 0."""
    cdef int32_t most_f[N_LANES]
    cdef int64_t most_d[N_LANES]
    cdef int32_t deepest_f = lsm_depth_f(<float> -0.0)
    cdef int64_t deepest_d = lsm_depth_d(-0.0)
    cdef const floating* w
    cdef double v[SHORT_MAX_CLASSES]
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Py_ssize_t f, g, k
    for k in range(N_LANES):
        most_f[k] = deepest_f
        most_d[k] = deepest_d
    for f in range(n_frames):
        w = &y[f * step_y]
        for g in range(n_vectors):
            for k in range(N_LANES):
                if floating is float:
                    most_f[k] = max(most_f[k], lsm_depth_f(w[g * N_LANES + k]))
                else:
                    most_d[k] = max(most_d[k], lsm_depth_d(w[g * N_LANES + k]))
        for k in range(n_vectors * N_LANES):  # hot
            v[k] = dy[f * step + k]
        clear_lanes(total, error, N_LANES, dy)
        add_groups(total, error, v, N_LANES, n_vectors, floating is double)
        half_lanes(total, error, &half[f * 8], &half_error[f * 8], dy)
    if floating is float:
        for k in range(N_LANES):
            deepest_f = max(deepest_f, most_f[k])
        return lsm_least_f(deepest_f)
    else:
        for k in range(N_LANES):
            deepest_d = max(deepest_d, most_d[k])
        return lsm_least_d(deepest_d)


cdef inline void gradient_vectors(const floating* dy, Py_ssize_t step, const floating* y, Py_ssize_t step_y,
                                  Py_ssize_t n_vectors, Py_ssize_t n_frames, bint in_place, const floating* of,
                                  bint some_low, floating* dx, Py_ssize_t step_dx, Py_ssize_t n_whole,
                                  Py_ssize_t n_last) noexcept nogil:
    """dx = dy - exp(y) * S for each frame. With few classes, most frames have a large y, so some_large is True."""
    cdef floating p[SHORT_MAX_CLASSES]
    cdef floating s_hi, s_lo, s, magic, lowest
    cdef const floating* v
    cdef const floating* w
    cdef Py_ssize_t f, k
    for f in range(n_frames):
        v = &dy[f * step]
        w = &y[f * step_y]
        if floating is float:  # 2 threads: float64 13.0 ns, 11.9 without (500000x32), float32 4.47, 4.70 (1000000x32)
            if in_place:
                prefetch_next(v, step, n_vectors)
                prefetch_next(w, step_y, n_vectors)
        s_hi = of[f]
        s_lo = of[GROUP_FRAMES + f]
        s = of[2 * GROUP_FRAMES + f]
        magic = of[3 * GROUP_FRAMES + f]
        lowest = of[4 * GROUP_FRAMES + f]
        for k in range(n_vectors * N_LANES):  # hot
            p[k] = gradient(v[k], w[k], s_hi, s_lo, s, magic, lowest, True, some_low)
        put_vectors(&dx[f * step_dx], p, n_vectors,
                    n_last if LSM_HAS_PARTIAL_STORES or f >= n_whole else <Py_ssize_t> N_LANES)


cdef inline bint is_careful_group(const floating* y, Py_ssize_t step, Py_ssize_t n_frames, Py_ssize_t n,
                                  bint some_odd_y) noexcept nogil:
    """Whether any frame is -inf throughout, or has an odd y if some_odd_y."""
    cdef Py_ssize_t f
    for f in range(n_frames):
        if some_odd_y and some_odd(&y[f * step], n):
            return True
        if y[f * step] == -INFINITY and is_masked(native(&y[f * step]), n, y):
            return True
    return False


cdef inline bint reach_low(const floating* lowest, floating least) noexcept nogil:
    """Whether any of GROUP_FRAMES `lowest` is above the minimum y, which may be NaN."""
    cdef int n_low = 0
    cdef Py_ssize_t f
    for f in range(GROUP_FRAMES):
        n_low += not (lowest[f] < least)
    return n_low > 0


cdef inline void gradient_group(const floating* dy, Py_ssize_t step, const floating* y, Py_ssize_t step_y,
                                Py_ssize_t n_vectors, Py_ssize_t n_frames, bint in_place, const floating* of,
                                floating least, floating* dx, Py_ssize_t step_dx, Py_ssize_t n_whole,
                                Py_ssize_t n_last) noexcept nogil:
    """gradient_vectors, with some_low only if a y may be that low."""
    if reach_low(&of[4 * GROUP_FRAMES], least):
        gradient_vectors(dy, step, y, step_y, n_vectors, n_frames, in_place, of, True, dx, step_dx, n_whole,
                         n_last)
    else:
        gradient_vectors(dy, step, y, step_y, n_vectors, n_frames, in_place, of, False, dx, step_dx, n_whole,
                         n_last)


cdef void log_softmax_backward_short(Array dy, Array y, Array dx, Py_ssize_t i, Py_ssize_t first, Py_ssize_t n_frames,
                                     Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """log_softmax_backward_frame for n_frames adjacent frames of at most SHORT_MAX_CLASSES classes."""
    cdef floating padded[GROUP_FRAMES * SHORT_MAX_CLASSES]
    cdef floating padded_y[GROUP_FRAMES * SHORT_MAX_CLASSES]
    cdef floating stage[GROUP_FRAMES * SHORT_MAX_CLASSES + N_LANES]
    cdef floating of[5 * GROUP_FRAMES]
    cdef double half[8 * GROUP_FRAMES]
    cdef double half_error[8 * GROUP_FRAMES]
    cdef ScaledGroup scaled
    cdef floating* to = stage
    cdef Py_ssize_t n_vectors = count_vectors(n), step = 0, step_y = 0, step_dx = n, n_last = N_LANES
    cdef Py_ssize_t n_whole = 0, f, k
    cdef const floating* v = find_short(dy, i, first, n_frames, n, <floating> 0, padded, &step)
    cdef const floating* w = find_short(y, i, first, n_frames, n, <floating> -1, padded_y, &step_y)
    cdef floating least
    cdef bint easy, direct, in_place = v != padded and w != padded_y
    for k in range(n_frames * 8, GROUP_FRAMES * 8):
        half[k] = half_error[k] = 0
    if n_vectors == 1:
        least = sum_gradient_vectors(v, step, w, step_y, 1, n_frames, half, half_error)
    elif n_vectors == 2:
        least = sum_gradient_vectors(v, step, w, step_y, 2, n_frames, half, half_error)
    elif n_vectors == 3:
        least = sum_gradient_vectors(v, step, w, step_y, 3, n_frames, half, half_error)
    else:
        least = sum_gradient_vectors(v, step, w, step_y, 4, n_frames, half, half_error)
    easy = least > -INFINITY or not is_careful_group(w, step_y, n_frames, n, not (least <= 0))
    if not (scale_group(half, half_error, &scaled, scratch) and easy):
        for f in range(n_frames):
            log_softmax_backward_frame(frame_at(dy, i, first + f), frame_at(y, i, first + f),
                                       frame_at(dx, i, first + f), n, scratch, stream)
        return
    for f in range(GROUP_FRAMES):  # hot
        of[f] = <floating> scaled.s_hi[f]
        of[GROUP_FRAMES + f] = <floating> scaled.s_lo[f]
        of[2 * GROUP_FRAMES + f] = <floating> scaled.s[f]
        of[3 * GROUP_FRAMES + f] = <floating> scaled.magic[f]
        of[4 * GROUP_FRAMES + f] = <floating> scaled.lowest[f]
    direct = is_native(frame_at(dx, i, first), v) and dx.gap % <Py_ssize_t> sizeof(floating) == 0
    # Nontemporal stores against regular ones: float64 14.0 and 12.0 ns at 500000x32, padded frames 8.6 and 7.6 at
    # 1000000x20; float32 in place 4.8 and 5.5, 16 bits 7.2 and 7.7 at 1000000x32.
    if floating is double or (direct and not in_place):
        stream = False
    if direct and not stream:
        to = <floating*> frame_at(dx, i, first).at
        step_dx = dx.gap // <Py_ssize_t> sizeof(floating)
        n_last = n - (n_vectors - 1) * N_LANES
        n_whole = count_whole(n_frames, n, step_dx)
    if n_vectors == 1:
        gradient_group(v, step, w, step_y, 1, n_frames, in_place, of, least, to, step_dx, n_whole, n_last)
    elif n_vectors == 2:
        gradient_group(v, step, w, step_y, 2, n_frames, in_place, of, least, to, step_dx, n_whole, n_last)
    elif n_vectors == 3:
        gradient_group(v, step, w, step_y, 3, n_frames, in_place, of, least, to, step_dx, n_whole, n_last)
    else:
        gradient_group(v, step, w, step_y, 4, n_frames, in_place, of, least, to, step_dx, n_whole, n_last)
    if to == stage:
        write_group(stage, dx, i, first, n_frames, n, stream)
