"""Arrays of CuPy, which is never imported here: whoever has an array has imported it."""

import sys
from contextlib import AbstractContextManager
from typing import Any

from lsm import _check
from lsm._interop_base import ArrayLibrary, Operand
from lsm._version import install_command


class CupyLibrary(ArrayLibrary):
    """cupy.ndarray; a subclass may hold more than one device does."""

    converter = "cupy.asarray"
    has_fast_path = True

    def type_name(self, x: Any) -> str:
        """The name by which backends declare this type."""
        return _check.CUPY

    def device_kind(self, x: Any) -> str:
        """CuPy's arrays lie on a CUDA device; its build for ROCm has no backend here."""
        return "cuda"

    def device(self, x: Any) -> str:
        """The very device: 'cuda:0', 'cuda:1', ..."""
        return f"cuda:{x.data.device_id}"

    def validate(self, x: Any, name: str, axis: Any = -1) -> Operand:
        """Look at an argument; raise TypeError for what lsm does not take."""
        if type(x) is not sys.modules["cupy"].ndarray:
            raise TypeError(
                f"{name}: a {type(x).__name__}, a subclass of cupy.ndarray that may hold more than its values; "
                f"give {name}.view(cupy.ndarray) if they are all that counts"
            )
        self.check_aligned(x, name)
        return super().validate(x, name, axis)

    def check_aligned(self, x: Any, name: str) -> None:
        """Raise TypeError unless every element lies at a multiple of its size, the only ones that a device reads."""
        steps = [stride for n, stride in zip(x.shape, x.strides, strict=True) if n > 1]
        _check.check_aligned((x.data.ptr, *steps), x.itemsize, name)

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The dtype of the result by name; bfloat16 only where CuPy has it."""
        wanted = super().result_dtype(own, dtype)
        if wanted == "bfloat16" != own:
            if int(sys.modules["cupy"].__version__.partition(".")[0]) < 14:
                raise TypeError("dtype: CuPy has bfloat16 from version 14 on; accepted here: float16, float32, float64")
            if _check.np_dtype(wanted) is _check.BFLOAT16_BITS:
                raise TypeError(f"dtype: CuPy has bfloat16 only with ml_dtypes: {install_command('bfloat16')}")
        return wanted

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """The device and the dtype, if x is computed in it."""
        return ("cuda", x.dtype) if not dtype or _check.dtype_name(x.dtype) == dtype else None

    def call_fast_function(self, function: Any, arrays: tuple[Any, ...], axis: Any, out: Any) -> Any:
        """Call it on the arrays as they are."""
        return function(*arrays, axis, out)

    def on_device(self, x: Any) -> AbstractContextManager[Any]:
        """Make the device of x the current one, on which CuPy makes new arrays."""
        cuda = sys.modules["cupy"].cuda
        if cuda.runtime.getDevice() == x.data.device_id:
            return super().on_device(x)
        device: AbstractContextManager[Any] = cuda.Device(x.data.device_id)
        return device

    def wait(self) -> None:
        """Wait until what was launched on the current stream is done."""
        sys.modules["cupy"].cuda.get_current_stream().synchronize()

    def check_out(self, out: Any) -> None:
        """Raise TypeError for what cannot be written to, whatever its shape and dtype."""
        self.validate(out, "out")

    def check_native_out(self, out: Any, shape: tuple[int, ...], dtype: str) -> None:
        """Raise unless `out` can take such a result as it is."""
        super().check_native_out(out, shape, dtype)
        if not out.flags.c_contiguous and _check.overlaps_itself(tuple(out.shape), out.strides, out.itemsize):
            raise ValueError(f"out: its elements overlap one another (strides {out.strides}); give an ordinary array")

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides, in bytes."""
        strides: tuple[int, ...] = x.strides
        return strides

    def can_write_directly(self, out: Any, inputs: tuple[Any, ...]) -> bool:
        """Any array that was let in."""
        return True

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` is the very memory of x, or shares none with it.

        CuPy's own may_share_memory takes two views that came through DLPack for two pieces of memory.
        """
        if x.data.ptr == out.data.ptr and x.strides == out.strides and x.dtype == out.dtype:
            return True
        (start, end), (first, last) = _extent(x), _extent(out)
        return end <= first or last <= start or bool(x.data.device_id != out.data.device_id)


def _extent(x: Any) -> tuple[int, int]:
    """The addresses between which an array that is not empty lies."""
    start: int = x.data.ptr
    if x.flags.c_contiguous:
        return start, start + x.nbytes
    steps = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)]
    return start + sum(min(step, 0) for step in steps), start + sum(max(step, 0) for step in steps) + x.itemsize
