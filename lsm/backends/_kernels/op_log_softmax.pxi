# y = (x - m) - log1p(s): s is the sum of exp(x - m) over all classes except one of the largest.


cdef inline bint finalize_log_softmax(bint few, Partial s, floating* p) noexcept nogil:
    if few:
        p[0] = <floating> s.largest
        # NaN for an infinite maximum
        p[MAX_WIDTH] = log1p_few(s.below + (s.n_largest - 1) + (s.largest - s.largest), p)
    else:
        normaliser(s, &p[0], &p[MAX_WIDTH])
    return True
