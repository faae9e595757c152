# The passes of the gradient: S of one part of a frame is summed while the gradient of another is written.


cdef inline void gradient_lanes(const floating* dy, const floating* y, floating s_hi, floating s_lo, floating s,
                                floating magic, floating lowest, floating* to, bint past,
                                uint32_t* most_f, uint64_t* most_d) noexcept nogil:
    """dx = dy - exp(y) * S of N_LANES classes none of which is large, and the largest y in terms of lsm_beyond."""
    cdef floating p[N_LANES]
    cdef Py_ssize_t k
    for k in range(N_LANES):  # hot
        p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
    put_lanes(to, p, past)
    for k in range(N_LANES):
        if floating is float:
            most_f[k] = max(most_f[k], lsm_beyond_f(y[k], <float> -0.6931471805599453))
        else:
            most_d[k] = max(most_d[k], lsm_beyond_d(y[k], -0.6931471805599453))


cdef inline void pass_row_backward(bint find, const floating** a, Py_ssize_t at, double* v, bint put,
                                   const floating* dy, const floating* y, floating s_hi, floating s_lo, floating s,
                                   floating magic, floating lowest, floating* to, bint past,
                                   uint32_t* most_f, uint64_t* most_d) noexcept nogil:
    """The gradient of a row, and v = (row 0 + row 1) + (row 2 + row 3) of N_LANES classes of the block a."""
    cdef Py_ssize_t k
    if put:
        gradient_lanes(dy, y, s_hi, s_lo, s, magic, lowest, to, past, most_f, most_d)
        gradient_lanes(&dy[N_LANES], &y[N_LANES], s_hi, s_lo, s, magic, lowest, &to[N_LANES], past,
                       most_f, most_d)
        gradient_lanes(&dy[2 * N_LANES], &y[2 * N_LANES], s_hi, s_lo, s, magic, lowest, &to[2 * N_LANES], past,
                       most_f, most_d)
        gradient_lanes(&dy[3 * N_LANES], &y[3 * N_LANES], s_hi, s_lo, s, magic, lowest, &to[3 * N_LANES], past,
                       most_f, most_d)
    if find:
        for k in range(N_LANES):  # hot
            v[at + k] = ((<double> a[0][at + k] + <double> a[1][at + k])
                         + (<double> a[2][at + k] + <double> a[3][at + k]))


cdef inline bint pass_block_backward(bint find, const floating** a, double* total, double* error, bint put,
                                     const floating* dy, const floating* y, Py_ssize_t n_rows, const floating* edge_dy,
                                     const floating* edge_y, Py_ssize_t n_groups, floating s_hi, floating s_lo,
                                     floating s, floating magic, floating lowest, floating* to,
                                     bint past) noexcept nogil:
    """Whether some y of the block is_large: its gradient is then to be computed again.

    n_rows, a constant to the compiler, and n_groups: how many rows, and groups of N_LANES in the edge, are written.
    """
    cdef double v[N_ROW]
    cdef uint32_t most_f[N_LANES]
    cdef uint64_t most_d[N_LANES]
    cdef uint32_t largest_f = 0
    cdef uint64_t largest_d = 0
    cdef Py_ssize_t k, g
    for k in range(N_LANES):
        most_f[k] = 0
        most_d[k] = 0
    pass_row_backward(find, a, 0, v, put and n_rows > 0, dy, y, s_hi, s_lo, s, magic, lowest, to, past, most_f,
                      most_d)
    pass_row_backward(find, a, N_LANES, v, put and n_rows > 1, &dy[N_ROW], &y[N_ROW], s_hi, s_lo, s, magic, lowest,
                      &to[N_ROW], past, most_f, most_d)
    pass_row_backward(find, a, 2 * N_LANES, v, put and n_rows > 2, &dy[2 * N_ROW], &y[2 * N_ROW], s_hi, s_lo, s, magic,
                      lowest, &to[2 * N_ROW], past, most_f, most_d)
    pass_row_backward(find, a, 3 * N_LANES, v, put and n_rows > 3, &dy[3 * N_ROW], &y[3 * N_ROW], s_hi, s_lo, s, magic,
                      lowest, &to[3 * N_ROW], past, most_f, most_d)
    for g in range(n_groups):
        gradient_lanes(&edge_dy[g * N_LANES], &edge_y[g * N_LANES], s_hi, s_lo, s, magic, lowest,
                       &to[n_rows * N_ROW + g * N_LANES], past, most_f, most_d)
    if find:
        add_groups(total, error, v, N_LANES, 4, floating is double)
    if floating is float:
        for k in range(N_LANES):
            largest_f = max(largest_f, most_f[k])
        return largest_f > lsm_beyond_f(-INFINITY, <float> -0.6931471805599453)
    else:
        for k in range(N_LANES):
            largest_d = max(largest_d, most_d[k])
        return largest_d > lsm_beyond_d(-INFINITY, -0.6931471805599453)


cdef inline bint some_large(const floating* y, Py_ssize_t n) noexcept nogil:
    """Whether is_large of any of n classes."""
    cdef uint32_t most_f = 0
    cdef uint64_t most_d = 0
    cdef Py_ssize_t k
    if floating is float:
        for k in range(n):
            most_f = max(most_f, lsm_beyond_f(y[k], <float> -0.6931471805599453))
        return most_f > lsm_beyond_f(-INFINITY, <float> -0.6931471805599453)
    else:
        for k in range(n):
            most_d = max(most_d, lsm_beyond_d(y[k], -0.6931471805599453))
        return most_d > lsm_beyond_d(-INFINITY, -0.6931471805599453)


cdef inline Py_ssize_t gradient_large(const floating* dy, const floating* y, Py_ssize_t n, floating s_hi, floating s_lo,
                                      floating s, floating magic, floating lowest, floating* to) noexcept nogil:
    """dx of those of n classes, whole lanes, that are computed otherwise than gradient_lanes has done.

    How many y are out of range. One class is large, rarely two: the others of its lanes get the same bits again.
    """
    cdef floating p[N_LANES]
    cdef Py_ssize_t g, i, k, n_bad = 0
    for g in range(n // N_LANES):
        i = g * N_LANES
        if not some_large(&y[i], N_LANES):
            continue
        if some_odd(&y[i], N_LANES):
            for k in range(N_LANES):
                p[k] = gradient_of_any(dy[i + k], y[i + k], s_hi, s_lo, s, magic, lowest)
                n_bad += exceeds(y[i + k])
        else:
            for k in range(N_LANES):  # hot
                p[k] = gradient(dy[i + k], y[i + k], s_hi, s_lo, s, magic, lowest, True)
        memcpy(&to[i], p, N_LANES * sizeof(floating))
    return n_bad


cdef inline Py_ssize_t pass_blocks_backward(bint find, Vector a, double* total, double* error, bint put, Vector dy,
                                            Vector y, Vector dx, Scaled of, bint stream, bint far, Py_ssize_t first,
                                            Py_ssize_t last, const floating* type) noexcept nogil:
    """The passes that are wished, over blocks `first` to last - 1 of two parts; how many y are out of range."""
    cdef floating buffer_a[N_BLOCK]
    cdef floating buffer_dy[N_BLOCK]
    cdef floating buffer_y[N_BLOCK]
    cdef floating w[N_BLOCK]
    cdef const floating* at_a[4]
    cdef const floating* at_dy = NULL
    cdef const floating* at_y = NULL
    cdef floating* to = w
    cdef bint direct = not stream and is_native(dx, w) and dx.at != dy.at and dx.at != y.at
    cdef floating s_hi = <floating> of.s_hi, s_lo = <floating> of.s_lo, s = <floating> of.s
    cdef floating magic = <floating> of.magic, lowest = <floating> of.lowest
    cdef bint past = can_pass(dx, stream, w), is_large = False
    cdef Py_ssize_t block, n_bad = 0
    for block in range(first, last):
        if find:
            if far:
                lsm_prefetch(a.at + (block * N_BLOCK + N_AHEAD) * a.step, N_BLOCK * size_of(a.kind), False)
            at_a[0] = load_block(a, block * N_BLOCK, buffer_a)
            at_a[1] = at_a[0] + N_ROW
            at_a[2] = at_a[0] + 2 * N_ROW
            at_a[3] = at_a[0] + 3 * N_ROW
        if put:
            if far:
                lsm_prefetch(y.at + (block * N_BLOCK + N_AHEAD) * y.step, N_BLOCK * size_of(y.kind), False)
            if direct and far:
                lsm_prefetch(dx.at + (block * N_BLOCK + N_AHEAD) * dx.step, N_BLOCK * size_of(dx.kind), False)
            if direct or past:
                to = <floating*> dx.at + block * N_BLOCK
            at_dy = load_block(dy, block * N_BLOCK, buffer_dy)
            at_y = load_block(y, block * N_BLOCK, buffer_y)
        if put and past:
            is_large = pass_block_backward(find, at_a, total, error, put, at_dy, at_y, 4, at_dy, at_y, 0, s_hi, s_lo,
                                           s, magic, lowest, to, True)
        else:
            is_large = pass_block_backward(find, at_a, total, error, put, at_dy, at_y, 4, at_dy, at_y, 0, s_hi, s_lo,
                                           s, magic, lowest, to, False)
        if put and is_large:
            n_bad += gradient_large(at_dy, at_y, N_BLOCK, s_hi, s_lo, s, magic, lowest, to)
        if put and not direct and not past:
            write_block(dx, block * N_BLOCK, w, stream)
    return n_bad


cdef Py_ssize_t pass_two(Vector a, Py_ssize_t n_a, double* total, double* error, Vector dy, Vector y, Vector dx,
                         Py_ssize_t n, Scaled of, bint stream, bint far, const floating* type) noexcept nogil:
    """Sum n_a classes, write the gradient of n: together as far as they go together; how many y are out of range."""
    cdef Py_ssize_t together = min(n_a, n) // N_BLOCK, last_a = n_a // N_BLOCK, last = n // N_BLOCK, n_bad = 0
    if together:
        n_bad += pass_blocks_backward(True, a, total, error, True, dy, y, dx, of, stream, far, 0, together, type)
    if last_a > together:
        pass_blocks_backward(True, a, total, error, False, dy, y, dx, of, stream, far, together, last_a, type)
    if last > together:
        n_bad += pass_blocks_backward(False, a, total, error, True, dy, y, dx, of, stream, far, together, last, type)
    if n_a == n and n % N_BLOCK:
        return n_bad + pass_edge_backward(True, a, total, error, True, dy, y, dx, n, of, stream, far, type)
    if n_a % N_BLOCK:
        pass_edge_backward(True, a, total, error, False, dy, y, dx, n_a, of, stream, far, type)
    if n % N_BLOCK:
        n_bad += pass_edge_backward(False, a, total, error, True, dy, y, dx, n, of, stream, far, type)
    return n_bad


cdef inline Py_ssize_t pass_edge_backward(bint find, Vector a, double* total, double* error, bint put, Vector dy,
                                          Vector y, Vector dx, Py_ssize_t n, Scaled of, bint stream, bint far,
                                          const floating* type) noexcept nogil:
    """The passes that are wished, over the n % N_BLOCK classes after the last block of two parts."""
    cdef floating buffer_a[N_BLOCK]
    cdef floating buffer[N_BLOCK]
    cdef floating buffer_y[N_BLOCK]
    cdef floating edge_a[N_ROW]
    cdef floating edge[N_ROW]
    cdef floating edge_y[N_ROW]
    cdef floating zero[N_ROW]
    cdef floating w[N_BLOCK + N_LANES]
    cdef const floating* rows[4]
    cdef const floating* at_dy = NULL
    cdef const floating* at_y = NULL
    cdef floating s_hi = <floating> of.s_hi, s_lo = <floating> of.s_lo, s = <floating> of.s
    cdef floating magic = <floating> of.magic, lowest = <floating> of.lowest
    cdef Py_ssize_t n_rest = n % N_BLOCK, start = n - n % N_BLOCK, n_rows = n_rest // N_ROW, n_edge = n_rest % N_ROW
    cdef Py_ssize_t n_groups = (n_edge + N_LANES - 1) // N_LANES if put else 0, q, n_bad = 0
    cdef bint is_large
    if find:
        if far:
            lsm_prefetch(a.at + (start + N_AHEAD) * a.step, n_rest * size_of(a.kind), False)
        rows[0] = load(a, start, n_rest, buffer_a)
        pad(edge_a, &rows[0][n_rows * N_ROW], n_edge, N_ROW, 0)
        for q in range(N_ROW):
            zero[q] = 0
        for q in range(1, 4):
            rows[q] = rows[0] + q * N_ROW
        rows[n_rows] = edge_a
        for q in range(n_rows + 1, 4):
            rows[q] = zero
    if put:
        if far:
            lsm_prefetch(y.at + (start + N_AHEAD) * y.step, n_rest * size_of(y.kind), False)
        at_dy = load(dy, start, n_rest, buffer)
        at_y = load(y, start, n_rest, buffer_y)
        pad(edge, &at_dy[n_rows * N_ROW], n_edge, N_ROW, 0)
        pad(edge_y, &at_y[n_rows * N_ROW], n_edge, N_ROW, -INFINITY)
    if n_rows == 3:
        is_large = pass_block_backward(find, rows, total, error, put, at_dy, at_y, 3, edge, edge_y, n_groups, s_hi,
                                       s_lo, s, magic, lowest, w, False)
    elif n_rows == 2:
        is_large = pass_block_backward(find, rows, total, error, put, at_dy, at_y, 2, edge, edge_y, n_groups, s_hi,
                                       s_lo, s, magic, lowest, w, False)
    elif n_rows == 1:
        is_large = pass_block_backward(find, rows, total, error, put, at_dy, at_y, 1, edge, edge_y, n_groups, s_hi,
                                       s_lo, s, magic, lowest, w, False)
    else:
        is_large = pass_block_backward(find, rows, total, error, put, at_dy, at_y, 0, edge, edge_y, n_groups, s_hi,
                                       s_lo, s, magic, lowest, w, False)
    if put and is_large:
        n_bad += gradient_large(at_dy, at_y, n_rows * N_ROW, s_hi, s_lo, s, magic, lowest, w)
        n_bad += gradient_large(edge, edge_y, n_groups * N_LANES, s_hi, s_lo, s, magic, lowest, &w[n_rows * N_ROW])
    if put:
        write(dx, start, n_rest, w, False)
    return n_bad
