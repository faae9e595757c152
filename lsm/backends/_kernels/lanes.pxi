# Sums in virtual lanes.  A class belongs to lane (index modulo 64), whatever the vector length, the axis or
# the thread: the order of every addition stands in the source, so the bits are the same everywhere.
#
# float32 is summed in double.  float64 has no wider type: its lanes carry their rounding errors along.


cdef inline void two_sum(double* total, double* error, double value) noexcept nogil:
    """total + error += value, the rounding error of the sum going to `error` (Knuth's TwoSum)."""
    cdef double t = total[0] + value
    cdef double v = t - total[0]
    error[0] += (total[0] - (t - v)) + (value - v)
    total[0] = t


cdef inline void clear_lanes(double* total, double* error, Py_ssize_t n, const floating* of) noexcept nogil:
    """n sums of what has the type of `of`, set to 0. float32 carries no errors, but they are read at the end."""
    cdef Py_ssize_t k
    for k in range(n):
        total[k] = 0
    if floating is float:
        error[0] = 0
    else:
        for k in range(n):
            error[k] = 0


cdef inline void add_exponentials(double* total, double* error, const floating* p, Py_ssize_t step,
                                  Py_ssize_t n) noexcept nogil:
    """Add four rows of n exponentials, `step` apart, to n lanes: positive, so two float additions cost < 1 ulp."""
    cdef Py_ssize_t k
    cdef double value
    for k in range(n):
        value = <double> ((p[k] + p[k + step]) + (p[k + 2 * step] + p[k + 3 * step]))
        if floating is float:
            total[k] += value
        else:
            two_sum(&total[k], &error[k], value)


cdef inline void add_gradients(double* total, double* error, const floating* a, const floating* b, const floating* c,
                               const floating* d, Py_ssize_t n) noexcept nogil:
    """The same for four rows of gradients, whose signs differ: double from the first addition."""
    cdef Py_ssize_t k
    cdef double value
    for k in range(n):
        value = (<double> a[k] + <double> b[k]) + (<double> c[k] + <double> d[k])
        if floating is float:
            total[k] += value
        else:
            two_sum(&total[k], &error[k], value)


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
    """Fold n_lanes rows of n sums into the first row, by a fixed tree over 64; rows not there count as 0.

    `of` is what was summed: its type says whether errors are carried.
    """
    fold_once(total, error, 32, n_lanes, n, of)  # six constants, so that the compiler can unroll them all
    fold_once(total, error, 16, n_lanes, n, of)
    fold_once(total, error, 8, n_lanes, n, of)
    fold_once(total, error, 4, n_lanes, n, of)
    fold_once(total, error, 2, n_lanes, n, of)
    fold_once(total, error, 1, n_lanes, n, of)


# What a pass over some of a frame's classes has found.
cdef struct Frame:
    double largest    # m
    double below      # sum of exp(x - m) over the classes below m
    double n_largest  # how many classes equal m


cdef inline double shift_sum(double total, double error, double m, double c) noexcept nogil:
    """(total + error) * exp(c - m): sums of exp(x - c) become sums of exp(x - m). |c - m| < 2**-15; NaN for m = inf."""
    cdef double d = c - m
    return total + (error + total * (d + 0.5 * d * d))


cdef inline void merge(Frame* frame, Frame other) noexcept nogil:
    """Bring two parts of a frame to their common maximum and add them up."""
    cdef Frame low
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
    scale = exp(d)
    if d > -2000:  # else e may be NaN, and the part is nothing beside the other
        scale += scale * e
    frame.below += (low.below + low.n_largest) * scale


cdef inline void normaliser(Frame frame, floating* c_hi, floating* c_lo) noexcept nogil:
    """c_hi + c_lo = m + log1p(s): log-softmax is then (x - c_hi) - c_lo, within 1 ulp.

    s leaves one of the largest classes out, and log1p keeps what log(1 + s) would round away
    (Blanchard, Higham & Higham 2021, Algorithm 4.1). x - c_hi is exact wherever c_lo matters.
    """
    cdef double log_sum = log1p(frame.below + (frame.n_largest - 1))
    if floating is float:
        c_hi[0] = lsm_round_to_float(frame.largest + log_sum)
    else:
        c_hi[0] = frame.largest + log_sum
    c_lo[0] = <floating> ((frame.largest - c_hi[0]) + log_sum)


cdef inline bint exceeds(floating y) noexcept nogil:
    """Whether y is NaN, or exp(y) too near the end of the range of its type: the frame becomes NaN."""
    if floating is float:
        return not (y < <float> 88)
    else:
        return not (y < 709)


cdef inline bint scale_sum(double total, double error, floating* s_hi, floating* s_lo, floating* s,
                           floating* magic, floating* lowest) noexcept nogil:
    """What `gradient` needs of S = total + error; False where it would leave the range of its type.

    B, the power of two that exp(y) is made larger by, goes with the exponent of S: s = S * 2**-B is always
    near 2**-GRADIENT_BIAS, so exp(y) * S has all its digits and what is below `lowest` is nothing in the type.
    """
    cdef int bias = lsm_exponent(total)
    if floating is float:
        bias += GRADIENT_BIAS_FLOAT
        s_hi[0] = lsm_round_to_float(total)
        s_lo[0] = <float> ((total - s_hi[0]) + error)
        magic[0] = <float> (12582912 + 127 + bias)
        lowest[0] = <float> (-0.6931471805599453 * (125 + bias))
        s[0] = <float> ((total + error) * lsm_power_of_two_i(-bias))
        return fabs(total) < 2.0**76
    else:
        bias += GRADIENT_BIAS_DOUBLE
        s_hi[0] = total + error
        s_lo[0] = (total - s_hi[0]) + error
        magic[0] = 6755399441055744.0 + 1023.0 + bias
        lowest[0] = -0.6931471805599453 * (1021 + bias)
        s[0] = (total + error) * lsm_power_of_two_i(-bias)
        return fabs(total) < 2.0**848


cdef inline bint is_masked(const floating* y, Py_ssize_t step, Py_ssize_t n) noexcept nogil:
    """Whether every class of the frame is -inf."""
    cdef Py_ssize_t i
    for i in range(n):
        if y[i * step] != -INFINITY:
            return False
    return True


cdef void careful_backward_frame(const floating* dy, Py_ssize_t step_dy, const floating* y, Py_ssize_t step_y,
                                 floating* dx, Py_ssize_t step_dx, Py_ssize_t n) noexcept nogil:
    """The gradient of a frame that is masked throughout, or whose sum is enormous, infinite or NaN.

    That is rare: one class at a time, in double. The sum is taken of dy * 2**-40, which no n <= 2**40
    finite terms can overflow.
    """
    cdef double total = 0, error = 0, small, s, half
    cdef Py_ssize_t i
    cdef bint is_bad = is_masked(y, step_y, n)
    for i in range(n):
        two_sum(&total, &error, dy[i * step_dy] * 2.0**-40)
        is_bad |= exceeds(y[i * step_y])
    s = total + error
    is_bad |= not (fabs(s) < INFINITY)
    for i in range(n):
        small = dy[i * step_dy] * 2.0**-40
        if is_bad:
            dx[i * step_dx] = NAN
        elif y[i * step_y] == -INFINITY:
            dx[i * step_dx] = dy[i * step_dy]
        elif y[i * step_y] > -0.6931471805599453:
            dx[i * step_dx] = <floating> (((small - s) - expm1(y[i * step_y]) * s) * 2.0**40)
        else:
            half = exp(0.5 * y[i * step_y])  # twice, since exp(y) alone may be 0 where exp(y) * s is not
            half = half * s * half
            if fabs(half) < 2.0**900:  # else the term may leave the range where the difference does not
                dx[i * step_dx] = <floating> (dy[i * step_dy] - half * 2.0**40)
            else:
                dx[i * step_dx] = <floating> ((small - half) * 2.0**40)
