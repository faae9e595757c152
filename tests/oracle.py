"""The kit's oracle, and beside it what only lsm's own tests need: mpmath."""

import numpy as np

from lsm._conformance.oracle import (
    LD,
    backward,
    log_softmax,
    logsumexp,
    nearest,
    softmax,
    softmax_backward,
    spacing,
    ulps,
)

__all__ = [
    "LD",
    "backward",
    "log_softmax",
    "log_softmax_mp",
    "logsumexp",
    "logsumexp_mp",
    "mp_from",
    "mp_to_ld",
    "softmax",
    "softmax_backward",
    "softmax_backward_mp",
    "softmax_mp",
    "spacing",
    "ulps",
]


def log_softmax_mp(x):
    """The exact log-softmax of one frame, by mpmath with 200 digits, rounded to longdouble."""
    import mpmath

    with mpmath.workdps(200):
        values = [mp_from(v) for v in x]
        m = max(values)
        k = values.index(m)
        s = mpmath.fsum(mpmath.exp(v - m) for i, v in enumerate(values) if i != k and v != -mpmath.inf)
        return np.array([mp_to_ld((v - m) - mpmath.log1p(s)) for v in values])


def softmax_mp(x):
    """The exact softmax of one frame, by mpmath from its definition, rounded to longdouble."""
    import mpmath

    with mpmath.workdps(200):
        p = [mpmath.exp(mp_from(v)) for v in x]
        total = mpmath.fsum(p)
        return np.array([mp_to_ld(v / total) for v in p])


def softmax_backward_mp(dy, p):
    """The exact gradient of softmax of one frame, by mpmath from its definition, rounded to longdouble.

    In the sum, the largest p counts as one minus the others: 1 - 5e-324 has 1,074 bits.
    """
    import mpmath

    with mpmath.workprec(3000):
        dy, p = ([mp_from(v) for v in a] for a in (dy, p))
        k = p.index(max(p))
        weights = [1 - mpmath.fsum(p[:k] + p[k + 1 :]) if i == k else v for i, v in enumerate(p)]
        s = mpmath.fsum(v * g for v, g in zip(weights, dy, strict=True))
        return np.array([mp_to_ld(v * (g - s)) for v, g in zip(p, dy, strict=True)])


def logsumexp_mp(x):
    """The exact logsumexp of one frame, by mpmath from its definition, rounded to longdouble."""
    import mpmath

    gap = max(float(max(x)) - float(v) for v in x if v > -np.inf)
    with mpmath.workprec(200 + int(1.45 * gap)):  # so that log(1 + exp(-gap)) is not 0
        return mp_to_ld(mpmath.log(mpmath.fsum(mpmath.exp(mp_from(v)) for v in x)))


def mp_from(value):
    """A longdouble as an mpf, exactly at 200 digits or more."""
    import mpmath

    if not np.isfinite(value):
        return mpmath.mpf(float(value))
    n, d = LD(value).as_integer_ratio()
    return mpmath.mpf(n) / d


def mp_to_ld(value):
    """The longdouble nearest to an mpf."""
    import mpmath

    if not mpmath.isfinite(value):
        return LD(float(value))
    mantissa, exponent = (int(part) for part in mpmath.mpf(value).man_exp)
    mantissa = -abs(mantissa) if value < 0 else mantissa
    exponent = min(max(exponent, -40000), 40000)  # beyond the range of any longdouble; the integer would be too large
    return nearest(mantissa << max(exponent, 0), 1 << max(-exponent, 0))
