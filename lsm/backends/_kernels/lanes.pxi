# Sums in virtual lanes. A class belongs to lane (index mod 16), whatever the vector length, axis or thread. The source
# fixes the order of every addition, so the bits are the same everywhere.
#
# A block has 256 classes, as four rows of 64. The four rows are added first; of the 64 sums, each lane has four.
# float32 is summed in double. float64 has no wider type, so its lanes carry their rounding errors.


cdef inline void two_sum(double* total, double* error, double value) noexcept nogil:
    """total + error += value, with the rounding error added to `error` (Knuth's TwoSum)."""
    cdef double t = total[0] + value
    cdef double v = t - total[0]
    error[0] += (total[0] - (t - v)) + (value - v)
    total[0] = t


cdef inline void in_double(const floating* x, double* to) noexcept nogil:
    """A chunk in double."""
    cdef Py_ssize_t k
    if floating is float:
        lsm_widen(to, x)
    else:
        for k in range(CHUNK):
            to[k] = x[k]


cdef inline void clear_lanes(double* total, double* error, Py_ssize_t n, const floating* of) noexcept nogil:
    """Clear n lanes; `of` gives the type that is summed. float32 carries no errors, but error[0] is read at the end."""
    cdef Py_ssize_t k
    for k in range(n):
        total[k] = 0
    if floating is float:
        error[0] = 0
    else:
        for k in range(n):
            error[k] = 0


cdef inline floating tree(const floating* p, Py_ssize_t n, Py_ssize_t n_groups) noexcept nogil:
    """(p[0] + p[n]) + (p[2 n] + p[3 n]), truncated to n_groups terms."""
    if n_groups == 1:
        return p[0]
    if n_groups == 2:
        return p[0] + p[n]
    if n_groups == 3:
        return (p[0] + p[n]) + p[2 * n]
    return (p[0] + p[n]) + (p[2 * n] + p[3 * n])


cdef inline void add_groups(double* total, double* error, const floating* p, Py_ssize_t n, Py_ssize_t n_groups,
                            bint in_double) noexcept nogil:
    """Add n_groups groups of n sums to n lanes; in_double: the lanes carry their errors."""
    cdef Py_ssize_t k, g
    if in_double:
        for g in range(n_groups):
            for k in range(n):
                two_sum(&total[k], &error[k], p[g * n + k])
    else:
        for k in range(n):  # hot
            total[k] += <double> tree(&p[k], n, n_groups)


cdef inline void set_lanes(double* total, const floating* p, Py_ssize_t n, Py_ssize_t n_groups) noexcept nogil:
    """add_groups for float32 lanes that are still 0."""
    cdef Py_ssize_t k
    for k in range(n):  # hot
        total[k] = <double> tree(&p[k], n, n_groups)


cdef inline void add_or_set(bint is_first, double* total, double* error, const floating* p, Py_ssize_t n,
                            Py_ssize_t n_groups, bint in_double) noexcept nogil:
    """set_lanes for the first addition in float32, otherwise add_groups: float64 must track its errors."""
    if is_first and not in_double:
        set_lanes(total, p, n, n_groups)
    else:
        add_groups(total, error, p, n, n_groups, in_double)


cdef inline void add_to_lanes(bint is_first, double* total, double* error, const floating* p, Py_ssize_t n,
                              Py_ssize_t n_groups, bint in_double) noexcept nogil:
    """add_groups with n_groups a compile-time constant. The terms are positive, so float32 loses < 1.5 ulp here.

    is_first: the lanes are still 0; those of float32 need not even be cleared.
    """
    if n_groups == 4:
        add_or_set(is_first, total, error, p, n, 4, in_double)
    elif n_groups == 3:
        add_or_set(is_first, total, error, p, n, 3, in_double)
    elif n_groups == 2:
        add_or_set(is_first, total, error, p, n, 2, in_double)
    else:
        add_or_set(is_first, total, error, p, n, 1, in_double)


cdef inline void fold_once(double* total, double* error, Py_ssize_t w, Py_ssize_t n_lanes, Py_ssize_t n,
                           const floating* of) noexcept nogil:
    """Add rows w to 2 w - 1 of n sums to rows 0 to w - 1."""
    cdef Py_ssize_t k
    for k in range(max(min(w, n_lanes - w), 0) * n):
        if floating is float:
            total[k] += total[k + w * n]
        else:
            two_sum(&total[k], &error[k], total[k + w * n])
            error[k] += error[k + w * n]


cdef inline void fold_lanes(double* total, double* error, Py_ssize_t n_lanes, Py_ssize_t n,
                            const floating* of) noexcept nogil:
    """Reduce n_lanes rows of n sums to the first row, by a fixed tree over 16; missing rows count as 0.

    The type of `of` says whether errors are carried.
    """
    fold_once(total, error, 8, n_lanes, n, of)  # four constants, so that the compiler unrolls them
    fold_once(total, error, 4, n_lanes, n, of)
    fold_once(total, error, 2, n_lanes, n, of)
    fold_once(total, error, 1, n_lanes, n, of)


# The partial result of a reduction over some of a frame's classes.
cdef struct Partial:
    double largest    # m
    double below      # sum of exp(x - m) over the classes below m
    double n_largest  # number of classes equal to m


cdef inline void merge(Partial* frame, Partial other) noexcept nogil:
    """Combine two partial results of a frame: rescale them to their common maximum and add."""
    cdef Partial low
    cdef double d, v, e, scale
    if other.largest > frame.largest:
        low = frame[0]
        frame[0] = other
    else:
        low = other
    if low.largest == frame.largest:
        frame.below += low.below
        frame.n_largest += low.n_largest
        return
    d = low.largest - frame.largest
    v = d - low.largest
    e = (low.largest - (d - v)) - (frame.largest + v)
    scale = exp_double(d)
    if d > -2000:  # otherwise e may be NaN, and the smaller part is negligible
        scale += scale * e
    frame.below += (low.below + low.n_largest) * scale


cdef inline void normaliser(Partial frame, floating* c_hi, floating* c_lo) noexcept nogil:
    """c_hi + c_lo = m + log1p(s), so that log-softmax is (x - c_hi) - c_lo, within 1 ulp.

    s omits one of the largest classes; log1p keeps the digits that log(1 + s) would round away (Blanchard, Higham &
    Higham 2021, Algorithm 4.1). x - c_hi is exact wherever c_lo matters.
    """
    cdef double log_sum = log1p_double(frame.below + (frame.n_largest - 1))
    cdef double c = frame.largest + log_sum
    if floating is float:
        c = lsm_round_to_float(c)
    c_hi[0] = <floating> c
    c_lo[0] = <floating> ((frame.largest - c) + log_sum)


cdef inline bint exceeds(floating y) noexcept nogil:
    """Whether y is NaN, or exp(y) about to overflow its type: the frame then becomes NaN."""
    if floating is float:
        return not (y < <float> 88)
    else:
        return not (y < 709)


# The parameters of `gradient` that depend on S.
cdef struct Scaled:
    double s_hi, s_lo  # S
    double s           # S * 2**-B
    double magic
    double lowest      # exp(y) * S is negligible for y below


cdef inline bint scale_sum(double total, double error, Scaled* to, bint is_float) noexcept nogil:
    """Derive the parameters from S = total + error; False if S is too large for `gradient`.

    The scale 2**B of exp(y) follows the exponent of S: s = S * 2**-B is always near 2**-GRADIENT_BIAS, so exp(y) * S
    has full precision, and terms below `lowest` are negligible.
    """
    cdef double sum = total
    cdef int bias
    if lsm_exponent(total + error) != lsm_exponent(total):  # total has cancelled: error holds the leading digits
        total = 0
        two_sum(&sum, &total, error)
        error = total
        total = sum
    bias = lsm_exponent(total)
    if is_float:
        to.s_hi = lsm_round_to_float(total)
        to.s_lo = (total - to.s_hi) + error
        bias = max(lsm_exponent(to.s_hi), -126) + GRADIENT_BIAS_FLOAT  # as lsm_exponent_f
        to.magic = 12582912 + 127 + bias
        to.lowest = -0.6931471805599453 * (125 + bias)
        to.s = (total + error) * lsm_power_of_two_i(-bias)
        return fabs(total) < 2.0**76
    else:
        bias += GRADIENT_BIAS_DOUBLE
        to.s_hi = total + error
        to.s_lo = (total - to.s_hi) + error
        to.magic = 6755399441055744.0 + 1023.0 + bias
        to.lowest = -0.6931471805599453 * (1021 + bias)
        to.s = (total + error) * lsm_power_of_two_i(-bias)
        return fabs(total) < 2.0**848
