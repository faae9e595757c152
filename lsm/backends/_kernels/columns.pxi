# Frames whose classes lie far apart and whose neighbours lie side by side (axis 0 of a matrix, axis 1 of N, C, H, W):
# a tile of N_COLUMNS frames is read row by row, the vectors run along the frames, and each frame keeps its 64 lanes,
# so that its bits are those that it would have on the last axis.
#
# A tile that fits the scratch is copied there by the first pass: rows that lie a power of two apart share so few
# places in a cache that the next pass would find none of them.


cdef inline bint copies(Py_ssize_t n) noexcept nogil:
    return n * N_COLUMNS <= 2 * N_SLICE


cdef inline void read_row(const floating* x, const floating* m, floating* p, floating* n_equal) noexcept nogil:
    """exp(x - m) of one class of a tile, and whether it equals m."""
    cdef Py_ssize_t j
    for j in range(N_COLUMNS):
        p[j] = exp_below(x[j], m[j])
        n_equal[j] += <floating> (x[j] == m[j])


cdef inline void read_tile_slice(const floating* x, Py_ssize_t step, Py_ssize_t n, const floating* m,
                                 double* total, double* error, floating* n_equal) noexcept nogil:
    """The sums of exp(x - m) below m, and how many classes equal m, for N_COLUMNS frames."""
    cdef floating p[4 * N_COLUMNS]
    cdef Py_ssize_t block, i, j, k, q
    for k in range(min(N_LANES, n) * N_COLUMNS):
        total[k] = 0
        error[k] = 0
    for j in range(N_COLUMNS):
        n_equal[j] = 0
    for block in range((n + N_BLOCK - 1) // N_BLOCK):
        for k in range(min(N_LANES, n - block * N_BLOCK)):
            for q in range(4):
                i = block * N_BLOCK + q * N_LANES + k
                if i < n:
                    read_row(&x[i * step], m, &p[q * N_COLUMNS], n_equal)
                else:
                    for j in range(N_COLUMNS):
                        p[q * N_COLUMNS + j] = 0
            add_exponentials(&total[k * N_COLUMNS], &error[k * N_COLUMNS], p, N_COLUMNS, N_COLUMNS)
    fold_lanes(total, error, min(N_LANES, n), N_COLUMNS, x)


cdef void log_softmax_tile(const floating* x, Py_ssize_t step_x, floating* y, Py_ssize_t step_y,
                           Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """log_softmax_frame for N_COLUMNS neighbouring frames; steps go from one class to the next."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef floating p[N_COLUMNS]
    cdef floating m[N_COLUMNS]
    cdef floating shift[N_COLUMNS]
    cdef floating n_equal[N_COLUMNS]
    cdef floating c_hi[N_COLUMNS]
    cdef floating c_lo[N_COLUMNS]
    cdef Frame frames[N_COLUMNS]
    cdef Frame found
    cdef const floating* row
    cdef Py_ssize_t part, start, stop, i, j
    cdef bint copied = copies(n)
    for part in range(count_slices(n)):
        start = part * N_SLICE
        stop = min(start + N_SLICE, n)
        for j in range(N_COLUMNS):
            m[j] = -INFINITY
        for i in range(start, stop):
            row = &x[i * step_x]
            for j in range(N_COLUMNS):
                p[j] = row[j]
                m[j] = p[j] if p[j] > m[j] else m[j]
            if copied:
                for j in range(N_COLUMNS):
                    scratch[i * N_COLUMNS + j] = p[j]
        for j in range(N_COLUMNS):
            shift[j] = m[j] if m[j] > -INFINITY else <floating> 0
        if copied:
            x = scratch
            step_x = N_COLUMNS
        read_tile_slice(&x[start * step_x], step_x, stop - start, shift, total, error, n_equal)
        for j in range(N_COLUMNS):
            found.largest = m[j]
            found.below = (total[j] + error[j]) * (EXP_UNBIAS_FLOAT if floating is float else EXP_UNBIAS_DOUBLE)
            found.n_largest = n_equal[j]
            if part == 0:
                frames[j] = found
            else:
                merge(&frames[j], found)
    for j in range(N_COLUMNS):
        normaliser(frames[j], &c_hi[j], &c_lo[j])
    for i in range(n):
        row = &x[i * step_x]
        for j in range(N_COLUMNS):
            p[j] = (row[j] - c_hi[j]) - c_lo[j]
        store(&y[i * step_y], p, N_COLUMNS, stream)


cdef inline void sum_tile(const floating* dy, Py_ssize_t step, Py_ssize_t n, double* total, double* error) noexcept nogil:
    """The sums of the gradients of N_COLUMNS frames."""
    cdef floating p[4 * N_COLUMNS]
    cdef Py_ssize_t block, i, j, k, q
    for k in range(min(N_LANES, n) * N_COLUMNS):
        total[k] = 0
        error[k] = 0
    for block in range((n + N_BLOCK - 1) // N_BLOCK):
        for k in range(min(N_LANES, n - block * N_BLOCK)):
            for q in range(4):
                i = block * N_BLOCK + q * N_LANES + k
                for j in range(N_COLUMNS):
                    p[q * N_COLUMNS + j] = dy[i * step + j] if i < n else <floating> 0
            add_gradients(&total[k * N_COLUMNS], &error[k * N_COLUMNS], p, N_COLUMNS, N_COLUMNS)
    fold_lanes(total, error, min(N_LANES, n), N_COLUMNS, dy)


cdef void log_softmax_backward_tile(const floating* dy, Py_ssize_t step_dy, const floating* y, Py_ssize_t step_y,
                                    floating* dx, Py_ssize_t step_dx, Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """log_softmax_backward_frame for N_COLUMNS neighbouring frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef floating p[N_COLUMNS]
    cdef floating s_hi[N_COLUMNS]
    cdef floating s_lo[N_COLUMNS]
    cdef floating s[N_COLUMNS]
    cdef floating magic[N_COLUMNS]
    cdef floating lowest[N_COLUMNS]
    cdef int n_bad[N_COLUMNS]
    cdef const floating* row = dy
    cdef const floating* row_y
    cdef Py_ssize_t step = step_dy, i, j
    cdef bint easy = True
    if copies(n):
        for i in range(n):
            for j in range(N_COLUMNS):
                scratch[i * N_COLUMNS + j] = dy[i * step_dy + j]
        row = scratch
        step = N_COLUMNS
    sum_tile(row, step, n, total, error)
    for j in range(N_COLUMNS):
        easy &= scale_sum(total[j], error[j], &s_hi[j], &s_lo[j], &s[j], &magic[j], &lowest[j]) and not is_masked(&y[j], step_y, n)
        n_bad[j] = 0
    if not easy:
        for j in range(N_COLUMNS):
            log_softmax_backward_frame(&dy[j], step_dy, &y[j], step_y, &dx[j], step_dx, n, scratch, stream)
        return
    for i in range(n):
        row_y = &y[i * step_y]
        for j in range(N_COLUMNS):
            p[j] = gradient(row[i * step + j], row_y[j], s_hi[j], s_lo[j], s[j], magic[j], lowest[j], True)
            n_bad[j] += exceeds(row_y[j])
        store(&dx[i * step_dx], p, N_COLUMNS, stream)
    for j in range(N_COLUMNS):
        if n_bad[j]:
            for i in range(n):
                dx[i * step_dx + j] = NAN
