# The gradient of a group of short frames.


# What `gradient` needs of the S of a group, see Scaled.
cdef struct ScaledGroup:
    double s_hi[N_GROUP]
    double s_lo[N_GROUP]
    double s[N_GROUP]
    double magic[N_GROUP]
    double lowest[N_GROUP]


cdef inline bint scale_group(const double* half, const double* half_error, ScaledGroup* to,
                             const floating* of) noexcept nogil:
    """The sums of a group, prepared; False where one would leave the range of its type."""
    cdef double total[8 * N_GROUP]
    cdef double error[8 * N_GROUP]
    cdef Scaled scaled
    cdef int n_easy = 0
    cdef Py_ssize_t f
    end_sums(half, half_error, total, error, of)
    for f in range(N_GROUP):  # hot
        n_easy += scale_sum(total[f], <double> 0 if floating is float else error[f], &scaled, floating is float)
        to.s_hi[f] = scaled.s_hi
        to.s_lo[f] = scaled.s_lo
        to.s[f] = scaled.s
        to.magic[f] = scaled.magic
        to.lowest[f] = scaled.lowest
    return n_easy == N_GROUP


cdef inline void sum_gradient_vectors(const floating* dy, Py_ssize_t step, const floating* y, Py_ssize_t step_y,
                                      Py_ssize_t n_vectors, Py_ssize_t n_frames, double* half, double* half_error,
                                      floating* n_odd) noexcept nogil:
    """The sum of each frame's gradients, in eight lanes; how many y are odd, of all."""
    cdef floating found[N_LANES]
    cdef const floating* w
    cdef double v[N_SHORT]
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Py_ssize_t f, k
    for k in range(N_LANES):
        found[k] = 0
    for f in range(n_frames):
        w = &y[f * step_y]
        for k in range(N_LANES):  # hot
            found[k] += <floating> 1 if is_odd(w[k]) else <floating> 0
            if n_vectors > 1:
                found[k] += <floating> 1 if is_odd(w[k + N_LANES]) else <floating> 0
            if n_vectors > 2:
                found[k] += <floating> 1 if is_odd(w[k + 2 * N_LANES]) else <floating> 0
            if n_vectors > 3:
                found[k] += <floating> 1 if is_odd(w[k + 3 * N_LANES]) else <floating> 0
        for k in range(n_vectors * N_LANES):  # hot
            v[k] = dy[f * step + k]
        clear_lanes(total, error, N_LANES, dy)
        add_groups(total, error, v, N_LANES, n_vectors, floating is double)
        half_lanes(total, error, &half[f * 8], &half_error[f * 8], dy)
    for k in range(N_LANES):
        n_odd[k] = found[k]


cdef inline void gradient_vectors(const floating* dy, Py_ssize_t step, const floating* y, Py_ssize_t step_y,
                                  Py_ssize_t n_vectors, Py_ssize_t n_frames, const floating* of, floating* dx,
                                  Py_ssize_t step_dx, Py_ssize_t n_last) noexcept nogil:
    """dx = dy - exp(y) * S of each frame. Of few classes one is large in most frames: `gradient` is told so."""
    cdef floating p[N_SHORT]
    cdef floating s_hi, s_lo, s, magic, lowest
    cdef const floating* v
    cdef const floating* w
    cdef Py_ssize_t f, k
    for f in range(n_frames):
        v = &dy[f * step]
        w = &y[f * step_y]
        s_hi = of[f]
        s_lo = of[N_GROUP + f]
        s = of[2 * N_GROUP + f]
        magic = of[3 * N_GROUP + f]
        lowest = of[4 * N_GROUP + f]
        for k in range(n_vectors * N_LANES):  # hot
            p[k] = gradient(v[k], w[k], s_hi, s_lo, s, magic, lowest, True)
        put_vectors(&dx[f * step_dx], p, n_vectors, n_last)


cdef void log_softmax_backward_short(Array dy, Array y, Array dx, Py_ssize_t i, Py_ssize_t first, Py_ssize_t n_frames,
                                     Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """log_softmax_backward_frame for n_frames neighbouring frames of at most N_SHORT classes."""
    cdef floating padded[N_GROUP * N_SHORT]
    cdef floating padded_y[N_GROUP * N_SHORT]
    cdef floating stage[N_GROUP * N_SHORT + N_LANES]
    cdef floating of[5 * N_GROUP]
    cdef floating n_odd[N_LANES]
    cdef double half[8 * N_GROUP]
    cdef double half_error[8 * N_GROUP]
    cdef ScaledGroup scaled
    cdef floating* to = stage
    cdef Py_ssize_t n_vectors = count_vectors(n), step = 0, step_y = 0, step_dx = n, n_last = N_LANES, f, k
    cdef const floating* v = find_short(dy, i, first, n_frames, n, <floating> 0, padded, &step)
    cdef const floating* w = find_short(y, i, first, n_frames, n, <floating> -INFINITY, padded_y, &step_y)
    cdef bint easy = True
    ask_for_group(dy, i, first, n_frames, n)
    ask_for_group(y, i, first, n_frames, n)
    for k in range(n_frames * 8, N_GROUP * 8):
        half[k] = half_error[k] = 0
    if n_vectors == 1:
        sum_gradient_vectors(v, step, w, step_y, 1, n_frames, half, half_error, n_odd)
    elif n_vectors == 2:
        sum_gradient_vectors(v, step, w, step_y, 2, n_frames, half, half_error, n_odd)
    elif n_vectors == 3:
        sum_gradient_vectors(v, step, w, step_y, 3, n_frames, half, half_error, n_odd)
    else:
        sum_gradient_vectors(v, step, w, step_y, 4, n_frames, half, half_error, n_odd)
    for k in range(N_LANES):
        easy &= n_odd[k] == 0
    for f in range(n_frames):
        easy &= w[f * step_y] > -INFINITY or not is_masked(native(&w[f * step_y]), n, scratch)
    if not (scale_group(half, half_error, &scaled, scratch) and easy):
        for f in range(n_frames):
            log_softmax_backward_frame(frame_at(dy, i, first + f), frame_at(y, i, first + f),
                                       frame_at(dx, i, first + f), n, scratch, stream)
        return
    for f in range(N_GROUP):  # hot
        of[f] = <floating> scaled.s_hi[f]
        of[N_GROUP + f] = <floating> scaled.s_lo[f]
        of[2 * N_GROUP + f] = <floating> scaled.s[f]
        of[3 * N_GROUP + f] = <floating> scaled.magic[f]
        of[4 * N_GROUP + f] = <floating> scaled.lowest[f]
    if not stream and is_native(frame_at(dx, i, first), v) and dx.gap % <Py_ssize_t> sizeof(floating) == 0:
        to = <floating*> frame_at(dx, i, first).at
        step_dx = dx.gap // <Py_ssize_t> sizeof(floating)
        n_last = n - (n_vectors - 1) * N_LANES
    if n_vectors == 1:
        gradient_vectors(v, step, w, step_y, 1, n_frames, of, to, step_dx, n_last)
    elif n_vectors == 2:
        gradient_vectors(v, step, w, step_y, 2, n_frames, of, to, step_dx, n_last)
    elif n_vectors == 3:
        gradient_vectors(v, step, w, step_y, 3, n_frames, of, to, step_dx, n_last)
    else:
        gradient_vectors(v, step, w, step_y, 4, n_frames, of, to, step_dx, n_last)
    if to == stage:
        write_group(stage, dx, i, first, n_frames, n, stream)
