# Traversal of interleaved frames, as on all axes but the last. A block has n rows: row i is class i of adjacent frames.
# Vectors run along the frames, in chunks of CHUNK.
#
# Class i of a frame belongs to lane i mod 16, and each lane of each frame has an accumulator. Rows of few adjacent
# frames are made longer. Those of several outer indices are copied into common rows. Or, with many classes that follow
# each other in memory (axis 1 of (N, 1000, 5)), 16 rows are joined to one: each of its numbers belongs to one lane of
# one frame, so the accumulators and the order of sums are the same.


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
                        params[3 * MAX_WIDTH + k], params[4 * MAX_WIDTH + k], True, some_low)
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


cdef bint count_nan(const floating* y, Py_ssize_t width, floating* n_bad) noexcept nogil:
    """Count the NaN of a row for each frame, unless gradient_of_any is needed, and then False."""
    cdef int n_large = 0
    cdef Py_ssize_t j
    for j in range(width):  # hot
        n_large += y[j] > 2
    if n_large:
        return False
    for j in range(width):  # hot
        n_bad[j] += <floating> 1 if y[j] != y[j] else <floating> 0
    return True


cdef void write_odd_row(const floating* dy, const floating* y, Py_ssize_t width, const floating* params,
                        Py_ssize_t last_param, floating* dx, floating* n_bad) noexcept nogil:
    """write_row of the gradient, for any y; n_bad counts, for each frame, the y out of range."""
    cdef Py_ssize_t j, p
    for j in range(width):
        p = j if j < width // CHUNK * CHUNK else j + last_param + CHUNK - width
        n_bad[j] += <floating> 1 if exceeds(y[j]) else <floating> 0
        dx[j] = gradient_of_any(dy[j], y[j], params[p], params[MAX_WIDTH + p], params[2 * MAX_WIDTH + p],
                                params[3 * MAX_WIDTH + p], params[4 * MAX_WIDTH + p])


cdef inline void write_rows(int op, Array a, Array b, Array y, Shape s, const floating* params,
                            Py_ssize_t last_param, Array next_a, Array next_b, Array next_y,
                            bint stream, floating* buffer) noexcept nogil:
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
            if reads_two(op) and next_b.at != NULL:
                prefetch_row(next_b, s, start + i)
            if not nontemporal and next_y.at != NULL:
                prefetch_row(next_y, s, start + i)
            if limits_range(op):
                least = least_of_row(at_b + i * row_b, s.width)
                some_low = not (highest_low < least)
                if not (least <= 0) and some_odd(at_b + i * row_b, s.width):
                    for j in range(0 if some_bad else s.width):
                        n_bad[j] = 0
                    some_bad = True
                    if count_nan(at_b + i * row_b, s.width, n_bad):
                        write_row(op, at + i * row, at_b + i * row_b, s.width, params, last_param, True, to + i * row_y,
                                  nontemporal)
                        continue
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


cdef inline void repeat(floating* params, Py_ssize_t n_params, Py_ssize_t w, Py_ssize_t n_rows) noexcept nogil:
    """Copy each row of w parameters to the n_rows - 1 after it."""
    cdef Py_ssize_t i, r
    for i in range(n_params):
        for r in range(1, n_rows):
            memcpy(&params[i * MAX_WIDTH + r * w], &params[i * MAX_WIDTH], w * sizeof(floating))


cdef inline bint some_masked(Array y, Shape s, const floating* of) noexcept nogil:
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


cdef inline void run_plain(int op, Array a, Array b, Array y, Shape s, Array next_a, Array next_b, Array next_y,
                           bint stream, floating* buffer) noexcept nogil:
    """All stages of a block. Frames longer than a slice are reduced slice by slice."""
    cdef double total[MAX_ACCUMULATORS]
    cdef double error[MAX_ACCUMULATORS]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[MAX_WIDTH]
    cdef floating m_dy[MAX_WIDTH]
    cdef floating n_equal[MAX_WIDTH]
    cdef bint is_nan[MAX_WIDTH]
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
    for j in range(s.n_frames if op == SOFTMAX and lsm_kept() != NULL else 0):
        p = column_of(s, j)
        if is_single:
            partial[0] = partial_of(op, False, total[p], <double> 0 if floating is float else error[p], m[p],
                                    n_equal[p])
        keep_normaliser(op, False, partial[0 if is_single else p], m)
    is_regular &= not (limits_range(op) and some_masked(b, s, buffer))
    if not (is_regular or find_nan_frames(op, a, b, s, False, params, is_nan)):
        run_irregular_frames(op, a, b, y, s, False, params)
    elif writes_elements(op):
        repeat(params, N_PARAMS, width, s.n_joined)
        write_rows(op, a, b, y, s, params, round_up(s.width, CHUNK) - CHUNK, next_a, next_b, next_y, stream, buffer)
        if not is_regular:
            fill_nan_frames(y, s, is_nan, params)
    if not writes_elements(op):
        if s.n_joined == 1:
            p = s.width % CHUNK  # the frames that only the last chunk has
            memmove(&params[s.width - p], &params[round_up(s.width, CHUNK) - p], p * sizeof(floating))
        s.n_joined = 1
        unpack(y, s, 0, 1, params)


cdef inline void run_few(int op, Array a, Array b, Array y, Shape s, Array next_a, Array next_b, Array next_y,
                         bint stream, floating* buffer) noexcept nogil:
    """All stages of a block of plain frames of few classes."""
    cdef double total[MAX_WIDTH]
    cdef double error[MAX_WIDTH]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[MAX_WIDTH]
    cdef floating m_dy[MAX_WIDTH]
    cdef floating n_equal[MAX_WIDTH]
    cdef bint is_nan[MAX_WIDTH]
    cdef bint is_regular
    cdef Py_ssize_t o, j, n_frames = s.n_outer * s.n_inner
    cdef Shape t = one_outer(s)
    for o in range(s.n_outer):
        j = o * s.n_inner
        if reduces_max(op):
            reduce_max(op, outer_of(a, o), outer_of(b, o), t, 0, s.n, buffer, True, &m[j], &m_dy[j])
        if finds_largest(op):
            memcpy(&params[j], &m_dy[j], s.n_inner * sizeof(floating))
        reduce_few(op, outer_of(a, o), outer_of(b, o), t, &params[j], &m[j], &total[j], &error[j], &n_equal[j])
    keep_normalisers(op, True, total, error, m, n_equal, s.n_frames)
    is_regular = end_frames(op, True, total, error, m, n_equal, n_frames, params)
    is_regular &= not (limits_range(op) and some_masked(b, s, buffer))
    if not (is_regular or find_nan_frames(op, a, b, s, True, params, is_nan)):
        run_irregular_frames(op, a, b, y, s, True, params)
    elif writes_elements(op):
        for o in range(s.n_outer):
            write_rows(op, outer_of(a, o), outer_of(b, o), outer_of(y, o), t, &params[o * s.n_inner],
                       s.n_inner - CHUNK, next_a, next_b, next_y, stream, buffer)
            next_a.at += next_a.outer if next_a.at != NULL else 0
            next_b.at += next_b.outer if next_b.at != NULL else 0
            next_y.at += next_y.outer if next_y.at != NULL else 0
        if not is_regular:
            fill_nan_frames(y, s, is_nan, params)
    if not writes_elements(op):
        unpack(y, s, 0, 1, params)


cdef inline void run_shape(int op, Array a, Array b, Array y, Shape s, Array next_a, Array next_b, Array next_y,
                           bint stream, floating* buffer) noexcept nogil:
    if is_few(s.n):
        run_few(op, a, b, y, s, next_a, next_b, next_y, stream, buffer)
    else:
        run_plain(op, a, b, y, s, next_a, next_b, next_y, stream, buffer)


cdef inline void run_copied(int op, Array a, Array b, Array y, Shape s, Array next_a, Array next_b, Array next_y,
                            bint stream, floating* scratch) noexcept nogil:
    """run_block on copies of what is not plain."""
    cdef floating* scratch_b = scratch + packed_numbers(scratch)
    cdef floating* scratch_y = scratch + 2 * packed_numbers(scratch)
    cdef Shape t = s
    cdef Array to = y
    cdef Py_ssize_t n = s.n if writes_elements(op) else 1
    cdef bint is_copied
    t.is_filled = s.n % s.n_joined != 0
    if is_interleaved(s):
        t.n_outer = 1
        t.n_inner = s.width
    if t.is_filled or not is_plain(a, s, scratch) or (s.n_joined == 1 and shares_sets(op, a.step, s.n)):
        copy_in(a, s, <floating> -INFINITY if sums_exponentials(op) else <floating> 0, scratch, scratch_y)
        a = plain_of(scratch, s, s.n)
    if reads_two(op) and (t.is_filled or not is_plain(b, s, scratch)
                          or (finds_largest(op) and s.n_joined == 1 and shares_sets(op, b.step, s.n))):
        copy_in(b, s, <floating> -1 if limits_range(op) else <floating> 0, scratch_b, scratch_y)
        b = plain_of(scratch_b, s, s.n)
    is_copied = t.is_filled or not is_plain(y, s, scratch)
    if is_copied:
        to = plain_of(scratch_y, s, n)
    run_block(op, a, b if reads_two(op) else a, to, t, next_a, next_b, next_y, stream, scratch)
    if is_copied:
        copy_out(y, s, n, scratch_y, scratch)
