# dx_i = p_i ((dy_i - dy_k) - E), E = sum of p_i (dy_i - dy_k), k the class with the largest p: the usual
# p_i (dy_i - sum of p dy), given that p sums to 1, without its cancellation for confident frames.


cdef inline bint finalize_softmax_backward(Partial s, floating* p) noexcept nogil:
    """E; the first parameter, dy_k, is there already."""
    p[MAX_WIDTH] = <floating> (s.largest + s.below)
    return True


cdef inline double term_softmax_backward(floating dy, floating p, floating dy_k) noexcept nogil:
    return <double> p * (<double> dy - <double> dy_k)


cdef inline floating epilogue_softmax_backward(floating dy, floating p, floating dy_k, floating e) noexcept nogil:
    return p * ((dy - dy_k) - e)
