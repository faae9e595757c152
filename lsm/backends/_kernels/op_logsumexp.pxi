# L = m + log1p(s): one number for each frame.


cdef inline bint finalize_logsumexp(Partial s, floating* p) noexcept nogil:
    """False if m and log1p(s) cancel, so that the sum needs exponentials in double, or if the maximum is infinite.

    The second parameter is then 1.
    """
    cdef double rest = s.below + (s.n_largest - 1)
    cdef double total = s.largest + log1p_double(0 if rest < 0 else rest)  # below 0 for -inf only
    cdef bint is_regular = s.largest < INFINITY
    if floating is float:
        is_regular &= not (s.largest < 0 and fabs(total) < 1)
    p[0] = <floating> total
    p[MAX_WIDTH] = 0 if is_regular else 1
    return is_regular


cdef void careful_logsumexp(Vector x, Vector y, Py_ssize_t n, const floating* p) noexcept nogil:
    """One frame, summed in double if its second parameter is 1. NaN if it contains NaN, else inf if it contains inf."""
    cdef double buffer[BLOCK_CLASSES]
    cdef double lanes[CHUNK]
    cdef double m = -INFINITY, s, n_equal = 0
    cdef Py_ssize_t c, i, k, n_block
    cdef floating result[1]
    result[0] = p[0]
    if p[MAX_WIDTH] == 1:
        for i from 0 <= i < n by BLOCK_CLASSES:
            n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
            read_from(x, i, n_block, buffer)
            for k in range(n_block):
                m = buffer[k] if buffer[k] > m or buffer[k] != buffer[k] else m
        for k in range(CHUNK):
            lanes[k] = 0
        for i from 0 <= i < n by BLOCK_CLASSES:
            n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
            read_from(x, i, n_block, buffer)
            for k in range(n_block, round_up(n_block, CHUNK)):
                buffer[k] = -INFINITY
            for k in range(n_block):
                n_equal += buffer[k] == m
            for k in range(round_up(n_block, CHUNK)):  # hot
                buffer[k] = 0 if buffer[k] == m else exp_difference(buffer[k], m)
            for c in range(round_up(n_block, CHUNK) // CHUNK):
                for k in range(CHUNK):
                    lanes[k] += buffer[c * CHUNK + k]
        s = n_equal - 1
        for k in range(CHUNK):
            s += lanes[k] * EXP_UNBIAS_DOUBLE
        result[0] = <floating> (m if fabs(m) == INFINITY else m + log1p_double(s))
    write(y, 0, 1, result, False)


cdef inline void read_from(Vector x, Py_ssize_t start, Py_ssize_t n, double* to) noexcept nogil:
    x.at += start * x.step
    read(x, n, to)
