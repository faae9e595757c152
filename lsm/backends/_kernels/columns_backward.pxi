# The gradient of the frames of a tile.


cdef inline void add_gradients_of_classes(const floating* dy, Py_ssize_t n_rows, double* v) noexcept nogil:
    """Sum dy over n_rows classes, ROW_CLASSES apart."""
    cdef Py_ssize_t j, step = ROW_CLASSES * TILE_COLUMNS
    for j in range(TILE_COLUMNS):  # hot
        if n_rows == 4:
            v[j] = ((<double> dy[j] + <double> dy[j + step])
                    + (<double> dy[j + 2 * step] + <double> dy[j + 3 * step]))
        elif n_rows == 3:
            v[j] = (<double> dy[j] + <double> dy[j + step]) + <double> dy[j + 2 * step]
        elif n_rows == 2:
            v[j] = <double> dy[j] + <double> dy[j + step]
        else:
            v[j] = dy[j]


cdef inline void add_block_of_tile_gradients(const floating* dy, Py_ssize_t n, bint is_first, double* total,
                                             double* error) noexcept nogil:
    """Add dy of n <= BLOCK_CLASSES classes of a tile to the lanes."""
    cdef double v[4 * TILE_COLUMNS]
    cdef const floating* at
    cdef Py_ssize_t j, k, g, n_rows, n_groups
    for k in range(min(<Py_ssize_t> N_LANES, n)):
        n_groups = count_groups(n, k)
        for g in range(n_groups):
            at = &dy[(g * N_LANES + k) * TILE_COLUMNS]
            n_rows = count_rows(n, g * N_LANES + k)
            if n_rows == 4:  # n_rows is a compile-time constant in each branch
                add_gradients_of_classes(at, 4, &v[g * TILE_COLUMNS])
            elif n_rows == 3:
                add_gradients_of_classes(at, 3, &v[g * TILE_COLUMNS])
            elif n_rows == 2:
                add_gradients_of_classes(at, 2, &v[g * TILE_COLUMNS])
            else:
                add_gradients_of_classes(at, 1, &v[g * TILE_COLUMNS])
        add_to_lanes(is_first, &total[k * TILE_COLUMNS], &error[k * TILE_COLUMNS], v, TILE_COLUMNS, n_groups,
                     floating is double)


cdef void sum_tile(Tile dy, Py_ssize_t n, double* totals, double* errors, floating* scratch) noexcept nogil:
    """The sum of dy of each of TILE_COLUMNS frames."""
    cdef double total[N_LANES * TILE_COLUMNS]
    cdef double error[N_LANES * TILE_COLUMNS]
    cdef const floating* source
    cdef Py_ssize_t part, start, n_slice, chunk, n_part, block, n_block, j
    for j in range(TILE_COLUMNS):
        totals[j] = 0
        errors[j] = 0
    if floating is float:
        if are_few(n, scratch):
            sum_few_rows(<const float*> dy.at, n, True, totals)
            return
    for part in range(count_slices(n)):
        start = part * SLICE_CLASSES
        n_slice = min(<Py_ssize_t> SLICE_CLASSES, n - start)
        if floating is double or n_slice > BLOCK_CLASSES:
            clear_lanes(total, error, min(<Py_ssize_t> N_LANES, n_slice) * TILE_COLUMNS, scratch)
        else:
            error[0] = 0
        for chunk in range(count_chunks(n_slice)):
            n_part = min(<Py_ssize_t> CHUNK_CLASSES, n_slice - chunk * CHUNK_CLASSES)
            source = chunk_of(dy, start + chunk * CHUNK_CLASSES, n_part, scratch)
            for block in range(count_blocks(n_part)):
                n_block = min(<Py_ssize_t> BLOCK_CLASSES, n_part - block * BLOCK_CLASSES)
                add_block_of_tile_gradients(&source[block * BLOCK_CLASSES * TILE_COLUMNS], n_block,
                                            n_slice <= BLOCK_CLASSES, total, error)
        fold_lanes(total, error, min(<Py_ssize_t> N_LANES, n_slice), TILE_COLUMNS, scratch)
        for j in range(TILE_COLUMNS):
            two_sum(&totals[j], &errors[j], total[j])
            errors[j] += error[0 if floating is float else j]


cdef inline void gradient_row(const floating* dy, const floating* y, const floating* of, bint some_large, bint some_low,
                              floating* dx, bint nontemporal) noexcept nogil:
    """dx = dy - exp(y) * S for one class of a tile; `of` is s_hi, s_lo, s, magic, lowest, BAND_MAX_COLUMNS apart."""
    cdef floating w[TILE_COLUMNS]
    cdef Py_ssize_t j
    for j in range(TILE_COLUMNS):  # hot
        w[j] = gradient(dy[j], y[j], of[j], of[BAND_MAX_COLUMNS + j], of[2 * BAND_MAX_COLUMNS + j],
                        of[3 * BAND_MAX_COLUMNS + j], of[4 * BAND_MAX_COLUMNS + j], some_large, some_low)
    put_lanes(dx, w, nontemporal)
    put_lanes(&dx[N_LANES], &w[N_LANES], nontemporal)


cdef void gradient_odd_row(const floating* dy, const floating* y, Py_ssize_t n_frames, const floating* of,
                           floating* dx, floating* n_bad) noexcept nogil:
    """gradient_row for at most TILE_COLUMNS frames and any y; counts in n_bad the y of each frame out of range."""
    cdef Py_ssize_t j
    for j in range(n_frames):
        n_bad[j] += <floating> 1 if exceeds(y[j]) else <floating> 0
        dx[j] = gradient_of_any(dy[j], y[j], of[j], of[BAND_MAX_COLUMNS + j], of[2 * BAND_MAX_COLUMNS + j],
                                of[3 * BAND_MAX_COLUMNS + j], of[4 * BAND_MAX_COLUMNS + j])


cdef inline floating least_of(const floating* y, Py_ssize_t n) noexcept nogil:
    """The minimum of n numbers, a multiple of TILE_COLUMNS; NaN if any is NaN or not below 0."""
    cdef int32_t most_f[TILE_COLUMNS]
    cdef int64_t most_d[TILE_COLUMNS]
    cdef int32_t deepest_f = lsm_depth_f(<float> -0.0)
    cdef int64_t deepest_d = lsm_depth_d(-0.0)
    cdef Py_ssize_t i, k
    for k in range(TILE_COLUMNS):
        most_f[k] = deepest_f
        most_d[k] = deepest_d
    for i in range(0, n // TILE_COLUMNS):
        for k in range(TILE_COLUMNS):
            if floating is float:
                most_f[k] = max(most_f[k], lsm_depth_f(y[i * TILE_COLUMNS + k]))
            else:
                most_d[k] = max(most_d[k], lsm_depth_d(y[i * TILE_COLUMNS + k]))
    if floating is float:
        for k in range(TILE_COLUMNS):
            deepest_f = max(deepest_f, most_f[k])
        return lsm_least_f(deepest_f)
    else:
        for k in range(TILE_COLUMNS):
            deepest_d = max(deepest_d, most_d[k])
        return lsm_least_d(deepest_d)


cdef void gradient_rows(const floating* dy, Tile y, Tile dx, Tile then, Py_ssize_t n, Py_ssize_t n_frames,
                        Py_ssize_t n_of_tile, const floating* of, floating highest_low, floating* n_bad,
                        bint stream) noexcept nogil:
    """dx for n classes of adjacent frames; dy is in tiles, n_of_tile classes apart, as written by copy_rows.

    y is read in place: the arithmetic hides the latency of its prefetches.
    """
    cdef floating buffer[BAND_MAX_COLUMNS]
    cdef floating buffer_y[BAND_MAX_COLUMNS]
    cdef const floating* source
    cdef const floating* source_y
    cdef floating* target
    cdef Vector row, row_y, ahead
    cdef Py_ssize_t i, j, tile, n_tiles = (n_frames + TILE_COLUMNS - 1) // TILE_COLUMNS, n_whole = 0
    cdef floating least
    cdef bint few = n_of_tile < ROW_CLASSES  # with few classes, most rows have a large y
    cdef bint nontemporal = False, direct = False, odd, low
    if is_native(row_of(dx, 0), buffer):
        nontemporal = can_stream(row_of(dx, 0), kind_of(buffer), stream) and dx.step % 64 == 0
        n_whole = n_frames // TILE_COLUMNS if nontemporal or not stream else 0
    direct = is_native(row_of(y, 0), buffer) and n_frames % TILE_COLUMNS == 0
    for j in range(n_tiles * TILE_COLUMNS):
        n_bad[j] = 0
        buffer_y[j] = -1
    for i in range(n):
        row = row_of(dx, i)
        row_y = row_of(y, i)
        ahead = (row_of(y, i + PREFETCH_DISTANCE_ROWS) if i + PREFETCH_DISTANCE_ROWS < n
                 else row_of(then, i + PREFETCH_DISTANCE_ROWS - n))
        if direct:
            source_y = <const floating*> row_y.at
        else:
            read(row_y, n_frames, buffer_y)
            source_y = buffer_y
        least = least_of(source_y, n_tiles * TILE_COLUMNS)
        odd = not (least <= 0) and some_odd(source_y, n_tiles * TILE_COLUMNS)
        low = not (highest_low < least)
        for tile in range(n_tiles):
            j = tile * TILE_COLUMNS
            source = &dy[(tile * n_of_tile + i) * TILE_COLUMNS]
            target = <floating*> row.at + j if tile < n_whole else &buffer[j]
            lsm_prefetch(ahead.at + j * ahead.step, TILE_COLUMNS * ahead.step, True)
            if odd:
                gradient_odd_row(source, &source_y[j], min(<Py_ssize_t> TILE_COLUMNS, n_frames - j), &of[j], target,
                                 &n_bad[j])
            elif few and not low and nontemporal and tile < n_whole:
                gradient_row(source, &source_y[j], &of[j], True, False, target, True)
            elif few and not low:
                gradient_row(source, &source_y[j], &of[j], True, False, target, False)
            elif few or some_large(&source_y[j], TILE_COLUMNS):
                gradient_row(source, &source_y[j], &of[j], True, True, target, nontemporal and tile < n_whole)
            elif nontemporal and tile < n_whole:
                gradient_row(source, &source_y[j], &of[j], False, True, target, True)
            else:
                gradient_row(source, &source_y[j], &of[j], False, True, target, False)
        if n_whole < n_tiles:
            write(row, n_whole * TILE_COLUMNS, n_frames - n_whole * TILE_COLUMNS, &buffer[n_whole * TILE_COLUMNS],
                  stream)


cdef bint scale_tile(Tile dy, Py_ssize_t n, floating* to, floating* scratch) noexcept nogil:
    """Sum dy of a tile and prepare S for gradient_row; False if S of any frame overflows."""
    cdef double total[TILE_COLUMNS]
    cdef double error[TILE_COLUMNS]
    cdef Scaled of
    cdef Py_ssize_t j
    cdef int n_easy = 0
    sum_tile(dy, n, total, error, scratch)
    for j in range(TILE_COLUMNS):  # hot
        n_easy += scale_sum(total[j], error[j], &of, floating is float)
        to[j] = <floating> of.s_hi
        to[BAND_MAX_COLUMNS + j] = <floating> of.s_lo
        to[2 * BAND_MAX_COLUMNS + j] = <floating> of.s
        to[3 * BAND_MAX_COLUMNS + j] = <floating> of.magic
        to[4 * BAND_MAX_COLUMNS + j] = <floating> of.lowest
    return n_easy == TILE_COLUMNS


cdef bint some_masked(Tile y, Py_ssize_t n, Py_ssize_t n_frames, const floating* of) noexcept nogil:
    """Whether any of n_frames frames is -inf throughout. The first class rules out most."""
    cdef floating buffer[BAND_MAX_COLUMNS]
    cdef const floating* first = load(row_of(y, 0), 0, n_frames, buffer)
    cdef int n_found = 0
    cdef Py_ssize_t j
    for j in range(n_frames):  # hot
        n_found += first[j] == -INFINITY
    if n_found:
        for j in range(n_frames):
            if is_masked(frame_of(y, j), n, of):
                return True
    return False


cdef inline floating highest(const floating* x, Py_ssize_t n) noexcept nogil:
    """The maximum of n numbers, a multiple of TILE_COLUMNS."""
    cdef floating high[TILE_COLUMNS]
    cdef Py_ssize_t tile, j
    for j in range(TILE_COLUMNS):
        high[j] = -INFINITY
    for tile in range(n // TILE_COLUMNS):
        raise_lanes(high, &x[tile * TILE_COLUMNS])
    for j in range(TILE_COLUMNS):
        high[0] = larger(high[j], high[0])
    return high[0]


cdef void log_softmax_backward_band(Tile dy, Tile y, Tile dx, Py_ssize_t n, Py_ssize_t n_frames, floating* scratch,
                                    bint stream) noexcept nogil:
    """log_softmax_backward_frame for n_frames adjacent frames, as in log_softmax_band."""
    cdef floating of[5 * BAND_MAX_COLUMNS]
    cdef floating n_bad[BAND_MAX_COLUMNS]
    cdef floating bad[TILE_COLUMNS]
    cdef Tile rest_dy = dy, rest_y = y, rest_dx = dx
    cdef floating highest_low
    cdef Py_ssize_t n_tiles = (n_frames + TILE_COLUMNS - 1) // TILE_COLUMNS, n_of_tile = n_padded(n, scratch)
    cdef Py_ssize_t tile, i, j, n_part
    cdef bint easy = True
    if fits(n):
        copy_rows(dy, y, n, n_frames, n_of_tile, scratch, <floating*> NULL)
        for tile in range(n_tiles):
            clear_rows(scratch + (tile * n_of_tile + n) * TILE_COLUMNS, n_of_tile - n)
            easy &= scale_tile(tile_in(scratch + tile * n_of_tile * TILE_COLUMNS), n, &of[tile * TILE_COLUMNS], scratch)
    else:
        easy = scale_tile(dy, n, of, scratch)
    if not easy or some_masked(y, n, n_frames, scratch):
        for j in range(n_frames):
            log_softmax_backward_frame(frame_of(dy, j), frame_of(y, j), frame_of(dx, j), n, scratch, stream)
        return
    highest_low = highest(&of[4 * BAND_MAX_COLUMNS], n_tiles * TILE_COLUMNS)
    if fits(n):
        gradient_rows(scratch, y, dx, beyond(dy, 0, n_frames), n, n_frames, n_of_tile, of, highest_low, n_bad, stream)
    else:
        for j in range(TILE_COLUMNS):
            n_bad[j] = 0
        for i in range(count_chunks(n)):
            n_part = min(<Py_ssize_t> CHUNK_CLASSES, n - i * CHUNK_CLASSES)
            copy_rows(rest_dy, rest_y, n_part, TILE_COLUMNS, n_part, scratch, <floating*> NULL)
            gradient_rows(scratch, rest_y, rest_dx, beyond(rest_dy, n_part, 0), n_part, TILE_COLUMNS, n_part, of,
                          highest_low, bad, stream)
            rest_dy.at += n_part * dy.step
            rest_y.at += n_part * y.step
            rest_dx.at += n_part * dx.step
            for j in range(TILE_COLUMNS):
                n_bad[j] += bad[j]
    for j in range(n_frames):
        if n_bad[j] > 0:
            fill_nan(frame_of(dx, j), n, scratch)
