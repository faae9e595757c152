# Distribution of frames to threads. It does not affect the bits of any result.


cdef inline void swap_axes(Array* x) noexcept nogil:
    x.outer, x.gap = x.gap, x.outer


cdef inline floating* own_scratch(floating* scratch, Py_ssize_t n_bytes, int thread) noexcept nogil:
    """The scratch of one thread, aligned to a cache line."""
    cdef char* at = <char*> scratch + thread * n_bytes
    return <floating*> (at + (-<Py_ssize_t> at & 63))


cdef inline bint shall_split(Py_ssize_t n_frames, Py_ssize_t n, int n_threads) noexcept nogil:
    """Whether to split each frame over the threads: few long frames would leave threads idle."""
    return n_threads > 1 and n >= 4 * SLICE_CLASSES and n_frames < 4 * n_threads and n_frames % n_threads != 0


cdef inline Py_ssize_t magnitude(Py_ssize_t n) noexcept nogil:
    return -n if n < 0 else n


cdef inline bint are_rows(int op, Array a, Array y, Py_ssize_t n_inner) noexcept nogil:
    """Whether vectors run along the classes: for the last axis, and for frames that lie apart."""
    return (n_inner == 1 or magnitude(a.gap) >= magnitude(a.step)
            or (writes_elements(op) and magnitude(y.gap) >= magnitude(y.step)))


cdef inline bint is_pipelined(int op, Array a, Array b, Py_ssize_t n) noexcept nogil:
    """Whether rows go through rows.pxi or rows_backward.pxi, which is faster for many classes."""
    cdef Py_ssize_t least = PIPELINED_MIN_CLASSES
    if a.kind == DOUBLE:
        least = PIPELINED_MIN_CLASSES_DOUBLE
    elif reads_two(op):
        least = PIPELINED_MIN_CLASSES_BACKWARD
    return (has_pipeline(op) and n >= least and not is_altered(a.kind | b.kind)  # read three times
            and can_pipe(a, n) and can_pipe(b, n))


cdef inline Py_ssize_t longest_of_group(const floating* of) noexcept nogil:
    """The length up to which frames are reduced as a whole, and copies fit the scratch."""
    return min(packed_numbers(of), <Py_ssize_t> SLICE_CLASSES)


cdef inline Py_ssize_t group_of_rows(int op, Array a, Array b, Py_ssize_t n_outer, Py_ssize_t n,
                                     Py_ssize_t n_inner, int n_threads, bint far, const floating* of) noexcept nogil:
    """The frames of a task: a group, or all of a thread if they are pipelined."""
    if is_pipelined(op, a, b, n):
        return max(<Py_ssize_t> 1, (n_inner + n_threads - 1) // n_threads if n_outer == 1 else n_inner)
    if n > longest_of_group(of):
        return 1
    return most_short_rows(n, of) if is_short(op, n) else most_rows(op, n, far, of)


cdef inline void run_rows_task(int op, Array a, Array b, Array y, Py_ssize_t n, Py_ssize_t n_inner, Py_ssize_t group,
                               Py_ssize_t task, bint far, bint stream, floating* scratch) noexcept nogil:
    cdef Py_ssize_t n_groups = (n_inner + group - 1) // group
    cdef Py_ssize_t i = task // n_groups, first = task % n_groups * group, last = min(first + group, n_inner)
    if is_pipelined(op, a, b, n):
        if op == LOG_SOFTMAX:
            log_softmax_rows(a, y, i, first, last, n, scratch, stream)
        else:
            log_softmax_backward_rows(a, b, y, i, first, last, n, scratch, stream)
    elif n > longest_of_group(scratch):
        run_long(op, frame_at(a, i, first), frame_at(b, i, first), frame_at(y, i, first), n, stream, scratch, 0, 1)
    else:
        run_group(op, a, b, y, i, first, last - first, n, far, stream, scratch)


# How the frames are divided into blocks.
cdef struct BlockCut:
    Py_ssize_t n_joined
    Py_ssize_t n_outer   # outer indices of a block
    Py_ssize_t n_inner   # frames of an outer index in a block
    Py_ssize_t n_splits  # blocks of an outer index
    Py_ssize_t shift     # by how many frames the first of them is shorter, so that the others begin at cache lines
    Py_ssize_t n_tasks


cdef inline bint is_joinable(Array x, Py_ssize_t n_inner) noexcept nogil:
    return x.gap == size_of(x.kind) and x.step == n_inner * x.gap


cdef inline BlockCut cut_blocks(int op, Array a, Array y, Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner,
                                bint joinable, bint in_place, bint stream, int n_threads,
                                const floating* of) noexcept nogil:
    """in_place: all numbers have the computed type and are adjacent; else BLOCK_CLASSES rows must fit the scratch."""
    cdef BlockCut c
    cdef Py_ssize_t most_copied = packed_numbers(of) // BLOCK_CLASSES // CHUNK * CHUNK
    cdef Py_ssize_t widest = ACCUMULATED_COLUMNS if in_place else min(<Py_ssize_t> ACCUMULATED_COLUMNS, most_copied)
    c.n_joined = c.n_outer = c.n_splits = 1
    c.n_inner = n_inner
    c.shift = 0
    if is_few(n):
        widest = min(<Py_ssize_t> MAX_WIDTH, packed_numbers(of) // n) // CHUNK * CHUNK
        if not in_place:  # the copies stay in the L1 cache
            widest = min(widest, max(<Py_ssize_t> MIN_COPIED_COLUMNS, COPIED_NUMBERS // n // CHUNK * CHUNK))
    elif joinable and n_inner <= (CHUNK if n < BLOCK_CLASSES else min(<Py_ssize_t> JOINED_COLUMNS, most_copied)):
        c.n_joined = N_LANES
        c.n_tasks = n_outer
        return c
    elif shares_sets(op, a.step, n) and packed_numbers(of) // n >= MIN_COLUMNS:  # whole frames are copied
        widest = min(widest, packed_numbers(of) // n // CHUNK * CHUNK)
    widest = min(widest, max(<Py_ssize_t> MIN_COLUMNS, round_up(n_outer * n_inner // (4 * n_threads), CHUNK)))
    if n_inner < CHUNK:
        widest = min(widest, max(most_copied, packed_numbers(of) // n // CHUNK * CHUNK))
    if n_inner < CHUNK or (is_few(n) and 2 * n_inner <= widest):
        c.n_outer = max(<Py_ssize_t> 1, widest // n_inner)
    elif n_inner > widest:
        if in_place and stream and y.step % 64 == 0 and y.outer % 64 == 0:
            c.shift = <Py_ssize_t> (<uintptr_t> y.at % 64) // <Py_ssize_t> sizeof(floating)
        n_inner += c.shift
        c.n_splits = (n_inner + widest - 1) // widest
        c.n_inner = round_up((n_inner + c.n_splits - 1) // c.n_splits, CHUNK)
        if n_inner % c.n_inner and n_inner % c.n_inner < CHUNK and c.n_inner < widest:
            c.n_inner += CHUNK  # rather than to copy the last few frames
        c.n_splits = (n_inner + c.n_inner - 1) // c.n_inner
    c.n_tasks = (n_outer + c.n_outer - 1) // c.n_outer * c.n_splits
    return c


cdef inline Py_ssize_t first_of_split(BlockCut c, Py_ssize_t split) noexcept nogil:
    """The first frame of a block of an outer index."""
    return max(<Py_ssize_t> 0, split * c.n_inner - c.shift)


cdef inline Array block_of_task(Array x, BlockCut c, Py_ssize_t task) noexcept nogil:
    x.at += task // c.n_splits * c.n_outer * x.outer + first_of_split(c, task % c.n_splits) * x.gap
    return x


cdef inline void run_block_task(int op, Array a, Array b, Array y, Py_ssize_t n_outer, Py_ssize_t n,
                                Py_ssize_t n_inner, Py_ssize_t task, BlockCut c, bint far, bint stream,
                                floating* scratch) noexcept nogil:
    cdef Shape s
    cdef Array next_a = block_of_task(a, c, task + 1), next_b = block_of_task(b, c, task + 1)
    cdef Array next_y = block_of_task(y, c, task + 1)
    s.n = n
    s.n_outer = min(c.n_outer, n_outer - task // c.n_splits * c.n_outer)
    s.n_inner = min(first_of_split(c, task % c.n_splits + 1), n_inner) - first_of_split(c, task % c.n_splits)
    s.n_frames = s.n_outer * s.n_inner
    s.n_joined = c.n_joined
    s.is_filled = False
    s.width = N_LANES * s.n_inner if s.n_joined > 1 else s.n_outer * s.n_inner
    if is_interleaved(s):
        s.width = round_up(s.width, CHUNK)
    # Interleaved frames are read in the order of memory, and few long rows are prefetched by the processor itself.
    if not far or is_interleaved(s) or task + 1 == c.n_tasks or (
            is_few(n) and s.n_outer == 1 and s.n_inner * size_of(a.kind) >= LONG_ROW_BYTES):
        next_a.at = next_b.at = next_y.at = NULL
    elif s.n_joined == 1 and shares_sets(op, a.step, n):  # lines of the next block would displace each other
        next_a.at = NULL
        next_b = block_of_task(b, c, task)
        next_b.at += ROWS_AHEAD * b.step
        next_y = block_of_task(y, c, task)
        next_y.at += ROWS_AHEAD * y.step
    if round_up(n, s.n_joined) * (s.width // s.n_joined) <= packed_numbers(scratch):
        run_copied(op, block_of_task(a, c, task), block_of_task(b, c, task), block_of_task(y, c, task), s, next_a,
                   next_b, next_y, stream, scratch)
    else:
        run_block(op, block_of_task(a, c, task), block_of_task(b, c, task), block_of_task(y, c, task), s, next_a,
                  next_b, next_y, stream, scratch)


cdef void run_frames(int op, Array a, Array b, Array y, Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner,
                     floating* scratch, Py_ssize_t n_bytes, int n_threads, bint stream) noexcept nogil:
    """An operation on all frames of arrays seen as (outer, classes, inner)."""
    cdef BlockCut c
    cdef Py_ssize_t task, i, n_tasks, group = 1
    cdef bint rows, joinable, in_place, far
    cdef uint64_t env = lsm_enter_float_env()
    n_threads = lsm_begin_region(n_threads)
    if n_inner == 1:
        n_outer, n_inner = n_inner, n_outer
        swap_axes(&a)
        swap_axes(&b)
        swap_axes(&y)
    rows = are_rows(op, a, y, n_inner)
    if shall_split(n_outer * n_inner, n, n_threads):
        for i in range(n_outer * n_inner):
            run_long(op, frame_at(a, i // n_inner, i % n_inner), frame_at(b, i // n_inner, i % n_inner),
                     frame_at(y, i // n_inner, i % n_inner), n, stream, scratch, n_bytes, n_threads)
        lsm_end_region(n_threads)
        lsm_leave_float_env(env)
        return
    far = n_outer * n * n_inner * size_of(a.kind) >= prefetch_min_bytes
    if rows:
        group = group_of_rows(op, a, b, n_outer, n, n_inner, n_threads, far, scratch)
        n_tasks = n_outer * ((n_inner + group - 1) // group)
    else:
        joinable = is_joinable(a, n_inner) and (is_joinable(y, n_inner) or not writes_elements(op))
        joinable &= is_joinable(b, n_inner) or not reads_two(op)
        in_place = a.kind == kind_of(scratch) and a.gap == size_of(a.kind)
        in_place &= (y.kind == a.kind and y.gap == a.gap) or not writes_elements(op)
        in_place &= (b.kind == a.kind and b.gap == a.gap) or not reads_two(op)
        c = cut_blocks(op, a, y, n_outer, n, n_inner, joinable, in_place, stream, n_threads, scratch)
        n_tasks = c.n_tasks
    if n_threads == 1:  # a parallel region costs microseconds, even with one thread
        for task in range(n_tasks):
            if rows:
                run_rows_task(op, a, b, y, n, n_inner, group, task, far, stream, own_scratch(scratch, n_bytes, 0))
            else:
                run_block_task(op, a, b, y, n_outer, n, n_inner, task, c, far, stream,
                               own_scratch(scratch, n_bytes, 0))
        lsm_stream_fence()
    else:
        with parallel(num_threads=n_threads):
            env = lsm_enter_float_env()
            for task in prange(n_tasks, schedule="static"):
                if rows:
                    run_rows_task(op, a, b, y, n, n_inner, group, task, far, stream,
                                  own_scratch(scratch, n_bytes, omp_get_thread_num()))
                else:
                    run_block_task(op, a, b, y, n_outer, n, n_inner, task, c, far, stream,
                                   own_scratch(scratch, n_bytes, omp_get_thread_num()))
            lsm_stream_fence()
            lsm_leave_float_env(env)
    lsm_end_region(n_threads)
    lsm_leave_float_env(env)
