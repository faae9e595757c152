# Traversal of rows: frames whose classes are adjacent, with vectors along the classes.
#
# A group of up to GROUP_FRAMES frames passes each stage together, so that quantities computed once per frame, such as
# its logarithm, are computed for all of them in vectors. The accumulators of a frame are one chunk, one for each lane;
# see lanes.pxi for the order of sums.


# Where the frames of a group begin, and their last chunks: copies that are filled up, if necessary.
cdef struct Rows:
    const char* at[GROUP_FRAMES]
    const char* last[GROUP_FRAMES]


cdef inline void find_rows(Array x, Py_ssize_t n_frames, Py_ssize_t n, floating fill, floating* copies,
                           floating* lasts, Rows* to) noexcept nogil:
    """Frames where they lie if adjacent numbers of the computed type, else copied."""
    cdef Py_ssize_t f, n_last = n % CHUNK
    cdef Vector frame
    cdef const floating* end
    for f in range(n_frames):
        frame = frame_at(x, 0, f)
        if is_native(frame, lasts):
            to.at[f] = frame.at
        else:
            read(frame, n, copies + f * round_up(n, CHUNK))
            to.at[f] = <const char*> (copies + f * round_up(n, CHUNK))
        end = <const floating*> to.at[f] + n
        if n_last:
            pad(lasts + f * CHUNK, end - n_last, n_last, CHUNK, fill)
            to.last[f] = <const char*> (lasts + f * CHUNK)
        else:
            to.last[f] = <const char*> (end - CHUNK)


cdef inline void write_chunk_of_row(int op, const floating* a, const floating* b, const floating* p,
                                    bint some_large, bint some_low, floating* v) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        v[k] = epilogue(op, a[k], b[k], p[0], p[1], p[2], p[3], p[4], some_large, some_low)


cdef inline void write_chunks_of_row(int op, const floating* a, const floating* b, Py_ssize_t n, const floating* p,
                                     bint some_large, bint some_low, floating* y, bint nontemporal,
                                     const char* next_b, const char* next_y) noexcept nogil:
    cdef floating v[CHUNK]
    cdef Py_ssize_t c
    for c from 0 <= c < n by CHUNK:
        if reads_two(op) and next_b != NULL:
            lsm_prefetch(next_b + c * <Py_ssize_t> sizeof(floating), CHUNK * sizeof(floating), True)
        if reads_two(op) and next_y != NULL:
            lsm_prefetch(next_y + c * <Py_ssize_t> sizeof(floating), CHUNK * sizeof(floating), False)
        write_chunk_of_row(op, a + c, b + c, p, some_large, some_low, v)
        put_lanes(y + c, v, nontemporal)


# The end of a row in a chunk of memory in which the next row begins; both are streamed together.
cdef struct Line:
    double numbers[CHUNK]
    Py_ssize_t n
    bint has_next  # whether a row follows that one


cdef inline void write_of_row(int op, const floating* a, const floating* b, Py_ssize_t n, const floating* params,
                              bint some_large, bint some_low, floating* y, bint stream,
                              const char* next_b, const char* next_y, Line* line) noexcept nogil:
    """The result of n >= CHUNK classes.

    y may be a or b, so chunks that overlap others are read before anything is written. line: what the row before left
    of the chunk of memory in which this one begins; NULL if rows are written one by one.
    """
    cdef floating p[N_PARAMS]
    cdef floating first[CHUNK]
    cdef floating last[2 * CHUNK]
    cdef floating v[2 * CHUNK]
    cdef Py_ssize_t k, n_last, head = 0
    for k in range(N_PARAMS):
        p[k] = params[k * MAX_WIDTH]
    if stream:
        head = (-<Py_ssize_t> <uintptr_t> y & (CHUNK * <Py_ssize_t> sizeof(floating) - 1)) // (
            <Py_ssize_t> sizeof(floating))
    n_last = (n - head) % CHUNK
    if head:
        write_chunk_of_row(op, a, b, p, True, some_low, first)
    if n_last:
        write_chunk_of_row(op, a + n - CHUNK, b + n - CHUNK, p, True, some_low, last)
    if stream:
        write_chunks_of_row(op, a + head, b + head, n - head - n_last, p, some_large, some_low, y + head, True, next_b,
                            next_y)
        # No regular store to a line that has just been streamed: it would be read back.
        if head and line != NULL and line.n:
            put_lanes(v, <const floating*> line.numbers, False)
            put_lanes(&v[CHUNK - head], first, False)
            put_lanes(y + head - CHUNK, v, True)
        elif head:
            put_some(y, first, head)
        if line != NULL and line.has_next:
            put_lanes(<floating*> line.numbers, &last[CHUNK - n_last], False)
            line.n = n_last
        elif n_last:
            put_some(y + n - n_last, &last[CHUNK - n_last], n_last)
    else:
        write_chunks_of_row(op, a, b, n - n_last, p, some_large, some_low, y, False, next_b, next_y)
        if n_last:
            put_lanes(y + n - CHUNK, last, False)


cdef inline bint write_part(int op, const floating* a, const floating* b, Py_ssize_t n, const floating* params,
                            floating least, bint some_large, bint some_low, floating* y, bint stream,
                            const char* next_b, const char* next_y, Line* line) noexcept nogil:
    """The result of at most SLICE_CLASSES classes of a frame; True if that becomes NaN, for b out of range.

    least: the minimum of b, if the operation limits its range; NaN as in range_of_rows.
    """
    if limits_range(op) and not least <= 0 and some_odd(b, n):
        return write_odd_part(a, b, n, params, y)
    if n < CHUNK:
        write_short_part(op, a, b, n, params, y)
    elif limits_range(op) and some_low:
        write_of_row(op, a, b, n, params, True, True, y, stream, next_b, next_y, line)
    elif limits_range(op) and some_large:
        write_of_row(op, a, b, n, params, True, False, y, stream, next_b, next_y, line)
    else:
        write_of_row(op, a, b, n, params, False, False, y, stream, next_b, next_y, line)
    return False


cdef bint write_odd_part(const floating* dy, const floating* y, Py_ssize_t n, const floating* params,
                         floating* dx) noexcept nogil:
    """write_part of the gradient, for any y."""
    cdef Py_ssize_t k, n_bad = 0
    for k in range(n):
        n_bad += exceeds(y[k])
        dx[k] = gradient_of_any(dy[k], y[k], params[0], params[MAX_WIDTH], params[2 * MAX_WIDTH],
                                params[3 * MAX_WIDTH], params[4 * MAX_WIDTH])
    return n_bad > 0


cdef inline void write_short_part(int op, const floating* a, const floating* b, Py_ssize_t n, const floating* params,
                                  floating* y) noexcept nogil:
    """The result of less than a chunk."""
    cdef floating padded[CHUNK]
    cdef floating padded_b[CHUNK]
    cdef floating result[CHUNK]
    pad(padded, a, n, CHUNK, 0)
    pad(padded_b, b, n, CHUNK, -1)
    write_of_row(op, padded, padded_b, CHUNK, params, True, True, result, False, NULL, NULL, NULL)
    put_some(y, result, n)


cdef inline Py_ssize_t most_rows(int op, Py_ssize_t n, bint far, const floating* of) noexcept nogil:
    """The number of frames in a group: what stays in the L1 cache between two stages, GROUP_FRAMES at most."""
    cdef Py_ssize_t most = GROUP_BYTES // (round_up(n, CHUNK) * <Py_ssize_t> sizeof(floating))
    if finds_largest(op) and far:  # the next group is prefetched into it
        most //= 2
    return max(<Py_ssize_t> 1, min(<Py_ssize_t> GROUP_FRAMES, most))


cdef inline const char* next_row(Array x, Py_ssize_t j, bint far, const floating* of) noexcept nogil:
    """Frame j, to be prefetched while another one is processed; NULL if that is not worth it."""
    return x.at + j * x.gap if far and x.kind & 3 == kind_of(of) and x.step == sizeof(floating) else NULL


cdef inline void run_rows(int op, Array a, Array b, Array y, Py_ssize_t n_frames, Py_ssize_t n, bint far, bint stream,
                          floating* scratch) noexcept nogil:
    """All stages of a group of frames of at most SLICE_CLASSES classes."""
    cdef floating lasts[GROUP_FRAMES * CHUNK]
    cdef floating lasts_b[GROUP_FRAMES * CHUNK]
    cdef Rows rows, rows_b
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef floating m[GROUP_FRAMES]
    cdef floating n_equal[GROUP_FRAMES]
    cdef floating high[CHUNK]
    cdef floating highest_dy[CHUNK]
    cdef floating half_m[8 * GROUP_FRAMES]
    cdef floating half_dy[8 * GROUP_FRAMES]
    cdef floating m_dy[GROUP_FRAMES]
    cdef floating found[CHUNK]
    cdef double lanes[CHUNK]
    cdef double errors[CHUNK]
    cdef double half[8 * GROUP_FRAMES]
    cdef double half_error[8 * GROUP_FRAMES]
    cdef double total[8 * GROUP_FRAMES]
    cdef double error[8 * GROUP_FRAMES]
    cdef floating peaks[GROUP_PEAKS]
    cdef bint is_nan[GROUP_FRAMES]
    cdef bint is_regular
    cdef Shape s = shape_of_group(n, n_frames)
    cdef Py_ssize_t f, k, n_blocks = count_blocks(n)
    stream = stream and n * <Py_ssize_t> sizeof(floating) >= STREAMED_ROW_BYTES
    find_rows(a, n_frames, n, <floating> -INFINITY if sums_exponentials(op) else <floating> 0, scratch, lasts, &rows)
    rows_b = rows
    if reads_two(op):
        find_rows(b, n_frames, n, <floating> 0, scratch + packed_numbers(scratch), lasts_b, &rows_b)
    for f in range(GROUP_FRAMES):
        m[f] = n_equal[f] = 0
    for k in range(n_frames * 8, GROUP_FRAMES * 8):
        half[k] = half_error[k] = half_m[k] = half_dy[k] = 0
    if reduces_max(op):
        for f in range(n_frames):
            reduce_max_of_row(op, <const floating*> rows.at[f], <const floating*> rows_b.at[f],
                              <const floating*> rows.last[f], <const floating*> rows_b.last[f], n, high, highest_dy,
                              &peaks[f * n_blocks * CHUNK])
            half_maxima(high, &half_m[f * 8])
            if finds_largest(op):
                half_maxima(highest_dy, &half_dy[f * 8])
        end_maxima(half_m, GROUP_FRAMES, m)
        if finds_largest(op):
            for f in range(n_frames):
                params[f] = dy_of_first(<const floating*> rows.at[f], <const floating*> rows_b.at[f], n, m[f])
            end_maxima(half_dy, GROUP_FRAMES, m_dy)
            spoil_huge(m_dy, GROUP_FRAMES, params)
        else:
            shift_frames(m, GROUP_FRAMES, params)
    for f in range(n_frames if far and stream else 0):  # else a regular store to these lines delays the others
        lsm_prefetch(frame_at(y, 0, f).at, 1, True)
        lsm_prefetch(frame_at(y, 0, f).at + n * size_of(y.kind) - 1, 1, True)
    for f in range(n_frames):
        reduce_row(op, <const floating*> rows.at[f], <const floating*> rows_b.at[f], <const floating*> rows.last[f],
                   <const floating*> rows_b.last[f], n, &params[f], lanes, errors, found, m[f],
                   &peaks[f * n_blocks * CHUNK], next_row(a, f + n_frames, far, found),
                   next_row(y, f, far and not stream and writes_elements(op) and not reads_two(op), found))
        half_lanes(lanes, errors, &half[f * 8], &half_error[f * 8], found)
        for k in range(CHUNK if sums_exponentials(op) else 0):
            n_equal[f] += found[k]
    end_sums(half, half_error, GROUP_FRAMES, total, error, found)
    keep_normalisers(op, False, total, error, m, n_equal, n_frames)
    is_regular = end_frames(op, False, total, error, m, n_equal, GROUP_FRAMES, params)
    if not (is_regular or find_nan_frames(op, a, b, s, True, params, is_nan)):
        run_irregular_frames(op, a, b, y, s, True, params)
    elif writes_elements(op):
        write_rows_of_group(op, y, n_frames, n, rows, rows_b, params, b, far, stream,
                            scratch + 2 * packed_numbers(scratch))
        if not is_regular:
            fill_nan_frames(y, s, is_nan, params)
    if not writes_elements(op):
        write_results(y, n_frames, params)


cdef inline void write_rows_of_group(int op, Array y, Py_ssize_t n_frames, Py_ssize_t n, Rows rows, Rows rows_b,
                                     const floating* params, Array b, bint far, bint stream,
                                     floating* copy) noexcept nogil:
    cdef Py_ssize_t f
    cdef Vector to
    cdef floating* at
    cdef floating least = 0, highest = 0
    cdef bint is_bad, some_low = False, is_run = stream and not limits_range(op) and lies_whole(y, n)
    cdef Line line
    line.n = 0
    if limits_range(op):
        f = rows_b.at[min(<Py_ssize_t> 1, n_frames - 1)] - rows_b.at[0]  # the same between all
        least = range_of_rows(<const floating*> rows_b.at[0], f // <Py_ssize_t> sizeof(floating), n_frames, n,
                              &highest)
        for f in range(n_frames):
            some_low |= not (params[4 * MAX_WIDTH + f] < least)
    for f in range(n_frames):
        to = frame_at(y, 0, f)
        at = <floating*> to.at if is_native(to, params) else copy
        line.has_next = f < n_frames - 1
        is_bad = some_low and is_masked(native(<const floating*> rows_b.at[f]), n, params)
        if not is_bad:
            is_bad = write_part(op, <const floating*> rows.at[f], <const floating*> rows_b.at[f], n, &params[f], least,
                                is_large(highest), some_low, at, stream and at != copy,
                                next_row(b, f + n_frames, far, params),
                                next_row(y, f + n_frames, far and not stream, params), &line if is_run else NULL)
            if at == copy:
                write_long(to, n, copy, False)
        if is_bad:
            fill_nan(to, n, params)


cdef inline void write_results(Array y, Py_ssize_t n_frames, const floating* results) noexcept nogil:
    """One number for each frame of a group."""
    cdef Vector to
    to.at = y.at
    to.step = y.gap
    to.kind = y.kind
    write(to, 0, n_frames, results, False)


cdef inline void write_long(Vector y, Py_ssize_t n, const floating* p, bint stream) noexcept nogil:
    cdef Py_ssize_t i
    for i from 0 <= i < n by WRITE_NUMBERS:
        write(y, i, min(<Py_ssize_t> WRITE_NUMBERS, n - i), p + i, stream)


cdef inline Array group_at(Array x, Py_ssize_t i, Py_ssize_t first) noexcept nogil:
    """The frames from `first` on."""
    x.at += i * x.outer + first * x.gap
    return x


cdef inline bint is_converted(Array x, Py_ssize_t n, const floating* of) noexcept nogil:
    """Whether frames are packed numbers of another type, which are converted as a whole group."""
    return x.kind != kind_of(of) and lies_whole(x, n) and n <= CONVERTED_MAX_CLASSES


cdef inline Array converted(floating* at, Py_ssize_t n) noexcept nogil:
    """Packed frames of the computed type."""
    cdef Array to
    to.at = <char*> at
    to.step = sizeof(floating)
    to.gap = n * to.step
    to.outer = 0
    to.kind = kind_of(at)
    return to


cdef inline void run_group_of_shape(int op, Array a, Array b, Array y, Py_ssize_t i, Py_ssize_t first,
                                    Py_ssize_t n_frames, Py_ssize_t n, bint far, bint stream,
                                    floating* scratch) noexcept nogil:
    cdef floating* copy_b = scratch + packed_numbers(scratch)
    cdef floating* copy_y = scratch + 2 * packed_numbers(scratch)
    cdef Array to = group_at(y, i, first)
    cdef bint shall_convert = writes_elements(op) and is_converted(to, n, scratch)
    a = group_at(a, i, first)
    b = group_at(b, i, first) if reads_two(op) else a
    if is_converted(a, n, scratch):
        read(frame_at(a, 0, 0), n_frames * n, scratch)
        a = converted(scratch, n)
        far = False
    if reads_two(op) and is_converted(b, n, scratch):
        read(frame_at(b, 0, 0), n_frames * n, copy_b)
        b = converted(copy_b, n)
    if shall_convert:
        to = converted(copy_y, n)
    if is_short(op, n):
        run_short_rows(op, a, b, to, n_frames, n, far, stream and not shall_convert, scratch)
    else:
        run_rows(op, a, b, to, n_frames, n, far, stream and not shall_convert, scratch)
    if shall_convert:
        write_long(frame_at(group_at(y, i, first), 0, 0), n_frames * n, copy_y, stream)
