# From maxima and sums to the parameters of frames, as vectors along the frames: 10 ns a frame, where a single frame
# takes 100. First the reductions of a group of sixteen frames, then the parameters of any number.


cdef inline void end_maxima(const floating* half, Py_ssize_t n, floating* m) noexcept nogil:
    """The maximum of eight numbers, for each of n frames, a multiple of GROUP_FRAMES."""
    cdef Py_ssize_t f
    for f from 0 <= f < n by GROUP_FRAMES:
        if floating is float:
            lsm_fold_max_f(&m[f], &half[8 * f])
        else:
            lsm_fold_max_d(&m[f], &half[8 * f])


cdef inline void half_lanes(const double* total, const double* error, double* half, double* half_error,
                            const floating* of) noexcept nogil:
    """The first step of fold_lanes, for one frame."""
    cdef Py_ssize_t k
    for k in range(8):
        half[k] = total[k]
        if floating is float:
            half[k] += total[k + 8]
        else:
            half_error[k] = error[k]
            two_sum(&half[k], &half_error[k], total[k + 8])
            half_error[k] += error[k + 8]


cdef inline void end_sums(const double* half, const double* half_error, Py_ssize_t n, double* total, double* error,
                          const floating* of) noexcept nogil:
    """The remaining steps of fold_lanes: n sums, a multiple of GROUP_FRAMES, and their errors for double.

    total, error: of n + 7 * GROUP_FRAMES numbers, of which the last are used on the way.
    """
    cdef Py_ssize_t f
    for f from 0 <= f < n by GROUP_FRAMES:
        if floating is float:
            lsm_fold_sum(&total[f], &half[8 * f])
        else:
            lsm_transpose(&total[f], &half[8 * f])
            lsm_transpose(&error[f], &half_error[8 * f])
            fold_lanes(&total[f], &error[f], 8, GROUP_FRAMES, of)


cdef inline bint is_one_each(const floating* n_equal, const floating* m, Py_ssize_t n_frames) noexcept nogil:
    """Whether each maximum is finite and occurs once; n_equal counts the occurrences in all frames together."""
    cdef floating n_found = 0
    cdef bint all_finite = True
    cdef Py_ssize_t k
    for k in range(N_LANES):
        n_found += n_equal[k]
    for k in range(n_frames):
        all_finite &= fabs(m[k]) < INFINITY
    return all_finite and n_found == n_frames


cdef inline Shift shift_of(floating m) noexcept nogil:
    return shift_to(m if m > -INFINITY else <floating> 0, &m)  # all classes may be -inf


cdef inline void shift_frames(const floating* m, Py_ssize_t n, floating* params) noexcept nogil:
    """The parameters of exp_below for n frames."""
    cdef Py_ssize_t j
    cdef Shift shift
    for j in range(n):  # hot
        shift = shift_of(m[j])
        params[j] = <floating> shift.h
        params[MAX_WIDTH + j] = <floating> (shift.m - shift.h)
        params[2 * MAX_WIDTH + j] = <floating> shift.magic
        params[3 * MAX_WIDTH + j] = <floating> shift.floor


cdef inline Partial partial_of(int op, bint few, double total, double error, floating m,
                               floating n_equal) noexcept nogil:
    """The reduction of a frame or a part of it. Sums of terms are in `largest`, with their errors in `below`."""
    cdef Partial s
    s.largest = m
    s.n_largest = n_equal
    if not sums_exponentials(op):
        s.largest = total
        s.below = error
    elif few:
        s.below = (total + error) * unbias(&m)
    else:
        s.below = finish(total, error, shift_of(m), floating is float)
    return s


cdef inline bint end_frames(int op, bint few, const double* total, const double* error, const floating* m,
                            const floating* n_equal, Py_ssize_t n, floating* params) noexcept nogil:
    """The parameters of n frames; False if the epilogue does not apply to one of them."""
    cdef Py_ssize_t j
    cdef int n_regular = 0
    for j in range(n):  # hot
        n_regular += finalize(op, few, partial_of(op, few, total[j], <double> 0 if floating is float else error[j],
                                                  m[j], n_equal[j]), &params[j])
    return n_regular == n


cdef inline void keep_normaliser(int op, bint few, Partial s, const floating* of) noexcept nogil:
    """Leave c_hi and c_lo of log_softmax beside a softmax, if this thread asked for them: see labels.pxi."""
    cdef floating params[MAX_WIDTH + 1]
    cdef floating* to = <floating*> lsm_kept()
    if op == SOFTMAX and to != NULL:
        finalize_log_softmax(few, s, params)
        to[0] = params[0]
        to[1] = params[MAX_WIDTH]
        lsm_keep_normalisers(to + 2)


cdef inline void keep_normalisers(int op, bint few, const double* total, const double* error, const floating* m,
                                  const floating* n_equal, Py_ssize_t n) noexcept nogil:
    """keep_normaliser for n frames."""
    cdef Py_ssize_t j
    for j in range(n if op == SOFTMAX and lsm_kept() != NULL else 0):
        keep_normaliser(op, few, partial_of(op, few, total[j], <double> 0 if floating is float else error[j], m[j],
                                            n_equal[j]), m)


cdef inline void add_part(int op, Partial* to, Partial part, bint is_first) noexcept nogil:
    """Combine the reductions of two parts of a frame."""
    if is_first:
        to[0] = part
    elif sums_exponentials(op):
        merge(to, part)
    else:
        two_sum(&to.largest, &to.below, part.largest)
        to.below += part.below
