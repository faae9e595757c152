"""The gradients of the operators, as differentiable functions of PyTorch."""

from typing import Any

import torch

from lsm_torch import operators


class LogSoftmax(torch.autograd.Function):
    """y = log_softmax(x)."""

    @staticmethod
    def forward(x: torch.Tensor, dim: list[int]) -> torch.Tensor:
        return operators.log_softmax(x, dim)

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
    def forward(dy: torch.Tensor, y: torch.Tensor, dim: list[int]) -> torch.Tensor:
        return operators.log_softmax_backward(dy, y, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        dy, y, ctx.dim = inputs
        ctx.save_for_backward(dy, y)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        # d(dx_i)/d(dy_j) = (i == j) - exp(y_i) and d(dx_i)/d(y_i) = -exp(y_i) * S. In torch operations, so that the
        # result can be differentiated again.
        dy, y = ctx.saved_tensors
        p_g = torch.exp(y) * g
        return g - p_g.sum(ctx.dim, keepdim=True), -p_g * dy.sum(ctx.dim, keepdim=True), None


class Backward(torch.autograd.Function):
    """A gradient that is not differentiable."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> None:
        raise RuntimeError("only lsm_torch.log_softmax has a second derivative")


class Softmax(torch.autograd.Function):
    """p = softmax(x)."""

    @staticmethod
    def forward(x: torch.Tensor, dim: list[int]) -> torch.Tensor:
        return operators.softmax(x, dim)

    setup_context = LogSoftmax.setup_context

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        (p,) = ctx.saved_tensors
        return SoftmaxBackward.apply(dy, p, ctx.dim), None


class SoftmaxBackward(Backward):
    """dx = p * (dy - sum(p * dy))."""

    @staticmethod
    def forward(dy: torch.Tensor, p: torch.Tensor, dim: list[int]) -> torch.Tensor:
        return operators.softmax_backward(dy, p, dim)


class Logsumexp(torch.autograd.Function):
    """L = logsumexp(x), with `dim` kept."""

    @staticmethod
    def forward(x: torch.Tensor, dim: list[int]) -> torch.Tensor:
        return operators.logsumexp(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        x, ctx.dim = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, total = ctx.saved_tensors
        return LogsumexpBackward.apply(g, x, total, ctx.dim), None


class LogsumexpBackward(Backward):
    """dx = g * softmax(x)."""

    @staticmethod
    def forward(g: torch.Tensor, x: torch.Tensor, total: torch.Tensor, dim: list[int]) -> torch.Tensor:
        return operators.logsumexp_backward(g, x, total, dim)


class CrossEntropy(torch.autograd.Function):
    """The loss, and its gradient with respect to the logits, which backward multiplies by that of the loss."""

    @staticmethod
    def forward(logits: torch.Tensor, targets: torch.Tensor, dim: list[int], *options: Any) -> Any:
        return operators.cross_entropy_value_and_grad(logits, targets, dim, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        logits, _, dim, *options = inputs
        ctx.dtype, ctx.frames, ctx.n_others = logits.dtype, operators.kept(logits, dim), 2 + len(options)
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor | None, of_gradient: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if of_gradient is not None and not torch.compiler.is_compiling():  # when compiled, it is zeros, not None
            Backward.backward(ctx, of_gradient)
        dx = None
        if g is not None:
            dx = (ctx.saved_tensors[0] * (g.reshape(ctx.frames) if g.dim() else g)).to(ctx.dtype)
        return dx, *[None] * ctx.n_others
