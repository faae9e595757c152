"""cross_entropy and its gradient, on every backend: against mpmath, what special frames and targets give, the bits."""

import warnings

import family_oracle as exact
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lsm
from lsm._reduce import total

NAN, INF = np.nan, np.inf


def both(x, t, backend=None, **options):
    """The losses and the gradient, which do not depend on which function gave them."""
    axis = options.pop("axis", -1)
    value, gradient = lsm.cross_entropy_value_and_grad(x, t, axis, **options, backend=backend)
    np.testing.assert_array_equal(lsm.cross_entropy(x, t, axis, **options, backend=backend), value)
    return value, gradient


def bound(dtype):
    return 0.501 if dtype.itemsize < 4 else 4.0


# -- accuracy -------------------------------------------------------------------------------------------------------

MODES = {
    "label": {},
    "weighted": {"weight": True},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed, weighted, z_loss": {"label_smoothing": 0.2, "weight": True, "z_loss": 1e-3},
    "tempered": {"temperature": 0.7},
    "probabilities": {"soft": True},
    "all": {"soft": True, "weight": True, "label_smoothing": 0.2, "z_loss": 1e-3, "temperature": 3.1},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [2, 33])
def test_the_loss_and_its_gradient(backend, dtype, n, mode, rng):
    options = dict(MODES[mode])
    soft, has_weight = options.pop("soft", False), options.pop("weight", False)
    x = exact.frames(rng, n).astype(dtype)
    weight = rng.uniform(0, 3, n) if has_weight else None
    t = rng.integers(0, n, len(x))
    t[1], t[6] = 0, n // 2
    q = rng.dirichlet(np.full(n, 0.3), len(x)) if soft else np.eye(n)[t]
    result = np.float32 if dtype.itemsize == 2 else dtype
    losses, gradient = both(x, q if soft else t, backend, weight=weight, reduction="none", **options)
    assert losses.dtype == result and gradient.dtype == dtype
    for i in range(len(x)):
        factor = weight[t[i]] if has_weight and not soft else 1.0
        arguments = [options.get(name, default) for name, default in (("label_smoothing", 0), ("z_loss", 0))]
        (loss, at_loss), dx, at = exact.cross_entropy(
            x[i], q[i], weight, *arguments, factor, options.get("temperature", 1.0)
        )
        if mode in ("label", "weighted", "tempered"):
            at = np.abs(dx)
        assert exact.ulps(losses[i], loss, at_loss) <= 4
        assert exact.ulps(gradient[i], dx, at).max() <= bound(dtype)


def test_nothing_of_confident_frames_vanishes(backend, rng):
    x = rng.standard_normal((500, 10)).astype(np.float32)
    t = rng.integers(0, 10, 500)
    x[np.arange(500), t] += rng.uniform(17, 80, 500).astype(np.float32)
    losses, gradient = both(x, t, backend, reduction="none")
    assert (losses > 0).all() and (gradient != 0).all()
    at_target = gradient[np.arange(500), t]
    np.testing.assert_allclose(at_target, -losses, rtol=1e-6)


def test_what_peers_lose(backend):
    """Rows of the table of promises."""
    equal = np.zeros((1, 128256), np.float16)
    value, gradient = both(equal, [5], backend)
    assert value.dtype == np.float32 and abs(value - np.log(128256)) < 1e-6
    assert gradient[0, 0] == np.float16(1 / 128256)
    x = np.array([[0, 2, 1, -1]], np.float32)
    for offset in (0, 1e6):
        loss = both(x + np.float32(offset), [1], backend)[0]
        assert exact.ulps(loss, exact.cross_entropy(x[0], [0, 1, 0, 0])[0][0]) <= 4
    value = lsm.cross_entropy(np.array([[-36.1, 0]]).astype("float16"), [0], backend=backend)
    assert value.dtype == np.float32 and abs(value - 36.09375) < 1e-5


# -- reductions and weights -----------------------------------------------------------------------------------------


def test_reductions(backend, dtype, rng):
    x = (rng.standard_normal((2300, 7)) * 3).astype(dtype)
    t = rng.integers(0, 7, 2300)
    t[::3] = -100
    weight = rng.uniform(0, 2, 7)
    weight[2] = 0
    for w in (None, weight):
        options = {"weight": w, "ignore_index": -100, "dtype": "float64" if dtype != np.longdouble else None}
        losses, gradient = both(x, t, backend, reduction="none", **options)
        factor = np.where(t < 0, 0, 1 if w is None else w[np.maximum(t, 0)])
        assert (losses[factor == 0] == 0).all() and (gradient[factor == 0] == 0).all()
        total, of_sum = both(x, t, backend, reduction="sum", **options)
        np.testing.assert_array_equal(of_sum, gradient)
        np.testing.assert_allclose(float(total), float(np.sum(losses.astype(np.longdouble))), rtol=3e-16)
        mean, of_mean = both(x, t, backend, **options)
        np.testing.assert_allclose(float(mean), float(total) / factor.sum(), rtol=1e-15)
        wide = gradient.astype(np.float64) / factor.sum()
        np.testing.assert_allclose(
            of_mean.astype(np.float64), wide, rtol=2e-2 if dtype.itemsize < 4 else 1e-6, atol=1e-7
        )


def test_nothing_is_left(backend):
    x = np.ones((2, 3), np.float32)
    for options in ({"ignore_index": 1}, {"weight": [1.0, 0.0, 1.0]}):
        value, gradient = both(x, [1, 1], backend, **options)
        assert np.isnan(value) and (gradient == 0).all()
        value, gradient = both(x, [1, 1], backend, reduction="sum", **options)
        assert value == 0 and (gradient == 0).all()
    assert np.isnan(both(np.empty((0, 3)), [], backend)[0])
    assert both(np.empty((0, 3)), [], backend, reduction="sum")[0] == 0
    assert np.isnan(both(np.empty((0, 3)), np.empty((0, 3)), backend)[0])
    assert both(np.empty((0, 3)), [], backend, reduction="none")[0].shape == (0,)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}])
def test_the_mean_with_weights_below_the_range(backend, options):
    """The mean depends on nothing but their ratios."""
    x, t = np.array([[0.0, 1], [2, 0], [-1, 3]]), [0, 1, 1]
    tiny = np.finfo(float).smallest_subnormal
    for weight in ([1, 1], [1, 2]):
        found, expected = (both(x, t, backend, weight=np.array(weight) * scale, **options) for scale in (tiny, 1.0))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (both(x[:, :1], [0, 0, 0], backend, weight=[tiny], **options)[1] != 0).any() == ("z_loss" in options)


def test_what_is_ignored_is_not_read(backend, dtype):
    x = np.array([[NAN, 0], [INF, 1], [-INF, -INF], [1, 2]]).astype(dtype)
    value, gradient = both(x, [-1, -1, -1, 0], backend, ignore_index=-1)
    alone, of_alone = both(x[3:], [0], backend)
    assert value == alone and (gradient[:3] == 0).all() and (gradient[3:] == of_alone).all()
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        value, gradient = both(x, [9, 9, 9, 0], backend, ignore_index=9, **options)
        assert np.isfinite(value) and (gradient[:3] == 0).all()


def test_the_mean_of_probabilities_counts_all_frames(backend):
    x, q = np.zeros((4, 2)), np.array([[1, 0], [0, 0], [0.5, 0.5], [2, 1]])
    value, gradient = both(x, q, backend)
    np.testing.assert_allclose(value, np.log(2) * 5 / 4, rtol=1e-15)
    assert (gradient[1] == 0).all()


def test_smoothed_labels_are_probabilities(backend, rng):
    x, t, w = rng.standard_normal((40, 50)), rng.integers(0, 50, 40), rng.uniform(0.5, 2, 50)
    x[:, 7] = -INF
    t[t == 7] = 8
    q = 0.9 * np.eye(50)[t] + 0.1 / 49 * (np.arange(50) != 7)
    for weight in (None, w):
        for dtype in (np.float32, np.float64):
            smoothed = both(x.astype(dtype), t, backend, label_smoothing=0.1, weight=weight, reduction="none")
            given = both(x.astype(dtype), q, backend, weight=weight, reduction="none")
            for a, b in zip(smoothed, given, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-8)


# -- special frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"weight": [1.0, 2, 3]}, {"label_smoothing": 0.1}, {"z_loss": 0.1}])
@pytest.mark.parametrize("dtype_name", ["float16", "float32", "float64"])
def test_invalid_frames(backend, dtype_name, options):
    x = np.array([[NAN, 0, 1], [INF, 0, 1], [-INF, -INF, -INF], [1, 2, 3]], dtype_name)
    for t in ([1, 1, 1, 1], np.full((4, 3), 1 / 3), np.zeros((4, 3))):
        value, gradient = both(x, t, backend, reduction="none", **options)
        assert np.isnan(value[:3]).all() and np.isnan(gradient[:3]).all()
        assert np.isfinite(value[3]) and np.isfinite(gradient[3]).all()


@pytest.mark.parametrize("dtype_name", ["float16", "float32", "float64"])
def test_masked_classes(backend, dtype_name):
    x = np.array([[0, -INF, 0]], dtype_name)
    where = np.array([True, False, True])
    free = np.where(where, x, NAN)  # what is masked is not read
    for masked, options in ((x, {}), (free, {"where": where})):
        value, gradient = both(masked, [0], backend, **options)
        assert abs(value - np.log(2)) < 1e-6 and gradient.tolist() == [[-0.5, 0, 0.5]]
        value, gradient = both(masked, np.array([[0.25, 0, 0.75]]), backend, **options)
        assert abs(value - np.log(2)) < 1e-6 and gradient.tolist() == [[0.25, 0, -0.25]]
        value, gradient = both(masked, [0], backend, label_smoothing=0.5, **options)
        assert abs(value - np.log(2)) < 1e-6 and gradient.tolist() == [[-0.25, 0, 0.25]]
        at_masked = 0 if options else -1
        for t in ([1], np.array([[0.0, 1.0, 0.0]])):
            value, gradient = both(masked, t, backend, **options)
            assert value == INF and gradient.tolist() == [[0.5, at_masked, 0.5]]
        value, gradient = both(masked, [1], backend, weight=[1, 2, 1], reduction="sum", **options)
        assert value == INF and gradient.tolist() == [[1, 2 * at_masked, 1]]
        value, gradient = both(masked, [1], backend, label_smoothing=0.5, **options)
        assert value == INF and gradient.tolist() == [[0.25, at_masked / 2, 0.25]]


@pytest.mark.parametrize("dtype_name", ["float16", "float32", "float64"])
def test_a_mask_that_leaves_nothing(backend, dtype_name):
    x, where = np.array([[1, NAN], [1, 2]], dtype_name), np.array([[False], [True]])
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"temperature": 2.0}):
        value, gradient = both(x, [0, 0], backend, where=where, reduction="none", **options)
        assert value[0] == INF and np.isfinite(value[1]) and (gradient[0] == 0).all() and (gradient[1] != 0).all()
        value, gradient = both(x, np.array([[0, 0], [1, 0.0]]), backend, where=where, reduction="none", **options)
        assert value[0] == 0 and np.isfinite(value[1]) and (gradient[0] == 0).all()
    assert both(x, [0, 0], backend, where=where, weight=[0, 1], reduction="none")[0].tolist() == [0, 0]


def test_a_mask_beside_an_invalid_frame(backend):
    x, where = np.array([[NAN, 1.0, 2.0]]), np.array([True, True, False])
    for t in ([1], np.array([[0.5, 0.5, 0]])):
        value, gradient = both(x, t, backend, where=where)
        assert np.isnan(value) and np.isnan(gradient[0, :2]).all() and gradient[0, 2] == 0


def test_empty_axes_and_scalars(backend):
    assert both(np.empty((2, 0)), np.empty((2, 0)), backend)[0] == 0
    assert both(np.empty((2, 0)), [3, 3], backend, ignore_index=3, reduction="none")[0].tolist() == [0, 0]
    with pytest.raises(IndexError, match="no classes"):
        lsm.cross_entropy(np.empty((2, 0)), [0, 0], backend=backend)
    value, gradient = both(3.0, 0, backend)
    assert type(value) is np.float64 and value == 0 and gradient == 0 and not np.signbit(value)
    assert both(np.float32(3), np.float32(1), backend)[0] == 0


@pytest.mark.parametrize("options", [{}, {"weight": [0.3]}, {"label_smoothing": 0.1}, {"temperature": 0.7}])
def test_one_class_has_no_gradient(backend, dtype, options):
    for t in ([0, 0], np.ones((2, 1))):
        for smoothing in ({}, {"label_smoothing": 0.1}):
            value, gradient = both(np.array([[3], [-1]], dtype), t, backend, **options | smoothing)
            assert value == 0 and (gradient == 0).all()


def test_no_warnings(backend, dtype):
    values = np.array([NAN, INF, -INF, 0, 6e4, -6e4, 1e-7, -0.0])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 10.0, "dtype": dtype}):
            lsm.cross_entropy_value_and_grad(x, np.zeros(len(x), int), **options, backend=backend)
        lsm.cross_entropy_value_and_grad(x, np.full(x.shape, 0.3), temperature=0.1, backend=backend)
        weight = np.array([1, np.finfo(np.longdouble).max, np.finfo(np.longdouble).tiny])
        lsm.cross_entropy_value_and_grad(x, np.zeros(len(x), int), weight=weight, backend=backend)


# -- bits, axes and memory ------------------------------------------------------------------------------------------


def test_a_label_without_options_is_minus_take(backend, rng):
    x = (rng.standard_normal((40, 50)) * 5).astype(np.float32)
    t = rng.integers(0, 50, 40)
    for dtype in (np.float32, np.float64):
        losses = lsm.cross_entropy(x.astype(dtype), t, reduction="none", backend=backend)
        np.testing.assert_array_equal(losses, 0 - lsm.take_log_softmax(x.astype(dtype), t, backend=backend))
        assert not np.signbit(losses).any()
    wide = lsm.cross_entropy(x, t, reduction="none", dtype="float64", backend=backend)
    np.testing.assert_array_equal(wide, lsm.cross_entropy(x, t, reduction="none", backend=backend).astype(np.float64))


OPTIONS = [
    {},
    {"weight": True, "label_smoothing": 0.1},
    {"z_loss": 1e-3},
    {"temperature": 0.7},
    {"where": True},
    {"where": True, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("n", [1, 5, 33, 700])
def test_a_frame_has_the_same_bits_everywhere(backend, n, options, rng):
    shape = (3, 200 if n < 700 else 60, n)
    options = dict(options)
    where = rng.random(shape) < 0.8 if options.pop("where", False) else None
    if options.pop("weight", False):
        options["weight"] = rng.uniform(0, 2, n)
    for dtype in (np.float32, np.float64):
        x = (rng.standard_normal(shape) * 4).astype(dtype)
        x[1, ::7, n // 2] = -INF  # what others hold changes nothing
        for soft in (False, True):
            t = rng.dirichlet(np.ones(n), shape[:2]) if soft else rng.integers(0, n, shape[:2])
            options |= {"reduction": "none", "dtype": "float64"}
            whole, gradient = both(x, t, backend, where=where, **options)
            for i in ((0, 0), (1, 7), (1, 8), (2, -1)):
                alone = both(x[i], t[i], backend, where=None if where is None else where[i], **options)
                np.testing.assert_array_equal(alone[0], whole[i])
                np.testing.assert_array_equal(alone[1], gradient[i])
            turned = x.swapaxes(1, 2).copy()
            q, mask = (None if a is None else a.swapaxes(1, 2) for a in (t if soft else None, where))
            there = both(turned, t if q is None else q, backend, axis=1, where=mask, **options)
            np.testing.assert_array_equal(there[0], whole)
            np.testing.assert_array_equal(there[1].swapaxes(1, 2), gradient)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "shape", [(700, 100), (20000, 4), (3, 40000), (2, 70, 3000), (300, 5, 40), (3, 20000, 2), (9, 1, 3), (2, 17, 4400)]
)
def test_large_arrays_have_the_bits_of_any_layout(backend, dtype, shape, reduction, rng):
    if dtype == np.longdouble:
        return
    x = (rng.standard_normal(shape) * 4).astype(dtype)
    t = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    x[0, 0], x[-1, -1], x[shape[0] // 2, ..., 0] = -INF, NAN, INF
    t.flat[::3] = 0
    far = np.repeat(x, 2, -1)[..., ::2]  # the same numbers, and no contiguous array

    def same(found, wanted):
        np.testing.assert_array_equal(np.asarray(found, float), np.asarray(wanted, float))

    for options in ({}, {"ignore_index": 0}, {"weight": rng.random(shape[1]), "ignore_index": int(t.flat[-1])}):
        options |= {"axis": 1, "reduction": reduction, "backend": backend}
        value, gradient = lsm.cross_entropy_value_and_grad(far, t, **options)
        for n_threads in (1, 3):
            with lsm.num_threads(n_threads):
                found = lsm.cross_entropy_value_and_grad(x, t, **options)
                same(found[0], value)
                same(found[1], gradient)
                same(lsm.cross_entropy(x, t, **options), value)
        out = x.copy()
        lsm.cross_entropy_value_and_grad(out, t, **options, out=out)
        same(out, gradient)
    with lsm.num_threads(2):
        same(lsm.take_log_softmax(x, t, 1, backend=backend), lsm.take_log_softmax(far, t, 1, backend=backend))


def test_the_gradient_in_place(backend, rng):
    x = rng.standard_normal((300, 900)).astype(np.float32)
    t, q = rng.integers(0, 900, 300), rng.dirichlet(np.ones(900), 300).astype(np.float32)
    for targets in (t, q):
        value, gradient = both(x, targets, backend)
        memory = x.copy()
        in_place = lsm.cross_entropy_value_and_grad(memory, targets, out=memory, backend=backend)
        assert in_place[0] == value and in_place[1] is memory
        np.testing.assert_array_equal(memory, gradient)
        shifted = np.concatenate([x, x[:1]])
        lsm.cross_entropy_value_and_grad(shifted[:-1], targets, out=shifted[1:], backend=backend)
        np.testing.assert_array_equal(shifted[1:], gradient)
        for out in (np.empty(x.shape[::-1], "f4").T, np.empty(x.shape, ">f4")):
            lsm.cross_entropy_value_and_grad(x, targets, out=out, backend=backend)
            np.testing.assert_array_equal(out, gradient)
    lsm.cross_entropy_value_and_grad(x, q, out=q, backend=backend)
    np.testing.assert_array_equal(q, gradient)


def test_several_axes_of_probabilities(backend, rng):
    x, q = rng.standard_normal((2, 3, 4, 5)), rng.random((2, 3, 4, 5))
    value, gradient = both(x, q, backend, axis=(3, 1), reduction="none")
    flat = [a.transpose(0, 2, 1, 3).reshape(2, 4, 15) for a in (x, q)]
    expected, of_flat = both(*flat, backend, reduction="none")
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient.transpose(0, 2, 1, 3).reshape(2, 4, 15), of_flat)
    assert np.ndim(both(x, q, backend, axis=None)[0]) == 0


def test_threads_change_nothing(rng):
    x, t = rng.standard_normal((3000, 300)).astype(np.float32), rng.integers(0, 300, 3000)
    with lsm.num_threads(1):
        one = both(x, t)
    two = both(x, t)
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[1], two[1])


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "options", "error", "message"),
    [
        ([0, 5], {}, IndexError, r"^targets: 5 at \[1\]; accepted: 0 to 2; pass ignore_index="),
        ([0, -1], {}, IndexError, r"^targets: -1 at \[1\]"),
        ([0, 7], {"ignore_index": 8}, IndexError, r"^targets: 7"),
        ([0, 1, 2], {}, ValueError, r"^targets: shape \(3,\); accepted: \(2,\), the shape of the frames"),
        (
            [0.0, 1.0],
            {},
            ValueError,
            r"^targets: shape \(2,\) of dtype float64; accepted: \(2, 3\), the shape of logits",
        ),
        ([True, False], {}, TypeError, "^targets: dtype bool; accepted: integers"),
        (["a", "b"], {}, TypeError, "^targets: dtype str"),
        (np.ma.masked_array([0, 1], [0, 1]), {}, TypeError, "^targets: "),
        (np.ones((2, 3)), {"ignore_index": 1}, TypeError, "^ignore_index: 1, with probabilities"),
        ([0, 1], {"ignore_index": 1.5}, TypeError, "^ignore_index: 1.5; accepted: an int"),
        ([0, 1], {"ignore_index": True}, TypeError, "^ignore_index: True; accepted: an int"),
        ([0, 1], {"ignore_index": np.array([1, 2])}, TypeError, r"^ignore_index: array\(\[1, 2\]\); accepted: an int"),
        ([0, 1], {"weight": [1, 2]}, ValueError, r"^weight: shape \(2,\); accepted: \(3,\)"),
        ([0, 1], {"weight": [1j, 2, 3]}, TypeError, "^weight: dtype complex128"),
        ([0, 1], {"label_smoothing": 1.5}, ValueError, "^label_smoothing: 1.5; accepted: a finite number from 0 to 1"),
        ([0, 1], {"label_smoothing": NAN}, ValueError, "^label_smoothing: nan"),
        ([0, 1], {"z_loss": -1}, ValueError, "^z_loss: -1; accepted: a finite number of at least 0"),
        ([0, 1], {"z_loss": "1"}, ValueError, "^z_loss: '1'"),
        ([0, 1], {"reduction": "max"}, ValueError, "^reduction: 'max'; accepted: 'mean', 'sum' or 'none'"),
        ([0, 1], {"reduction": np.array(["sum", "none"])}, ValueError, "^reduction: array"),
        ([0, 1], {"temperature": 0}, ValueError, "^temperature: 0"),
        ([0, 1], {"where": [1, 0, 1]}, TypeError, "^where: "),
        ([0, 1], {"axis": (0, 1)}, TypeError, r"^axis: \(0, 1\); accepted: one int"),
        ([0, 1], {"axis": None}, TypeError, "^axis: None"),
        ([0, 1], {"axis": 2}, np.exceptions.AxisError, "axis 2"),
        ([0, 1], {"dtype": "int8"}, TypeError, "^dtype: "),
        ([0, 1], {"backend": "no such"}, lsm.UnknownBackendError, "no such"),
    ],
)
def test_arguments_that_are_refused(targets, options, error, message):
    out = np.full((2, 3), 7.0)
    with pytest.raises(error, match=message):
        lsm.cross_entropy_value_and_grad(np.zeros((2, 3)), targets, out=out, **options)
    assert (out == 7).all()
    with pytest.raises(error, match=message):
        lsm.cross_entropy(np.zeros((2, 3)), targets, **options)


def test_the_message_about_the_dtype_of_out_fits_gradients():
    x = np.zeros((2, 3), np.float32)
    for options in ({}, {"dtype": "float64"}):  # which sets the dtype of the loss alone
        with pytest.raises(TypeError, match=r"^out: has dtype float64; .* float32 \(.* dtype= except for gradients\)"):
            lsm.cross_entropy_value_and_grad(x, [0, 1], out=np.zeros((2, 3)), **options)


def test_logits_that_are_refused(backend):
    for x in (np.zeros((2, 3), complex), np.ma.masked_array(np.zeros((2, 3))), [["a", "b", "c"]] * 2):
        with pytest.raises(TypeError, match="^logits: "):
            lsm.cross_entropy(x, [0, 1], backend=backend)
    with pytest.raises(ValueError, match=r"^out: has shape \(3, 2\)"):
        lsm.cross_entropy_value_and_grad(np.zeros((2, 3)), [0, 1], out=np.zeros((3, 2)), backend=backend)
    with pytest.raises(TypeError, match="^out: has dtype float32"):
        lsm.cross_entropy_value_and_grad(np.zeros((2, 3)), [0, 1], out=np.zeros((2, 3), "f4"), backend=backend)


class TwoMethods(lsm.Backend):
    """All that a plugin must have."""

    name, api_version, dtypes = "two_methods", 1, ("float32",)

    def log_softmax(self, x, axis, out):
        lsm.log_softmax(x, axis, out=out, backend="numpy")

    def log_softmax_backward(self, grad_output, output, axis, out):
        raise NotImplementedError


def test_a_backend_of_two_methods_serves_them_all(installed, rng):
    installed(TwoMethods())
    x, t = rng.standard_normal((30, 40)).astype(np.float32), rng.integers(0, 40, 30)
    for options in ({}, {"label_smoothing": 0.1}, {"where": rng.random((30, 40)) < 0.9}, {"temperature": 2.0}):
        value, gradient = both(x, t, "two_methods", reduction="none", **options)
        expected, dx = both(x, t, "numpy", reduction="none", **options)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, dx, rtol=1e-5, atol=1e-8)
    for call in (
        lsm.entropy,
        lambda x, **o: lsm.kl_divergence(x, x, **o),
        lambda x, **o: lsm.take_log_softmax(x, t, **o),
    ):
        np.testing.assert_allclose(call(x, backend="two_methods"), call(x, backend="numpy"), rtol=1e-6)
    with lsm.use_backend("two_methods"):
        decision = lsm.explain(x, "cross_entropy")
        assert decision.winner == "two_methods" and decision.derived_from == "log_softmax"
        assert "cross_entropy of" in str(decision) and "derived from log_softmax" in str(decision)
        with pytest.raises(lsm.BackendUnsupportedError, match="float64"):
            lsm.cross_entropy(x.astype(np.float64), t)
        assert lsm.explain(x.astype(np.float64), "entropy").winner is None


def test_explain_names_the_functions():
    with pytest.raises(ValueError, match="^op: 'sample'.*'cross_entropy'"):
        lsm.explain(1.0, "sample")
    decision = lsm.explain(np.zeros(3, np.float16), "cross_entropy")
    assert decision.dtype == "float16 to float32" and decision.op == "cross_entropy"
    assert lsm.explain(np.zeros(3, np.float16), "top_k_log_softmax").dtype == "float16"
    assert not lsm.explain(np.zeros(3)).derived_from


# -- properties -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_losses_add_up_and_gradients_do_not(data):
    """No loss is negative, a gradient without z_loss sums to 0, and a step against it lowers the loss."""
    n = data.draw(st.integers(1, 6))
    n_frames = data.draw(st.integers(1, 5))
    numbers = st.floats(-30, 30, width=32)
    weights = st.just(0.0) | st.floats(1e-3, 4)  # if that of a label is far smaller, a smoothed mean is huge or inf
    x = np.array(data.draw(st.lists(numbers, min_size=n * n_frames, max_size=n * n_frames))).reshape(n_frames, n)
    options = {
        "weight": data.draw(st.none() | st.lists(weights, min_size=n, max_size=n)),
        "label_smoothing": data.draw(st.sampled_from([0, 0.3, 1])),
        "reduction": data.draw(st.sampled_from(["mean", "sum", "none"])),
        "temperature": data.draw(st.sampled_from([1.0, 0.5])),
    }
    if data.draw(st.booleans()):
        t = np.array(data.draw(st.lists(st.floats(0, 2), min_size=n * n_frames, max_size=n * n_frames)))
        t = t.reshape(n_frames, n)
    else:
        t = np.array(data.draw(st.lists(st.integers(-1, n - 1), min_size=n_frames, max_size=n_frames)))
        options["ignore_index"] = -1
    value, gradient = both(x, t, **options)
    assert not (np.asarray(value) < 0).any()
    assert np.isfinite(gradient).all()
    scale = np.abs(gradient).sum(axis=1) + 1e-300
    assert (np.abs(gradient.sum(axis=1)) <= 1e-13 * scale + 1e-15 * 30).all()
    if np.isfinite(value).all():
        step = 1e-6 * gradient
        assert np.sum(lsm.cross_entropy(x - step, t, **options)) <= np.sum(value) * (1 + 1e-12)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_small_matrices_have_the_same_bits(backend, dtype, reduction, rng):
    """They take a shorter way, which options do not."""
    for shape in ((17, 9), (1, 1), (1030, 3)):
        x = (rng.standard_normal(shape) * 3).astype(dtype)
        targets = rng.integers(0, shape[1], shape[0])
        lsm.log_softmax(x, backend=backend)  # the first call has no shorter way
        masked = x.copy()
        masked[:, targets[0]] = -np.inf
        for logits in (x, masked):
            found = lsm.cross_entropy(logits, targets, reduction=reduction, backend=backend)
            expected = lsm.cross_entropy(logits, targets, reduction=reduction, ignore_index=-7, backend=backend)
            assert found.dtype == expected.dtype and type(found) is type(expected)
            np.testing.assert_array_equal(np.float64(found), np.float64(expected))
            assert not (np.signbit(found) & (np.float64(found) == 0)).any()


@pytest.mark.parametrize("n", [0, 1021, 3000])
def test_rounding_errors_of_a_sum_are_carried(n):
    terms = np.concatenate([[1e16, 1.0], np.zeros(n), [-1e16]])
    assert total(terms) == 1
    assert total(np.array([1e308, 1e308, -1e308])) in (1e308, np.inf)
    assert np.isnan(total(np.array([np.inf, np.nan, 1])))
