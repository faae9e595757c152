"""The arithmetic of temperatures, for NumPy and CuPy arrays: the numbers that are divided, and their precision.

For results of at most 32 bits, float64 has digits to spare, and logits and gradients are divided directly. Otherwise,
differences are divided, as two numbers.
"""

from typing import Any

import numpy as np

from lsm._interop_base import ArrayLibrary
from lsm._keywords import namespace
from lsm._twofold import divide, rows, sum_twofold, wide_dtype
from lsm.backends._blocks import two_sum

LEAST_DIVISOR = 2.0**-800
_SLICE_CLASSES = 16384  # as in lsm's own backends for the CPU


def is_divisor(temperature: Any) -> Any:
    """Whether quotients of numbers of at most 32 bits are finite in float64, which has digits to spare for them."""
    return temperature > LEAST_DIVISOR


def divide_narrow(x: Any, temperature: Any) -> Any:
    """x / T in place, for x in float64 that had at most 32 bits; less its maximum where that would overflow.

    Elsewhere x is multiplied by 1 / T, for the bits of the kernels.
    """
    xp = namespace(x)
    is_tiny = ~is_divisor(temperature)
    if not isinstance(x, np.ndarray) or is_tiny.any():
        x -= xp.where(is_tiny, xp.amax(x, -1, keepdims=True), 0.0)
        x /= xp.where(is_tiny, temperature, 1.0)
        temperature = xp.where(is_tiny, 1.0, temperature)
    x *= 1 / temperature
    return x


def write_backward(
    method: Any, library: ArrayLibrary, is_narrow: bool, inputs: list[Any], temperature: Any, out: Any
) -> None:
    """The gradient divided by the temperature, in float64, so that it is rounded once, unless that is its dtype."""
    (dy, output), scale = inputs, temperature
    if is_narrow:
        dy, output = library.astype(dy, "float64"), library.astype(output, "float64")
        xp = namespace(dy)
        dx = xp.empty_like(dy)
        is_tiny = ~is_divisor(temperature)  # a quotient may be infinite where the gradient is not NaN
        before = xp.where(is_tiny, 1.0, temperature)
        method(dy * (1 / before), output, dy.ndim - 1, dx)
        if not isinstance(dx, np.ndarray) or is_tiny.any():
            dx /= xp.where(is_tiny, temperature, 1.0)
        out[...] = library.astype(dx, "float32")  # before 16 bits, as the kernels do
        return
    if dy.dtype.itemsize >= 8:
        # Times a power of two, so that a gradient below the range keeps its digits until T scales it back.
        xp = namespace(dy)
        room = 900 - xp.frexp(abs(dy).max(axis=-1, keepdims=True))[1]
        lift = xp.maximum(xp.minimum(-xp.frexp(temperature)[1], room), 0)
        dy, scale = xp.ldexp(dy, lift), xp.ldexp(temperature, lift)
    dx = namespace(dy).empty_like(dy)
    method(dy, output, dy.ndim - 1, dx)
    out[...] = dx / scale


def write_wide(name: str, x: Any, temperature: Any, out: Any) -> None:
    """log_softmax or softmax of x / T, in two numbers; in slices of the classes, like a frame in parts."""
    dtype = wide_dtype(x, out)
    temperature = rows(temperature, dtype)
    slices = [slice(i, i + _SLICE_CLASSES) for i in range(0, x.shape[-1], _SLICE_CLASSES)]
    whole = _fold([_reduce(rows(x[..., classes], dtype), temperature) for classes in slices], temperature)
    for classes in slices:
        target = out[..., classes]
        target[...] = _of_part(name, rows(x[..., classes], dtype), temperature, *whole).reshape(target.shape)


def _reduce(x: Any, temperature: Any) -> tuple[Any, Any, Any]:
    """The largest class of each row, the sum of exp((x - m) / T) over those below it, and the number that equal it."""
    xp = namespace(x)
    m = x.max(axis=-1, keepdims=True)
    d, rest = divided_differences(x, xp.where(m == -np.inf, 0.0, m + m * 0), temperature)
    p = xp.exp(d)
    p += p * rest
    is_largest = (x == m) & (m > -np.inf) & (m < np.inf)
    high, low = sum_twofold(xp.where(is_largest, 0.0, p))
    k = is_largest.sum(axis=-1, keepdims=True).astype(x.dtype)
    return m + temperature * 0, high + low, k  # NaN for a NaN temperature


def _fold(slices: list[tuple[Any, Any, Any]], temperature: Any) -> tuple[Any, Any, Any]:
    """The reductions of whole rows, from the first slice to the last."""
    m, s, k = slices[0]
    xp = namespace(m)
    for other_m, other_s, other_k in slices[1:]:
        top, is_higher = xp.maximum(m, other_m), other_m > m
        low_m, low_s, low_k = (xp.where(is_higher, a, b) for a, b in ((m, other_m), (s, other_s), (k, other_k)))
        high_s, high_k = xp.where(is_higher, other_s, s), xp.where(is_higher, other_k, k)
        d, rest = divided_differences(low_m, top + top * 0, temperature)
        scale = xp.exp(d)
        scale += scale * rest
        is_equal = low_m == top
        s = xp.where(is_equal, high_s + low_s, high_s + (low_s + low_k) * scale)
        m, k = top, xp.where(is_equal, high_k + low_k, high_k)
    return m, s, k


def _of_part(name: str, x: Any, temperature: Any, m: Any, s: Any, k: Any) -> Any:
    """log_softmax or softmax of some classes of each row, from the reductions of whole rows."""
    xp = namespace(x)
    d, rest = divided_differences(x, m + m * 0, temperature)  # NaN unless m is finite
    if name == "log_softmax":
        return d - (xp.log1p(s + (k - 1)) - rest)
    p = xp.exp(d)
    p += p * rest
    return p / (s + k)


class WideBackend:
    """The methods for frames in parts, for x / T, as in `write_wide`.

    Parameters
    ----------
    temperature : float, or array of float64
        T, with length 1 along the axis of the classes.
    """

    def __init__(self, temperature: Any) -> None:
        self._temperature = temperature

    def partials(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.partials`; for one slice."""
        x = np.moveaxis(x, axis, -1)
        target = np.moveaxis(out, axis, -2)
        m, s, k = _reduce(rows(x, np.float64), self._rows(x.shape, axis))
        for i, numbers in enumerate((m, s, k, np.full(m.shape, x.shape[-1]))):
            target[..., i] = numbers.reshape(target.shape[:-1])

    def log_softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_of_part`."""
        self._write("log_softmax", x, partials, axis, out)

    def softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.softmax_of_part`."""
        self._write("softmax", x, partials, axis, out)

    def _write(self, name: str, x: Any, partials: Any, axis: int, out: Any) -> None:
        x, slices, target = np.moveaxis(x, axis, -1), np.moveaxis(partials, axis, 0), np.moveaxis(out, axis, -1)
        temperature = self._rows(x.shape, axis)
        whole = _fold([tuple(numbers.reshape(-1, 4)[:, :3].T[..., np.newaxis]) for numbers in slices], temperature)
        target[...] = _of_part(name, rows(x, np.float64), temperature, *whole).reshape(target.shape)

    def _rows(self, shape: tuple[int, ...], axis: int) -> Any:
        """One temperature for each row."""
        temperature = np.asarray(self._temperature)
        if temperature.ndim:
            temperature = np.moveaxis(temperature, axis, -1)
        return rows(np.broadcast_to(temperature, (*shape[:-1], 1)), np.float64)


def divided_differences(x: Any, m: Any, temperature: Any) -> tuple[Any, Any]:
    """(x - m) / T as two numbers, even where x - m overflows. m: the maxima, NaN unless they are finite."""
    xp = namespace(x)
    d, rest = two_sum(x, -m)
    factor, exponent = xp.frexp(xp.asarray(temperature, x.dtype))
    is_beyond = ~xp.isfinite(rest) & xp.isfinite(x)  # x - m overflows, or a step of it
    if not isinstance(x, np.ndarray) or is_beyond.any():  # on a GPU, any() would have to wait
        quarter = xp.where(is_beyond, x.dtype.type(0.25), x.dtype.type(1))
        d, rest = two_sum(x * quarter, -m * quarter)
        exponent = exponent - xp.where(is_beyond, 2, 0).astype(exponent.dtype)
    rest[~xp.isfinite(d)] = 0
    # The power of two first: then numbers below the range are far too small to matter.
    return divide(xp.ldexp(d, -exponent), xp.ldexp(rest, -exponent), factor)
