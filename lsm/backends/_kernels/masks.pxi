# Masks of the fast path: whether the kernels can apply one as they read, and what remains to be set in the result.


cdef inline Array masked(Array x, object mask, int fill) noexcept:
    x.alteration.mask = mask_offset(x.at, x.kind, PyArray_BYTES(<PyArrayObject*> mask))
    x.kind |= fill
    return x


cdef inline bint can_mask(object mask, object x, object out, Frames f) noexcept:
    """Whether a mask is a C-contiguous array of bool of the shape of x, apart from `out`."""
    return (
        PyArray_CheckExact(mask)
        and PyArray_ISCARRAY_RO(<PyArrayObject*> mask)
        and PyArray_TYPE(<PyArrayObject*> mask) == NPY_BOOL
        and PyArray_SAMESHAPE(<PyArrayObject*> mask, <PyArrayObject*> x)
        and (out is None or lies_apart(mask, count_elements(f), out, f))
    )


cdef inline bint some_frame_is_nan(Array y, Frames f) noexcept nogil:
    """Whether any frame of a result is NaN throughout, by its first class."""
    cdef Py_ssize_t o, i
    cdef const char* at
    cdef int n_found = 0
    for o in range(f.n_outer):
        at = y.at + o * y.outer
        for i in range(f.n_inner):
            if y.kind == FLOAT:
                n_found += (<float*> at)[i] != (<float*> at)[i]
            elif y.kind == DOUBLE:
                n_found += (<double*> at)[i] != (<double*> at)[i]
            else:
                n_found += ((<uint16_t*> at)[i] & 0x7FFF) > (0x7C00 if y.kind == HALF else 0x7F80)
    return n_found != 0


cdef void fill_masked(Array y, Py_ssize_t n, const char* mask, bint is_low) noexcept nogil:
    """Set the masked ones of n packed numbers to -inf or 0."""
    cdef uint16_t low = (0xFC00 if y.kind == HALF else 0xFF80) if is_low else 0
    cdef double fill = -INFINITY if is_low else 0
    cdef Py_ssize_t k
    if y.kind == FLOAT:
        for k in range(n):  # hot
            (<float*> y.at)[k] = (<float*> y.at)[k] if mask[k] != 0 else <float> fill
    elif y.kind == DOUBLE:
        for k in range(n):  # hot
            (<double*> y.at)[k] = (<double*> y.at)[k] if mask[k] != 0 else fill
    else:
        for k in range(n):  # hot
            (<uint16_t*> y.at)[k] = (<uint16_t*> y.at)[k] if mask[k] != 0 else low


cdef void put_masked(int op, Array y, Frames f, const char* mask) noexcept nogil:
    """Set masked results: in a frame with NaN, all are NaN, and a masked gradient of softmax may be -0.0."""
    if op == SOFTMAX_BACKWARD or some_frame_is_nan(y, f):
        fill_masked(y, count_elements(f), mask, op == LOG_SOFTMAX)
