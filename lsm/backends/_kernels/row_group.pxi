# Where the frames of a group of short rows lie: see short_rows.pxi. A row has n_rows times ROW_CLASSES classes, and a
# tail of 1 to 4 chunks, of which the last one is filled up if necessary.


# Where the frames of a group begin, and their last chunks.
cdef struct RowGroup:
    const char* at
    const char* last
    Py_ssize_t step, step_last  # bytes from one frame to the next
    Py_ssize_t n                # classes
    Py_ssize_t n_rows           # whole rows before the tail
    bint is_ahead               # whether the next group is prefetched


cdef inline RowGroup find_row_group(int op, Array x, Py_ssize_t n_frames, Py_ssize_t n, bint far, floating fill,
                                    floating* copies, floating* lasts) noexcept nogil:
    """Frames where they lie if they have the computed type and only a last chunk to be filled up, else copied."""
    cdef floating buffer[FEW_CLASSES]
    cdef Vector frame = frame_at(x, 0, 0)
    cdef Py_ssize_t f, width = round_up(n, CHUNK), size = sizeof(floating)
    cdef bint in_place = is_native(frame, copies) and (n == width or not is_few(n))
    cdef RowGroup to
    to.is_ahead = in_place and (far or is_few(n) or sums_exponentials(op))
    to.n = n
    to.n_rows = (width // CHUNK - 1) // 4
    to.at = frame.at if in_place else <const char*> copies
    to.step = x.gap if in_place else width * size
    to.last = to.at + (width - CHUNK) * size
    to.step_last = to.step
    for f in range(0 if in_place else n_frames):
        frame = frame_at(x, 0, f)
        if far:
            lsm_prefetch(frame.at + n_frames * x.gap, n * size_of(x.kind), True)
        if n < width and is_few(n):
            pad(&copies[f * width], load(frame, 0, n, buffer), n, width, fill)
        else:
            read(frame, n, &copies[f * width])
    if n < width and not is_few(n):
        for f in range(n_frames):
            pad(&lasts[f * CHUNK], <const floating*> (to.last + f * to.step), n % CHUNK, CHUNK, fill)
        to.last = <const char*> lasts
        to.step_last = CHUNK * size
    return to


cdef inline const floating* frame_of_group(RowGroup x, Py_ssize_t f, const floating* of) noexcept nogil:
    return <const floating*> (x.at + f * x.step)


cdef inline const floating* last_chunk(RowGroup x, Py_ssize_t f, const floating* of) noexcept nogil:
    return <const floating*> (x.last + f * x.step_last)


cdef inline void prefetch_next(RowGroup x, Py_ssize_t f, Py_ssize_t n_frames, Py_ssize_t n_tail,
                               const floating* of) noexcept nogil:
    """Prefetch a frame of the next group, spread over the arithmetic of this one."""
    lsm_prefetch(x.at + (n_frames + f) * x.step,
                 (x.n_rows * ROW_CLASSES + n_tail * CHUNK) * <Py_ssize_t> sizeof(floating), True)
