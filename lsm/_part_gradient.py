"""Gradients of parts of frames: their partials, and the gradients of parts from the partials of whole frames."""

from typing import Any

import numpy as np

from lsm import _check
from lsm._arithmetic import compute
from lsm._decide import Request
from lsm._dispatch import find_entry
from lsm._interop import NUMPY_LIBRARY, check_alike
from lsm._logits import Logits
from lsm._operations import LOG_SOFTMAX_BACKWARD, PARTIALS_BACKWARD
from lsm._parts import checked_partials
from lsm._targets import one_axis, operand


class PartOfGradient(Logits):
    """A checked gradient and output, for some classes of their frames, and a backend for them.

    Attributes
    ----------
    result : str
        The dtype of the result, to which both are promoted.
    inputs : tuple of ndarray
        Both in that dtype.
    """

    def __init__(self, grad_output: Any, output: Any, axis: Any, backend: Any) -> None:
        names = LOG_SOFTMAX_BACKWARD.names
        super().__init__(PARTIALS_BACKWARD, grad_output, names[0], axis)
        other = Logits(PARTIALS_BACKWARD, output, names[1], axis)
        check_alike(self.library, other.library, self.array, other.array, (names[0], names[1]))
        self.result = _check.promoted(self.own, other.own)
        arrays = self.values, other.values
        _check.same_shapes(arrays, names)
        if not self.values.ndim:
            raise ValueError(f"{names[0]}: has no dimensions; accepted with partials: an array with an axis of classes")
        one_axis(axis, self.values.ndim, "partials")
        dtype = _check.np_dtype(self.result)
        self.inputs = tuple([x if x.dtype == dtype else NUMPY_LIBRARY.astype(x, self.result) for x in arrays])
        request = Request(_check.NUMPY, "cpu", (self.result,) * 2, PARTIALS_BACKWARD)
        self._server = find_entry(request, backend).backend
        self.slice_classes = self._server.slice_classes[self.result]

    def partials(self) -> Any:
        """The partials of all slices."""
        shape, at = self.values.shape, self.frames.at
        out = np.empty((*shape[:at], -(-shape[at] // self.slice_classes), *shape[at + 1 :], 6))
        if out.size:
            compute(self._server.partials_backward, *self.inputs, at, out)
        return out

    def write(self, partials: Any, target: Any) -> None:
        """Write the gradient, from the partials of whole frames."""
        inputs = [
            x.copy() if np.may_share_memory(x, target) and not _check.same_memory(x, target) else x for x in self.inputs
        ]
        if target.size:
            compute(self._server.log_softmax_backward_of_part, *inputs, partials, self.frames.at, target)


def partials_backward(grad_output: Any, output: Any, axis: Any, backend: Any) -> Any:
    """See `lsm.partials_backward`."""
    part = PartOfGradient(grad_output, output, axis, backend)
    has_float64 = part.library.has_int64(part.array)  # in JAX, both are enabled or neither
    return part.finished(part.partials()) if has_float64 else part.partials()


def log_softmax_backward(
    grad_output: Any, output: Any, partials: Any, axis: Any, out: Any, backend: Any, n_classes: Any, **options: Any
) -> Any:
    """See `lsm.log_softmax_backward`."""
    remedies = {"temperature": (1, "divide the result"), "where": (None, "mask both inputs, by 0 and -inf")}
    for name, (accepted, remedy) in remedies.items():
        value = options[name]
        if value is not accepted and (accepted is None or not _is_one(value)):
            raise ValueError(f"{name}: given with partials; accepted: {accepted}; {remedy}")
    part = PartOfGradient(grad_output, output, axis, backend)
    shape, at = part.values.shape, part.frames.at
    made = partials if isinstance(partials, np.ndarray) else operand(partials, "partials", part)
    whole, _ = checked_partials(made, n_classes, at, shape[at], shape, PARTIALS_BACKWARD)
    target = part.target(out, shape, part.result)
    if NUMPY_LIBRARY.can_write_directly(target, ()):
        part.write(whole, target)
    else:
        gradient = np.empty(shape, _check.np_dtype(part.result))
        part.write(whole, gradient)
        target[...] = gradient
    return part.finished(target, out)


def _is_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 1
