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


cdef inline void careful_logsumexp(Vector x, Py_ssize_t n, floating* p) noexcept nogil:
    """The result of a frame, if its second parameter is 1: see sum_in_double."""
    if p[MAX_WIDTH] == 1:
        p[0] = <floating> sum_in_double(x, n)


cdef void careful_logsumexp_of_few(const double* x, Py_ssize_t n, double* result) noexcept nogil:
    """sum_in_double of CHUNK frames of few classes. x: their classes, in rows of a chunk."""
    cdef double m[CHUNK]
    cdef double s[CHUNK]
    cdef double lane[CHUNK]
    cdef double e
    cdef Py_ssize_t first, i, k
    for k in range(CHUNK):
        m[k] = -INFINITY
        s[k] = -1
    for i in range(n):
        for k in range(CHUNK):  # hot
            e = x[i * CHUNK + k]
            m[k] = e if (e > m[k]) | (e != e) else m[k]
    for i in range(n):
        for k in range(CHUNK):  # hot
            s[k] += <double> 1 if x[i * CHUNK + k] == m[k] else <double> 0
    for first in range(min(n, <Py_ssize_t> N_LANES)):
        for k in range(CHUNK):
            lane[k] = 0
        for i from first <= i < n by N_LANES:
            for k in range(CHUNK):  # hot
                e = exp_difference(x[i * CHUNK + k], m[k])
                lane[k] += <double> 0 if x[i * CHUNK + k] == m[k] else e
        for k in range(CHUNK):
            s[k] += lane[k] * EXP_UNBIAS_DOUBLE
    for k in range(CHUNK):  # hot
        e = m[k] + log1p_double(s[k])
        result[k] = m[k] if fabs(m[k]) == INFINITY else e


cdef double sum_in_double(Vector x, Py_ssize_t n) noexcept nogil:
    """logsumexp of one frame in double. NaN if it contains NaN, else inf if it contains inf."""
    cdef double buffer[BLOCK_CLASSES]
    cdef double lanes[CHUNK]
    cdef double m = -INFINITY, s, n_equal = 0
    cdef Py_ssize_t c, i, k, n_block
    for i from 0 <= i < n by BLOCK_CLASSES:
        n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
        read_from(x, i, n_block, buffer)
        for k in range(n_block):
            m = buffer[k] if buffer[k] > m or buffer[k] != buffer[k] else m
    for k in range(CHUNK):
        lanes[k] = 0
    for i from 0 <= i < n by BLOCK_CLASSES:
        n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
        if n > BLOCK_CLASSES:
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
    return m if fabs(m) == INFINITY else m + log1p_double(s)


cdef inline void read_from(Vector x, Py_ssize_t start, Py_ssize_t n, double* to) noexcept nogil:
    x.at += start * x.step
    read(x, n, to)
