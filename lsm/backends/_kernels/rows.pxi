# Frames one at a time: the lanes run along the classes.


cdef inline floating larger(floating a, floating b) noexcept nogil:
    return a if a > b else b


cdef floating largest(const floating* x, Py_ssize_t n_blocks, const floating* tail, Py_ssize_t n_rows,
                      floating* of_blocks) noexcept nogil:
    """The maximum of n_blocks blocks and n_rows rows, and N_PEAKS numbers for each block, its maximum among them.

    A NaN is passed over here and found by the sum.
    """
    cdef floating m[N_ROW]
    cdef floating b[N_ROW]
    cdef const floating* p
    cdef Py_ssize_t block, row, k
    for k in range(N_ROW):
        m[k] = -INFINITY
    for block in range(n_blocks):
        p = &x[block * N_BLOCK]
        for k in range(N_ROW):
            b[k] = larger(larger(p[k], p[k + N_ROW]), larger(p[k + 2 * N_ROW], p[k + 3 * N_ROW]))
            m[k] = larger(b[k], m[k])
        for k in range(N_PEAKS):
            of_blocks[block * N_PEAKS + k] = larger(larger(b[k], b[k + N_PEAKS]),
                                                    larger(b[k + 2 * N_PEAKS], b[k + 3 * N_PEAKS]))
    for row in range(n_rows):
        for k in range(N_ROW):
            m[k] = larger(tail[row * N_ROW + k], m[k])
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


cdef inline void add_block(const floating* v, floating magic, floating floor,
                           double* total, double* error) noexcept nogil:
    """Add the exponentials of one block, without its largest class being among them, to the lanes."""
    cdef floating p[N_ROW]
    cdef Py_ssize_t k, q
    for k in range(N_ROW):
        p[k] = exp_below(v[k], magic, floor, 0, False)
    for q in range(1, N_BLOCK // N_ROW):
        for k in range(N_ROW):
            p[k] += exp_below(v[q * N_ROW + k], magic, floor, 0, False)
    add_groups(total, error, p, N_LANES, 4, floating is double)


cdef inline Py_ssize_t add_special_block(const floating* v, Py_ssize_t n_rows, floating m, floating magic,
                                         floating floor, double* total, double* error) noexcept nogil:
    """The same for n_rows <= 4 rows, with classes that equal m, which are left out; how many they are."""
    cdef floating p[N_ROW]
    cdef int n_equal = 0
    cdef Py_ssize_t k, q
    for k in range(N_ROW):
        p[k] = 0
    for q in range(n_rows):
        for k in range(N_ROW):
            p[k] += exp_below(v[q * N_ROW + k], magic, floor, m, True)
    for k in range(n_rows * N_ROW):
        n_equal += v[k] == m
    add_groups(total, error, p, N_LANES, 4, floating is double)
    return n_equal


cdef Frame read_slice(const floating* x, Py_ssize_t n, const char* ahead, size_t n_ahead) noexcept nogil:
    """m and the sum of exp(x - m), of at most N_SLICE classes: the second read comes from the cache.

    Meanwhile what will be read next is asked for: n_ahead bytes for each block.
    """
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef floating peaks[N_SLICE_PEAKS]
    cdef floating tail[N_BLOCK]
    cdef floating buffer[N_BLOCK]
    cdef Py_ssize_t n_rest = n % N_BLOCK, n_rows = (n_rest + N_ROW - 1) // N_ROW
    cdef Py_ssize_t n_equal = 0
    cdef Py_ssize_t i, k
    cdef const floating* v
    cdef floating m, h, top, magic, floor
    cdef bint special
    cdef Frame frame
    cdef Shift shift
    for k in range(n_rows * N_ROW):
        tail[k] = -INFINITY  # adds exactly 0
    memcpy(tail, &x[n - n_rest], n_rest * sizeof(floating))
    m = largest(x, n // N_BLOCK, tail, n_rows, peaks)
    shift = shift_to(m if m > -INFINITY else <floating> 0, x)  # a slice may be -inf throughout, its frame not
    h = <floating> shift.h
    top = <floating> (shift.m - shift.h)
    magic = <floating> shift.magic
    floor = <floating> shift.floor
    clear_lanes(total, error, N_LANES, x)
    for i in range(n // N_BLOCK):
        lsm_prefetch(ahead + i * n_ahead, n_ahead, n <= N_NEAR)
        special = False
        for k in range(N_PEAKS):
            special |= peaks[i * N_PEAKS + k] == m
        v = less(&x[i * N_BLOCK], N_BLOCK, h, buffer)
        if special:
            n_equal += add_special_block(v, N_BLOCK // N_ROW, top, magic, floor, total, error)
        else:
            add_block(v, magic, floor, total, error)
    if n_rest:
        v = less(tail, n_rows * N_ROW, h, buffer)
        n_equal += add_special_block(v, n_rows, top, magic, floor, total, error)
    fold_lanes(total, error, N_LANES, 1, x)
    frame.largest = m
    frame.below = finish(total[0], error[0], shift, floating is float)
    frame.n_largest = n_equal
    return frame


cdef inline Frame read_part(Vector x, Py_ssize_t part, Py_ssize_t n, floating* scratch) noexcept nogil:
    """read_slice of the part-th slice of a frame; what follows it in memory is what will be read next."""
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef const floating* source = load(x, start, n_slice, scratch)
    return read_slice(source, n_slice, x.at + (start + n_slice) * x.step,
                      N_BLOCK * x.step if x.step == size_of(x.kind) else 0)


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
        for k in range(n):
            p[k] = (x[k] - c_hi) - c_lo
        write(y, start, n, p, stream)
    else:
        for k in range(n):
            target[k] = (x[k] - c_hi) - c_lo


cdef void write_part(Vector x, Vector y, Py_ssize_t part, Py_ssize_t n, floating c_hi, floating c_lo,
                     floating* scratch, bint is_loaded, bint stream) noexcept nogil:
    """y of the part-th slice of a frame. is_loaded: the scratch holds what `load` put there."""
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef Py_ssize_t i, block
    cdef const floating* source = scratch if is_loaded else load(x, start, n_slice, scratch)
    y.at += start * y.step
    i = min(misaligned(y, stream), n_slice)
    if i:
        write_block(source, y, 0, i, c_hi, c_lo, stream)
    for block in range((n_slice - i) // N_BLOCK):
        write_block(&source[i], y, i, N_BLOCK, c_hi, c_lo, stream)
        i += N_BLOCK
    if i < n_slice:
        write_block(&source[i], y, i, n_slice - i, c_hi, c_lo, stream)


cdef void log_softmax_frame(Vector x, Vector y, Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """y = (x - m) - log1p(sum of exp(x - m) over all classes but one of the largest)."""
    cdef Py_ssize_t part
    cdef floating c_hi, c_lo
    normaliser(read_frame(x, n, scratch), &c_hi, &c_lo)
    for part in range(count_slices(n) - 1, -1, -1):  # what was read last is in the cache
        write_part(x, y, part, n, c_hi, c_lo, scratch, n <= N_SLICE and not is_native(x, scratch), stream)


cdef inline void add_block_of_gradients(const floating* dy, Py_ssize_t n, double* total, double* error) noexcept nogil:
    """Add n <= N_BLOCK gradients to the lanes; rows that are not there count as 0."""
    cdef double v[N_ROW]
    cdef floating pad[2 * N_ROW]
    cdef const floating* rows[4]
    cdef Py_ssize_t q, k, n_rest = n % N_ROW
    for q in range(4):
        rows[q] = &dy[q * N_ROW]
    if n < N_BLOCK:
        for k in range(2 * N_ROW):
            pad[k] = 0
        memcpy(pad, &dy[n - n_rest], n_rest * sizeof(floating))
        rows[n // N_ROW] = pad
        for q in range(n // N_ROW + 1, 4):
            rows[q] = &pad[N_ROW]
    for k in range(N_ROW):
        v[k] = (<double> rows[0][k] + <double> rows[1][k]) + (<double> rows[2][k] + <double> rows[3][k])
    add_groups(total, error, v, N_LANES, 4, floating is double)


# S = sum(dy) of some of a frame's classes.
cdef struct Sum:
    double total
    double error  # is to be added to it


cdef Sum sum_part(Vector dy, Py_ssize_t part, Py_ssize_t n, const char* ahead, size_t n_ahead,
                  floating* scratch) noexcept nogil:
    """The sum of the part-th slice. Meanwhile n_ahead bytes for each block are asked for."""
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Sum found
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef Py_ssize_t block
    cdef const floating* source = load(dy, start, n_slice, scratch)
    clear_lanes(total, error, N_LANES, scratch)
    for block in range(n_slice // N_BLOCK):
        lsm_prefetch(ahead + block * n_ahead, n_ahead, n <= N_NEAR)
        add_block_of_gradients(&source[block * N_BLOCK], N_BLOCK, total, error)
    if n_slice % N_BLOCK:
        add_block_of_gradients(&source[n_slice - n_slice % N_BLOCK], n_slice % N_BLOCK, total, error)
    fold_lanes(total, error, N_LANES, 1, scratch)
    found.total = total[0]
    found.error = error[0]
    return found


cdef Sum sum_frame(Vector dy, Vector y, Py_ssize_t n, floating* scratch) noexcept nogil:
    """S. Of a short frame y is asked for meanwhile; of a long one dy itself: they would push each other out."""
    cdef Sum found, of_part
    cdef Py_ssize_t part
    cdef bint is_short = n <= N_SLICE
    cdef const char* ahead = y.at if is_short else dy.at + 8 * N_BLOCK * dy.step
    cdef size_t n_ahead = N_BLOCK * (y.step if is_short else dy.step)
    if dy.step != size_of(dy.kind) or y.step != size_of(y.kind):
        n_ahead = 0
    found.total = found.error = 0
    for part in range(count_slices(n)):
        of_part = sum_part(dy, part, n, ahead, n_ahead, scratch)
        ahead += N_SLICE * dy.step
        add_sum(&found, of_part)
    return found


cdef inline void add_sum(Sum* found, Sum of_part) noexcept nogil:
    two_sum(&found.total, &found.error, of_part.total)
    found.error += of_part.error


cdef inline Py_ssize_t gradient_block(const floating* dy, const floating* y, Vector dx, Py_ssize_t start, Py_ssize_t n,
                                      floating s_hi, floating s_lo, floating s, floating magic, floating lowest,
                                      bint stream) noexcept nogil:
    """dx = dy - exp(y) * S of at most N_BLOCK classes; how many y are out of range.

    Whether some y > -ln 2 is found on the way (by unsigned integers, in half the time of asking each), and if so
    the block is computed again.
    """
    cdef floating p[N_BLOCK]
    cdef floating* target = <floating*> dx.at + start
    cdef bint direct = not stream and is_native(dx, dy) and target != dy and target != y
    cdef uint32_t most_f = 0
    cdef uint64_t most_d = 0
    cdef Py_ssize_t k
    cdef int n_bad = 0
    if direct:
        for k in range(n):
            target[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
            if floating is float:
                most_f = max(most_f, lsm_beyond_f(y[k], <float> -0.6931471805599453))
            else:
                most_d = max(most_d, lsm_beyond_d(y[k], -0.6931471805599453))
    else:
        for k in range(n):
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
            if floating is float:
                most_f = max(most_f, lsm_beyond_f(y[k], <float> -0.6931471805599453))
            else:
                most_d = max(most_d, lsm_beyond_d(y[k], -0.6931471805599453))
    if (most_f > lsm_beyond_f(-INFINITY, <float> -0.6931471805599453)
            or most_d > lsm_beyond_d(-INFINITY, -0.6931471805599453)):
        for k in range(n):
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, True)
            n_bad += exceeds(y[k])
        direct = False
    if not direct:
        write(dx, start, n, p, stream)
    return n_bad


cdef Py_ssize_t gradient_part(Vector dy, Vector y, Vector dx, Py_ssize_t part, Py_ssize_t n, Scaled of,
                              floating* scratch, bint is_loaded, bint stream) noexcept nogil:
    """dx of the part-th slice of a frame; how many y are out of range. is_loaded: the scratch holds dy."""
    cdef floating s_hi = <floating> of.s_hi, s_lo = <floating> of.s_lo, s = <floating> of.s
    cdef floating magic = <floating> of.magic, lowest = <floating> of.lowest
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef Py_ssize_t i, k, n_bad = 0
    cdef const floating* source = scratch if is_loaded else load(dy, start, n_slice, scratch)
    cdef const floating* source_y = load(y, start, n_slice, scratch + N_SLICE)
    cdef const char* ahead = y.at + (start + 4 * N_BLOCK) * y.step
    cdef const char* ahead_dy = dy.at + (start + n_slice) * dy.step
    cdef size_t n_ahead = N_BLOCK * y.step if y.step == size_of(y.kind) and n > N_SLICE else 0
    cdef size_t n_ahead_dy = N_BLOCK * dy.step if dy.step == size_of(dy.kind) else 0
    dx.at += start * dx.step
    i = min(misaligned(dx, stream), n_slice)
    if i:
        n_bad += gradient_edge(source, source_y, dx, 0, i, s_hi, s_lo, s, magic, lowest, stream)
    for k in range((n_slice - i) // N_BLOCK):
        lsm_prefetch(ahead + k * n_ahead, n_ahead, n <= N_NEAR)
        lsm_prefetch(ahead_dy + k * n_ahead_dy, n_ahead_dy, n <= N_NEAR)
        n_bad += gradient_block(&source[i], &source_y[i], dx, i, N_BLOCK, s_hi, s_lo, s, magic, lowest, stream)
        i += N_BLOCK
    for k in range((n_slice - i) // N_ROW):
        n_bad += gradient_block(&source[i], &source_y[i], dx, i, N_ROW, s_hi, s_lo, s, magic, lowest, stream)
        i += N_ROW
    if i < n_slice:
        n_bad += gradient_edge(&source[i], &source_y[i], dx, i, n_slice - i, s_hi, s_lo, s, magic, lowest, stream)
    return n_bad


cdef Py_ssize_t gradient_edge(const floating* dy, const floating* y, Vector dx, Py_ssize_t start, Py_ssize_t n,
                              floating s_hi, floating s_lo, floating s, floating magic, floating lowest,
                              bint stream) noexcept nogil:
    """gradient_block of less than N_ROW classes, by way of whole lanes: single exponentials take their time."""
    cdef floating pad[N_ROW]
    cdef floating pad_y[N_ROW]
    cdef floating p[N_ROW]
    cdef Vector to
    cdef Py_ssize_t k, n_bad
    for k in range(N_ROW):
        pad[k] = 0
        pad_y[k] = -INFINITY
    memcpy(pad, dy, n * sizeof(floating))
    memcpy(pad_y, y, n * sizeof(floating))
    to.at = <char*> p
    to.step = sizeof(floating)
    to.kind = kind_of(dy)
    n_bad = gradient_block(pad, pad_y, to, 0, N_ROW, s_hi, s_lo, s, magic, lowest, False)
    write(dx, start, n, p, False)
    return n_bad


cdef void log_softmax_backward_frame(Vector dy, Vector y, Vector dx, Py_ssize_t n, floating* scratch,
                                     bint stream) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)."""
    cdef Scaled of
    cdef Py_ssize_t part, n_bad = 0
    cdef Sum s = sum_frame(dy, y, n, scratch)
    if is_masked(y, n, scratch) or not scale_sum(s.total, s.error, &of, floating is float):
        careful_backward_frame(dy, y, dx, n, scratch)
        return
    for part in range(count_slices(n)):
        n_bad += gradient_part(dy, y, dx, part, n, of, scratch, n <= N_SLICE and not is_native(dy, scratch), stream)
    if n_bad:
        fill_nan(dx, n, scratch)
