"""The gradient of softmax: what it gives, on every backend that has it."""

import warnings

import numpy as np
import oracle
import pytest
from test_accuracy import KINDS, bound, frames

import lsm
from conftest import DTYPES

pytestmark = pytest.mark.operation("softmax_backward")
N_CLASSES = (1, 2, 3, 10, 33, 64, 65, 256, 257, 1000, 4097, 16385)


def probabilities(x):
    """The softmax of x in the dtype of x, whatever backend is tested."""
    return lsm.softmax(x, backend="numpy")


# -- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_within_the_bound(backend, dtype, kind, rng):
    for n in N_CLASSES:
        x = frames(kind, (max(1, min(100, 10000 // n)), n), dtype, rng)
        p, dy = probabilities(x), rng.standard_normal(x.shape).astype(dtype)
        dx = lsm.softmax_backward(dy, p, backend=backend)
        exact, at = oracle.softmax_backward(dy, p)
        if dtype.char == "g":  # the oracle is no wider than the result: ask mpmath, for two frames
            if n > 65:
                break
            dx, at = dx[:2], at[:2]
            exact = np.stack([oracle.softmax_backward_mp(*frame) for frame in zip(dy[:2], p[:2], strict=True)])
        assert oracle.ulps(dx, exact, at) <= bound(dtype), n


def test_the_oracle_against_mpmath(rng):
    for scale, lead in ((3, 0), (3, 20), (3, 90), (100, 0), (0.1, 700)):
        x = rng.standard_normal(50) * scale
        x[7] = x.max() + lead
        p, dy = probabilities(x), rng.standard_normal(50)
        exact, at = oracle.softmax_backward(dy, p)
        off = np.abs(exact - oracle.softmax_backward_mp(dy, p)) / oracle.spacing(at, np.float64)
        assert off.max() < 0.01


def test_confident_frames_keep_their_gradient(backend, rng):
    """With one label, the error counts in ulps of the result itself."""
    for dtype in (np.float32, np.float64):
        x = (rng.standard_normal((500, 1000)) * 1.5).astype(dtype)
        k = rng.integers(0, 1000, (500, 1))
        np.put_along_axis(x, k, np.float64(x.max()) + rng.uniform(5, 80, (500, 1)), axis=-1)
        p, dy = probabilities(x), np.zeros_like(x)
        np.put_along_axis(dy, k, -1, axis=-1)
        dx = lsm.softmax_backward(dy, p, backend=backend)
        assert (np.take_along_axis(dx, k, axis=-1) < 0).all()
        assert oracle.ulps(dx, oracle.softmax_backward(dy, p)[0]) <= 4


def test_it_does_not_vanish_where_others_do(backend):
    p = np.array([1, 2.0611537e-09], np.float32)  # PyTorch and JAX give 0 at the first
    dx = lsm.softmax_backward(np.array([-1, 0], np.float32), p, backend=backend)
    np.testing.assert_array_equal(dx, np.array([-2.0611537e-09, 2.0611537e-09], np.float32))


@pytest.mark.parametrize("n", [33, 1000])
@pytest.mark.parametrize("inner", [1, 5, 40])
def test_gradients_of_every_magnitude(backend, n, inner):
    """At the ends of the range, the differences of two dy overflow, or their products are subnormal."""
    for dtype, scales in (
        (np.float32, (1e-44, 1e-30, 1e30, 1.5e38, 3e38)),
        (np.float64, (1e-322, 1e-320, 1e-300, 1e300, 1.5e308)),
    ):
        p = np.tile(probabilities(np.linspace(-3, 3, n).astype(dtype))[:, np.newaxis], inner)
        for scale in scales:
            dy = np.tile((np.linspace(-1, 1, n) * scale).astype(dtype)[:, np.newaxis], inner)
            exact, at = oracle.softmax_backward(dy[:, 0], p[:, 0])
            dx = lsm.softmax_backward(dy, p, axis=0, backend=backend)
            for j in {0, inner - 1}:
                assert oracle.ulps(dx[:, j], exact, at) <= 4, scale


def test_against_finite_differences(backend, rng):
    x, weights = rng.standard_normal((2, 4, 7))
    dx = lsm.softmax_backward(weights, probabilities(x), backend=backend)
    h = 1e-6
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        up, down = (np.sum(weights * probabilities(x + s)) for s in (step, -step))
        assert abs((up - down) / (2 * h) - dx[i]) < 1e-8


def test_the_first_of_several_largest_is_one_minus_the_others(backend):
    """Where the given p does not sum to 1, the rule decides."""
    for dtype in (np.float32, np.float64):
        p, dy = np.array([0.25, 0.25, 0.25], dtype), np.array([1, 2, 4], dtype)
        s = 0.5 * 1 + 0.25 * 2 + 0.25 * 4
        np.testing.assert_array_equal(lsm.softmax_backward(dy, p, backend=backend), 0.25 * (dy - s))


@pytest.mark.parametrize("inner", [1, 3, 5, 20, 40])
@pytest.mark.parametrize("n", [7, 50, 100, 300])
def test_the_first_of_several_largest_wherever_they_are(backend, dtype, n, inner, rng):
    """Three largest p, in lanes and rows of either order; the one with the lowest index counts as the rest to one."""
    p = np.full((n, inner), 1 / 256).astype(dtype)
    dy = (rng.integers(-4, 4, (n, inner)) / 4).astype(dtype)
    for j in range(inner):
        p[rng.permutation(n)[:3], j] = 0.25
    dx = lsm.softmax_backward(dy, p, axis=0, backend=backend)
    wide, slopes = p.astype(np.longdouble), dy.astype(np.longdouble)
    e = slopes - np.take_along_axis(slopes, wide.argmax(axis=0)[np.newaxis], 0)
    expected = wide * (e - (wide * e).sum(axis=0))
    atol = 0 if dtype.itemsize > 2 else 2.0**-9
    np.testing.assert_allclose(dx.astype(np.longdouble), expected, rtol=1e-2 if atol else 1e-5, atol=atol)


# -- semantics ------------------------------------------------------------------------------------------------------


def test_where_p_is_0_the_gradient_is_0(backend, dtype, rng):
    p = np.array([[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]], dtype)
    dx = lsm.softmax_backward(rng.standard_normal((3, 3)).astype(dtype), p, backend=backend)
    assert (dx[p == 0] == 0).all()
    assert (dx[0, ::2] != 0).all()


@pytest.mark.parametrize("n", [1, 5, 70])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_frame_that_is_spoiled(backend, dtype, which, bad, n, rng):
    x = rng.standard_normal((3, n)).astype(dtype)
    inputs = [rng.standard_normal((3, n)).astype(dtype), probabilities(x)]
    clean = lsm.softmax_backward(*inputs, backend=backend)
    for place in {0, n // 2, n - 1, int(x[1].argmax())}:
        spoiled = [a.copy() for a in inputs]
        spoiled[which][1, place] = bad
        dx = lsm.softmax_backward(*spoiled, backend=backend)
        assert np.isnan(dx[1].astype(float)).all()
        np.testing.assert_array_equal(dx[::2], clean[::2])


def test_empty_scalar_and_one_class(backend, dtype):
    for shape in ((0,), (2, 0), (0, 3)):
        for axis in (*range(len(shape)), None):
            a = np.empty(shape, dtype)
            dx = lsm.softmax_backward(a, a, axis, backend=backend)
            assert dx.shape == shape and dx.dtype == dtype
    one = lsm.softmax_backward(dtype.type(3), dtype.type(1), backend=backend)
    assert type(one) is dtype.type and one == 0


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 1), None, ()])
def test_axis_out_and_in_place(backend, axis, rng):
    p, dy = lsm.softmax(rng.standard_normal((3, 4, 5)), axis, backend="numpy"), rng.standard_normal((3, 4, 5))
    dx = lsm.softmax_backward(dy, p, axis, backend=backend)
    np.testing.assert_allclose(dx, p * (dy - (p * dy).sum(axis=axis, keepdims=True)), atol=1e-15)
    for i in (0, 1):
        given = [dy.copy(), p.copy()]
        assert lsm.softmax_backward(*given, axis, out=given[i], backend=backend) is given[i]
        np.testing.assert_array_equal(given[i], dx)


def test_no_warnings(backend, dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7, -0.0, 1])
    dy, p = np.array(np.meshgrid(values, values)).reshape(2, -1, 3).astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        lsm.softmax_backward(dy, p, backend=backend)


def test_what_is_refused(backend):
    good = np.ones(3)
    with pytest.raises(ValueError, match=r"^grad_output, output: shapes \(2, 3\) and \(3,\) differ"):
        lsm.softmax_backward(np.zeros((2, 3)), good, backend=backend)
    with pytest.raises(TypeError, match="^output: "):
        lsm.softmax_backward(good, np.zeros(3, complex), backend=backend)
    with pytest.raises(ValueError, match="^temperature: -1"):
        lsm.softmax_backward(good, good, temperature=-1, backend=backend)
    with pytest.raises(TypeError, match="^where: dtype float64"):
        lsm.softmax_backward(good, good, where=good, backend=backend)


def test_dtypes_promote_as_numpy_does(backend):
    f4, f8 = np.full(3, 0.25, np.float32), np.full(3, 0.25)
    assert lsm.softmax_backward(f4, f8, backend=backend).dtype == np.float64
    assert lsm.softmax_backward([1, 2, 3], f4, backend=backend).dtype == np.float64
    assert lsm.softmax_backward(f4.astype(DTYPES["float16"]), f4, backend=backend).dtype == np.float32


# -- same bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 257, 1000, 2049, 16385, 20000, 40000])
def test_a_frame_has_the_same_bits_everywhere(backend, dtype, n, rng):
    n_frames = 40 if n < 20000 else 6
    p = probabilities((rng.standard_normal((n_frames, n)) * 4).astype(dtype))
    dy = rng.standard_normal((n_frames, n)).astype(dtype)

    def call(dy, p, axis=-1, out=None):
        return lsm.softmax_backward(dy, p, axis, out=out, backend=backend)

    dx = call(dy, p)
    for i in (0, 1, n_frames - 1):
        np.testing.assert_array_equal(call(dy[i].copy(), p[i].copy()), dx[i])
    for part in (slice(0, 2), slice(1, 5), slice(3, 39)):
        np.testing.assert_array_equal(call(dy[part], p[part]), dx[part])
    np.testing.assert_array_equal(call(dy.T.copy(), p.T.copy(), 0).T, dx)
    middle = [a.reshape(2, -1, n).swapaxes(1, 2).copy() for a in (dy, p)]
    np.testing.assert_array_equal(call(*middle, 1).swapaxes(1, 2).reshape(dx.shape), dx)
    wide = np.repeat(dy, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(call(wide, p, out=wide), dx)


@pytest.mark.parametrize("n", [40_000, 17_000])
def test_differences_beyond_the_range_in_a_frame_of_several_slices(n):
    """The huge gradient is in another slice than the most probable class, before or after it."""
    for k, at in ((n - 3, 5), (5, n - 3)):
        p, dy = np.full(n, 1e-6, np.float32), np.zeros(n, np.float32)
        p[k], dy[k], dy[at] = 0.9, -3e38, 3e38
        dx = lsm.softmax_backward(dy, p, backend="cython")
        np.testing.assert_array_equal(dx, lsm.softmax_backward(dy, p, backend="numpy"))
        assert np.isfinite(dx).all()
