"""Cross-entropy with its gradient, entropy and divergence of logits of any dtype, block by block."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lsm._check import BFLOAT16_BITS, NUMPY, at_least_float32, np_dtype
from lsm._derived_loss import divergence, entropy, expected_loss, loss_gradient
from lsm._frames import Index
from lsm._logits import BLOCK_ELEMENTS, WIDE_ELEMENTS, Logits, block_elements, narrowed, widened
from lsm._reduce import total
from lsm._temperature import is_divisor
from lsm.backends._blocks import plain_sum


class Loss(NamedTuple):
    """The inputs and settings of cross-entropy other than the logits.

    Attributes
    ----------
    labels : ndarray or None
        int64, in the shape of the frames, with -1 for frames to leave out.
    probabilities : ndarray or None
        In place of labels, in the shape of the logits.
    weight : ndarray or None
        One number for each class.
    smoothing, z_loss, reduction
        As for the public function.
    """

    labels: Any
    probabilities: Any
    weight: Any
    smoothing: float
    z_loss: float
    reduction: str

    def is_narrow(self, own: str) -> bool:
        """Whether the loss can be formed from the rounded log-softmax, where the terms of one label do not cancel.

        With smoothed labels or z_loss, only where float64 has more digits than the result.
        """
        return self.labels is not None and (not self.is_mixed or at_least_float32(own) == "float32")

    @property
    def is_mixed(self) -> bool:
        """Whether the loss of a label has terms other than its log-probability."""
        return bool(self.smoothing or self.z_loss)


class Part(NamedTuple):
    """The numbers that belong to the frames of a block, each with length 1 on the axis of the classes.

    Attributes
    ----------
    labels : ndarray or None
        Their labels; 0 if they are left out.
    kept : ndarray or None
        Whether each frame is kept; None if all are.
    factor : ndarray or None
        The weights of their labels; None if all are 1.
    scale : float
        The factor of the gradients, apart from weights and temperature.
    temperature : float, ndarray or None
        The temperature; None if it is 1.
    """

    labels: Any
    kept: Any
    factor: Any
    scale: Any
    temperature: Any


def cross_entropy(logits: Logits, loss: Loss, out: Any) -> Any:
    """The reduced loss, or that of each frame, in float64 or longdouble; writes the gradient to `out` if given."""
    frames, labels, weight = logits.frames, loss.labels, loss.weight
    factor: Any = None
    denominator: Any = frames.size
    if labels is not None:
        if weight is not None:
            factor = np.where(labels >= 0, weight[labels] if weight.size else 0.0, 0)
            if not loss.smoothing:
                labels = np.where(factor == 0, -1, labels)
            exponent = np.frexp(np.abs(factor).max(initial=0))[1]
            if loss.reduction == "mean" and exponent < -500:  # 1 / the sum could overflow; the mean is the same
                factor, weight = np.ldexp(factor, -exponent), np.ldexp(weight, -exponent)
                loss = loss._replace(weight=weight)
        denominator = np.count_nonzero(labels >= 0) if factor is None else total(factor)
    scale = logits.wide.type(1)
    if loss.reduction == "mean":
        scale = 1 / logits.wide.type(denominator) if denominator else scale * 0
    losses = _losses_of_labels(logits, loss, labels, factor, scale, out)
    if losses is not None:
        return _reduced(losses, loss.reduction, denominator)
    losses = np.zeros(frames.shape, logits.wide)
    is_narrow = loss.is_narrow(logits.own)
    compute = _narrow_block if is_narrow else _wide_block
    for index in frames.blocks(block_elements(frames) if is_narrow else WIDE_ELEMENTS) if frames.n_classes else ():
        own, kept, f = None, None, None if factor is None else frames.beside(factor, index)
        if labels is not None:
            own = frames.beside(labels, index)
            kept = own >= 0
            if not kept.any():
                if out is not None:
                    frames.put(out, index, np.zeros((), out.dtype))
                continue
            own, kept = (own, None) if kept.all() else (np.where(kept, own, 0), kept)
        part = Part(own, kept, f, scale, logits.temperature_block(index))
        value = compute(logits, loss, index, part, out)
        losses[index] = np.squeeze(value if kept is None else np.where(kept, value, 0), frames.at)
    return _reduced(losses, loss.reduction, denominator)


def _reduced(losses: Any, reduction: str, denominator: Any) -> Any:
    if reduction == "none":
        return losses
    return total(losses) if reduction == "sum" else total(losses) / losses.dtype.type(denominator)


def _losses_of_labels(logits: Logits, loss: Loss, labels: Any, factor: Any, scale: Any, out: Any) -> Any:
    """The losses of labels without other terms, and the gradients, by the backend's own function; None if it has none.

    The bits are those of `_narrow_block`.
    """
    own = at_least_float32(logits.own)
    run = None if labels is None or loss.is_mixed else logits.native("run_labels", own)
    if run is None or _dtype_of_gradient(logits, loss) != own or not (out is None or out.flags.carray):
        return None
    of_frame, numbers, at = np.ascontiguousarray(labels.reshape(-1)), np.zeros(labels.size, own), logits.frames.at
    f: Any = 1.0 if factor is None else factor.reshape(-1)
    if not run(logits.values, at, of_frame, numbers, out, f * scale):
        return None
    y = numbers.astype(logits.wide)
    if out is not None:
        at_label = (f * np.expm1(y) + 0.0) * scale
        entry: Any = logits.entry
        entry.backend.put_labels(out, at, of_frame, narrowed(at_label, logits.own))
    return np.where(of_frame >= 0, (0 - y) * f, 0).reshape(logits.frames.shape)


def _narrow_block(logits: Logits, loss: Loss, index: Index, part: Part, out: Any) -> Any:
    """The losses of labels from the log-softmax y, and the gradients from the softmax p.

    Without smoothing and z_loss, the loss is -f y at the label; the gradient is f p, but f expm1(y) at the label, where
    p - 1 would cancel.
    """
    frames, at, f = logits.frames, logits.frames.at, 1.0 if part.factor is None else part.factor
    y = logits.log_softmax(index)
    y_label = np.take_along_axis(y, part.labels, at).astype(logits.wide)
    value = 0 - y_label if part.factor is None else (0 - y_label) * f
    total_weight, of_square, shares = f, 0.0, None  # W, 2 f z_loss L, and the terms that smoothing adds to w q
    of_label, of_shares = f, 0.0  # W = these two
    if loss.smoothing:
        of_label = (1 - loss.smoothing) * f
        shares, value, of_shares = _shares(logits, loss, index, y)
        value = value + np.where(of_label == 0, 0, of_label * (0 - y_label))
        total_weight = of_label + of_shares
    if loss.z_loss:
        k = np.expand_dims(y.argmax(axis=at), at)
        m, temperature = widened(np.take_along_axis(logits.block(index), k, at), logits.wide), part.temperature
        normaliser = (m if temperature is None else m / temperature) - np.take_along_axis(y, k, at)
        of_square = 2 * loss.z_loss * f * normaliser
        value = value + loss.z_loss * f * normaliser * normaliser
    mask = logits.mask_block(index)
    if mask is not None and loss.is_mixed:
        np.copyto(value, np.where(of_label == 0, 0, np.inf), where=~mask.any(axis=at, keepdims=True))
    if out is None:
        return value
    p = logits.softmax(index, _dtype_of_gradient(logits, loss))
    scale = part.scale if part.temperature is None else part.scale / part.temperature
    at_label = total_weight * np.expm1(y_label) + of_square * np.exp(y_label)
    if shares is not None:
        of_other = np.take_along_axis(np.broadcast_to(shares, p.shape), part.labels, at)
        at_label += of_shares - of_other
    at_label *= scale
    rate = np.asarray((total_weight + of_square) * scale).astype(p.dtype)
    target = frames.block(out, index)
    gradient = target if p.dtype == target.dtype and shares is None else p
    np.multiply(p, rate, out=gradient)
    if shares is not None:
        gradient -= np.asarray(shares * scale).astype(p.dtype)
    if gradient is p:
        target[...] = narrowed(p, logits.own)
    np.put_along_axis(target, part.labels, narrowed(at_label, logits.own), at)
    if mask is not None:
        target[~mask] = np.zeros((), target.dtype)
    if part.kept is not None:
        target[np.broadcast_to(~part.kept, target.shape)] = np.zeros((), target.dtype)
    return value


def _shares(logits: Logits, loss: Loss, index: Index, y: Any) -> tuple[Any, Any, Any]:
    """For the part of smoothed labels that every class has: w q by class, and by frame the sums of -w q y and of w q.

    Masked classes (by the mask, or -inf) have no such part.
    """
    frames, at, axis = logits.frames, logits.frames.at, logits.at
    matrix, e, n_classes = logits.rows(y), loss.smoothing, frames.n_classes
    weight = None if loss.weight is None else loss.weight.reshape((-1, 1) if axis == 0 else (1, -1))
    terms = matrix if weight is None else matrix * weight
    losses = plain_sum(terms, axis)
    if np.isfinite(losses).all() and logits.mask is None:  # the usual case: all frames have the same shares
        each = e / n_classes
        shares = each if weight is None else each * weight
        weights = each * (n_classes if weight is None else plain_sum(weight, axis)[0, 0])
        along = [-1 if i == at else 1 for i in range(y.ndim)]
        return np.asarray(shares).reshape(along), frames.of_rows(-each * losses, y), weights
    takes_part = logits.masked_rows(index)[0] > -np.inf
    n_parts = np.count_nonzero(takes_part, axis=axis, keepdims=True)
    each = e / np.maximum(n_parts, 1)
    losses = plain_sum(np.where(takes_part, terms, 0), axis) + 0 * matrix.max(axis=axis, keepdims=True)
    shares = np.where(takes_part, each if weight is None else each * weight, 0)
    weights = each * (n_parts if weight is None else plain_sum(np.where(takes_part, weight, 0), axis))
    return logits.unrows(shares, y), frames.of_rows(-each * losses, y), frames.of_rows(weights, y)


def _dtype_of_gradient(logits: Logits, loss: Loss) -> str:
    """The dtype of p in gradients: wider where they may be multiplied by more than 1, since p may be subnormal."""
    own = at_least_float32(logits.own)
    is_weighted = loss.weight is not None and loss.reduction != "mean"
    return "float64" if own == "float32" and (is_weighted or logits.temperature is not None) else own


def _wide_block(logits: Logits, loss: Loss, index: Index, part: Part, out: Any) -> Any:
    """The losses of any targets, and the gradients, in float64 or longdouble throughout."""
    frames, block, axis = logits.frames, logits.block(index), logits.at
    numbers, mask = logits.normalised(index)
    labels, kept, f, scale, temperature = [logits.of_frames(number) for number in part]
    if labels is None:
        q = logits.rows(frames.block(loss.probabilities, index))
    else:
        q = np.zeros_like(numbers.x)
        np.put_along_axis(q, labels, 1, axis)
    weight = None if loss.weight is None else loss.weight.reshape((-1, 1) if axis == 0 else (1, -1))
    value, wq = expected_loss(numbers, q, weight, loss.smoothing)
    of_square = None
    if loss.z_loss:
        rate = loss.z_loss if f is None else loss.z_loss * f
        normaliser = (numbers.m if temperature is None else numbers.m / temperature) + numbers.log_s
        of_square = 2 * rate * normaliser
        value = value + rate * normaliser * normaliser
    if mask is not None:
        np.copyto(value, np.where(numbers.sum(wq) == 0, 0, np.inf), where=~mask.any(axis=axis, keepdims=True))
    if out is not None:
        gradient = loss_gradient(numbers, wq, of_square) * scale
        gradient = gradient if temperature is None else gradient / temperature
        if mask is not None:
            gradient[~mask] = 0
        if kept is not None:
            gradient[np.broadcast_to(~kept, gradient.shape)] = 0
        frames.put(out, index, narrowed(logits.unrows(gradient, block), logits.own))
    return frames.of_rows(value, block)


def entropies(function: str, logits: tuple[Logits, ...], dtype: str) -> Any:
    """The entropy of each frame of the first logits, or its divergence from that of the second.

    The mask, the temperature and the dtype of the first apply to both.
    """
    p = logits[0]
    run: Any = getattr(p.entry.backend, "run_entropies", None) if p.entry and p.entry.passed_as == NUMPY else None
    is_native = run is not None and at_least_float32(p.own) == "float32"
    is_native = is_native and all(x.values.dtype == np_dtype(p.own) for x in logits)
    is_native = is_native and not isinstance(p.temperature, np.ndarray) and is_divisor(p.temperature or 1.0)
    if is_native and np_dtype(dtype) is not BFLOAT16_BITS:
        return _native_entropies(partial(run, function), logits, dtype)

    def of_block(index: Index) -> tuple[Any, Any]:
        block, mask = p.normalised(index)
        if len(logits) == 1:
            return entropy(block), mask
        return divergence(block, logits[1].normalised(index)[0], p.of_frames(p.temperature_block(index))), mask

    return narrowed(_by_blocks(p, of_block), dtype)


def _native_entropies(run: Any, logits: tuple[Logits, ...], dtype: str) -> Any:
    """`entropies` by the backend's own function, called on whole arrays if nothing has to be copied."""
    p, frames = logits[0], logits[0].frames
    result = np.zeros(frames.shape, np_dtype(dtype))
    is_whole = frames.order is None and p.mask is None
    for index in frames.blocks(p.values.size if is_whole else BLOCK_ELEMENTS) if frames.n_classes else ():
        blocks, mask, out = [x.block(index) for x in logits], p.mask_block(index), frames.beside(result, index)
        run(blocks, frames.at, out, mask, p.temperature or 1.0)
        if mask is not None:
            np.copyto(out, 0, where=~mask.any(axis=frames.at, keepdims=True))
    return result


def _by_blocks(logits: Logits, of_block: Any) -> Any:
    """One number for each frame, 0 where all classes are masked."""
    frames = logits.frames
    result = np.zeros(frames.shape, logits.wide)
    for index in frames.blocks(WIDE_ELEMENTS) if frames.n_classes else ():
        value, mask = of_block(index)
        if mask is not None:
            value = np.where(mask.any(axis=logits.at, keepdims=True), value, 0)
        result[index] = value.reshape(result[index].shape)
    return result
