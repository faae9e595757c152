"""`temperature=`: accuracy against mpmath, what it may be, and what it leaves alone."""

import fractions
import warnings
from functools import cache

import mpmath
import numpy as np
import pytest
from oracle import LD, backward, mp_from, mp_to_ld, softmax_backward, ulps

import lsm
from conftest import _operations


@cache
def exact(frame, temperature):
    """The exact log-softmax and softmax of one frame over a temperature, from their definitions."""
    span = (max(frame) - min(v for v in frame if v > -np.inf)) / LD(temperature)
    with mpmath.workprec(200 + int(1.45 * min(float(span), 12_000))):
        z = [mp_from(v) / mp_from(LD(temperature)) for v in frame]
        m = max(z)
        weights = [mpmath.exp(v - m) for v in z]
        total = mpmath.fsum(weights)
        rest = mpmath.fsum(w for i, w in enumerate(weights) if i != z.index(m))
        y, p = [(v - m) - mpmath.log1p(rest) for v in z], [w / total for w in weights]
    with mpmath.workprec(200):
        return {name: np.array([mp_to_ld(+v) for v in a]) for name, a in (("log_softmax", y), ("softmax", p))}


def maps(backend):
    return [name for name in ("log_softmax", "softmax") if name in _operations(backend)]


def gradients(backend):
    return [f"{name}_backward" for name in maps(backend)]


def error(found, expected):
    """In ulps of the expected; what is beyond the range must be infinite."""
    with np.errstate(over="ignore"):
        rounded = expected.astype(np.float32 if found.itemsize == 2 else found.dtype).astype(found.dtype)
    inside = np.isfinite(rounded.astype(LD))
    np.testing.assert_array_equal(found[~inside].astype(LD), rounded[~inside].astype(LD))
    return ulps(found[inside], expected[inside])


FRAMES = (
    [1000.0, 999.0, 0.0],
    [20.0, 0.0, 0.0, -np.inf],
    [3.1, 2.9, -0.7, 0.33, -8.1, 3.09, 1.7],
    [1e4, 9999.3, 9998.6, 9990.1],
    [1e-3, 0.0, 0.0, 2e-3, -5.0],
    [11.0, 10.0, 1.0],
)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 13.0, 1e-5])
def test_accuracy(backend, dtype, temperature):
    for frame in FRAMES:
        x = np.array(frame).astype(dtype)
        expected = exact(tuple(x.astype(LD)), temperature)
        for name in maps(backend):
            found = getattr(lsm, name)(x, temperature=temperature, backend=backend)
            assert found.dtype == dtype
            assert error(found, expected[name]) <= (0.501 if dtype.itemsize == 2 else 4)


def test_accuracy_of_random_frames_of_float64(backend, rng):
    for temperature in (0.1, 0.7, 13.0):
        for offset, scale, n in ((0, 3, 100), (1e4, 3, 2), (0, 100, 33), (-40, 0.01, 20)):
            x = offset + scale * rng.standard_normal(n)
            expected = exact(tuple(x.astype(LD)), temperature)
            for name in maps(backend):
                assert error(getattr(lsm, name)(x, temperature=temperature, backend=backend), expected[name]) <= 4


def test_differences_and_quotients_beyond_the_range(backend):
    top = np.finfo(float).max
    for x, temperature, expected in (
        ([top, -top, 0], top / 2, [0, -4, -2]),
        ([1e-300, 0, -1e-300], 1e-300, [0, -1, -2]),
        ([5e-324, 0], 5e-324, [0, -1]),
        ([top, -top], 5e-324, [0, -np.inf]),
        ([3e10, 2e10], 1e300, [0, -1e-290]),
    ):
        y = lsm.log_softmax(np.array(x), temperature=temperature, backend=backend)
        np.testing.assert_allclose(y, lsm.log_softmax(np.array(expected, float), backend=backend), rtol=1e-15)
    y = lsm.log_softmax(np.float16([11, 10, 1]), temperature=1e-5, backend=backend)
    np.testing.assert_array_equal(y, np.float16([0, -np.inf, -np.inf]))
    largest = np.finfo(np.float32).max
    y = lsm.log_softmax(np.float32([largest, -largest]), temperature=float(largest), backend=backend)
    np.testing.assert_allclose(y, [-0.126928, -2.126928], rtol=1e-6)


def test_gradients(backend, dtype, rng):
    """The gradient of x / T is that of the result, over T."""
    for name in gradients(backend):
        dy = rng.standard_normal((5, 9)).astype(dtype)
        inputs = lsm.log_softmax if name == "log_softmax_backward" else lsm.softmax
        output = inputs((rng.standard_normal((5, 9)) * 3).astype(dtype), backend="numpy")
        reference = backward if name == "log_softmax_backward" else softmax_backward
        expected, at = reference(dy, output, -1)
        for temperature in (0.3, 7.0, np.array([[0.1], [0.2], [1], [20], [3e4]])):
            dx = getattr(lsm, name)(dy, output, temperature=temperature, backend=backend)
            assert dx.dtype == dtype
            assert ulps(dx, expected / temperature, at / temperature) <= (0.501 if dtype.itemsize == 2 else 4)


def test_gradients_that_the_temperature_brings_into_range(backend):
    for name, output in (("log_softmax_backward", np.log([0.5, 0.5])), ("softmax_backward", np.array([0.5, 0.5]))):
        if name in gradients(backend):
            dx = getattr(lsm, name)(np.array([5e-324, 0]), output, temperature=5e-324, backend=backend)
            np.testing.assert_allclose(dx, [0.5, -0.5] if name[0] == "l" else [0.25, -0.25])
            dx = getattr(lsm, name)(np.array([1e300, 0]), output, temperature=1e-3, backend=backend)
            assert np.isfinite(dx).all() and dx[0] > 1e302


def test_gradients_of_which_a_quotient_is_beyond_the_range(backend):
    """They are infinite, or 0 where the gradient is: never NaN."""
    for dtype in (np.float16, np.float32):
        dy, even = np.array([1, -1, 0.5], dtype), np.ones(3, dtype)
        for temperature in (5e-324, np.full(1, 5e-324), 1e-310):
            for name in gradients(backend):
                output = np.full(3, 0.5 if name == "softmax_backward" else -0.5, dtype)
                dx = getattr(lsm, name)(dy, output, temperature=temperature, backend=backend)
                assert np.isinf(dx[:2].astype(float)).all() and dx[0] > 0 > dx[1]
            if "softmax_backward" in gradients(backend):
                output = np.array([0.5, 0.5, 0], dtype)
                dx = lsm.softmax_backward(even, output, temperature=temperature, backend=backend)
                np.testing.assert_array_equal(dx, 0)


@pytest.mark.parametrize("one", [1, 1.0, np.float32(1), np.ones(()), fractions.Fraction(1)])
def test_one_is_the_plain_call(backend, dtype, one, rng):
    x = rng.standard_normal((3, 5)).astype(dtype)
    for name in maps(backend):
        plain = getattr(lsm, name)(x, backend=backend)
        np.testing.assert_array_equal(getattr(lsm, name)(x, temperature=one, backend=backend), plain)
        dx = getattr(lsm, f"{name}_backward")(x, plain, backend=backend)
        given = getattr(lsm, f"{name}_backward")(x, plain, temperature=one, backend=backend)
        np.testing.assert_array_equal(given, dx)


def test_one_for_each_frame(backend, dtype, rng):
    x = rng.standard_normal((4, 3, 6)).astype(dtype)
    for name in maps(backend):
        function = getattr(lsm, name)
        for axis, shape in ((-1, (4, 3, 1)), (0, (3, 6)), ((0, 2), (3, 1)), (1, (4, 1, 1)), (None, ())):
            t = rng.uniform(0.2, 3, shape)
            found = function(x, axis, temperature=t, backend=backend)
            frames = (
                np.broadcast_to(t, [1 if i in np.atleast_1d(axis) % 3 else n for i, n in enumerate(x.shape)])
                if (axis is not None)
                else np.reshape(t, (1, 1, 1))
            )
            for i in np.ndindex(frames.shape):
                frame = tuple(slice(None) if n == 1 else k for n, k in zip(frames.shape, i, strict=True))
                alone = function(x[frame], None, temperature=float(frames[i]), backend=backend)
                np.testing.assert_array_equal(found[frame], alone)


def test_a_bad_number_in_an_array_makes_its_frame_nan(backend, dtype):
    x = np.zeros((6, 4), dtype)
    t = np.array([[1], [0], [-1], [np.inf], [np.nan], [2]])
    for name in maps(backend):
        y = getattr(lsm, name)(x, temperature=t, backend=backend)
        dx = getattr(lsm, f"{name}_backward")(x, y, temperature=t, backend=backend)
        for a in (y, dx):
            assert np.isnan(a.astype(float)).all(axis=1).tolist() == [False, True, True, True, True, False]
            assert np.isfinite(a[::5].astype(float)).all()


def test_what_is_refused(backend):
    x, out = np.zeros((2, 3)), np.full((2, 3), 7.0)
    for wrong in (
        0,
        -1,
        np.nan,
        np.inf,
        "hot",
        None,
        np.zeros(()),
        10**400,
        [1, 2, 3],
        np.ones((2, 3)),
        np.ones((1, 2, 1)),
    ):
        with pytest.raises(ValueError, match="^temperature: .*accepted: a finite number above 0, or "):
            lsm.log_softmax(x, temperature=wrong, out=out, backend=backend)
    for wrong in (1j, np.ma.masked_array([[1.0], [2.0]], [[0], [1]]), {}):
        with pytest.raises(TypeError, match="^temperature: "):
            lsm.log_softmax_backward(x, x, temperature=wrong, out=out, backend=backend)
    assert (out == 7).all()


def test_spoiled_and_empty_frames_and_no_warnings(backend, dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for name in maps(backend):
            for temperature in (0.5, 3e-5, np.full((len(x), 1), 2.0)):
                y = getattr(lsm, name)(x, temperature=temperature, backend=backend)
                plain = getattr(lsm, name)(x, backend=backend)
                np.testing.assert_array_equal(np.isnan(y.astype(float)), np.isnan(plain.astype(float)))
                getattr(lsm, f"{name}_backward")(x, y, temperature=temperature, backend=backend)
            for shape in ((0,), (2, 0), (0, 3)):
                assert getattr(lsm, name)(np.empty(shape, dtype), temperature=2, backend=backend).shape == shape
            one = getattr(lsm, name)(dtype.type(3), temperature=2, backend=backend)
            assert type(one) is dtype.type and one == (name == "softmax")


def test_out_dtype_and_layout_change_no_bit(backend, rng):
    """In place, overlapping, in float32 and float64 and on any axis; in one block and in many."""
    for shape in ((7, 11), (300, 1000)):
        for name in maps(backend):
            for dtype in (np.float32, np.float64):
                x = rng.standard_normal(shape).astype(dtype)
                t = rng.uniform(0.5, 2, (shape[0], 1))
                y = getattr(lsm, name)(x, temperature=t, backend=backend)
                across = getattr(lsm, name)(np.asfortranarray(x).T, 0, temperature=t.T, backend=backend)
                np.testing.assert_array_equal(across.T, y)
                buffer = np.empty((shape[0] + 1, shape[1]), dtype)
                buffer[:-1] = x
                getattr(lsm, name)(buffer[:-1], temperature=t, out=buffer[1:], backend=backend)
                np.testing.assert_array_equal(buffer[1:], y)
                wide = getattr(lsm, name)(x, temperature=t, dtype="float64", backend=backend)
                assert wide.dtype == np.float64
                np.testing.assert_allclose(wide, y, rtol=1e-6)
                assert getattr(lsm, name)(x, temperature=t, out=x, backend=backend) is x
                np.testing.assert_array_equal(x, y)


def test_a_temperature_that_is_part_of_out(backend):
    x = np.array([[2.0, 1.0], [3.0, 1.0]])
    expected = lsm.log_softmax(x, temperature=x[:, :1].copy(), backend=backend)
    np.testing.assert_array_equal(lsm.log_softmax(x, temperature=x[:, :1], out=x, backend=backend), expected)


def test_quotients_beyond_the_range_of_float64(backend):
    """The difference from the maximum is divided, not the logits."""
    x = np.array([[3e38, 1e38, 3e38], [-3e38, -1e38, -2e38]], np.float32)
    for temperature in (1e-300, np.full((2, 1), 1e-300)):
        y = lsm.log_softmax(x, temperature=temperature, backend=backend)
        np.testing.assert_array_equal(np.exp(y.astype(np.float64)).round(6), [[0.5, 0, 0.5], [0, 1, 0]])
