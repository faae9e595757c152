"""Losses, entropy and divergence of one frame, by mpmath from their definitions, rounded to longdouble.

Digits enough that log(1 + exp(-gap)) is not 0, twice that for what cancels.
"""

import mpmath
import numpy as np
from oracle import mp_from, mp_to_ld, spacing


def working_precision(*frames, temperature=1.0):
    """The context of a computation on these frames of logits."""
    gap = max((float(max(x)) - float(v) for x in frames for v in x if v > -np.inf), default=0)
    return mpmath.workprec(400 + int(3 * gap / temperature))


def softmax(x, temperature=1.0):
    """The probabilities, and the logarithm of the sum of the exponentials."""
    m = max(mp_from(v) for v in x)
    terms = [mpmath.exp((mp_from(v) - m) / mp_from(temperature)) for v in x]
    total = mpmath.fsum(terms)
    return [term / total for term in terms], m / mp_from(temperature) + mpmath.log(total)


def entropy(x, temperature=1.0):
    with working_precision(x, temperature=temperature):
        p, _ = softmax(x, temperature)
        return mp_to_ld(-mpmath.fsum(v * mpmath.log(v) for v in p if v))


def kl_divergence(p_x, q_x, temperature=1.0):
    with working_precision(p_x, q_x, temperature=temperature):
        p, q = softmax(p_x, temperature)[0], softmax(q_x, temperature)[0]
        return mp_to_ld(mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True) if a))


def cross_entropy(x, q, weight=None, smoothing=0.0, z_loss=0.0, factor=1.0, temperature=1.0):
    """The loss, its gradient, and where their errors count: the largest of the result and its terms."""
    with working_precision(x, temperature=temperature):
        p, normaliser = softmax(x, temperature)
        q = [mp_from(v) for v in q]
        smoothing, z, t = mp_from(smoothing), mp_from(z_loss) * mp_from(factor), mp_from(temperature)
        takes_part = [v > -np.inf for v in x]
        share = smoothing * mpmath.fsum(q) / sum(takes_part)
        q = [(1 - smoothing) * v + (share if part else 0) for v, part in zip(q, takes_part, strict=True)]
        wq = [v if weight is None else v * mp_from(weight[i]) for i, v in enumerate(q)]
        total = mpmath.fsum(wq)
        logs = [normaliser - mp_from(v) / t for v in x]
        loss = mpmath.fsum(v * log for v, log in zip(wq, logs, strict=True) if v) + z * normaliser**2
        m = max(mp_from(v) for v in x) / t
        at_loss = max(abs(loss), z * abs(normaliser * m)) if z else abs(loss)
        gradient = [(total * a - b + 2 * z * normaliser * a) / t for a, b in zip(p, wq, strict=True)]
        largest = max(abs(normaliser), abs(m))  # L = m + l cancels near 0
        terms = [max(total * a, b, 2 * z * largest * a) / t for a, b in zip(p, wq, strict=True)]
        return (
            (mp_to_ld(loss), mp_to_ld(at_loss)),
            np.array([mp_to_ld(v) for v in gradient]),
            np.array([mp_to_ld(max(abs(g), v)) for g, v in zip(gradient, terms, strict=True)]),
        )


def ulps(result, exact, at=None):
    """How far results are off, in ulps of their dtype at `at`, or the exact value."""
    result = np.asarray(result)
    wide = result.astype(np.longdouble)
    with np.errstate(all="ignore"):
        error = np.abs(wide - exact) / spacing(np.abs(np.asarray(exact if at is None else at)), result.dtype)
    return np.where(wide == exact, 0, error)


def frames(rng, n_classes):
    """Frames like those of classifiers, confident ones, and those of large or nearly equal logits."""
    x = rng.standard_normal((7, n_classes))
    x[0] *= 3
    x[1, 0] = x[1].max() + rng.uniform(5, 90)
    x[2] += 1e4
    x[3] *= 100
    x[4] -= np.log(np.exp(x[4]).sum())
    x[5] *= 1e-4
    x[6, n_classes // 2] = x[6].max() + 18
    return x
