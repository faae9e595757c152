# The fast path of small calls, which spend most of their time before the kernels: NumPy's C API instead of memoryviews.
#
# It accepts only C-contiguous arrays of one shape and dtype. For any other call it returns None, without side effects,
# and the general path validates the arguments and raises the errors.

from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from cpython.ref cimport Py_INCREF

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject:
        pass
    ctypedef struct PyArray_Descr:
        char type
    ctypedef Py_ssize_t npy_intp
    ctypedef enum NPY_ORDER:
        NPY_CORDER
    ctypedef enum NPY_TYPES:
        NPY_BOOL
        NPY_FLOAT
        NPY_INT64
    int _import_array() except -1
    bint PyArray_CheckExact(object x)
    bint PyArray_ISCARRAY_RO(PyArrayObject* x)
    bint PyArray_ISCARRAY(PyArrayObject* x)
    bint PyArray_SAMESHAPE(PyArrayObject* a, PyArrayObject* b)
    int PyArray_NDIM(PyArrayObject* x)
    npy_intp* PyArray_DIMS(PyArrayObject* x)
    PyArray_Descr* PyArray_DESCR(PyArrayObject* x)
    int PyArray_TYPE(PyArrayObject* x)
    char* PyArray_BYTES(PyArrayObject* x)
    PyArray_Descr* PyArray_DescrFromType(int type)
    object PyArray_Empty(int n, const npy_intp* dims, PyArray_Descr* dtype, int fortran)
    object PyArray_NewCopy(PyArrayObject* x, NPY_ORDER order)
    object PyArray_NewLikeArray(PyArrayObject* x, NPY_ORDER order, PyArray_Descr* dtype, int subok)

_import_array()

cdef enum:
    PARALLEL_MIN_ELEMENTS = 32768  # the same as lsm._threads.MIN_PARALLEL_SIZE
    HOLD_GIL_MAX_ELEMENTS = 4096   # releasing and taking the GIL costs 0.1 microseconds


cdef double LEAST_DIVISOR = 2.0**-800  # as in lsm._temperature


# An array seen as (outer, classes, inner).
cdef struct Frames:
    Py_ssize_t n_outer, n, n_inner
    int kind


cdef inline Py_ssize_t count_elements(Frames f) noexcept nogil:
    return f.n_outer * f.n * f.n_inner


cdef inline bint find_frames(object x, object axis, Frames* to) noexcept:
    """Fill in the frames of x; False unless x is a non-empty C-contiguous ndarray with this axis."""
    cdef npy_intp* dims
    cdef int overflow = 0, n_dims, i
    cdef long at
    cdef char c
    if not (PyArray_CheckExact(x) and PyArray_ISCARRAY_RO(<PyArrayObject*> x) and PyLong_CheckExact(axis)):
        return False
    n_dims = PyArray_NDIM(<PyArrayObject*> x)
    at = PyLong_AsLongAndOverflow(axis, &overflow)
    if overflow or not -n_dims <= at < n_dims:
        return False
    if at < 0:
        at += n_dims
    dims = PyArray_DIMS(<PyArrayObject*> x)
    to.n_outer = to.n_inner = 1
    to.n = dims[at]
    for i in range(n_dims):
        if i < at:
            to.n_outer *= dims[i]
        elif i > at:
            to.n_inner *= dims[i]
    c = PyArray_DESCR(<PyArrayObject*> x).type
    to.kind = FLOAT if c == b"f" else DOUBLE if c == b"d" else HALF if c == b"e" else BFLOAT16
    return count_elements(to[0]) > 0 and (to.kind != BFLOAT16 or c == b"E")


cdef inline bint is_alike(object a, object x) noexcept:
    """Whether a is a C-contiguous array of the shape and dtype of x."""
    return (
        PyArray_CheckExact(a)
        and PyArray_ISCARRAY_RO(<PyArrayObject*> a)
        and PyArray_TYPE(<PyArrayObject*> a) == PyArray_TYPE(<PyArrayObject*> x)
        and PyArray_SAMESHAPE(<PyArrayObject*> a, <PyArrayObject*> x)
    )


cdef inline bint can_take(object out, object x, Frames f) noexcept:
    """Whether out is such an array, writable, and either the same memory as x or disjoint from it."""
    cdef char* p
    cdef char* q
    if not (is_alike(out, x) and PyArray_ISCARRAY(<PyArrayObject*> out)):
        return False
    p = PyArray_BYTES(<PyArrayObject*> out)
    q = PyArray_BYTES(<PyArrayObject*> x)
    return p == q or p >= q + count_elements(f) * size_of(f.kind) or q >= p + count_elements(f) * size_of(f.kind)


cdef inline Array whole(object x, Frames f) noexcept:
    cdef Array array
    array.alteration.mask = 0
    array.alteration.rate = 1
    array.at = PyArray_BYTES(<PyArrayObject*> x)
    array.gap = size_of(f.kind)
    array.step = f.n_inner * array.gap
    array.outer = f.n * array.step
    array.kind = f.kind
    return array


cdef inline size_t count_scratch(Frames f, bint shall_copy) noexcept nogil:
    """Bytes of scratch per thread; 0 if the kernels use the frames in place."""
    return SCRATCH_BYTES + 64 if f.n_inner > 1 or f.kind <= BFLOAT16 or shall_copy else 0


cdef bint run_whole(int op, Array a, Array b, Array y, Frames f, int n_threads, bint stream) noexcept nogil:
    """False if the scratch cannot be allocated."""
    cdef size_t n_bytes = count_scratch(f, is_altered(a.kind) or op >= ENTROPY or stream)
    cdef void* scratch = malloc(n_threads * n_bytes) if n_bytes else NULL
    if n_bytes and scratch == NULL:
        return False
    if op >= ENTROPY:
        run_entropies(op, a, b, y, f.n_outer, f.n, f.n_inner, <double*> scratch, n_bytes, n_threads)
    elif f.kind == DOUBLE or a.kind & DIVIDED:
        run_frames(op, a, b, y, f.n_outer, f.n, f.n_inner, <double*> scratch, n_bytes, n_threads, stream)
    else:
        run_frames(op, a, b, y, f.n_outer, f.n, f.n_inner, <float*> scratch, n_bytes, n_threads, stream)
    free(scratch)
    return True


_count_threads = None  # lsm._threads.count_threads
cdef Py_ssize_t stream_min_bytes = 0  # a result of at least this size is written with nontemporal stores
cdef Py_ssize_t prefetch_min_bytes = 3145728  # an array of at least this size is taken to be in memory


def configure(count_threads, Py_ssize_t stream_bytes, Py_ssize_t prefetch_bytes=3145728):
    """Set the function that chooses the number of threads, and the sizes that depend on the machine's caches."""
    global _count_threads, stream_min_bytes, prefetch_min_bytes
    _count_threads, stream_min_bytes, prefetch_min_bytes = count_threads, stream_bytes, prefetch_bytes


cdef inline bint shall_stream(Frames f, object out, object a, object b) noexcept:
    """Whether the result is large and does not share memory with an input."""
    return (
        count_elements(f) * size_of(f.kind) >= stream_min_bytes
        and (out is None or (PyArray_BYTES(<PyArrayObject*> out) != PyArray_BYTES(<PyArrayObject*> a)
                             and PyArray_BYTES(<PyArrayObject*> out) != PyArray_BYTES(<PyArrayObject*> b)))
    )


cdef object quick_map(int op, a, b, axis, out, int n_threads, mask, double temperature):
    """An operation whose result has the shape of its inputs; b is a if there is one. None if it declines."""
    cdef Frames f
    cdef Array x, y, z
    cdef const char* at_mask
    cdef bint done, stream
    if not find_frames(a, axis, &f) or not (b is a or is_alike(b, a)):
        return None
    if not (out is None or (can_take(out, a, f) and (b is a or can_take(out, b, f)))):
        return None
    if not (mask is None or can_mask(mask, a, out, f)) or (temperature != 1 and f.kind == DOUBLE):
        return None
    if n_threads == 0 and count_elements(f) >= PARALLEL_MIN_ELEMENTS:
        n_threads = _count_threads(count_elements(f))
    stream = shall_stream(f, out, a, b)
    if out is None:
        out = PyArray_NewLikeArray(<PyArrayObject*> a, NPY_CORDER, NULL, False)
    x = whole(a, f)
    y = whole(b, f)
    z = whole(out, f)
    if mask is not None:
        x = masked(x, mask, MASKED_ZERO if reads_two(op) else MASKED_LOW)
        y = masked(y, mask, MASKED_ZERO if op == SOFTMAX_BACKWARD else MASKED_LOW)
    if temperature != 1:  # of the only input, or of dy
        x.kind |= DIVIDED
        x.alteration.rate = 1 / temperature
    if count_elements(f) <= HOLD_GIL_MAX_ELEMENTS:
        done = run_whole(op, x, y, z, f, max(n_threads, 1), stream)
    else:
        with nogil:
            done = run_whole(op, x, y, z, f, max(n_threads, 1), stream)
    if done and mask is not None:
        at_mask = PyArray_BYTES(<PyArrayObject*> mask)
        if count_elements(f) <= HOLD_GIL_MAX_ELEMENTS:
            put_masked(op, z, f, at_mask)
        else:
            with nogil:
                put_masked(op, z, f, at_mask)
    return out if done else None


cdef bint copy_dims(object x, int axis, npy_intp* dims) noexcept:
    """Copy the shape of x without the axis; False if x has more than 32 dimensions."""
    cdef int n_dims = PyArray_NDIM(<PyArrayObject*> x), i, n = 0
    for i in range(n_dims if n_dims <= 32 else 0):
        if i != axis and i != axis + n_dims:
            dims[n] = PyArray_DIMS(<PyArrayObject*> x)[i]
            n += 1
    return n_dims <= 32


cdef object quick_reduction(int op, a, b, axis, out, int n_threads, double temperature):
    """An operation with one number for each frame, for all axes if axis is None; b is a if there is one input.

    None if it declines. Entropies of 16 bits are of 32.
    """
    cdef npy_intp dims[32]
    cdef Frames f
    cdef Array x, y, z
    cdef int n, kind
    cdef bint done, is_new = out is None
    if not find_frames(a, 0 if axis is None else axis, &f) or not (b is a or is_alike(b, a)):
        return None
    n = PyArray_NDIM(<PyArrayObject*> a) - 1
    if n < 0 or (op >= ENTROPY and f.kind == DOUBLE):
        return None
    if axis is None:
        f.n, f.n_outer, f.n_inner, n = count_elements(f), 1, 1, 0
    elif not copy_dims(a, axis, dims):
        return None
    kind = FLOAT if op >= ENTROPY else f.kind
    if is_new and kind != f.kind:
        out = PyArray_Empty(n, dims, PyArray_DescrFromType(NPY_FLOAT), False)
    elif is_new:
        Py_INCREF(<object> PyArray_DESCR(<PyArrayObject*> a))
        out = PyArray_Empty(n, dims, PyArray_DESCR(<PyArrayObject*> a), False)
    elif not (PyArray_CheckExact(out) and PyArray_ISCARRAY(<PyArrayObject*> out)
              and PyArray_TYPE(<PyArrayObject*> out) == PyArray_TYPE(<PyArrayObject*> a)
              and has_dims(out, n, dims) and lies_apart(out, f.n_outer * f.n_inner * size_of(f.kind), a, f)):
        return None
    if n_threads == 0 and count_elements(f) >= PARALLEL_MIN_ELEMENTS:
        n_threads = _count_threads(count_elements(f))
    x = whole(a, f)
    y = whole(b, f)
    x.alteration.rate = 1 / temperature
    z = whole(out, f)
    z.kind = kind
    z.gap = size_of(kind)
    z.outer = f.n_inner * z.gap
    z.step = 0
    if count_elements(f) <= HOLD_GIL_MAX_ELEMENTS:
        done = run_whole(op, x, y, z, f, max(n_threads, 1), False)
    else:
        with nogil:
            done = run_whole(op, x, y, z, f, max(n_threads, 1), False)
    if not done:
        return None
    return out[()] if is_new and n == 0 else out


cdef inline bint has_dims(object x, int n, const npy_intp* dims) noexcept:
    cdef int i
    if PyArray_NDIM(<PyArrayObject*> x) != n:
        return False
    for i in range(n):
        if PyArray_DIMS(<PyArrayObject*> x)[i] != dims[i]:
            return False
    return True


cdef inline bint lies_apart(object out, Py_ssize_t n_bytes, object x, Frames f) noexcept:
    """Whether n_bytes of out are disjoint from the elements of x."""
    cdef char* p = PyArray_BYTES(<PyArrayObject*> out)
    cdef char* q = PyArray_BYTES(<PyArrayObject*> x)
    return p >= q + count_elements(f) * size_of(f.kind) or q >= p + n_bytes


def quick_log_softmax(x, axis, out, int n_threads=0, mask=None):
    """log_softmax(x, axis, out=out) for C-contiguous arrays; None for any other call.

    Nothing needs to have been checked except that the kernels support the dtype of x. n_threads = 0 means one thread
    for small calls, and count_threads otherwise. mask: `where`.
    """
    return quick_map(LOG_SOFTMAX, x, x, axis, out, n_threads, mask, 1)


def quick_log_softmax_backward(dy, y, axis, out, int n_threads=0, mask=None):
    """log_softmax_backward(dy, y, axis, out=out), or None; see quick_log_softmax."""
    return quick_map(LOG_SOFTMAX_BACKWARD, dy, y, axis, out, n_threads, mask, 1)


def quick_softmax(x, axis, out, int n_threads=0, mask=None):
    """softmax(x, axis, out=out), or None; see quick_log_softmax."""
    return quick_map(SOFTMAX, x, x, axis, out, n_threads, mask, 1)


def quick_softmax_backward(dy, p, axis, out, int n_threads=0, mask=None):
    """softmax_backward(dy, p, axis, out=out), or None; see quick_log_softmax."""
    return quick_map(SOFTMAX_BACKWARD, dy, p, axis, out, n_threads, mask, 1)


def quick_logsumexp(x, axis, out, int n_threads=0):
    """logsumexp(x, axis, out=out), or None; see quick_log_softmax."""
    return quick_reduction(LOGSUMEXP, x, x, axis, out, n_threads, 1)


QUICK = {
    "log_softmax": quick_log_softmax,
    "log_softmax_backward": quick_log_softmax_backward,
    "softmax": quick_softmax,
    "softmax_backward": quick_softmax_backward,
    "logsumexp": quick_logsumexp,
}
