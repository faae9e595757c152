"""The library of an array (NumPy, PyTorch, JAX, CuPy, or any other that supports DLPack), or the engine for it.

Nothing here imports a library: a program that has an array has imported it.
"""

import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from lsm import _check
from lsm._errors import BackendUnsupportedError
from lsm._interop_base import ArrayLibrary, Operand
from lsm._version import install_command


class DlpackLibrary(ArrayLibrary):
    """Any other library that supports DLPack."""

    def validate(self, x: Any, name: str) -> Operand:
        """Check an argument; raise TypeError if lsm does not support it."""
        from lsm._foreign import reject

        reject(x, name)
        return super().validate(x, name)

    def has_int64(self, x: Any) -> bool:
        """Whether the library has 64-bit integers on the device of x, according to the array API."""
        namespace = getattr(x, "__array_namespace__", None)
        inspect = None if namespace is None else getattr(namespace(), "__array_namespace_info__", None)
        return inspect is None or "int64" in inspect().dtypes(device=x.device)


class NumpyLibrary(ArrayLibrary):
    """numpy.ndarray, and array_likes."""

    dtypes = _check.DTYPES
    converter = "numpy.asarray"

    def type_name(self, x: Any) -> str:
        """The name of this type in `Backend.array_types`."""
        return _check.NUMPY

    def device_kind(self, x: Any) -> str:
        """'cpu'."""
        return "cpu"

    def device(self, x: Any) -> str:
        """'cpu'."""
        return "cpu"

    def validate(self, x: Any, name: str) -> Operand:
        """Convert the argument to an ndarray; raise TypeError if lsm does not support it."""
        array = _check.as_array(self.as_ndarray(x, name), name)
        return Operand(array, "cpu", _check.dtype_name(array.dtype))

    def as_ndarray(self, x: Any, name: str) -> Any:
        """Convert the argument to an ndarray of any dtype; raise TypeError if it is more than numbers in memory."""
        if type(x) is np.ndarray:
            return x
        from lsm._foreign import reject  # takes 0.4 ms, not needed for ndarrays
        from lsm._sequences import as_list, foreign_items

        reject(x, name)
        items = as_list(x)
        if items is not None:
            x = items
            for index, item in foreign_items(x):
                _check_item(item, name, index)
        if hasattr(type(x), "__cuda_array_interface__"):
            raise TypeError(
                f"{name}: a {type(x).__name__} on a CUDA device, which NumPy would copy to the CPU; "
                f"pass cupy.asarray({name})"
            )
        return _check.as_ndarray(x, name)

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The name of the dtype of the result: `dtype`, as passed by the user, or that of the input."""
        name = _check.result_dtype(own, dtype)
        if name == "bfloat16" and _check.np_dtype(name) is _check.BFLOAT16_BITS:
            raise TypeError(f"dtype: NumPy has bfloat16 only with ml_dtypes: {install_command('bfloat16')}")
        return name

    def as_numpy(self, x: Any, name: str) -> Any:
        """The array itself, which `validate` has converted."""
        return x

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """The array itself."""
        return x

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """The dtype of x, if it is the compute dtype; else None."""
        return x.dtype if _check.dtype_name(x.dtype) == dtype else None

    def from_numpy(self, y: Any, like: Any) -> Any:
        """The result itself; a scalar if it is 0-d, as from NumPy's functions."""
        return y if y.ndim else y[()]

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new array, with the memory order of `like` if the shapes are equal."""
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
        """Whether `out` is aligned and in native byte order, as the contract promises."""
        return bool(out.dtype.isnative and out.flags.aligned)

    def as_base_array(self, out: Any) -> Any:
        """The array as a plain ndarray, without its subclass."""
        return np.asarray(out)

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` and x are the same elements, or share no memory."""
        return not np.may_share_memory(x, out) or _check.same_memory(x, out)


def _check_item(item: Any, name: str, index: str) -> None:
    """Raise TypeError for an item of a list that lsm would reject by itself."""
    from lsm._foreign import reject

    library = library_of(item)
    try:
        if library is NUMPY_LIBRARY:
            reject(item, f"{name}{index}")
        else:
            library.validate(item, f"{name}{index}")
            library.check_readable(item, f"{name}{index}")
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error


NUMPY_LIBRARY = NumpyLibrary()
_DLPACK_LIBRARY = DlpackLibrary()
_NUMPY_TYPES = (np.ndarray, np.generic, list, tuple, float, int)


# Imported when their first array is passed: at import, they would add a tenth to the time of lsm itself. `cache` may
# call a function once for each of several threads that call it first, but there must be one library, as comparisons by
# `is` assume.
_libraries: dict[str, Any] = {}


@cache
def torch_library() -> ArrayLibrary:
    """PyTorch."""
    from lsm._interop_torch import TorchLibrary

    library: ArrayLibrary = _libraries.setdefault("torch", TorchLibrary())
    return library


@cache
def cupy_library() -> Any:
    """CuPy."""
    from lsm._interop_cupy import CupyLibrary

    return _libraries.setdefault("cupy", CupyLibrary())


@cache
def jax_library() -> ArrayLibrary:
    """JAX."""
    from lsm._interop_jax import JaxLibrary

    library: ArrayLibrary = _libraries.setdefault("jax", JaxLibrary())
    return library


# By the exact types of arrays, which are the usual arguments: the fastest lookup.
_by_type: dict[type, ArrayLibrary] = {np.ndarray: NUMPY_LIBRARY}


def library_of(x: Any) -> ArrayLibrary:
    """The library of an argument; NumPy for everything that is not an array of another library."""
    return _by_type.get(type(x)) or _find_library(x)


def _find_library(x: Any) -> ArrayLibrary:
    if isinstance(x, _NUMPY_TYPES):
        return NUMPY_LIBRARY
    tensor = getattr(sys.modules.get("torch"), "Tensor", ())
    if isinstance(x, tensor):
        if type(x) is tensor:
            _by_type[type(x)] = torch_library()
        return torch_library()
    if isinstance(x, getattr(sys.modules.get("jax"), "Array", ())):
        if type(x).__name__ == "ArrayImpl":  # whether a tracer is an Array depends on its value
            _by_type[type(x)] = jax_library()
        return jax_library()
    if isinstance(x, getattr(sys.modules.get("cupy"), "ndarray", ())):
        library: ArrayLibrary = cupy_library()
        return library
    if hasattr(type(x), "__dlpack_device__"):
        return _DLPACK_LIBRARY
    return NUMPY_LIBRARY


# The classes of arrays that are labelled or not computed yet, with their modules, and the module of lsm for them.
_ENGINES = (("xarray", "DataArray", "lsm.engines.xarray_"), ("dask.array", "Array", "lsm.engines.dask_"))


def engine_for(arrays: Iterable[Any]) -> Any:
    """The engine for a call with these inputs; None for arrays on which lsm computes directly."""
    for module, name, engine in _ENGINES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and any(isinstance(x, kind) for x in arrays):
            return import_module(engine)
    return None


def check_alike(library: ArrayLibrary, other: ArrayLibrary, a: Any, b: Any, names: tuple[str, str]) -> None:
    """Raise unless both arrays belong to one library and are on one device."""
    if library is other:
        is_same_device = library.device(a) == other.device(b)
    else:
        is_same_device = library.device_kind(a) == other.device_kind(b)
    if not is_same_device:
        places = f"{library.device(a)} and {other.device(b)}"
        raise BackendUnsupportedError(
            f"{', '.join(names)}: on {places}; lsm does not move arrays between devices, move one of them"
        )
    if library.type_name(a) != other.type_name(b):
        first, second = (names[1], library) if other is NUMPY_LIBRARY or not other.converter else (names[0], other)
        remedy = f"pass {second.converter}({first})" if second.converter else "pass both as one type"
        raise TypeError(f"{names[0]}, {names[1]}: a {library.type_name(a)} and a {other.type_name(b)}; {remedy}")
