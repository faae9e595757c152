"""log_softmax and cross_entropy with the classes sharded over a process group, and their gradients.

Each rank has some classes of all frames, in the order of the ranks, and gets the results for these. The ranks send
partials, 32 bytes for a slice of 16,384 classes of a frame, and never the logits.

Every rank of the group makes the same calls. An error on one rank is raised on all of them, so that none waits for it.
"""

import math
import pickle
import zlib
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import lsm
from lsm_torch.autograd import Backward

Tensor = torch.Tensor
BLOCK_ELEMENTS = 2**17  # of the gradient in float64: 1 MiB, which fits a level-2 cache


@torch.compiler.disable
def log_softmax(x: Tensor, dim: int | None = -1, *, group: Any = None, n_classes: int | None = None) -> Tensor:
    """Compute the log-softmax of frames with the classes sharded over a process group, with its gradient.

    The backward pass sends 8 bytes per frame, so all ranks must run it.

    Parameters
    ----------
    x : torch.Tensor, shape (..., n, ...)
        Logits of this rank's classes, in nats, on the CPU. n may differ from rank to rank, and be 0.
    dim : int or None, optional
        The dimension of the classes; None for the only one.
    group : torch.distributed.ProcessGroup or None, optional
        The ranks, with a backend for the CPU such as gloo; None for all.
    n_classes : int or None, optional
        The number of classes of all ranks, to be checked.

    Returns
    -------
    y : torch.Tensor, shape and dtype of `x`
        Log-probabilities of this rank's classes, in nats. They have the bits of `lsm.log_softmax` of whole frames if
        all shards begin and end at multiples of 16,384 classes, and otherwise are within the same bound.

    Raises
    ------
    ValueError
        The shards do not have `n_classes` classes; an argument, or whether a gradient is required, is not the same on
        all ranks; or this process is not in the group. Except for this last one, all errors are raised on all ranks.
    Exception
        Any error of `lsm.partials` on any rank.

    Examples
    --------
    >>> import torch, torch.distributed as dist
    >>> from lsm_torch import sharded
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # as torchrun does for several
    >>> x = torch.tensor([20.0, 0.0], requires_grad=True)
    >>> sharded.log_softmax(x)[0].backward()
    >>> x.grad
    tensor([ 2.0612e-09, -2.0612e-09])
    >>> dist.destroy_process_group()
    """
    wants_gradient = torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad
    y: Tensor = LogSoftmax.apply(x, dim, group, n_classes, wants_gradient)
    return y


@torch.compiler.disable
def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    dim: int | None = -1,
    *,
    group: Any = None,
    n_classes: int | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Compute the cross-entropy of targets and logits with the classes sharded over a process group.

    Beside the partials, the ranks send one number per frame. The gradient with respect to the logits is computed in the
    backward pass, which sends nothing: each rank calls it, with the same gradient of the loss.

    Parameters
    ----------
    logits, dim, group, n_classes
        As for `log_softmax`; for PyTorch's own shapes, `dim` is 1.
    targets : torch.Tensor of integers, shape of `logits` without `dim`
        The same on all ranks: indices of the classes of the whole frames.
    ignore_index : int or None, optional
        The target of frames to leave out.
    reduction : {"mean", "sum", "none"}, optional
        As for `lsm.cross_entropy`.

    Returns
    -------
    loss : torch.Tensor, dtype of `logits`, but float32 for 16 bits
        The same on all ranks, in nats.

    Raises
    ------
    IndexError
        A target is neither the index of a class nor `ignore_index`.
    Exception
        As for `log_softmax`, or any error of `lsm.cross_entropy` on any rank.

    Examples
    --------
    >>> import torch, torch.distributed as dist
    >>> from lsm_torch import sharded
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # as torchrun does for several
    >>> x = torch.tensor([[20.0, 0.0]], requires_grad=True)
    >>> sharded.cross_entropy(x, torch.tensor([0])).backward()
    >>> x.grad
    tensor([[-2.0612e-09,  2.0612e-09]])
    >>> dist.destroy_process_group()
    """
    loss: Tensor = CrossEntropy.apply(logits, targets, dim, group, n_classes, ignore_index, reduction)
    return loss


class Frames(NamedTuple):
    """Whole frames, of which this rank has a shard.

    Attributes
    ----------
    dim : int
        The dimension of the classes, from 0.
    partials : torch.Tensor
        The partials of the whole frames.
    first_class, n_classes : int
        The index of the first class of this shard, and the number of all classes.
    """

    dim: int
    partials: Tensor
    first_class: int
    n_classes: int


def gathered(x: Tensor, dim: Any, group: Any, n_classes: Any, **same: Any) -> Frames:
    """Gather the partials of all shards; `same` are other values that must be the same on all ranks."""
    error, said = None, None
    try:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: a {type(x).__name__}; accepted: a torch.Tensor, the shard of this rank")
        own = lsm.partials(x.detach(), dim)
        dim = 0 if dim is None else dim % x.dim()
        frames = list(x.shape)
        n = frames.pop(dim)
        same |= {"dim": dim, "n_classes": n_classes, "dtype": x.dtype, "shape without dim": frames}
        said = n, own.shape[dim], {name: str(value) for name, value in same.items()}
    except Exception as e:
        error = e
    lengths, n_slices, calls = zip(*exchanged(said, error, group), strict=True)
    for rank, call in enumerate(calls):
        for name, value in call.items():
            check_same(name, calls[0].get(name), value, rank)
    if n_classes not in (None, sum(lengths)):
        raise ValueError(f"n_classes: {n_classes}; accepted: {sum(lengths)}, since the shards have {lengths}")
    # all_gather requires equal shapes: pad with (-inf, 0, 0, 0), which is neutral.
    shape = list(own.shape)
    shape[dim] = max(n_slices)
    padded = own.new_zeros(shape)
    padded[..., 0] = -torch.inf
    padded.narrow(dim, 0, own.shape[dim]).copy_(own)
    first_class = sum(lengths[: dist.get_rank(group)])
    return Frames(dim, torch.cat(all_gathered(padded, group), dim), first_class, sum(lengths))


def exchanged(said: Any, error: Exception | None, group: Any) -> list[Any]:
    """The values `said` from all ranks of the group; an error on any rank is raised on all."""
    if dist.get_rank(group) < 0:
        raise ValueError("group: this process is not in it; accepted: a group that this process is in")
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, (said, portable(error)), group=group)
    if error is not None:
        raise error
    for rank, (_, other) in enumerate(ranks):
        if other is not None:
            raise other from RuntimeError(f"on rank {rank} of the group")
    return [said for said, _ in ranks]


def portable(error: Exception | None) -> Exception | None:
    """The error, or, if it cannot be pickled, another one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def check_same(name: str, first: Any, value: Any, rank: int) -> None:
    """Raise ValueError if a value differs from that of rank 0."""
    if value != first:
        raise ValueError(f"{name}: {first} on rank 0, {value} on rank {rank}; accepted: the same on all of the group")


def all_gathered(x: Tensor, group: Any) -> list[Tensor]:
    """The tensors of all ranks, which have the same shape."""
    made = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    if x.numel():
        dist.all_gather(made, x, group=group)
    return made


def total(terms: Tensor) -> Tensor:
    """The sum along the first dimension, pairwise and compensated (Knuth)."""
    errors = torch.zeros_like(terms)
    while len(terms) > 1:
        if len(terms) % 2:
            terms, errors = (torch.cat([t, torch.zeros_like(t[:1])]) for t in (terms, errors))
        a, b = terms[::2], terms[1::2]
        terms = a + b
        v = terms - a
        errors = errors[::2] + errors[1::2] + ((a - (terms - v)) + (b - v))
    error = errors.sum(0)
    return terms.sum(0) + torch.where(error.isfinite(), error, 0)


class LogSoftmax(torch.autograd.Function):
    """y = log_softmax(x), of a shard."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: Any, group: Any, n_classes: Any, wants_gradient: bool) -> Tensor:
        frames = gathered(x, dim, group, n_classes, function="log_softmax", requires_grad=wants_gradient)
        ctx.dim, ctx.group = frames.dim, group
        y: Tensor = lsm.log_softmax(x.detach(), frames.dim, partials=frames.partials, n_classes=frames.n_classes)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return LogSoftmaxBackward.apply(dy, y, ctx.dim, ctx.group), *[None] * 4


class LogSoftmaxBackward(Backward):
    """dx = dy - exp(y) * S, where S is the sum of dy over all shards.

    lsm computes it with one more class, with any finite y, whose dy is the sum over the other shards.
    """

    @staticmethod
    def forward(dy: Tensor, y: Tensor, dim: int, group: Any) -> Tensor:
        moved = y.movedim(dim, -1).shape
        shape = math.prod(moved[:-1]), moved[-1]
        dy, y = (t.detach().movedim(dim, -1).reshape(shape) for t in (dy, y))
        step = max(1, BLOCK_ELEMENTS // (shape[1] + 1))
        blocks = [slice(i, i + step) for i in range(0, shape[0], step)]
        own = torch.empty(shape[0], dtype=torch.float64)
        for block in blocks:
            torch.sum(dy[block].double(), 1, out=own[block])
        sums = all_gathered(own, group)
        sums[dist.get_rank(group)] = torch.zeros_like(own)
        others = total(torch.stack(sums))
        dx = torch.empty_like(y)
        for block in blocks:
            wide = torch.cat([dy[block].double(), others[block, None]], 1)
            y_wide = torch.nn.functional.pad(y[block].double(), (0, 1))
            dx[block] = lsm.log_softmax_backward(wide, y_wide, out=wide)[:, :-1]
        return dx.reshape(moved).movedim(-1, dim)


class CrossEntropy(torch.autograd.Function):
    """The loss. A frame whose target is on another rank adds 0 here."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, dim: Any, group: Any, n_classes: Any, ignored: Any, reduction: str
    ) -> Tensor:
        same = {"ignore_index": ignored, "reduction": reduction}
        frames = gathered(logits, dim, group, n_classes, function="cross_entropy", **same)
        error, checksum = None, None
        try:
            if reduction not in ("mean", "sum", "none"):
                raise ValueError(f"reduction: {reduction!r}; accepted: 'mean', 'sum' or 'none'")
            losses = lsm.cross_entropy(
                logits.detach(),
                targets,
                frames.dim,
                ignore_index=ignored,
                reduction="none",
                partials=frames.partials,
                first_class=frames.first_class,
                n_classes=frames.n_classes,
            ).contiguous()
            targets = targets.long()
            checksum = zlib.crc32(targets.contiguous().numpy())
        except Exception as e:
            error = e
        checksums = exchanged(checksum, error, group)
        for rank, other in enumerate(checksums):
            check_same("targets, as CRC-32", checksums[0], other, rank)
        if losses.numel():
            dist.all_reduce(losses, group=group)
        kept = torch.ones_like(targets, dtype=torch.bool) if ignored is None else targets != ignored
        n_kept = int(kept.sum())
        ctx.frames, ctx.scale = frames._replace(partials=None), 1 / max(n_kept, 1) if reduction == "mean" else 1.0
        ctx.save_for_backward(logits, targets, kept, losses, frames.partials)
        if reduction == "none":
            return losses
        loss = total(losses.double().flatten())
        return (loss / n_kept if reduction == "mean" else loss).to(losses.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return CrossEntropyBackward.apply(g, *ctx.saved_tensors, ctx.frames, ctx.scale), *[None] * 6


class CrossEntropyBackward(Backward):
    """dx = rate * p, but rate * expm1(y) at the target, and 0 in frames that are left out."""

    @staticmethod
    def forward(
        g: Tensor,
        logits: Tensor,
        targets: Tensor,
        kept: Tensor,
        losses: Tensor,
        partials: Tensor,
        frames: Frames,
        scale: float,
    ) -> Tensor:
        dim, dtype = frames.dim, str(losses.dtype).removeprefix("torch.")
        p: Tensor = lsm.softmax(logits.detach(), dim, dtype=dtype, partials=partials, n_classes=frames.n_classes)
        targets, kept, losses = (t.unsqueeze(dim) for t in (targets, kept, losses))
        rate = g.double().expand(losses.squeeze(dim).shape).unsqueeze(dim) * scale
        places = targets - frames.first_class
        is_here = kept & (places >= 0) & (places < p.shape[dim])
        p *= rate.to(p.dtype)
        if p.numel():
            places = torch.where(is_here, places, 0)
            at_target = (torch.expm1(-losses.double()) * rate).to(p.dtype)
            p.scatter_(dim, places, torch.where(is_here, at_target, p.gather(dim, places)))
        return p.masked_fill_(~kept, 0).to(logits.dtype)
