# Blocks and groups with a frame for which the epilogue does not hold. If its gradient is NaN, only that frame is
# filled; otherwise each frame is computed by itself. Sums of few classes that are repeated in double are collected,
# and computed as vectors along the frames.


cdef inline void run_irregular_frame(int op, Vector a, Vector b, Vector y, Py_ssize_t n,
                                     floating* params) noexcept nogil:
    """Write the result of a frame; one number for the frame becomes its first parameter instead."""
    if op == SOFTMAX_BACKWARD:
        careful_softmax_backward(a, b, y, n, params)
    elif op == LOGSUMEXP:
        careful_logsumexp(a, n, params)
    else:
        write_irregular_frame(a, b, y, n, params)


cdef inline Py_ssize_t column_of(Shape s, Py_ssize_t j) noexcept nogil:
    """Where the parameters of frame j are: the last chunk may overlap the one before."""
    return j if j < s.width // CHUNK * CHUNK or s.n_joined > 1 else j + round_up(s.width, CHUNK) - s.width


cdef bint has_non_finite(Vector x, Py_ssize_t n, const floating* of) noexcept nogil:
    """Whether any of n numbers is NaN or infinite."""
    cdef floating buffer[BLOCK_CLASSES]
    cdef const floating* at
    cdef int n_found = 0
    cdef Py_ssize_t i, k
    for i from 0 <= i < n by BLOCK_CLASSES:
        at = load(x, i, min(<Py_ssize_t> BLOCK_CLASSES, n - i), buffer)
        for k in range(min(<Py_ssize_t> BLOCK_CLASSES, n - i)):  # hot
            n_found += not fabs_of(at[k]) < INFINITY
    return n_found != 0


cdef bint find_nan_frames(int op, Array a, Array b, Shape s, bint is_dense, const floating* params,
                          bint* is_nan) noexcept nogil:
    """Set is_nan for the frames of a block whose gradient is NaN: as of padding, whose results are NaN or -inf.

    False if another frame is irregular, so that all are left to run_irregular_frames. Not all NaN in b are found.
    """
    cdef floating buffer[1]
    cdef floating first
    cdef const floating* p
    cdef Vector of_b
    cdef Py_ssize_t j
    if not (reads_two(op) and writes_elements(op)):
        return False
    for j in range(s.n_outer * s.n_inner):
        p = &params[j if is_dense else column_of(s, j)]
        of_b = frame_of(b, s, j)
        first = load(of_b, 0, 1, buffer)[0]
        is_nan[j] = first != first or (limits_range(op) and first == -INFINITY and is_masked(of_b, s.n, params))
        if is_nan[j] or (p[0] == p[0] if limits_range(op) else fabs_of(p[MAX_WIDTH]) < INFINITY):
            continue
        is_nan[j] = has_non_finite(frame_of(a, s, j), s.n, params)
        if not limits_range(op):
            is_nan[j] |= has_non_finite(of_b, s.n, params)
        if not is_nan[j]:
            return False
    return True


cdef void fill_nan_frames(Array y, Shape s, const bint* is_nan, const floating* of) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(s.n_outer * s.n_inner):
        if is_nan[j]:
            fill_nan(frame_of(y, s, j), s.n, of)


cdef inline Shape shape_of_group(Py_ssize_t n, Py_ssize_t n_frames) noexcept nogil:
    cdef Shape s
    s.n = n
    s.n_outer = s.n_joined = 1
    s.n_inner = s.n_frames = s.width = n_frames
    s.is_filled = False
    return s


cdef void run_irregular_few(Array a, Shape s, floating* params) noexcept nogil:
    """careful_logsumexp of the frames of a block of few classes."""
    cdef double rows[FEW_CLASSES * CHUNK]
    cdef double frame[FEW_CLASSES]
    cdef double result[CHUNK]
    cdef Py_ssize_t place[CHUNK]
    cdef Py_ssize_t i, j, k, n_found = 0, n_frames = s.n_outer * s.n_inner
    for i in range(s.n * CHUNK):
        rows[i] = 0
    for j in range(n_frames):
        if params[MAX_WIDTH + j] == 1:
            read(frame_of(a, s, j), s.n, frame)
            for i in range(s.n):
                rows[i * CHUNK + n_found] = frame[i]
            place[n_found] = j
            n_found += 1
        if n_found == CHUNK or (n_found and j == n_frames - 1):
            careful_logsumexp_of_few(rows, s.n, result)
            for k in range(n_found):
                params[place[k]] = <floating> result[k]
            n_found = 0


cdef void run_irregular_frames(int op, Array a, Array b, Array y, Shape s, bint is_dense,
                               floating* params) noexcept nogil:
    """All frames of a block. is_dense: the parameters are as far apart as the frames; otherwise see column_of."""
    cdef Py_ssize_t j
    if not writes_elements(op) and is_few(s.n):
        run_irregular_few(a, s, params)
        return
    for j in range(s.n_outer * s.n_inner):
        run_irregular_frame(op, frame_of(a, s, j), frame_of(b, s, j), frame_of(y, s, j), s.n,
                            &params[j if is_dense else column_of(s, j)])
