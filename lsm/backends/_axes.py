"""Merge the frame axes of arrays of any shape and strides, where a single stride spans several axes."""

from collections.abc import Sequence
from typing import NamedTuple


class MergedAxis(NamedTuple):
    """One or more frame axes merged into one, and the last of them.

    `strides` has one stride per array, in the unit of the arguments of `merge_axes`.
    """

    n: int
    strides: tuple[int, ...]
    last_axis: int


def merge_axes(shape: Sequence[int], strides: Sequence[Sequence[int]], axis: int) -> list[MergedAxis]:
    """Merge all axes except `axis` and those of length 1; returns them by decreasing stride.

    The order of frames is arbitrary; that of the last array, which is written, takes precedence.
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
