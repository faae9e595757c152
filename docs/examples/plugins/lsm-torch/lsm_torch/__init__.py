"""log-softmax for PyTorch through lsm: backends for cpu, cuda, mps and xpu, and autograd."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def log_softmax(x: "torch.Tensor", dim: Any = -1) -> "torch.Tensor":
    """Compute the log-softmax of a tensor, with gradients of any order.

    Parameters
    ----------
    x : torch.Tensor, shape (..., n_classes, ...)
        Logits, in nats.
    dim : int, tuple of int, or None, optional
        The dimension of the classes. Several dimensions, or None for all, count as one.

    Returns
    -------
    y : torch.Tensor, shape, dtype and device of `x`
        Log-probabilities, in nats.

    Examples
    --------
    >>> import torch
    >>> from lsm_torch import log_softmax
    >>> x = torch.tensor([20.0, 0.0], requires_grad=True)
    >>> log_softmax(x)[0].backward()
    >>> x.grad
    tensor([ 2.0612e-09, -2.0612e-09])
    """
    from lsm_torch.autograd import LogSoftmax  # imports torch, which must not happen when the entry point is loaded

    y: torch.Tensor = LogSoftmax.apply(x, dim)
    return y
