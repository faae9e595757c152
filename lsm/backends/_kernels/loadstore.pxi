# Loads and stores of whole lanes of any kind, padding of remainders, and prefetches.


cdef inline void pad(floating* to, const floating* x, Py_ssize_t n, Py_ssize_t width, floating fill) noexcept nogil:
    """Copy n < ROW_CLASSES numbers and fill up to `width`, a multiple of N_LANES."""
    if floating is float:
        lsm_pad_f(to, x, n, width, fill)
    else:
        lsm_pad_d(to, x, n, width, fill)


cdef inline void put_some(floating* to, const floating* x, Py_ssize_t n) noexcept nogil:
    """Copy the first n of N_LANES numbers."""
    if floating is float:
        lsm_put_some_f(to, x, n)
    else:
        lsm_put_some_d(to, x, n)


cdef inline void put_lanes(floating* to, const floating* x, bint nontemporal) noexcept nogil:
    """Copy N_LANES numbers. nontemporal, a compile-time constant, requires `to` to be aligned."""
    if floating is float:
        if nontemporal:
            lsm_put_nontemporal_f(to, x)
        else:
            lsm_put_f(to, x)
    elif nontemporal:
        lsm_put_nontemporal_d(to, x)
    else:
        lsm_put_d(to, x)


cdef inline bint can_stream(Vector y, int kind, bint stream) noexcept nogil:
    """Whether give_lanes may write y, as numbers of this kind, with nontemporal stores."""
    return stream and lies_as(y, kind) and <uintptr_t> y.at % 64 == 0


cdef inline void take_lanes(floating* to, const char* at, int kind) noexcept nogil:
    """Load N_LANES adjacent numbers: 16-bit, or of the computed type. kind is a compile-time constant."""
    if floating is float:
        if kind == HALF:
            lsm_from_half_lanes(to, <const uint16_t*> at)
        elif kind == BFLOAT16:
            lsm_from_bfloat16s(to, <const uint16_t*> at, N_LANES)
        else:
            lsm_put_f(to, <const float*> at)
    else:
        lsm_put_d(to, <const double*> at)


cdef inline void give_lanes(char* to, const floating* x, int kind, bint nontemporal) noexcept nogil:
    """Store N_LANES adjacent numbers likewise; nontemporal as in put_lanes."""
    cdef uint16_t bits[N_LANES]
    if kind > BFLOAT16:
        put_lanes(<floating*> to, x, nontemporal)
    elif floating is float:
        if kind == HALF:
            lsm_to_half_lanes(bits, x)
        else:
            lsm_to_bfloat16s(bits, x, N_LANES)
        lsm_put_16(to, bits, nontemporal)


cdef inline void take_some(floating* to, const char* at, Py_ssize_t n, int kind) noexcept nogil:
    """take_lanes of n numbers, N_LANES or PAIR_LANES; a pair of BFLOAT16 comes with the even elements first."""
    if floating is float and kind == BFLOAT16 and n == PAIR_LANES:
        lsm_from_bfloat16_pair(to, <const uint16_t*> at)
    else:
        take_lanes(to, at, kind)


cdef inline void give_some(char* to, const floating* x, Py_ssize_t n, int kind, bint nontemporal) noexcept nogil:
    """give_lanes of n numbers in the order of take_some."""
    cdef uint16_t bits[PAIR_LANES]
    if floating is float and kind == BFLOAT16 and n == PAIR_LANES:
        lsm_to_bfloat16_pair(bits, x)
        lsm_put_32(to, bits, nontemporal)
    else:
        give_lanes(to, x, kind, nontemporal)


cdef inline void put_in_order(floating* to, const floating* x, Py_ssize_t n, int kind) noexcept nogil:
    """Restore memory order: PAIR_LANES numbers that take_some loaded n at a time."""
    cdef Py_ssize_t k
    if kind == BFLOAT16 and n == PAIR_LANES:
        for k in range(N_LANES):
            to[2 * k] = x[k]
            to[2 * k + 1] = x[N_LANES + k]
    else:
        for k in range(PAIR_LANES):
            to[k] = x[k]


# Addresses to prefetch during a block, row by row: requesting many lines at once delays the demand loads. NULL for
# none.
cdef struct Ahead:
    const char* read_1
    const char* read_2
    const char* written
    Py_ssize_t size_1, size_2, size_written  # bytes of an element
    bint far  # whether to prefetch at all


cdef inline Ahead nothing_ahead(bint far) noexcept nogil:
    cdef Ahead ahead
    ahead.far = far
    ahead.read_1 = ahead.read_2 = ahead.written = NULL
    ahead.size_1 = ahead.size_2 = ahead.size_written = 0
    return ahead


cdef inline const char* prefetch_address(Vector x, Py_ssize_t start) noexcept nogil:
    """The address PREFETCH_DISTANCE_CLASSES elements after `start`."""
    return x.at + (start + PREFETCH_DISTANCE_CLASSES) * x.step


cdef inline void prefetch(Ahead ahead, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """Prefetch n elements from `start` on."""
    if not ahead.far:
        return
    if ahead.read_1 != NULL:
        lsm_prefetch(ahead.read_1 + start * ahead.size_1, n * ahead.size_1, False)
    if ahead.read_2 != NULL:
        lsm_prefetch(ahead.read_2 + start * ahead.size_2, n * ahead.size_2, False)
    if ahead.written != NULL:
        lsm_prefetch(ahead.written + start * ahead.size_written, n * ahead.size_written, False)
