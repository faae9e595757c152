"""Checks of arguments: the rules for shape, dtype, axis and `out`, common to all operations."""

import operator
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from lsm._signals import reraise_from_handler

NUMPY, CUPY = "numpy.ndarray", "cupy.ndarray"
DTYPES = ("float16", "bfloat16", "float32", "float64", "longdouble")

# The dtype for views of another library's bfloat16 where ml_dtypes is not installed. NumPy has no arithmetic for it, so
# it cannot be misread. It is compared by identity, so that a user's structured array is never mistaken for it.
BFLOAT16_BITS = np.dtype([("bfloat16", np.uint16)])

_NAME_BY_CHAR = {"e": "float16", "f": "float32", "d": "float64", "g": "longdouble"}
_CHAR_BY_NAME = {name: char for char, name in _NAME_BY_CHAR.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """'float16', 'bfloat16', 'float32', 'float64' or 'longdouble'; for other dtypes, NumPy's name."""
    name = _NAME_BY_CHAR.get(dtype.char)  # dtype.name alone takes 2 microseconds
    return name or ("bfloat16" if dtype is BFLOAT16_BITS else dtype.name)


@cache
def np_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of this name; for bfloat16, that of ml_dtypes or `BFLOAT16_BITS`."""
    if name != "bfloat16":
        return np.dtype(_CHAR_BY_NAME[name])
    try:
        import ml_dtypes
    except ImportError:
        return BFLOAT16_BITS
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def as_ndarray(x: Any, name: str) -> Any:
    """Convert an array_like to an ndarray of any dtype."""
    from lsm._foreign import reject  # takes 0.4 ms, not needed for ndarrays

    try:
        made = np.asanyarray(x)
    except ValueError as error:
        reraise_from_handler(error)
        raise ValueError(f"{name}: cannot be converted to an array: {error}") from error
    except (TypeError, RuntimeError) as error:  # from __array__, for example of a tensor that requires grad
        reraise_from_handler(error)
        raise TypeError(f"{name}: a {type(x).__name__} cannot be converted to an array: {error}") from error
    reject(made, name)  # the result of __array__
    return np.asarray(made)


def as_array(x: Any, name: str) -> Any:
    """Convert an array_like to an ndarray of a supported floating dtype.

    An ndarray that is aligned and in native byte order is not copied.
    """
    if type(x) is not np.ndarray:
        x = as_ndarray(x, name)
    dtype = x.dtype
    if dtype.char not in _NAME_BY_CHAR:
        if dtype.kind in "iub":
            return converted(x, "float64")
        if dtype_name(dtype) not in DTYPES:
            raise TypeError(f"{name}: {_rejection(dtype, name)}")
    if not (dtype.isnative and x.flags.aligned):
        return x.astype(dtype.newbyteorder("="))
    return x


def converted(x: Any, dtype: str) -> Any:
    """The array in another dtype; itself if it already has it. The caller's floating-point settings do not matter."""
    requested = np_dtype(dtype)
    if x.dtype == requested:
        return x
    from lsm._arithmetic import call_in_float_env

    return call_in_float_env(x.astype, requested)


def _rejection(dtype: np.dtype[Any], name: str) -> str:
    """Why arrays of this dtype are rejected, and what to pass instead."""
    if dtype.kind == "c":
        return f"{dtype} numbers have no order; pass {name}.real or abs({name})"
    if dtype.names is not None:
        field = repr(dtype.names[0]) if dtype.names else "'field'"
        return f"a structured array; pass one field, such as {name}[{field}]"
    if dtype.kind == "O":
        return f"an array of Python objects; pass numpy.asarray({name}, dtype=float) if they are numbers"
    if dtype.kind in "SU":
        return f"an array of text ({dtype}); pass {name}.astype(float) if it contains numbers"
    return f"dtype {dtype} is not accepted; accepted: {', '.join(DTYPES)}, integers and bool"


def result_dtype(own: str, dtype: Any) -> str:
    """The name of the dtype of the result: `dtype` if given, else that of the input."""
    if dtype is None or (isinstance(dtype, str) and dtype in DTYPES):
        return dtype or own
    try:
        requested: np.dtype[Any] = np.dtype(dtype)
    except Exception as error:  # SyntaxError, ValueError, ...: NumPy parses strings and reads attributes of objects
        reraise_from_handler(error)
        raise TypeError(f"dtype: {dtype!r} is not a dtype ({error}); accepted: {', '.join(DTYPES)}") from error
    if dtype_name(requested) not in DTYPES:
        raise TypeError(f"dtype: {requested} is not supported; accepted: {', '.join(DTYPES)}")
    return dtype_name(requested)


def at_least_float32(own: str) -> str:
    """The dtype of losses of logits of this dtype."""
    return "float32" if own in ("float16", "bfloat16") else own


def wider(own: str, result: str) -> str:
    """The compute dtype: that of a result with more digits than both float32 and its input, else that of the input."""
    return result if _WIDTHS[result] > max(_WIDTHS[own], _WIDTHS["float32"]) else own


def as_int(value: Any) -> int | None:
    """A value as an int; None if it is a bool or not an integer."""
    try:
        number = operator.index(value)
    except TypeError:
        return None
    is_bool = isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    return None if is_bool else number


_WIDTHS = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 3, "longdouble": 4}


def promoted(a: str, b: str) -> str:
    """The name of the dtype to which NumPy promotes both: float16 and bfloat16 to float32, with any ml_dtypes."""
    if a != b and _WIDTHS[a] == _WIDTHS[b]:
        return "float32"
    return max(a, b, key=_WIDTHS.__getitem__)


def same_shapes(arrays: tuple[Any, ...], names: tuple[str, ...]) -> None:
    """Raise ValueError unless all shapes agree."""
    if any(array.shape != arrays[0].shape for array in arrays[1:]):
        shapes = " and ".join(str(tuple(array.shape)) for array in arrays)
        raise ValueError(f"{', '.join(names)}: shapes {shapes} differ; they must be the same")


def normalised_axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The axes of the classes, non-negative and sorted.

    A scalar is one frame of one class; the axes -1 and 0 are accepted for it, as in NumPy's reductions.
    """
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    normalised = []
    for item in axes:
        i = as_int(item)
        if i is None:
            raise TypeError(f"axis: {axis!r} is not accepted; accepted: an int, a tuple of ints, or None for all")
        if not -max(ndim, 1) <= i < max(ndim, 1):
            raise AxisError(i, ndim, "axis")
        normalised.append(i % max(ndim, 1))
    if len(set(normalised)) != len(normalised):
        raise ValueError(f"axis: {axis!r} repeats an axis; accepted: each axis once")
    return tuple(sorted(normalised)) if ndim else ()


def check_out(out: Any, shape: tuple[int, ...], dtype: str) -> None:
    """Raise unless `out` can hold a result of this shape and dtype, in any byte order."""
    if type(out) is not np.ndarray:
        from lsm._foreign import explain_rejection, rule_for

        if not isinstance(out, np.ndarray) or rule_for(out) is not None:
            accepted = f"a numpy.ndarray of shape {shape} and dtype {dtype}"
            raise TypeError(f"out: a {type(out).__name__}; accepted: {accepted}{explain_rejection(out)}")
    check_out_like(out.shape, dtype_name(out.dtype), shape, dtype)
    if not out.flags.writeable:
        raise ValueError("out: is read-only; accepted: a writable array")
    if not out.flags.c_contiguous and overlaps_itself(out.shape, out.strides, out.itemsize):
        raise ValueError(f"out: its elements overlap (strides {out.strides}); pass an array without overlap")


def check_out_like(found: tuple[int, ...], found_dtype: str, shape: tuple[int, ...], dtype: str) -> None:
    """Raise unless `out` has the shape and dtype of the result."""
    if found != shape:
        raise ValueError(f"out: has shape {found}; the result has shape {shape}")
    if found_dtype != dtype:
        source = "that of the inputs, or set by dtype= except for gradients"
        raise TypeError(f"out: has dtype {found_dtype}; the result has dtype {dtype} ({source})")


def overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether two elements may share memory; also True for rare interleaved layouts in which none do."""
    extent = itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < extent:
            return 0 not in shape
        extent += stride * (n - 1)
    return False


def is_one_axis(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether these axes can be merged into one without a copy."""
    steps = [(stride, n) for n, stride in zip(shape, strides, strict=True) if n > 1]
    return all(outer == inner * n for (outer, _), (inner, n) in pairwise(steps))


def same_memory(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays are views of the same elements."""
    return a is b or (
        a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def check_aligned(offsets: Sequence[int], itemsize: int, name: str) -> None:
    """Raise TypeError unless an address and strides, in bytes, are multiples of the element size."""
    if any(offset % itemsize for offset in offsets):
        raise TypeError(
            f"{name}: its elements are not aligned to their size, {itemsize} bytes, as CUDA requires; pass an aligned "
            "copy"
        )
