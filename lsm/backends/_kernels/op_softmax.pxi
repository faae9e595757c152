# p = exp(x - m) / (1 + s), and not exp(y) of a rounded log-softmax y, which is off by up to |y| ulp.


cdef inline bint finalize_softmax(Partial s, floating* p) noexcept nogil:
    """The maximum, and the factor of exp_difference: 2**-EXP_BIAS / (1 + s), or NaN if the maximum is infinite."""
    p[0] = <floating> s.largest
    p[MAX_WIDTH] = <floating> (unbias(p) / (s.below + s.n_largest) + (s.largest - s.largest))
    return True


cdef inline floating epilogue_softmax(floating x, floating m, floating factor) noexcept nogil:
    """Scaled by 2**EXP_BIAS until the last product, which rounds subnormal results once."""
    return exp_difference(x, m) * factor
