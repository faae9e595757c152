"""Calls of functions with partials: check the arguments, compute, and return the caller's type of array.

Imported with the first call, like `_derived_calls`.
"""

from typing import Any

import numpy as np

from lsm import _check, _derived_calls
from lsm._arithmetic import compute
from lsm._decide import Request
from lsm._dispatch import find_entry
from lsm._interop import NUMPY_LIBRARY
from lsm._logits import Logits, mask_out, narrowed, widened
from lsm._operations import PARTIALS
from lsm._part_gradient import log_softmax_backward, partials_backward  # noqa: F401 (called by name)
from lsm._parts import Part, checked_partials
from lsm._select import find_top_k, shape_of_top_k
from lsm._targets import indices_for, kind, one_axis, targets_for


def partials(x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, backend: Any) -> Any:
    """See `lsm.partials`."""
    part = Part("partials", x, axis, temperature, where, dtype, backend)
    has_float64 = part.library.has_int64(part.array)  # in JAX, both are enabled or neither
    return part.finished(part.partials()) if has_float64 else part.partials()


def log_softmax(x: Any, partials: Any, **options: Any) -> Any:
    """See `lsm.log_softmax`."""
    return _map("log_softmax", x, partials, **options)


def softmax(x: Any, partials: Any, **options: Any) -> Any:
    """See `lsm.softmax`."""
    return _map("softmax", x, partials, **options)


def _map(name: str, x: Any, partials: Any, out: Any, n_classes: Any, **options: Any) -> Any:
    part = Part(name, x, **options)
    whole, _ = part.partials_of_whole(partials, n_classes)
    target = part.target(out, part.values.shape, part.result)
    part.keep_apart(target, in_place=True)
    if NUMPY_LIBRARY.can_write_directly(target, ()):
        part.write(name, whole, target)
    else:
        made = np.empty(target.shape, _check.np_dtype(part.result))
        part.write(name, whole, made)
        target[...] = made
    return part.finished(target, out)


def logsumexp(partials: Any, axis: Any, keepdims: bool, out: Any, dtype: Any, backend: Any, n_classes: Any) -> Any:
    """See `lsm.logsumexp`."""
    logits = Logits("logsumexp", partials, "partials", None)
    n_axes = logits.values.ndim - 1
    if n_axes < 1:
        checked_partials(logits.values, n_classes, 0)  # raises
    one_axis(axis, n_axes, "slices")
    (at,) = _check.normalised_axes(axis, n_axes)
    slices, _ = checked_partials(logits.values, n_classes, at)
    result = logits.library.result_dtype("float64", dtype)
    server = find_entry(Request(_check.NUMPY, "cpu", ("float64", result), PARTIALS), backend).backend
    frames = slices.shape[:at], slices.shape[at + 1 : -1]
    kept = (*frames[0], 1, *frames[1])
    target = logits.target(out, kept if keepdims else (*frames[0], *frames[1]), result)
    made = np.empty(kept, _check.np_dtype(result))
    if not slices.size:
        mask_out(made, np.zeros(kept, bool))
    else:
        server.logsumexp_of_partials(slices, at, made)
    target[...] = made.reshape(target.shape)
    return logits.finished(target, out)


def take_log_softmax(
    x: Any, indices: Any, partials: Any, out: Any, first_class: Any, n_classes: Any, **options: Any
) -> Any:
    """See `lsm.take_log_softmax`."""
    part = Part("take_log_softmax", x, **options)
    whole, n_classes = part.partials_of_whole(partials, n_classes)
    first, n = _first_class(first_class, part, n_classes), part.frames.n_classes
    if n == n_classes <= part.slice_classes:  # x has all classes
        return _derived_calls.take_log_softmax(x, indices, out=out, **options)
    places, shape = indices_for(indices, part, n_classes)
    target = part.target(out, shape, part.result)
    is_here = (places >= first) & (places < first + n)
    part.only(np.where(is_here, places - first, 0), is_here)
    made = np.empty(places.shape, _check.np_dtype(part.result))
    part.write("log_softmax", whole, made)
    compute(mask_out, made, is_here | np.isnan(widened(made, np.float64)))
    target[...] = made.reshape(shape)
    return part.finished(target, out)


def cross_entropy(
    logits: Any,
    targets: Any,
    partials: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any,
    dtype: Any,
    first_class: Any,
    n_classes: Any,
    **options: Any,
) -> Any:
    """See `lsm.cross_entropy`."""
    given = {"weight": weight, "label_smoothing": label_smoothing, "z_loss": z_loss, "reduction": reduction}
    for name, accepted in {"weight": None, "label_smoothing": 0, "z_loss": 0, "reduction": "none"}.items():
        if given[name] is not accepted and (name == "weight" or given[name] != accepted):
            raise ValueError(
                f"{name}: {given[name]!r}; accepted with partials: {accepted!r}; reduce the sum over all parts"
            )
    part = Part("cross_entropy", logits, dtype=None, name="logits", **options)
    whole, n_classes = part.partials_of_whole(partials, n_classes)
    first, at, n = _first_class(first_class, part, n_classes), part.frames.at, part.frames.n_classes
    result = part.result_dtype(dtype)
    labels = targets_for(targets, part, options["axis"], ignore_index, n_classes)
    if kind(labels) == "floating":
        raise TypeError(f"targets: dtype {labels.dtype}; accepted with partials: integers, the indices of classes")
    if n == n_classes <= part.slice_classes:  # logits have all classes
        options |= given | {"ignore_index": ignore_index, "dtype": dtype}
        return _derived_calls.cross_entropy(logits, targets, **options)
    places = np.expand_dims(labels, at)
    is_here = (places >= first) & (places < first + n)
    part.only(np.where(is_here, places - first, 0), is_here)
    y = np.empty(places.shape, _check.np_dtype(part.result))
    part.write("log_softmax", whole, y)
    losses = np.where(is_here, compute(np.subtract, 0, widened(y, part.wide)), 0)
    return part.finished(narrowed(losses.reshape(labels.shape), result))


def top_k_log_softmax(
    x: Any, partials: Any, k: Any, first_class: Any, n_classes: Any, **options: Any
) -> tuple[Any, Any]:
    """See `lsm.top_k_log_softmax`."""
    part = Part("top_k_log_softmax", x, **options)
    whole, n_classes = part.partials_of_whole(partials, n_classes)
    first, at, n = _first_class(first_class, part, n_classes), part.frames.at, part.frames.n_classes
    if n == n_classes <= part.slice_classes:  # x has all classes
        return _derived_calls.top_k_log_softmax(x, k, **options)
    shape = shape_of_top_k(k, part.frames._replace(n_classes=n_classes))
    shape = (*shape[:at], min(shape[at], n), *shape[at + 1 :])
    places = np.empty(shape, np.int64)
    compute(find_top_k, part, shape[at], places)
    part.only(places)
    values = part.new(shape, part.result)
    part.write("log_softmax", whole, values)
    return part.finished(values), part.finished_indices(places + first)


def _first_class(first_class: Any, part: Part, n_classes: int) -> int:
    """The index, in the whole frame, of the first class of the part."""
    first = _check.as_int(first_class)
    if first is None:
        raise TypeError(f"first_class: {first_class!r}; accepted: an int, the index of the first class of x")
    last = n_classes - part.frames.n_classes
    if not 0 <= first <= max(last, 0):
        raise ValueError(
            f"first_class: {first}; accepted: 0 to {last}, for {part.frames.n_classes} of {n_classes} classes"
        )
    return first
