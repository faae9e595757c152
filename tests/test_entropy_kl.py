"""entropy and kl_divergence: against mpmath, and what special frames give; on every backend."""

import warnings

import family_oracle as exact
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lsm
from lsm._check import np_dtype

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("n", [2, 33])
def test_entropy(backend, dtype, n, rng):
    x = exact.frames(rng, n).astype(dtype)
    for temperature in (1.0, 0.7):
        result = lsm.entropy(x, temperature=temperature, backend=backend)
        assert result.dtype == (np.float32 if dtype.itemsize == 2 else dtype)
        expected = np.array([exact.entropy(frame, temperature) for frame in x])
        assert exact.ulps(result, expected).max() <= 4
        if dtype.itemsize == 2:
            narrow = lsm.entropy(x, temperature=temperature, dtype=dtype, backend=backend)
            assert exact.ulps(narrow, expected).max() <= 0.501


def test_the_gradients_are_the_documented_formulas(rng):
    x, other, step, t = rng.standard_normal(5), rng.standard_normal(5), 1e-6, 0.7
    p, q = lsm.softmax(other, temperature=t), lsm.softmax(x, temperature=t)
    for function, gradient in (
        (lambda z: lsm.entropy(z, temperature=t), -q * (np.log(q) + lsm.entropy(x, temperature=t)) / t),
        (lambda z: lsm.kl_divergence(other, z, temperature=t), (q - p) / t),
    ):
        found = [(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(5)]
        np.testing.assert_allclose(found, gradient, atol=1e-8)


@pytest.mark.parametrize("distance", [10, 1, 1e-4, 1e-10])
@pytest.mark.parametrize("n", [2, 33])
def test_kl_divergence(backend, dtype, n, distance, rng):
    x = exact.frames(rng, n)
    y = (x + distance * rng.standard_normal(x.shape)).astype(dtype)
    x = x.astype(dtype)
    for temperature in (1.0, 0.7):
        result = lsm.kl_divergence(x, y, temperature=temperature, backend=backend)
        assert result.dtype == (np.float32 if dtype.itemsize == 2 else dtype) and (result >= 0).all()
        expected = np.array([exact.kl_divergence(*pair, temperature) for pair in zip(x, y, strict=True)])
        assert exact.ulps(result, expected).max() <= (4 if dtype.itemsize <= 4 else 8)


def test_what_peers_lose(backend, rng):
    """Rows of the table of promises."""
    assert lsm.entropy(np.array([20, 0], np.float32), backend=backend) == np.float32(4.3284226e-08)
    x = rng.standard_normal((3, 1000)).astype(np.float32)
    y = x + np.float32(1e-4) * rng.standard_normal((3, 1000)).astype(np.float32)
    result = lsm.kl_divergence(x, y, backend=backend)
    wide = lsm.kl_divergence(x.astype(np.float64), y.astype(np.float64), backend=backend)
    np.testing.assert_array_equal(result, wide.astype(np.float32))


def test_entropy_of_one_class_is_plus_0(backend, dtype):
    for x in ([[5.0]], [[5.0, -INF]], [[0.0, -60000.0]], [[-INF, 3.0, -INF]]):
        result = lsm.entropy(np.array(x).astype(dtype), backend=backend)
        assert result[0] == 0 and not np.signbit(result[0])


def test_equal_logits_have_no_divergence(backend, dtype, rng):
    x = (rng.standard_normal((20, 33)) * 9).astype(dtype)
    x[3, 5] = -INF
    for temperature in (1.0, 0.3):
        assert (lsm.kl_divergence(x, x, temperature=temperature, backend=backend) == 0).all()


def test_special_frames(backend, dtype):
    x = np.array([[NAN, 0], [INF, 0], [-INF, -INF], [-INF, 0], [0, 0]]).astype(dtype)
    zero = np.zeros_like(x)
    np.testing.assert_array_equal(lsm.entropy(x, backend=backend)[:4], [NAN, NAN, NAN, 0])
    np.testing.assert_allclose(lsm.kl_divergence(x, zero, backend=backend), [NAN, NAN, NAN, np.log(2), 0], rtol=1e-6)
    np.testing.assert_array_equal(lsm.kl_divergence(zero, x, backend=backend), [NAN, NAN, NAN, INF, 0])


def test_masked_classes(backend, rng):
    p, q = rng.standard_normal((2, 30, 40))
    where = rng.random((30, 40)) < 0.5
    where[4] = False
    kept = [np.where(where, x, NAN) for x in (p, q)]
    cut = [np.where(where, x, -INF) for x in (p, q)]
    cut[0][4] = cut[1][4] = 0
    for function, n in ((lsm.entropy, 1), (lsm.kl_divergence, 2)):
        masked = function(*kept[:n], where=where, backend=backend)
        expected = function(*cut[:n], backend=backend)
        np.testing.assert_array_equal(np.delete(masked, 4), np.delete(expected, 4))
        assert masked[4] == 0
    only_in_p = cut[0][0].copy()
    y, z = (lsm.log_softmax(x)[where[0]] for x in (only_in_p, q[0]))
    expected = np.sum(np.exp(y) * (y - z))
    np.testing.assert_allclose(lsm.kl_divergence(only_in_p, q[0], backend=backend), expected, rtol=1e-12)
    assert lsm.kl_divergence(q[0], only_in_p, backend=backend) == INF


def test_shapes(backend, rng):
    x, y = rng.standard_normal((2, 3, 4, 5))
    for axis, shape in ((0, (4, 5)), (1, (3, 5)), (-1, (3, 4)), ((0, 2), (4,)), (None, ()), ((), (3, 4, 5))):
        for function, arrays in ((lsm.entropy, (x,)), (lsm.kl_divergence, (x, y))):
            assert np.shape(function(*arrays, axis, backend=backend)) == shape
    merged = lsm.entropy(x.transpose(1, 0, 2).reshape(4, 15), backend=backend)
    np.testing.assert_array_equal(lsm.entropy(x, (0, 2), backend=backend), merged)
    assert lsm.entropy(np.empty((2, 0)), backend=backend).tolist() == [0, 0]
    assert lsm.kl_divergence(np.empty((2, 0)), np.empty((2, 0)), backend=backend).tolist() == [0, 0]
    assert lsm.entropy(np.empty((0, 2)), backend=backend).shape == (0,)
    assert type(lsm.entropy(3.0, backend=backend)) is np.float64 and lsm.entropy([1, 1], backend=backend) == np.log(2)
    assert lsm.kl_divergence(1, 2, backend=backend) == 0


@pytest.mark.parametrize("n", [1, 5, 33, 700])
def test_a_frame_has_the_same_bits_everywhere(backend, dtype, n, rng):
    x, y = (rng.standard_normal((2, 150, n)) * 4).astype(dtype)
    for function, arrays in ((lsm.entropy, (x,)), (lsm.kl_divergence, (x, y))):
        whole = function(*arrays, backend=backend)
        for i in (0, 77, 149):
            assert function(*[a[i] for a in arrays], backend=backend) == whole[i]
        np.testing.assert_array_equal(function(*[a.T.copy() for a in arrays], 0, backend=backend), whole)
        np.testing.assert_array_equal(function(*[a.reshape(3, 50, n) for a in arrays], backend=backend).ravel(), whole)


def test_dtypes_are_promoted(backend):
    x = np.zeros((2, 3), np.float16)
    assert lsm.kl_divergence(x, x.astype(np.float64), backend=backend).dtype == np.float64
    assert lsm.kl_divergence(x, x.astype(int), backend=backend).dtype == np.float64
    assert lsm.kl_divergence(x, x, dtype="float16", backend=backend).dtype == np.float16


def test_arguments_that_are_refused(backend):
    with pytest.raises(ValueError, match=r"^p_logits, q_logits: shapes \(3,\) and \(2,\) differ"):
        lsm.kl_divergence(np.zeros(3), np.zeros(2), backend=backend)
    with pytest.raises(TypeError, match="^q_logits: "):
        lsm.kl_divergence(np.zeros(3), np.zeros(3, complex), backend=backend)
    with pytest.raises(TypeError, match="^x: "):
        lsm.entropy(np.zeros(3, complex), backend=backend)
    with pytest.raises(ValueError, match="^temperature: -1"):
        lsm.entropy(np.zeros(3), temperature=-1, backend=backend)


def test_no_warnings(backend, dtype):
    values = np.array([NAN, INF, -INF, 0, 6e4, -6e4, 1e-7, -0.0])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        lsm.entropy(x, backend=backend)
        lsm.kl_divergence(x, x[::-1], backend=backend)


@given(st.lists(st.tuples(st.floats(-700, 700), st.floats(-700, 700)), min_size=1, max_size=8))
def test_no_divergence_and_no_entropy_is_negative(pairs):
    x, y = np.array(pairs).T
    assert 0 <= lsm.entropy(x) <= np.log(len(x)) * (1 + 1e-15)
    assert lsm.kl_divergence(x, y) >= 0
    assert lsm.kl_divergence(x, x) == 0


@pytest.mark.parametrize("n", [2, 17, 127, 128, 129, 700, 4000, 8191, 8193, 20_000])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_kernels_agree_with_the_reference(n, dtype, rng):
    """In every layout, masked or not, at any temperature and with any number of threads."""
    shape = (6, n, 5) if n < 1000 else (2, n, 3)
    x, y = (rng.standard_normal((2, *shape)) * 4).astype(np_dtype(dtype))
    x[0, n // 2, 0], y[0, 0, 1] = -INF, -INF
    where = rng.random(shape) < 0.7
    where[0, 0] = True
    for mask, temperature in ((None, 1.0), (None, 0.3), (where, 1.0), (where, 7.0)):
        for function, arrays in ((lsm.entropy, (x,)), (lsm.kl_divergence, (x, y))):

            def call(move, axis, function=function, arrays=arrays, mask=mask, temperature=temperature, **options):
                moved = None if mask is None else move(mask)
                return function(*map(move, arrays), axis, where=moved, temperature=temperature, **options)

            expected, result = call(np.copy, 1, backend="numpy"), call(np.copy, 1)
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(np.isfinite(result), finite)
            assert exact.ulps(result[finite], expected[finite].astype(np.float64)).max() <= 1
            with lsm.num_threads(1):
                rows = call(lambda a: np.moveaxis(a, 1, -1).copy(), -1)
            strided = call(lambda a: np.repeat(np.moveaxis(a, 1, 0), 2, axis=0)[::2], 0)
            np.testing.assert_array_equal(rows, result)
            np.testing.assert_array_equal(strided, result)


def test_logits_far_apart_keep_their_own_differences(backend):
    """Rows that are masked by the lowest number, or have a common offset."""
    low = np.finfo(np.float32).min
    rows = [[0, 0.5], [low, low], [1e9, 1e9], [0, 1e-3], [-3e38, low]]
    for p in rows:
        for q in rows:
            x, y = np.array([[p], [q]], np.float32)
            for temperature in (1.0, 1e-8, 30.0):
                result = lsm.kl_divergence(x, y, temperature=temperature, backend=backend)
                wide = [a.astype(np.float64) - a.max() for a in (x, y)]  # exact
                with np.errstate(over="ignore"):
                    expected = lsm.kl_divergence(*wide, temperature=temperature, backend=backend).astype(np.float32)
                np.testing.assert_array_max_ulp(result, expected, 1)


def test_a_result_of_more_digits_has_them(backend, rng):
    x, y = (rng.standard_normal((2, 3, 3000)) * 9).astype(np.float32)
    for function, arrays in ((lsm.entropy, (x,)), (lsm.kl_divergence, (x, y)), (lsm.kl_divergence, (x, x + y / 1e4))):
        result = function(*arrays, dtype="float64", backend=backend)
        np.testing.assert_array_equal(result, function(*[a.astype(np.float64) for a in arrays], backend=backend))
