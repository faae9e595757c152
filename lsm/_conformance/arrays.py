"""Arrays of a declared type on a declared device, in many layouts, between guards that reveal stray writes."""

import math
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

GUARD = 1232.0  # every dtype holds it exactly
_MARGIN = 67  # elements before and after an array, so that it is aligned to elements only


class CannotMakeError(Exception):
    """Such an array cannot be made here; the message gives the reason."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of one of lsm's names."""
    if name == "bfloat16":
        try:
            bfloat16: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
            return bfloat16
        except ImportError as error:
            raise CannotMakeError("NumPy has bfloat16 with ml_dtypes only: pip install ml_dtypes") from error
    return np.dtype(name)


class ArrayMaker:
    """Converts NumPy arrays to arrays of one type and back, for the kit; subclass it for another type.

    Attributes
    ----------
    type_name : str
        As a backend declares it in `array_types`.
    has_negative_strides, has_read_only : bool
        Whether such an array can have them.
    """

    type_name: str
    has_negative_strides = False
    has_read_only = False

    def from_numpy(self, array: Array, device: str) -> Any:
        """A copy on a device of this kind; raises `CannotMakeError` where there is none."""
        raise NotImplementedError

    def to_numpy(self, array: Any) -> Array:
        """The same values in NumPy, with the same bits."""
        raise NotImplementedError

    def transposed(self, array: Any, order: tuple[int, ...]) -> Any:
        """A view with the axes in the given order."""
        return array.transpose(order)

    def broadcast(self, array: Any, shape: tuple[int, ...]) -> Any:
        """A view in which elements share memory."""
        return np.broadcast_to(array, shape)

    def place(self, array: Any) -> tuple[str, str, str]:
        """The type, device and dtype of an array, to compare with those of another."""
        return type(array).__name__, str(getattr(array, "device", "cpu")), str(array.dtype)


class NumpyMaker(ArrayMaker):
    """numpy.ndarray."""

    type_name = "numpy.ndarray"
    has_negative_strides = True
    has_read_only = True

    def from_numpy(self, array: Array, device: str) -> Any:
        """See `ArrayMaker.from_numpy`."""
        if device != "cpu":
            raise CannotMakeError(f"a numpy.ndarray is never on {device}")
        return array.copy()

    def to_numpy(self, array: Any) -> Array:
        """See `ArrayMaker.to_numpy`."""
        return np.array(array)


class TorchMaker(ArrayMaker):
    """torch.Tensor, on any device available to PyTorch."""

    type_name = "torch.Tensor"

    def from_numpy(self, array: Array, device: str) -> Any:
        """See `ArrayMaker.from_numpy`."""
        try:
            torch = import_module("torch")
        except ImportError as error:
            raise CannotMakeError(f"PyTorch cannot be imported: {error}") from error
        if array.dtype == np.longdouble:
            raise CannotMakeError("PyTorch has no longdouble")
        bits = array.view(np.int16) if array.dtype.name == "bfloat16" else array
        tensor = torch.from_numpy(bits.copy())
        tensor = tensor.view(torch.bfloat16) if bits is not array else tensor
        try:
            return tensor.to(device)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CannotMakeError(f"PyTorch has no {array.dtype.name} on {device} here: {reason}") from error

    def to_numpy(self, array: Any) -> Array:
        """See `ArrayMaker.to_numpy`."""
        tensor = array.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            bits: Array = tensor.view(import_module("torch").int16).numpy().copy()
            return bits.view(numpy_dtype("bfloat16"))
        return np.array(tensor.numpy())

    def transposed(self, array: Any, order: tuple[int, ...]) -> Any:
        """See `ArrayMaker.transposed`."""
        return array.permute(order)

    def broadcast(self, array: Any, shape: tuple[int, ...]) -> Any:
        """See `ArrayMaker.broadcast`."""
        return array.expand(shape)


class CupyMaker(ArrayMaker):
    """cupy.ndarray, on the current CUDA device."""

    type_name = "cupy.ndarray"
    has_negative_strides = True

    def from_numpy(self, array: Array, device: str) -> Any:
        """See `ArrayMaker.from_numpy`."""
        if device != "cuda":
            raise CannotMakeError(f"a cupy.ndarray is never on {device}")
        try:
            return import_module("cupy").asarray(array)
        except ImportError as error:
            raise CannotMakeError(f"CuPy cannot be imported: {error}") from error
        except Exception as error:  # no driver, no device, a dtype that this version lacks
            raise CannotMakeError(f"CuPy cannot make {array.dtype.name} here: {error}") from error

    def to_numpy(self, array: Any) -> Array:
        """See `ArrayMaker.to_numpy`."""
        return np.array(array.get())

    def broadcast(self, array: Any, shape: tuple[int, ...]) -> Any:
        """See `ArrayMaker.broadcast`."""
        return import_module("cupy").broadcast_to(array, shape)


MAKERS: tuple[ArrayMaker, ...] = (NumpyMaker(), TorchMaker(), CupyMaker())


class Layout(NamedTuple):
    """The layout of an array in memory: the order of its axes, outermost first, and the step between elements."""

    name: str
    rotate: int = 0  # number of places by which the axes are rotated
    reverse: bool = False
    step: int = 1
    last_step: int = 1
    offset: int = 0  # of the first element, in elements

    def order(self, ndim: int) -> tuple[int, ...]:
        """The axes in memory order, outermost first."""
        axes = tuple(range(ndim))
        axes = axes[self.rotate % ndim :] + axes[: self.rotate % ndim]
        return axes[::-1] if self.reverse else axes

    def size(self, shape: tuple[int, ...]) -> int:
        """The number of elements that an array of this shape spans."""
        return math.prod(n * abs(step) for n, step in zip(shape, self._steps(len(shape)), strict=True))

    def view(self, flat: Any, shape: tuple[int, ...], maker: ArrayMaker) -> Any:
        """The array of this shape in a flat array."""
        order = self.order(len(shape))
        steps = [self._steps(len(shape))[i] for i in order]
        array = flat.reshape([shape[i] * abs(step) for i, step in zip(order, steps, strict=True)])
        if set(steps) != {1}:
            array = array[tuple(slice(None, None, step) for step in steps)]
        return maker.transposed(array, tuple(order.index(i) for i in range(len(shape))))

    def _steps(self, ndim: int) -> tuple[int, ...]:
        return (self.step,) * (ndim - 1) + (self.step * self.last_step,)


CONTIGUOUS = Layout("contiguous")
LAYOUTS = (
    CONTIGUOUS,
    Layout("Fortran order", reverse=True),
    Layout("axes rotated", rotate=1),
    Layout("every second element on every axis", step=2),
    Layout("every third element on the last axis", last_step=3),
    Layout("axes rotated, every second element", rotate=2, step=2),
    Layout("negative strides", step=-1),
    Layout("every second element backwards, in Fortran order", reverse=True, step=-2),
)


class GuardedArray:
    """An array within a larger piece of memory, in which nothing else may change."""

    def __init__(self, values: Array, maker: ArrayMaker, device: str, layout: Layout = CONTIGUOUS) -> None:
        self._maker, self._layout, self._shape = maker, layout, values.shape
        self._before = np.full(layout.size(values.shape) + 2 * _MARGIN + layout.offset, GUARD, values.dtype)
        self._inner(self._before, NumpyMaker())[...] = values
        self._memory = maker.from_numpy(self._before, device)
        self.array = self._inner(self._memory, maker)
        self.kind_before = self.kind()

    def _inner(self, memory: Any, maker: ArrayMaker) -> Any:
        return self._layout.view(memory[_MARGIN + self._layout.offset : -_MARGIN], self._shape, maker)

    def kind(self) -> tuple[Any, ...]:
        """Type, device, dtype and shape of the array."""
        return (*self._maker.place(self.array), tuple(self.array.shape))

    def values(self) -> Array:
        """The current values of the array."""
        return np.array(self._inner(self._maker.to_numpy(self._memory), NumpyMaker()))

    def is_unchanged(self) -> bool:
        """Whether the array and its guards are unchanged."""
        return bits(self._maker.to_numpy(self._memory)) == bits(self._before)

    def guards_are_unchanged(self) -> bool:
        """Whether the memory around and between the elements is unchanged."""
        memory = self._maker.to_numpy(self._memory)
        self._inner(memory, NumpyMaker())[...] = self._inner(self._before, NumpyMaker())
        return bits(memory) == bits(self._before)


def bits(array: Array) -> bytes:
    """The bytes of an array, without the padding of longdoubles and the sign and payload of NaNs."""
    flat = np.ascontiguousarray(array).ravel()
    flat = np.where(np.isnan(flat), np.asarray(np.nan, flat.dtype), flat).astype(flat.dtype)
    if flat.dtype.char != "g":
        return flat.tobytes()
    special = np.where(np.isfinite(flat), 0, flat).astype(np.float64)
    fraction, exponent = np.frexp(np.where(np.isfinite(flat), flat, 0))
    high = fraction.astype(np.float64)
    low = (fraction - high).astype(np.float64)
    return high.tobytes() + low.tobytes() + exponent.tobytes() + special.tobytes()
