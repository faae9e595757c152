"""`lsm apply`: .npy file to .npy file in blocks of frames, for files larger than memory."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import product
from typing import Any

import numpy as np

import lsm
from lsm._check import normalised_axes
from lsm._errors import LsmError
from lsm._files import UnusableFileError, atomic_writes
from lsm._frames import Frames
from lsm._npy import Index, StoredArray, create_result, open_array
from lsm._operations import OPERATIONS
from lsm._select import shape_of_top_k
from lsm._targets import in_range, one_axis, shape_of_taken

# Large enough to hide the cost of calls and reads, small enough for any machine. Every element counts as
# ELEMENT_BYTES, whatever its dtype: integers become float64, and the NumPy backend computes in float64.
BLOCK_BYTES = 64 * 2**20
ELEMENT_BYTES = 8

Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]  # (total bytes) -> advance(bytes)


def apply(op: str, inputs: Sequence[str], target: str, progress: Progress, *, axis: Any, **options: Any) -> None:
    """Apply a function to arrays in files and write the result, either all of it or nothing.

    Parameters
    ----------
    op : str
        The name of a function of lsm.
    inputs : sequence of str
        The .npy files of the inputs.
    target : str
        The .npy file of the result; may be one of `inputs`. A second result goes to the file of `second_target`.
    progress : callable
        Called with the total number of bytes of the first input; returns a context manager that yields a function,
        which is called with the number of bytes of each finished block.
    axis, **options : optional
        Arguments of the function.

    Raises
    ------
    UnusableFileError
        A file is missing, not readable, not writable, or not a .npy file of an array that lsm supports.
    LsmError, TypeError, ValueError, numpy.exceptions.AxisError
        From the function. These and the above are raised before anything is written.
    OSError
        A read or write failed.
    """
    function = partial(getattr(lsm, op), axis=axis, **options)
    with ExitStack() as stack:
        arrays = [stack.enter_context(open_array(path)) for path in inputs]
        first = arrays[0]
        shape, dtypes = dry_run(op, function, arrays)
        axes = normalised_axes(axis, len(first.shape))
        with atomic_writes([target, second_target(target)][: len(dtypes)]) as files:
            outs = [create_result(*about, shape, first.is_fortran) for about in zip(files, dtypes, strict=True)]
            advance = stack.enter_context(progress(math.prod(first.shape) * first.dtype.itemsize))
            for index in blocks(first.shape, axes, first.is_fortran):
                given = [array.read(aligned(index, axes, array.shape)) for array in arrays]
                part = aligned(index, axes, shape)
                made = [out.empty(part) for out in outs]
                if op in OPERATIONS:
                    function(*given, out=made[0])
                else:
                    for block, values in zip(made, results(function(*given)), strict=True):
                        block[...] = values
                for out, block in zip(outs, made, strict=True):
                    out.write(part, block)
                advance(given[0].size * first.dtype.itemsize)


def second_target(target: str) -> str:
    """Where the indices of the classes go whose values go to `target`: ".indices" before the suffix."""
    root, suffix = os.path.splitext(target)  # noqa: PTH122 (a Path would change "./y")
    return f"{root}.indices{suffix}"


def results(value: Any) -> tuple[Any, ...]:
    """What a function returns, as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def dry_run(
    op: str, function: partial[Any], arrays: Sequence[StoredArray]
) -> tuple[tuple[int, ...], list[np.dtype[Any]]]:
    """Find the shape and dtypes of the results, by a call on no frames, and raise the errors that a call would."""
    first, *others = arrays
    options = function.keywords
    for array in others if op in OPERATIONS else ():
        if array.shape != first.shape:
            raise UnusableFileError(
                f"{first.name} and {array.name}: the shapes {first.shape} and {array.shape} differ; "
                "they must be the same"
            )
    try:
        axes = normalised_axes(options["axis"], len(first.shape))
        frames = Frames.along(first.shape, axes)
        shapes = [(0,) * len(array.shape) for array in arrays]
        shape = first.shape if op in OPERATIONS and not OPERATIONS[op].is_reduction else frames.shape
        if op == "take_log_softmax":
            one_axis(options["axis"], len(first.shape), "indices")
            shape = shape_of_taken(others[0].shape, first.shape, frames)
            shapes[0] = tuple(int(i in axes) for i in range(len(first.shape)))  # for an index there must be a class
        elif op == "top_k_log_softmax":
            shape = shape_of_top_k(options["k"], frames)
            options = options | {"k": 0}
        empty = [np.zeros(n, a.dtype.newbyteorder("=")) for n, a in zip(shapes, arrays, strict=True)]
        dtypes = [result.dtype for result in results(function.func(*empty, **options))]
        if op == "take_log_softmax":
            for index in blocks(others[0].shape, (), others[0].is_fortran):
                place = [part.start for part in index]
                in_range(others[0].read(index), "indices", frames.n_classes, start=place)
    except LsmError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        files = ", ".join(f"{array.name} (shape {array.shape}, dtype {array.dtype})" for array in arrays)
        raise UnusableFileError(f"{files}: {error}") from error
    return shape, dtypes


def aligned(index: Index, axes: tuple[int, ...], shape: tuple[int, ...]) -> Index:
    """Where the frames of a block are in an array of this shape: with any length along the axes, or without these."""
    if len(shape) < len(index):
        return tuple(part for i, part in enumerate(index) if i not in axes)
    return tuple(slice(0, n) if i in axes or n == 1 or not index else index[i] for i, n in enumerate(shape))


def blocks(shape: tuple[int, ...], axes: tuple[int, ...], is_fortran: bool) -> Iterator[Index]:
    """Split an array into blocks of whole frames, in file order.

    To make contiguous pieces long, a block spans the frame axes from the innermost of the file outward as long as it
    stays within BLOCK_BYTES; the next axis is split, and the outer ones are iterated over.
    """
    if any(n == 0 for i, n in enumerate(shape) if i not in axes):
        return
    steps = [max(1, n) for n in shape]  # of the classes there may be none
    outermost_first = range(len(shape))[:: -1 if is_fortran else 1]
    size = math.prod(steps[axis] for axis in axes)
    for i in reversed(outermost_first):
        if i not in axes:
            steps[i] = min(shape[i], max(1, BLOCK_BYTES // ELEMENT_BYTES // size))
            size *= steps[i]
    for starts in product(*(range(0, max(1, shape[i]), steps[i]) for i in outermost_first)):
        parts = {i: slice(k, min(k + steps[i], shape[i])) for i, k in zip(outermost_first, starts, strict=True)}
        yield tuple(parts[i] for i in range(len(shape)))
