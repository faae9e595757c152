"""Frames in parts: their partials, and results with the bits of whole frames, on every backend that has them."""

import re
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import LD, log_softmax, logsumexp, spacing, ulps

import lsm
from lsm.backends.numpy_ import NumpyBackend

pytestmark = pytest.mark.operation("partials")

SLICE = 16384
NEUTRAL = np.array([-np.inf, 0, 0, 0])
BOUNDS = {"float16": 0.501, "bfloat16": 0.501, "float32": 4, "float64": 4}
FUNCTIONS = (lsm.log_softmax, lsm.softmax)


def logits(rng, shape, dtype=np.float32, scale=4):
    return (rng.standard_normal(shape) * scale).astype(dtype)


def same(result, expected):
    """The same bits, dtype and shape; NaN equals NaN."""
    assert result.dtype == expected.dtype and result.shape == expected.shape
    np.testing.assert_array_equal(result.astype(LD), expected.astype(LD))


def along(axis, ndim, start, stop):
    return tuple(slice(start, stop) if i == axis % ndim else slice(None) for i in range(ndim))


def parts_of(x, borders, axis=-1):
    """The parts of an array between these borders, and where the classes of each begin."""
    edges = [0, *borders, x.shape[axis]]
    return [(a, x[along(axis, x.ndim, a, b)]) for a, b in pairwise(edges)]


def partials_of(x, borders, axis=-1, where=None, **options):
    """Those of all parts, concatenated."""
    if where is not None:
        where = np.broadcast_to(where, x.shape)
    made = [
        lsm.partials(
            part, axis, **options, where=None if where is None else where[along(axis, x.ndim, a, a + part.shape[axis])]
        )
        for a, part in parts_of(x, borders, axis)
    ]
    return np.concatenate(made, axis % x.ndim)


def in_parts(function, x, borders, p, axis=-1, where=None, **options):
    """The results of all parts, concatenated."""
    made = []
    for a, part in parts_of(x, borders, axis):
        mask = None if where is None else np.broadcast_to(where, x.shape)[along(axis, x.ndim, a, a + part.shape[axis])]
        made.append(function(part, axis, partials=p, n_classes=x.shape[axis], where=mask, **options))
    return np.concatenate(made, axis % x.ndim)


def skips_longdouble(backend, dtype):
    """Whether this is longdouble, which is refused: partials are float64."""
    if dtype != np.longdouble:
        return False
    with pytest.raises(lsm.BackendUnsupportedError, match="longdouble"):
        lsm.partials(np.zeros(3, dtype), backend=backend)
    return True


# -- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 64, 65, 600, SLICE, SLICE + 1, SLICE + 40, 3 * SLICE + 700])
def test_parts_have_the_bits_of_whole_frames(backend, dtype, n, rng):
    if skips_longdouble(backend, dtype):
        return
    borders = sorted({min(i * SLICE, n) for i in (0, 1, 2, 2)} | {n})
    for scale in (4, 3000):
        x = logits(rng, (3, n), dtype, scale)
        p = partials_of(x, borders, backend=backend)
        assert p.shape == (3, -(-n // SLICE), 4) and (p[..., 3].sum(1) == n).all()
        for function in FUNCTIONS:
            same(in_parts(function, x, borders, p, backend=backend), function(x, backend=backend))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_on_every_axis(backend, dtype, axis, rng):
    if skips_longdouble(backend, dtype):
        return
    shape = [2, 3, 18]
    shape[axis] = 2 * SLICE + 300
    x = logits(rng, shape, dtype)
    p = partials_of(x, [SLICE], axis, backend=backend)
    same(p, lsm.partials(x, axis, backend=backend))
    for function in FUNCTIONS:
        same(in_parts(function, x, [SLICE], p, axis, backend=backend), function(x, axis, backend=backend))


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"temperature": 1e-290}, {"dtype": "float64"}, {"dtype": "float32"}]
)
@pytest.mark.parametrize("has_mask", [False, True])
def test_keywords(backend, dtype, options, has_mask, rng):
    if skips_longdouble(backend, dtype):
        return
    for n, border in ((SLICE + 700, SLICE), (50, 50), (300, 0)):
        x = logits(rng, (4, n), dtype)
        where = rng.random(x.shape) > 0.4 if has_mask else None
        if has_mask:
            x[0, ~where[0]] = np.nan
            where[1] = False
        p = partials_of(x, [border], where=where, backend=backend, **options)
        for function in FUNCTIONS:
            expected = function(x, where=where, backend=backend, **options)
            same(in_parts(function, x, [border], p, where=where, backend=backend, **options), expected)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_temperature_for_each_frame(backend, kind, rng):
    x = logits(rng, (2, SLICE + 700, 3), kind)
    temperature = rng.random((2, 1, 3)) + 0.1
    temperature[0, 0, 0] = np.nan
    p = partials_of(x, [SLICE], 1, temperature=temperature, backend=backend)
    for function in FUNCTIONS:
        expected = function(x, 1, temperature=temperature, backend=backend)
        same(in_parts(function, x, [SLICE], p, 1, temperature=temperature, backend=backend), expected)
    assert np.isnan(lsm.logsumexp(partials=p, axis=1, backend=backend)[0, 0])


def test_layouts_threads_and_out(backend, rng):
    x = logits(rng, (5, 2 * SLICE + 100))
    expected = lsm.log_softmax(x, backend=backend)
    p = lsm.partials(x, backend=backend)
    big = np.zeros((5, 2, x.shape[1]), np.float32)
    big[:, 1] = x
    for view in (
        x,
        np.asfortranarray(x),
        np.repeat(x, 2, 1)[:, ::2],
        x.astype(">f4"),
        x[::-1, ::-1][::-1, ::-1],
        big[:, 1],
    ):
        same(lsm.partials(view, backend=backend), p)
        same(lsm.log_softmax(view, partials=p, backend=backend), expected)
    deep = np.ascontiguousarray(x.reshape(5, 1, -1, 1).repeat(2, 1).repeat(3, 3).transpose(3, 2, 0, 1)).transpose(
        2, 3, 1, 0
    )
    q = lsm.partials(deep, 2, backend=backend)
    same(q, np.broadcast_to(p[:, None, :, None], q.shape))
    same(lsm.log_softmax(deep, 2, partials=q, backend=backend)[:, 1, :, 2], expected)
    with lsm.num_threads(4):
        same(lsm.partials(x, backend=backend), p)
        same(lsm.partials(x[:1], backend=backend), p[:1])
        same(lsm.log_softmax(x, partials=p, backend=backend), expected)
    for out in (np.empty_like(x), np.empty((x.shape[1], 5), np.float32).T, np.empty(x.shape, ">f4"), x.copy()):
        source = out if (out == x).all() else x
        assert lsm.log_softmax(source, partials=p, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, expected)
    memory = np.zeros((5, x.shape[1] + 7), np.float32)
    memory[:, :-7] = x
    lsm.log_softmax(memory[:, :-7], partials=p, out=memory[:, 7:], backend=backend)
    same(memory[:, 7:], expected)


def test_any_grouping_and_neutral_partials_anywhere(backend, rng):
    x = logits(rng, (2, 4 * SLICE))
    expected = lsm.log_softmax(x, backend=backend)
    p = lsm.partials(x, backend=backend)
    for borders in ([SLICE], [2 * SLICE, 3 * SLICE], [0, 0, SLICE, SLICE, 4 * SLICE]):
        same(partials_of(x, borders, backend=backend), p)
    neutral = np.broadcast_to(NEUTRAL, (2, 1, 4))
    total = lsm.logsumexp(partials=p, axis=1, backend=backend)
    for i in range(5):
        q = np.concatenate([p[:, :i], neutral, neutral, p[:, i:]], 1)
        same(lsm.log_softmax(x, partials=q, n_classes=4 * SLICE, backend=backend), expected)
        same(lsm.logsumexp(partials=q, axis=1, backend=backend), total)


# -- the numbers ----------------------------------------------------------------------------------------------------


def test_what_partials_are(backend, dtype, rng):
    if skips_longdouble(backend, dtype):
        return
    x = logits(rng, (2, SLICE + 900), dtype, 1)
    x[0, :3] = 6
    p = lsm.partials(x, backend=backend)
    assert p.dtype == np.float64
    for i, part in enumerate(np.split(x.astype(LD), [SLICE], 1)):
        m = part.max(1, keepdims=True)
        assert (p[:, i, 0] == m[:, 0]).all()
        s = np.where(part < m, np.exp(part - m), 0).sum(1)
        # float32 exponentials are within 1.5 ulp, and float32 adds four of them
        np.testing.assert_allclose(p[:, i, 1], s.astype(float), rtol=2e-15 if dtype == np.float64 else 2**-21)
        assert (p[:, i, 2] == (part == m).sum(1)).all() and (p[:, i, 3] == part.shape[1]).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [3, 100, 20000])
def test_special_slices(backend, kind, n):
    last = n % SLICE or n
    frames = np.full((5, n), -np.inf, kind)
    frames[0, -1] = np.nan
    frames[1, -1] = np.inf
    frames[2, [-2, -1]] = np.inf, np.nan
    frames[4, -1] = 3
    p = lsm.partials(frames, backend=backend)[:, -1]
    nan, inf = np.nan, np.inf
    same(
        p,
        np.array([[nan, nan, 0, last], [inf, nan, 0, last], [nan, nan, 0, last], [-inf, 0, 0, last], [3, 0, 1, last]]),
    )
    q = lsm.partials(frames, backend=backend)
    same(lsm.logsumexp(partials=q, axis=1, backend=backend), np.array([nan, inf, nan, -inf, 3]))
    same(lsm.log_softmax(frames, partials=q, backend=backend), lsm.log_softmax(frames, backend=backend))


@pytest.mark.parametrize("border", [SLICE, 1000])
def test_what_a_slice_has_its_frame_has(backend, border, rng):
    x = logits(rng, (8, 2 * SLICE))
    x[0, border] = x[1, border - 1] = np.nan
    x[2, border] = x[3, border - 1] = np.inf
    x[4, border:] = -np.inf
    x[5, :border] = -np.inf
    x[6] = -np.inf
    x[6, border] = 1
    x[7] = -np.inf
    p = partials_of(x, [border], backend=backend)
    for function in FUNCTIONS:
        y, expected = in_parts(function, x, [border], p, backend=backend), function(x, backend=backend)
        assert (np.isnan(y) == np.isnan(expected)).all() and (np.isinf(y) == np.isinf(expected)).all()
        assert (y[6] == expected[6]).all()
    total = lsm.logsumexp(partials=p, axis=1, backend=backend)
    assert np.isnan(total[:2]).all() and (total[2:4] == np.inf).all()
    assert (total[6:] == [1, -np.inf]).all()
    both = np.concatenate([p[:1], p[2:3]], 1)
    assert np.isnan(lsm.logsumexp(partials=both, axis=1, backend=backend)).all()
    assert np.isnan(lsm.logsumexp(partials=both[:, ::-1], axis=1, backend=backend)).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_borders_are_within_the_bound(data):
    name = data.draw(st.sampled_from(["cython", "numpy"]))
    dtype = data.draw(st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64]))
    n = data.draw(st.sampled_from([1, 2, 63, 70, 300, 1000, SLICE + 5]))
    x = logits(np.random.default_rng(data.draw(st.integers(0, 99))), (2, n), dtype, data.draw(st.sampled_from([1, 30])))
    borders = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    p = partials_of(x, borders, backend=name)
    y = in_parts(lsm.log_softmax, x, borders, p, backend=name)
    assert ulps(y, log_softmax(x.astype(LD))) <= BOUNDS[y.dtype.name]
    exact, m = logsumexp(x.astype(LD))[..., 0], x.astype(LD).max(1)
    total = lsm.logsumexp(partials=p, axis=1, dtype=dtype, backend=name)
    grid = spacing(np.maximum(abs(exact), abs(m)), total.dtype)
    assert (abs(total.astype(LD) - exact) / grid <= BOUNDS[y.dtype.name]).all()


# -- selected classes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_take_of_parts_combines_by_maximum(backend, dtype, axis, rng):
    if skips_longdouble(backend, dtype):
        return
    n = 2 * SLICE + 50
    x = logits(rng, (4, n) if axis else (n, 4), dtype)
    borders = [0, SLICE, 2 * SLICE]
    p = partials_of(x, borders, axis, backend=backend)
    where = rng.random(x.shape) > 0.5
    for indices in (rng.integers(0, n, 4), rng.integers(0, n, (4, 3) if axis else (3, 4)), np.zeros((1, 1), int)):
        for options in ({}, {"temperature": 0.3}, {"where": where}):
            if "where" in options:
                p_here = partials_of(x, borders, axis, where, backend=backend)
            else:
                p_here = partials_of(x, borders, axis, backend=backend, **options)
            expected = lsm.take_log_softmax(x, indices, axis, backend=backend, **options)
            made = []
            for first, part in parts_of(x, borders, axis):
                if "where" in options:
                    options = {"where": where[along(axis, 2, first, first + part.shape[axis])]}
                made.append(
                    lsm.take_log_softmax(
                        part, indices, axis, partials=p_here, first_class=first, n_classes=n, backend=backend, **options
                    )
                )
            same(np.max(np.stack(made).astype(LD), 0).astype(dtype), expected)
    x[along(axis, 2, 5, 6)] = np.nan
    p = partials_of(x, borders, axis, backend=backend)
    for first, part in parts_of(x, borders, axis):
        y = lsm.take_log_softmax(part, [n - 1] * 4, axis, partials=p, first_class=first, backend=backend)
        assert np.isnan(y.astype(float)).all()


def test_selections_of_short_frames_beside_empty_parts(backend, rng):
    x, empty = logits(rng, (3, 40)), np.zeros((3, 0), np.float32)
    p = lsm.partials(x, backend=backend)
    options = {"partials": p, "n_classes": 40, "backend": backend}
    same(lsm.take_log_softmax(x, [3, 5, 7], **options), lsm.take_log_softmax(x, [3, 5, 7], backend=backend))
    assert (lsm.take_log_softmax(empty, [3, 5, 7], **options, first_class=40) == -np.inf).all()
    expected = lsm.top_k_log_softmax(x, 3, backend=backend)
    same(lsm.top_k_log_softmax(x, 3, **options).values, expected.values)


def test_top_k_of_parts(backend, dtype, rng):
    if skips_longdouble(backend, dtype):
        return
    n, k = 2 * SLICE + 2, 5
    x = logits(rng, (3, n), dtype)
    x[1, [7, SLICE + 3]] = 60
    p = lsm.partials(x, backend=backend)
    made = [
        lsm.top_k_log_softmax(part, k, partials=p, first_class=first, backend=backend)
        for first, part in parts_of(x, [SLICE, 2 * SLICE])
    ]
    assert made[2].values.shape == (3, 2)
    values = np.concatenate([found.values for found in made], 1)
    indices = np.concatenate([found.indices for found in made], 1)
    order = np.argsort(-values.astype(float), 1, kind="stable")[:, :k]
    expected = lsm.top_k_log_softmax(x, k, backend=backend)
    same(np.take_along_axis(values, order, 1), expected.values)
    assert (indices[1, order[1, :2]] == [7, SLICE + 3]).all()
    same(np.take_along_axis(lsm.log_softmax(x, backend=backend), indices, 1), values)


# -- gradients ------------------------------------------------------------------------------------------------------


def gradients_in_parts(dy, y, borders, axis=-1, **options):
    """The gradients of all parts, concatenated, and the partials of the whole."""
    pairs = [(a, b) for (_, a), (_, b) in zip(parts_of(dy, borders, axis), parts_of(y, borders, axis), strict=True)]
    q = np.concatenate([lsm.partials_backward(a, b, axis, **options) for a, b in pairs], axis % dy.ndim)
    n = dy.shape[axis]
    made = [lsm.log_softmax_backward(a, b, axis, partials=q, n_classes=n, **options) for a, b in pairs]
    return np.concatenate(made, axis % dy.ndim), q


HUGE = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1.5e308}


@pytest.mark.parametrize("n", [1, 5, 64, 65, 600, SLICE, SLICE + 1, 3 * SLICE + 700])
def test_gradients_of_parts_have_the_bits_of_whole_frames(backend, dtype, n, rng):
    if skips_longdouble(backend, dtype):
        return
    borders = sorted({min(i * SLICE, n) for i in (0, 1, 2, 2)} | {n})
    y = lsm.log_softmax(logits(rng, (6, n), dtype))
    dy = logits(rng, y.shape, dtype, 1)
    huge = HUGE[np.dtype(dtype).name]
    dy[1, ::2], dy[1, 1::2] = huge, -huge  # which cancel
    dy[2] = huge
    if n > 1:
        dy[3, -1], y[4, 0], y[5] = np.nan, 1000, -np.inf
    expected = lsm.log_softmax_backward(dy, y, backend=backend)
    made, q = gradients_in_parts(dy, y, borders, backend=backend)
    same(made, expected)
    same(q, lsm.partials_backward(dy, y, backend=backend))
    assert q.shape == (6, -(-n // SLICE), 6) and (q[..., 5].sum(1) == n).all()
    same(gradients_in_parts(dy.T, y.T, borders, 0, backend=backend)[0], expected.T)
    neutral = np.zeros((6, 1, 6))
    spread = np.concatenate([neutral, *[part for i in range(q.shape[1]) for part in (q[:, [i]], neutral)]], 1)
    same(lsm.log_softmax_backward(dy, y, partials=spread, n_classes=n, backend=backend), expected)
    with lsm.num_threads(3):
        same(gradients_in_parts(dy, y, borders, backend=backend)[0], expected)


@pytest.mark.parametrize("border", [1, 1000, SLICE - 1])
def test_gradients_of_any_parts_are_within_the_bound(backend, border, rng):
    n = SLICE + 1000
    y = lsm.log_softmax(logits(rng, (3, n), np.float64))
    dy = logits(rng, y.shape, np.float64, 1)
    dy[1], y[2, border - 1] = 1e304, -1e-12
    made, _ = gradients_in_parts(dy, y, [border], backend=backend)
    s = dy.astype(LD).sum(1, keepdims=True)
    term = np.exp(y.astype(LD)) * s
    exact = dy - term
    near = (dy - s) - np.expm1(y.astype(LD)) * s
    exact = np.where(y > -np.log(2), near, exact)
    at = np.maximum(np.maximum(np.abs(exact), np.abs(dy)), np.abs(term))
    slack = 2.0**-52 * np.abs(dy).astype(LD).sum(1, keepdims=True) * np.exp(y.astype(LD))  # the error of the sum
    assert (np.abs(made - exact) <= 4 * spacing(at, np.float64) + slack).all()


def test_gradients_into_out(backend, rng):
    y = lsm.log_softmax(logits(rng, (3, SLICE + 50)))
    dy = logits(rng, y.shape, np.float32, 1)
    expected, q = lsm.log_softmax_backward(dy, y, backend=backend), lsm.partials_backward(dy, y, backend=backend)
    for out in (np.empty_like(y), np.empty(y.shape, ">f4"), np.empty(y.shape[::-1], np.float32).T):
        assert lsm.log_softmax_backward(dy, y, partials=q, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, expected)
    for of_dy, of_y in ((dy.copy(), y), (dy, y.copy())):
        out = of_dy if of_y is y else of_y
        lsm.log_softmax_backward(of_dy, of_y, partials=q, out=out, backend=backend)
        same(out, expected)
    memory = np.zeros((3, y.shape[1] + 5), np.float32)
    memory[:, :-5] = dy
    lsm.log_softmax_backward(memory[:, :-5], y, partials=q, out=memory[:, 5:], backend=backend)
    same(memory[:, 5:], expected)


def test_gradients_of_mixed_dtypes_and_no_classes(backend, rng):
    y = lsm.log_softmax(logits(rng, (3, 70), np.float64))
    dy = logits(rng, y.shape, np.float32, 1)
    expected = lsm.log_softmax_backward(dy, y, backend=backend)
    made, q = gradients_in_parts(dy, y, [0, 70], backend=backend)
    same(made, expected)
    empty = lsm.log_softmax_backward(dy[:, :0], y[:, :0], partials=q, backend=backend)
    assert empty.shape == (3, 0) and empty.dtype == np.float64
    assert lsm.partials_backward(dy[:0], y[:0], backend=backend).shape == (0, 1, 6)


# -- arguments ------------------------------------------------------------------------------------------------------


def test_empty_arrays(backend):
    for shape, axis, expected in (((3, 0), 1, (3, 0, 4)), ((0, 5), 1, (0, 1, 4)), ((0, 3), 0, (0, 3, 4))):
        assert lsm.partials(np.zeros(shape), axis, backend=backend).shape == expected
    p = lsm.partials(np.zeros((3, 5)), backend=backend)
    assert lsm.log_softmax(np.zeros((3, 0)), partials=p, backend=backend).shape == (3, 0)
    y = lsm.take_log_softmax(np.zeros((3, 0)), [0, 1, 2], partials=p, first_class=2, backend=backend)
    assert (y == -np.inf).all()
    assert lsm.top_k_log_softmax(np.zeros((3, 0)), 2, partials=p, backend=backend).indices.shape == (3, 0)
    assert lsm.logsumexp(partials=p[:0], axis=1, backend=backend).shape == (0,)
    same(lsm.logsumexp(partials=p[:, :0], axis=1, backend=backend), np.full(3, -np.inf))
    assert lsm.log_softmax(np.zeros((0, 5)), partials=p[:0], backend=backend).shape == (0, 5)


def test_logsumexp_as_any_other_reduction(backend, rng):
    x = logits(rng, (3, 20000))
    p = lsm.partials(x, backend=backend)
    expected = lsm.logsumexp(x, 1, backend=backend)
    same(lsm.logsumexp(partials=p, axis=-1, dtype="float32", backend=backend), expected)
    total, sign = lsm.logsumexp(partials=p, axis=1, keepdims=True, return_sign=True, backend=backend)
    assert total.shape == (3, 1) and total.dtype == np.float64 and (sign == 1).all()
    out = np.empty(3, ">f4")
    assert lsm.logsumexp(partials=p, axis=1, dtype="float32", out=out, backend=backend) is out
    np.testing.assert_array_equal(out, expected)
    one = lsm.logsumexp(partials=p[0], backend=backend)
    assert type(one) is np.float64 and one == total[0, 0]
    same(lsm.logsumexp(partials=p[0].tolist(), backend=backend), one)


X, P = np.zeros((3, 5)), lsm.partials(np.zeros((3, 9)))
REFUSED = {
    "axes": (lambda: lsm.partials(X, (0, 1)), TypeError, r"axis: \(0, 1\); accepted: one int"),
    "all axes": (lambda: lsm.log_softmax(X, None, partials=P), TypeError, "axis: None; accepted: one int"),
    "axis": (lambda: lsm.partials(X, 2), np.exceptions.AxisError, "axis: axis 2 is out of bounds"),
    "scalar": (lambda: lsm.partials(1.0), ValueError, "x: has no dimensions"),
    "complex": (lambda: lsm.partials(X * 1j), TypeError, "x: complex128 numbers have no order"),
    "dtype of partials": (
        lambda: lsm.log_softmax(X, partials=P.astype("f4")),
        TypeError,
        "partials: dtype float32; accepted: float64, as from lsm.partials",
    ),
    "shape": (
        lambda: lsm.log_softmax(X, partials=P[:2]),
        ValueError,
        r"partials: shape \(2, 1, 4\); accepted: \(3, n, 4\), with any number n of slices",
    ),
    "no slices": (lambda: lsm.log_softmax(X, partials=P[:, 0]), ValueError, r"partials: shape \(3, 4\); accepted"),
    "too few": (
        lambda: lsm.log_softmax(X, partials=lsm.partials(X[:, :2])),
        ValueError,
        r"partials: count 2 classes in the frame \[0\]; accepted: at least 5, as in the part; is a part",
    ),
    "a part is missing": (
        lambda: lsm.softmax(X, partials=P, n_classes=14),
        ValueError,
        r"partials: count 9 classes in the frame \[0\]; accepted: 14, the value of n_classes; is a part",
    ),
    "n_classes": (lambda: lsm.softmax(X, partials=P, n_classes=9.5), TypeError, "n_classes: 9.5; accepted: an int"),
    "n_classes alone": (
        lambda: lsm.softmax(X, n_classes=5),
        TypeError,
        "n_classes: given without partials; accepted: only with",
    ),
    "first_class alone": (
        lambda: lsm.take_log_softmax(X, [0, 0, 0], first_class=1),
        TypeError,
        "n_classes, first_class: given without partials",
    ),
    "first_class": (
        lambda: lsm.take_log_softmax(X, [0, 0, 0], partials=P, first_class=5),
        ValueError,
        "first_class: 5; accepted: 0 to 4, for 5 of 9 classes",
    ),
    "first_class of text": (
        lambda: lsm.top_k_log_softmax(X, 1, partials=P, first_class="1"),
        TypeError,
        "first_class: '1'; accepted: an int",
    ),
    "index": (
        lambda: lsm.take_log_softmax(X, [0, 9, 0], partials=P),
        IndexError,
        r"indices: 9 at \[1\]; accepted: 0 to 8",
    ),
    "k": (lambda: lsm.top_k_log_softmax(X, 10, partials=P), ValueError, "k: 10; accepted: from 0 to 9"),
    "reduction": (
        lambda: lsm.cross_entropy(X, [0, 1, 2], partials=P),
        ValueError,
        "reduction: 'mean'; accepted with partials: 'none'",
    ),
    "weight": (
        lambda: lsm.cross_entropy(X, [0, 1, 2], partials=P, reduction="none", weight=np.ones(5)),
        ValueError,
        "weight: .*; accepted with partials: None",
    ),
    "smoothing": (
        lambda: lsm.cross_entropy(X, [0, 1, 2], partials=P, reduction="none", label_smoothing=0.1),
        ValueError,
        "label_smoothing: 0.1; accepted with partials: 0",
    ),
    "probabilities": (
        lambda: lsm.cross_entropy(X, X, partials=P, reduction="none"),
        TypeError,
        "targets: dtype float64; accepted with partials: integers",
    ),
    "target": (
        lambda: lsm.cross_entropy(X, [0, 9, 0], partials=P, reduction="none"),
        IndexError,
        r"targets: 9 at \[1\]; accepted: 0 to 8",
    ),
    "shapes of a gradient": (
        lambda: lsm.partials_backward(X, X[:2]),
        ValueError,
        r"grad_output, output: shapes \(3, 5\) and \(2, 5\) differ",
    ),
    "scalar gradient": (lambda: lsm.partials_backward(1.0, 1.0), ValueError, "grad_output: has no dimensions"),
    "axes of a gradient": (
        lambda: lsm.partials_backward(X, X, (0, 1)),
        TypeError,
        r"axis: \(0, 1\); accepted: one int",
    ),
    "partials of logits": (
        lambda: lsm.log_softmax_backward(X, X, partials=P),
        ValueError,
        r"partials: shape \(3, 1, 4\); accepted: \(3, n, 6\), with any number n of slices, as from lsm.partials_b",
    ),
    "a part of a gradient is missing": (
        lambda: lsm.log_softmax_backward(X, X, partials=lsm.partials_backward(X, X), n_classes=9),
        ValueError,
        r"partials: count 5 classes in the frame \[0\]; accepted: 9, the value of n_classes",
    ),
    "temperature of a gradient": (
        lambda: lsm.log_softmax_backward(X, X, partials=lsm.partials_backward(X, X), temperature=0.5),
        ValueError,
        "temperature: given with partials; accepted: 1; divide the result",
    ),
    "where of a gradient": (
        lambda: lsm.log_softmax_backward(X, X, partials=lsm.partials_backward(X, X), where=X > 0),
        ValueError,
        "where: given with partials; accepted: None; mask both inputs",
    ),
    "logits and partials": (lambda: lsm.logsumexp(X, 1, partials=P), TypeError, "a, b, where, partials: accepted"),
    "neither": (lambda: lsm.logsumexp(axis=1), TypeError, "a, b, where, partials: accepted"),
    "partials of a scalar": (
        lambda: lsm.logsumexp(partials=1.0),
        ValueError,
        r"partials: shape \(\); accepted: \(n, 4\)",
    ),
    "axes of partials": (lambda: lsm.logsumexp(partials=P), TypeError, "axis: None; accepted: one int"),
    "out": (lambda: lsm.softmax(X, partials=P, out=np.empty((3, 4))), ValueError, r"out: has shape \(3, 4\)"),
    "backend": (lambda: lsm.partials(X, backend="no"), lsm.UnknownBackendError, ".*'no'"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_refused(case):
    refused, error, message = REFUSED[case]
    with pytest.raises(error, match=f"^{message}"):
        refused()


def test_a_backend_without_partials_says_who_has_them(installed):
    class Two:
        name, api_version, dtypes, array_types, devices = "two", 1, ("float64",), ("numpy.ndarray",), ("cpu",)
        available = log_softmax = log_softmax_backward = lambda self, *_: None

    installed(Two())
    message = "backend 'two' (requested by backend=) does not have partials; use backend='cython' or backend='numpy'"
    with pytest.raises(lsm.BackendUnsupportedError, match=f"^{re.escape(message)}$"):
        lsm.partials(X, backend="two")


def test_a_plugin_with_partials_is_used(installed, rng):
    class Own(NumpyBackend):
        name = "own"

        def log_softmax_of_part(self, x, partials, axis, out):
            out[...] = 7

    installed(Own())
    p = lsm.partials(X, backend="own")
    same(p, lsm.partials(X, backend="numpy"))
    assert (lsm.log_softmax(X, partials=p, backend="own") == 7).all()
    assert lsm.take_log_softmax(X[:, :3], [0, 1, 2], partials=p, backend="own").tolist() == [7, 7, 7]

    class Bad(Own):
        name = "bad"

        def softmax_of_part(self, x, partials, axis, out):
            raise ZeroDivisionError("oh")

    installed(Bad())
    with pytest.raises(lsm.BackendFailedError, match="softmax_of_part raised ZeroDivisionError: oh"):
        lsm.softmax(X, partials=p, backend="bad")


# -- losses ---------------------------------------------------------------------------------------------------------


def test_losses_of_parts_add_up(backend, dtype, rng):
    if skips_longdouble(backend, dtype):
        return
    n = 2 * SLICE + 50
    x = logits(rng, (5, n), dtype)
    targets = np.array([3, SLICE, n - 1, -100, 17])
    where = rng.random(x.shape) > 0.5
    for options in ({}, {"temperature": 0.3}, {"dtype": "float64"}, {"where": where}):
        options |= {"ignore_index": -100, "reduction": "none", "backend": backend}
        expected = lsm.cross_entropy(x, targets, **options)
        masks = options.pop("where", None)
        given = {name: value for name, value in options.items() if name in ("temperature", "backend")}
        p = partials_of(x, [0, SLICE, 2 * SLICE], where=masks, **given)
        total = np.zeros_like(expected)
        for first, part in parts_of(x, [0, SLICE, 2 * SLICE]):
            mask = None if masks is None else masks[:, first : first + part.shape[1]]
            y = lsm.cross_entropy(part, targets, partials=p, first_class=first, n_classes=n, where=mask, **options)
            assert y.dtype == expected.dtype and not np.signbit(y).any()
            total += y
        same(total, expected)
    short = lsm.cross_entropy(x[:, :9], targets % 9, reduction="none", backend=backend)
    p = lsm.partials(x[:, :9], backend=backend)
    same(lsm.cross_entropy(x[:, :9], targets % 9, reduction="none", partials=p, backend=backend), short)
