"""Compensated sums, and the reduction of losses to their mean or sum."""

import math
from typing import Any

import numpy as np

from lsm.backends._blocks import plain_sum, two_sum, twofold_sum

_BLOCK = 1024  # losses that are added by halves; the bits of a mean depend on it


def exact_sum(terms: Any, axis: int) -> Any:
    """The sum along an axis, with length 1 there, as if in twice the precision; the plain sum if that is not finite."""
    s = twofold_sum(terms, axis)
    bad = ~np.isfinite(s)
    if bad.any():
        np.copyto(s, plain_sum(terms, axis), where=bad)
    return s


def _fsum(terms: list[float]) -> float | None:
    """The exact sum, rounded once; None if it overflows."""
    try:
        return math.fsum(terms)
    except OverflowError:
        return None


def total(losses: Any) -> Any:
    """The sum of all losses in C order: in blocks of 1024, each by pairwise halves, compensated.

    It depends only on the losses and their order. The sum of one block is rounded once.
    """
    s = losses.reshape(-1)
    if s.size <= _BLOCK and s.dtype == np.float64:
        exact = sum(s.tolist()) if not np.isfinite(s).all() else _fsum(s.tolist())
        if exact is not None:
            return s.dtype.type(exact)
    rest = np.zeros_like(s)
    while s.size > 1:
        length = min(_BLOCK, 1 << (s.size - 1).bit_length())  # padding a block further would not change the sum
        n = -(-s.size // length)
        padding = np.zeros(n * length - s.size, s.dtype)
        s, rest = (np.concatenate([part, padding]).reshape(n, length) for part in (s, rest))
        while s.shape[1] > 1:
            half = s.shape[1] // 2
            of_halves = rest[:, :half] + rest[:, half:]
            s, error = two_sum(s[:, :half], s[:, half:])
            rest = of_halves + error
        s, rest = s[:, 0], rest[:, 0]
    if not s.size:
        return losses.dtype.type(0)
    return s[0] + rest[0] if np.isfinite(s[0]) else s[0]
