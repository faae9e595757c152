"""The exact values, in arithmetic wider than what is tested, and how far from them a result is.

float64 and narrower are checked in longdouble (64-bit significand on x86), longdouble against mpmath, which is imported
where it is used: benchmarks/accuracy.py does without.
"""

import numpy as np

LD = np.longdouble


def log_softmax(x, axis=-1):
    """The exact log-softmax, rounded to longdouble."""
    x = np.moveaxis(np.asarray(x).astype(LD), axis, -1)
    with np.errstate(all="ignore"):
        m = x.max(axis=-1, keepdims=True)
        d = x - m
        p = np.exp(d)
        np.put_along_axis(p, x.argmax(axis=-1)[..., None], 0, axis=-1)
        return np.moveaxis(d - np.log1p(p.sum(axis=-1, keepdims=True)), -1, axis)


def backward(dy, y, axis=-1):
    """The exact gradient, and the largest of |dx|, |dy| and |exp(y) * S| of each element.

    For float64 and longdouble S counts as sum(|dy|): their sum has no wider type.
    """
    has_wider = np.asarray(dy).dtype.itemsize < 8
    dy, y = (np.asarray(a).astype(LD) for a in (dy, y))
    with np.errstate(all="ignore"):
        s = dy.sum(axis=axis, keepdims=True)
        dx = np.where(y > LD(-0.5), (dy - s) - np.expm1(y) * s, dy - np.exp(y) * s)
        total = np.abs(s) if has_wider else np.abs(dy).sum(axis=axis, keepdims=True)
        return dx, np.maximum(np.maximum(np.abs(dx), np.abs(dy)), np.exp(y) * total)


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


def spacing(value, dtype):
    """One ulp of `dtype` at |value|, in longdouble."""
    dtype = np.dtype(dtype)
    value = np.abs(np.asarray(value).astype(LD))
    n_digits, smallest = {
        "float16": (11, -24),
        "bfloat16": (8, -133),
        "float32": (24, -149),
        "float64": (53, -1074),
    }.get(dtype.name, (64, -16445))
    exponent = np.frexp(value)[1]
    return np.ldexp(LD(1), np.maximum(exponent - n_digits, smallest))


_LARGEST = {"float16": 65520.0, "bfloat16": 3.396e38, "float32": 3.40282356779733661637539395458142568447e38}


def ulps(result, exact, at=None):
    """The largest error of `result`, in ulps of its dtype at `exact` (or at `at`); equal infinities count 0."""
    wide = np.asarray(result).astype(LD)
    with np.errstate(all="ignore"):
        limit = LD(_LARGEST.get(result.dtype.name, np.inf))  # what lies beyond rounds to infinity
        exact = np.where(np.abs(exact) >= limit, np.copysign(LD(np.inf), exact), exact)
        error = np.abs(wide - exact) / spacing(exact if at is None else at, result.dtype)
    error[wide == exact] = 0
    return float(error.max(initial=0))
