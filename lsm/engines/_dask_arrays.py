"""Arguments that are dask arrays, and lazy results, for `dask_` and `_dask_classes`."""

import math
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, NamedTuple

import dask.array
import numpy as np

UNKNOWN = -1  # replaces NaN, dask's value for an axis of unknown length


class Argument(NamedTuple):
    """An argument that is a dask or NumPy array.

    Attributes
    ----------
    array : dask.array.Array or ndarray
        The array.
    shape : tuple of int
        Its shape, with `UNKNOWN` for unknown lengths.
    pattern : tuple of int
        For `blockwise`, a number for each of its axes: 0 to n - 1 for those of the logits, n + i for one that replaces
        axis i, and 2 * n for that of weights.
    """

    array: Any
    shape: tuple[int, ...]
    pattern: tuple[int, ...] = ()

    @property
    def dtype(self) -> Any:
        """The dtype."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape, with `UNKNOWN` for unknown lengths."""
    return tuple([UNKNOWN if math.isnan(n) else int(n) for n in x.shape])


def lazy_array(task: Any, index: tuple[int, ...], operands: Iterable[Any], dtype: Any, token: str, **more: Any) -> Any:
    """The lazy array of the results of a task; `operands` are arrays, each followed by its pattern."""
    meta = np.empty((0,) * len(index), dtype)
    return dask.array.blockwise(task, index, *operands, dtype=dtype, meta=meta, token=token, **more)


def as_dask(argument: Argument, chunks: dict[int, Any]) -> Any:
    """The array, in chunks that match those of the others."""
    if isinstance(argument.array, dask.array.Array):
        return argument.array
    own = [chunks.get(i, -1) if n != 1 else -1 for i, n in zip(argument.pattern, argument.shape, strict=True)]
    return dask.array.from_array(argument.array, chunks=tuple(own))


def items_of(lazy: Any, index: tuple[int, ...], like: tuple[Any, ...], token: str) -> tuple[Any, ...]:
    """The arrays of a lazy array whose chunks are tuples of arrays; `like` are arrays of their dtypes."""
    items = enumerate(like)
    return tuple([lazy_array(itemgetter(i), index, [lazy, index], x.dtype, f"lsm-{token}-{i}") for i, x in items])
