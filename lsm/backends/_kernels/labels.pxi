# Frames with one label each: the log-softmax at the label, and the gradient of the loss that is its negative, which is
# rate * softmax except at the label itself. Frames are computed in tiles that stay in the level-2 cache, so that memory
# is read once and written once; frames of several slices from their partials. Where a gradient is computed, the softmax
# leaves the normalisers that the log-softmax needs. The bits are those of lsm._losses.

cdef enum:
    TILE_NUMBERS = 65536  # of a tile, and of what is computed for it
    TILE_COLUMNS = 256    # at least, of interleaved frames
    TILE_BYTES = 8 * TILE_NUMBERS + 64
    KEPT_MIN_CLASSES = 4  # of frames whose normalisers are kept: of fewer they would fill the cache


# The arrays of a call. `rate` has one number for each frame, or one for all, with a step of 0.
cdef struct Labelled:
    Frames f
    Array x
    Array y             # one number for each frame, of a kind of its own
    Array gradient      # at NULL if none is wanted
    const int64_t* label  # others than of classes: the frame is left out, its numbers are 0
    const double* rate
    Py_ssize_t rate_step
    bint stream


# Frames of a call: `n_outer` outer indices, of each the inner ones from `first` on.
cdef struct Tile:
    Py_ssize_t outer, n_outer, first, width


cdef inline Py_ssize_t count_tiles(Frames f, Tile* first) noexcept nogil:
    """The number of tiles, and the largest one; 0 if frames are too long for a tile."""
    cdef Py_ssize_t of_outer = f.n * f.n_inner, n_splits
    first.outer = first.first = 0
    first.n_outer, first.width = max(<Py_ssize_t> 1, min(TILE_NUMBERS // of_outer, f.n_outer)), f.n_inner
    if f.n_inner == 1 or of_outer <= TILE_NUMBERS:
        return (f.n_outer + first.n_outer - 1) // first.n_outer
    first.width = TILE_NUMBERS // f.n // CHUNK * CHUNK
    if first.width < min(<Py_ssize_t> TILE_COLUMNS, f.n_inner):
        return 0
    n_splits = (f.n_inner + first.width - 1) // first.width
    return f.n_outer * n_splits


cdef inline Tile tile_at(Frames f, Tile largest, Py_ssize_t t) noexcept nogil:
    cdef Tile tile = largest
    cdef Py_ssize_t n_splits = (f.n_inner + largest.width - 1) // largest.width
    tile.outer = t // n_splits * largest.n_outer
    tile.n_outer = min(largest.n_outer, f.n_outer - tile.outer)
    tile.first = t % n_splits * largest.width
    tile.width = min(largest.width, f.n_inner - tile.first)
    return tile


cdef inline bint has_label(const Labelled* of, Py_ssize_t frame) noexcept nogil:
    return 0 <= of.label[frame] < of.f.n


cdef inline Array array_at(Array x, Tile tile) noexcept nogil:
    x.at += tile.outer * x.outer + tile.first * x.gap
    return x


cdef inline Array packed_tile(char* at, Frames f, Tile tile, int kind) noexcept nogil:
    """The numbers of a tile, packed, in the order of the arrays."""
    cdef Array to = array_like(at, kind)
    to.gap = size_of(kind)
    to.step = tile.width * to.gap
    to.outer = f.n * to.step
    return to


cdef inline Array array_like(char* at, int kind) noexcept nogil:
    cdef Array to
    to.at = at
    to.kind = kind
    to.alteration.mask = 0
    to.alteration.rate = 1
    return to


cdef inline Py_ssize_t number_of_frame(Frames f, Tile tile, Py_ssize_t o, Py_ssize_t j) noexcept nogil:
    return (tile.outer + o) * f.n_inner + tile.first + j


cdef inline void put_row(const floating* p, Py_ssize_t n, int kind, char* to, bint stream) noexcept nogil:
    """Store n numbers of the computed type, rounded to the kind."""
    if kind != kind_of(p):
        if floating is float:
            narrow(p, n, kind, <uint16_t*> to)
    elif <const char*> p != to:
        put(to, p, n * sizeof(floating), stream)


cdef void scale_row(floating* p, Py_ssize_t n, floating rate) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):  # hot
        p[k] *= rate


cdef void scale_columns(floating* p, Py_ssize_t n, const floating* rate) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):  # hot
        p[k] *= rate[k]


cdef void clear_row(floating* p, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        p[k * step] = 0


cdef void write_tile_gradient(const Labelled* of, Tile tile, floating* p, floating* rates) noexcept nogil:
    """Multiply the softmax of a tile by the rates, and store it."""
    cdef Frames f = of.f
    cdef Array to = array_at(of.gradient, tile)
    cdef Py_ssize_t o, c, j, number
    for o in range(tile.n_outer):
        number = number_of_frame(f, tile, o, 0)
        if f.n_inner == 1:
            if not has_label(of, number):
                clear_row(p, f.n, 1)
            else:
                scale_row(p, f.n, <floating> of.rate[number * of.rate_step])
            put_row(p, f.n, to.kind, to.at + o * to.outer, of.stream)
            p += f.n
            continue
        for j in range(tile.width):
            rates[j] = <floating> of.rate[(number + j) * of.rate_step]
        for c in range(f.n):
            scale_columns(&p[c * tile.width], tile.width, rates)
        for j in range(tile.width):
            if not has_label(of, number + j):
                clear_row(&p[j], f.n, tile.width)
        for c in range(f.n):
            put_row(&p[c * tile.width], tile.width, to.kind, to.at + o * to.outer + c * to.step, of.stream)
        p += f.n * tile.width


cdef inline Py_ssize_t count_kept(Frames f, Tile largest) noexcept nogil:
    """The numbers of a tile's frames: for each, the normaliser and the logit at the label, later the rates of a row."""
    return 3 * largest.n_outer * largest.width if f.n >= KEPT_MIN_CLASSES else largest.width


cdef inline void find_labels(const Labelled* of, Tile tile, floating* x_label) noexcept nogil:
    """The logits at the labels of a tile."""
    cdef Array x = array_at(of.x, tile)
    cdef floating buffer[1]
    cdef Py_ssize_t o, j, number
    for o in range(tile.n_outer):
        for j in range(tile.width):
            number = number_of_frame(of.f, tile, o, j)
            if has_label(of, number):
                x_label[o * tile.width + j] = load(frame_at(x, o, j), of.label[number], 1, buffer)[0]


cdef inline void put_kept(const Labelled* of, Tile tile, const floating* x_label, const floating* kept,
                          const floating* end) noexcept nogil:
    """The log-softmax at the labels, from the normalisers of all frames."""
    cdef Py_ssize_t o, j, k, number
    cdef bint has_all = end - kept == 2 * tile.n_outer * tile.width
    for o in range(tile.n_outer):
        for j in range(tile.width):
            number, k = number_of_frame(of.f, tile, o, j), o * tile.width + j
            if has_label(of, number):
                (<floating*> of.y.at)[number] = (x_label[k] - kept[2 * k]) - kept[2 * k + 1] if has_all else NAN


cdef void take_tile(const Labelled* of, Tile tile, floating* numbers, floating* scratch) noexcept nogil:
    """The log-softmax at the labels, from that of all classes."""
    cdef Frames f = of.f
    cdef Array x = array_at(of.x, tile), to = packed_tile(<char*> numbers, f, tile, of.y.kind)
    cdef Py_ssize_t o, j, number
    run_frames(LOG_SOFTMAX, x, x, to, tile.n_outer, f.n, tile.width, scratch, SCRATCH_BYTES + 64, 1, False)
    for o in range(tile.n_outer):
        for j in range(tile.width):
            number = number_of_frame(f, tile, o, j)
            if has_label(of, number):
                move_number(of.y.at, number, <const char*> numbers, (o * f.n + of.label[number]) * tile.width + j,
                            size_of(of.y.kind))


cdef void compute_tile(const Labelled* of, Tile tile, floating* numbers, floating* kept,
                       floating* scratch) noexcept nogil:
    """kept: see count_kept."""
    cdef Frames f = of.f
    cdef Array x = array_at(of.x, tile), to
    cdef floating* x_label = kept + 2 * tile.n_outer * tile.width
    cdef bint keeps = f.n >= KEPT_MIN_CLASSES
    if of.gradient.at == NULL or not keeps:
        take_tile(of, tile, numbers, scratch)
    if of.gradient.at == NULL:
        return
    to = packed_tile(<char*> numbers, f, tile, kind_of(numbers))
    if of.gradient.kind == to.kind and not of.stream and (f.n_inner == 1 or tile.width == f.n_inner):
        to = array_at(of.gradient, tile)  # where the tile is packed too
    if keeps:
        find_labels(of, tile, x_label)
        lsm_keep_normalisers(kept)
    run_frames(SOFTMAX, x, x, to, tile.n_outer, f.n, tile.width, scratch, SCRATCH_BYTES + 64, 1, False)
    if keeps:
        put_kept(of, tile, x_label, kept, <const floating*> lsm_keep_normalisers(NULL))
    write_tile_gradient(of, tile, <floating*> to.at, kept)


cdef void compute_long(const Labelled* of, Py_ssize_t frame, Partial* parts, floating* numbers,
                       floating* scratch) noexcept nogil:
    """A frame of several slices."""
    cdef Frames f = of.f
    cdef Array x = of.x, of_parts, to
    cdef Partial whole
    cdef Py_ssize_t part, n, size = size_of(of.y.kind)
    cdef bint is_kept = has_label(of, frame)
    cdef floating rate = <floating> of.rate[frame * of.rate_step]
    x.at += frame * x.outer
    if is_kept:
        of_parts = array_like(<char*> parts, DOUBLE)
        of_parts.step = 4 * sizeof(double)
        of_parts.outer = of_parts.gap = 0
        reduce_slices_of(x, of_parts, 0, count_slices(f.n), 1, f.n, 1, scratch)
        whole = fold_slices(<const double*> parts, count_slices(f.n), 4)
        (<Partial*> parts)[0] = whole
        to = array_like(of.y.at + frame * size, of.y.kind)
        to.step = to.outer = to.gap = 0
        write_parts_of(LOG_SOFTMAX, of_parts, frames_from(x, of.label[frame]), to, 0, 1, 1, 1, 1, SLICE_CLASSES, False,
                       scratch)
    if of.gradient.at == NULL:
        return
    to = array_like(<char*> numbers, kind_of(numbers))
    to.step = sizeof(floating)
    to.outer = to.gap = 0
    for part in range(count_slices(f.n) - 1, -1, -1):  # the last ones are in the cache
        n = size_of_part(part, f.n)
        if is_kept:
            write_parts_of(SOFTMAX, of_parts, frames_from(x, part * SLICE_CLASSES), to, 0, 1, 1, n, 1, SLICE_CLASSES,
                           False, scratch)
            scale_row(numbers, n, rate)
        else:
            clear_row(numbers, n, 1)
        put_row(numbers, n, of.gradient.kind, of.gradient.at + frame * of.gradient.outer
                + part * SLICE_CLASSES * of.gradient.step, of.stream)


cdef inline Array frames_from(Array x, Py_ssize_t start) noexcept nogil:
    x.at += start * x.step
    return x


cdef bint compute_labels(const Labelled* of, int n_threads, const floating* type) noexcept nogil:
    """False if there is no memory, or if the frames suit no tile."""
    cdef Tile largest
    cdef Py_ssize_t t, n_tiles, n_bytes = TILE_BYTES + SCRATCH_BYTES + 64
    cdef bint is_long = of.f.n > SLICE_CLASSES and of.f.n_inner == 1
    cdef uint64_t env
    cdef char* memory
    cdef char* own
    n_tiles = of.f.n_outer if is_long else count_tiles(of.f, &largest)
    if is_long:
        n_bytes += count_slices(of.f.n) * 4 * <Py_ssize_t> sizeof(double)
    elif n_tiles and of.gradient.at != NULL:
        n_bytes += count_kept(of.f, largest) * <Py_ssize_t> sizeof(double)
    n_threads = lsm_begin_region(max(min(<Py_ssize_t> n_threads, n_tiles), 1))
    memory = <char*> malloc(n_threads * n_bytes) if n_tiles else NULL
    if memory != NULL:
        with parallel(num_threads=n_threads):
            env = lsm_enter_float_env()
            for t in prange(n_tiles, schedule="static"):
                own = <char*> own_scratch(<floating*> memory, n_bytes, omp_get_thread_num())
                if is_long:
                    compute_long(of, t, <Partial*> (own + TILE_BYTES + SCRATCH_BYTES), <floating*> own,
                                 <floating*> (own + TILE_BYTES))
                else:
                    compute_tile(of, tile_at(of.f, largest, t), <floating*> own,
                                 <floating*> (own + TILE_BYTES + SCRATCH_BYTES), <floating*> (own + TILE_BYTES))
            lsm_stream_fence()
            lsm_leave_float_env(env)
    free(memory)
    lsm_end_region(n_threads)
    return memory != NULL


def run_labels(x, axis, const int64_t[::1] label, y, gradient, const double[::1] rate, int n_threads, bint stream):
    """Write the log-softmax of x at the labels to y, and rate * softmax(x) to the gradient; False if this declines.

    x and the gradient are C-contiguous and alike, y of the same dtype or float32, with one number for each frame, and
    `rate` with as many or one. Of a label that is no class, y stays, and the gradient is 0. What the gradient has at
    labels is not that of a loss: see put_labels.
    """
    cdef Labelled of
    cdef bint done
    if not find_frames(x, axis, &of.f) or not (gradient is None or is_alike(gradient, x)):
        return False
    of.x = whole(x, of.f)
    of.y = array_like(PyArray_BYTES(<PyArrayObject*> y), of.f.kind)
    if PyArray_TYPE(<PyArrayObject*> y) == NPY_FLOAT:
        of.y.kind = FLOAT
    of.gradient = whole(x if gradient is None else gradient, of.f)
    if gradient is None:
        of.gradient.at = NULL
    of.label = &label[0]
    of.rate = &rate[0]
    of.rate_step = rate.shape[0] > 1
    of.stream = stream
    with nogil:
        if of.f.kind == DOUBLE:
            done = compute_labels(&of, n_threads, <double*> NULL)
        else:
            done = compute_labels(&of, n_threads, <float*> NULL)
    return done


def put_labels(gradient, axis, const int64_t[::1] label, values):
    """Write a number of the same dtype at the label of each frame of a C-contiguous array, if that is a class."""
    cdef Frames f
    cdef Py_ssize_t i
    cdef char* to = PyArray_BYTES(<PyArrayObject*> gradient)
    cdef const char* source = PyArray_BYTES(<PyArrayObject*> values)
    find_frames(gradient, axis, &f)
    with nogil:
        for i in range(label.shape[0]):
            if 0 <= label[i] < f.n:
                move_number(to, number_at(f, i, label[i]), source, i, size_of(f.kind))
