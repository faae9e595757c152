"""Logarithms of sums of exponentials with factors of any sign, for NumPy and CuPy arrays."""

import math
from typing import Any

from lsm._keywords import namespace
from lsm._twofold import divide, rows, sum_twofold, wide_dtype
from lsm.backends._blocks import two_sum

# ln(2) as two numbers, of which the first has 32 bits, so that small multiples of it are exact (fdlibm, e_exp.c).
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


def write_signed_sum(a: Any, b: Any, out: Any, signs: Any) -> None:
    """Write log(abs(sum of b * exp(a))) along the last axis, and the signs; without `signs`, NaN for negative sums."""
    dtype = wide_dtype(a, b, out)
    a, b = rows(a, dtype), rows(b, dtype)
    result, sign, rest = _signed_sum(a, b)
    again = rest.any(axis=-1)
    while again.any():
        result[again], sign[again], rest[again] = _signed_sum(a[again], b[again] * rest[again])
        again = again & rest.any(axis=-1)
    if signs is None:
        result[sign < 0] = math.nan
    else:
        signs[...] = sign.reshape(out.shape)
    out[...] = result.reshape(out.shape)


def _signed_sum(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """The logarithms; the signs; and which terms must be summed by themselves, because larger ones cancel.

    ::

        k = argmax(a + log(abs(b)))
        R = sum of b / b_k * exp(a - a_k)
        L = a_k + log(abs(b_k)) + log(abs(R))
    """
    xp = namespace(a)
    a = xp.where(b == 0, -math.inf, a)  # excluded, whatever its value
    size = a + xp.log(abs(b))
    size[b == 0] = -math.inf
    k = size.argmax(axis=-1)[:, None]
    top, a_k, b_k = [xp.take_along_axis(array, k, axis=-1) for array in (size, a, b)]
    terms, rests = _relative_terms(a, b, k)
    high, low = sum_twofold(terms)
    rest_high, rest_low = sum_twofold(rests)
    low = low + (rest_high + rest_low)
    total, r = high + low, (high - 1) + low
    logarithm, rest = two_sum(a_k, xp.log(abs(b_k)))
    result = logarithm + (xp.where(abs(r) < 0.5, xp.log1p(r), xp.log(abs(total))) + rest)
    sign = xp.sign(b_k) * xp.sign(total)

    is_plus, is_minus = [((size == math.inf) & (xp.sign(b) == one)).any(axis=-1, keepdims=True) for one in (1, -1)]
    is_cancelled = xp.isfinite(top) & (total == 0)
    is_nothing = is_cancelled | (top == -math.inf)
    result = xp.where(is_nothing, -math.inf, xp.where(is_plus | is_minus, math.inf, result))
    sign = xp.where(is_nothing, 0.0, xp.where(is_plus, 1.0, xp.where(is_minus, -1.0, sign)))
    is_nan = (is_plus & is_minus) | xp.isnan(size).any(axis=-1, keepdims=True)
    result[is_nan], sign[is_nan] = math.nan, math.nan

    # Where the largest terms cancel exactly, the terms that are negligible beside them are the sum.
    return result, sign, is_cancelled & (terms == 0) & (rests == 0) & (size > -math.inf)


def _relative_terms(a: Any, b: Any, k: Any) -> tuple[Any, Any]:
    """b / b_k * exp(a - a_k) as two numbers.

    Where abs(a - a_k) < 0.35, they are b / b_k and the rest, with expm1(a - a_k), so that a sum of terms that cancel
    keeps its digits.
    """
    xp = namespace(a)
    d, d_rest = two_sum(a, -xp.take_along_axis(a, k, axis=-1))
    factor, exponent = xp.frexp(b)
    ratio, ratio_rest = divide(factor, 0 * factor, xp.take_along_axis(factor, k, axis=-1))
    shift = exponent - xp.take_along_axis(exponent, k, axis=-1)
    # exp(d) as 2 ** n * exp(far), because exp(d) may leave the range where the term does not
    n = xp.clip(xp.rint(d / math.log(2)), -60_000, 60_000)
    far = (d - n * _LN2_HIGH) - (n * _LN2_LOW - d_rest)
    is_near = abs(d) < 0.35
    n[is_near] = 0
    terms = xp.ldexp(ratio * xp.where(is_near, 1, xp.exp(far)), shift + n.astype(shift.dtype))
    rests = xp.where(is_near, xp.ldexp(ratio_rest + ratio * xp.expm1(d + d_rest), shift), 0)
    vanishes = (d < -50_000) | (b == 0)
    terms[vanishes], rests[vanishes] = 0, 0
    return terms, rests
