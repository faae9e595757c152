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


cdef inline bint is_dense(Tile x) noexcept nogil:
    """Whether the frames lie side by side."""
    return x.gap == size_of(x.kind)


cdef inline void copy_in(Tile x, Py_ssize_t n, Py_ssize_t n_frames, floating* to) noexcept nogil:
    """Copy n_frames frames as dense tiles of n classes."""
    if is_dense(x):
        copy_rows(x, n, n_frames, n, to)
    else:
        copy_frames(x, n, n_frames, to)


cdef inline void write_out(const floating* p, Tile y, Py_ssize_t n, Py_ssize_t n_frames, bint stream) noexcept nogil:
    if is_dense(y):
        write_rows(p, y, n, n_frames, n, stream)
    else:
        write_frames(p, y, n, n_frames, stream)


cdef inline void ask_for_next(Tile x, Py_ssize_t n, Py_ssize_t first) noexcept nogil:
    """Ask for a tile, `first` frames further on, of the next band."""
    cdef Py_ssize_t i
    if is_dense(x):
        for i in range(n):
            lsm_prefetch(row_of(x, i).at + first * x.gap, N_COLUMNS * x.gap, False)
    elif x.gap == n * x.step and x.step == size_of(x.kind):
        lsm_prefetch(x.at + first * x.gap, N_COLUMNS * x.gap, False)


cdef inline Tile tile_in(floating* scratch) noexcept nogil:
    """A tile that lies densely in the scratch, the frames of a row side by side."""
    cdef Tile tile
    tile.at = <char*> scratch
    tile.step = N_COLUMNS * sizeof(floating)
    tile.gap = sizeof(floating)
    tile.kind = kind_of(scratch)
    return tile


cdef inline bint fits(Py_ssize_t n) noexcept nogil:
    """Whether a tile of n classes can be copied whole."""
    return n <= N_CHUNK


cdef inline Py_ssize_t count_band(Py_ssize_t n, Py_ssize_t n_arrays, Py_ssize_t n_tiles, int n_threads) noexcept nogil:
    """How many of n_tiles tiles of n classes to take together; 1 if not even that fits the scratch."""
    return max(1, min(min(<Py_ssize_t> N_BAND, 2 * N_CHUNK // (n_arrays * n)), n_tiles // (4 * n_threads)))


cdef inline void transpose(floating* to, Py_ssize_t step_to, const floating* source, Py_ssize_t step_from,
                           Py_ssize_t n_rows, Py_ssize_t n_columns) noexcept nogil:
    if floating is float:
        lsm_transpose_f(to, step_to, source, step_from, n_rows, n_columns)
    else:
        lsm_transpose_d(to, step_to, source, step_from, n_rows, n_columns)


cdef void copy_rows(Tile x, Py_ssize_t n, Py_ssize_t n_frames, Py_ssize_t n_of_tile, floating* to) noexcept nogil:
    """Copy n classes of frames that lie side by side; tiles lie n_of_tile classes apart in the copy."""
    cdef floating buffer[N_COLUMNS]
    cdef const floating* source
    cdef Vector row
    cdef Py_ssize_t i, j, tile, n_whole = n_frames // N_COLUMNS
    cdef bint is_native_row = is_native(row_of(x, 0), to)
    for i in range(n):
        row = row_of(x, i)
        for tile in range(n_whole):
            if is_native_row:
                source = <const floating*> row.at + tile * N_COLUMNS
            else:
                source = load(row, tile * N_COLUMNS, N_COLUMNS, buffer)
            memcpy(&to[(tile * n_of_tile + i) * N_COLUMNS], source, N_COLUMNS * sizeof(floating))
        if n_frames % N_COLUMNS:
            source = load(row, n_whole * N_COLUMNS, n_frames % N_COLUMNS, buffer)
            for j in range(N_COLUMNS):
                to[(n_whole * n_of_tile + i) * N_COLUMNS + j] = source[j] if j < n_frames % N_COLUMNS else 0


cdef void copy_frames(Tile x, Py_ssize_t n, Py_ssize_t n_frames, floating* to) noexcept nogil:
    """Copy at most N_COLUMNS short frames, whatever way they lie, as a tile; columns that are not there become 0."""
    cdef floating stage[N_STAGE]
    cdef const floating* source = stage
    cdef Py_ssize_t i, j
    if x.gap == n * x.step and x.step == size_of(x.kind):
        source = load(frame_of(x, 0), 0, n * n_frames, stage)
    else:
        for j in range(n_frames):
            read(frame_of(x, j), n, &stage[j * n])
    if n_frames == N_COLUMNS:
        transpose(to, N_COLUMNS, source, n, N_COLUMNS, n)
    else:
        for i in range(n * N_COLUMNS):
            to[i] = 0
        transpose(to, N_COLUMNS, source, n, n_frames, n)


cdef void write_frames(const floating* p, Tile y, Py_ssize_t n, Py_ssize_t n_frames, bint stream) noexcept nogil:
    """Write a tile to at most N_COLUMNS short frames, whatever way they lie."""
    cdef floating stage[N_STAGE]
    cdef Py_ssize_t i, j
    transpose(stage, n, p, N_COLUMNS, n, n_frames)
    if y.gap == n * y.step and y.step == size_of(y.kind):
        for i in range(count_blocks(n * n_frames)):
            write(frame_of(y, 0), i * N_BLOCK, min(<Py_ssize_t> N_BLOCK, n * n_frames - i * N_BLOCK),
                  &stage[i * N_BLOCK], stream)
    else:
        for j in range(n_frames):
            write(frame_of(y, j), 0, n, &stage[j * n], False)


cdef inline void add_classes(const floating* x, Py_ssize_t n_rows, const floating* h, const floating* top,
                             const floating* magic, const floating* floor, floating* p,
                             floating* n_equal) noexcept nogil:
    """The sum of the exponentials of n_rows classes, N_ROW apart, and how many of them are the largest."""
    cdef floating v, sum_p, n_found
    cdef Py_ssize_t j, q
    for j in range(N_COLUMNS):
        sum_p = 0
        n_found = n_equal[j]
        for q in range(n_rows):  # hot
            v = x[q * N_ROW * N_COLUMNS + j] - h[j]
            sum_p += exp_below(v, magic[j], floor[j], top[j], True)
            n_found += <floating> 1 if v == top[j] else <floating> 0
        p[j] = sum_p
        n_equal[j] = n_found


cdef inline Py_ssize_t count_rows(Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """How many of a block's n classes are k, k + N_ROW, ..."""
    return (n - k + N_ROW - 1) // N_ROW


cdef inline Py_ssize_t count_groups(Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """How many of k, k + N_LANES, ..., at most four, are classes of a block of n."""
    return min(<Py_ssize_t> 4, (n - k + N_LANES - 1) // N_LANES)


cdef inline void add_block_of_tile(const floating* x, Py_ssize_t n, const floating* of, double* total, double* error,
                                   floating* n_equal) noexcept nogil:
    """Add the exponentials of n <= N_BLOCK classes of a tile to the lanes.

    `of`: h, top, magic and floor of the tile. Copies of the function's own stay in registers.
    """
    cdef floating h[N_COLUMNS]
    cdef floating top[N_COLUMNS]
    cdef floating magic[N_COLUMNS]
    cdef floating floor[N_COLUMNS]
    cdef floating found[N_COLUMNS]
    cdef floating p[4 * N_COLUMNS]
    cdef const floating* at
    cdef Py_ssize_t j, k, g, n_rows, n_groups
    for j in range(N_COLUMNS):
        h[j] = of[j]
        top[j] = of[N_COLUMNS + j]
        magic[j] = of[2 * N_COLUMNS + j]
        floor[j] = of[3 * N_COLUMNS + j]
        found[j] = n_equal[j]
    for k in range(min(<Py_ssize_t> N_LANES, n)):
        n_groups = count_groups(n, k)
        for g in range(n_groups):
            at = &x[(g * N_LANES + k) * N_COLUMNS]
            n_rows = count_rows(n, g * N_LANES + k)
            if n_rows == 4:  # each a constant to the compiler
                add_classes(at, 4, h, top, magic, floor, &p[g * N_COLUMNS], found)
            elif n_rows == 3:
                add_classes(at, 3, h, top, magic, floor, &p[g * N_COLUMNS], found)
            elif n_rows == 2:
                add_classes(at, 2, h, top, magic, floor, &p[g * N_COLUMNS], found)
            else:
                add_classes(at, 1, h, top, magic, floor, &p[g * N_COLUMNS], found)
        add_to_lanes(&total[k * N_COLUMNS], &error[k * N_COLUMNS], p, N_COLUMNS, n_groups, floating is double)
    for j in range(N_COLUMNS):
        n_equal[j] = found[j]


cdef inline void raise_maxima(const floating* x, Py_ssize_t n, floating* m) noexcept nogil:
    """The maximum of n classes and m, for each of N_COLUMNS frames."""
    cdef floating high[N_COLUMNS]
    cdef Py_ssize_t i, j
    memcpy(high, m, N_COLUMNS * sizeof(floating))
    for i in range(n // 4):
        for j in range(N_COLUMNS):
            high[j] = larger(larger(larger(x[4 * i * N_COLUMNS + j], x[(4 * i + 1) * N_COLUMNS + j]),
                                    larger(x[(4 * i + 2) * N_COLUMNS + j], x[(4 * i + 3) * N_COLUMNS + j])), high[j])
    for i in range(n // 4 * 4, n):
        for j in range(N_COLUMNS):
            high[j] = larger(x[i * N_COLUMNS + j], high[j])
    memcpy(m, high, N_COLUMNS * sizeof(floating))


cdef inline const floating* chunk_of(Tile x, Py_ssize_t start, Py_ssize_t n, floating* scratch) noexcept nogil:
    """At most N_CHUNK classes of a tile, densely: where they are, or else in the scratch."""
    x.at += start * x.step
    if x.step == N_COLUMNS * sizeof(floating) and is_native(row_of(x, 0), scratch):
        return <const floating*> x.at
    copy_rows(x, n, N_COLUMNS, n, scratch)
    return scratch


cdef inline Py_ssize_t count_chunks(Py_ssize_t n) noexcept nogil:
    return (n + N_CHUNK - 1) // N_CHUNK


cdef void read_tile_slice(Tile x, Py_ssize_t n, floating* m, double* below, floating* n_equal,
                          floating* scratch) noexcept nogil:
    """The maxima, the sums of exp(x - m) below m, and how many classes equal m, of N_COLUMNS frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef floating of[4 * N_COLUMNS]
    cdef const floating* source
    cdef const floating* at
    cdef Shift shift
    cdef Py_ssize_t chunk, start, n_part, block, n_block, j
    for j in range(N_COLUMNS):
        m[j] = -INFINITY
    for chunk in range(count_chunks(n)):
        n_part = min(<Py_ssize_t> N_CHUNK, n - chunk * N_CHUNK)
        raise_maxima(chunk_of(x, chunk * N_CHUNK, n_part, scratch), n_part, m)
    for j in range(N_COLUMNS):  # hot
        shift = shift_to(m[j] if m[j] > -INFINITY else <floating> 0, m)
        of[j] = <floating> shift.h
        of[N_COLUMNS + j] = <floating> (shift.m - shift.h)
        of[2 * N_COLUMNS + j] = <floating> shift.magic
        of[3 * N_COLUMNS + j] = <floating> shift.floor
        n_equal[j] = 0
    clear_lanes(total, error, min(<Py_ssize_t> N_LANES, n) * N_COLUMNS, m)
    for chunk in range(count_chunks(n)):
        start = chunk * N_CHUNK
        n_part = min(<Py_ssize_t> N_CHUNK, n - start)
        source = chunk_of(x, start, n_part, scratch)
        for block in range(count_blocks(n_part)):
            at = &source[block * N_BLOCK * N_COLUMNS]
            n_block = min(<Py_ssize_t> N_BLOCK, n_part - block * N_BLOCK)
            add_block_of_tile(at, n_block, of, total, error, n_equal)
    fold_lanes(total, error, min(<Py_ssize_t> N_LANES, n), N_COLUMNS, m)
    for j in range(N_COLUMNS):  # hot
        shift = shift_to(m[j] if m[j] > -INFINITY else <floating> 0, m)
        below[j] = finish(total[j], error[0 if floating is float else j], shift, floating is float)


cdef void read_tile(Tile x, Py_ssize_t n, floating* c_hi, floating* c_lo, floating* scratch) noexcept nogil:
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
        read_tile_slice(slice, min(<Py_ssize_t> N_SLICE, n - part * N_SLICE), m, below, n_equal, scratch)
        for j in range(N_COLUMNS):
            found.largest = m[j]
            found.below = below[j]
            found.n_largest = n_equal[j]
            if part == 0:
                frames[j] = found
            else:
                merge(&frames[j], found)
    for j in range(N_COLUMNS):  # hot
        normaliser(frames[j], &c_hi[j], &c_lo[j])


cdef inline void subtract_tile(floating* x, Py_ssize_t n, const floating* c_hi, const floating* c_lo) noexcept nogil:
    """y = (x - c_hi) - c_lo for n classes of a tile, in place."""
    cdef floating hi[N_COLUMNS]
    cdef floating lo[N_COLUMNS]
    cdef Py_ssize_t i, j
    for j in range(N_COLUMNS):
        hi[j] = c_hi[j]
        lo[j] = c_lo[j]
    for i in range(n):
        for j in range(N_COLUMNS):  # hot
            x[i * N_COLUMNS + j] = (x[i * N_COLUMNS + j] - hi[j]) - lo[j]


cdef void write_rows(const floating* p, Tile y, Py_ssize_t n, Py_ssize_t n_frames, Py_ssize_t n_of_tile,
                     bint stream) noexcept nogil:
    """Write tiles, n_of_tile classes apart, to frames that lie side by side: n classes of them."""
    cdef floating buffer[N_BAND_COLUMNS]
    cdef Py_ssize_t i, tile, n_tiles = (n_frames + N_COLUMNS - 1) // N_COLUMNS
    cdef Vector row
    cdef bint whole = is_native(row_of(y, 0), p) and n_frames % N_COLUMNS == 0
    if stream and (<uintptr_t> y.at % 64 or y.step % 64):
        whole = False  # or else each tile would leave pieces of cache lines
    for i in range(n):
        row = row_of(y, i)
        if whole:
            for tile in range(n_tiles):
                put(row.at + tile * N_COLUMNS * sizeof(floating), &p[(tile * n_of_tile + i) * N_COLUMNS],
                    N_COLUMNS * sizeof(floating), stream)
        else:
            for tile in range(n_tiles):
                memcpy(&buffer[tile * N_COLUMNS], &p[(tile * n_of_tile + i) * N_COLUMNS], N_COLUMNS * sizeof(floating))
            for tile in range(count_blocks(n_frames)):
                write(row, tile * N_BLOCK, min(<Py_ssize_t> N_BLOCK, n_frames - tile * N_BLOCK),
                      &buffer[tile * N_BLOCK], stream)


cdef void log_softmax_band(Tile x, Tile y, Py_ssize_t n, Py_ssize_t n_frames, floating* scratch,
                           bint stream) noexcept nogil:
    """log_softmax_frame for n_frames neighbouring frames, at most N_BAND_COLUMNS; N_COLUMNS if they are not dense."""
    cdef floating c_hi[N_COLUMNS]
    cdef floating c_lo[N_COLUMNS]
    cdef floating* at
    cdef Py_ssize_t n_tiles = (n_frames + N_COLUMNS - 1) // N_COLUMNS, tile, chunk, n_part
    if not fits(n):
        read_tile(x, n, c_hi, c_lo, scratch)
        for chunk in range(count_chunks(n)):
            n_part = min(<Py_ssize_t> N_CHUNK, n - chunk * N_CHUNK)
            copy_rows(x, n_part, N_COLUMNS, n_part, scratch)
            subtract_tile(scratch, n_part, c_hi, c_lo)
            write_rows(scratch, y, n_part, N_COLUMNS, n_part, stream)
            x.at += n_part * x.step
            y.at += n_part * y.step
        return
    copy_in(x, n, n_frames, scratch)
    for tile in range(n_tiles):
        at = scratch + tile * n * N_COLUMNS
        ask_for_next(x, n, n_frames + tile * N_COLUMNS)
        read_tile(tile_in(at), n, c_hi, c_lo, scratch)
        subtract_tile(at, n, c_hi, c_lo)
    write_out(scratch, y, n, n_frames, stream)


cdef inline void add_gradients_of_classes(const floating* dy, Py_ssize_t n_rows, double* v) noexcept nogil:
    """The sum of the gradients of n_rows classes, N_ROW apart."""
    cdef Py_ssize_t j, step = N_ROW * N_COLUMNS
    for j in range(N_COLUMNS):  # hot
        if n_rows == 4:
            v[j] = ((<double> dy[j] + <double> dy[j + step])
                    + (<double> dy[j + 2 * step] + <double> dy[j + 3 * step]))
        elif n_rows == 3:
            v[j] = (<double> dy[j] + <double> dy[j + step]) + <double> dy[j + 2 * step]
        elif n_rows == 2:
            v[j] = <double> dy[j] + <double> dy[j + step]
        else:
            v[j] = dy[j]


cdef inline void add_block_of_tile_gradients(const floating* dy, Py_ssize_t n, double* total,
                                             double* error) noexcept nogil:
    """Add n <= N_BLOCK classes of a tile to the lanes."""
    cdef double v[4 * N_COLUMNS]
    cdef const floating* at
    cdef Py_ssize_t j, k, g, n_rows, n_groups
    for k in range(min(<Py_ssize_t> N_LANES, n)):
        n_groups = count_groups(n, k)
        for g in range(n_groups):
            at = &dy[(g * N_LANES + k) * N_COLUMNS]
            n_rows = count_rows(n, g * N_LANES + k)
            if n_rows == 4:  # each a constant to the compiler
                add_gradients_of_classes(at, 4, &v[g * N_COLUMNS])
            elif n_rows == 3:
                add_gradients_of_classes(at, 3, &v[g * N_COLUMNS])
            elif n_rows == 2:
                add_gradients_of_classes(at, 2, &v[g * N_COLUMNS])
            else:
                add_gradients_of_classes(at, 1, &v[g * N_COLUMNS])
        add_to_lanes(&total[k * N_COLUMNS], &error[k * N_COLUMNS], v, N_COLUMNS, n_groups, floating is double)


cdef void sum_tile(Tile dy, Py_ssize_t n, double* totals, double* errors, floating* scratch) noexcept nogil:
    """The sums of the gradients of N_COLUMNS frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef const floating* source
    cdef Py_ssize_t part, start, n_slice, chunk, n_part, block, n_block, j
    for j in range(N_COLUMNS):
        totals[j] = 0
        errors[j] = 0
    for part in range(count_slices(n)):
        start = part * N_SLICE
        n_slice = min(<Py_ssize_t> N_SLICE, n - start)
        clear_lanes(total, error, min(<Py_ssize_t> N_LANES, n_slice) * N_COLUMNS, scratch)
        for chunk in range(count_chunks(n_slice)):
            n_part = min(<Py_ssize_t> N_CHUNK, n_slice - chunk * N_CHUNK)
            source = chunk_of(dy, start + chunk * N_CHUNK, n_part, scratch)
            for block in range(count_blocks(n_part)):
                n_block = min(<Py_ssize_t> N_BLOCK, n_part - block * N_BLOCK)
                add_block_of_tile_gradients(&source[block * N_BLOCK * N_COLUMNS], n_block, total, error)
        fold_lanes(total, error, min(<Py_ssize_t> N_LANES, n_slice), N_COLUMNS, scratch)
        for j in range(N_COLUMNS):
            two_sum(&totals[j], &errors[j], total[j])
            errors[j] += error[0 if floating is float else j]


# What `gradient` needs of the S of N_COLUMNS frames, see Scaled.
cdef struct ScaledTile:
    double s_hi[N_COLUMNS]
    double s_lo[N_COLUMNS]
    double s[N_COLUMNS]
    double magic[N_COLUMNS]
    double lowest[N_COLUMNS]


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


cdef void gradient_tile(floating* dy, const floating* y, Py_ssize_t n, const ScaledTile* of,
                        floating* n_bad) noexcept nogil:
    """dx = dy - exp(y) * S of n classes of a tile, in place of dy; n_bad: how many y of each frame are out of range."""
    cdef floating s_hi[N_COLUMNS]
    cdef floating s_lo[N_COLUMNS]
    cdef floating s[N_COLUMNS]
    cdef floating magic[N_COLUMNS]
    cdef floating lowest[N_COLUMNS]
    cdef floating found[N_COLUMNS]
    cdef floating* p
    cdef const floating* q
    cdef Py_ssize_t i, j
    for j in range(N_COLUMNS):
        s_hi[j] = <floating> of.s_hi[j]
        s_lo[j] = <floating> of.s_lo[j]
        s[j] = <floating> of.s[j]
        magic[j] = <floating> of.magic[j]
        lowest[j] = <floating> of.lowest[j]
        found[j] = 0
    for i in range(n):
        p = &dy[i * N_COLUMNS]
        q = &y[i * N_COLUMNS]
        if n < N_ROW or some_large(q, N_COLUMNS):  # of few classes one is large in most rows
            for j in range(N_COLUMNS):  # hot
                p[j] = gradient(p[j], q[j], s_hi[j], s_lo[j], s[j], magic[j], lowest[j], True)
                found[j] += <floating> 1 if exceeds(q[j]) else <floating> 0
        else:
            for j in range(N_COLUMNS):  # hot
                p[j] = gradient(p[j], q[j], s_hi[j], s_lo[j], s[j], magic[j], lowest[j], False)
    for j in range(N_COLUMNS):
        n_bad[j] = found[j]


cdef bint scale_tile(Tile dy, Tile y, Py_ssize_t n, Py_ssize_t n_frames, ScaledTile* to,
                     floating* scratch) noexcept nogil:
    """The sums of a tile's frames, prepared; False where one of n_frames needs careful_backward_frame."""
    cdef double total[N_COLUMNS]
    cdef double error[N_COLUMNS]
    cdef Scaled of
    cdef Py_ssize_t j
    cdef bint easy = True
    sum_tile(dy, n, total, error, scratch)
    for j in range(N_COLUMNS):
        easy &= scale_sum(total[j], error[j], &of, floating is float)
        to.s_hi[j] = of.s_hi
        to.s_lo[j] = of.s_lo
        to.s[j] = of.s
        to.magic[j] = of.magic
        to.lowest[j] = of.lowest
    for j in range(n_frames):
        easy &= not is_masked(frame_of(y, j), n, scratch)
    return easy


cdef void log_softmax_backward_band(Tile dy, Tile y, Tile dx, Py_ssize_t n, Py_ssize_t n_frames, floating* scratch,
                                    bint stream) noexcept nogil:
    """log_softmax_backward_frame for n_frames neighbouring frames, as log_softmax_band has them."""
    cdef ScaledTile of
    cdef floating n_bad[N_BAND_COLUMNS]
    cdef floating* scratch_y = scratch + N_SLICE
    cdef floating* at
    cdef floating* at_y
    cdef Tile rest_dy = dy, rest_y = y, rest_dx = dx
    cdef Py_ssize_t n_tiles = (n_frames + N_COLUMNS - 1) // N_COLUMNS, tile, i, j, n_part
    cdef bint easy = True
    if not fits(n):
        easy = scale_tile(dy, y, n, n_frames, &of, scratch)
        for j in range(N_COLUMNS):
            n_bad[j] = 0
        for i in range(count_chunks(n) if easy else 0):
            n_part = min(<Py_ssize_t> N_CHUNK, n - i * N_CHUNK)
            copy_rows(rest_dy, n_part, N_COLUMNS, n_part, scratch)
            copy_rows(rest_y, n_part, N_COLUMNS, n_part, scratch_y)
            gradient_tile(scratch, scratch_y, n_part, &of, &n_bad[N_COLUMNS])
            write_rows(scratch, rest_dx, n_part, N_COLUMNS, n_part, stream)
            rest_dy.at += n_part * dy.step
            rest_y.at += n_part * y.step
            rest_dx.at += n_part * dx.step
            for j in range(N_COLUMNS):
                n_bad[j] += n_bad[N_COLUMNS + j]
    else:
        copy_in(dy, n, n_frames, scratch)
        copy_in(y, n, n_frames, scratch_y)
        for tile in range(n_tiles):
            at = scratch + tile * n * N_COLUMNS
            at_y = scratch_y + tile * n * N_COLUMNS
            ask_for_next(dy, n, n_frames + tile * N_COLUMNS)
            ask_for_next(y, n, n_frames + tile * N_COLUMNS)
            easy &= scale_tile(tile_in(at), tile_in(at_y), n, min(<Py_ssize_t> N_COLUMNS, n_frames - tile * N_COLUMNS),
                               &of, scratch)
            gradient_tile(at, at_y, n, &of, &n_bad[tile * N_COLUMNS])
        if easy:
            write_out(scratch, dx, n, n_frames, stream)
    for j in range(n_frames):
        if not easy:
            log_softmax_backward_frame(frame_of(dy, j), frame_of(y, j), frame_of(dx, j), n, scratch, stream)
        elif n_bad[j] > 0:
            fill_nan(frame_of(dx, j), n, scratch)
