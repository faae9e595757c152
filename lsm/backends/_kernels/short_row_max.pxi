# The first reduction of groups of short rows: the maxima, or the dy of the classes with the largest p.
#
# The number of chunks of the tail is a compile-time constant in every loop over frames.


cdef inline void raise_of_row(const floating* x, Py_ssize_t n_chunks, floating* high) noexcept nogil:
    """high = max(high, x), lane by lane, for 1 to 4 chunks."""
    cdef Py_ssize_t k
    for k in range(CHUNK):  # hot
        if n_chunks == 4:
            high[k] = larger(larger(larger(x[k], x[CHUNK + k]), larger(x[2 * CHUNK + k], x[3 * CHUNK + k])), high[k])
        elif n_chunks == 3:
            high[k] = larger(larger(larger(x[k], x[CHUNK + k]), x[2 * CHUNK + k]), high[k])
        elif n_chunks == 2:
            high[k] = larger(larger(x[k], x[CHUNK + k]), high[k])
        else:
            high[k] = larger(x[k], high[k])


cdef inline void half_maxima_of_few(const floating* x, Py_ssize_t n_chunks, floating* half) noexcept nogil:
    """Eight numbers that contain the maximum of 1 to 4 chunks."""
    cdef Py_ssize_t k
    for k in range(8):
        if n_chunks == 1:
            half[k] = larger(x[k], x[k + 8])
        elif n_chunks == 2:
            half[k] = larger(larger(x[k], x[k + 8]), larger(x[k + 16], x[k + 24]))
        elif n_chunks == 3:
            half[k] = larger(larger(larger(x[k], x[k + 8]), larger(x[k + 16], x[k + 24])),
                             larger(x[k + 32], x[k + 40]))
        else:
            half[k] = larger(larger(larger(x[k], x[k + 8]), larger(x[k + 16], x[k + 24])),
                             larger(larger(x[k + 32], x[k + 40]), larger(x[k + 48], x[k + 56])))


cdef inline void max_of_short(bint few, RowGroup x, Py_ssize_t n_tail, Py_ssize_t n_frames,
                              floating* m) noexcept nogil:
    """The maxima of a group. They may miss a NaN, which the sum finds."""
    cdef floating half[8 * FEW_GROUP_FRAMES]
    cdef floating high[CHUNK]
    cdef const floating* v
    cdef const floating* last
    cdef Py_ssize_t f, r, k
    for f in range(n_frames):
        v = frame_of_group(x, f, m)
        if few:
            half_maxima_of_few(v, n_tail, &half[f * 8])
            continue
        last = last_chunk(x, f, m)
        for k in range(CHUNK):
            high[k] = last[k]
        if n_tail > 1:
            raise_of_row(v + x.n_rows * ROW_CLASSES, n_tail - 1, high)
        for r in range(x.n_rows):
            raise_of_row(v + r * ROW_CLASSES, 4, high)
        half_maxima(high, &half[f * 8])
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = 0
    end_maxima(half, n_frames, m)


cdef inline void largest_of_short(bint few, RowGroup dy, RowGroup p, Py_ssize_t n_tail, Py_ssize_t n_frames,
                                  const floating* m, floating* m_dy) noexcept nogil:
    """The dy of the first of the classes whose p is the maximum m; NaN where some dy is huge."""
    cdef floating half[8 * FEW_GROUP_FRAMES]
    cdef floating highest[FEW_GROUP_FRAMES]
    cdef floating high[CHUNK]
    cdef Py_ssize_t f, r, k, n_before = (0 if few else dy.n_rows * 4) + n_tail - 1
    cdef const floating* v
    for k in range(n_frames * 8, round_up(n_frames, GROUP_FRAMES) * 8):
        half[k] = 0
    for f in range(n_frames):
        v = frame_of_group(dy, f, m)
        m_dy[f] = dy_of_first(v, frame_of_group(p, f, m), n_tail * CHUNK if few else p.n, m[f])
        for k in range(CHUNK):
            high[k] = 0
        for r in range(n_before):
            raise_magnitude_once(v + r * CHUNK, high)
        raise_magnitude_once(last_chunk(dy, f, m), high)
        half_maxima(high, &half[f * 8])
    end_maxima(half, n_frames, highest)
    spoil_huge(highest, n_frames, m_dy)
