/* Entry and exit of a kernel call: the floating-point environment of each thread, and permission to start threads. All
   in C, so that no signal handler runs between acquire and release. */
#ifndef LSM_REGION_H
#define LSM_REGION_H

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif !defined(__aarch64__)
#include <fenv.h>
#endif

/* The error bounds require round-to-nearest and subnormals, which the calling thread may have changed
   (torch.set_flush_denormal, a library linked with -ffast-math, fesetround): set both, and return the previous state.
   The clobber keeps memory accesses, and so the arithmetic that depends on them, from moving across. */
static inline uint64_t lsm_enter_float_env(void)
{
    uint64_t before;
#if defined(__x86_64__) || defined(_M_X64)
    before = _mm_getcsr();
    _mm_setcsr(0x1f80); /* all exceptions masked, to nearest, no flush-to-zero, no denormals-are-zero */
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
#else
    before = (uint64_t)fegetround();
    fesetround(FE_TONEAREST);
#endif
#if defined(__GNUC__)
    __asm__ volatile("" : : : "memory");
#endif
    return before;
}

static inline void lsm_leave_float_env(uint64_t before)
{
#if defined(__GNUC__)
    __asm__ volatile("" : : : "memory");
#endif
#if defined(__x86_64__) || defined(_M_X64)
    _mm_setcsr((unsigned int)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    fesetround((int)before);
#endif
}

#if defined(_OPENMP) && defined(__GNUC__)

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static int lsm_is_region_open = 0;
static int lsm_is_forked_child = 0; /* it has no OpenMP threads, and would wait for them forever */
static size_t lsm_stack_bytes = 0;  /* of OpenMP's threads; 0 is the default of all threads */
static __thread int lsm_n_startable = 1; /* largest region that this thread is known to be able to start */

/* A size as libgomp reads it: a number, and the unit B, K (the default), M or G; 0 if it is not one. */
static size_t lsm_parse_size(const char *text)
{
    const char *units = "bkmg", *unit = units + 1;
    char *end;
    unsigned long long value;
    if (text == NULL)
        return 0;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || end == text)
        return 0;
    while (isspace((unsigned char)*end))
        end++;
    if (*end) {
        for (unit = units; *unit && *unit != tolower((unsigned char)*end); unit++)
            ;
        for (end++; isspace((unsigned char)*end); end++)
            ;
    }
    if (*end || !*unit || value > (SIZE_MAX >> (10 * (unit - units))))
        return 0;
    return (size_t)value << (10 * (unit - units));
}

static void lsm_after_fork_in_child(void) { lsm_is_forked_child = 1; }

/* When the kernels are loaded: read the environment as libgomp does, and notice forks, also those by C code. */
__attribute__((constructor)) static void lsm_prepare_regions(void)
{
    lsm_stack_bytes = lsm_parse_size(getenv("OMP_STACKSIZE"));
    if (lsm_stack_bytes == 0)
        lsm_stack_bytes = lsm_parse_size(getenv("GOMP_STACKSIZE"));
    pthread_atfork(NULL, NULL, lsm_after_fork_in_child);
}

typedef struct {
    pthread_t thread;
    pthread_mutex_t *gate;
    long id;
} lsm_trial;

static void *lsm_run_trial(void *argument)
{
    lsm_trial *trial = (lsm_trial *)argument;
#if defined(__linux__)
    trial->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(trial->gate);
    pthread_mutex_unlock(trial->gate);
    return NULL;
}

/* Whether n - 1 more threads can run at once. libgomp aborts the process if it cannot start one (limits on processes or
   memory), so try it before the first region of a thread, each of which has its own pool. A joined thread may count
   against the limit for some microseconds more, until its id is gone. */
static int lsm_can_start(int n)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    lsm_trial *trials;
    int n_started = 0, i;
    if (n <= lsm_n_startable) {
        lsm_n_startable = n; /* the threads of a pool that a smaller region does not need end */
        return 1;
    }
    trials = (lsm_trial *)calloc((size_t)(n - 1), sizeof(lsm_trial));
    if (trials == NULL)
        return 0;
    pthread_attr_init(&attributes);
    if (lsm_stack_bytes)
        pthread_attr_setstacksize(&attributes, lsm_stack_bytes); /* libgomp ignores an error too */
    pthread_mutex_lock(&gate);
    for (; n_started < n - 1; n_started++) {
        trials[n_started].gate = &gate;
        if (pthread_create(&trials[n_started].thread, &attributes, lsm_run_trial, &trials[n_started]))
            break;
    }
    pthread_mutex_unlock(&gate);
    pthread_attr_destroy(&attributes);
    for (i = 0; i < n_started; i++)
        pthread_join(trials[i].thread, NULL);
#if defined(__linux__)
    for (i = 0; i < n_started; i++) {
        int n_left = 10000;
        while (n_left-- > 0 && syscall(SYS_tgkill, (long)getpid(), trials[i].id, 0) == 0)
            sched_yield();
    }
#endif
    free(trials);
    if (n_started < n - 1)
        return 0;
    lsm_n_startable = n;
    return 1;
}

/* The number of threads for a call that asks for n: n or 1. OpenMP keeps a pool for every thread that opens a region,
   so only one region runs at a time: a second calling thread already occupies a processor, and runs serially. */
static inline int lsm_begin_region(int n)
{
    if (n <= 1 || lsm_is_forked_child || __atomic_exchange_n(&lsm_is_region_open, 1, __ATOMIC_ACQUIRE))
        return 1;
    if (lsm_can_start(n))
        return n;
    __atomic_store_n(&lsm_is_region_open, 0, __ATOMIC_RELEASE);
    return 1;
}

static inline void lsm_end_region(int n)
{
    if (n > 1)
        __atomic_store_n(&lsm_is_region_open, 0, __ATOMIC_RELEASE);
}

#else
static inline int lsm_begin_region(int n) { return n; }
static inline void lsm_end_region(int n) { (void)n; }
#endif

#endif
