"""logsumexp: what it gives, on every backend that has it."""

import warnings

import numpy as np
import oracle
import pytest
from test_accuracy import KINDS, frames

import lsm
from conftest import DTYPES
from lsm._conformance.oracle import exact_logsumexp

pytestmark = pytest.mark.operation("logsumexp")
N_CLASSES = (1, 2, 3, 10, 33, 64, 65, 256, 257, 1000, 4097, 16385)
BOUND = {"float16": 0.501, "bfloat16": 0.501}  # of the others, 4


def worst(x, total, axis=-1):
    """The largest error of a result without the axis, in ulps of where it counts."""
    exact = exact_logsumexp(x, total.dtype, axis)
    return float(exact.ulps(np.expand_dims(total, axis)).max(initial=0))


# -- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_within_the_bound(backend, dtype, kind, rng):
    for n in N_CLASSES if dtype.char != "g" else N_CLASSES[:7]:
        x = frames(kind, (max(1, min(100, 10000 // n)), n), dtype, rng)[: 2 if dtype.char == "g" else None]
        total = lsm.logsumexp(x, -1, backend=backend)
        assert total.shape == x.shape[:1] and total.dtype == dtype
        assert worst(x, total) <= BOUND.get(dtype.name, 4), n


def test_the_oracle_against_mpmath(rng):
    for dtype in (np.float32, np.float64):
        for scale, lead, to in ((3, 0, None), (3, 20, None), (3, 600, None), (100, 0, None), (3, 0, 0), (1, 90, 0)):
            x = rng.standard_normal(50) * scale
            x[7] = x.max() + lead
            x = (x if to is None else x - oracle.logsumexp(x)).astype(dtype)
            exact = exact_logsumexp(x, x.dtype)
            assert abs(exact.value - oracle.logsumexp_mp(x)) / oracle.spacing(exact.at, dtype) < 0.01


def test_near_0_float32_and_16_bits_keep_their_digits(backend, rng):
    """Log-probabilities: m and log1p(s) cancel. The error counts in ulps of the result itself."""
    for name in ("float16", "bfloat16", "float32"):
        dtype = DTYPES[name]
        for n in (2, 3, 10, 100, 1000):
            x = rng.standard_normal((50, n)) * 3
            x = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True))).astype(dtype)
            total = lsm.logsumexp(x, -1, backend=backend)
            exact = oracle.logsumexp(x)[..., 0]
            slack = 2.0**-50 * abs(x.max(axis=-1).astype(float)) / oracle.spacing(exact, dtype)
            off = abs(total.astype(oracle.LD) - exact) / oracle.spacing(exact, dtype)
            assert (off - slack).max() <= BOUND.get(name, 4)


def test_where_the_peers_give_0(backend):
    half = np.full(2, -np.log(2), np.float32)  # SciPy, PyTorch, JAX and ONNX Runtime: 0
    np.testing.assert_allclose(lsm.logsumexp(half, backend=backend), -1.9046542e-09, rtol=1e-7)
    small = lsm.logsumexp(np.array([0, -20], np.float32), backend=backend)  # PyTorch, JAX and ONNX Runtime: 0
    np.testing.assert_allclose(small, 2.0611537e-09, rtol=1e-7)


def test_where_the_peers_overflow(backend):
    total = lsm.logsumexp(np.zeros(65_537, np.float16), backend=backend)  # SciPy, PyTorch and JAX: inf
    assert total == np.float16(np.log(65_537))
    assert lsm.logsumexp(np.array([1000.0, 1000.0]), backend=backend) == 1000 + np.log(2)


def test_long_frames(backend, rng):
    for dtype in (np.float32, np.float64):
        for x in (rng.standard_normal(2**20) * 3, np.full(2**20, 0.3)):
            assert worst(x.astype(dtype), lsm.logsumexp(x.astype(dtype), backend=backend)) <= 4


@pytest.mark.parametrize("result", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32", "float64"])
def test_every_combination_of_dtypes(backend, given, result, rng):
    given, result = DTYPES[given], DTYPES[result]
    for kind in KINDS:
        x = frames(kind, (10, 65), given, rng)
        total = lsm.logsumexp(x, -1, dtype=result, backend=backend)
        assert total.dtype == result
        assert worst(x, total) <= (0.501 if result.itemsize < max(4, given.itemsize) else 4)


# -- semantics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "total", "sign"),
    [
        ([0, -np.inf], 0, 1),
        ([-np.inf, -np.inf], -np.inf, 0),
        ([1, np.inf], np.inf, 1),
        ([-np.inf, np.inf], np.inf, 1),
        ([1, np.nan], np.nan, np.nan),
        ([np.inf, np.nan], np.nan, np.nan),
        ([-np.inf, np.nan], np.nan, np.nan),
        ([-5000, -6000], -5000, 1),
    ],
)
def test_special_values_and_the_sign(backend, dtype, frame, total, sign):
    x = np.zeros((3, 2), dtype)
    x[1] = frame
    both = lsm.logsumexp(x, 1, return_sign=True, backend=backend)
    for result, of_frame, beside in zip(both, (total, sign), (np.log(2), 1), strict=True):
        assert result.shape == (3,) and result.dtype == dtype
        wanted = np.array([beside, of_frame, beside]).astype(dtype)
        np.testing.assert_allclose(result.astype(float), wanted.astype(float), rtol=1e-6)
    alone = lsm.logsumexp(x[1], return_sign=True, backend=backend)
    assert [type(part) for part in alone] == [dtype.type, dtype.type]
    np.testing.assert_array_equal(np.array(alone, float), [float(both[0][1]), sign])


def test_no_classes_no_frames_and_scalars(backend, dtype):
    nothing = lsm.logsumexp(np.empty(0, dtype), return_sign=True, backend=backend)
    assert [type(part) for part in nothing] == [dtype.type, dtype.type] and nothing == (-np.inf, 0)
    total = lsm.logsumexp(np.empty((2, 0), dtype), 1, backend=backend)
    assert total.dtype == dtype and (total == [-np.inf, -np.inf]).all()
    assert lsm.logsumexp(np.empty((2, 0), dtype), 0, backend=backend).shape == (0,)
    assert lsm.logsumexp(np.empty((0, 3), dtype), 0, keepdims=True, backend=backend).shape == (1, 3)
    out = np.zeros(2, dtype)
    assert lsm.logsumexp(np.empty((2, 0), dtype), 1, out=out, backend=backend) is out and (out == -np.inf).all()
    for value in (3, -np.inf, np.inf):
        one = lsm.logsumexp(dtype.type(value), backend=backend)
        assert type(one) is dtype.type and one == value
    assert lsm.logsumexp([1, 2, 3], backend=backend) == lsm.logsumexp([1.0, 2.0, 3.0], backend=backend)


AXES = (0, 1, -1, (0, 2), (2, 1), (0, 1, 2), None, ())


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
def test_axis_keepdims_and_out(backend, axis, keepdims, rng):
    memory = rng.standard_normal((3, 4, 10))
    for x in (memory[..., ::2], memory[..., :5], memory[..., 5:].T, np.asfortranarray(memory)):
        total = lsm.logsumexp(x, axis, None, keepdims, backend=backend)
        wanted = np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))
        assert np.shape(total) == np.shape(wanted)
        np.testing.assert_allclose(total, wanted, rtol=1e-13)
        for out in (
            np.empty(np.shape(total)),
            np.empty((*np.shape(total), 2))[..., 0],
            np.empty(np.shape(total), ">f8"),
        ):
            assert lsm.logsumexp(x, axis, keepdims=keepdims, out=out, backend=backend) is out
            np.testing.assert_array_equal(out, total)


def test_out_within_the_input(backend, rng):
    x = rng.standard_normal((6, 5))
    total = lsm.logsumexp(x, 1, backend=backend)
    for view in (lambda a: a[:, 0], lambda a: a[::-1, 2], lambda a: a.ravel()[7:13]):
        memory = x.copy()
        lsm.logsumexp(memory, 1, out=view(memory), backend=backend)
        np.testing.assert_array_equal(view(memory), total)
    column = x[:, :1].copy()
    lsm.logsumexp(column, 1, keepdims=True, out=column, backend=backend)
    np.testing.assert_array_equal(column, x[:, :1])


def test_out_errors_come_before_anything_is_written(backend):
    x = np.zeros((3, 4))
    for out, error, message in (
        (np.full((3, 4), 7.0), ValueError, r"shape \(3, 4\); the result has shape \(3,\)"),
        (np.full((3, 1), 7.0), ValueError, r"shape \(3, 1\); the result has shape \(3,\)"),
        (np.full(3, 7, np.float32), TypeError, "dtype float32; the result has dtype float64"),
    ):
        with pytest.raises(error, match=f"^out: .*{message}"):
            lsm.logsumexp(x, 1, out=out, backend=backend)
        assert (out == 7).all()


def test_what_is_refused(backend):
    with pytest.raises(ValueError, match=r"^a, b: shapes \(2,\) and \(3,\) do not broadcast"):
        lsm.logsumexp([1.0, 2.0], b=[1, 2, 3], backend=backend)
    with pytest.raises(TypeError, match="^b: complex"):
        lsm.logsumexp([1.0, 2.0], b=[1j, 2], backend=backend)
    with pytest.raises(TypeError, match="^where: dtype int64"):
        lsm.logsumexp(np.ones(2), where=np.array([1, 0], np.int64), backend=backend)
    with pytest.raises(TypeError, match="^a: "):
        lsm.logsumexp(np.zeros(3, complex), backend=backend)
    with pytest.raises(np.exceptions.AxisError):
        lsm.logsumexp(np.zeros(3), 1, backend=backend)


def test_no_warnings(backend, dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7, -0.0])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        lsm.logsumexp(x, 1, return_sign=True, backend=backend)


# -- same bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 257, 1000, 2049, 16385, 20000, 40000])
def test_a_frame_has_the_same_bits_everywhere(backend, dtype, n, rng):
    n_frames = 40 if n < 20000 else 6
    x = (rng.standard_normal((n_frames, n)) * 4).astype(dtype)
    total = lsm.logsumexp(x, -1, backend=backend)
    for i in range(n_frames):
        assert lsm.logsumexp(x[i].copy(), backend=backend) == total[i]
    for part in (slice(0, 2), slice(1, 5), slice(3, 39)):
        np.testing.assert_array_equal(lsm.logsumexp(x[part], -1, backend=backend), total[part])
    np.testing.assert_array_equal(lsm.logsumexp(x.T.copy(), 0, backend=backend), total)
    middle = x.reshape(2, -1, n).swapaxes(1, 2).copy()
    np.testing.assert_array_equal(lsm.logsumexp(middle, 1, backend=backend).ravel(), total)
    np.testing.assert_array_equal(lsm.logsumexp(np.repeat(x, 2, axis=1)[:, ::2], 1, backend=backend), total)
