"""How arrays must lie in memory for the CUDA kernels, which take two strides of each array."""

from collections.abc import Sequence
from typing import NamedTuple

from lsm.backends._axes import merge_axes


class Layout(NamedTuple):
    """Arrays of one shape as (outer, classes, inner).

    `strides` are the outer and the class stride of each array in turn, in elements; the inner stride is 1.
    """

    n_outer: int
    n_classes: int
    n_inner: int
    strides: tuple[int, ...]


def layout(shape: Sequence[int], strides: Sequence[Sequence[int]], axis: int) -> Layout | None:
    """How the kernels see arrays of these strides (in elements); None if none of them does.

    Either the classes lie side by side in all the arrays and one stride leads from frame to frame ("rows"), or the
    frames do, along one or more axes, and two strides lead to the other frames and to the classes ("columns").
    Arrays in C order are always one of the two.
    """
    n_classes = shape[axis]
    class_strides = [of_array[axis] if n_classes > 1 else 1 for of_array in strides]
    axes = merge_axes(shape, strides, axis)
    absent = (0,) * len(strides)
    if len(axes) <= 1 and set(class_strides) == {1}:
        n_outer, outer_strides = (axes[0].n, axes[0].strides) if axes else (1, absent)
        n_inner = 1
    elif 1 <= len(axes) <= 2 and set(axes[-1].strides) == {1}:
        n_inner = axes.pop().n
        n_outer, outer_strides = (axes[0].n, axes[0].strides) if axes else (1, absent)
    else:
        return None
    pairs = zip(outer_strides, class_strides, strict=True)
    return Layout(n_outer, n_classes, n_inner, tuple([stride for pair in pairs for stride in pair]))
