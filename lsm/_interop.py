"""Which library an array is of: NumPy, PyTorch, JAX, CuPy, or any that speaks DLPack.

Nothing here imports a library. An array of PyTorch can only come from a program that has imported it.
"""

import sys
from typing import Any

import numpy as np

from lsm import _check
from lsm._interop_base import ArrayLibrary, Operand
from lsm._interop_cupy import CupyLibrary
from lsm._interop_jax import JaxLibrary
from lsm._interop_torch import TorchLibrary
from lsm._version import install_command


class DlpackLibrary(ArrayLibrary):
    """Arrays of a library that lsm does not know, and that speak DLPack."""

    def validate(self, x: Any, name: str, axis: Any = -1) -> Operand:
        """Look at an argument; raise TypeError for what lsm does not take."""
        from lsm._foreign import refuse

        refuse(x, name, axis)
        return super().validate(x, name, axis)


class NumpyLibrary(ArrayLibrary):
    """numpy.ndarray, and whatever NumPy makes one of."""

    dtypes = _check.DTYPES
    converter = "numpy.asarray"

    def type_name(self, x: Any) -> str:
        """The name by which backends declare this type."""
        return _check.NUMPY

    def device_kind(self, x: Any) -> str:
        """NumPy's arrays lie in the memory of the CPU."""
        return "cpu"

    def device(self, x: Any) -> str:
        """As `device`."""
        return "cpu"

    def validate(self, x: Any, name: str, axis: Any = -1) -> Operand:
        """Make an ndarray of the argument; raise TypeError for what lsm does not take."""
        if type(x) is not np.ndarray:
            from lsm._foreign import SEQUENCES, foreign_items, refuse

            if isinstance(x, SEQUENCES):
                for place, item in foreign_items(x):
                    _check_item(item, name, place)
            else:
                refuse(x, name, axis)
        if type(x) is not np.ndarray and hasattr(type(x), "__cuda_array_interface__"):
            raise TypeError(
                f"{name}: a {type(x).__name__} on a CUDA device, of which NumPy would make a copy on the CPU; "
                f"give cupy.asarray({name})"
            )
        array = _check.as_array(x, name)
        return Operand(array, "cpu", _check.dtype_name(array.dtype))

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The dtype of the result by name: `dtype`, as the user spelt it, or that of the input."""
        wanted = _check.result_dtype(own, dtype)
        if wanted == "bfloat16" and _check.np_dtype(wanted) is _check.BFLOAT16_BITS:
            raise TypeError(f"dtype: NumPy has bfloat16 only with ml_dtypes: {install_command('bfloat16')}")
        return wanted

    def as_numpy(self, x: Any, name: str) -> Any:
        """The array itself, of which `take` made one."""
        return x

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """The array itself."""
        return x

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """The dtype, if x is computed in it."""
        return x.dtype if _check.dtype_name(x.dtype) == dtype else None

    def from_numpy(self, y: Any, like: Any) -> Any:
        """The result itself; a scalar where it has no dimensions, as NumPy's own functions give."""
        return y if y.ndim else y[()]

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new array, in the order of the axes of `like` in memory if it has the same shape."""
        if like.shape == shape:
            return np.empty_like(like, dtype=_check.np_dtype(dtype), subok=False)
        return np.empty(shape, _check.np_dtype(dtype))

    def signature(self, x: Any) -> tuple[Any, ...]:
        """Shape, dtype and device."""
        return x.shape, x.dtype, "cpu"

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides, in bytes."""
        strides: tuple[int, ...] = x.strides
        return strides

    def can_write_directly(self, out: Any, inputs: tuple[Any, ...]) -> bool:
        """Whether `out` is aligned and in native byte order, as backends may expect."""
        return bool(out.dtype.isnative and out.flags.aligned)

    def as_base_array(self, out: Any) -> Any:
        """Without the subclass."""
        return np.asarray(out)

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` is the very memory of x, or shares none with it."""
        return not np.may_share_memory(x, out) or _check.same_memory(x, out)


def _check_item(item: Any, name: str, place: str) -> None:
    """Raise TypeError for an item of a list that lsm would not take alone."""
    from lsm._foreign import refuse

    library = library_of(item)
    try:
        if library is NUMPY_LIBRARY:
            refuse(item, f"{name}{place}")
        else:
            library.validate(item, f"{name}{place}")
            library.check_readable(item, f"{name}{place}")
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error


NUMPY_LIBRARY = NumpyLibrary()
TORCH_LIBRARY = TorchLibrary()
CUPY_LIBRARY = CupyLibrary()
_DLPACK_LIBRARY, _JAX_LIBRARY = DlpackLibrary(), JaxLibrary()
_NUMPY_TYPES = (np.ndarray, np.generic, list, tuple, float, int)


def library_of(x: Any) -> ArrayLibrary:
    """How to take an argument; what is no array of another library is NumPy's to make one of."""
    if isinstance(x, _NUMPY_TYPES):
        return NUMPY_LIBRARY
    if isinstance(x, getattr(sys.modules.get("torch"), "Tensor", ())):
        return TORCH_LIBRARY
    if isinstance(x, getattr(sys.modules.get("jax"), "Array", ())):
        return _JAX_LIBRARY
    if isinstance(x, getattr(sys.modules.get("cupy"), "ndarray", ())):
        return CUPY_LIBRARY
    if hasattr(type(x), "__dlpack_device__"):
        return _DLPACK_LIBRARY
    return NUMPY_LIBRARY
