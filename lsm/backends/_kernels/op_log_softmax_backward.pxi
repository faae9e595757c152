# dx = dy - exp(y) * S, with S = sum(dy): see `gradient` in exp.pxi.


cdef inline bint finalize_few_gradient(double total, float* p) noexcept nogil:
    """scale_sum in float32, for a sum without an error."""
    cdef double hi = lsm_round_to_float(total)
    cdef float s = <float> hi, e = <float> lsm_exponent_f(s)
    p[0] = s if fabsf(s) < <float> 2.0**76 else <float> NAN
    p[MAX_WIDTH] = <float> (total - hi)
    p[2 * MAX_WIDTH] = s * lsm_power_of_minus(<int32_t> e + GRADIENT_BIAS_FLOAT)
    p[3 * MAX_WIDTH] = e + <float> (12582912 + 127 + GRADIENT_BIAS_FLOAT)
    p[4 * MAX_WIDTH] = <float> -0.6931471805599453 * (e + <float> (125 + GRADIENT_BIAS_FLOAT))
    return fabsf(s) < <float> 2.0**76


cdef inline bint finalize_log_softmax_backward(bint few, Partial s, floating* p) noexcept nogil:
    cdef Scaled to
    cdef bint is_regular
    if floating is float:
        if few:
            return finalize_few_gradient(s.largest, p)
    is_regular = scale_sum(s.largest, s.below, &to, floating is float)
    p[0] = <floating> to.s_hi if is_regular else <floating> NAN
    p[MAX_WIDTH] = <floating> to.s_lo
    p[2 * MAX_WIDTH] = <floating> to.s
    p[3 * MAX_WIDTH] = <floating> to.magic
    p[4 * MAX_WIDTH] = <floating> to.lowest
    return is_regular
