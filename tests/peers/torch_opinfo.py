"""The samples that PyTorch tests its own functions with, given to lsm; expected is PyTorch in float64, with autograd.

They need PyTorch and expecttest, which `torch.testing._internal` imports.
"""

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import lsm

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def softmax(x, dim, mask=None, dtype=None):
    return lsm.softmax(x, dim, where=mask, dtype=dtype)


def log_softmax(x, dim, mask=None, dtype=None):
    return lsm.log_softmax(x, dim, where=mask, dtype=dtype)


def logsumexp(x, dim=None, keepdim=False, mask=None):
    return lsm.logsumexp(x, dim, keepdims=keepdim, where=mask)


def cross_entropy(x, targets, **options):
    options = {"ignore_index": None if targets.is_floating_point() else -100} | options
    return lsm.cross_entropy_value_and_grad(x, targets, min(1, x.ndim - 1), **options)


def topk(x, k, dim=-1, largest=True, sorted=True):  # noqa: A002
    """The numbers there: which index comes first of equal ones, PyTorch does not say."""
    indices = lsm.top_k_log_softmax(x if largest else -x, k, dim).indices
    return x.gather(dim, indices) if x.ndim else x


FUNCTIONS = {f.__name__: f for f in (softmax, log_softmax, logsumexp, topk)} | {
    "nn.functional.cross_entropy": cross_entropy
}
FUNCTIONS |= {f"masked.{f.__name__}": f for f in (softmax, log_softmax, logsumexp)}
OPS = {f"{op.name} {op.variant_test_name}".strip(): op for op in op_db if op.name in FUNCTIONS}


def test_there_are_samples():
    assert {op.name for op in OPS.values()} == set(FUNCTIONS)


def wide(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_close(found, expected, dtype, factor=1):
    tolerance = factor * 2 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-13
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_opinfo(op, dtype):
    for sample in op.sample_inputs("cpu", dtype, requires_grad=False):
        x, kwargs = sample.input, sample.kwargs
        found = FUNCTIONS[op.name](x, *sample.args, **kwargs)
        leaf = x.double().requires_grad_()
        expected = op(leaf, *map(wide, sample.args), **{name: wide(value) for name, value in kwargs.items()})
        mask = kwargs.get("mask")
        if op.name == "topk":
            assert torch.equal(found, expected[0].to(dtype))
        elif op.name == "nn.functional.cross_entropy":
            assert_close(found[0], expected.detach(), torch.promote_types(dtype, torch.float32), 8)
            assert_close(found[1], torch.autograd.grad(expected.sum(), leaf)[0], dtype)
        else:
            if mask is not None and "softmax" in op.name:  # undefined by PyTorch where nothing is left
                is_left = mask.expand(x.shape).any(sample.args[0], keepdim=True)
                expected = torch.where(is_left, expected, 0 if op.name.endswith(".softmax") else -torch.inf)
            assert_close(found, expected.detach(), kwargs.get("dtype", dtype))
            if "softmax" in op.name and dtype.itemsize >= 4:
                check_gradient(op, sample, found, expected, leaf)


def check_gradient(op, sample, y, expected, leaf):
    backward = lsm.log_softmax_backward if "log_softmax" in op.name else lsm.softmax_backward
    mask = sample.kwargs.get("mask")
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    if mask is not None:  # PyTorch adds what is given for masked results, which are constant, to that of the others
        dy = torch.where(mask, dy, 0)
    (true,) = torch.autograd.grad(expected, leaf, dy.double())
    assert_close(backward(dy, y, sample.args[0], where=mask), true.nan_to_num(0), y.dtype, 8)
