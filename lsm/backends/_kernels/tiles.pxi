# Frames 32 at a time: the vectors run along the frames, and each frame keeps its lanes, so that its bits are those
# that it would have alone. So are taken frames whose neighbours lie side by side: axis 0 of a matrix, axis 1 of
# N, C, H, W.
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
    """Whether a tile of n classes can be copied whole."""
    return n <= N_CHUNK


cdef inline Py_ssize_t room_backward(const floating* of) noexcept nogil:
    """Numbers of scratch for dy in the gradient of columns: the more, the longer the rows that are copied.

    At (8, 150, 128, 128) 18.6 ns with 10 tiles, 20.4 with 8; the forward kernel gains nothing.
    """
    return 3 * N_SLICE if floating is float else 2 * N_SLICE


cdef inline Py_ssize_t count_band(Py_ssize_t n, Py_ssize_t room, Py_ssize_t n_tiles, int n_threads) noexcept nogil:
    """How many of n_tiles tiles of n classes to take together; 1 if not even that fits the room in the scratch."""
    cdef Py_ssize_t n_rows = n if n > N_SHORT else (n + 7) // 8 * 8  # at most: n_padded
    return max(1, min(min(<Py_ssize_t> N_BAND, room // (n_rows * N_COLUMNS)), n_tiles // (4 * n_threads)))


cdef inline void raise_lanes(floating* high, const floating* x) noexcept nogil:
    """high = max(high, x) of N_COLUMNS numbers."""
    cdef Py_ssize_t j
    for j in range(N_COLUMNS):  # hot
        high[j] = larger(x[j], high[j])


cdef inline void copy_columns(floating* to, const floating* x) noexcept nogil:
    """Copy N_COLUMNS numbers."""
    put_lanes(to, x, False)
    put_lanes(&to[N_LANES], &x[N_LANES], False)


cdef inline Tile beyond(Tile x, Py_ssize_t n_classes, Py_ssize_t n_frames) noexcept nogil:
    """The tile so many classes and frames further on."""
    x.at += n_classes * x.step + n_frames * x.gap
    return x


cdef void copy_rows(Tile x, Tile then, Py_ssize_t n, Py_ssize_t n_frames, Py_ssize_t n_of_tile, floating* to,
                    floating* high) noexcept nogil:
    """Copy n classes of frames that lie side by side; tiles lie n_of_tile classes apart in the copy.

    The rows that come soon are asked for, in the end those of `then`, which will be copied next. Columns that are not
    there become 0. The maxima in `high`, if that is not NULL, are raised on the way.
    """
    cdef floating buffer[N_COLUMNS]
    cdef const floating* source
    cdef floating* target
    cdef Vector row, ahead
    cdef Py_ssize_t i, j, tile, n_whole = n_frames // N_COLUMNS
    cdef bint is_native_row = is_native(row_of(x, 0), to)
    for i in range(n):
        row = row_of(x, i)
        ahead = row_of(x, i + N_ROWS_AHEAD) if i + N_ROWS_AHEAD < n else row_of(then, i + N_ROWS_AHEAD - n)
        for tile in range(n_whole):
            lsm_prefetch(ahead.at + tile * N_COLUMNS * ahead.step, N_COLUMNS * ahead.step, True)
            if is_native_row:
                source = <const floating*> row.at + tile * N_COLUMNS
            else:
                source = load(row, tile * N_COLUMNS, N_COLUMNS, buffer)
            copy_columns(&to[(tile * n_of_tile + i) * N_COLUMNS], source)
            if high != NULL:
                raise_lanes(&high[tile * N_COLUMNS], source)
        if n_frames % N_COLUMNS:
            source = load(row, n_whole * N_COLUMNS, n_frames % N_COLUMNS, buffer)
            target = &to[(n_whole * n_of_tile + i) * N_COLUMNS]
            for j in range(N_COLUMNS):
                target[j] = source[j] if j < n_frames % N_COLUMNS else 0
            if high != NULL:
                raise_lanes(&high[n_whole * N_COLUMNS], target)


cdef inline void clear_rows(floating* to, Py_ssize_t n) noexcept nogil:
    """n rows of N_COLUMNS zeros."""
    cdef Py_ssize_t k
    for k in range(n * N_COLUMNS):
        to[k] = 0


cdef inline const floating* chunk_of(Tile x, Py_ssize_t start, Py_ssize_t n, floating* scratch) noexcept nogil:
    """At most N_CHUNK classes of a tile, densely: where they are, or else in the scratch."""
    x.at += start * x.step
    if x.step == N_COLUMNS * sizeof(floating) and is_native(row_of(x, 0), scratch):
        return <const floating*> x.at
    copy_rows(x, beyond(x, n, 0), n, N_COLUMNS, n, scratch, <floating*> NULL)
    return scratch


cdef inline Py_ssize_t count_chunks(Py_ssize_t n) noexcept nogil:
    return (n + N_CHUNK - 1) // N_CHUNK


cdef inline void write_columns(floating* to, const floating* p, bint less, const floating* c_hi, const floating* c_lo,
                               bint past) noexcept nogil:
    """Copy N_COLUMNS numbers, less the normalisers if `less`; see put_lanes for `past`."""
    cdef floating w[N_COLUMNS]
    cdef Py_ssize_t j
    if less:
        for j in range(N_COLUMNS):  # hot
            w[j] = (p[j] - c_hi[j]) - c_lo[j]
        put_lanes(to, w, past)
        put_lanes(&to[N_LANES], &w[N_LANES], past)
    else:
        put_lanes(to, p, past)
        put_lanes(&to[N_LANES], &p[N_LANES], past)


cdef void write_rows(const floating* p, Tile y, Py_ssize_t n, Py_ssize_t n_frames, Py_ssize_t n_of_tile,
                     const floating* c_hi, const floating* c_lo, bint stream) noexcept nogil:
    """Write n classes of tiles, n_of_tile classes apart, to frames that lie side by side.

    Less the normalisers of the columns, if c_hi is not NULL: (p - c_hi) - c_lo.
    """
    cdef floating buffer[N_BAND_COLUMNS]
    cdef const floating* source
    cdef floating* target
    cdef Py_ssize_t i, tile, n_tiles = (n_frames + N_COLUMNS - 1) // N_COLUMNS, n_whole = 0
    cdef Vector row
    cdef bint past = False
    if is_native(row_of(y, 0), buffer):
        past = can_pass(row_of(y, 0), kind_of(buffer), stream) and y.step % 64 == 0
        n_whole = n_frames // N_COLUMNS if past or not stream else 0
    for i in range(n):
        row = row_of(y, i)
        for tile in range(n_tiles):
            source = &p[(tile * n_of_tile + i) * N_COLUMNS]
            target = <floating*> row.at + tile * N_COLUMNS if tile < n_whole else &buffer[tile * N_COLUMNS]
            if c_hi == NULL:
                if past and tile < n_whole:
                    write_columns(target, source, False, c_hi, c_lo, True)
                else:
                    write_columns(target, source, False, c_hi, c_lo, False)
            elif past and tile < n_whole:
                write_columns(target, source, True, &c_hi[tile * N_COLUMNS], &c_lo[tile * N_COLUMNS], True)
            else:
                write_columns(target, source, True, &c_hi[tile * N_COLUMNS], &c_lo[tile * N_COLUMNS], False)
        if n_whole < n_tiles:
            write(row, n_whole * N_COLUMNS, n_frames - n_whole * N_COLUMNS, &buffer[n_whole * N_COLUMNS], stream)
