"""Access to arrays of any library through DLPack and the array API, and conversion of results."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from lsm import _check
from lsm._operations import Operation
from lsm._signals import reraise_from_handler

_NO_CHANGE: AbstractContextManager[Any] = nullcontext()

# DLPack's numbers for devices whose memory the CPU can read: CPU, and host memory pinned by CUDA or ROCm.
_HOST = (1, 3, 11)
_KINDS = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda", 14: "oneapi"}


class Operand(NamedTuple):
    """A validated argument: the array, the kind of its device, and its compute dtype."""

    array: Any
    device: str
    dtype: str


class ArrayLibrary:
    """Access to the arrays of a library; this base class uses only DLPack.

    The first methods are for backends that expect NumPy arrays, or CuPy arrays on a CUDA device: they make views and
    convert results back. The other methods are for backends that accept the library's own arrays.
    """

    dtypes: tuple[str, ...] = _check.DTYPES[:-1]  # only NumPy has longdouble
    converter = ""  # the function that converts other arrays
    has_fast_path = False

    def type_name(self, x: Any) -> str:
        """The name of this type in `Backend.array_types`."""
        return f"{type(x).__module__}.{type(x).__qualname__}"

    def device_kind(self, x: Any) -> str:
        """The kind of device: 'cpu', 'cuda', ..."""
        number = int(type(x).__dlpack_device__(x)[0])
        return "cpu" if number in _HOST else _KINDS.get(number, f"device type {number}")

    def device(self, x: Any) -> str:
        """The device: 'cpu', 'cuda:0', 'cuda:1', ..."""
        kind, number = self.device_kind(x), int(type(x).__dlpack_device__(x)[1])
        if kind != "cpu":
            return f"{kind}:{number}"
        own = str(getattr(x, "device", "cpu"))  # a library may have several CPU devices
        return kind if own.lower() == "cpu" else own

    def validate(self, x: Any, name: str) -> Operand:
        """Check an argument; raise TypeError if lsm does not support it."""
        try:
            device = self.device_kind(x)
        except Exception as error:  # DLPack does not specify the type
            reraise_from_handler(error)
            raise TypeError(
                f"{name}: the device of this {type(x).__name__} is unknown ({error}); "
                f"pass numpy.asarray({name}) if a copy is acceptable"
            ) from error
        own = getattr(x, "dtype", None)
        dtype = name_of_dtype(own)
        if isinstance(own, np.dtype) and own.kind in "iub":
            dtype = "float64"
        elif dtype not in self.dtypes:
            if device != "cpu":
                raise TypeError(f"{name}: dtype {own} on {device} is not accepted; accepted: {', '.join(self.dtypes)}")
            dtype = _check.dtype_name(self.as_numpy(x, name).dtype)
        return Operand(x, device, dtype)

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The name of the dtype of the result: `dtype`, as passed by the user, or that of the input."""
        if not isinstance(dtype, (str, type, np.dtype)) and name_of_dtype(dtype) in _check.DTYPES:
            dtype = name_of_dtype(dtype)  # a dtype of the library
        name = _check.result_dtype(own, dtype)
        if name not in self.dtypes:
            raise TypeError(f"dtype: only NumPy has {name}; accepted for this array: {', '.join(self.dtypes)}")
        return name

    def has_int64(self, x: Any) -> bool:
        """Whether the library has 64-bit integers on the device of x."""
        return True

    def as_numpy(self, x: Any, name: str) -> Any:
        """A view as an ndarray of a supported dtype; a copy only if the dtype must be converted."""
        return _check.as_array(self.view_as_numpy(x, name), name)

    def check_readable(self, x: Any, name: str) -> None:
        """Raise TypeError if x has the library's type but no readable memory."""

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """A view as an ndarray of any dtype; may be read-only, as from NumPy before 2.1."""
        return self._through_dlpack(np, x, name, f"pass numpy.asarray({name}) if a copy is acceptable")

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """The key of x for the fast path: its dtype, or (device kind, dtype) on other devices than the CPU.

        None if there is no fast path, or if x must be converted to another dtype.
        """
        return None

    def call_fast_function(
        self, operation: Operation, function: Any, arrays: tuple[Any, ...], axis: Any, out: Any
    ) -> Any:
        """Call a function of the fast path; None if an argument must be validated first."""
        return None

    def new_numpy(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new ndarray that `from_numpy` does not have to copy; None if any ndarray will do."""
        return None

    def as_cupy(self, x: Any, name: str) -> Any:
        """A view as a CuPy array, synchronised with CuPy's current stream."""
        remedy = "pass a copy as a CuPy array"
        if name_of_dtype(getattr(x, "dtype", None)) == "bfloat16":
            remedy = "for bfloat16, DLPack needs CuPy 14, ml_dtypes and NumPy 2.1.2, or later"
        return self._through_dlpack(sys.modules["cupy"], x, name, remedy)

    def _through_dlpack(self, namespace: Any, x: Any, name: str, remedy: str) -> Any:
        try:
            return namespace.from_dlpack(x)
        except Exception as error:  # DLPack does not specify the type
            reraise_from_handler(error)
            raise TypeError(
                f"{name}: this {type(x).__name__} cannot be imported through DLPack ({error}); {remedy}"
            ) from error

    def from_numpy(self, y: Any, like: Any) -> Any:
        """Convert a result to the library's type if its namespace has from_dlpack, else return the ndarray."""
        return self._convert_back(np.asarray(y), like)  # a loss may be a scalar

    def from_cupy(self, y: Any, like: Any) -> Any:
        """Likewise for a CuPy array; the library's stream waits for CuPy's."""
        return self._convert_back(y, like)

    def _convert_back(self, y: Any, like: Any) -> Any:
        namespace = getattr(like, "__array_namespace__", None)
        convert = None if namespace is None else getattr(namespace(), "from_dlpack", None)
        if convert is None:
            return y if y.ndim else y[()]
        try:
            made, device = convert(y), getattr(like, "device", None)
        except Exception as error:  # such as NumPy's bfloat16
            reraise_from_handler(error)
            raise TypeError(
                f"dtype: a {self.type_name(like)} of {_check.dtype_name(y.dtype)} cannot be made through DLPack "
                f"({error}); pass another, such as 'float32'"
            ) from error
        if callable(device) or getattr(made, "device", None) == device or not hasattr(made, "to_device"):
            return made
        try:
            return made.to_device(device)
        except ValueError as error:  # in the array API, a device may lack float64
            raise TypeError(
                f"dtype: {device} does not support {y.dtype} ({error}); pass another, such as 'float32'"
            ) from error

    def check_out(self, out: Any) -> None:
        """Raise TypeError if `out` cannot be written to, regardless of shape and dtype."""

    def bump_version(self, out: Any) -> None:
        """Notify the library that `out` has been modified."""

    # For backends that accept the library's own arrays

    def on_device(self, x: Any) -> AbstractContextManager[Any]:
        """Make the device of x current, if the library has a current device on which lsm allocates."""
        return _NO_CHANGE

    def astype(self, x: Any, dtype: str) -> Any:
        """The array in another dtype; itself if it already has it."""
        return x if name_of_dtype(x.dtype) == dtype else x.astype(_check.np_dtype(dtype))

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new array of the type and on the device of `like`; the backend makes it if the type is unknown."""
        return backend.empty(shape, dtype, like)

    def signature(self, x: Any) -> tuple[Any, ...]:
        """Shape, dtype and device, to check that a backend has not changed them."""
        return tuple(x.shape), name_of_dtype(x.dtype), self.device(x)

    def check_native_out(self, out: Any, shape: tuple[int, ...], dtype: str) -> None:
        """Raise unless `out` can hold a result of this shape and dtype."""
        _check.check_out_like(tuple(out.shape), name_of_dtype(out.dtype), shape, dtype)

    def permute(self, x: Any, order: list[int]) -> Any:
        """The array with its axes in another order."""
        return x.transpose(order)

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides, in the library's unit; empty if unknown."""
        return ()

    def can_write_directly(self, out: Any, inputs: tuple[Any, ...]) -> bool:
        """Whether a backend may write to `out` directly: overlap is unknown here, unless `out` is an input."""
        return any(out is x for x in inputs)

    def as_base_array(self, out: Any) -> Any:
        """The array that a backend is passed as `out`."""
        return out

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` and x are the same elements, or share no memory."""
        return True

    def copy(self, x: Any) -> Any:
        """A copy of the array."""
        return x.copy()


def name_of_dtype(dtype: Any) -> str:
    """The name of a dtype of NumPy or of another library, such as torch.float32."""
    if isinstance(dtype, np.dtype):
        return _check.dtype_name(dtype)
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]
