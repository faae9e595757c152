"""What a launch needs of an array that lies on a device, be it CuPy's or PyTorch's; neither is imported here.

Tensors of PyTorch are not made arrays of CuPy: an address, the strides and the stream are all that a kernel is given,
which takes a fraction of the time, and bfloat16 asks for nothing else to be installed.
"""

import sys
from typing import Any, NamedTuple


class Stream(NamedTuple):
    """A stream of another library, as CuPy's functions take one."""

    ptr: int


class CupyArrays:
    """Arrays of CuPy, on its current stream."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def plain_pointer(self, x: Any) -> int:
        """The address of the first element; 0 where x must be looked at first."""
        return int(x.data.ptr) if type(x) is self._library.ndarray else 0

    def empty_like(self, x: Any) -> Any:
        """A new array with the shape, the dtype and the order of the axes of x."""
        return self._library.empty_like(x)

    def is_in_order(self, x: Any) -> bool:
        """Whether x is in C order."""
        return bool(x.flags.c_contiguous)

    def device(self, x: Any) -> int:
        """The number of the device that holds x."""
        return int(x.data.device_id)

    def pointer(self, x: Any) -> int:
        """The address of the first element."""
        return int(x.data.ptr)

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides as the library counts them."""
        strides: tuple[int, ...] = x.strides
        return strides

    def elements(self, x: Any) -> tuple[int, ...]:
        """The strides in elements."""
        return tuple([stride // x.itemsize for stride in x.strides])

    def stream(self, device: int) -> Any:
        """The stream that a launch is given; None for CuPy's current one."""
        return None

    def workspace(self, n_bytes: int, like: Any) -> tuple[Any, int]:
        """Memory on the device of `like`, which is the current one: its owner and its address."""
        memory = self._library.cuda.alloc(n_bytes)
        return memory, int(memory.ptr)

    def in_order(self, x: Any) -> Any:
        """The array itself if it is in C order, else a copy that is."""
        return x if self.is_in_order(x) else x.copy(order="C")

    def room(self, out: Any) -> Any:
        """An array in C order to be written instead of `out`; itself if it is."""
        return out if self.is_in_order(out) else self._library.empty(out.shape, out.dtype)

    def write(self, out: Any, values: Any) -> None:
        """Write an array into another."""
        out[...] = values


class TorchTensors:
    """Tensors of PyTorch, on its current stream and with its memory."""

    def plain_pointer(self, x: Any) -> int:
        """The address of the first element; 0 where x must be looked at first, and within torch.func and its like."""
        torch = sys.modules.get("torch")  # x may be of a subclass of CuPy's arrays
        if torch is None or type(x) is not torch.Tensor or x.requires_grad or x.is_neg():
            return 0
        if x.layout is not torch.strided:
            return 0
        if getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0 or x.is_nested:  # it may have a tangent
            return 0
        try:
            return int(x.data_ptr())
        except RuntimeError:  # there is no memory behind it
            return 0

    def empty_like(self, x: Any) -> Any:
        """A new tensor with the shape, the dtype and the order of the axes of x."""
        return sys.modules["torch"].empty_like(x)

    def is_in_order(self, x: Any) -> bool:
        """Whether x is in C order."""
        return bool(x.is_contiguous())

    def device(self, x: Any) -> int:
        """The number of the device that holds x."""
        return int(x.get_device())

    def pointer(self, x: Any) -> int:
        """The address of the first element."""
        try:
            return int(x.data_ptr())
        except RuntimeError as error:  # within torch.func.vmap, say
            raise TypeError(f"a tensor whose memory cannot be read ({error})") from error

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides as the library counts them."""
        strides: tuple[int, ...] = x.stride()
        return strides

    def elements(self, x: Any) -> tuple[int, ...]:
        """The strides in elements."""
        return self.strides(x)

    def stream(self, device: int) -> Any:
        """The stream that a launch is given: the one on which PyTorch made the tensors, or waits for them."""
        return Stream(sys.modules["torch"].cuda.current_stream(device).cuda_stream)

    def workspace(self, n_bytes: int, like: Any) -> tuple[Any, int]:
        """Memory on the device of `like`: its owner and its address."""
        memory = like.new_empty(n_bytes, dtype=sys.modules["torch"].uint8)
        return memory, int(memory.data_ptr())

    def in_order(self, x: Any) -> Any:
        """The tensor itself if it is in C order, else a copy that is."""
        return x.contiguous()

    def room(self, out: Any) -> Any:
        """A tensor in C order to be written instead of `out`; itself if it is."""
        return out if self.is_in_order(out) else out.new_empty(out.shape)

    def write(self, out: Any, values: Any) -> None:
        """Write a tensor into another."""
        out.copy_(values)
