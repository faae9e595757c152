"""Exact values, in arithmetic wider than that of the result, and the distance of a result from them.

longdouble is used where it has at least 8 bits more than the dtype of the result: on x86, for float64 and narrower.
Otherwise, the standard library's decimal is used, with 60 digits; it is slow.
"""

import decimal
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from lsm._check import dtype_name

Array = np.ndarray[Any, np.dtype[Any]]

LD = np.longdouble
_SPARE_BITS = 8  # so that the oracle's own error is below 0.01 ulp of the result

_PRECISION = {"float16": (11, -24), "bfloat16": (8, -133), "float32": (24, -149), "float64": (53, -1074)}
_PRECISION["longdouble"] = (int(np.finfo(LD).nmant) + 1, int(np.finfo(LD).minexp) - int(np.finfo(LD).nmant))

# Values from these on round to infinity.
_LARGEST = {"float16": 65520.0, "bfloat16": 3.396e38, "float32": 3.40282356779733661637539395458142568447e38}


class Exact(NamedTuple):
    """Exact values as the sum of two longdoubles, and the numbers `at` whose ulp is the unit of the errors."""

    value: Array
    rest: Array
    at: Array

    def part(self, index: Any) -> "Exact":
        """The exact values of some elements."""
        return Exact(self.value[index], self.rest[index], self.at[index])

    def ulps(self, result: Array) -> Array:
        """The error of each element of a result, in ulps of its dtype."""
        wide = result.astype(LD)
        with np.errstate(all="ignore"):
            limit = LD(_LARGEST.get(dtype_name(result.dtype), np.inf))
            value = np.where(np.abs(self.value) >= limit, np.copysign(LD(np.inf), self.value), self.value)
            error: Array = np.abs((wide - value) - self.rest) / spacing(self.at, result.dtype)
        error[(wide == value) & ((self.rest == 0) | np.isinf(value))] = 0  # an infinity has no distance to itself
        return error


def n_digits(dtype: np.dtype[Any]) -> int:
    """The number of binary digits of this dtype."""
    return _PRECISION[dtype_name(dtype)][0]


def is_quick(dtype: np.dtype[Any]) -> bool:
    """Whether longdouble is wide enough to check a result of this dtype."""
    return n_digits(dtype) + _SPARE_BITS <= _PRECISION["longdouble"][0]


def exact_log_softmax(x: Array, dtype: np.dtype[Any], axis: int = -1) -> Exact:
    """The exact log-softmax of finite values and -inf, to check a result of `dtype`."""
    return _exact(_log_softmax_frame, (x,), dtype, axis, log_softmax(x, axis))


def exact_backward(dy: Array, y: Array, dtype: np.dtype[Any] | None = None, axis: int = -1) -> Exact:
    """The exact gradient; errors are in ulps of the largest of |dx|, |dy| and |exp(y) * S|."""
    return _exact(_backward_frame, (dy, y), dtype or dy.dtype, axis, *backward(dy, y, axis))


def exact_gradient(dy: Array, x: Array, axis: int = -1) -> Exact:
    """The exact gradient as a function of x; errors as in `exact_backward`, or in ulps of |exp(y) * S * y|."""
    y = log_softmax(x, axis)
    value, at = backward(dy, y, axis)
    with np.errstate(all="ignore"):
        at = np.fmax(at, np.exp(y) * _total(dy, axis) * np.abs(y))  # masked classes (0 * inf) have no such term
    return _exact(_gradient_frame, (dy, x), dy.dtype, axis, value, at)


def exact_softmax(x: Array, dtype: np.dtype[Any], axis: int = -1) -> Exact:
    """The exact softmax of finite values and -inf, to check a result of `dtype`."""
    return _exact(_softmax_frame, (x,), dtype, axis, softmax(x, axis))


def exact_softmax_backward(dy: Array, p: Array, dtype: np.dtype[Any] | None = None, axis: int = -1) -> Exact:
    """The exact gradient of softmax; errors are in ulps of the largest of |dx|, p * |e| and p * |E|."""
    return _exact(_softmax_backward_frame, (dy, p), dtype or dy.dtype, axis, *softmax_backward(dy, p, axis))


def exact_logsumexp(x: Array, dtype: np.dtype[Any], axis: int = -1) -> Exact:
    """The exact logsumexp, with length 1 along the axis, of finite values and -inf, to check a result of `dtype`.

    Errors are in ulps of the result, with an absolute error of 2^-50 |m| allowed, where m is the largest class; for
    float64 and longdouble, in ulps of the larger of the result and m, which cancels near 0.
    """
    value = logsumexp(x, axis)
    m = np.abs(np.asarray(x).max(axis=axis, keepdims=True).astype(LD))
    at = np.maximum(np.abs(value), m * min(1.0, 2.0 ** (n_digits(dtype) - 50)))
    return _exact(_logsumexp_frame, (x,), dtype, axis, value, at)


class Reference(NamedTuple):
    """The required results of an operation. Those of a reduction have length 1 along the axis.

    Attributes
    ----------
    exact : callable
        Computes the exact result from the inputs and the keywords `dtype` (of the result to check) and `axis`.
    masked : callable
        Computes from the inputs the exact result of a map where a class is masked: a number, or an array of the inputs'
        shape.
    spoiled : callable
        From NaN, inf or -inf: the number that the whole result of a frame must be if an input has a NaN or +inf in it,
        or if its logits are all -inf.
    """

    exact: Callable[..., Exact]
    masked: Callable[..., Any] = lambda *_: np.nan
    spoiled: Callable[[float], float] = lambda _: np.nan


REFERENCES = {
    "log_softmax": Reference(exact_log_softmax, masked=lambda x: -np.inf),
    "log_softmax_backward": Reference(exact_backward, masked=lambda dy, y: dy),
    "softmax": Reference(exact_softmax, masked=lambda x: 0),
    "softmax_backward": Reference(
        exact_softmax_backward, masked=lambda dy, p: 0, spoiled=lambda bad: 0 if bad == -np.inf else np.nan
    ),
    "logsumexp": Reference(exact_logsumexp, spoiled=lambda bad: bad),
}


def log_softmax(x: Array, axis: int = -1) -> Array:
    """The log-softmax in longdouble."""
    x = np.moveaxis(np.asarray(x).astype(LD), axis, -1)
    with np.errstate(all="ignore"):
        m = x.max(axis=-1, keepdims=True)
        d = x - m
        p = np.exp(d)
        np.put_along_axis(p, x.argmax(axis=-1)[..., None], 0, axis=-1)
        return np.moveaxis(d - np.log1p(p.sum(axis=-1, keepdims=True)), -1, axis)


def softmax(x: Array, axis: int = -1) -> Array:
    """The softmax in longdouble."""
    _, p = _exponentials(x, axis)
    return np.asarray(p / p.sum(axis=axis, keepdims=True))


def logsumexp(x: Array, axis: int = -1) -> Array:
    """The logsumexp in longdouble, with length 1 along the axis."""
    m, p = _exponentials(x, axis)
    with np.errstate(all="ignore"):
        np.put_along_axis(p, np.expand_dims(np.asarray(x).argmax(axis=axis), axis), 0, axis)
        return np.asarray(m + np.log1p(p.sum(axis=axis, keepdims=True)))


def softmax_backward(dy: Array, p: Array, axis: int = -1) -> tuple[Array, Array]:
    """The gradient of softmax in longdouble, and the largest of |dx|, p * |e| and p * |E| of each element.

    The definition, p * (dy - S) with the largest p in S as one minus the others, needs more digits than longdouble has.
    With e = dy - dy[k] and E = sum of p * e, S is dy[k] + E, and p * (e - E) needs no more digits. For float64 and
    longdouble, the unit uses sum(p * |e|) for |E|.
    """
    has_wider = np.asarray(dy).dtype.itemsize < 8
    dy, p = (np.asarray(a).astype(LD) for a in (dy, p))
    with np.errstate(all="ignore"):
        k = np.expand_dims(p.argmax(axis=axis), axis)
        e = dy - np.take_along_axis(dy, k, axis=axis)
        s = (p * e).sum(axis=axis, keepdims=True)
        total = np.abs(s) if has_wider else (p * np.abs(e)).sum(axis=axis, keepdims=True)
        dx = p * (e - s)
        return dx, np.maximum(np.abs(dx), p * np.maximum(np.abs(e), total))


def _exponentials(x: Array, axis: int) -> tuple[Array, Array]:
    """The largest class m, and exp(x - m), with the rounding error of the difference corrected."""
    x = np.asarray(x).astype(LD)
    with np.errstate(all="ignore"):
        m = x.max(axis=axis, keepdims=True)
        d = x - m
        v = d - x
        e = np.where(np.isfinite(d), (x - (d - v)) - (m + v), 0)
        p = np.exp(d)
        return m, p + p * e


def backward(dy: Array, y: Array, axis: int = -1) -> tuple[Array, Array]:
    """The gradient in longdouble, and the largest of |dx|, |dy| and |exp(y) * S| of each element.

    For float64 and longdouble, sum(|dy|) replaces S: there is no wider type for their sum.
    """
    total = _total(dy, axis)
    dy, y = (np.asarray(a).astype(LD) for a in (dy, y))
    with np.errstate(all="ignore"):
        return backward_by_sums(dy, y, dy.sum(axis=axis, keepdims=True), total)


def backward_by_sums(dy: Array, y: Array, s: Any, total: Any) -> tuple[Array, Array]:
    """`backward` of longdoubles with known S and `total`, which replaces |S|: they may be only part of a frame."""
    with np.errstate(all="ignore"):
        dx = np.where(y > LD(-0.5), (dy - s) - np.expm1(y) * s, dy - np.exp(y) * s)
        return dx, np.maximum(np.maximum(np.abs(dx), np.abs(dy)), np.exp(y) * total)


def _total(dy: Array, axis: int) -> Array:
    """|S|, or sum(|dy|) where there is no wider type for the sum."""
    wide = np.asarray(dy).astype(LD)
    with np.errstate(all="ignore"):
        has_wider = np.asarray(dy).dtype.itemsize < 8
        total: Array = (wide if has_wider else np.abs(wide)).sum(axis=axis, keepdims=True)
        return np.abs(total)


def spacing(value: Any, dtype: Any) -> Array:
    """One ulp of `dtype` at |value|, in longdouble."""
    digits, smallest = _PRECISION[dtype_name(np.dtype(dtype))]
    value = np.abs(np.asarray(value).astype(LD))
    exponent = np.where(value == 0, smallest, np.frexp(value)[1] - digits)
    return np.asarray(np.ldexp(LD(1), np.maximum(exponent, smallest)))


def ulps(result: Array, exact: Array, at: Array | None = None) -> float:
    """The largest error of `result`, in ulps of its dtype at `exact` (or at `at`); equal infinities have error 0."""
    value = np.asarray(exact).astype(LD)
    errors = Exact(value, np.zeros_like(value), value if at is None else at).ulps(np.asarray(result))
    return float(errors.max(initial=0))


# -- by decimal -----------------------------------------------------------------------------------------------------

_CONTEXT = decimal.Context(prec=60, Emin=-6000, Emax=6000, traps=[])  # longdouble ranges from about 1e-4950 to 1e4932


def _exact(
    frame: Any, inputs: tuple[Array, ...], dtype: np.dtype[Any], axis: int, value: Array, at: Array | None = None
) -> Exact:
    """`value`, a result in longdouble, if that is wide enough for `dtype`; else the result of `frame` in decimal."""
    rest = np.zeros_like(value)
    if not is_quick(dtype):
        value, rest = _by_decimal(frame, inputs, axis)
    return Exact(value, rest, value if at is None else at)


def _by_decimal(frame: Any, inputs: tuple[Array, ...], axis: int) -> tuple[Array, Array]:
    """Apply a function of one frame to all of them, and split its results into two longdoubles."""
    lasts = [np.moveaxis(a, axis, -1).astype(LD) for a in inputs]
    parts = []
    with decimal.localcontext(_CONTEXT):
        for i in np.ndindex(lasts[0].shape[:-1]):
            parts.append([_split(v) for v in frame(*([_decimal(v) for v in a[i]] for a in lasts))])
    both = np.array(parts, LD).reshape(*lasts[0].shape[:-1], -1, 2)
    return np.moveaxis(both[..., 0], -1, axis), np.moveaxis(both[..., 1], -1, axis)


def _log_softmax_frame(x: list[decimal.Decimal]) -> Iterable[decimal.Decimal]:
    m = max(x)
    k = x.index(m)
    log = _log1p(sum(((v - m).exp() for i, v in enumerate(x) if i != k), decimal.Decimal(0)))
    return ((v - m) - log for v in x)


def _softmax_frame(x: list[decimal.Decimal]) -> Iterable[decimal.Decimal]:
    m = max(x)
    p = [(v - m).exp() for v in x]
    total = sum(p, decimal.Decimal(0))
    return (v / total for v in p)


def _backward_frame(dy: list[decimal.Decimal], y: list[decimal.Decimal]) -> Iterable[decimal.Decimal]:
    s = sum(dy, decimal.Decimal(0))
    return (g - v.exp() * s for g, v in zip(dy, y, strict=True))


def _logsumexp_frame(x: list[decimal.Decimal]) -> Iterable[decimal.Decimal]:
    m = max(x)
    k = x.index(m)
    return [m + _log1p(sum(((v - m).exp() for i, v in enumerate(x) if i != k), decimal.Decimal(0)))]


def _softmax_backward_frame(dy: list[decimal.Decimal], p: list[decimal.Decimal]) -> Iterable[decimal.Decimal]:
    k = p.index(max(p))
    # Both one minus the others and dy[k] - S need 60 digits.
    digits = 2 * _CONTEXT.prec - min((v.adjusted() for v in p if v), default=0)
    with decimal.localcontext(_CONTEXT) as context:
        context.prec = digits
        rest = 1 - sum((v for i, v in enumerate(p) if i != k), decimal.Decimal(0))
        s = sum((v * g for i, (v, g) in enumerate(zip(p, dy, strict=True)) if i != k), rest * dy[k])
        return [v * (g - s) for v, g in zip(p, dy, strict=True)]


def _gradient_frame(dy: list[decimal.Decimal], x: list[decimal.Decimal]) -> Iterable[decimal.Decimal]:
    return _backward_frame(dy, list(_log_softmax_frame(x)))


def _log1p(s: decimal.Decimal) -> decimal.Decimal:
    return s - s * s / 2 if s < decimal.Decimal("1e-25") else (1 + s).ln()


def _decimal(value: Any) -> decimal.Decimal:
    """A longdouble of any width, to the digits of the context."""
    if not np.isfinite(value):
        return decimal.Decimal(float(value))
    n, d = value.as_integer_ratio()
    return decimal.Decimal(n) / decimal.Decimal(d)


def _split(number: decimal.Decimal) -> tuple[Any, Any]:
    """A number as the sum of two longdoubles."""
    if not number.is_finite():
        return LD(float(number)), LD(0)
    value = nearest(*number.as_integer_ratio())
    return value, nearest(*(number - _decimal(value)).as_integer_ratio()) if np.isfinite(value) else LD(0)


# -- to longdouble of any width -------------------------------------------------------------------------------------


def nearest(n: int, d: int) -> Any:
    """The longdouble nearest to n / d, with d > 0."""
    mantissa, exponent = rounded_ratio(n, d, *_PRECISION["longdouble"])
    with np.errstate(all="ignore"):
        return np.ldexp(assembled(mantissa, LD), exponent)


def rounded_ratio(n: int, d: int, digits: int, smallest: int) -> tuple[int, int]:
    """n / d as mantissa * 2**exponent, the mantissa of at most `digits` bits, the exponent at least `smallest`."""
    exponent = max(abs(n).bit_length() - d.bit_length() - digits, smallest)
    while True:
        a, b = (n << -exponent, d) if exponent < 0 else (n, d << exponent)
        mantissa, rest = divmod(a, b)
        mantissa += 2 * rest > b or (2 * rest == b and mantissa % 2)  # half to even
        if abs(mantissa) <= 2**digits:  # 2**digits itself has one significant bit
            return mantissa, exponent
        exponent += 1


def assembled(integer: int, number: Any) -> Any:
    """An integer as a `number`, exactly if it fits: 32 bits at a time, since a float has 53 and longdouble more."""
    value = number(0.0)
    for shift in range(abs(integer).bit_length() // 32 * 32, -1, -32):
        value = value * number(2.0**32) + number(float(abs(integer) >> shift & 0xFFFFFFFF))
    return -value if integer < 0 else value
