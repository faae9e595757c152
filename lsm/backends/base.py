"""The contract between lsm and a backend, on one screen.

A backend declares what it serves and has two methods. It is an object (not a class) that an entry
point of the group ``lsm.backends`` names; the entry point's name is the backend's name::

    [project.entry-points."lsm.backends"]
    mine = "my_package.lsm_backend:backend"

The module must import fast: whatever is heavy belongs into `available` or later.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

API_VERSION = 1

# The accuracy that holds where a backend declares no other: what lsm's own backends reach, 16 bits rounded once.
DEFAULT_MAX_ULP: Mapping[str, float] = MappingProxyType(
    {"float16": 0.501, "bfloat16": 0.501, "float32": 4.0, "float64": 4.0, "longdouble": 4.0}
)


class Backend:
    """What a backend declares, and its two methods. Subclass it, or write the same attributes.

    Attributes
    ----------
    name : str
        The entry point's name.
    api_version : int
        The contract that it was written for: 1. Checked before anything else is used.
    priority : int
        Where several third-party backends serve what no built-in one serves, the highest is chosen.
    devices : tuple of str
        Kinds of device: "cpu", "cuda", ...
    dtypes : tuple of str
        Of "float16", "bfloat16", "float32", "float64", "longdouble".
    array_types : tuple of str
        Full names of the types it takes as they are, such as "numpy.ndarray" or "torch.Tensor".
    max_ulp : mapping of str to float, optional
        By dtype, the error that it stays within, forward and backward: in ulps (units in the last place) of
        the result, for the gradient of the largest of the result and its two terms. For a dtype that is left
        out, `DEFAULT_MAX_ULP` holds.
    same_bits : bool, optional
        Whether it claims that the bits of a frame's result depend on the frame's values only: not on the size
        of the batch, the place in it, repeats, or `out`.

    Notes
    -----
    One more method is optional: ``empty(shape, dtype, like)`` gives a new array of the type and on the device of
    the array `like`, of one of the dtypes by name. lsm makes results of numpy.ndarray, torch.Tensor and jax.Array
    itself; a backend for other types must have it.
    """

    name: str
    api_version: int
    priority: int = 0
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...]
    array_types: tuple[str, ...] = ("numpy.ndarray",)
    max_ulp: Mapping[str, float] = MappingProxyType({})
    same_bits: bool = False

    def available(self) -> str | None:
        """None if it can be used here, else the reason why not, as a sentence for the user."""
        return None

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """Write the log-softmax of `x` along `axis` into `out`.

        `x` has a declared type, device and dtype, at least one dimension and one element, native byte
        order and aligned elements; any strides. ``0 <= axis < x.ndim``. `out` has the shape of `x` and a
        declared dtype, perhaps another one: compute in the wider (16 bits in float32) and round once.
        `out` may be `x` itself; it overlaps `x` in no other way.
        """
        raise NotImplementedError

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """Write the gradient ``grad_output - exp(output) * sum(grad_output)`` into `out`.

        All three have one shape and one dtype. `out` may be either of the others itself.
        """
        raise NotImplementedError
