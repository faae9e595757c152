# Traversal of interleaved frames, as on all axes but the last. A block has n rows: row i is class i of adjacent frames.
# Vectors run along the frames, in chunks of CHUNK.
#
# Class i of a frame belongs to lane i mod 16, and each lane of each frame has an accumulator. Rows of few adjacent
# frames are made longer. Those of several outer indices are copied into common rows. Or, with many classes that follow
# each other in memory (axis 1 of (N, 1000, 5)), 16 rows are joined to one: each of its numbers belongs to one lane of
# one frame, so the accumulators and the order of sums are the same.


# An array in a block: frames of one outer index, or of several adjacent ones.
cdef struct Block:
    char* at
    Py_ssize_t step   # bytes from one class to the next
    Py_ssize_t gap    # bytes from one frame to the next
    Py_ssize_t outer  # bytes from one outer index to the next
    int kind


cdef struct Shape:
    Py_ssize_t n        # classes
    Py_ssize_t n_outer  # outer indices
    Py_ssize_t n_inner  # frames of each
    Py_ssize_t width    # numbers of a row, at least CHUNK
    Py_ssize_t n_joined  # classes of a row: 1 or N_LANES
    bint is_filled       # whether the last row of joined classes is filled up


cdef inline Py_ssize_t packed_numbers(const floating* of) noexcept nogil:
    """How many numbers of each of a, b and y fit the scratch."""
    return SCRATCH_BYTES // 3 // (CHUNK * <Py_ssize_t> sizeof(floating)) * CHUNK


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef inline Py_ssize_t chunk_at(Py_ssize_t c, Py_ssize_t width) noexcept nogil:
    """Where chunk c / CHUNK of a row begins. The last one ends with the row, and may overlap the one before."""
    return min(c, width - CHUNK)


cdef inline Vector row_of(Block x, Py_ssize_t o, Py_ssize_t i) noexcept nogil:
    """Class i of the frames of outer index o."""
    cdef Vector row
    row.at = x.at + o * x.outer + i * x.step
    row.step = x.gap
    row.kind = x.kind
    return row


cdef inline Vector frame_of(Block x, Shape s, Py_ssize_t j) noexcept nogil:
    cdef Vector frame
    frame.at = x.at + j // s.n_inner * x.outer + j % s.n_inner * x.gap
    frame.step = x.step
    frame.kind = x.kind
    return frame


cdef inline bint is_interleaved(Shape s) noexcept nogil:
    """Whether copies have all frames of a class in one row, rather than those of one outer index."""
    if s.n_joined > 1:
        return False
    return s.n_inner < CHUNK or (is_few(s.n) and s.n_outer > 1 and s.n_inner < INTERLEAVED_COLUMNS)


cdef inline bint is_plain(Block x, Shape s, const floating* of) noexcept nogil:
    """Whether chunks can be read and written where they lie."""
    return x.kind == kind_of(of) and x.gap == sizeof(floating) and not is_interleaved(s)


cdef inline Block outer_of(Block x, Py_ssize_t o) noexcept nogil:
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
    else:
        interleave(to, to_class, to_outer, x, x_class, x_outer, n, n_outer, size)


cdef void pack(Block x, Shape s, Py_ssize_t first, Py_ssize_t n, floating fill, floating* to) noexcept nogil:
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
                copy_row(row_of(x, o, first + i), s.n_inner, to + i * row + o * s.n_inner)
    for i in range(n if w < row else 0):
        for j in range(w, row):
            to[i * row + j] = fill


cdef void unpack(Block y, Shape s, Py_ssize_t first, Py_ssize_t n, const floating* source) noexcept nogil:
    """The inverse: write n classes of y, from `first` on."""
    cdef Py_ssize_t i, o, w = s.n_outer * s.n_inner, row = s.width // s.n_joined
    if y.kind == kind_of(source) and (y.gap == sizeof(floating) or s.n_inner == 1) and is_interleaved(s):
        interleave_runs(y.at + first * y.step, y.step, y.outer, <const char*> source, row * sizeof(floating),
                        s.n_inner * sizeof(floating), n, s.n_outer, s.n_inner * sizeof(floating))
    elif s.n_joined > 1:
        for i from 0 <= i < n * w by PIPELINE_MAX_CLASSES:
            write(row_of(y, 0, first), i, min(<Py_ssize_t> PIPELINE_MAX_CLASSES, n * w - i), source + i, False)
    else:
        for i in range(n):
            for o in range(s.n_outer):
                write(row_of(y, o, first + i), 0, s.n_inner, source + i * row + o * s.n_inner, False)


cdef inline const floating* rows_of(Block x, Shape s, Py_ssize_t first, Py_ssize_t n, floating fill, floating* buffer,
                                    Py_ssize_t* row) noexcept nogil:
    """n <= BLOCK_CLASSES classes from `first` on, `row` numbers apart: where they lie, or copied into the buffer."""
    if is_plain(x, s, buffer) and (s.is_filled or n % s.n_joined == 0):
        row[0] = x.step // <Py_ssize_t> sizeof(floating)
        return <const floating*> (x.at + first * x.step)
    row[0] = s.width // s.n_joined
    pack(x, s, first, n, fill, buffer)
    return buffer


cdef inline void raise_max(const floating* a, Py_ssize_t step, Py_ssize_t n_rows, floating* m) noexcept nogil:
    """m = max(m, a) over n_rows rows of a chunk."""
    cdef floating high[CHUNK]
    cdef Py_ssize_t k, i
    for k in range(CHUNK):
        high[k] = m[k]
    for i in range(n_rows):
        for k in range(CHUNK):  # hot
            high[k] = larger(a[i * step + k], high[k])
    for k in range(CHUNK):
        m[k] = high[k]


cdef inline void raise_largest(const floating* dy, const floating* p, Py_ssize_t row, floating* m, floating* m_dy,
                               floating* highest, int32_t* at) noexcept nogil:
    """Update, for each frame of a chunk, the largest p with its dy and its row, and the largest absolute dy."""
    cdef Py_ssize_t k
    cdef bint is_larger
    for k in range(CHUNK):  # hot
        is_larger = p[k] > m[k]
        highest[k] = larger(fabs_of(dy[k]), highest[k])
        m_dy[k] = dy[k] if is_larger else m_dy[k]
        at[k] = <int32_t> row if is_larger else at[k]
        m[k] = p[k] if is_larger else m[k]


cdef inline void fold_largest(floating* m, floating* m_dy, floating* highest, int32_t* at, Py_ssize_t n) noexcept nogil:
    """Reduce N_LANES rows of n frames, one row for each lane, to the first; of equal p, the lowest class counts."""
    cdef Py_ssize_t k, half = N_LANES // 2
    cdef bint is_larger
    for k in range(N_LANES * n):
        at[k] = at[k] * N_LANES + <int32_t> (k // n)
    while half:
        for k in range(half * n):
            is_larger = (m[half * n + k] > m[k]) | ((m[half * n + k] == m[k]) & (at[half * n + k] < at[k]))
            highest[k] = larger(highest[half * n + k], highest[k])
            m_dy[k] = m_dy[half * n + k] if is_larger else m_dy[k]
            at[k] = at[half * n + k] if is_larger else at[k]
            m[k] = m[half * n + k] if is_larger else m[k]
        half //= 2


cdef inline void spoil_huge(const floating* highest, Py_ssize_t n, floating* m_dy) noexcept nogil:
    """Make m_dy NaN where a difference of two dy may overflow, or products may be subnormal: no regular frame then."""
    cdef Py_ssize_t k
    for k in range(n):  # hot
        if floating is float:
            m_dy[k] = m_dy[k] if highest[k] < <float> 2.0**126 else <float> NAN
        else:
            m_dy[k] = m_dy[k] if (highest[k] < 2.0**1022) & ((highest[k] > 2.0**-900) | (highest[k] == 0)) else NAN


cdef inline void find_max(int op, Block a, Block b, Shape s, Py_ssize_t first, Py_ssize_t last, floating* buffer,
                          bint is_dense, floating* m, floating* m_dy) noexcept nogil:
    """The first stage over classes `first` to last - 1: the maximum of each frame, or the dy of its largest p.

    is_dense: results are as far apart as the frames; otherwise the last chunk has its own, after those of the others.
    """
    cdef int32_t found_at[MAX_WIDTH]
    cdef floating highest[MAX_WIDTH]
    cdef Py_ssize_t i, c, n, start, row = 0, row_b = 0, half
    cdef Py_ssize_t width = s.width if is_dense else round_up(s.width, CHUNK)
    cdef const floating* at
    cdef const floating* at_b
    for c in range(width):
        m[c] = -INFINITY
        m_dy[c] = -INFINITY
        if finds_largest(op):
            found_at[c] = 0
            highest[c] = 0
    for start from first <= start < last by BLOCK_CLASSES:
        n = min(<Py_ssize_t> BLOCK_CLASSES, last - start)
        if finds_largest(op):
            at = rows_of(a, s, start, n, <floating> 0, buffer, &row)
            at_b = rows_of(b, s, start, n, <floating> 0, buffer + packed_numbers(buffer), &row_b)
            for i from 0 <= i < n by s.n_joined:
                for c from 0 <= c < s.width by CHUNK:
                    raise_largest(at + i * row + chunk_at(c, s.width), at_b + i * row_b + chunk_at(c, s.width),
                                  (start + i) // s.n_joined, &m[chunk_at(c, width)], &m_dy[chunk_at(c, width)],
                                  &highest[chunk_at(c, width)], &found_at[chunk_at(c, width)])
        else:
            at = rows_of(a, s, start, n, <floating> -INFINITY, buffer, &row)
            n = round_up(n, s.n_joined)
            for i from 0 <= i < n // (4 * s.n_joined) * 4 * s.n_joined by 4 * s.n_joined:
                for c from 0 <= c < s.width by CHUNK:
                    raise_max(at + i * row + chunk_at(c, s.width), s.n_joined * row, 4, &m[chunk_at(c, width)])
            for i from n // (4 * s.n_joined) * 4 * s.n_joined <= i < n by s.n_joined:
                for c from 0 <= c < s.width by CHUNK:
                    raise_max(at + i * row + chunk_at(c, s.width), 0, 1, &m[chunk_at(c, width)])
    if finds_largest(op):
        if s.n_joined > 1:
            fold_largest(m, m_dy, highest, found_at, s.n_inner)
        spoil_huge(highest, width // s.n_joined, m_dy)
        return
    half = s.n_joined // 2
    while half:
        c = half * s.n_inner
        for i in range(c):
            m[i] = larger(m[c + i], m[i])
        half //= 2


cdef inline void exp_rows(bint few, bint some_equal, const floating* a, Py_ssize_t step, Py_ssize_t n_rows,
                          const floating* h, const floating* top, const floating* magic, const floating* floor,
                          floating* q, floating* n_equal) noexcept nogil:
    """q = the sum of the exponentials of n_rows rows of a chunk; counts the classes equal to the maximum."""
    cdef floating v, w, s, n_found
    cdef Py_ssize_t k, r
    for k in range(CHUNK):
        s = 0
        n_found = n_equal[k]
        for r in range(n_rows):  # hot
            if few:
                v = a[r * step + k]
                w = exp_difference(v, h[k])
                s += <floating> 0 if v == h[k] else w
                n_found += <floating> 1 if v == h[k] else <floating> 0
            else:
                v = a[r * step + k] - h[k]
                s += exp_below(v, magic[k], floor[k], top[k], some_equal)
                if some_equal:
                    n_found += <floating> 1 if v == top[k] else <floating> 0
        q[k] = s
        n_equal[k] = n_found


cdef inline void term_rows(int op, const floating* a, const floating* b, Py_ssize_t step, Py_ssize_t step_b,
                           Py_ssize_t n_rows, const floating* p, double* q) noexcept nogil:
    """The sum of the terms of n_rows rows of a chunk, in double."""
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        if n_rows == 4:
            q[k] = ((term(op, a[k], b[k], p[k]) + term(op, a[step + k], b[step_b + k], p[k]))
                    + (term(op, a[2 * step + k], b[2 * step_b + k], p[k])
                       + term(op, a[3 * step + k], b[3 * step_b + k], p[k])))
        elif n_rows == 3:
            q[k] = ((term(op, a[k], b[k], p[k]) + term(op, a[step + k], b[step_b + k], p[k]))
                    + term(op, a[2 * step + k], b[2 * step_b + k], p[k]))
        elif n_rows == 2:
            q[k] = term(op, a[k], b[k], p[k]) + term(op, a[step + k], b[step_b + k], p[k])
        else:
            q[k] = term(op, a[k], b[k], p[k])


cdef inline void sum_lane(int op, bint few, bint some_equal, const floating* a, const floating* b, Py_ssize_t step,
                          Py_ssize_t step_b, Py_ssize_t n_terms, const floating* params, Py_ssize_t stride,
                          bint is_first, double* total, double* error, floating* n_equal) noexcept nogil:
    """Add n_terms <= 16 classes of a lane to the accumulators of a chunk, in the order of lanes.pxi.

    The parameters are `stride` apart; for few classes there is one, the maximum. some_equal: whether any class may be
    equal to the maximum.
    """
    cdef floating h[CHUNK]
    cdef floating top[CHUNK]
    cdef floating magic[CHUNK]
    cdef floating floor[CHUNK]
    cdef floating found[CHUNK]
    cdef floating q[4 * CHUNK]
    cdef double v[4 * CHUNK]
    cdef Py_ssize_t g, k, n_rows, n_groups = min(<Py_ssize_t> 4, n_terms)
    for k in range(CHUNK):  # local, so that they stay in registers
        h[k] = params[k]
        if sums_exponentials(op) and not few:
            top[k] = params[stride + k]
            magic[k] = params[2 * stride + k]
            floor[k] = params[3 * stride + k]
        if sums_exponentials(op):
            found[k] = n_equal[k]
    for g in range(n_groups):
        n_rows = (n_terms - g + 3) // 4
        if sums_exponentials(op):
            if n_rows == 4:
                exp_rows(few, some_equal, a + g * step, 4 * step, 4, h, top, magic, floor, &q[g * CHUNK], found)
            elif n_rows == 3:
                exp_rows(few, some_equal, a + g * step, 4 * step, 3, h, top, magic, floor, &q[g * CHUNK], found)
            elif n_rows == 2:
                exp_rows(few, some_equal, a + g * step, 4 * step, 2, h, top, magic, floor, &q[g * CHUNK], found)
            else:
                exp_rows(few, some_equal, a + g * step, 4 * step, 1, h, top, magic, floor, &q[g * CHUNK], found)
        elif n_rows == 4:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 4, h, &v[g * CHUNK])
        elif n_rows == 3:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 3, h, &v[g * CHUNK])
        elif n_rows == 2:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 2, h, &v[g * CHUNK])
        else:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 1, h, &v[g * CHUNK])
    if sums_exponentials(op):
        for k in range(CHUNK):
            n_equal[k] = found[k]
        add_to_lanes(is_first, total, error, q, CHUNK, n_groups, floating is double)
    else:
        add_to_lanes(is_first, total, error, v, CHUNK, n_groups, floating is double)


cdef inline void sum_slice(int op, Block a, Block b, Shape s, Py_ssize_t first, Py_ssize_t last,
                           const floating* params, floating* buffer, double* total, double* error,
                           floating* n_equal) noexcept nogil:
    """The sums of classes `first` to last - 1, at most SLICE_CLASSES: one for each frame, in total + error."""
    cdef Py_ssize_t n, c, k, lane, start, half, at_lane, row = 0, row_b = 0, width = round_up(s.width, CHUNK)
    cdef Py_ssize_t n_lanes = min(<Py_ssize_t> N_LANES, last - first) if s.n_joined == 1 else 1
    cdef bint is_single = last - first <= BLOCK_CLASSES
    cdef const floating* at
    cdef const floating* at_b
    error[0] = 0
    if floating is double or not is_single:
        clear_lanes(total, error, n_lanes * width, params)
    for c in range(width):
        n_equal[c] = 0
    for start from first <= start < last by BLOCK_CLASSES:
        n = min(<Py_ssize_t> BLOCK_CLASSES, last - start)
        at = rows_of(a, s, start, n, <floating> -INFINITY if sums_exponentials(op) else <floating> 0, buffer, &row)
        at_b = at
        if finds_largest(op):
            at_b = rows_of(b, s, start, n, <floating> 0, buffer + packed_numbers(buffer), &row_b)
        for lane in range(min(n_lanes, n)):
            for c from 0 <= c < s.width by CHUNK:
                at_lane = lane * width + c
                k = chunk_at(c, s.width)
                sum_lane(op, False, True, at + lane * row + k, at_b + lane * row_b + k, N_LANES * row, N_LANES * row_b,
                         (n - lane + N_LANES - 1) // N_LANES, &params[c], MAX_WIDTH, is_single, &total[at_lane],
                         &error[at_lane if floating is double else 0], &n_equal[c])
    if s.n_joined == 1:
        fold_lanes(total, error, n_lanes, width, params)
        return
    fold_lanes(total, error, N_LANES, s.n_inner, params)
    half = N_LANES // 2
    while half:
        for c in range(half * s.n_inner):
            n_equal[c] += n_equal[half * s.n_inner + c]
        half //= 2


cdef inline floating least_of_row(const floating* y, Py_ssize_t width) noexcept nogil:
    """The minimum of a row; NaN if any number in it is NaN, +0 or positive."""
    cdef int32_t most_f[CHUNK]
    cdef int64_t most_d[CHUNK]
    cdef int32_t depth_f = lsm_depth_f(<float> -0.0)
    cdef int64_t depth_d = lsm_depth_d(-0.0)
    cdef Py_ssize_t i, k
    for k in range(CHUNK):
        most_f[k] = depth_f
        most_d[k] = depth_d
    for i in range(width // CHUNK):
        for k in range(CHUNK):
            if floating is float:
                most_f[k] = max(most_f[k], lsm_depth_f(y[i * CHUNK + k]))
            else:
                most_d[k] = max(most_d[k], lsm_depth_d(y[i * CHUNK + k]))
    for k in range(CHUNK):  # the last chunk, whole or not
        if floating is float:
            most_f[k] = max(most_f[k], lsm_depth_f(y[width - CHUNK + k]))
        else:
            most_d[k] = max(most_d[k], lsm_depth_d(y[width - CHUNK + k]))
    if floating is float:
        for k in range(CHUNK):
            depth_f = max(depth_f, most_f[k])
        return lsm_least_f(depth_f)
    else:
        for k in range(CHUNK):
            depth_d = max(depth_d, most_d[k])
        return lsm_least_d(depth_d)


cdef inline floating highest_of(const floating* x, Py_ssize_t n) noexcept nogil:
    """The maximum of n >= CHUNK numbers."""
    cdef floating high[CHUNK]
    cdef Py_ssize_t c, k
    for k in range(CHUNK):
        high[k] = -INFINITY
    for c from 0 <= c < n by CHUNK:
        raise_max(x + chunk_at(c, n), 0, 1, high)
    for k in range(CHUNK):
        high[0] = larger(high[k], high[0])
    return high[0]


cdef inline void write_chunk(int op, const floating* a, const floating* b, const floating* params, bint some_low,
                             floating* y, bint nontemporal) noexcept nogil:
    cdef floating v[CHUNK]
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        v[k] = epilogue(op, a[k], b[k], params[k], params[MAX_WIDTH + k], params[2 * MAX_WIDTH + k],
                        params[3 * MAX_WIDTH + k], params[4 * MAX_WIDTH + k], some_low)
    put_lanes(y, v, nontemporal)


cdef inline void write_row(int op, const floating* a, const floating* b, Py_ssize_t width, const floating* params,
                           Py_ssize_t last_param, bint some_low, floating* y, bint nontemporal) noexcept nogil:
    """A row of the result; y may be a or b, so the last chunk is read before anything is written.

    last_param: where the parameters of the last chunk begin.
    """
    cdef Py_ssize_t c, last = width - CHUNK
    cdef floating v[CHUNK]
    if width % CHUNK:
        write_chunk(op, a + last, b + last, &params[last_param], True, v, False)
    if nontemporal:
        for c from 0 <= c < width // CHUNK * CHUNK by CHUNK:
            write_chunk(op, a + c, b + c, &params[c], True, y + c, True)
    elif some_low:
        for c from 0 <= c < width // CHUNK * CHUNK by CHUNK:
            write_chunk(op, a + c, b + c, &params[c], True, y + c, False)
    else:
        for c from 0 <= c < width // CHUNK * CHUNK by CHUNK:
            write_chunk(op, a + c, b + c, &params[c], False, y + c, False)
    if width % CHUNK:
        put_lanes(y + last, v, False)


cdef void write_odd_row(const floating* dy, const floating* y, Py_ssize_t width, const floating* params,
                        Py_ssize_t last_param, floating* dx, floating* n_bad) noexcept nogil:
    """write_row of the gradient, for any y; n_bad counts, for each frame, the y out of range."""
    cdef Py_ssize_t j, p
    for j in range(width):
        p = j if j < width // CHUNK * CHUNK else j + last_param + CHUNK - width
        n_bad[j] += <floating> 1 if exceeds(y[j]) else <floating> 0
        dx[j] = gradient_of_any(dy[j], y[j], params[p], params[MAX_WIDTH + p], params[2 * MAX_WIDTH + p],
                                params[3 * MAX_WIDTH + p], params[4 * MAX_WIDTH + p])


cdef inline void write_rows(int op, Block a, Block b, Block y, Shape s, const floating* params,
                            Py_ssize_t last_param, Block next_a, Block next_b, bint stream,
                            floating* buffer) noexcept nogil:
    """The last stage: write the result, and meanwhile prefetch the next block."""
    cdef floating n_bad[MAX_WIDTH]
    cdef Py_ssize_t start, n, i, j, row = 0, row_b = 0, row_y
    cdef const floating* at
    cdef const floating* at_b
    cdef floating* to
    cdef floating highest_low = 0, least
    cdef bint is_direct, some_low = False, some_bad = False
    cdef bint nontemporal = (stream and is_plain(y, s, buffer) and s.n_joined == 1 and s.width % CHUNK == 0
                             and <uintptr_t> y.at % 64 == 0 and y.step % 64 == 0)
    if limits_range(op):
        highest_low = highest_of(&params[4 * MAX_WIDTH], last_param + CHUNK)
    for start from 0 <= start < s.n by BLOCK_CLASSES:
        n = min(<Py_ssize_t> BLOCK_CLASSES, s.n - start)
        at = rows_of(a, s, start, n, <floating> 0, buffer, &row)
        at_b = at
        if reads_two(op):
            at_b = rows_of(b, s, start, n, <floating> -1, buffer + packed_numbers(buffer), &row_b)
        is_direct = is_plain(y, s, buffer) and (s.is_filled or n % s.n_joined == 0)
        to = <floating*> (y.at + start * y.step) if is_direct else buffer + 2 * packed_numbers(buffer)
        row_y = y.step // <Py_ssize_t> sizeof(floating) if is_direct else s.width // s.n_joined
        for i from 0 <= i < n by s.n_joined:
            if next_a.at != NULL:
                prefetch_row(next_a, s, start + i)
                if reads_two(op):
                    prefetch_row(next_b, s, start + i)
            if limits_range(op):
                least = least_of_row(at_b + i * row_b, s.width)
                some_low = not (highest_low < least)
                if not (least <= 0) and some_odd(at_b + i * row_b, s.width):
                    for j in range(0 if some_bad else s.width):
                        n_bad[j] = 0
                    some_bad = True
                    write_odd_row(at + i * row, at_b + i * row_b, s.width, params, last_param, to + i * row_y, n_bad)
                    continue
            write_row(op, at + i * row, at_b + i * row_b, s.width, params, last_param, some_low, to + i * row_y,
                      nontemporal)
        if not is_direct:
            unpack(y, s, start, n, buffer + 2 * packed_numbers(buffer))
    if some_bad:
        for j in range(s.width):
            if n_bad[j] > 0 and j % (s.width // s.n_joined) < s.n_outer * s.n_inner:
                fill_nan(frame_of(y, s, j % (s.width // s.n_joined)), s.n, params)


cdef inline void prefetch_row(Block x, Shape s, Py_ssize_t i) noexcept nogil:
    lsm_prefetch(x.at + i * x.step, s.n_inner * x.gap, False)


cdef inline void shift_frames(const floating* m, Py_ssize_t n, floating* params) noexcept nogil:
    """The parameters of exp_below for n frames."""
    cdef Py_ssize_t j
    cdef Shift shift
    for j in range(n):  # hot
        shift = shift_of(m[j])
        params[j] = <floating> shift.h
        params[MAX_WIDTH + j] = <floating> (shift.m - shift.h)
        params[2 * MAX_WIDTH + j] = <floating> shift.magic
        params[3 * MAX_WIDTH + j] = <floating> shift.floor


cdef inline Partial partial_of(int op, bint few, double total, double error, floating m,
                               floating n_equal) noexcept nogil:
    """The reduction of a frame or a part of it. Sums of terms are in `largest`, with their errors in `below`."""
    cdef Partial s
    s.largest = m
    s.n_largest = n_equal
    if not sums_exponentials(op):
        s.largest = total
        s.below = error
    elif few:
        s.below = (total + error) * unbias(&m)
    else:
        s.below = finish(total, error, shift_of(m), floating is float)
    return s


cdef inline bint end_frames(int op, bint few, const double* total, const double* error, const floating* m,
                            const floating* n_equal, Py_ssize_t n, floating* params) noexcept nogil:
    """The parameters of n frames; False if the epilogue does not apply to one of them."""
    cdef Py_ssize_t j
    cdef int n_regular = 0
    for j in range(n):  # hot
        n_regular += finalize(op, few, partial_of(op, few, total[j], <double> 0 if floating is float else error[j],
                                                  m[j], n_equal[j]), &params[j])
    return n_regular == n


cdef inline void add_part(int op, Partial* to, Partial part, bint is_first) noexcept nogil:
    """Combine the reductions of two parts of a frame."""
    if is_first:
        to[0] = part
    elif sums_exponentials(op):
        merge(to, part)
    else:
        two_sum(&to.largest, &to.below, part.largest)
        to.below += part.below


cdef inline void repeat(floating* params, Py_ssize_t n_params, Py_ssize_t w, Py_ssize_t n_rows) noexcept nogil:
    """Copy each row of w parameters to the n_rows - 1 after it."""
    cdef Py_ssize_t i, r
    for i in range(n_params):
        for r in range(1, n_rows):
            memcpy(&params[i * MAX_WIDTH + r * w], &params[i * MAX_WIDTH], w * sizeof(floating))


cdef inline bint some_masked(Block y, Shape s, const floating* of) noexcept nogil:
    """Whether any frame is -inf throughout. Most are ruled out by their first class."""
    cdef floating buffer[MAX_WIDTH]
    cdef Py_ssize_t o, j
    cdef const floating* at
    cdef int n_found = 0
    for o in range(s.n_outer):
        at = load(row_of(y, o, 0), 0, s.n_inner, buffer)
        for j in range(s.n_inner):  # hot
            n_found += at[j] == -INFINITY
    for j in range(s.n_outer * s.n_inner if n_found else 0):
        if is_masked(frame_of(y, s, j), s.n, of):
            return True
    return False


cdef inline void run_plain(int op, Block a, Block b, Block y, Shape s, Block next_a, Block next_b, bint stream,
                           floating* buffer) noexcept nogil:
    """All stages of a block. Frames longer than a slice are reduced slice by slice."""
    cdef double total[MAX_ACCUMULATORS]
    cdef double error[MAX_ACCUMULATORS]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[MAX_WIDTH]
    cdef floating m_dy[MAX_WIDTH]
    cdef floating n_equal[MAX_WIDTH]
    cdef Partial partial[ACCUMULATED_COLUMNS]
    cdef Py_ssize_t j, p, start, last, width = round_up(s.width, CHUNK) // s.n_joined
    cdef bint is_regular = True, is_single = s.n <= SLICE_CLASSES
    if finds_largest(op):
        reduce_max(op, a, b, s, 0, s.n, buffer, False, m, m_dy)
        memcpy(params, m_dy, width * sizeof(floating))
        repeat(params, 1, width, s.n_joined)
    for start from 0 <= start < s.n by SLICE_CLASSES:
        last = min(s.n, start + SLICE_CLASSES)
        if sums_exponentials(op):
            reduce_max(op, a, b, s, start, last, buffer, False, m, m_dy)
            shift_frames(m, width, params)
            repeat(params, 4, width, s.n_joined)
        reduce_sum(op, a, b, s, start, last, params, buffer, total, error, n_equal)
        for j in range(0 if is_single else width):
            add_part(op, &partial[j], partial_of(op, False, total[j], <double> 0 if floating is float else error[j],
                                                 m[j], n_equal[j]), start == 0)
    if is_single:
        is_regular = end_frames(op, False, total, error, m, n_equal, width, params)
    for j in range(0 if is_single else width):
        is_regular &= finalize(op, False, partial[j], &params[j])
    if not is_regular or (limits_range(op) and some_masked(b, s, buffer)):
        for j in range(s.n_outer * s.n_inner):
            p = j if j < s.width // CHUNK * CHUNK or s.n_joined > 1 else j + round_up(s.width, CHUNK) - s.width
            run_irregular_frame(op, frame_of(a, s, j), frame_of(b, s, j), frame_of(y, s, j), s.n, &params[p])
    elif writes_elements(op):
        repeat(params, N_PARAMS, width, s.n_joined)
        write_rows(op, a, b, y, s, params, round_up(s.width, CHUNK) - CHUNK, next_a, next_b, stream, buffer)
    else:
        if s.n_joined == 1 and s.width % CHUNK:
            memmove(&params[s.width - CHUNK], &params[round_up(s.width, CHUNK) - CHUNK], CHUNK * sizeof(floating))
        s.n_joined = 1
        unpack(y, s, 0, 1, params)


cdef inline void run_few(int op, Block a, Block b, Block y, Shape s, Block next_a, Block next_b, bint stream,
                         floating* buffer) noexcept nogil:
    """All stages of a block of plain frames of few classes."""
    cdef double total[MAX_WIDTH]
    cdef double error[MAX_WIDTH]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[MAX_WIDTH]
    cdef floating m_dy[MAX_WIDTH]
    cdef floating n_equal[MAX_WIDTH]
    cdef Py_ssize_t o, j, n_frames = s.n_outer * s.n_inner
    cdef Shape t = one_outer(s)
    for o in range(s.n_outer):
        j = o * s.n_inner
        if reduces_max(op):
            reduce_max(op, outer_of(a, o), outer_of(b, o), t, 0, s.n, buffer, True, &m[j], &m_dy[j])
        if finds_largest(op):
            memcpy(&params[j], &m_dy[j], s.n_inner * sizeof(floating))
        reduce_few(op, outer_of(a, o), outer_of(b, o), t, &params[j], &m[j], &total[j], &error[j], &n_equal[j])
    if not end_frames(op, True, total, error, m, n_equal, n_frames, params) or (
            limits_range(op) and some_masked(b, s, buffer)):
        for j in range(n_frames):
            run_irregular_frame(op, frame_of(a, s, j), frame_of(b, s, j), frame_of(y, s, j), s.n, &params[j])
    elif writes_elements(op):
        for o in range(s.n_outer):
            write_rows(op, outer_of(a, o), outer_of(b, o), outer_of(y, o), t, &params[o * s.n_inner],
                       s.n_inner - CHUNK, next_a, next_b, stream, buffer)
            next_a.at += next_a.outer if next_a.at != NULL else 0
            next_b.at += next_b.outer if next_a.at != NULL else 0
    else:
        unpack(y, s, 0, 1, params)


cdef inline void run_shape(int op, Block a, Block b, Block y, Shape s, Block next_a, Block next_b, bint stream,
                           floating* buffer) noexcept nogil:
    if is_few(s.n):
        run_few(op, a, b, y, s, next_a, next_b, stream, buffer)
    else:
        run_plain(op, a, b, y, s, next_a, next_b, stream, buffer)


cdef inline bint is_contiguous(Block x, Shape s) noexcept nogil:
    """Whether the block is C-contiguous as (outer, classes, frames)."""
    return x.gap == size_of(x.kind) and x.step == s.n_inner * x.gap and (s.n_outer == 1 or x.outer == s.n * x.step)


cdef inline Block plain_of(const floating* x, Shape s, Py_ssize_t n) noexcept nogil:
    """The block of a copy, of n classes."""
    cdef Block to
    to.at = <char*> x
    to.kind = kind_of(x)
    to.gap = sizeof(floating)
    to.step = (s.width // s.n_joined if is_interleaved(s) else s.n_inner) * to.gap
    to.outer = 0 if is_interleaved(s) else n * to.step
    return to


cdef inline void copy_in(Block x, Shape s, floating fill, floating* to, floating* spare) noexcept nogil:
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


cdef inline void copy_out(Block y, Shape s, Py_ssize_t n, const floating* source, floating* spare) noexcept nogil:
    cdef Py_ssize_t o, i, n_all = s.n_outer * n * s.n_inner
    cdef Block x
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
        for i from 0 <= i < n_all by PIPELINE_MAX_CLASSES:
            write(row_of(y, 0, 0), i, min(<Py_ssize_t> PIPELINE_MAX_CLASSES, n_all - i), spare + i, False)
    else:
        unpack(y, s, 0, n, source)


cdef inline void run_copied(int op, Block a, Block b, Block y, Shape s, Block next_a, Block next_b, bint stream,
                            floating* scratch) noexcept nogil:
    """run_block on copies of what is not plain."""
    cdef floating* scratch_b = scratch + packed_numbers(scratch)
    cdef floating* scratch_y = scratch + 2 * packed_numbers(scratch)
    cdef Shape t = s
    cdef Block to = y
    cdef Py_ssize_t n = s.n if writes_elements(op) else 1
    cdef bint is_copied
    t.is_filled = s.n % s.n_joined != 0
    if is_interleaved(s):
        t.n_outer = 1
        t.n_inner = s.width
    if t.is_filled or not is_plain(a, s, scratch):
        copy_in(a, s, <floating> -INFINITY if sums_exponentials(op) else <floating> 0, scratch, scratch_y)
        a = plain_of(scratch, s, s.n)
    if reads_two(op) and (t.is_filled or not is_plain(b, s, scratch)):
        copy_in(b, s, <floating> -1 if limits_range(op) else <floating> 0, scratch_b, scratch_y)
        b = plain_of(scratch_b, s, s.n)
    is_copied = t.is_filled or not is_plain(y, s, scratch)
    if is_copied:
        to = plain_of(scratch_y, s, n)
    run_block(op, a, b if reads_two(op) else a, to, t, next_a, next_b, stream, scratch)
    if is_copied:
        copy_out(y, s, n, scratch_y, scratch)


# How the frames are divided into blocks.
cdef struct BlockCut:
    Py_ssize_t n_joined
    Py_ssize_t n_outer   # outer indices of a block
    Py_ssize_t n_inner   # frames of an outer index in a block
    Py_ssize_t n_splits  # blocks of an outer index
    Py_ssize_t n_tasks


cdef inline bint is_joinable(Array x, Py_ssize_t n_inner) noexcept nogil:
    return x.gap == size_of(x.kind) and x.step == n_inner * x.gap


cdef inline BlockCut cut_blocks(Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner, bint joinable, bint in_place,
                                int n_threads, const floating* of) noexcept nogil:
    """in_place: all numbers have the computed type and are adjacent; else BLOCK_CLASSES rows must fit the scratch."""
    cdef BlockCut c
    cdef Py_ssize_t most_copied = packed_numbers(of) // BLOCK_CLASSES // CHUNK * CHUNK
    cdef Py_ssize_t widest = ACCUMULATED_COLUMNS if in_place else min(<Py_ssize_t> ACCUMULATED_COLUMNS, most_copied)
    c.n_joined = c.n_outer = c.n_splits = 1
    c.n_inner = n_inner
    if is_few(n):
        widest = min(<Py_ssize_t> FEW_MAX_WIDTH, packed_numbers(of) // n) // CHUNK * CHUNK
    elif joinable and n_inner <= (CHUNK if n < BLOCK_CLASSES else min(<Py_ssize_t> JOINED_COLUMNS, most_copied)):
        c.n_joined = N_LANES
        c.n_tasks = n_outer
        return c
    widest = min(widest, max(<Py_ssize_t> MIN_COLUMNS, round_up(n_outer * n_inner // (4 * n_threads), CHUNK)))
    if n_inner < CHUNK:
        widest = min(widest, max(most_copied, packed_numbers(of) // n // CHUNK * CHUNK))
    if n_inner < CHUNK or (is_few(n) and 2 * n_inner <= widest):
        c.n_outer = max(<Py_ssize_t> 1, widest // n_inner)
    elif n_inner > widest:
        c.n_splits = (n_inner + widest - 1) // widest
        c.n_inner = round_up((n_inner + c.n_splits - 1) // c.n_splits, CHUNK)
        if n_inner % c.n_inner and n_inner % c.n_inner < CHUNK and c.n_inner < widest:
            c.n_inner += CHUNK  # rather than to copy the last few frames
        c.n_splits = (n_inner + c.n_inner - 1) // c.n_inner
    c.n_tasks = (n_outer + c.n_outer - 1) // c.n_outer * c.n_splits
    return c


cdef inline Block block_of_task(Array x, BlockCut c, Py_ssize_t task) noexcept nogil:
    cdef Block block
    block.at = x.at + task // c.n_splits * c.n_outer * x.outer + task % c.n_splits * c.n_inner * x.gap
    block.step = x.step
    block.gap = x.gap
    block.outer = x.outer
    block.kind = x.kind
    return block


cdef inline void run_block_task(int op, Array a, Array b, Array y, Py_ssize_t n_outer, Py_ssize_t n,
                                Py_ssize_t n_inner, Py_ssize_t task, BlockCut c, bint far, bint stream,
                                floating* scratch) noexcept nogil:
    cdef Shape s
    cdef Block next_a = block_of_task(a, c, task + 1), next_b = block_of_task(b, c, task + 1)
    s.n = n
    s.n_outer = min(c.n_outer, n_outer - task // c.n_splits * c.n_outer)
    s.n_inner = min(c.n_inner, n_inner - task % c.n_splits * c.n_inner)
    s.n_joined = c.n_joined
    s.is_filled = False
    s.width = N_LANES * s.n_inner if s.n_joined > 1 else s.n_outer * s.n_inner
    if is_interleaved(s):
        s.width = round_up(s.width, CHUNK)
    if not far or is_interleaved(s) or task + 1 == c.n_tasks:  # interleaved frames are read in the order of memory
        next_a.at = next_b.at = NULL
    if round_up(n, s.n_joined) * (s.width // s.n_joined) <= packed_numbers(scratch):
        run_copied(op, block_of_task(a, c, task), block_of_task(b, c, task), block_of_task(y, c, task), s, next_a,
                   next_b, stream, scratch)
    else:
        run_block(op, block_of_task(a, c, task), block_of_task(b, c, task), block_of_task(y, c, task), s, next_a,
                  next_b, stream, scratch)
