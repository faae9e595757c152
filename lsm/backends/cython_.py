"""The Cython backend: picks the kernels for this processor, counts threads, and cuts arrays into frames."""

import math
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lsm._config import ISA_LEVELS, settings
from lsm._errors import BackendUnavailableError
from lsm._threads import set_openmp_limit, threads_for
from lsm.backends.base import API_VERSION, Backend

# A result of this many bytes does not stay in the caches for whoever reads it next: it is written past
# them, which saves reading it first. Half of a common last-level cache.
STREAM_BYTES = 16 * 2**20


class CythonBackend(Backend):
    """float32 and float64 on a CPU, any axis and strides without a copy."""

    name = "cython"
    api_version = API_VERSION
    dtypes = ("float32", "float64")

    def available(self) -> str | None:
        """None, or why no build of the kernels runs here."""
        try:
            kernels()
        except BackendUnavailableError as error:
            return str(error)
        return None

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax`."""
        dtype = np.promote_types(x.dtype, out.dtype)
        y = out if out.dtype == dtype else np.empty_like(out, dtype=dtype)
        _run(kernels()["log_softmax", dtype.char], (x.astype(dtype, copy=False), y), axis)
        if y is not out:
            with np.errstate(all="ignore"):
                out[...] = y

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_backward`."""
        _run(kernels()["log_softmax_backward", out.dtype.char], (grad_output, output, out), axis)


@cache
def kernels() -> dict[Any, Any]:
    """The loop functions by (operation, dtype.char), of the best instruction level that this CPU has.

    Raises
    ------
    BackendUnavailableError
        The kernels were not built, or the level that LSM_FORCE_ISA names does not run here.
    """
    try:
        best = import_module("lsm.backends._kernels.cpu").best_level()
    except ImportError as error:
        raise BackendUnavailableError(
            f"the compiled kernels are missing ({error}); install lsm with a C compiler at hand"
        ) from error
    level = settings().force_isa or best
    if ISA_LEVELS.index(level) < ISA_LEVELS.index(best):
        raise BackendUnavailableError(f"LSM_FORCE_ISA asks for {level}, and this processor has {best}")
    try:
        module = import_module(f"lsm.backends._kernels.{level}")
    except ImportError as error:
        raise BackendUnavailableError(
            f"the kernels for instruction level {level} are not part of this build"
        ) from error
    set_openmp_limit(module.max_threads())
    table: dict[Any, Any] = {"level": level, "scratch": module.SCRATCH}
    for op in ("log_softmax", "log_softmax_backward"):
        for char, name in (("f", "float"), ("d", "double")):
            table[op, char] = getattr(module, op)[name]
    return table


def _run(kernel: Any, arrays: tuple[Any, ...], axis: int) -> None:
    """Call the kernel on every (outer, classes, inner) view of the arrays, the last of which is written."""
    out = arrays[-1]
    stream = out.nbytes >= STREAM_BYTES and not any(np.may_share_memory(out, array) for array in arrays[:-1])
    with threads_for(out.size) as n_threads:
        scratch = np.empty((n_threads, 1), out.dtype)
        for views in frame_views(arrays, axis):
            for view in views:
                # Classes that do not lie side by side are gathered there. Of an axis of length 1 the kernels may
                # see another stride than this: NumPy makes one up for a buffer that is contiguous.
                if view.strides[1] != out.itemsize or view.shape[1] == 1:
                    scratch = np.empty((n_threads, kernels()["scratch"]), out.dtype)
                    break
            kernel(*views, scratch, n_threads, stream)


def frame_views(arrays: tuple[Any, ...], axis: int) -> Iterator[tuple[Any, ...]]:
    """Yield views of shape (outer, classes, inner) that together cover arrays of one shape, without copies.

    Axes that lie evenly one after the other in all the arrays count as one, and the order of frames is
    free. Where more than two axes of frames remain, the shortest is walked through here.
    """
    shape = arrays[0].shape
    for array in arrays:
        if not array.flags.c_contiguous:
            break
    else:
        merged = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
        yield tuple([array.reshape(merged) for array in arrays])
        return
    groups: list[tuple[int, tuple[int, ...], int]] = []  # (length, strides, last axis), widest stride first
    others = [i for i, n in enumerate(shape) if i != axis and n > 1]
    for i in sorted(others, key=lambda i: [-abs(array.strides[i]) for array in reversed(arrays)]):
        n, strides = shape[i], tuple(array.strides[i] for array in arrays)
        if groups and groups[-1][1] == tuple(n * stride for stride in strides):
            groups[-1] = (groups[-1][0] * n, strides, i)
        else:
            groups.append((n, strides, i))
    if len(groups) > 2:
        walked = min(groups)[2]
        before = (slice(None),) * walked
        for k in range(shape[walked]):
            yield from frame_views(tuple(array[(*before, k)] for array in arrays), axis - (walked < axis))
        return
    absent = (1, (0,) * len(arrays), -1)
    (n_inner, inner_strides, _) = groups.pop() if groups else absent
    (n_outer, outer_strides, _) = groups.pop() if groups else absent
    yield tuple(
        as_strided(
            array,
            shape=(n_outer, shape[axis], n_inner),
            strides=(outer_strides[a], array.strides[axis], inner_strides[a]),
            writeable=array is arrays[-1],
        )
        for a, array in enumerate(arrays)
    )


backend = CythonBackend()
