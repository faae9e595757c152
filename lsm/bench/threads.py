"""The same number of threads for all contestants, set and verified, and set back at the end.

Several runtimes of OpenMP may be in one process, lsm's and one that a wheel brought along; each has a setting of its
own. threadpoolctl finds them all, sets them, and tells what they then say.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lsm
from lsm._texts import told
from lsm.backends.cython_ import kernels
from lsm.bench.of_jax import Pool
from lsm.bench.options import OptionError


def possible_threads(numbers: Iterable[int]) -> tuple[tuple[int, ...], dict[str, str]]:
    """Those of the numbers of threads that lsm would use, and why not the others.

    Raises
    ------
    OptionError
        All are more than this process may use.
    """
    possible, absent = [], {}
    for n_threads in numbers:
        with lsm.num_threads(n_threads):
            used = lsm.get_num_threads()
        if used == n_threads:
            possible.append(n_threads)
        else:
            absent[f"{n_threads} threads"] = (
                f"lsm would use {used}, as many as the processors that this process may use"
            )
    if not possible:
        raise OptionError("threads", "; ".join(f"{asked} were asked for; {why}" for asked, why in absent.items()))
    return tuple(possible), absent


def check_threads(numbers: Iterable[int]) -> None:
    """Refuse numbers of threads of which lsm would not use every one; raises as `possible_threads` does."""
    for n_threads in numbers:
        possible_threads([n_threads])


@contextmanager
def equal_threads(n_threads: int, families: Iterable[str], absent: dict[str, str] | None = None) -> Iterator[list[str]]:
    """Give everybody the same number; ONNX Runtime gets it with each session, and does not tell.

    Parameters
    ----------
    n_threads : int
    families : iterable of str
        Those who take part, of which "torch" and "jax" have a setting of their own. They are imported already.
    absent : dict, optional
        Gets each peer whose threads cannot be set, and the reason: it must not take part. Without it that is an error.

    Yields
    ------
    list of str
        Each pool of threads, and the number that it was verified to have.

    Raises
    ------
    OptionError
        lsm would use another number.
    RuntimeError
        A pool that is computed with has another number after it was set.
    """
    from threadpoolctl import threadpool_info, threadpool_limits

    kernels()  # loads lsm's own OpenMP, so that it is among those that are set
    families = set(families)
    check_threads([n_threads])
    verified = [f"lsm: {n_threads}"]

    def set_by(family: str, how: Callable[[], str]) -> None:
        if family not in families:
            return
        try:
            verified.append(how())
        except Exception as error:  # a version without the setting, say
            if absent is None:
                raise
            absent[family] = f"its threads cannot be set to {n_threads}: {told(error)}"

    with ExitStack() as stack:
        stack.enter_context(lsm.num_threads(n_threads))
        stack.enter_context(threadpool_limits(limits=n_threads))
        set_by("torch", lambda: _set_torch(n_threads, stack))
        set_by("onnxruntime", lambda: f"onnxruntime: {n_threads} (given to each session)")
        set_by("jax", lambda: Pool.set(n_threads))
        for pool in threadpool_info():
            file = Path(pool["filepath"])
            _, is_of_a_package, rest = str(file).partition("site-packages")
            of = Path(rest).parts[1].removesuffix(".libs") if is_of_a_package else "the system"
            name = f"{pool['internal_api']} {file.name} of {of}"
            if pool["user_api"] == "blas" and pool["num_threads"] < n_threads:
                # OpenBLAS is built for a number of threads, in wheels 64. No log-softmax computes with it.
                verified.append(f"{name}: {pool['num_threads']} (its most)")
            else:
                verified.append(_checked(name, pool["num_threads"], n_threads))
        yield list(dict.fromkeys(verified))


def _set_torch(n_threads: int, stack: ExitStack) -> str:
    import torch

    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(n_threads)
    return _checked("torch", torch.get_num_threads(), n_threads)


def _checked(name: str, found: int, n_threads: int) -> str:
    if found != n_threads:
        raise RuntimeError(f"{n_threads} threads were asked for; {name} has {found}")
    return f"{name}: {found}"
