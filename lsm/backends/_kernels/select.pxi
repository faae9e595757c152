# Some classes of a log-softmax, for small arrays as in fastpath.pxi: given ones, the largest, and losses of labels. The
# results are those of lsm._select and lsm._losses, bit by bit.

cdef enum:
    SELECT_MAX_ELEMENTS = 32768  # up to here a log-softmax of all classes stays in a cache
    TOP_MAX_K = 32               # sorted by insertion
    LOSS_MAX_FRAMES = 1024       # whose sum is rounded once: a block of lsm._reduce.total

from math import fsum as _fsum

from numpy import expm1 as _expm1


cdef inline Py_ssize_t place_of(Frames f, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    """Where class k of frame i is."""
    return (i // f.n_inner * f.n + k) * f.n_inner + i % f.n_inner


cdef inline void move_number(char* to, Py_ssize_t i, const char* source, Py_ssize_t k, Py_ssize_t size) noexcept nogil:
    if size == 4:
        (<uint32_t*> to)[i] = (<const uint32_t*> source)[k]
    elif size == 8:
        (<uint64_t*> to)[i] = (<const uint64_t*> source)[k]
    else:
        (<uint16_t*> to)[i] = (<const uint16_t*> source)[k]


cdef bint find_small_frames(object x, object axis, Frames* f, npy_intp* dims) noexcept:
    """The frames of a small array, and the shape of x without the classes."""
    cdef int n_dims, i, n = 0, at
    if not find_frames(x, axis, f) or count_elements(f[0]) > SELECT_MAX_ELEMENTS:
        return False
    n_dims = PyArray_NDIM(<PyArrayObject*> x)
    if n_dims > 32:
        return False
    at = axis if axis >= 0 else axis + n_dims
    for i in range(n_dims):
        if i != at:
            dims[n] = PyArray_DIMS(<PyArrayObject*> x)[i]
            n += 1
    return True


cdef bint are_labels(object labels, int n_dims, const npy_intp* dims, Frames f) noexcept:
    """Whether this is a C-contiguous array of int64 with these dimensions, of numbers of classes."""
    cdef const int64_t* label
    cdef Py_ssize_t i
    if not (PyArray_CheckExact(labels) and PyArray_ISCARRAY_RO(<PyArrayObject*> labels)
            and PyArray_DESCR(<PyArrayObject*> labels).type == c"l" and sizeof(long) == 8
            and has_dims(labels, n_dims, dims)):
        return False
    label = <const int64_t*> PyArray_BYTES(<PyArrayObject*> labels)
    for i in range(f.n_outer * f.n_inner):
        if not 0 <= label[i] < f.n:
            return False
    return True


cdef object quick_take(x, labels, axis):
    """take_log_softmax at one class of each frame, or None."""
    cdef npy_intp dims[32]
    cdef Frames f
    cdef const int64_t* label
    cdef Py_ssize_t i
    cdef int n
    if not find_small_frames(x, axis, &f, dims):
        return None
    n = PyArray_NDIM(<PyArrayObject*> x) - 1
    if not are_labels(labels, n, dims, f):
        return None
    y = quick_map(LOG_SOFTMAX, x, x, axis, None, 0, None)
    if y is None:
        return None
    Py_INCREF(<object> PyArray_DESCR(<PyArrayObject*> x))
    out = PyArray_Empty(n, dims, PyArray_DESCR(<PyArrayObject*> x), False)
    label = <const int64_t*> PyArray_BYTES(<PyArrayObject*> labels)
    for i in range(f.n_outer * f.n_inner):
        move_number(PyArray_BYTES(<PyArrayObject*> out), i, PyArray_BYTES(<PyArrayObject*> y),
                    place_of(f, i, label[i]), size_of(f.kind))
    return out[()] if n == 0 else out


cdef inline bint is_above(double a, double b) noexcept nogil:
    """a > b, where NaN is above all others."""
    return a > b or (a != a and b == b)


cdef void find_top(const double* x, Py_ssize_t n, Py_ssize_t k, int64_t* top) noexcept nogil:
    """The k largest of n numbers, in descending order; of equal ones the first."""
    cdef Py_ssize_t n_found = 0, i, at
    for i in range(n):
        if n_found == k and not is_above(x[i], x[top[k - 1]]):
            continue
        at = n_found if n_found < k else k - 1
        n_found = at + 1
        while at > 0 and is_above(x[i], x[top[at - 1]]):
            top[at] = top[at - 1]
            at -= 1
        top[at] = i


cdef object quick_top_k(x, k, axis):
    """The values and the indices of top_k_log_softmax, or None."""
    cdef npy_intp dims[32]
    cdef int64_t top[TOP_MAX_K]
    cdef Frames f, of_result
    cdef double* numbers
    cdef Py_ssize_t n_top, i, j
    cdef int overflow = 0, at
    if not find_small_frames(x, axis, &f, dims) or not PyLong_CheckExact(k):
        return None
    n_top = PyLong_AsLongAndOverflow(k, &overflow)
    if overflow or not 0 < n_top <= min(f.n, <Py_ssize_t> TOP_MAX_K):
        return None
    y = quick_map(LOG_SOFTMAX, x, x, axis, None, 0, None)
    numbers = <double*> malloc(f.n * sizeof(double))
    if y is None or numbers == NULL:
        free(numbers)
        return None
    at = axis if axis >= 0 else axis + PyArray_NDIM(<PyArrayObject*> x)
    for i in range(PyArray_NDIM(<PyArrayObject*> x)):
        dims[i] = n_top if i == at else PyArray_DIMS(<PyArrayObject*> x)[i]
    Py_INCREF(<object> PyArray_DESCR(<PyArrayObject*> x))
    values = PyArray_Empty(PyArray_NDIM(<PyArrayObject*> x), dims, PyArray_DESCR(<PyArrayObject*> x), False)
    places = PyArray_Empty(PyArray_NDIM(<PyArrayObject*> x), dims, PyArray_DescrFromType(NPY_INT64), False)
    of_result = f
    of_result.n = n_top
    for i in range(f.n_outer * f.n_inner):
        read(frame_at(whole(x, f), i // f.n_inner, i % f.n_inner), f.n, numbers)
        find_top(numbers, f.n, n_top, top)
        for j in range(n_top):
            (<int64_t*> PyArray_BYTES(<PyArrayObject*> places))[place_of(of_result, i, j)] = top[j]
            move_number(PyArray_BYTES(<PyArrayObject*> values), place_of(of_result, i, j),
                        PyArray_BYTES(<PyArrayObject*> y), place_of(f, i, top[j]), size_of(f.kind))
    free(numbers)
    return values, places


cdef object total_loss(y, Frames f, reduction):
    """The loss of frames whose labels have the log-probabilities y, an array; None if it declines."""
    cdef Py_ssize_t n = f.n_outer * f.n_inner, i
    cdef double loss
    cdef list losses = []
    if not PyArray_CheckExact(y) or f.kind <= BFLOAT16 or n > LOSS_MAX_FRAMES or not isinstance(reduction, str):
        return None
    if reduction == "none":
        return 0 - y
    if reduction != "mean" and reduction != "sum":
        return None
    for i in range(n):
        loss = (<float*> PyArray_BYTES(<PyArrayObject*> y))[i] if f.kind == FLOAT else (
            <double*> PyArray_BYTES(<PyArrayObject*> y))[i]
        if not loss > -INFINITY:
            return None
        losses.append(0 - loss)
    try:
        loss = _fsum(losses)
    except OverflowError:
        return None
    return y.dtype.type(loss / n if reduction == "mean" else loss)


cdef object quick_cross_entropy(x, labels, axis, reduction):
    """cross_entropy of labels of float32 or float64, or None."""
    cdef npy_intp dims[32]
    cdef Frames f
    cdef uint64_t env
    y = quick_take(x, labels, axis)
    if y is None or not find_small_frames(x, axis, &f, dims):
        return None
    env = lsm_enter_float_env()
    try:
        return total_loss(y, f, reduction)
    finally:
        lsm_leave_float_env(env)


cdef void scale_gradient(floating* p, Frames f, const int64_t* label, const double* at_label,
                         double scale) noexcept nogil:
    """The gradient of the loss of labels, in place of p: scaled, and at the label expm1(y)."""
    cdef floating rate = <floating> scale
    cdef Py_ssize_t i
    for i in range(count_elements(f)):  # hot
        p[i] *= rate
    for i in range(f.n_outer * f.n_inner):
        p[place_of(f, i, label[i])] = <floating> (at_label[i] * scale)


cdef object quick_loss(x, labels, axis, reduction, out):
    """cross_entropy_value_and_grad of labels of float32 or float64, or None."""
    cdef npy_intp dims[32]
    cdef Frames f
    cdef const int64_t* label
    cdef uint64_t env
    cdef double scale = 1
    if not find_small_frames(x, axis, &f, dims):
        return None
    if out is not None and not (can_take(out, x, f) and PyArray_CheckExact(labels)
                                and lies_apart(labels, 8 * f.n_outer * f.n_inner, out, f)):
        return None
    y = quick_take(x, labels, axis)
    env = lsm_enter_float_env()
    try:
        value = None if y is None else total_loss(y, f, reduction)
        if value is None:
            return None
        at_label = _expm1(y, dtype="d")
        out = quick_map(SOFTMAX, x, x, axis, out, 0, None)
        if reduction == "mean":
            scale = 1 / <double> (f.n_outer * f.n_inner)
        label = <const int64_t*> PyArray_BYTES(<PyArrayObject*> labels)
        if f.kind == FLOAT:
            scale_gradient(<float*> PyArray_BYTES(<PyArrayObject*> out), f, label,
                           <double*> PyArray_BYTES(<PyArrayObject*> at_label), scale)
        else:
            scale_gradient(<double*> PyArray_BYTES(<PyArrayObject*> out), f, label,
                           <double*> PyArray_BYTES(<PyArrayObject*> at_label), scale)
        return value, out
    finally:
        lsm_leave_float_env(env)
