"""The exact losses, entropies and divergences of frames along the last axis, in longdouble, by their definitions."""

import numpy as np

from lsm._conformance.oracle import LD, Array, Exact, exact_log_softmax, log_softmax, softmax


def exact(value: Array) -> Exact:
    """Exact values for which errors are measured in ulps of the result."""
    return Exact(value, np.zeros_like(value), value)


def at_classes(x: Array, classes: Array, dtype: np.dtype) -> Exact:
    """The log-softmax of these classes of each frame, to check a result of `dtype`."""
    return Exact(*[np.take_along_axis(part, classes, -1) for part in exact_log_softmax(x, dtype)])


def largest(x: Array, k: int) -> Array:
    """The k largest classes of each frame; of equal ones, the lowest first."""
    classes: Array = np.argsort(-x.astype(LD), axis=-1, kind="stable")[..., :k]
    return classes


def gradient(x: Array, labels: Array) -> Array:
    """The gradient of the sum of -log_softmax at the labels, which have length 1 along the last axis."""
    dx = softmax(x)
    np.put_along_axis(dx, labels, np.expm1(np.take_along_axis(log_softmax(x), labels, -1)), -1)
    return dx


def entropy(x: Array) -> Array:
    """The entropy of each frame's softmax, with length 1 along the last axis."""
    p = softmax(x)
    terms = np.where(p == 0, 0, -p * np.where(p == 0, 0, log_softmax(x)))
    return np.asarray(terms.sum(axis=-1, keepdims=True))


def divergence(p_logits: Array, q_logits: Array) -> Array:
    """The divergence of the softmax of two frames, not nearly equal, with length 1 along the last axis."""
    p = softmax(p_logits)
    with np.errstate(invalid="ignore"):  # two masked classes
        terms = np.where(p == 0, 0, p * (log_softmax(p_logits) - log_softmax(q_logits)))
    return np.asarray(terms.sum(axis=-1, keepdims=True))
