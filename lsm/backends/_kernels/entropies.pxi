# Entropy, and divergence of two distributions: one number for each frame, of logits of at most 32 bits, in double. No
# sum has terms of both signs, so plain sums will do.
#
#     d = (x - m) / T,  s = sum of exp(d) except one of the largest,  l = log1p(s),  p = exp(d) / (1 + s)
#     entropy     H = l + sum of exp(d) * -d / (1 + s)
#     divergence  KL = sum of p * phi(t) - (r - log1p(r)),  t = log(q / p),  phi(t) = expm1(t) - t,
#                 r = sum of p * expm1(t), which would be 0 without rounding
#
# Numbers are copied into the scratch in double, in chunks of 16: with many classes, 16 of a frame, a slice of it at a
# time; with few, one of each of 16 frames. Sums have 16 lanes, which are combined if they belong to one frame.

cdef enum:
    ENTROPY = 32  # after the operations of ops.pxi
    DIVERGENCE
    ENTROPY_CLASSES = 8192      # of a slice: four arrays of it fit the scratch
    SIDE_BY_SIDE_CLASSES = 128  # up to here chunks have a class of 16 frames: what a frame costs once counts
    CLASSES_AHEAD = 16          # of the class that is prefetched

cdef double DEEPEST = -800  # the exponential of any d from here on is 0


# The sums of one input.
cdef struct Sums:
    double m[CHUNK]
    double below[CHUNK]      # exp(d) of the classes below m
    double n_largest[CHUNK]  # classes equal to m
    double depth[CHUNK]      # exp(d) * -d


# Where the numbers of one input are read, and kept.
cdef struct Source:
    Array array
    Py_ssize_t frame    # the first or only one
    double* x
    double* e           # exponentials


cdef inline void share(double* lanes, bint is_max) noexcept nogil:
    """Combine the lanes of one frame, and give the result to all."""
    cdef Py_ssize_t w = CHUNK // 2, k
    while w:
        for k in range(w):
            lanes[k] = larger(lanes[k], lanes[k + w]) if is_max else lanes[k] + lanes[k + w]
        w //= 2
    for k in range(1, CHUNK):
        lanes[k] = lanes[0]


cdef Py_ssize_t read_row(Source s, Py_ssize_t first, Py_ssize_t n, Py_ssize_t n_inner) noexcept nogil:
    """Read a slice of a frame, filled up with -inf to whole chunks; the numbers read."""
    cdef Vector x = frame_at(s.array, s.frame // n_inner, s.frame % n_inner)
    cdef Py_ssize_t n_slice = min(<Py_ssize_t> ENTROPY_CLASSES, n - first), k
    x.at += first * x.step
    read(x, n_slice, s.x)
    for k in range(n_slice, round_up(n_slice, CHUNK)):
        s.x[k] = -INFINITY
    return round_up(n_slice, CHUNK)


cdef Py_ssize_t read_frames(Source s, Py_ssize_t n_frames, Py_ssize_t n, Py_ssize_t n_inner, double* to,
                            Py_ssize_t step, Py_ssize_t gap) noexcept nogil:
    """Read up to 16 frames, to `step` numbers from class to class and `gap` from frame to frame; the numbers read."""
    cdef double buffer[SIDE_BY_SIDE_CLASSES]
    cdef Vector x
    cdef Py_ssize_t first = s.frame % n_inner, j, k
    if n_inner > 1 and first + n_frames <= n_inner:
        x = frame_at(s.array, s.frame // n_inner, first)
        x.step = s.array.gap
        for k in range(n):
            if k + CLASSES_AHEAD < n:
                lsm_prefetch(x.at + CLASSES_AHEAD * s.array.step, n_frames * size_of(x.kind), True)
            if gap == 1:
                read(x, n_frames, to + k * step)
            else:
                read(x, n_frames, buffer)
                for j in range(n_frames):
                    to[k * step + j * gap] = buffer[j]
            x.at += s.array.step
    else:
        for j in range(n_frames):
            x = frame_at(s.array, (s.frame + j) // n_inner, (s.frame + j) % n_inner)
            if step == 1:
                read(x, n, to + j * gap)
            else:
                read(x, n, buffer)
                for k in range(n):
                    to[k * step + j * gap] = buffer[k]
    return n * CHUNK


cdef void find_largest(const double* x, Py_ssize_t n, double* m) noexcept nogil:
    """The maximum of m and n numbers, in each lane; any number if there is a NaN."""
    cdef double own[CHUNK]
    cdef Py_ssize_t i, k
    memcpy(own, m, sizeof(own))
    for i from 0 <= i < n by CHUNK:
        for k in range(CHUNK):  # hot
            own[k] = larger(own[k], x[i + k])
    memcpy(m, own, sizeof(own))


cdef void add_exponentials(Source s, Py_ssize_t n, double rate, Sums* sums) noexcept nogil:
    """Add n numbers to the sums, and keep their exponentials. rate: 1 / T."""
    cdef Sums own = sums[0]  # which stays in registers
    cdef double d, power
    cdef const double* x = s.x
    cdef double* e = s.e
    cdef Py_ssize_t i, k
    for i from 0 <= i < n by CHUNK:
        for k in range(CHUNK):  # hot
            d = (x[i + k] - own.m[k]) * rate
            d = DEEPEST if d < DEEPEST else d  # NaN stays
            power = exp_double(d)
            e[i + k] = power
            own.n_largest[k] += <double> 1 if d == 0 else <double> 0
            own.below[k] += <double> 0 if d == 0 else power
            own.depth[k] -= power * d
    sums[0] = own


cdef void sum_source(Source s, Py_ssize_t n_frames, Py_ssize_t n, Py_ssize_t n_inner, double rate,
                     Sums* sums) noexcept nogil:
    """The sums of a frame, or of up to 16 if n_frames is not 0. The last slice stays in s.x and s.e."""
    cdef Py_ssize_t first, n_read = 0, k
    for k in range(CHUNK):
        sums.m[k] = -INFINITY
        sums.below[k] = sums.n_largest[k] = sums.depth[k] = 0
    if n_frames:
        n_read = read_frames(s, n_frames, n, n_inner, s.x, CHUNK, 1)
        find_largest(s.x, n_read, sums.m)
        add_exponentials(s, n_read, rate, sums)
    else:
        for first from 0 <= first < n by ENTROPY_CLASSES:
            n_read = read_row(s, first, n, n_inner)
            find_largest(s.x, n_read, sums.m)
        share(sums.m, True)
        for first from 0 <= first < n by ENTROPY_CLASSES:
            if n > ENTROPY_CLASSES:
                n_read = read_row(s, first, n, n_inner)
            add_exponentials(s, n_read, rate, sums)
        share(sums.below, False)
        share(sums.n_largest, False)
        share(sums.depth, False)
    for k in range(CHUNK):
        sums.below[k] += sums.n_largest[k] - 1


cdef inline void add_divergences(Source s, Source other, Py_ssize_t n, const double* scale, const double* scale_other,
                                 const double* apart, const double* apart_low, const double* l_apart, double rate,
                                 double* terms, double* excess) noexcept nogil:
    """Add p * phi(t) and p * expm1(t) of n numbers."""
    cdef double p, q, t, phi, near, far, high, v, low
    cdef const double* x = s.x
    cdef const double* x_other = other.x
    cdef const double* e = s.e
    cdef const double* e_other = other.e
    cdef Py_ssize_t i, k
    for i from 0 <= i < n by CHUNK:
        for k in range(CHUNK):  # hot
            p = e[i + k] * scale[k]
            q = e_other[i + k] * scale_other[k]
            # A difference with its rounding error: logits may lie so far apart that their own differences are lost.
            high = x_other[i + k] - x[i + k]
            v = high - x_other[i + k]
            low = (x_other[i + k] - (high - v)) - (x[i + k] + v)
            low = low if fabs(high) < INFINITY else <double> 0
            t = ((high - apart[k]) + (low - apart_low[k])) * rate - l_apart[k]
            phi = t * t * (0.5 + t * (1 / 6.0 + t * (1 / 24.0 + t * (1 / 120.0))))
            near = p * phi
            # Beyond 2**-10, q - p - p * t cancels no more than float32 has digits to spare.
            far = (q - p) - p * t
            near = near if fabs(t) <= 0.0009765625 else far
            far = (t + phi) * p if fabs(t) <= 0.0009765625 else q - p
            terms[k] += q if p == 0 else near
            excess[k] += q if p == 0 else far


cdef void entropies_of(Source s, Py_ssize_t n_frames, Py_ssize_t n, Py_ssize_t n_inner, double rate,
                       double* result) noexcept nogil:
    cdef Sums sums
    cdef Py_ssize_t k
    sum_source(s, n_frames, n, n_inner, rate, &sums)
    for k in range(CHUNK):  # hot
        result[k] = log1p_double(sums.below[k]) + sums.depth[k] / (1 + sums.below[k])


cdef void divergences_of(Source s, Source other, Py_ssize_t n_frames, Py_ssize_t n, Py_ssize_t n_inner,
                         double rate, double* result) noexcept nogil:
    cdef Sums sums, sums_other, unused
    cdef double terms[CHUNK]
    cdef double excess[CHUNK]
    cdef double scale[CHUNK]
    cdef double scale_other[CHUNK]
    cdef double apart[CHUNK]
    cdef double apart_low[CHUNK]
    cdef double l_apart[CHUNK]
    cdef double r, v
    cdef Py_ssize_t first, n_read = n * CHUNK if n_frames else round_up(n, CHUNK), k
    sum_source(s, n_frames, n, n_inner, rate, &sums)
    sum_source(other, n_frames, n, n_inner, rate, &sums_other)
    for k in range(CHUNK):  # hot
        scale[k] = 1 / (1 + sums.below[k])
        scale_other[k] = 1 / (1 + sums_other.below[k])
        apart[k] = sums_other.m[k] - sums.m[k]
        v = apart[k] - sums_other.m[k]
        apart_low[k] = (sums_other.m[k] - (apart[k] - v)) - (sums.m[k] + v)
        l_apart[k] = log1p_double(sums_other.below[k]) - log1p_double(sums.below[k])
        terms[k] = excess[k] = 0
    for first from 0 <= first < (1 if n_frames else n) by ENTROPY_CLASSES:
        if not n_frames and n > ENTROPY_CLASSES:
            n_read = read_row(s, first, n, n_inner)
            read_row(other, first, n, n_inner)
            unused = sums
            add_exponentials(s, n_read, rate, &unused)
            unused = sums_other
            add_exponentials(other, n_read, rate, &unused)
        add_divergences(s, other, n_read, scale, scale_other, apart, apart_low, l_apart, rate, terms,
                        excess)
    if not n_frames:
        share(terms, False)
        share(excess, False)
    for k in range(CHUNK):  # hot
        r = excess[k]
        r = terms[k] - r * r * (1 / 2.0 - r * (1 / 3.0))  # r - log1p(r), of which r is at most some roundings
        result[k] = <double> 0 if r < 0 else r


cdef inline Py_ssize_t entropy_group(int op, Array a, Py_ssize_t n, Py_ssize_t n_inner) noexcept nogil:
    """The frames of a task: 16 of few classes, else as many as are copied together if they lie side by side."""
    cdef Py_ssize_t n_arrays = 2 if op == ENTROPY else 4
    cdef Py_ssize_t n_free = SCRATCH_BYTES // sizeof(double) - n_arrays * min(n, <Py_ssize_t> ENTROPY_CLASSES) - 64
    if n <= SIDE_BY_SIDE_CLASSES:
        return CHUNK
    if n_inner == 1 or magnitude(a.gap) >= magnitude(a.step):
        return 1
    return max(<Py_ssize_t> 1, min(<Py_ssize_t> CHUNK, n_free // (n * n_arrays // 2)))


cdef inline Array copied(Source s, Py_ssize_t n_frames, Py_ssize_t n, Py_ssize_t n_inner, double* to) noexcept nogil:
    """A copy of some frames in double."""
    cdef Array array = s.array
    read_frames(s, n_frames, n, n_inner, to, 1, n)
    array.at = <char*> to
    array.kind = DOUBLE
    array.step = sizeof(double)
    array.outer = n * sizeof(double)
    return array


cdef void run_entropy_task(int op, Array a, Array b, Array y, Py_ssize_t first, Py_ssize_t n_frames, Py_ssize_t n,
                           Py_ssize_t n_inner, bint is_copied, double* scratch) noexcept nogil:
    """Some frames."""
    cdef double result[CHUNK]
    cdef double rate = a.alteration.rate
    cdef bint few = n <= SIDE_BY_SIDE_CLASSES
    cdef Py_ssize_t size = n * CHUNK if few else round_up(min(n, <Py_ssize_t> ENTROPY_CLASSES), CHUNK)
    cdef Py_ssize_t i = first, i_read = first, n_inner_read = n_inner, k
    cdef double* free = scratch + (2 if op == ENTROPY else 4) * size
    cdef Source s, other
    s.array, s.frame, s.x, s.e = a, first, scratch, scratch + size
    other.array, other.frame, other.x, other.e = b, first, scratch + 2 * size, scratch + 3 * size
    if is_copied:
        s.array = copied(s, n_frames, n, n_inner, free)
        if op != ENTROPY:
            other.array = copied(other, n_frames, n, n_inner, free + n_frames * n)
        i_read, n_inner_read = 0, 1
    while i < first + n_frames:
        s.frame = other.frame = i_read
        k = n_frames if few else 0
        if op == ENTROPY:
            entropies_of(s, k, n, n_inner_read, rate, result)
        else:
            divergences_of(s, other, k, n, n_inner_read, rate, result)
        for k in range(max(k, <Py_ssize_t> 1)):
            write(frame_at(y, i // n_inner, i % n_inner), 0, 1, result + k, False)
            i += 1
            i_read += 1


cdef void run_entropies(int op, Array a, Array b, Array y, Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner,
                        double* scratch, Py_ssize_t n_bytes, int n_threads) noexcept nogil:
    """All frames of arrays seen as (outer, classes, inner); the temperature is the divisor of a."""
    cdef uint64_t env = lsm_enter_float_env()
    cdef Py_ssize_t n_frames = n_outer * n_inner, group = entropy_group(op, a, n, n_inner)
    cdef bint is_copied = group > 1 and n > SIDE_BY_SIDE_CLASSES
    cdef Py_ssize_t n_tasks = (n_frames + group - 1) // group, i
    n_threads = lsm_begin_region(n_threads)
    if n_threads == 1:
        for i in range(n_tasks):
            run_entropy_task(op, a, b, y, i * group, min(group, n_frames - i * group), n, n_inner, is_copied,
                             own_scratch(scratch, n_bytes, 0))
    else:
        with parallel(num_threads=n_threads):
            env = lsm_enter_float_env()
            for i in prange(n_tasks, schedule="static"):
                run_entropy_task(op, a, b, y, i * group, min(group, n_frames - i * group), n, n_inner, is_copied,
                                 own_scratch(scratch, n_bytes, omp_get_thread_num()))
            lsm_leave_float_env(env)
    lsm_end_region(n_threads)
    lsm_leave_float_env(env)
