"""The gradient of log-softmax by slices of the classes, and of frames in parts: for the backend numpy.

Each slice is reduced to S, the sum of dy, with its rounding error; S * 2**-40, for sums that overflow; and the numbers
of y that are out of range and that are not -inf. These are added from the first slice to the last. A frame of one slice
is read once.
"""

from typing import Any, NamedTuple

import numpy as np

from lsm.backends._blocks import run_in_blocks, sum_unless_cancelled, sum_with_error, two_sum, twofold_sum
from lsm.backends._slices import SLICE_CLASSES, along, slice_sizes


class Sums(NamedTuple):
    """Reductions, for each frame or slice of it: arrays with length 1, or one number per slice, along the classes."""

    total: Any
    error: Any
    scaled: Any
    n_bad: Any
    n_finite: Any


def write(dy: Any, y: Any, axis: int, out: Any) -> None:
    """Write the gradient of whole frames."""
    if dy.shape[axis] <= SLICE_CLASSES:
        run_in_blocks(_whole, (dy, y), axis, (out,), out.itemsize < 8)
    else:
        dtype = np.longdouble if "g" in (dy.dtype.char, out.dtype.char) else np.float64
        write_part(dy, y, fold(reduce_slices(dy, y, axis, dtype), axis), axis, out)


def write_part(dy: Any, y: Any, whole: Sums, axis: int, out: Any) -> None:
    """Write the gradient for some classes, from the sums of their whole frames."""
    for i in range(0, dy.shape[axis], SLICE_CLASSES):
        at = along(axis, slice(i, i + SLICE_CLASSES))
        run_in_blocks(_part, (dy[at], y[at], *whole), axis, (out[at],), out.itemsize < 8)


def write_partials(dy: Any, y: Any, axis: int, out: Any) -> None:
    """Write the partials of all slices."""
    for i, numbers in enumerate(reduce_slices(dy, y, axis, np.float64)):
        out[..., i] = numbers
    out[..., len(Sums._fields)] = slice_sizes(dy, axis)


def reduce_slices(dy: Any, y: Any, axis: int, dtype: Any) -> Sums:
    """The sums of each slice."""
    n_slices = -(-dy.shape[axis] // SLICE_CLASSES)
    shape = (*dy.shape[:axis], n_slices, *dy.shape[axis + 1 :])
    made = Sums(*[np.empty(shape, dtype) for _ in Sums._fields])
    for i in range(n_slices):
        at = along(axis, slice(i * SLICE_CLASSES, (i + 1) * SLICE_CLASSES))
        targets = tuple([array[along(axis, slice(i, i + 1))] for array in made])
        run_in_blocks(_sums, (dy[at], y[at]), axis, targets, dy.itemsize < 8)
    return made


def fold(slices: Sums, axis: int) -> Sums:
    """The sums of whole frames, with length 1 along the axis; S and its error as one number."""
    parts = [Sums(*[array[along(axis, slice(i, i + 1))] for array in slices]) for i in range(slices.total.shape[axis])]
    total = error = scaled = rest = n_bad = n_finite = np.zeros_like(parts[0].total)
    for part in parts:
        total, of_total = two_sum(total, part.total)
        scaled, of_scaled = two_sum(scaled, part.scaled)
        error, rest = error + (of_total + part.error), rest + of_scaled
        n_bad, n_finite = n_bad + part.n_bad, n_finite + part.n_finite
    return Sums(total + error, 0 * n_bad, scaled + rest, n_bad, n_finite)


# -- on a block -----------------------------------------------------------------------------------------------------


def _whole(dy: Any, y: Any, at: int, is_narrow: bool) -> Any:
    """The gradient of whole frames of one slice."""
    top = np.maximum.reduce(y, axis=at, keepdims=True)  # NaN, if there is one
    total, _, scaled = _sum(dy, at, is_narrow)
    return _gradient(dy, y, total, scaled, (top < _end(is_narrow)) & (top > -np.inf), at, is_narrow)


def _part(
    dy: Any, y: Any, total: Any, error: Any, scaled: Any, n_bad: Any, n_finite: Any, at: int, is_narrow: bool
) -> Any:
    """The gradient for some classes, from the sums of their frames."""
    return _gradient(dy, y, total, scaled, (n_bad == 0) & (n_finite > 0), at, is_narrow)


def _sums(dy: Any, y: Any, at: int, is_narrow: bool) -> tuple[Any, ...]:
    is_bad = ~(y < _end(is_narrow))
    counts = [np.add.reduce(is_one, axis=at, keepdims=True, dtype=dy.dtype) for is_one in (is_bad, y != -np.inf)]
    return *_sum(dy, at, is_narrow), *counts


def _end(is_narrow: bool) -> int:
    """The y from which exp(y) is about to overflow the type of the result."""
    return 88 if is_narrow else 709


def _sum(dy: Any, at: int, is_narrow: bool) -> tuple[Any, Any, Any]:
    """S and its rounding error; and S * 2**-40, which may be finite where S overflows."""
    if is_narrow:
        s = sum_unless_cancelled(dy, at)
        return s, 0 * s, s * 2.0**-40
    s, error = sum_with_error(dy, at)
    scaled = s * dy.dtype.type(2) ** -40
    if not np.isfinite(s).all():
        scaled = np.where(np.isfinite(s), scaled, twofold_sum(dy * dy.dtype.type(2) ** -40, at))
    return s, error, scaled


def _gradient(dy: Any, y: Any, s: Any, scaled: Any, is_valid: Any, at: int, is_narrow: bool) -> Any:
    """dy - exp(y) * s, as (dy - s) - expm1(y) * s where y > -ln 2; NaN in frames that are not valid."""
    if not is_narrow:
        return _wide_gradient(dy, y, s, scaled, is_valid)
    s = np.where(is_valid & np.isfinite(s), s, np.nan)
    dx = np.exp(y)
    dx *= s
    np.subtract(dy, dx, out=dx)
    near = np.flatnonzero(y > -np.log(2))  # about one class of a confident frame
    if near.size:
        of_frame = s.ravel()[near % s.size if at == 0 else near // y.shape[1]]
        dx.ravel()[near] = (dy.ravel()[near] - of_frame) - np.expm1(y.ravel()[near]) * of_frame
    return dx


def _wide_gradient(dy: Any, y: Any, s: Any, scaled: Any, is_valid: Any) -> Any:
    is_small = np.abs(s) <= 1  # otherwise times h, so that nothing overflows on the way
    s = np.where(is_small, s, scaled)
    s = np.where(is_valid & np.isfinite(s), s, np.nan)
    h = np.where(is_small, dy.dtype.type(1), dy.dtype.type(2) ** -40)
    near = ((dy * h - s) - np.expm1(y) * s) / h
    is_low = y < -600  # use exp(y / 2) twice: exp(y) may be 0 where exp(y) * s is not; this doubles its error
    p = np.exp(np.where(is_low, y / 2, y))
    term = p * s * np.where(is_low, p, 1)
    far = np.where(np.abs(term) < 2.0**900, dy - term / h, (dy * h - term) / h)  # term / h may overflow
    return np.where(y > -np.log(2), near, far)
