"""CuPy arrays. CuPy is not imported here: a program that has an array has imported it."""

import sys
from contextlib import AbstractContextManager
from typing import Any

from lsm import _check
from lsm._interop_base import ArrayLibrary, Operand
from lsm._operations import Operation
from lsm._version import install_command


class CupyLibrary(ArrayLibrary):
    """cupy.ndarray, without subclasses, which may be spread over several devices."""

    converter = "cupy.asarray"
    has_fast_path = True

    def type_name(self, x: Any) -> str:
        """The name of this type in `Backend.array_types`."""
        return _check.CUPY

    def device_kind(self, x: Any) -> str:
        """'cuda'; no backend supports CuPy's build for ROCm."""
        return "cuda"

    def device(self, x: Any) -> str:
        """The device: 'cuda:0', 'cuda:1', ..."""
        return f"cuda:{x.data.device_id}"

    def validate(self, x: Any, name: str) -> Operand:
        """Check an argument; raise TypeError if lsm does not support it."""
        if type(x) is not sys.modules["cupy"].ndarray:
            raise TypeError(
                f"{name}: a {type(x).__name__}, a subclass of cupy.ndarray that may carry more than values; "
                f"pass {name}.view(cupy.ndarray) for the values alone"
            )
        self.check_aligned(x, name)
        return super().validate(x, name)

    def check_aligned(self, x: Any, name: str) -> None:
        """Raise TypeError unless the address of every element is a multiple of its size, as CUDA requires."""
        steps = [stride for n, stride in zip(x.shape, x.strides, strict=True) if n > 1]
        _check.check_aligned((x.data.ptr, *steps), x.itemsize, name)

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The name of the dtype of the result; bfloat16 only if CuPy supports it."""
        name = super().result_dtype(own, dtype)
        if name == "bfloat16" != own:
            if int(sys.modules["cupy"].__version__.partition(".")[0]) < 14:
                raise TypeError("dtype: bfloat16 needs CuPy 14 or later; accepted here: float16, float32, float64")
            if _check.np_dtype(name) is _check.BFLOAT16_BITS:
                raise TypeError(f"dtype: CuPy has bfloat16 only with ml_dtypes: {install_command('bfloat16')}")
        return name

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """("cuda", dtype); None if x must be converted to another dtype."""
        return ("cuda", x.dtype) if not dtype or _check.dtype_name(x.dtype) == dtype else None

    def call_fast_function(
        self, operation: Operation, function: Any, arrays: tuple[Any, ...], axis: Any, out: Any
    ) -> Any:
        """Call the function on the arrays."""
        return function(*arrays, axis, out)

    def on_device(self, x: Any) -> AbstractContextManager[Any]:
        """Make the device of x current: CuPy allocates there."""
        cuda = sys.modules["cupy"].cuda
        if cuda.runtime.getDevice() == x.data.device_id:
            return super().on_device(x)
        device: AbstractContextManager[Any] = cuda.Device(x.data.device_id)
        return device

    def wait(self) -> None:
        """Synchronise the current stream."""
        sys.modules["cupy"].cuda.get_current_stream().synchronize()

    def check_out(self, out: Any) -> None:
        """Raise TypeError if `out` cannot be written to, regardless of shape and dtype."""
        self.validate(out, "out")

    def check_native_out(self, out: Any, shape: tuple[int, ...], dtype: str) -> None:
        """Raise unless `out` can hold a result of this shape and dtype."""
        super().check_native_out(out, shape, dtype)
        if not out.flags.c_contiguous and _check.overlaps_itself(tuple(out.shape), out.strides, out.itemsize):
            raise ValueError(f"out: its elements overlap (strides {out.strides}); pass an array without overlap")

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides, in bytes."""
        strides: tuple[int, ...] = x.strides
        return strides

    def can_write_directly(self, out: Any, inputs: tuple[Any, ...]) -> bool:
        """True: overlap is known for CuPy arrays."""
        return True

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` and x are the same elements, or share no memory.

        cupy.may_share_memory is wrong for views imported through DLPack: it considers them separate allocations.
        """
        if x.data.ptr == out.data.ptr and (x.shape, x.strides, x.dtype) == (out.shape, out.strides, out.dtype):
            return True
        (start, end), (first, last) = _extent(x), _extent(out)
        return end <= first or last <= start or bool(x.data.device_id != out.data.device_id)


def _extent(x: Any) -> tuple[int, int]:
    """The first and the end address of an array that is not empty."""
    start: int = x.data.ptr
    if x.flags.c_contiguous:
        return start, start + x.nbytes
    steps = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)]
    return start + sum(min(step, 0) for step in steps), start + sum(max(step, 0) for step in steps) + x.itemsize
