"""The contract between lsm and a backend, on one screen.

A backend declares what it serves and has two methods. It is an object (not a class) that an entry
point of the group ``lsm.backends`` names; the entry point's name is the backend's name::

    [project.entry-points."lsm.backends"]
    mine = "my_package.lsm_backend:backend"

The module must import fast: whatever is heavy belongs into `available` or later.
"""

from typing import Any

API_VERSION = 1


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
        Full names of the types it takes as they are, such as "numpy.ndarray".
    """

    name: str
    api_version: int
    priority: int = 0
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...]
    array_types: tuple[str, ...] = ("numpy.ndarray",)

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
