# Tiles of 32 adjacent frames, for axis 0 of a matrix or axis 1 of N, C, H, W. Vectors run along the frames; each frame
# keeps its own lanes, so its bits are the same as with vectors along the classes.
#
# Tiles that fit the scratch are copied there first, together with their neighbours in a band. Rows a power of two apart
# map to the same few cache and TLB sets, so the next pass would miss on every row; and a row of one tile is a single
# cache line of its page.


# At most TILE_COLUMNS frames, or a band of tiles.
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
    """A packed tile in the scratch, with the frames of a row adjacent."""
    cdef Tile tile
    tile.at = <char*> scratch
    tile.step = TILE_COLUMNS * sizeof(floating)
    tile.gap = sizeof(floating)
    tile.kind = kind_of(scratch)
    return tile


cdef inline bint fits(Py_ssize_t n) noexcept nogil:
    """Whether a whole tile of n classes can be copied."""
    return n <= CHUNK_CLASSES


cdef inline Py_ssize_t room_backward(const floating* of) noexcept nogil:
    """Numbers of scratch for dy in the gradient of columns: with more, longer rows are copied.

    At (8, 150, 128, 128) 10 tiles take 18.6 ns, 8 take 20.4; the forward kernel gains nothing.
    """
    return 3 * SLICE_CLASSES if floating is float else 2 * SLICE_CLASSES


cdef inline Py_ssize_t count_band(Py_ssize_t n, Py_ssize_t room, Py_ssize_t n_tiles, int n_threads) noexcept nogil:
    """How many of n_tiles tiles of n classes to process together; 1 if not even one fits the room in the scratch."""
    cdef Py_ssize_t n_rows = n if n > SHORT_MAX_CLASSES else (n + 7) // 8 * 8  # n_padded or more
    return max(1, min(min(<Py_ssize_t> BAND_MAX_TILES, room // (n_rows * TILE_COLUMNS)), n_tiles // (4 * n_threads)))


cdef inline void raise_lanes(floating* high, const floating* x) noexcept nogil:
    """high = max(high, x) for TILE_COLUMNS numbers."""
    cdef Py_ssize_t j
    for j in range(TILE_COLUMNS):  # hot
        high[j] = larger(x[j], high[j])


cdef inline void copy_columns(floating* to, const floating* x) noexcept nogil:
    """Copy TILE_COLUMNS numbers."""
    put_lanes(to, x, False)
    put_lanes(&to[N_LANES], &x[N_LANES], False)


cdef inline Tile beyond(Tile x, Py_ssize_t n_classes, Py_ssize_t n_frames) noexcept nogil:
    """The tile n_classes and n_frames further on."""
    x.at += n_classes * x.step + n_frames * x.gap
    return x


cdef void copy_rows(Tile x, Tile then, Py_ssize_t n, Py_ssize_t n_frames, Py_ssize_t n_of_tile, floating* to,
                    floating* high) noexcept nogil:
    """Copy n classes of adjacent frames to tiles that are n_of_tile classes apart.

    Prefetches the rows ahead, at the end those of `then`, which is copied next. Missing columns are set to 0. Unless it
    is NULL, `high` is updated to the maxima.
    """
    cdef floating buffer[TILE_COLUMNS]
    cdef const floating* source
    cdef floating* target
    cdef Vector row, ahead
    cdef Py_ssize_t i, j, tile, n_whole = n_frames // TILE_COLUMNS
    cdef bint is_native_row = is_native(row_of(x, 0), to)
    for i in range(n):
        row = row_of(x, i)
        ahead = (row_of(x, i + PREFETCH_DISTANCE_ROWS) if i + PREFETCH_DISTANCE_ROWS < n
                 else row_of(then, i + PREFETCH_DISTANCE_ROWS - n))
        for tile in range(n_whole):
            lsm_prefetch(ahead.at + tile * TILE_COLUMNS * ahead.step, TILE_COLUMNS * ahead.step, True)
            if is_native_row:
                source = <const floating*> row.at + tile * TILE_COLUMNS
            else:
                source = load(row, tile * TILE_COLUMNS, TILE_COLUMNS, buffer)
            copy_columns(&to[(tile * n_of_tile + i) * TILE_COLUMNS], source)
            if high != NULL:
                raise_lanes(&high[tile * TILE_COLUMNS], source)
        if n_frames % TILE_COLUMNS:
            source = load(row, n_whole * TILE_COLUMNS, n_frames % TILE_COLUMNS, buffer)
            target = &to[(n_whole * n_of_tile + i) * TILE_COLUMNS]
            for j in range(TILE_COLUMNS):
                target[j] = source[j] if j < n_frames % TILE_COLUMNS else 0
            if high != NULL:
                raise_lanes(&high[n_whole * TILE_COLUMNS], target)


cdef inline void clear_rows(floating* to, Py_ssize_t n) noexcept nogil:
    """Clear n rows of TILE_COLUMNS numbers."""
    cdef Py_ssize_t k
    for k in range(n * TILE_COLUMNS):
        to[k] = 0


cdef inline const floating* chunk_of(Tile x, Py_ssize_t start, Py_ssize_t n, floating* scratch) noexcept nogil:
    """At most CHUNK_CLASSES classes of a tile, packed: in place, or else in the scratch."""
    x.at += start * x.step
    if x.step == TILE_COLUMNS * sizeof(floating) and is_native(row_of(x, 0), scratch):
        return <const floating*> x.at
    copy_rows(x, beyond(x, n, 0), n, TILE_COLUMNS, n, scratch, <floating*> NULL)
    return scratch


cdef inline Py_ssize_t count_chunks(Py_ssize_t n) noexcept nogil:
    return (n + CHUNK_CLASSES - 1) // CHUNK_CLASSES


cdef inline void write_columns(floating* to, const floating* p, bint less, const floating* c_hi, const floating* c_lo,
                               bint nontemporal) noexcept nogil:
    """Copy TILE_COLUMNS numbers, minus the normalisers if `less`; nontemporal as in put_lanes."""
    cdef floating w[TILE_COLUMNS]
    cdef Py_ssize_t j
    if less:
        for j in range(TILE_COLUMNS):  # hot
            w[j] = (p[j] - c_hi[j]) - c_lo[j]
        put_lanes(to, w, nontemporal)
        put_lanes(&to[N_LANES], &w[N_LANES], nontemporal)
    else:
        put_lanes(to, p, nontemporal)
        put_lanes(&to[N_LANES], &p[N_LANES], nontemporal)


cdef void write_rows(const floating* p, Tile y, Py_ssize_t n, Py_ssize_t n_frames, Py_ssize_t n_of_tile,
                     const floating* c_hi, const floating* c_lo, bint stream) noexcept nogil:
    """Write n classes of tiles, n_of_tile classes apart, to adjacent frames.

    Subtracts the normalisers of the columns, as (p - c_hi) - c_lo, unless c_hi is NULL.
    """
    cdef floating buffer[BAND_MAX_COLUMNS]
    cdef const floating* source
    cdef floating* target
    cdef Py_ssize_t i, tile, n_tiles = (n_frames + TILE_COLUMNS - 1) // TILE_COLUMNS, n_whole = 0
    cdef Vector row
    cdef bint nontemporal = False
    if is_native(row_of(y, 0), buffer):
        nontemporal = can_stream(row_of(y, 0), kind_of(buffer), stream) and y.step % 64 == 0
        n_whole = n_frames // TILE_COLUMNS if nontemporal or not stream else 0
    for i in range(n):
        row = row_of(y, i)
        for tile in range(n_tiles):
            source = &p[(tile * n_of_tile + i) * TILE_COLUMNS]
            target = <floating*> row.at + tile * TILE_COLUMNS if tile < n_whole else &buffer[tile * TILE_COLUMNS]
            if c_hi == NULL:
                if nontemporal and tile < n_whole:
                    write_columns(target, source, False, c_hi, c_lo, True)
                else:
                    write_columns(target, source, False, c_hi, c_lo, False)
            elif nontemporal and tile < n_whole:
                write_columns(target, source, True, &c_hi[tile * TILE_COLUMNS], &c_lo[tile * TILE_COLUMNS], True)
            else:
                write_columns(target, source, True, &c_hi[tile * TILE_COLUMNS], &c_lo[tile * TILE_COLUMNS], False)
        if n_whole < n_tiles:
            write(row, n_whole * TILE_COLUMNS, n_frames - n_whole * TILE_COLUMNS, &buffer[n_whole * TILE_COLUMNS],
                  stream)
