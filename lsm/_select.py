"""Selected classes of a log-softmax: at given indices, or the k largest."""

from typing import Any

import numpy as np

from lsm import _check
from lsm._frames import Frames, Index
from lsm._logits import Logits, block_elements

# Longer frames are first cut into this many groups, whose largest classes bound the k-th largest from below.
_GROUPS = 2048


def take(logits: Logits, indices: Any, out: Any) -> None:
    """Write the log-softmax at the indices, which have the rank of the logits, to `out`, which has their shape."""
    frames = logits.frames
    if indices.size == frames.size and take_labels(logits, indices.reshape(-1), out):
        return
    for index in frames.blocks(block_elements(frames)):
        if frames.n_classes and out.size:
            y = logits.log_softmax(index)
            frames.put(out, index, np.take_along_axis(y, frames.block(indices, index), frames.at))


def take_labels(logits: Logits, labels: Any, out: Any) -> bool:
    """`take` for one index per frame, by the backend's own function; False if it does not support the call."""
    run = logits.native("run_labels", logits.result)
    if run is None:
        return False
    y = np.empty(labels.shape, out.dtype)
    if not run(logits.values, logits.frames.at, np.ascontiguousarray(labels), y):
        return False
    out[...] = y.reshape(out.shape)
    return True


def top_k(logits: Logits, k: int, values: Any, places: Any) -> None:
    """Write the k largest log-probabilities and their classes: ties by class, NaN first, masked classes last."""
    frames, at = logits.frames, logits.frames.at
    for index in frames.blocks(block_elements(frames)) if k else ():
        y = logits.log_softmax(index)
        chosen = _chosen(logits, k, index)
        frames.put(places, index, chosen)
        frames.put(values, index, np.take_along_axis(y, chosen, at))


def find_top_k(logits: Logits, k: int, places: Any) -> None:
    """Write the k most probable classes, as `top_k` does."""
    frames = logits.frames
    for index in frames.blocks(block_elements(frames)) if k else ():
        frames.put(places, index, _chosen(logits, k, index))


def _chosen(logits: Logits, k: int, index: Index) -> Any:
    """The k most probable classes of a block."""
    frames, at, entry = logits.frames, logits.frames.at, logits.entry
    block, mask = logits.block(index), logits.mask_block(index)
    find: Any = getattr(entry.backend, "find_top", None) if entry and entry.passed_as == _check.NUMPY else None
    if find is not None and mask is None and k > 1:  # argmax is faster
        places = np.empty((*block.shape[:at], k, *block.shape[at + 1 :]), np.int64)
        if find(block, k, at, places):
            return places
    ordered = _ordered(block)
    if k == 1 and mask is None:
        return np.expand_dims(ordered.argmax(axis=at), at)
    rows = np.moveaxis(ordered, at, -1)
    mask_rows = None if mask is None else np.moveaxis(mask, at, -1).reshape(-1, frames.n_classes)
    found = largest(rows.reshape(-1, frames.n_classes), k, mask_rows)
    return np.moveaxis(found.reshape((*rows.shape[:-1], k)), -1, at)


def shape_of_top_k(k: Any, frames: Frames) -> tuple[int, ...]:
    """The shape of the results: k along the axis of the classes; raises TypeError or ValueError for an invalid k."""
    n = _check.as_int(k)
    if n is None:
        raise TypeError(f"k: {k!r} is a {type(k).__name__}; accepted: an int from 0 to {frames.n_classes}")
    if not 0 <= n <= frames.n_classes:
        raise ValueError(f"k: {n}; accepted: from 0 to {frames.n_classes}, the number of classes")
    return (*frames.shape[: frames.at], n, *frames.shape[frames.at :])


def _ordered(block: Any) -> Any:
    """The same numbers, or, for 16-bit ones, on which NumPy is slow, integers in the same order."""
    if block.dtype.itemsize > 2:
        return block
    is_bfloat16 = _check.dtype_name(block.dtype) == "bfloat16"
    infinity = 0x7F80 if is_bfloat16 else 0x7C00
    bits: Any = block.copy().view(np.int16)
    sign = bits >> 15  # -1 or 0
    bits ^= sign & 0x7FFF
    bits -= sign  # so that -0.0 equals 0.0
    is_nan = bits < -infinity
    if is_nan.any():
        bits[is_nan] = infinity + 1
    return np.minimum(bits, infinity + 1, out=bits)


def largest(rows: Any, k: int, mask: Any = None) -> Any:
    """The columns of the k largest numbers of each row, in the order of `top_k`."""
    n_rows = len(rows)
    if mask is not None:
        lowest = np.iinfo(rows.dtype).min if rows.dtype.kind == "i" else -np.inf
        rows = np.where(mask, rows, lowest)
    found = np.flatnonzero(~(rows < _bound(rows, k)))  # nonzero of a matrix takes 20 times as long
    row, column = np.divmod(found, rows.shape[1])
    value = rows[row, column]
    is_nan = value != value
    keys = [-np.where(is_nan, 0, value).astype(np.int32 if rows.dtype.kind == "i" else rows.dtype), ~is_nan]
    if mask is not None:
        keys.append(~mask[row, column])
    order = np.lexsort((*keys, row))
    start = np.searchsorted(row, np.arange(n_rows))
    return column[order[start[:, np.newaxis] + np.arange(k)]]


def _bound(rows: Any, k: int) -> Any:
    """A lower bound, for each row, of its k largest numbers; NaN counts as the largest."""
    n_rows, n = rows.shape
    width = n // _GROUPS
    if width > 1 and k <= _GROUPS:
        rows = rows[:, : width * _GROUPS].reshape(n_rows, width, _GROUPS).max(axis=1)
    return np.partition(rows, -k, axis=1)[:, -k, np.newaxis]
