"""Arrays of any library: how lsm takes them and gives a result back, by DLPack and the array API alone."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from lsm import _check

_NO_CHANGE: AbstractContextManager[Any] = nullcontext()

# DLPack's numbers for devices whose memory the CPU reads as its own: CPU, and host memory pinned by CUDA or ROCm.
_HOST = (1, 3, 11)
_KINDS = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda", 14: "oneapi"}


class Operand(NamedTuple):
    """An argument that lsm takes: the array, the kind of its device, and the dtype that it is computed as."""

    array: Any
    device: str
    dtype: str


class ArrayLibrary:
    """What lsm must know of a library's arrays; here of one of which it knows nothing but DLPack.

    The first methods serve backends that take NumPy arrays: the same memory is seen as one, and a result that NumPy
    holds is given back as the library's own; two do the same with CuPy's arrays on a CUDA device. The others serve
    backends that take the arrays as they are.
    """

    dtypes: tuple[str, ...] = _check.DTYPES[:-1]  # longdouble is NumPy's alone
    converter = ""  # what makes such an array of another one
    has_fast_path = False

    def type_name(self, x: Any) -> str:
        """The name by which backends declare this type."""
        return f"{type(x).__module__}.{type(x).__qualname__}"

    def device_kind(self, x: Any) -> str:
        """'cpu', 'cuda', ...: the kind of device that holds x."""
        number = int(type(x).__dlpack_device__(x)[0])
        return "cpu" if number in _HOST else _KINDS.get(number, f"device type {number}")

    def device(self, x: Any) -> str:
        """The very device: 'cpu', 'cuda:0', 'cuda:1', ..."""
        kind, number = self.device_kind(x), int(type(x).__dlpack_device__(x)[1])
        if kind != "cpu":
            return f"{kind}:{number}"
        own = str(getattr(x, "device", "cpu"))  # a library may tell parts of the CPU's memory apart
        return kind if own.lower() == "cpu" else own

    def validate(self, x: Any, name: str, axis: Any = -1) -> Operand:
        """Look at an argument; raise TypeError for what lsm does not take."""
        try:
            device = self.device_kind(x)
        except Exception as error:  # what a library raises here is not agreed on
            raise TypeError(
                f"{name}: this {type(x).__name__} does not say on which device it is ({error}); "
                f"give numpy.asarray({name}) if a copy will do"
            ) from error
        own = getattr(x, "dtype", None)
        dtype = _name(own)
        if isinstance(own, np.dtype) and own.kind in "iub":
            dtype = "float64"
        elif dtype not in self.dtypes:
            if device != "cpu":
                raise TypeError(f"{name}: dtype {own} on {device} is not accepted; accepted: {', '.join(self.dtypes)}")
            dtype = _check.dtype_name(self.as_numpy(x, name).dtype)
        return Operand(x, device, dtype)

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The dtype of the result by name: `dtype`, as the user spelt it, or that of the input."""
        if not isinstance(dtype, (str, type, np.dtype)) and _name(dtype) in _check.DTYPES:
            dtype = _name(dtype)  # an object of the library's own
        wanted = _check.result_dtype(own, dtype)
        if wanted not in self.dtypes:
            raise TypeError(f"dtype: {wanted} is NumPy's alone; accepted for this array: {', '.join(self.dtypes)}")
        return wanted

    def as_numpy(self, x: Any, name: str) -> Any:
        """The same memory as an ndarray that lsm computes with; copied only if it holds no dtype of lsm's."""
        return _check.as_array(self.view_as_numpy(x, name), name)

    def check_readable(self, x: Any, name: str) -> None:
        """Raise TypeError for what has the library's type and no memory to read."""

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """The same memory as an ndarray, whatever it holds; read-only if the library or a NumPy before 2.1 says so."""
        return self._through_dlpack(np, x, name, f"give numpy.asarray({name}) if a copy will do")

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """The kind of x, by which the fast path finds a function; None if x is computed in another dtype, or never so.

        The dtype on the CPU, else the kind of device and the dtype.
        """
        return None

    def call_fast_function(self, function: Any, arrays: tuple[Any, ...], axis: Any, out: Any) -> Any:
        """Call a function of the fast path on plain arrays; None if one of them must be validated first."""
        return None

    def new_numpy(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An ndarray for a result that `from_numpy` need not copy; None if any will do."""
        return None

    def as_cupy(self, x: Any, name: str) -> Any:
        """The same memory on a CUDA device as an array of CuPy, whose current stream waits for what x waits for."""
        remedy = "and copied to an array of CuPy it may be"
        if _name(getattr(x, "dtype", None)) == "bfloat16":
            remedy = "CuPy reads bfloat16 so from version 14 on, with ml_dtypes and NumPy 2.1.2 or later"
        return self._through_dlpack(sys.modules["cupy"], x, name, remedy)

    def _through_dlpack(self, namespace: Any, x: Any, name: str, remedy: str) -> Any:
        try:
            return namespace.from_dlpack(x)
        except Exception as error:  # what a library raises here is not agreed on
            raise TypeError(
                f"{name}: this {type(x).__name__} cannot be taken through DLPack ({error}); {remedy}"
            ) from error

    def from_numpy(self, y: Any, like: Any) -> Any:
        """A result as the library's own array if its namespace has from_dlpack, else as the ndarray that it is."""
        return self._convert_back(y, like)

    def from_cupy(self, y: Any, like: Any) -> Any:
        """The same for a result of CuPy's; the library's stream waits for CuPy's."""
        return self._convert_back(y, like)

    def _convert_back(self, y: Any, like: Any) -> Any:
        namespace = getattr(like, "__array_namespace__", None)
        convert = None if namespace is None else getattr(namespace(), "from_dlpack", None)
        if convert is None:
            return y if y.ndim else y[()]
        made, device = convert(y), getattr(like, "device", None)
        if callable(device) or getattr(made, "device", None) == device or not hasattr(made, "to_device"):
            return made
        try:
            return made.to_device(device)
        except ValueError as error:  # the array API lets a device do without float64
            raise TypeError(
                f"dtype: {y.dtype} is not on {device} ({error}); give another, such as 'float32'"
            ) from error

    def check_out(self, out: Any) -> None:
        """Raise TypeError for what cannot be written to, whatever its shape and dtype."""

    def bump_version(self, out: Any) -> None:
        """Tell the library that `out` has been written to, where it wants to know."""

    # For backends that take the arrays as they are

    def on_device(self, x: Any) -> AbstractContextManager[Any]:
        """Make the device of x the current one, if the library has such a thing and lsm itself makes arrays there."""
        return _NO_CHANGE

    def astype(self, x: Any, dtype: str) -> Any:
        """The array in another dtype; itself if it has that already."""
        return x if _name(x.dtype) == dtype else x.astype(_check.np_dtype(dtype))

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new array of the type and on the device of `like`; of an unknown type the backend makes it."""
        return backend.empty(shape, dtype, like)

    def signature(self, x: Any) -> tuple[Any, ...]:
        """Shape, dtype and device of an array, by which a backend's work is looked over."""
        return tuple(x.shape), _name(x.dtype), self.device(x)

    def check_native_out(self, out: Any, shape: tuple[int, ...], dtype: str) -> None:
        """Raise unless `out` can take such a result as it is."""
        _check.check_out_like(tuple(out.shape), _name(out.dtype), shape, dtype)

    def permute(self, x: Any, order: list[int]) -> Any:
        """The array with its axes in another order."""
        return x.transpose(order)

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides, in whatever unit the library counts them; empty if they are not known."""
        return ()

    def can_write_directly(self, out: Any, inputs: tuple[Any, ...]) -> bool:
        """Whether a backend may write to `out` itself: of an unknown array it is not known what it overlaps."""
        return any(out is x for x in inputs)

    def as_base_array(self, out: Any) -> Any:
        """What a backend is given of `out`."""
        return out

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` is the very memory of x, or shares none with it."""
        return True

    def copy(self, x: Any) -> Any:
        """A copy of the array."""
        return x.copy()


def _name(dtype: Any) -> str:
    """A library's dtype by name: torch.float32 and its like, or one of NumPy's."""
    if isinstance(dtype, np.dtype):
        return _check.dtype_name(dtype)
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]
