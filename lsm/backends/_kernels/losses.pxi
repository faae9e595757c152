# The cross-entropy of labels and its gradient, for small arrays as in fastpath.pxi: the bits of lsm._losses.

from libc.float cimport FLT_MAX

from math import fsum as _fsum

from numpy import expm1 as _expm1

cdef enum:
    LOSS_MAX_FRAMES = 1024  # whose sum is rounded once: a block of lsm._reduce.total


cdef inline bint is_quick_loss(object x, Frames f, object reduction):
    """Whether the loss of labels is computed here: of float32 and float64, and rounded once."""
    return (f.kind > BFLOAT16 and f.n_outer * f.n_inner <= LOSS_MAX_FRAMES and PyArray_NDIM(<PyArrayObject*> x) > 1
            and isinstance(reduction, str) and reduction in ("none", "mean", "sum"))


cdef object total_loss(y, Frames f, reduction):
    """The loss of frames whose labels have the log-probabilities y; None if it is not finite."""
    cdef Py_ssize_t n = f.n_outer * f.n_inner, i
    cdef double loss
    cdef list losses = []
    if reduction == "none":
        return 0 - y
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
    if reduction == "mean":
        loss /= n
    return y.dtype.type(loss) if loss < FLT_MAX or f.kind == DOUBLE else None


cdef object quick_cross_entropy(x, labels, axis, reduction):
    """cross_entropy of labels of float32 or float64, or None."""
    cdef npy_intp dims[32]
    cdef Frames f
    cdef uint64_t env
    cdef int n_dims
    if not find_small_frames(x, axis, &f, dims) or not is_quick_loss(x, f, reduction):
        return None
    n_dims = PyArray_NDIM(<PyArrayObject*> x) - 1
    labels = own_labels(labels, n_dims, dims, f)
    y = None if labels is None else take_labels(x, f, n_dims, dims, axis, labels)
    if y is None:
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
        p[number_at(f, i, label[i])] = <floating> (at_label[i] * scale)


cdef object quick_loss(x, labels, axis, reduction, out):
    """cross_entropy_value_and_grad of labels of float32 or float64, or None."""
    cdef npy_intp dims[32]
    cdef Frames f
    cdef const int64_t* label
    cdef uint64_t env
    cdef double scale = 1
    cdef int n_dims
    if not find_small_frames(x, axis, &f, dims) or not is_quick_loss(x, f, reduction):
        return None
    if not (out is None or can_take(out, x, f)):
        return None
    n_dims = PyArray_NDIM(<PyArrayObject*> x) - 1
    labels = own_labels(labels, n_dims, dims, f)
    y = None if labels is None else take_labels(x, f, n_dims, dims, axis, labels)
    if y is None:
        return None
    env = lsm_enter_float_env()
    try:
        value = total_loss(y, f, reduction)
        if value is None:
            return None
        at_label = _expm1(y, dtype="d")
        gradient = quick_map(SOFTMAX, x, x, axis, out, 0, None, 1)
        if gradient is None:
            return None
        if reduction == "mean":
            scale = 1 / <double> (f.n_outer * f.n_inner)
        label = <const int64_t*> PyArray_BYTES(<PyArrayObject*> labels)
        if f.kind == FLOAT:
            scale_gradient(<float*> PyArray_BYTES(<PyArrayObject*> gradient), f, label,
                           <double*> PyArray_BYTES(<PyArrayObject*> at_label), scale)
        else:
            scale_gradient(<double*> PyArray_BYTES(<PyArrayObject*> gradient), f, label,
                           <double*> PyArray_BYTES(<PyArrayObject*> at_label), scale)
        return value, gradient
    finally:
        lsm_leave_float_env(env)
