/* What surrounds a call of the kernels: the floating-point environment of each thread, and the right to start threads.
   All of it is C, so that no signal's handler runs between what is taken here and what is given back. */
#ifndef LSM_REGION_H
#define LSM_REGION_H

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif !defined(__aarch64__)
#include <fenv.h>
#endif

/* The kernels' sums and exponentials hold in round-to-nearest with subnormals, which a caller's thread may have changed
   (torch.set_flush_denormal, a library linked with -ffast-math, fesetround): set both, and return what was. The clobber
   keeps loads and stores, and so what is computed from them, on their side. */
static inline uint64_t lsm_enter_float_env(void)
{
    uint64_t before;
#if defined(__x86_64__) || defined(_M_X64)
    before = _mm_getcsr();
    _mm_setcsr(0x1f80); /* all exceptions masked, to nearest, neither flush-to-zero nor denormals-are-zero */
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

#include <pthread.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static int lsm_is_region_open = 0;
static __thread int lsm_n_startable = 1; /* threads of a region that this thread is known to be able to open */

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

/* Whether n - 1 more threads can run at once. libgomp ends the process where it cannot start one (a limit of processes
   or of memory), so that is tried before the first region of a thread, which has a pool of its own. A thread that was
   joined may count against the limit for some microseconds more, until its number is no longer known. */
static int lsm_can_start(int n)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    lsm_trial *trials;
    int n_started = 0, i;
    if (n <= lsm_n_startable)
        return 1;
    trials = (lsm_trial *)calloc((size_t)(n - 1), sizeof(lsm_trial));
    if (trials == NULL)
        return 0;
    pthread_mutex_lock(&gate);
    for (; n_started < n - 1; n_started++) {
        trials[n_started].gate = &gate;
        if (pthread_create(&trials[n_started].thread, NULL, lsm_run_trial, &trials[n_started]))
            break;
    }
    pthread_mutex_unlock(&gate);
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

/* How many threads a call may use that asks for n: n or 1. OpenMP keeps a pool for every thread that opens a region, so
   one region runs at a time: the thread that comes second has found itself a processor already, and works alone. */
static inline int lsm_begin_region(int n)
{
    if (n <= 1 || __atomic_exchange_n(&lsm_is_region_open, 1, __ATOMIC_ACQUIRE))
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
