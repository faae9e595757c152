"""`lsm apply` on frames larger than a block: reduces pieces of their classes, then writes the results."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import lsm
from lsm._check import dtype_name
from lsm._errors import BackendUnsupportedError
from lsm._parts import Part
from lsm._storage.base import Array, Index, StoredArray, WritableArray
from lsm.engines._dask_tasks import best_of_chunk, best_of_parts

MAPS = ("log_softmax", "softmax")  # these read the logits twice
FUNCTIONS = (*MAPS, "logsumexp", "take_log_softmax", "top_k_log_softmax")


class Steps(NamedTuple):
    """The number of classes in a piece, except the last of a frame.

    Attributes
    ----------
    read : int
        For pieces to reduce: a multiple of a slice, so that the bits are those of whole frames.
    write : int
        For pieces to write: a multiple of a chunk.
    """

    read: int
    write: int

    @classmethod
    def within(cls, room: int, n_slice: int, n_chunk: int) -> "Steps":
        """Steps of about `room` classes: multiples of slice and chunk where they fit, so that none is read twice."""
        both = math.lcm(n_slice, n_chunk)
        if both <= room:
            return cls(room // both * both, room // both * both)
        return cls(max(room // n_slice, -(-n_chunk // n_slice)) * n_slice, max(room // n_chunk, 1) * n_chunk)


@dataclass(frozen=True)
class Block:
    """Whole frames of an array in a file, and the function called on them.

    Attributes
    ----------
    op : str
        The function.
    options : dict
        Its keywords.
    array : StoredArray
        The array.
    index : Index
        The place of the frames.
    at : int
        The axis of the classes.
    steps : Steps
        The sizes of the pieces into which they are cut.
    advance : callable
        Called with the number of bytes of each finished piece.
    """

    op: str
    options: dict[str, Any]
    array: StoredArray
    index: Index
    at: int
    steps: Steps
    advance: Callable[[int], Any]

    @property
    def n_classes(self) -> int:
        """The length of a frame."""
        return self.array.shape[self.at]

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords shared with the functions of parts."""
        return {name: value for name, value in self.options.items() if name not in ("axis", "k")}

    def pieces(self, step: int) -> Iterator[tuple[int, Index]]:
        """The first class and the index of each piece."""
        for i in range(0, self.n_classes, step):
            classes = slice(i, min(i + step, self.n_classes))
            yield i, (*self.index[: self.at], classes, *self.index[self.at + 1 :])

    def partials(self, keep: Callable[[int, Array], Any] | None = None, n_turns: int = 1) -> Array:
        """The partials of the frames. `keep` is called with the first class of each piece, and its logits.

        n_turns: the number of passes over all pieces, of which this is one.
        """

        def reduced(first: int, place: Index) -> Array:  # a function, to free each piece before the next is read
            x = self.array.read(place)
            if keep is not None:
                keep(first, x)
            p: Array = lsm.partials(x, self.at, **self.keywords)
            self.advance(x.nbytes // n_turns)
            return p

        return np.concatenate([reduced(*piece) for piece in self.pieces(self.steps.read)], self.at)


def slice_classes(op: str, dtype: np.dtype[Any], options: dict[str, Any]) -> int:
    """The number of classes at multiples of which the frames of a call may be cut; 0 if it has no parts."""
    if op not in FUNCTIONS:
        return 0
    try:
        part = Part("partials", np.empty(0, dtype), 0, 1.0, None, options.get("dtype"), options["backend"])
    except BackendUnsupportedError:
        return 0
    return int(part.slice_classes)


def write_map(block: Block, out: WritableArray) -> None:
    """Write the log_softmax or softmax, except for the pieces that are already written."""
    whole = block.partials(n_turns=2)
    function = getattr(lsm, block.op)

    def write(place: Index) -> None:
        x = block.array.read(place)
        y = x if out.fits(place, x) else out.empty(place)
        function(x, block.at, out=y, partials=whole, n_classes=block.n_classes, **block.keywords)
        out.write(place, y)

    for _, place in block.pieces(block.steps.write):
        if not out.is_written(place):
            write(place)
        n_bytes = math.prod(part.stop - part.start for part in place) * block.array.dtype.itemsize
        block.advance(n_bytes - n_bytes // 2)


def reduced(block: Block, others: Sequence[Array], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """The results of one of the other functions, the first in `dtype`; `others` are the inputs after the logits."""
    if block.op == "logsumexp":
        return (_logsumexp(block, dtype),)
    return (_take(block, *others),) if others else _top_k(block)


def _logsumexp(block: Block, dtype: np.dtype[Any]) -> Any:
    whole, backend = block.partials(), block.options["backend"]
    sizes = {"axis": block.at, "n_classes": block.n_classes, "backend": backend}
    names = {dtype_name(block.array.native_dtype), dtype_name(dtype)}
    if names <= {"float16", "bfloat16", "float32"}:
        y = lsm.logsumexp(partials=whole, dtype="float64", **sizes)
        if ((whole[..., 0].max(block.at) < 0) & (abs(y) <= 1)).any():  # the kernels sum such frames twice, as a whole
            return lsm.logsumexp(block.array.read(block.index), block.at, **block.keywords)
    return lsm.logsumexp(partials=whole, dtype=dtype_name(dtype), **sizes)


def _take(block: Block, indices: Array) -> Any:
    at, n = block.at, len(block.index)
    places = indices.astype(np.int64) if indices.ndim == n else np.expand_dims(indices.astype(np.int64), at)
    shape = [part.stop - part.start for part in block.index]
    shape[at] = places.shape[at]
    places = np.broadcast_to(places, shape)
    taken = np.empty(shape, block.array.native_dtype)

    def keep(first: int, x: Array) -> None:
        is_here = (places >= first) & (places < first + x.shape[at])
        taken[is_here] = np.take_along_axis(x, np.where(is_here, places - first, 0), at)[is_here]

    whole = block.partials(keep)
    y = lsm.log_softmax(taken, at, partials=whole, n_classes=block.n_classes, **block.keywords)
    return y if indices.ndim == n else y.squeeze(at)


def _top_k(block: Block) -> tuple[Any, Any]:
    k, backend = block.options["k"], block.options["backend"]
    found: list[tuple[Array, Array]] = []

    def keep(first: int, x: Array) -> None:
        found.append(best_of_chunk(x, np.array([first]), k, block.at, backend))

    whole = block.partials(keep)
    best, numbers = (np.concatenate(arrays, block.at) for arrays in zip(*found, strict=True))
    return best_of_parts(best, numbers, k, block.at, partials=whole, n_classes=block.n_classes, **block.keywords)
