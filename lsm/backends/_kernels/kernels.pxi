# log-softmax and its gradient on a CPU.  Every instruction level compiles this one source (v2.pyx, v3.pyx, ...).
#
#   exp.pxi       one exponential, one gradient: functions of one element
#   lanes.pxi     sums in a fixed order, and what they say of a frame
#   rows.pxi      frame functions: the classes lie side by side
#   columns.pxi   the same for a tile of frames that lie side by side
#   here          loop functions: they share frames and tiles out to threads
#
# An array of any shape is seen as (outer, classes, inner).  All bounds are checked by the caller.

cimport cython
from cython.parallel cimport parallel, prange
from libc.stdint cimport uint32_t, uint64_t
from libc.math cimport INFINITY, NAN, exp, expm1, fabs, log1p

cdef extern from "helpers.h" nogil:
    float lsm_power_of_two_f(float t)
    double lsm_power_of_two_d(double t)
    float lsm_round_to_float(double x)
    double lsm_power_of_two_i(int n)
    int lsm_exponent(double x)
    uint32_t lsm_beyond_f(float y, float limit)
    uint64_t lsm_beyond_d(double y, double limit)
    void lsm_prefetch(const void* p, size_t n, bint near)
    void lsm_stream(void* to, const void* source, size_t n)
    void lsm_stream_fence()
    int omp_get_max_threads()
    int omp_get_thread_num()

ctypedef fused floating:
    float
    double

cdef enum:
    N_LANES = 64      # virtual lanes: 16 and 32 gave gcc 12 too little to make vectors of
    N_BLOCK = 256     # classes between two additions to the lanes: 4 a lane
    N_PEAKS = 16      # what is kept of a block's maximum: one vector, as it takes long to get from there to a number
    N_SLICE_PEAKS = 1024  # N_SLICE / N_BLOCK * N_PEAKS
    N_SLICE = 16384   # classes that are read twice while they are in the cache: 64 KiB of float32
    N_NEAR = 2048     # classes of a frame of which the next fits the first cache beside it: 3 % faster at 1000 classes,
    #                   but with 128,256 prefetching that near took a third more time
    N_COLUMNS = 16    # frames in a tile: one cache line of float32
    N_BAND = 16       # tiles that are copied together, at most
    N_BAND_COLUMNS = 256
    EXP_BIAS_FLOAT = 100
    EXP_BIAS_DOUBLE = 900
    GRADIENT_BIAS_FLOAT = 48   # see scale_sum
    GRADIENT_BIAS_DOUBLE = 100

cdef double EXP_UNBIAS_FLOAT = 2.0**-100
cdef double EXP_UNBIAS_DOUBLE = 2.0**-900

SCRATCH = 2 * N_SLICE  # elements of scratch a thread needs for classes that do not lie side by side

include "exp.pxi"
include "lanes.pxi"
include "rows.pxi"
include "columns.pxi"


cdef struct Cut:  # of an inner axis: bands of tiles, then single frames
    Py_ssize_t n_tiles, n_band, n_bands, n_tasks


cdef inline Cut cut(Py_ssize_t n_outer, Py_ssize_t n, Py_ssize_t n_inner, Py_ssize_t step, bint inner_is_dense,
                    int n_threads) noexcept nogil:
    """How the inner axis is cut into tasks, which changes no bit of any result."""
    cdef Cut c
    c.n_tiles = n_inner // N_COLUMNS if inner_is_dense and step != 1 else 0
    c.n_band = count_band(n, n_outer * c.n_tiles, n_threads)
    c.n_bands = (c.n_tiles + c.n_band - 1) // c.n_band
    c.n_tasks = c.n_bands + n_inner - c.n_tiles * N_COLUMNS
    return c


cdef inline void log_softmax_task(const floating[:, :, :] x, floating[:, :, :] y, floating* own_scratch,
                                  Py_ssize_t task, Cut cut, bint stream) noexcept nogil:
    """One band, or one frame: tasks 0 to n_bands - 1 of each outer index are bands."""
    cdef Py_ssize_t i = task // cut.n_tasks, j = task % cut.n_tasks
    cdef Py_ssize_t step_x = x.strides[1] // <Py_ssize_t> sizeof(floating)
    cdef Py_ssize_t step_y = y.strides[1] // <Py_ssize_t> sizeof(floating)
    if j < cut.n_bands:
        j = j * cut.n_band
        log_softmax_band(&x[i, 0, j * N_COLUMNS], step_x, &y[i, 0, j * N_COLUMNS], step_y, x.shape[1],
                         min(cut.n_band, cut.n_tiles - j), own_scratch, stream)
    else:
        j = cut.n_tiles * N_COLUMNS + j - cut.n_bands
        log_softmax_frame(&x[i, 0, j], step_x, &y[i, 0, j], step_y, x.shape[1], own_scratch, stream)


def log_softmax(const floating[:, :, :] x, floating[:, :, :] y, floating[:, ::1] scratch, int n_threads, bint stream):
    """y = log_softmax(x) over axis 1 of (outer, classes, inner); y may be x. scratch: (n_threads, SCRATCH)."""
    cdef bint dense = x.strides[2] == sizeof(floating) and y.strides[2] == sizeof(floating)
    cdef Py_ssize_t step = x.strides[1] // <Py_ssize_t> sizeof(floating)
    cdef Cut inner = cut(x.shape[0], x.shape[1], x.shape[2], step, dense, n_threads)
    cdef Py_ssize_t task
    if n_threads == 1:  # a parallel region costs microseconds, even with one thread
        with nogil:
            for task in range(x.shape[0] * inner.n_tasks):
                log_softmax_task(x, y, &scratch[0, 0], task, inner, stream)
            lsm_stream_fence()
    else:
        with nogil, parallel(num_threads=n_threads):
            for task in prange(x.shape[0] * inner.n_tasks, schedule="static"):
                log_softmax_task(x, y, &scratch[omp_get_thread_num(), 0], task, inner, stream)
            lsm_stream_fence()


cdef inline void log_softmax_backward_task(const floating[:, :, :] dy, const floating[:, :, :] y, floating[:, :, :] dx,
                                           floating* own_scratch, Py_ssize_t task, Cut cut,
                                           bint stream) noexcept nogil:
    """One band, or one frame, of the gradient."""
    cdef Py_ssize_t i = task // cut.n_tasks, j = task % cut.n_tasks
    cdef Py_ssize_t step_dy = dy.strides[1] // <Py_ssize_t> sizeof(floating)
    cdef Py_ssize_t step_y = y.strides[1] // <Py_ssize_t> sizeof(floating)
    cdef Py_ssize_t step_dx = dx.strides[1] // <Py_ssize_t> sizeof(floating)
    if j < cut.n_bands:
        j = j * cut.n_band
        log_softmax_backward_band(&dy[i, 0, j * N_COLUMNS], step_dy, &y[i, 0, j * N_COLUMNS], step_y,
                                  &dx[i, 0, j * N_COLUMNS], step_dx, dy.shape[1],
                                  min(cut.n_band, cut.n_tiles - j), own_scratch, stream)
    else:
        j = cut.n_tiles * N_COLUMNS + j - cut.n_bands
        log_softmax_backward_frame(&dy[i, 0, j], step_dy, &y[i, 0, j], step_y, &dx[i, 0, j], step_dx,
                                   dy.shape[1], own_scratch, stream)


def log_softmax_backward(const floating[:, :, :] dy, const floating[:, :, :] y, floating[:, :, :] dx,
                         floating[:, ::1] scratch, int n_threads, bint stream):
    """dx = dy - exp(y) * sum(dy) over axis 1 of (outer, classes, inner); dx may be dy or y."""
    cdef bint dense = (dy.strides[2] == sizeof(floating) and y.strides[2] == sizeof(floating)
                       and dx.strides[2] == sizeof(floating))
    cdef Py_ssize_t step = dy.strides[1] // <Py_ssize_t> sizeof(floating)
    cdef Cut inner = cut(dy.shape[0], dy.shape[1], dy.shape[2], step, dense, n_threads)
    cdef Py_ssize_t task
    if n_threads == 1:
        with nogil:
            for task in range(dy.shape[0] * inner.n_tasks):
                log_softmax_backward_task(dy, y, dx, &scratch[0, 0], task, inner, stream)
            lsm_stream_fence()
    else:
        with nogil, parallel(num_threads=n_threads):
            for task in prange(dy.shape[0] * inner.n_tasks, schedule="static"):
                log_softmax_backward_task(dy, y, dx, &scratch[omp_get_thread_num(), 0], task, inner, stream)
            lsm_stream_fence()


def exponentials(const floating[::1] x, floating m, floating[::1] out):
    """out = exp(x - m) as the kernels compute it, 0 for x == m: for the tests of its accuracy."""
    cdef Py_ssize_t i
    cdef floating c = round_shift(m)
    cdef double unbias = EXP_UNBIAS_FLOAT if floating is float else EXP_UNBIAS_DOUBLE
    for i in range(x.shape[0]):
        out[i] = <floating> (shift_sum(exp_below(x[i], m, c, True), 0, m, c) * unbias)


def max_threads():
    """How many threads OpenMP would start: OMP_NUM_THREADS, else the processors it sees; 0 without OpenMP."""
    return omp_get_max_threads()
