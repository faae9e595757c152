# Frames sixteen at a time: the vectors run along the frames, and each frame keeps its 64 lanes, so that its bits are
# those that it would have alone. So are taken frames whose neighbours lie side by side (axis 0 of a matrix, axis 1 of
# N, C, H, W), and short frames whatever way they lie: what a frame costs besides its classes is shared by sixteen.
#
# Tiles that fit the scratch are copied there first, a band of neighbours together: rows that lie a power of two
# apart share so few places in the caches, those of addresses too, that the next pass would find none of them, and
# a row of a single tile is but one cache line of its page.


# N_COLUMNS frames or fewer, or a band of them.
cdef struct Tile:
    char* at
    Py_ssize_t step  # bytes from one class to the next
    Py_ssize_t gap   # bytes from one frame to the next
    int kind


cdef inline Vector frame_of(Tile x, Py_ssize_t j) noexcept nogil:
    cdef Vector frame
    frame.at = x.at + j * x.gap
    frame.step = x.step
    frame.kind = x.kind
    return frame


cdef inline Vector row_of(Tile x, Py_ssize_t i) noexcept nogil:
    cdef Vector row
    row.at = x.at + i * x.step
    row.step = x.gap
    row.kind = x.kind
    return row


cdef inline Tile tile_in(floating* scratch) noexcept nogil:
    """A tile that lies densely in the scratch, the frames of a row side by side."""
    cdef Tile tile
    tile.at = <char*> scratch
    tile.step = N_COLUMNS * sizeof(floating)
    tile.gap = sizeof(floating)
    tile.kind = kind_of(scratch)
    return tile


cdef inline bint fits(Py_ssize_t n) noexcept nogil:
    """Whether a tile of n classes can be copied."""
    return n * N_COLUMNS <= N_SLICE


cdef inline Py_ssize_t count_band(Py_ssize_t n, Py_ssize_t n_tiles, int n_threads) noexcept nogil:
    """How many of n_tiles tiles of n classes to take together; 1 if not even that fits the scratch."""
    cdef Py_ssize_t fit = N_SLICE // (n * N_COLUMNS + 1)
    return max(1, min(min(N_BAND, fit), n_tiles // (4 * n_threads)))


cdef void copy_in(Tile x, Py_ssize_t n, Py_ssize_t n_frames, floating* to) noexcept nogil:
    """Copy n_frames frames as dense tiles; columns that are not there become 0."""
    cdef floating buffer[N_BLOCK]
    cdef const floating* source
    cdef Vector row
    cdef Py_ssize_t part, i, j, k, tile, n_whole = n_frames // N_COLUMNS, first = n_whole * N_COLUMNS
    if n_frames > first:
        for i in range(n):
            for j in range(N_COLUMNS):
                to[(n_whole * n + i) * N_COLUMNS + j] = 0
    if x.gap == size_of(x.kind):
        for i in range(n):
            row = row_of(x, i)
            for tile in range(n_whole):
                if is_native(row, to):
                    source = <const floating*> row.at + tile * N_COLUMNS
                else:
                    source = load(row, tile * N_COLUMNS, N_COLUMNS, buffer)
                for j in range(N_COLUMNS):
                    to[(tile * n + i) * N_COLUMNS + j] = source[j]
            if n_frames > first:
                source = load(row, first, n_frames - first, buffer)
                for j in range(n_frames - first):
                    to[(n_whole * n + i) * N_COLUMNS + j] = source[j]
    else:
        for j in range(n_frames):
            tile = j // N_COLUMNS
            for part in range(count_blocks(n)):
                i = part * N_BLOCK
                source = load(frame_of(x, j), i, min(<Py_ssize_t> N_BLOCK, n - i), buffer)
                for k in range(min(<Py_ssize_t> N_BLOCK, n - i)):
                    to[(tile * n + i + k) * N_COLUMNS + j % N_COLUMNS] = source[k]


cdef void copy_out(const floating* p, Tile y, Py_ssize_t n, Py_ssize_t n_frames, bint stream) noexcept nogil:
    """Write one dense tile to frames that do not lie side by side."""
    cdef floating buffer[N_BLOCK]
    cdef Py_ssize_t part, i, j, k, n_part
    for j in range(n_frames):
        for part in range(count_blocks(n)):
            i = part * N_BLOCK
            n_part = min(<Py_ssize_t> N_BLOCK, n - i)
            for k in range(n_part):
                buffer[k] = p[(i + k) * N_COLUMNS + j]
            write(frame_of(y, j), i, n_part, buffer, stream)


cdef inline void add_row(const floating* x, const floating* h, const floating* top, const floating* magic,
                         const floating* floor, floating* p, floating* n_equal) noexcept nogil:
    """Add the exponentials of one class of a tile to p, and whether it is the largest to n_equal."""
    cdef floating v
    cdef Py_ssize_t j
    for j in range(N_COLUMNS):
        v = x[j] - h[j]
        p[j] += 0 if v == top[j] else exp_below(v, magic[j], floor[j])
        n_equal[j] += <floating> 1 if v == top[j] else <floating> 0


cdef void read_tile_slice(Tile x, Py_ssize_t n, floating* m, double* below, floating* n_equal) noexcept nogil:
    """The maxima, the sums of exp(x - m) below m, and how many classes equal m, of N_COLUMNS frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef floating buffer[N_COLUMNS]
    cdef floating p[N_COLUMNS]
    cdef floating h[N_COLUMNS]
    cdef floating top[N_COLUMNS]
    cdef floating magic[N_COLUMNS]
    cdef floating floor[N_COLUMNS]
    cdef const floating* row
    cdef Shift shift
    cdef Py_ssize_t block, i, j, k, q
    for j in range(N_COLUMNS):
        m[j] = -INFINITY
    for i in range(n):
        row = load(row_of(x, i), 0, N_COLUMNS, buffer)
        for j in range(N_COLUMNS):
            m[j] = larger(row[j], m[j])
    for j in range(N_COLUMNS):
        shift = shift_to(m[j] if m[j] > -INFINITY else <floating> 0, m)
        h[j] = <floating> shift.h
        top[j] = <floating> (shift.m - shift.h)
        magic[j] = <floating> shift.magic
        floor[j] = <floating> shift.floor
        n_equal[j] = 0
    clear_lanes(total, error, min(N_LANES, n) * N_COLUMNS, m)
    for block in range((n + N_BLOCK - 1) // N_BLOCK):
        for k in range(min(N_LANES, n - block * N_BLOCK)):
            for j in range(N_COLUMNS):
                p[j] = 0
            for q in range(min(4, (n - block * N_BLOCK - k + N_LANES - 1) // N_LANES)):
                row = load(row_of(x, block * N_BLOCK + q * N_LANES + k), 0, N_COLUMNS, buffer)
                add_row(row, h, top, magic, floor, p, n_equal)
            add_lanes(&total[k * N_COLUMNS], &error[k * N_COLUMNS], p, N_COLUMNS)
    fold_lanes(total, error, min(N_LANES, n), N_COLUMNS, m)
    for j in range(N_COLUMNS):
        shift = shift_to(m[j] if m[j] > -INFINITY else <floating> 0, m)
        below[j] = finish(total[j], error[0 if floating is float else j], shift, floating is float)


cdef void read_tile(Tile x, Py_ssize_t n, floating* c_hi, floating* c_lo) noexcept nogil:
    """The normalisers of N_COLUMNS frames."""
    cdef double below[N_COLUMNS]
    cdef floating m[N_COLUMNS]
    cdef floating n_equal[N_COLUMNS]
    cdef Frame frames[N_COLUMNS]
    cdef Frame found
    cdef Py_ssize_t part, j
    cdef Tile slice = x
    for part in range(count_slices(n)):
        slice.at = x.at + part * N_SLICE * x.step
        read_tile_slice(slice, min(<Py_ssize_t> N_SLICE, n - part * N_SLICE), m, below, n_equal)
        for j in range(N_COLUMNS):
            found.largest = m[j]
            found.below = below[j]
            found.n_largest = n_equal[j]
            if part == 0:
                frames[j] = found
            else:
                merge(&frames[j], found)
    for j in range(N_COLUMNS):
        normaliser(frames[j], &c_hi[j], &c_lo[j])


cdef void log_softmax_band(Tile x, Tile y, Py_ssize_t n, Py_ssize_t n_frames, floating* scratch,
                           bint stream) noexcept nogil:
    """log_softmax_frame for n_frames neighbouring frames, at most N_BAND_COLUMNS."""
    cdef floating c_hi[N_BAND_COLUMNS]
    cdef floating c_lo[N_BAND_COLUMNS]
    cdef floating p[N_BAND_COLUMNS]
    cdef floating buffer[N_BLOCK]
    cdef const floating* row
    cdef Tile source
    cdef Py_ssize_t n_tiles = (n_frames + N_COLUMNS - 1) // N_COLUMNS, tile, part, i, j, k
    if fits(n):
        copy_in(x, n, n_frames, scratch)
    for tile in range(n_tiles):
        source = tile_in(scratch + tile * n * N_COLUMNS)
        if not fits(n):
            source = x
            source.at += tile * N_COLUMNS * x.gap
        read_tile(source, n, &c_hi[tile * N_COLUMNS], &c_lo[tile * N_COLUMNS])
    if y.gap == size_of(y.kind):
        for i in range(n):
            for tile in range(n_tiles):
                k = tile * N_COLUMNS
                row = scratch + (tile * n + i) * N_COLUMNS
                if not fits(n):
                    row = load(row_of(x, i), k, N_COLUMNS, buffer)
                for j in range(N_COLUMNS):
                    p[k + j] = (row[j] - c_hi[k + j]) - c_lo[k + j]
            write(row_of(y, i), 0, n_frames, p, stream)
    else:
        for j in range(n_frames):
            for part in range(count_blocks(n)):
                i = part * N_BLOCK
                k = min(<Py_ssize_t> N_BLOCK, n - i)
                write_block(load(frame_of(x, j), i, k, buffer), frame_of(y, j), i, k, c_hi[j], c_lo[j], stream)


cdef void sum_tile(Tile dy, Py_ssize_t n, double* totals, double* errors, const floating* of) noexcept nogil:
    """The sums of the gradients of N_COLUMNS frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef floating zero[N_COLUMNS]
    cdef floating buffer[4 * N_COLUMNS]
    cdef const floating* rows[4]
    cdef Py_ssize_t part, start, n_slice, block, i, j, k, q
    for j in range(N_COLUMNS):
        totals[j] = 0
        errors[j] = 0
        zero[j] = 0
    for part in range(count_slices(n)):
        start = part * N_SLICE
        n_slice = min(<Py_ssize_t> N_SLICE, n - start)
        clear_lanes(total, error, min(N_LANES, n_slice) * N_COLUMNS, buffer)
        for block in range((n_slice + N_BLOCK - 1) // N_BLOCK):
            for k in range(min(N_LANES, n_slice - block * N_BLOCK)):
                for q in range(4):
                    i = block * N_BLOCK + q * N_LANES + k
                    if i < n_slice:
                        rows[q] = load(row_of(dy, start + i), 0, N_COLUMNS, &buffer[q * N_COLUMNS])
                    else:
                        rows[q] = zero
                add_gradients(&total[k * N_COLUMNS], &error[k * N_COLUMNS], rows[0], rows[1], rows[2], rows[3],
                              N_COLUMNS)
        fold_lanes(total, error, min(N_LANES, n_slice), N_COLUMNS, buffer)
        for j in range(N_COLUMNS):
            two_sum(&totals[j], &errors[j], total[j])
            errors[j] += error[0 if floating is float else j]


cdef void log_softmax_backward_band(Tile dy, Tile y, Tile dx, Py_ssize_t n, Py_ssize_t n_frames, floating* scratch,
                                    bint stream) noexcept nogil:
    """log_softmax_backward_frame for n_frames neighbouring frames."""
    cdef double total[N_BAND_COLUMNS]
    cdef double error[N_BAND_COLUMNS]
    cdef floating p[N_BAND_COLUMNS]
    cdef floating s_hi[N_BAND_COLUMNS]
    cdef floating s_lo[N_BAND_COLUMNS]
    cdef floating s[N_BAND_COLUMNS]
    cdef floating magic[N_BAND_COLUMNS]
    cdef floating lowest[N_BAND_COLUMNS]
    cdef int n_bad[N_BAND_COLUMNS]
    cdef floating buffer[N_COLUMNS]
    cdef floating buffer_y[N_COLUMNS]
    cdef floating* scratch_y = scratch + N_SLICE
    cdef const floating* row
    cdef const floating* row_y
    cdef floating* target
    cdef Scaled of
    cdef Tile source
    cdef Py_ssize_t n_tiles = (n_frames + N_COLUMNS - 1) // N_COLUMNS, tile, i, j, k
    cdef bint easy = True, lies_dense = dx.gap == size_of(dx.kind)
    if fits(n):
        copy_in(dy, n, n_frames, scratch)
        copy_in(y, n, n_frames, scratch_y)
    for tile in range(n_tiles):
        source = tile_in(scratch + tile * n * N_COLUMNS)
        if not fits(n):
            source = dy
            source.at += tile * N_COLUMNS * dy.gap
        sum_tile(source, n, &total[tile * N_COLUMNS], &error[tile * N_COLUMNS], scratch)
    for j in range(n_tiles * N_COLUMNS):
        easy &= scale_sum(total[j], error[j], &of, floating is float)
        s_hi[j] = <floating> of.s_hi
        s_lo[j] = <floating> of.s_lo
        s[j] = <floating> of.s
        magic[j] = <floating> of.magic
        lowest[j] = <floating> of.lowest
        n_bad[j] = 0
    for j in range(n_frames):
        easy &= not is_masked(frame_of(y, j), n, scratch)
    if not easy:
        for j in range(n_frames):
            log_softmax_backward_frame(frame_of(dy, j), frame_of(y, j), frame_of(dx, j), n, scratch, stream)
        return
    for i in range(n):
        for tile in range(n_tiles):
            k = tile * N_COLUMNS
            target = &p[k] if lies_dense else scratch + i * N_COLUMNS
            row = scratch + (tile * n + i) * N_COLUMNS
            row_y = scratch_y + (tile * n + i) * N_COLUMNS
            if not fits(n):
                row = load(row_of(dy, i), k, N_COLUMNS, buffer)
                row_y = load(row_of(y, i), k, N_COLUMNS, buffer_y)
            gradient_row(row, row_y, target, &s_hi[k], &s_lo[k], &s[k], &magic[k], &lowest[k], &n_bad[k])
        if lies_dense:
            write(row_of(dx, i), 0, n_frames, p, stream)
    if not lies_dense:
        copy_out(scratch, dx, n, n_frames, stream)
    for j in range(n_frames):
        if n_bad[j]:
            fill_nan(frame_of(dx, j), n, scratch)


cdef inline void gradient_row(const floating* dy, const floating* y, floating* dx, const floating* s_hi,
                              const floating* s_lo, const floating* s, const floating* magic, const floating* lowest,
                              int* n_bad) noexcept nogil:
    """dx = dy - exp(y) * S of one class of a tile."""
    cdef floating p[N_COLUMNS]
    cdef Py_ssize_t j
    for j in range(N_COLUMNS):
        p[j] = gradient(dy[j], y[j], s_hi[j], s_lo[j], s[j], magic[j], lowest[j], True)
        n_bad[j] += exceeds(y[j])
    for j in range(N_COLUMNS):
        dx[j] = p[j]
