# The three stages of log-softmax over a frame, with vectors along the classes: find the maximum, sum the exponentials,
# write the result.
#
# One stage alone leaves most of the processor idle, as each is bound by arithmetic, loads or stores. So they are
# software pipelined: three frames, or parts of frames, are in flight, each in a different stage, interleaved row by
# row. That spreads the memory traffic evenly and hides the latency of final reductions. `find`, `add` and `put` select
# the stages; they are compile-time constants, and the rest is eliminated.


cdef inline const floating* less(const floating* x, Py_ssize_t n, floating h, floating* buffer) noexcept nogil:
    """x - h, in the buffer unless h is 0."""
    cdef Py_ssize_t k
    if h == 0:
        return x
    for k in range(n):
        buffer[k] = x[k] - h
    return buffer


cdef inline Py_ssize_t count_equal_of(const char* at, Py_ssize_t n, floating h, floating top, int kind,
                                      floating* buffer) noexcept nogil:
    """How many of n numbers of this kind equal `top`; h is subtracted from 16-bit ones first."""
    cdef Py_ssize_t k
    if floating is float:
        if kind <= BFLOAT16:
            widen(<const uint16_t*> at, n, kind, buffer)
            for k in range(n):
                buffer[k] -= h
            return count_equal(buffer, n, top)
    return count_equal(<const floating*> at, n, top)


# The parameters of a sum, and its count.
cdef struct Adding:
    Shift shift
    Py_ssize_t n_equal  # number of classes omitted
    bint far  # whether the data is in memory rather than in a cache, and so worth prefetching


cdef inline void pass_lanes(bint find, const char* a, floating* high, bint add, const char* v, floating h, floating top,
                            floating magic, floating floor, bint some_equal, floating* p, bint put, const char* x,
                            floating c_hi, floating c_lo, char* y, Py_ssize_t n, int kind, int kind_y,
                            bint nontemporal) noexcept nogil:
    """high = max(high, a), p += exp(v - h), y = (x - c_hi) - c_lo for n classes, in the order of take_some.

    The result goes through w, as y may be x. h is already subtracted from v unless it is 16-bit.
    """
    cdef floating u[PAIR_LANES]
    cdef floating w[PAIR_LANES]
    cdef Py_ssize_t k
    if add:
        take_some(u, v, n, kind)
        if kind <= BFLOAT16:
            for k in range(n):
                u[k] -= h
        for k in range(n):  # hot
            p[k] += exp_below(u[k], magic, floor, top, some_equal)
    if find:
        take_some(w, a, n, kind)
        for k in range(n):  # hot
            high[k] = larger(w[k], high[k])
    if put:
        take_some(w, x, n, kind)
        for k in range(n):  # hot
            w[k] = (w[k] - c_hi) - c_lo
        give_some(y, w, n, kind_y, nontemporal)


cdef inline Py_ssize_t lanes_at_once(int kind, int kind_y, bint put) noexcept nogil:
    """PAIR_LANES where that saves instructions."""
    return PAIR_LANES if kind == BFLOAT16 and (kind_y == BFLOAT16 or not put) else N_LANES


cdef inline void pass_row(bint find, const char* a, floating* high, bint add, const char* v, floating h, floating top,
                          floating magic, floating floor, bint some_equal, floating* p, bint put, const char* x,
                          floating c_hi, floating c_lo, char* y, int kind, int kind_y, bint nontemporal) noexcept nogil:
    """pass_lanes for a row."""
    cdef Py_ssize_t size = N_LANES * size_of(kind), size_y = N_LANES * size_of(kind_y)
    cdef Py_ssize_t n = lanes_at_once(kind, kind_y, put)
    pass_lanes(find, a, high, add, v, h, top, magic, floor, some_equal, p, put, x, c_hi, c_lo, y, n, kind, kind_y,
               nontemporal)
    if n == N_LANES:
        pass_lanes(find, a + size, &high[N_LANES], add, v + size, h, top, magic, floor, some_equal, &p[N_LANES], put,
                   x + size, c_hi, c_lo, y + size_y, n, kind, kind_y, nontemporal)
    pass_lanes(find, a + 2 * size, &high[2 * N_LANES], add, v + 2 * size, h, top, magic, floor, some_equal,
               &p[2 * N_LANES], put, x + 2 * size, c_hi, c_lo, y + 2 * size_y, n, kind, kind_y, nontemporal)
    if n == N_LANES:
        pass_lanes(find, a + 3 * size, &high[3 * N_LANES], add, v + 3 * size, h, top, magic, floor, some_equal,
                   &p[3 * N_LANES], put, x + 3 * size, c_hi, c_lo, y + 3 * size_y, n, kind, kind_y, nontemporal)


cdef inline void end_row(const floating* high, floating* peaks, Py_ssize_t block) noexcept nogil:
    """The peaks of a block, from the maxima of its rows; updates those of the whole part, which come first."""
    cdef floating* of_block = &peaks[(1 + block) * PEAK_LANES]
    cdef Py_ssize_t k
    for k in range(PEAK_LANES):  # hot
        of_block[k] = larger(larger(high[k], high[k + PEAK_LANES]),
                             larger(high[k + 2 * PEAK_LANES], high[k + 3 * PEAK_LANES]))
    for k in range(PEAK_LANES):  # hot
        peaks[k] = larger(of_block[k], peaks[k])


cdef inline void pass_block(bint find, const char* a, floating* peaks, Py_ssize_t block, bint add, const char* v,
                            floating h, floating top, floating magic, floating floor, bint some_equal, double* total,
                            double* error, bint put, const char* x, floating c_hi, floating c_lo, char* y, int kind,
                            int kind_y, bint nontemporal, Ahead ahead) noexcept nogil:
    """The selected stages over one block of each of three parts."""
    cdef floating p[ROW_CLASSES]
    cdef floating high[ROW_CLASSES]
    cdef floating q[ROW_CLASSES]
    cdef Py_ssize_t size = ROW_CLASSES * size_of(kind), size_y = ROW_CLASSES * size_of(kind_y)
    cdef Py_ssize_t k, n = lanes_at_once(kind, kind_y, put)
    for k in range(ROW_CLASSES):
        p[k] = 0
        high[k] = -INFINITY
    prefetch(ahead, 0, ROW_CLASSES)
    pass_row(find, a, high, add, v, h, top, magic, floor, some_equal, p, put, x, c_hi, c_lo, y, kind, kind_y,
             nontemporal)
    prefetch(ahead, ROW_CLASSES, ROW_CLASSES)
    pass_row(find, a + size, high, add, v + size, h, top, magic, floor, some_equal, p, put, x + size, c_hi, c_lo,
             y + size_y, kind, kind_y, nontemporal)
    prefetch(ahead, 2 * ROW_CLASSES, ROW_CLASSES)
    pass_row(find, a + 2 * size, high, add, v + 2 * size, h, top, magic, floor, some_equal, p, put, x + 2 * size, c_hi,
             c_lo, y + 2 * size_y, kind, kind_y, nontemporal)
    prefetch(ahead, 3 * ROW_CLASSES, ROW_CLASSES)
    pass_row(find, a + 3 * size, high, add, v + 3 * size, h, top, magic, floor, some_equal, p, put, x + 3 * size, c_hi,
             c_lo, y + 3 * size_y, kind, kind_y, nontemporal)
    if find:
        end_row(high, peaks, block)
    if add:
        put_in_order(q, p, n, kind)
        put_in_order(&q[PAIR_LANES], &p[PAIR_LANES], n, kind)
        add_groups(total, error, q, N_LANES, 4, floating is double)


cdef inline void pass_blocks(bint find, const Vector* a, floating* peaks_a, bint add, Adding* adding, const Vector* v,
                             const floating* peaks_v, double* total, double* error, bint put, const Vector* x,
                             const Vector* y, floating c_hi, floating c_lo, bint stream, Py_ssize_t first,
                             Py_ssize_t last, int kind, int kind_y) noexcept nogil:
    """The selected stages over blocks `first` to last - 1 of each of three parts.

    kind: the common 16-bit dtype of the inputs, which then have unit stride, or else the computed type, with inputs of
    any kind. kind_y: likewise for y.
    """
    cdef floating buffer_a[BLOCK_CLASSES]
    cdef floating buffer_v[BLOCK_CLASSES]
    cdef floating buffer_x[BLOCK_CLASSES]
    cdef floating shifted[BLOCK_CLASSES]
    cdef floating w[BLOCK_CLASSES]
    cdef const char* at_a = NULL
    cdef const char* at_v = NULL
    cdef const char* at_x = NULL
    cdef char* at_y = <char*> w
    cdef bint direct = not stream and lies_as(y[0], kind_y), some_equal = False
    cdef bint nontemporal = floating is float and can_stream(y[0], kind_y, stream)  # float64: 19.4 ns, 18.4 without
    cdef floating m = <floating> adding.shift.m, h = <floating> adding.shift.h
    cdef floating top = <floating> (adding.shift.m - adding.shift.h)
    cdef floating magic = <floating> adding.shift.magic, floor = <floating> adding.shift.floor
    cdef Py_ssize_t block
    cdef Ahead ahead = nothing_ahead(adding.far)
    ahead.size_1 = size_of(a.kind)
    ahead.size_written = size_of(y.kind)
    for block in range(first, last):
        if find:
            if adding.far:
                ahead.read_1 = prefetch_address(a[0], block * BLOCK_CLASSES)
            at_a = block_at(a[0], block * BLOCK_CLASSES, kind, buffer_a)
        if put and direct and adding.far:
            ahead.written = prefetch_address(y[0], block * BLOCK_CLASSES)
        if add:
            at_v = block_at(v[0], block * BLOCK_CLASSES, kind, buffer_v)
            if kind > BFLOAT16:
                at_v = <const char*> less(<const floating*> at_v, BLOCK_CLASSES, h, shifted)
            some_equal = has_peak(&peaks_v[(1 + block) * PEAK_LANES], m)
        if put:
            at_x = block_at(x[0], block * BLOCK_CLASSES, kind, buffer_x)
            at_y = y.at + block * BLOCK_CLASSES * size_of(kind_y) if direct or nontemporal else <char*> w
        if add and some_equal:
            adding.n_equal += count_equal_of(at_v, BLOCK_CLASSES, h, top, kind, buffer_v)
            pass_block(find, at_a, peaks_a, block, add, at_v, h, top, magic, floor, True, total, error, put, at_x,
                       c_hi, c_lo, at_y, kind, kind_y, False, ahead)
        elif put and nontemporal:
            pass_block(find, at_a, peaks_a, block, add, at_v, h, top, magic, floor, False, total, error, put, at_x,
                       c_hi, c_lo, at_y, kind, kind_y, True, ahead)
        else:
            pass_block(find, at_a, peaks_a, block, add, at_v, h, top, magic, floor, False, total, error, put, at_x,
                       c_hi, c_lo, at_y, kind, kind_y, False, ahead)
        if put and not direct and not nontemporal:
            write_block(y[0], block * BLOCK_CLASSES, kind_y, w, stream)


cdef inline void pass_kinds(bint find, const Vector* a, floating* peaks_a, bint add, Adding* adding, const Vector* v,
                            const floating* peaks_v, double* total, double* error, bint put, const Vector* x,
                            const Vector* y, floating c_hi, floating c_lo, bint stream, Py_ssize_t first,
                            Py_ssize_t last) noexcept nogil:
    """pass_blocks with kinds that are compile-time constants; 16-bit ones only for fused stages or for writing."""
    cdef int native = kind_of(peaks_a), kind = (a if find else v if add else x).kind
    cdef bint alike = LSM_WIDENS and (put or (find and add)) and (not find or lies_as(a[0], kind))
    alike &= not add or lies_as(v[0], kind)
    alike &= not put or (lies_as(x[0], kind) and (lies_as(y[0], kind) or lies_as(y[0], FLOAT)))
    if floating is float and alike and kind == HALF and (not put or y.kind == HALF):
        pass_blocks(find, a, peaks_a, add, adding, v, peaks_v, total, error, put, x, y, c_hi, c_lo, stream, first, last,
                    HALF, HALF)
    elif floating is float and alike and kind == BFLOAT16 and (not put or y.kind == BFLOAT16):
        pass_blocks(find, a, peaks_a, add, adding, v, peaks_v, total, error, put, x, y, c_hi, c_lo, stream, first, last,
                    BFLOAT16, BFLOAT16)
    elif floating is float and put and alike and kind == HALF:
        pass_blocks(find, a, peaks_a, add, adding, v, peaks_v, total, error, put, x, y, c_hi, c_lo, stream, first, last,
                    HALF, FLOAT)
    elif floating is float and put and alike and kind == BFLOAT16:
        pass_blocks(find, a, peaks_a, add, adding, v, peaks_v, total, error, put, x, y, c_hi, c_lo, stream, first, last,
                    BFLOAT16, FLOAT)
    else:
        pass_blocks(find, a, peaks_a, add, adding, v, peaks_v, total, error, put, x, y, c_hi, c_lo, stream, first, last,
                    native, native)
