"""The lines of NumPy that most people paste; without warnings and without care."""

import numpy as np

from lsm.bench.data import Array


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Log-probabilities."""
    shifted = x - x.max(axis, keepdims=True)
    y: Array = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    return y


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """Their gradient."""
    dx: Array = dy - np.exp(y) * dy.sum(axis, keepdims=True)
    return dx


def softmax(x: Array, axis: int = -1) -> Array:
    """Probabilities."""
    e = np.exp(x - x.max(axis, keepdims=True))
    p: Array = e / e.sum(axis, keepdims=True)
    return p


def softmax_backward(dy: Array, p: Array, axis: int = -1) -> Array:
    """Their gradient."""
    dx: Array = p * (dy - (p * dy).sum(axis, keepdims=True))
    return dx


def logsumexp(x: Array, axis: int = -1) -> Array:
    """The normaliser."""
    m = x.max(axis, keepdims=True)
    total: Array = m.squeeze(axis) + np.log(np.exp(x - m).sum(axis))
    return total


def take_log_softmax(x: Array, labels: Array, axis: int = -1) -> Array:
    """The log-probability of one class of each frame."""
    y: Array = np.take_along_axis(x, np.expand_dims(labels, axis), axis).squeeze(axis) - logsumexp(x, axis)
    return y


def top_k_log_softmax(x: Array, k: int, axis: int = -1) -> tuple[Array, Array]:
    """The k largest log-probabilities and their classes."""
    best = np.argpartition(x, -k, axis).take(range(-k, 0), axis)
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(x, best, axis), axis), axis)
    return np.take_along_axis(x, best, axis) - np.expand_dims(logsumexp(x, axis), axis), best


def cross_entropy(x: Array, labels: Array, axis: int = -1) -> Array:
    """The loss of each frame."""
    return -take_log_softmax(x, labels, axis)


def cross_entropy_value_and_grad(x: Array, labels: Array, axis: int = -1) -> tuple[Array, Array]:
    """The mean loss and its gradient."""
    at, p = np.expand_dims(labels, axis), softmax(x, axis)
    chosen = np.take_along_axis(p, at, axis)
    np.put_along_axis(p, at, chosen - 1, axis)
    p /= labels.size
    return -np.log(chosen).mean(), p


def entropy(x: Array, axis: int = -1) -> Array:
    """The entropy of each frame."""
    y = log_softmax(x, axis)
    total: Array = -(np.exp(y) * y).sum(axis)
    return total


def kl_divergence(p_logits: Array, q_logits: Array, axis: int = -1) -> Array:
    """The divergence of two frames."""
    y = log_softmax(p_logits, axis)
    total: Array = (np.exp(y) * (y - log_softmax(q_logits, axis))).sum(axis)
    return total
