"""What the workers of dask run: a call of lsm on the chunks of a task. Needs no dask."""

import os
import sys
from functools import partial
from typing import Any

import numpy as np

import lsm
from lsm._arithmetic import compute
from lsm._decide import registry
from lsm._errors import BackendUnavailableError
from lsm._held import call_within
from lsm._logits import narrowed
from lsm._reduce import total
from lsm._threads import num_threads, process_setting
from lsm._version import __version__


def compute_chunk(function: str, names: tuple[str, ...], options: dict[str, Any], build: Any, *chunks: Any) -> Any:
    """The task of a chunk: the call of lsm, with what dask gives for each array.

    Raises
    ------
    BackendUnavailableError
        This process has another version of lsm, or other kernels, than that which made the graph.
    Exception
        What the function raises.
    """
    _check_build(options["backend"], build)
    arguments = dict(zip(names, map(_only, chunks), strict=True))
    call = partial(getattr(lsm, function), **arguments, **options)
    # The scheduler has a thread for each processor already; further ones would wait for a turn.
    return call() if process_setting() is not None else call_within(num_threads(1), call)


def reduce_losses(reduction: str, dtype: str, losses: Any, n_frames: Any = None) -> Any:
    """The task that adds up all losses, in the order of one machine."""
    loss = compute(total, np.asarray(losses))
    if reduction == "mean":
        n = losses.size if n_frames is None else n_frames
        loss = compute(np.divide, loss, loss.dtype.type(n))
    return narrowed(loss, dtype)


def build_of(backend: Any) -> tuple[str, bool | None]:
    """What bits depend on beside the backend's name: lsm's version, and whether lsm's own kernels use FMA."""
    return __version__, getattr(backend, "has_fma", None)


def _check_build(name: str, build: Any) -> None:
    here = build_of(registry().get(name).load())
    if here != tuple(build):
        version, has_fma = build
        difference = f"lsm {here[0]}, but lsm {version} made the graph; install the same version on both"
        if here[0] == version:
            difference = (
                f"a backend {name!r} {'with' if here[1] else 'without'} FMA, but the graph was made by one "
                f"{'with' if has_fma else 'without'} it, which gives other bits; set LSM_FORCE_ISA to one level on both"
            )
        raise BackendUnavailableError(f"{_place()} has {difference}")


def _place() -> str:
    """Where this runs: the address of a worker of distributed, or the number of the process."""
    try:
        return f"the worker {sys.modules['distributed'].get_worker().address}"
    except (KeyError, ValueError):  # not imported, or not within a task
        return f"process {os.getpid()}"


def _only(chunk: Any) -> Any:
    """A chunk; along an axis that the result lacks, dask gives a list of its only chunk."""
    while type(chunk) is list:
        (chunk,) = chunk
    return chunk
