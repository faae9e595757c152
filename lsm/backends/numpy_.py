"""The NumPy backend: the reference implementation, as short as accuracy and a decent speed permit.

It computes in float64 and rounds once. For a float64 result that alone would cost digits: differences are then two
numbers, and sums are compensated. The same holds for longdouble. What is computed at once is a block of frames, in two
dimensions; `at` is the axis of its classes, 0 or -1, and `is_narrow` says that the result has at most 32 bits.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from lsm._arithmetic import compute
from lsm.backends.base import API_VERSION, Backend

# Arrays of so many float64 numbers, of which there are about four, stay in a level-2 cache, and are small enough for
# the C library to keep their memory: with twice as many, calls of 48,000 elements took twice as long.
BLOCK_ELEMENTS = 2**14
# Shorter frames are the columns of a block, others its rows, so that no inner loop of NumPy is short. The number of
# classes alone decides, because the order in which numpy.add.reduce adds depends on it.
ROW_CLASSES = 32


class NumpyBackend(Backend):
    """Every dtype; uses about ten temporaries of `BLOCK_ELEMENTS`, or of one frame if that is longer."""

    name = "numpy"
    api_version = API_VERSION
    dtypes = ("float16", "bfloat16", "float32", "float64", "longdouble")
    same_bits = True

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """y = (x - m) - log1p(s), with s the sum of exp(x - m) over all classes but one of the largest."""
        _run(_log_softmax, (x,), axis, out)

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """dx = dy - exp(y) * s, as (dy - s) - expm1(y) * s where y > -ln 2."""
        narrow, wide = _log_softmax_backward, _log_softmax_backward_wide
        _run(narrow if out.itemsize < 8 else wide, (grad_output, output), axis, out)

    def softmax(self, x: Any, axis: int, out: Any) -> None:
        """p = exp(x - m) / (1 + s)."""
        _run(_softmax, (x,), axis, out)

    def softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """dx = p * (e - sum of p * e), with e = dy - dy[k] and k the largest class."""
        _run(_softmax_backward, (grad_output, output), axis, out)

    def logsumexp(self, x: Any, axis: int, out: Any) -> None:
        """L = m + log1p(s)."""
        _run(_logsumexp, (x,), axis, out)

    @property
    def fast_functions(self) -> dict[str, Any]:
        """See `CythonBackend.fast_functions`."""
        maps = ("log_softmax", "log_softmax_backward", "softmax", "softmax_backward")
        return {name: partial(_fast, getattr(self, name), False) for name in maps} | {
            "logsumexp": partial(_fast, self.logsumexp, True)
        }


def _fast(method: Any, is_reduction: bool, *arguments: Any) -> Any:
    """The result for arrays that need no validation, one axis, no mask and, of maps, a plain `out`; else None."""
    *inputs, axis, out = arguments
    x = inputs[0]
    for array in inputs if out is None else (*inputs, out):
        if type(array) is not np.ndarray or array.shape != x.shape or array.dtype != x.dtype or not array.flags.aligned:
            return None
    axis = 0 if axis is None and x.ndim == 1 else axis
    if type(axis) is not int or not -x.ndim <= axis < x.ndim or not x.size:
        return None
    if out is not None:
        is_apart = all(array is out or not np.may_share_memory(array, out) for array in inputs)
        if is_reduction or not (out.flags.carray and is_apart):
            return None
    axis %= x.ndim
    if is_reduction:
        y = np.empty((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
        method(*inputs, axis, y)
        return y.squeeze(axis)[()]
    y = np.empty_like(x) if out is None else out
    method(*inputs, axis, y)
    return y


# -- blocks ---------------------------------------------------------------------------------------------------------


def _run(function: Callable[..., Any], inputs: tuple[Any, ...], axis: int, out: Any) -> None:
    compute(_run_in_blocks, function, inputs, axis, out)


def _run_in_blocks(function: Callable[..., Any], inputs: tuple[Any, ...], axis: int, out: Any) -> None:
    """Call a function of (*inputs, at, is_narrow) on copies of the blocks, which it may change."""
    n_classes = inputs[0].shape[axis]
    at = 0 if n_classes < ROW_CLASSES else -1
    arrays = [array.swapaxes(axis, at) for array in (*inputs, out)]
    is_long = any(array.dtype.char == "g" for array in arrays)
    dtype = np.longdouble if is_long else np.float64
    shape = (n_classes, -1) if at == 0 else (-1, n_classes)
    for block in _blocks(arrays[0].shape, at):
        *given, target = [array[block] for array in arrays]
        wide = [np.array(array, dtype=dtype, order="C").reshape(shape) for array in given]
        target[...] = function(*wide, at, out.itemsize < 8).reshape(target.shape)


def _blocks(shape: tuple[int, ...], at: int) -> Iterable[Any]:
    """Index the blocks: the inner axes of the frames as a whole while they fit, one in parts, the outer ones by one."""
    frames = shape[1:] if at == 0 else shape[:-1]
    room = max(1, BLOCK_ELEMENTS // shape[at])
    if math.prod(frames) <= room:
        return [()]
    parts: list[list[slice]] = []
    for n in reversed(frames):
        step = min(n, room)
        room = max(1, room // step)
        parts.append([slice(i, i + step) for i in range(0, n, step)])
    return product([slice(None)], *reversed(parts)) if at == 0 else product(*reversed(parts))


# -- operations on a block ------------------------------------------------------------------------------------------


def _log_softmax(x: Any, at: int, is_narrow: bool) -> Any:
    _, d, e, _, s = _exponentials(x, at, is_narrow)
    d -= np.log1p(s) - e
    return d


def _softmax(x: Any, at: int, is_narrow: bool) -> Any:
    _, _, _, p, s = _exponentials(x, at, is_narrow)
    p /= 1 + s
    return p


def _logsumexp(x: Any, at: int, is_narrow: bool) -> Any:
    m, _, _, _, s = _exponentials(x, at, is_narrow)
    return np.where(np.isfinite(m), m + np.log1p(s), m)


def _exponentials(x: Any, at: int, is_narrow: bool) -> tuple[Any, Any, Any, Any, Any]:
    """The largest class m, x - m as two numbers, its exponential, and their sum but for one of the largest class.

    All but m are NaN in a frame with NaN or +inf, or of -inf only.
    """
    if at == 0:
        m = np.maximum.reduce(x, axis=0, keepdims=True)
    else:
        k = _largest(x, at)
        m = x.ravel()[k][:, np.newaxis]
    shift = m + m * 0  # NaN unless m is finite
    e: Any = 0
    if is_narrow:
        d = np.subtract(x, shift, out=x)
        p = np.exp(d)
    else:
        d, e = _two_sum(x, -shift)
        e[~np.isfinite(e)] = 0  # beyond the range, if only in between
        p = np.exp(d)
        p += p * e
    add = _plain_sum if is_narrow else _sum
    if at == 0:  # where argmax is slow
        largest = np.floor(p)  # 1 for the largest classes, else 0
        n_largest = _plain_sum(largest, at)
        return m, d, e, p, add(np.subtract(p, largest, out=largest), at) + (n_largest - 1)
    one = p.ravel()[k]
    p.ravel()[k] = 0
    s = add(p, at)
    p.ravel()[k] = one
    return m, d, e, p, s


def _largest(x: Any, at: int) -> Any:
    """The places of the largest class of each frame, of several the first, in the order of the memory."""
    k = x.argmax(axis=at)
    n = k.size
    return k * n + np.arange(n) if at == 0 else k + np.arange(0, x.size, x.shape[1])


def _log_softmax_backward(dy: Any, y: Any, at: int, is_narrow: bool) -> Any:
    s = _checked_sum(_sum_unless_cancelled(dy, at), y, at, 88)
    dx = np.exp(y)
    dx *= s
    np.subtract(dy, dx, out=dx)
    near = np.flatnonzero(y > -np.log(2))  # about one class of a confident frame
    if near.size:
        of_frame = s.ravel()[near % s.size if at == 0 else near // y.shape[1]]
        dx.ravel()[near] = (dy.ravel()[near] - of_frame) - np.expm1(y.ravel()[near]) * of_frame
    return dx


def _log_softmax_backward_wide(dy: Any, y: Any, at: int, is_narrow: bool) -> Any:
    h = np.where(np.abs(dy).max(axis=at, keepdims=True) > 1, dy.dtype.type(2) ** -40, dy.dtype.type(1))
    s = _checked_sum(_sum(dy * h, at), y, at, 709)  # times h, so that it cannot overflow
    near = ((dy * h - s) - np.expm1(y) * s) / h
    is_low = y < -600  # use exp(y / 2) twice: exp(y) may be 0 where exp(y) * s is not; this doubles its error
    p = np.exp(np.where(is_low, y / 2, y))
    term = p * s * np.where(is_low, p, 1)
    far = np.where(np.abs(term) < 2.0**900, dy - term / h, (dy * h - term) / h)  # term / h may overflow
    return np.where(y > -np.log(2), near, far)


def _checked_sum(s: Any, y: Any, at: int, end: float) -> Any:
    """The sum, but NaN if it is not finite, or y is -inf only, NaN somewhere, or so large that exp(y) may overflow."""
    top = np.maximum.reduce(y, axis=0, keepdims=True) if at == 0 else y.ravel()[_largest(y, at)][:, np.newaxis]
    s[~(np.isfinite(s) & (top < end) & (top > -np.inf))] = np.nan
    return s


def _softmax_backward(dy: Any, p: Any, at: int, is_narrow: bool) -> Any:
    k = _largest(p, at)
    shape = (1, -1) if at == 0 else (-1, 1)
    top, p_top = dy.ravel()[k].reshape(shape), p.ravel()[k].reshape(shape)
    bad = (top + p_top) * 0  # NaN in a frame with NaN or an infinity, if the sum is not
    if is_narrow:
        e = np.subtract(dy, top, out=dy)
        s = _sum_unless_cancelled(e * p, at)
        e -= s + (s * 0 + bad)
        e *= p
        return e
    # times h, so that no difference overflows and no product is subnormal
    largest = np.abs(dy).max(axis=at, keepdims=True)
    h = np.ldexp(dy.dtype.type(1), np.where(largest > 2.0**900, -40, np.where(largest < 2.0**-800, 200, 0)))
    e, rest = _two_sum(dy * h, -top * h)
    s = _sum(p * e, at) + _plain_sum(p * rest, at)
    return p * ((e - (s + (s * 0 + bad))) + rest) / h


# -- sums -----------------------------------------------------------------------------------------------------------


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """a + b and its rounding error (Knuth)."""
    t = a + b
    v = t - a
    return t, (a - (t - v)) + (b - v)


def _plain_sum(terms: Any, at: int) -> Any:
    """The sum, with the axis; always in the same order for a number of classes."""
    if at == 0 and terms.shape[1] == 1:  # numpy.add.reduce would take the column for a row
        terms = np.repeat(terms, 2, axis=1)
        return np.add.reduce(terms, axis=0, keepdims=True)[:, :1]
    return np.add.reduce(terms, axis=at, keepdims=True)


def _sum_unless_cancelled(terms: Any, at: int) -> Any:
    """The sum, with the axis, of which float32 may use all digits: as `_sum` where the terms cancel."""
    s = _plain_sum(terms, at)
    is_cancelled = np.abs(s) < 2.0**-20 * _plain_sum(np.abs(terms), at)
    if is_cancelled.any():
        np.copyto(s, _sum(terms, at), where=is_cancelled)
    return s


def _sum(terms: Any, at: int) -> Any:
    """The sum, with the axis, as if computed in twice the digits.

    The high parts of the terms are multiples of one number, so that they add up exactly (Rump, Ogita & Oishi 2008,
    doi:10.1137/050645671, ExtractVector).
    """
    largest = np.maximum.reduce(np.abs(terms), axis=at, keepdims=True)
    exponent = np.frexp(largest)[1] + (terms.shape[at].bit_length() + 1)
    grid = np.ldexp(terms.dtype.type(1), exponent)
    high = (terms + grid) - grid
    return _plain_sum(high, at) + _plain_sum(terms - high, at)


backend = NumpyBackend()
