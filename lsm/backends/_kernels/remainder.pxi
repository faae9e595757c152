# The classes after the last whole block, and one complete run of the three stages over three parts.


cdef inline void pass_last_rows(bint find, const floating* a, floating* peaks, Py_ssize_t block, bint add,
                                const floating* v, floating top, floating magic, floating floor, bint some_equal,
                                double* total, double* error, bint put,
                                const floating* x, floating c_hi, floating c_lo, floating* y, Py_ssize_t n_rows,
                                Py_ssize_t n_edge, Ahead ahead) noexcept nogil:
    """pass_block for n_rows < 4 rows and the n_edge classes after them."""
    cdef floating p[ROW_CLASSES]
    cdef floating high[ROW_CLASSES]
    cdef floating edge[ROW_CLASSES]
    cdef Py_ssize_t whole = n_rows * ROW_CLASSES, width = (n_edge + N_LANES - 1) // N_LANES * N_LANES, r, i, g, k
    for k in range(ROW_CLASSES):
        p[k] = 0
        high[k] = -INFINITY
    for r in range(n_rows):
        i = r * ROW_CLASSES
        prefetch(ahead, i, ROW_CLASSES)
        pass_row(find, <const char*> &a[i], high, add, <const char*> &v[i], 0, top, magic, floor, some_equal, p, put,
                 <const char*> &x[i], c_hi, c_lo, <char*> &y[i], kind_of(p), kind_of(p), False)
    prefetch(ahead, whole, n_edge)
    if n_edge and add:
        pad(edge, &v[whole], n_edge, width, -INFINITY)
        for g in range(width // N_LANES):
            for k in range(N_LANES):  # hot
                p[g * N_LANES + k] += exp_below(edge[g * N_LANES + k], magic, floor, top, some_equal)
    if n_edge and find:
        pad(edge, &a[whole], n_edge, width, -INFINITY)
        for g in range(width // N_LANES):
            for k in range(N_LANES):  # hot
                high[g * N_LANES + k] = larger(edge[g * N_LANES + k], high[g * N_LANES + k])
    if n_edge and put:
        pad(edge, &x[whole], n_edge, width, 0)
        for g in range(width // N_LANES):
            for k in range(N_LANES):  # hot
                edge[g * N_LANES + k] = (edge[g * N_LANES + k] - c_hi) - c_lo
            put_some(&y[whole + g * N_LANES], &edge[g * N_LANES], min(<Py_ssize_t> N_LANES, n_edge - g * N_LANES))
    if find:
        end_row(high, peaks, block)
    if add:
        add_groups(total, error, p, N_LANES, 4, floating is double)


cdef inline void pass_edge(bint find, const Vector* a, floating* peaks_a, bint add, Adding* adding, const Vector* v,
                           const floating* peaks_v, double* total, double* error, bint put, const Vector* x,
                           const Vector* y, floating c_hi, floating c_lo, bint stream, Py_ssize_t n) noexcept nogil:
    """The selected stages over the n % BLOCK_CLASSES classes after the last whole block of each of three parts."""
    cdef floating buffer_a[BLOCK_CLASSES]
    cdef floating buffer_v[BLOCK_CLASSES]
    cdef floating buffer_x[BLOCK_CLASSES]
    cdef floating shifted[BLOCK_CLASSES]
    cdef floating w[BLOCK_CLASSES]
    cdef const floating* at_a = NULL
    cdef const floating* at_v = NULL
    cdef const floating* at_x = NULL
    cdef floating* at_y = w
    cdef bint direct = not stream and is_native(y[0], w), some_equal = False
    cdef floating h = <floating> adding.shift.h, top = <floating> (adding.shift.m - adding.shift.h)
    cdef floating magic = <floating> adding.shift.magic, floor = <floating> adding.shift.floor
    cdef Py_ssize_t start = n - n % BLOCK_CLASSES, n_rest = n % BLOCK_CLASSES
    cdef Py_ssize_t n_rows = n % BLOCK_CLASSES // ROW_CLASSES, n_edge = n % ROW_CLASSES
    cdef Py_ssize_t block = n // BLOCK_CLASSES
    cdef Ahead ahead = nothing_ahead(adding.far)
    ahead.size_1 = size_of(a.kind)
    ahead.size_written = size_of(y.kind)
    if find:
        if adding.far:
            ahead.read_1 = prefetch_address(a[0], start)
        at_a = load(a[0], start, n_rest, buffer_a)
    if put and direct and adding.far:
        ahead.written = prefetch_address(y[0], start)
    if add:
        at_v = less(load(v[0], start, n_rest, buffer_v), n_rest, h, shifted)
        some_equal = has_peak(&peaks_v[(1 + block) * PEAK_LANES], <floating> adding.shift.m)
    if put:
        at_x = load(x[0], start, n_rest, buffer_x)
        at_y = <floating*> y.at + start if direct else w
    if add and some_equal:
        adding.n_equal += count_equal(at_v, n_rest, top)
        pass_last_rows(find, at_a, peaks_a, block, add, at_v, top, magic, floor, True, total, error, put, at_x, c_hi,
                       c_lo, at_y, n_rows, n_edge, ahead)
    else:
        pass_last_rows(find, at_a, peaks_a, block, add, at_v, top, magic, floor, False, total, error, put, at_x, c_hi,
                       c_lo, at_y, n_rows, n_edge, ahead)
    if put and not direct:
        write(y[0], start, n_rest, w, stream)


cdef void pass_three(const Vector* a, Py_ssize_t n_a, floating* peaks_a, Adding* adding, const Vector* v,
                     Py_ssize_t n_v, const floating* peaks_v, double* total, double* error, const Vector* x,
                     const Vector* y, Py_ssize_t n_x, floating c_hi, floating c_lo, bint stream) noexcept nogil:
    """Find the peaks of n_a classes, sum the exponentials of n_v and write n_x, fused as far as their lengths allow.

    Peaks are groups of PEAK_LANES numbers that contain a maximum: first that of all classes, then that of each block.
    """
    cdef Py_ssize_t together = min(n_a, min(n_v, n_x)) // BLOCK_CLASSES
    cdef Py_ssize_t two = max(together, min(n_a, n_v) // BLOCK_CLASSES)
    cdef Py_ssize_t last_a = n_a // BLOCK_CLASSES, last_v = n_v // BLOCK_CLASSES, last_x = n_x // BLOCK_CLASSES
    if together:
        pass_kinds(True, a, peaks_a, True, adding, v, peaks_v, total, error, True, x, y, c_hi, c_lo, stream, 0,
                   together)
    if two > together:
        pass_kinds(True, a, peaks_a, True, adding, v, peaks_v, total, error, False, x, y, c_hi, c_lo, stream,
                   together, two)
    if last_a > two:
        pass_kinds(True, a, peaks_a, False, adding, v, peaks_v, total, error, False, x, y, c_hi, c_lo, stream, two,
                   last_a)
    if last_v > two:
        pass_kinds(False, a, peaks_a, True, adding, v, peaks_v, total, error, False, x, y, c_hi, c_lo, stream, two,
                   last_v)
    if last_x > together:
        pass_kinds(False, a, peaks_a, False, adding, v, peaks_v, total, error, True, x, y, c_hi, c_lo, stream,
                   together, last_x)
    if n_a == n_v == n_x and n_a % BLOCK_CLASSES:
        pass_edge(True, a, peaks_a, True, adding, v, peaks_v, total, error, True, x, y, c_hi, c_lo, stream,
                  n_a)
        return
    if n_a % BLOCK_CLASSES:
        pass_edge(True, a, peaks_a, False, adding, v, peaks_v, total, error, False, x, y, c_hi, c_lo, stream, n_a)
    if n_v % BLOCK_CLASSES:
        pass_edge(False, a, peaks_a, True, adding, v, peaks_v, total, error, False, x, y, c_hi, c_lo, stream, n_v)
    if n_x % BLOCK_CLASSES:
        pass_edge(False, a, peaks_a, False, adding, v, peaks_v, total, error, True, x, y, c_hi, c_lo, stream, n_x)
