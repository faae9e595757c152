"""What arguments may be: every rule of shape, dtype, axis and `out` that the public functions share."""

import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from lsm._errors import BackendUnsupportedError

DTYPES = ("float16", "bfloat16", "float32", "float64", "longdouble")

_NAME_BY_CHAR = {"e": "float16", "f": "float32", "d": "float64", "g": "longdouble"}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """'float16', 'bfloat16', 'float32', 'float64' or 'longdouble'; another dtype's own name."""
    return _NAME_BY_CHAR.get(dtype.char) or dtype.name  # dtype.name alone takes 2 microseconds


def as_array(x: Any, name: str) -> Any:
    """An ndarray of a floating dtype that lsm serves, from anything that NumPy takes as an array.

    No copy is made of an ndarray that is aligned and in native byte order.
    """
    if type(x) is not np.ndarray:
        made = x
        if not _holds_mask(x):
            try:
                made = np.asanyarray(x)
            except ValueError as error:
                raise ValueError(f"{name}: cannot be made an array: {error}") from error
            except (TypeError, RuntimeError) as error:  # what an __array__ raises, of a tensor with a gradient say
                raise TypeError(f"{name}: a {type(x).__name__} cannot be made an array: {error}") from error
        if _holds_mask(made):
            raise TypeError(
                f"{name}: a masked array, whose mask would be lost; give {name}.filled(-numpy.inf), "
                "which leaves masked classes out"
            )
        x = np.asarray(made)
    dtype = x.dtype
    if dtype.char not in _NAME_BY_CHAR:
        if dtype.kind in "iub":
            return x.astype(np.float64)
        if dtype_name(dtype) not in DTYPES:
            raise TypeError(f"{name}: {_why_not(dtype, name)}")
    if not (dtype.isnative and x.flags.aligned):
        return x.astype(dtype.newbyteorder("="))
    return x


def on_device(x: Any, name: str, device: str) -> Any:
    """An array on another device than the CPU, which only its own backend can look into."""
    if not isinstance(getattr(x, "dtype", None), np.dtype) or not hasattr(x, "shape"):
        raise BackendUnsupportedError(
            f"{name}: a {type(x).__name__} on {device}, which no backend that is installed takes; nothing is moved"
        )
    return x


def _holds_mask(x: Any) -> bool:
    """Whether x is a masked array or a (nested) list or tuple that holds one."""
    if "numpy.ma" not in sys.modules:
        return False
    if isinstance(x, (list, tuple)):
        return any(_holds_mask(item) for item in x if not isinstance(item, (float, int)))
    return isinstance(x, np.ma.MaskedArray)


def _why_not(dtype: np.dtype[Any], name: str) -> str:
    """Why an array of this dtype is not taken, and what would be."""
    if dtype.kind == "c":
        return f"{dtype} has no largest class; give {name}.real or abs({name})"
    if dtype.names is not None:
        field = repr(dtype.names[0]) if dtype.names else "'field'"
        return f"a structured array; give one field, such as {name}[{field}]"
    if dtype.kind == "O":
        return f"an array of Python objects; give numpy.asarray({name}, dtype=float) if they are numbers"
    if dtype.kind in "SU":
        return f"an array of text ({dtype}); give {name}.astype(float) if it spells numbers"
    return f"dtype {dtype} is not accepted; accepted: {', '.join(DTYPES)}, integers and bool"


def result_dtype(given: np.dtype[Any], dtype: Any) -> np.dtype[Any]:
    """The dtype of the result: `dtype` if given, else that of the input."""
    if dtype is None:
        return given
    try:
        if isinstance(dtype, str) and dtype == "bfloat16":
            import ml_dtypes

            dtype = ml_dtypes.bfloat16
        wanted: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ImportError) as error:
        raise TypeError(f"dtype: {dtype!r} is not a dtype ({error}); accepted: {', '.join(DTYPES)}") from error
    if dtype_name(wanted) not in DTYPES:
        raise TypeError(f"dtype: {wanted} cannot hold log-probabilities; accepted: {', '.join(DTYPES)}")
    return wanted.newbyteorder("=")


def promoted(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], names: tuple[str, str]) -> np.dtype[Any]:
    """The dtype that NumPy gives to a result of both."""
    try:
        return np.promote_types(a.dtype, b.dtype)
    except TypeError as error:
        raise TypeError(
            f"{names[0]}, {names[1]}: NumPy has no common dtype for {a.dtype} and {b.dtype}; convert one of them"
        ) from error


def same_shape(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], names: tuple[str, str]) -> None:
    """Raise ValueError unless both shapes agree."""
    if a.shape != b.shape:
        raise ValueError(f"{names[0]}, {names[1]}: shapes {a.shape} and {b.shape} differ; they must be the same")


def normalised_axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The axes that hold the classes, each from 0, in the order of the array.

    A scalar is one frame of one class: for it -1 and 0 are accepted too, as NumPy's reductions do.
    """
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    normalised = []
    for item in axes:
        try:
            i = operator.index(item)
        except TypeError:
            i = None
        if i is None or isinstance(item, (bool, np.bool_)):
            raise TypeError(f"axis: {axis!r} is not accepted; accepted: an int, a tuple of ints, or None for all")
        if not -max(ndim, 1) <= i < max(ndim, 1):
            raise AxisError(i, ndim, "axis")
        normalised.append(i % max(ndim, 1))
    if len(set(normalised)) != len(normalised):
        raise ValueError(f"axis: {axis!r} names an axis twice; each may be named once")
    return tuple(sorted(normalised)) if ndim else ()


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless `out` can take a result of this shape and dtype; its byte order is free."""
    if type(out) is not np.ndarray and (not isinstance(out, np.ndarray) or _holds_mask(out)):
        raise TypeError(f"out: a {type(out).__name__}; accepted: a numpy.ndarray of shape {shape} and dtype {dtype}")
    if out.shape != shape:
        raise ValueError(f"out: has shape {out.shape}; the result has shape {shape}")
    if out.dtype != dtype and out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out: has dtype {out.dtype}; the result has dtype {dtype} (dtype= chooses another)")
    if not out.flags.writeable:
        raise ValueError("out: is read-only; accepted: a writable array")
    if not out.flags.c_contiguous and _overlaps_itself(out):
        raise ValueError(f"out: its elements overlap one another (strides {out.strides}); give an ordinary array")


def _overlaps_itself(array: np.ndarray[Any, Any]) -> bool:
    """Whether two elements may share memory; the rare layouts that interlock without doing so count as well."""
    extent = array.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < extent:
            return array.size > 0
        extent += stride * (n - 1)
    return False


def same_memory(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays of one shape are element by element the same memory."""
    return a is b or (
        a.strides == b.strides
        and a.dtype == b.dtype
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )
