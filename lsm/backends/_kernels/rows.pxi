# Frames whose classes lie side by side (or are gathered so): the lanes run along the classes.


cdef void gather(const floating* x, Py_ssize_t step, Py_ssize_t n, floating* to) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = x[i * step]


cdef void scatter(const floating* x, Py_ssize_t n, floating* to, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        to[i * step] = x[i]


cdef inline floating larger(floating a, floating b) noexcept nogil:
    return a if a > b else b


cdef floating largest(const floating* x, Py_ssize_t n, floating* of_blocks) noexcept nogil:
    """max(x), and N_PEAKS numbers for each whole block, among which is its maximum.

    A NaN is passed over here and found by the sum.
    """
    cdef floating m[N_LANES]
    cdef floating b[N_LANES]
    cdef const floating* p
    cdef Py_ssize_t block, i, k
    for k in range(N_LANES):
        m[k] = -INFINITY
    for block in range(n // N_BLOCK):
        p = &x[block * N_BLOCK]
        for k in range(N_LANES):
            b[k] = larger(larger(p[k], p[k + N_LANES]), larger(p[k + 2 * N_LANES], p[k + 3 * N_LANES]))
            m[k] = larger(b[k], m[k])
        for k in range(N_PEAKS):
            of_blocks[block * N_PEAKS + k] = larger(larger(b[k], b[k + N_PEAKS]),
                                                    larger(b[k + 2 * N_PEAKS], b[k + 3 * N_PEAKS]))
    for block in range(n // N_BLOCK * (N_BLOCK // N_LANES), n // N_LANES):
        p = &x[block * N_LANES]
        for k in range(N_LANES):
            m[k] = larger(p[k], m[k])
    i = n - n % N_LANES
    for k in range(n - i):
        m[k] = larger(x[i + k], m[k])
    for k in range(32):
        m[k] = larger(m[k + 32], m[k])
    for k in range(16):
        m[k] = larger(m[k + 16], m[k])
    for k in range(8):
        m[k] = larger(m[k + 8], m[k])
    for k in range(4):
        m[k] = larger(m[k + 4], m[k])
    return larger(larger(m[0], m[1]), larger(m[2], m[3]))


cdef inline void add_block(const floating* x, floating m, floating c, double* total, double* error) noexcept nogil:
    """Add exp(x - c) of one block of classes, all below m, to the lanes."""
    cdef floating p[N_BLOCK]
    cdef Py_ssize_t k
    for k in range(N_BLOCK):
        p[k] = exp_below(x[k], m, c, False)
    add_exponentials(total, error, p, N_LANES, N_LANES)


cdef inline int add_special_block(const floating* x, Py_ssize_t n, floating m, floating c,
                                  double* total, double* error) noexcept nogil:
    """The same for n <= N_BLOCK classes, some of which may equal m; how many do."""
    cdef floating p[N_BLOCK]
    cdef floating tail[N_LANES]
    cdef Py_ssize_t row, i, k
    cdef int n_equal = 0
    for row in range(n // N_LANES):
        i = row * N_LANES
        for k in range(N_LANES):
            p[i + k] = exp_below(x[i + k], m, c, True)
            n_equal += x[i + k] == m
    i = n - n % N_LANES
    if i < n:
        for k in range(N_LANES):
            tail[k] = -INFINITY  # adds exactly 0
        for k in range(n - i):
            tail[k] = x[i + k]
        for k in range(N_LANES):
            p[i + k] = exp_below(tail[k], m, c, True)
            n_equal += tail[k] == m
        i += N_LANES
    for k in range(i, N_BLOCK):
        p[k] = 0
    add_exponentials(total, error, p, N_LANES, N_LANES)
    return n_equal


cdef Frame read_slice(const floating* x, Py_ssize_t n) noexcept nogil:
    """m and sum of exp(x - m), of at most N_SLICE classes: the second read comes from the cache."""
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef floating peaks[N_SLICE_PEAKS]
    cdef Py_ssize_t n_equal = 0
    cdef Py_ssize_t i, k
    cdef bint special
    cdef Frame frame
    cdef floating m = largest(x, n, peaks)
    cdef floating shift = m if m > -INFINITY else <floating> 0  # a slice may be -inf throughout, its frame not
    cdef floating c = round_shift(shift)
    clear_lanes(total, error, N_LANES, x)
    for i in range(n // N_BLOCK):
        lsm_prefetch(&x[n + i * N_BLOCK], N_BLOCK * sizeof(floating), n <= N_NEAR)  # what will be read next
        special = False
        for k in range(N_PEAKS):
            special |= peaks[i * N_PEAKS + k] == m
        if special:
            n_equal += add_special_block(&x[i * N_BLOCK], N_BLOCK, shift, c, total, error)
        else:
            add_block(&x[i * N_BLOCK], shift, c, total, error)
    if n % N_BLOCK:
        n_equal += add_special_block(&x[n - n % N_BLOCK], n % N_BLOCK, shift, c, total, error)
    fold_lanes(total, error, N_LANES, 1, x)
    frame.largest = m
    frame.below = shift_sum(total[0], error[0], shift, c)
    frame.below *= EXP_UNBIAS_FLOAT if floating is float else EXP_UNBIAS_DOUBLE
    frame.n_largest = n_equal
    return frame


cdef inline void store(floating* to, const floating* p, Py_ssize_t n, bint stream) noexcept nogil:
    """Write a block, past the cache if `stream`."""
    cdef Py_ssize_t k
    if stream:
        lsm_stream(to, p, n * sizeof(floating))
    else:
        for k in range(n):
            to[k] = p[k]


cdef inline void write_block(const floating* x, floating* y, Py_ssize_t n, floating c_hi, floating c_lo,
                             bint stream) noexcept nogil:
    """y = (x - c_hi) - c_lo of at most N_BLOCK classes; by way of p where y is x, lest the loop be no vector loop."""
    cdef floating p[N_BLOCK]
    cdef Py_ssize_t k
    if stream or y == x:
        for k in range(n):
            p[k] = (x[k] - c_hi) - c_lo
        store(y, p, n, stream)
    else:
        for k in range(n):
            y[k] = (x[k] - c_hi) - c_lo


cdef inline Py_ssize_t count_slices(Py_ssize_t n) noexcept nogil:
    return (n + N_SLICE - 1) // N_SLICE


cdef void log_softmax_frame(const floating* x, Py_ssize_t step_x, floating* y, Py_ssize_t step_y,
                            Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """y = (x - m) - log1p(sum of exp(x - m) over all classes but one of the largest)."""
    cdef Py_ssize_t part, i, k, n_slice
    cdef floating c_hi, c_lo
    cdef const floating* source
    cdef floating* target
    cdef Frame frame
    for part in range(count_slices(n)):
        i = part * N_SLICE
        n_slice = min(N_SLICE, n - i)
        source = &x[i * step_x]
        if step_x != 1:
            gather(source, step_x, n_slice, scratch)
            source = scratch
        if part == 0:
            frame = read_slice(source, n_slice)
        else:
            merge(&frame, read_slice(source, n_slice))
    normaliser(frame, &c_hi, &c_lo)
    for part in range(count_slices(n)):
        i = part * N_SLICE
        n_slice = min(N_SLICE, n - i)
        source = &x[i * step_x]
        target = &y[i * step_y]
        if step_x != 1:
            gather(source, step_x, n_slice, scratch)
            source = scratch
        if step_y != 1:
            target = scratch
        for k in range(n_slice // N_BLOCK):
            write_block(&source[k * N_BLOCK], &target[k * N_BLOCK], N_BLOCK, c_hi, c_lo, stream and step_y == 1)
        k = n_slice - n_slice % N_BLOCK
        write_block(&source[k], &target[k], n_slice - k, c_hi, c_lo, stream and step_y == 1)
        if step_y != 1:
            scatter(scratch, n_slice, &y[i * step_y], step_y)


cdef inline void add_block_of_gradients(const floating* dy, Py_ssize_t n, double* total, double* error) noexcept nogil:
    """Add n <= N_BLOCK gradients to the lanes; rows that are not there count as 0."""
    cdef floating pad[2 * N_LANES]
    cdef const floating* rows[4]
    cdef Py_ssize_t q, k, n_rest = n % N_LANES
    if n < N_BLOCK:
        for k in range(2 * N_LANES):
            pad[k] = 0
        for k in range(n_rest):
            pad[k] = dy[n - n_rest + k]
        for q in range(4):
            rows[q] = &pad[N_LANES]
        for q in range(n // N_LANES):
            rows[q] = &dy[q * N_LANES]
        rows[n // N_LANES] = &pad[0]
        add_gradients(total, error, rows[0], rows[1], rows[2], rows[3], N_LANES)
    else:
        add_gradients(total, error, dy, &dy[N_LANES], &dy[2 * N_LANES], &dy[3 * N_LANES], N_LANES)


cdef inline bint some_large(const floating* y, Py_ssize_t n) noexcept nogil:
    """Whether is_large of any of n classes, in half the time of asking each (0.5 ns for 16 float32)."""
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


cdef inline Py_ssize_t gradient_block(const floating* dy, const floating* y, floating* dx, Py_ssize_t n,
                                      floating s_hi, floating s_lo, floating s, floating magic, floating lowest,
                                      bint stream) noexcept nogil:
    """dx = dy - exp(y) * S of at most N_BLOCK classes; how many y are out of range."""
    cdef floating p[N_BLOCK]
    cdef int n_bad = 0
    cdef Py_ssize_t k
    if some_large(y, n):
        for k in range(n):
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, True)
            n_bad += exceeds(y[k])
        store(dx, p, n, stream)
    elif stream or dx == dy or dx == y:
        for k in range(n):
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
        store(dx, p, n, stream)
    else:
        for k in range(n):
            dx[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
    return n_bad


cdef void log_softmax_backward_frame(const floating* dy, Py_ssize_t step_dy, const floating* y, Py_ssize_t step_y,
                                     floating* dx, Py_ssize_t step_dx, Py_ssize_t n, floating* scratch,
                                     bint stream) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)."""
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Py_ssize_t part, block, i, k, n_slice, n_bad = 0
    cdef floating s_hi, s_lo, s, magic, lowest
    cdef const floating* source
    cdef const floating* source_y
    cdef floating* target
    # Of a short frame y, and then the next dy, are asked for ahead of time; long ones would push each other out.
    cdef bint is_short = n <= N_SLICE and step_dy == 1 and step_y == 1
    clear_lanes(total, error, N_LANES, dy)
    for part in range(count_slices(n)):
        i = part * N_SLICE
        n_slice = min(N_SLICE, n - i)
        source = &dy[i * step_dy]
        if step_dy != 1:
            gather(source, step_dy, n_slice, scratch)
            source = scratch
        for k in range(n_slice // N_BLOCK):
            if is_short:
                lsm_prefetch(&y[k * N_BLOCK], N_BLOCK * sizeof(floating), n <= N_NEAR)
            else:
                lsm_prefetch(&source[(k + 8) * N_BLOCK], N_BLOCK * sizeof(floating), n <= N_NEAR)
            add_block_of_gradients(&source[k * N_BLOCK], N_BLOCK, total, error)
        if n_slice % N_BLOCK:
            add_block_of_gradients(&source[n_slice - n_slice % N_BLOCK], n_slice % N_BLOCK, total, error)
    fold_lanes(total, error, N_LANES, 1, dy)
    if is_masked(y, step_y, n) or not scale_sum(total[0], error[0], &s_hi, &s_lo, &s, &magic, &lowest):
        careful_backward_frame(dy, step_dy, y, step_y, dx, step_dx, n)
        return
    for part in range(count_slices(n)):
        i = part * N_SLICE
        n_slice = min(N_SLICE, n - i)
        source = &dy[i * step_dy]
        source_y = &y[i * step_y]
        target = &dx[i * step_dx]
        if step_dy != 1:
            gather(source, step_dy, n_slice, scratch)
            source = scratch
        if step_y != 1:
            gather(source_y, step_y, n_slice, scratch + N_SLICE)
            source_y = scratch + N_SLICE
        if step_dx != 1:
            target = scratch
        for block in range(n_slice // N_BLOCK):
            k = block * N_BLOCK
            if is_short:
                lsm_prefetch(&dy[n + k], N_BLOCK * sizeof(floating), n <= N_NEAR)
            else:
                lsm_prefetch(&source_y[k + 4 * N_BLOCK], N_BLOCK * sizeof(floating), n <= N_NEAR)
                lsm_prefetch(&dy[n + i + k], N_BLOCK * sizeof(floating), n <= N_NEAR)
            n_bad += gradient_block(&source[k], &source_y[k], &target[k], N_BLOCK, s_hi, s_lo, s, magic, lowest,
                                    stream and step_dx == 1)
        for block in range(n_slice // N_BLOCK * (N_BLOCK // N_LANES), n_slice // N_LANES):
            k = block * N_LANES
            n_bad += gradient_block(&source[k], &source_y[k], &target[k], N_LANES, s_hi, s_lo, s, magic, lowest,
                                    stream and step_dx == 1)
        k = n_slice - n_slice % N_LANES
        n_bad += gradient_block(&source[k], &source_y[k], &target[k], n_slice - k, s_hi, s_lo, s, magic, lowest,
                                stream and step_dx == 1)
        if step_dx != 1:
            scatter(scratch, n_slice, &dx[i * step_dx], step_dx)
    if n_bad:
        for i in range(n):
            dx[i * step_dx] = NAN
