# The log-softmax at one class of each frame, for small arrays as in fastpath.pxi: the bits of lsm._select.take.

cdef enum:
    SELECT_MAX_ELEMENTS = 32768  # up to here a log-softmax of all classes stays in a cache


cdef inline Py_ssize_t number_at(Frames f, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
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
    if not find_frames(x, axis, f) or count_elements(f[0]) > SELECT_MAX_ELEMENTS:
        return False
    return copy_dims(x, axis, dims)


cdef object own_labels(object labels, int n_dims, const npy_intp* dims, Frames f):
    """A copy of an array of int64 with these dimensions, of numbers of classes; None for anything else.

    Another thread may change the caller's while the kernels run.
    """
    cdef const int64_t* label
    cdef Py_ssize_t i
    if not (PyArray_CheckExact(labels) and PyArray_ISCARRAY_RO(<PyArrayObject*> labels)
            and PyArray_DESCR(<PyArrayObject*> labels).type == c"l" and sizeof(long) == 8
            and has_dims(labels, n_dims, dims)):
        return None
    labels = PyArray_NewCopy(<PyArrayObject*> labels, NPY_CORDER)
    label = <const int64_t*> PyArray_BYTES(<PyArrayObject*> labels)
    for i in range(f.n_outer * f.n_inner):
        if not 0 <= label[i] < f.n:
            return None
    return labels


cdef object take_labels(x, Frames f, int n_dims, const npy_intp* dims, axis, labels):
    """The log-softmax at labels from `own_labels`, as an array; None if the kernels decline."""
    cdef const int64_t* label = <const int64_t*> PyArray_BYTES(<PyArrayObject*> labels)
    cdef Py_ssize_t i
    Py_INCREF(<object> PyArray_DESCR(<PyArrayObject*> x))
    out = PyArray_Empty(n_dims, dims, PyArray_DESCR(<PyArrayObject*> x), False)
    y = quick_map(LOG_SOFTMAX, x, x, axis, None, 0, None, 1)
    if y is None:
        return None
    for i in range(f.n_outer * f.n_inner):
        move_number(PyArray_BYTES(<PyArrayObject*> out), i, PyArray_BYTES(<PyArrayObject*> y),
                    number_at(f, i, label[i]), size_of(f.kind))
    return out


cdef object quick_take(x, labels, axis):
    """take_log_softmax at one class of each frame, or None."""
    cdef npy_intp dims[32]
    cdef Frames f
    cdef int n_dims
    if not find_small_frames(x, axis, &f, dims):
        return None
    n_dims = PyArray_NDIM(<PyArrayObject*> x) - 1
    labels = own_labels(labels, n_dims, dims, f)
    out = None if labels is None else take_labels(x, f, n_dims, dims, axis, labels)
    return out[()] if out is not None and n_dims == 0 else out
