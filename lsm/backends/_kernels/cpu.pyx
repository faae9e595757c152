# Functions that need no kernels: the instruction level of this processor, and the floating-point environment for NumPy.
# Compiled for the baseline, unlike the kernels.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    static const char *lsm_best_level(void)
    {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")))
            return "plain";
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
              && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")))
            return "v2";
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
              && __builtin_cpu_supports("avx512vl")))
            return "v3";
        return "v4";
    }
    #else
    static const char *lsm_best_level(void) { return "plain"; }
    #endif
    """
    const char* lsm_best_level()


def best_level():
    """'v4', 'v3' or 'v2' for x86-64-v4, v3, v2; 'plain' elsewhere."""
    return lsm_best_level().decode()


cdef extern from "<fenv.h>" nogil:
    const int FE_TONEAREST
    int fegetround()
    int fesetround(int rounding)

cdef extern from "region.h" nogil:
    uint64_t lsm_enter_float_env()
    void lsm_leave_float_env(uint64_t before)


def call_in_float_env(function, *args):
    """Call a function in round-to-nearest with subnormals, and restore the settings of the calling thread."""
    cdef int rounding = fegetround()  # also that of x86's longdouble, which has a control word of its own
    if rounding != FE_TONEAREST:
        fesetround(FE_TONEAREST)
    cdef uint64_t before = lsm_enter_float_env()
    try:
        return function(*args)
    finally:
        lsm_leave_float_env(before)
        if rounding != FE_TONEAREST:
            fesetround(rounding)
