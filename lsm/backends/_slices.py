"""Log-softmax, softmax and logsumexp by slices of the classes, and frames in parts: for the backend numpy.

Each slice is reduced to its largest class m, the sum s of exp(x - m) over the classes below it, and the number k of
those that equal it. These are folded from the first slice to the last. A frame of one slice is read once.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lsm.backends._blocks import plain_sum, run_in_blocks, two_sum, twofold_sum

SLICE_CLASSES = 16384  # those of the backend cython


class Sums(NamedTuple):
    """Reductions, for each frame or slice of it: arrays with length 1, or one number a slice, along the classes.

    A slice with NaN or +inf has that in m, NaN in s and 0 in k. One of -inf only has 0 in s and k.
    """

    m: Any
    s: Any
    k: Any


class Exponents(NamedTuple):
    """x - m as two numbers."""

    d: Any
    e: Any

    def exponentials(self, is_narrow: bool) -> Any:
        """exp(x - m)."""
        p = np.exp(self.d)
        if not is_narrow:
            p += p * self.e
        return p


def write(name: str, x: Any, axis: int, out: Any) -> None:
    """Write log_softmax, softmax or logsumexp of whole frames."""
    is_narrow = max(x.itemsize, out.itemsize) < 8
    if x.shape[axis] <= SLICE_CLASSES:
        run_in_blocks(partial(_whole, name), (x,), axis, (out,), is_narrow)
    else:
        dtype = np.longdouble if "g" in (x.dtype.char, out.dtype.char) else np.float64
        write_part(name, x, fold(reduce_slices(x, axis, is_narrow, dtype), axis), axis, out)


def write_part(name: str, x: Any, whole: Sums, axis: int, out: Any) -> None:
    """Write the result for some classes, from the sums of their whole frames."""
    if name == "logsumexp":
        out[...] = _log_sum(*whole)
        return
    is_narrow = max(x.itemsize, out.itemsize) < 8
    for i in range(0, x.shape[axis], SLICE_CLASSES):
        at = along(axis, slice(i, i + SLICE_CLASSES))
        run_in_blocks(partial(_part, name), (x[at], *whole), axis, (out[at],), is_narrow)


def write_partials(x: Any, axis: int, out: Any) -> None:
    """Write the partials of all slices."""
    sums = reduce_slices(x, axis, x.itemsize < 8, np.float64)
    for i, numbers in enumerate(sums):
        out[..., i] = numbers
    out[..., 3] = slice_sizes(x, axis)


def slice_sizes(x: Any, axis: int) -> Any:
    """The number of classes in each slice, along the axis."""
    starts = np.arange(0, x.shape[axis], SLICE_CLASSES)
    return np.minimum(SLICE_CLASSES, x.shape[axis] - starts).reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def reduce_slices(x: Any, axis: int, is_narrow: bool, dtype: Any) -> Sums:
    """The sums of each slice."""
    n_slices = -(-x.shape[axis] // SLICE_CLASSES)
    shape = (*x.shape[:axis], n_slices, *x.shape[axis + 1 :])
    made = Sums(*[np.empty(shape, dtype) for _ in Sums._fields])
    for i in range(n_slices):
        part = x[along(axis, slice(i * SLICE_CLASSES, (i + 1) * SLICE_CLASSES))]
        targets = tuple([array[along(axis, slice(i, i + 1))] for array in made])
        run_in_blocks(_sums, (part,), axis, targets, is_narrow)
    return made


def fold(slices: Sums, axis: int) -> Sums:
    """The sums of whole frames, with length 1 along the axis."""
    whole, *others = [
        Sums(*[array[along(axis, slice(i, i + 1))] for array in slices]) for i in range(slices.m.shape[axis])
    ]
    for other in others:
        is_higher = other.m > whole.m
        m, s, k = (np.where(is_higher, a, b) for a, b in zip(other, whole, strict=True))
        low_m, low_s, low_k = (np.where(is_higher, b, a) for a, b in zip(other, whole, strict=True))
        d, e = two_sum(low_m, -m)
        scale = np.exp(d)
        scale += scale * np.where(np.isfinite(e), e, 0)
        is_equal = low_m == m
        s = np.where(is_equal, s + low_s, s + (low_s + low_k) * scale)
        whole = Sums(np.maximum(whole.m, other.m), s, np.where(is_equal, k + low_k, k))
    return whole


def along(axis: int, index: slice) -> tuple[slice, ...]:
    """Index one axis."""
    return (slice(None),) * axis + (index,)


# -- on a block -----------------------------------------------------------------------------------------------------


def _whole(name: str, x: Any, at: int, is_narrow: bool) -> Any:
    """The result for whole frames of one slice."""
    sums, exponents, p = _reduce(x, at, is_narrow)
    if name == "logsumexp":
        return _log_sum(*sums)
    return _log(exponents, sums) if name == "log_softmax" else _quotient(p, sums)


def _part(name: str, x: Any, m: Any, s: Any, k: Any, at: int, is_narrow: bool) -> Any:
    """The result for some classes, from the sums of their frames."""
    exponents = _less(x, m + m * 0, is_narrow)  # NaN unless m is finite
    if name == "log_softmax":
        return _log(exponents, Sums(m, s, k))
    return _quotient(exponents.exponentials(is_narrow), Sums(m, s, k))


def _sums(x: Any, at: int, is_narrow: bool) -> tuple[Any, Any, Any]:
    return _reduce(x, at, is_narrow)[0]


def _reduce(x: Any, at: int, is_narrow: bool) -> tuple[Sums, Exponents, Any]:
    """The sums of each frame, x - m, and its exponential."""
    add = plain_sum if is_narrow else twofold_sum
    if at == 0:
        m = np.maximum.reduce(x, axis=0, keepdims=True)
        exponents, p = _exponentials(x, m, is_narrow)
        is_largest = (exponents.d == 0).astype(p.dtype)
        k = plain_sum(is_largest, at)
        return Sums(m, add(np.subtract(p, is_largest, out=is_largest), at), k), exponents, p
    first = x.argmax(axis=1) + np.arange(0, x.size, x.shape[1])  # NaN, if there is one
    m = x.ravel()[first][:, np.newaxis]
    exponents, p = _exponentials(x, m, is_narrow)
    k = np.isfinite(m).astype(p.dtype)
    kept = p.ravel()[first]
    p.ravel()[first] = 0
    has_ties = (np.maximum.reduce(p, axis=1) == 1).any()
    if has_ties:
        is_largest = exponents.d == 0
        k = np.add.reduce(is_largest, axis=1, keepdims=True, dtype=p.dtype)
        np.copyto(p, 0, where=is_largest)
    s = add(p, at)
    if has_ties:
        np.copyto(p, 1, where=is_largest)
    p.ravel()[first] = kept
    return Sums(m, s, k), exponents, p


def _exponentials(x: Any, m: Any, is_narrow: bool) -> tuple[Exponents, Any]:
    """x - m and its exponential; NaN in a frame with NaN or +inf."""
    shift = m + m * 0
    shift[m == -np.inf] = 0
    exponents = _less(x, shift, is_narrow)
    return exponents, exponents.exponentials(is_narrow)


def _less(x: Any, shift: Any, is_narrow: bool) -> Exponents:
    """x - shift; overwrites x."""
    if is_narrow:
        return Exponents(np.subtract(x, shift, out=x), 0)
    d = x - shift  # and its rounding error in x: `two_sum` in less memory
    v = d - x
    x -= d - v
    x -= shift + v
    x[~np.isfinite(x)] = 0  # beyond the range, perhaps only in between
    return Exponents(d, x)


def _log(exponents: Exponents, sums: Sums) -> Any:
    d, e = exponents
    d -= np.log1p(sums.s + (sums.k - 1)) - e  # of -inf only, d and the logarithm are -inf
    return d


def _quotient(p: Any, sums: Sums) -> Any:
    p /= sums.s + sums.k
    return p


def _log_sum(m: Any, s: Any, k: Any) -> Any:
    return np.where(np.isfinite(m), m + np.log1p(s + (k - 1)), m)
