"""`where=`: the bits of -inf in place of what is masked, which is not read; what it may be."""

import tracemalloc
import warnings
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import LD

import lsm
from conftest import _operations

MASKED = {"log_softmax": -np.inf, "softmax": 0, "log_softmax_backward": 0, "softmax_backward": 0}


def operations(backend):
    return [name for name in MASKED if name in _operations(backend)]


def plain(name, arrays, mask, axis=-1, **options):
    """The result for arrays that say themselves what is masked."""
    masked_by = {"log_softmax": (-np.inf,), "softmax": (-np.inf,), "softmax_backward": (0, 0)}
    fill = masked_by.get(name, (0, -np.inf))
    arrays = [np.where(mask, x, np.asarray(value, x.dtype)) for x, value in zip(arrays, fill, strict=True)]
    return np.where(mask, getattr(lsm, name)(*arrays, axis, **options), np.asarray(MASKED[name], arrays[0].dtype))


def arrays_for(name, x, axis=-1):
    if not name.endswith("backward"):
        return [x]
    return [x[::-1], getattr(lsm, name.removesuffix("_backward"))(x, axis, backend="numpy")]


def spoilt(arrays, mask):
    """With NaN and infinities in place of what is masked."""
    bad = np.resize([np.nan, np.inf, -np.inf], mask.shape)
    return [np.where(mask, x, bad.astype(x.dtype)) for x in arrays]


def test_bits_are_those_of_minus_infinity(backend, dtype, rng):
    for shape, axis in (((5, 7), -1), ((6, 4, 3), (0, 2)), ((40, 3), 0), ((3, 5), None), ((3, 300), 1)):
        x = (rng.standard_normal(shape) * 3).astype(dtype)
        mask = rng.random(shape) < 0.7
        mask.flat[0] = True
        for name in operations(backend):
            arrays = arrays_for(name, x, axis)
            found = getattr(lsm, name)(*spoilt(arrays, mask), axis, where=mask, backend=backend)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, plain(name, arrays, mask, axis, backend=backend))


@pytest.mark.parametrize("shape", [(33, 20), (20, 700), (3, 20_000), (2, 30, 70), (2, 30, 5), (3, 400, 9), (400, 90)])
def test_in_every_traversal_and_layout_the_bits_are_the_same(shape, rng):
    """The kernels mask and divide C-contiguous arrays as they read; of other arrays lsm masks copies."""
    axis = int(np.argmax(shape)) if len(shape) == 2 else 1
    mask = rng.random(shape) < 0.6
    np.moveaxis(mask, axis, 0)[:, ..., 0] = False  # one frame in which nothing takes part
    for dtype, temperature in (("f4", 1.0), ("f4", 0.3), ("f2", 1.0), ("f2", 7.0), ("f8", 1.0)):
        x = (rng.standard_normal(shape) * 5).astype(dtype)
        x.flat[3] = np.nan
        per_frame: Any = np.full([1 if i == axis else n for i, n in enumerate(shape)], temperature)
        per_frame = temperature if temperature == 1 else per_frame  # only the number 1 is the plain call
        for name in operations("cython"):
            arrays = arrays_for(name, x, axis)
            found = getattr(lsm, name)(*arrays, axis, where=mask, temperature=temperature, backend="cython")
            assert (found[~mask] == MASKED[name]).all()
            assert not np.signbit(found[~mask]).any() or name == "log_softmax"
            turned = [np.asfortranarray(a) for a in arrays]
            for given, t in ((turned, temperature), (arrays, per_frame), (turned, per_frame)):
                again = getattr(lsm, name)(*given, axis, where=mask, temperature=t, backend="cython")
                np.testing.assert_array_equal(again, found)
            with lsm.num_threads(2):
                again = getattr(lsm, name)(*arrays, axis, where=mask, temperature=temperature, backend="cython")
            np.testing.assert_array_equal(again, found)
            wide = "f4" if dtype == "f2" else "f8"
            near = getattr(lsm, name)(*[a.astype(wide) for a in arrays], axis, where=mask, temperature=temperature)
            np.testing.assert_allclose(
                found.astype(wide), near, rtol={"f2": 2e-3, "f4": 1e-5, "f8": 0}[dtype], atol=1e-4
            )


def test_masks_are_broadcast_and_may_have_any_strides(backend, rng):
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    masks = [np.arange(6) % 3 > 0, np.array([[[True]], [[False]], [[True]], [[True]]]), rng.random((5, 1)) < 0.5, True]
    masks += [np.asfortranarray(rng.random((4, 5, 6)) < 0.5), (rng.random((4, 5, 12)) < 0.5)[..., ::-2], [True] * 6]
    for name in operations(backend):
        arrays = arrays_for(name, x)
        for mask in masks:
            whole = np.broadcast_to(mask, x.shape)
            found = getattr(lsm, name)(*spoilt(arrays, whole), where=mask, backend=backend)
            np.testing.assert_array_equal(found, plain(name, arrays, whole, backend=backend))


def test_frames_in_which_nothing_takes_part(backend, dtype):
    x = np.array([[1, 2, 3], [np.nan, 0, 0], [-np.inf] * 3, [np.inf, 0, 0]]).astype(dtype)
    for name in operations(backend):
        for mask in (False, np.zeros((4, 1), bool)):
            found = getattr(lsm, name)(*[x] * (1 + name.endswith("backward")), where=mask, backend=backend)
            assert (found.astype(float) == MASKED[name]).all()


def test_masked_results_in_invalid_frames(backend, dtype):
    x = np.array([[np.nan, 0, 1], [-np.inf, -np.inf, 1], [np.inf, 0, 1]]).astype(dtype)
    mask = np.array([True, True, False])
    for name in operations(backend):
        found = getattr(lsm, name)(*[x] * (1 + name.endswith("backward")), where=mask, backend=backend).astype(float)
        assert (found[:, 2] == MASKED[name]).all()
        assert np.isnan(found[0, :2]).all()
        assert np.isnan(found[1, :2]).all() or name == "softmax_backward"


def test_with_a_temperature(backend, dtype, rng):
    x = (rng.standard_normal((5, 7)) * 3).astype(dtype)
    mask = rng.random((5, 7)) < 0.6
    mask[:, 0] = True
    for name in operations(backend):
        arrays = arrays_for(name, x)
        for temperature in (0.3, np.array([[0.5], [2], [1], [3], [7]])):
            options = {"temperature": temperature, "backend": backend}
            found = getattr(lsm, name)(*spoilt(arrays, mask), where=mask, **options)
            np.testing.assert_array_equal(found, plain(name, arrays, mask, **options))


def test_out_in_place_overlapping_and_of_another_dtype(backend, rng):
    for shape in ((7, 11), (2000, 600)):  # in one block, and in several
        x = rng.standard_normal(shape).astype(np.float32)
        mask = rng.random(shape) < 0.5
        for name in operations(backend):
            arrays = arrays_for(name, x)
            expected = plain(name, arrays, mask, backend=backend)
            buffer = np.empty((shape[0] + 1, shape[1]), np.float32)
            buffer[:-1] = arrays[0]
            getattr(lsm, name)(buffer[:-1], *arrays[1:], where=mask, out=buffer[1:], backend=backend)
            np.testing.assert_array_equal(buffer[1:], expected)
            own = arrays[0].copy()
            assert getattr(lsm, name)(own, *arrays[1:], where=mask, out=own, backend=backend) is own
            np.testing.assert_array_equal(own, expected)
        own = x.astype(np.float64)
        lsm.log_softmax(x, where=mask, dtype="float64", out=own, backend=backend)
        np.testing.assert_array_equal(own, plain("log_softmax", [x], mask, dtype="float64", backend=backend))


def test_a_mask_in_the_memory_of_out(backend):
    out = np.zeros((2, 8))
    mask = out.view(bool)[:, ::8]
    mask[:] = [True, False] * 4
    x = np.arange(16.0).reshape(2, 8)
    expected = lsm.log_softmax(x, where=mask.copy(), backend=backend)
    np.testing.assert_array_equal(lsm.log_softmax(x, where=mask, out=out, backend=backend), expected)


def test_empty_and_scalar(backend, dtype):
    for name in operations(backend):
        n = 1 + name.endswith("backward")
        for shape in ((0,), (2, 0), (0, 3)):
            mask = np.ones(shape, bool)
            assert getattr(lsm, name)(*[np.empty(shape, dtype)] * n, where=mask, backend=backend).shape == shape
        assert getattr(lsm, name)(*[dtype.type(0)] * n, where=False, backend=backend) == MASKED[name]


def test_what_is_refused(backend):
    x, out = np.zeros((2, 3)), np.full((2, 3), 7.0)
    for name in operations(backend):
        arrays = [x] * (1 + name.endswith("backward"))
        for wrong, error, message in (
            (np.zeros(3), TypeError, "dtype float64; accepted: bool.*where == 0 for a mask that is added"),
            ([1, 0, 1], TypeError, "dtype int64; accepted: bool.*where != 0"),
            (np.ma.masked_array([True] * 3, [0, 0, 1]), TypeError, r"masked array .*; pass where\.filled"),
            (np.ones((2, 2, 3), bool), ValueError, r"shape \(2, 2, 3\) does not broadcast to \(2, 3\)"),
            (np.ones(2, bool), ValueError, r"shape \(2,\) does not broadcast to \(2, 3\)"),
        ):
            with pytest.raises(error, match=f"^where: .*{message}"):
                getattr(lsm, name)(*arrays, where=wrong, out=out, backend=backend)
    assert (out == 7).all()


def test_no_warnings(backend, dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for name in operations(backend):
            getattr(lsm, name)(*[x] * (1 + name.endswith("backward")), where=[True, True, False], backend=backend)


@pytest.mark.operation("logsumexp")
def test_logsumexp(backend, dtype, rng):
    x = (rng.standard_normal((6, 5, 4)) * 3).astype(dtype)
    mask = rng.random(x.shape) < 0.5
    mask[2] = False
    for axis in (None, -1, (0, 2), 1, 0):
        found = lsm.logsumexp(*spoilt([x], mask), axis, where=mask, backend=backend)
        expected = lsm.logsumexp(np.where(mask, x, np.asarray(-np.inf, dtype)), axis, backend=backend)
        np.testing.assert_array_equal(found, expected)
    assert (lsm.logsumexp(x, 1, where=False, keepdims=True, backend=backend).astype(LD) == -np.inf).all()
    total, sign = lsm.logsumexp(x, 1, where=mask, return_sign=True, backend=backend)
    np.testing.assert_array_equal(sign, mask.any(axis=1))
    assert (total[2].astype(float) == -np.inf).all()


def test_memory_beside_the_result_is_bounded(backend):
    """A mask costs a copy of some frames, not of all."""
    x, mask = np.zeros((2000, 1000), np.float32), np.arange(1000) > 10
    for options in ({"where": mask}, {"temperature": 2.0}, {"where": mask, "temperature": np.full((2000, 1), 2.0)}):
        lsm.log_softmax(x, **options, backend=backend)
        tracemalloc.start()
        y = lsm.log_softmax(x, **options, backend=backend)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak - y.nbytes < 2**20


class TwoMethods(lsm.Backend):
    """The least that a plugin has, in float32 alone."""

    name, api_version, dtypes = "two-methods", 1, ("float32",)

    def log_softmax(self, x, axis, out):
        out[...] = oracle.log_softmax(x, axis)

    def log_softmax_backward(self, grad_output, output, axis, out):
        out[...] = oracle.backward(grad_output, output, axis)[0]


def test_two_methods_are_enough(installed, rng):
    installed(TwoMethods())
    x = rng.standard_normal((3, 5)).astype(np.float32)
    mask = x > -0.5
    for name in ("log_softmax", "log_softmax_backward"):
        arrays = arrays_for(name, x)
        for temperature in (1.0, 0.3, np.array([[0.5], [1], [2]])):
            found, expected = (
                getattr(lsm, name)(*arrays, where=mask, temperature=temperature, backend=other)
                for other in ("two-methods", "numpy")
            )
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            assert (found[~mask] == MASKED[name]).all()


@pytest.mark.parametrize("result", ["float16", "float32", "float64"])
def test_longdouble_to_a_narrower_dtype(result, rng):
    x, keep = rng.standard_normal((3, 5)).astype(np.longdouble), rng.random((3, 5)) < 0.7
    expected = lsm.log_softmax(np.where(keep, x, -np.inf), dtype=result)
    np.testing.assert_array_equal(lsm.log_softmax(np.where(keep, x, np.nan), where=keep, dtype=result), expected)


def test_any_byte_but_0_is_true(backend, dtype, rng):
    """As in a mask of 0 and 255 that is viewed as bool."""
    x = rng.standard_normal((6, 50)).astype(dtype)
    of_bytes = (rng.integers(1, 256, x.shape) * (rng.random(x.shape) < 0.5)).astype(np.uint8)
    for order in "CF":
        for name in operations(backend):
            arrays = [array.copy(order=order) for array in arrays_for(name, x)]
            found = getattr(lsm, name)(*arrays, where=of_bytes.view(bool), backend=backend)
            np.testing.assert_array_equal(found, getattr(lsm, name)(*arrays, where=of_bytes != 0, backend=backend))
