"""The backends "torch" and "torch-float32": tensors on cpu, cuda, mps and xpu, with functions of torch.

They do not use torch.log_softmax and its gradient. Where one class leads by 20, the first returns 0 instead of
-2.06e-9, and the second a gradient of 0 (https://github.com/pytorch/pytorch/issues/113708). Instead, both are composed
of torch.exp, expm1, log1p and sums, which are accurate there.
"""

from importlib import import_module
from types import MappingProxyType
from typing import Any

import lsm

LN_2 = 0.693


class TorchBackend(lsm.Backend):
    """Devices with float64: float32 is computed in float64, 16 bits in float32, and the result is rounded once."""

    name = "torch"
    api_version = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")
    array_types = ("torch.Tensor",)

    def available(self) -> str | None:
        """None, or the reason why PyTorch cannot be imported."""
        try:
            import_module("torch")
        except ImportError as error:
            return f"PyTorch cannot be imported: {error}"
        return None

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """y = (x - m) - log1p(s), where s is the sum of exp(x - m) over all classes except one of the largest."""
        torch = import_module("torch")
        x = x.to(self._wide(torch, x, out))
        m, k = x.max(axis, keepdim=True)
        m = torch.where(m.isfinite(), m, torch.nan)  # a frame with NaN or +inf, or all -inf, becomes NaN
        d = x - m
        e = _rounding_error(torch, x, m, d)
        p = torch.exp(d)
        s = (p + p * e).scatter_(axis, k, 0).sum(axis, keepdim=True)
        out.copy_(d - (torch.log1p(s) - e))

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """dx = dy - exp(y) * s, as (dy - s) - expm1(y) * s where y > -ln 2."""
        torch = import_module("torch")
        wide = self._wide(torch, grad_output, out)
        dy, y = grad_output.to(wide), output.to(wide)
        s = dy.sum(axis, keepdim=True)
        is_right = s.isfinite() & y.amax(axis, keepdim=True).isfinite()
        s = torch.where(is_right, s, torch.nan)
        out.copy_(torch.where(y > -LN_2, (dy - s) - torch.expm1(y) * s, dy - torch.exp(y) * s))

    def _wide(self, torch: Any, x: Any, out: Any) -> Any:
        """The compute dtype."""
        return torch.float32 if x.element_size() == out.element_size() == 2 else torch.float64


class Float32Backend(TorchBackend):
    """Devices that may lack float64: Metal and Intel GPUs; and the CPU, for tests.

    The claims of a backend apply to all of its devices, so these devices have a separate one.
    """

    name = "torch-float32"
    devices = ("cpu", "mps", "xpu")
    dtypes = ("float16", "bfloat16", "float32")
    max_ulp = MappingProxyType({"float32": 256.0})  # 197 was measured on the CPU, where grad_output cancels in the sum

    def _wide(self, torch: Any, x: Any, out: Any) -> Any:
        """The compute dtype."""
        return torch.float32


def _rounding_error(torch: Any, x: Any, m: Any, d: Any) -> Any:
    """The rounding error of d = x - m (Knuth); 0 where d is infinite."""
    v = d - x
    e = (x - (d - v)) - (m + v)
    return torch.where(d.isfinite(), e, 0)


backend = TorchBackend()
float32_backend = Float32Backend()
