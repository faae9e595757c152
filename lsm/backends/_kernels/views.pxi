# Views of arrays of any stride and dtype, converted to and from the computed type.
#
# float and double with unit stride are used in place. Everything else goes through a buffer, so that no other function
# deals with strides or 16-bit types.

cdef enum Kind:
    HALF
    BFLOAT16
    FLOAT
    DOUBLE
    # Added to the kind of what is altered as it is read, and so never used in place:
    MASKED_LOW = 4   # -inf where the mask is 0
    MASKED_ZERO = 8  # 0 where the mask is 0
    DIVIDED = 16     # by a temperature, before that


# How numbers are altered. A mask has a byte for each element, in the same layout: of the element at p, with p and the
# size in bytes, at p // size + mask.
cdef struct Alteration:
    Py_ssize_t mask
    double rate  # 1 over the temperature: a product takes a fifth of the time of a quotient


# One frame, or one row of adjacent frames.
cdef struct Vector:
    char* at
    Py_ssize_t step  # bytes from one element to the next
    int kind
    Alteration alteration


# An array seen as (outer, classes, inner).
cdef struct Array:
    char* at
    Py_ssize_t outer, step, gap  # strides in bytes
    int kind
    Alteration alteration


cdef inline Vector frame_at(Array x, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    cdef Vector frame
    frame.at = x.at + i * x.outer + j * x.gap
    frame.step = x.step
    frame.kind = x.kind
    frame.alteration = x.alteration
    return frame


cdef inline Py_ssize_t count_blocks(Py_ssize_t n) noexcept nogil:
    return (n + BLOCK_CLASSES - 1) // BLOCK_CLASSES


cdef inline Py_ssize_t count_slices(Py_ssize_t n) noexcept nogil:
    return (n + SLICE_CLASSES - 1) // SLICE_CLASSES


cdef inline Py_ssize_t size_of(int kind) noexcept nogil:
    kind &= 3
    return 2 if kind <= BFLOAT16 else 4 if kind == FLOAT else 8


cdef inline bint is_altered(int kind) noexcept nogil:
    return kind > DOUBLE


cdef inline int kind_of(const floating* of) noexcept nogil:
    if floating is float:
        return FLOAT
    else:
        return DOUBLE


cdef inline bint lies_as(Vector x, int kind) noexcept nogil:
    """Whether the elements have this kind and unit stride."""
    return x.kind == kind and x.step == size_of(kind)


cdef inline bint is_native(Vector x, const floating* of) noexcept nogil:
    """Whether the elements have the type of `of` and unit stride."""
    return lies_as(x, kind_of(of))


cdef inline Py_ssize_t mask_offset(const char* at, int kind, const char* mask) noexcept nogil:
    """The `mask` of an alteration, for an array and its mask that begin there."""
    return <Py_ssize_t> mask - <Py_ssize_t> (<uintptr_t> at // <uintptr_t> size_of(kind))


cdef inline Array array_of(char* at, Py_ssize_t* strides, int kind, const char* mask, double divisor) noexcept nogil:
    cdef Array array
    array.at = at
    array.outer = strides[0]
    array.step = strides[1]
    array.gap = strides[2]
    array.kind = kind
    array.alteration.mask = mask_offset(at, kind, mask)
    array.alteration.rate = 1 / divisor
    return array


cdef void read(Vector x, Py_ssize_t n, floating* to) noexcept nogil:
    """Copy n elements, converted to floating and altered."""
    cdef Py_ssize_t i
    if not is_altered(x.kind):
        convert(x, n, to)
        return
    for i from 0 <= i < n by BLOCK_CLASSES:  # altered while they are in registers or the L1 cache
        convert(x, min(<Py_ssize_t> BLOCK_CLASSES, n - i), to + i)
        alter(x, min(<Py_ssize_t> BLOCK_CLASSES, n - i), to + i)
        x.at += BLOCK_CLASSES * x.step


cdef inline void convert(Vector x, Py_ssize_t n, floating* to) noexcept nogil:
    """Copy n elements, converted to floating."""
    cdef int kind = x.kind & 3
    cdef uint16_t bits[BLOCK_CLASSES]
    cdef float narrow[BLOCK_CLASSES]
    cdef const uint16_t* source
    cdef Py_ssize_t part, start, k, n_part
    if kind == FLOAT:
        if x.step == sizeof(float):
            for k in range(n):  # hot
                to[k] = <floating> (<float*> x.at)[k]
        else:
            for k in range(n):
                to[k] = <floating> (<float*> (x.at + k * x.step))[0]
    elif kind == DOUBLE:
        if x.step == sizeof(double):
            for k in range(n):  # hot
                to[k] = <floating> (<double*> x.at)[k]
        else:
            for k in range(n):
                to[k] = <floating> (<double*> (x.at + k * x.step))[0]
    else:
        for part in range(count_blocks(n)):
            start = part * BLOCK_CLASSES
            n_part = min(BLOCK_CLASSES, n - start)
            source = <const uint16_t*> x.at + start
            if x.step != sizeof(uint16_t):
                for k in range(n_part):
                    bits[k] = (<uint16_t*> (x.at + (start + k) * x.step))[0]
                source = bits
            if floating is float and n_part == BLOCK_CLASSES:  # a constant length halves the time
                widen(source, BLOCK_CLASSES, kind, to + start)
            elif floating is float:
                widen(source, n_part, kind, to + start)
            else:
                widen(source, n_part, kind, narrow)
                for k in range(n_part):  # hot
                    to[start + k] = narrow[k]


cdef void alter(Vector x, Py_ssize_t n, floating* p) noexcept nogil:
    """Alter n elements that have been read."""
    cdef Py_ssize_t size = size_of(x.kind), step = x.step // size, k
    cdef const char* mask = <const char*> (<Py_ssize_t> (<uintptr_t> x.at // <uintptr_t> size) + x.alteration.mask)
    cdef floating fill = <floating> -INFINITY if x.kind & MASKED_LOW else <floating> 0
    if x.kind & DIVIDED:
        for k in range(n):  # hot
            p[k] = <floating> (p[k] * x.alteration.rate)
    if not x.kind & (MASKED_LOW | MASKED_ZERO):
        return
    if step == 1:
        for k in range(n):  # hot
            p[k] = p[k] if mask[k] != 0 else fill
    else:
        for k in range(n):
            p[k] = p[k] if mask[k * step] != 0 else fill


cdef inline void widen(const uint16_t* x, Py_ssize_t n, int kind, float* to) noexcept nogil:
    """Convert 16-bit numbers to float, exactly."""
    if kind == HALF:
        lsm_from_half(to, x, n)
    else:
        lsm_from_bfloat16s(to, x, n)


cdef inline void narrow(const float* x, Py_ssize_t n, int kind, uint16_t* to) noexcept nogil:
    """Round floats to 16 bits, to nearest even."""
    if kind == HALF:
        lsm_to_half(to, x, n)
    else:
        lsm_to_bfloat16s(to, x, n)


cdef inline const floating* load(Vector x, Py_ssize_t start, Py_ssize_t n, floating* buffer) noexcept nogil:
    """n elements from `start` on: in place, or else in the buffer."""
    x.at += start * x.step
    if is_native(x, buffer):
        return <const floating*> x.at
    read(x, n, buffer)
    return buffer


cdef inline const floating* load_block(Vector x, Py_ssize_t start, floating* buffer) noexcept nogil:
    """load of BLOCK_CLASSES elements. The constant length halves the cost of 16-bit types."""
    if floating is float:
        if x.kind == BFLOAT16 and x.step == sizeof(uint16_t):
            widen(<const uint16_t*> x.at + start, BLOCK_CLASSES, BFLOAT16, buffer)
            return buffer
        if x.kind == HALF and x.step == sizeof(uint16_t):
            widen(<const uint16_t*> x.at + start, BLOCK_CLASSES, HALF, buffer)
            return buffer
    return load(x, start, BLOCK_CLASSES, buffer)


cdef inline const char* block_at(Vector x, Py_ssize_t start, int kind, floating* buffer) noexcept nogil:
    """BLOCK_CLASSES elements as numbers of this kind: 16-bit ones in place, others possibly in the buffer."""
    if kind <= BFLOAT16:
        return x.at + start * size_of(kind)
    return <const char*> load_block(x, start, buffer)


cdef inline bint lies_whole(Array x, Py_ssize_t n) noexcept nogil:
    """Whether adjacent frames are packed in memory."""
    return x.step == size_of(x.kind) and x.gap == n * x.step


cdef inline Vector native(const floating* x) noexcept nogil:
    """A view of numbers of the computed type."""
    cdef Vector to
    to.at = <char*> x
    to.step = sizeof(floating)
    to.kind = kind_of(x)
    return to


cdef inline Vector dense(Vector x, Py_ssize_t start, Py_ssize_t n, floating* scratch) noexcept nogil:
    """n elements from `start` on, with unit stride: in place, or else in the scratch."""
    x.at += start * x.step
    if x.step == size_of(x.kind):
        return x
    read(x, n, scratch)
    return native(scratch)


cdef inline void put(char* to, const void* source, size_t n, bint stream) noexcept nogil:
    """Copy n bytes, with nontemporal stores if `stream`."""
    if stream:
        lsm_stream(to, source, n)
    else:
        memcpy(to, source, n)


cdef void write(Vector y, Py_ssize_t start, Py_ssize_t n, const floating* p, bint stream) noexcept nogil:
    """Store n <= WRITE_NUMBERS numbers from `start` on; with nontemporal stores if `stream`, for unit stride."""
    cdef uint16_t bits[WRITE_NUMBERS]
    cdef float single[WRITE_NUMBERS]
    cdef double wide[WRITE_NUMBERS]
    cdef uint16_t* to = bits
    cdef const float* source
    cdef Py_ssize_t k
    cdef bint is_dense = y.step == size_of(y.kind)
    y.at += start * y.step
    if is_native(y, p):
        put(y.at, p, n * sizeof(floating), stream)
    elif y.kind == DOUBLE:
        if floating is float:  # double with unit stride would be native
            if is_dense:
                for k in range(n):  # hot
                    wide[k] = p[k]
                put(y.at, wide, n * sizeof(double), stream)
                return
        for k in range(n):
            (<double*> (y.at + k * y.step))[0] = p[k]
    else:
        if floating is float:
            source = p
        else:
            if y.kind == FLOAT and is_dense and not stream:
                for k in range(n):  # hot
                    (<float*> y.at)[k] = <float> p[k]
                return
            for k in range(n):  # hot
                single[k] = <float> p[k]
            source = single
        if y.kind == FLOAT:
            if is_dense:
                put(y.at, source, n * sizeof(float), stream)
            else:
                for k in range(n):
                    (<float*> (y.at + k * y.step))[0] = source[k]
        else:
            if is_dense and not stream:
                to = <uint16_t*> y.at
            for k in range(n // BLOCK_CLASSES):
                narrow(source + k * BLOCK_CLASSES, BLOCK_CLASSES, y.kind, to + k * BLOCK_CLASSES)
            k = n // BLOCK_CLASSES * BLOCK_CLASSES
            narrow(source + k, n - k, y.kind, to + k)
            if is_dense and stream:
                lsm_stream(y.at, bits, n * sizeof(uint16_t))
            elif not is_dense:
                for k in range(n):
                    (<uint16_t*> (y.at + k * y.step))[0] = bits[k]


cdef inline void write_block(Vector y, Py_ssize_t start, int kind, const floating* p, bint stream) noexcept nogil:
    """write of BLOCK_CLASSES elements; if kind is 16-bit, p already holds numbers of that kind, and so does y."""
    cdef uint16_t bits[BLOCK_CLASSES]
    cdef uint16_t* to = bits
    if kind <= BFLOAT16:
        put(y.at + start * y.step, p, BLOCK_CLASSES * size_of(kind), stream)
        return
    if floating is float:
        if y.kind <= BFLOAT16 and y.step == sizeof(uint16_t):
            if not stream:
                to = <uint16_t*> y.at + start
            if y.kind == BFLOAT16:
                narrow(p, BLOCK_CLASSES, BFLOAT16, to)
            else:
                narrow(p, BLOCK_CLASSES, HALF, to)
            if stream:
                lsm_stream(y.at + start * y.step, bits, BLOCK_CLASSES * sizeof(uint16_t))
            return
    write(y, start, BLOCK_CLASSES, p, stream)


cdef inline Py_ssize_t misaligned(Vector y, bint stream) noexcept nogil:
    """The number of elements before the first cache-line boundary; 0 unless y is streamed."""
    if stream and y.step == size_of(y.kind):
        return (-<Py_ssize_t> y.at & 63) // y.step
    return 0
