"""The contract between lsm and a backend, on one screen.

A backend declares what it supports, and has two required methods and any of the optional ones. It is an object (not a
class) named by an entry point of the group ``lsm.backends``; the name of the entry point is the name of the backend::

    [project.entry-points."lsm.backends"]
    mine = "my_package.lsm_backend:backend"

The module must be fast to import; put heavy imports into `available` or later.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

API_VERSION = 1

# The error bound of backends that declare none: that of lsm's own backends, with 16-bit results rounded once.
DEFAULT_MAX_ULP: Mapping[str, float] = MappingProxyType(
    {"float16": 0.501, "bfloat16": 0.501, "float32": 4.0, "float64": 4.0, "longdouble": 4.0}
)


class Backend:
    """Base class of backends. Subclass it, or define the same attributes and methods.

    Attributes
    ----------
    name : str
        The name of the entry point.
    api_version : int
        The version of the contract: 1. Checked before any other attribute is used.
    priority : int
        The highest is selected if several third-party backends, and no built-in one, support a call.
    devices : tuple of str
        Kinds of device: "cpu", "cuda", ...
    dtypes : tuple of str
        Any of "float16", "bfloat16", "float32", "float64", "longdouble".
    array_types : tuple of str
        Full names of the supported array types, such as "numpy.ndarray" or "torch.Tensor".
    max_ulp : mapping of str to float, optional
        By dtype, the error bound, forward and backward, in ulps (units in the last place) of the result; for the
        gradient, of the largest of the result and its two terms. Default: `DEFAULT_MAX_ULP`.
    same_bits : bool, optional
        Whether the bits of a frame's result depend only on the values of the frame: not on the batch size, the
        position in the batch, repetition, or `out`.
    slice_classes : mapping of str to int, optional
        For a backend that has `partials`: by dtype of the logits, the number of classes in a slice.

    Notes
    -----
    The methods from `softmax` on are optional: a call goes to a backend that has its method; a method inherited from
    this class does not count. The four from `partials` on go together, as do the last two; all six are for
    numpy.ndarray. ``empty(shape, dtype, like)`` is also optional: it returns a new array of the type and device of the
    array `like`, with a dtype given by name. lsm allocates numpy.ndarray, torch.Tensor and jax.Array itself; backends
    for other types must implement `empty`.
    """

    name: str
    api_version: int
    priority: int = 0
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...]
    array_types: tuple[str, ...] = ("numpy.ndarray",)
    max_ulp: Mapping[str, float] = MappingProxyType({})
    same_bits: bool = False
    slice_classes: Mapping[str, int] = MappingProxyType({})

    def available(self) -> str | None:
        """None if the backend can be used, else the reason why not, as a sentence for the user."""
        return None

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """Write the log-softmax of `x` along `axis` into `out`.

        `x` has a declared type, device and dtype, at least one dimension and one element, native byte order, aligned
        elements, and any strides. ``0 <= axis < x.ndim``. `out` has the shape of `x` and a declared dtype, possibly
        another one: compute in the wider (16 bits in float32) and round once. `out` may be `x` itself; otherwise they
        do not overlap.
        """
        raise NotImplementedError

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """Write the gradient ``grad_output - exp(output) * sum(grad_output)`` into `out`.

        All three have the same shape and dtype. `out` may be either of the others.
        """
        raise NotImplementedError

    def softmax(self, x: Any, axis: int, out: Any) -> None:
        """Write the softmax of `x` along `axis` into `out`. The arrays are as for `log_softmax`."""
        raise NotImplementedError

    def softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """Write the gradient ``output * (grad_output - sum(output * grad_output))`` into `out`.

        The arrays are as for `log_softmax_backward`. In the sum, the largest output (of several, the first) counts as
        one minus the others: see `lsm.softmax_backward`.
        """
        raise NotImplementedError

    def logsumexp(self, x: Any, axis: int, out: Any) -> None:
        """Write the logarithm of the sum of ``exp(x)`` along `axis` into `out`.

        The arrays are as for `log_softmax`, but `out` has length 1 along `axis`, and shares no memory with `x` unless
        that has one class and is `out` itself.
        """
        raise NotImplementedError

    def partials(self, x: Any, axis: int, out: Any) -> None:
        """Write four numbers for each slice of the classes into `out`: see `lsm.partials`.

        `x` is as for `log_softmax`. A slice is the next ``slice_classes[dtype]`` classes, or the rest. `out` is
        C-contiguous float64, and has the shape of `x` with the number of slices along `axis`, and a last axis of 4.
        """
        raise NotImplementedError

    def log_softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """Write the log-softmax of frames of which `x` has some or all classes into `out`.

        `partials` are those of the whole frames, as written by the method of that name, at least one per frame; fold
        them from the first to the last, whatever their number. `x` and `out` are as for `log_softmax`. With
        `same_bits`, the results have the bits of whole frames if these were cut at multiples of a slice.
        """
        raise NotImplementedError

    def softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """Write the softmax of such frames. The arrays are as for `log_softmax_of_part`."""
        raise NotImplementedError

    def logsumexp_of_partials(self, partials: Any, axis: int, out: Any) -> None:
        """Write the logarithm of the sum of ``exp(x)`` of frames with these partials into `out`, of length 1 there."""
        raise NotImplementedError

    def partials_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """Write six numbers for each slice of the classes into `out`: see `lsm.partials_backward`.

        The inputs are as for `log_softmax_backward`, and `out` as for `partials`, with a last axis of 6.
        """
        raise NotImplementedError

    def log_softmax_backward_of_part(self, grad_output: Any, output: Any, partials: Any, axis: int, out: Any) -> None:
        """Write the gradient of frames of which the inputs have some or all classes into `out`.

        `partials` are those of the whole frames, as written by `partials_backward`; the rest is as for
        `log_softmax_of_part`.
        """
        raise NotImplementedError
