"""`lsm apply`: from array to array in files, in blocks of frames, for files larger than memory."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

import lsm
from lsm._apply_record import record_of
from lsm._check import normalised_axes
from lsm._errors import LsmError
from lsm._files import UnusableFileError
from lsm._frames import Frames
from lsm._operations import OPERATIONS
from lsm._select import shape_of_top_k
from lsm._storage import FORMATS, create_arrays, open_array
from lsm._storage.base import Array, Index, Result, Source, StoredArray
from lsm._targets import in_range, one_axis, shape_of_taken

# Large enough to hide the cost of calls and reads, small enough for any machine. Every element counts as
# ELEMENT_BYTES, whatever its dtype: integers become float64, and the NumPy backend computes in float64.
BLOCK_BYTES = 64 * 2**20
ELEMENT_BYTES = 8
# A chunk of a result that has few numbers a frame is of the frames of so many blocks at most: fewer small files, and
# not too much to do again after an interruption.
BLOCKS_A_CHUNK = 256

Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]  # (total bytes) -> advance(bytes)


class Target(NamedTuple):
    """Where the result goes.

    Attributes
    ----------
    path : str
        The file or directory; may be an input. A second result goes to that of `second_target`.
    format : str
        A key of FORMATS.
    name : str or None
        The name of the array in it; None for that of the first input, or of the function.
    is_resumed : bool
        Whether to continue an interrupted run, if there was one.
    """

    path: str
    format: str
    name: str | None
    is_resumed: bool


def apply(op: str, inputs: Sequence[Source], target: Target, progress: Progress, *, axis: Any, **options: Any) -> None:
    """Apply a function to arrays in files and write the result: all of it or nothing, or in Zarr chunk by chunk.

    Parameters
    ----------
    op : str
        The name of a function of lsm.
    inputs : sequence of Source
        The inputs.
    target : Target
        Where the result goes.
    progress : callable
        Called with the total number of bytes of the first input; returns a context manager that yields a function,
        which is called with the number of bytes of each finished block.
    axis, **options : optional
        Arguments of the function.

    Raises
    ------
    UnusableFileError
        A file is missing, not readable, not writable, or not one of an array that lsm supports.
    LsmError, TypeError, ValueError, numpy.exceptions.AxisError
        From the function. These and the above are raised before anything is written.
    OSError
        A read or write failed.
    """
    function = partial(getattr(lsm, op), axis=axis, **options)
    with ExitStack() as stack:
        arrays = [stack.enter_context(open_array(source)) for source in inputs]
        first = arrays[0]
        shape, dtypes = dry_run(op, function, arrays)
        axes = normalised_axes(axis, len(first.shape))
        record = record_of(op, arrays, axes, dtypes[0], options) if target.format == "zarr" else {}
        unit = chunk_shape(first, axes, shape)
        within = target.name or ((first.within or op) if FORMATS[target.format].has_names else None)
        paths = [target.path, second_target(target.path)]
        planned = [Result(*about, shape, unit, within, first, record) for about in zip(paths, dtypes, strict=False)]
        outs = stack.enter_context(create_arrays(target.format, planned, target.is_resumed))
        advance = stack.enter_context(progress(math.prod(first.shape) * first.dtype.itemsize))
        read_unit = frame_unit(first, axes, len(first.shape))
        write_unit = read_unit if outs[0].unit is None else frame_unit(outs[0], axes, len(first.shape))

        def run(task: Index) -> None:  # a function, so that no block is kept while the next one is read
            part = aligned(task, axes, shape)
            if all(out.is_written(part) for out in outs):
                advance(n_elements(task) * first.dtype.itemsize)
                return
            made: list[Array] = []
            for index in blocks_within(task, axes, first.is_fortran, read_unit):
                given = [array.read(aligned(index, axes, array.shape)) for array in arrays]
                if not made:
                    in_place = op in OPERATIONS and index == task and may_hold(given[0], part, dtypes[0])
                    made = given[:1] if in_place else [out.empty(part) for out in outs]
                where = shifted(aligned(index, axes, shape), part, -1)
                views = [block[where + (...,)] for block in made]  # noqa: RUF005 (mypy)
                if op in OPERATIONS:
                    function(*given, out=views[0])
                else:
                    for view, values in zip(views, results(function(*given)), strict=True):
                        view[...] = values
                advance(given[0].size * first.dtype.itemsize)
            for out, block in zip(outs, made, strict=True):
                out.write(part, block)

        for task in blocks(first.shape, axes, first.is_fortran, write_unit):
            run(task)


def second_target(target: str) -> str:
    """Where the indices of the classes go whose values go to `target`: ".indices" before the suffix."""
    root, suffix = os.path.splitext(target.rstrip(os.sep))  # noqa: PTH122 (a Path would change "./y")
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
        empty = [np.zeros(n, a.native_dtype) for n, a in zip(shapes, arrays, strict=True)]
        dtypes = [result.dtype for result in results(function.func(*empty, **options))]
        if op == "take_log_softmax":
            for index in blocks(others[0].shape, (), others[0].is_fortran, others[0].unit):
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


def shifted(index: Index, start: Index, sign: int) -> Index:
    """The index, counted from the start of another (sign -1), or as it is counted where that one is (sign 1)."""
    return tuple(
        slice(part.start + sign * at.start, part.stop + sign * at.start) for part, at in zip(index, start, strict=True)
    )


def may_hold(block: Array, part: Index, dtype: np.dtype[Any]) -> bool:
    """Whether the result for a part can be written into this block."""
    shape = tuple(part_of_axis.stop - part_of_axis.start for part_of_axis in part)
    return block.shape == shape and block.dtype == dtype and block.flags.writeable


def n_elements(index: Index) -> int:
    """The number of elements of a block."""
    return math.prod(part.stop - part.start for part in index)


def frame_unit(array: StoredArray, axes: tuple[int, ...], n_axes: int) -> tuple[int, ...]:
    """The unit of an array along the axes of the first input, which may be one that lacks the axes of the classes."""
    units = list(array.unit or (1,) * len(array.shape))
    if len(units) < n_axes:
        for axis in axes:
            units.insert(axis, 1)
    return tuple(units)


def chunk_shape(first: StoredArray, axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The chunks of a result in a format that has chunks: those of the input for a result of the same shape.

    Otherwise whole frames, as many as a block has, or of results that are smaller than the input a multiple.
    """
    if first.unit is not None and shape == first.shape:
        return first.unit
    n_classes = math.prod(first.shape[axis] for axis in axes)
    n_frames = math.prod(n for i, n in enumerate(first.shape) if i not in axes)
    n_results = max(1, math.prod(shape) // max(1, n_frames))
    n_blocks = min(BLOCKS_A_CHUNK, max(1, n_classes // n_results))
    steps = block_shape(first.shape, axes, first.is_fortran, frame_unit(first, axes, len(first.shape)), n_blocks)
    chunk = aligned(tuple(slice(0, n) for n in steps), axes, shape)
    return tuple(max(1, part.stop) for part in chunk)


def block_shape(
    shape: tuple[int, ...], axes: tuple[int, ...], is_fortran: bool, unit: tuple[int, ...], n_blocks: int = 1
) -> tuple[int, ...]:
    """The shape of a block of whole frames: multiples of the unit along their axes.

    To make contiguous pieces long, a block spans the frame axes from the innermost of the file outward as long as it
    stays within BLOCK_BYTES, or several times that; the next axis is split, and the outer ones are iterated over.
    """
    steps = [
        max(1, n if i in axes else min(n, unit[i])) for i, n in enumerate(shape)
    ]  # of the classes there may be none
    for i in range(len(shape)) if is_fortran else reversed(range(len(shape))):
        if i not in axes:
            room = n_blocks * (BLOCK_BYTES // ELEMENT_BYTES) // math.prod(steps)
            steps[i] = max(1, min(shape[i], steps[i] * max(1, room)))
    return tuple(steps)


def blocks(
    shape: tuple[int, ...], axes: tuple[int, ...], is_fortran: bool, unit: tuple[int, ...] | None = None
) -> Iterator[Index]:
    """Split an array into blocks of whole frames (`block_shape`), in file order."""
    if any(n == 0 for i, n in enumerate(shape) if i not in axes):
        return
    steps = block_shape(shape, axes, is_fortran, unit or (1,) * len(shape))
    outermost_first = range(len(shape))[:: -1 if is_fortran else 1]
    for starts in product(*(range(0, max(1, shape[i]), steps[i]) for i in outermost_first)):
        parts = {i: slice(k, min(k + steps[i], shape[i])) for i, k in zip(outermost_first, starts, strict=True)}
        yield tuple(parts[i] for i in range(len(shape)))


def blocks_within(task: Index, axes: tuple[int, ...], is_fortran: bool, unit: tuple[int, ...]) -> Iterator[Index]:
    """The blocks of a part of an array that begins at multiples of the unit."""
    shape = tuple(part.stop - part.start for part in task)
    for index in blocks(shape, axes, is_fortran, unit):
        yield shifted(index, task, 1)
