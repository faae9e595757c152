"""The blocks of `lsm apply`: the frames in each, and the computation on one."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import lsm
from lsm._apply_parts import MAPS, Block, Steps, reduced, slice_classes, write_map
from lsm._operations import OPERATIONS
from lsm._storage.base import Array, Index, StoredArray, WritableArray

# Large enough to hide the cost of calls and reads, small enough for any machine. Every element counts as
# ELEMENT_BYTES, whatever its dtype: integers become float64, and the NumPy backend computes in float64.
BLOCK_BYTES = 64 * 2**20
ELEMENT_BYTES = 8
# A chunk of a result with few numbers per frame has the frames of at most this many blocks: fewer small files, and not
# too much to do again after an interruption.
BLOCKS_A_CHUNK = 256


class Call(NamedTuple):
    """The computation for each block; can be pickled.

    Attributes
    ----------
    op : str
        The name of a function of lsm.
    options : dict
        Its keywords, `axis` and `backend` among them.
    axes : tuple of int
        The axes of the classes.
    shape : tuple of int
        The shape of the results.
    unit : tuple of int
        Of the first input: blocks are read at multiples of it.
    steps : Steps or None
        How frames are cut; None if they are read whole.
    """

    op: str
    options: dict[str, Any]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    unit: tuple[int, ...]
    steps: Steps | None


# A function that has all blocks computed: (call, inputs, results, blocks, advance(bytes)).
Runner = Callable[[Call, Sequence[StoredArray], Sequence[WritableArray], Iterable[Index], Callable[[int], Any]], None]


def run_here(
    call: Call,
    arrays: Sequence[StoredArray],
    outs: Sequence[WritableArray],
    tasks: Iterable[Index],
    advance: Callable[[int], Any],
) -> None:
    """Compute all blocks in this process."""
    for task in tasks:
        run_block(call, arrays, outs, task, advance)


def run_block(
    call: Call,
    arrays: Sequence[StoredArray],
    outs: Sequence[WritableArray],
    task: Index,
    advance: Callable[[int], Any],
) -> None:
    """Compute one block, which has whole chunks of the results, and write it, unless an earlier run has."""
    op, options, axes, shape, unit, steps = call
    first, part, function = arrays[0], aligned(task, axes, shape), partial(getattr(lsm, op), **options)
    if all(out.is_written(part) for out in outs):
        advance(n_elements(task) * first.dtype.itemsize)
        return
    if steps is not None and op in MAPS:
        write_map(Block(op, options, first, task, axes[0], steps, advance), outs[0])
        return
    made: list[Array] = []
    for index in blocks_within(task, axes, first.is_fortran, unit):
        where = shifted(aligned(index, axes, shape), part, -1)
        given = [array.read(aligned(index, axes, array.shape)) for array in arrays[steps is not None :]]
        if not made:
            in_place = steps is None and op in OPERATIONS and index == task and outs[0].fits(part, given[0])
            made = given[:1] if in_place else [out.empty(part) for out in outs]
        views = [block[where + (...,)] for block in made]  # noqa: RUF005 (mypy)
        if steps is not None:
            values = reduced(Block(op, options, first, index, axes[0], steps, advance), given, outs[0].dtype)
        elif op in OPERATIONS:
            values = function(*given, out=views[0])
        else:
            values = function(*given)
        for view, value in zip(views, results(values), strict=True):
            if value is not view:
                view[...] = value
        if steps is None:
            advance(given[0].nbytes)
    for out, block in zip(outs, made, strict=True):
        out.write(part, block)


def results(value: Any) -> tuple[Any, ...]:
    """The result of a function, as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def aligned(index: Index, axes: tuple[int, ...], shape: tuple[int, ...]) -> Index:
    """The place of a block's frames in an array of this shape, with any length along the axes, or without the axes."""
    if len(shape) < len(index):
        return tuple(part for i, part in enumerate(index) if i not in axes)
    return tuple(slice(0, n) if i in axes or n == 1 or not index else index[i] for i, n in enumerate(shape))


def shifted(index: Index, start: Index, sign: int) -> Index:
    """The index, relative to the start of another (sign -1), or converted back from that (sign 1)."""
    return tuple(
        slice(part.start + sign * at.start, part.stop + sign * at.start) for part, at in zip(index, start, strict=True)
    )


def n_elements(index: Index) -> int:
    """The number of elements of a block."""
    return math.prod(part.stop - part.start for part in index)


def frame_unit(array: StoredArray, axes: tuple[int, ...], n_axes: int) -> tuple[int, ...]:
    """The unit of an array along the axes of the first input; the array may lack the axes of the classes."""
    units = list(array.unit or (1,) * len(array.shape))
    if len(units) < n_axes:
        for axis in axes:
            units.insert(axis, 1)
    return tuple(units)


def cut(
    op: str, first: StoredArray, axes: tuple[int, ...], shape: tuple[int, ...], options: dict[str, Any]
) -> tuple[tuple[int, ...], Steps | None]:
    """The unit of blocks that are read; and, if the smallest of them is too large, how its frames are cut.

    Then a block spans fewer classes, but more of the frames along the inner axes of the file. Its length along the
    axis of the classes is that of a piece to write.
    """
    unit = frame_unit(first, axes, len(first.shape))
    least = block_shape(first.shape, axes, first.is_fortran, unit)
    if math.prod(least) <= BLOCK_BYTES // ELEMENT_BYTES or len(axes) != 1 or math.prod(shape) > math.prod(first.shape):
        return unit, None
    (at,), n_slice = axes, slice_classes(op, first.native_dtype, options)
    n_least = max(n_slice, unit[at])
    if not n_slice or n_least >= first.shape[at]:
        return unit, None
    units = (*unit[:at], n_least, *unit[at + 1 :])
    block = block_shape(first.shape, (), first.is_fortran, units)
    room = BLOCK_BYTES // ELEMENT_BYTES // (math.prod(block) // block[at])
    steps = Steps.within(room, n_slice, unit[at])
    return (*block[:at], min(steps.write, first.shape[at]), *block[at + 1 :]), steps


def chunk_shape(call: Call, first: StoredArray) -> tuple[int, ...]:
    """The chunks of a result in a format that has chunks: those of the input for a result of the same shape.

    Otherwise whole frames: as many as a block has, or a multiple for results smaller than the input. For frames that
    are cut, their pieces.
    """
    op, _, axes, shape, unit, steps = call
    if first.unit is not None and shape == first.shape:
        return first.unit
    if steps is not None and op in MAPS:
        return unit
    n_classes = math.prod(first.shape[axis] for axis in axes)
    n_frames = math.prod(n for i, n in enumerate(first.shape) if i not in axes)
    n_results = max(1, math.prod(shape) // max(1, n_frames))
    n_blocks = min(BLOCKS_A_CHUNK, max(1, n_classes // n_results))
    block = block_shape(first.shape, axes, first.is_fortran, unit, n_blocks)
    chunk = aligned(tuple(slice(0, n) for n in block), axes, shape)
    return tuple(max(1, part.stop) for part in chunk)


def block_shape(
    shape: tuple[int, ...], axes: tuple[int, ...], is_fortran: bool, unit: tuple[int, ...], n_blocks: int = 1
) -> tuple[int, ...]:
    """The shape of a block of whole frames: multiples of the unit along their axes.

    To make contiguous pieces long, a block spans the frame axes from the innermost one of the file outward, as long as
    it stays within `n_blocks` times BLOCK_BYTES; the next axis is split, and the outer ones are iterated over.
    """
    steps = [max(1, n if i in axes else min(n, unit[i])) for i, n in enumerate(shape)]  # there may be no classes
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
