"""The CUDA kernels on the CPU (cuda_on_cpu): exact values, special ones, and the same bits, in every regime."""

import ctypes
import functools

import cuda_on_cpu
import numpy as np
import oracle
import pytest
from cuda_on_cpu import H100, SMALL
from test_accuracy import KINDS, bound, bound_of_cast, frames

from conftest import DTYPES
from lsm.backends import _cuda
from lsm.backends._cuda.plan import OPS, OpTraits, module_key, plan

NAMES = ("float16", "bfloat16", "float32", "float64")

# At the borders of lanes, pieces and slices; with SMALL, the last two are in shared memory and split, if they are long.
ROWS = (1, 2, 7, 31, 33, 64, 129, 1000, 1024, 1025, 4100, 20000)
COLUMNS = (1, 3, 16, 17, 100, 256, 257, 500, 700, 1000, 1025, 2500)


def forward(x, dtype=None, limits=SMALL):
    y = np.full(x.shape, 7, dtype or x.dtype)
    cuda_on_cpu.apply("log_softmax", (x,), y, limits)
    return y


def backward(dy, y, limits=SMALL):
    dx = np.full(dy.shape, 7, dy.dtype)
    cuda_on_cpu.apply("log_softmax_backward", (dy, y), dx, limits)
    return dx


CASES = [(n, 1) for n in ROWS] + [(n, 37) for n in COLUMNS]


def rows(a):
    """(outer, classes, inner) as frames of consecutive classes."""
    return np.ascontiguousarray(a.transpose(0, 2, 1)).reshape(-1, a.shape[1], 1)


def equal(a, b):
    np.testing.assert_array_equal(a.astype(np.longdouble), b.astype(np.longdouble))  # which knows NaN of 16 bits too


def test_the_cases_are_of_every_family():
    for op in ("log_softmax", "log_softmax_backward"):
        for name in NAMES:
            families = {plan(op, name, name, 3, n, inner, SMALL).family.name for n, inner in CASES}
            assert families == {"group", "shared", "split", "columns", "columns_split"}
            blocks = {plan(op, name, name, 3, n, 37, SMALL).launches[0].block for n in COLUMNS}
            assert blocks == ({256} if name == "float64" else {256, 512})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "inner"), CASES)
def test_within_the_bound(name, n, inner, rng):
    """Of about as many numbers for every n, and a last block or tile that is not full."""
    dtype, n_outer = DTYPES[name], max(1, (1500 if inner == 1 else 40) // n)
    for kind in KINDS:
        x = np.ascontiguousarray(frames(kind, (n_outer, inner, n), dtype, rng).transpose(0, 2, 1))
        y = forward(x)
        assert oracle.ulps(y, oracle.log_softmax(x, 1)) <= bound(dtype), kind
        dy = rng.standard_normal(x.shape).astype(dtype)
        exact, at = oracle.backward(dy, y, 1)
        assert oracle.ulps(backward(dy, y), exact, at) <= bound(dtype), kind


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [2, 5, 16, 100, 257, 1000, 1025, 2500, 10000])
def test_every_regime_gives_the_same_bits(name, n, rng):
    """Rows and columns, on chip and split, alone and in a batch, in any order of warps."""
    dtype = DTYPES[name]
    x = (rng.standard_normal((2, n, 5)) * 4).astype(dtype)
    x[0, n // 2, 1], x[1, 0, 2], x[0, :, 3] = np.nan, -np.inf, 5
    dy = rng.standard_normal(x.shape).astype(dtype)
    y = forward(x)
    dx = backward(dy, y)
    for limits in (SMALL, H100):
        for seed in (0, 1, 2):
            cuda_on_cpu.HostKernel.seed = seed
            equal(forward(x, limits=limits), y)
            equal(backward(dy, y, limits), dx)
            equal(forward(rows(x), limits=limits), rows(y))
            equal(backward(rows(dy), rows(y), limits), rows(dx))
        cuda_on_cpu.HostKernel.seed = 0
        alone = np.ascontiguousarray(x[1:, :, 2:3])
        equal(forward(alone, limits=limits), y[1:, :, 2:3])
        equal(backward(dy[1:, :, 2:3].copy(), y[1:, :, 2:3].copy(), limits), dx[1:, :, 2:3])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "inner"), [(10, 1), (1000, 1), (4100, 1), (20000, 1), (17, 37), (257, 37), (2500, 37)])
def test_layouts_alignment_and_in_place(name, n, inner, rng):
    """Every array has strides of its own, any start; a result may be written over what it is made of."""
    dtype = DTYPES[name]
    shape = (3, n, inner)
    x, dy = (rng.standard_normal((2, *shape)) * 2).astype(dtype)
    y = forward(x)
    dx = backward(dy, y)

    def laid_out(values, start, gap):
        """From `start` on, with a gap after every frame (inner = 1) or row of a class."""
        step = n + gap if inner == 1 else n * (inner + gap)
        memory = np.full(start + 3 * step + 9, 99, dtype)
        strides = (step, 1, 1) if inner == 1 else (step, inner + gap, 1)
        bytes_ = [s * dtype.itemsize for s in strides]
        view = np.lib.stride_tricks.as_strided(memory[start:], shape, bytes_, writeable=True)
        view[...] = values
        return view, memory

    for start, gap in ((0, 0), (1, 0), (3, 1), (8, 5), (4, 16)):
        places = ((x, start, gap), (dy, 5 - start % 5, gap + 1), (y, start + 2, 3), (0, start + 1, gap))
        (a, _), (b, _), (c, _), (out, memory) = (laid_out(*place) for place in places)
        cuda_on_cpu.apply("log_softmax", (a,), out, SMALL)
        equal(out, y)
        cuda_on_cpu.apply("log_softmax_backward", (b, c), out, SMALL)
        equal(out, dx)
        assert (memory.astype(float) == 99).sum() == memory.size - out.size  # what lies between is as it was
        cuda_on_cpu.apply("log_softmax", (a,), a, SMALL)
        equal(a, y)
        for k in (0, 1):
            pair = [laid_out(dy, start, gap)[0], laid_out(y, start, gap)[0]]
            cuda_on_cpu.apply("log_softmax_backward", pair, pair[k], SMALL)
            equal(pair[k], dx)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [29, 1001, 4099, 20001])  # several rows a warp, one, one in shared memory, one split
def test_rows_of_an_odd_length_are_read_and_written_in_whole_pieces(name, n, rng):
    """Element by element only at their ends and, what is written, at those of slices."""
    counter = """
    static long long lsm_n_alone;
    extern "C" long long lsm_take() { long long n = lsm_n_alone; lsm_n_alone = 0; return n; }
    """
    source = counter + _cuda.source()
    for alone in ("to.put(i, i >= first && i < last ? x[i] : filler);", "to[i] = held.at(i);"):
        assert source.count(alone) == 1
        source = source.replace(alone, f"{{ lsm_n_alone += i >= first && i < last; {alone} }}")
    dtype, n_rows = DTYPES[name], 40 if n == 29 else 5
    x = rng.standard_normal((n_rows, n, 1)).astype(dtype)
    y, dx = forward(x), np.empty_like(x)
    ends = n_rows * 2 * (16 // dtype.itemsize - 1)  # of all rows of an array, at most
    n_slices = -(-n // (512 if name == "float64" else 1024))

    def count(op, arrays, out):
        module = functools.cache(lambda options: cuda_on_cpu.HostModule(options, source))
        family = cuda_on_cpu.apply(op, arrays, out, SMALL, module).family
        library = module(module_key(op, name, name, family)).library
        return ctypes.CFUNCTYPE(ctypes.c_longlong)(("lsm_take", library))()

    again = np.empty_like(x)
    assert 0 < count("log_softmax", (x,), again) <= ends * (2 + n_slices)  # x is read twice if the row is split
    equal(again, y)
    assert 0 < count("log_softmax_backward", (x, y), dx) <= ends * (3 + n_slices)
    equal(dx, backward(x, y))


@pytest.mark.parametrize("name", NAMES)
def test_of_pieces_that_are_shared_only_the_own_elements_are_used(name, rng):
    """In place, a neighbouring warp or block may have written the others: here they are NaN."""
    place = "    UNROLL for (int i = 0; i < n_pieces; i++) {\n        B own, next;"
    spoil = """
    if (lane == 0) {
        const Held<n, T> mine = to[0];
        const Held<P::n_of_one, T> last = behind.held;
        T nan;
        memset(&nan, 0xff, sizeof nan);
        for (int j = 0; j < n; j++)
            to[0].put(j, j < skew ? nan : mine.at(j));
        for (int j = 0; j < P::n_of_one; j++)
            behind.held.put(j, j < skew ? last.at(j) : nan);
    }
    """
    assert _cuda.source().count(place) == 1
    source = _cuda.source().replace(place, spoil + place)
    module = functools.cache(lambda options: cuda_on_cpu.HostModule(options, source))
    for n in (29, 1001, 4099, 20001):
        x = rng.standard_normal((5, n, 1)).astype(DTYPES[name])
        y, again = forward(x), np.empty_like(x)
        cuda_on_cpu.apply("log_softmax", (x,), again, SMALL, module)
        equal(again, y)
        cuda_on_cpu.apply("log_softmax_backward", (x, y), again, SMALL, module)
        equal(again, backward(x, y))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("n", "inner"), [(1, 1), (5, 1), (1000, 1), (4100, 1), (20000, 1), (3, 7), (257, 7), (2500, 7)]
)
def test_special_values(name, n, inner, rng):
    dtype = DTYPES[name]
    clean = rng.standard_normal((4, n, inner)).astype(dtype)
    dy = rng.standard_normal(clean.shape).astype(dtype)
    want = forward(clean)
    want_dx = backward(dy, want)
    places = sorted({0, n // 2, n - 1})
    for value in (np.nan, np.inf):
        for place in places:
            for also in (value, -np.inf):
                x, y, g = clean.copy(), want.copy(), dy.copy()
                for a in (x, y, g):
                    a[1, 0 if n > 1 else place, inner - 1] = also
                    a[1, place, inner - 1] = value
                for got, expected in (
                    (forward(x), want),
                    (backward(dy, y), want_dx),
                    (backward(g, want), want_dx),
                ):
                    assert np.isnan(got[1, :, inner - 1].astype(float)).all()
                    got[1, :, inner - 1] = expected[1, :, inner - 1]
                    equal(got, expected)
    x = clean.copy()
    x[2, :, 0] = -np.inf
    y = forward(x)
    assert np.isnan(y[2, :, 0].astype(float)).all()
    y[2, :, 0] = -np.inf
    assert np.isnan(backward(dy, y)[2, :, 0].astype(float)).all()
    if n > 2:
        x = clean.copy()
        x[0, : n - 1, 0] = -np.inf  # all but one, whole slices among them
        x[3, ::2, 0] = -np.inf
        y = forward(x)
        np.testing.assert_array_equal(np.isneginf(y.astype(float)), np.isneginf(x.astype(float)))
        assert oracle.ulps(y, oracle.log_softmax(x, 1)) <= bound(dtype)
        assert y[0, n - 1, 0] == 0
        masked = np.isneginf(y.astype(float))
        np.testing.assert_array_equal(backward(dy, y)[masked], dy[masked])


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_warp_with_several_slices_in_shared_memory_remembers_each(name, rng):
    y = forward(rng.standard_normal((1, 20001, 1)).astype(DTYPES[name]), limits=H100)
    found = plan("log_softmax_backward", name, name, *y.shape, H100)
    assert found.family.name == "shared" and found.launches[0].block * 1024 // 32 < 20001
    for place in (0, 9000, 20000):
        bad = y.copy()
        bad[0, place] = np.nan
        assert np.isnan(backward(y, bad, H100)).all()
    masked = np.full_like(y, -np.inf)
    masked[0, 0] = 0
    assert not np.isnan(backward(y, masked, H100)).any()


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_output_that_is_too_large_makes_its_frame_nan(name, inner, rng):
    dtype = DTYPES[name]
    limit = 709 if name == "float64" else 88
    for n in (4, 1000, 4100, 20000):
        dy, y = np.full((2, 3, n, inner), 2.0**-100 if dtype.itemsize > 2 else 0, dtype)
        y[...] = -30
        y[1, n - 1] = limit
        y[2, n - 1] = limit - 1
        dx = backward(dy, y)
        assert np.isnan(dx[1].astype(float)).all() and np.isfinite(dx[::2].astype(float)).all()


@pytest.mark.parametrize("result", NAMES)
@pytest.mark.parametrize("given", NAMES)
def test_every_combination_of_dtypes(given, result, rng):
    given, result = DTYPES[given], DTYPES[result]
    for n, inner in ((11, 1), (301, 1), (4101, 1), (20001, 1), (40, 9), (2500, 9)):  # rows begin between pieces
        for kind in ("ordinary", "peaked"):
            x = np.ascontiguousarray(frames(kind, (3, inner, n), given, rng).transpose(0, 2, 1))
            y = forward(x, result)
            assert oracle.ulps(y, oracle.log_softmax(x, 1)) <= bound_of_cast(given, result), (n, inner, kind)
            equal(forward(rows(x), result), rows(y))


def test_large_tiles_of_float64(rng):
    x = rng.standard_normal((1, 2300, 11))
    assert plan("log_softmax", "float64", "float64", *x.shape, H100).launches[0].block == 512
    y = forward(x, limits=H100)
    equal(y, forward(x))
    dy = rng.standard_normal(x.shape)
    equal(backward(dy, y, H100), backward(dy, y))


@pytest.mark.parametrize("lead", [5, 16, 20, 40, 80, 90, 100])
def test_peaked_frames_keep_their_digits(lead):
    for dtype in (np.float32, np.float64):
        for other in (0.0, 1e-39, -7.3, 1234.5, 1e4):
            for n in (2, 5000):  # the second class in another slice, which knows another maximum
                x = np.full((2, n, 1), -np.inf, dtype)
                x[0, 0], x[0, n - 1] = other, other + lead
                x[1, 0], x[1, n - 1] = other + lead, other
                y = forward(x)
                assert oracle.ulps(y, oracle.log_softmax(x, 1)) <= 4, (other, n)
                dy = np.where(y > -1, dtype(-1), dtype(0))
                dx = backward(dy, y)
                exact, _ = oracle.backward(dy, y, 1)
                assert oracle.ulps(dx, exact) <= 4


@pytest.mark.parametrize("inner", [1, 2])
def test_gradients_over_the_range(inner):
    """S from subnormal to beyond the type, y from where exp(y) is nothing to where it all but leaves the range."""
    for dtype, top, scales in (
        (np.float32, 87, (1e-44, 1e-30, 1.0, 1e20, 1e30, 1e38)),
        (np.float64, 700, (5e-324, 1e-300, 1.0, 1e200, 1.7e308)),
    ):
        for n in (1001, 12000):
            for scale in scales:
                y = np.repeat(np.linspace(-800, top, n).astype(dtype).reshape(1, n, 1), inner, axis=2)
                y[0, n // 4 : n // 2] = -np.inf
                dy = np.zeros_like(y)
                dy[0, n // 2], dy[0, n - 1], dy[0, 3] = scale, scale, scale / 8
                dx = backward(dy, y)
                exact, at = oracle.backward(dy, y, 1)
                fits = np.abs(exact) < np.finfo(dtype).max
                assert oracle.ulps(dx[fits], exact[fits], at[fits]) <= 4, (n, scale)
                assert np.isinf(dx[~fits]).all()


@pytest.mark.parametrize("inner", [1, 3])
def test_sums_that_leave_the_range_of_float64_on_their_way(inner):
    for n in (5, 1000, 20001):
        dy = np.zeros((2, n, inner))
        dy[:, :5, :] = np.array([1.7e308, 1.7e308, -1.7e308, -1.7e308, 1e10])[:, None]
        y = np.repeat(np.linspace(-30, -1, n).reshape(1, n, 1), inner, axis=2).repeat(2, axis=0)
        exact, _ = oracle.backward(dy, y, 1)
        assert oracle.ulps(backward(dy, y), exact) <= 4  # of what is left, though of a sum of 7e308 it is nothing


BOTH = """
extern "C" __global__ void both(const Number *dy, const Number *y, const double *s, Number *plain, Number *any, int *is)
{
    Index i = blockIdx.x * (Index)blockDim.x + threadIdx.x;
    Sum sum = {s[i], 0};
    Total of = total_of(sum, false, false);
    plain[i] = gradient_of_plain(dy[i], y[i], of, of.high * -OfPlain::power(-OfPlain::bias));
    any[i] = gradient_of_any(dy[i], y[i], of);
    is[i] = y[i] <= of.plain_to;
}
"""


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_plain_gradient_has_the_bits_of_any(name, rng):
    """All over the range of plain sums, to both of its ends, with dy that cancel and results that are subnormal."""
    dtype, least, most, top = DTYPES[name], *((-60, 36, 40) if name == "float32" else (-500, 400, 350))
    ln2, tiny = np.log(dtype.type(2)), np.finfo(dtype).smallest_subnormal
    near = [0.0, -0.0, -tiny, -tiny * 1000, -1e-30, -1e-9, -0.3, *np.nextafter(-ln2, [-9, 9, -ln2], dtype=dtype), 0.2]
    far = [-0.7, -3, -20, -60, -87, -100, -104, -130.9, -131.1, -150, -700, -745, -1061.9, -1062.1, -2000, -np.inf]
    y = np.array([*near, *far, 1, 7.3, np.nextafter(top, 0, dtype=dtype), top, *rng.uniform(-140, 3, 60)], dtype)
    mantissas = [0.5, 1 - 2.0**-53, 1 - 2.0**-24, *rng.uniform(0.5, 1, 4)]
    exponents = [least, least + 1, -30, -1, 0, 1, 2, 20, most - 1]
    s = np.array([0.0, *(sign * m * 2.0**e for sign in (1, -1) for m in mantissas for e in exponents)])
    relative = np.array([0, 1, 1 + 2.0**-20, 0.5, -3, 1e-30])
    fixed = np.array([tiny, -7 * tiny, np.finfo(dtype).tiny, 1, -0.0, 1e-40, 1e30])
    dy = np.concatenate([np.multiply.outer(s, relative), np.tile(fixed, (s.size, 1))], axis=1)
    s, dy, y = (np.ascontiguousarray(np.broadcast_arrays(s[:, None, None], dy[..., None], y)[i]) for i in range(3))
    n = s.size // 64 * 64
    s, dy, y = s.ravel()[:n], dy.astype(dtype).ravel()[:n], y.ravel()[:n]
    plain, any_, is_plain = np.empty(n, dtype), np.empty(n, dtype), np.empty(n, np.int32)
    key = module_key("log_softmax_backward", name, name, plan("log_softmax_backward", name, name, 1, 9, 1, H100).family)
    kernel = cuda_on_cpu.HostModule(key, _cuda.source() + BOTH).get_function("both")
    kernel((n // 64,), (64,), (dy, y, s, plain, any_, is_plain))
    assert is_plain.all()
    np.testing.assert_array_equal(plain.view(f"u{dtype.itemsize}"), any_.view(f"u{dtype.itemsize}"))
    subnormal = (plain != 0) & (np.abs(plain) < np.finfo(dtype).tiny)
    assert subnormal.sum() > 100 and (plain != dy).sum() > n / 4

    beyond = np.array([2.0 ** (least - 1) * 0.99, 2.0 ** (most - 1), np.nan, np.inf])
    ones = np.ones(64, dtype)
    kernel((1,), (64,), (ones, -ones, np.resize(beyond, 64), plain[:64], any_[:64], is_plain[:64]))
    assert not is_plain[:64].any()


def test_beyond_the_last_column_there_is_nothing_however_long_a_frame_is():
    probe = """
extern "C" __global__ void probe(const long long *row, int *found)
{
    Step step(row[threadIdx.x], 0, 0, 0);
    for (int j = 0; j < STEP_CLASSES; j++)
        found[threadIdx.x] |= step.has(j);
}
"""
    family = plan("log_softmax", "float16", "float16", 1, 2**33, 2, H100).family
    key = module_key("log_softmax", "float16", "float16", family)
    rows = np.linspace(0, 2**33 // 256, 32).astype(np.int64)  # of 256 classes
    found = np.zeros(32, np.int32)
    kernel = cuda_on_cpu.HostModule(key, _cuda.source() + probe).get_function("probe")
    kernel((1,), (32,), (rows, found))
    assert not found.any()


def test_long_frames(rng):
    """A thread that folds many slices, several launches, and blocks that write more than one part."""
    for name in ("float16", "float32", "float64"):
        dtype = DTYPES[name]
        x = (rng.standard_normal((2, 2**20 + 3, 1)) * 3).astype(dtype)
        y = forward(x)
        assert oracle.ulps(y, oracle.log_softmax(x, 1)) <= bound(dtype)
        dy = rng.random(x.shape).astype(dtype)
        exact, at = oracle.backward(dy, y, 1)
        assert oracle.ulps(backward(dy, y), exact, at) <= bound(dtype)


MADE_UP = """
struct MadeUp : Exponentials {
    static const bool reads_two = false, limits_range = false;
    typedef Number Parameters;
    static INLINE Number parameters(const Whole &of, bool) { return of.m; }
    static INLINE Number from_lane(Number m, int lane, int n_lanes) { return __shfl_sync(FULL_MASK, m, lane, n_lanes); }
    static INLINE Number result(Number x, Number m) { return x - m; }
};
struct MadeUpBackward : Terms {
    static const bool reads_two = true, limits_range = false;
    typedef double Parameters;
    static INLINE double parameters(const Part &of, bool) { return of.sum.total + of.sum.error; }
    template <int n> static INLINE void results(Number (&a)[n], const Number (&b)[n], double s, Number)
    {
        for (int j = 0; j < n; j++)
            a[j] = number(a[j] - b[j] * s);
    }
};
"""


@pytest.mark.parametrize(("n", "inner"), [(10, 1), (1000, 1), (4100, 1), (20000, 1), (17, 37), (257, 37), (2500, 37)])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_new_operation_is_a_struct_and_a_row(name, n, inner, monkeypatch, rng):
    monkeypatch.setitem(OPS, "made_up", OpTraits("exponentials", 1, False))
    monkeypatch.setitem(OPS, "made_up_backward", OpTraits("terms", 2, False))
    source = _cuda.source().replace('#line 1 "rows.cu"', MADE_UP + '#line 1 "rows.cu"')
    module = functools.cache(lambda options: cuda_on_cpu.HostModule(options, source))
    a, b = rng.integers(-9, 9, (2, 3, n, inner)).astype(DTYPES[name])
    out = np.full_like(a, 7)
    cuda_on_cpu.apply("made_up", (a,), out, SMALL, module)
    equal(out, a - a.max(axis=1, keepdims=True))
    launches = cuda_on_cpu.apply("made_up_backward", (a, b), out, SMALL, module).launches
    equal(out, a - b * a.sum(axis=1, keepdims=True))
    assert not any(launch.kernel.endswith("_ends") for launch in launches)
