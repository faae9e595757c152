"""The kit's oracle, and beside it what only lsm's own tests need: mpmath."""

import numpy as np

from lsm._conformance.oracle import LD, backward, log_softmax, spacing, ulps

__all__ = [
    "LD",
    "backward",
    "log_softmax",
    "log_softmax_mp",
    "mp_from",
    "mp_to_ld",
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


def mp_from(value):
    """A longdouble as an mpf, exactly."""
    import mpmath

    fraction, exponent = np.frexp(LD(value))
    high = np.float64(fraction)
    low = 0.0 if np.isinf(high) else float(fraction - high)
    return mpmath.ldexp(mpmath.mpf(float(high)) + mpmath.mpf(low), int(exponent))


def mp_to_ld(value):
    """An mpf as a longdouble."""
    import mpmath

    if mpmath.isinf(value) or value == 0:
        return LD(float(value))
    fraction, exponent = mpmath.frexp(value)
    high = float(fraction)
    return np.ldexp(LD(high) + LD(float(fraction - high)), max(exponent, -40000))
