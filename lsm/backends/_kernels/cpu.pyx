# Detect the instruction level of this processor. Compiled for the baseline, unlike the kernels.

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
