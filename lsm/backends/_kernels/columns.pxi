# Frames whose classes lie far apart and whose neighbours lie side by side (axis 0 of a matrix, axis 1 of N, C, H, W):
# a tile of N_COLUMNS frames is read row by row, the vectors run along the frames, and each frame keeps its 64 lanes,
# so that its bits are those that it would have on the last axis.
#
# Tiles that fit the scratch are copied there first, a band of neighbours together: rows that lie a power of two
# apart share so few places in the caches, those of addresses too, that the next pass would find none of them, and
# a row of a single tile is but one cache line of its page.


cdef inline Py_ssize_t count_band(Py_ssize_t n, Py_ssize_t n_tiles, int n_threads) noexcept nogil:
    """How many of n_tiles tiles of n classes to take together; 1 if not even that fits the scratch."""
    cdef Py_ssize_t fit = 2 * N_SLICE // (n * N_COLUMNS + 1)
    return max(1, min(min(N_BAND, fit), n_tiles // (4 * n_threads)))


cdef inline bint copies(Py_ssize_t n) noexcept nogil:
    return n * N_COLUMNS <= 2 * N_SLICE


cdef inline void copy_band(const floating* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t n_tiles,
                           floating* to) noexcept nogil:
    """Copy n_tiles tiles, so that each lies dense."""
    cdef Py_ssize_t i, j, tile
    for i in range(n):
        for tile in range(n_tiles):
            for j in range(N_COLUMNS):
                to[(tile * n + i) * N_COLUMNS + j] = x[i * step + tile * N_COLUMNS + j]


cdef inline void read_row(const floating* x, const floating* m, const floating* c,
                          floating* p, floating* n_equal) noexcept nogil:
    """exp(x - c) of one class of a tile, and whether it equals m."""
    cdef Py_ssize_t j
    for j in range(N_COLUMNS):
        p[j] = exp_below(x[j], m[j], c[j], True)
        n_equal[j] += <floating> (x[j] == m[j])


cdef inline void read_tile_slice(const floating* x, Py_ssize_t step, Py_ssize_t n, const floating* m, const floating* c,
                                 double* total, double* error, floating* n_equal) noexcept nogil:
    """The sums of exp(x - c) below m, and how many classes equal m, for N_COLUMNS frames."""
    cdef floating p[4 * N_COLUMNS]
    cdef Py_ssize_t block, i, j, k, q
    clear_lanes(total, error, min(N_LANES, n) * N_COLUMNS, x)
    for j in range(N_COLUMNS):
        n_equal[j] = 0
    for block in range((n + N_BLOCK - 1) // N_BLOCK):
        for k in range(min(N_LANES, n - block * N_BLOCK)):
            for q in range(4):
                i = block * N_BLOCK + q * N_LANES + k
                if i < n:
                    read_row(&x[i * step], m, c, &p[q * N_COLUMNS], n_equal)
                else:
                    for j in range(N_COLUMNS):
                        p[q * N_COLUMNS + j] = 0
            add_exponentials(&total[k * N_COLUMNS], &error[k * N_COLUMNS], p, N_COLUMNS, N_COLUMNS)
    fold_lanes(total, error, min(N_LANES, n), N_COLUMNS, x)


cdef void read_tile(const floating* x, Py_ssize_t step, Py_ssize_t n, floating* c_hi, floating* c_lo) noexcept nogil:
    """The normalisers of N_COLUMNS frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef floating m[N_COLUMNS]
    cdef floating shift[N_COLUMNS]
    cdef floating c[N_COLUMNS]
    cdef floating n_equal[N_COLUMNS]
    cdef Frame frames[N_COLUMNS]
    cdef Frame found
    cdef Py_ssize_t part, start, n_slice, i, j
    for part in range(count_slices(n)):
        start = part * N_SLICE
        n_slice = min(N_SLICE, n - start)
        for j in range(N_COLUMNS):
            m[j] = -INFINITY
        for i in range(start, start + n_slice):
            for j in range(N_COLUMNS):
                m[j] = larger(x[i * step + j], m[j])
        for j in range(N_COLUMNS):
            shift[j] = m[j] if m[j] > -INFINITY else <floating> 0
            c[j] = round_shift(shift[j])
        read_tile_slice(&x[start * step], step, n_slice, shift, c, total, error, n_equal)
        for j in range(N_COLUMNS):
            found.largest = m[j]
            found.below = shift_sum(total[j], error[0 if floating is float else j], shift[j], c[j])
            found.below *= EXP_UNBIAS_FLOAT if floating is float else EXP_UNBIAS_DOUBLE
            found.n_largest = n_equal[j]
            if part == 0:
                frames[j] = found
            else:
                merge(&frames[j], found)
    for j in range(N_COLUMNS):
        normaliser(frames[j], &c_hi[j], &c_lo[j])


cdef void log_softmax_band(const floating* x, Py_ssize_t step_x, floating* y, Py_ssize_t step_y, Py_ssize_t n,
                           Py_ssize_t n_tiles, floating* scratch, bint stream) noexcept nogil:
    """log_softmax_frame for n_tiles * N_COLUMNS neighbouring frames; steps go from one class to the next."""
    cdef floating c_hi[N_BAND_COLUMNS]
    cdef floating c_lo[N_BAND_COLUMNS]
    cdef floating p[N_BAND_COLUMNS]
    cdef const floating* row
    cdef Py_ssize_t step_tile = N_COLUMNS, tile, i, j, k
    if copies(n):
        copy_band(x, step_x, n, n_tiles, scratch)
        x = scratch
        step_x = N_COLUMNS
        step_tile = n * N_COLUMNS
    for tile in range(n_tiles):
        k = tile * N_COLUMNS
        read_tile(&x[tile * step_tile], step_x, n, &c_hi[k], &c_lo[k])
    for i in range(n):
        for tile in range(n_tiles):
            row = &x[tile * step_tile + i * step_x]
            k = tile * N_COLUMNS
            for j in range(N_COLUMNS):
                p[k + j] = (row[j] - c_hi[k + j]) - c_lo[k + j]
        store(&y[i * step_y], p, n_tiles * N_COLUMNS, stream)


cdef void sum_tile(const floating* dy, Py_ssize_t step, Py_ssize_t n, double* sums, double* errors) noexcept nogil:
    """The sums of the gradients of N_COLUMNS frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef floating p[4 * N_COLUMNS]
    cdef Py_ssize_t block, i, j, k, q
    clear_lanes(total, error, min(N_LANES, n) * N_COLUMNS, dy)
    for block in range((n + N_BLOCK - 1) // N_BLOCK):
        for k in range(min(N_LANES, n - block * N_BLOCK)):
            for q in range(4):
                i = block * N_BLOCK + q * N_LANES + k
                if i < n:
                    for j in range(N_COLUMNS):
                        p[q * N_COLUMNS + j] = dy[i * step + j]
                else:
                    for j in range(N_COLUMNS):
                        p[q * N_COLUMNS + j] = 0
            add_gradients(&total[k * N_COLUMNS], &error[k * N_COLUMNS], p, &p[N_COLUMNS], &p[2 * N_COLUMNS],
                          &p[3 * N_COLUMNS], N_COLUMNS)
    fold_lanes(total, error, min(N_LANES, n), N_COLUMNS, dy)
    for j in range(N_COLUMNS):
        sums[j] = total[j]
        errors[j] = error[0 if floating is float else j]


cdef void log_softmax_backward_band(const floating* dy, Py_ssize_t step_dy, const floating* y, Py_ssize_t step_y,
                                    floating* dx, Py_ssize_t step_dx, Py_ssize_t n, Py_ssize_t n_tiles,
                                    floating* scratch, bint stream) noexcept nogil:
    """log_softmax_backward_frame for n_tiles * N_COLUMNS neighbouring frames."""
    cdef double total[N_BAND_COLUMNS]
    cdef double error[N_BAND_COLUMNS]
    cdef floating p[N_BAND_COLUMNS]
    cdef floating s_hi[N_BAND_COLUMNS]
    cdef floating s_lo[N_BAND_COLUMNS]
    cdef floating s[N_BAND_COLUMNS]
    cdef floating magic[N_BAND_COLUMNS]
    cdef floating lowest[N_BAND_COLUMNS]
    cdef int n_bad[N_BAND_COLUMNS]
    cdef const floating* source = dy
    cdef const floating* row
    cdef const floating* row_y
    cdef Py_ssize_t step = step_dy, step_tile = N_COLUMNS, tile, i, j, k
    cdef bint easy = True
    if copies(n):
        copy_band(dy, step_dy, n, n_tiles, scratch)
        source = scratch
        step = N_COLUMNS
        step_tile = n * N_COLUMNS
    for tile in range(n_tiles):
        k = tile * N_COLUMNS
        sum_tile(&source[tile * step_tile], step, n, &total[k], &error[k])
    for j in range(n_tiles * N_COLUMNS):
        easy &= scale_sum(total[j], error[j], &s_hi[j], &s_lo[j], &s[j], &magic[j], &lowest[j])
        easy &= not is_masked(&y[j], step_y, n)
        n_bad[j] = 0
    if not easy:
        for j in range(n_tiles * N_COLUMNS):
            log_softmax_backward_frame(&dy[j], step_dy, &y[j], step_y, &dx[j], step_dx, n, scratch, stream)
        return
    for i in range(n):
        for tile in range(n_tiles):
            k = tile * N_COLUMNS
            row = &source[tile * step_tile + i * step]
            row_y = &y[i * step_y + k]
            for j in range(N_COLUMNS):
                p[k + j] = gradient(row[j], row_y[j], s_hi[k + j], s_lo[k + j], s[k + j], magic[k + j],
                                    lowest[k + j], True)
                n_bad[k + j] += exceeds(row_y[j])
        store(&dx[i * step_dx], p, n_tiles * N_COLUMNS, stream)
    for j in range(n_tiles * N_COLUMNS):
        if n_bad[j]:
            for i in range(n):
                dx[i * step_dx + j] = NAN
