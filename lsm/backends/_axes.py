"""Frames of arrays of any shape and strides: merge axes where one stride spans several, and views for kernels."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided


class MergedAxis(NamedTuple):
    """One or more frame axes merged into one, and the last of them.

    `strides` has one stride per array, in the unit of the arguments of `merge_axes`.
    """

    n: int
    strides: tuple[int, ...]
    last_axis: int


def merge_axes(shape: Sequence[int], strides: Sequence[Sequence[int]], axis: int) -> list[MergedAxis]:
    """Merge all axes except `axis` and those of length 1; returns them by decreasing stride.

    The order of frames is arbitrary; the order of the last array, the output, takes precedence.
    """
    merged: list[MergedAxis] = []
    others = [i for i, n in enumerate(shape) if i != axis and n > 1]
    for i in sorted(others, key=lambda i: [-abs(of_array[i]) for of_array in reversed(strides)]):
        n, steps = shape[i], tuple([of_array[i] for of_array in strides])
        if merged and merged[-1].strides == tuple([n * step for step in steps]):
            merged[-1] = MergedAxis(merged[-1].n * n, steps, i)
        else:
            merged.append(MergedAxis(n, steps, i))
    return merged


def frame_views(arrays: tuple[Any, ...], axis: int) -> Iterator[tuple[Any, ...]]:
    """Yield views of shape (outer, classes, inner, itemsize) that together cover arrays of one shape.

    Nothing is copied. The kernels take bytes and the dtype as an argument, to keep the code small. Frame axes are
    merged where the strides of all arrays permit this; the order of frames is arbitrary. If more than two remain, this
    function iterates over the shortest.
    """
    shape = arrays[0].shape
    for array in arrays:
        if not array.flags.c_contiguous:
            break
    else:
        merged = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]), 1)
        yield tuple([array.reshape(merged).view(np.uint8) for array in arrays])
        return
    axes = merge_axes(shape, [array.strides for array in arrays], axis)
    if len(axes) > 2:
        shortest = min(axes).last_axis
        before = (slice(None),) * shortest
        for k in range(shape[shortest]):
            yield from frame_views(tuple(array[(*before, k)] for array in arrays), axis - (shortest < axis))
        return
    absent = MergedAxis(1, (0,) * len(arrays), -1)
    n_inner, inner_strides, _ = axes.pop() if axes else absent
    n_outer, outer_strides, _ = axes.pop() if axes else absent
    yield tuple(
        as_strided(
            array,
            shape=(n_outer, shape[axis], n_inner, 1),
            strides=(outer_strides[a], array.strides[axis], inner_strides[a], array.itemsize),
            writeable=array is arrays[-1],
        ).view(np.uint8)
        for a, array in enumerate(arrays)
    )
