# Vectors along the classes, three rows or parts of rows in flight, through the stages of stages.pxi. For many classes
# of log-softmax this is up to a third faster than traverse_rows.pxi, where each stage is a pass of its own.


cdef inline void begin_peaks(floating* peaks) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(PEAK_LANES):
        peaks[k] = -INFINITY


cdef inline floating end_peaks(const floating* peaks) noexcept nogil:
    """The maximum of a part, from its peaks. It may miss a NaN, which the sum finds."""
    cdef floating high[8]
    cdef Py_ssize_t k
    for k in range(8):
        high[k] = larger(peaks[k + 8], peaks[k])
    for k in range(4):
        high[k] = larger(high[k + 4], high[k])
    return larger(larger(high[0], high[1]), larger(high[2], high[3]))


cdef inline Partial end_sum(double* total, double* error, floating m, Adding* adding) noexcept nogil:
    """The partial result of a part."""
    cdef Partial frame
    fold_lanes(total, error, N_LANES, 1, &m)
    frame.largest = m
    frame.below = finish(total[0], error[0], adding.shift, floating is float)
    frame.n_largest = adding.n_equal
    return frame


cdef inline void normalisers(const double* total, const double* error, const double* n_equal, const floating* m,
                             floating* c_hi, floating* c_lo) noexcept nogil:
    """The normalisers of FINALIZE_BATCH_FRAMES single-part frames, given their sums."""
    cdef Partial frame
    cdef Py_ssize_t j
    for j in range(FINALIZE_BATCH_FRAMES):  # hot: 32
        frame.largest = m[j]
        frame.below = finish(total[j], error[j], shift_of(m[j]), floating is float)
        frame.n_largest = n_equal[j]
        normaliser(frame, &c_hi[j], &c_lo[j])


cdef inline Vector part_of(Vector x, Py_ssize_t part) noexcept nogil:
    x.at += part * SLICE_CLASSES * x.step
    return x


cdef inline bint is_far(Array x, Py_ssize_t n_frames, Py_ssize_t n) noexcept nogil:
    """Whether these frames may exceed the caches. Prefetching cached data costs 10 %."""
    return n_frames * n * size_of(x.kind) >= prefetch_min_bytes


cdef inline bint can_pipe(Array x, Py_ssize_t n) noexcept nogil:
    """Whether log_softmax_rows can handle n classes: the frames in flight must fit the scratch or the cache."""
    return n <= PIPELINE_MAX_CLASSES or (x.step == size_of(x.kind) and n * x.step <= PIPELINE_BYTES)


cdef inline floating* slot(floating* scratch, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """The scratch of the i-th frame in flight, for frames of at most PIPELINE_MAX_CLASSES classes."""
    return scratch + i % PIPELINE_SLOTS * ((n + ROW_CLASSES - 1) // ROW_CLASSES * ROW_CLASSES)


cdef inline bint is_ahead(const char* y, Vector x) noexcept nogil:
    """Whether stores to y lie just ahead of loads from x, up to a multiple of 4096 bytes.

    The processor compares the low 12 bits of addresses, and makes such loads wait for the stores: with rows of 65,536
    classes of float32 that lie at 16 bytes after a page, as NumPy's do, everything took 2.3 times as long.
    """
    cdef Py_ssize_t lead = <Py_ssize_t> ((<uintptr_t> y - <uintptr_t> x.at) & 4095)
    return 0 < lead < STORE_LEAD_BYTES // 2


cdef void log_softmax_rows(Array x, Array y, Py_ssize_t i, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n,
                           floating* scratch, bint stream) noexcept nogil:
    """Log-softmax of frames `first` to last - 1 of outer index i: a software pipeline of three parts.

    Two stages of a part are `lag` steps apart. A step in between hides the latency of finalizing the first; for a part
    of SLICE_CLASSES classes that is negligible. Frames of a single part are finalized in batches of
    FINALIZE_BATCH_FRAMES if they are many or short.
    """
    cdef floating peaks[3 * SLICE_PEAK_LANES]
    cdef floating stage[PIPELINE_MAX_CLASSES + 2 * N_LANES]
    cdef floating m[PIPELINE_DEPTH]
    cdef floating c_hi[PIPELINE_DEPTH]
    cdef floating c_lo[PIPELINE_DEPTH]
    cdef double totals[PIPELINE_DEPTH]
    cdef double errors[PIPELINE_DEPTH]
    cdef double n_equal[PIPELINE_DEPTH]
    cdef char* source[PIPELINE_DEPTH]
    cdef double total[N_LANES]
    cdef double error[N_LANES]
    cdef Adding adding
    cdef Partial frame
    cdef Vector x_a, x_v, x_x, target
    cdef bint is_dense = x.step == size_of(x.kind)
    cdef bint single = n <= SLICE_CLASSES
    cdef Py_ssize_t n_parts = count_slices(n), n_all = (last - first) * n_parts
    cdef bint shall_wait = single and (n <= FINALIZE_BATCH_MAX_CLASSES or n_all >= 3 * FINALIZE_BATCH_FRAMES)
    cdef Py_ssize_t together = min(<Py_ssize_t> FINALIZE_BATCH_FRAMES, n_all) if shall_wait else 1
    cdef Py_ssize_t lag = 2 if single else 1, lag_put = together + 3 if single else n_parts + 1
    cdef Py_ssize_t n_peaks = (1 + count_blocks(min(n, <Py_ssize_t> SLICE_CLASSES))) * PEAK_LANES
    cdef Py_ssize_t t, v, c, n_a, n_v, n_x, f, k, n_head, n_pending = 0
    cdef bint is_plain = is_native(frame_at(y, i, first), stage), staged
    if floating is float and is_plain and n <= REGULAR_STORE_MAX_CLASSES:
        stream = False
    staged = n <= PIPELINE_MAX_CLASSES and (stream or not is_plain)
    for k in range(PIPELINE_DEPTH):
        m[k] = c_hi[k] = c_lo[k] = 0
        totals[k] = errors[k] = n_equal[k] = 0
    x_a = x_v = x_x = frame_at(x, i, first) if is_dense else native(scratch)
    target = frame_at(y, i, first)
    adding.shift = shift_of(<floating> 0)
    adding.far = is_far(x, last - first, n)
    for t in range(n_all + lag_put):
        v = t - lag
        c = t - lag_put
        n_a = n_v = n_x = 0
        if t < n_all:
            f = 0 if single else t % n_parts
            n_a = size_of_part(f, n)
            x_a.at = dense(frame_at(x, i, first + (t if single else t // n_parts)), f * SLICE_CLASSES, n_a,
                           slot(scratch, t, n)).at
            source[t % PIPELINE_DEPTH] = x_a.at
            begin_peaks(&peaks[t % 3 * n_peaks])
        if 0 <= v < n_all:
            n_v = size_of_part(0 if single else v % n_parts, n)
            x_v.at = source[v % PIPELINE_DEPTH]
            adding.shift = shift_of(m[v % PIPELINE_DEPTH])
            adding.n_equal = 0
            clear_lanes(total, error, N_LANES, m)
        f = 0
        if c >= 0:
            f = c if single else c // n_parts
            n_x = size_of_part(c - f * n_parts, n)
            x_x.at = source[c % PIPELINE_DEPTH]
            target = part_of(frame_at(y, i, first + f), c - f * n_parts)
            if staged:
                target = native(&stage[n_pending])
            elif stream:
                n_head = misaligned(target, True)
                if is_ahead(target.at + n_head * target.step, x_a) or is_ahead(target.at + n_head * target.step, x_v):
                    n_head += STORE_LEAD_BYTES // target.step
                n_head = min(n_head, n_x)
                pass_three(&x_x, 0, peaks, &adding, &x_x, 0, peaks, total, error, &x_x, &target, n_head,
                           c_hi[f % PIPELINE_DEPTH], c_lo[f % PIPELINE_DEPTH], False)
                x_x.at += n_head * x_x.step
                target.at += n_head * target.step
                n_x -= n_head
        pass_three(&x_a, n_a, &peaks[t % 3 * n_peaks], &adding, &x_v, n_v, &peaks[(v + 3) % 3 * n_peaks], total, error,
                   &x_x, &target, n_x, c_hi[f % PIPELINE_DEPTH], c_lo[f % PIPELINE_DEPTH], stream and not staged)
        if n_a:
            m[t % PIPELINE_DEPTH] = end_peaks(&peaks[t % 3 * n_peaks])
        if n_v and single:
            k = v % PIPELINE_DEPTH
            fold_lanes(total, error, N_LANES, 1, m)
            totals[k] = total[0]
            errors[k] = error[0]
            n_equal[k] = adding.n_equal
            if (v + 1) % together == 0 or v == n_all - 1:
                k = k // FINALIZE_BATCH_FRAMES * FINALIZE_BATCH_FRAMES
                normalisers(&totals[k], &errors[k], &n_equal[k], &m[k], &c_hi[k], &c_lo[k])
        elif n_v:
            if v % n_parts == 0:
                frame = end_sum(total, error, m[v % PIPELINE_DEPTH], &adding)
            else:
                merge(&frame, end_sum(total, error, m[v % PIPELINE_DEPTH], &adding))
            if (v + 1) % n_parts == 0:
                k = v // n_parts % PIPELINE_DEPTH
                normaliser(frame, &c_hi[k], &c_lo[k])
        if staged and c >= 0:
            n_pending = flush(stage, n_pending, n, frame_at(y, i, first + f), stream,
                              f == last - first - 1 or not lies_whole(y, n))


cdef inline Py_ssize_t flush(floating* stage, Py_ssize_t n_pending, Py_ssize_t n, Vector y, bint stream,
                             bint is_last) noexcept nogil:
    """Write a frame from the staging buffer, after n_pending numbers of the frame before; returns how many are left.

    Nontemporal stores cover whole cache lines as far as possible.
    """
    cdef Py_ssize_t n_left = 0
    if not is_native(y, stage):
        write(y, 0, n, stage, stream)
        return 0
    y.at -= n_pending * <Py_ssize_t> sizeof(floating)
    n += n_pending
    if not is_last and <uintptr_t> y.at % sizeof(floating) == 0:
        n_left = <Py_ssize_t> ((<uintptr_t> y.at + n * sizeof(floating)) % 64 // sizeof(floating))
    put(y.at, stage, (n - n_left) * sizeof(floating), stream)
    memcpy(stage, &stage[n - n_left], 16 * sizeof(floating))
    return n_left
