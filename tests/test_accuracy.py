"""The accuracy bound: 4 ulp in float32 and float64, one rounding in 16 bits, on every kind of finite frame."""

import numpy as np
import oracle
import pytest

import lsm
from conftest import DTYPES

# forward, and backward in ulps of the largest of the result and its terms; longdouble has no wider C library
BOUND = {"float16": 0.501, "bfloat16": 0.501, "float32": 4, "float64": 4, "longdouble": 4}
N_CLASSES = (1, 2, 3, 10, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 4097, 16383, 16384, 16385, 50257)


def bound(dtype):
    return BOUND["longdouble" if dtype.char == "g" else dtype.name]


def frames(kind, shape, dtype, rng):
    """Logits of one kind, as `dtype` holds them."""
    x = rng.standard_normal(shape) * 3
    info = {"float16": (6e4, 6e-8), "bfloat16": (1e30, 1e-39), "float32": (1e30, 1e-40), "float64": (1e300, 1e-310)}
    huge, tiny = info.get(dtype.name, (1e300, 1e-310))
    if kind == "peaked":
        k = rng.integers(0, shape[-1], shape[:-1])[..., None]
        np.put_along_axis(x, k, x.max() + rng.uniform(5, 100, k.shape), axis=-1)
    elif kind == "two peaks":
        x[..., : shape[-1] // 2 + 1] -= 60
        x[..., 0] = 30
        x[..., -1] = 30
    elif kind == "huge":
        x = np.clip(x / 3, -1, 1) * huge
    elif kind == "constant":
        x[...] = x[..., :1]
    elif kind == "subnormal":
        x *= tiny
    elif kind == "masked":
        x[rng.random(shape) < 0.5] = -np.inf
        x[..., 0] = 1
    elif kind == "far from 0":
        x += rng.uniform(-1e4, 1e4, (*shape[:-1], 1))
    with np.errstate(all="ignore"):
        return x.astype(dtype)


KINDS = ("ordinary", "peaked", "two peaks", "huge", "constant", "subnormal", "masked", "far from 0")


@pytest.mark.except_backend("cuda-on-cpu")
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_within_the_bound(backend, dtype, kind, rng):
    for n in N_CLASSES if kind in ("ordinary", "masked") else N_CLASSES[1::3]:
        shape = (max(1, min(200, 20000 // n)), n)
        x = frames(kind, shape, dtype, rng)
        y = lsm.log_softmax(x, backend=backend)
        exact = oracle.log_softmax(x)
        if dtype.char == "g":  # the oracle is no wider than the result: ask mpmath, for two frames
            if n > 33:
                break
            x, y = x[:2], y[:2]
            shape = x.shape
            exact = np.stack([oracle.log_softmax_mp(frame) for frame in x])
        assert oracle.ulps(y, exact) <= bound(dtype), n
        dy = rng.standard_normal(shape).astype(dtype)
        dx = lsm.log_softmax_backward(dy, y, backend=backend)
        exact, at = oracle.backward(dy, y)
        assert oracle.ulps(dx, exact, at) <= bound(dtype), n


def test_longdouble_against_mpmath(rng):
    for lead in (0, 5, 20, 90, 1000):
        x = rng.standard_normal(50).astype(np.longdouble) * 3
        x[7] = x.max() + lead
        y = lsm.log_softmax(x)
        assert oracle.ulps(y, oracle.log_softmax_mp(x)) <= 4, lead


def test_the_oracle_against_mpmath(rng):
    for lead in (0, 5, 20, 90):
        x = rng.standard_normal(50) * 3
        x[7] = x.max() + lead
        exact = oracle.log_softmax(x)
        off = np.abs(exact - oracle.log_softmax_mp(x)) / oracle.spacing(exact, np.float64)
        assert off.max() < 0.01


@pytest.mark.parametrize("lead", [5, 10, 16, 20, 30, 40, 60, 80, 90, 100])
def test_peaked_frames_keep_their_digits(backend, lead):
    for dtype in (np.float32, np.float64):
        for other in (0.0, 0.1, -7.3, 1234.5):
            x = np.array([[other + lead, other], [other, other + lead]], dtype)
            y = lsm.log_softmax(x, backend=backend)
            assert oracle.ulps(y, oracle.log_softmax(x)) <= 4
            if lead < 100 or dtype == np.float64:  # exp(-100) is below the smallest float32
                assert (y.max(axis=-1) < 0).all()


@pytest.mark.except_backend("cuda-on-cpu")
@pytest.mark.parametrize("n", [2**17, 2**20])
def test_long_frames(backend, n, rng):
    for dtype in (np.float32, np.float64):
        for x in (rng.standard_normal(n) * 3, np.full(n, 0.3), np.linspace(-30, 0, n)):
            x = x.astype(dtype)
            y = lsm.log_softmax(x, backend=backend)
            assert oracle.ulps(y, oracle.log_softmax(x)) <= 4
            dy = rng.random(n).astype(dtype)  # of one sign, so that rounding errors would add up
            exact, at = oracle.backward(dy, y)
            assert oracle.ulps(lsm.log_softmax_backward(dy, y, backend=backend), exact, at) <= 4


def test_sixteen_bits_do_not_overflow(backend, dtype):
    if dtype.itemsize != 2:
        return
    y = lsm.log_softmax(np.zeros(65_537, dtype), backend=backend)
    np.testing.assert_array_equal(y, np.float64(-np.log(65_537)).astype(dtype))


def test_gradient_of_confident_frames_does_not_vanish(backend, rng):
    for dtype in (np.float32, np.float64):
        x = (rng.standard_normal((500, 1000)) * 1.5).astype(dtype)
        k = rng.integers(0, 1000, (500, 1))
        np.put_along_axis(x, k, np.float64(x.max()) + rng.uniform(5, 80, (500, 1)), axis=-1)
        y = lsm.log_softmax(x, backend=backend)
        dy = np.zeros_like(x)
        np.put_along_axis(dy, k, -1, axis=-1)
        dx = lsm.log_softmax_backward(dy, y, backend=backend)
        target = np.take_along_axis(dx, k, axis=-1)
        assert (target < 0).all()
        # Not only of the terms: S = -1 is exact, so the result itself is within 4 ulp.
        exact, _ = oracle.backward(dy, y)
        assert oracle.ulps(dx, exact) <= 4


def test_gradient_against_finite_differences(backend, rng):
    x = rng.standard_normal((4, 7))
    weights = rng.standard_normal((4, 7))
    dx = lsm.log_softmax_backward(weights, lsm.log_softmax(x, backend=backend), backend=backend)
    h = 1e-6
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        up, down = (np.sum(weights * lsm.log_softmax(x + s, backend=backend)) for s in (step, -step))
        # the difference quotient is right to about h**2 + 2**-52 / h
        assert abs((up - down) / (2 * h) - dx[i]) < 1e-8


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e20, 1e25, 1e30, 1e37])
def test_backward_over_the_range_of_float32(backend, scale, rng):
    """S from subnormal to near overflow, y down to where exp(y) is far below the smallest float32."""
    y = np.linspace(-200, 0, 1001, dtype=np.float32).reshape(1, -1)
    dy = np.zeros_like(y)
    dy[0, 500] = np.float32(scale)
    dx = lsm.log_softmax_backward(dy, y, backend=backend)
    exact, at = oracle.backward(dy, y)
    assert oracle.ulps(dx, exact, at) <= 4


def test_backward_of_sums_that_overflow(backend):
    """The sum leaves the type, the gradient does not."""
    for dtype in (np.float32, np.float64):
        big = np.finfo(dtype).max
        dy = np.array([big, big, 0, 1.5], dtype)
        y = np.array([-3, -4, -5, -np.inf], dtype)
        dx = lsm.log_softmax_backward(dy, y, backend=backend)
        s = np.longdouble(big) * 2
        exact = dy.astype(np.longdouble) - np.exp(y.astype(np.longdouble)) * s
        assert oracle.ulps(dx, exact, np.maximum(np.abs(exact), np.abs(dy))) <= 4
        assert dx[3] == 1.5


def test_backward_keeps_small_gradients_beside_an_enormous_sum(backend):
    for dy, y in (
        ([2.0**900, 2.0**-1000 * (1 + 2.0**-52 * 12345678901)], [0, -3000]),
        ([1e308] * 3 + [5e-324], [-1, -1, -1, -2000]),
    ):
        dy, y = np.array(dy), np.array(y, float)
        dx = lsm.log_softmax_backward(dy, y, backend=backend)
        wide = dy.astype(np.longdouble)
        exact = wide - np.exp(y.astype(np.longdouble)) * wide.sum()
        assert oracle.ulps(dx, exact, np.maximum(np.abs(exact), np.abs(wide))) <= 4


def test_where_the_exponential_leaves_the_range(backend):
    for dtype, limit in ((np.float32, 88), (np.float64, 709)):
        for above in (limit, limit + 20, np.finfo(dtype).max):
            y = np.array([[above, -1], [np.nextafter(dtype(limit), dtype(0)), -1]], dtype)
            dx = lsm.log_softmax_backward(np.full((2, 2), 1e-30, dtype), y, backend=backend)
            assert np.isnan(dx[0]).all()
            assert np.isfinite(dx[1]).all()


@pytest.mark.parametrize(
    ("shape", "axis"), [((50, 20), -1), ((9, 1000), -1), ((3, 20000), -1), ((20, 70), 0), ((1000, 40), 0)]
)
def test_output_above_zero_is_taken_as_it_is(backend, shape, axis, rng):
    """Backward is a function of what it is given, log-probabilities or not, in place as well."""
    for dtype in (np.float32, np.float64):
        for scale in (1, 2.0**70):
            y = np.minimum(rng.standard_normal(shape) * 10, 20).astype(dtype)
            dy = (rng.standard_normal(shape) * scale).astype(dtype)
            dx = lsm.log_softmax_backward(dy, y, axis, backend=backend)
            exact, at = oracle.backward(np.moveaxis(dy, axis, -1), np.moveaxis(y, axis, -1))
            assert oracle.ulps(np.moveaxis(dx, axis, -1), exact, at) <= 4
            for place in (dy.copy(), y.copy()):
                given = (place, y) if (place == dy).all() else (dy, place)
                lsm.log_softmax_backward(*given, axis, out=place, backend=backend)
                assert (place == dx).all()


NARROW = ("float16", "bfloat16", "float32", "float64")  # the dtypes of results


def bound_of_cast(given, result):
    """A result that is narrower than what is computed in is rounded once; else the bound of its own type."""
    is_narrower = result.itemsize < max(4, given.itemsize)
    return 0.501 if is_narrower else 4


@pytest.mark.except_backend("cuda-on-cpu")
@pytest.mark.parametrize("result", NARROW)
@pytest.mark.parametrize("given", NARROW)
def test_every_combination_of_dtypes(backend, given, result, rng):
    given, result = DTYPES[given], DTYPES[result]
    for kind in KINDS:
        for n in (2, 10, 64, 65, 300, 16385):
            x = frames(kind, (max(2, min(100, 3000 // n)), n), given, rng)
            exact = oracle.log_softmax(x)
            y = lsm.log_softmax(x, dtype=result, backend=backend)
            assert oracle.ulps(y, exact) <= bound_of_cast(given, result), (kind, n)
            turned = lsm.log_softmax(x.T.copy(), 0, dtype=result, backend=backend)
            np.testing.assert_array_equal(turned.T, y)


@pytest.mark.parametrize("given", ["float16", "bfloat16"])
@pytest.mark.parametrize("result", ["float32", "float64"])
def test_peaked_frames_of_sixteen_bits_keep_their_digits_in_wider_results(backend, given, result, rng):
    given, result = DTYPES[given], DTYPES[result]
    for lead in range(5, 91):
        for n in (2, 17, 300):
            x = rng.standard_normal((3, n)) * 2
            x[:, n // 2] = x.max() + lead
            x = x.astype(given)
            y = lsm.log_softmax(x, dtype=result, backend=backend)
            assert oracle.ulps(y, oracle.log_softmax(x)) <= 4, (lead, n)
            assert (y.max(axis=-1) < 0).all()


@pytest.mark.parametrize(("name", "leads"), [("float16", (9, 18)), ("bfloat16", (86, 94))])
def test_subnormal_results_of_sixteen_bits(backend, name, leads, rng):
    """One rounding there too: the largest class's result lies between the smallest normal number and nothing."""
    dtype = DTYPES[name]
    smallest = {"float16": 2.0**-14, "bfloat16": 2.0**-126}[name]
    x = np.where(rng.random((5000, 6)) < 0.5, -rng.uniform(*leads, (5000, 6)), -np.inf)
    x[:, 1] = -rng.uniform(*leads, 5000)
    x[:, 0] = 0
    x = x.astype(dtype)
    y = lsm.log_softmax(x, backend=backend)
    exact = oracle.log_softmax(x)
    assert (np.abs(exact[:, 0]) < smallest).mean() > 0.5
    assert oracle.ulps(y, exact) <= 0.501
    dy = (rng.standard_normal((500, 40)) * smallest / 10).astype(dtype)
    z = lsm.log_softmax(rng.standard_normal(dy.shape).astype(dtype), backend=backend)
    exact, at = oracle.backward(dy, z)
    assert oracle.ulps(lsm.log_softmax_backward(dy, z, backend=backend), exact, at) <= 0.501


def random_view(shape, values, order, steps, dtype):
    """An array of this shape and these values whose axes lie in another order, with gaps, and some backwards."""
    memory = np.empty([shape[i] * abs(steps[i]) for i in order], dtype)
    view = memory.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    view[...] = values
    return view


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bits_of_any_layout_are_the_wider_result_rounded(backend, name, rng):
    """Bit for bit what the backend makes of the same numbers in what it computes 16 bits in, however they lie."""
    dtype, wide = DTYPES[name], np.float64 if backend == "numpy" else np.float32
    for _ in range(150):
        n_axes = rng.integers(1, 5)
        shape = tuple(int(n) for n in rng.choice([1, 2, 3, 5, 16, 33, 64, 70, 300], n_axes))
        while np.prod(shape) > 40_000:
            shape = tuple(max(1, n // 2) for n in shape)
        axis = int(rng.integers(n_axes))

        def lay_out(values, n_axes=n_axes, shape=shape):
            order, steps = rng.permutation(n_axes), rng.choice([1, 1, 2, -1, -2], n_axes)
            return random_view(shape, values, order, steps, dtype)

        x = lay_out((rng.standard_normal(shape) * 5).astype(dtype))
        x[rng.random(shape) < 0.02] = -np.inf
        dy = lay_out(rng.standard_normal(shape).astype(dtype))
        y, dx = lay_out(0), lay_out(0)
        lsm.log_softmax(x, axis, out=y, backend=backend)
        expected = lsm.log_softmax(x.astype(wide), axis, backend=backend).astype(dtype)
        np.testing.assert_array_equal(y.astype(wide), expected.astype(wide))  # NaNs of bfloat16 are no NaNs to NumPy
        lsm.log_softmax_backward(dy, y, axis, out=dx, backend=backend)
        expected = lsm.log_softmax_backward(dy.astype(wide), y.astype(wide), axis, backend=backend)
        np.testing.assert_array_equal(dx.astype(wide), expected.astype(dtype).astype(wide))


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_sixteen_million_classes(name, rng):
    """Forward and backward of one frame of 2**24; the oracle sums all of it, and every 61st result is compared."""
    dtype, n = DTYPES[name], 2**24
    x = (rng.standard_normal(n, dtype=np.float32) * 3).astype(dtype)
    m = x.max().astype(np.longdouble)
    parts = np.split(x, 64)
    s = sum(np.exp(part.astype(np.longdouble) - m).sum() for part in parts) - 1
    y = lsm.log_softmax(x, backend="cython")
    exact = (x[::61].astype(np.longdouble) - m) - np.log1p(s)
    assert oracle.ulps(y[::61], exact) <= bound(dtype)
    dy = rng.random(n, dtype=np.float32).astype(dtype)  # of one sign, so that rounding errors would add up
    s = sum(part.astype(np.longdouble).sum() for part in np.split(dy, 64))
    dx = lsm.log_softmax_backward(dy, y, backend="cython")
    few_dy, few_y = dy[::61].astype(np.longdouble), y[::61].astype(np.longdouble)
    term = np.exp(few_y) * s
    exact = few_dy - term
    assert oracle.ulps(dx[::61], exact, np.maximum(np.maximum(np.abs(exact), few_dy), term)) <= bound(dtype)


@pytest.mark.parametrize("top", [0, 0.1, -50, 88.75, 3000, 1e4])
def test_the_digits_near_zero_at_every_lead(backend, top, rng):
    """One class beside the largest: the largest class's result is -log1p(exp(-lead)), an exponential by itself.

    Where the smaller of the two lies far from 0, its range is reduced from there; test_peaked_frames has it near 0.
    """
    for dtype, end in ((np.float32, 87), (np.float64, 708)):
        lead = np.linspace(0.01, end, 50_001)
        x = np.stack([np.full_like(lead, top), top - lead], axis=1).astype(dtype)
        assert oracle.ulps(lsm.log_softmax(x, backend=backend), oracle.log_softmax(x)) <= 4


@pytest.mark.parametrize("n", [3, 33, 1000, 32_769, 70_000])
def test_sums_of_which_only_the_rounding_errors_remain_are_finite(backend, dtype, n):
    """2**60 and -2**60 leave 1: it may be found or lost (docs/numerics.md), and no frame becomes NaN."""
    large = 2.0**15 if dtype == np.float16 else 2.0**60  # which float16 does not reach
    for places in ((0, n // 2, n - 1), (0, n - 1, n // 2), (n // 2, 0, n - 1)):
        dy = np.zeros((2, n), dtype)
        dy[:, places] = large, 1, -large
        y = np.full((2, n), -3.5, dtype)
        for a, b, axis in ((dy, y, 1), (dy.T.copy(), y.T.copy(), 0)):
            dx = lsm.log_softmax_backward(a, b, axis, backend=backend).astype(np.longdouble)
            error = abs(dx - (a.astype(np.longdouble) - np.exp(np.longdouble(-3.5))))
            assert np.isfinite(dx).all()
            allowed = abs(dx) * 2.0 ** -np.finfo(np.float32).nmant if dtype.itemsize >= 4 else abs(dx) * 0.01
            assert (error <= allowed + np.exp(-3.5) + 2**-50 * large).all()


def test_gradients_of_deep_classes_of_huge_sums(backend):
    """exp(y) alone is 0, and exp(y) * S is not."""
    dy, y = np.array([[1e300, 0.0, 0.0]]), np.array([[-1e-300, -800.0, -745.5]])
    dx = lsm.log_softmax_backward(dy, y, backend=backend)
    exact = -np.exp(y[0, 1:].astype(np.longdouble)) * np.longdouble(1e300)
    assert (np.abs(dx[0, 1:] / exact - 1) < 4 * 2.0**-52).all()
