# Log-softmax, softmax, their gradients, and logsumexp on a CPU. Every instruction level compiles this one source
# (v2.pyx, v3.pyx, ...). An operation (op_*.pxi) defines the arithmetic; a traversal (traverse_*.pxi) iterates over the
# numbers.
#
#   views.pxi      any dtype and stride, loaded and stored as float or double
#   exp.pxi        the exponential, the logarithm and the gradient of one number
#   lanes.pxi      sums in a fixed order, and the parameters derived from them
#   fallback.pxi   rare and slow: frames that are -inf throughout, sums out of range
#   loadstore.pxi  vector loads and stores
#   finalize.pxi   from maxima and sums to parameters, for many frames at once
#   few.pxi        formulas for frames of at most 64 classes
#   ops.pxi        what an operation is to a traversal; one op_*.pxi for each
#   traverse_block.pxi  interleaved frames, with vectors along the frames; block_layout.pxi, block_reduce.pxi
#   traverse_rows.pxi   groups of rows, with vectors along the classes; row_reduce.pxi, and
#                  short_rows.pxi for up to 512 classes; row_group.pxi, short_row_max.pxi, short_row_sum.pxi
#   rows.pxi       many classes of log-softmax, three rows in flight: stages.pxi, remainder.pxi; and of its gradient,
#                  two in flight: rows_backward.pxi, stages_backward.pxi
#   traverse_long.pxi   rows longer than a slice, on all threads if they are few
#   partials.pxi   frames of which an array holds a part; partials_backward.pxi
#   schedule.pxi   distribution of frames, blocks and slices to threads
#   entropies.pxi  entropy and divergence, in double
#   fastpath.pxi   C-contiguous arrays, directly from NumPy; select.pxi, top_k.pxi and losses.pxi: the derived
#                  functions of small ones; calls.pxi: what the public functions call first
#   labels.pxi     the log-softmax at labels and the gradient of their loss, tile by tile
#   bandwidth.pxi  a streaming copy and add, for benchmarks
#   this file      constants and the Python interface
#
# An array of any shape is seen as (outer, classes, inner). The caller checks all bounds.

cimport cython
from cython.parallel cimport parallel, prange
from libc.math cimport INFINITY, NAN, exp, expm1, fabs, fabsf
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

cdef extern from "floatbits.h" nogil:
    bint LSM_WIDENS
    float lsm_power_of_two_f(float t)
    float lsm_reduce_f(float v, float n)
    double lsm_power_of_two_d(double t)
    int32_t lsm_log2_above_half_root(float x)
    float lsm_power_of_minus(int32_t k)
    int32_t lsm_exponent_f(float x)
    double lsm_round_to_float(double x)
    double lsm_power_of_two_i(int n)
    double lsm_split(double u, double* f)
    int lsm_exponent(double x)
    uint32_t lsm_beyond_f(float y, float limit)
    uint64_t lsm_beyond_d(double y, double limit)
    int32_t lsm_depth_f(float y)
    int64_t lsm_depth_d(double y)
    float lsm_least_f(int32_t depth)
    double lsm_least_d(int64_t depth)
    void lsm_from_bfloat16s(float* to, const uint16_t* x, Py_ssize_t n)
    void lsm_to_bfloat16s(uint16_t* to, const float* x, Py_ssize_t n)
    void lsm_from_half(float* to, const uint16_t* x, Py_ssize_t n)
    void lsm_to_half(uint16_t* to, const float* x, Py_ssize_t n)
    void lsm_from_bfloat16_pair(float* to, const uint16_t* x)
    void lsm_to_bfloat16_pair(uint16_t* to, const float* x)
    void lsm_from_half_lanes(float* to, const uint16_t* x)
    void lsm_to_half_lanes(uint16_t* to, const float* x)
    int omp_get_max_threads()
    int omp_get_num_places()
    int omp_get_num_procs()
    int omp_get_place_num_procs(int place)
    int omp_get_thread_limit()
    int omp_get_thread_num()

cdef extern from "region.h" nogil:
    uint64_t lsm_enter_float_env()
    void lsm_leave_float_env(uint64_t before)
    int lsm_begin_region(int n)
    void lsm_end_region(int n)

cdef extern from "kept.h" nogil:
    void* lsm_kept()
    void* lsm_keep_normalisers(void* to)

cdef extern from "reduce.h" nogil:
    void lsm_fold_max_f(float* to, const float* x)
    void lsm_fold_max_d(double* to, const double* x)
    void lsm_fold_sum(double* to, const double* x)
    Py_ssize_t lsm_first_f(const float* x, Py_ssize_t n, float m)
    Py_ssize_t lsm_first_d(const double* x, Py_ssize_t n, double m)

cdef extern from "loadstore.h" nogil:
    bint LSM_HAS_PARTIAL_STORES
    void lsm_pad_f(float* to, const float* x, Py_ssize_t n, Py_ssize_t width, float fill)
    void lsm_pad_d(double* to, const double* x, Py_ssize_t n, Py_ssize_t width, double fill)
    void lsm_put_f(float* to, const float* x)
    void lsm_put_d(double* to, const double* x)
    void lsm_put_nontemporal_f(float* to, const float* x)
    void lsm_put_nontemporal_d(double* to, const double* x)
    void lsm_put_16(void* to, const uint16_t* x, bint nontemporal)
    void lsm_put_32(void* to, const uint16_t* x, bint nontemporal)
    void lsm_put_some_f(float* to, const float* x, Py_ssize_t n)
    void lsm_put_some_d(double* to, const double* x, Py_ssize_t n)
    void lsm_prefetch(const void* p, size_t n, bint near)
    void lsm_stream(void* to, const void* source, size_t n)
    double lsm_unknown_zero()
    void lsm_widen(double* to, const float* x)
    void lsm_transpose(double* to, const double* source)
    void lsm_stream_through(void* y, size_t n_y, const void* x, size_t n_x)
    void lsm_stream_add(float* to, const float* a, const float* b, size_t n)
    void lsm_stream_fence()

ctypedef fused floating:  # the type of the arithmetic
    float
    double

cdef enum:
    N_LANES = 16             # virtual lanes, in double
    PAIR_LANES = 32          # two vectors of lanes: one register of 16-bit numbers
    ROW_CLASSES = 64         # the unit of vectorisation of stages.pxi: with 16 or 32, gcc 12 vectorised badly
    BLOCK_ROWS = 4
    BLOCK_CLASSES = 256      # 16 classes of each lane, between two additions to the lanes
    PEAK_LANES = 16          # of a block's maximum: one vector, as reducing it to a number has a long latency
    SLICE_PEAK_LANES = 1040  # (1 + SLICE_CLASSES / BLOCK_CLASSES) * PEAK_LANES
    SLICE_CLASSES = 16384    # read twice while in the cache: 64 KiB of float32
    WRITE_NUMBERS = 2048     # converted at a time

    GROUP_FRAMES = 16           # rows that pass each stage together: at 100 classes 9.3 ns a row, 17.8 one by one
    GROUP_BYTES = 32768         # of each array
    SHORT_CLASSES = 512         # up to here the stages are loops over a group
    FEW_GROUP_FRAMES = 64       # of few classes, which wait less: at 1500x10 6.6 ns a row, 8.8 with 16
    FEW_GROUP_FLOATS = 2048     # of such a group: with twice as many, the gradient at 1500x64 takes 1.2 times as long
    FEW_GROUP_DOUBLES = 1024
    GROUP_PEAKS = 1664          # CHUNK * (GROUP_FRAMES + GROUP_BYTES / 4 / BLOCK_CLASSES) or more
    STREAMED_ROW_BYTES = 2048   # shorter rows are not written with nontemporal stores: at 100 classes 3 times as slow

    PIPELINED_MIN_CLASSES = 513           # at 100 classes groups take 9.3 ns a row, a pipeline 17.8
    PIPELINED_MIN_CLASSES_BACKWARD = 385
    PIPELINED_MIN_CLASSES_DOUBLE = 257    # at 300 classes in memory 0.87 of the time of groups, at 100 1.2
    PIPELINE_DEPTH = 32                   # parts of frames between the first stage and the last, at most
    PIPELINE_BYTES = 917504               # the longest frame, which must stay in a cache between two stages
    PIPELINE_SLOTS = 16                   # of the scratch
    PIPELINE_MAX_CLASSES = 2048           # frames up to this length fit the scratch PIPELINE_SLOTS times
    FINALIZE_BATCH_FRAMES = 8    # at 1024x1000 6.0 ns per 16 numbers, 7.0 one frame at a time
    FINALIZE_BATCH_MAX_CLASSES = 768  # up to here also for fewer than 24 frames: at 16x200 12.2 ns, 14.6 without
    REGULAR_STORE_MAX_CLASSES = 3072  # float32, even if `stream`: at 2500 nontemporal stores take 1.29 as long
    PREFETCH_DISTANCE_CLASSES = 2048  # at 512x32000 6.4 ns, 10.1 without
    STORE_LEAD_BYTES = 1024      # see is_ahead

    CHUNK = 16               # numbers of a vector of a block
    FEW_CLASSES = 64         # up to here what a frame costs once counts
    MAX_WIDTH = 1008         # numbers of a row of a block, at most: rows 4096 bytes apart would share cache sets
    MAX_ACCUMULATORS = 2048  # of all lanes of the frames of a block
    ACCUMULATED_COLUMNS = 128  # MAX_ACCUMULATORS / N_LANES
    JOINED_COLUMNS = 63      # up to here frames of many classes are joined
    INTERLEAVED_COLUMNS = 64  # of few classes: fewer frames of an outer index are copied to interleave with others
    MIN_COLUMNS = 64         # of a block, where there are more
    COPIED_NUMBERS = 4096    # of few classes, in a block; but at least so many columns:
    MIN_COPIED_COLUMNS = 384
    CONVERTED_MAX_CLASSES = 128  # longer rows of another type are converted one by one
    LONG_ROW_BYTES = 3072    # rows of few classes from here on are not prefetched: (20, 3, 65536) backward takes 0.7
    SHARED_SETS_BYTES = 8192  # see shares_sets
    LARGEST_ROWS = 8         # of a chunk that are searched for the largest number before the next chunk
    ROWS_AHEAD = 8           # of the row that is prefetched in a block whose rows share sets
    N_PARAMS = 5             # of a frame

    SCRATCH_BYTES = 262144   # per thread, for data that is not used in place: 2 * SLICE_CLASSES doubles

    EXP_BIAS_FLOAT = 100
    EXP_BIAS_DOUBLE = 900
    GRADIENT_BIAS_FLOAT = 48   # see scale_sum
    GRADIENT_BIAS_DOUBLE = 100

cdef double EXP_UNBIAS_FLOAT = 2.0**-100
cdef double EXP_UNBIAS_DOUBLE = 2.0**-900

cdef extern from *:
    """
    #define LN2_ERROR 2.7478434e-9               /* relative, of ln 2 as float; see lsm_reduce_f */
    #define LN2_HI 6.93147180369123816490e-01    /* ln 2 with its low 21 bits zero: n * LN2_HI is exact */
    #define LN2_LO 1.90821492927058770002e-10
    """
    double LN2_ERROR, LN2_HI, LN2_LO

include "views.pxi"
include "exp.pxi"
include "lanes.pxi"
include "fallback.pxi"
include "loadstore.pxi"
include "stages.pxi"
include "remainder.pxi"
include "rows.pxi"
include "ops.pxi"
include "stages_backward.pxi"
include "rows_backward.pxi"
include "finalize.pxi"
include "op_log_softmax.pxi"
include "op_log_softmax_backward.pxi"
include "op_softmax.pxi"
include "op_softmax_backward.pxi"
include "op_logsumexp.pxi"
include "block_layout.pxi"
include "block_reduce.pxi"
include "few.pxi"
include "irregular.pxi"
include "traverse_block.pxi"
include "row_reduce.pxi"
include "row_group.pxi"
include "short_row_max.pxi"
include "short_row_sum.pxi"
include "short_rows.pxi"
include "traverse_rows.pxi"
include "traverse_long.pxi"
include "schedule.pxi"
include "entropies.pxi"
include "partials.pxi"
include "partials_backward.pxi"
include "fastpath.pxi"
include "masks.pxi"
include "select.pxi"
include "top_k.pxi"
include "losses.pxi"
include "labels.pxi"
include "bandwidth.pxi"

OPS = {
    "log_softmax": LOG_SOFTMAX,
    "log_softmax_backward": LOG_SOFTMAX_BACKWARD,
    "softmax": SOFTMAX,
    "softmax_backward": SOFTMAX_BACKWARD,
    "logsumexp": LOGSUMEXP,
    "entropy": ENTROPY,
    "kl_divergence": DIVERGENCE,
}

include "calls.pxi"

KINDS = {"e": HALF, "E": BFLOAT16, "f": FLOAT, "d": DOUBLE}  # by dtype.char
ALTERATIONS = {-INFINITY: MASKED_LOW, 0.0: MASKED_ZERO, "divided": DIVIDED}  # by what a mask puts
SCRATCH = SCRATCH_BYTES
MOST_TOP = TOP_MAX_K
N_FEW = FEW_CLASSES
PARTIAL_OPS = {"partials": PARTIALS, "partials_backward": PARTIALS_BACKWARD} | OPS


def run(int op, const unsigned char[:, :, :, :] a, const unsigned char[:, :, :, :] b, unsigned char[:, :, :, :] y,
        int kind, int kind_y, unsigned char[:, ::1] scratch, int n_threads, bint stream,
        const unsigned char[:, :, :, :] mask=None, int alter_a=0, int alter_b=0, double divisor=1):
    """An operation over axis 1 of (outer, classes, inner, itemsize); y may be a or b.

    b is a for operations with one input. The kinds are values of KINDS: of the inputs, and of y.
    scratch: (n_threads, SCRATCH + 64) bytes. alter_a, alter_b: sums of ALTERATIONS; the mask has the layout of both
    inputs, which are computed in double if they are divided. Entropy and divergence take the temperature as divisor.
    """
    cdef const char* at_mask = NULL if mask is None else <const char*> &mask[0, 0, 0, 0]
    cdef Array of_a = array_of(<char*> &a[0, 0, 0, 0], a.strides, kind | alter_a, at_mask, divisor)
    cdef Array of_b = array_of(<char*> &b[0, 0, 0, 0], b.strides, kind | alter_b, at_mask, divisor)
    cdef Array of_y = array_of(<char*> &y[0, 0, 0, 0], y.strides, kind_y, NULL, 1)
    cdef Py_ssize_t* shape = a.shape
    cdef char* s = <char*> &scratch[0, 0]
    with nogil:
        if op >= ENTROPY:
            run_entropies(op, of_a, of_b, of_y, shape[0], shape[1], shape[2], <double*> s, scratch.shape[1], n_threads)
        elif kind == DOUBLE or kind_y == DOUBLE or alter_a & DIVIDED:
            run_frames(op, of_a, of_b, of_y, shape[0], shape[1], shape[2], <double*> s, scratch.shape[1], n_threads,
                       stream)
        else:
            run_frames(op, of_a, of_b, of_y, shape[0], shape[1], shape[2], <float*> s, scratch.shape[1], n_threads,
                       stream)


def narrow_numbers(const float[::1] x, uint16_t[::1] to, int kind):
    """Round numbers to the 16 bits of a kind."""
    if x.shape[0]:
        with nogil:
            narrow(&x[0], x.shape[0], kind, &to[0])


def exponentials(const floating[::1] x, floating m, floating[::1] out):
    """out = exp(x - m) as the kernels compute it, 0 at x == m. For accuracy tests."""
    cdef Py_ssize_t i
    cdef floating v
    cdef Shift shift = shift_to(m, &x[0])
    for i in range(x.shape[0]):
        v = x[i] - <floating> shift.h
        v = exp_below(v, <floating> shift.magic, <floating> shift.floor, <floating> (shift.m - shift.h), True)
        out[i] = <floating> finish(v, 0, shift, floating is float)


def max_threads():
    """The number of threads OpenMP would use for a region of this thread; 0 without OpenMP."""
    return min(omp_get_max_threads(), omp_get_thread_limit())


def num_procs():
    """The processors in the affinity mask, of the process if OpenMP has bound this thread; 0 without OpenMP.

    Threads run in the places of OpenMP, if there are any (OMP_PLACES, GOMP_CPU_AFFINITY), and on no other processor.
    """
    cdef int n_procs = omp_get_num_procs(), n_in_places = 0, place
    for place in range(omp_get_num_places()):
        n_in_places += omp_get_place_num_procs(place)
    return min(n_procs, n_in_places) if n_in_places else n_procs


def region_threads(int n):
    """The number of threads that a region asking for n would get now. For tests."""
    cdef int n_threads = lsm_begin_region(n)
    lsm_end_region(n_threads)
    return n_threads
