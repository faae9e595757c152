# The exponential, once for every kernel: no table and no branch, so that the compiler makes vectors of it.
#
# exp(x) = 2**n * exp(r), n = round(x / ln 2), r = x - n ln 2.  Adding `magic` (1.5 * 2**23 or 2**52)
# rounds to an integer and leaves n in the low bits, which shifted into the exponent field are 2**n.
# ln2_hi is short enough for n * ln2_hi to be exact, so instruction levels with and without FMA agree
# to the last digits.  Constants are written as double and rounded to `floating` by the assignment.


cdef inline floating expm1_reduced(floating r) noexcept nogil:
    """exp(r) - 1 for |r| <= ln(2)/2, as r + r**2 * P(r).

    P is near-minimax with its coefficients rounded to the type. The relative error of
    1 + r + r**2 * P(r) against exp(r) is 2**-27.7 for float32 (degree 6) and 2**-56.4 for
    float64 (degree 11); tests/test_numerics.py checks both figures.
    """
    cdef floating p
    if floating is float:
        p = <floating>0.001381446490995586
        p = p * r + <floating>0.008368780836462975
        p = p * r + <floating>0.04166839271783829
        p = p * r + <floating>0.1666651964187622
        p = p * r + <floating>0.4999999403953552
    else:
        p = 2.5000589571617807e-08
        p = p * r + 2.7630380840201015e-07
        p = p * r + 2.7557585389651476e-06
        p = p * r + 2.480149275472975e-05
        p = p * r + 0.0001984126950692898
        p = p * r + 0.0013888888943932496
        p = p * r + 0.008333333333494635
        p = p * r + 0.04166666666652914
        p = p * r + 0.1666666666666641
        p = p * r + 0.5000000000000011
    return (r * r) * p + r


cdef inline floating power_of_two(floating t) noexcept nogil:
    """2**n from t = n + magic + exponent bias, by its bits."""
    if floating is float:
        return lsm_power_of_two_f(t)
    else:
        return lsm_power_of_two_d(t)


cdef inline floating round_shift(floating m) noexcept nogil:
    """m rounded to so few digits that exp_below finds the error of x - c in two operations.

    x - (d + c) is that error if d + c is exact. It is where |x| <= c, and where c is a multiple of the last
    digit of x: so c is a multiple of the last digit of the largest |x| whose exponential is not 0.
    """
    cdef floating big = 192 if floating is float else 1536  # 1.5 * 2**7, 1.5 * 2**10; exp(-157), exp(-1333) are 0
    return (m + big) - big


cdef inline floating exp_below(floating x, floating m, floating c, bint some_equal) noexcept nogil:
    """exp(x - c) * 2**EXP_BIAS for x < m; 0 for x == m, and below 2**-126 (float64: 2**-1022). c = round_shift(m).

    The bias keeps small exponentials clear of the subnormals, which have fewer digits. The rounding
    error `e` of x - c goes into r: left out, it costs 32 ulp of the result at x - c = -90.
    x == m is the largest class, which the sum leaves out: not looked for where some_equal is False. NaN stays NaN.
    """
    cdef floating log2e, ln2_hi, ln2_lo, magic, lowest, d, e, t, n, r, scale
    log2e = 1.4426950408889634
    if floating is float:
        ln2_hi = 0.693359375
        ln2_lo = -2.1219444005469058e-4
        magic = 12582912.0 + 127.0 + EXP_BIAS_FLOAT
        lowest = -156.5  # -(126 + EXP_BIAS_FLOAT) * ln 2, rounded up
    else:
        ln2_hi = 6.93147180369123816490e-01
        ln2_lo = 1.90821492927058770002e-10
        magic = 6755399441055744.0 + 1023.0 + EXP_BIAS_DOUBLE
        lowest = -1332.0  # -(1022 + EXP_BIAS_DOUBLE) * ln 2, rounded up
    d = x - c
    e = x - (d + c)
    t = d * log2e + magic
    n = t - magic
    r = (d - n * ln2_hi) + (e - n * ln2_lo)
    scale = power_of_two(t)
    r = scale * expm1_reduced(r) + scale
    if some_equal:
        return <floating> 0 if (d < lowest) | (x == m) else r
    else:
        return <floating> 0 if d < lowest else r


cdef inline bint is_large(floating y) noexcept nogil:
    """Whether exp(y) > 1/2 or y is NaN: at most one class of a frame of log-probabilities (or two equal ones)."""
    return not (y <= <floating> -0.6931471805599453)


cdef inline floating gradient(floating dy, floating y, floating s_hi, floating s_lo, floating s, floating magic,
                              floating lowest, bint some_large) noexcept nogil:
    """dy - exp(y) * S, as (dy - S) - expm1(y) * S where y > -ln 2; S = s_hi + s_lo, the rest is from `scale_sum`.

    The second form keeps the digits that dy - S loses when exp(y) is nearly 1. It is left out of the code
    where some_large is False: no y > -ln 2. A small exp(y) may have few digits where exp(y) * S has all,
    so it is 2**B as large until it has met s = S * 2**-B; B is in magic, and 0 is exact below `lowest`.
    """
    cdef floating log2e, ln2_hi, ln2_lo, magic_large, one, t, n, r, scale, w
    log2e = 1.4426950408889634
    if floating is float:
        ln2_hi = 0.693359375
        ln2_lo = -2.1219444005469058e-4
        magic_large = 12582912.0 + 127.0
    else:
        ln2_hi = 6.93147180369123816490e-01
        ln2_lo = 1.90821492927058770002e-10
        magic_large = 6755399441055744.0 + 1023.0
    one = 0
    if some_large:
        one = <floating> 1 if is_large(y) else <floating> 0
        magic = magic_large if is_large(y) else magic
        s = s_hi if is_large(y) else s
        dy = (dy - s_hi) - s_lo if is_large(y) else dy
    t = y * log2e + magic
    n = t - magic
    r = (y - n * ln2_hi) - n * ln2_lo
    scale = power_of_two(t)
    w = scale * expm1_reduced(r) + (scale - one)
    w = <floating> 0 if y < lowest else w
    return dy - w * s
