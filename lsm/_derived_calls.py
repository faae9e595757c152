"""Calls of the derived functions: check the arguments, compute, and return the caller's type of array.

Imported with the first call, so that `import lsm` stays fast.
"""

from typing import Any

import numpy as np

from lsm import _check, _losses
from lsm._arithmetic import compute
from lsm._interop import check_alike
from lsm._logits import Logits, narrowed
from lsm._losses import Loss
from lsm._select import shape_of_top_k, take, top_k
from lsm._targets import indices_for, number, one_axis, targets_for, weights_for


def take_log_softmax(
    x: Any, indices: Any, axis: Any, temperature: Any, where: Any, out: Any, dtype: Any, backend: Any
) -> Any:
    """See `lsm.take_log_softmax`."""
    logits = Logits("take_log_softmax", x, "x", axis)
    one_axis(axis, logits.values.ndim, "indices")
    result = logits.result_dtype(dtype)
    logits.select(result, backend, temperature, where)
    places, shape = indices_for(indices, logits)
    target = logits.target(out, shape, result)
    logits.keep_apart(target, in_place=False)
    compute(take, logits, places, target.reshape(places.shape))
    return logits.finished(target, out)


def top_k_log_softmax(
    x: Any, k: Any, axis: Any, temperature: Any, where: Any, dtype: Any, backend: Any
) -> tuple[Any, Any]:
    """See `lsm.top_k_log_softmax`."""
    logits = Logits("top_k_log_softmax", x, "x", axis)
    one_axis(axis, logits.values.ndim, "the classes")
    result = logits.result_dtype(dtype)
    logits.select(result, backend, temperature, where)
    shape = shape_of_top_k(k, logits.frames)
    values, places = logits.new(shape, result), np.empty(shape, np.int64)
    compute(top_k, logits, shape[logits.frames.at], values, places)
    return logits.finished(values), logits.finished_indices(places)


def cross_entropy(*inputs: Any, **options: Any) -> Any:
    """See `lsm.cross_entropy`."""
    return _cross_entropy("cross_entropy", *inputs, **options)[0]


def cross_entropy_value_and_grad(*inputs: Any, **options: Any) -> tuple[Any, Any]:
    """See `lsm.cross_entropy_value_and_grad`."""
    return _cross_entropy("cross_entropy_value_and_grad", *inputs, **options)


def _cross_entropy(
    function: str,
    x: Any,
    targets: Any,
    axis: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    temperature: Any,
    where: Any,
    reduction: Any,
    dtype: Any,
    backend: Any,
    out: Any = None,
) -> tuple[Any, Any]:
    """The loss, and the gradient if `function` has one."""
    smoothing = number(label_smoothing, "label_smoothing", 1.0)
    z_loss = number(z_loss, "z_loss", float("inf"))
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: {reduction!r}; accepted: 'mean', 'sum' or 'none'")
    logits = Logits(function, x, "logits", axis)
    result = logits.result_dtype(dtype)
    logits.select(_check.at_least_float32(logits.own), backend, temperature, where)
    q = targets_for(targets, logits, axis, ignore_index)
    labels, probabilities = (q, None) if q.dtype.kind == "i" else (None, q)
    numbers = logits.wide.type(smoothing), logits.wide.type(z_loss)
    loss = Loss(labels, probabilities, weights_for(weight, logits), *numbers, reduction)
    gradient = None
    if function == "cross_entropy_value_and_grad":
        gradient = logits.target(out, logits.values.shape, logits.own)
        logits.keep_apart(gradient, in_place=True)
        if probabilities is not None and np.may_share_memory(q, gradient):
            loss = loss._replace(probabilities=q.copy())
    value = narrowed(compute(_losses.cross_entropy, logits, loss, gradient), result)
    return logits.finished(value), None if gradient is None else logits.finished(gradient, out)


def entropy(x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, backend: Any) -> Any:
    """See `lsm.entropy`."""
    logits = Logits("entropy", x, "x", axis)
    result = logits.result_dtype(dtype)
    logits.select(_check.at_least_float32(logits.own), backend, temperature, where)
    logits.own = _check.wider(logits.own, result)  # a result with more digits needs compensated sums
    return logits.finished(compute(_losses.entropies, "entropy", (logits,), result))


def kl_divergence(p_x: Any, q_x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, backend: Any) -> Any:
    """See `lsm.kl_divergence`."""
    names = ("p_logits", "q_logits")
    p, q = (Logits("kl_divergence", x, name, axis) for x, name in zip((p_x, q_x), names, strict=True))
    check_alike(p.library, q.library, p.array, q.array, names)
    _check.same_shapes((p.values, q.values), names)
    p.own = q.own = _check.promoted(p.own, q.own)
    result = p.result_dtype(dtype)
    p.select(_check.at_least_float32(p.own), backend, temperature, where)
    q.mask, q.temperature = p.mask, p.temperature
    p.own = q.own = _check.wider(p.own, result)
    return p.finished(compute(_losses.entropies, "kl_divergence", (p, q), result))
