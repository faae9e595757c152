# The gradient with vectors along the classes, two rows or parts of rows in flight, through stages_backward.pxi.

# The sum of dy over some of a frame's classes.
cdef struct Sum:
    double total
    double error  # to be added to total


cdef inline Sum end_sum_backward(double* total, double* error, const floating* type) noexcept nogil:
    cdef Sum found
    fold_lanes(total, error, N_LANES, 1, type)
    found.total = total[0]
    found.error = error[0]
    return found


cdef inline void add_sum(Sum* found, Sum of_part) noexcept nogil:
    two_sum(&found.total, &found.error, of_part.total)
    found.error += of_part.error


cdef void log_softmax_backward_rows(Array dy, Array y, Array dx, Py_ssize_t i, Py_ssize_t first, Py_ssize_t last,
                                    Py_ssize_t n, floating* scratch, bint stream) noexcept nogil:
    """The gradient of frames `first` to last - 1 of outer index i, with two parts in flight."""
    cdef floating stage[PIPELINE_MAX_CLASSES + 2 * N_LANES]
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef char* source[PIPELINE_DEPTH]
    cdef Scaled scaled[4]
    cdef bint easy[4]
    cdef Sum s
    cdef Vector a, of_dy, of_y, target
    cdef bint single = n <= SLICE_CLASSES
    cdef Py_ssize_t n_parts = count_slices(n), n_all = (last - first) * n_parts, lag = 2 if single else n_parts
    cdef Py_ssize_t t, c, n_a, n_c, f, part, n_head, n_pending = 0, n_bad = 0
    cdef bint staged = n <= PIPELINE_MAX_CLASSES and (stream or not is_native(frame_at(dx, i, first), stage))
    cdef bint far = is_far(dy, last - first, n)
    a = of_dy = frame_at(dy, i, first) if dy.step == size_of(dy.kind) else native(scratch)
    of_y = frame_at(y, i, first) if y.step == size_of(y.kind) else native(scratch)
    target = native(stage) if staged else frame_at(dx, i, first)
    s.total = s.error = 0
    scale_sum(0, 0, &scaled[0], floating is float)
    for t in range(n_all + lag):
        c = t - lag
        n_a = n_c = f = part = 0
        if t < n_all:
            part = 0 if single else t % n_parts
            n_a = size_of_part(part, n)
            a.at = dense(frame_at(dy, i, first + (t if single else t // n_parts)), part * SLICE_CLASSES, n_a,
                         slot(scratch, t % 4, n)).at
            source[t % PIPELINE_DEPTH] = a.at
            clear_lanes(total, error, N_LANES, scratch)
        if c >= 0:
            f = c if single else c // n_parts
            part = c - f * n_parts
            n_c = size_of_part(part, n)
            of_dy.at = source[c % PIPELINE_DEPTH]
            of_y.at = dense(frame_at(y, i, first + f), part * SLICE_CLASSES, n_c, slot(scratch, 4, n)).at
            target.at = <char*> &stage[n_pending] if staged else part_of(frame_at(dx, i, first + f), part).at
            if part == 0:
                n_bad = 0
            if not easy[f % 4]:
                if part == 0:
                    careful_backward_frame(frame_at(dy, i, first + f), frame_at(y, i, first + f), target, n, scratch)
                n_c = 0
            elif stream and not staged:
                n_head = min(misaligned(target, True), n_c)
                if n_head:
                    n_bad += pass_two(&a, 0, total, error, &of_dy, &of_y, &target, n_head, scaled[f % 4], False, far,
                                      scratch)
                    of_dy.at += n_head * of_dy.step
                    of_y.at += n_head * of_y.step
                    target.at += n_head * target.step
                    n_c -= n_head
        n_bad += pass_two(&a, n_a, total, error, &of_dy, &of_y, &target, n_c, scaled[f % 4], stream and not staged, far,
                          scratch)
        if c >= 0 and n_bad and part == n_parts - 1:
            fill_nan(native(&stage[n_pending]) if staged else frame_at(dx, i, first + f), n, scratch)
        if staged and c >= 0:
            n_pending = flush(stage, n_pending, n, frame_at(dx, i, first + f), stream,
                              f == last - first - 1 or not lies_whole(dx, n))
        if n_a:
            if single or t % n_parts == 0:
                s.total = s.error = 0
            add_sum(&s, end_sum_backward(total, error, scratch))
            if single or (t + 1) % n_parts == 0:
                f = t if single else t // n_parts
                easy[f % 4] = scale_sum(s.total, s.error, &scaled[f % 4], floating is float)
                easy[f % 4] &= not is_masked(frame_at(y, i, first + f), n, scratch)
