"""The tasks that dask workers run: calls of lsm on chunks. Needs no dask."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import lsm
from lsm._arithmetic import compute
from lsm._decide import registry
from lsm._errors import BackendUnavailableError
from lsm._held import call_within
from lsm._keywords import mask_for
from lsm._logits import Logits, narrowed
from lsm._reduce import total
from lsm._select import find_top_k
from lsm._threads import num_threads, process_setting
from lsm._version import __version__


def compute_chunk(function: str, names: tuple[str, ...], options: dict[str, Any], build: Any, *chunks: Any) -> Any:
    """The task for a chunk: call lsm, or a function below, with the chunks that dask passes for each array.

    Raises
    ------
    BackendUnavailableError
        This process has another version of lsm, or other kernels, than the one that made the graph.
    Exception
        Whatever the function raises.
    """
    check_build(options["backend"], build)
    arguments = dict(zip(names, map(_only, chunks), strict=True))
    call = partial(_OF_PARTS.get(function) or getattr(lsm, function), **arguments, **options)
    return on_one_thread(call)


def on_one_thread(call: Callable[[], Any]) -> Any:
    """Call a function with one thread of lsm, unless the process has set the number.

    The scheduler already has a thread for each processor; more threads would only compete.
    """
    return call() if process_setting() is not None else call_within(num_threads(1), call)


def reduce_losses(reduction: str, dtype: str, losses: Any, n_frames: Any = None) -> Any:
    """The task that adds all losses, in the same order as without dask."""
    loss = compute(total, np.asarray(losses))
    if reduction == "mean":
        n = losses.size if n_frames is None else n_frames
        loss = compute(np.divide, loss, loss.dtype.type(n))
    return narrowed(loss, dtype)


def build_of(backend: Any) -> tuple[str, bool | None]:
    """The facts on which bits depend, beside the backend's name: lsm's version, and whether its kernels use FMA."""
    return __version__, getattr(backend, "has_fma", None)


def check_build(name: str, build: Any) -> None:
    """Raise BackendUnavailableError if the bits from this process would differ from those of this build."""
    here = build_of(registry().get(name).load())
    if here != tuple(build):
        version, has_fma = build
        difference = f"lsm {here[0]}, but lsm {version} made the graph; install the same version on both"
        if here[0] == version:
            difference = (
                f"a backend {name!r} {'with' if here[1] else 'without'} FMA, but the graph was made by one "
                f"{'with' if has_fma else 'without'} it, which gives different bits; set LSM_FORCE_ISA to one level on "
                "both"
            )
        raise BackendUnavailableError(f"{place()} has {difference}")


def place() -> str:
    """Where this runs: the address of a worker of distributed, or the process id."""
    try:
        return f"the worker {sys.modules['distributed'].get_worker().address}"
    except (KeyError, ValueError):  # not imported, or not in a task
        return f"process {os.getpid()}"


def _only(chunk: Any) -> Any:
    """A chunk; along an axis that the result lacks, dask passes a list with the only chunk."""
    while type(chunk) is list:
        (chunk,) = chunk
    return chunk


# -- frames with the classes in several chunks ----------------------------------------------------------------------


def of_classes_of_chunk(function: str, numbers: Any, **arguments: Any) -> Any:
    """`take_log_softmax` or `cross_entropy` of a chunk with these classes, with one more axis."""
    y = getattr(lsm, function)(first_class=_first(numbers), **arguments)
    return np.asarray(y)[..., np.newaxis]


def largest_of_parts(y: Any, backend: str) -> Any:
    """The maximum over the last axis; NaN if there is one."""
    return compute(np.max, y, -1)


def sum_of_parts(y: Any, backend: str) -> Any:
    """The sum over the last axis, along which at most one number is not 0."""
    return compute(np.sum, y, -1)


def best_of_chunk(x: Any, numbers: Any, k: int, axis: int, backend: str, where: Any = None) -> tuple[Any, Any]:
    """The k largest logits, or all; and the indices i of their classes, as -1 - i for masked ones."""
    values, mask, places = _best(x, k, axis, where)
    numbers = places + _first(numbers)
    return values, numbers if mask is None else np.where(mask, numbers, -1 - numbers)


def best_of_parts(
    values: Any, numbers: Any, k: int, axis: int, partials: Any, n_classes: int, **options: Any
) -> tuple[Any, Any]:
    """`top_k_log_softmax` of whole frames, from the results of `best_of_chunk` for all chunks."""
    best, mask, places = _best(values, k, axis, numbers >= 0)
    y = lsm.log_softmax(best, axis, where=mask, partials=partials, n_classes=n_classes, **options)
    numbers = np.take_along_axis(numbers, places, axis)
    return y, np.where(mask, numbers, -1 - numbers)


def _best(x: Any, k: int, axis: int, where: Any) -> tuple[Any, Any, Any]:
    """The k largest logits, or all; whether each is unmasked; and their positions."""
    logits = Logits("top_k_log_softmax", x, "x", axis)
    logits.mask = mask_for(where, x, logits.values, logits.library)
    frames = logits.frames
    places = np.empty((*frames.shape[: frames.at], min(k, frames.n_classes), *frames.shape[frames.at :]), np.int64)
    compute(find_top_k, logits, places.shape[frames.at], places)
    mask = None if logits.mask is None else np.take_along_axis(logits.mask, places, axis)
    return np.take_along_axis(logits.values, places, axis), mask, places


def _first(numbers: Any) -> int:
    return int(numbers[0]) if numbers.size else 0


_OF_PARTS = {f.__name__: f for f in (of_classes_of_chunk, largest_of_parts, sum_of_parts, best_of_chunk, best_of_parts)}
