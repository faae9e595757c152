"""Classes sharded over two and three processes: bits of whole frames, gradients, bytes sent, errors on all ranks."""

import doctest
import math
import re
import traceback
from datetime import timedelta
from itertools import accumulate, pairwise
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lsm_torch import cross_entropy, sharded
from torch.utils._python_dispatch import TorchDispatchMode

import lsm

SLICE = 16384
LD = np.longdouble
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# The number of classes of each rank; if borders are multiples of a slice, results have the bits of the whole.
ALIGNED = [(SLICE, SLICE), (SLICE, 700), (0, 20000), (20000, 0), (2 * SLICE, SLICE + 5), (40, 0), (0, 1)]
OTHERS = [(3, 7), (1, 20000), (SLICE + 3, SLICE - 3), (25129, 25128), (64, 1)]
ALIGNED_3 = [(SLICE, 0, 5), (0, SLICE, 2 * SLICE), (0, 0, 9), (SLICE, SLICE, SLICE)]
OTHERS_3 = [(2, 0, 3), (100, 200, SLICE)]


# -- the processes --------------------------------------------------------------------------------------------------


def serve(rank, path, end):
    """Run functions with the group of the first two ranks, or of all three, and send back how they ended."""
    torch.set_num_threads(1)
    patience = timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=3, timeout=patience)
    groups = {2: dist.new_group([0, 1], timeout=patience), 3: None}
    while True:
        function, n_ranks, arguments = end.recv()
        try:
            end.send((True, function(groups[n_ranks], *arguments)))
        except BaseException:
            end.send((False, traceback.format_exc()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that calls another on 2 or 3 ranks, and returns the results."""
    path = tmp_path_factory.mktemp("gloo") / "store"
    context = torch.multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(3)]
    processes = [
        context.Process(target=serve, args=(rank, path, there), daemon=True) for rank, (_, there) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    ends = [here for here, _ in pipes]

    def call(function, n_ranks, *arguments, ranks=None):
        used = ends[:n_ranks] if ranks is None else [ends[rank] for rank in ranks]
        for end in used:
            end.send((function, n_ranks, arguments))
        made = [end.recv() if end.poll(60) else (False, "this rank waits for others") for end in used]
        assert all(is_done for is_done, _ in made), "\n".join(result for is_done, result in made if not is_done)
        return [result for _, result in made]

    yield call
    for process in processes:
        process.kill()
        process.join()


def shard(x, lengths, group, dim=-1):
    """The classes of this rank."""
    borders = list(pairwise([0, *accumulate(lengths)]))
    start, stop = borders[dist.get_rank(group)]
    return x.narrow(dim, start, stop - start).clone()


def same(made, expected):
    """Require the same dtype, shape and bits; NaN equals NaN."""
    assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)


def wide(x):
    return x.detach().double().numpy().astype(LD)


def ulp(x, dtype):
    """The spacing of a dtype at these magnitudes."""
    info = torch.finfo(dtype)
    return np.maximum(np.ldexp(LD(info.eps), np.frexp(np.abs(x))[1] - 1), LD(info.tiny) * info.eps)


def largest_error(made, exact, dtype, magnitude=None):
    """The largest error, in ulps of the result, or of a magnitude."""
    at = np.abs(exact) if magnitude is None else magnitude
    return (np.abs(wide(made) - exact) / ulp(at, dtype)).max(initial=0)


BOUNDS = {torch.float16: 0.501, torch.bfloat16: 0.501, torch.float32: 4, torch.float64: 4}


def normal(shape, dtype, seed):
    return (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def logits(shape, dtype, dim=-1):
    """Logits: in every other frame, a class leads by 30 or more; in the last of several, all are far below 0."""
    frames = list(shape)
    n = frames.pop(dim)
    x = normal((math.prod(frames), n), torch.float64, 0)
    if x.numel():
        x[::2, n // 2] = x.max() + 30
    if len(x) > 1:
        x[-1] -= 1000
    return x.reshape(*frames, n).movedim(-1, dim).to(dtype).contiguous()


def exact_log_softmax(x):
    x = wide(x)
    d = x - x.max(-1, keepdims=True)
    k = d.argmax(-1)[..., None]
    e = np.exp(d)
    np.put_along_axis(e, k, 0, -1)
    return d - np.log1p(e.sum(-1, keepdims=True))


# -- log_softmax ----------------------------------------------------------------------------------------------------


def check_log_softmax(group, lengths, dtype, is_aligned, shape=(5, -1), dim=-1):
    n = sum(lengths)
    shape = [n if i == -1 else i for i in shape]
    x = logits(shape, dtype, dim)
    here = shard(x, lengths, group, dim).requires_grad_()
    y = sharded.log_softmax(here, dim, group=group, n_classes=n)
    whole = lsm.log_softmax(x, dim)
    assert y.dtype == dtype
    if is_aligned:
        same(y.detach(), shard(whole, lengths, group, dim))
    else:
        exact = shard(torch.arange(n), lengths, group)
        exact = exact_log_softmax(x.movedim(dim, -1))[..., exact.numpy()]
        assert largest_error(y.movedim(dim, -1), exact, dtype) <= BOUNDS[dtype]
    dy = normal(shape, dtype, 1)
    (dx,) = torch.autograd.grad(y, here, shard(dy, lengths, group, dim))
    assert (dx.dtype, dx.shape) == (here.dtype, here.shape)
    # The gradient, as a function of dy and y, must be within the bound, in ulps of the largest of it and its terms.
    parts = [torch.empty(0)] * dist.get_world_size(group)
    dist.all_gather_object(parts, y.detach(), group=group)
    y_whole, dy = torch.cat(parts, dim).movedim(dim, -1), wide(dy.movedim(dim, -1))
    p, s = np.exp(wide(y_whole)), dy.sum(-1, keepdims=True)
    exact = np.where(wide(y_whole) > -0.69, (dy - s) - np.expm1(wide(y_whole)) * s, dy - p * s)
    size = np.abs(dy).sum(-1, keepdims=True) if dtype == torch.float64 else np.abs(s)
    magnitude = np.maximum(np.maximum(np.abs(exact), np.abs(dy)), p * size)
    mine = shard(torch.arange(n), lengths, group).numpy()
    assert largest_error(dx.movedim(dim, -1), exact[..., mine], dtype, magnitude[..., mine]) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_softmax_and_its_gradient(run, dtype):
    for lengths in ALIGNED:
        run(check_log_softmax, 2, lengths, dtype, True)
    for lengths in OTHERS:
        run(check_log_softmax, 2, lengths, dtype, False)
    for lengths in ALIGNED_3:
        run(check_log_softmax, 3, lengths, dtype, True)
    for lengths in OTHERS_3:
        run(check_log_softmax, 3, lengths, dtype, False)


def check_partials(group, lengths):
    x = logits((2, sum(lengths)), torch.float64)
    p = sharded.gathered(shard(x, lengths, group), -1, group, None).partials
    same(p[:, p[0, :, 3] > 0], lsm.partials(x))


def test_partials_are_those_of_the_whole_in_order_beside_neutral_ones(run):
    run(check_partials, 2, (SLICE, 2 * SLICE + 1))
    run(check_partials, 3, (2 * SLICE, 0, 5))


def test_every_dimension(run):
    for shape, dim in (((-1,), 0), ((-1, 3, 2), 0), ((2, -1, 3), 1), ((2, 3, -1), -1)):
        run(check_log_softmax, 2, (SLICE, 9), torch.float32, True, shape, dim)
    for shape in ((0, -1), (2, 0, -1)):
        run(check_shape_of_empty, 2, shape)


def check_shape_of_empty(group, shape):
    here = shard(torch.zeros([8 if n == -1 else n for n in shape]), (3, 5), group).requires_grad_()
    y = sharded.log_softmax(here, group=group)
    assert y.shape == here.shape
    y.sum().backward()
    assert here.grad.shape == here.shape
    loss = sharded.cross_entropy(here, torch.zeros(here.shape[:-1], dtype=torch.int64), group=group)
    assert loss.isnan()
    empty = torch.zeros(4, 0, requires_grad=True)
    y = sharded.log_softmax(empty, group=group, n_classes=0)
    y.sum().backward()
    assert y.shape == empty.grad.shape == (4, 0)


# -- cross_entropy --------------------------------------------------------------------------------------------------


def check_cross_entropy(group, lengths, dtype, is_aligned):
    n = sum(lengths)
    x = logits((4, n, 2), dtype, 1)
    targets = torch.randint(0, n, (4, 2), generator=torch.Generator().manual_seed(2))
    targets[0] = torch.tensor([n // 2, 0])  # the class that leads, and the first
    targets[1] = torch.tensor([-100, n - 1])
    for reduction in ("mean", "sum", "none"):
        options = {"ignore_index": -100, "reduction": reduction}
        here = shard(x, lengths, group, 1).requires_grad_()
        loss = sharded.cross_entropy(here, targets, 1, group=group, **options)
        if reduction == "none":
            value, upstream = lsm.cross_entropy(x, targets, 1, **options), torch.linspace(-2, 3, 8).reshape(4, 2)
        else:
            value, whole = lsm.cross_entropy_value_and_grad(x, targets, 1, **options)
            upstream = torch.tensor(1.0)
        (dx,) = torch.autograd.grad(loss, here, upstream.to(loss.dtype))
        assert (dx.dtype, dx.shape, loss.dtype) == (dtype, here.shape, value.dtype)
        y = exact_log_softmax(x.movedim(1, -1))
        label = targets.clamp(min=0).numpy()[..., None]
        kept = (targets != -100).numpy()
        exact = np.where(kept, -np.take_along_axis(y, label, -1)[..., 0], 0)
        rate = (wide(upstream) / (kept.sum() if reduction == "mean" else 1) * kept)[..., None]
        gradient = np.exp(y)
        np.put_along_axis(gradient, label, np.expm1(np.take_along_axis(y, label, -1)), -1)
        gradient = (gradient * rate)[..., shard(torch.arange(n), lengths, group).numpy()]
        if reduction != "none":
            exact = exact.sum() / (kept.sum() if reduction == "mean" else 1)
        assert largest_error(loss, exact, loss.dtype) <= 4
        bound = BOUNDS[dtype]
        if reduction != "sum" and bound == 4:  # p times a number may be in a range where ulps are half as large
            bound = 2 * bound + 1
        assert largest_error(dx.movedim(1, -1), gradient, dtype) <= bound
        if is_aligned:
            same(loss.detach(), value)
            if reduction != "none":
                same(dx, shard(whole, lengths, group, 1))
    told = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, loss.tolist(), group=group)
    assert told == [told[0]] * len(told)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_and_its_gradient(run, dtype):
    for lengths in ((SLICE, 700), (0, 2 * SLICE), (40, 0)):
        run(check_cross_entropy, 2, lengths, dtype, True)
    for lengths in ((3, 7), (20000, 129)):
        run(check_cross_entropy, 2, lengths, dtype, False)
    run(check_cross_entropy, 3, (SLICE, 0, 5), dtype, True)
    run(check_cross_entropy, 3, (2, 0, 3), dtype, False)


def check_one_frame(group):
    """Logits of one dimension, and targets with a different dtype on each rank."""
    x, rank = logits((SLICE + 9,), torch.float32), dist.get_rank(group)
    here = shard(x, (SLICE, 9), group).requires_grad_()
    target = torch.tensor(SLICE + 2, dtype=[torch.int64, torch.uint16][rank])
    loss = sharded.cross_entropy(here, target, None, group=group)
    value, whole = lsm.cross_entropy_value_and_grad(x, target.long())
    loss.backward()
    same(loss.detach(), value)
    same(here.grad, shard(whole, (SLICE, 9), group))


def test_one_frame(run):
    run(check_one_frame, 2)


def check_learning(group):
    """A layer with sharded outputs learns the same as the whole layer."""
    targets = torch.arange(64) % 4
    images = torch.nn.functional.one_hot(targets, 4).double()
    weights = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, here = weights.clone().requires_grad_(), shard(weights, (3, 1), group).requires_grad_()
    losses = []
    for _ in range(30):
        for w, loss in (
            (whole, cross_entropy(images @ whole, targets)),
            (here, sharded.cross_entropy(images @ here, targets, group=group)),
        ):
            (gradient,) = torch.autograd.grad(loss, w)
            with torch.no_grad():
                w -= 2 * gradient
            losses.append(loss.item())
    assert losses[-1] < 0.3 < 1 < losses[0]
    torch.testing.assert_close(losses[::2], losses[1::2])
    torch.testing.assert_close(here, shard(whole, (3, 1), group))


def test_a_model_learns(run):
    run(check_learning, 2)


# -- special values -------------------------------------------------------------------------------------------------


def check_special(group, border):
    n, nan, inf = 2 * SLICE, torch.nan, torch.inf
    x = logits((9, n), torch.float32)
    x[0, border], x[1, border - 1], x[2, border], x[3, 0] = nan, nan, inf, inf
    x[4, border:], x[5, :border], x[6] = -inf, -inf, -inf
    x[7, 1:] = -inf
    targets = torch.tensor([0, 0, 0, n - 1, 0, n - 1, 0, 1, 0])
    lengths = border, n - border
    here = shard(x, lengths, group).requires_grad_()
    y = sharded.log_softmax(here, group=group)
    expected = shard(lsm.log_softmax(x), lengths, group)
    torch.testing.assert_close(y.detach(), expected, rtol=0 if border == SLICE else 1e-6, atol=0, equal_nan=True)
    dy = normal((9, n), torch.float32, 1)
    dy[8, 5] = nan
    (dx,) = torch.autograd.grad(y, here, shard(dy, lengths, group))
    expected = shard(lsm.log_softmax_backward(dy, lsm.log_softmax(x)), lengths, group)
    torch.testing.assert_close(dx, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert dx[[0, 1, 2, 3, 6, 8]].isnan().all()
    if dist.get_rank(group) == 1:
        same(dx[[4, 7]], shard(dy, lengths, group)[[4, 7]])  # for masked classes, exactly dy
    for ignored in (None, 0):
        for reduction in ("none", "mean"):
            options = {"ignore_index": ignored, "reduction": reduction}
            loss = sharded.cross_entropy(here, targets, group=group, **options)
            torch.testing.assert_close(
                loss.detach(), lsm.cross_entropy(x, targets, **options), rtol=1e-6, atol=0, equal_nan=True
            )
            (dx,) = torch.autograd.grad(loss.sum(), here)
            _, expected = lsm.cross_entropy_value_and_grad(x, targets, **options | {"reduction": "sum"})
            if reduction == "none":
                torch.testing.assert_close(dx, shard(expected, lengths, group), rtol=1e-5, atol=1e-9, equal_nan=True)
            if ignored == 0:
                assert (dx[[0, 1, 2, 4, 6, 8]] == 0).all()
    loss = sharded.cross_entropy(here, targets, group=group, ignore_index=0)
    loss = sharded.cross_entropy(here, torch.zeros_like(targets), group=group, ignore_index=0)
    (dx,) = torch.autograd.grad(loss, here)
    assert loss.isnan()
    assert (dx == 0).all()


@pytest.mark.parametrize("border", [SLICE, 1000])
def test_special_values_count_for_the_whole_frame(run, border):
    run(check_special, 2, border)


# -- communication, and computation only if required ----------------------------------------------------------------


class Sent(TorchDispatchMode):
    """The bytes that this rank passes to collectives, by dtype."""

    def __init__(self):
        super().__init__()
        self.n_bytes, self.n_calls = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            given = args[{"allgather_": 1, "allreduce_": 0}[function.overloadpacket.__name__]]
            self.n_calls += 1
            for tensor in given:
                self.n_bytes[tensor.dtype] = self.n_bytes.get(tensor.dtype, 0) + tensor.nbytes
        return function(*args, **(kwargs or {}))


def check_bytes(group, lengths, n_frames):
    """32 bytes for each slice of the longest shard, per frame; other data do not depend on the frames."""
    here = shard(logits((n_frames, sum(lengths)), torch.float32), lengths, group).requires_grad_()
    targets = torch.zeros(n_frames, dtype=torch.int64)
    n_slices = max(-(-n // SLICE) for n in lengths)
    with Sent() as sent:
        y = sharded.log_softmax(here, group=group)
    assert sent.n_bytes.pop(torch.float64) == 32 * n_slices * n_frames
    assert sent.n_calls == 3
    assert sum(sent.n_bytes.values()) < 400
    with Sent() as sent:
        y.sum().backward()
    assert sent.n_bytes == {torch.float64: 8 * n_frames}
    with Sent() as sent:
        loss = sharded.cross_entropy(here, targets, group=group)
    assert sent.n_bytes.pop(torch.float64) == 32 * n_slices * n_frames
    assert sent.n_bytes.pop(torch.float32) == 4 * n_frames
    assert sent.n_calls == 6
    assert sum(sent.n_bytes.values()) < 600
    with Sent() as sent:
        loss.backward()
    assert sent.n_bytes == {}
    return 32 * n_slices


def test_what_is_sent(run):
    assert sum(run(check_bytes, 2, (65536, 65536), 3)) == 256  # for 131,072 classes of a frame
    for lengths, n_frames in (((40000, 3), 2), ((0, 100), 50), ((SLICE, 0), 1)):
        run(check_bytes, 2, lengths, n_frames)
    run(check_bytes, 3, (20000, 0, 5), 7)


def check_no_grad(group):
    here, targets = shard(logits((2, 9), torch.float32), (4, 5), group).requires_grad_(), torch.tensor([0, 8])
    with mock.patch.multiple(lsm, softmax=None, log_softmax_backward=None), torch.no_grad():
        results = sharded.log_softmax(here, group=group), sharded.cross_entropy(here, targets, group=group)
    assert all(result.grad_fn is None for result in results)
    assert not any(result.requires_grad for result in results)
    same(sharded.log_softmax(here.detach(), group=group), results[0])


def test_no_gradient_is_computed_unless_required(run):
    run(check_no_grad, 2)


# -- errors ---------------------------------------------------------------------------------------------------------


class OddError(Exception):
    """An error that cannot be unpickled."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def odd(*arguments, **options):
    raise OddError("out of", "luck")


X, T = torch.zeros(2, 4), torch.tensor([0, 7])
LS, CE = sharded.log_softmax, sharded.cross_entropy
# The calls of both ranks, with a shard of four classes each, and the error that both raise.
REFUSED = {
    "n_classes": ((LS, X, {"n_classes": 9}),) * 2 + (ValueError, r"n_classes: 9; accepted: 8, .* have \(4, 4\)"),
    "n_classes of a loss": ((CE, X, T, {"n_classes": 7}),) * 2 + (ValueError, "n_classes: 7; accepted: 8"),
    "two n_classes": (
        (LS, X, {"n_classes": 8}),
        (LS, X, {"n_classes": 9}),
        ValueError,
        "n_classes: 8 on rank 0, 9 on rank 1; accepted: the same on all of the group",
    ),
    "frames": ((LS, X), (LS, X[:1]), ValueError, r"shape without dim: \[2\] on rank 0, \[1\] on rank 1"),
    "dtype": ((LS, X), (LS, X.double()), ValueError, "dtype: torch.float32 on rank 0, torch.float64 on rank 1"),
    "dim": ((LS, X, 1), (LS, X, 2), np.exceptions.AxisError, "axis 2 is out of bounds"),
    "two dims": ((LS, X), (LS, X, (0, 1)), TypeError, r"axis: \(0, 1\); accepted: one int"),
    "complex": ((LS, X * 1j), (LS, X), TypeError, "complex64 numbers have no order"),
    "a list": ((CE, [0.0], T), (CE, X, T), TypeError, "x: a list; accepted: a torch.Tensor"),
    "no dimensions": ((LS, X[0, 0]), (LS, X), ValueError, "x: has no dimensions"),
    "gradient": (
        (LS, X),
        (LS, X.clone().requires_grad_()),
        ValueError,
        "requires_grad: False on rank 0, True on rank 1",
    ),
    "functions": ((LS, X), (CE, X, T), ValueError, "function: log_softmax on rank 0, cross_entropy on rank 1"),
    "target": ((CE, X, T + 1),) * 2 + (IndexError, r"targets: 8 at \[1\]; accepted: 0 to 7"),
    "target of one rank": ((CE, X, T), (CE, X, T + 1), IndexError, r"targets: 8 at \[1\]; accepted: 0 to 7"),
    "negative target": ((CE, X, T - 100), (CE, X, T), IndexError, r"targets: -100 at \[0\]"),
    "targets": ((CE, X, T), (CE, X, T - T), ValueError, "targets, as CRC-32: .* accepted: the same on all"),
    "dtype of targets": ((CE, X, T), (CE, X, X), TypeError, "targets: dtype float32; accepted with partials"),
    "shape of targets": ((CE, X, T[:1]), (CE, X, T), ValueError, r"targets: shape \(1,\); accepted: \(2,\)"),
    "reduction": ((CE, X, T, {"reduction": "max"}),) * 2 + (ValueError, "reduction: 'max'; accepted: 'mean', 'sum'"),
    "ignore_index": ((CE, X, T, {"ignore_index": 7}), (CE, X, T), ValueError, "ignore_index: 7 on rank 0, None on"),
}


def error_of(group, calls):
    function, *arguments = calls[dist.get_rank(group)]
    options = arguments.pop() if type(arguments[-1]) is dict else {}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function(*arguments, group=group, **options)
    cause = caught.value.__cause__
    return type(caught.value), str(caught.value), cause and str(cause)


def check_still_in_step(group):
    x = logits((2, 8), torch.float32)
    y = sharded.log_softmax(shard(x, (4, 4), group), group=group)
    torch.testing.assert_close(y, shard(lsm.log_softmax(x), (4, 4), group))


@pytest.mark.parametrize("case", REFUSED)
def test_errors_are_raised_on_all_ranks(run, case):
    *calls, kind, message = REFUSED[case]
    made = run(error_of, 2, calls)
    for found, text, cause in made:
        assert found is kind
        assert re.search(message, text)
        assert cause in (None, "on rank 0 of the group", "on rank 1 of the group")
    run(check_still_in_step, 2)


def check_odd_error(group):
    rank = dist.get_rank(group)
    with mock.patch.object(lsm, "cross_entropy", odd if rank else lsm.cross_entropy):
        found, text, _ = error_of(group, [(CE, X, T)] * 2)
    assert found is (OddError if rank else RuntimeError)
    assert text.endswith("out of luck")


def test_an_error_that_cannot_be_sent(run):
    run(check_odd_error, 2)
    run(check_still_in_step, 2)


def check_outsider(group):
    with pytest.raises(ValueError, match="group: this process is not in it"):
        sharded.log_softmax(X, group=group)


def test_a_process_that_is_not_in_the_group(run):
    run(check_outsider, 2, ranks=[2])


def check_second_derivative(group):
    here, targets = shard(logits((2, 8), torch.float32), (4, 4), group).requires_grad_(), torch.tensor([0, 7])
    for y in (sharded.log_softmax(here, group=group), sharded.cross_entropy(here, targets, group=group)):
        (gradient,) = torch.autograd.grad((y**2).sum(), here, create_graph=True)
        with pytest.raises(RuntimeError, match=r"only lsm_torch\.log_softmax has a second derivative"):
            (gradient**2).sum().backward()


def test_a_second_derivative_is_an_error(run):
    run(check_second_derivative, 2)


def test_the_examples():
    assert doctest.testmod(sharded) == (0, 14)  # failures, examples
