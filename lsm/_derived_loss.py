"""Formulas of losses, entropy and divergence on a block of frames, a matrix of float64 or longdouble in C order.

Where results have as many digits themselves (`is_wide`), differences are two numbers and sums carry their errors. All
terms of a sum have one sign, so nothing cancels; docs/numerics.md has the derivations.
"""

from typing import Any, NamedTuple

import numpy as np

from lsm._reduce import exact_sum
from lsm._temperature import divided_differences
from lsm.backends._blocks import plain_sum, two_sum


class Block(NamedTuple):
    """A block of frames; everything except `x` is NaN in a frame with NaN or +inf, or of -inf only.

    Longdouble counts as wide. `at` is the axis of the classes.

    Attributes
    ----------
    x : ndarray
        The logits, -inf where masked.
    m : ndarray
        The largest class, with length 1 on the axis.
    d, rest : ndarray
        (x - m) / T as two numbers; `rest` may be a single 0.
    p : ndarray
        The probabilities.
    log_s : ndarray
        log1p(s), with s the sum of exp(d) over all classes except the largest.
    """

    x: Any
    m: Any
    d: Any
    rest: Any
    p: Any
    log_s: Any
    at: int
    is_wide: bool

    def sum(self, terms: Any) -> Any:
        """The sum over the classes, with length 1 on the axis."""
        return exact_sum(terms, self.at) if self.is_wide else plain_sum(terms, self.at)

    @property
    def y(self) -> Any:
        """The log-probabilities."""
        return (self.d - self.log_s) + self.rest


def normalised(x: Any, at: int, is_wide: bool, temperature: Any = None) -> Block:
    """The probabilities of a block."""
    k = np.expand_dims(x.argmax(axis=at), at)
    m = np.take_along_axis(x, k, at)
    m = m + m * 0  # NaN unless finite
    if temperature is not None:
        d, rest = divided_differences(x, m, temperature)
    elif is_wide:
        d, rest = two_sum(x, -m)
    else:
        d, rest = x - m, None
    if rest is not None:
        rest[~np.isfinite(rest)] = 0
    else:
        rest = np.zeros(1, x.dtype)
    terms = np.exp(d)
    if is_wide or temperature is not None:
        terms += terms * rest
    np.put_along_axis(terms, k, 0, at)
    s = exact_sum(terms, at) if is_wide else plain_sum(terms, at)
    np.put_along_axis(terms, k, 1, at)
    s += m * 0
    terms /= 1 + s
    return Block(x, m, d, rest, terms, np.log1p(s), at, is_wide)


def expected_loss(block: Block, q: Any, weight: Any, smoothing: float) -> tuple[Any, Any]:
    """The sum of w * q * -y, and w * q of the smoothed targets, which may be NaN in a frame that is NaN.

    A class with w * q = 0 adds 0, even if it is masked.
    """
    if smoothing:
        takes_part = block.x > -np.inf
        n = np.add.reduce(takes_part, axis=block.at, keepdims=True, dtype=q.dtype)
        share = smoothing * block.sum(q) / np.maximum(n, 1)
        q = (1 - smoothing) * q + np.where(takes_part, share, 0)
    wq = q if weight is None else q * weight
    terms = np.where(wq == 0, 0, wq * ((block.log_s - block.d) - block.rest))
    return block.sum(terms) + block.m * 0, wq


def loss_gradient(block: Block, wq: Any, of_square: Any) -> Any:
    """The gradient of the sum of w * q * -y and of f * z_loss * L**2 by d, with `of_square` = 2 * f * z_loss * L."""
    y = block.y
    total = block.sum(wq)
    gradient = total * block.p - wq
    near = (total - wq) + total * np.expm1(y)
    np.copyto(gradient, near, where=y > -np.log(2))  # here exp(y) - 1 would cancel
    if of_square is not None:
        gradient += of_square * block.p
    return gradient


def entropy(block: Block) -> Any:
    """H = l + (sum of exp(d) * -d) / (1 + s): no term is negative."""
    terms = np.where(block.p == 0, 0, block.p * (-block.d - block.rest))
    return block.log_s + block.sum(terms) + 0.0


def divergence(p: Block, q: Block, temperature: Any) -> Any:
    """KL(p || q) = sum of p * phi(t) - (r - log1p(r)), with t = log(q / p) and r = sum of p * expm1(t).

    phi(t) = expm1(t) - t is never negative, and r would be 0 without rounding. t is formed from differences of the
    logits. r removes an error that is common to all t, to all orders.
    """
    t = _log_ratio(p, q, 1.0 if temperature is None else temperature)
    # Beyond `nearest`, q - p - p * t cancels only as many digits as the compute dtype has to spare.
    nearest, n_terms = (1, 24) if p.is_wide else (2.0**-10, 5)
    excess = q.p - p.p  # p * expm1(t)
    terms = excess - p.p * t
    near = np.flatnonzero(np.abs(t) <= nearest)
    if near.size:
        t, share = t.reshape(-1)[near], p.p.reshape(-1)[near]
        phi = _phi(t, n_terms)
        excess.reshape(-1)[near] = (t + phi) * share
        terms.reshape(-1)[near] = phi * share
    none = np.flatnonzero(p.p == 0)
    terms.reshape(-1)[none] = q.p.reshape(-1)[none]
    r = p.sum(excess)
    series = r * r * (1 / 2 - r * (1 / 3 - r * (1 / 4 - r * (1 / 5 - r / 6))))
    correction = np.where(np.abs(r) < 1e-3, series, r - np.log1p(r))
    return np.maximum(p.sum(terms) - correction, 0) + (p.m * 0 + q.m * 0)


def _log_ratio(p: Block, q: Block, temperature: Any) -> Any:
    """log(q / p) = ((x_q - x_p) - (m_q - m_p)) / T - (l_q - l_p), without rounding any digit that matters."""
    between, error = two_sum(q.x, -p.x)
    of_largest, error_of_largest = two_sum(q.m, -p.m)
    high, low = two_sum(between, -of_largest)
    low = low + (error - error_of_largest)
    high, rest = two_sum(high / temperature, -(q.log_s - p.log_s))
    t = high + (rest + low / temperature)
    return np.where(np.isfinite(t), t, (q.d - q.log_s) - (p.d - p.log_s))


def _phi(t: Any, n_terms: int) -> Any:
    """expm1(t) - t, for abs(t) <= 1, by its Taylor series up to t**n_terms."""
    coefficients = [t.dtype.type(1)]  # 2 / n! from n = 2 on
    for n in range(3, n_terms + 1):
        coefficients.append(coefficients[-1] / n)
    taylor = np.full_like(t, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        taylor *= t
        taylor += coefficient
    taylor *= t
    taylor *= t / 2
    return taylor
