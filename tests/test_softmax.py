"""softmax: what it gives, on every backend that has it."""

import warnings

import numpy as np
import oracle
import pytest
from test_accuracy import KINDS, bound, frames

import lsm
from conftest import DTYPES

pytestmark = pytest.mark.operation("softmax")
N_CLASSES = (1, 2, 3, 10, 33, 64, 65, 256, 257, 1000, 4097, 16385)


# -- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_within_the_bound(backend, dtype, kind, rng):
    for n in N_CLASSES:
        x = frames(kind, (max(1, min(100, 10000 // n)), n), dtype, rng)
        p = lsm.softmax(x, backend=backend)
        exact = oracle.softmax(x)
        if dtype.char == "g":  # the oracle is no wider than the result: ask mpmath, for two frames
            if n > 65:
                break
            p = p[:2]
            exact = np.stack([oracle.softmax_mp(frame) for frame in x[:2]])
        assert oracle.ulps(p, exact) <= bound(dtype), n


def test_the_oracle_against_mpmath(rng):
    for scale, lead in ((3, 0), (3, 20), (3, 90), (100, 0), (0.1, 700)):
        x = rng.standard_normal(50) * scale
        x[7] = x.max() + lead
        exact = oracle.softmax(x)
        off = np.abs(exact - oracle.softmax_mp(x)) / oracle.spacing(exact, np.float64)
        assert off.max() < 0.01


def test_subnormal_probabilities_keep_their_digits(backend, rng):
    for dtype, scale in ((np.float32, 30), (np.float64, 220)):
        x = (rng.standard_normal((20, 1000)) * scale).astype(dtype)
        p = lsm.softmax(x, backend=backend)
        is_subnormal = (p > 0) & (p < np.finfo(dtype).smallest_normal)
        assert is_subnormal.sum() > 20
        assert oracle.ulps(p, oracle.softmax(x)) <= 4


@pytest.mark.parametrize("result", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32", "float64"])
def test_every_combination_of_dtypes(backend, given, result, rng):
    given, result = DTYPES[given], DTYPES[result]
    for kind in KINDS:
        x = frames(kind, (10, 65), given, rng)
        p = lsm.softmax(x, dtype=result, backend=backend)
        assert p.dtype == result
        assert oracle.ulps(p, oracle.softmax(x)) <= (0.501 if result.itemsize < max(4, given.itemsize) else 4)


# -- what users meet elsewhere --------------------------------------------------------------------------------------


def test_integers_do_not_wrap_around(backend):
    p = lsm.softmax(np.array([100, -100], np.int8), backend=backend)  # SciPy: [0, nan]
    assert p.dtype == np.float64 and p[0] == 1
    assert oracle.ulps(p, oracle.softmax(np.array([100.0, -100.0]))) <= 4
    assert lsm.softmax([True, False], backend=backend).dtype == np.float64


def test_far_from_0_it_is_the_gradient_of_logsumexp(backend):
    p = lsm.softmax(np.array([1e8, 1e8], np.float32), backend=backend)  # PyTorch's gradient of logsumexp: [1, 1]
    assert (p == 0.5).all()


def test_sixteen_bits_do_not_overflow(backend):
    for name in ("float16", "bfloat16"):
        p = lsm.softmax(np.zeros(65_537, DTYPES[name]), backend=backend)
        assert (p == np.float64(1 / 65_537).astype(DTYPES[name])).all()


# -- semantics ------------------------------------------------------------------------------------------------------


def test_masked_classes_give_0(backend, dtype):
    x = np.array([[0, -np.inf, 0], [-np.inf, 5, -np.inf]], dtype)
    np.testing.assert_array_equal(lsm.softmax(x, backend=backend).astype(float), [[0.5, 0, 0.5], [0, 1, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_frame_that_is_spoiled(backend, dtype, bad):
    x = np.zeros((3, 5), dtype)
    x[1, 2] = bad
    if bad == -np.inf:
        x[1] = bad
    p = lsm.softmax(x, backend=backend).astype(float)
    assert np.isnan(p[1]).all()
    np.testing.assert_array_equal(p[::2], np.array(0.2, dtype).astype(float))


def test_empty_scalar_and_one_class(backend, dtype):
    for shape in ((0,), (2, 0), (0, 3)):
        for axis in (*range(len(shape)), None):
            p = lsm.softmax(np.empty(shape, dtype), axis, backend=backend)
            assert p.shape == shape and p.dtype == dtype
    one = lsm.softmax(dtype.type(3), backend=backend)
    assert type(one) is dtype.type and one == 1
    assert (lsm.softmax(np.zeros((3, 1), dtype), backend=backend) == 1).all()


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 1), None, ()])
def test_axis_out_and_in_place(backend, axis, rng):
    x = rng.standard_normal((3, 4, 5))
    p = lsm.softmax(x, axis, backend=backend)
    e = np.exp(x)
    total = e.sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(p, e / total, rtol=1e-14)
    out = np.full_like(x, 7)
    assert lsm.softmax(x, axis, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, p)
    assert lsm.softmax(x, axis, out=x, backend=backend) is x
    np.testing.assert_array_equal(x, p)


def test_in_place_in_many_blocks(backend, rng):
    """The backend numpy computes in blocks."""
    for shape, axis in (((300, 1000), 1), ((1000, 300), 0), ((3, 10, 5000), 1), ((3, 70_000), 1)):
        x = rng.standard_normal(shape).astype(np.float32)
        p = lsm.softmax(x.copy(), axis, backend=backend)
        np.testing.assert_allclose(p.sum(axis=axis), 1, rtol=1e-4)
        np.testing.assert_array_equal(lsm.softmax(x, axis, out=x, backend=backend), p)


def test_no_warnings(backend, dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7, -0.0])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        lsm.softmax(x, backend=backend)


def test_options_are_checked_first(backend):
    out = np.full(2, 7.0)
    for wrong in (0, -1, np.inf, np.nan, "hot", None, [1, 2]):
        with pytest.raises(ValueError, match="^temperature: .*; accepted: a finite number above 0"):
            lsm.softmax([1.0, 2.0], temperature=wrong, out=out, backend=backend)
    with pytest.raises(TypeError, match="^where: "):
        lsm.softmax(np.ones(2), where=[1, 0], out=out, backend=backend)
    assert (out == 7).all()
    for one in (1, 1.0, np.float32(1), np.ones(())):
        assert (lsm.softmax([3.0, 3.0], temperature=one, backend=backend) == 0.5).all()


def test_types_that_are_refused(backend):
    for x in (np.zeros(3, complex), np.ma.masked_array([1.0, 2.0], [True, False]), ["a"]):
        with pytest.raises(TypeError, match="^x: "):
            lsm.softmax(x, backend=backend)


# -- same bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 257, 1000, 2049, 16385, 20000, 40000])
def test_a_frame_has_the_same_bits_everywhere(backend, dtype, n, rng):
    n_frames = 40 if n < 20000 else 6
    x = (rng.standard_normal((n_frames, n)) * 4).astype(dtype)
    p = lsm.softmax(x, backend=backend)
    for i in (0, 1, n_frames - 1):
        np.testing.assert_array_equal(lsm.softmax(x[i].copy(), backend=backend), p[i])
    for part in (slice(0, 2), slice(1, 5), slice(3, 39)):
        np.testing.assert_array_equal(lsm.softmax(x[part], backend=backend), p[part])
    np.testing.assert_array_equal(lsm.softmax(x.T.copy(), 0, backend=backend).T, p)
    middle = x.reshape(2, -1, n).swapaxes(1, 2).copy()
    np.testing.assert_array_equal(lsm.softmax(middle, 1, backend=backend).swapaxes(1, 2).reshape(x.shape), p)
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(lsm.softmax(wide, out=wide, backend=backend), p)
