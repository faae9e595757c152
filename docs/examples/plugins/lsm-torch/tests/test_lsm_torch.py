"""The claims of the backends hold, torch's own log_softmax would fail them, and second derivatives are right."""

import doctest
import subprocess
import sys

import lsm_torch
import pytest
import torch
from lsm_torch import log_softmax
from lsm_torch.backend import backend

import lsm
from lsm.testing import BackendConformance, check_backend


class TestBackend(BackendConformance):
    backend = "torch"


class TestFloat32Backend(BackendConformance):
    backend = "torch-float32"


DIMS = [0, 1, -1, (0, 2), None]


@pytest.mark.parametrize("dim", DIMS)
def test_gradcheck_and_gradgradcheck(dim):
    torch.manual_seed(0)
    x = (torch.randn(3, 4, 2, dtype=torch.float64) * 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_softmax(x, dim), (x,))
    assert torch.autograd.gradgradcheck(lambda x: log_softmax(x, dim), (x,))


@pytest.mark.parametrize("by", ["torch", "numpy", "cython"])
def test_gradients_by_every_backend(by):
    torch.manual_seed(0)
    x = (torch.randn(3, 5, dtype=torch.float64) * 3).requires_grad_()
    with lsm.use_backend(by):
        assert torch.autograd.gradcheck(log_softmax, (x,))
        assert torch.autograd.gradgradcheck(log_softmax, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_model_learns_with_it(dtype):
    """The result is a tensor with the dtype of the input, and the loss decreases."""
    torch.manual_seed(0)
    labels = torch.arange(12) % 3
    x = torch.eye(3)[labels].to(dtype)
    weights = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.nll_loss(log_softmax(x @ weights), labels)
        loss.backward()
        with torch.no_grad():
            weights -= weights.grad
        weights.grad = None
        losses.append(loss.item())
    assert loss.dtype == dtype
    assert losses[-1] < 0.3 < 1 < losses[0]


def test_confident_frames_keep_their_gradient_where_torchs_own_vanishes():
    x = torch.tensor([20.0, 0.0], requires_grad=True)
    (ours,) = torch.autograd.grad(log_softmax(x)[0], x)
    (theirs,) = torch.autograd.grad(torch.log_softmax(x, -1)[0], x)
    assert ours[0] == pytest.approx(2.0611537e-09, rel=1e-6, abs=0)
    assert theirs[0] == 0


def test_the_example():
    assert doctest.testmod(lsm_torch) == (0, 20)  # failures, examples


def test_functional_transforms():
    x = torch.randn(5, dtype=torch.float64)
    gradient = torch.func.grad(lambda x: log_softmax(x)[2])(x)
    torch.testing.assert_close(gradient, torch.eye(5, dtype=torch.float64)[2] - torch.softmax(x, -1))


def test_what_torch_itself_would_reach(monkeypatch):
    """With the same claims, torch's own functions fail the kit on frames with a leading class."""

    def forward(x, axis, out):
        out.copy_(torch.log_softmax(x.to(torch.promote_types(x.dtype, out.dtype)), axis))

    def backward(dy, y, axis, out):
        out.copy_(torch.ops.aten._log_softmax_backward_data(dy, y, axis, dy.dtype))

    monkeypatch.setattr(backend, "log_softmax", forward, raising=False)
    monkeypatch.setattr(backend, "log_softmax_backward", backward, raising=False)
    failed = {outcome.check for outcome in check_backend("torch").outcomes if outcome.outcome == "failed"}
    assert {"forward: peaked frames", "backward: confident frames keep their gradient"} <= failed


def test_a_tensor_that_was_made_another_is_found(monkeypatch):
    def forward(x, axis, out):
        out.data = torch.log_softmax(x.double(), axis)

    monkeypatch.setattr(backend, "log_softmax", forward, raising=False)
    details = [outcome.detail for outcome in check_backend("torch").outcomes if outcome.dtype == "float32"]
    assert any("'torch.float64', (7,)); it was ('Tensor'" in detail for detail in details)


def test_what_the_entry_point_imports():
    code = "import sys, lsm_torch.backend; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tensor_of_the_cpu_is_served_by_lsms_own_backend_unless_this_one_is_asked_for():
    assert lsm.explain(torch.zeros(3)).winner == "cython"
    assert lsm.explain(torch.zeros(3), backend="torch").winner == "torch"


COMPILED = """
import torch
from lsm_torch import log_softmax
for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
    results = []
    for function in (f := lambda x: log_softmax(x * 2).exp() * 3, torch.compile(f, backend="eager")):
        x = torch.linspace(-3, 3, 20).reshape(4, 5).to(dtype).requires_grad_()
        y = function(x)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    print(*[torch.equal(a, b) for a, b in zip(*results)])
"""


def test_torch_compile_in_a_fresh_process():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 8, done.stdout + done.stderr
