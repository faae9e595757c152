"""Small calls, which go straight to the kernels: the same bits, errors and choice of backend as the ordinary way."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from importlib import import_module

import ml_dtypes
import numpy as np
import pytest

import lsm
from lsm import _dispatch, _fastpath, _threads
from lsm._operations import OPERATIONS
from lsm.backends import cython_, numpy_
from lsm.backends.contract import has_operation

DTYPES = ("f2", ml_dtypes.bfloat16, "f4", "f8")
SHAPES = [(n,) for n in (1, 2, 10, 64, 65, 300)]
SHAPES += [(m, n) for m in (1, 3, 4, 17) for n in (*range(1, 20), 63, 64, 65, 127, 128, 255, 256, 257, 300)]
SHAPES += [(2, 5, 3), (3, 64, 20), (1, 10, 1), (4, 1, 7), (2, 3, 4, 5), (1, 1, 1)]


@pytest.fixture
def served(monkeypatch):
    """What the kernels' functions gave the public ones, in turn, and which backends' methods were called."""
    seen = []
    lsm.refresh_backends()
    cython_.kernels()

    def watched(function):
        def call(*arguments):
            n_seen, result = len(seen), function(*arguments)
            if len(seen) == n_seen:  # the fast functions of another backend call its methods
                seen.append("passed on" if result is None else "quick")
            return result

        return call

    for name in _fastpath.FastFunctions.__slots__:
        monkeypatch.setattr(_fastpath.quick, name, watched(getattr(_fastpath.quick, name)))
    for name, backend in (("cython", cython_.backend), ("numpy", numpy_.backend)):
        for method in [op for op in OPERATIONS if has_operation(backend, op)]:
            original = getattr(type(backend), method)

            def spy(self, *arguments, original=original, name=name):
                seen.append(name)
                return original(self, *arguments)

            monkeypatch.setattr(type(backend), method, spy)
    yield seen
    lsm.refresh_backends()


def data(shape, dtype, rng):
    x = (rng.standard_normal(shape) * 4).astype(dtype)
    return x, rng.standard_normal(shape).astype(dtype)


def ordinarily(function, *arrays, axis):
    """The result of the ordinary way, made to look at each stride: every other element of a wider array."""
    return function(*(np.repeat(a, 2, axis=-1)[..., ::2] for a in arrays), axis, backend="cython")


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a.view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits(dtype, rng, served):
    for shape in SHAPES:
        x, dy = data(shape, dtype, rng)
        if x.size > 5:
            x.flat[3] = -np.inf
        for axis in {0, 1, -1} & set(range(-1, x.ndim)):
            y = ordinarily(lsm.log_softmax, x, axis=axis)
            dx = ordinarily(lsm.log_softmax_backward, dy, y, axis=axis)
            lsm.log_softmax(x, axis), lsm.log_softmax_backward(dy, x, axis)  # once the ordinary way, to make the plan
            served.clear()
            same(lsm.log_softmax(x, axis), y)
            same(lsm.log_softmax_backward(dy, y, axis), dx)
            for function, inputs, expected in (
                (lsm.log_softmax, (x,), y),
                (lsm.log_softmax_backward, (dy, y), dx),
            ):
                out = np.full_like(x, 7)
                assert function(*inputs, axis, out=out) is out
                same(out, expected)
                for i in range(len(inputs)):  # out is one of the inputs
                    copies = [a.copy() for a in inputs]
                    assert function(*copies, axis, out=copies[i]) is copies[i]
                    same(copies[i], expected)
            assert set(served) == {"quick"}, (shape, axis, served)


def test_what_is_passed_on_is_right_all_the_same(rng, served):
    x, dy = data((6, 10), "f4", rng)
    expected, gradient = lsm.log_softmax(x), lsm.log_softmax_backward(dy, x)
    memory = np.empty(121, "f4")
    before, after, swapped = memory[:60].reshape(6, 10), memory[3:63].reshape(6, 10), np.empty((6, 10), ">f4")
    unaligned = np.empty(241, "u1")[1:].view("f4").reshape(6, 10)
    transposed, fortran, wide = np.empty((10, 6), "f4").T, np.asfortranarray(x), np.empty((6, 20), "f4")[:, ::2]

    class Own(np.ndarray):
        pass

    for out in (unaligned, transposed, wide, swapped, np.empty((6, 10), "f4").view(Own)):
        served.clear()
        assert lsm.log_softmax(x, out=out) is out
        np.testing.assert_array_equal(out, expected)
        assert lsm.log_softmax_backward(dy, x, out=out) is out
        np.testing.assert_array_equal(out, gradient)
        assert served == ["passed on", "cython"] * 2
    for given in (fortran, x.view(Own), x.astype(">f4"), np.repeat(x, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(lsm.log_softmax(given), expected)
        np.testing.assert_array_equal(lsm.log_softmax_backward(dy, given), gradient)
        assert type(lsm.log_softmax(given)) is np.ndarray
    for a, out in ((before, after), (after, before)):  # a part of one is a part of the other
        a[...] = x
        lsm.log_softmax(a, out=out)
        np.testing.assert_array_equal(out, expected)
        a[...] = dy
        lsm.log_softmax_backward(a, x, out=out)
        np.testing.assert_array_equal(out, gradient)
        a[...] = x
        lsm.log_softmax_backward(dy, a, out=out)
        np.testing.assert_array_equal(out, gradient)
    unaligned[...] = x
    x.flags.writeable = False
    served.clear()
    for given, answer in ((unaligned, "passed on"), (x, "quick")):
        np.testing.assert_array_equal(lsm.log_softmax(given), expected)
        assert served[0] == answer
        served.clear()
    np.testing.assert_array_equal(lsm.log_softmax(x, np.int64(1)), expected)
    np.testing.assert_array_equal(lsm.log_softmax(x, (1,)), expected)
    assert lsm.log_softmax(x, None).shape == lsm.log_softmax(x, 0).shape == (6, 10)
    assert lsm.log_softmax_backward(dy.astype("f8"), x).dtype == np.float64
    assert lsm.log_softmax(np.array(3, "f4")) == 0
    assert lsm.log_softmax(np.empty((0, 3), "f4")).shape == (0, 3)
    assert lsm.log_softmax(np.empty((3, 0), "f4"), out=np.empty((3, 0), "f4")).shape == (3, 0)


@pytest.mark.parametrize(
    "first",
    [
        lambda x, labels: lsm.cross_entropy(x, labels),
        lambda x, labels: lsm.take_log_softmax(x, labels),
        lambda x, labels: lsm.top_k_log_softmax(x, 2),
        lambda x, labels: lsm.log_softmax(x[:, ::2], where=x[:, ::2] > 0),
        lambda x, labels: lsm.log_softmax_backward(x.astype("f4"), x),
    ],
)
@pytest.mark.parametrize("requested", [None, "cython"])
def test_what_is_called_first_makes_no_later_call_slow(first, requested, served):
    x, labels = np.random.default_rng(0).standard_normal((4, 6)), np.arange(4)
    first(x, labels)
    lsm.log_softmax(x, backend=requested), lsm.log_softmax_backward(x, x, backend=requested)
    served.clear()
    lsm.log_softmax(x, backend=requested), lsm.log_softmax_backward(x, x, backend=requested)
    lsm.cross_entropy(x, labels, backend=requested)
    assert served == ["quick"] * 3


def test_errors_are_those_of_the_ordinary_way():
    x = np.zeros((2, 3), "f4")
    lsm.log_softmax(x)
    read_only = np.zeros((2, 3), "f4")
    read_only.flags.writeable = False
    for function in (lambda *a, **k: lsm.log_softmax(*a, **k), lambda *a, **k: lsm.log_softmax_backward(x, *a, **k)):
        for out, error, message in (
            (read_only, ValueError, "out: is read-only"),
            (np.zeros((3, 2), "f4"), ValueError, "out: has shape"),
            (np.zeros(6, "f4"), ValueError, "out: has shape"),
            (np.zeros((2, 3), "f8"), TypeError, "out: has dtype"),
            ([0], TypeError, "out: a list"),
        ):
            with pytest.raises(error, match=message):
                function(x, out=out)
        for axis in (2, -3, 2**31, 2**63, -(2**63), 10**30):
            with pytest.raises(np.exceptions.AxisError):
                function(x, axis)
        for wrong in (1.0, "1", True):
            with pytest.raises(TypeError, match=r"^axis: "):
                function(x, wrong)
    with pytest.raises(ValueError, match="differ"):
        lsm.log_softmax_backward(x, np.zeros((3, 2), "f4"))


def test_a_request_for_numpy_uses_numpy(served):
    x = np.zeros((2, 3), "f4")

    def used(**kwargs):
        for _ in range(2):  # the first calls make the entries
            served.clear()
            lsm.log_softmax(x, **kwargs)
            lsm.log_softmax_backward(x, x, **kwargs)
        return served.copy()

    lsm.set_default_backend(None)
    assert used() == ["quick"] * 2
    assert used(backend="numpy") == ["numpy"] * 2
    assert used(backend="cython") == ["quick"] * 2
    assert used(backend="numpy") == ["numpy"] * 2
    with lsm.use_backend("numpy"):
        assert used() == ["numpy"] * 2
        assert used(backend="cython") == ["quick"] * 2  # whatever is in force around it
        with lsm.use_backend("cython"):
            assert used() == ["quick"] * 2
            lsm.refresh_backends()
            assert used(backend="cython") == used() == ["quick"] * 2
        assert used() == ["numpy"] * 2
    assert used() == ["quick"] * 2
    lsm.set_default_backend("numpy")
    assert used() == ["numpy"] * 2
    with lsm.use_backend("cython"):
        assert used() == ["quick"] * 2
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(used()))
    with lsm.use_backend("cython"):  # a thread does not see it
        thread.start()
        thread.join()
    assert seen == ["numpy"] * 2
    lsm.set_default_backend(None)
    lsm.refresh_backends()
    assert used() == ["quick"] * 2


def test_the_environment_is_heard():
    code = """
import numpy as np, lsm
from lsm.backends import numpy_
n, own = [], numpy_.backend.log_softmax
type(numpy_.backend).log_softmax = lambda self, *a: n.append(1) or own(*a)
x = np.zeros((1, 10), "f4")
for _ in range(3):
    lsm.log_softmax(x)
print(len(n))
"""
    environment = os.environ | {"LSM_BACKEND": "numpy"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["3"], done.stdout + done.stderr


def test_a_third_partys_backend_is_not_passed_over(monkeypatch):
    """One that is derived from lsm's own inherits the functions, but they are not its methods."""
    called = []

    class Theirs(cython_.CythonBackend):
        name = "theirs"

        def log_softmax(self, x, axis, out):
            called.append(1)
            super().log_softmax(x, axis, out)

    x = np.zeros((1, 10), "f4")
    decision = lsm.explain(x)._replace(winner="theirs", backend=Theirs(), is_built_in=False)
    monkeypatch.setattr(_dispatch, "decide", lambda *_: decision)
    lsm.refresh_backends()
    for _ in range(3):
        lsm.log_softmax(x)
    lsm.refresh_backends()
    assert len(called) == 3


def test_large_calls_ask_how_many_threads(served, monkeypatch):
    function, asked = cython_.kernels()["fast"]["log_softmax"], []
    monkeypatch.setattr(_threads, "monotonic", lambda: asked.append(1) or 0.0)
    for dtype in ("f2", "f4", "f8"):
        for size, n_threads, n_asked in (
            (_threads.MIN_PARALLEL_ELEMENTS - 1, 0, 0),
            (_threads.MIN_PARALLEL_ELEMENTS, 0, 1),
            (_threads.MIN_PARALLEL_ELEMENTS, 1, 0),
        ):
            asked.clear()
            assert function(np.zeros(size, dtype), -1, None, n_threads).shape == (size,)
            assert len(asked) == n_asked


def test_what_is_read_is_not_streamed_over(served, monkeypatch, rng):
    """Results of `stream_bytes` and more go past the cache, unless they take the place of an array that is read."""
    module = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
    usual = cython_.NONTEMPORAL_MIN_BYTES
    monkeypatch.setattr(cython_, "NONTEMPORAL_MIN_BYTES", 1)
    module.configure(_threads.count_threads, 1)
    try:
        for shape in ((7, 10), (5, 300), (2, 20_000)):
            x, dy = rng.standard_normal((2, *shape)).astype("f4")
            y = ordinarily(lsm.log_softmax, x, axis=-1)
            dx = ordinarily(lsm.log_softmax_backward, dy, y, axis=-1)
            np.testing.assert_array_equal(lsm.log_softmax(x), y)
            np.testing.assert_array_equal(lsm.log_softmax(x.copy(), out=np.empty_like(x)), y)
            np.testing.assert_array_equal(lsm.log_softmax(in_place := x.copy(), out=in_place), y)
            np.testing.assert_array_equal(lsm.log_softmax_backward(dy, y, out=np.empty_like(x)), dx)
            np.testing.assert_array_equal(lsm.log_softmax_backward(in_place := dy.copy(), y, out=in_place), dx)
            np.testing.assert_array_equal(lsm.log_softmax_backward(dy, in_place := y.copy(), out=in_place), dx)
    finally:
        module.configure(_threads.count_threads, usual)


def test_threads_at_once(rng):
    """Each with its own arrays, of sizes that keep the GIL and that let it go, with scratch and without."""
    cases = [
        (*data(shape, dtype, rng), axis)
        for dtype in DTYPES
        for shape, axis in (((1, 10), 1), ((32, 10), 1), ((300, 30), 0), ((3, 300), 1))
    ]
    expected = [(ordinarily(lsm.log_softmax, x, axis=axis).tobytes(), x, dy, axis) for x, dy, axis in cases]
    wrong, start = [], threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(30):
            for bits, x, dy, axis in expected:
                y = lsm.log_softmax(x, axis)
                dx = lsm.log_softmax_backward(dy, y, axis)
                if y.tobytes() != bits or lsm.log_softmax_backward(dy, y, axis, out=y).tobytes() != dx.tobytes():
                    wrong.append((x.dtype, x.shape))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(sys, "getrefcount"), reason="references are not counted here")
def test_nothing_leaks():
    x, y, out, axis = np.zeros((8, 10), "f4"), np.zeros((8, 10), "f4"), np.zeros((8, 10), "f4"), -(10**30)
    things = (x, y, out, x.dtype, axis)

    def call(n):
        for _ in range(n):
            lsm.log_softmax(x), lsm.log_softmax(x, out=out), lsm.log_softmax_backward(x, y)
            lsm.log_softmax_backward(x, y, out=out)
            for name, function in cython_.kernels()["fast"].items():
                assert function(*(x, y)[: len(OPERATIONS[name].inputs)], axis, None) is None

    call(100)
    tracemalloc.start()
    try:
        before = [sys.getrefcount(thing) for thing in things], tracemalloc.get_traced_memory()[0]
        call(10_000)
        after = [sys.getrefcount(thing) for thing in things], tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after[0] == before[0]
    assert after[1] - before[1] < 10_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_after_fork():
    code = """
import os, numpy as np, lsm
x = np.random.default_rng(0).standard_normal((8, 40)).astype("f4")
y = lsm.log_softmax(x)
child = os.fork()
if child == 0:
    os._exit(0 if (lsm.log_softmax(x) == y).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0"], done.stderr


def test_the_fast_functions_of_numpy_decline_what_needs_validation(rng):
    """And give what the methods give for the rest."""
    functions = numpy_.backend.fast_functions
    assert set(functions) == set(OPERATIONS)
    x = rng.standard_normal((4, 6))
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    read_only = np.broadcast_to(x[0], x.shape)
    for name, operation in OPERATIONS.items():
        fast, rest = functions[name], [x] * (len(operation.inputs) - 1)
        for axis in (0, 1, -1):
            wanted = getattr(lsm, name)(x.tolist(), *rest, axis, backend="numpy")
            np.testing.assert_array_equal(fast(x, *rest, axis, None), wanted)
        for given, axis, out in (
            (x.tolist(), 1, None),
            (unaligned, 1, None),
            (np.empty((0, 3)), 1, None),
            (x, 2, None),
            (x, None, None),
            (x, True, None),
            (x, 1, np.empty((4, 6), np.float32)),
            (x, 1, np.empty((6, 4)).T),
            (x, 1, read_only),
            (x[:3], 1, x[1:]),
            (x[:3], 1, [0.0]),
        ):
            others = [given] * (len(operation.inputs) - 1)
            assert fast(given, *others, axis, out) is None, (name, given, axis, out)
        if not operation.is_reduction:
            out = np.empty_like(x)
            assert fast(x, *rest, 1, out) is out
            np.testing.assert_array_equal(out, fast(x, *rest, 1, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((5, 7), -1), ((7, 5), 0), ((3, 4, 6), 1), ((2, 300), 1), ((40, 1), 1)])
def test_small_losses_and_selections_are_those_of_the_ordinary_way(dtype, shape, axis, rng, served):
    x, other = rng.standard_normal((2, *shape)).astype(dtype) * np.dtype(dtype).type(4)
    if shape[axis] > 1:
        x.flat[3] = -np.inf
    labels = np.argmin(np.where(x > -np.inf, x.astype(np.longdouble), np.inf), axis)
    width = x.dtype.itemsize

    def calls(x, other):
        """Results, and whether they come quickly."""
        for temperature in (1.0, 0.7):
            yield lsm.entropy(x, axis, temperature=temperature), width < 8
            yield lsm.kl_divergence(x, other, axis, temperature=temperature), width < 8
        yield lsm.take_log_softmax(x, labels, axis), True
        for k in {1, 2, 100} & set(range(shape[axis] + 1)):
            yield lsm.top_k_log_softmax(x, k, axis), True
        for reduction in ("mean", "sum", "none"):
            yield lsm.cross_entropy(x, labels, axis, reduction=reduction), width > 2
            yield lsm.cross_entropy_value_and_grad(x, labels, axis, reduction=reduction), width > 2
            out = x.copy()
            yield lsm.cross_entropy_value_and_grad(out, labels, axis, reduction=reduction, out=out), width > 2

    list(calls(x, other))
    served.clear()
    quickly = []
    for result, is_quick in calls(x, other):
        quickly.append(result)
        assert (served == ["quick"]) == is_quick
        served.clear()
    ordinarily = [result for result, _ in calls(*[np.repeat(a, 2, axis=-1)[..., ::2] for a in (x, other)])]
    for a, b in zip(quickly, ordinarily, strict=True):
        for one, another in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
            same(np.atleast_1d(one), np.atleast_1d(another))


def test_small_losses_leave_the_rest_to_the_ordinary_way(recwarn):
    """No warnings of overflow, and the messages of numbers that only equal the defaults."""
    x, labels = np.array([[3e38, 0], [3e38, 0]], np.float32), np.array([1, 1])
    lsm.log_softmax(x)
    with np.errstate(all="raise"):
        assert lsm.cross_entropy(x, labels, reduction="sum") == np.inf
        assert lsm.cross_entropy_value_and_grad(x, labels, reduction="sum")[0] == np.inf
    assert not recwarn.list
    for name in ("label_smoothing", "z_loss"):
        for value in (0j, np.zeros(2)):
            for function in (lsm.cross_entropy, lsm.cross_entropy_value_and_grad):
                with pytest.raises(ValueError, match=f"^{name}: .*accepted: a finite number"):
                    function(x, labels, **{name: value})


def test_labels_and_out_may_change_during_a_call(rng):
    """The kernels let other threads run; a wrong number or an error is the caller's, a crash would be ours."""
    x = rng.standard_normal((320, 100)).astype(np.float32)
    labels, out, ended = np.zeros(320, np.int64), np.empty_like(x), threading.Event()

    def change():
        while not ended.is_set():
            labels[-1] = 2**40
            out.flags.writeable = False
            time.sleep(0)  # lets the calls have the GIL
            labels[-1] = 0
            out.flags.writeable = True
            time.sleep(0)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5000):
            for options in ({}, {"out": out}):
                with contextlib.suppress(IndexError, ValueError):
                    lsm.cross_entropy_value_and_grad(x, labels, **options)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (7, 70), (90, 600), (5, 12, 40), (2, 20_000)])
def test_masks_and_temperatures_as_on_the_general_path(shape, dtype, rng):
    """The general path takes a temperature that is not exactly a float, and a mask in another order."""
    x, dy = ((rng.standard_normal(shape) * 4).astype(dtype) for _ in range(2))
    x[0, 0], x[1, 0, ...] = np.nan, np.inf
    mask = rng.random(shape) < 0.7
    mask[-1] = False
    mask_elsewhere = np.asfortranarray(mask)
    y, p = lsm.log_softmax(x, 1), lsm.softmax(x, 1)
    for name, inputs in {
        "log_softmax": (x,),
        "softmax": (x,),
        "log_softmax_backward": (dy, y),
        "softmax_backward": (dy, p),
    }.items():
        function = partial(getattr(lsm, name), *inputs, 1, backend="cython")
        for temperature in (1.0, 2, 0.7, 1e-9, 2.0**-900):
            for where, same_mask in ((None, None), (mask, mask_elsewhere)):
                result = function(temperature=temperature, where=where)
                expected = function(temperature=np.float64(temperature), where=same_mask)
                assert result.tobytes() == expected.tobytes(), (name, temperature, where is None)
                out = inputs[0].copy()
                assert getattr(lsm, name)(out, *inputs[1:], 1, temperature=temperature, where=where, out=out) is out
                assert out.tobytes() == expected.tobytes(), (name, temperature, where is None)
