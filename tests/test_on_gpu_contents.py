"""tests/test_on_gpu.py itself, where there is no GPU: what of it does not need one runs on the stand-in for CuPy."""

import inspect
import itertools
import sys

import pytest
import test_on_gpu
import torch
from cuda_on_cpu import cupy_on_cpu
from test_cupy import built_in

import lsm
from lsm import _interop_torch
from lsm.backends import cupy_
from lsm.backends.cupy_ import CupyBackend

NEED_A_GPU = {  # for streams and devices of PyTorch, and JAX's memory
    "test_the_stream_of_pytorch_is_used",
    "test_any_device_of_pytorch_whatever_is_current",
    "test_there_and_back_with_jax",
}


@pytest.fixture
def cupy(monkeypatch):
    module = cupy_on_cpu.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cupy_on_cpu._state, "launches", [])
    with built_in(CupyBackend(module)):
        yield module


@pytest.fixture
def tensor(cupy, monkeypatch):
    """Tensors on the CPU that say they are on cuda:0."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    monkeypatch.setattr(_interop_torch.TorchLibrary, "device_kind", lambda self, x: "cuda")
    monkeypatch.setattr(_interop_torch.TorchLibrary, "device", lambda self, x: "cuda:0")
    monkeypatch.setattr(cupy_.TorchTensorOps, "device", lambda self, x: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 77}))
    return lambda values, dtype, number=0: torch.from_numpy(values).to(getattr(torch, dtype))


@pytest.fixture
def ordinary(monkeypatch):
    """The arguments of all calls that go the ordinary way."""
    seen = []
    take = _interop_torch.TorchLibrary.validate
    monkeypatch.setattr(_interop_torch.TorchLibrary, "validate", lambda *a, **k: seen.append(a[1]) or take(*a, **k))
    return seen


# Each case and each dtype once: test_cuda_kernels.py has all of both.
SOME = [(case, "float32") for case in test_on_gpu.CASES] + [
    (test_on_gpu.CASES[0], dtype) for dtype in ("float16", "bfloat16", "float64")
]


@pytest.mark.parametrize(("case", "dtype"), SOME)
def test_every_case(cupy, tensor, case, dtype):
    test_on_gpu.test_arrays_of_cupy(cupy, *case, dtype)
    test_on_gpu.test_tensors(tensor, *case, dtype)


def test_streams_and_devices_of_cupy(cupy):
    test_on_gpu.test_the_stream_of_cupy_is_used(cupy)
    test_on_gpu.test_any_device_of_cupy_whatever_is_current(cupy)


@pytest.mark.parametrize("dtype", test_on_gpu.DTYPES)
def test_keywords(cupy, tensor, dtype):
    test_on_gpu.test_keywords_of_cupy(cupy, dtype)
    test_on_gpu.test_keywords_of_tensors(tensor, dtype)


def test_nothing_of_it_is_forgotten():
    here = inspect.getsource(sys.modules[__name__])
    for name in vars(test_on_gpu):
        assert not name.startswith("test_") or (f"test_on_gpu.{name}(" in here) != (name in NEED_A_GPU), name


def test_tensors_are_served_at_once_when_their_kind_was_served(tensor, ordinary):
    x, out = (tensor(test_on_gpu.values((5, 10)), "float32") for _ in range(2))
    for axis, target in itertools.product((0, 1), (None, out)):
        lsm.log_softmax_backward(x, lsm.log_softmax(x, axis, out=target), axis, out=target)
    ordinary.clear()
    for axis in (0, 1, -1, -2):
        y = lsm.log_softmax(x, axis)
        torch.testing.assert_close(y, torch.log_softmax(x, axis))
        version = out._version
        assert lsm.log_softmax(x, axis, out=out) is out and torch.equal(out, y) and out._version == version + 1
        dx = lsm.log_softmax_backward(x, y, axis)
        assert lsm.log_softmax_backward(x, y, axis, out=out) is out and torch.equal(out, dx)
    assert ordinary == []
    assert {stream for _, _, stream in cupy_on_cpu.state().launches} == {77}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # make_dual calls it
def test_tensors_that_must_be_looked_at_go_the_ordinary_way(tensor, ordinary):
    memory = tensor(test_on_gpu.values(70), "float32")
    x, beside = memory[:50].view(5, 10), memory[3:53].view(5, 10)
    expected = lsm.log_softmax(x.clone(), out=torch.empty_like(x))
    assert torch.equal(lsm.log_softmax(x, out=beside), expected)
    parameter = torch.nn.Parameter(x, requires_grad=False)
    negative = torch._neg_view(x.clone())
    for given in (parameter, negative):
        ordinary.clear()
        lsm.log_softmax(given)
        assert len(ordinary) == 1
    torch.testing.assert_close(lsm.log_softmax(negative), torch.log_softmax(negative, -1))
    with pytest.raises(TypeError, match="requires grad"):
        lsm.log_softmax(x.clone().requires_grad_())
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="dual tensor"):
        lsm.log_softmax(torch.autograd.forward_ad.make_dual(x.clone(), x.clone()))
