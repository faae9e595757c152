# Frames of which an array holds a part. The partial of a slice is four doubles: a Partial (see lanes.pxi), and the
# number of classes in the slice. With NaN it is (nan, nan, 0, n), with inf and no NaN (inf, nan, 0, n), of -inf only
# (-inf, 0, 0, n). Slices are those of traverse_long.pxi, reduced in the same order and folded by the same `merge`, from
# the first to the last, so that a frame in parts has the bits of the whole. Frames of at most FEW_CLASSES classes have
# other formulas, and go where whole frames do: their only slice might have been the last of a longer frame.

cdef enum:
    PARTIALS = -1  # in place of an operation: what x is reduced to
    PARTIALS_BACKWARD = -2  # or the gradient and the output
    PART_CLASSES = 2048  # of interleaved frames: what 16 of them read and write at a time stays in a cache


cdef inline bint has_nan(Vector x, Py_ssize_t n, const floating* of) noexcept nogil:
    cdef floating buffer[1]
    cdef Py_ssize_t i
    for i in range(n):
        if not load(x, i, 1, buffer)[0] <= INFINITY:
            return True
    return False


cdef inline void put_partial(Partial s, Vector x, Py_ssize_t n, char* to, const floating* of) noexcept nogil:
    """Store the partial of n classes of a frame. A sum is NaN for NaN and for inf, and the maximum may miss a NaN."""
    if s.below != s.below:
        s.n_largest = 0
        if has_nan(x, n, of):
            s.largest = NAN
    (<Partial*> to)[0] = s
    (<double*> to)[3] = <double> n


cdef inline bint are_interleaved(Array x, Py_ssize_t n_outer, Py_ssize_t n_inner) noexcept nogil:
    """Whether frames lie closer together than their classes."""
    return ((n_inner > 1 and magnitude(x.gap) < magnitude(x.step))
            or (n_outer > 1 and magnitude(x.outer) < magnitude(x.step)))


cdef void reduce_slices_of(Array x, Array to, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n_outer, Py_ssize_t n,
                           Py_ssize_t n_inner, floating* scratch) noexcept nogil:
    """The partials of slices `first` to last - 1: the first two stages of log_softmax_rows."""
    cdef floating peaks[2 * SLICE_PEAK_LANES]
    cdef floating m[2]
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Adding adding
    cdef Vector found[2]
    cdef Py_ssize_t sizes[2]
    cdef Py_ssize_t frame[2]
    cdef Py_ssize_t part[2]
    cdef Py_ssize_t t, k, n_frames = n_outer * n_inner, n_parts = count_slices(n)
    cdef bint interleaved = are_interleaved(x, n_outer, n_inner)  # then slice by slice, else frame by frame
    adding.far = is_far(x, n_outer * n_inner, n)
    adding.shift = shift_of(<floating> 0)
    m[0] = m[1] = 0
    sizes[0] = sizes[1] = 0
    found[0] = found[1] = frame_at(x, 0, 0)
    for t in range(first, last + 1):
        k = t % 2
        sizes[k] = 0
        if t < last:
            frame[k] = t % n_frames if interleaved else t // n_parts
            part[k] = t // n_frames if interleaved else t % n_parts
            sizes[k] = size_of_part(part[k], n)
            found[k] = dense(frame_at(x, frame[k] // n_inner, frame[k] % n_inner), part[k] * SLICE_CLASSES, sizes[k],
                             scratch + k * SLICE_CLASSES)
            begin_peaks(&peaks[k * SLICE_PEAK_LANES])
        if t > first:
            adding.shift = shift_of(m[1 - k])
            adding.n_equal = 0
            clear_lanes(total, error, N_LANES, m)
        pass_three(&found[k], sizes[k], &peaks[k * SLICE_PEAK_LANES], &adding, &found[1 - k], sizes[1 - k],
                   &peaks[(1 - k) * SLICE_PEAK_LANES], total, error, &found[k], &found[k], 0, <floating> 0,
                   <floating> 0, False)
        if t < last:
            m[k] = end_peaks(&peaks[k * SLICE_PEAK_LANES])
        if t > first:
            put_partial(end_sum(total, error, m[1 - k], &adding), found[1 - k], sizes[1 - k],
                        frame_at(to, frame[1 - k] // n_inner, frame[1 - k] % n_inner).at + part[1 - k] * to.step, m)


# Some classes of a frame.
cdef struct PartOf:
    Py_ssize_t i
    Py_ssize_t j
    Py_ssize_t start
    Py_ssize_t n


cdef inline PartOf part_number(Py_ssize_t t, Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner,
                               Py_ssize_t unit) noexcept nogil:
    """Part t of `unit` classes: frame by frame, or of interleaved frames, for which the unit is another, not."""
    cdef PartOf at
    cdef Py_ssize_t frame, n_frames = n_outer * n_inner, n_parts = (n + unit - 1) // unit
    frame = t // n_parts if unit == SLICE_CLASSES else t % n_frames
    at.start = unit * (t % n_parts if unit == SLICE_CLASSES else t // n_frames)
    at.i, at.j = frame // n_inner, frame % n_inner
    at.n = min(unit, n - at.start)
    return at


cdef void write_parts_of(int op, Array p, Array x, Array y, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n_outer,
                         Py_ssize_t n, Py_ssize_t n_inner, Py_ssize_t unit, bint stream,
                         floating* scratch) noexcept nogil:
    """The result of parts `first` to last - 1 of `unit` classes, from the partials of their whole frames."""
    cdef floating params[N_PARAMS * MAX_WIDTH]
    cdef Vector a, to
    cdef Partial whole
    cdef Adding adding
    cdef PartOf at
    cdef Py_ssize_t t, n_part, n_head
    cdef double total[1]
    adding.far = False
    adding.shift = shift_of(<floating> 0)
    for t in range(first, last):
        at = part_number(t, n_outer, n, n_inner, unit)
        n_part = at.n
        whole = (<const Partial*> frame_at(p, at.i, at.j).at)[0]
        a = frame_at(part_at(frame_at(x, at.i, at.j), at.start), 0, 0)
        to = frame_at(part_at(frame_at(y, at.i, at.j), at.start), 0, 0)
        if op == LOGSUMEXP:
            total[0] = whole.largest
            if fabs(whole.largest) < INFINITY:
                total[0] += log1p_double(whole.below + (whole.n_largest - 1))
            write(to, 0, 1, total, False)
        elif op == SOFTMAX:
            finalize(SOFTMAX, False, whole, params)
            write_slice(SOFTMAX, a, a, to, 0, n_part, params, stream, scratch)
        elif a.kind <= BFLOAT16:  # converted block by block: see rows.pxi
            finalize(LOG_SOFTMAX, False, whole, params)
            n_head = min(misaligned(to, stream), n_part)
            pass_three(&a, 0, scratch, &adding, &a, 0, scratch, NULL, NULL, &a, &to, n_head, params[0],
                       params[MAX_WIDTH], False)
            a.at += n_head * a.step
            to.at += n_head * to.step
            pass_three(&a, 0, scratch, &adding, &a, 0, scratch, NULL, NULL, &a, &to, n_part - n_head, params[0],
                       params[MAX_WIDTH], stream)
        else:
            finalize(LOG_SOFTMAX, False, whole, params)
            write_slice(LOG_SOFTMAX, a, a, to, 0, n_part, params, stream, scratch)
    lsm_stream_fence()


cdef void run_share(int op, Array p, Array x, Array b, Array y, Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner,
                    floating* scratch, int share, int n_shares, bint stream) noexcept nogil:
    """The work of one of n_shares threads."""
    cdef Py_ssize_t unit = SLICE_CLASSES, n_tasks, first, last
    cdef uint64_t env = lsm_enter_float_env()
    if op >= 0 and are_interleaved(x, n_outer, n_inner):
        unit = PART_CLASSES
    n_tasks = n_outer * n_inner * ((n + unit - 1) // unit)
    first, last = share * n_tasks // n_shares, (share + 1) * n_tasks // n_shares
    if op == PARTIALS:
        reduce_slices_of(x, y, first, last, n_outer, n, n_inner, scratch)
    elif op == PARTIALS_BACKWARD:
        reduce_gradients_of(x, b, y, first, last, n, n_inner, scratch)
    elif op == LOG_SOFTMAX_BACKWARD:
        write_gradients_of(p, x, b, y, first, last, n_outer, n, n_inner, unit, stream, scratch)
    else:
        write_parts_of(op, p, x, y, first, last, n_outer, n, n_inner, unit, stream, scratch)
    lsm_leave_float_env(env)


cdef void run_shares(int op, Array p, Array x, Array b, Array y, Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner,
                     floating* scratch, Py_ssize_t n_bytes, int n_threads, bint stream) noexcept nogil:
    cdef int t
    n_threads = lsm_begin_region(n_threads)
    if n_threads == 1:
        run_share(op, p, x, b, y, n_outer, n, n_inner, own_scratch(scratch, n_bytes, 0), 0, 1, stream)
        return
    for t in prange(n_threads, schedule="static", num_threads=n_threads):
        run_share(op, p, x, b, y, n_outer, n, n_inner, own_scratch(scratch, n_bytes, t), t, n_threads, stream)
    lsm_end_region(n_threads)


def run_part(int op, const unsigned char[:, :, :, :] p, const unsigned char[:, :, :, :] x,
             const unsigned char[:, :, :, :] b, unsigned char[:, :, :, :] y, int kind, int kind_y,
             unsigned char[:, ::1] scratch, int n_threads, bint stream):
    """An operation over axis 1 of (outer, classes, inner, itemsize) where x is a part of its frames; y may be x or b.

    p: the partials of whole frames, one for each frame, as `fold_partials` or `fold_gradients` gives them. If op is
    negative, y is what the partials of x are written to, one for each slice; p is not read. Otherwise as `run`.
    """
    cdef Array of_x = array_of(<char*> &x[0, 0, 0, 0], x.strides, kind, NULL, 1)
    cdef Array of_b = array_of(<char*> &b[0, 0, 0, 0], b.strides, kind, NULL, 1)
    cdef Array of_p = array_of(<char*> &p[0, 0, 0, 0], p.strides, DOUBLE, NULL, 1)
    cdef Array of_y = array_of(<char*> &y[0, 0, 0, 0], y.strides, kind_y, NULL, 1)
    cdef Py_ssize_t* shape = x.shape
    cdef char* s = <char*> &scratch[0, 0]
    with nogil:
        if kind == DOUBLE or (kind_y == DOUBLE and op >= 0):
            run_shares(op, of_p, of_x, of_b, of_y, shape[0], shape[1], shape[2], <double*> s, scratch.shape[1],
                       n_threads, stream)
        else:
            run_shares(op, of_p, of_x, of_b, of_y, shape[0], shape[1], shape[2], <float*> s, scratch.shape[1],
                       n_threads, stream)


cdef Partial fold_slices(const double* p, Py_ssize_t n_slices, Py_ssize_t step) noexcept nogil:
    """The partial of slices together, `step` doubles apart."""
    cdef Partial total
    cdef Py_ssize_t part
    total.largest = -INFINITY
    total.below = total.n_largest = 0
    for part in range(n_slices):
        merge(&total, (<const Partial*> p)[0])
        if p[0] != p[0]:
            total.largest = NAN
        p += step
    return total


def fold_partials(const double[:, :, :, ::1] p, double[:, :, ::1] out):
    """out[i, j] = the partial of the slices p[i, :, j] together, with the number of their classes."""
    cdef Py_ssize_t i, j, part
    cdef uint64_t env
    with nogil:
        env = lsm_enter_float_env()
        for i in range(p.shape[0]):
            for j in range(p.shape[2]):
                (<Partial*> &out[i, j, 0])[0] = fold_slices(&p[i, 0, j, 0] if p.shape[1] else NULL, p.shape[1],
                                                            4 * p.shape[2])
                out[i, j, 3] = 0
                for part in range(p.shape[1]):
                    out[i, j, 3] += p[i, part, j, 3]
        lsm_leave_float_env(env)
