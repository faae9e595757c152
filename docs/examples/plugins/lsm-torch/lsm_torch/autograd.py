"""lsm's forward and backward as differentiable functions of PyTorch."""

from typing import Any

import torch

import lsm


class LogSoftmax(torch.autograd.Function):
    """y = log_softmax(x)."""

    @staticmethod
    def forward(x: torch.Tensor, dim: Any) -> torch.Tensor:
        return lsm.log_softmax(x.detach(), dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        (y,) = ctx.saved_tensors
        return LogSoftmaxBackward.apply(dy, y, ctx.dim), None


class LogSoftmaxBackward(torch.autograd.Function):
    """dx = dy - exp(y) * S with S = sum(dy), as a function of dy and y."""

    @staticmethod
    def forward(dy: torch.Tensor, y: torch.Tensor, dim: Any) -> torch.Tensor:
        return lsm.log_softmax_backward(dy.detach(), y.detach(), dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        dy, y, dim = inputs
        ctx.dim = tuple(range(y.dim())) if dim is None else dim
        ctx.save_for_backward(dy, y)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        # d(dx_i)/d(dy_j) = (i == j) - exp(y_i) and d(dx_i)/d(y_i) = -exp(y_i) * S. In torch operations, so that the
        # result can be differentiated again.
        dy, y = ctx.saved_tensors
        p_g = torch.exp(y) * g
        return g - p_g.sum(ctx.dim, keepdim=True), -p_g * dy.sum(ctx.dim, keepdim=True), None
