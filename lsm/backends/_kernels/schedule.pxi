# Distribution of frames to threads. It does not affect the bits of any result.

# The partition of the inner axis: bands of tiles first, then groups.
cdef struct Cut:
    Py_ssize_t n_inner, n_tiled, n_band, n_bands, n_group, n_tasks


cdef inline Cut cut(Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner, Py_ssize_t room, bint all_dense,
                    int n_threads) noexcept nogil:
    """room: numbers of scratch for each input; all_dense: inner stride 1 in all arrays."""
    cdef Cut c
    cdef Py_ssize_t n_tiles
    c.n_inner = n_inner
    c.n_tiled = 0
    c.n_band = TILE_COLUMNS
    if n_inner >= TILE_MIN_COLUMNS and all_dense:
        c.n_tiled = n_inner // TILE_COLUMNS * TILE_COLUMNS
        if fits(n) and n_inner - c.n_tiled >= TILE_MIN_COLUMNS:
            c.n_tiled = n_inner
        n_tiles = n_outer * ((c.n_tiled + TILE_COLUMNS - 1) // TILE_COLUMNS)
        c.n_band = TILE_COLUMNS * count_band(n, room, n_tiles, n_threads)
    c.n_bands = (c.n_tiled + c.n_band - 1) // c.n_band
    c.n_group = GROUP_FRAMES
    if n > SHORT_MAX_CLASSES:  # one group: a thread pipelines all its frames
        c.n_group = max(1, (n_inner - c.n_tiled + n_threads - 1) // n_threads if n_outer == 1 else n_inner - c.n_tiled)
    c.n_tasks = c.n_bands + (n_inner - c.n_tiled + c.n_group - 1) // c.n_group
    return c


cdef inline Tile tile_at(Array x, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    cdef Tile tile
    tile.at = x.at + i * x.outer + j * x.gap
    tile.step = x.step
    tile.gap = x.gap
    tile.kind = x.kind
    return tile


cdef inline bint lies_dense(Array x) noexcept nogil:
    return x.gap == size_of(x.kind) and x.step != x.gap


cdef inline void swap_axes(Array* x) noexcept nogil:
    x.outer, x.gap = x.gap, x.outer


cdef inline floating* own_scratch(floating* scratch, Py_ssize_t n_bytes, int thread) noexcept nogil:
    """The scratch of one thread, aligned to a cache line."""
    cdef char* at = <char*> scratch + thread * n_bytes
    return <floating*> (at + (-<Py_ssize_t> at & 63))


cdef inline bint shall_split(Py_ssize_t n_frames, Py_ssize_t n, int n_threads) noexcept nogil:
    """Whether to split each frame over the threads: few long frames would leave threads idle."""
    return n_threads > 1 and n >= 4 * SLICE_CLASSES and n_frames < 4 * n_threads and n_frames % n_threads != 0


cdef inline void log_softmax_task(Array x, Array y, Py_ssize_t n, Py_ssize_t task, Cut c, floating* scratch,
                                  bint stream) noexcept nogil:
    """Run one band or group: tasks 0 to n_bands - 1 of each outer index are bands."""
    cdef Py_ssize_t i = task // c.n_tasks, j = task % c.n_tasks, last
    if j < c.n_bands:
        j *= c.n_band
        log_softmax_band(tile_at(x, i, j), tile_at(y, i, j), n, min(c.n_band, c.n_tiled - j), scratch, stream)
    else:
        j = c.n_tiled + (j - c.n_bands) * c.n_group
        last = min(j + c.n_group, c.n_inner)
        if n <= SHORT_MAX_CLASSES:
            log_softmax_short(x, y, i, j, last - j, n, scratch, stream)
        elif can_pipe(x, n):
            log_softmax_rows(x, y, i, j, last, n, scratch, stream)
        else:
            for j in range(j, last):
                log_softmax_frame(frame_at(x, i, j), frame_at(y, i, j), n, scratch, stream)


cdef void log_softmax_frames(Array x, Array y, Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner,
                             floating* scratch, Py_ssize_t n_bytes, int n_threads, bint stream) noexcept nogil:
    cdef Cut c
    cdef Py_ssize_t task, i
    cdef uint64_t env = lsm_enter_float_env()
    n_threads = lsm_begin_region(n_threads)
    if n_inner == 1:
        n_outer, n_inner = n_inner, n_outer
        swap_axes(&x)
        swap_axes(&y)
    if shall_split(n_outer * n_inner, n, n_threads):
        for i in range(n_outer * n_inner):
            split_log_softmax(frame_at(x, i // n_inner, i % n_inner),
                              frame_at(y, i // n_inner, i % n_inner), n, scratch, n_bytes, n_threads,
                              stream)
    else:
        c = cut(n_outer, n, n_inner, 2 * SLICE_CLASSES, lies_dense(x) and lies_dense(y), n_threads)
        if n_threads == 1:  # a parallel region costs microseconds, even with one thread
            for task in range(n_outer * c.n_tasks):
                log_softmax_task(x, y, n, task, c, own_scratch(scratch, n_bytes, 0), stream)
            lsm_stream_fence()
        else:
            with parallel(num_threads=n_threads):
                env = lsm_enter_float_env()
                for task in prange(n_outer * c.n_tasks, schedule="static"):
                    log_softmax_task(x, y, n, task, c, own_scratch(scratch, n_bytes, omp_get_thread_num()), stream)
                lsm_stream_fence()
                lsm_leave_float_env(env)
    lsm_end_region(n_threads)
    lsm_leave_float_env(env)


cdef void split_log_softmax(Vector x, Vector y, Py_ssize_t n, floating* scratch, Py_ssize_t n_bytes, int n_threads,
                            bint stream) noexcept nogil:
    """log_softmax_frame with the slices distributed; each thread writes first what it read last."""
    cdef Py_ssize_t n_parts = count_slices(n), part
    cdef Frame* found = <Frame*> malloc(n_parts * sizeof(Frame))
    cdef Frame frame
    cdef floating c_hi, c_lo
    cdef uint64_t env
    cdef int t
    if found == NULL:  # one thread needs no allocation
        log_softmax_frame(x, y, n, own_scratch(scratch, n_bytes, 0), stream)
        lsm_stream_fence()
        return
    for t in prange(n_threads, schedule="static", num_threads=n_threads):
        env = lsm_enter_float_env()
        read_parts(x, t * n_parts // n_threads, (t + 1) * n_parts // n_threads, n,
                   own_scratch(scratch, n_bytes, t), found + t * n_parts // n_threads)
        lsm_leave_float_env(env)
    frame = found[0]
    for part in range(1, n_parts):
        merge(&frame, found[part])
    free(found)
    normaliser(frame, &c_hi, &c_lo)
    for t in prange(n_threads, schedule="static", num_threads=n_threads):
        env = lsm_enter_float_env()
        for part in range((t + 1) * n_parts // n_threads - 1, t * n_parts // n_threads - 1, -1):
            write_part(x, y, part, n, c_hi, c_lo, own_scratch(scratch, n_bytes, t), stream)
        lsm_stream_fence()
        lsm_leave_float_env(env)


cdef inline void log_softmax_backward_task(Array dy, Array y, Array dx, Py_ssize_t n, Py_ssize_t task, Cut c,
                                           floating* scratch, bint stream) noexcept nogil:
    """Run one band or group of the gradient."""
    cdef Py_ssize_t i = task // c.n_tasks, j = task % c.n_tasks, last
    if j < c.n_bands:
        j *= c.n_band
        log_softmax_backward_band(tile_at(dy, i, j), tile_at(y, i, j), tile_at(dx, i, j), n,
                                  min(c.n_band, c.n_tiled - j), scratch, stream)
    else:
        j = c.n_tiled + (j - c.n_bands) * c.n_group
        last = min(j + c.n_group, c.n_inner)
        if n <= SHORT_MAX_CLASSES:
            log_softmax_backward_short(dy, y, dx, i, j, last - j, n, scratch, stream)
        elif can_pipe(dy, n) and can_pipe(y, n):
            log_softmax_backward_rows(dy, y, dx, i, j, last, n, scratch, stream)
        else:
            for j in range(j, last):
                log_softmax_backward_frame(frame_at(dy, i, j), frame_at(y, i, j), frame_at(dx, i, j), n, scratch,
                                           stream)


cdef void log_softmax_backward_frames(Array dy, Array y, Array dx, Py_ssize_t n_outer, Py_ssize_t n,
                                      Py_ssize_t n_inner, floating* scratch, Py_ssize_t n_bytes, int n_threads,
                                      bint stream) noexcept nogil:
    cdef Cut c
    cdef Py_ssize_t task, i
    cdef uint64_t env = lsm_enter_float_env()
    n_threads = lsm_begin_region(n_threads)
    if n_inner == 1:
        n_outer, n_inner = n_inner, n_outer
        swap_axes(&dy)
        swap_axes(&y)
        swap_axes(&dx)
    if shall_split(n_outer * n_inner, n, n_threads):
        for i in range(n_outer * n_inner):
            split_log_softmax_backward(frame_at(dy, i // n_inner, i % n_inner),
                                       frame_at(y, i // n_inner, i % n_inner),
                                       frame_at(dx, i // n_inner, i % n_inner), n, scratch, n_bytes,
                                       n_threads, stream)
    else:
        c = cut(n_outer, n, n_inner, room_backward(scratch), lies_dense(dy) and lies_dense(y) and lies_dense(dx),
                n_threads)
        if n_threads == 1:
            for task in range(n_outer * c.n_tasks):
                log_softmax_backward_task(dy, y, dx, n, task, c, own_scratch(scratch, n_bytes, 0), stream)
            lsm_stream_fence()
        else:
            with parallel(num_threads=n_threads):
                env = lsm_enter_float_env()
                for task in prange(n_outer * c.n_tasks, schedule="static"):
                    log_softmax_backward_task(dy, y, dx, n, task, c,
                                              own_scratch(scratch, n_bytes, omp_get_thread_num()), stream)
                lsm_stream_fence()
                lsm_leave_float_env(env)
    lsm_end_region(n_threads)
    lsm_leave_float_env(env)


cdef void split_log_softmax_backward(Vector dy, Vector y, Vector dx, Py_ssize_t n, floating* scratch,
                                     Py_ssize_t n_bytes, int n_threads, bint stream) noexcept nogil:
    """log_softmax_backward_frame with the slices distributed."""
    cdef Py_ssize_t n_parts = count_slices(n), part, n_bad = 0
    cdef Sum* found = <Sum*> malloc(n_parts * sizeof(Sum))
    cdef Sum s
    cdef Scaled of
    cdef uint64_t env
    cdef int t
    if found == NULL:
        log_softmax_backward_frame(dy, y, dx, n, own_scratch(scratch, n_bytes, 0), stream)
        lsm_stream_fence()
        return
    for t in prange(n_threads, schedule="static", num_threads=n_threads):
        env = lsm_enter_float_env()
        for part in range(t * n_parts // n_threads, (t + 1) * n_parts // n_threads):
            found[part] = sum_part(dy, part, n, own_scratch(scratch, n_bytes, t))
        lsm_leave_float_env(env)
    s.total = s.error = 0
    for part in range(n_parts):
        add_sum(&s, found[part])
    free(found)
    if is_masked(y, n, scratch) or not scale_sum(s.total, s.error, &of, floating is float):
        careful_backward_frame(dy, y, dx, n, scratch)
        return
    for t in prange(n_threads, schedule="static", num_threads=n_threads):
        env = lsm_enter_float_env()
        for part in range((t + 1) * n_parts // n_threads - 1, t * n_parts // n_threads - 1, -1):
            n_bad += gradient_part(dy, y, dx, part, n, of, own_scratch(scratch, n_bytes, t),
                                   own_scratch(scratch, n_bytes, t) + SLICE_CLASSES, stream)
        lsm_stream_fence()
        lsm_leave_float_env(env)
    if n_bad:
        fill_nan(dx, n, scratch)
