/* CUDA C++ on the CPU, for tests: included before the kernels, which g++ then compiles unchanged.

   Every thread of a block is a fiber. Lanes of a warp run until they meet in a shuffle or wait at a barrier; which warp
   runs next is drawn from a seed. Shared memory is NaN at first. What would hang or be undefined on a GPU ends the
   launch with a message: a barrier that some threads never reach or that is another one for them, a shuffle that names
   lanes that are not there, a launch that no GPU takes. Said nothing of: missing fences; races within a warp, between
   warps that no barrier parts, and between blocks, for a warp runs from barrier to barrier and one block after another;
   PTX, registers, speed. */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define LSM_ON_CPU 1
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
struct __attribute__((aligned(8))) uint2 { unsigned x, y; };
struct Dim { unsigned x, y, z; };

static Dim threadIdx, blockIdx, blockDim, gridDim;

template <class To, class From> static inline To lsm_bits(From x)
{
    To y;
    static_assert(sizeof x == sizeof y, "");
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline unsigned __float_as_uint(float x) { return lsm_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return lsm_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return lsm_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return lsm_bits<double>(x); }

static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned bytes)
{
    unsigned z = 0;
    for (int i = 0; i < 4; i++)
        z |= (unsigned)(((uint64_t)y << 32 | x) >> 8 * (bytes >> 4 * i & 7) & 0xff) << 8 * i;
    return z;
}
static inline float lsm_from_half(unsigned short x)
{
    unsigned sign = (x & 0x8000u) << 16, bits = lsm_bits<unsigned>(lsm_bits<float>((x & 0x7fffu) << 13) * 0x1p112f);
    return lsm_bits<float>((x & 0x7c00u) == 0x7c00u ? sign | 0x7f800000u | (x & 0x3ffu) << 13 : sign | bits);
}
static inline unsigned short lsm_to_half(float x) /* to nearest, ties to even */
{
    unsigned bits = lsm_bits<unsigned>(x), sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return 0x7fff; /* the NaN that a GPU makes */
    if (bits >= 0x477ff000u)
        return (unsigned short)(sign | 0x7c00u);
    if (bits < 0x38800000u) /* subnormal: the sum rounds to multiples of 2**-24 */
        return (unsigned short)(sign | (lsm_bits<unsigned>(lsm_bits<float>(bits) + 0.5f) - 0x3f000000u));
    return (unsigned short)(sign | (bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u) >> 13);
}
static inline unsigned lsm_to_bfloat16(float x)
{
    unsigned bits = lsm_bits<unsigned>(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

// -- fibers ---------------------------------------------------------------------------------------------------------

const int LSM_MOST_THREADS = 1024, LSM_MOST_SHARED = 232448, LSM_GUARD = 4096;
#if defined(__SANITIZE_ADDRESS__)
const size_t LSM_STACK = 1 << 18;
#else
const size_t LSM_STACK = 1 << 16;
#endif

__attribute__((aligned(16))) static unsigned char lsm_shared[LSM_MOST_SHARED + LSM_GUARD];

#if defined(__x86_64__)
typedef void *Fiber;
extern "C" void lsm_switch(Fiber *from, Fiber to);
asm(".text\n.globl lsm_switch\n.hidden lsm_switch\n.type lsm_switch,@function\nlsm_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
static void lsm_begin(Fiber *fiber, char *stack, void (*run)())
{
    void **top = (void **)(stack + LSM_STACK - 64);
    *--top = NULL; /* where run would return to: it does not */
    *--top = (void *)run;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    *fiber = top;
}
#else
typedef ucontext_t Fiber;
static void lsm_switch(Fiber *from, Fiber &to) { swapcontext(from, &to); }
static void lsm_begin(Fiber *fiber, char *stack, void (*run)())
{
    getcontext(fiber);
    fiber->uc_stack.ss_sp = stack;
    fiber->uc_stack.ss_size = LSM_STACK;
    fiber->uc_link = NULL;
    makecontext(fiber, run, 0);
}
#endif

struct Meeting { /* of the lanes of a warp */
    unsigned runnable, arrived, mask, turn;
    uint64_t values[2][32];
};

static Fiber lsm_fibers[LSM_MOST_THREADS], lsm_scheduler;
static Meeting lsm_warps[LSM_MOST_THREADS / 32];
static int lsm_thread, lsm_n_waiting, lsm_n_done, lsm_line, lsm_any[2], lsm_turn;
static char lsm_error[512];
static void *lsm_kernel;
static const int64_t *lsm_arguments;

static void lsm_to_scheduler() { lsm_switch(&lsm_fibers[lsm_thread], lsm_scheduler); }

template <class... T> static void lsm_fail(const char *format, T... values)
{
    if (!lsm_error[0])
        snprintf(lsm_error, sizeof lsm_error, format, values...);
    lsm_to_scheduler(); /* which does not come back */
}

/* Another lane of the warp, or the scheduler if none can go on. */
static void lsm_wait()
{
    Meeting &warp = lsm_warps[lsm_thread / 32];
    int self = lsm_thread;
    if (warp.runnable) {
        unsigned above = warp.runnable & ~((2u << self % 32) - 1);
        lsm_thread = self / 32 * 32 + __builtin_ctz(above ? above : warp.runnable);
        lsm_switch(&lsm_fibers[self], lsm_fibers[lsm_thread]);
    } else {
        lsm_to_scheduler();
    }
    lsm_thread = self;
    threadIdx.x = self;
}

static void lsm_run()
{
    threadIdx.x = lsm_thread;
    const int64_t *a = lsm_arguments;
    typedef void (*Kernel)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                           int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
    ((Kernel)lsm_kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14],
                         a[15]); /* more than it takes do no harm */
    lsm_n_done++;
    lsm_warps[lsm_thread / 32].runnable &= ~(1u << lsm_thread % 32);
    lsm_wait();
}

/* What each lane of `mask` gives; NULL never comes back. */
static const uint64_t *lsm_meet(unsigned mask, uint64_t value)
{
    Meeting &warp = lsm_warps[lsm_thread / 32];
    unsigned lane = 1u << lsm_thread % 32;
    const uint64_t *values = warp.values[warp.turn & 1];
    if (!(mask & lane) || (warp.arrived && warp.mask != mask))
        lsm_fail("thread %d: a shuffle of lanes %08x, of which it is none, or others wait for lanes %08x", lsm_thread,
                 mask, warp.mask);
    warp.mask = mask;
    warp.values[warp.turn & 1][lsm_thread % 32] = value;
    warp.arrived |= lane;
    if (warp.arrived == mask) {
        warp.arrived = 0;
        warp.turn++;
        warp.runnable |= mask;
    } else {
        warp.runnable &= ~lane;
        lsm_wait();
    }
    return values;
}

template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int distance)
{
    uint64_t value = 0;
    static_assert(sizeof x <= 8, "");
    memcpy(&value, &x, sizeof x);
    int source = lsm_thread % 32 ^ distance;
    value = lsm_meet(mask, value)[source];
    memcpy(&x, &value, sizeof x);
    return x;
}

template <class T> static inline T __shfl_sync(unsigned mask, T x, int lane, int width)
{
    uint64_t value = 0;
    memcpy(&value, &x, sizeof x);
    value = lsm_meet(mask, value)[lsm_thread % 32 / width * width + lane % width];
    memcpy(&x, &value, sizeof x);
    return x;
}

static inline int __any_sync(unsigned mask, int x)
{
    const uint64_t *values = lsm_meet(mask, x != 0);
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && values[lane])
            return 1;
    return 0;
}

static int lsm_barrier(int line, int x)
{
    int turn = lsm_turn & 1;
    lsm_any[turn] |= x;
    if (lsm_n_waiting && lsm_line != line)
        lsm_fail("divergent barrier: thread %d is at line %d, another at line %d", lsm_thread, line, lsm_line);
    lsm_line = line;
    if (++lsm_n_waiting == (int)blockDim.x) {
        lsm_n_waiting = 0;
        lsm_any[++lsm_turn & 1] = 0;
        for (unsigned i = 0; i < blockDim.x; i++)
            lsm_warps[i / 32].runnable |= 1u << i % 32;
    } else {
        lsm_warps[lsm_thread / 32].runnable &= ~(1u << lsm_thread % 32);
        lsm_wait();
    }
    return lsm_any[turn];
}
#define __syncthreads() ((void)lsm_barrier(__LINE__, 0))
#define __syncthreads_or(x) lsm_barrier(__LINE__, (x) != 0)

// -- launches -------------------------------------------------------------------------------------------------------

static bool lsm_run_block(uint64_t *random)
{
    int n = (int)blockDim.x, n_warps = (n + 31) / 32;
    lsm_n_waiting = lsm_n_done = 0;
    for (int i = 0; i < n_warps; i++) {
        lsm_warps[i].arrived = lsm_warps[i].runnable = 0;
        lsm_warps[i].turn = 0;
    }
    for (int i = 0; i < n; i++)
        lsm_warps[i / 32].runnable |= 1u << i % 32;
    while (lsm_n_done < n) {
        int ready[LSM_MOST_THREADS / 32], n_ready = 0;
        for (int i = 0; i < n_warps; i++)
            if (lsm_warps[i].runnable)
                ready[n_ready++] = i;
        if (!n_ready) {
            snprintf(lsm_error, sizeof lsm_error, "divergent barrier: at line %d wait %d threads of %d, %d have ended",
                     lsm_line, lsm_n_waiting, n, lsm_n_done);
            return false;
        }
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        Meeting &warp = lsm_warps[ready[*random % n_ready]];
        lsm_thread = ready[*random % n_ready] * 32 + __builtin_ctz(warp.runnable);
        lsm_switch(&lsm_scheduler, lsm_fibers[lsm_thread]);
        if (!lsm_error[0] && !warp.runnable && warp.arrived)
            snprintf(lsm_error, sizeof lsm_error, "a shuffle names lanes that are not there: %08x of %08x have come",
                     warp.arrived, warp.mask);
        if (lsm_error[0])
            return false;
    }
    return true;
}

/* NULL, or what is wrong. */
extern "C" const char *lsm_launch(void *kernel, int64_t grid, int64_t block, int64_t shared, const int64_t *arguments,
                                  uint64_t seed)
{
    static char *stacks;
    lsm_error[0] = 0;
    if (grid < 1 || grid > 2147483647 || block < 1 || block > LSM_MOST_THREADS || shared < 0 ||
        shared > LSM_MOST_SHARED) {
        snprintf(lsm_error, sizeof lsm_error, "no GPU launches %lld blocks of %lld threads, %lld bytes of shared memory",
                 (long long)grid, (long long)block, (long long)shared);
        return lsm_error;
    }
    if (!stacks) {
        stacks = (char *)mmap(NULL, LSM_STACK * LSM_MOST_THREADS, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED)
            abort();
    }
    uint64_t random = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
    lsm_kernel = kernel;
    lsm_arguments = arguments;
    gridDim = {(unsigned)grid, 1, 1};
    blockDim = {(unsigned)block, 1, 1};
    for (int64_t i = 0; i < grid; i++) {
        blockIdx = {(unsigned)i, 0, 0};
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(lsm_shared, sizeof lsm_shared);
#endif
        memset(lsm_shared, 0xff, shared + LSM_GUARD);
#if defined(__SANITIZE_ADDRESS__)
        __asan_poison_memory_region(lsm_shared + shared, sizeof lsm_shared - shared);
        __asan_unpoison_memory_region(stacks, LSM_STACK * block); /* of fibers that ended midway */
#endif
        for (int64_t t = 0; t < block; t++)
            lsm_begin(&lsm_fibers[t], stacks + t * LSM_STACK, lsm_run);
        if (!lsm_run_block(&random))
            return lsm_error;
#if !defined(__SANITIZE_ADDRESS__)
        for (int k = 0; k < LSM_GUARD; k++)
            if (lsm_shared[shared + k] != 0xff) {
                snprintf(lsm_error, sizeof lsm_error, "written %d bytes past the end of shared memory", k);
                return lsm_error;
            }
#endif
    }
    return NULL;
}
