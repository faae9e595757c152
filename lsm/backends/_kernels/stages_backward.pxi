# The stages of the gradient: S of one part of a frame is summed while the gradient of another is written.


cdef inline void gradient_lanes(const char* dy, const char* y, Py_ssize_t n, int kind, floating s_hi, floating s_lo,
                                floating s, floating magic, floating lowest, char* to, bint nontemporal,
                                uint32_t* most_f, uint64_t* most_d) noexcept nogil:
    """dx = dy - exp(y) * S for n classes, none of them large; tracks the largest y by lsm_beyond.

    n, N_LANES or PAIR_LANES, is a compile-time constant.
    """
    cdef floating v[PAIR_LANES]
    cdef floating w[PAIR_LANES]
    cdef floating p[PAIR_LANES]
    cdef Py_ssize_t k
    take_some(v, dy, n, kind)
    take_some(w, y, n, kind)
    for k in range(n):  # hot
        p[k] = gradient(v[k], w[k], s_hi, s_lo, s, magic, lowest, False, True)
    give_some(to, p, n, kind, nontemporal)
    for k in range(N_LANES):
        if floating is float:
            most_f[k] = max(most_f[k], lsm_beyond_f(w[k], <float> -0.6931471805599453))
            if n == PAIR_LANES:
                most_f[k] = max(most_f[k], lsm_beyond_f(w[N_LANES + k], <float> -0.6931471805599453))
        else:
            most_d[k] = max(most_d[k], lsm_beyond_d(w[k], -0.6931471805599453))
            if n == PAIR_LANES:
                most_d[k] = max(most_d[k], lsm_beyond_d(w[N_LANES + k], -0.6931471805599453))


cdef inline void gradient_row_of_block(const char* dy, const char* y, int kind, floating s_hi, floating s_lo,
                                       floating s, floating magic, floating lowest, char* to, bint nontemporal,
                                       uint32_t* most_f, uint64_t* most_d) noexcept nogil:
    """gradient_lanes for a row."""
    cdef Py_ssize_t size = N_LANES * size_of(kind)
    if kind == BFLOAT16:
        gradient_lanes(dy, y, PAIR_LANES, kind, s_hi, s_lo, s, magic, lowest, to, nontemporal, most_f, most_d)
        gradient_lanes(dy + 2 * size, y + 2 * size, PAIR_LANES, kind, s_hi, s_lo, s, magic, lowest, to + 2 * size,
                       nontemporal, most_f, most_d)
    else:
        gradient_lanes(dy, y, N_LANES, kind, s_hi, s_lo, s, magic, lowest, to, nontemporal, most_f, most_d)
        gradient_lanes(dy + size, y + size, N_LANES, kind, s_hi, s_lo, s, magic, lowest, to + size, nontemporal, most_f,
                       most_d)
        gradient_lanes(dy + 2 * size, y + 2 * size, N_LANES, kind, s_hi, s_lo, s, magic, lowest, to + 2 * size,
                       nontemporal, most_f, most_d)
        gradient_lanes(dy + 3 * size, y + 3 * size, N_LANES, kind, s_hi, s_lo, s, magic, lowest, to + 3 * size,
                       nontemporal, most_f, most_d)


cdef inline void sum_rows(const char** a, Py_ssize_t at, Py_ssize_t n, int kind, double* v,
                          const floating* type) noexcept nogil:
    """v = (row 0 + row 1) + (row 2 + row 3) for n classes from class `at` on; a: the rows of the block. n as above."""
    cdef floating a_0[PAIR_LANES]
    cdef floating a_1[PAIR_LANES]
    cdef floating a_2[PAIR_LANES]
    cdef floating a_3[PAIR_LANES]
    cdef double w[PAIR_LANES]
    cdef Py_ssize_t k
    take_some(a_0, a[0] + at * size_of(kind), n, kind)
    take_some(a_1, a[1] + at * size_of(kind), n, kind)
    take_some(a_2, a[2] + at * size_of(kind), n, kind)
    take_some(a_3, a[3] + at * size_of(kind), n, kind)
    for k in range(n):  # hot
        w[k] = (<double> a_0[k] + <double> a_1[k]) + (<double> a_2[k] + <double> a_3[k])
    if n == PAIR_LANES:
        put_in_order(&v[at], w, n, kind)
    else:
        for k in range(n):
            v[at + k] = w[k]


cdef inline bint pass_block_backward(bint find, const char** a, double* total, double* error, bint put,
                                     const char* dy, const char* y, int kind, Py_ssize_t n_rows,
                                     const floating* edge_dy, const floating* edge_y, Py_ssize_t n_groups,
                                     floating s_hi, floating s_lo, floating s, floating magic, floating lowest,
                                     char* to, bint nontemporal, Ahead ahead) noexcept nogil:
    """Whether is_large holds for any y of the block, whose gradient must then be recomputed.

    n_rows and n_groups: the number of rows, and of groups of N_LANES in the remainder, to be written.
    """
    cdef double v[ROW_CLASSES]
    cdef uint32_t most_f[N_LANES]
    cdef uint64_t most_d[N_LANES]
    cdef uint32_t largest_f = 0
    cdef uint64_t largest_d = 0
    cdef Py_ssize_t k, g, size = ROW_CLASSES * size_of(kind)
    for k in range(N_LANES):
        most_f[k] = 0
        most_d[k] = 0
    prefetch(ahead, 0, ROW_CLASSES)
    if put and n_rows > 0:
        gradient_row_of_block(dy, y, kind, s_hi, s_lo, s, magic, lowest, to, nontemporal, most_f, most_d)
    if find:
        sum_rows(a, 0, PAIR_LANES if kind == BFLOAT16 else N_LANES, kind, v, edge_y)
    if n_rows >= 1:
        prefetch(ahead, ROW_CLASSES, ROW_CLASSES if n_rows > 1 else n_groups * N_LANES)
    if put and n_rows > 1:
        gradient_row_of_block(dy + size, y + size, kind, s_hi, s_lo, s, magic, lowest, to + size, nontemporal,
                              most_f, most_d)
    if find and kind != BFLOAT16:
        sum_rows(a, N_LANES, N_LANES, kind, v, edge_y)
    if n_rows >= 2:
        prefetch(ahead, 2 * ROW_CLASSES, ROW_CLASSES if n_rows > 2 else n_groups * N_LANES)
    if put and n_rows > 2:
        gradient_row_of_block(dy + 2 * size, y + 2 * size, kind, s_hi, s_lo, s, magic, lowest, to + 2 * size,
                              nontemporal, most_f, most_d)
    if find:
        sum_rows(a, 2 * N_LANES, PAIR_LANES if kind == BFLOAT16 else N_LANES, kind, v, edge_y)
    if n_rows >= 3:
        prefetch(ahead, 3 * ROW_CLASSES, ROW_CLASSES if n_rows > 3 else n_groups * N_LANES)
    if put and n_rows > 3:
        gradient_row_of_block(dy + 3 * size, y + 3 * size, kind, s_hi, s_lo, s, magic, lowest, to + 3 * size,
                              nontemporal, most_f, most_d)
    if find and kind != BFLOAT16:
        sum_rows(a, 3 * N_LANES, N_LANES, kind, v, edge_y)
    for g in range(n_groups):
        gradient_lanes(<const char*> &edge_dy[g * N_LANES], <const char*> &edge_y[g * N_LANES], N_LANES,
                       kind_of(edge_y), s_hi, s_lo, s, magic, lowest,
                       to + n_rows * size + g * N_LANES * <Py_ssize_t> sizeof(floating), nontemporal, most_f, most_d)
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
    """Whether is_large holds for any of n classes."""
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


cdef inline Py_ssize_t gradient_large(const char* dy, const char* y, int kind, Py_ssize_t n, floating s_hi,
                                      floating s_lo, floating s, floating magic, floating lowest,
                                      char* to) noexcept nogil:
    """Recompute dx where gradient_lanes does not apply, in n classes of whole lanes; counts the y out of range.

    One class is large, rarely two. The others in its lanes get the same bits again.
    """
    cdef floating v[N_LANES]
    cdef floating w[N_LANES]
    cdef floating p[N_LANES]
    cdef Py_ssize_t g, i, k, n_bad = 0
    for g in range(n // N_LANES):
        i = g * N_LANES * size_of(kind)
        take_lanes(w, y + i, kind)
        if not some_large(w, N_LANES):
            continue
        take_lanes(v, dy + i, kind)
        if some_odd(w, N_LANES):
            for k in range(N_LANES):
                p[k] = gradient_of_any(v[k], w[k], s_hi, s_lo, s, magic, lowest)
                n_bad += exceeds(w[k])
        else:
            for k in range(N_LANES):  # hot
                p[k] = gradient(v[k], w[k], s_hi, s_lo, s, magic, lowest, True, True)
        give_lanes(to + i, p, kind, False)
    return n_bad


cdef inline Py_ssize_t pass_blocks_backward(bint find, const Vector* a, double* total, double* error, bint put,
                                            const Vector* dy, const Vector* y, const Vector* dx, int kind, Scaled of,
                                            bint stream, bint far, Py_ssize_t first, Py_ssize_t last,
                                            const floating* type) noexcept nogil:
    """The selected stages over blocks `first` to last - 1 of two parts; returns how many y are out of range.

    kind: the common 16-bit dtype of all arrays, which then have unit stride, or else the computed type, with arrays of
    any kind.
    """
    cdef floating buffer_a[BLOCK_CLASSES]
    cdef floating buffer_dy[BLOCK_CLASSES]
    cdef floating buffer_y[BLOCK_CLASSES]
    cdef floating w[BLOCK_CLASSES]
    cdef const char* at_a[4]
    cdef const char* at_dy = NULL
    cdef const char* at_y = NULL
    cdef char* to = <char*> w
    cdef bint direct = not stream and dx.kind == kind and dx.step == size_of(kind) and dx.at != dy.at and dx.at != y.at
    cdef floating s_hi = <floating> of.s_hi, s_lo = <floating> of.s_lo, s = <floating> of.s
    cdef floating magic = <floating> of.magic, lowest = <floating> of.lowest
    cdef bint nontemporal = can_stream(dx[0], kind, stream), is_large = False
    cdef Py_ssize_t block, n_bad = 0
    cdef Ahead ahead = nothing_ahead(far)
    ahead.size_1 = size_of(a.kind)
    ahead.size_2 = size_of(y.kind)
    ahead.size_written = size_of(dx.kind)
    for block in range(first, last):
        if find:
            if far:
                ahead.read_1 = prefetch_address(a[0], block * BLOCK_CLASSES)
            at_a[0] = block_at(a[0], block * BLOCK_CLASSES, kind, buffer_a)
            at_a[1] = at_a[0] + ROW_CLASSES * size_of(kind)
            at_a[2] = at_a[0] + 2 * ROW_CLASSES * size_of(kind)
            at_a[3] = at_a[0] + 3 * ROW_CLASSES * size_of(kind)
        if put:
            if far:
                ahead.read_2 = prefetch_address(y[0], block * BLOCK_CLASSES)
            if direct and far:
                ahead.written = prefetch_address(dx[0], block * BLOCK_CLASSES)
            if direct or nontemporal:
                to = dx.at + block * BLOCK_CLASSES * size_of(kind)
            at_dy = block_at(dy[0], block * BLOCK_CLASSES, kind, buffer_dy)
            at_y = block_at(y[0], block * BLOCK_CLASSES, kind, buffer_y)
        if put and nontemporal:
            is_large = pass_block_backward(find, at_a, total, error, put, at_dy, at_y, kind, 4, type, type, 0, s_hi,
                                           s_lo, s, magic, lowest, to, True, ahead)
        else:
            is_large = pass_block_backward(find, at_a, total, error, put, at_dy, at_y, kind, 4, type, type, 0, s_hi,
                                           s_lo, s, magic, lowest, to, False, ahead)
        if put and is_large:
            n_bad += gradient_large(at_dy, at_y, kind, BLOCK_CLASSES, s_hi, s_lo, s, magic, lowest, to)
        if put and not direct and not nontemporal:
            write_block(dx[0], block * BLOCK_CLASSES, kind, w, stream)
    return n_bad


cdef inline Py_ssize_t pass_two_blocks(const Vector* a, Py_ssize_t n_a, double* total, double* error, const Vector* dy,
                                       const Vector* y, const Vector* dx, Py_ssize_t n, int kind, Scaled of,
                                       bint stream, bint far, const floating* type) noexcept nogil:
    """The whole blocks of pass_two; kind, a compile-time constant, as in pass_blocks_backward."""
    cdef Py_ssize_t together = min(n_a, n) // BLOCK_CLASSES, last_a = n_a // BLOCK_CLASSES
    cdef Py_ssize_t last = n // BLOCK_CLASSES, n_bad = 0
    if together:
        n_bad += pass_blocks_backward(True, a, total, error, True, dy, y, dx, kind, of, stream, far, 0, together, type)
    if last_a > together:
        pass_blocks_backward(True, a, total, error, False, dy, y, dx, kind, of, stream, far, together, last_a, type)
    if last > together:
        n_bad += pass_blocks_backward(False, a, total, error, True, dy, y, dx, kind, of, stream, far, together, last,
                                      type)
    return n_bad


cdef Py_ssize_t pass_two(const Vector* a, Py_ssize_t n_a, double* total, double* error, const Vector* dy,
                         const Vector* y, const Vector* dx, Py_ssize_t n, Scaled of, bint stream, bint far,
                         const floating* type) noexcept nogil:
    """Sum n_a classes and write the gradient of n, fused as far as possible; returns how many y are out of range."""
    cdef Py_ssize_t n_bad = 0
    cdef int kind = dy.kind
    cdef bint alike = lies_as(a[0], kind) and lies_as(dy[0], kind) and lies_as(y[0], kind) and lies_as(dx[0], kind)
    alike = LSM_WIDENS and alike
    if floating is float and alike and dy.kind == HALF:
        n_bad = pass_two_blocks(a, n_a, total, error, dy, y, dx, n, HALF, of, stream, far, type)
    elif floating is float and alike and dy.kind == BFLOAT16:
        n_bad = pass_two_blocks(a, n_a, total, error, dy, y, dx, n, BFLOAT16, of, stream, far, type)
    else:
        n_bad = pass_two_blocks(a, n_a, total, error, dy, y, dx, n, kind_of(type), of, stream, far, type)
    if n_a == n and n % BLOCK_CLASSES:
        return n_bad + pass_edge_backward(True, a, total, error, True, dy, y, dx, n, of, stream, far, type)
    if n_a % BLOCK_CLASSES:
        pass_edge_backward(True, a, total, error, False, dy, y, dx, n_a, of, stream, far, type)
    if n % BLOCK_CLASSES:
        n_bad += pass_edge_backward(False, a, total, error, True, dy, y, dx, n, of, stream, far, type)
    return n_bad


cdef inline Py_ssize_t pass_edge_backward(bint find, const Vector* a, double* total, double* error, bint put,
                                          const Vector* dy, const Vector* y, const Vector* dx, Py_ssize_t n, Scaled of,
                                          bint stream, bint far, const floating* type) noexcept nogil:
    """The selected stages over the n % BLOCK_CLASSES classes after the last whole block of two parts."""
    cdef floating buffer_a[BLOCK_CLASSES]
    cdef floating buffer[BLOCK_CLASSES]
    cdef floating buffer_y[BLOCK_CLASSES]
    cdef floating edge_a[ROW_CLASSES]
    cdef floating edge[ROW_CLASSES]
    cdef floating edge_y[ROW_CLASSES]
    cdef floating zero[ROW_CLASSES]
    cdef floating w[BLOCK_CLASSES + N_LANES]
    cdef const char* rows[4]
    cdef const floating* at_a = NULL
    cdef const floating* at_dy = NULL
    cdef const floating* at_y = NULL
    cdef floating s_hi = <floating> of.s_hi, s_lo = <floating> of.s_lo, s = <floating> of.s
    cdef floating magic = <floating> of.magic, lowest = <floating> of.lowest
    cdef Py_ssize_t n_rest = n % BLOCK_CLASSES, start = n - n % BLOCK_CLASSES
    cdef Py_ssize_t n_rows = n_rest // ROW_CLASSES, n_edge = n_rest % ROW_CLASSES
    cdef Py_ssize_t n_groups = (n_edge + N_LANES - 1) // N_LANES if put else 0, q, n_bad = 0
    cdef bint is_large
    cdef Ahead ahead = nothing_ahead(far)
    ahead.size_1 = size_of(a.kind)
    ahead.size_2 = size_of(y.kind)
    if find:
        if far:
            ahead.read_1 = prefetch_address(a[0], start)
        at_a = load(a[0], start, n_rest, buffer_a)
        pad(edge_a, &at_a[n_rows * ROW_CLASSES], n_edge, ROW_CLASSES, 0)
        for q in range(ROW_CLASSES):
            zero[q] = 0
        for q in range(n_rows):
            rows[q] = <const char*> &at_a[q * ROW_CLASSES]
        rows[n_rows] = <const char*> edge_a
        for q in range(n_rows + 1, 4):
            rows[q] = <const char*> zero
    if put:
        if far:
            ahead.read_2 = prefetch_address(y[0], start)
        at_dy = load(dy[0], start, n_rest, buffer)
        at_y = load(y[0], start, n_rest, buffer_y)
        pad(edge, &at_dy[n_rows * ROW_CLASSES], n_edge, ROW_CLASSES, 0)
        pad(edge_y, &at_y[n_rows * ROW_CLASSES], n_edge, ROW_CLASSES, -INFINITY)
    is_large = pass_block_backward(find, rows, total, error, put, <const char*> at_dy, <const char*> at_y, kind_of(w),
                                   n_rows, edge, edge_y, n_groups, s_hi, s_lo, s, magic, lowest, <char*> w, False,
                                   ahead)
    if put and is_large:
        n_bad += gradient_large(<const char*> at_dy, <const char*> at_y, kind_of(w), n_rows * ROW_CLASSES, s_hi, s_lo,
                                s, magic, lowest, <char*> w)
        n_bad += gradient_large(<const char*> edge, <const char*> edge_y, kind_of(w), n_groups * N_LANES, s_hi, s_lo, s,
                                magic, lowest, <char*> &w[n_rows * ROW_CLASSES])
    if put:
        write(dx[0], start, n_rest, w, False)
    return n_bad
