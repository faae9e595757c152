"""The NumPy backend: the reference implementation, as short as accuracy and a decent speed permit.

It computes in float64 and rounds once. For a float64 result, this alone would cost digits, so differences are two
numbers, and sums are compensated. The same holds for longdouble. Frames are processed in blocks, in two dimensions: see
`_blocks`, and for functions of logits `_slices`.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from lsm._arithmetic import compute
from lsm.backends import _slices, _slices_backward
from lsm.backends._blocks import plain_sum, run_in_blocks, sum_unless_cancelled, two_sum, twofold_sum
from lsm.backends.base import API_VERSION, Backend


class NumpyBackend(Backend):
    """All dtypes; uses about ten temporaries of `BLOCK_ELEMENTS`, or of a slice or frame if that is longer."""

    name = "numpy"
    api_version = API_VERSION
    dtypes = ("float16", "bfloat16", "float32", "float64", "longdouble")
    same_bits = True
    # The float64 exponential of NumPy 1 is off by up to 1.5 ulp with AVX-512, that of NumPy 2 by 0.7.
    max_ulp = MappingProxyType({} if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else {"float64": 6})
    slice_classes = MappingProxyType(dict.fromkeys(dtypes[:-1], _slices.SLICE_CLASSES))

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """y = (x - m) - log1p(s), with s the sum of exp(x - m) over all classes but one of the largest."""
        compute(_slices.write, "log_softmax", x, axis, out)

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """dx = dy - exp(y) * s, as (dy - s) - expm1(y) * s where y > -ln 2."""
        compute(_slices_backward.write, grad_output, output, axis, out)

    def softmax(self, x: Any, axis: int, out: Any) -> None:
        """p = exp(x - m) / (1 + s)."""
        compute(_slices.write, "softmax", x, axis, out)

    def softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """dx = p * (e - sum of p * e), with e = dy - dy[k] and k the largest class."""
        _run(_softmax_backward, (grad_output, output), axis, out)

    def logsumexp(self, x: Any, axis: int, out: Any) -> None:
        """L = m + log1p(s)."""
        compute(_slices.write, "logsumexp", x, axis, out)

    def partials(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.partials`."""
        compute(_slices.write_partials, x, axis, out)

    def log_softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_of_part`."""
        compute(_of_part, "log_softmax", x, partials, axis, out)

    def softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.softmax_of_part`."""
        compute(_of_part, "softmax", x, partials, axis, out)

    def logsumexp_of_partials(self, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.logsumexp_of_partials`."""
        compute(_of_part, "logsumexp", out, partials, axis, out)

    def partials_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """See `Backend.partials_backward`."""
        compute(_slices_backward.write_partials, grad_output, output, axis, out)

    def log_softmax_backward_of_part(self, grad_output: Any, output: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_backward_of_part`."""
        compute(_gradient_of_part, grad_output, output, partials, axis, out)

    @property
    def fast_functions(self) -> dict[str, Any]:
        """See `CythonBackend.fast_functions`."""
        maps = ("log_softmax", "log_softmax_backward", "softmax", "softmax_backward")
        return {name: partial(_fast, getattr(self, name), False) for name in maps} | {
            "logsumexp": partial(_fast, self.logsumexp, True)
        }


def _fast(method: Any, is_reduction: bool, *arguments: Any) -> Any:
    """The result for arrays that need no validation, one axis, no mask and, of maps, a plain `out`; else None."""
    *inputs, axis, out = arguments
    x = inputs[0]
    for array in inputs if out is None else (*inputs, out):
        if type(array) is not np.ndarray or array.shape != x.shape or array.dtype != x.dtype or not array.flags.aligned:
            return None
    axis = 0 if axis is None and x.ndim == 1 else axis
    if type(axis) is not int or not -x.ndim <= axis < x.ndim or not x.size:
        return None
    if out is not None:
        is_apart = all(array is out or not np.may_share_memory(array, out) for array in inputs)
        if is_reduction or not (out.flags.carray and is_apart):
            return None
    axis %= x.ndim
    if is_reduction:
        y = np.empty((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
        method(*inputs, axis, y)
        return y.squeeze(axis)[()]
    y = np.empty_like(x) if out is None else out
    method(*inputs, axis, y)
    return y


def _run(function: Callable[..., Any], inputs: tuple[Any, ...], axis: int, out: Any) -> None:
    compute(run_in_blocks, function, inputs, axis, (out,), out.itemsize < 8)


def _of_part(name: str, x: Any, partials: Any, axis: int, out: Any) -> None:
    slices = _slices.Sums(*[partials[..., i] for i in range(3)])
    _slices.write_part(name, x, _slices.fold(slices, axis), axis, out)


def _gradient_of_part(dy: Any, y: Any, partials: Any, axis: int, out: Any) -> None:
    slices = _slices_backward.Sums(*[partials[..., i] for i in range(5)])
    _slices_backward.write_part(dy, y, _slices_backward.fold(slices, axis), axis, out)


# -- the gradient of softmax, of a block -----------------------------------------------------------------------------


def _largest(x: Any, at: int) -> Any:
    """The positions of the largest class of each frame (of several, the first), in memory order."""
    k = x.argmax(axis=at)
    n = k.size
    return k * n + np.arange(n) if at == 0 else k + np.arange(0, x.size, x.shape[1])


def _softmax_backward(dy: Any, p: Any, at: int, is_narrow: bool) -> Any:
    k = _largest(p, at)
    shape = (1, -1) if at == 0 else (-1, 1)
    top, p_top = dy.ravel()[k].reshape(shape), p.ravel()[k].reshape(shape)
    bad = (top + p_top) * 0  # NaN in a frame with NaN or an infinity, if the sum is not
    if is_narrow:
        e = np.subtract(dy, top, out=dy)
        s = sum_unless_cancelled(e * p, at)
        e -= s + (s * 0 + bad)
        e *= p
        return e
    # times h, so that no difference overflows and no product is subnormal
    largest = np.abs(dy).max(axis=at, keepdims=True)
    h = np.ldexp(dy.dtype.type(1), np.where(largest > 2.0**900, -40, np.where(largest < 2.0**-800, 200, 0)))
    e, rest = two_sum(dy * h, -top * h)
    s = twofold_sum(p * e, at) + plain_sum(p * rest, at)
    return p * ((e - (s + (s * 0 + bad))) + rest) / h


backend = NumpyBackend()
