"""top_k_log_softmax: which classes, in which order, with the bits of log_softmax; on every backend."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lsm


def expected_order(x, mask=None):
    """By sorting pairs: masked classes last, NaN first, then descending, then by index."""
    mask = np.ones(x.shape, bool) if mask is None else mask
    order = []
    for row, part in zip(x.astype(np.longdouble), mask, strict=True):
        keys = [(0, not np.isnan(v), 0 if np.isnan(v) else -v) if p else (1,) for v, p in zip(row, part, strict=True)]
        order.append(sorted(range(len(row)), key=keys.__getitem__))  # stable
    return np.array(order)


def check(x, k, backend=None, **options):
    order = expected_order(x, options.get("where"))[:, :k]
    found = lsm.top_k_log_softmax(x, k, **options, backend=backend)
    y = lsm.log_softmax(x, **options, backend=backend)
    assert found.indices.dtype == np.int64 and found.values.dtype == y.dtype
    np.testing.assert_array_equal(found.indices, order)
    expected = np.take_along_axis(y, order, 1).astype(np.longdouble)  # NumPy takes NaN of bfloat16 for different
    np.testing.assert_array_equal(found.values.astype(np.longdouble), expected)


@pytest.mark.parametrize("n", [1, 5, 300, 6000])
def test_the_largest_in_order(backend, dtype, n, rng):
    x = (rng.standard_normal((3, n)) * 4).astype(dtype)
    for k in {1, min(n, 20), n // 2, n}:
        check(x, k, backend)


def test_ties_go_by_index(backend, dtype, rng):
    x = rng.integers(-2, 3, (5, 200)).astype(dtype)
    x[0] = 0
    x[1, ::2], x[1, 1::2] = 0.0, -0.0  # equal
    for k in (1, 2, 7, 100, 200):
        check(x, k, backend)


def test_special_values_in_order(backend, dtype):
    nan, inf = np.nan, np.inf
    x = np.array(
        [
            [1, nan, inf, -nan, 2, nan],
            [1, inf, 3, inf, -inf, 0],
            [-inf] * 6,
            [-inf, 5, -inf, 5, -inf, 4],
            [nan] * 6,
        ]
    ).astype(dtype)
    for k in range(7):
        check(x, k, backend)
    assert np.isnan(lsm.top_k_log_softmax(x, 2, backend=backend).values[:3].astype(float)).all()


def test_masked_classes_come_last(backend, dtype, rng):
    x = rng.integers(-2, 3, (6, 50)).astype(dtype)
    x[1, :40] = -np.inf
    x[2, 3] = np.nan
    where = rng.random(x.shape) < 0.5
    where[0] = False
    where[2, 3] = False
    for k in (1, 3, 30, 50):
        check(x, k, backend, where=where)
    check(x[3:], 5, backend, temperature=0.3)
    values, indices = lsm.top_k_log_softmax(x, 4, where=where, backend=backend)
    assert (values[0] == -np.inf).all() and indices[0].tolist() == [0, 1, 2, 3]


def test_axes_and_blocks(backend, rng):
    x = rng.standard_normal((700, 300)).astype(np.float32)
    whole = lsm.top_k_log_softmax(x, 5, backend=backend)
    for view, axis in ((x.T, 0), (np.asfortranarray(x), 1), (x[:, None], -1)):
        part = lsm.top_k_log_softmax(view, 5, axis, backend=backend)
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_array_equal((a.T if axis == 0 else a).reshape(700, 5), b)
    cube = lsm.top_k_log_softmax(x.reshape(7, 100, 300).swapaxes(1, 2), 5, 1, backend=backend)
    np.testing.assert_array_equal(cube.indices.swapaxes(1, 2).reshape(700, 5), whole.indices)


def test_scalars_and_empty_arrays(backend):
    values, indices = lsm.top_k_log_softmax(3.0, 1, backend=backend)
    assert values.tolist() == [0] and indices.tolist() == [0]
    assert lsm.top_k_log_softmax(np.empty((0, 3)), 2, backend=backend).values.shape == (0, 2)
    assert lsm.top_k_log_softmax(np.empty((2, 0)), 0, backend=backend).indices.shape == (2, 0)
    assert lsm.top_k_log_softmax([1, 2], 1, None, backend=backend).indices == [1]


def test_near_0_the_value_keeps_its_digits(backend):
    values, _ = lsm.top_k_log_softmax(np.array([0.0, 20.0], np.float32), 1, backend=backend)
    assert values == np.float32(-2.0611537e-09)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (4, ValueError, "^k: 4; accepted: from 0 to 3, the number of classes"),
        (-1, ValueError, "^k: -1"),
        (1.0, TypeError, "^k: 1.0 is a float"),
        (True, TypeError, "^k: True is a bool"),
        ("1", TypeError, "^k: '1'"),
    ],
)
def test_k_that_is_refused(backend, k, error, message):
    with pytest.raises(error, match=message):
        lsm.top_k_log_softmax([1, 2, 3], k, backend=backend)


def test_integers_and_no_bool(backend):
    for k in (np.int8(2), np.array(2)):
        check(np.zeros((1, 3)), k, backend)
    for k in (np.True_, np.array(True)):
        with pytest.raises(TypeError, match="^k: "):
            lsm.top_k_log_softmax([1, 2, 3], k, backend=backend)
        with pytest.raises(TypeError, match="^ignore_index: "):
            lsm.cross_entropy([1, 2, 3], 0, ignore_index=k, backend=backend)
        with pytest.raises(TypeError, match="^axis: "):
            lsm.entropy(np.zeros((2, 3)), axis=k, backend=backend)


def test_axes_that_are_refused(backend):
    for axis in ((0, 1), None):
        with pytest.raises(TypeError, match="^axis: "):
            lsm.top_k_log_softmax(np.zeros((2, 3)), 1, axis, backend=backend)
    with pytest.raises(ValueError, match="^k: 1"):
        lsm.top_k_log_softmax(np.empty((2, 0)), 1, backend=backend)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, -np.inf, np.inf, np.nan]), min_size=1, max_size=12), st.data())
def test_any_values(values, data):
    x = np.array([values], data.draw(st.sampled_from([np.float16, np.float32, np.float64])))
    where = np.array([data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))])
    k = data.draw(st.integers(0, len(values)))
    check(x, k)
    check(x, k, where=where)


@pytest.mark.parametrize("n", [130, 8192, 20_000])
def test_many_classes(n, backend, dtype, rng):
    """Ties, ascending and descending order, and a NaN, on any axis."""
    x = np.round(rng.standard_normal((4, n)) * 8).astype(dtype)
    x[1].sort()
    x[2] = np.sort(x[2])[::-1]
    x[3, n // 2] = np.nan
    for k in (2, 100, 128, 129):
        check(x, k, backend)
        whole = lsm.top_k_log_softmax(x, k, backend=backend)
        columns = lsm.top_k_log_softmax(x.T.copy(), k, 0, backend=backend)
        np.testing.assert_array_equal(columns.indices.T, whole.indices)
        np.testing.assert_array_equal(columns.values.T.astype(np.longdouble), whole.values.astype(np.longdouble))


def test_no_order_of_the_logits_takes_long(rng):
    """By insertion alone, ascending logits took 30 times as long as random ones."""
    x = rng.standard_normal((1, 500_000)).astype(np.float32)

    def least_time(row):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            lsm.top_k_log_softmax(row, 128)
            times.append(time.perf_counter() - start)
        return min(times)

    usual = least_time(x)
    for row in (np.sort(x), np.sort(x)[:, ::-1].copy(), np.zeros_like(x)):
        assert least_time(row) < 10 * usual
