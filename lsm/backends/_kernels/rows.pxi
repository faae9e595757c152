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


cdef inline void add_block_of_gradients(const floating* dy, Py_ssize_t n, double* total, double* error) noexcept nogil:
    """Add n <= N_BLOCK gradients to the lanes; rows that are not there count as 0."""
    cdef double v[N_ROW]
    cdef floating edge[N_ROW]
    cdef floating zero[N_ROW]
    cdef const floating* rows[4]
    cdef Py_ssize_t q, k, n_rest = n % N_ROW
    for q in range(4):
        rows[q] = &dy[q * N_ROW]
    if n < N_BLOCK:
        pad(edge, &dy[n - n_rest], n_rest, 0)
        for k in range(N_ROW):
            zero[k] = 0
        rows[n // N_ROW] = edge
        for q in range(n // N_ROW + 1, 4):
            rows[q] = zero
    for k in range(N_ROW):  # hot
        v[k] = (<double> rows[0][k] + <double> rows[1][k]) + (<double> rows[2][k] + <double> rows[3][k])
    add_groups(total, error, v, N_LANES, 4, floating is double)


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
    cdef floating buffer[N_BLOCK]
    cdef Vector source = dense(dy, start, n_slice, scratch)
    clear_lanes(total, error, N_LANES, scratch)
    for block in range(n_slice // N_BLOCK):
        lsm_prefetch(ahead + block * n_ahead, n_ahead, n <= N_NEAR)
        add_block_of_gradients(load(source, block * N_BLOCK, N_BLOCK, buffer), N_BLOCK, total, error)
    if n_slice % N_BLOCK:
        block = n_slice // N_BLOCK * N_BLOCK
        add_block_of_gradients(load(source, block, n_slice - block, buffer), n_slice - block, total, error)
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
        for k in range(n):  # hot
            target[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
            if floating is float:
                most_f = max(most_f, lsm_beyond_f(y[k], <float> -0.6931471805599453))
            else:
                most_d = max(most_d, lsm_beyond_d(y[k], -0.6931471805599453))
    else:
        for k in range(n):  # hot
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, False)
            if floating is float:
                most_f = max(most_f, lsm_beyond_f(y[k], <float> -0.6931471805599453))
            else:
                most_d = max(most_d, lsm_beyond_d(y[k], -0.6931471805599453))
    if (most_f > lsm_beyond_f(-INFINITY, <float> -0.6931471805599453)
            or most_d > lsm_beyond_d(-INFINITY, -0.6931471805599453)):
        for k in range(n):  # hot
            p[k] = gradient(dy[k], y[k], s_hi, s_lo, s, magic, lowest, True)
            n_bad += exceeds(y[k])
        direct = False
    if not direct:
        write(dx, start, n, p, stream)
    return n_bad


cdef Py_ssize_t gradient_part(Vector dy, Vector y, Vector dx, Py_ssize_t part, Py_ssize_t n, Scaled of,
                              floating* scratch, floating* scratch_y, const char* ahead_dy,
                              bint stream) noexcept nogil:
    """dx of the part-th slice of a frame; how many y are out of range. ahead_dy: what of dy will be read next."""
    cdef floating s_hi = <floating> of.s_hi, s_lo = <floating> of.s_lo, s = <floating> of.s
    cdef floating magic = <floating> of.magic, lowest = <floating> of.lowest
    cdef Py_ssize_t start = part * N_SLICE
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> N_SLICE, n - start)
    cdef Py_ssize_t i, k, n_bad = 0
    cdef floating buffer[N_BLOCK]
    cdef floating buffer_y[N_BLOCK]
    cdef Vector source = dense(dy, start, n_slice, scratch)
    cdef Vector source_y = dense(y, start, n_slice, scratch_y)
    cdef const char* ahead = y.at + (start + 4 * N_BLOCK) * y.step
    cdef size_t n_ahead = N_BLOCK * y.step if y.step == size_of(y.kind) and n > N_SLICE else 0
    cdef size_t n_ahead_dy = N_BLOCK * dy.step if dy.step == size_of(dy.kind) else 0
    dx.at += start * dx.step
    i = min(misaligned(dx, stream), n_slice)
    if i:
        n_bad += gradient_edge(load(source, 0, i, buffer), load(source_y, 0, i, buffer_y), dx, 0, i, s_hi,
                               s_lo, s, magic, lowest, stream)
    for k in range((n_slice - i) // N_BLOCK):
        lsm_prefetch(ahead + k * n_ahead, n_ahead, n <= N_NEAR)
        lsm_prefetch(ahead_dy + k * n_ahead_dy, n_ahead_dy, n <= N_NEAR)
        n_bad += gradient_block(load(source, i, N_BLOCK, buffer), load(source_y, i, N_BLOCK, buffer_y), dx, i, N_BLOCK,
                                s_hi, s_lo, s, magic, lowest, stream)
        i += N_BLOCK
    for k in range((n_slice - i) // N_ROW):
        n_bad += gradient_block(load(source, i, N_ROW, buffer), load(source_y, i, N_ROW, buffer_y), dx, i, N_ROW,
                                s_hi, s_lo, s, magic, lowest, stream)
        i += N_ROW
    if i < n_slice:
        k = n_slice - i
        n_bad += gradient_edge(load(source, i, k, buffer), load(source_y, i, k, buffer_y), dx, i, k, s_hi, s_lo, s,
                               magic, lowest, stream)
    return n_bad


cdef Py_ssize_t gradient_edge(const floating* dy, const floating* y, Vector dx, Py_ssize_t start, Py_ssize_t n,
                              floating s_hi, floating s_lo, floating s, floating magic, floating lowest,
                              bint stream) noexcept nogil:
    """gradient_block of less than N_ROW classes, by way of whole lanes: single exponentials take their time."""
    cdef floating edge[N_ROW]
    cdef floating edge_y[N_ROW]
    cdef floating p[N_ROW]
    cdef Py_ssize_t n_bad
    pad(edge, dy, n, 0)
    pad(edge_y, y, n, -INFINITY)
    n_bad = gradient_block(edge, edge_y, native(p), 0, N_ROW, s_hi, s_lo, s, magic, lowest, False)
    write(dx, start, n, p, False)
    return n_bad


cdef void log_softmax_backward_frame(Vector dy, Vector y, Vector dx, Py_ssize_t n, floating* scratch,
                                     bint stream) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)."""
    finish_backward_frame(dy, y, dx, n, sum_frame(dy, y, n, scratch), scratch, scratch + N_SLICE, dy.at + n * dy.step,
                          stream)


cdef void finish_backward_frame(Vector dy, Vector y, Vector dx, Py_ssize_t n, Sum s, floating* scratch,
                                floating* scratch_y, const char* ahead_dy, bint stream) noexcept nogil:
    """dx of a frame whose S is known. ahead_dy: the frame of dy that will be read next."""
    cdef Scaled of
    cdef Py_ssize_t part, n_bad = 0
    if is_masked(y, n, scratch) or not scale_sum(s.total, s.error, &of, floating is float):
        careful_backward_frame(dy, y, dx, n, scratch)
        return
    for part in range(count_slices(n)):
        n_bad += gradient_part(dy, y, dx, part, n, of, scratch, scratch_y,
                               dy.at + (part + 1) * N_SLICE * dy.step if part < count_slices(n) - 1 else ahead_dy, stream)
    if n_bad:
        fill_nan(dx, n, scratch)


cdef void log_softmax_backward_rows(Array dy, Array y, Array dx, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n,
                                    floating* scratch, bint stream) noexcept nogil:
    """log_softmax_backward_frame for frames `first` to last - 1 of at most N_PIPED classes, in two stages."""
    cdef floating stage[N_PIPED]
    cdef Vector source[2]
    cdef Vector target
    cdef Sum s[2]
    cdef Py_ssize_t i, k
    for i in range(first, last + 1):
        if i < last:
            source[i % 2] = dense(frame_at(dy, 0, i), 0, n, slot(scratch, i % 2, n))
            s[i % 2] = sum_frame(source[i % 2], frame_at(y, 0, i), n, scratch)
        if i > first:
            k = (i - 1) % 2
            target = native(stage) if stream else frame_at(dx, 0, i - 1)
            finish_backward_frame(source[k], frame_at(y, 0, i - 1), target, n, s[k], scratch, scratch + N_SLICE,
                                  frame_at(dy, 0, i + 1).at, False)
            if stream:
                write(frame_at(dx, 0, i - 1), 0, n, stage, True)
