"""Arrays as frames: the axes of the classes, and blocks of frames small enough for a cache."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

Index = tuple[slice, ...]


class Frames(NamedTuple):
    """How an array splits into frames. A block is a part of the array with whole frames.

    Attributes
    ----------
    shape : tuple of int
        The shape of the frames: that of the array without the axes of the classes.
    n_classes : int
        The length of a frame.
    at : int
        The axis of the classes in a block.
    order : tuple of int or None
        The order of the axes that merges several axes of classes into one, at the end. None for one axis.
    """

    shape: tuple[int, ...]
    n_classes: int
    at: int
    order: tuple[int, ...] | None

    @classmethod
    def along(cls, shape: tuple[int, ...], axes: tuple[int, ...]) -> "Frames":
        """The frames of an array along sorted axes; a scalar is a frame of one class."""
        if not shape:
            return cls((), 1, 0, None)
        rest = tuple([i for i in range(len(shape)) if i not in axes])
        frames, n_classes = tuple([shape[i] for i in rest]), math.prod(shape[i] for i in axes)
        if len(axes) == 1:
            return cls(frames, n_classes, axes[0], None)
        return cls(frames, n_classes, len(rest), rest + axes)

    @property
    def size(self) -> int:
        """The number of frames."""
        return math.prod(self.shape)

    def blocks(self, n_elements: int) -> Iterator[Index]:
        """Index blocks of about `n_elements`: inner axes whole while they fit, one in parts, others one by one."""
        if not self.size:
            return
        room = max(1, n_elements // max(1, self.n_classes))
        parts: list[list[slice]] = []
        for n in reversed(self.shape):
            step = min(n, room)
            room = max(1, room // step)
            parts.append([slice(i, min(i + step, n)) for i in range(0, n, step)])
        yield from product(*reversed(parts))

    def block(self, array: Any, index: Index) -> Any:
        """The frames of a block, with the classes on the axis `at`; a view if possible.

        The array may have length 1 along the axes of the classes.
        """
        if self.order is None:
            at = self.at
            return array.reshape(1) if not array.ndim else array[(*index[:at], slice(None), *index[at:])]
        part = array.transpose(self.order)[index]
        return part.reshape((*part.shape[: len(index)], math.prod(part.shape[len(index) :])))

    def put(self, array: Any, index: Index, values: Any) -> None:
        """Write a block into an array."""
        if self.order is None:
            self.block(array, index)[...] = values
        else:
            part = array.transpose(self.order)[index]
            part[...] = values.reshape(part.shape)

    def beside(self, numbers: Any, index: Index) -> Any:
        """One number for each frame of a block, a view with length 1 on the axis of the classes."""
        part = numbers[(*index, ...)]  # a view, even for one frame
        return part.reshape((*part.shape[: self.at], 1, *part.shape[self.at :]))

    def of_rows(self, numbers: Any, block: Any) -> Any:
        """One number for each frame of a block, shaped as by `beside`, from a matrix with length 1 along one axis."""
        return numbers.reshape((*block.shape[: self.at], 1, *block.shape[self.at + 1 :]))
