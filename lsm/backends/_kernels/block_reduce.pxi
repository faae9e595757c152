# The reductions of a block over its classes, in the order of lanes.pxi: see traverse_block.pxi. Rows and few classes
# use those of a chunk.


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


cdef inline void raise_largest(const floating* dy, Py_ssize_t step, const floating* p, Py_ssize_t step_p,
                               Py_ssize_t row, Py_ssize_t n_rows, bint tracks_row, floating* m, floating* m_dy,
                               floating* highest, int32_t* at) noexcept nogil:
    """Update, for each frame of a chunk, the largest p with its dy and its row, and the largest absolute dy."""
    cdef floating high[CHUNK]
    cdef floating high_dy[CHUNK]
    cdef floating top[CHUNK]
    cdef floating chosen[CHUNK]
    cdef int32_t chosen_at[CHUNK]
    cdef Py_ssize_t i, k
    for k in range(CHUNK):
        high[k] = m[k]
        high_dy[k] = m_dy[k]
        top[k] = highest[k]
    for i in range(n_rows):
        for k in range(CHUNK):  # hot
            top[k] = larger(fabs_of(dy[i * step + k]), top[k])
            # Through other arrays; otherwise gcc uses masked stores.
            chosen[k] = dy[i * step + k] if p[i * step_p + k] > high[k] else high_dy[k]
            if tracks_row:
                chosen_at[k] = <int32_t> (row + i) if p[i * step_p + k] > high[k] else at[k]
            high[k] = larger(p[i * step_p + k], high[k])
        for k in range(CHUNK):
            high_dy[k] = chosen[k]
            if tracks_row:
                at[k] = chosen_at[k]
    for k in range(CHUNK):
        m[k] = high[k]
        m_dy[k] = high_dy[k]
        highest[k] = top[k]


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


cdef inline void find_max(int op, Array a, Array b, Shape s, Py_ssize_t first, Py_ssize_t last, floating* buffer,
                          bint is_dense, floating* m, floating* m_dy) noexcept nogil:
    """The first stage over classes `first` to last - 1: the maximum of each frame, or the dy of its largest p.

    is_dense: results are as far apart as the frames; otherwise the last chunk has its own, after those of the others.
    """
    cdef int32_t found_at[MAX_WIDTH]
    cdef floating highest[MAX_WIDTH]
    cdef Py_ssize_t i, c, k, p, n, n_rows, start, row = 0, row_b = 0, half
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
            for i from 0 <= i < n by LARGEST_ROWS * s.n_joined:
                n_rows = min(<Py_ssize_t> LARGEST_ROWS, (n - i + s.n_joined - 1) // s.n_joined)
                for c from 0 <= c < s.width by CHUNK:
                    k = chunk_at(c, s.width)
                    p = chunk_at(c, width)
                    if s.n_joined > 1:
                        raise_largest(at + i * row + k, s.n_joined * row, at_b + i * row_b + k, s.n_joined * row_b,
                                      (start + i) // s.n_joined, n_rows, True, &m[p], &m_dy[p], &highest[p],
                                      &found_at[p])
                    else:  # of equal numbers, the first is found first
                        raise_largest(at + i * row + k, row, at_b + i * row_b + k, row_b, start + i, n_rows, False,
                                      &m[p], &m_dy[p], &highest[p], &found_at[p])
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


cdef inline void exp_rows(bint some_equal, const floating* a, Py_ssize_t step, Py_ssize_t n_rows,
                          const floating* end, const floating* h, const floating* top, const floating* magic,
                          const floating* floor, floating* q, floating* n_equal) noexcept nogil:
    """q = the sum of the exponentials of n_rows rows of a chunk, the last one at `end`; counts the largest classes."""
    cdef floating v, s, n_found
    cdef Py_ssize_t k, r
    for k in range(CHUNK):
        s = 0
        n_found = n_equal[k]
        for r in range(n_rows):  # hot
            v = (end[k] if r == n_rows - 1 else a[r * step + k]) - h[k]
            s += exp_below(v, magic[k], floor[k], top[k], some_equal)
            if some_equal:
                n_found += <floating> 1 if v == top[k] else <floating> 0
        q[k] = s
        n_equal[k] = n_found


cdef inline void add_terms(int op, const floating* a, const floating* b, const floating* p, double* q) noexcept nogil:
    """Add the terms of a chunk, all of them products, to q."""
    cdef double u[CHUNK]
    cdef double v[CHUNK]
    cdef Py_ssize_t k
    in_double(a, u)
    in_double(b, v)
    for k in range(CHUNK):  # hot
        q[k] = add_term(op, q[k], u[k], v[k], p[k])


cdef inline void term_rows(int op, const floating* a, const floating* b, Py_ssize_t step, Py_ssize_t step_b,
                           Py_ssize_t n_rows, const floating* end, const floating* end_b, const floating* p,
                           double zero, double* q) noexcept nogil:
    """The sum of the terms of n_rows rows of a chunk, the last one at `end`. zero: 0, see lsm_unknown_zero."""
    cdef double u[4 * CHUNK]
    cdef double total[CHUNK]
    cdef Py_ssize_t r, k
    if multiplies(op):
        for k in range(CHUNK):
            total[k] = zero
        for r in range(n_rows):
            add_terms(op, end if r == n_rows - 1 else a + r * step, end_b if r == n_rows - 1 else b + r * step_b, p,
                      total)
        for k in range(CHUNK):
            q[k] = total[k]
    else:
        for r in range(n_rows):
            in_double(end if r == n_rows - 1 else a + r * step, &u[r * CHUNK])
        for k in range(CHUNK):  # hot
            q[k] = tree(&u[k], CHUNK, n_rows)


cdef inline void sum_lane(int op, bint some_equal, const floating* a, const floating* b, Py_ssize_t step,
                          Py_ssize_t step_b, Py_ssize_t n_terms, const floating* last, const floating* last_b,
                          const floating* params, Py_ssize_t stride,
                          bint is_first, double* total, double* error, floating* n_equal) noexcept nogil:
    """Add n_terms <= 16 classes of a lane to the accumulators of a chunk, in the order of lanes.pxi.

    last: where the last class lies, unless it is NULL. The parameters are `stride` apart. some_equal: whether any
    class may be equal to the maximum.
    """
    cdef floating h[CHUNK]
    cdef floating top[CHUNK]
    cdef floating magic[CHUNK]
    cdef floating floor[CHUNK]
    cdef floating found[CHUNK]
    cdef floating q[4 * CHUNK]
    cdef double v[4 * CHUNK]
    cdef Py_ssize_t g, k, n_rows, n_groups = min(<Py_ssize_t> 4, n_terms)
    cdef double zero = lsm_unknown_zero()
    cdef const floating* end
    cdef const floating* end_b
    for k in range(CHUNK):  # local, so that they stay in registers
        h[k] = params[k]
        if sums_exponentials(op):
            top[k] = params[stride + k]
            magic[k] = params[2 * stride + k]
            floor[k] = params[3 * stride + k]
            found[k] = n_equal[k]
    for g in range(n_groups):
        n_rows = (n_terms - g + 3) // 4
        end = a + (g + 4 * (n_rows - 1)) * step
        end_b = b + (g + 4 * (n_rows - 1)) * step_b
        if last != NULL and g == (n_terms - 1) % 4:
            end = last
            end_b = last_b
        if sums_exponentials(op):
            if n_rows == 4:
                exp_rows(some_equal, a + g * step, 4 * step, 4, end, h, top, magic, floor, &q[g * CHUNK], found)
            elif n_rows == 3:
                exp_rows(some_equal, a + g * step, 4 * step, 3, end, h, top, magic, floor, &q[g * CHUNK], found)
            elif n_rows == 2:
                exp_rows(some_equal, a + g * step, 4 * step, 2, end, h, top, magic, floor, &q[g * CHUNK], found)
            else:
                exp_rows(some_equal, a + g * step, 4 * step, 1, end, h, top, magic, floor, &q[g * CHUNK], found)
        elif n_rows == 4:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 4, end, end_b, h, zero, &v[g * CHUNK])
        elif n_rows == 3:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 3, end, end_b, h, zero, &v[g * CHUNK])
        elif n_rows == 2:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 2, end, end_b, h, zero, &v[g * CHUNK])
        else:
            term_rows(op, a + g * step, b + g * step_b, 4 * step, 4 * step_b, 1, end, end_b, h, zero, &v[g * CHUNK])
    if sums_exponentials(op):
        for k in range(CHUNK):
            n_equal[k] = found[k]
        add_to_lanes(is_first, total, error, q, CHUNK, n_groups, floating is double)
    else:
        add_to_lanes(is_first, total, error, v, CHUNK, n_groups, floating is double)


cdef inline void sum_slice(int op, Array a, Array b, Shape s, Py_ssize_t first, Py_ssize_t last,
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
                sum_lane(op, True, at + lane * row + k, at_b + lane * row_b + k, N_LANES * row, N_LANES * row_b,
                         (n - lane + N_LANES - 1) // N_LANES, NULL, NULL, &params[c], MAX_WIDTH, is_single,
                         &total[at_lane], &error[at_lane if floating is double else 0], &n_equal[c])
    if s.n_joined == 1:
        fold_lanes(total, error, n_lanes, width, params)
        return
    fold_lanes(total, error, N_LANES, s.n_inner, params)
    half = N_LANES // 2
    while half:
        for c in range(half * s.n_inner):
            n_equal[c] += n_equal[half * s.n_inner + c]
        half //= 2
