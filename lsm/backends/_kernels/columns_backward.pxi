# The gradient of the frames of a tile together.


cdef inline void add_gradients_of_classes(const floating* dy, Py_ssize_t n_rows, double* v) noexcept nogil:
    """The sum of the gradients of n_rows classes, N_ROW apart."""
    cdef Py_ssize_t j, step = N_ROW * N_COLUMNS
    for j in range(N_COLUMNS):  # hot
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
    """Add n <= N_BLOCK classes of a tile to the lanes."""
    cdef double v[4 * N_COLUMNS]
    cdef const floating* at
    cdef Py_ssize_t j, k, g, n_rows, n_groups
    for k in range(min(<Py_ssize_t> N_LANES, n)):
        n_groups = count_groups(n, k)
        for g in range(n_groups):
            at = &dy[(g * N_LANES + k) * N_COLUMNS]
            n_rows = count_rows(n, g * N_LANES + k)
            if n_rows == 4:  # each a constant to the compiler
                add_gradients_of_classes(at, 4, &v[g * N_COLUMNS])
            elif n_rows == 3:
                add_gradients_of_classes(at, 3, &v[g * N_COLUMNS])
            elif n_rows == 2:
                add_gradients_of_classes(at, 2, &v[g * N_COLUMNS])
            else:
                add_gradients_of_classes(at, 1, &v[g * N_COLUMNS])
        add_to_lanes(is_first, &total[k * N_COLUMNS], &error[k * N_COLUMNS], v, N_COLUMNS, n_groups,
                     floating is double)


cdef void sum_tile(Tile dy, Py_ssize_t n, double* totals, double* errors, floating* scratch) noexcept nogil:
    """The sums of the gradients of N_COLUMNS frames."""
    cdef double total[N_LANES * N_COLUMNS]
    cdef double error[N_LANES * N_COLUMNS]
    cdef const floating* source
    cdef Py_ssize_t part, start, n_slice, chunk, n_part, block, n_block, j
    for j in range(N_COLUMNS):
        totals[j] = 0
        errors[j] = 0
    for part in range(count_slices(n)):
        start = part * N_SLICE
        n_slice = min(<Py_ssize_t> N_SLICE, n - start)
        if floating is double or n_slice > N_BLOCK:
            clear_lanes(total, error, min(<Py_ssize_t> N_LANES, n_slice) * N_COLUMNS, scratch)
        else:
            error[0] = 0
        for chunk in range(count_chunks(n_slice)):
            n_part = min(<Py_ssize_t> N_CHUNK, n_slice - chunk * N_CHUNK)
            source = chunk_of(dy, start + chunk * N_CHUNK, n_part, scratch)
            for block in range(count_blocks(n_part)):
                n_block = min(<Py_ssize_t> N_BLOCK, n_part - block * N_BLOCK)
                add_block_of_tile_gradients(&source[block * N_BLOCK * N_COLUMNS], n_block,
                                            n_slice <= N_BLOCK, total, error)
        fold_lanes(total, error, min(<Py_ssize_t> N_LANES, n_slice), N_COLUMNS, scratch)
        for j in range(N_COLUMNS):
            two_sum(&totals[j], &errors[j], total[j])
            errors[j] += error[0 if floating is float else j]


# What `gradient` needs of the S of N_COLUMNS frames, see Scaled.
cdef struct ScaledTile:
    double s_hi[N_COLUMNS]
    double s_lo[N_COLUMNS]
    double s[N_COLUMNS]
    double magic[N_COLUMNS]
    double lowest[N_COLUMNS]


cdef void gradient_tile(floating* dy, const floating* y, Py_ssize_t n, const ScaledTile* of,
                        floating* n_bad) noexcept nogil:
    """dx = dy - exp(y) * S of n classes of a tile, in place of dy; n_bad: how many y of each frame are out of range."""
    cdef floating s_hi[N_COLUMNS]
    cdef floating s_lo[N_COLUMNS]
    cdef floating s[N_COLUMNS]
    cdef floating magic[N_COLUMNS]
    cdef floating lowest[N_COLUMNS]
    cdef floating found[N_COLUMNS]
    cdef floating* p
    cdef const floating* q
    cdef Py_ssize_t i, j
    cdef bint odd
    for j in range(N_COLUMNS):
        s_hi[j] = <floating> of.s_hi[j]
        s_lo[j] = <floating> of.s_lo[j]
        s[j] = <floating> of.s[j]
        magic[j] = <floating> of.magic[j]
        lowest[j] = <floating> of.lowest[j]
        found[j] = 0
    odd = some_odd(y, n * N_COLUMNS)
    for i in range(n):
        p = &dy[i * N_COLUMNS]
        q = &y[i * N_COLUMNS]
        if odd:
            for j in range(N_COLUMNS):
                p[j] = gradient_of_any(p[j], q[j], s_hi[j], s_lo[j], s[j], magic[j], lowest[j])
                found[j] += <floating> 1 if exceeds(q[j]) else <floating> 0
        elif n < N_ROW or some_large(q, N_COLUMNS):  # of few classes one is large in most rows
            for j in range(N_COLUMNS):  # hot
                p[j] = gradient(p[j], q[j], s_hi[j], s_lo[j], s[j], magic[j], lowest[j], True)
        else:
            for j in range(N_COLUMNS):  # hot
                p[j] = gradient(p[j], q[j], s_hi[j], s_lo[j], s[j], magic[j], lowest[j], False)
    for j in range(N_COLUMNS):
        n_bad[j] = found[j]


cdef bint scale_tile(Tile dy, Tile y, Py_ssize_t n, Py_ssize_t n_frames, ScaledTile* to,
                     floating* scratch) noexcept nogil:
    """The sums of a tile's frames, prepared; False where one of n_frames needs careful_backward_frame."""
    cdef double total[N_COLUMNS]
    cdef double error[N_COLUMNS]
    cdef Scaled of
    cdef Py_ssize_t j
    cdef bint easy = True
    sum_tile(dy, n, total, error, scratch)
    for j in range(N_COLUMNS):
        easy &= scale_sum(total[j], error[j], &of, floating is float)
        to.s_hi[j] = of.s_hi
        to.s_lo[j] = of.s_lo
        to.s[j] = of.s
        to.magic[j] = of.magic
        to.lowest[j] = of.lowest
    for j in range(n_frames):
        easy &= not is_masked(frame_of(y, j), n, scratch)
    return easy


cdef void log_softmax_backward_band(Tile dy, Tile y, Tile dx, Py_ssize_t n, Py_ssize_t n_frames, floating* scratch,
                                    bint stream) noexcept nogil:
    """log_softmax_backward_frame for n_frames neighbouring frames, as log_softmax_band has them."""
    cdef ScaledTile of
    cdef floating n_bad[N_BAND_COLUMNS]
    cdef floating* scratch_y = scratch + room_backward(scratch) // 2
    cdef floating* at
    cdef floating* at_y
    cdef Tile rest_dy = dy, rest_y = y, rest_dx = dx
    cdef Py_ssize_t n_tiles = (n_frames + N_COLUMNS - 1) // N_COLUMNS, tile, i, j, n_part
    cdef bint easy = True
    if not fits(n):
        easy = scale_tile(dy, y, n, n_frames, &of, scratch)
        for j in range(N_COLUMNS):
            n_bad[j] = 0
        for i in range(count_chunks(n) if easy else 0):
            n_part = min(<Py_ssize_t> N_CHUNK, n - i * N_CHUNK)
            copy_rows(rest_dy, rest_y, n_part, N_COLUMNS, n_part, scratch, <floating*> NULL)
            copy_rows(rest_y, beyond(rest_dy, n_part, 0), n_part, N_COLUMNS, n_part, scratch_y, <floating*> NULL)
            gradient_tile(scratch, scratch_y, n_part, &of, &n_bad[N_COLUMNS])
            write_rows(scratch, rest_dx, n_part, N_COLUMNS, n_part, <floating*> NULL, <floating*> NULL,
                       stream)
            rest_dy.at += n_part * dy.step
            rest_y.at += n_part * y.step
            rest_dx.at += n_part * dx.step
            for j in range(N_COLUMNS):
                n_bad[j] += n_bad[N_COLUMNS + j]
    else:
        copy_rows(dy, y, n, n_frames, n, scratch, <floating*> NULL)
        copy_rows(y, beyond(dy, 0, n_frames), n, n_frames, n, scratch_y, <floating*> NULL)
        for tile in range(n_tiles):
            at = scratch + tile * n * N_COLUMNS
            at_y = scratch_y + tile * n * N_COLUMNS
            easy &= scale_tile(tile_in(at), tile_in(at_y), n, min(<Py_ssize_t> N_COLUMNS, n_frames - tile * N_COLUMNS),
                               &of, scratch)
            gradient_tile(at, at_y, n, &of, &n_bad[tile * N_COLUMNS])
        if easy:
            write_rows(scratch, dx, n, n_frames, n, <floating*> NULL, <floating*> NULL, stream)
    for j in range(n_frames):
        if not easy:
            log_softmax_backward_frame(frame_of(dy, j), frame_of(y, j), frame_of(dx, j), n, scratch, stream)
        elif n_bad[j] > 0:
            fill_nan(frame_of(dx, j), n, scratch)
