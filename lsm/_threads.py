"""The number of threads of the CPU kernels."""

import math
import os
from _thread import _local  # the local of threading, whose import takes 0.5 ms
from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic
from typing import NamedTuple

from lsm._block import ContextOverride
from lsm._cgroup import cgroup_quota
from lsm._config import settings

# Smaller calls use one thread. Starting a parallel region takes 1 to 2 microseconds, in which one thread processes
# about 4,000 float32 elements.
MIN_PARALLEL_ELEMENTS = 32_768

# How long a thread caches the affinity mask and the cgroup quota. Reading them takes 0.4 and 120 microseconds, a call
# may take 12, and they rarely change.
AFFINITY_TTL_SECONDS, QUOTA_TTL_SECONDS = 0.01, 1.0

_process_setting: int | None = None  # set_num_threads
_in_context: ContextVar[int | None] = ContextVar("lsm_num_threads", default=None)  # num_threads
_is_forked_child = False


class _OpenMP(NamedTuple):
    """The OpenMP runtime of the kernels.

    Attributes
    ----------
    max_threads : callable
        omp_get_max_threads: OMP_NUM_THREADS or the number of processors, unless omp_set_num_threads was called.
    num_procs : callable
        The size of the affinity mask of the calling thread, or of the process if OpenMP has bound its threads.
    initial_max_threads : int
        The value of `max_threads` without a call of omp_set_num_threads; 0 if the kernels were built without OpenMP.
    """

    max_threads: Callable[[], int]
    num_procs: Callable[[], int]
    initial_max_threads: int


_openmp: _OpenMP | None = None  # set when the kernels are loaded


def set_openmp(max_threads: Callable[[], int], num_procs: Callable[[], int]) -> None:
    """Set the OpenMP functions, when the kernels are loaded."""
    global _openmp
    n_procs = num_procs()
    _openmp = _OpenMP(max_threads, num_procs, (_omp_num_threads() or n_procs) if n_procs else 0)


def cpu_limit() -> int:
    """The number of processors that this process may use, by affinity mask and cgroup quotas; at least 1."""
    n_cpus, quota = _n_processors(), cgroup_quota()
    return n_cpus if quota is None else min(n_cpus, quota)


def _n_processors() -> int:
    n_cpus = _openmp.num_procs() if _openmp else 0
    if n_cpus:
        return n_cpus
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def get_num_threads() -> int:
    """Get the number of threads that a large call uses.

    It is set by `num_threads`, `set_num_threads`, ``LSM_NUM_THREADS`` or OpenMP (``OMP_NUM_THREADS``), in this order of
    precedence. A lower limit set at run time by ``omp_set_num_threads``, threadpoolctl or PyTorch applies to all of
    these except `num_threads`; threadpoolctl finds lsm only after its first call, which loads OpenMP. The number never
    exceeds the limit set by the affinity mask and cgroup quotas of the process. It is 1 in a forked child, which has no
    OpenMP threads and would wait for them forever. If a thread cannot be started, the call runs on one thread.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ConfigurationError
        ``LSM_NUM_THREADS`` is not a positive integer.

    Examples
    --------
    >>> import lsm
    >>> with lsm.num_threads(1):
    ...     lsm.get_num_threads()
    1
    """
    limit = 1 if _is_serial() else cpu_limit()
    return min(_requested_threads() or limit, limit)


def _is_serial() -> bool:
    return _is_forked_child or (_openmp is not None and not _openmp.initial_max_threads)


def _requested_threads() -> int | None:
    """The requested number of threads; None for all processors."""
    n = _in_context.get()
    if n is not None:
        return n
    n = process_setting()
    if _openmp is None:
        return n or _omp_num_threads()
    now = _openmp.max_threads()
    return now if n is None or now < min(n, _openmp.initial_max_threads) else n


def process_setting() -> int | None:
    """The number set by `set_num_threads` or LSM_NUM_THREADS for the process; None if neither is set."""
    return _process_setting or settings().num_threads


def _omp_num_threads() -> int | None:
    """OMP_NUM_THREADS, or the first number in it, for use before the kernels are loaded."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def set_num_threads(n: int) -> None:
    """Set the number of threads that large calls use, for the whole process.

    To limit the first call as well, use this or `num_threads`: threadpoolctl finds lsm only after that call.

    Parameters
    ----------
    n : int
        At least 1; limited to the processors of the process, see `get_num_threads`. Results do not depend on `n`.

    Raises
    ------
    TypeError
        `n` is not an int.
    ValueError
        `n` is less than 1.

    Examples
    --------
    >>> import lsm
    >>> lsm.set_num_threads(1)
    >>> lsm.get_num_threads()
    1
    """
    global _process_setting
    _process_setting = _checked(n)


def num_threads(n: int) -> ContextOverride[int]:
    """Use `n` threads within a ``with`` block, in this thread or asyncio task only.

    Like `use_backend`, the returned object can be entered repeatedly, and can decorate functions.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        As for `set_num_threads`.

    Examples
    --------
    >>> import lsm
    >>> with lsm.num_threads(1):
    ...     y = lsm.log_softmax([1.0, 2.0])
    """
    n = _checked(n)
    return ContextOverride(_in_context, lambda: n)


def _checked(n: int) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n: {n!r} is a {type(n).__name__}; accepted: a positive integer")
    n = n.__index__()
    if n < 1:
        raise ValueError(f"n: {n} is not a number of threads; accepted: a positive integer")
    return n


class ThreadLimitCache(_local):
    """The limits read by this thread, which may have its own affinity mask, and their times of expiry."""

    n_threads = 1
    quota: int | None = None
    expires = quota_expires = -math.inf

    def refresh(self, now: float) -> None:
        """Read the affinity mask, and the quota if it has expired."""
        if now > self.quota_expires:
            self.quota, self.quota_expires = cgroup_quota(), now + QUOTA_TTL_SECONDS
        n = 1 if _is_serial() else _n_processors()
        self.n_threads, self.expires = min(n, self.quota or n), now + AFFINITY_TTL_SECONDS


_limit_cache = ThreadLimitCache()


def count_threads(size: int) -> int:
    """The number of threads for a call on `size` elements: `get_num_threads` with cached limits."""
    if size < MIN_PARALLEL_ELEMENTS:
        return 1
    cache, now = _limit_cache, monotonic()
    if now > cache.expires:
        cache.refresh(now)
    limit = cache.n_threads
    if limit == 1:
        return 1
    n = _requested_threads() or limit
    return n if n < limit else limit


def _after_fork_in_child() -> None:
    global _is_forked_child, _limit_cache
    _is_forked_child = True
    _limit_cache = ThreadLimitCache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
