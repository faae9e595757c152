# The gradient of frames one at a time.

# S = sum(dy) of some of a frame's classes.
cdef struct Sum:
    double total
    double error  # is to be added to it


cdef inline void add_block_of_gradients(const floating* dy, Py_ssize_t n, double* total, double* error) noexcept nogil:
    """Add n <= N_BLOCK gradients to the lanes; rows that are not there count as 0."""
    cdef double v[N_ROW]
    cdef floating edge[N_ROW]
    cdef floating zero[N_ROW]
    cdef const floating* rows[4]
    cdef Py_ssize_t q, k, n_rest = n % N_ROW
    for q in range(4):
        rows[q] = &dy[q * N_ROW]
    if n < N_BLOCK:
        pad(edge, &dy[n - n_rest], n_rest, 0)
        for k in range(N_ROW):
            zero[k] = 0
        rows[n // N_ROW] = edge
        for q in range(n // N_ROW + 1, 4):
            rows[q] = zero
    for k in range(N_ROW):  # hot
        v[k] = (<double> rows[0][k] + <double> rows[1][k]) + (<double> rows[2][k] + <double> rows[3][k])
    add_groups(total, error, v, N_LANES, 4, floating is double)


cdef Sum sum_part(Vector dy, Py_ssize_t part, Py_ssize_t n, const char* ahead, size_t n_ahead,
                  floating* scratch) noexcept nogil:
    """The sum of the part-th slice. Meanwhile n_ahead bytes for each block are asked for."""
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Sum found
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef Py_ssize_t block
    cdef floating buffer[N_BLOCK]
    cdef Vector source = dense(dy, start, n_slice, scratch)
    clear_lanes(total, error, N_LANES, scratch)
    for block in range(n_slice // N_BLOCK):
        lsm_prefetch(ahead + block * n_ahead, n_ahead, n <= N_NEAR)
        add_block_of_gradients(load(source, block * N_BLOCK, N_BLOCK, buffer), N_BLOCK, total, error)
    if n_slice % N_BLOCK:
        block = n_slice // N_BLOCK * N_BLOCK
        add_block_of_gradients(load(source, block, n_slice - block, buffer), n_slice - block, total, error)
    fold_lanes(total, error, N_LANES, 1, scratch)
    found.total = total[0]
    found.error = error[0]
    return found


cdef Sum sum_frame(Vector dy, Vector y, Py_ssize_t n, floating* scratch) noexcept nogil:
    """S. Of a short frame y is asked for meanwhile; of a long one dy itself: they would push each other out."""
    cdef Sum found, of_part
    cdef Py_ssize_t part
    cdef bint is_short = n <= N_SLICE
    cdef const char* ahead = y.at if is_short else dy.at + 8 * N_BLOCK * dy.step
    cdef size_t n_ahead = N_BLOCK * (y.step if is_short else dy.step)
    if dy.step != size_of(dy.kind) or y.step != size_of(y.kind):
        n_ahead = 0
    found.total = found.error = 0
    for part in range(count_slices(n)):
        of_part = sum_part(dy, part, n, ahead, n_ahead, scratch)
        ahead += N_SLICE * dy.step
        add_sum(&found, of_part)
    return found


cdef inline void add_sum(Sum* found, Sum of_part) noexcept nogil:
    two_sum(&found.total, &found.error, of_part.total)
    found.error += of_part.error


cdef inline Py_ssize_t gradient_block(const floating* dy, const floating* y, Vector dx, Py_ssize_t start, Py_ssize_t n,
                                      floating s_hi, floating s_lo, floating s, floating magic, floating lowest,
                                      bint stream) noexcept nogil:
    """dx = dy - exp(y) * S of at most N_BLOCK classes; how many y are out of range.

    Whether some y > -ln 2 is found on the way (by unsigned integers, in half the time of asking each), and if so
    the block is computed again.
    """
    cdef floating p[N_BLOCK]
    cdef floating* target = <floating*> dx.at + start
    cdef bint direct = not stream and is_native(dx, dy) and target != dy and target != y
    cdef uint32_t most_f = 0
    cdef uint64_t most_d = 0
    cdef Py_ssize_t k
    cdef int n_bad = 0
    if direct:
        for k in range(n):  # hot
            target[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
            if floating is float:
                most_f = max(most_f, lsm_beyond_f(y[k], <float> -0.6931471805599453))
            else:
                most_d = max(most_d, lsm_beyond_d(y[k], -0.6931471805599453))
    else:
        for k in range(n):  # hot
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
            if floating is float:
                most_f = max(most_f, lsm_beyond_f(y[k], <float> -0.6931471805599453))
            else:
                most_d = max(most_d, lsm_beyond_d(y[k], -0.6931471805599453))
    if (most_f > lsm_beyond_f(-INFINITY, <float> -0.6931471805599453)
            or most_d > lsm_beyond_d(-INFINITY, -0.6931471805599453)):
        for k in range(n):  # hot
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, True)
            n_bad += exceeds(y[k])
        direct = False
    if not direct:
        write(dx, start, n, p, stream)
    return n_bad


cdef Py_ssize_t gradient_part(Vector dy, Vector y, Vector dx, Py_ssize_t part, Py_ssize_t n, Scaled of,
                              floating* scratch, floating* scratch_y, const char* ahead_dy,
                              bint stream) noexcept nogil:
    """dx of the part-th slice of a frame; how many y are out of range. ahead_dy: what of dy will be read next."""
    cdef floating s_hi = <floating> of.s_hi, s_lo = <floating> of.s_lo, s = <floating> of.s
    cdef floating magic = <floating> of.magic, lowest = <floating> of.lowest
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef Py_ssize_t i, k, n_bad = 0
    cdef floating buffer[N_BLOCK]
    cdef floating buffer_y[N_BLOCK]
    cdef Vector source = dense(dy, start, n_slice, scratch)
    cdef Vector source_y = dense(y, start, n_slice, scratch_y)
    cdef const char* ahead = y.at + (start + 4 * N_BLOCK) * y.step
    cdef size_t n_ahead = N_BLOCK * y.step if y.step == size_of(y.kind) and n > N_SLICE else 0
    cdef size_t n_ahead_dy = N_BLOCK * dy.step if dy.step == size_of(dy.kind) else 0
    dx.at += start * dx.step
    i = min(misaligned(dx, stream), n_slice)
    if i:
        n_bad += gradient_edge(load(source, 0, i, buffer), load(source_y, 0, i, buffer_y), dx, 0, i, s_hi,
                               s_lo, s, magic, lowest, stream)
    for k in range((n_slice - i) // N_BLOCK):
        lsm_prefetch(ahead + k * n_ahead, n_ahead, n <= N_NEAR)
        lsm_prefetch(ahead_dy + k * n_ahead_dy, n_ahead_dy, n <= N_NEAR)
        n_bad += gradient_block(load(source, i, N_BLOCK, buffer), load(source_y, i, N_BLOCK, buffer_y), dx, i, N_BLOCK,
                                s_hi, s_lo, s, magic, lowest, stream)
        i += N_BLOCK
    for k in range((n_slice - i) // N_ROW):
        n_bad += gradient_block(load(source, i, N_ROW, buffer), load(source_y, i, N_ROW, buffer_y), dx, i, N_ROW,
                                s_hi, s_lo, s, magic, lowest, stream)
        i += N_ROW
    if i < n_slice:
        k = n_slice - i
        n_bad += gradient_edge(load(source, i, k, buffer), load(source_y, i, k, buffer_y), dx, i, k, s_hi, s_lo, s,
                               magic, lowest, stream)
    return n_bad


cdef Py_ssize_t gradient_edge(const floating* dy, const floating* y, Vector dx, Py_ssize_t start, Py_ssize_t n,
                              floating s_hi, floating s_lo, floating s, floating magic, floating lowest,
                              bint stream) noexcept nogil:
    """gradient_block of less than N_ROW classes, by way of whole lanes: single exponentials take their time."""
    cdef floating edge[N_ROW]
    cdef floating edge_y[N_ROW]
    cdef floating p[N_ROW]
    cdef Py_ssize_t n_bad
    pad(edge, dy, n, 0)
    pad(edge_y, y, n, -INFINITY)
    n_bad = gradient_block(edge, edge_y, native(p), 0, N_ROW, s_hi, s_lo, s, magic, lowest, False)
    write(dx, start, n, p, False)
    return n_bad


cdef void log_softmax_backward_frame(Vector dy, Vector y, Vector dx, Py_ssize_t n, floating* scratch,
                                     bint stream) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)."""
    finish_backward_frame(dy, y, dx, n, sum_frame(dy, y, n, scratch), scratch, scratch + N_SLICE, dy.at + n * dy.step,
                          stream)


cdef void finish_backward_frame(Vector dy, Vector y, Vector dx, Py_ssize_t n, Sum s, floating* scratch,
                                floating* scratch_y, const char* ahead_dy, bint stream) noexcept nogil:
    """dx of a frame whose S is known. ahead_dy: the frame of dy that will be read next."""
    cdef const char* ahead
    cdef Scaled of
    cdef Py_ssize_t part, n_bad = 0
    if is_masked(y, n, scratch) or not scale_sum(s.total, s.error, &of, floating is float):
        careful_backward_frame(dy, y, dx, n, scratch)
        return
    for part in range(count_slices(n)):
        if part < count_slices(n) - 1:
            ahead = dy.at + (part + 1) * N_SLICE * dy.step
        else:
            ahead = ahead_dy
        n_bad += gradient_part(dy, y, dx, part, n, of, scratch, scratch_y, ahead, stream)
    if n_bad:
        fill_nan(dx, n, scratch)


cdef void log_softmax_backward_rows(Array dy, Array y, Array dx, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n,
                                    floating* scratch, bint stream) noexcept nogil:
    """log_softmax_backward_frame for frames `first` to last - 1 of at most N_PIPED classes, in two stages."""
    cdef floating stage[N_PIPED]
    cdef Vector source[2]
    cdef Vector target
    cdef Sum s[2]
    cdef Py_ssize_t i, k
    for i in range(first, last + 1):
        if i < last:
            source[i % 2] = dense(frame_at(dy, 0, i), 0, n, slot(scratch, i % 2, n))
            s[i % 2] = sum_frame(source[i % 2], frame_at(y, 0, i), n, scratch)
        if i > first:
            k = (i - 1) % 2
            target = native(stage) if stream else frame_at(dx, 0, i - 1)
            finish_backward_frame(source[k], frame_at(y, 0, i - 1), target, n, s[k], scratch, scratch + N_SLICE,
                                  frame_at(dy, 0, i + 1).at, False)
            if stream:
                write(frame_at(dx, 0, i - 1), 0, n, stage, True)
