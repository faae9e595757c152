"""How many threads the CPU kernels use."""

import math
import os
from _thread import _local  # threading's own, which takes half a millisecond to import
from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic
from typing import NamedTuple

from lsm._block import ContextOverride
from lsm._cgroup import cgroup_quota
from lsm._config import settings

# Below this many elements a parallel region costs more than it saves: starting one takes 1 to 2
# microseconds, in which one thread gets through about 4,000 float32 elements; 16 times that.
MIN_PARALLEL_ELEMENTS = 32_768

# For how long calls rely on the affinity mask and on the quota of the cgroups that one of them has read in the same
# thread. Reading them takes 0.4 and 120 microseconds, where a call may take 12; a program changes them seldom.
AFFINITY_TTL_SECONDS, QUOTA_TTL_SECONDS = 0.01, 1.0

_process_setting: int | None = None  # set_num_threads
_in_context: ContextVar[int | None] = ContextVar("lsm_num_threads", default=None)  # num_threads
_is_forked_child = False


class _OpenMP(NamedTuple):
    """OpenMP as the kernels use it.

    Attributes
    ----------
    max_threads : callable
        What it would start for the calling thread: OMP_NUM_THREADS or the processors, until omp_set_num_threads.
    num_procs : callable
        The affinity mask of the calling thread, or that of the process where OpenMP has bound its threads.
    usual : int
        What `max_threads` gives as long as it is not limited; 0 if the kernels were built without OpenMP.
    """

    max_threads: Callable[[], int]
    num_procs: Callable[[], int]
    usual: int


_openmp: _OpenMP | None = None  # once the kernels are loaded


def set_openmp(max_threads: Callable[[], int], num_procs: Callable[[], int]) -> None:
    """Set what the kernels know of OpenMP, when they are loaded."""
    global _openmp
    n_procs = num_procs()
    _openmp = _OpenMP(max_threads, num_procs, (_omp_num_threads() or n_procs) if n_procs else 0)


def cpu_limit() -> int:
    """The processors that this process may use: the affinity mask and the quotas of its cgroups, at least 1."""
    n_cpus, quota = _n_processors(), cgroup_quota()
    return n_cpus if quota is None else min(n_cpus, quota)


def _n_processors() -> int:
    n_cpus = _openmp.num_procs() if _openmp else 0
    if n_cpus:
        return n_cpus
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def get_num_threads() -> int:
    """Tell how many threads a large call uses.

    In this order: `num_threads`, `set_num_threads`, ``LSM_NUM_THREADS``, OpenMP's own setting
    (``OMP_NUM_THREADS``). A limit that OpenMP is given while the program runs, by ``omp_set_num_threads``,
    threadpoolctl or PyTorch, holds for all of these but `num_threads`. Never more than the affinity mask and
    the quotas of the process's cgroups allow, and 1 in a forked child, where OpenMP's threads do not exist and
    waiting for them would never end. A call that cannot start a thread is served by one.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ConfigurationError
        ``LSM_NUM_THREADS`` is not a whole number from 1.

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
    return _is_forked_child or (_openmp is not None and not _openmp.usual)


def _requested_threads() -> int | None:
    """The number of threads that is asked for; None for as many as there are processors."""
    n = _in_context.get()
    if n is not None:
        return n
    n = _process_setting or settings().num_threads
    if _openmp is None:
        return n or _omp_num_threads()
    now = _openmp.max_threads()
    return now if n is None or now < min(n, _openmp.usual) else n


def _omp_num_threads() -> int | None:
    """OMP_NUM_THREADS, for a process that has not loaded the kernels; its first number counts."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def set_num_threads(n: int) -> None:
    """Set how many threads large calls use, in the whole process.

    Parameters
    ----------
    n : int
        From 1. More than the process's processors are not started; `get_num_threads` tells the
        number in force. The results do not depend on it.

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

    What is returned may be kept, entered again and decorate functions, as that of `use_backend`.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        As `set_num_threads` does.

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
        raise TypeError(f"n: {n!r} is a {type(n).__name__}; accepted: a whole number from 1")
    n = n.__index__()
    if n < 1:
        raise ValueError(f"n: {n} threads were asked for; accepted: a whole number from 1")
    return n


class ThreadLimitCache(_local):
    """The limits that this thread, which has an affinity mask of its own, has read, and until when they hold."""

    n_threads = 1
    quota: int | None = None
    mask_until = quota_until = -math.inf

    def renew(self, now: float) -> None:
        """Read the affinity mask, and the quota if it is time for that."""
        if now > self.quota_until:
            self.quota, self.quota_until = cgroup_quota(), now + QUOTA_TTL_SECONDS
        n = 1 if _is_serial() else _n_processors()
        self.n_threads, self.mask_until = min(n, self.quota or n), now + AFFINITY_TTL_SECONDS


_limit_cache = ThreadLimitCache()


def count_threads(size: int) -> int:
    """How many threads a call over `size` elements may use: `get_num_threads`, but for limits read a moment ago."""
    if size < MIN_PARALLEL_ELEMENTS:
        return 1
    limits, now = _limit_cache, monotonic()
    if now > limits.mask_until:
        limits.renew(now)
    limit = limits.n_threads
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
