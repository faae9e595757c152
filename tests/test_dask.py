"""Dask arrays: lazy results with the bits of the whole array, and refusals before anything is computed.

Needs the extra `zoo`, as test_zoo.py; conftest.py leaves this file out where one of its libraries is not installed.
"""

import os
import pickle
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import lsm
from lsm import _threads
from lsm.backends.numpy_ import NumpyBackend
from lsm.bench.result import from_json
from lsm.engines import _dask_tasks

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.longdouble, np.int8)
RNG = np.random.default_rng(0)
VALUES = RNG.normal(scale=3, size=(6, 5, 4)).astype(np.float32)
LABELS = RNG.integers(0, 5, size=(6, 4))
PROBABILITIES = lsm.softmax(VALUES, 1)
MASK = RNG.random(VALUES.shape) > 0.3


def computed(*args, **kwargs):
    raise AssertionError("computed")


@pytest.fixture
def computes_nothing():
    """Any attempt to compute a graph fails."""
    with dask.config.set(scheduler=computed):
        yield


def in_chunks(x, chunks=((2, 4), (5,), (1, 3))):
    return da.from_array(x, chunks=chunks)


def result(lazy):
    return lazy.compute(scheduler="synchronous")


# Calls on an array x of shape (6, 5, 4) with the classes on axis 1; the second argument makes chunks of arrays.
CALLS = {
    "log_softmax": lambda x, c: lsm.log_softmax(x, 1),
    "log_softmax, last axis": lambda x, c: lsm.log_softmax(x.swapaxes(1, 2)),
    "log_softmax, dtype": lambda x, c: lsm.log_softmax(x, 1, dtype="float64"),
    "softmax, where and temperature": lambda x, c: lsm.softmax(x, 1, where=c(MASK), temperature=0.7),
    "softmax, where broadcast": lambda x, c: lsm.softmax(x, 1, where=MASK[0]),
    "softmax, nowhere": lambda x, c: lsm.softmax(x, 1, where=False),
    "softmax, temperatures": lambda x, c: lsm.softmax(x, 1, temperature=np.arange(1, 5.0)),
    "log_softmax_backward": lambda x, c: lsm.log_softmax_backward(x, lsm.log_softmax(x, 1), 1),
    "log_softmax_backward of NumPy": lambda x, c: lsm.log_softmax_backward(VALUES, lsm.log_softmax(x, 1), 1),
    "softmax_backward": lambda x, c: lsm.softmax_backward(x, c(VALUES), 1),
    "logsumexp": lambda x, c: lsm.logsumexp(x, 1),
    "logsumexp, keepdims": lambda x, c: lsm.logsumexp(x, 1, keepdims=True),
    "logsumexp, b": lambda x, c: lsm.logsumexp(x, 1, b=VALUES[:, :, :1], return_sign=True),
    "logsumexp, sign": lambda x, c: lsm.logsumexp(x, 1, return_sign=True, keepdims=True),
    "take_log_softmax": lambda x, c: lsm.take_log_softmax(x, LABELS, 1),
    "take_log_softmax, several": lambda x, c: lsm.take_log_softmax(x, LABELS[:, None].repeat(3, 1), 1, where=MASK),
    "take_log_softmax, the same": lambda x, c: lsm.take_log_softmax(x, np.arange(3).reshape(1, 3, 1), 1),
    "top_k_log_softmax": lambda x, c: lsm.top_k_log_softmax(x, 3, 1),
    "top_k_log_softmax, none": lambda x, c: lsm.top_k_log_softmax(x, 0, 1),
    "entropy": lambda x, c: lsm.entropy(x, 1),
    "kl_divergence": lambda x, c: lsm.kl_divergence(x, VALUES[::-1], 1),
    "kl_divergence of NumPy": lambda x, c: lsm.kl_divergence(VALUES[::-1], x, 1),
    "cross_entropy": lambda x, c: lsm.cross_entropy(x, LABELS, 1, reduction="none"),
    "cross_entropy, mean": lambda x, c: lsm.cross_entropy(x, LABELS, 1),
    "cross_entropy, some": lambda x, c: lsm.cross_entropy(x, LABELS, 1, ignore_index=3, label_smoothing=0.1),
    "cross_entropy, none left": lambda x, c: lsm.cross_entropy(x, LABELS * 0, 1, ignore_index=0),
    "cross_entropy, sum": lambda x, c: lsm.cross_entropy(
        x, LABELS, 1, weight=np.arange(5.0), reduction="sum", z_loss=0.1, dtype="float64"
    ),
    "cross_entropy of probabilities": lambda x, c: lsm.cross_entropy(x, PROBABILITIES, 1, weight=np.arange(5)),
}


@pytest.fixture(params=list(CALLS))
def call(request):
    return CALLS[request.param]


def check_same(y, expected):
    """The bits; NumPy's own check does not take the NaN of bfloat16 for equal."""
    assert y.dtype == expected.dtype and y.shape == expected.shape
    np.testing.assert_array_equal(y.astype(np.longdouble), expected.astype(np.longdouble))


def pairs(made, expected):
    """The lazy and the expected arrays, of functions that return one or two."""
    assert type(made) is tuple or isinstance(made, (da.Array, lsm.TopK))
    return [(made, expected)] if isinstance(made, da.Array) else list(zip(made, expected, strict=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_results_are_lazy_and_have_the_bits_of_the_whole(call, dtype):
    with dask.config.set(scheduler=computed):
        made = call(in_chunks(VALUES.astype(dtype)), in_chunks)
        repr(made)
    expected = call(VALUES.astype(dtype), lambda x: x)
    for lazy, right in pairs(made, expected):
        y = result(lazy)
        assert lazy.dtype == lazy._meta.dtype == y.dtype
        assert type(lazy._meta) is np.ndarray and lazy._meta.ndim == lazy.ndim
        assert lazy.shape == y.shape
        check_same(y, right)


def test_chunks_along_frames_stay():
    x = in_chunks(VALUES)
    assert lsm.log_softmax(x, 1).chunks == lsm.softmax_backward(x, x, 1).chunks == x.chunks
    assert lsm.entropy(x, 1).chunks == (x.chunks[0], x.chunks[2])
    assert lsm.logsumexp(x, 1, keepdims=True).chunks == (x.chunks[0], (1,), x.chunks[2])
    assert lsm.top_k_log_softmax(x, 2, 1).indices.chunks == (x.chunks[0], (2,), x.chunks[2])
    assert lsm.take_log_softmax(x, LABELS, 1).chunks == (x.chunks[0], x.chunks[2])
    other = in_chunks(VALUES, (3, 5, 2))
    assert lsm.log_softmax_backward(x, other, 1).chunks == ((2, 1, 3), (5,), (1, 1, 2))


def test_no_kernel_is_called_while_a_graph_is_made(call, monkeypatch, computes_nothing):
    for name in ("log_softmax", "log_softmax_backward", "softmax", "softmax_backward", "logsumexp"):
        monkeypatch.setattr(NumpyBackend, name, computed)
    with lsm.use_backend("numpy"):
        call(in_chunks(VALUES), in_chunks)
        with pytest.raises(AssertionError, match="computed"):
            lsm.log_softmax(VALUES)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_chunks_dtypes_and_axes(data):
    axis, dtype = data.draw(st.integers(-3, 2)), data.draw(st.sampled_from(DTYPES))
    x = (VALUES * data.draw(st.sampled_from([1, 30]))).astype(dtype)
    if dtype is not np.int8:
        x[data.draw(st.integers(0, 5))] = data.draw(st.sampled_from([0, -np.inf, np.nan, np.inf]))
    chunks = [[n] for n in x.shape]
    for i in {0, 1, 2} - {axis % 3}:
        borders = sorted(data.draw(st.lists(st.integers(0, x.shape[i]), max_size=4)))
        chunks[i] = [b - a for a, b in zip([0, *borders], [*borders, x.shape[i]], strict=True)]
    lazy = da.from_array(x, chunks=-1).rechunk(tuple(map(tuple, chunks)))
    for function in (lsm.log_softmax, lsm.softmax, partial(lsm.logsumexp, keepdims=True), lsm.entropy):
        made, expected = function(lazy, axis), function(x, axis)
        assert made.dtype == expected.dtype
        check_same(result(made), expected)


def test_lengths_that_are_not_known():
    x = in_chunks(VALUES)[in_chunks(VALUES, ((2, 4), 5, 4))[:, 0, 0] > 0]
    known = VALUES[VALUES[:, 0, 0] > 0]
    for function in (lsm.log_softmax, lsm.logsumexp, lambda x, axis: lsm.log_softmax_backward(x, x, axis)):
        check_same(result(function(x, 1)), function(known, 1))
    with dask.config.set(scheduler=computed):
        with pytest.raises(ValueError, match=r"^x: the number of classes is not known; call x.compute_chunk_sizes\(\)"):
            lsm.log_softmax(x, 0)
        with pytest.raises(ValueError, match=r"^x, indices: .* call x.compute_chunk_sizes\(\)$"):
            lsm.take_log_softmax(x, LABELS, 1)


X = in_chunks(VALUES)
MANY = in_chunks(VALUES, 2)
# Calls that are refused, with the class and the start of the message: where lsm refuses it of NumPy, its own message.
REFUSED = {
    "axis": (
        lambda: lsm.log_softmax(X, 3),
        np.exceptions.AxisError,
        "axis: axis 3 is out of bounds for array of dimension 3",
    ),
    "axis repeated": (lambda: lsm.log_softmax(X, (1, -2)), ValueError, r"axis: \(1, -2\) repeats an axis"),
    "axes": (lambda: lsm.take_log_softmax(X, LABELS, (1,)), TypeError, r"axis: \(1,\); accepted: one int"),
    "no axis": (lambda: lsm.top_k_log_softmax(X, 1, None), TypeError, "axis: None; accepted: one int"),
    "backend": (lambda: lsm.log_softmax(X, 1, backend="no"), lsm.UnknownBackendError, ".*'no'"),
    "no backend": (
        lambda: lsm.log_softmax(X.astype("g"), 1, backend="cython"),
        lsm.BackendUnsupportedError,
        "backend 'cython' .* longdouble; use backend='numpy'",
    ),
    "complex": (lambda: lsm.log_softmax(X * 1j, 1), TypeError, r"x: complex64 numbers have no order; pass x.real"),
    "objects": (lambda: lsm.log_softmax(X.astype(object), 1), TypeError, "x: an array of Python objects"),
    "dtype": (lambda: lsm.log_softmax(X, 1, dtype="int8"), TypeError, "dtype: int8 is not supported"),
    "out": (lambda: lsm.log_softmax(X, 1, out=VALUES), TypeError, "out: .* use dask.array.store"),
    "scalar": (lambda: lsm.log_softmax(X[0, 0, 0]), TypeError, r"x: .*pass x.compute\(\)"),
    "shapes": (
        lambda: lsm.log_softmax_backward(X, X[:5], 1),
        ValueError,
        r"grad_output, output: shapes \(6, 5, 4\) and \(5, 5, 4\) differ",
    ),
    "where": (
        lambda: lsm.softmax(X, 1, where=MASK[:5]),
        ValueError,
        r"where: shape \(5, 5, 4\) does not .* \(6, 5, 4\)",
    ),
    "where of floats": (lambda: lsm.softmax(X, 1, where=X), TypeError, "where: dtype float32; accepted: bool"),
    "temperature": (lambda: lsm.softmax(X, 1, temperature=-1), ValueError, "temperature: -1; accepted"),
    "temperatures": (
        lambda: lsm.softmax(X, 1, temperature=X),
        ValueError,
        r"temperature: shape \(6, 5, 4\); .*6, 1, 4",
    ),
    "b": (lambda: lsm.logsumexp(X[:1], 1, b=VALUES), ValueError, r"b: shape \(6, 5, 4\); .* \(1, 5, 4\)"),
    "indices": (
        lambda: lsm.take_log_softmax(X, LABELS[:5], 1),
        ValueError,
        r"indices: shape \(5, 4\); accepted for x of",
    ),
    "k": (lambda: lsm.top_k_log_softmax(X, 6, 1), ValueError, "k: 6; accepted: from 0 to 5"),
    "targets": (lambda: lsm.cross_entropy(X, LABELS[0], 1), ValueError, r"targets: shape \(4,\); accepted: \(6, 4\)"),
    "reduction": (lambda: lsm.cross_entropy(X, LABELS, 1, reduction="no"), ValueError, "reduction: 'no'; accepted"),
    "weighted mean": (
        lambda: lsm.cross_entropy(X, LABELS, 1, weight=np.ones(5)),
        ValueError,
        r"reduction: 'mean' .* accepted .*: 'sum' or 'none'; divide the sum by that of weight\[targets\]",
    ),
    "loss with gradient": (
        lambda: lsm.cross_entropy_value_and_grad(X, LABELS, 1),
        TypeError,
        r"logits: a dask.*; pass logits.compute\(\)",
    ),
    "classes in chunks": (
        lambda: lsm.entropy(MANY, 1),
        ValueError,
        r"x: the classes are in 3 chunks; .*map_blocks .*silently wrong\); pass x.rechunk\({1: -1}\)$",
    ),
    "smoothing, and classes in chunks": (
        lambda: lsm.cross_entropy(MANY, LABELS, 1, label_smoothing=0.1),
        ValueError,
        r"logits: the classes are in 3 chunks; .*labels without weights.*pass logits.rechunk\({1: -1}\)$",
    ),
    "probabilities in chunks": (
        lambda: lsm.cross_entropy(MANY, MANY, 1),
        ValueError,
        r"logits: the classes are in 3 chunks",
    ),
    "several axes in chunks": (
        lambda: lsm.log_softmax(MANY, (0, 1)),
        ValueError,
        r"x: the classes are in 3 x 3 chunks; .*pass x.rechunk\({0: -1, 1: -1}\)$",
    ),
    "gradient of a temperature, and classes in chunks": (
        lambda: lsm.log_softmax_backward(MANY, MANY, 1, temperature=0.5),
        ValueError,
        r"grad_output: the classes are in 3 chunks; .*pass grad_output.rechunk\({1: -1}\)$",
    ),
    "b, and classes in chunks": (lambda: lsm.logsumexp(MANY, 1, b=2), ValueError, "a: the classes are in 3 chunks"),
    "longdouble in parts": (
        lambda: lsm.log_softmax(MANY.astype("g"), 1),
        lsm.BackendUnsupportedError,
        r"no backend supports .* longdouble .*; or pass x.rechunk\({1: -1}\)$",
    ),
    "indices in chunks": (
        lambda: lsm.take_log_softmax(MANY, in_chunks(LABELS[:, None].repeat(4, 1), (6, 2, 4)), 1),
        ValueError,
        r"indices: the classes are in 2 chunks; .*pass indices.rechunk\({1: -1}\)$",
    ),
    "partials beside a dask array": (
        lambda: lsm.take_log_softmax(X, LABELS, 1, partials=lsm.partials(X, 1)),
        TypeError,
        "partials: not accepted for dask arrays, for which lsm.take_log_softmax computes them itself",
    ),
    "partials of another shape": (
        lambda: lsm.softmax(X, 1, partials=lsm.partials(X, 2)),
        ValueError,
        "partials: shape",
    ),
    "all in chunks": (
        lambda: lsm.logsumexp(MANY),
        ValueError,
        r"a: the classes are in 3 x 3 x 2 chunks; .*pass the axis .* as axis=, or a.rechunk\({0: -1, 1: -1, 2: -1}\)$",
    ),
    "classes of the second in chunks": (
        lambda: lsm.log_softmax_backward(X, MANY, 1),
        ValueError,
        r"output: the classes are in 3 chunks; .*pass output.rechunk\({1: -1}\)$",
    ),
    "mask in chunks": (lambda: lsm.softmax(X, 1, where=MANY > 0), ValueError, "where: the classes are in 3 chunks"),
    "masked": (
        lambda: lsm.log_softmax(da.ma.masked_array(X, MASK), 1),
        TypeError,
        r"x: .*numpy.ma.* whose mask would be lost; pass dask.array.ma.filled\(x, -numpy.inf\)",
    ),
    "masked targets": (
        lambda: lsm.cross_entropy(X, da.ma.masked_array(in_chunks(LABELS, 3), LABELS > 2), 1),
        TypeError,
        r"targets: .*pass dask.array.ma.filled\(targets, -1\), with ignore_index=-1",
    ),
    "mask that is lazy, of NumPy": (
        lambda: lsm.log_softmax(VALUES, 1, where=X > 0),
        TypeError,
        r"where: a dask.*pass where.compute\(\)",
    ),
    "mask in a store": (
        lambda: lsm.softmax(X, 1, where=zarr.array(MASK)),
        TypeError,
        r"where: a zarr.*pass where\[...\]",
    ),
    "a list of lazy arrays": (
        lambda: lsm.softmax(X, 1, where=[[X, X]]),
        TypeError,
        r"where: where\[0\]\[0\]: a dask.*pass where\[0\]\[0\].compute\(\)",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_right_is_refused_before_anything_is_computed(case, computes_nothing):
    refused, error, message = REFUSED[case]
    with pytest.raises(error, match=f"^{message}"):
        refused()


def test_remedies_of_refusals_give_the_right_result():
    masked = da.ma.masked_array(X, MASK)
    y = lsm.log_softmax(da.ma.filled(masked, -np.inf), 1)
    np.testing.assert_array_equal(result(y), lsm.log_softmax(np.where(MASK, -np.inf, VALUES).astype("f4"), 1))
    np.testing.assert_array_equal(result(lsm.entropy(MANY.rechunk({1: -1}), 1)), lsm.entropy(VALUES, 1))


def test_the_example_in_the_documents_runs(tmp_path, monkeypatch, capsys):
    document = Path(__file__).parents[1] / "docs" / "scale.md"
    code, *_ = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    in_chunks(VALUES[:, :, 0], (2, 5)).to_zarr("logits.zarr")
    in_chunks(LABELS[:, 0], 2).to_zarr("tokens.zarr")
    exec(code, {})
    expected = lsm.take_log_softmax(VALUES[:, :, 0], LABELS[:, 0]).mean()
    assert float(capsys.readouterr().out) == pytest.approx(expected)


def test_bad_values_are_an_error_of_the_task():
    lazy = lsm.take_log_softmax(X, LABELS + 5, 1)
    with pytest.raises(IndexError, match="^indices: .*accepted: 0 to 4"):
        result(lazy)


# -- Classes in several chunks --------------------------------------------------------------------------------------

SLICE = 16384
LONG = (RNG.normal(scale=3, size=(4, 2 * SLICE + 500))).astype(np.float32)
AT_CLASSES = RNG.integers(0, LONG.shape[1], 4)
SOME_CLASSES = RNG.integers(0, LONG.shape[1], (4, 3))
LONG_OUTPUT = lsm.log_softmax(LONG[::-1])
LONG_MASK = RNG.random(LONG.shape) > 0.3
TEMPERATURES = RNG.random((4, 1)) + 0.5
# Calls on an array x with the classes last; the second argument makes lazy arrays, or none.
PARTS = {
    "log_softmax": lambda x, c: lsm.log_softmax(x),
    "log_softmax, dtype": lambda x, c: lsm.log_softmax(x, dtype="float64"),
    "softmax, where and temperature": lambda x, c: lsm.softmax(x, where=c(LONG_MASK, (2, 9999)), temperature=0.7),
    "softmax, where of NumPy": lambda x, c: lsm.softmax(x, where=LONG_MASK[0]),
    "softmax, where broadcast": lambda x, c: lsm.softmax(x, where=c(LONG_MASK[:, :1], 1)),
    "softmax, nowhere": lambda x, c: lsm.softmax(x, where=False),
    "log_softmax, temperatures": lambda x, c: lsm.log_softmax(x, temperature=c(TEMPERATURES, 1)),
    "logsumexp": lambda x, c: lsm.logsumexp(x, 1),
    "logsumexp, where": lambda x, c: lsm.logsumexp(x, 1, where=c(LONG_MASK, (1, 9999)), keepdims=True),
    "logsumexp, sign": lambda x, c: lsm.logsumexp(x, -1, return_sign=True),
    "take_log_softmax": lambda x, c: lsm.take_log_softmax(x, c(AT_CLASSES, 3), temperature=c(TEMPERATURES, 2)),
    "take_log_softmax, several": lambda x, c: lsm.take_log_softmax(x, SOME_CLASSES, where=LONG_MASK),
    "take_log_softmax, the same": lambda x, c: lsm.take_log_softmax(x, np.arange(3).reshape(1, 3)),
    "top_k_log_softmax": lambda x, c: lsm.top_k_log_softmax(x, 600),
    "top_k_log_softmax, 1": lambda x, c: lsm.top_k_log_softmax(x, 1, temperature=c(TEMPERATURES, 1)),
    "top_k_log_softmax, where": lambda x, c: lsm.top_k_log_softmax(x, 3, where=c(LONG_MASK, (1, 9999))),
    "top_k_log_softmax, none": lambda x, c: lsm.top_k_log_softmax(x, 0),
    "cross_entropy": lambda x, c: lsm.cross_entropy(x, c(AT_CLASSES, 3), temperature=0.3, reduction="none"),
    "cross_entropy, mean": lambda x, c: lsm.cross_entropy(x, AT_CLASSES, where=c(LONG_MASK, (2, 9999))),
    "cross_entropy, some": lambda x, c: lsm.cross_entropy(x, AT_CLASSES, ignore_index=int(AT_CLASSES[1])),
    "cross_entropy, sum": lambda x, c: lsm.cross_entropy(x, AT_CLASSES, reduction="sum", dtype="float64"),
    "with partials": lambda x, c: lsm.log_softmax(x, partials=lsm.partials(x), n_classes=LONG.shape[1]),
    "log_softmax_backward": lambda x, c: lsm.log_softmax_backward(x, c(LONG_OUTPUT.astype(x.dtype), (3, 9999))),
    "gradient with partials": lambda x, c: lsm.log_softmax_backward(
        x, c(LONG_OUTPUT.astype(x.dtype), (3, 9999)), partials=lsm.partials_backward(x, LONG_OUTPUT.astype(x.dtype))
    ),
    "logsumexp of partials": lambda x, c: lsm.logsumexp(partials=lsm.partials(x), axis=1, dtype=x.dtype.name),
}


def in_class_chunks(x, sizes, frames=2):
    return da.from_array(x, chunks=(frames, sizes))


@pytest.mark.parametrize("name", list(PARTS))
@pytest.mark.parametrize("requested", ["cython", "numpy"])
@pytest.mark.parametrize("own", [np.float16, np.float32, np.float64])
def test_classes_in_chunks_of_slices_have_the_bits_of_the_whole(name, own, requested):
    x = LONG.astype(own)
    with lsm.use_backend(requested), dask.config.set(scheduler=computed):
        made = PARTS[name](in_class_chunks(x, (0, SLICE, SLICE, 0, 500)), lambda x, chunks: da.from_array(x, chunks))
        repr(made)
        expected = PARTS[name](x, lambda x, chunks: x)
    for lazy, right in pairs(made, expected):
        y = result(lazy)
        assert lazy.dtype == lazy._meta.dtype and type(lazy._meta) is np.ndarray and lazy._meta.ndim == lazy.ndim
        assert lazy.shape == y.shape
        check_same(y, np.asarray(right))


def test_chunks_of_classes_stay():
    x = in_class_chunks(LONG, (SLICE, SLICE, 500))
    assert lsm.log_softmax(x).chunks == lsm.softmax(x, where=da.from_array(LONG_MASK, 9999)).chunks == x.chunks
    assert lsm.partials(x).chunks == (x.chunks[0], (1, 1, 1), (4,))
    assert lsm.take_log_softmax(x, AT_CLASSES).chunks == lsm.logsumexp(x, 1).chunks == x.chunks[:1]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_chunks_of_classes(data):
    axis, dtype = (
        data.draw(st.integers(-3, 2)),
        data.draw(st.sampled_from([d for d in DTYPES if d is not np.longdouble])),
    )
    x = (VALUES * data.draw(st.sampled_from([1, 30]))).astype(dtype)
    chunks = []
    for n in x.shape:
        borders = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
        chunks.append(tuple(b - a for a, b in zip([0, *borders], [*borders, n], strict=True)))
    if dtype is not np.int8:
        at = tuple(data.draw(st.integers(0, n - 1)) for n in x.shape)
        special = data.draw(st.sampled_from([0, -np.inf, np.nan, np.inf]))
        x[at] = special
        if data.draw(st.booleans()):
            x[tuple(slice(None) if i == axis % 3 else k for i, k in enumerate(at))] = special
    lazy = da.from_array(x, chunks=-1).rechunk(tuple(chunks))
    tolerance = {2: 2.0**-7, 4: 2.0**-19}.get(x.itemsize, 2.0**-48)  # of the largest number: some ulps, as bits differ
    for function in (lsm.log_softmax, lsm.softmax, partial(lsm.logsumexp, keepdims=True)):
        made, expected = function(lazy, axis), function(x, axis)
        assert made.dtype == expected.dtype
        y, right = result(made).astype(float), expected.astype(float)
        np.testing.assert_allclose(y, right, tolerance, tolerance * (1 + 100 * (function is not lsm.softmax)))
    k = data.draw(st.integers(0, x.shape[axis]))
    places = lsm.top_k_log_softmax(lazy, k, axis).indices
    np.testing.assert_array_equal(result(places), lsm.top_k_log_softmax(x, k, axis).indices)
    indices = np.expand_dims(np.argmax(x.astype(float), axis), axis)
    made, of_all = lsm.take_log_softmax(lazy, indices, axis), result(lsm.log_softmax(lazy, axis))
    check_same(result(made), np.take_along_axis(of_all, indices, axis))


def test_a_graph_for_many_gigabytes_is_made_at_once(computes_nothing):
    x = da.zeros((1_000_000, 131_072), chunks=(256, 32_768), dtype="f4")
    start = time.process_time()
    for function in (lsm.log_softmax, partial(lsm.logsumexp, axis=1)):
        function(x)
    lsm.take_log_softmax(x, da.zeros(1_000_000, dtype=int, chunks=256))
    assert time.process_time() - start < 3, "488 GiB in 15,625 chunks: 0.2 s a graph on an idle machine"


def test_one_chunk_is_as_before():
    x = in_class_chunks(LONG, (2 * SLICE + 500,))
    assert not any("partials" in layer for layer in lsm.log_softmax(x).dask.layers)


def test_indices_beyond_all_classes_are_an_error_of_the_task():
    lazy = lsm.take_log_softmax(MANY, LABELS + 5, 1)
    with pytest.raises(IndexError, match="^indices: .*accepted: 0 to 4"):
        result(lazy)


def test_a_backend_without_partials_is_refused(monkeypatch, computes_nothing):
    monkeypatch.delattr(NumpyBackend, "partials")
    lsm.refresh_backends()
    message = r"^backend 'numpy' .*does not have partials; use backend='cython'; or pass x.rechunk\({1: -1}\)$"
    try:
        with pytest.raises(lsm.BackendUnsupportedError, match=message):
            lsm.log_softmax(MANY, 1, backend="numpy")
        lsm.log_softmax(X, 1, backend="numpy")
    finally:
        monkeypatch.undo()
        lsm.refresh_backends()


# -- The backend ----------------------------------------------------------------------------------------------------


def test_explain_is_that_of_a_chunk(computes_nothing):
    decision = lsm.explain(MANY)
    assert (decision.winner, decision.array_type, decision.dtype) == ("cython", "numpy.ndarray", "float32")
    assert "\n  lazy, in 3 x 3 x 2 chunks; classes in 2: partials, then written; borders not all at" in str(decision)
    assert lsm.explain(X.rechunk({2: -1})).chunks == "  lazy, in 2 x 1 x 1 chunks"
    assert lsm.explain(MANY, "entropy").chunks.endswith(" chunks; the axis of the classes must be in one chunk")
    wide = da.zeros((8, 65536), chunks=(4, 16384), dtype="f4")
    assert lsm.explain(wide).chunks.endswith("at multiples of 16,384: the bits of the whole")
    assert lsm.explain(wide.astype("g")).winner is None
    assert lsm.explain(VALUES).chunks == "" and str(lsm.explain(VALUES)).count("\n") == str(decision).count("\n") - 1
    assert lsm.explain(X, "entropy", backend="numpy").winner == "numpy"
    assert lsm.explain(X.rechunk({2: -1}), dtype="longdouble").winner == "numpy"
    assert lsm.explain(X, backend="no").winner is None
    for x, op in ((da.ma.masked_array(X, MASK), "softmax"), (X, "cross_entropy_value_and_grad")):
        with pytest.raises(TypeError, match="^x: "):
            lsm.explain(x, op)
    copied = pickle.loads(pickle.dumps(decision))
    assert copied.chunks == decision.chunks and copied.winner == "cython"


@pytest.fixture
def called(monkeypatch):
    """The keywords of the calls of tasks, and the number of threads that is set for them."""
    seen, own = [], lsm.log_softmax

    def log_softmax(x, **options):
        seen.append(options | {"threads": _threads._in_context.get()})
        return own(x, **options)

    monkeypatch.setattr(lsm, "log_softmax", log_softmax)
    return seen


def test_the_backend_is_chosen_when_the_graph_is_made(called, monkeypatch):
    with lsm.use_backend("numpy"):
        in_a_block = lsm.log_softmax(X, axis=1)
    named = lsm.log_softmax(X, axis=1, backend="numpy")
    automatic = lsm.log_softmax(X, axis=1)
    called.clear()
    for lazy, name in ((in_a_block, "numpy"), (named, "numpy"), (automatic, "cython")):
        with lsm.use_backend("cython" if name == "numpy" else "numpy"):
            result(lazy)
        assert {options["backend"] for options in called} == {name}
        called.clear()
    lsm.set_default_backend("numpy")
    try:
        set_for_all = lsm.log_softmax(X, axis=1)
    finally:
        lsm.set_default_backend(None)
    assert set_for_all.name == named.name == in_a_block.name != automatic.name


def test_names_of_tasks(computes_nothing):
    same = [lsm.log_softmax(X, axis, dtype=dtype).name for axis, dtype in ((1, "float64"), (-2, np.float64))]
    assert len(set(same)) == 1 and same[0].startswith("lsm-log_softmax-")
    names = {lsm.log_softmax(X, 1, **o).name for o in ({}, {"temperature": 2.0}, {"backend": "numpy"}, {"where": MASK})}
    names |= {lsm.softmax(X, 1).name, lsm.log_softmax(X.rechunk(-1), 0).name, lsm.log_softmax(X, 1, dtype="f2").name}
    assert len(names) == 7
    assert lsm.softmax(X, 1, temperature=1).name == lsm.softmax(X, 1).name


def test_another_version_or_other_kernels_are_an_error(monkeypatch):
    lazy = lsm.log_softmax(X, 1, backend="cython")
    kernels = lsm.explain(VALUES, backend="cython").backend
    with monkeypatch.context() as changed:
        changed.setattr(_dask_tasks, "__version__", "0.0.1")
        with pytest.raises(lsm.BackendUnavailableError, match=r"process \d+ has lsm 0.0.1, but lsm .* made the graph"):
            result(lazy)
        assert lsm.log_softmax(X, 1).name != lazy.name
    with monkeypatch.context() as changed:
        changed.setattr(type(kernels), "has_fma", not kernels.has_fma)
        with pytest.raises(lsm.BackendUnavailableError, match=r"FMA, .*set LSM_FORCE_ISA"):
            result(lazy)
        result(lsm.log_softmax(X, 1, backend="numpy"))
    result(lazy)


def test_a_worker_without_the_backend_is_an_error():
    with pytest.raises(lsm.UnknownBackendError, match="'gone'"):
        _dask_tasks.compute_chunk("log_softmax", ("x",), {"axis": 1, "backend": "gone"}, ("0", None), VALUES)


def test_a_task_uses_one_thread_unless_the_process_has_set_more(called, monkeypatch):
    lazy = lsm.log_softmax(X, axis=1)
    called.clear()
    result(lazy)
    monkeypatch.setattr(_threads, "_process_setting", 2)
    result(lazy)
    assert [options["threads"] for options in called] == [1] * 4 + [None] * 4


# -- Other ways to run ----------------------------------------------------------------------------------------------


def test_arrays_of_query_planning(tmp_path):
    code = """
import dask, dask.array, numpy as np, lsm
assert dask.array.ARRAY_EXPR_ENABLED
values = np.random.default_rng(0).normal(size=(4, 6))
x = dask.array.from_array(values, chunks=(2, 6))
def computed(*args, **kwargs):
    raise AssertionError
with dask.config.set(scheduler=computed):
    y, h, top = lsm.log_softmax(x), lsm.entropy(x), lsm.top_k_log_softmax(x, 2)
    parts = [lsm.log_softmax(x.rechunk(3)), lsm.top_k_log_softmax(x.rechunk(3), 2).values]
    parts += [lsm.take_log_softmax(x.rechunk((2, 4)), np.arange(4)), lsm.logsumexp(x.rechunk(1), 1)]
    loss = lsm.cross_entropy(x, np.arange(4), ignore_index=1)
    lsm.explain(x)
    try:
        lsm.entropy(x.rechunk(3))
    except ValueError as error:
        print("x.rechunk({1: -1})" in str(error))
print((y.compute() == lsm.log_softmax(values)).all(), (h.compute() == lsm.entropy(values)).all())
rights = [lsm.log_softmax(values), lsm.top_k_log_softmax(values, 2).values]
rights += [lsm.take_log_softmax(values, np.arange(4)), lsm.logsumexp(values, 1)]
print(all(np.allclose(made.compute(), right, 1e-14) for made, right in zip(parts, rights)))
print((top.indices.compute() == lsm.top_k_log_softmax(values, 2).indices).all())
print(loss.compute() == lsm.cross_entropy(values, np.arange(4), ignore_index=1))
"""
    environment = os.environ | {"DASK_ARRAY__QUERY_PLANNING": "True"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 6, done.stdout + done.stderr


def test_lsm_does_not_import_dask():
    code = """
import sys, numpy as np, lsm
lsm.log_softmax(np.zeros((2, 3))), lsm.explain(np.zeros(3)), lsm.entropy(np.zeros(3))
print([name for name in sys.modules if name.startswith(("dask", "xarray", "lsm.engines"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_what_goes_to_other_processes_can_be_pickled():
    for error in (lsm.BackendUnavailableError("a"), lsm.UnknownBackendError("b"), lsm.ConfigurationError("c")):
        copied = pickle.loads(pickle.dumps(error))
        assert type(copied) is type(error) and str(copied) == str(error)
    for block in (lsm.use_backend("numpy"), lsm.num_threads(1)):
        with pytest.raises(TypeError, match=r"cannot be pickled; .* pass backend="):
            pickle.dumps(block)


def test_bench_measures_what_computes_on_dask(tmp_path):
    ops = ("forward", "take_log_softmax", "logsumexp")
    command = [sys.executable, "-m", "lsm", "bench", "--set", "scale", "--shape", "128x65536", "--op", ",".join(ops)]
    command += ["--rounds", "1", "--threads", "1", "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = from_json((tmp_path / "r.json").read_text()).rows
    assert [row.case.op for row in rows] == list(ops) and {row.case.chunks for row in rows} == {(32, 16384)}
    by_name = [{entry.name: entry for entry in row.implementations} for row in rows]
    lazy = {"lsm cython", "lsm on dask", "dask idiom", "scipy on dask"}
    assert [set(found) for found in by_name] == [lazy | {"dask copy"}, {"lsm cython", "lsm on dask"}, lazy]
    assert all(entry.is_ranked and entry.ratio for row in rows for entry in row.implementations)
    memory = {name: entry.extra_bytes for name, entry in by_name[0].items()}  # of chunks of 2 MiB
    assert memory["lsm on dask"] < memory["dask idiom"], memory


CLUSTER = """
import os, signal, sys, time
import dask.array as da, numpy as np, lsm
from distributed import Client, LocalCluster

folder = sys.argv[1]
N = 40

def values(i):
    return np.random.default_rng(i).normal(size=(4, 1000)).astype("f4")

def source(like, slow=0.0, block_info=None):
    time.sleep(slow)
    return values(block_info[0]["chunk-location"][0])

def flaky(x, block_info=None):
    # Fails twice for each chunk.
    i = block_info[0]["chunk-location"][0]
    for turn in range(2):
        mark = f"{folder}/{i}-{turn}"
        if not os.path.exists(mark):
            open(mark, "w").close()
            raise OSError("not yet")
    return x

def set_version(version):
    from lsm.engines import _dask_tasks
    _dask_tasks.__version__ = version

if __name__ == "__main__":
    whole = np.concatenate([values(i) for i in range(N)])
    lazy = da.zeros((4 * N, 1000), chunks=(4, 1000), dtype="f4")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        x = lazy.map_blocks(source, slow=0.05, dtype="f4", meta=np.empty((0, 0), "f4"))
        with lsm.use_backend("numpy"):
            y = lsm.log_softmax(x)
        running = client.compute(y)
        while True:
            held = client.has_what()
            if sum(map(len, held.values())) >= 6:
                break
            time.sleep(0.02)
        pids = client.run(os.getpid)
        assert not running.done()
        os.kill(pids[max(pids)], signal.SIGKILL)
        print(np.array_equal(running.result(60), lsm.log_softmax(whole, backend="numpy")))

        x = lazy[:16].map_blocks(source, dtype="f4", meta=np.empty((0, 0), "f4")).map_blocks(flaky, dtype="f4")
        loss = client.compute(lsm.cross_entropy(x, np.arange(16)), retries=2).result(60)
        print(loss == lsm.cross_entropy(whole[:16], np.arange(16)))

        targets = da.from_array(np.arange(16) + 990)
        try:
            client.compute(lsm.take_log_softmax(lazy[:16], targets)).result(60)
        except IndexError as error:
            print("accepted: 0 to 999" in str(error))

        own = np.random.default_rng(1).normal(size=(8, 40000)).astype("f4")
        wide = da.from_array(own, chunks=(2, 16384))
        tokens = np.arange(8) * 5000
        made = client.compute([lsm.log_softmax(wide), lsm.take_log_softmax(wide, tokens)])
        y, taken = client.gather(made)
        print(np.array_equal(y, lsm.log_softmax(own)), np.array_equal(taken, lsm.take_log_softmax(own, tokens)))

        client.run(set_version, "0.0.1")
        try:
            client.compute(lsm.log_softmax(lazy)).result(60)
        except lsm.BackendUnavailableError as error:
            print(str(error).startswith("the worker tcp://"), "lsm 0.0.1" in str(error))
"""


def test_a_cluster_that_loses_a_worker_has_the_bits_of_one_machine(tmp_path):
    (tmp_path / "run.py").write_text(CLUSTER)
    (tmp_path / "marks").mkdir()
    command = [sys.executable, "-W", "ignore", str(tmp_path / "run.py"), str(tmp_path / "marks")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.split() == ["True"] * 7, done.stdout + done.stderr
