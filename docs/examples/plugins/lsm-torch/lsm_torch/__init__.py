"""log-softmax and related functions for PyTorch through lsm: backends for cpu, cuda, mps and xpu, and autograd."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# torch is imported by the first call of a function, not when the entry points are loaded.


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
    from lsm_torch.autograd import LogSoftmax

    y: torch.Tensor = LogSoftmax.apply(x, _dims(x, dim))
    return y


def softmax(x: "torch.Tensor", dim: Any = -1) -> "torch.Tensor":
    """Compute the softmax of a tensor, with its gradient.

    Parameters
    ----------
    x, dim
        As for `log_softmax`. `x` is on the CPU.

    Returns
    -------
    p : torch.Tensor, shape and dtype of `x`
        Probabilities.

    Examples
    --------
    >>> import torch
    >>> from lsm_torch import softmax
    >>> x = torch.tensor([20.0, 0.0], requires_grad=True)
    >>> softmax(x)[0].backward()
    >>> x.grad
    tensor([ 2.0612e-09, -2.0612e-09])
    """
    from lsm_torch.autograd import Softmax

    p: torch.Tensor = Softmax.apply(x, _dims(x, dim))
    return p


def logsumexp(x: "torch.Tensor", dim: Any = -1, keepdim: bool = False) -> "torch.Tensor":
    """Compute the logarithm of the sum of the exponentials of a tensor, with its gradient.

    Parameters
    ----------
    x, dim
        As for `log_softmax`. `x` is on the CPU.
    keepdim : bool, optional
        Whether the result keeps `dim`, with length 1.

    Returns
    -------
    total : torch.Tensor, dtype of `x`, shape of `x` without `dim`
        The logarithm. Where it is -inf, the gradient is 0.

    Examples
    --------
    >>> import torch
    >>> from lsm_torch import logsumexp
    >>> x = torch.tensor([1e8, 1e8], requires_grad=True)
    >>> logsumexp(x).backward()
    >>> x.grad
    tensor([0.5000, 0.5000])
    """
    from lsm_torch.autograd import Logsumexp

    dims = _dims(x, dim)
    total: torch.Tensor = Logsumexp.apply(x, dims)
    return total if keepdim else total.squeeze(dims)


def cross_entropy(
    logits: "torch.Tensor",
    targets: "torch.Tensor",
    dim: Any = -1,
    *,
    weight: "torch.Tensor | None" = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> "torch.Tensor":
    """Compute the cross-entropy of targets and the softmax of logits, with its gradient with respect to the logits.

    The gradient is computed together with the loss, in one pass, but only if it is required, and not, for example, in
    ``torch.no_grad()``.

    Parameters
    ----------
    logits : torch.Tensor, shape (..., n_classes, ...)
        In nats, on the CPU.
    targets : torch.Tensor
        Classes as integers, of the shape of `logits` without `dim`; or probabilities, of the shape of `logits`.
    dim : int, tuple of int, or None, optional
        The dimension of the classes; for PyTorch's own shapes, 1.
    weight, ignore_index, label_smoothing, z_loss, reduction
        As for `lsm.cross_entropy`. There is no gradient with respect to `targets` and `weight`.

    Returns
    -------
    loss : torch.Tensor, dtype of `logits`, but float32 for 16 bits

    Raises
    ------
    TypeError
        `targets` or `weight` require grad. Others as for `lsm.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from lsm_torch import cross_entropy
    >>> x = torch.tensor([[20.0, 0.0]], requires_grad=True)
    >>> cross_entropy(x, torch.tensor([0])).backward()
    >>> x.grad
    tensor([[-2.0612e-09,  2.0612e-09]])
    """
    import torch

    from lsm_torch import autograd, operators

    for name, tensor in (("targets", targets), ("weight", weight)):
        if tensor is not None and tensor.requires_grad:
            raise TypeError(f"{name} requires grad, but has no gradient here: pass {name}.detach()")
    arguments = (logits, targets, _dims(logits, dim), weight, ignore_index, label_smoothing, z_loss, reduction)
    if torch.is_grad_enabled() and logits.requires_grad:
        loss: torch.Tensor = autograd.CrossEntropy.apply(*arguments)[0]
        return loss
    return operators.cross_entropy(*arguments)


def _dims(x: "torch.Tensor", dim: Any) -> list[int]:
    """`dim` as a list."""
    return list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
