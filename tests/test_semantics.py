"""The table of semantics, row by row, on every backend."""

import math
import warnings

import ml_dtypes
import numpy as np
import oracle
import pytest

import lsm
from conftest import DTYPES


def both(x, backend, **kwargs):
    """Forward, and backward of a fixed gradient, as a caller would make them."""
    y = lsm.log_softmax(x, backend=backend, **kwargs)
    return y, lsm.log_softmax_backward(np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape), y, backend=backend)


# -- dtypes ---------------------------------------------------------------------------------------------------------


def test_same_dtype_out(backend, dtype, rng):
    x = rng.standard_normal((3, 5)).astype(dtype)
    y, dx = both(x, backend)
    assert y.dtype == dx.dtype == dtype
    assert type(y) is type(dx) is np.ndarray


@pytest.mark.parametrize("out_dtype", list(DTYPES))
def test_dtype_is_the_dtype_of_the_result(dtype, backend, out_dtype, rng):
    info = next(i for i in lsm.list_backends() if i.name == backend)
    wanted = DTYPES[out_dtype]
    x = (rng.standard_normal((7, 300)) * 4).astype(dtype)
    if out_dtype not in info.dtypes:
        with pytest.raises(lsm.BackendUnsupportedError, match=out_dtype):
            lsm.log_softmax(x, dtype=wanted, backend=backend)
        return
    y = lsm.log_softmax(x, dtype=wanted, backend=backend)
    assert y.dtype == wanted
    narrow = min(53, {"float16": 11, "bfloat16": 8, "float32": 24}.get(out_dtype, 53))
    allowed = 0.501 if narrow < 24 or (narrow == 24 and dtype.itemsize > 4) else 4
    assert oracle.ulps(y if out_dtype != "longdouble" else y.astype(float), oracle.log_softmax(x)) <= allowed


def test_dtype_may_be_spelled_as_numpy_does(rng):
    x = rng.standard_normal(5)
    for spelling in ("float32", "f4", np.float32, np.dtype("f4"), ">f4"):
        assert lsm.log_softmax(x, dtype=spelling).dtype == np.float32
    assert lsm.log_softmax(x, dtype="bfloat16").dtype == ml_dtypes.bfloat16
    for wrong in ("int32", "complex64", "no such type", object, "U5"):
        with pytest.raises(TypeError, match=r"^dtype: .*accepted: float16, bfloat16, float32"):
            lsm.log_softmax(x, dtype=wrong)


def test_longdouble_goes_to_numpy(rng):
    x = rng.standard_normal(9).astype(np.longdouble)
    assert lsm.explain(x).winner == "numpy"
    assert lsm.log_softmax(x).dtype == np.longdouble


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda v: np.array(v, np.uint8), lambda v: np.array(v) > 2])
def test_array_like_integers_and_bool(backend, make):
    x = make([1, 2, 3])
    y, dx = both(x, backend)
    assert y.dtype == dx.dtype == np.float64
    assert oracle.ulps(y, oracle.log_softmax(np.asarray(x, float))) <= 4


def test_scalar_gives_0_d(backend):
    for x in (3.5, 3, True, np.float32(3), np.array(3.5)):
        for axis in (-1, 0, None, ()):
            y = lsm.log_softmax(x, axis, backend=backend)
            assert y.shape == () and y == 0
            assert lsm.log_softmax_backward(2.0, y, axis, backend=backend) == 0
    assert math.isnan(lsm.log_softmax(np.inf, backend=backend))
    assert math.isnan(lsm.log_softmax(-np.inf, backend=backend))
    with pytest.raises(np.exceptions.AxisError):
        lsm.log_softmax(3.5, 1, backend=backend)


STRUCTURED = np.zeros(3, [("a", "f4"), ("b", "i4")])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3, complex), r"complex128 .*\.real or abs"),
        (np.array([1, None]), r"Python objects; pass numpy.asarray\(.*dtype=float"),
        (["a", "b"], r"text .*astype\(float\)"),
        (np.array([b"a"]), "text"),
        (STRUCTURED, r"structured array; pass one field, such as \w+\['a'\]"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), r"masked array.*filled\(-numpy.inf\)"),
        ([np.ma.masked_array([1.0, 2.0], [True, False])], "masked array"),
        (np.array(["2020-01-01"], "M8[D]"), "accepted: float16"),
        (np.zeros(3, ml_dtypes.float8_e5m2), "accepted: float16"),
        (None, "Python objects"),
        (np.zeros(3, np.dtype([])), "structured array"),
    ],
)
def test_types_that_are_refused(x, message, backend):
    with pytest.raises(TypeError, match=rf"^x: .*{message}"):
        lsm.log_softmax(x, backend=backend)
    good = np.zeros(3)
    with pytest.raises(TypeError, match=rf"^grad_output: .*{message}"):
        lsm.log_softmax_backward(x, good, backend=backend)
    with pytest.raises(TypeError, match=rf"^output: .*{message}"):
        lsm.log_softmax_backward(good, x, backend=backend)


class Holder:
    """What NumPy makes an array of, or fails to."""

    def __init__(self, result):
        self.result = result

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_what_an_array_method_gives_is_looked_at():
    with pytest.raises(TypeError, match="^x: a masked array"):
        lsm.log_softmax(Holder(np.ma.masked_array([1.0, 2.0], [True, False])))
    for error in (TypeError("no"), RuntimeError("detach it")):
        with pytest.raises(TypeError, match=f"^x: a Holder cannot be converted to an array: {error}"):
            lsm.log_softmax(Holder(error))
    assert lsm.log_softmax(Holder(np.zeros(2))).shape == (2,)


def test_ragged_lists_name_the_argument():
    with pytest.raises(ValueError, match="^x: cannot be converted to an array"):
        lsm.log_softmax([[1, 2], [3]])


# -- axis -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3, (0,), (0, 2), (2, 0), (-1, 0), (1, 2), (0, 1, 2), None, ()])
def test_axis(backend, axis, rng):
    x = rng.standard_normal((3, 4, 5)) * 3
    y = lsm.log_softmax(x, axis, backend=backend)
    axes = tuple(range(3)) if axis is None else np.atleast_1d(np.array(axis, int)) % 3
    order = [i for i in range(3) if i not in axes] + sorted(axes)
    flat = x.transpose(order).reshape(*(x.shape[i] for i in range(3) if i not in axes), -1)
    exact = oracle.log_softmax(flat).reshape([x.shape[i] for i in order]).transpose(np.argsort(order))
    assert y.shape == x.shape
    assert oracle.ulps(y, exact) <= 4
    dy = rng.standard_normal(x.shape)
    dx = lsm.log_softmax_backward(dy, y, axis, backend=backend)
    want = dy - np.exp(y) * dy.sum(axis=axis if axis is None or isinstance(axis, int) else tuple(axis), keepdims=True)
    np.testing.assert_allclose(dx, want, atol=1e-14)
    out = np.full_like(x, 7)
    assert lsm.log_softmax(x, axis, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, y)


def test_axis_errors(backend):
    x = np.zeros((3, 4))
    for wrong in (2, -3, (0, 2), (0, -3)):
        with pytest.raises(np.exceptions.AxisError, match="axis"):
            lsm.log_softmax(x, wrong, backend=backend)
    for repeated in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="repeats an axis"):
            lsm.log_softmax(x, repeated, backend=backend)
        with pytest.raises(ValueError, match="repeats an axis"):
            lsm.log_softmax_backward(x, x, repeated, backend=backend)
    for nonsense in (1.0, "0", True, (0, 1.0), [True], np.array([0, 1]), {0: 1}):
        with pytest.raises(TypeError, match="^axis: "):
            lsm.log_softmax(x, nonsense, backend=backend)


# -- out ------------------------------------------------------------------------------------------------------------


def test_out_is_written_and_returned(backend, dtype, rng):
    x = rng.standard_normal((4, 6)).astype(dtype)
    y, _ = both(x, backend)
    for out in (np.empty_like(x), np.empty((4, 12), dtype)[:, ::2], np.empty((6, 4), dtype).T, np.empty_like(x)[::-1]):
        assert lsm.log_softmax(x, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, y)
        dx = lsm.log_softmax_backward(x, y, backend=backend)
        assert lsm.log_softmax_backward(x, y, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, dx)


def test_out_byte_swapped_or_unaligned(backend, rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    y = lsm.log_softmax(x, backend=backend)
    swapped = np.empty((4, 6), ">f4")
    assert lsm.log_softmax(x, out=swapped, backend=backend) is swapped
    np.testing.assert_array_equal(swapped, y)
    unaligned = np.empty(4 * 24 + 1, np.uint8)[1:].view(np.float32).reshape(4, 6)
    lsm.log_softmax(x, out=unaligned, backend=backend)
    np.testing.assert_array_equal(unaligned, y)


def test_out_errors_come_before_anything_is_written(backend):
    x = np.arange(12.0).reshape(3, 4)
    read_only = np.full((3, 4), 7.0)
    read_only.flags.writeable = False
    for out, error, message in (
        (np.full((4, 3), 7.0), ValueError, r"shape \(4, 3\); the result has shape \(3, 4\)"),
        (np.full(12, 7.0), ValueError, "shape"),
        (np.full((3, 4), 7, np.float32), TypeError, "dtype float32; the result has dtype float64"),
        (np.full((3, 4), 7, int), TypeError, "dtype"),
        (read_only, ValueError, "read-only"),
        (np.lib.stride_tricks.as_strided(np.full(4, 7.0), (3, 4), (0, 8)), ValueError, "its elements overlap"),
        (np.ma.masked_array(np.full((3, 4), 7.0)), TypeError, "MaskedArray; accepted: a numpy.ndarray"),
        ([7.0] * 12, TypeError, "list; accepted: a numpy.ndarray"),
    ):
        for call in (
            lambda out=out: lsm.log_softmax(x, out=out, backend=backend),
            lambda out=out: lsm.log_softmax_backward(x, x, out=out, backend=backend),
        ):
            with pytest.raises(error, match=f"^out: .*{message}"):
                call()
        assert (np.asarray(out) == 7).all()
    with pytest.raises(TypeError, match="out: has dtype float64; the result has dtype float32"):
        lsm.log_softmax(x, out=np.empty((3, 4)), dtype="float32", backend=backend)
    out = np.full((3, 4), 7.0)
    for wrong in (dict(axis=5), dict(dtype="int8"), dict(axis=(0, 0))):
        with pytest.raises((TypeError, ValueError)):
            lsm.log_softmax(x, out=out, backend=backend, **wrong)
    assert (out == 7).all()


def test_in_place(backend, dtype, rng):
    x = rng.standard_normal((5, 40)).astype(dtype)
    y, dx = both(x, backend)
    dy = np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    for axis in (0, 1):
        y = lsm.log_softmax(x, axis, backend=backend)
        a = x.copy()
        lsm.log_softmax(a, axis, out=a, backend=backend)
        np.testing.assert_array_equal(a, y)
        dx = lsm.log_softmax_backward(dy, y, axis, backend=backend)
        for which in (0, 1):
            pair = [dy.copy(), y.copy()]
            lsm.log_softmax_backward(*pair, axis, out=pair[which], backend=backend)
            np.testing.assert_array_equal(pair[which], dx)
            np.testing.assert_array_equal(pair[1 - which], (dy, y)[1 - which])
        same = y.copy()
        want = lsm.log_softmax_backward(y, y, axis, backend=backend)
        lsm.log_softmax_backward(same, same, axis, out=same, backend=backend)
        np.testing.assert_array_equal(same, want)


@pytest.mark.parametrize("shift", [1, 3, 40, 41, 199])
def test_partial_overlap_is_as_no_overlap(backend, dtype, shift, rng):
    base = rng.standard_normal(5 * 40 + shift).astype(dtype)
    for first, second in ((slice(shift, None), slice(0, 200)), (slice(0, 200), slice(shift, None))):
        for transposed in (False, True):
            memory = base.copy()
            x = memory[first].reshape(5, 40)
            out = memory[second].reshape(40, 5).T if transposed else memory[second].reshape(5, 40)
            y = lsm.log_softmax(x.copy(), backend=backend)
            lsm.log_softmax(x, out=out, backend=backend)
            np.testing.assert_array_equal(out, y)
            memory = base.copy()
            dy = memory[first].reshape(5, 40)
            out = memory[second].reshape(40, 5).T if transposed else memory[second].reshape(5, 40)
            dx = lsm.log_softmax_backward(dy.copy(), y, backend=backend)
            lsm.log_softmax_backward(dy, y, out=out, backend=backend)
            np.testing.assert_array_equal(out, dx)
            memory = base.copy()
            dy, y = rng.standard_normal((5, 40)).astype(dtype), memory[first].reshape(5, 40)
            out = memory[second].reshape(40, 5).T if transposed else memory[second].reshape(5, 40)
            dx = lsm.log_softmax_backward(dy, y.copy(), backend=backend)
            lsm.log_softmax_backward(dy, y, out=out, backend=backend)
            np.testing.assert_array_equal(out, dx)


def test_overlap_of_reversed_and_transposed_views(backend, rng):
    x = rng.standard_normal((8, 8))
    for view in (lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.T, lambda a: a[::-1, ::-1].T):
        a = x.copy()
        y = lsm.log_softmax(a.copy(), backend=backend)
        lsm.log_softmax(a, out=view(a), backend=backend)
        np.testing.assert_array_equal(view(a), y)


# -- layout ---------------------------------------------------------------------------------------------------------


def layouts(x):
    """The same values in many layouts."""
    yield "C", np.ascontiguousarray(x)
    yield "Fortran", np.asfortranarray(x)
    yield "negative strides", x[::-1, :, ::-1].copy()[::-1, :, ::-1]
    yield "step of 2", np.repeat(np.repeat(np.repeat(x, 2, 0), 2, 1), 2, 2)[::2, ::2, ::2]
    yield "step of 2 on one axis", np.repeat(x, 2, 1)[:, ::2]
    yield "transposed", x.transpose(2, 0, 1).copy().transpose(1, 2, 0)
    yield "transposed otherwise", x.transpose(1, 0, 2).copy().transpose(1, 0, 2)
    if x.dtype.name != "bfloat16":  # ml_dtypes has no byte-swapped one
        yield "byte-swapped", x.astype(x.dtype.newbyteorder("S"))
        yield "byte-swapped Fortran", np.asfortranarray(x.astype(x.dtype.newbyteorder("S")))
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    yield "unaligned", unaligned
    packed = np.empty(x.shape, [("pad", "u1"), ("x", x.dtype)])
    packed["x"] = x
    yield "a field of a packed structure", packed["x"]
    read_only = x.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only


def test_any_layout(backend, dtype, rng):
    x = (rng.standard_normal((3, 70, 36)) * 3).astype(dtype)
    arrays = list(layouts(x))
    for axis in (0, 1, 2):
        want = None
        for name, x in arrays:
            before = x.tobytes()
            y = lsm.log_softmax(x, axis, backend=backend)
            dx = lsm.log_softmax_backward(x, y, axis, backend=backend)
            assert x.tobytes() == before, f"{name}: the input was changed"
            assert y.dtype == dtype and y.dtype.isnative
            want = want or (y, dx)
            np.testing.assert_array_equal(y, want[0], err_msg=name)
            np.testing.assert_array_equal(dx, want[1], err_msg=name)


def test_broadcast_and_memory_mapped_input(backend, tmp_path, rng):
    row = rng.standard_normal(9).astype(np.float32)
    np.testing.assert_array_equal(
        lsm.log_softmax(np.broadcast_to(row, (4, 9)), backend=backend),
        np.tile(lsm.log_softmax(row, backend=backend), (4, 1)),
    )
    np.save(tmp_path / "x.npy", np.tile(row, (4, 1)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = lsm.log_softmax(mapped, backend=backend)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y[2], lsm.log_softmax(row, backend=backend))


def test_result_keeps_the_order_of_the_axes_in_memory(backend, rng):
    assert lsm.log_softmax(np.asfortranarray(rng.standard_normal((4, 5))), backend=backend).flags.f_contiguous


def test_a_single_class_in_any_strides(backend):
    """An axis of length 1 may have any stride; scratch must not be sized by it."""
    for shape in ((4096, 1), (1, 4096), (70, 1, 64)):
        for axis in range(len(shape)):
            x = np.zeros(shape).T
            out = np.zeros(shape).T
            for _ in range(20):
                lsm.log_softmax(x, axis, out=out, backend=backend)
                lsm.log_softmax_backward(x, x, axis, out=out, backend=backend)
                lsm.log_softmax(x, axis, out=x, backend=backend)


# -- special values -------------------------------------------------------------------------------------------------

N_CLASSES = (1, 2, 5, 64, 65, 300, 17000)


def places(n):
    """Positions at the borders of lanes, blocks and slices."""
    return sorted({i for i in (0, 1, 63, 64, 255, 256, 16383, 16384, n - 1) if i < n})


@pytest.mark.except_backend("cuda-on-cpu")
@pytest.mark.parametrize("axis", [0, 1])
def test_minus_inf_entries_are_exact_and_the_rest_is_right(backend, dtype, axis, rng):
    for n in N_CLASSES[1:]:
        x = rng.standard_normal((3, n)).astype(dtype)
        for i in places(n):
            x[1, i] = -np.inf
        if n == 17000:
            x[0, :16384] = -np.inf  # a whole slice
            x[2, 16384:] = -np.inf
        if n <= len(places(n)):
            x[1, 0] = 1
        exact = oracle.log_softmax(x)
        y = lsm.log_softmax(x if axis else x.T.copy(), axis, backend=backend)
        y = y if axis else y.T
        assert (np.isneginf(y) == np.isneginf(x)).all()
        assert oracle.ulps(y, exact) <= (0.501 if dtype.itemsize == 2 else 4 if dtype.char != "g" else 8)
        dy = rng.standard_normal((3, n)).astype(dtype)
        args = (dy, y) if axis else (dy.T.copy(), y.T.copy())
        dx = lsm.log_softmax_backward(*args, axis, backend=backend)
        dx = dx if axis else dx.T
        np.testing.assert_array_equal(dx[np.isneginf(y)], dy[np.isneginf(y)])
        assert np.isfinite(dx.astype(float)).all()


@pytest.mark.except_backend("cuda-on-cpu")
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_inf_makes_its_frame_nan_and_no_other(backend, dtype, axis, bad, rng):
    for n in N_CLASSES:
        spoiled = [(i, also) for i in places(n) for also in (None, -np.inf, np.nan, np.inf)]
        clean, dy = rng.standard_normal((2, 2 * len(spoiled) + 1, n)).astype(dtype)  # every other frame is spoiled
        want = lsm.log_softmax(clean, backend=backend)
        want_dx = lsm.log_softmax_backward(dy, want, backend=backend)
        x, y, g = clean.copy(), want.copy(), dy.copy()
        for k, (i, also) in enumerate(spoiled):
            for a in (x, y, g):
                if also is not None and n > 1:
                    a[2 * k + 1, i - 1] = also
                a[2 * k + 1, i] = bad
        for function, args, expected in (
            (lsm.log_softmax, (x,), want),
            (lsm.log_softmax_backward, (dy, y), want_dx),
            (lsm.log_softmax_backward, (g, want), want_dx),
        ):
            args = args if axis else tuple(a.T.copy() for a in args)
            r = function(*args, axis, backend=backend)
            r = r if axis else r.T
            assert np.isnan(r[1::2].astype(float)).all(), (function.__name__, n)
            np.testing.assert_array_equal(r[::2], expected[::2])


@pytest.mark.except_backend("cuda-on-cpu")
@pytest.mark.parametrize("axis", [0, 1])
def test_frame_of_minus_inf_only_is_nan(backend, dtype, axis, rng):
    for n in N_CLASSES:
        x = rng.standard_normal((3, n)).astype(dtype)
        x[1] = -np.inf
        y = lsm.log_softmax(x if axis else x.T.copy(), axis, backend=backend)
        y = y if axis else y.T
        assert np.isnan(y[1].astype(float)).all()
        assert np.isfinite(y[::2].astype(float)).all()
        masked = np.where(np.arange(3)[:, None] == 1, dtype.type(-np.inf), y).astype(dtype)
        dx = lsm.log_softmax_backward(np.ones_like(masked), masked, backend=backend)
        assert np.isnan(dx[1].astype(float)).all()


def test_infinite_gradients_make_the_frame_nan(backend, dtype):
    y = lsm.log_softmax(np.zeros((3, 5), dtype), backend=backend)
    for bad in (np.inf, -np.inf):
        dy = np.ones((3, 5), dtype)
        dy[1, 2] = bad
        dx = lsm.log_softmax_backward(dy, y, backend=backend)
        assert np.isnan(dx[1].astype(float)).all()
        assert np.isfinite(dx[::2].astype(float)).all()


def test_differences_beyond_the_range_become_minus_inf(backend):
    for dtype in (np.float32, np.float64):
        big = np.finfo(dtype).max
        y = lsm.log_softmax(np.array([big, -big, 0], dtype), backend=backend)
        np.testing.assert_array_equal(y, np.array([0, -np.inf, -big], dtype))


@pytest.mark.operation("softmax")
def test_the_largest_numbers_are_logits_like_others(backend):
    """The error of a difference is within the range, although a step to it may not be."""
    big = np.finfo(np.float64).max
    for x in (np.array([big, 6e307, 3e307, 9e306, -1e300]), np.array([-6e307, -big, -1.3e308, -7e307])):
        y = lsm.log_softmax(x, backend=backend)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(y, x - x.max())
        np.testing.assert_array_equal(lsm.log_softmax(x[:, None], 0, backend=backend), y[:, None])
        np.testing.assert_array_equal(lsm.softmax(x, backend=backend), np.eye(len(x))[0])
        np.testing.assert_array_equal(lsm.softmax(x, temperature=1e300, backend=backend), np.eye(len(x))[0])
        assert lsm.logsumexp(x, backend=backend) == x.max()
        assert lsm.entropy(x, backend=backend) == lsm.kl_divergence(x, x, backend=backend) == 0
        assert lsm.cross_entropy(x, 0, label_smoothing=0.1, backend=backend) > 0


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (0, 0), (3, 0, 2), (2, 3, 0)])
def test_empty(backend, dtype, shape):
    x = np.empty(shape, dtype)
    for axis in (*range(len(shape)), None):
        y = lsm.log_softmax(x, axis, backend=backend)
        assert y.shape == shape and y.dtype == dtype
        dx = lsm.log_softmax_backward(x, y, axis, backend=backend)
        assert dx.shape == shape and dx.dtype == dtype
        out = np.empty(shape, dtype)
        assert lsm.log_softmax(x, axis, out=out, backend=backend) is out
    with pytest.raises(np.exceptions.AxisError):
        lsm.log_softmax(x, len(shape), backend=backend)


def test_no_warnings_and_no_change_to_the_error_state(backend, dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7, -0.0])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        before = np.geterr()
        y = lsm.log_softmax(x, backend=backend)
        lsm.log_softmax_backward(x, y, backend=backend)
        lsm.log_softmax_backward(x, x, backend=backend)
        if dtype != np.longdouble:
            lsm.log_softmax(x.astype(np.float64), dtype=np.float32, backend=backend)
        assert np.geterr() == before


# -- backward's own rows --------------------------------------------------------------------------------------------


def test_shapes_that_differ(backend):
    with pytest.raises(ValueError, match=r"^grad_output, output: shapes \(2, 3\) and \(3,\) differ"):
        lsm.log_softmax_backward(np.zeros((2, 3)), np.zeros(3), backend=backend)


def test_dtypes_promote_as_numpy_does():
    f2, f4, f8 = (np.zeros(3, t) for t in ("f2", "f4", "f8"))
    b2 = np.zeros(3, ml_dtypes.bfloat16)
    i4 = np.zeros(3, "i4")
    for dy, y, want in (
        (f4, f8, "f8"), (f8, f4, "f8"), (f2, f4, "f4"), (b2, f4, "f4"), (i4, f4, "f8"), (f4, i4, "f8"), (f2, f2, "f2"),
        (f2, b2, "f4"), (b2, f2, "f4"),
    ):  # fmt: skip
        assert lsm.log_softmax_backward(dy, y).dtype == want


def several_axes(x):
    for axis in ((1, 3), (2, 3), (3, 1), (0, 1), (0, 2, 3), None, ()):
        for name, view in (("C", x), ("F", x.T), ("part", x[:, ::2]), ("backwards", x[::-1, :, ::-1])):
            yield f"{axis} {name}", view, axis


def test_out_along_several_axes(backend, rng):
    """Written in place, beside it, over part of the input, and where no stride leads through: always the same bits."""
    memory = rng.standard_normal((4, 6, 5, 7)).astype(np.float32)
    for name, x, axis in several_axes(memory):
        y = lsm.log_softmax(x.copy(), axis, backend=backend)
        dx = lsm.log_softmax_backward(x.copy(), y, axis, backend=backend)
        for out in (np.empty_like(y), np.empty(y.T.shape, np.float32).T, np.empty((*y.shape, 2), np.float32)[..., 0]):
            assert lsm.log_softmax(x, axis, out=out, backend=backend) is out
            np.testing.assert_array_equal(out, y, err_msg=name)
            lsm.log_softmax_backward(x, y, axis, out=out, backend=backend)
            np.testing.assert_array_equal(out, dx, err_msg=name)
            out[...] = y
            lsm.log_softmax_backward(x, out, axis, out=out, backend=backend)
            np.testing.assert_array_equal(out, dx, err_msg=name)
            out[...] = x
            lsm.log_softmax_backward(out, y, axis, out=out, backend=backend)
            np.testing.assert_array_equal(out, dx, err_msg=name)
        before = memory.copy()
        lsm.log_softmax(x, axis, out=x, backend=backend)
        np.testing.assert_array_equal(x, y, err_msg=name)
        memory[...] = before


def test_out_over_part_of_the_input_along_several_axes(backend, rng):
    memory = rng.standard_normal((5, 4, 6, 3)).astype(np.float32)
    for axis in ((1, 2), (1, 3), (2, 3), None):
        for first, last in ((slice(0, 4), slice(1, 5)), (slice(1, 5), slice(0, 4))):
            room = memory.copy()
            y = lsm.log_softmax(room[first].copy(), axis, backend=backend)
            lsm.log_softmax(room[first], axis, out=room[last], backend=backend)
            np.testing.assert_array_equal(room[last], y)
            room = memory.copy()
            dx = lsm.log_softmax_backward(room[first].copy(), y, axis, backend=backend)
            lsm.log_softmax_backward(room[first], y, axis, out=room[last], backend=backend)
            np.testing.assert_array_equal(room[last], dx)
