"""Functions of lsm as PyTorch operators: since the result shapes are declared, torch.compile keeps them in one graph.

`dim` is a list. Gradients are in `lsm_torch.autograd`.
"""

from typing import Any

import torch
from torch.library import custom_op

import lsm

Tensor = torch.Tensor
MAP = "(Tensor x, int[] dim) -> Tensor"
GRADIENT = "(Tensor grad_output, Tensor output, int[] dim) -> Tensor"
LOSS = (
    "(Tensor logits, Tensor targets, int[] dim, Tensor? weight, int? ignore_index, float label_smoothing, float z_loss,"
    " str reduction) -> "
)


@custom_op("lsm_torch::log_softmax", mutates_args=(), schema=MAP)
def log_softmax(x: Tensor, dim: list[int]) -> Tensor:
    return lsm.log_softmax(x.detach(), tuple(dim))


@custom_op("lsm_torch::log_softmax_backward", mutates_args=(), schema=GRADIENT)
def log_softmax_backward(dy: Tensor, y: Tensor, dim: list[int]) -> Tensor:
    return lsm.log_softmax_backward(dy.detach(), y.detach(), tuple(dim))


@custom_op("lsm_torch::softmax", mutates_args=(), schema=MAP)
def softmax(x: Tensor, dim: list[int]) -> Tensor:
    return lsm.softmax(x.detach(), tuple(dim))


@custom_op("lsm_torch::softmax_backward", mutates_args=(), schema=GRADIENT)
def softmax_backward(dy: Tensor, p: Tensor, dim: list[int]) -> Tensor:
    return lsm.softmax_backward(dy.detach(), p.detach(), tuple(dim))


@custom_op("lsm_torch::logsumexp", mutates_args=(), schema=MAP)
def logsumexp(x: Tensor, dim: list[int]) -> Tensor:
    """L, with `dim` kept."""
    return lsm.logsumexp(x.detach(), tuple(dim), keepdims=True)


@custom_op(
    "lsm_torch::logsumexp_backward", mutates_args=(), schema="(Tensor g, Tensor x, Tensor L, int[] dim) -> Tensor"
)
def logsumexp_backward(g: Tensor, x: Tensor, total: Tensor, dim: list[int]) -> Tensor:
    """dx = g * softmax(x), and 0 where L is -inf, since all classes are masked."""
    dx: Tensor = lsm.softmax(x.detach(), tuple(dim)).mul_(g.detach())
    return dx.masked_fill_(total.detach() == -torch.inf, 0)


@custom_op("lsm_torch::cross_entropy", mutates_args=(), schema=LOSS + "Tensor")
def cross_entropy(logits: Tensor, *arguments: Any) -> Tensor:
    return lsm.cross_entropy(logits.detach(), **keywords(*arguments))


@custom_op("lsm_torch::cross_entropy_value_and_grad", mutates_args=(), schema=LOSS + "(Tensor, Tensor)")
def cross_entropy_value_and_grad(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, in float32 for float16, so that it does not vanish before a GradScaler scales it."""
    x = logits.detach()
    return lsm.cross_entropy_value_and_grad(x.float() if x.dtype == torch.float16 else x, **keywords(*arguments))


def keywords(
    targets: Tensor, dim: list[int], weight: Any, ignore_index: Any, smoothing: float, z_loss: float, reduction: str
) -> dict[str, Any]:
    axis = dim[0] if len(dim) == 1 else tuple(dim)
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": smoothing, "z_loss": z_loss}
    return {"targets": targets, "axis": axis, "reduction": reduction, **options}


def kept(x: Tensor, dim: list[int]) -> list[int]:
    """The shape of a reduction that keeps `dim`."""
    reduced = {i % max(x.dim(), 1) for i in dim}
    return [1 if i in reduced else n for i, n in enumerate(x.shape)]


def floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float64


@log_softmax.register_fake
@softmax.register_fake
def _(x: Tensor, dim: list[int]) -> Tensor:
    return torch.empty_like(x, dtype=floating(x))


@log_softmax_backward.register_fake
@softmax_backward.register_fake
def _(dy: Tensor, y: Tensor, dim: list[int]) -> Tensor:
    return torch.empty_like(y)


@logsumexp.register_fake
def _(x: Tensor, dim: list[int]) -> Tensor:
    return x.new_empty(kept(x, dim), dtype=floating(x))


@logsumexp_backward.register_fake
def _(g: Tensor, x: Tensor, total: Tensor, dim: list[int]) -> Tensor:
    return torch.empty_like(x)


@cross_entropy.register_fake
def fake_loss(logits: Tensor, *arguments: Any) -> Tensor:
    reduced = {i % max(logits.dim(), 1) for i in arguments[1]}
    shape = [n for i, n in enumerate(logits.shape) if i not in reduced] if arguments[-1] == "none" else []
    return logits.new_empty(shape, dtype=torch.promote_types(floating(logits), torch.float32))


@cross_entropy_value_and_grad.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if logits.dtype == torch.float16 else floating(logits)
    return fake_loss(logits, *arguments), torch.empty_like(logits, dtype=dtype)
