"""Cross-entropy with its gradient, entropy and divergence of logits of any dtype, block by block."""

from typing import Any, NamedTuple

import numpy as np

from lsm._check import at_least_float32
from lsm._derived_loss import Block, divergence, entropy, expected_loss, loss_gradient, normalised
from lsm._frames import Index
from lsm._logits import BLOCK_ELEMENTS, WIDE_ELEMENTS, Logits, narrowed, widened
from lsm._reduce import total


class Loss(NamedTuple):
    """What cross-entropy depends on beside the logits.

    Attributes
    ----------
    labels : ndarray or None
        int64 of the frames' shape, -1 for frames to leave out.
    probabilities : ndarray or None
        In place of labels, of the logits' shape.
    weight : ndarray or None
        One number for each class.
    smoothing, z_loss, reduction
        As of the public function.
    """

    labels: Any
    probabilities: Any
    weight: Any
    smoothing: float
    z_loss: float
    reduction: str

    @property
    def is_plain(self) -> bool:
        """Whether the loss of a frame is a log-probability times a factor."""
        return self.labels is not None and not self.smoothing and not self.z_loss


class Frame(NamedTuple):
    """Of the frames of a block, each with length 1 on the axis of the classes.

    Attributes
    ----------
    labels : ndarray or None
        Their labels; 0 if they are left out.
    kept : ndarray or None
        Whether they are not left out; None if none is.
    factor : ndarray or None
        The weights of their labels; None if all are 1.
    scale : float or ndarray
        What the gradients are multiplied by, but for the weights.
    """

    labels: Any
    kept: Any
    factor: Any
    scale: Any


def cross_entropy(logits: Logits, loss: Loss, out: Any) -> Any:
    """The reduced loss in float64 or longdouble, or that of each frame; writes the gradient into `out` if given."""
    frames, labels, weight = logits.frames, loss.labels, loss.weight
    factor: Any = None
    denominator: Any = frames.size
    if labels is not None:
        if weight is not None:
            factor = np.where(labels >= 0, weight[labels] if weight.size else 0.0, 0)
            if not loss.smoothing:
                labels = np.where(factor == 0, -1, labels)
        denominator = np.count_nonzero(labels >= 0) if factor is None else total(factor)
    scale = 1.0
    if loss.reduction == "mean":
        scale = 1 / denominator if denominator else 0.0
    losses = np.zeros(frames.shape, logits.wide)
    compute = _plain_block if loss.is_plain else _wide_block
    for index in frames.blocks(BLOCK_ELEMENTS if loss.is_plain else WIDE_ELEMENTS) if frames.n_classes else ():
        own, kept, f = None, None, None if factor is None else frames.beside(factor, index)
        if labels is not None:
            own = frames.beside(labels, index)
            kept = own >= 0
            if not kept.any():
                if out is not None:
                    frames.put(out, index, np.zeros((), out.dtype))
                continue
            own, kept = (own, None) if kept.all() else (np.where(kept, own, 0), kept)
        temperature = logits.temperature_block(index)
        rates = scale if temperature is None else scale / temperature
        value = compute(logits, loss, index, Frame(own, kept, f, rates), out)
        losses[index] = np.squeeze(value if kept is None else np.where(kept, value, 0), frames.at)
    if loss.reduction == "none":
        return losses
    return total(losses) if loss.reduction == "sum" else total(losses) / logits.wide.type(denominator)


def _plain_block(logits: Logits, loss: Loss, index: Index, of: Frame, out: Any) -> Any:
    """-f y at the labels. The gradient is f p, but f expm1(y) at the labels, where p - 1 would cancel."""
    frames, at = logits.frames, logits.frames.at
    y = np.take_along_axis(logits.log_softmax(index), of.labels, at).astype(logits.wide)
    value = 0 - y if of.factor is None else (0 - y) * of.factor
    if out is None:
        return value
    scale = of.scale if of.factor is None else of.scale * of.factor
    p = logits.softmax(index, _dtype_of_gradient(logits, loss))
    at_label = np.expm1(y) * scale
    mask = logits.mask_block(index)
    if mask is not None:
        at_label[~np.take_along_axis(mask, of.labels, at)] = 0
    target = frames.block(out, index)
    if p.dtype == target.dtype:
        np.multiply(p, p.dtype.type(scale) if np.ndim(scale) == 0 else scale.astype(p.dtype), out=target)
    else:
        target[...] = narrowed(p * scale, logits.own)
    np.put_along_axis(target, of.labels, narrowed(at_label, logits.own), at)
    if of.kept is not None:
        target[np.broadcast_to(~of.kept, target.shape)] = np.zeros((), target.dtype)
    return value


def _dtype_of_gradient(logits: Logits, loss: Loss) -> str:
    """The dtype of p in gradients: wider where they may be multiplied by more than 1, since p may be subnormal."""
    own = at_least_float32(logits.own)
    is_weighted = loss.weight is not None and loss.reduction != "mean"
    return "float64" if own == "float32" and (is_weighted or logits.temperature is not None) else own


def _wide_block(logits: Logits, loss: Loss, index: Index, of: Frame, out: Any) -> Any:
    """The loss of any targets in float64, and its gradient."""
    frames, at = logits.frames, logits.frames.at
    temperature = logits.temperature_block(index)
    block = _normalised(logits, index)
    if of.labels is None:
        q = widened(frames.block(loss.probabilities, index), logits.wide)
    else:
        q = np.zeros_like(block.x)
        np.put_along_axis(q, of.labels, 1, at)
    weight = loss.weight
    if weight is not None:
        weight = weight.reshape([-1 if i == at else 1 for i in range(block.x.ndim)])
    value, wq = expected_loss(block, q, weight, loss.smoothing)
    of_square = None
    if loss.z_loss:
        rate = loss.z_loss if of.factor is None else loss.z_loss * of.factor
        normaliser = (block.m if temperature is None else block.m / temperature) + block.log_s
        of_square = 2 * rate * normaliser
        value = value + rate * normaliser * normaliser
    empty = logits.is_empty(index)
    if empty is not None:
        np.copyto(value, np.where(block.sum(wq) == 0, 0, np.inf), where=empty)
    if out is not None:
        gradient = loss_gradient(block, wq, of_square) * of.scale
        mask = logits.mask_block(index)
        if mask is not None:
            gradient[~mask] = 0
        if of.kept is not None:
            gradient[np.broadcast_to(~of.kept, gradient.shape)] = 0
        frames.put(out, index, narrowed(gradient, logits.own))
    return value


def _normalised(logits: Logits, index: Index, is_wide: bool = False) -> Block:
    """The probabilities of a block, in float64 or longdouble."""
    is_wide = is_wide or at_least_float32(logits.own) != "float32"
    return normalised(logits.masked_block(index), logits.frames.at, is_wide, logits.temperature_block(index))


def entropies(logits: Logits) -> Any:
    """The entropy of each frame, in float64 or longdouble."""
    frames = logits.frames
    result = np.zeros(frames.shape, logits.wide)
    for index in frames.blocks(WIDE_ELEMENTS) if frames.n_classes else ():
        value, empty = entropy(_normalised(logits, index)), logits.is_empty(index)
        result[index] = np.squeeze(value if empty is None else np.where(empty, 0, value), frames.at)
    return result


def divergences(p: Logits, q: Logits) -> Any:
    """KL(p || q) of each frame, in float64 or longdouble; the mask and the temperature are those of p."""
    frames = p.frames
    result = np.zeros(frames.shape, p.wide)
    is_wide = at_least_float32(p.own) != "float32"
    for index in frames.blocks(WIDE_ELEMENTS) if frames.n_classes else ():
        temperature = p.temperature_block(index)
        value = divergence(_normalised(p, index, is_wide), _normalised(q, index, is_wide), temperature)
        empty = p.is_empty(index)
        result[index] = np.squeeze(value if empty is None else np.where(empty, 0, value), frames.at)
    return result
