# Rare cases: frames that are -inf throughout, and sums out of the range of their type.


cdef bint is_masked(Vector y, Py_ssize_t n, const floating* of) noexcept nogil:
    """Whether every class of the frame is -inf."""
    cdef floating buffer[1]
    cdef Py_ssize_t i
    for i in range(n):
        if load(y, i, 1, buffer)[0] != -INFINITY:
            return False
    return True


cdef void fill_nan(Vector dx, Py_ssize_t n, const floating* of) noexcept nogil:
    cdef floating p[BLOCK_CLASSES]
    cdef Py_ssize_t part, i, k
    for k in range(BLOCK_CLASSES):
        p[k] = NAN
    for part in range(count_blocks(n)):
        i = part * BLOCK_CLASSES
        write(dx, i, min(<Py_ssize_t> BLOCK_CLASSES, n - i), p, False)


cdef inline floating careful_gradient(floating dy, floating y, double s) noexcept nogil:
    """dy - exp(y) * S in double, s = S * 2**-40."""
    cdef double small = dy * 2.0**-40, half
    if y == -INFINITY:
        return dy
    if y > -0.6931471805599453:
        return <floating> (((small - s) - expm1(y) * s) * 2.0**40)
    half = exp(0.5 * y)  # applied twice: exp(y) alone may underflow where exp(y) * s does not
    half = half * s * half
    if fabs(half) < 2.0**900:  # otherwise the term may overflow where the difference does not
        return <floating> (dy - half * 2.0**40)
    return <floating> ((small - half) * 2.0**40)


cdef inline floating gradient_of_any(floating dy, floating y, floating s_hi, floating s_lo, floating s, floating magic,
                                     floating lowest) noexcept nogil:
    """`gradient` for any y."""
    if y > 2:
        return careful_gradient(dy, y, (<double> s_hi + s_lo) * 2.0**-40)
    return gradient(dy, y, s_hi, s_lo, s, magic, lowest, True, True)


cdef inline bint some_odd(const floating* y, Py_ssize_t n) noexcept nogil:
    """Whether is_odd is true for any of n numbers."""
    cdef int n_odd = 0
    cdef Py_ssize_t k
    for k in range(n):  # hot
        n_odd += is_odd(y[k])
    return n_odd > 0


# S over the classes of a slice, and the counts on which the gradient depends; for a frame, the sums of these.
cdef struct GradientPartial:
    double total     # S = total + error
    double error
    double scaled    # S * 2**-40, of use where S is out of range
    double n_bad     # number of y that are out of range
    double n_finite  # number of y that are not -inf
    double n         # number of classes


cdef void add_slice_of_gradient(GradientPartial* frame, GradientPartial part, double* error) noexcept nogil:
    """The next slice; `error` is that of `scaled`."""
    two_sum(&frame.total, &frame.error, part.total)
    frame.error += part.error
    two_sum(&frame.scaled, error, part.scaled)
    frame.n_bad += part.n_bad
    frame.n_finite += part.n_finite
    frame.n += part.n


cdef GradientPartial reduce_gradient(Vector dy, Vector y, Py_ssize_t n, const floating* of) noexcept nogil:
    """The partial of n classes, SLICE_CLASSES at most: S as log_softmax_backward_rows adds it up."""
    cdef floating buffer[BLOCK_CLASSES]
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef const floating* source
    cdef Vector block
    cdef Scaled none
    cdef double rest = 0
    cdef Py_ssize_t i, k, n_block, n_bad = 0, n_finite = 0
    cdef GradientPartial found
    scale_sum(0, 0, &none, floating is float)
    clear_lanes(total, error, N_LANES, of)
    for i from 0 <= i < n by BLOCK_CLASSES:
        n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
        block = native(<floating*> load(dy, i, n_block, buffer))
        pass_two(&block, n_block, total, error, &block, &block, &block, 0, none, False, False, of)
        source = load(y, i, n_block, buffer)
        for k in range(n_block):
            n_bad += exceeds(source[k])
            n_finite += source[k] != -INFINITY
    fold_lanes(total, error, N_LANES, 1, of)
    found.total = total[0]
    found.error = error[0]
    found.scaled = total[0] * 2.0**-40 + error[0] * 2.0**-40
    found.n_bad = n_bad
    found.n_finite = n_finite
    found.n = n
    if not fabs(found.scaled) < INFINITY:  # S, or a part of it, overflows; for n <= 2**40 finite terms this cannot
        found.scaled = 0
        for i from 0 <= i < n by BLOCK_CLASSES:
            n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
            source = load(dy, i, n_block, buffer)
            for k in range(n_block):
                two_sum(&found.scaled, &rest, source[k] * 2.0**-40)
        found.scaled += rest
    return found


cdef void careful_backward_slice(Vector dy, Vector y, Vector dx, Py_ssize_t n, GradientPartial whole,
                                 const floating* of) noexcept nogil:
    """The gradient of n classes of a frame whose S is out of range, one at a time in double, or NaN."""
    cdef floating buffer[BLOCK_CLASSES]
    cdef floating buffer_y[BLOCK_CLASSES]
    cdef floating p[BLOCK_CLASSES]
    cdef const floating* source
    cdef const floating* source_y
    cdef Py_ssize_t i, k, n_block
    if whole.n_bad or not whole.n_finite or not (fabs(whole.scaled) < INFINITY):
        fill_nan(dx, n, of)
        return
    for i from 0 <= i < n by BLOCK_CLASSES:
        n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
        source = load(dy, i, n_block, buffer)
        source_y = load(y, i, n_block, buffer_y)
        for k in range(n_block):
            p[k] = careful_gradient(source[k], source_y[k], whole.scaled)
        write(dx, i, n_block, p, False)


cdef void careful_backward_frame(Vector dy, Vector y, Vector dx, Py_ssize_t n, const floating* of) noexcept nogil:
    """The gradient of a frame that is -inf throughout, or whose sum is huge, infinite or NaN."""
    cdef GradientPartial whole
    cdef double error = 0
    cdef Py_ssize_t start
    whole.total = whole.error = whole.scaled = whole.n_bad = whole.n_finite = whole.n = 0
    for start from 0 <= start < n by SLICE_CLASSES:
        add_slice_of_gradient(&whole, reduce_gradient(frame_at(part_at(dy, start), 0, 0),
                                                      frame_at(part_at(y, start), 0, 0),
                                                      min(<Py_ssize_t> SLICE_CLASSES, n - start), of), &error)
    whole.scaled += error
    careful_backward_slice(dy, y, dx, n, whole, of)


cdef void write_irregular_frame(Vector dy, Vector y, Vector dx, Py_ssize_t n, const floating* params) noexcept nogil:
    """The gradient of one frame of a block, some of whose frames may not be regular.

    params: those of the frame, MAX_WIDTH apart; the first is NaN if the sum is out of range.
    """
    cdef floating buffer[BLOCK_CLASSES]
    cdef floating buffer_y[BLOCK_CLASSES]
    cdef floating p[BLOCK_CLASSES]
    cdef const floating* source
    cdef const floating* source_y
    cdef Py_ssize_t i, k, n_block, n_bad = 0
    if params[0] != params[0] or is_masked(y, n, params):
        careful_backward_frame(dy, y, dx, n, params)
        return
    for i from 0 <= i < n by BLOCK_CLASSES:
        n_block = min(<Py_ssize_t> BLOCK_CLASSES, n - i)
        source = load(dy, i, n_block, buffer)
        source_y = load(y, i, n_block, buffer_y)
        for k in range(n_block):
            n_bad += exceeds(source_y[k])
            p[k] = gradient_of_any(source[k], source_y[k], params[0], params[MAX_WIDTH], params[2 * MAX_WIDTH],
                                   params[3 * MAX_WIDTH], params[4 * MAX_WIDTH])
        write(dx, i, n_block, p, False)
    if n_bad:
        fill_nan(dx, n, params)
