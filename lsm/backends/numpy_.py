"""The NumPy backend: the reference implementation, as short as accuracy permits."""

from typing import Any

import numpy as np

from lsm._held import call_within
from lsm.backends.base import API_VERSION, Backend


class NumpyBackend(Backend):
    """Every dtype; uses about ten temporaries in float64 (for longdouble, in longdouble)."""

    name = "numpy"
    api_version = API_VERSION
    dtypes = ("float16", "bfloat16", "float32", "float64", "longdouble")
    same_bits = True

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """y = (x - m) - log1p(sum of exp(x - m) over all classes but one of the largest)."""
        call_within(np.errstate(all="ignore"), _log_softmax, x, axis, out)

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """dx = dy - exp(y) * s, as (dy - s) - expm1(y) * s where y > -ln 2."""
        call_within(np.errstate(all="ignore"), _log_softmax_backward, grad_output, output, axis, out)

    def softmax(self, x: Any, axis: int, out: Any) -> None:
        """p = exp(x - m) / (1 + s)."""
        call_within(np.errstate(all="ignore"), _softmax, x, axis, out)

    def softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """dx = p * (e - sum of p * e), with e = dy - dy[k] and k the largest class."""
        call_within(np.errstate(all="ignore"), _softmax_backward, grad_output, output, axis, out)

    def logsumexp(self, x: Any, axis: int, out: Any) -> None:
        """L = m + log1p(s)."""
        call_within(np.errstate(all="ignore"), _logsumexp, x, axis, out)


def _log_softmax(x: Any, axis: int, out: Any) -> None:
    _, d, e, _, s = _exponentials(_frames_last(x, axis, out.dtype))
    np.moveaxis(out, axis, -1)[...] = d - (np.log1p(s) - e)


def _softmax(x: Any, axis: int, out: Any) -> None:
    _, _, _, p, s = _exponentials(_frames_last(x, axis, out.dtype))
    np.moveaxis(out, axis, -1)[...] = p / (1 + s)


def _logsumexp(x: Any, axis: int, out: Any) -> None:
    m, _, _, _, s = _exponentials(_frames_last(x, axis, out.dtype))
    np.moveaxis(out, axis, -1)[...] = np.where(np.isfinite(m), m + np.log1p(s), m)


def _exponentials(wide: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The largest class m, x - m as two numbers, its exponential, and their sum but for one of the largest class.

    All but m are NaN in a frame with NaN or +inf, or of -inf only.
    """
    m = wide.max(axis=-1, keepdims=True)
    d, e = _two_sum(wide, -np.where(np.isfinite(m), m, np.nan))
    e[~np.isfinite(d)] = 0
    p = np.exp(d)
    p += p * e
    rest = p.copy()
    np.put_along_axis(rest, wide.argmax(axis=-1)[..., np.newaxis], 0, axis=-1)
    return m, d, e, p, _sum(rest)


def _log_softmax_backward(grad_output: Any, output: Any, axis: int, out: Any) -> None:
    dy = _frames_last(grad_output, axis, out.dtype)
    y = _frames_last(output, axis, out.dtype)
    h = np.where(np.abs(dy).max(axis=-1, keepdims=True) > 1, dy.dtype.type(2) ** -40, dy.dtype.type(1))
    s = _sum(dy * h)  # times h, so that it cannot overflow
    bad = ~np.isfinite(s) | ~(y.max(axis=-1, keepdims=True) < (88 if out.itemsize < 8 else 709))
    s[bad | (y == -np.inf).all(axis=-1, keepdims=True)] = np.nan
    near = ((dy * h - s) - np.expm1(y) * s) / h
    is_low = y < -600  # use exp(y / 2) twice: exp(y) may be 0 where exp(y) * s is not; this doubles its error
    p = np.exp(np.where(is_low, y / 2, y))
    term = p * s * np.where(is_low, p, 1)
    far = np.where(np.abs(term) < 2.0**900, dy - term / h, (dy * h - term) / h)  # term / h may overflow
    np.moveaxis(out, axis, -1)[...] = np.where(y > -np.log(2), near, far)


def _softmax_backward(grad_output: Any, output: Any, axis: int, out: Any) -> None:
    dy = _frames_last(grad_output, axis, out.dtype)
    p = _frames_last(output, axis, out.dtype)
    k = p.argmax(axis=-1)[..., np.newaxis]
    largest = np.abs(dy).max(axis=-1, keepdims=True)
    # times h, so that no difference overflows and no product is subnormal
    h = np.ldexp(dy.dtype.type(1), np.where(largest > 2.0**900, -40, np.where(largest < 2.0**-800, 200, 0)))
    dy *= h
    top = np.take_along_axis(dy, k, axis=-1)
    e, rest = _two_sum(dy, -top)
    s = _sum(p * e) + (p * rest).sum(axis=-1, keepdims=True)
    s += (s + np.take_along_axis(p, k, axis=-1) + top) * 0  # a frame with NaN or an infinity becomes NaN
    np.moveaxis(out, axis, -1)[...] = p * ((e - s) + rest) / h


def _frames_last(array: Any, axis: int, dtype: np.dtype[Any]) -> Any:
    """A copy in float64, or longdouble if either is, with the classes on the last axis."""
    is_long = np.dtype(np.longdouble) in (array.dtype, dtype)
    return np.array(np.moveaxis(array, axis, -1), dtype=np.longdouble if is_long else np.float64, order="C")


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """a + b and its rounding error (Knuth)."""
    t = a + b
    v = t - a
    return t, (a - (t - v)) + (b - v)


def _sum(terms: Any) -> Any:
    """The sum along the last axis, with keepdims: pairwise, with compensation for rounding errors.

    An error of 5 ulp was observed in numpy.sum of 63 float64 terms.
    """
    error = 0
    while terms.shape[-1] > 1:
        n = terms.shape[-1] // 2
        t, e = _two_sum(terms[..., :n], terms[..., n : 2 * n])
        error = error + e.sum(axis=-1, keepdims=True)
        terms = np.concatenate([t, terms[..., 2 * n :]], axis=-1)
    return terms + error


backend = NumpyBackend()
