"""A frame's bits depend on its values, its dtype and the backend, and on nothing else."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lsm
from conftest import DTYPES
from lsm.backends import cython_

# at the borders of vectors (16), rows and short frames (64), blocks (256), groups of rows (512), frames
# that fit the scratch (2048) and slices (16384)
N_CLASSES = (1, 2, 10, 15, 16, 17, 32, 33, 63, 64, 65, 128, 255, 256, 257, 512, 513, 1000, 2047, 2048, 2049)
N_CLASSES += (16383, 16384, 16385, 40000)


# Where the Cython kernels go over to another way of computing, as their own source has it: classes, then elements.
KERNELS = Path(__file__).parents[1] / "lsm" / "backends" / "_kernels"
CONSTANTS = {
    name: int(value)
    for file in ("kernels.pxi", "fastpath.pxi")
    for name, value in re.findall(r"^    ([A-Z_]+) = (\d+)", (KERNELS / file).read_text(), re.MULTILINE)
}
OF_CLASSES = ("N_LANES", "PAIR_LANES", "ROW_CLASSES", "FEW_CLASSES", "BLOCK_CLASSES")
OF_CLASSES += ("PIPELINED_MIN_CLASSES", "PIPELINED_MIN_CLASSES_BACKWARD", "PIPELINED_MIN_CLASSES_DOUBLE")
OF_CLASSES += ("FINALIZE_BATCH_MAX_CLASSES", "PIPELINE_MAX_CLASSES", "PREFETCH_DISTANCE_CLASSES")
OF_CLASSES += ("REGULAR_STORE_MAX_CLASSES", "SHORT_CLASSES")
BORDERS = sorted({CONSTANTS[name] + i for name in (*OF_CLASSES, "SLICE_CLASSES") for i in (-1, 0, 1)})
BORDERS += [CONSTANTS["SCRATCH_BYTES"] // 3 // 128 * 16 + i for i in (0, 1)]  # the longest copies of float64
OF_KERNELS = [dtype for name, dtype in DTYPES.items() if name != "longdouble"]
OF_ELEMENTS = [CONSTANTS[name] for name in ("HOLD_GIL_MAX_ELEMENTS", "PARALLEL_MIN_ELEMENTS")]


@pytest.mark.parametrize("n", N_CLASSES)
def test_batch_size_place_axis_alignment_and_out(backend, dtype, n, rng):
    check_surroundings(backend, dtype, n, rng)


@pytest.mark.parametrize("dtype", OF_KERNELS, ids=str)
@pytest.mark.parametrize("n", sorted(set(BORDERS) - set(N_CLASSES)))
def test_the_same_at_every_border_of_the_kernels(dtype, n, rng):
    check_surroundings("cython", dtype, n, rng)


@pytest.mark.parametrize("dtype", OF_KERNELS, ids=str)
@pytest.mark.parametrize("n", [1, 10, 128, 1000, *(size + i for size in OF_ELEMENTS for i in (-1, 0, 1))])
def test_sizes_from_which_the_gil_is_let_go_and_threads_begin(dtype, n, rng):
    x = (rng.standard_normal((max(OF_ELEMENTS) // n + 2, n)) * 4).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    y = lsm.log_softmax(x, backend="cython")
    dx = lsm.log_softmax_backward(dy, y, backend="cython")
    for n_frames in {max(size // n + i, 1) for size in OF_ELEMENTS for i in (-1, 0, 1)}:
        part = slice(-n_frames, None)
        np.testing.assert_array_equal(lsm.log_softmax(x[part], backend="cython"), y[part])
        np.testing.assert_array_equal(lsm.log_softmax_backward(dy[part], y[part], backend="cython"), dx[part])


def check_surroundings(backend, dtype, n, rng):
    """The same frames alone, in batches, as columns, gathered, at every alignment, and in another `out`."""
    n_frames = 40 if n < 20000 else 18
    x = (rng.standard_normal((n_frames, n)) * 4).astype(dtype)
    dy = rng.standard_normal((n_frames, n)).astype(dtype)
    y = lsm.log_softmax(x, backend=backend)
    dx = lsm.log_softmax_backward(dy, y, backend=backend)
    rows = (0, 1, 17, n_frames - 1)
    for i in rows:  # alone
        np.testing.assert_array_equal(lsm.log_softmax(x[i].copy(), backend=backend), y[i])
        np.testing.assert_array_equal(lsm.log_softmax_backward(dy[i].copy(), y[i].copy(), backend=backend), dx[i])
    for part in (slice(0, 5), slice(3, 20), slice(2, 25), slice(2, 26)):  # batches on either side of 24 frames
        np.testing.assert_array_equal(lsm.log_softmax(x[part], backend=backend), y[part])
        np.testing.assert_array_equal(lsm.log_softmax_backward(dy[part], y[part], backend=backend), dx[part])
    # on the other axis, in an array of columns that is not a whole number of tiles
    np.testing.assert_array_equal(lsm.log_softmax(x.T.copy(), 0, backend=backend).T, y)
    np.testing.assert_array_equal(lsm.log_softmax_backward(dy.T.copy(), y.T.copy(), 0, backend=backend).T, dx)
    # gathered classes
    wide = np.repeat(x[:3], 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(lsm.log_softmax(wide, backend=backend), y[:3])
    # every alignment that the dtype allows, input and output
    memory, target = np.empty(n + 20, dtype), np.empty(n + 20, dtype)
    for offset in (0, 1, 3, 7, 15):
        a, out = memory[offset : offset + n], target[16 - offset : 16 - offset + n]
        a[...] = x[0]
        lsm.log_softmax(a, out=out, backend=backend)
        np.testing.assert_array_equal(out, y[0])
        a[...] = dy[0]
        lsm.log_softmax_backward(a, y[0], out=out, backend=backend)
        np.testing.assert_array_equal(out, dx[0])


@pytest.fixture
def kernels_get(monkeypatch):
    """Call with a number of threads and the size from which results are streamed: the kernels get both."""
    module = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
    ours = cython_.count_threads, cython_.NONTEMPORAL_MIN_BYTES

    def give(n_threads, stream_bytes):
        module.configure(lambda size: n_threads, stream_bytes)
        monkeypatch.setattr(cython_, "count_threads", lambda size: n_threads)  # for what is no plain array
        monkeypatch.setattr(cython_, "NONTEMPORAL_MIN_BYTES", stream_bytes)

    yield give
    module.configure(*ours)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape",
    [
        *(
            (1000, 300),
            (3000, 17),
            (3, 100_000),
            (1, 300_000),
            (2, 300, 500),
            (3, 14 * 16384),
            (3, 14 * 16384 + 1),
            (40, 20),
        ),
        *((40, n) for n in BORDERS),
    ],
)
def test_thread_count_and_streaming(shape, dtype, rng, kernels_get):
    """The kernels themselves, since a machine with few processors is not given many threads."""
    x = (rng.standard_normal(shape) * 4).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    wide_x, wide_dy = (np.repeat(a, 2, -1)[..., ::2] for a in (x, dy))
    results = set()
    for n_threads in (1, 2, 3, 7):
        for stream_bytes in (0, 2**60):
            kernels_get(n_threads, stream_bytes)
            for a, b in ((x, dy), (wide_x, wide_dy)):
                y = lsm.log_softmax(a, 1, backend="cython")
                dx = lsm.log_softmax_backward(b, y, 1, backend="cython")
                p = lsm.softmax(a, 1, backend="cython")
                of_p = lsm.softmax_backward(b, p, 1, backend="cython")
                total = lsm.logsumexp(a, 1, backend="cython")
                results.add(tuple(array.tobytes() for array in (y, dx, p, of_p, total)))
    assert len(results) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [4096, 4100, 16384, 20_480])
def test_streamed_rows_at_any_place_in_a_page(n, dtype, rng, kernels_get):
    """Where stores lie just ahead of loads, but for a multiple of 4096 bytes, a row begins with other stores."""
    x = (rng.standard_normal((5, n)) * 4).astype(dtype)
    kernels_get(1, 2**60)
    expected = lsm.log_softmax(x, backend="cython")
    kernels_get(1, 0)
    page = 4096 // x.itemsize
    memory, target = (np.empty(x.size + 3 * page, dtype) for _ in range(2))
    start, start_y = ((-a.ctypes.data % 4096) // x.itemsize for a in (memory, target))
    for at, at_y in ((0, 0), (4, 4), (4, 0), (0, 4), (4, 20), (4, 150), (page - 4, 8)):
        a = memory[start + at :][: x.size].reshape(x.shape)
        out = target[start_y + at_y :][: x.size].reshape(x.shape)
        a[...] = x
        out[...] = 7
        lsm.log_softmax(a, out=out, backend="cython")
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [3, 16, 40, 64, 70, 300, 1000])
def test_sums_of_products_on_either_axis(n, dtype, rng):
    """A compiler may make an FMA of one of two products that are added, not of the same one in both traversals."""
    x = (rng.standard_normal((400, n)) * 2).astype(dtype)
    dy, p = rng.standard_normal(x.shape).astype(dtype), lsm.softmax(x, backend="cython")
    dx = lsm.softmax_backward(dy, p, backend="cython")
    of_columns = lsm.softmax_backward(dy.T.copy(), p.T.copy(), 0, backend="cython").T
    np.testing.assert_array_equal(of_columns, dx)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_frames", [1, 16, 37, 70])
def test_short_rows_of_any_length_are_columns_elsewhere(n_frames, dtype, rng):
    """Rows of up to 512 classes are whole rows of 64 and a tail of 1 to 4 chunks of 16, the last one filled up."""
    for n in (65, 79, 80, 81, 96, 111, 112, 127, 128, 129, 160, 191, 192, 193, 240, 255, 256, 257, 300, 448, 511, 512):
        x, dy = (rng.standard_normal((2, n_frames, n)) * 4).astype(dtype)
        x[0, 1:] = x[0, 0]  # all are largest
        y, p = lsm.log_softmax(x, backend="cython"), lsm.softmax(x, backend="cython")
        cases = [(lsm.log_softmax, (x,)), (lsm.softmax, (x,)), (lsm.logsumexp, (x,))]
        cases += [(lsm.log_softmax_backward, (dy, y)), (lsm.softmax_backward, (dy, p))]
        for function, inputs in cases:
            rows = function(*inputs, axis=1, backend="cython")
            columns = function(*(array.T.copy() for array in inputs), axis=0, backend="cython")
            np.testing.assert_array_equal(columns.T, rows, f"{function.__name__}, {n}")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 33, 64, 65, 300, 700, 20_000])
def test_logsumexp_near_0_among_other_frames(n, dtype, rng):
    """In float32, frames whose maximum and logarithm cancel are summed again in double, several at once."""
    x = (rng.standard_normal((70, n)) - np.log(n) - rng.choice([0, 0.5, 20, -20], (70, 1))).astype(dtype)
    x[:3] = x[3:6, :1] = [[-np.inf], [np.nan], [np.inf]]
    x[6] = x[6, 0]
    alone = np.array([lsm.logsumexp(frame, backend="cython") for frame in x])
    np.testing.assert_array_equal(lsm.logsumexp(x, 1, backend="cython"), alone)
    np.testing.assert_array_equal(lsm.logsumexp(x[:, ::-1].T.copy()[::-1], 0, backend="cython"), alone)
    images = np.moveaxis(x.reshape(5, 14, n), 1, 2)
    np.testing.assert_array_equal(lsm.logsumexp(images.copy(), 1, backend="cython"), alone.reshape(5, 14))
    np.testing.assert_array_equal(lsm.logsumexp(np.repeat(x, 2, 1)[:, ::2], 1, backend="cython"), alone)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 10, 17, 64, 65, 100, 300, 1000])
@pytest.mark.parametrize("huge", [False, True])
def test_gradients_beside_padding(n, dtype, huge, rng):
    """Frames that are NaN or -inf throughout, as of padding, leave the others of their block or group as they are."""
    x, dy = (rng.standard_normal((2, 75, n)) * 4).astype(dtype)
    x[5:8], x[20], x[74], x[30, -1], x[31, 0] = -np.inf, np.nan, np.inf, np.nan, np.inf
    dy[40, -1], dy[41, 0], dy[42, n // 2] = np.nan, np.inf, -np.inf
    if huge:
        dy[50] = np.finfo(dtype).max / 2
    y, p = lsm.log_softmax(x, backend="cython"), lsm.softmax(x, backend="cython")
    y[6], y[8, -1], y[60, -1], p[6] = -np.inf, np.nan, 3, 0
    for function, output in ((lsm.log_softmax_backward, y), (lsm.softmax_backward, p)):
        alone = np.array([function(*frame, backend="cython") for frame in zip(dy, output, strict=True)])
        np.testing.assert_array_equal(function(dy, output, backend="cython"), alone)
        in_place = dy.copy()
        function(in_place, output, out=in_place, backend="cython")
        np.testing.assert_array_equal(in_place, alone)
        columns = (dy.T.copy(), output.T.copy())
        np.testing.assert_array_equal(function(*columns, 0, backend="cython").T, alone)
        images = [np.moveaxis(array.reshape(5, 15, n), 1, 2).copy() for array in (dy, output)]
        result = function(*images, 1, backend="cython")
        np.testing.assert_array_equal(np.moveaxis(result, 2, 1).reshape(75, n), alone)


@pytest.mark.parametrize("n", [3, 20, 64, 200])
def test_views_of_arrays_that_are_in_memory(n, rng, kernels_get):
    """What is prefetched follows from strides, which may be negative, or larger than the frames."""
    kernels_get(1, 2**20)
    x = (rng.standard_normal((600_000 // n, n)) * 4).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, p = lsm.log_softmax(x, backend="cython"), lsm.softmax(x, backend="cython")
    cases = [(lsm.log_softmax, (x,)), (lsm.log_softmax_backward, (dy, y)), (lsm.softmax_backward, (dy, p))]
    for function, inputs in cases:
        expected = function(*inputs, backend="cython")
        for view in (np.s_[::-1], np.s_[:, ::-1], np.s_[::-7], np.s_[5:]):
            of_view = [array[view] for array in inputs]
            out = np.empty_like(expected)[view]
            result = function(*of_view, axis=1, out=out, backend="cython")
            columns = function(*(array.T for array in of_view), axis=0, backend="cython").T
            if view == np.s_[:, ::-1]:  # the order of the sums is another one
                np.testing.assert_allclose(result, expected[view], rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(result, expected[view])
            np.testing.assert_array_equal(columns, result)
        apart = [np.repeat(array, 2, axis=0)[::2] for array in inputs]
        np.testing.assert_array_equal(function(*apart, backend="cython"), expected)
        planes = [array[: len(array) // 8 * 8].reshape(8, -1, n).transpose(0, 2, 1) for array in inputs]
        found = function(*(array[:, :, ::-1] for array in planes), axis=1, backend="cython")
        np.testing.assert_array_equal(found[:, :, ::-1].transpose(0, 2, 1).reshape(-1, n), expected[: len(x) // 8 * 8])
        solid = [np.ascontiguousarray(array) for array in planes]
        found = function(*(array[::-1, :, ::-1] for array in solid), axis=1, backend="cython")[::-1, :, ::-1]
        np.testing.assert_array_equal(found.transpose(0, 2, 1).reshape(-1, n), expected[: len(x) // 8 * 8])


@pytest.mark.parametrize("n", [1, 3, 8, 10, 15, 17, 24, 31, 33, 50, 63])
def test_short_frames_end_where_they_end(backend, dtype, n, rng):
    """They are written as whole vectors where the next frame takes the rest: no further than that, also in place."""
    for n_frames in (1, 2, 7, 15, 16, 17, 33, 40):
        x, dy = (rng.standard_normal((2, n_frames, n)) * 4).astype(dtype)
        alone = np.array([lsm.log_softmax(row.copy(), backend=backend) for row in x])
        frames = zip(dy, alone, strict=True)
        gradients = np.array([lsm.log_softmax_backward(a.copy(), b.copy(), backend=backend) for a, b in frames])
        for gap in (0, 1, 70):  # between frames
            memory = np.full((n_frames + 2) * (n + gap) + 140, 99, dtype)
            out = memory[70 : 70 + n_frames * (n + gap)].reshape(n_frames, n + gap)[:, :n]
            for first in (x, dy, alone, None):  # what is there before: an input in place, or 99
                memory[:] = 99
                if first is not None:
                    out[...] = first
                a, b = (out if first is which else which for which in (dy, alone))
                if first is x:
                    lsm.log_softmax(out, out=out, backend=backend)
                else:
                    lsm.log_softmax_backward(a, b, out=out, backend=backend)
                np.testing.assert_array_equal(out, alone if first is x else gradients)
                out[...] = 99
                assert (memory == 99).all()


@pytest.mark.parametrize("n", [1, 10, 40, 64, 100, 1000, 3000, 20000])
def test_hard_frames_among_others(backend, dtype, n, rng):
    """Frames that are NaN, masked or enormous leave their neighbours as they would be alone, and are so themselves."""
    x, dy = (rng.standard_normal((2, 40, n)) * 4).astype(dtype)
    x[3, n // 2], x[5], x[8, 0], x[9, ::2], x[20] = np.nan, -np.inf, np.inf, -np.inf, 7
    dy[2, n // 2], dy[12], dy[21, n - 1] = np.nan, np.finfo(np.float16).max, np.inf
    if dtype.itemsize > 2:
        dy[13] = np.finfo(dtype).max / 2

    def equal(a, b):
        np.testing.assert_array_equal(
            a.astype(np.longdouble), b.astype(np.longdouble)
        )  # which knows NaN, of 16 bits too

    y = lsm.log_softmax(x, backend=backend)
    for i in range(40):
        equal(lsm.log_softmax(x[i].copy(), backend=backend), y[i])
    equal(lsm.log_softmax(x.T.copy(), 0, backend=backend).T, y)
    y[30, n - 1], y[31, 0] = 100, 800
    dx = lsm.log_softmax_backward(dy, y, backend=backend)
    for i in range(40):
        equal(lsm.log_softmax_backward(dy[i].copy(), y[i].copy(), backend=backend), dx[i])
    equal(lsm.log_softmax_backward(dy.T.copy(), y.T.copy(), 0, backend=backend).T, dx)


LEVEL_SCRIPT = """
import hashlib, numpy as np, lsm
rng = np.random.default_rng(5)
digest = hashlib.sha256()
for dtype in ("f4", "f8"):
    for shape in ((50, 10), (20, 1000), (2, 20000), (300, 40)):
        for axis in (0, 1):
            x = (rng.standard_normal(shape) * 10).astype(dtype)
            y = lsm.log_softmax(x, axis, backend="cython")
            digest.update(y.tobytes())
            digest.update(lsm.log_softmax_backward(x, y, axis, backend="cython").tobytes())
            exact = x.astype("g") - np.log(np.exp(x.astype("g")).sum(axis, keepdims=True))
            assert (np.abs(y - exact) < 4 * np.finfo(dtype).eps * (np.abs(exact) + 1)).all()
print(digest.hexdigest())
"""


def test_instruction_levels_with_fma_agree():
    """v3 and v4 give the same bits; v2, which has no FMA, is right as well (the script checks it)."""
    best = import_module("lsm.backends._kernels.cpu").best_level()
    levels = [level for level in ("v4", "v3", "v2") if level <= best] if best != "plain" else ["plain"]
    digests = {}
    for level in levels:
        done = subprocess.run(
            [sys.executable, "-c", LEVEL_SCRIPT],
            env=os.environ | {"LSM_FORCE_ISA": level},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        digests[level] = done.stdout
    assert len({digest for level, digest in digests.items() if level != "v2"}) == 1


@st.composite
def cases(draw):
    """An array of any shape, seen in any order of axes, any step and direction."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    width = np.dtype(dtype).itemsize * 8
    values = [0.0, -0.0, 1e-40, 1e30, -1e30, 80.0, -np.inf]
    special = st.sampled_from([float(np.float32(value)) for value in values])
    values = st.one_of(st.floats(-100, 100, width=width), special)
    x = draw(hnp.arrays(dtype, shape, elements=values))
    order = draw(st.permutations(range(x.ndim)))
    steps = draw(st.lists(st.sampled_from([1, 2, -1, -2]), min_size=x.ndim, max_size=x.ndim))
    view = x.transpose(order)[tuple(slice(None, None, step) for step in steps)]
    return view, draw(st.integers(-x.ndim, x.ndim - 1))


@settings(deadline=None, max_examples=300)
@given(cases())
def test_any_view_gives_what_its_frames_give_alone(case):
    x, axis = case
    for backend in ("cython", "numpy"):
        y = lsm.log_softmax(x, axis, backend=backend)
        assert y.shape == x.shape
        dx = lsm.log_softmax_backward(x, y, axis, backend=backend)
        frames = [np.moveaxis(a, axis, -1) for a in (x, y, dx)]
        for i in np.ndindex(frames[0].shape[:-1]):
            a, b, c = (np.ascontiguousarray(f[i]) for f in frames)
            alone = lsm.log_softmax(a, backend=backend)
            np.testing.assert_array_equal(alone, b)
            np.testing.assert_array_equal(lsm.log_softmax_backward(a, alone, backend=backend), c)
            if (a > -np.inf).any():
                assert abs(np.exp(b.astype(np.float64)).sum() - 1) < 1e-5
                assert (b <= 0).all()


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e3, 1e3)), st.floats(-1e3, 1e3))
def test_properties_of_a_frame(x, shift):
    for backend in ("cython", "numpy"):
        y = lsm.log_softmax(x, backend=backend)
        # order is kept, a shift changes nothing beyond its rounding, the gradient of a constant vanishes
        assert (np.diff(y[np.argsort(x, kind="stable")]) >= 0).all()
        np.testing.assert_allclose(lsm.log_softmax(x + shift, backend=backend), y, rtol=1e-9, atol=2e-12)
        dx = lsm.log_softmax_backward(np.exp(y), y, backend=backend)
        np.testing.assert_allclose(dx.sum(), 0, atol=1e-12)


def test_an_axis_of_length_1_of_odd_strides(backend):
    # The kernels see other strides than NumPy shows; they once wrote beyond the scratch, as .ci/sanitize tells.
    a, b = np.zeros((40, 30, 1)).T, np.zeros((200, 1))
    for dy, y, axis in ((a, a, 0), (b[::2], b[:100].copy(), 1), (b[:100].copy(), b[::-2], 1)):
        assert (lsm.log_softmax(y, axis, backend=backend) == 0).all()
        assert (lsm.log_softmax_backward(dy, y, axis, backend=backend) == 0).all()
