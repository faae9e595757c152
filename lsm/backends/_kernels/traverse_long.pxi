# Frames longer than a slice: reduced slice by slice, then written. For rows; see traverse_rows.pxi.


cdef inline Array part_at(Vector x, Py_ssize_t start) noexcept nogil:
    """A frame from class `start` on, as an array of one frame."""
    cdef Array to
    to.at = x.at + start * x.step
    to.step = x.step
    to.outer = to.gap = 0
    to.kind = x.kind
    return to


cdef inline Partial reduce_part(int op, Array a, Array b, Py_ssize_t n, floating m_dy,
                                floating* scratch) noexcept nogil:
    """The reduction of at most SLICE_CLASSES classes of a frame; m_dy: its first parameter, if `finds_largest`."""
    cdef floating last[BLOCK_CLASSES]
    cdef floating last_b[BLOCK_CLASSES]
    cdef floating peaks[GROUP_PEAKS]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating found[CHUNK]
    cdef floating m = 0, unused = 0, n_equal = 0
    cdef double lanes[CHUNK]
    cdef double errors[CHUNK]
    cdef Rows rows, rows_b
    cdef Py_ssize_t k
    find_rows(a, 0, 0, 1, n, <floating> -INFINITY if sums_exponentials(op) else <floating> 0, scratch, last, True,
              &rows)
    rows_b = rows
    if reads_two(op):
        find_rows(b, 0, 0, 1, n, <floating> 0, scratch + SLICE_CLASSES, last_b, True, &rows_b)
    params[0] = m_dy
    if sums_exponentials(op):
        reduce_max_of_row(op, <const floating*> rows.at[0], <const floating*> rows_b.at[0],
                          <const floating*> rows.last[0], <const floating*> rows_b.last[0], n, &m, &unused, peaks)
        shift_frames(&m, 1, params)
    reduce_row(op, False, <const floating*> rows.at[0], <const floating*> rows_b.at[0], <const floating*> rows.last[0],
               <const floating*> rows_b.last[0], n, params, lanes, errors, found, m, peaks, NULL, NULL)
    fold_lanes(lanes, errors, N_LANES, 1, found)
    if sums_exponentials(op):
        for k in range(CHUNK):
            n_equal += found[k]
    return partial_of(op, False, lanes[0], errors[0], m, n_equal)


cdef inline void run_long_frame(int op, Vector a, Vector b, Vector y, Py_ssize_t n, bint stream,
                                floating* scratch) noexcept nogil:
    """A frame too long for a group. It is written from its end, since the last slices are still in the cache."""
    cdef floating last[BLOCK_CLASSES]
    cdef floating last_b[BLOCK_CLASSES]
    cdef floating peaks[GROUP_PEAKS]
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m = -INFINITY, m_dy = -INFINITY, of_part = 0, dy_of_part = 0
    cdef floating* copy = scratch  # of y; also of a, which is then overwritten
    cdef Partial total, found
    cdef Rows rows, rows_b
    cdef Vector to
    cdef Py_ssize_t part, start, n_part
    for part in range(count_slices(n) if finds_largest(op) else 0):
        start = part * SLICE_CLASSES
        n_part = size_of_part(part, n)
        find_rows(part_at(a, start), 0, 0, 1, n_part, <floating> 0, scratch, last, True, &rows)
        find_rows(part_at(b, start), 0, 0, 1, n_part, <floating> 0, scratch + SLICE_CLASSES, last_b, True,
                  &rows_b)
        reduce_max_of_row(op, <const floating*> rows.at[0], <const floating*> rows_b.at[0],
                          <const floating*> rows.last[0], <const floating*> rows_b.last[0], n_part, &of_part,
                          &dy_of_part, peaks)
        if of_part > m or dy_of_part != dy_of_part:
            m = of_part
            m_dy = dy_of_part
    params[0] = m_dy
    for part in range(count_slices(n)):
        start = part * SLICE_CLASSES
        found = reduce_part(op, part_at(a, start), part_at(b, start), size_of_part(part, n), m_dy, scratch)
        add_part(op, &total, found, part == 0)
    if not finalize(op, False, total, params):
        run_irregular_frame(op, a, b, y, n, params)
        return
    if not writes_elements(op):
        write(y, 0, 1, params, False)
        return
    for part in range(count_slices(n) - 1, -1, -1):
        start = part * SLICE_CLASSES
        n_part = size_of_part(part, n)
        find_rows(part_at(a, start), 0, 0, 1, n_part, <floating> 0, scratch, last, False, &rows)
        rows_b = rows
        if reads_two(op):
            find_rows(part_at(b, start), 0, 0, 1, n_part, <floating> 0, scratch + SLICE_CLASSES, last_b, False,
                      &rows_b)
        to = part_of(y, part)
        write_of_row(op, <const floating*> rows.at[0], <const floating*> rows_b.at[0], n_part, params, False,
                     <floating*> to.at if is_native(to, params) else copy, stream and is_native(to, params), NULL, NULL)
        if not is_native(to, params):
            write_long(to, n_part, copy)
