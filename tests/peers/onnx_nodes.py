"""The cases that ONNX has for operators of the family, with lsm as the runtime. They need the package onnx."""

import importlib
import warnings

import numpy as np
import onnx
import pytest
from onnx.backend.test.case import node as cases

import lsm

with warnings.catch_warnings():  # the expected values of one divide by zero
    warnings.simplefilter("ignore")
    for module in ("softmax", "logsoftmax", "reduce_log_sum_exp", "softmax_cross_entropy_loss", "topk"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
# The others have the operator expanded into simple ones.
CASES = {c.name: c for c in cases._NodeTestCases if len(c.model.graph.node) == 1 and "expanded" not in c.name}


def softmax(x, axis=-1):
    return (lsm.softmax(x, axis),)


def log_softmax(x, axis=-1):
    return (lsm.log_softmax(x, axis),)


def logsumexp(x, axes=None, keepdims=1, noop_with_empty_axes=0):
    axes = None if axes is None or not len(axes) else tuple(map(int, axes))
    if axes is None and noop_with_empty_axes:
        return (x,)
    return (lsm.logsumexp(x, axes, keepdims=bool(keepdims)),)


def loss(x, targets, weight=None, reduction=b"mean", ignore_index=None):
    options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction.decode()}
    return lsm.cross_entropy(x, targets, 1, **options), lsm.log_softmax(x, 1)


def top_k(x, k, axis=-1, largest=1, sorted=1):  # noqa: A002
    indices = lsm.top_k_log_softmax(x if largest else -x.astype(float), int(k[0]), axis).indices
    return np.take_along_axis(x, indices, axis), indices


OPERATORS = {"Softmax": softmax, "LogSoftmax": log_softmax, "ReduceLogSumExp": logsumexp, "TopK": top_k}
OPERATORS["SoftmaxCrossEntropyLoss"] = loss


def test_there_are_cases():
    assert len(CASES) >= 60 and {c.model.graph.node[0].op_type for c in CASES.values()} == set(OPERATORS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_onnx(case):
    (node,) = case.model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for inputs, expected in case.data_sets:
        found = OPERATORS[node.op_type](*inputs, **attributes)
        for mine, theirs in zip(found, expected, strict=False):  # the log-probabilities are an option of the loss
            np.testing.assert_allclose(mine, theirs, rtol=case.rtol, atol=case.atol)
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
