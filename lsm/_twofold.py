"""Unevaluated sums of two numbers, for NumPy and CuPy arrays of float64 or longdouble."""

from typing import Any

import numpy as np

from lsm._keywords import namespace


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """a * b and its rounding error (Dekker), for numbers far from overflow and underflow."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product = a * b
    return product, (((a_high * b_high - product) + a_high * b_low) + a_low * b_high) + a_low * b_low


def _halves(a: Any) -> tuple[Any, Any]:
    """Two numbers of half the digits, whose sum is a (Veltkamp)."""
    t = a * (2.0 ** (np.finfo(a.dtype).nmant // 2 + 1) + 1)
    high = t - (t - a)
    return high, a - high


def divide(a: Any, rest: Any, b: Any) -> tuple[Any, Any]:
    """(a + rest) / b as two numbers, for 0.5 <= abs(b) < 1; the second is 0 for quotients above 2**100."""
    quotient = a / b
    q = quotient * (abs(quotient) < 2.0**100)  # 0 or NaN for larger ones, whose product may overflow
    product, error = two_product(q, b)
    correction = (((a - product) - error) + rest) / b
    correction[~(abs(quotient) < 2.0**100)] = 0
    return quotient, correction


def sum_twofold(terms: Any) -> tuple[Any, Any]:
    """The sums along the last axis, which is kept, as two numbers: an exact one and a rounded one.

    The high parts of the terms are multiples of one number, so that their sum is exact (Rump, Ogita & Oishi 2008,
    doi:10.1137/050645671, ExtractVector).
    """
    xp = namespace(terms)
    largest = abs(terms).max(axis=-1, keepdims=True)
    exponent = xp.frexp(largest)[1] + (terms.shape[-1].bit_length() + 1)
    grid = xp.ldexp(xp.ones_like(largest), exponent)
    high = (terms + grid) - grid
    return high.sum(axis=-1, keepdims=True), (terms - high).sum(axis=-1, keepdims=True)


def rows(x: Any, dtype: Any) -> Any:
    """A copy with two axes, frames and classes, in a fixed memory order, on which NumPy's order of adding depends."""
    return namespace(x).array(x, dtype=dtype, order="C").reshape(-1, x.shape[-1])


def wide_dtype(*arrays: Any) -> Any:
    """The dtype for two numbers: longdouble for longdouble, else float64."""
    return np.longdouble if any(array.dtype.char == "g" for array in arrays) else np.float64
