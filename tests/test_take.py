"""take_log_softmax: the bits of log_softmax at the indices, on every backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lsm


def logits(rng, shape, dtype=np.float32):
    return (rng.standard_normal(shape) * 4).astype(dtype)


def same(result, expected):
    """The same bits, dtype and shape; NaN equals NaN."""
    assert result.dtype == expected.dtype and result.shape == expected.shape
    np.testing.assert_array_equal(result.astype(np.longdouble), expected.astype(np.longdouble))


@pytest.mark.parametrize("n", [1, 33, 300])
def test_it_is_log_softmax_at_the_indices(backend, dtype, n, rng):
    x = logits(rng, (3, n, 5), dtype)
    for axis in (0, 1, 2, -2):
        y = lsm.log_softmax(x, axis, backend=backend)
        m = x.shape[axis]
        one = rng.integers(0, m, [k for i, k in enumerate(x.shape) if i != axis % 3])
        expected = np.take_along_axis(y, np.expand_dims(one, axis), axis).squeeze(axis)
        same(lsm.take_log_softmax(x, one, axis, backend=backend), expected)
        several = rng.integers(0, m, [4 if i == axis % 3 else k for i, k in enumerate(x.shape)])
        same(lsm.take_log_softmax(x, several, axis, backend=backend), np.take_along_axis(y, several, axis))
        shared = rng.integers(0, m, [2 if i == axis % 3 else 1 for i in range(3)])
        everywhere = np.broadcast_to(shared, [2 if i == axis % 3 else k for i, k in enumerate(x.shape)])
        same(lsm.take_log_softmax(x, shared, axis, backend=backend), np.take_along_axis(y, everywhere, axis))


def test_blocks_and_layouts_do_not_show(backend, rng):
    x = logits(rng, (600, 300))  # more than one block
    t = rng.integers(0, 300, 600)
    expected = lsm.log_softmax(x, backend=backend)[np.arange(600), t]
    for view in (x, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x.astype(">f4"), x[::-1][::-1]):
        same(lsm.take_log_softmax(view, t, backend=backend), expected)
    same(lsm.take_log_softmax(x.T, t, 0, backend=backend), expected)
    out = np.zeros((600, 2), np.float32)[:, 0]
    assert lsm.take_log_softmax(x, t, out=out, backend=backend) is out
    same(out, expected)
    memory = x.copy()
    assert (lsm.take_log_softmax(memory, t, out=memory[:, 7], backend=backend) == expected).all()


def test_dtypes(backend, rng):
    x = logits(rng, (4, 9), np.float16)
    t = rng.integers(0, 9, 4)
    wide = lsm.take_log_softmax(x, t, dtype="float32", backend=backend)
    same(wide, lsm.log_softmax(x, dtype="float32", backend=backend)[np.arange(4), t])
    for kind in (np.int8, np.uint8, np.uint64, ">i4"):
        same(lsm.take_log_softmax(x, t.astype(kind), dtype="float32", backend=backend), wide)
    assert lsm.take_log_softmax(np.array([[100, -100]], np.int8), [1], backend=backend) == [-200]


def test_scalars_and_empty_arrays(backend):
    assert type(lsm.take_log_softmax(3.0, 0, backend=backend)) is np.float64
    assert lsm.take_log_softmax(3.0, 0, backend=backend) == 0
    assert type(lsm.take_log_softmax([1.0, 1.0], 1, backend=backend)) is np.float64
    assert lsm.take_log_softmax([1.0, 1.0], [1, 0], None, backend=backend).shape == (2,)
    assert lsm.take_log_softmax(np.empty((0, 3)), [], backend=backend).shape == (0,)
    assert lsm.take_log_softmax(np.empty((2, 0)), np.empty((2, 0), int), backend=backend).shape == (2, 0)
    with pytest.raises(IndexError, match="no classes"):
        lsm.take_log_softmax(np.empty((2, 0)), [0, 0], backend=backend)


def test_special_frames(backend):
    nan, inf = np.nan, np.inf
    x = np.array([[nan, 0, 1], [inf, 0, 1], [-inf, -inf, -inf], [0, -inf, 0]])
    y = lsm.take_log_softmax(x, [1, 1, 0, 1], backend=backend)
    np.testing.assert_array_equal(y, [nan, nan, nan, -inf])


def test_masks_and_temperatures(backend, dtype, rng):
    x = logits(rng, (40, 37), dtype)
    x[3, 4] = np.nan
    where = rng.random(x.shape) < 0.7
    where[5] = False
    t = rng.integers(0, 37, (40, 6))
    for options in ({"where": where}, {"where": where[:, :1]}, {"temperature": 0.7}, {"temperature": 1 + where[:, :1]}):
        y = lsm.log_softmax(x, **options, backend=backend)
        same(lsm.take_log_softmax(x, t, **options, backend=backend), np.take_along_axis(y, t, 1))
    assert (lsm.take_log_softmax(x, t, where=where, backend=backend)[5] == -np.inf).all()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 1], [2, 9]], r"^indices: 9 at \[1, 1\]; accepted: 0 to 4; pass numpy.where"),
        ([[0, -1], [2, 3]], r"^indices: -1 at \[0, 1\]; accepted: 0 to 4"),
        (np.array([[2**63, 1], [2, 3]], np.uint64), r"^indices: 9223372036854775808 at \[0, 0\]"),
    ],
)
def test_indices_out_of_range(backend, indices, message):
    out = np.full((2, 2), 7.0)
    with pytest.raises(IndexError, match=message):
        lsm.take_log_softmax(np.zeros((2, 5)), indices, out=out, backend=backend)
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("indices", "axis", "error", "message"),
    [
        ([0.0, 1.0], -1, TypeError, "^indices: dtype float64; accepted: integers"),
        ([True, False], -1, TypeError, "^indices: dtype bool"),
        (np.ma.masked_array([1, 2], [True, False]), -1, TypeError, "^indices: "),
        ([0, 1], (0, 1), TypeError, "^axis: "),
        ([0, 1], None, TypeError, "^axis: None"),
        ([0, 1, 2], -1, ValueError, r"^indices: shape \(3,\); accepted for x of shape \(2, 5\): \(2,\), one class"),
        ([[0], [1], [2]], -1, ValueError, r"^indices: shape \(3, 1\); .*\(2, n\)"),
        (np.zeros((2, 5, 1), int), -1, ValueError, "^indices: shape"),
    ],
)
def test_indices_that_are_refused(backend, indices, axis, error, message):
    with pytest.raises(error, match=message):
        lsm.take_log_softmax(np.zeros((2, 5)), indices, axis, backend=backend)


def test_the_out_is_checked(backend):
    with pytest.raises(ValueError, match=r"^out: has shape \(3,\)"):
        lsm.take_log_softmax(np.zeros((2, 5)), [0, 0], out=np.empty(3), backend=backend)
    with pytest.raises(TypeError, match="^out: has dtype float32"):
        lsm.take_log_softmax(np.zeros((2, 5)), [0, 0], out=np.empty(2, np.float32), backend=backend)


@given(st.data())
def test_any_shapes(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    t = rng.integers(0, shape[axis], [data.draw(st.integers(0, 3)) if i == axis else n for i, n in enumerate(shape)])
    same(lsm.take_log_softmax(x, t, axis), np.take_along_axis(lsm.log_softmax(x, axis), t, axis))


def test_small_matrices_have_the_same_bits(backend, dtype, rng):
    """They take a shorter way, which out= does not."""
    x = (rng.standard_normal((17, 9)) * 3).astype(dtype)
    x[3, 4] = np.nan
    indices = rng.integers(0, 9, 17)
    lsm.log_softmax(x, backend=backend)  # the first call has no shorter way
    for array in (x, np.asfortranarray(x), x[::-1]):
        expected = lsm.take_log_softmax(array, indices, out=np.empty(17, dtype), backend=backend)
        found = lsm.take_log_softmax(array, indices, backend=backend)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))
        for i in (-1, 9, 2**40):
            wrong = np.where(np.arange(17) == 5, i, indices)
            with pytest.raises(IndexError, match="indices: "):
                lsm.take_log_softmax(array, wrong, backend=backend)
