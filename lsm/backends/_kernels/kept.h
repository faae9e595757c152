/* Where a thread wants the normalisers of the frames whose softmax it computes, one after the other; NULL if it does
   not. Set around a call of the kernels on this thread alone. */
#ifndef LSM_KEPT_H
#define LSM_KEPT_H

#include <stddef.h>

#if defined(_MSC_VER)
static __declspec(thread) void *lsm_normalisers = NULL;
#else
static __thread void *lsm_normalisers = NULL;
#endif

/* Where the next one goes. */
static inline void *lsm_kept(void)
{
    return lsm_normalisers;
}

/* Begin to keep them there, or end; returns where the next one would have gone. */
static inline void *lsm_keep_normalisers(void *to)
{
    void *next = lsm_normalisers;
    lsm_normalisers = to;
    return next;
}

#endif
