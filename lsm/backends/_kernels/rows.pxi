# Frames one at a time: the lanes run along the classes.


cdef inline floating larger(floating a, floating b) noexcept nogil:
    return a if a > b else b


cdef inline void pad(floating* to, const floating* x, Py_ssize_t n, floating fill) noexcept nogil:
    """Copy n < N_ROW numbers, and fill up the row."""
    if floating is float:
        lsm_pad_f(to, x, n, fill)
    else:
        lsm_pad_d(to, x, n, fill)


cdef floating largest(Vector x, Py_ssize_t n, floating* of_blocks) noexcept nogil:
    """The maximum of n classes, and N_PEAKS numbers for each block, its maximum among them; the last may be shorter.

    A NaN is passed over here and found by the sum.
    """
    cdef floating m[N_ROW]
    cdef floating b[N_ROW]
    cdef floating edge[N_ROW]
    cdef floating buffer[N_BLOCK]
    cdef const floating* p
    cdef Py_ssize_t n_blocks = n // N_BLOCK, block, row, k
    for k in range(N_ROW):
        m[k] = -INFINITY
    for block in range(n_blocks):
        p = load(x, block * N_BLOCK, N_BLOCK, buffer)
        for k in range(N_ROW):  # hot
            b[k] = larger(larger(p[k], p[k + N_ROW]), larger(p[k + 2 * N_ROW], p[k + 3 * N_ROW]))
            m[k] = larger(b[k], m[k])
        for k in range(N_PEAKS):  # hot
            of_blocks[block * N_PEAKS + k] = larger(larger(b[k], b[k + N_PEAKS]),
                                                    larger(b[k + 2 * N_PEAKS], b[k + 3 * N_PEAKS]))
    if n % N_BLOCK:
        p = load(x, n_blocks * N_BLOCK, n % N_BLOCK, buffer)
        pad(edge, &p[n % N_BLOCK - n % N_ROW], n % N_ROW, -INFINITY)
        for k in range(N_ROW):
            b[k] = edge[k]
        for row in range(n % N_BLOCK // N_ROW):
            for k in range(N_ROW):
                b[k] = larger(p[row * N_ROW + k], b[k])
        for k in range(N_ROW):
            m[k] = larger(b[k], m[k])
        for k in range(N_PEAKS):
            of_blocks[n_blocks * N_PEAKS + k] = larger(larger(b[k], b[k + N_PEAKS]),
                                                       larger(b[k + 2 * N_PEAKS], b[k + 3 * N_PEAKS]))
    for k in range(32):
        m[k] = larger(m[k + 32], m[k])
    for k in range(16):
        m[k] = larger(m[k + 16], m[k])
    for k in range(8):
        m[k] = larger(m[k + 8], m[k])
    for k in range(4):
        m[k] = larger(m[k + 4], m[k])
    return larger(larger(m[0], m[1]), larger(m[2], m[3]))


cdef inline const floating* less(const floating* x, Py_ssize_t n, floating h, floating* buffer) noexcept nogil:
    """x - h, in the buffer if h is not 0."""
    cdef Py_ssize_t k
    if h == 0:
        return x
    for k in range(n):
        buffer[k] = x[k] - h
    return buffer


cdef inline void add_rows(const floating* v, Py_ssize_t n_rows, const floating* edge, floating top, floating magic,
                          floating floor, bint some_equal, double* total, double* error) noexcept nogil:
    """Add the exponentials of n_rows <= 4 rows of classes, the last of which is `edge` if that is not NULL.

    What equals `top` is left out if some_equal, and must not be there if not.
    """
    cdef floating p[N_ROW]
    cdef Py_ssize_t k, q
    cdef const floating* first = v if n_rows > 1 or edge == NULL else edge
    for k in range(N_ROW):  # hot
        p[k] = exp_below(first[k], magic, floor, top, some_equal)
    for q in range(1, n_rows if edge == NULL else n_rows - 1):
        for k in range(N_ROW):  # hot
            p[k] += exp_below(v[q * N_ROW + k], magic, floor, top, some_equal)
    if edge != NULL and n_rows > 1:
        for k in range(N_ROW):  # hot
            p[k] += exp_below(edge[k], magic, floor, top, some_equal)
    add_groups(total, error, p, N_LANES, 4, floating is double)


cdef inline Py_ssize_t count_equal(const floating* v, Py_ssize_t n, floating top) noexcept nogil:
    """How many of n numbers equal `top`."""
    cdef Py_ssize_t k
    cdef int n_equal = 0
    for k in range(n):  # hot
        n_equal += v[k] == top
    return n_equal


cdef Frame sum_slice(Vector x, Py_ssize_t n, floating m, const floating* peaks, const char* ahead,
                     size_t n_ahead) noexcept nogil:
    """The sum of exp(x - m) of at most N_SLICE classes, m and peaks as `largest` found them.

    Meanwhile what will be read next is asked for: n_ahead bytes for each block.
    """
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef floating edge[N_ROW]
    cdef floating buffer[N_BLOCK]
    cdef floating shifted[N_BLOCK]
    cdef floating shifted_edge[N_ROW]
    cdef Py_ssize_t i, k, n_rest = n % N_BLOCK, n_equal = 0
    cdef int n_peaks
    cdef const floating* v
    cdef const floating* last = NULL
    cdef floating h, top, magic, floor
    cdef Frame frame
    cdef Shift shift = shift_to(m if m > -INFINITY else <floating> 0, peaks)  # a slice may be -inf throughout
    h = <floating> shift.h
    top = <floating> (shift.m - shift.h)
    magic = <floating> shift.magic
    floor = <floating> shift.floor
    clear_lanes(total, error, N_LANES, peaks)
    for i in range(count_blocks(n)):
        n_peaks = 0
        for k in range(N_PEAKS):
            n_peaks += peaks[i * N_PEAKS + k] == m
        if i < n // N_BLOCK:
            lsm_prefetch(ahead + i * n_ahead, n_ahead, n <= N_NEAR)
            v = less(load(x, i * N_BLOCK, N_BLOCK, buffer), N_BLOCK, h, shifted)
            if n_peaks:
                add_rows(v, 4, NULL, top, magic, floor, True, total, error)
                n_equal += count_equal(v, N_BLOCK, top)
            else:
                add_rows(v, 4, NULL, top, magic, floor, False, total, error)
        else:
            v = load(x, i * N_BLOCK, n_rest, buffer)
            if n % N_ROW:
                pad(edge, &v[n_rest - n % N_ROW], n % N_ROW, -INFINITY)
                last = less(edge, N_ROW, h, shifted_edge)
            v = less(v, n_rest // N_ROW * N_ROW, h, shifted)
            k = (n_rest + N_ROW - 1) // N_ROW
            if n_peaks:
                add_rows(v, k, last, top, magic, floor, True, total, error)
                n_equal += count_equal(v, n_rest // N_ROW * N_ROW, top)
                n_equal += count_equal(last, N_ROW, top) if last != NULL else 0
            else:
                add_rows(v, k, last, top, magic, floor, False, total, error)
    fold_lanes(total, error, N_LANES, 1, peaks)
    frame.largest = m
    frame.below = finish(total[0], error[0], shift, floating is float)
    frame.n_largest = n_equal
    return frame


cdef inline size_t bytes_of_block(Vector x) noexcept nogil:
    """How many bytes to ask for with each block; 0 where they do not lie side by side."""
    return N_BLOCK * x.step if x.step == size_of(x.kind) else 0


cdef Frame read_part(Vector x, Py_ssize_t part, Py_ssize_t n, floating* scratch) noexcept nogil:
    """m and the sum of the part-th slice of a frame; what follows it in memory is what will be read next."""
    cdef floating peaks[N_SLICE_PEAKS]
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef Vector source = dense(x, start, n_slice, scratch)
    cdef floating m = largest(source, n_slice, peaks)
    return sum_slice(source, n_slice, m, peaks, x.at + (start + n_slice) * x.step, bytes_of_block(x))


cdef Frame read_frame(Vector x, Py_ssize_t n, floating* scratch) noexcept nogil:
    cdef Frame frame = read_part(x, 0, n, scratch)
    cdef Py_ssize_t part
    for part in range(1, count_slices(n)):
        merge(&frame, read_part(x, part, n, scratch))
    return frame


cdef inline void write_block(const floating* x, Vector y, Py_ssize_t start, Py_ssize_t n, floating c_hi, floating c_lo,
                             bint stream) noexcept nogil:
    """y = (x - c_hi) - c_lo of at most N_BLOCK classes; by way of p where y is x, lest the loop be no vector loop."""
    cdef floating p[N_BLOCK]
    cdef floating* target = <floating*> y.at + start
    cdef Py_ssize_t k
    if stream or target == x or not is_native(y, x):
        for k in range(n):  # hot
            p[k] = (x[k] - c_hi) - c_lo
        write(y, start, n, p, stream)
    else:
        for k in range(n):  # hot
            target[k] = (x[k] - c_hi) - c_lo


cdef void write_slice(Vector x, Vector y, Py_ssize_t n, floating c_hi, floating c_lo, bint stream) noexcept nogil:
    """y = (x - c_hi) - c_lo of at most N_SLICE classes."""
    cdef floating buffer[N_BLOCK]
    cdef Py_ssize_t i, block
    i = min(misaligned(y, stream), n)
    if i:
        write_block(load(x, 0, i, buffer), y, 0, i, c_hi, c_lo, stream)
    for block in range((n - i) // N_BLOCK):
        write_block(load(x, i, N_BLOCK, buffer), y, i, N_BLOCK, c_hi, c_lo, stream)
        i += N_BLOCK
    if i < n:
        write_block(load(x, i, n - i, buffer), y, i, n - i, c_hi, c_lo, stream)


cdef inline void write_part(Vector x, Vector y, Py_ssize_t part, Py_ssize_t n, floating c_hi, floating c_lo,
                            floating* scratch, bint stream) noexcept nogil:
    """y of the part-th slice of a frame."""
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    y.at += start * y.step
    write_slice(dense(x, start, n_slice, scratch), y, n_slice, c_hi, c_lo, stream)


cdef void log_softmax_frame(Vector x, Vector y, Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """y = (x - m) - log1p(sum of exp(x - m) over all classes but one of the largest)."""
    cdef Py_ssize_t part
    cdef floating c_hi, c_lo
    normaliser(read_frame(x, n, scratch), &c_hi, &c_lo)
    for part in range(count_slices(n) - 1, -1, -1):  # what was read last is in the cache
        write_part(x, y, part, n, c_hi, c_lo, scratch, stream)


cdef inline floating* slot(floating* scratch, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Room for the i-th of a few frames of n classes."""
    return scratch + i * ((n + N_ROW - 1) // N_ROW * N_ROW)


cdef void log_softmax_rows(Array x, Array y, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n, floating* scratch,
                           bint stream) noexcept nogil:
    """log_softmax_frame for frames `first` to last - 1 of at most N_PIPED classes.

    The maximum of one frame is taken before the sum of the last, and that before the result of the last but one:
    each ends in a chain of operations that wait for one another, 75 ns in all, and the next stage fills the wait.
    """
    cdef floating peaks[2 * N_PIPED_PEAKS]
    cdef floating m[2]
    cdef floating c_hi[2]
    cdef floating c_lo[2]
    cdef floating stage[N_PIPED]
    cdef Vector source[3]
    cdef Vector ahead
    cdef Py_ssize_t i, k
    for i in range(first, last + 2):
        if i < last:
            source[i % 3] = dense(frame_at(x, 0, i), 0, n, slot(scratch, i % 3, n))
            m[i % 2] = largest(source[i % 3], n, &peaks[i % 2 * N_PIPED_PEAKS])
        if first < i <= last:
            k = (i - 1) % 2
            ahead = frame_at(x, 0, i + 1)
            normaliser(sum_slice(source[(i - 1) % 3], n, m[k], &peaks[k * N_PIPED_PEAKS], ahead.at,
                                 bytes_of_block(ahead)), &c_hi[k], &c_lo[k])
        if i >= first + 2:
            k = i % 2
            if stream:  # all at once, lest each block begin and end within a cache line
                write_slice(source[(i - 2) % 3], native(stage), n, c_hi[k], c_lo[k], False)
                write(frame_at(y, 0, i - 2), 0, n, stage, True)
            else:
                write_slice(source[(i - 2) % 3], frame_at(y, 0, i - 2), n, c_hi[k], c_lo[k], False)
