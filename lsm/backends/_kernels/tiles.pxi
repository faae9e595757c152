# Frames 32 at a time: the vectors run along the frames, and each frame keeps its lanes, so that its bits are those
# that it would have alone. So are taken frames whose neighbours lie side by side (axis 0 of a matrix, axis 1 of
# N, C, H, W), and short frames whatever way they lie: what a frame costs besides its classes is shared.
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


cdef inline const floating* chunk_of(Tile x, Py_ssize_t start, Py_ssize_t n, floating* scratch) noexcept nogil:
    """At most N_CHUNK classes of a tile, densely: where they are, or else in the scratch."""
    x.at += start * x.step
    if x.step == N_COLUMNS * sizeof(floating) and is_native(row_of(x, 0), scratch):
        return <const floating*> x.at
    copy_rows(x, n, N_COLUMNS, n, scratch)
    return scratch


cdef inline Py_ssize_t count_chunks(Py_ssize_t n) noexcept nogil:
    return (n + N_CHUNK - 1) // N_CHUNK


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
