"""Blocks of frames as matrices of float64 or longdouble, and their sums: for the backend numpy.

`at` is the axis of the classes in a block, 0 or -1, and `is_narrow` says that the result has at most 32 bits.
"""

import math
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import numpy as np

# About four arrays of this many float64 numbers stay in a level-2 cache, and are small enough for the C library to keep
# their memory: with twice as many numbers, calls of 48,000 elements took twice as long.
BLOCK_ELEMENTS = 2**14
# Shorter frames are the columns of a block, others its rows, so that no inner loop of NumPy is short. The number of
# classes alone decides, because the order in which numpy.add.reduce adds depends on it.
ROW_CLASSES = 32


def run_in_blocks(
    function: Callable[..., Any], inputs: tuple[Any, ...], axis: int, outs: tuple[Any, ...], is_narrow: bool
) -> None:
    """Call a function of (*inputs, at, is_narrow) on copies of the blocks, which it may change.

    All arrays except the first input may have length 1 along the axis.
    """
    at = 0 if inputs[0].shape[axis] < ROW_CLASSES else -1
    arrays = [array.swapaxes(axis, at) for array in (*inputs, *outs)]
    is_long = any(array.dtype.char == "g" for array in arrays)
    dtype = np.longdouble if is_long else np.float64
    for block in _blocks(arrays[0].shape, at):
        parts = [array[block] for array in arrays]
        given, targets = parts[: len(inputs)], parts[len(inputs) :]
        shapes = [(x.shape[0], -1) if at == 0 else (-1, x.shape[-1]) for x in given]
        wide = [np.array(x, dtype=dtype, order="C").reshape(shape) for x, shape in zip(given, shapes, strict=True)]
        made = function(*wide, at, is_narrow)
        for target, y in zip(targets, made if isinstance(made, tuple) else (made,), strict=True):
            target[...] = y.reshape(target.shape)


def _blocks(shape: tuple[int, ...], at: int) -> Iterable[Any]:
    """Index the blocks: the inner axes of the frames as a whole while they fit, one in parts, the outer ones by one."""
    frames = shape[1:] if at == 0 else shape[:-1]
    room = max(1, BLOCK_ELEMENTS // shape[at])
    if math.prod(frames) <= room:
        return [()]
    parts: list[list[slice]] = []
    for n in reversed(frames):
        step = min(n, room)
        room = max(1, room // step)
        parts.append([slice(i, i + step) for i in range(0, n, step)])
    return product([slice(None)], *reversed(parts)) if at == 0 else product(*reversed(parts))


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """a + b and its rounding error (Knuth)."""
    t = a + b
    v = t - a
    return t, (a - (t - v)) + (b - v)


def plain_sum(terms: Any, at: int) -> Any:
    """The sum, with the axis; always in the same order for a number of classes."""
    if at == 0 and terms.shape[1] == 1:  # numpy.add.reduce would take the column for a row
        terms = np.repeat(terms, 2, axis=1)
        return np.add.reduce(terms, axis=0, keepdims=True)[:, :1]
    return np.add.reduce(terms, axis=at, keepdims=True)


def sum_unless_cancelled(terms: Any, at: int) -> Any:
    """The sum, with the axis, right in all digits of float32: as `twofold_sum` where the terms cancel."""
    s = plain_sum(terms, at)
    is_cancelled = np.abs(s) < 2.0**-20 * plain_sum(np.abs(terms), at)
    if is_cancelled.any():
        np.copyto(s, twofold_sum(terms, at), where=is_cancelled)
    return s


def twofold_sum(terms: Any, at: int) -> Any:
    """The sum, with the axis, as if computed in twice the precision."""
    return sum_with_error(terms, at)[0]


def sum_with_error(terms: Any, at: int) -> tuple[Any, Any]:
    """The sum as `twofold_sum` gives it, and its rounding error.

    The high parts of the terms are multiples of one number, so that they add up exactly (Rump, Ogita & Oishi 2008,
    doi:10.1137/050645671, ExtractVector).
    """
    largest = np.maximum.reduce(np.abs(terms), axis=at, keepdims=True)
    exponent = np.frexp(largest)[1] + (terms.shape[at].bit_length() + 1)
    grid = np.ldexp(terms.dtype.type(1), exponent)
    high = terms + grid
    high -= grid
    return two_sum(plain_sum(high, at), plain_sum(terms - high, at))
