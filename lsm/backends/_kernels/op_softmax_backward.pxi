# dx_i = p_i ((dy_i - dy_k) - E), E = sum of p_i (dy_i - dy_k), k the class with the largest p, of several the first.
# Where p sums to 1, this equals p_i (dy_i - sum of p dy), but does not cancel for confident frames.


cdef inline bint finalize_softmax_backward(Partial s, floating* p) noexcept nogil:
    """E, the second parameter; the first, dy_k, is already set. False for a frame with NaN, an infinity or huge dy."""
    p[MAX_WIDTH] = <floating> (s.largest + s.below)
    return fabs(s.largest + s.below) < INFINITY


cdef inline double add_term_softmax_backward(double total, double dy, double p, double dy_k) noexcept nogil:
    return total + p * (dy - dy_k)


cdef inline floating epilogue_softmax_backward(floating dy, floating p, floating dy_k, floating e) noexcept nogil:
    return p * ((dy - dy_k) - e)


cdef void careful_softmax_backward(Vector dy, Vector p, Vector dx, Py_ssize_t n, const floating* params) noexcept nogil:
    """One frame, in double, with dy scaled: nothing overflows or is subnormal. NaN if any number is NaN or inf."""
    cdef floating buffer[1]
    cdef floating result[1]
    cdef double largest = -INFINITY, highest = 0, of_k = 0, total = 0, error = 0, e, h
    cdef Py_ssize_t i
    if fabs(<double> params[MAX_WIDTH]) < INFINITY:  # a regular frame of an irregular block
        for i in range(n):
            result[0] = load(dy, i, 1, buffer)[0]
            result[0] = epilogue_softmax_backward(result[0], load(p, i, 1, buffer)[0], params[0], params[MAX_WIDTH])
            write(dx, i, 1, result, False)
        return
    for i in range(n):
        if load(p, i, 1, buffer)[0] > largest:
            largest = load(p, i, 1, buffer)[0]
            of_k = load(dy, i, 1, buffer)[0]
        highest = max(highest, fabs(<double> load(dy, i, 1, buffer)[0]))
    h = 2.0**-40 if highest > 1 else 2.0**600
    of_k *= h
    for i in range(n):
        e = load(dy, i, 1, buffer)[0] * h - of_k
        two_sum(&total, &error, e * load(p, i, 1, buffer)[0])
    e = total + error
    if not fabs(e) < INFINITY:
        fill_nan(dx, n, params)
        return
    for i in range(n):
        total = load(dy, i, 1, buffer)[0] * h - of_k
        result[0] = <floating> (load(p, i, 1, buffer)[0] * (total - e) / h)
        write(dx, i, 1, result, False)
