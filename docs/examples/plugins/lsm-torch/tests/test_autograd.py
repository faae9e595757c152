"""Gradients are right, even compiled, under autocast and scaled; they are computed only if required."""

import subprocess
import sys

import pytest
import torch
from lsm_torch import cross_entropy, log_softmax, logsumexp, operators, softmax

import lsm

TARGETS = torch.tensor([[0, 3], [2, 1], [1, 1]])
SOFT = torch.rand(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LOSSES = [
    {},
    {"reduction": "sum", "ignore_index": 1},
    {"reduction": "none", "label_smoothing": 0.1},
    {"weight": torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64), "z_loss": 0.1},
]
FUNCTIONS = {
    "softmax": lambda x: softmax(x, 1),
    "softmax of all": lambda x: softmax(x, None),
    "logsumexp": lambda x: logsumexp(x, (0, 2)),
    "logsumexp, kept": lambda x: logsumexp(x, 1, keepdim=True),
    "probabilities": lambda x: cross_entropy(x, SOFT, 1, reduction="none"),
    **{f"cross_entropy {o}": lambda x, o=o: cross_entropy(x, TARGETS, 1, **o) for o in LOSSES},
}


@pytest.fixture
def x():
    torch.manual_seed(0)
    return (torch.randn(3, 4, 2, dtype=torch.float64) * 3).requires_grad_()


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_gradcheck(x, function):
    assert torch.autograd.gradcheck(function, (x,))
    through = torch.func.grad(lambda x: (function(x) ** 2).sum())(x.detach())
    assert torch.equal(through, torch.autograd.grad((function(x) ** 2).sum(), x)[0])


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_second_derivative_is_an_error(x, function):
    (gradient,) = torch.autograd.grad((function(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"only lsm_torch\.log_softmax has a second derivative"):
        (gradient**2).sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cross_entropy_is_torchs_with_the_upstream_gradient(dtype, reduction):
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5, 7, dtype=dtype) * 3, torch.randint(0, 5, (6, 7))
    results = []
    for function, wide in ((cross_entropy, dtype), (torch.nn.functional.cross_entropy, torch.float64)):
        x = logits.clone().requires_grad_()
        dim = (1,) if function is cross_entropy else ()
        loss = function(x.to(wide), targets, *dim, reduction=reduction)
        upstream = torch.linspace(-2, 3, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        gradients = [torch.autograd.grad(loss, x, upstream, retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(*gradients)
        results.append((loss.detach(), gradients[0]))
    (ours, dx), (theirs, expected) = results
    assert ours.dtype == torch.promote_types(dtype, torch.float32)
    assert dx.dtype == dtype
    torch.testing.assert_close(ours, theirs.to(ours.dtype))
    torch.testing.assert_close(dx, expected)


def test_no_gradient_is_computed_unless_required(x, monkeypatch):
    monkeypatch.setattr(lsm, "cross_entropy_value_and_grad", None)
    wanted = lsm.cross_entropy(x.detach(), TARGETS, 1)
    with torch.no_grad():
        assert cross_entropy(x, TARGETS, 1) == wanted
    assert cross_entropy(x.detach(), TARGETS, 1) == wanted


def test_what_has_no_gradient_is_refused(x):
    with pytest.raises(TypeError, match=r"pass targets.detach\(\)"):
        cross_entropy(x, SOFT.clone().requires_grad_(), 1)
    with pytest.raises(TypeError, match=r"pass weight.detach\(\)"):
        cross_entropy(x, TARGETS, 1, weight=torch.ones(4, requires_grad=True))


def test_gradients_of_confident_frames_where_torchs_own_vanish():
    results = []
    for function in (cross_entropy, torch.nn.functional.cross_entropy):
        x = torch.tensor([[20.0, 0.0]], requires_grad=True)
        function(x, torch.tensor([0])).backward()
        results.append(x.grad[0, 0])
    assert results[0] == pytest.approx(-2.0611537e-09, rel=1e-6, abs=0)
    assert results[1] == 0
    x = torch.full((2, 3), -torch.inf, requires_grad=True)
    logsumexp(x).sum().backward()
    assert (x.grad == 0).all()


def test_a_scaled_loss_of_float16_keeps_gradients_below_the_range_of_float16():
    x = torch.zeros(4096, 64, dtype=torch.float16, requires_grad=True)
    loss = cross_entropy(x, torch.zeros(4096, dtype=torch.int64))
    (loss * 2**16).backward()
    assert x.grad[0, 1] == 2**16 / (4096 * 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_under_autocast_are_torchs(dtype):
    """On the CPU, a 16-bit matrix product keeps its dtype; the loss and the gradients of the weights are float32."""
    images, targets = torch.randn(8, 5), torch.arange(8) % 3
    layer = torch.nn.Linear(5, 3)
    with torch.autocast("cpu", dtype=dtype):
        logits = layer(images)
        assert {f(logits, -1).dtype for f in (log_softmax, softmax, logsumexp)} == {logits.dtype} == {dtype}
        assert torch.softmax(logits, -1).dtype == dtype
        loss = cross_entropy(logits, targets)
        assert loss.dtype == torch.nn.functional.cross_entropy(logits, targets).dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.any()


def test_a_model_learns_with_cross_entropy():
    torch.manual_seed(0)
    targets = torch.arange(64) % 4
    images = torch.nn.functional.one_hot(targets, 4).float() + 0.1 * torch.randn(64, 4)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 1 < losses[0]
    assert (softmax(model(images)).argmax(-1) == targets).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("turned", [False, True])
def test_the_shapes_that_torch_compile_is_told_are_true(dtype, turned):
    x = torch.arange(24).reshape(2, 3, 4).to(dtype)
    x = x.transpose(0, 2) if turned else x
    targets, rest = torch.zeros(x[:, 0].shape, dtype=torch.int64), (None, None, 0.0, 0.0)
    calls = [(f, (x, [-2])) for f in (operators.log_softmax, operators.softmax, operators.logsumexp)]
    calls += [(operators.cross_entropy, (x, targets, [1], *rest, reduction)) for reduction in ("mean", "none")]
    if x.is_floating_point():
        calls += [(operators.cross_entropy_value_and_grad, (x, targets, [1], *rest, "none"))]
        calls += [(f, (x, x, [-2])) for f in (operators.log_softmax_backward, operators.softmax_backward)]
        calls += [(operators.logsumexp_backward, (x[:, :1], x, x[:, :1], [-2]))]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


COMPILED = """
import torch
import torch.distributed as dist
from lsm_torch import cross_entropy, log_softmax, logsumexp, sharded, softmax
targets = torch.arange(4) % 5
functions = [log_softmax, softmax, logsumexp, lambda x: cross_entropy(x, targets, ignore_index=1)]
functions += [lambda x: cross_entropy(x, targets, reduction="none")]
broken = [sharded.log_softmax, lambda x: sharded.cross_entropy(x, targets)]
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for backend, dtypes in (("eager", [torch.bfloat16]), ("aot_eager", [torch.float16, torch.float32, torch.float64])):
    for function in functions + broken:
        for dtype in dtypes:
            torch._dynamo.reset()
            results = []
            is_whole = function in functions
            for f in (f := lambda x: function(x * 2) * 3, torch.compile(f, backend=backend, fullgraph=is_whole)):
                x = torch.linspace(-3, 3, 20).reshape(4, 5).to(dtype).requires_grad_()
                y = f(x)
                y.sum().backward()
                results.append((y.detach(), x.grad, f(x.detach())))
            assert all(torch.equal(a, b) for a, b in zip(*results)), (backend, function, dtype)
print("equal")
"""


def test_torch_compile_does_not_break_the_graph_but_for_shards():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stdout + done.stderr
