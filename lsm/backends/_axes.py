"""How an array of any shape and strides falls into frames: axes that lie evenly one after the other count as one."""

from collections.abc import Sequence
from typing import NamedTuple


class MergedAxis(NamedTuple):
    """Axes of frames that count as one, and the last of them.

    `strides` has one for each array, in the unit in which they were given.
    """

    n: int
    strides: tuple[int, ...]
    last_axis: int


def merge_axes(shape: Sequence[int], strides: Sequence[Sequence[int]], axis: int) -> list[MergedAxis]:
    """The axes of frames of arrays of one shape, all but `axis` and those of length 1, the widest stride first.

    The order of frames is free; that of the last array, which is written, counts most.
    """
    found: list[MergedAxis] = []
    others = [i for i, n in enumerate(shape) if i != axis and n > 1]
    for i in sorted(others, key=lambda i: [-abs(of_array[i]) for of_array in reversed(strides)]):
        n, steps = shape[i], tuple([of_array[i] for of_array in strides])
        if found and found[-1].strides == tuple([n * step for step in steps]):
            found[-1] = MergedAxis(found[-1].n * n, steps, i)
        else:
            found.append(MergedAxis(n, steps, i))
    return found
