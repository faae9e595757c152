"""The memory layouts that the CUDA kernels accept: two strides per array."""

from collections.abc import Sequence
from typing import NamedTuple

from lsm.backends._axes import merge_axes


class FrameLayout(NamedTuple):
    """Arrays of one shape as (outer, classes, inner).

    `strides` holds the outer and the class stride of each array in turn, in elements; the inner stride is 1.
    """

    n_outer: int
    n_classes: int
    n_inner: int
    strides: tuple[int, ...]


def layout(shape: Sequence[int], strides: Sequence[Sequence[int]], axis: int) -> FrameLayout | None:
    """The layout of arrays with these strides, in elements; None if no kernel accepts it.

    Either all arrays have class stride 1 and one stride from frame to frame ("rows"), or adjacent frames along one or
    more axes, with one stride to the other frames and one to the classes ("columns"). C-contiguous arrays are always
    one of the two.
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
    return FrameLayout(n_outer, n_classes, n_inner, tuple([stride for pair in pairs for stride in pair]))
