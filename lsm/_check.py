"""What arguments may be: every rule of shape, dtype, axis and `out` that the public functions share."""

import operator
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

NUMPY, CUPY = "numpy.ndarray", "cupy.ndarray"
DTYPES = ("float16", "bfloat16", "float32", "float64", "longdouble")

# What the bits of another library's bfloat16 are seen as where ml_dtypes is not installed: no arithmetic of NumPy's
# takes it by mistake. It is known by identity, so that nobody's own structured array is taken for one.
BFLOAT16_BITS = np.dtype([("bfloat16", np.uint16)])

_NAME_BY_CHAR = {"e": "float16", "f": "float32", "d": "float64", "g": "longdouble"}
_CHAR_BY_NAME = {name: char for char, name in _NAME_BY_CHAR.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """'float16', 'bfloat16', 'float32', 'float64' or 'longdouble'; another dtype's own name."""
    name = _NAME_BY_CHAR.get(dtype.char)  # dtype.name alone takes 2 microseconds
    return name or ("bfloat16" if dtype is BFLOAT16_BITS else dtype.name)


@cache
def np_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of this name; for bfloat16 that of ml_dtypes, or else `BFLOAT16_BITS`."""
    if name != "bfloat16":
        return np.dtype(_CHAR_BY_NAME[name])
    try:
        import ml_dtypes
    except ImportError:
        return BFLOAT16_BITS
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def as_array(x: Any, name: str) -> Any:
    """An ndarray of a floating dtype that lsm serves, from anything that NumPy takes as an array.

    No copy is made of an ndarray that is aligned and in native byte order.
    """
    if type(x) is not np.ndarray:
        from lsm._foreign import refuse  # here and below: 0.4 ms, which an ndarray need not cost

        try:
            made = np.asanyarray(x)
        except ValueError as error:
            raise ValueError(f"{name}: cannot be made an array: {error}") from error
        except (TypeError, RuntimeError) as error:  # what an __array__ raises, of a tensor with a gradient say
            raise TypeError(f"{name}: a {type(x).__name__} cannot be made an array: {error}") from error
        refuse(made, name)  # what an __array__ returns
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


def result_dtype(given: str, dtype: Any) -> str:
    """The dtype of the result by name: `dtype` if given, else that of the input."""
    if dtype is None or (isinstance(dtype, str) and dtype in DTYPES):
        return dtype or given
    try:
        wanted: np.dtype[Any] = np.dtype(dtype)
    except Exception as error:  # SyntaxError, ValueError, ...: NumPy parses text, and asks objects for their dtype
        raise TypeError(f"dtype: {dtype!r} is not a dtype ({error}); accepted: {', '.join(DTYPES)}") from error
    if dtype_name(wanted) not in DTYPES:
        raise TypeError(f"dtype: {wanted} cannot hold log-probabilities; accepted: {', '.join(DTYPES)}")
    return dtype_name(wanted)


_WIDTHS = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 3, "longdouble": 4}


def promoted(a: str, b: str, names: tuple[str, str]) -> str:
    """The dtype, by name, that NumPy gives to a result of both."""
    if a != b and _WIDTHS[a] == _WIDTHS[b]:
        raise TypeError(f"{names[0]}, {names[1]}: NumPy has no common dtype for {a} and {b}; convert one of them")
    return max(a, b, key=_WIDTHS.__getitem__)


def same_shapes(arrays: tuple[Any, ...], names: tuple[str, ...]) -> None:
    """Raise ValueError unless all shapes agree."""
    if any(array.shape != arrays[0].shape for array in arrays[1:]):
        shapes = " and ".join(str(tuple(array.shape)) for array in arrays)
        raise ValueError(f"{', '.join(names)}: shapes {shapes} differ; they must be the same")


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


def check_out(out: Any, shape: tuple[int, ...], dtype: str) -> None:
    """Raise unless `out` can take a result of this shape and dtype; its byte order is free."""
    if type(out) is not np.ndarray:
        from lsm._foreign import refusal, why_refused

        if not isinstance(out, np.ndarray) or refusal(out) is not None:
            accepted = f"a numpy.ndarray of shape {shape} and dtype {dtype}"
            raise TypeError(f"out: a {type(out).__name__}; accepted: {accepted}{why_refused(out)}")
    check_out_like(out.shape, dtype_name(out.dtype), shape, dtype)
    if not out.flags.writeable:
        raise ValueError("out: is read-only; accepted: a writable array")
    if not out.flags.c_contiguous and overlaps_itself(out.shape, out.strides, out.itemsize):
        raise ValueError(f"out: its elements overlap one another (strides {out.strides}); give an ordinary array")


def check_out_like(found: tuple[int, ...], found_dtype: str, shape: tuple[int, ...], dtype: str) -> None:
    """Raise unless the shape and dtype that were found are those of the result."""
    if found != shape:
        raise ValueError(f"out: has shape {found}; the result has shape {shape}")
    if found_dtype != dtype:
        raise TypeError(f"out: has dtype {found_dtype}; the result has dtype {dtype} (dtype= chooses another)")


def overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether two elements may share memory; the rare layouts that interlock without doing so count as well."""
    extent = itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < extent:
            return 0 not in shape
        extent += stride * (n - 1)
    return False


def is_one_axis(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether one stride leads through axes in their order, so that they can be seen as one without a copy."""
    steps = [(stride, n) for n, stride in zip(shape, strides, strict=True) if n > 1]
    return all(outer == inner * n for (outer, _), (inner, n) in pairwise(steps))


def same_memory(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays of one shape are element by element the same memory."""
    return a is b or (
        a.strides == b.strides
        and a.dtype == b.dtype
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def aligned_on_device(places: Sequence[int], itemsize: int, name: str) -> None:
    """Raise TypeError unless an address and strides, in bytes, are multiples of an element's size."""
    if any(place % itemsize for place in places):
        raise TypeError(
            f"{name}: its elements are not aligned to their {itemsize} bytes, and a CUDA device reads no others; "
            "copy the bytes to where they are"
        )
