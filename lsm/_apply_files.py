"""`lsm apply`: from arrays in files to arrays in files, in blocks of frames, for files larger than memory."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import lsm
from lsm._apply import Call, Runner, blocks, chunk_shape, cut, frame_unit, results, run_here
from lsm._apply_parts import MAPS
from lsm._apply_record import decision_of, record_of
from lsm._check import normalised_axes
from lsm._dispatch import policy_for
from lsm._errors import LsmError
from lsm._files import UnusableFileError
from lsm._frames import Frames
from lsm._operations import OPERATIONS
from lsm._select import shape_of_top_k
from lsm._storage import FORMATS, create_arrays, open_array
from lsm._storage.base import Result, Source, StoredArray
from lsm._targets import in_range, one_axis, shape_of_taken

Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]  # (total bytes) -> advance(bytes)


class Target(NamedTuple):
    """The destination of the result.

    Attributes
    ----------
    path : str
        The file or directory; may be an input. A second result goes to `second_target` of it.
    format : str
        A key of FORMATS.
    name : str or None
        The name of the array in it; None for the name of the first input, or of the function.
    is_resumed : bool
        Whether to continue an interrupted run, if there was one.
    """

    path: str
    format: str
    name: str | None
    is_resumed: bool


def apply(
    op: str,
    inputs: Sequence[Source],
    target: Target,
    progress: Progress,
    run_all: Runner = run_here,
    *,
    axis: Any,
    **options: Any,
) -> None:
    """Apply a function to arrays in files and write the result: all of it or nothing, or in Zarr chunk by chunk.

    Parameters
    ----------
    op : str
        The name of a function of lsm.
    inputs : sequence of Source
        The inputs.
    target : Target
        The destination of the result.
    progress : callable
        Called with the total number of bytes of the first input; returns a context manager that yields a function,
        which is called with the number of bytes of each finished block.
    run_all : callable, optional
        A function that has the blocks computed; by default, this process computes them.
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
        for array in arrays:
            array.warn_of_missing()
        first = arrays[0]
        shape, dtypes = dry_run(op, function, arrays)
        axes = normalised_axes(axis, len(first.shape))
        decision = decision_of(op, arrays, dtypes[0], options)
        named = options | {"backend": policy_for(options.get("backend")).requested or decision.winner}
        record = record_of(op, arrays, axes, dtypes[0], options, decision) if target.format == "zarr" else {}
        unit, steps = cut(op, first, axes, shape, named)
        call = Call(op, {"axis": axis} | named, axes, shape, unit, steps)
        chunk = chunk_shape(call, first)
        within = target.name or ((first.within or op) if FORMATS[target.format].has_names else None)
        paths = [target.path, second_target(target.path)]
        planned = [Result(*about, shape, chunk, within, first, record) for about in zip(paths, dtypes, strict=False)]
        outs = stack.enter_context(create_arrays(target.format, planned, target.is_resumed))
        advance = stack.enter_context(progress(math.prod(first.shape) * first.dtype.itemsize))
        in_pieces = steps is not None and op in MAPS
        write_unit = unit if outs[0].unit is None or in_pieces else frame_unit(outs[0], axes, len(first.shape))
        run_all(call, arrays, outs, blocks(first.shape, axes, first.is_fortran, write_unit), advance)


def second_target(target: str) -> str:
    """The path for the indices of the classes whose values go to `target`: ".indices" before the suffix."""
    root, suffix = os.path.splitext(target.rstrip(os.sep))  # noqa: PTH122 (a Path would change "./y")
    return f"{root}.indices{suffix}"


def dry_run(
    op: str, function: partial[Any], arrays: Sequence[StoredArray]
) -> tuple[tuple[int, ...], list[np.dtype[Any]]]:
    """Find the shape and dtypes of the results with a call on no frames, and raise the errors of a real call."""
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
            shapes[0] = tuple(int(i in axes) for i in range(len(first.shape)))  # an index needs a class
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
