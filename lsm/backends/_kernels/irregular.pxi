# Blocks and groups with a frame for which the epilogue does not hold: each frame by itself. Sums of few classes that
# are repeated in double are collected, and computed as vectors along the frames.


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


cdef inline void run_irregular_frames(int op, Array a, Array b, Array y, Shape s, bint is_dense,
                                      floating* params) noexcept nogil:
    """All frames of a block. is_dense: the parameters are as far apart as the frames; otherwise see column_of."""
    cdef Py_ssize_t j
    if not writes_elements(op) and is_few(s.n):
        run_irregular_few(a, s, params)
        return
    for j in range(s.n_outer * s.n_inner):
        run_irregular_frame(op, frame_of(a, s, j), frame_of(b, s, j), frame_of(y, s, j), s.n,
                            &params[j if is_dense else column_of(s, j)])


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
