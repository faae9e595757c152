# The properties of an operation that a traversal needs: up to two reductions over the classes of a frame, the
# parameters that follow from them, and the result of each class. `op` is a compile-time constant in every call, so that
# the compiler keeps one branch of each function here.
#
# The inputs are a, which is x or dy, and b, the result of the forward operation; with one input, b is a.

cdef enum Op:
    LOG_SOFTMAX
    LOG_SOFTMAX_BACKWARD
    SOFTMAX
    SOFTMAX_BACKWARD
    LOGSUMEXP


cdef inline bint reads_two(int op) noexcept nogil:
    return op == LOG_SOFTMAX_BACKWARD or op == SOFTMAX_BACKWARD


cdef inline bint sums_exponentials(int op) noexcept nogil:
    """Whether the reductions are the maximum of a and the sum of exp(a - max); otherwise there is a sum of terms."""
    return op == LOG_SOFTMAX or op == SOFTMAX or op == LOGSUMEXP


cdef inline bint reduces_max(int op) noexcept nogil:
    return sums_exponentials(op) or finds_largest(op)


cdef inline bint finds_largest(int op) noexcept nogil:
    """Whether `add_term` needs the a of the class with the largest b, which becomes the first parameter."""
    return op == SOFTMAX_BACKWARD


cdef inline bint limits_range(int op) noexcept nogil:
    """Whether b must be in the range of log-probabilities, and not -inf throughout."""
    return op == LOG_SOFTMAX_BACKWARD


cdef inline bint has_pipeline(int op) noexcept nogil:
    """Whether long rows have kernels of their own: rows.pxi and rows_backward.pxi."""
    return op == LOG_SOFTMAX or op == LOG_SOFTMAX_BACKWARD


cdef inline bint writes_elements(int op) noexcept nogil:
    """Whether each class has a result; otherwise the frame has one, its first parameter."""
    return op != LOGSUMEXP


cdef inline bint multiplies(int op) noexcept nogil:
    """Whether a term of the sum is a product, so that adding it is one FMA; otherwise it is a."""
    return op == SOFTMAX_BACKWARD


cdef inline double add_term(int op, double total, double a, double b, double p) noexcept nogil:
    """The total and a term of the sum; p is the first parameter of the frame."""
    if op == SOFTMAX_BACKWARD:
        return add_term_softmax_backward(total, a, b, p)
    return total + a


cdef inline bint finalize(int op, bint few, Partial s, floating* p) noexcept nogil:
    """The parameters of a frame, MAX_WIDTH apart, from its reductions; False if `epilogue` does not hold for it."""
    if op == LOG_SOFTMAX:
        return finalize_log_softmax(few, s, p)
    if op == SOFTMAX:
        return finalize_softmax(s, p)
    if op == SOFTMAX_BACKWARD:
        return finalize_softmax_backward(s, p)
    if op == LOGSUMEXP:
        return finalize_logsumexp(s, p)
    return finalize_log_softmax_backward(few, s, p)


cdef inline floating epilogue(int op, floating a, floating b, floating p0, floating p1, floating p2, floating p3,
                              floating p4, bint some_large, bint some_low) noexcept nogil:
    """The result of a class, from the parameters of its frame.

    some_large, some_low: False if no b is above -ln 2, or so low that p4 matters.
    """
    if op == LOG_SOFTMAX:
        return (a - p0) - p1
    if op == SOFTMAX:
        return epilogue_softmax(a, p0, p1)
    if op == SOFTMAX_BACKWARD:
        return epilogue_softmax_backward(a, b, p0, p1)
    return gradient(a, b, p0, p1, p2, p3, p4, some_large, some_low)


# The reductions are compiled once for all operations that sum exponentials, and once for each other sum.


cdef void reduce_max(int op, Array a, Array b, Shape s, Py_ssize_t first, Py_ssize_t last, floating* buffer,
                     bint is_dense, floating* m, floating* m_dy) noexcept nogil:
    """find_max with `op` a constant."""
    if sums_exponentials(op):
        find_max(LOG_SOFTMAX, a, b, s, first, last, buffer, is_dense, m, m_dy)
    else:
        find_max(SOFTMAX_BACKWARD, a, b, s, first, last, buffer, is_dense, m, m_dy)


cdef void reduce_sum(int op, Array a, Array b, Shape s, Py_ssize_t first, Py_ssize_t last, const floating* params,
                     floating* buffer, double* total, double* error, floating* n_equal) noexcept nogil:
    """sum_slice with `op` a constant."""
    if sums_exponentials(op):
        sum_slice(LOG_SOFTMAX, a, b, s, first, last, params, buffer, total, error, n_equal)
    elif op == SOFTMAX_BACKWARD:
        sum_slice(SOFTMAX_BACKWARD, a, b, s, first, last, params, buffer, total, error, n_equal)
    else:
        sum_slice(LOG_SOFTMAX_BACKWARD, a, b, s, first, last, params, buffer, total, error, n_equal)


cdef void reduce_few(int op, Array a, Array b, Shape s, const floating* params, const floating* m, double* total,
                     double* error, floating* n_equal) noexcept nogil:
    """sum_few with `op` a constant."""
    if sums_exponentials(op):
        sum_few(LOG_SOFTMAX, a, b, s, params, m, total, error, n_equal)
    elif op == SOFTMAX_BACKWARD:
        sum_few(SOFTMAX_BACKWARD, a, b, s, params, m, total, error, n_equal)
    else:
        sum_few(LOG_SOFTMAX_BACKWARD, a, b, s, params, m, total, error, n_equal)


cdef floating reduce_short_rows(int op, bint few, const RowGroup* a, const RowGroup* b, Py_ssize_t n_tail,
                                Py_ssize_t n_frames, const char* y, Py_ssize_t gap, floating* params, floating* m,
                                double* half, double* half_error, floating* n_equal) noexcept nogil:
    """reduce_short_of with `op` and `few` as constants."""
    if sums_exponentials(op) and few:
        return reduce_short_of(LOG_SOFTMAX, True, a[0], b[0], n_tail, n_frames, y, gap, params, m, half, half_error,
                               n_equal)
    if sums_exponentials(op):
        return reduce_short_of(LOG_SOFTMAX, False, a[0], b[0], n_tail, n_frames, y, gap, params, m, half, half_error,
                               n_equal)
    if op == SOFTMAX_BACKWARD and few:
        return reduce_short_of(SOFTMAX_BACKWARD, True, a[0], b[0], n_tail, n_frames, y, gap, params, m, half,
                               half_error, n_equal)
    if op == SOFTMAX_BACKWARD:
        return reduce_short_of(SOFTMAX_BACKWARD, False, a[0], b[0], n_tail, n_frames, y, gap, params, m, half,
                               half_error, n_equal)
    if few:
        return reduce_short_of(LOG_SOFTMAX_BACKWARD, True, a[0], b[0], n_tail, n_frames, y, gap, params, m, half,
                               half_error, n_equal)
    return reduce_short_of(LOG_SOFTMAX_BACKWARD, False, a[0], b[0], n_tail, n_frames, y, gap, params, m, half,
                           half_error, n_equal)


cdef void reduce_max_of_row(int op, const floating* a, const floating* b, const floating* last_a,
                            const floating* last_b, Py_ssize_t n, floating* high, floating* highest_dy,
                            floating* peaks) noexcept nogil:
    """find_max_of_row with `op` a constant."""
    if sums_exponentials(op):
        find_max_of_row(LOG_SOFTMAX, a, b, last_a, last_b, n, high, highest_dy, peaks)
    else:
        find_max_of_row(SOFTMAX_BACKWARD, a, b, last_a, last_b, n, high, highest_dy, peaks)


cdef void reduce_row(int op, const floating* a, const floating* b, const floating* last_a,
                     const floating* last_b, Py_ssize_t n, const floating* params, double* total, double* error,
                     floating* n_equal, floating m, const floating* peaks, const char* next_a,
                     const char* y) noexcept nogil:
    """sum_of_row with `op` a constant."""
    if sums_exponentials(op):
        sum_of_row(LOG_SOFTMAX, a, b, last_a, last_b, n, params, total, error, n_equal, m, peaks, next_a, y)
    elif op == SOFTMAX_BACKWARD:
        sum_of_row(SOFTMAX_BACKWARD, a, b, last_a, last_b, n, params, total, error, n_equal, m, peaks, next_a, y)
    else:
        # The terms are a, and last_b is not filled up.
        sum_of_row(LOG_SOFTMAX_BACKWARD, a, a, last_a, last_a, n, params, total, error, n_equal, m, peaks, next_a, y)


cdef void run_block(int op, Array a, Array b, Array y, Shape s, Array next_a, Array next_b, Array next_y,
                    bint stream, floating* buffer) noexcept nogil:
    """run_shape with `op` as a compile-time constant."""
    if op == LOG_SOFTMAX:
        run_shape(LOG_SOFTMAX, a, b, y, s, next_a, next_b, next_y, stream, buffer)
    elif op == SOFTMAX:
        run_shape(SOFTMAX, a, b, y, s, next_a, next_b, next_y, stream, buffer)
    elif op == SOFTMAX_BACKWARD:
        run_shape(SOFTMAX_BACKWARD, a, b, y, s, next_a, next_b, next_y, stream, buffer)
    elif op == LOGSUMEXP:
        run_shape(LOGSUMEXP, a, b, y, s, next_a, next_b, next_y, stream, buffer)
    else:
        run_shape(LOG_SOFTMAX_BACKWARD, a, b, y, s, next_a, next_b, next_y, stream, buffer)


cdef void run_group(int op, Array a, Array b, Array y, Py_ssize_t i, Py_ssize_t first, Py_ssize_t n_frames,
                    Py_ssize_t n, bint far, bint stream, floating* scratch) noexcept nogil:
    """run_group_of_shape with `op` as a compile-time constant."""
    if op == LOG_SOFTMAX:
        run_group_of_shape(LOG_SOFTMAX, a, b, y, i, first, n_frames, n, far, stream, scratch)
    elif op == SOFTMAX:
        run_group_of_shape(SOFTMAX, a, b, y, i, first, n_frames, n, far, stream, scratch)
    elif op == SOFTMAX_BACKWARD:
        run_group_of_shape(SOFTMAX_BACKWARD, a, b, y, i, first, n_frames, n, far, stream, scratch)
    elif op == LOGSUMEXP:
        run_group_of_shape(LOGSUMEXP, a, b, y, i, first, n_frames, n, far, stream, scratch)
    else:
        run_group_of_shape(LOG_SOFTMAX_BACKWARD, a, b, y, i, first, n_frames, n, far, stream, scratch)


cdef void run_long(int op, Vector a, Vector b, Vector y, Py_ssize_t n, bint stream, floating* scratch,
                   Py_ssize_t n_bytes, int n_threads) noexcept nogil:
    """run_long_frame with `op` as a compile-time constant."""
    if op == LOG_SOFTMAX:
        run_long_frame(LOG_SOFTMAX, a, b, y, n, stream, scratch, n_bytes, n_threads)
    elif op == SOFTMAX:
        run_long_frame(SOFTMAX, a, b, y, n, stream, scratch, n_bytes, n_threads)
    elif op == SOFTMAX_BACKWARD:
        run_long_frame(SOFTMAX_BACKWARD, a, b, y, n, stream, scratch, n_bytes, n_threads)
    elif op == LOGSUMEXP:
        run_long_frame(LOGSUMEXP, a, b, y, n, stream, scratch, n_bytes, n_threads)
    else:
        run_long_frame(LOG_SOFTMAX_BACKWARD, a, b, y, n, stream, scratch, n_bytes, n_threads)
