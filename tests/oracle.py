"""The kit's oracle, and beside it what only lsm's own tests need: long frames in pieces, and mpmath.

mpmath is imported where it is used: benchmarks/accuracy.py does without.
"""

import numpy as np

from lsm._conformance.oracle import LD, backward, log_softmax, nearest, spacing, ulps

__all__ = [
    "LD",
    "backward",
    "backward_in_pieces",
    "log_softmax",
    "log_softmax_in_pieces",
    "log_softmax_mp",
    "mp_from",
    "mp_to_ld",
    "pieces",
    "spacing",
    "ulps",
]


def pieces(shape, n_piece=2**18):
    """Index parts of a (frames, classes) array, by whole frames and their classes: (frames, [classes, ...])."""
    n_frames = max(1, n_piece // max(1, shape[1]))
    for i in range(0, shape[0], n_frames):
        yield slice(i, i + n_frames), [slice(k, k + n_piece) for k in range(0, shape[1], n_piece)]


def log_softmax_in_pieces(x):
    """Yield (index, exact) over x of shape (frames, classes), classes last: the whole would take 16 bytes for each."""
    for rows, columns in pieces(x.shape):
        frames = x[rows]
        k = frames.argmax(axis=1)[:, None]
        m = np.take_along_axis(frames, k, axis=1).astype(LD)
        with np.errstate(all="ignore"):
            rest = frames.copy()
            np.put_along_axis(rest, k, -np.inf, axis=1)
            log_sum = np.log1p(sum(np.exp(rest[:, c].astype(LD) - m).sum(axis=1, keepdims=True) for c in columns))
            for c in columns:
                yield (rows, c), (frames[:, c].astype(LD) - m) - log_sum


def backward_in_pieces(dy, y):
    """Yield (index, exact, at) over dy and y of shape (frames, classes), as `backward` gives them."""
    has_wider = dy.dtype.itemsize < 8
    for rows, columns in pieces(dy.shape):
        s = sum(dy[rows, c].astype(LD).sum(axis=1, keepdims=True) for c in columns)
        total = np.abs(s)
        if not has_wider:
            total = sum(np.abs(dy[rows, c].astype(LD)).sum(axis=1, keepdims=True) for c in columns)
        for c in columns:
            a, b = dy[rows, c].astype(LD), y[rows, c].astype(LD)
            with np.errstate(all="ignore"):
                p = np.exp(b)
                dx = np.where(b > LD(-0.5), (a - s) - np.expm1(b) * s, a - p * s)
                yield (rows, c), dx, np.maximum(np.maximum(np.abs(dx), np.abs(a)), p * total)


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
    """A longdouble as an mpf, exactly at the 200 digits of `log_softmax_mp`."""
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
