"""Tensors of PyTorch, which is never imported here: whoever has a tensor has imported it."""

import sys
from functools import cache
from typing import Any

from lsm import _check
from lsm._interop_base import ArrayLibrary, Operand

_REQUIRES_GRAD = """{name}: a tensor that requires grad, whose gradient lsm would lose; one of these two lines helps:
    {name}.detach()            # the values only
    lsm_torch.log_softmax(x)   # with the gradient: autograd, by docs/examples/plugins/lsm-torch of lsm's source"""


class TorchLibrary(ArrayLibrary):
    """torch.Tensor and torch.nn.Parameter; other subclasses may hold a mask, or parts on other machines."""

    converter = "torch.as_tensor"
    has_fast_path = True

    def type_name(self, x: Any) -> str:
        """The name by which backends declare this type."""
        return "torch.Tensor"

    def device_kind(self, x: Any) -> str:
        """As torch names it: 'cpu', 'cuda', 'mps', ..."""
        return "cpu" if x.is_cpu else str(x.device.type)

    def device(self, x: Any) -> str:
        """The very device: 'cpu', 'cuda:0', ..."""
        return str(x.device)

    def validate(self, x: Any, name: str, axis: Any = -1) -> Operand:
        """Look at an argument; raise TypeError for what lsm does not take."""
        torch = sys.modules["torch"]
        if type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
            from lsm._foreign import refuse

            refuse(x, name, axis)
            remedy = f"{name}.as_subclass(torch.Tensor) if they are all that counts"
            if not _address(x):
                remedy = "the plain tensor that it wraps"
            raise TypeError(
                f"{name}: a {type(x).__name__}, a subclass of torch.Tensor that may hold more than its values; "
                f"give {remedy}"
            )
        if x.requires_grad:
            raise TypeError(_REQUIRES_GRAD.format(name=name))
        if _has_tangent(torch, x):
            raise TypeError(
                f"{name}: a dual tensor of torch.autograd.forward_ad, whose tangent lsm would lose; "
                f"give unpack_dual({name}).primal for the values only"
            )
        if x.is_nested:
            raise TypeError(f"{name}: a nested tensor; give its parts, {name}.unbind(), one by one")
        dtype = _names()[0].get(x.dtype)
        if dtype is None or x.layout is not torch.strided:
            raise TypeError(f"{name}: {_rejection(x, name)}")
        if x.is_cuda:
            _check.check_aligned((_address(x),), x.element_size(), name)
        return Operand(x.resolve_neg() if x.is_neg() else x, self.device_kind(x), dtype)

    def check_readable(self, x: Any, name: str) -> None:
        """Raise TypeError for a stand-in of torch.func and the like; PyTorch's numpy() of some is arbitrary memory."""
        if x.is_cpu and x.numel() and not _address(x):
            raise TypeError(
                f"{name}: a tensor whose memory cannot be read, as within torch.func.vmap or functionalize; call lsm "
                f"outside, or by a backend for tensors"
            )

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """The same memory as an ndarray: torch's own way is three times as fast as DLPack, and writable."""
        torch = sys.modules["torch"]
        self.check_readable(x, name)
        try:
            if x.dtype is torch.bfloat16:
                return x.view(torch.int16).numpy().view(_check.np_dtype("bfloat16"))
            return x.numpy()
        except Exception as error:  # what a mode raises, that of fake tensors say, is not agreed on
            raise TypeError(f"{name}: a tensor whose memory cannot be read ({error})") from error

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """The dtype, if x is computed in it, on a CUDA device with "cuda"."""
        if dtype and _names()[1][dtype] is not x.dtype:
            return None
        return ("cuda", x.dtype) if x.is_cuda else x.dtype

    def call_fast_function(self, function: Any, arrays: tuple[Any, ...], axis: Any, out: Any) -> Any:
        """Call it on the same memory as ndarrays; on a CUDA device on the tensors as they are."""
        if arrays[0].is_cuda:
            result = function(*arrays, axis, out)
        else:
            views = []
            for x in arrays if out is None else (*arrays, out):
                view = self._fast_view(x)
                if view is None:
                    return None
                views.append(view)
            if out is None:
                y = function(*views, axis, None)
                return None if y is None else self.from_numpy(y, arrays[0])
            result = None if function(*views[:-1], axis, views[-1]) is None else out
        if result is not None and out is not None:
            self.bump_version(out)
        return result

    def _fast_view(self, x: Any) -> Any:
        """The same memory as an ndarray; None if x must be validated first, of which torch refuses most."""
        torch = sys.modules["torch"]
        if type(x) is not torch.Tensor or x.requires_grad or not x.is_cpu:
            return None
        try:
            if _has_tangent(torch, x) or not x.data_ptr():
                return None
            if x.dtype is not torch.bfloat16:
                return x.numpy()
            return None if x.is_neg() else self.view_as_numpy(x, "")
        except Exception:  # `seen` says why
            return None

    def from_numpy(self, y: Any, like: Any) -> Any:
        """A result as a tensor."""
        torch = sys.modules["torch"]
        if y.dtype.kind == "V":  # bfloat16, as ml_dtypes has it or as bits
            return torch.from_numpy(y.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(y)

    def check_out(self, out: Any) -> None:
        """Raise TypeError for what cannot be written to, whatever its shape and dtype."""
        self.validate(out, "out")
        if out.is_neg():
            raise TypeError("out: a tensor with the negative bit, which is no memory to write to; give an ordinary one")

    def bump_version(self, out: Any) -> None:
        """Count a new version: autograd may have saved what was there, and must not take this for it."""
        if not out.is_inference():  # which has no versions
            sys.modules["torch"].autograd.graph.increment_version(out)

    def astype(self, x: Any, dtype: str) -> Any:
        """The tensor in another dtype; itself if it has that already."""
        return x.to(_names()[1][dtype])

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new tensor on the device of `like`, in the order of its axes in memory if it has the same shape."""
        if tuple(like.shape) == shape:
            return sys.modules["torch"].empty_like(like, dtype=_names()[1][dtype])
        return like.new_empty(shape, dtype=_names()[1][dtype])

    def signature(self, x: Any) -> tuple[Any, ...]:
        """Shape, dtype and device."""
        return tuple(x.shape), str(x.dtype).removeprefix("torch."), self.device(x)

    def check_native_out(self, out: Any, shape: tuple[int, ...], dtype: str) -> None:
        """Raise unless `out` can take such a result as it is."""
        _check.check_out_like(tuple(out.shape), str(out.dtype).removeprefix("torch."), shape, dtype)
        if _check.overlaps_itself(tuple(out.shape), out.stride(), 1):
            raise ValueError(f"out: its elements overlap one another (strides {out.stride()}); give an ordinary tensor")

    def permute(self, x: Any, order: list[int]) -> Any:
        """The tensor with its axes in another order."""
        return x.permute(order)

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides, in elements."""
        strides: tuple[int, ...] = x.stride()
        return strides

    def can_write_directly(self, out: Any, inputs: tuple[Any, ...]) -> bool:
        """Any tensor that was let in."""
        return True

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` is the very memory of x, or shares none with it."""
        (start, end), (first, last) = _extent(x), _extent(out)
        same = start == first and x.stride() == out.stride() and x.dtype == out.dtype
        return same or end <= first or last <= start or x.device != out.device

    def copy(self, x: Any) -> Any:
        """A copy of the tensor."""
        return x.clone()


@cache
def _names() -> tuple[dict[Any, str], dict[str, Any]]:
    """The dtype that each of torch's is computed as, and torch's own by name."""
    torch = sys.modules["torch"]
    own = {name: getattr(torch, name) for name in ArrayLibrary.dtypes}
    whole = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
    computed = {getattr(torch, name): "float64" for name in whole if hasattr(torch, name)}
    return computed | {dtype: name for name, dtype in own.items()}, own


def _has_tangent(torch: Any, x: Any) -> bool:
    """Whether this is a dual tensor of forward-mode differentiation; `_current_level` saves asking, which is slow."""
    forward = torch.autograd.forward_ad
    return getattr(forward, "_current_level", 0) >= 0 and forward.unpack_dual(x).tangent is not None


def _address(x: Any) -> int:
    """The address of the first element; 0 within torch.func, where tensors have no memory of their own."""
    try:
        return int(x.data_ptr())
    except RuntimeError:
        return 0


def _extent(x: Any) -> tuple[int, int]:
    """The addresses between which a tensor that is not empty lies."""
    start = x.data_ptr()
    steps = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return start, start + (steps + 1) * x.element_size()


def _rejection(x: Any, name: str) -> str:
    """Why a tensor is not taken, and what would be."""
    if x.is_complex():
        return f"{x.dtype} has no largest class; give {name}.real or abs({name})"
    if x.is_quantized:
        return f"a quantised tensor ({x.dtype}); give {name}.dequantize()"
    if x.layout is not sys.modules["torch"].strided:
        return f"a tensor in the layout {x.layout}; give {name}.to_dense()"
    return f"dtype {x.dtype} is not accepted; accepted: {', '.join(ArrayLibrary.dtypes)}, integers and bool"
