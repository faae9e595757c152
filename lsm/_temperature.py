"""The arithmetic of temperatures, for NumPy and CuPy arrays: what is divided, and in how many digits.

For results of at most 32 bits, float64 has digits to spare, and logits and gradients are divided as they are. Otherwise
differences are divided, as two numbers.
"""

from typing import Any

import numpy as np

from lsm._interop_base import ArrayLibrary
from lsm._keywords import namespace
from lsm._twofold import divide, rows, sum_twofold, two_sum, wide_dtype

_LEAST_DIVISOR = 2.0**-800


def is_divisor(temperature: Any) -> Any:
    """Whether quotients of numbers of at most 32 bits are finite in float64, which has digits to spare for them."""
    return temperature > _LEAST_DIVISOR


def divide_narrow(x: Any, temperature: Any) -> Any:
    """x / T in place, for x in float64 that had at most 32 bits; less its maximum where that would overflow."""
    xp = namespace(x)
    is_tiny = ~is_divisor(temperature)
    if not isinstance(x, np.ndarray) or is_tiny.any():
        x -= xp.where(is_tiny, xp.amax(x, -1, keepdims=True), 0.0)
    x /= temperature
    return x


def write_backward(
    method: Any, library: ArrayLibrary, is_narrow: bool, inputs: list[Any], temperature: Any, out: Any
) -> None:
    """The gradient over the temperature; in float64, so that it is rounded once, unless that is its dtype."""
    (dy, output), scale = inputs, temperature
    if is_narrow:
        dy, output = library.astype(dy, "float64"), library.astype(output, "float64")
        xp = namespace(dy)
        dx = xp.empty_like(dy)
        is_tiny = ~is_divisor(temperature)  # a quotient may be infinite, where the gradient is not NaN
        before = xp.where(is_tiny, 1.0, temperature)
        method(dy / before, output, dy.ndim - 1, dx)
        if not isinstance(dx, np.ndarray) or is_tiny.any():
            dx /= xp.where(is_tiny, temperature, 1.0)
        out[...] = library.astype(dx, "float32")  # before 16 bits, as the kernels do
        return
    if dy.dtype.itemsize >= 8:
        # Times a power of two, so that a gradient below the range, which the temperature brings back, has digits.
        xp = namespace(dy)
        room = 900 - xp.frexp(abs(dy).max(axis=-1, keepdims=True))[1]
        lift = xp.maximum(xp.minimum(-xp.frexp(temperature)[1], room), 0)
        dy, scale = xp.ldexp(dy, lift), xp.ldexp(temperature, lift)
    dx = namespace(dy).empty_like(dy)
    method(dy, output, dy.ndim - 1, dx)
    out[...] = dx / scale


def write_wide(name: str, x: Any, temperature: Any, out: Any) -> None:
    """log_softmax or softmax of x / T, in two numbers."""
    xp, dtype = namespace(x), wide_dtype(x, out)
    x = rows(x, dtype)
    m = x.max(axis=-1, keepdims=True)
    m = m + m * 0  # NaN unless it is finite
    d, rest = divided_differences(x, m, rows(temperature, dtype))
    p = xp.exp(d)
    p += p * rest
    largest = xp.floor(p)  # 1 for the largest classes, else 0
    high, low = sum_twofold(p - largest)
    s = (largest.sum(axis=-1, keepdims=True) - 1) + (high + low)
    result = d - (xp.log1p(s) - rest) if name == "log_softmax" else p / (1 + s)
    out[...] = result.reshape(out.shape)


def divided_differences(x: Any, m: Any, temperature: Any) -> tuple[Any, Any]:
    """(x - m) / T as two numbers, of which x - m may leave the range. m: the maxima, NaN unless they are finite."""
    xp = namespace(x)
    d, rest = two_sum(x, -m)
    factor, exponent = xp.frexp(xp.asarray(temperature, x.dtype))
    is_beyond = ~xp.isfinite(rest) & xp.isfinite(x)  # x - m, or a step to it
    if not isinstance(x, np.ndarray) or is_beyond.any():  # on a GPU the answer would have to be waited for
        quarter = xp.where(is_beyond, x.dtype.type(0.25), x.dtype.type(1))
        d, rest = two_sum(x * quarter, -m * quarter)
        exponent = exponent - xp.where(is_beyond, 2, 0).astype(exponent.dtype)
    rest[~xp.isfinite(d)] = 0
    # The power of two first: then what is below the range is far too small to matter.
    return divide(xp.ldexp(d, -exponent), xp.ldexp(rest, -exponent), factor)
