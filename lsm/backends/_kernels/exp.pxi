# The exponential, shared by all kernels: no table and no branch, so that it vectorises.
#
# exp(x) = 2**n * exp(r), n = round(x / ln 2), r = x - n ln 2. Adding `magic` (1.5 * 2**23 or 2**52) rounds to an
# integer and leaves n in the low bits; shifted into the exponent field, they are 2**n. ln2_hi is so short that
# n * ln2_hi is exact, so levels with and without FMA agree up to the last digits. Constants are written as double and
# rounded to `floating` on assignment.


cdef inline floating expm1_reduced(floating r) noexcept nogil:
    """exp(r) - 1 for |r| <= ln(2)/2, as r + r**2 * P(r).

    P is near-minimax, with coefficients rounded to the type. The relative error of 1 + r + r**2 * P(r) is 2**-27.7 for
    float32 (degree 6) and 2**-56.4 for float64 (degree 11); tests/test_numerics.py checks both.
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
    """2**n from t = n + magic + exponent bias."""
    if floating is float:
        return lsm_power_of_two_f(t)
    else:
        return lsm_power_of_two_d(t)


# The parameters of exp_below, from the maximum m.
cdef struct Shift:
    double m      # the maximum
    double h      # subtracted first: 0, or m if m is so large that x - m is exact for every x that matters
    double power  # N = round((m - h) / ln 2): the terms are exp(x - h) * 2**(EXP_BIAS - N)
    double magic
    double floor  # of x - h: below it, terms are 0


cdef inline Shift shift_to(double m, const floating* of) noexcept nogil:
    """The parameters for summing exponentials of numbers up to m, without m in the inner loop.

    exp(x) is reduced from x itself, which is exact; rounding x - m first costs 32 ulp at x - m = -90. `finish` applies
    the factor exp(-m) to the sum, in double.
    """
    cdef Shift to
    cdef double magic = 6755399441055744.0
    to.m = m
    to.h = 0 if fabs(m) < 8192 else m
    to.power = ((m - to.h) * 1.4426950408889634 + magic) - magic
    if floating is float:
        to.magic = 12582912.0 + (127 + EXP_BIAS_FLOAT) - to.power
        to.floor = (m - to.h) - 156.5  # -(126 + EXP_BIAS_FLOAT) * ln 2, rounded up
    else:
        to.magic = magic + (1023 + EXP_BIAS_DOUBLE) - to.power
        to.floor = (m - to.h) - 1332.0  # -(1022 + EXP_BIAS_DOUBLE) * ln 2, rounded up
    return to


cdef inline floating exp_below(floating v, floating magic, floating floor, floating top,
                               bint some_equal) noexcept nogil:
    """exp(v) * 2**(EXP_BIAS - N), v = x - h; 0 below `floor`, and at v == top if some_equal. Propagates NaN.

    The bias keeps small exponentials out of the subnormal range. float64 splits ln 2 into two constants; float32 uses
    one, of relative error LN2_ERROR, and so computes exp(v * (1 - LN2_ERROR)), which `finish` corrects in the sum. That
    saves 0.2 of 3.3 ns per 16 numbers.
    """
    cdef floating log2e, ln2_hi, ln2_lo, t, n, r, scale
    log2e = 1.4426950408889634
    t = v * log2e + magic
    n = t - magic
    if floating is float:
        r = lsm_reduce_f(v, n)
    else:
        ln2_hi = LN2_HI
        ln2_lo = LN2_LO
        r = (v - n * ln2_hi) - n * ln2_lo
    scale = power_of_two(t)
    r = scale * expm1_reduced(r) + scale
    if some_equal:
        return <floating> 0 if (v < floor) | (v == top) else r
    else:
        return <floating> 0 if v < floor else r


cdef inline double finish(double total, double error, Shift of, bint is_float) noexcept nogil:
    """Turn (total + error) into a sum of exp(x - m): scale it by 2**(N - EXP_BIAS) * exp(h - m). NaN for m = inf."""
    cdef double v = of.m - of.h
    cdef double w = (of.power * LN2_HI - v) + of.power * LN2_LO
    cdef double s, mean
    if is_float:
        w += v * LN2_ERROR
    s = total + (error + total * expm1_reduced(w))
    if is_float:
        s *= EXP_UNBIAS_FLOAT
        # The terms were exp(d * (1 - LN2_ERROR)), d = x - m. The weighted mean of d is log(s) if one class dominates,
        # and at most log(n) away from it: 2**-24.7 of s for 2**20 classes.
        mean = min(lsm_exponent(s) * 0.6931471805599453, <double> 0)
        s += s * (LN2_ERROR * mean)
    else:
        s *= EXP_UNBIAS_DOUBLE
    return s


cdef inline double exp_double(double x) noexcept nogil:
    """exp(x) for x <= 0, by the same polynomial; 0 below -708."""
    cdef double magic = 6755399441055744.0 + 1023.0
    cdef double t = x * 1.4426950408889634 + magic
    cdef double n = t - magic
    cdef double scale = power_of_two(t)
    cdef double r = scale * expm1_reduced((x - n * LN2_HI) - n * LN2_LO) + scale
    return 0 if x < -708 else r


cdef inline double log1p_double(double s) noexcept nogil:
    """log(1 + s) for s >= 0, within 1 ulp; propagates NaN.

    1 + s = u + e = 2**k * f, f = 1 + g, and with r = g / (2 + g): log f = 2 atanh(r). Method and coefficients are those
    of fdlibm's log1p.c. No branch, so that one vector computes what sixteen frames would compute in turn.
    """
    cdef double u, v, e, k, f, g, r, z, half, p
    u = 1 + s
    v = u - 1
    e = (1 - (u - v)) + (s - v)
    k = lsm_split(u, &f)
    g = f - 1
    r = g / (2 + g)
    z = r * r
    half = 0.5 * g * g
    p = 1.479819860511658591e-01
    p = p * z + 1.531383769920937332e-01
    p = p * z + 1.818357216161805012e-01
    p = p * z + 2.222219843214978396e-01
    p = p * z + 2.857142874366239149e-01
    p = p * z + 3.999999999940941908e-01
    p = p * z + 6.666666666666735130e-01
    return k * LN2_HI - ((half - (r * (half + p * z) + (k * LN2_LO + e / u))) - g)


cdef inline bint is_large(floating y) noexcept nogil:
    """Whether exp(y) > 1/2 or y is NaN: true for at most one log-probability of a frame, or for two equal ones."""
    return not (y <= <floating> -0.6931471805599453)


cdef inline bint is_odd(floating y) noexcept nogil:
    """Whether y is NaN, or too large even for a badly rounded log-probability, so that exp(y) may overflow."""
    return not (y <= <floating> 2)


cdef inline floating gradient(floating dy, floating y, floating s_hi, floating s_lo, floating s, floating magic,
                              floating lowest, bint some_large, bint some_low) noexcept nogil:
    """dy - exp(y) * S, as (dy - S) - expm1(y) * S if y > -ln 2. S = s_hi + s_lo; the rest is from `scale_sum`.

    The second form avoids the cancellation in dy - S when exp(y) is near 1; some_large = False compiles it out, for
    when no y is large. exp(y) alone may be subnormal where exp(y) * S is not, so it is scaled by 2**B (part of magic)
    and multiplied by s = S * 2**-B. Below `lowest` the term is exactly 0; some_low = False skips that test. Not for
    is_odd(y).
    """
    cdef floating log2e, ln2_hi, ln2_lo, one, t, n, r, scale, rest, w
    log2e = 1.4426950408889634
    if floating is float:
        ln2_hi = 0.693359375
        ln2_lo = -2.1219444005469058e-4
    else:
        ln2_hi = LN2_HI
        ln2_lo = LN2_LO
    t = y * log2e + magic
    n = t - magic
    r = (y - n * ln2_hi) - n * ln2_lo
    scale = power_of_two(t)
    rest = scale
    if some_large:
        one = power_of_two(magic)
        rest = scale - (one if is_large(y) else <floating> 0)
        dy = (dy - (s_hi if is_large(y) else <floating> 0)) - (s_lo if is_large(y) else <floating> 0)
    w = scale * expm1_reduced(r) + rest
    if some_low:
        w = <floating> 0 if y < lowest else w
    return dy - w * s


cdef inline floating fabs_of(floating x) noexcept nogil:
    if floating is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline floating larger(floating a, floating b) noexcept nogil:
    return a if a > b else b
