# The largest classes of frames, sorted by insertion: of arrays of any size, and for small ones as in fastpath.pxi with
# their log-softmax. The results are those of lsm._select, bit by bit.

cdef enum:
    SELECT_CLASSES = 8192  # that are read at a time
    TOP_MAX_K = 128
    SHIFTED_MAX_K = 16     # moved one by one: at k = 5, bisection takes 1.5 times as long


# The largest classes of a frame so far, in descending order; of equal ones the first.
cdef struct Top:
    Py_ssize_t k, n_found
    double x[TOP_MAX_K]
    int64_t place[TOP_MAX_K]


cdef inline bint is_above(double a, int64_t place, double b, int64_t other) noexcept nogil:
    """Whether a comes first: NaN is above all others, and of equal numbers the one with the lower place."""
    return a > b or (a != a and b == b) or ((a == b or (a != a and b != b)) and place < other)


cdef inline void insert(Top* top, double x, int64_t place) noexcept nogil:
    cdef Py_ssize_t low = 0, high = top.n_found, at
    if top.n_found < top.k:
        top.n_found += 1
    elif not is_above(x, place, top.x[top.k - 1], top.place[top.k - 1]):
        return
    if top.k <= SHIFTED_MAX_K:
        at = top.n_found - 1
        while at > 0 and is_above(x, place, top.x[at - 1], top.place[at - 1]):
            top.x[at] = top.x[at - 1]
            top.place[at] = top.place[at - 1]
            at -= 1
        top.x[at] = x
        top.place[at] = place
        return
    while low < high:  # the first that x is above
        at = (low + high) // 2
        if is_above(x, place, top.x[at], top.place[at]):
            high = at
        else:
            low = at + 1
    memmove(&top.x[low + 1], &top.x[low], (top.n_found - 1 - low) * sizeof(double))
    memmove(&top.place[low + 1], &top.place[low], (top.n_found - 1 - low) * sizeof(int64_t))
    top.x[low] = x
    top.place[low] = place


cdef inline Py_ssize_t stride_through(Py_ssize_t n) noexcept nogil:
    """A number without a common divisor with n, near 0.62 n: its multiples visit n places in no order."""
    cdef Py_ssize_t stride = n * 5 // 8, a, b
    while True:
        stride += 1
        a, b = n, stride
        while b:
            a, b = b, a % b
        if a == 1:
            return stride


cdef void add_to_top(Top* top, const double* x, Py_ssize_t n, Py_ssize_t first) noexcept nogil:
    """Look through the classes from `first` on, by chunks in no order: in ascending order each would be inserted."""
    cdef double least
    cdef Py_ssize_t n_chunks = n // ROW_CLASSES, stride = stride_through(n_chunks), chunk = 0, c, i, k
    cdef int n_above
    for c in range(n_chunks):
        i = chunk * ROW_CLASSES
        chunk = (chunk + stride) % n_chunks
        n_above = 1
        if top.n_found == top.k:
            least = top.x[top.k - 1]
            n_above = 0
            for k in range(ROW_CLASSES):  # hot
                n_above += not (x[i + k] < least)
        if n_above:
            for k in range(ROW_CLASSES):
                insert(top, x[i + k], first + i + k)
    for i in range(n_chunks * ROW_CLASSES, n):
        insert(top, x[i], first + i)


cdef Top top_of_frame(Vector x, Py_ssize_t n, Py_ssize_t k, double* buffer) noexcept nogil:
    """buffer: SELECT_CLASSES numbers."""
    cdef Top top
    cdef Py_ssize_t first, n_part
    top.k = k
    top.n_found = 0
    for first from 0 <= first < n by SELECT_CLASSES:
        n_part = min(<Py_ssize_t> SELECT_CLASSES, n - first)
        read(x, n_part, buffer)
        add_to_top(&top, buffer, n_part, first)
        x.at += n_part * x.step
    return top


cdef void put_top(Array a, Array places, Py_ssize_t i, Py_ssize_t n, Py_ssize_t n_inner, Py_ssize_t k,
                  double* buffer) noexcept nogil:
    cdef Vector to = frame_at(places, i // n_inner, i % n_inner)
    cdef Top top = top_of_frame(frame_at(a, i // n_inner, i % n_inner), n, k, buffer)
    cdef Py_ssize_t j
    for j in range(k):
        (<int64_t*> (to.at + j * to.step))[0] = top.place[j]


def find_top(const unsigned char[:, :, :, :] x, unsigned char[:, :, :, :] places, int kind, Py_ssize_t k,
             unsigned char[:, ::1] scratch, int n_threads):
    """The k <= TOP_MAX_K largest classes over axis 1 of (outer, classes, inner, itemsize), as int64.

    scratch: (n_threads, SCRATCH + 64) bytes. Of `places`, k classes are written.
    """
    cdef Array a = array_of(<char*> &x[0, 0, 0, 0], x.strides, kind, NULL, 1)
    cdef Array to = array_of(<char*> &places[0, 0, 0, 0], places.strides, DOUBLE, NULL, 1)
    cdef Py_ssize_t n_frames = x.shape[0] * x.shape[2], n = x.shape[1], n_inner = x.shape[2], i
    cdef double* s = <double*> &scratch[0, 0]
    cdef uint64_t env
    with nogil:
        env = lsm_enter_float_env()
        n_threads = lsm_begin_region(n_threads)
        if n_threads == 1:
            for i in range(n_frames):
                put_top(a, to, i, n, n_inner, k, own_scratch(s, scratch.shape[1], 0))
        else:
            with parallel(num_threads=n_threads):
                env = lsm_enter_float_env()
                for i in prange(n_frames, schedule="static"):
                    put_top(a, to, i, n, n_inner, k, own_scratch(s, scratch.shape[1], omp_get_thread_num()))
                lsm_leave_float_env(env)
        lsm_end_region(n_threads)
        lsm_leave_float_env(env)


cdef object quick_top_k(x, k, axis):
    """The values and the indices of top_k_log_softmax, or None."""
    cdef npy_intp dims[32]
    cdef double numbers[SELECT_CLASSES]
    cdef Top top
    cdef Frames f, of_result
    cdef Array a
    cdef uint64_t env
    cdef Py_ssize_t n_top, i, j
    cdef int overflow = 0, at, n_dims
    if not find_small_frames(x, axis, &f, dims) or not PyLong_CheckExact(k):
        return None
    n_top = PyLong_AsLongAndOverflow(k, &overflow)
    if overflow or not 0 < n_top <= min(f.n, <Py_ssize_t> TOP_MAX_K):
        return None
    n_dims = PyArray_NDIM(<PyArrayObject*> x)
    at = axis if axis >= 0 else axis + n_dims
    for i in range(n_dims):
        dims[i] = n_top if i == at else PyArray_DIMS(<PyArrayObject*> x)[i]
    Py_INCREF(<object> PyArray_DESCR(<PyArrayObject*> x))
    values = PyArray_Empty(n_dims, dims, PyArray_DESCR(<PyArrayObject*> x), False)
    places = PyArray_Empty(n_dims, dims, PyArray_DescrFromType(NPY_INT64), False)
    y = quick_map(LOG_SOFTMAX, x, x, axis, None, 0, None, 1)
    if y is None:
        return None
    of_result = f
    of_result.n = n_top
    a = whole(x, f)
    env = lsm_enter_float_env()
    for i in range(f.n_outer * f.n_inner):
        top = top_of_frame(frame_at(a, i // f.n_inner, i % f.n_inner), f.n, n_top, numbers)
        for j in range(n_top):
            (<int64_t*> PyArray_BYTES(<PyArrayObject*> places))[number_at(of_result, i, j)] = top.place[j]
            move_number(PyArray_BYTES(<PyArrayObject*> values), number_at(of_result, i, j),
                        PyArray_BYTES(<PyArrayObject*> y), number_at(f, i, top.place[j]), size_of(f.kind))
    lsm_leave_float_env(env)
    return values, places
