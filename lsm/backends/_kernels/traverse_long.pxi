# Frames longer than a slice: reduced slice by slice, then written. For rows; see traverse_rows.pxi.


cdef inline Py_ssize_t size_of_part(Py_ssize_t part, Py_ssize_t n) noexcept nogil:
    return min(<Py_ssize_t> SLICE_CLASSES, n - part * SLICE_CLASSES)


cdef inline Array part_at(Vector x, Py_ssize_t start) noexcept nogil:
    """A frame from class `start` on, as an array of one frame."""
    cdef Array to
    to.at = x.at + start * x.step
    to.step = x.step
    to.outer = to.gap = 0
    to.kind = x.kind
    to.alteration = x.alteration
    return to


cdef inline Partial reduce_part(int op, Array a, Array b, Py_ssize_t n, floating m_dy, bint far,
                                floating* scratch) noexcept nogil:
    """The reduction of at most SLICE_CLASSES classes of a frame; m_dy: its first parameter, if `finds_largest`.

    far: whether to prefetch the next slice.
    """
    cdef floating last[CHUNK]
    cdef floating last_b[CHUNK]
    cdef floating peaks[GROUP_PEAKS]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating found[CHUNK]
    cdef floating high[CHUNK]
    cdef floating unused[CHUNK]
    cdef floating m = 0, n_equal = 0
    cdef double lanes[CHUNK]
    cdef double errors[CHUNK]
    cdef Rows rows, rows_b
    cdef Py_ssize_t k
    find_rows(a, 1, n, <floating> -INFINITY if sums_exponentials(op) else <floating> 0, scratch, last, &rows)
    rows_b = rows
    if reads_two(op):
        find_rows(b, 1, n, <floating> 0, scratch + SLICE_CLASSES, last_b, &rows_b)
    params[0] = m_dy
    if sums_exponentials(op):
        reduce_max_of_row(op, <const floating*> rows.at[0], <const floating*> rows_b.at[0],
                          <const floating*> rows.last[0], <const floating*> rows_b.last[0], n, high, unused, peaks)
        m = max_of_lanes(high)
        shift_frames(&m, 1, params)
    reduce_row(op, <const floating*> rows.at[0], <const floating*> rows_b.at[0], <const floating*> rows.last[0],
               <const floating*> rows_b.last[0], n, params, lanes, errors, found, m, peaks,
               next_row(part_at(frame_at(a, 0, 0), SLICE_CLASSES), 0, far, found), NULL)
    fold_lanes(lanes, errors, N_LANES, 1, found)
    if sums_exponentials(op):
        for k in range(CHUNK):
            n_equal += found[k]
    return partial_of(op, False, lanes[0], errors[0], m, n_equal)


cdef inline void find_largest_of_part(int op, Array a, Array b, Py_ssize_t n, floating* largest,
                                      floating* a_of_largest, floating* scratch) noexcept nogil:
    """The largest b of at most SLICE_CLASSES classes, and the a of the first of them."""
    cdef floating last[CHUNK]
    cdef floating last_b[CHUNK]
    cdef floating peaks[GROUP_PEAKS]
    cdef floating high[CHUNK]
    cdef floating highest_dy[CHUNK]
    cdef Rows rows, rows_b
    find_rows(a, 1, n, <floating> 0, scratch, last, &rows)
    find_rows(b, 1, n, <floating> 0, scratch + SLICE_CLASSES, last_b, &rows_b)
    reduce_max_of_row(op, <const floating*> rows.at[0], <const floating*> rows_b.at[0], <const floating*> rows.last[0],
                      <const floating*> rows_b.last[0], n, high, highest_dy, peaks)
    largest[0] = max_of_lanes(high)
    a_of_largest[0] = dy_of_first(<const floating*> rows.at[0], <const floating*> rows_b.at[0], n, largest[0])
    high[0] = max_of_lanes(highest_dy)
    spoil_huge(high, 1, a_of_largest)


cdef inline bint write_slice(int op, Vector a, Vector b, Vector y, Py_ssize_t part, Py_ssize_t n,
                             const floating* params, bint stream, floating* scratch) noexcept nogil:
    """write_part for one slice."""
    cdef floating last[CHUNK]
    cdef Rows rows, rows_b
    cdef Vector to = frame_at(part_at(y, part * SLICE_CLASSES), 0, 0)
    cdef Py_ssize_t start = part * SLICE_CLASSES, n_part = size_of_part(part, n)
    cdef bint is_direct = is_native(to, params), is_bad
    cdef floating least = 0, highest = 0
    find_rows(part_at(a, start), 1, n_part, <floating> 0, scratch, last, &rows)
    rows_b = rows
    if reads_two(op):
        find_rows(part_at(b, start), 1, n_part, <floating> 0, scratch + SLICE_CLASSES, last, &rows_b)
    if limits_range(op) and n_part >= CHUNK:
        least = range_of_rows(<const floating*> rows_b.at[0], 0, 1, n_part, &highest)
    elif limits_range(op):
        least = highest = NAN
    # A copy of a is overwritten.
    is_bad = write_part(op, <const floating*> rows.at[0], <const floating*> rows_b.at[0], n_part, params, least,
                        is_large(highest), not (params[4 * MAX_WIDTH] < least),
                        <floating*> to.at if is_direct else scratch, stream and is_direct,
                        next_row(part_at(b, start - SLICE_CLASSES), 0, part > 0, params), NULL, NULL)
    if not is_direct:
        write_long(to, n_part, scratch, stream and to.step == size_of(to.kind))
    return is_bad


cdef inline Partial reduce_slice(int op, bint largest, Vector a, Vector b, Py_ssize_t part, Py_ssize_t n, floating of_k,
                                 floating* scratch) noexcept nogil:
    """The reduction of a slice; if `largest`, its largest b and the a of that class, in `below`."""
    cdef Partial found
    cdef floating b_of_k = 0, a_of_k = 0
    cdef Py_ssize_t start = part * SLICE_CLASSES, n_part = size_of_part(part, n)
    if not largest:
        return reduce_part(op, part_at(a, start), part_at(b, start), n_part, of_k, start + SLICE_CLASSES < n, scratch)
    find_largest_of_part(op, part_at(a, start), part_at(b, start), n_part, &b_of_k, &a_of_k, scratch)
    found.largest = b_of_k
    found.below = a_of_k
    return found


cdef inline void add_slice(int op, bint largest, Partial* total, Partial found, bint is_first) noexcept nogil:
    """Combine the reductions of two parts. A NaN in place of an a is kept: it marks the frame as irregular."""
    if not largest:
        add_part(op, total, found, is_first)
    elif is_first or found.below != found.below or (total.below == total.below and found.largest > total.largest):
        total[0] = found


cdef inline Partial reduce_slices(int op, bint largest, Vector a, Vector b, Py_ssize_t n, floating of_k, Partial* found,
                                  floating* scratch, Py_ssize_t n_bytes, int n_threads) noexcept nogil:
    """A reduction over all slices, in order; by the threads if `found` has room for all."""
    cdef Py_ssize_t part, n_parts = count_slices(n)
    cdef Partial total
    cdef uint64_t env
    cdef int t
    if found == NULL:
        for part in range(n_parts):
            add_slice(op, largest, &total, reduce_slice(op, largest, a, b, part, n, of_k,
                                                        own_scratch(scratch, n_bytes, 0)), part == 0)
        return total
    for t in prange(n_threads, schedule="static", num_threads=n_threads):
        env = lsm_enter_float_env()
        for part in range(t * n_parts // n_threads, (t + 1) * n_parts // n_threads):
            found[part] = reduce_slice(op, largest, a, b, part, n, of_k, own_scratch(scratch, n_bytes, t))
        lsm_leave_float_env(env)
    for part in range(n_parts):
        add_slice(op, largest, &total, found[part], part == 0)
    return total


cdef inline Py_ssize_t write_slices(int op, Vector a, Vector b, Vector y, Py_ssize_t n, const floating* params,
                                    bint stream, floating* scratch, Py_ssize_t n_bytes, int n_threads) noexcept nogil:
    """The result; each thread begins with what it read last. Returns the number of slices in which it is NaN."""
    cdef Py_ssize_t part, n_parts = count_slices(n), n_bad = 0
    cdef uint64_t env
    cdef int t
    if n_threads == 1:
        for part in range(n_parts - 1, -1, -1):
            n_bad += write_slice(op, a, b, y, part, n, params, stream, own_scratch(scratch, n_bytes, 0))
        return n_bad
    for t in prange(n_threads, schedule="static", num_threads=n_threads):
        env = lsm_enter_float_env()
        for part in range((t + 1) * n_parts // n_threads - 1, t * n_parts // n_threads - 1, -1):
            n_bad += write_slice(op, a, b, y, part, n, params, stream, own_scratch(scratch, n_bytes, t))
        lsm_stream_fence()
        lsm_leave_float_env(env)
    return n_bad


cdef inline void run_long_frame(int op, Vector a, Vector b, Vector y, Py_ssize_t n, bint stream, floating* scratch,
                                Py_ssize_t n_bytes, int n_threads) noexcept nogil:
    """A frame of more than SLICE_CLASSES classes."""
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef Partial* found = NULL
    cdef Partial total
    if n_threads > 1:
        found = <Partial*> malloc(count_slices(n) * sizeof(Partial))
        n_threads = n_threads if found != NULL else 1  # one thread needs no allocation
    params[0] = 0
    if finds_largest(op):
        total = reduce_slices(op, True, a, b, n, params[0], found, scratch, n_bytes, n_threads)
        params[0] = <floating> total.below
    total = reduce_slices(op, False, a, b, n, params[0], found, scratch, n_bytes, n_threads)
    free(found)
    keep_normaliser(op, False, total, params)
    if not finalize(op, False, total, params) or (limits_range(op) and is_masked(b, n, params)):
        run_irregular_frame(op, a, b, y, n, params)
    elif writes_elements(op) and write_slices(op, a, b, y, n, params, stream, scratch, n_bytes, n_threads):
        fill_nan(y, n, params)
    if not writes_elements(op):
        write(y, 0, 1, params, False)
