# Log-softmax of the frames of a tile: vectors run along the frames.


cdef inline void add_classes(const floating* x, Py_ssize_t n_rows, const floating* h, const floating* top,
                             const floating* magic, const floating* floor, floating* p,
                             floating* n_equal) noexcept nogil:
    """Sum the exponentials of n_rows classes, ROW_CLASSES apart, and count those equal to the maximum."""
    cdef floating v, sum_p, n_found
    cdef Py_ssize_t j, q
    for j in range(TILE_COLUMNS):
        sum_p = 0
        n_found = n_equal[j]
        for q in range(n_rows):  # hot
            v = x[q * ROW_CLASSES * TILE_COLUMNS + j] - h[j]
            sum_p += exp_below(v, magic[j], floor[j], top[j], True)
            n_found += <floating> 1 if v == top[j] else <floating> 0
        p[j] = sum_p
        n_equal[j] = n_found


cdef inline Py_ssize_t count_rows(Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """The number of the classes k, k + ROW_CLASSES, ... in a block of n."""
    return (n - k + ROW_CLASSES - 1) // ROW_CLASSES


cdef inline Py_ssize_t count_groups(Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """The number of the classes k, k + N_LANES, ... in a block of n, at most four."""
    return min(<Py_ssize_t> 4, (n - k + N_LANES - 1) // N_LANES)


cdef inline void add_block_of_tile(const floating* x, Py_ssize_t n, const floating* of, bint is_first, double* total,
                                   double* error, floating* n_equal) noexcept nogil:
    """Add the exponentials of n <= BLOCK_CLASSES classes of a tile to the lanes.

    `of` is h, top, magic and floor of the tile, copied to locals so that gcc keeps them in registers.
    """
    cdef floating h[TILE_COLUMNS]
    cdef floating top[TILE_COLUMNS]
    cdef floating magic[TILE_COLUMNS]
    cdef floating floor[TILE_COLUMNS]
    cdef floating found[TILE_COLUMNS]
    cdef floating p[4 * TILE_COLUMNS]
    cdef const floating* at
    cdef Py_ssize_t j, k, g, n_rows, n_groups
    for j in range(TILE_COLUMNS):
        h[j] = of[j]
        top[j] = of[TILE_COLUMNS + j]
        magic[j] = of[2 * TILE_COLUMNS + j]
        floor[j] = of[3 * TILE_COLUMNS + j]
        found[j] = n_equal[j]
    for k in range(min(<Py_ssize_t> N_LANES, n)):
        n_groups = count_groups(n, k)
        for g in range(n_groups):
            at = &x[(g * N_LANES + k) * TILE_COLUMNS]
            n_rows = count_rows(n, g * N_LANES + k)
            if n_rows == 4:  # n_rows is a compile-time constant in each branch
                add_classes(at, 4, h, top, magic, floor, &p[g * TILE_COLUMNS], found)
            elif n_rows == 3:
                add_classes(at, 3, h, top, magic, floor, &p[g * TILE_COLUMNS], found)
            elif n_rows == 2:
                add_classes(at, 2, h, top, magic, floor, &p[g * TILE_COLUMNS], found)
            else:
                add_classes(at, 1, h, top, magic, floor, &p[g * TILE_COLUMNS], found)
        add_to_lanes(is_first, &total[k * TILE_COLUMNS], &error[k * TILE_COLUMNS], p, TILE_COLUMNS, n_groups,
                     floating is double)
    for j in range(TILE_COLUMNS):
        n_equal[j] = found[j]


cdef inline void exp_rows(const float* x, Py_ssize_t n, const float* of, float* p, float* n_equal) noexcept nogil:
    """p = exp(x - h) of n rows, 0 at the maximum, which is counted in n_equal; `of` as in add_block_of_tile."""
    cdef float h[TILE_COLUMNS]
    cdef float top[TILE_COLUMNS]
    cdef float magic[TILE_COLUMNS]
    cdef float floor[TILE_COLUMNS]
    cdef float found[TILE_COLUMNS]
    cdef float w[TILE_COLUMNS]
    cdef float v
    cdef Py_ssize_t i, j
    for j in range(TILE_COLUMNS):
        h[j] = of[j]
        top[j] = of[TILE_COLUMNS + j]
        magic[j] = of[2 * TILE_COLUMNS + j]
        floor[j] = of[3 * TILE_COLUMNS + j]
        found[j] = 0
    for i in range(n):
        for j in range(TILE_COLUMNS):  # hot
            v = x[i * TILE_COLUMNS + j] - h[j]
            w[j] = exp_below(v, magic[j], floor[j], top[j], True)
            found[j] += <float> 1 if v == top[j] else <float> 0
        copy_columns(&p[i * TILE_COLUMNS], w)
    for j in range(TILE_COLUMNS):
        n_equal[j] = found[j]


cdef inline void raise_maxima(const floating* x, Py_ssize_t n, floating* m) noexcept nogil:
    """m = max(m, x) over n classes, for each of TILE_COLUMNS frames."""
    cdef floating high[TILE_COLUMNS]
    cdef Py_ssize_t i, j
    memcpy(high, m, TILE_COLUMNS * sizeof(floating))
    for i in range(n // 4):
        for j in range(TILE_COLUMNS):
            high[j] = larger(larger(larger(x[4 * i * TILE_COLUMNS + j], x[(4 * i + 1) * TILE_COLUMNS + j]),
                                    larger(x[(4 * i + 2) * TILE_COLUMNS + j], x[(4 * i + 3) * TILE_COLUMNS + j])),
                             high[j])
    for i in range(n // 4 * 4, n):
        for j in range(TILE_COLUMNS):
            high[j] = larger(x[i * TILE_COLUMNS + j], high[j])
    memcpy(m, high, TILE_COLUMNS * sizeof(floating))


cdef void find_maxima(Tile x, Py_ssize_t n, floating* m, floating* scratch) noexcept nogil:
    """The maximum of each of TILE_COLUMNS frames."""
    cdef Py_ssize_t chunk, n_part, j
    for j in range(TILE_COLUMNS):
        m[j] = -INFINITY
    for chunk in range(count_chunks(n)):
        n_part = min(<Py_ssize_t> CHUNK_CLASSES, n - chunk * CHUNK_CLASSES)
        raise_maxima(chunk_of(x, chunk * CHUNK_CLASSES, n_part, scratch), n_part, m)


cdef void sum_few(const float* x, Py_ssize_t n, const float* of, double* total, float* n_equal) noexcept nogil:
    """Sum the exponentials of n <= SHORT_MAX_CLASSES classes of a tile, and count those equal to the maximum."""
    cdef float p[SHORT_MAX_CLASSES * TILE_COLUMNS]
    exp_rows(x, n, of, p, n_equal)
    clear_rows(&p[n * TILE_COLUMNS], n_padded(n, x) - n)
    sum_few_rows(p, n, False, total)


cdef void sum_many(Tile x, Py_ssize_t n, const floating* of, double* totals, double* errors, floating* n_equal,
                   floating* scratch) noexcept nogil:
    """sum_few for n <= SLICE_CLASSES classes, with the rounding errors of the sums."""
    cdef double total[N_LANES * TILE_COLUMNS]
    cdef double error[N_LANES * TILE_COLUMNS]
    cdef const floating* source
    cdef const floating* at
    cdef Py_ssize_t chunk, start, n_part, block, n_block, j
    error[0] = 0
    if floating is double or n > BLOCK_CLASSES:
        clear_lanes(total, error, min(<Py_ssize_t> N_LANES, n) * TILE_COLUMNS, of)
    for j in range(TILE_COLUMNS):
        n_equal[j] = 0
    for chunk in range(count_chunks(n)):
        start = chunk * CHUNK_CLASSES
        n_part = min(<Py_ssize_t> CHUNK_CLASSES, n - start)
        source = chunk_of(x, start, n_part, scratch)
        for block in range(count_blocks(n_part)):
            at = &source[block * BLOCK_CLASSES * TILE_COLUMNS]
            n_block = min(<Py_ssize_t> BLOCK_CLASSES, n_part - block * BLOCK_CLASSES)
            add_block_of_tile(at, n_block, of, n <= BLOCK_CLASSES, total, error, n_equal)
    fold_lanes(total, error, min(<Py_ssize_t> N_LANES, n), TILE_COLUMNS, of)
    for j in range(TILE_COLUMNS):
        totals[j] = total[j]
        errors[j] = error[0 if floating is float else j]


cdef void sum_tile_slice(Tile x, Py_ssize_t n, const floating* m, double* below, floating* n_equal,
                         floating* scratch) noexcept nogil:
    """The sum of exp(x - m) over the classes below m, and the count of those equal to m, of TILE_COLUMNS frames."""
    cdef double total[TILE_COLUMNS]
    cdef double error[TILE_COLUMNS]
    cdef floating of[4 * TILE_COLUMNS]
    cdef Shift shift
    cdef Py_ssize_t j
    for j in range(TILE_COLUMNS):  # hot
        shift = shift_to(m[j] if m[j] > -INFINITY else <floating> 0, m)
        of[j] = <floating> shift.h
        of[TILE_COLUMNS + j] = <floating> (shift.m - shift.h)
        of[2 * TILE_COLUMNS + j] = <floating> shift.magic
        of[3 * TILE_COLUMNS + j] = <floating> shift.floor
        error[j] = 0
    if floating is float:
        if are_few(n, m):
            sum_few(chunk_of(x, 0, n, scratch), n, of, total, n_equal)
        else:
            sum_many(x, n, of, total, error, n_equal, scratch)
    else:
        sum_many(x, n, of, total, error, n_equal, scratch)
    for j in range(TILE_COLUMNS):  # hot
        shift = shift_to(m[j] if m[j] > -INFINITY else <floating> 0, m)
        below[j] = finish(total[j], error[j], shift, floating is float)


cdef void end_tile(Tile x, Py_ssize_t n, floating* m, floating* c_hi, floating* c_lo, floating* scratch) noexcept nogil:
    """The normalisers of TILE_COLUMNS frames, given the maxima m of their first slice."""
    cdef double below[TILE_COLUMNS]
    cdef floating n_equal[TILE_COLUMNS]
    cdef Frame frames[TILE_COLUMNS]
    cdef Frame found
    cdef Py_ssize_t part, n_part, j
    cdef Tile slice = x
    if n <= SLICE_CLASSES:
        sum_tile_slice(x, n, m, below, n_equal, scratch)
        for j in range(TILE_COLUMNS):  # hot
            found.largest = m[j]
            found.below = below[j]
            found.n_largest = n_equal[j]
            normaliser(found, &c_hi[j], &c_lo[j])
        return
    for part in range(count_slices(n)):
        n_part = size_of_part(part, n)
        slice.at = x.at + part * SLICE_CLASSES * x.step
        if part:
            find_maxima(slice, n_part, m, scratch)
        sum_tile_slice(slice, n_part, m, below, n_equal, scratch)
        for j in range(TILE_COLUMNS):
            found.largest = m[j]
            found.below = below[j]
            found.n_largest = n_equal[j]
            if part == 0:
                frames[j] = found
            else:
                merge(&frames[j], found)
    for j in range(TILE_COLUMNS):
        normaliser(frames[j], &c_hi[j], &c_lo[j])


cdef void log_softmax_band(Tile x, Tile y, Py_ssize_t n, Py_ssize_t n_frames, floating* scratch,
                           bint stream) noexcept nogil:
    """log_softmax_frame for n_frames <= BAND_MAX_COLUMNS adjacent frames."""
    cdef floating m[BAND_MAX_COLUMNS]
    cdef floating c_hi[BAND_MAX_COLUMNS]
    cdef floating c_lo[BAND_MAX_COLUMNS]
    cdef Py_ssize_t n_tiles = (n_frames + TILE_COLUMNS - 1) // TILE_COLUMNS, tile, j, chunk, n_part
    if not fits(n):
        find_maxima(x, size_of_part(0, n), m, scratch)
        end_tile(x, n, m, c_hi, c_lo, scratch)
        for chunk in range(count_chunks(n)):
            n_part = min(<Py_ssize_t> CHUNK_CLASSES, n - chunk * CHUNK_CLASSES)
            copy_rows(x, beyond(x, n_part, 0), n_part, TILE_COLUMNS, n_part, scratch, <floating*> NULL)
            write_rows(scratch, y, n_part, TILE_COLUMNS, n_part, c_hi, c_lo, stream)
            x.at += n_part * x.step
            y.at += n_part * y.step
        return
    for j in range(n_tiles * TILE_COLUMNS):
        m[j] = -INFINITY
    copy_rows(x, beyond(x, 0, n_frames), n, n_frames, n, scratch, m)
    for tile in range(n_tiles):
        j = tile * TILE_COLUMNS
        end_tile(tile_in(scratch + n * j), n, &m[j], &c_hi[j], &c_lo[j], scratch)
    write_rows(scratch, y, n, n_frames, n, c_hi, c_lo, stream)
