# The gradient of frames of which an array holds a part. The partial of a slice is a GradientPartial, six doubles: see
# fallback.pxi. They are added from the first slice to the last, as rows_backward.pxi and traverse_long.pxi do. With
# n_bad, or without any finite y, a frame becomes NaN.


cdef void reduce_gradients_of(Array dy, Array y, Array to, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n,
                              Py_ssize_t n_inner, const floating* of) noexcept nogil:
    """The partials of slices `first` to last - 1, frame by frame."""
    cdef Py_ssize_t t, i, j, part, start, n_parts = count_slices(n)
    for t in range(first, last):
        i, j = t // n_parts // n_inner, t // n_parts % n_inner
        part = t % n_parts
        start = part * SLICE_CLASSES
        (<GradientPartial*> (frame_at(to, i, j).at + part * to.step))[0] = reduce_gradient(
            frame_at(part_at(frame_at(dy, i, j), start), 0, 0), frame_at(part_at(frame_at(y, i, j), start), 0, 0),
            size_of_part(part, n), of)


cdef void write_gradient_part(GradientPartial whole, Vector dy, Vector y, Vector dx, Py_ssize_t n, bint stream,
                              floating* scratch) noexcept nogil:
    """The gradient of n classes, from the partial of their whole frame."""
    cdef Scaled scaled
    cdef double none[1]
    cdef Py_ssize_t n_head = 0
    if whole.n_bad or not whole.n_finite or not scale_sum(whole.total, whole.error, &scaled, floating is float):
        careful_backward_slice(dy, y, dx, n, whole, scratch)
        return
    if stream:
        n_head = min(misaligned(dx, True), n)
        pass_two(&dy, 0, none, none, &dy, &y, &dx, n_head, scaled, False, False, scratch)
        dy.at += n_head * dy.step
        y.at += n_head * y.step
        dx.at += n_head * dx.step
    pass_two(&dy, 0, none, none, &dy, &y, &dx, n - n_head, scaled, stream, False, scratch)


cdef void write_gradients_of(Array p, Array dy, Array y, Array dx, Py_ssize_t first, Py_ssize_t last,
                             Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner, Py_ssize_t unit, bint stream,
                             floating* scratch) noexcept nogil:
    """The gradient of parts `first` to last - 1 of `unit` classes: see write_parts_of."""
    cdef PartOf at
    cdef Py_ssize_t t
    for t in range(first, last):
        at = part_number(t, n_outer, n, n_inner, unit)
        write_gradient_part((<const GradientPartial*> frame_at(p, at.i, at.j).at)[0],
                            frame_at(part_at(frame_at(dy, at.i, at.j), at.start), 0, 0),
                            frame_at(part_at(frame_at(y, at.i, at.j), at.start), 0, 0),
                            frame_at(part_at(frame_at(dx, at.i, at.j), at.start), 0, 0), at.n, stream, scratch)
    lsm_stream_fence()


def fold_gradients(const double[:, :, :, ::1] p, double[:, :, ::1] out):
    """out[i, j] = the partial of the slices p[i, :, j] together."""
    cdef Py_ssize_t i, j, part
    cdef GradientPartial total
    cdef double error
    cdef uint64_t env
    with nogil:
        env = lsm_enter_float_env()
        for i in range(p.shape[0]):
            for j in range(p.shape[2]):
                total.total = total.error = total.scaled = total.n_bad = total.n_finite = total.n = error = 0
                for part in range(p.shape[1]):
                    add_slice_of_gradient(&total, (<const GradientPartial*> &p[i, part, j, 0])[0], &error)
                total.scaled += error
                (<GradientPartial*> &out[i, j, 0])[0] = total
        lsm_leave_float_env(env)
