"""How many threads the CPU kernels use."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from time import monotonic

from lsm._block import Block
from lsm._config import settings

# Below this many elements a parallel region costs more than it saves: starting one takes 1 to 2
# microseconds, in which one thread gets through about 4,000 float32 elements; 16 times that.
MIN_PARALLEL_SIZE = 32_768

# Seconds for which calls believe the affinity mask that one of them has read in the same thread. To read it takes 0.4
# microseconds, where a call may take 12; and a program that changes it does so once.
LIMIT_HOLDS = 0.01

_chosen: int | None = None  # set_num_threads
_in_context: ContextVar[int | None] = ContextVar("lsm_num_threads", default=None)  # num_threads
_is_forked_child = False
_openmp_limit: int | None = None
_region = threading.Lock()


def cpu_limit(cgroup_root: str = "/sys/fs/cgroup") -> int:
    """The processors that this process may use: affinity mask and cgroup quota, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    n_cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup_root)
    return n_cpus if quota is None or quota >= n_cpus else quota


@cache  # two files, 60 microseconds: too much for every call
def _cgroup_quota(folder: str) -> int | None:
    """How many processors the cgroup grants, at least 1; None where there is no limit or no cgroup."""
    root = Path(folder)
    try:  # version 2
        texts = (root / "cpu.max").read_text().split()
    except OSError:
        try:  # version 1
            texts = [(root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
        except OSError:
            return None
    try:
        quota, period = map(int, texts)  # "max" and -1 are no limit
        return None if quota <= 0 else max(1, math.ceil(quota / period))
    except (ValueError, ZeroDivisionError):
        return None


def set_openmp_limit(n: int) -> None:
    """Told by the kernels when they are loaded: what OpenMP itself would start; 0 if built without it."""
    global _openmp_limit
    _openmp_limit = n


def get_num_threads() -> int:
    """Tell how many threads a large call uses.

    In this order: `num_threads`, `set_num_threads`, ``LSM_NUM_THREADS``, OpenMP's own setting
    (``OMP_NUM_THREADS``); never more than the affinity mask and the cgroup quota allow, and 1 in a
    forked child, where OpenMP's threads do not exist and waiting for them would never end.

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
    limit = _limit()
    wanted = _in_context.get() or _chosen or _usual() or limit
    return min(wanted, limit)


def _limit() -> int:
    """How many threads may be used, whatever is wished."""
    return 1 if _is_forked_child or _openmp_limit == 0 else cpu_limit()


def _usual() -> int | None:
    """How many threads are used where the program has not said."""
    return settings().num_threads or _openmp_limit or _omp_num_threads()


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
    global _chosen
    _chosen = _checked(n)


def num_threads(n: int) -> Block[int]:
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
    return Block(_in_context, lambda: n)


def _checked(n: int) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n: {n!r} is a {type(n).__name__}; accepted: a whole number from 1")
    n = n.__index__()
    if n < 1:
        raise ValueError(f"n: {n} threads were asked for; accepted: a whole number from 1")
    return n


class _Lately(threading.local):
    """What this thread, which has an affinity mask of its own, was told of late, and until when it holds."""

    until = -math.inf
    limit = 1
    usual = 1


_lately = _Lately()


def begin_region(size: int) -> int:
    """How many threads a call over `size` elements shall use, and nobody else until `end_region`.

    It is `get_num_threads`, except that a new affinity mask is seen `LIMIT_HOLDS` later. OpenMP keeps one pool of
    threads for every thread that opens a region. So only one region runs at a time: a second Python thread, which has
    found itself a processor already, works alone.
    """
    if size < MIN_PARALLEL_SIZE:
        return 1
    lately, now = _lately, monotonic()
    if now > lately.until:
        lately.limit = limit = _limit()
        lately.usual = min(_usual() or limit, limit)
        lately.until = now + LIMIT_HOLDS
    n = _in_context.get() or _chosen
    if n is None:
        n = lately.usual
    elif n > lately.limit:
        n = lately.limit
    return n if n > 1 and _region.acquire(False) else 1


def end_region(n: int) -> None:
    """End the region that `begin_region` gave `n` threads."""
    if n > 1:
        _region.release()


@contextmanager
def threads_for(size: int) -> Iterator[int]:
    """`begin_region` and `end_region` around a ``with`` block."""
    n = begin_region(size)
    try:
        yield n
    finally:
        end_region(n)


def _after_fork_in_child() -> None:
    global _is_forked_child, _lately, _region
    _is_forked_child = True
    _lately = _Lately()
    _region = threading.Lock()  # the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
