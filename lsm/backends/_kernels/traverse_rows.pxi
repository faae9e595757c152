# Traversal of rows: frames whose classes are adjacent, with vectors along the classes.
#
# A group of up to GROUP_FRAMES frames passes each stage together, so that what is computed once a frame, such as its
# logarithm, is computed for all of them in vectors. The accumulators of a frame are one chunk, one for each lane; see
# lanes.pxi for the order of sums.


# Where the frames of a group begin, and their last blocks: copies filled up to whole chunks, if necessary.
cdef struct Rows:
    const char* at[GROUP_FRAMES]
    const char* last[GROUP_FRAMES]


cdef inline void find_rows(Array x, Py_ssize_t i, Py_ssize_t first, Py_ssize_t n_frames, Py_ssize_t n, floating fill,
                           floating* copies, floating* lasts, bint fills, Rows* to) noexcept nogil:
    """Frames where they lie if adjacent numbers of the computed type, else copied. fills: whether to fill up `last`."""
    cdef Py_ssize_t f, start = (n - 1) // BLOCK_CLASSES * BLOCK_CLASSES, n_last = n - start, n_whole
    cdef Vector frame
    cdef const floating* source
    for f in range(n_frames):
        frame = frame_at(x, i, first + f)
        if is_native(frame, lasts):
            to.at[f] = frame.at
        else:
            read(frame, n, copies + f * round_up(n, CHUNK))
            to.at[f] = <const char*> (copies + f * round_up(n, CHUNK))
        source = <const floating*> to.at[f] + start
        to.last[f] = <const char*> source
        if fills and n_last % CHUNK:
            n_whole = n_last // CHUNK * CHUNK
            copy_chunks(source, n_whole, lasts + f * BLOCK_CLASSES)
            pad(lasts + f * BLOCK_CLASSES + n_whole, source + n_whole, n_last - n_whole, CHUNK, fill)
            to.last[f] = <const char*> (lasts + f * BLOCK_CLASSES)


cdef inline void copy_chunks(const floating* x, Py_ssize_t n, floating* to) noexcept nogil:
    cdef Py_ssize_t c
    for c from 0 <= c < n by CHUNK:
        put_lanes(to + c, x + c, False)


cdef inline void write_chunk_of_row(int op, const floating* a, const floating* b, const floating* p, bint some_low,
                                    floating* v) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        v[k] = epilogue(op, a[k], b[k], p[0], p[1], p[2], p[3], p[4], some_low)


cdef inline void write_chunks_of_row(int op, const floating* a, const floating* b, Py_ssize_t n, const floating* p,
                                     bint some_low, floating* y, bint nontemporal, const char* next_a,
                                     const char* next_b) noexcept nogil:
    cdef floating v[CHUNK]
    cdef Py_ssize_t c
    for c from 0 <= c < n by CHUNK:
        if next_a != NULL:
            lsm_prefetch(next_a + c * <Py_ssize_t> sizeof(floating), CHUNK * sizeof(floating), False)
            lsm_prefetch(next_b + c * <Py_ssize_t> sizeof(floating), CHUNK * sizeof(floating), False)
        write_chunk_of_row(op, a + c, b + c, p, some_low, v)
        put_lanes(y + c, v, nontemporal)


cdef inline void write_of_row(int op, const floating* a, const floating* b, Py_ssize_t n, const floating* params,
                              bint some_low, floating* y, bint stream, const char* next_a,
                              const char* next_b) noexcept nogil:
    """The result of n classes; y may be a or b, so chunks that overlap others are read before anything is written."""
    cdef floating p[N_PARAMS]
    cdef floating first[CHUNK]
    cdef floating last[CHUNK]
    cdef floating padded[CHUNK]
    cdef floating padded_b[CHUNK]
    cdef Py_ssize_t k, head = 0
    for k in range(N_PARAMS):
        p[k] = params[k * MAX_WIDTH]
    if n < CHUNK:
        pad(padded, a, n, CHUNK, 0)
        pad(padded_b, b, n, CHUNK, -1)
        write_chunk_of_row(op, padded, padded_b, p, some_low, last)
        put_some(y, last, n)
        return
    if stream:
        head = min((-<Py_ssize_t> <uintptr_t> y & 63) // <Py_ssize_t> sizeof(floating), n - CHUNK)
    if head:
        write_chunk_of_row(op, a, b, p, some_low, first)
    if (n - head) % CHUNK:
        write_chunk_of_row(op, a + n - CHUNK, b + n - CHUNK, p, some_low, last)
    if stream:
        write_chunks_of_row(op, a + head, b + head, (n - head) // CHUNK * CHUNK, p, some_low, y + head, True, next_a,
                            next_b)
    else:
        write_chunks_of_row(op, a, b, n // CHUNK * CHUNK, p, some_low, y, False, next_a, next_b)
    if head:
        put_lanes(y, first, False)
    if (n - head) % CHUNK:
        put_lanes(y + n - CHUNK, last, False)


cdef inline Py_ssize_t most_rows(Py_ssize_t n, const floating* of) noexcept nogil:
    """The number of frames in a group: at most GROUP_FRAMES, and copies must fit the scratch."""
    return max(<Py_ssize_t> 1, min(<Py_ssize_t> GROUP_FRAMES, packed_numbers(of) // round_up(n, CHUNK)))


cdef inline void run_rows(int op, bint few, Array a, Array b, Array y, Py_ssize_t i, Py_ssize_t first,
                          Py_ssize_t n_frames, Py_ssize_t n, bint far, bint stream, floating* scratch) noexcept nogil:
    """All stages of a group of frames of at most SLICE_CLASSES classes."""
    cdef floating lasts[GROUP_FRAMES * BLOCK_CLASSES]
    cdef floating lasts_b[GROUP_FRAMES * BLOCK_CLASSES]
    cdef Rows rows, rows_b
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[GROUP_FRAMES]
    cdef floating m_dy[GROUP_FRAMES]
    cdef floating n_equal[GROUP_FRAMES]
    cdef floating found[CHUNK]
    cdef double lanes[CHUNK]
    cdef double errors[CHUNK]
    cdef double half[8 * GROUP_FRAMES]
    cdef double half_error[8 * GROUP_FRAMES]
    cdef double total[8 * GROUP_FRAMES]
    cdef double error[8 * GROUP_FRAMES]
    cdef floating peaks[GROUP_PEAKS]
    cdef Py_ssize_t f, k, n_blocks = count_blocks(n)
    cdef bint is_regular = True
    cdef floating* copies_b = scratch + packed_numbers(scratch)
    find_rows(a, i, first, n_frames, n, <floating> -INFINITY if sums_exponentials(op) else <floating> 0, scratch,
              lasts, True, &rows)
    rows_b = rows
    if reads_two(op):
        find_rows(b, i, first, n_frames, n, <floating> 0, copies_b, lasts_b, finds_largest(op), &rows_b)
    for f in range(n_frames, GROUP_FRAMES):
        m[f] = m_dy[f] = n_equal[f] = 0
        for k in range(8):
            half[f * 8 + k] = half_error[f * 8 + k] = 0
    if reduces_max(op):
        for f in range(n_frames):
            reduce_max_of_row(op, <const floating*> rows.at[f], <const floating*> rows_b.at[f],
                              <const floating*> rows.last[f], <const floating*> rows_b.last[f], n, &m[f], &m_dy[f],
                              &peaks[f * n_blocks * CHUNK])
        if finds_largest(op):
            memcpy(params, m_dy, GROUP_FRAMES * sizeof(floating))
        elif few:
            memcpy(params, m, GROUP_FRAMES * sizeof(floating))
        else:
            shift_frames(m, GROUP_FRAMES, params)
    for f in range(n_frames):
        reduce_row(op, few, <const floating*> rows.at[f], <const floating*> rows_b.at[f],
                   <const floating*> rows.last[f], <const floating*> rows_b.last[f], n, &params[f], lanes, errors,
                   found, m[f], &peaks[f * n_blocks * CHUNK],
                   rows.at[f] + n_frames * a.gap if far and sums_exponentials(op) else NULL,
                   frame_at(y, i, first + f).at if far else NULL)
        half_lanes(lanes, errors, &half[f * 8], &half_error[f * 8], found)
        n_equal[f] = 0
        if sums_exponentials(op):
            for k in range(CHUNK):
                n_equal[f] += found[k]
    end_sums(half, half_error, total, error, found)
    is_regular = end_frames(op, few, total, error, m, n_equal, GROUP_FRAMES, params)
    write_rows_of_group(op, a, b, y, i, first, n_frames, n, is_regular, rows, rows_b, params, far, stream,
                        scratch + 2 * packed_numbers(scratch))


cdef inline void write_rows_of_group(int op, Array a, Array b, Array y, Py_ssize_t i, Py_ssize_t first,
                                     Py_ssize_t n_frames, Py_ssize_t n, bint is_regular, Rows rows, Rows rows_b,
                                     floating* params, bint far, bint stream, floating* copy) noexcept nogil:
    cdef Py_ssize_t f
    cdef Vector to
    cdef floating* at
    cdef floating least
    cdef const char* next_a
    cdef const char* next_b
    cdef bint some_low = False
    if not writes_elements(op):
        to.at = y.at + i * y.outer + first * y.gap
        to.step = y.gap
        to.kind = y.kind
        if is_regular:
            write(to, 0, n_frames, params, False)
        for f in range(0 if is_regular else n_frames):
            run_irregular_frame(op, frame_at(a, i, first + f), frame_at(b, i, first + f), frame_at(y, i, first + f), n,
                                &params[f])
        return
    for f in range(n_frames):
        to = frame_at(y, i, first + f)
        next_a = next_b = NULL
        if far and reads_two(op):
            next_a = rows.at[f] + n_frames * a.gap
            next_b = rows_b.at[f] + n_frames * b.gap
        if not is_regular:
            run_irregular_frame(op, native(<const floating*> rows.at[f]), native(<const floating*> rows_b.at[f]), to, n,
                                &params[f])
            continue
        if limits_range(op):
            least = least_of_frame(<const floating*> rows_b.at[f], n)
            some_low = not (params[4 * MAX_WIDTH + f] < least)
            if not (least <= 0 or not some_odd(<const floating*> rows_b.at[f], n)) or (
                    some_low and is_masked(native(<const floating*> rows_b.at[f]), n, params)):
                run_irregular_frame(op, native(<const floating*> rows.at[f]), native(<const floating*> rows_b.at[f]),
                                    to, n, &params[f])
                continue
        at = <floating*> to.at if is_native(to, params) else copy
        if some_low:
            write_of_row(op, <const floating*> rows.at[f], <const floating*> rows_b.at[f], n, &params[f], True, at,
                         stream and at != copy, next_a, next_b)
        else:
            write_of_row(op, <const floating*> rows.at[f], <const floating*> rows_b.at[f], n, &params[f], False, at,
                         stream and at != copy, next_a, next_b)
        if at == copy:
            write_long(to, n, copy)


cdef inline floating least_of_frame(const floating* y, Py_ssize_t n) noexcept nogil:
    """least_of_row for any n."""
    cdef floating padded[CHUNK]
    if n >= CHUNK:
        return least_of_row(y, n)
    pad(padded, y, n, CHUNK, -1)
    return least_of_row(padded, CHUNK)


cdef inline void write_long(Vector y, Py_ssize_t n, const floating* p) noexcept nogil:
    cdef Py_ssize_t i
    for i from 0 <= i < n by PIPELINE_MAX_CLASSES:
        write(y, i, min(<Py_ssize_t> PIPELINE_MAX_CLASSES, n - i), p + i, False)


cdef inline void run_rows_of_shape(int op, Array a, Array b, Array y, Py_ssize_t i, Py_ssize_t first,
                                   Py_ssize_t n_frames, Py_ssize_t n, bint far, bint stream,
                                   floating* scratch) noexcept nogil:
    cdef Py_ssize_t f
    if not is_pipelined(op) and n <= FEW_CLASSES:
        run_rows(op, True, a, b, y, i, first, n_frames, n, far, stream, scratch)
    elif is_pipelined(op) or n <= min(packed_numbers(scratch), <Py_ssize_t> SLICE_CLASSES):
        run_rows(op, False, a, b, y, i, first, n_frames, n, far, stream, scratch)
    else:
        for f in range(first, first + n_frames):
            run_long_frame(op, frame_at(a, i, f), frame_at(b, i, f), frame_at(y, i, f), n, stream, scratch)
