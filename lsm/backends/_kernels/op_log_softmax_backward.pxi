# dx = dy - exp(y) * S, with S = sum(dy): see `gradient` in exp.pxi.


cdef inline bint finalize_log_softmax_backward(Partial s, floating* p) noexcept nogil:
    cdef Scaled to
    cdef bint is_regular = scale_sum(s.largest, s.below, &to, floating is float)
    p[0] = <floating> to.s_hi if is_regular else <floating> NAN
    p[MAX_WIDTH] = <floating> to.s_lo
    p[2 * MAX_WIDTH] = <floating> to.s
    p[3 * MAX_WIDTH] = <floating> to.magic
    p[4 * MAX_WIDTH] = <floating> to.lowest
    return is_regular
