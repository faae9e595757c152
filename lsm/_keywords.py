"""The keywords `where` and `temperature`: checks, and conversion to arrays that go with those of a call."""

import sys
from typing import Any

import numpy as np

from lsm import _check
from lsm._arithmetic import compute
from lsm._errors import BackendUnsupportedError
from lsm._interop import NUMPY_LIBRARY, check_alike, library_of, torch_library
from lsm._interop_base import ArrayLibrary, Operand, name_of_dtype
from lsm._version import install_command


def mask_for(where: Any, x: Any, view: Any, library: ArrayLibrary, name: str = "x") -> Any:
    """The mask of the included classes, a bool array of the shape of `view`; None if `where` is None.

    Parameters
    ----------
    where : array of bool or None
        As passed by the caller.
    x : array
        The input, an array of `library`.
    view : array
        The input as the computation reads it: `x` itself, or a view of it as a NumPy or CuPy array, and broadcast
        against b.
    library : ArrayLibrary
        The library of `x`, to which the mask must belong.
    name : str
        The parameter of the public function that `x` was passed as.

    Returns
    -------
    mask : array of bool, type and shape of `view`
        A view, perhaps with strides of 0; for array_likes, a copy.

    Raises
    ------
    TypeError
        `where` does not have the dtype bool, or belongs to another library.
    ValueError
        `where` does not broadcast to `view`, or would enlarge it.
    BackendUnsupportedError
        It is on another device.
    """
    if where is None:
        return None
    mask = _operand(where, (name, "where"), x, library)
    dtype = name_of_dtype(mask.dtype)
    if dtype != "bool":
        raise TypeError(
            f"where: dtype {dtype}; accepted: bool, True for the classes to include; pass where == 0 for a mask that "
            "is added to logits (0 and -inf), where != 0 for one of 1 and 0"
        )
    check_mask_shape(mask.shape, view.shape, name)
    return broadcast(_as_view(mask, view, library), view.shape)


def temperature_for(
    temperature: Any, x: Any, view: Any, library: ArrayLibrary, axes: tuple[int, ...], name: str = "x"
) -> Any:
    """The temperature, as float64: a float, or an array with length 1 along the axes; None if it is 1.

    Parameters
    ----------
    temperature : number or array
        As passed by the caller: an array of `library`, an ndarray or an array_like.
    x, view, library, name
        As for `mask_for`.
    axes : tuple of int
        The axes of the classes.

    Returns
    -------
    temperature : float, or array of float64, type of `view`
        An array shares no memory with the caller's. It has the shape of `view` with 1 along `axes`; NaN stands for any
        value that is not a finite number above 0.

    Raises
    ------
    TypeError
        `temperature` is not real, or belongs to another library.
    ValueError
        A number that is not finite or not above 0; an array that does not broadcast, or is longer along `axes`.
    BackendUnsupportedError
        It is on another device.
    """
    own = library_of(temperature)
    if own is NUMPY_LIBRARY:
        if isinstance(temperature, (str, bytes, type(None))):
            raise _not_a_temperature(temperature)
        is_number = hasattr(temperature, "__float__") and not hasattr(temperature, "__array__")
        made = _as_float(temperature) if is_number else temperature
        values = NUMPY_LIBRARY.validate(made, "temperature").array
    else:
        values = _operand(temperature, (name, "temperature"), x, library)
        values = torch_library().astype(values, "float64") if own is torch_library() else values
        if isinstance(view, np.ndarray):
            values = library.as_numpy(values, "temperature")
    if isinstance(values, np.ndarray):
        values = _as_float64(values)
        if values.ndim == 0:
            number = float(values)
            if not 0 < number < float("inf"):
                raise _not_a_temperature(temperature)
            return None if number == 1 else number
    frames = tuple([1 if i in axes else n for i, n in enumerate(view.shape)])
    check_temperature_shape(values.shape, frames)
    xp = namespace(view)
    values = like(values, view)
    return broadcast(xp.where((values > 0) & (values < float("inf")), values, float("nan")), frames)


def check_mask_shape(mask: Any, shape: Any, name: str) -> None:
    """Raise ValueError unless a mask of shape `mask` broadcasts to an input of shape `shape`."""
    if not broadcasts(mask, shape):
        raise ValueError(f"where: shape {tuple(mask)} does not broadcast to {tuple(shape)}, the shape of {name}")


def check_temperature_shape(found: Any, frames: tuple[int, ...]) -> None:
    """Raise ValueError unless the shape has one number per frame; `frames` has length 1 for the classes."""
    if not broadcasts(found, frames):
        raise ValueError(
            f"temperature: shape {tuple(found)}; accepted: a finite number above 0, or an array that broadcasts "
            f"to {frames}, one number per frame"
        )


def weights_of(b: Any, x: Any, own: str, library: ArrayLibrary) -> Operand:
    """Check the argument b of `logsumexp`; the dtype is the one to which it and `own`, the dtype of x, are promoted.

    A Python number leaves the dtype as it is. TypeError and BackendUnsupportedError are as for `where`.
    """
    if isinstance(b, (int, float)):
        try:
            return Operand(np.asarray(float(b)), "cpu", own)
        except OverflowError:
            raise ValueError("b: an int that is too large for float64; add its logarithm to the result") from None
    other = library_of(b)
    operand = other.validate(b, "b")
    check_alike(library, other, x, operand.array, ("a", "b"))
    return operand._replace(dtype=_check.promoted(own, operand.dtype))


def with_weights(b: Any, view: Any, library: ArrayLibrary) -> tuple[Any, Any]:
    """`view` and the checked b, broadcast against each other."""
    if isinstance(b, np.ndarray):
        weights = b if isinstance(view, np.ndarray) else like(b, view)
    elif isinstance(view, np.ndarray):
        weights = library.as_numpy(b, "b")
    else:
        weights = b if namespace(b) is namespace(view) else library.as_cupy(b, "b")
    try:
        shape = np.broadcast_shapes(tuple(view.shape), tuple(weights.shape))
    except ValueError:
        shapes = f"{tuple(view.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"a, b: shapes {shapes} do not broadcast against each other") from None
    return broadcast(view, shape), broadcast(weights, shape)


def namespace(x: Any) -> Any:
    """The module of functions for such an array: numpy, cupy or torch."""
    name = type(x).__module__.partition(".")[0]
    if name not in ("numpy", "cupy", "torch"):
        raise BackendUnsupportedError(
            f"where, temperature, b: not supported for a {type(x).__name__} that the backend is passed as it is; use "
            "another backend, or pass a NumPy or CuPy array that shares its memory"
        )
    return sys.modules[name]


def like(values: Any, view: Any) -> Any:
    """The values as float64, as an array of the type and on the device of `view`."""
    xp = namespace(view)
    place = {"device": view.device} if xp.__name__ == "torch" else {}
    return xp.asarray(values, dtype=xp.float64, **place)


def broadcast(x: Any, shape: Any) -> Any:
    """A view in another shape."""
    return namespace(x).broadcast_to(x, tuple(shape))


def _operand(array: Any, names: tuple[str, str], x: Any, library: ArrayLibrary) -> Any:
    """The argument as an array of the library of x, with any dtype."""
    other = library_of(array)
    made = array if other is NUMPY_LIBRARY else other.validate(array, names[1]).array
    check_alike(library, other, x, made, names)
    return NUMPY_LIBRARY.as_ndarray(array, names[1]) if library is NUMPY_LIBRARY else made


def _as_view(mask: Any, view: Any, library: ArrayLibrary) -> Any:
    """The mask as the type of `view`."""
    if isinstance(view, np.ndarray):
        return library.view_as_numpy(mask, "where")
    return mask if namespace(mask) is namespace(view) else library.as_cupy(mask, "where")


def broadcasts(shape: Any, to: Any) -> bool:
    """Whether an array of a shape can be broadcast to another shape without enlarging the latter."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except (TypeError, ValueError, OverflowError):
        raise _not_a_temperature(number) from None


def _as_float64(values: Any) -> Any:
    """A copy as float64; numbers that are too large become inf."""
    if values.dtype is _check.BFLOAT16_BITS:
        raise TypeError(f"temperature: bfloat16 needs ml_dtypes: {install_command('bfloat16')}; or pass float32")
    return compute(values.astype, np.float64)


def _not_a_temperature(temperature: Any) -> ValueError:
    return ValueError(f"temperature: {temperature!r}; accepted: a finite number above 0, or one for each frame")
