"""The properties of a device array of CuPy or PyTorch that a launch needs. Neither library is imported here.

A PyTorch tensor is not converted to a CuPy array: a kernel only takes an address, strides and a stream. This is several
times faster, and bfloat16 needs no other package.
"""

import sys
from typing import Any, NamedTuple


class Stream(NamedTuple):
    """A stream of another library, in the form that CuPy's functions accept."""

    ptr: int


class CupyArrayOps:
    """CuPy arrays, on CuPy's current stream."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def fast_pointer(self, x: Any) -> int:
        """The address of the first element; 0 if the general path must inspect x."""
        return int(x.data.ptr) if type(x) is self._library.ndarray else 0

    def empty_like(self, x: Any) -> Any:
        """A new array with the shape, dtype and axis order of x."""
        return self._library.empty_like(x)

    def is_contiguous(self, x: Any) -> bool:
        """Whether x is C-contiguous."""
        return bool(x.flags.c_contiguous)

    def device(self, x: Any) -> int:
        """The index of the device that holds x."""
        return int(x.data.device_id)

    def pointer(self, x: Any) -> int:
        """The address of the first element."""
        return int(x.data.ptr)

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides in the library's own unit."""
        strides: tuple[int, ...] = x.strides
        return strides

    def element_strides(self, x: Any) -> tuple[int, ...]:
        """The strides in elements."""
        return tuple([stride // x.itemsize for stride in x.strides])

    def stream(self, device: int) -> Any:
        """The stream to launch on; None for CuPy's current one."""
        return None

    def workspace(self, n_bytes: int, like: Any) -> tuple[Any, int]:
        """Allocate on the device of `like`, which is current; returns the owner and the address."""
        memory = self._library.cuda.alloc(n_bytes)
        return memory, int(memory.ptr)

    def contiguous(self, x: Any) -> Any:
        """x if it is C-contiguous, else a copy that is."""
        return x if self.is_contiguous(x) else x.copy(order="C")

    def contiguous_out(self, out: Any) -> Any:
        """`out` if it is C-contiguous, else a new array to write instead."""
        return out if self.is_contiguous(out) else self._library.empty(out.shape, out.dtype)

    def copy_into(self, out: Any, values: Any) -> None:
        """Copy one array into another."""
        out[...] = values


class TorchTensorOps:
    """PyTorch tensors, on PyTorch's current stream and with its allocator."""

    def fast_pointer(self, x: Any) -> int:
        """The address of the first element; 0 if the general path must inspect x, as under torch.func."""
        torch = sys.modules.get("torch")  # x may be a subclass of CuPy's arrays
        if torch is None or type(x) is not torch.Tensor or x.requires_grad or x.is_neg():
            return 0
        if x.layout is not torch.strided:
            return 0
        if getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0 or x.is_nested:  # it may have a tangent
            return 0
        try:
            return int(x.data_ptr())
        except RuntimeError:  # no storage
            return 0

    def empty_like(self, x: Any) -> Any:
        """A new tensor with the shape, dtype and axis order of x."""
        return sys.modules["torch"].empty_like(x)

    def is_contiguous(self, x: Any) -> bool:
        """Whether x is C-contiguous."""
        return bool(x.is_contiguous())

    def device(self, x: Any) -> int:
        """The index of the device that holds x."""
        return int(x.get_device())

    def pointer(self, x: Any) -> int:
        """The address of the first element."""
        try:
            return int(x.data_ptr())
        except RuntimeError as error:  # e.g. under torch.func.vmap
            raise TypeError(f"a tensor whose memory cannot be read ({error})") from error

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides in the library's own unit."""
        strides: tuple[int, ...] = x.stride()
        return strides

    def element_strides(self, x: Any) -> tuple[int, ...]:
        """The strides in elements."""
        return self.strides(x)

    def stream(self, device: int) -> Any:
        """The stream to launch on: PyTorch's current one."""
        return Stream(sys.modules["torch"].cuda.current_stream(device).cuda_stream)

    def workspace(self, n_bytes: int, like: Any) -> tuple[Any, int]:
        """Allocate on the device of `like`; returns the owner and the address."""
        memory = like.new_empty(n_bytes, dtype=sys.modules["torch"].uint8)
        return memory, int(memory.data_ptr())

    def contiguous(self, x: Any) -> Any:
        """x if it is C-contiguous, else a copy that is."""
        return x.contiguous()

    def contiguous_out(self, out: Any) -> Any:
        """`out` if it is C-contiguous, else a new tensor to write instead."""
        return out if self.is_contiguous(out) else out.new_empty(out.shape)

    def copy_into(self, out: Any, values: Any) -> None:
        """Copy one tensor into another."""
        out.copy_(values)
