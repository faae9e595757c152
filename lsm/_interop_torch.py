"""PyTorch tensors. PyTorch is not imported here: a program that has a tensor has imported it."""

import sys
from functools import cache
from typing import Any

import numpy as np

from lsm import _check
from lsm._interop_base import ArrayLibrary, Operand
from lsm._operations import Operation
from lsm._signals import reraise_from_handler

_REQUIRES_GRAD = """{name}: a tensor that requires grad, whose gradient would be lost; use one of:
    {name}.detach()            # the values only
    lsm_torch.log_softmax(x)   # with autograd; see docs/examples/plugins/lsm-torch in the source of lsm"""


class TorchLibrary(ArrayLibrary):
    """torch.Tensor and torch.nn.Parameter; other subclasses may have a mask, or be distributed."""

    converter = "torch.as_tensor"
    has_fast_path = True

    _tensor: Any = None  # like the other attributes, set by `_prepare` for the first tensor

    def _prepare(self) -> None:
        torch: Any = sys.modules["torch"]
        self._bfloat16, self._from_numpy = torch.bfloat16, torch.from_numpy
        # In releases of PyTorch without these, no tensor takes the fast path.
        self._n_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
        self._recorder: Any = getattr(torch._ops, "_mode_stack_state_for_pre_dispatch", None)
        self._forward_ad = torch.autograd.forward_ad
        self._tensor = torch.Tensor  # last: another thread may look

    def type_name(self, x: Any) -> str:
        """The name of this type in `Backend.array_types`."""
        return "torch.Tensor"

    def device_kind(self, x: Any) -> str:
        """The kind of device, as torch names it: 'cpu', 'cuda', 'mps', ..."""
        return "cpu" if x.is_cpu else str(x.device.type)

    def device(self, x: Any) -> str:
        """The device: 'cpu', 'cuda:0', ..."""
        return str(x.device)

    def validate(self, x: Any, name: str) -> Operand:
        """Check an argument; raise TypeError if lsm does not support it."""
        torch = sys.modules["torch"]
        if type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
            from lsm._foreign import reject

            reject(x, name)
            remedy = f"{name}.as_subclass(torch.Tensor) for the values alone"
            if not _address(x):
                remedy = "the plain tensor that it wraps"
            raise TypeError(
                f"{name}: a {type(x).__name__}, a subclass of torch.Tensor that may carry more than values; "
                f"pass {remedy}"
            )
        if _is_recorded(torch):
            raise TypeError(
                f"{name}: a tensor within make_fx, whose graph would hold the result of these values as a constant; "
                "call lsm outside, or lsm_torch.log_softmax"
            )
        if x.requires_grad:
            raise TypeError(_REQUIRES_GRAD.format(name=name))
        if _has_tangent(torch, x):
            raise TypeError(
                f"{name}: a dual tensor of torch.autograd.forward_ad, whose tangent would be lost; "
                f"pass unpack_dual({name}).primal for the values only"
            )
        if x.is_nested:
            raise TypeError(f"{name}: a nested tensor; pass its parts, {name}.unbind(), one by one")
        dtype = _names()[0].get(x.dtype)
        if dtype is None or x.layout is not torch.strided:
            raise TypeError(f"{name}: {_rejection(x, name)}")
        if x.is_cuda:
            _check.check_aligned((_address(x),), x.element_size(), name)
        return Operand(x.resolve_neg() if x.is_neg() else x, self.device_kind(x), dtype)

    def check_readable(self, x: Any, name: str) -> None:
        """Raise TypeError for wrappers without memory, as in torch.func: numpy() may read arbitrary memory."""
        if x.is_cpu and x.numel() and not _address(x):
            raise TypeError(
                f"{name}: a tensor whose memory cannot be read, as inside torch.func.vmap or functionalize; call lsm "
                f"outside, or use a backend for tensors"
            )

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """A view as an ndarray; numpy() is three times as fast as DLPack, and writable."""
        torch = sys.modules["torch"]
        self.check_readable(x, name)
        try:
            if x.dtype is torch.bfloat16:
                return x.view(torch.int16).numpy().view(_check.np_dtype("bfloat16"))
            return x.numpy()
        except Exception as error:  # torch modes, such as fake tensors, may raise any type
            reraise_from_handler(error)
            raise TypeError(f"{name}: a tensor whose memory cannot be read ({error})") from error

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """The dtype, or ("cuda", dtype); None if x must be converted to another dtype."""
        if dtype and _names()[1][dtype] is not x.dtype:
            return None
        return ("cuda", x.dtype) if x.is_cuda else x.dtype

    def call_fast_function(
        self, operation: Operation, function: Any, arrays: tuple[Any, ...], axis: Any, out: Any
    ) -> Any:
        """Call the function on views as ndarrays, or on a CUDA device on the tensors."""
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
                if type(y) is np.ndarray and arrays[0].dtype is not self._bfloat16:
                    return self._from_numpy(y)
                return None if y is None else self.from_numpy(y, arrays[0])
            result = None if function(*views[:-1], axis, views[-1]) is None else out
        if result is not None and out is not None:
            self.bump_version(out)
        return result

    def _fast_view(self, x: Any) -> Any:
        """A view as an ndarray; None if x must be validated first. numpy() raises for other devices."""
        try:
            if type(x) is not self._tensor:
                return self._prepare() if self._tensor is None else None
            if self._n_modes() or self._recorder.get(0) is not None:
                return None
            if x.requires_grad or self._forward_ad._current_level >= 0 or not x.data_ptr():
                return None
            if x.dtype is not self._bfloat16:
                return x.numpy()
            return None if x.is_neg() or not x.is_cpu else self.view_as_numpy(x, "")
        except Exception as error:  # `validate` and `view_as_numpy` report the reason
            reraise_from_handler(error)
            return None

    def from_numpy(self, y: Any, like: Any) -> Any:
        """Convert a result to a tensor."""
        torch = sys.modules["torch"]
        y = np.asarray(y)  # the fast path gives a scalar for a 0-d result
        if y.dtype.kind == "V":  # bfloat16, from ml_dtypes or as bits
            return torch.from_numpy(y.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(y)

    def check_out(self, out: Any) -> None:
        """Raise TypeError if `out` cannot be written to, regardless of shape and dtype."""
        self.validate(out, "out")
        if out.is_neg():
            raise TypeError("out: a tensor with the negative bit set, which cannot be written to; pass another")

    def bump_version(self, out: Any) -> None:
        """Increment the version counter, so that autograd notices if it has saved the old values."""
        if not out.is_inference():  # inference tensors have no version counter
            sys.modules["torch"].autograd.graph.increment_version(out)

    def astype(self, x: Any, dtype: str) -> Any:
        """The tensor in another dtype; itself if it already has it."""
        return x.to(_names()[1][dtype])

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new tensor on the device of `like`, with its memory order if the shapes are equal."""
        if tuple(like.shape) == shape:
            return sys.modules["torch"].empty_like(like, dtype=_names()[1][dtype])
        return like.new_empty(shape, dtype=_names()[1][dtype])

    def signature(self, x: Any) -> tuple[Any, ...]:
        """Shape, dtype and device."""
        return tuple(x.shape), str(x.dtype).removeprefix("torch."), self.device(x)

    def check_native_out(self, out: Any, shape: tuple[int, ...], dtype: str) -> None:
        """Raise unless `out` can hold a result of this shape and dtype."""
        _check.check_out_like(tuple(out.shape), str(out.dtype).removeprefix("torch."), shape, dtype)
        if _check.overlaps_itself(tuple(out.shape), out.stride(), 1):
            raise ValueError(f"out: its elements overlap (strides {out.stride()}); pass a tensor without overlap")

    def permute(self, x: Any, order: list[int]) -> Any:
        """The tensor with its axes in another order."""
        return x.permute(order)

    def strides(self, x: Any) -> tuple[int, ...]:
        """The strides, in elements."""
        strides: tuple[int, ...] = x.stride()
        return strides

    def can_write_directly(self, out: Any, inputs: tuple[Any, ...]) -> bool:
        """True: overlap is known for tensors."""
        return True

    def same_or_disjoint(self, x: Any, out: Any) -> bool:
        """Whether `out` and x are the same elements, or share no memory."""
        (start, end), (first, last) = _extent(x), _extent(out)
        same = start == first and (x.shape, x.stride(), x.dtype) == (out.shape, out.stride(), out.dtype)
        return same or end <= first or last <= start or x.device != out.device

    def copy(self, x: Any) -> Any:
        """A copy of the tensor."""
        return x.clone()


@cache
def _names() -> tuple[dict[Any, str], dict[str, Any]]:
    """For each dtype of torch, the name of the compute dtype; and torch's dtypes by name."""
    torch = sys.modules["torch"]
    own = {name: getattr(torch, name) for name in ArrayLibrary.dtypes}
    whole = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
    computed = {getattr(torch, name): "float64" for name in whole if hasattr(torch, name)}
    return computed | {dtype: name for name, dtype in own.items()}, own


def _has_tangent(torch: Any, x: Any) -> bool:
    """Whether this is a dual tensor of forward-mode differentiation; `_current_level` avoids the slow `unpack_dual`."""
    forward = torch.autograd.forward_ad
    return getattr(forward, "_current_level", 0) >= 0 and forward.unpack_dual(x).tangent is not None


def _is_recorded(torch: Any) -> bool:
    """Whether make_fx is recording operations; it cannot record those outside PyTorch."""
    try:
        has_mode = torch._C._len_torch_dispatch_stack()
        if has_mode and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
            return True
        return torch._ops._mode_stack_state_for_pre_dispatch.get(0) is not None  # make_fx(pre_dispatch=True)
    except AttributeError:  # another release of PyTorch
        return False


def _address(x: Any) -> int:
    """The address of the first element; 0 inside torch.func, where tensors are wrappers without memory."""
    try:
        return int(x.data_ptr())
    except RuntimeError:
        return 0


def _extent(x: Any) -> tuple[int, int]:
    """The first and the end address of a tensor that is not empty."""
    start = x.data_ptr()
    steps = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return start, start + (steps + 1) * x.element_size()


def _rejection(x: Any, name: str) -> str:
    """Why a tensor is rejected, and what to pass instead."""
    if x.is_complex():
        return f"{x.dtype} numbers have no order; pass {name}.real or abs({name})"
    if x.is_quantized:
        return f"a quantised tensor ({x.dtype}); pass {name}.dequantize()"
    if x.layout is not sys.modules["torch"].strided:
        return f"a tensor with layout {x.layout}; pass {name}.to_dense()"
    return f"dtype {x.dtype} is not accepted; accepted: {', '.join(ArrayLibrary.dtypes)}, integers and bool"
