# How the frames of a block lie in memory, and their copies: see traverse_block.pxi.


# The frames of a block: those of one outer index, or of several adjacent ones.
cdef struct Shape:
    Py_ssize_t n        # classes
    Py_ssize_t n_outer  # outer indices
    Py_ssize_t n_inner  # frames of each
    Py_ssize_t n_frames  # of all, before the rows of a copy were filled up
    Py_ssize_t width    # numbers of a row, at least CHUNK
    Py_ssize_t n_joined  # classes of a row: 1 or N_LANES
    bint is_filled       # whether the last row of joined classes is filled up


cdef inline Py_ssize_t packed_numbers(const floating* of) noexcept nogil:
    """The number of elements of each of a, b and y that fit in the scratch."""
    return SCRATCH_BYTES // 3 // (CHUNK * <Py_ssize_t> sizeof(floating)) * CHUNK


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef inline Py_ssize_t chunk_at(Py_ssize_t c, Py_ssize_t width) noexcept nogil:
    """Where chunk c / CHUNK of a row begins. The last one ends with the row, and may overlap the one before."""
    return min(c, width - CHUNK)


cdef inline Vector row_of(Array x, Py_ssize_t o, Py_ssize_t i) noexcept nogil:
    """Class i of the frames of outer index o."""
    cdef Vector row
    row.at = x.at + o * x.outer + i * x.step
    row.step = x.gap
    row.kind = x.kind
    row.alteration = x.alteration
    return row


cdef inline Vector frame_of(Array x, Shape s, Py_ssize_t j) noexcept nogil:
    cdef Vector frame
    frame.at = x.at + j // s.n_inner * x.outer + j % s.n_inner * x.gap
    frame.step = x.step
    frame.kind = x.kind
    frame.alteration = x.alteration
    return frame


cdef inline bint is_interleaved(Shape s) noexcept nogil:
    """Whether copies have all frames of a class in one row, rather than those of one outer index."""
    if s.n_joined > 1:
        return False
    return s.n_inner < CHUNK or (is_few(s.n) and s.n_outer > 1 and s.n_inner < INTERLEAVED_COLUMNS)


cdef inline bint is_plain(Array x, Shape s, const floating* of) noexcept nogil:
    """Whether chunks can be read and written where they lie."""
    return x.kind == kind_of(of) and x.gap == sizeof(floating) and not is_interleaved(s)


cdef inline bint shares_sets(int op, Py_ssize_t step, Py_ssize_t n) noexcept nogil:
    """Whether n rows this many bytes apart compete for few sets of a cache, as in images of 128 x 128 or 512 x 512.

    They are copied. That costs more than it saves where rows are few, or are read once less, as no maximum is found.
    """
    return not is_few(n) and step % ((1 if reduces_max(op) else 4) * SHARED_SETS_BYTES) == 0


cdef inline Array outer_of(Array x, Py_ssize_t o) noexcept nogil:
    x.at += o * x.outer
    return x


cdef inline Shape one_outer(Shape s) noexcept nogil:
    """The shape of the frames of one outer index."""
    if s.n_outer > 1:
        s.n_outer = 1
        s.width = s.n_inner
    return s


cdef inline void copy_row(Vector x, Py_ssize_t n, floating* to) noexcept nogil:
    if is_native(x, to):
        memcpy(to, x.at, n * sizeof(floating))
    else:
        read(x, n, to)


cdef inline void interleave(char* to, Py_ssize_t to_class, Py_ssize_t to_outer, const char* x, Py_ssize_t x_class,
                            Py_ssize_t x_outer, Py_ssize_t n, Py_ssize_t n_outer, Py_ssize_t size) noexcept nogil:
    """Copy a run of `size` bytes for each class and outer index, from the strides of x to those of `to`."""
    cdef Py_ssize_t i, o
    for o in range(n_outer):
        for i in range(n):
            memcpy(to + i * to_class + o * to_outer, x + i * x_class + o * x_outer, size)


cdef inline void interleave_long(char* to, Py_ssize_t to_class, Py_ssize_t to_outer, const char* x, Py_ssize_t x_class,
                                 Py_ssize_t x_outer, Py_ssize_t n, Py_ssize_t n_outer, Py_ssize_t size) noexcept nogil:
    """interleave for runs of at least 64 bytes, of which the last 64 may be copied twice."""
    cdef Py_ssize_t i, o, c
    for o in range(n_outer):
        for i in range(n):
            for c from 0 <= c < size - 64 by 64:
                memcpy(to + i * to_class + o * to_outer + c, x + i * x_class + o * x_outer + c, 64)
            c = size - 64
            memcpy(to + i * to_class + o * to_outer + c, x + i * x_class + o * x_outer + c, 64)


cdef void interleave_runs(char* to, Py_ssize_t to_class, Py_ssize_t to_outer, const char* x, Py_ssize_t x_class,
                          Py_ssize_t x_outer, Py_ssize_t n, Py_ssize_t n_outer, Py_ssize_t size) noexcept nogil:
    """interleave, with the common sizes as compile-time constants."""
    if size == 4:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 4)
    elif size == 8:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 8)
    elif size == 12:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 12)
    elif size == 16:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 16)
    elif size == 20:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 20)
    elif size == 24:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 24)
    elif size == 28:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 28)
    elif size == 32:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 32)
    elif size == 40:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 40)
    elif size == 48:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, 48)
    elif size < 64:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, size)
    else:
        interleave_long(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, size)


cdef inline void prefetch_row(Array x, Shape s, Py_ssize_t i) noexcept nogil:
    if x.gap == size_of(x.kind):
        lsm_prefetch(x.at + i * x.step, s.n_inner * x.gap, True)


cdef void pack(Array x, Shape s, Py_ssize_t first, Py_ssize_t n, floating fill, floating* to) noexcept nogil:
    """Copy n classes of x, from `first` on, into rows that are filled up with `fill`."""
    cdef Py_ssize_t i, o, j, w = s.n_outer * s.n_inner, row = s.width // s.n_joined
    if x.kind == kind_of(to) and (x.gap == sizeof(floating) or s.n_inner == 1) and is_interleaved(s):
        interleave_runs(<char*> to, row * sizeof(floating), s.n_inner * sizeof(floating), x.at + first * x.step, x.step,
                        x.outer, n, s.n_outer, s.n_inner * sizeof(floating))
    elif s.n_joined > 1:
        read(row_of(x, 0, first), n * w, to)
        for j in range(n * w, round_up(n, N_LANES) * w):
            to[j] = fill
    else:
        for i in range(n):
            for o in range(s.n_outer):
                prefetch_row(x, s, first + i + ROWS_AHEAD)
                copy_row(row_of(x, o, first + i), s.n_inner, to + i * row + o * s.n_inner)
    for i in range(n if w < row else 0):
        for j in range(w, row):
            to[i * row + j] = fill


cdef void unpack(Array y, Shape s, Py_ssize_t first, Py_ssize_t n, const floating* source) noexcept nogil:
    """The inverse: write n classes of y, from `first` on."""
    cdef Py_ssize_t i, o, w = s.n_outer * s.n_inner, row = s.width // s.n_joined
    if y.kind == kind_of(source) and (y.gap == sizeof(floating) or s.n_inner == 1) and is_interleaved(s):
        interleave_runs(y.at + first * y.step, y.step, y.outer, <const char*> source, row * sizeof(floating),
                        s.n_inner * sizeof(floating), n, s.n_outer, s.n_inner * sizeof(floating))
    elif s.n_joined > 1:
        for i from 0 <= i < n * w by WRITE_NUMBERS:
            write(row_of(y, 0, first), i, min(<Py_ssize_t> WRITE_NUMBERS, n * w - i), source + i, False)
    else:
        for i in range(n):
            for o in range(s.n_outer):
                write(row_of(y, o, first + i), 0, s.n_inner, source + i * row + o * s.n_inner, False)


cdef inline const floating* rows_of(Array x, Shape s, Py_ssize_t first, Py_ssize_t n, floating fill, floating* buffer,
                                    Py_ssize_t* row) noexcept nogil:
    """n <= BLOCK_CLASSES classes from `first` on, `row` numbers apart: where they lie, or copied into the buffer."""
    if is_plain(x, s, buffer) and (s.is_filled or n % s.n_joined == 0):
        row[0] = x.step // <Py_ssize_t> sizeof(floating)
        return <const floating*> (x.at + first * x.step)
    row[0] = s.width // s.n_joined
    pack(x, s, first, n, fill, buffer)
    return buffer


cdef inline bint is_contiguous(Array x, Shape s) noexcept nogil:
    """Whether the block is C-contiguous as (outer, classes, frames)."""
    return x.gap == size_of(x.kind) and x.step == s.n_inner * x.gap and (s.n_outer == 1 or x.outer == s.n * x.step)


cdef inline Array plain_of(const floating* x, Shape s, Py_ssize_t n) noexcept nogil:
    """The block of a copy, of n classes."""
    cdef Array to
    to.at = <char*> x
    to.kind = kind_of(x)
    to.gap = sizeof(floating)
    to.step = (s.width // s.n_joined if is_interleaved(s) else s.n_inner) * to.gap
    to.outer = 0 if is_interleaved(s) else n * to.step
    return to


cdef inline void copy_in(Array x, Shape s, floating fill, floating* to, floating* spare) noexcept nogil:
    cdef Py_ssize_t o
    if not is_interleaved(s):
        for o in range(s.n_outer):
            pack(outer_of(x, o), one_outer(s), 0, s.n, fill, to + o * s.n * s.n_inner)
    elif x.kind != kind_of(to) and is_contiguous(x, s):  # converted as a whole, since the rows are short
        read(row_of(x, 0, 0), s.n_outer * s.n * s.n_inner, spare)
        x.at = <char*> spare
        x.kind = kind_of(to)
        x.gap = sizeof(floating)
        x.step = s.n_inner * x.gap
        x.outer = s.n * x.step
        pack(x, s, 0, s.n, fill, to)
    else:
        pack(x, s, 0, s.n, fill, to)


cdef inline void copy_out(Array y, Shape s, Py_ssize_t n, const floating* source, floating* spare) noexcept nogil:
    cdef Py_ssize_t o, i, n_all = s.n_outer * n * s.n_inner
    cdef Array x
    if not is_interleaved(s):
        for o in range(s.n_outer):
            unpack(outer_of(y, o), one_outer(s), 0, n, source + o * n * s.n_inner)
    elif y.kind != kind_of(source) and is_contiguous(y, s) and n == s.n:
        x.at = <char*> spare
        x.kind = kind_of(source)
        x.gap = sizeof(floating)
        x.step = s.n_inner * x.gap
        x.outer = n * x.step
        unpack(x, s, 0, n, source)
        for i from 0 <= i < n_all by WRITE_NUMBERS:
            write(row_of(y, 0, 0), i, min(<Py_ssize_t> WRITE_NUMBERS, n_all - i), spare + i, False)
    else:
        unpack(y, s, 0, n, source)
