"""The CuPy backend and the way to it, without a GPU: by the stand-in for CuPy, whose kernels run on the CPU.

What a GPU alone can show is in test_on_gpu.py, and in the tests of every backend with `--require cupy`.
"""

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from weakref import ref

import ml_dtypes
import numpy as np
import oracle
import pytest
from cuda_on_cpu import cupy_on_cpu

import lsm
from conftest import ADAPTERS
from lsm import _interop_cupy
from lsm._conformance.run import check_backend
from lsm.backends import cupy_, registry
from lsm.backends._cuda.layout import FrameLayout, layout
from lsm.backends.cupy_ import CupyBackend


@contextmanager
def built_in(made):
    """Let lsm have this object as its backend cupy."""
    lsm.refresh_backends()
    candidate = registry.registry().built_in("cupy")
    candidate.backend = made
    candidate._set_state("discovered", "")
    try:
        yield candidate
    finally:
        lsm.refresh_backends()


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, imported as CuPy, and lsm's backend with it."""
    module = cupy_on_cpu.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cupy_on_cpu._state, "launches", [])
    monkeypatch.setattr(cupy_on_cpu._state, "given", [])
    monkeypatch.setattr(cupy_on_cpu._state, "n_waits", 0)
    with built_in(CupyBackend(module)):
        yield module


def exact(y, x):
    return oracle.ulps(y, oracle.log_softmax(x)) <= 4


# -- whether it can be used -----------------------------------------------------------------------------------------


def fails(error):
    def call(*_, **__):
        raise error

    return call


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_hip": True}, "built for ROCm"),
        (
            {"driverGetVersion": lambda: 0, "getDeviceCount": fails(RuntimeError("Insufficient"))},
            "no NVIDIA driver is loaded",
        ),
        (
            {"driverGetVersion": lambda: 12080, "getDeviceCount": fails(RuntimeError("cudaErrorInsufficientDriver"))},
            r"cudaErrorInsufficientDriver.* supports CUDA 12\.8, CuPy needs 13\.2: update .*'lsm-softmax\[cuda12\]'",
        ),
        ({"getDeviceCount": lambda: 0}, "may not use any CUDA device .*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_available_says_what_is_missing(changes, message):
    made = CupyBackend(cupy_on_cpu.module(**changes))
    with built_in(made) as candidate:
        with pytest.raises(lsm.BackendUnavailableError, match=message):
            candidate.load()
        info = next(info for info in lsm.list_backends() if info.name == "cupy")
        assert info.state == "unavailable" and info.devices == ("cuda",) and "bfloat16" in info.dtypes


def test_available_without_a_compiler():
    module = cupy_on_cpu.module()
    module.cuda.compiler.compile_using_nvrtc = fails(RuntimeError("libnvrtc.so.13: no such file"))
    assert "python -m pip install 'lsm-softmax[cuda13]' installs the compiler" in CupyBackend(module).available()


def test_nothing_is_loaded_on_a_device_to_find_out():
    module = cupy_on_cpu.module(getDevice=fails(AssertionError("a context was started")))
    module.RawModule = module.cuda.Device = module.cuda.alloc = module.cuda.runtime.getDevice
    assert CupyBackend(module).available() is None


def test_available_without_cupy(monkeypatch):
    monkeypatch.setattr(cupy_, "find_spec", lambda name: None)
    assert CupyBackend().available().startswith("CuPy is not installed: python -m pip install 'lsm-softmax[cuda13]'")
    monkeypatch.setattr(cupy_, "find_spec", lambda name: name)
    monkeypatch.setattr(cupy_, "import_module", fails(ImportError("two of them")))
    assert "CuPy cannot be imported (ImportError: two of them)" in CupyBackend().available()
    monkeypatch.setattr(cupy_, "import_module", lambda name: cupy_on_cpu.module())
    assert CupyBackend().available() is None


def test_calls_on_the_cpu_never_ask_whether_it_is_available(monkeypatch):
    with built_in(CupyBackend()):
        monkeypatch.setattr(CupyBackend, "available", fails(AssertionError("CuPy was imported")))
        x = np.zeros(3, np.longdouble)
        assert lsm.log_softmax(x).dtype == x.dtype
        assert lsm.explain(x).reasons["cupy"] == "supports devices cuda, not cpu"
        wrong = r"backend 'cupy' \(requested by backend=\) supports devices cuda, not cpu; use .*'numpy'"
        with pytest.raises(lsm.BackendUnsupportedError, match=wrong):
            lsm.log_softmax(np.zeros(3, np.longdouble), backend="cupy")


# -- in which layouts the kernels take arrays -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "strides", "axis", "found"),
    [
        ((4, 5), [(5, 1)], 1, (4, 5, 1, (5, 1))),  # rows
        ((4, 5), [(7, 1)], 1, (4, 5, 1, (7, 1))),
        ((4, 5), [(-7, 1)], 1, (4, 5, 1, (-7, 1))),
        ((4, 5), [(0, 1)], 1, (4, 5, 1, (0, 1))),  # broadcast
        ((4, 5), [(7, 1), (5, 1)], 1, (4, 5, 1, (7, 1, 5, 1))),
        ((3, 4, 5), [(20, 5, 1)], 2, (12, 5, 1, (5, 1))),
        ((5,), [(1,)], 0, (1, 5, 1, (0, 1))),
        ((4, 5), [(5, 1)], 0, (1, 4, 5, (0, 5))),  # columns
        ((4, 5), [(1, 4)], 1, (1, 5, 4, (0, 4))),
        ((4, 5), [(1, -4)], 1, (1, 5, 4, (0, -4))),
        ((2, 3, 4), [(12, 4, 1)], 1, (2, 3, 4, (12, 4))),
        ((2, 3, 4, 5), [(60, 20, 5, 1)], 1, (2, 3, 20, (60, 20))),
        ((2, 3, 4), [(12, 4, 1), (24, 8, 1)], 1, (2, 3, 4, (12, 4, 24, 8))),
        ((7, 1), [(1, 99)], 1, (7, 1, 1, (1, 1))),  # a single class has no stride
        ((5,), [(2,)], 0, None),  # every second class
        ((5,), [(-1,)], 0, None),
        ((2, 3, 5), [(100, 10, 1)], 2, None),  # two strides lead to the rows
        ((4, 5), [(5, 1), (1, 4)], 1, None),  # rows here, columns there
        ((4, 5), [(10, 2)], 0, None),  # every second column
        ((2, 3, 4, 5), [(1000, 100, 10, 1)], 3, None),
    ],
)
def test_layout(shape, strides, axis, found):
    assert layout(shape, strides, axis) == (None if found is None else FrameLayout(*found))


def test_c_order_is_always_served():
    for shape in ((1,), (2, 1, 3), (4, 5, 6), (1, 1), (2, 3, 4, 5)):
        strides = [stride // 8 for stride in np.empty(shape).strides]
        for axis in range(len(shape)):
            assert layout(shape, [strides, strides], axis) is not None


def test_what_no_kernel_serves_is_copied_and_nothing_else(cupy, monkeypatch, rng):
    copied = []
    monkeypatch.setattr(cupy.ndarray, "copy", lambda x, order="C": copied.append(x.shape) or x._new(x.held.copy()))
    memory = rng.standard_normal((8, 12)).astype("f4")
    for x, n_copies in ((memory, 0), (memory[::-2], 0), (memory.T, 0), (memory[:, ::2], 1), (memory[::-1, ::-1], 1)):
        for axis in (0, 1):
            copied.clear()
            given = cupy.ndarray(x, 0)
            y = lsm.log_softmax(given, axis)
            assert len(copied) == n_copies and exact(np.moveaxis(y.held, axis, -1), np.moveaxis(x, axis, -1))
            before, out = memory.copy(), cupy.ndarray(np.full_like(memory, 7), 0)
            view = cupy.ndarray(out.held[:, ::2], 0)
            lsm.log_softmax(cupy.asarray(memory[:, ::2]), axis, out=view)
            assert (out.held[:, 1::2] == 7).all() and (memory == before).all()


# -- arrays of CuPy -------------------------------------------------------------------------------------------------


def test_arrays_of_cupy_are_served_where_they_lie(cupy, dtype_and_cupy, rng):
    x = cupy.asarray((rng.standard_normal((3, 40)) * 3).astype(dtype_and_cupy))
    y = lsm.log_softmax(x)
    assert type(y) is cupy.ndarray and y.dtype == x.dtype and y.data.device_id == 0
    expected = lsm.log_softmax(x.held, backend="numpy")
    assert oracle.ulps(y.held, expected.astype(np.longdouble)) <= 1
    dx = lsm.log_softmax_backward(x, y)
    assert dx.dtype == x.dtype and np.isfinite(dx.held.astype(float)).all()
    assert lsm.log_softmax(x, out=x) is x and (x.held == y.held).all()
    decision = lsm.explain(x)
    assert (decision.winner, decision.passed_as) == ("cupy", "cupy.ndarray")


@pytest.fixture(params=["float16", ml_dtypes.bfloat16, "float32", "float64"], ids=str)
def dtype_and_cupy(request):
    return request.param


def test_semantics_of_arrays_of_cupy(cupy, rng):
    x = cupy.asarray(rng.standard_normal((3, 4, 5)).astype("f4"))
    for axis in (-1, 0, (0, 2), None, ()):
        y = lsm.log_softmax(x, axis)
        np.testing.assert_allclose(y.held, lsm.log_softmax(x.held, axis), rtol=1e-6)
        into = cupy.asarray(np.zeros((3, 4, 5), "f4"))
        assert lsm.log_softmax(x, axis, out=into) is into
        np.testing.assert_array_equal(into.held, y.held)
    assert lsm.log_softmax(x, dtype="float64").held.dtype == np.float64
    assert lsm.log_softmax(cupy.asarray(np.arange(5))).dtype == np.float64
    n_before = len(cupy_on_cpu.state().launches)
    for shape in ((0,), (2, 0), (0, 3)):
        assert lsm.log_softmax(cupy.asarray(np.zeros(shape, "f4"))).shape == shape
    assert len(cupy_on_cpu.state().launches) == n_before  # CuPy would make a grid of 0 a grid of 1
    with pytest.raises(np.exceptions.AxisError):
        lsm.log_softmax(x, 3)
    with pytest.raises(TypeError, match="^x: dtype complex64 on cuda is not accepted; accepted: float16"):
        lsm.log_softmax(cupy.asarray(np.zeros(3, "c8")))
    with pytest.raises(TypeError, match="^dtype: only NumPy has longdouble"):
        lsm.log_softmax(x, dtype="longdouble")
    with pytest.raises(TypeError, match="^x: a Sub, a subclass of cupy.ndarray"):
        lsm.log_softmax(type("Sub", (cupy.ndarray,), {})(x.held, 0))
    unaligned = np.zeros(13, np.uint8)[1:].view("f4")
    with pytest.raises(TypeError, match="^x: its elements are not aligned to their size, 4 bytes"):
        lsm.log_softmax(cupy.ndarray(unaligned, 0))
    rows = np.zeros((4, 22), np.uint8)[:, :20].view("f4")  # whose strides are (22, 4): the second starts in between
    for arguments, options in (((rows,), {}), ((np.zeros((4, 5), "f4"),), {"out": rows}), ((rows, rows), {})):
        options = {key: cupy.ndarray(value, 0) for key, value in options.items()}
        function = lsm.log_softmax if len(arguments) == 1 else lsm.log_softmax_backward
        with pytest.raises(TypeError, match="(x|out|grad_output): its elements are not aligned to their size, 4 bytes"):
            function(*[cupy.ndarray(a, 0) for a in arguments], **options)
    assert exact(lsm.log_softmax(cupy.ndarray(rows[:1], 0)).held, rows[:1])  # of a single row it does not matter
    with pytest.raises(lsm.BackendUnsupportedError, match="backend 'cython' .*supports devices cpu, not cuda; "):
        lsm.log_softmax(x, backend="cython")


def test_bfloat16_needs_a_cupy_that_has_it(cupy, monkeypatch):
    x = cupy.asarray(np.zeros(3, "f4"))
    assert lsm.log_softmax(x, dtype="bfloat16").dtype.name == "bfloat16"
    monkeypatch.setattr(cupy, "__version__", "13.6.0")
    with pytest.raises(TypeError, match="^dtype: bfloat16 needs CuPy 14 or later"):
        lsm.log_softmax(x, dtype="bfloat16")


def test_out_of_cupy(cupy, rng):
    held = rng.standard_normal((2, 5)).astype("f4")
    x = cupy.asarray(held)
    for out, error, message in (
        (np.empty_like(held), TypeError, "^out: a numpy.ndarray; accepted: a cupy.ndarray of dtype float32 on cuda"),
        (cupy.asarray(np.zeros((2, 4), "f4")), ValueError, r"^out: has shape \(2, 4\); the result has shape \(2, 5\)"),
        (cupy.asarray(np.zeros((2, 5))), TypeError, "^out: has dtype float64; the result has dtype float32"),
        (cupy.ndarray(np.broadcast_to(held[0], (2, 5)), 0), ValueError, "^out: its elements overlap"),
        (cupy.ndarray(held, 1), lsm.BackendUnsupportedError, "^out: is on cuda:1, the result on cuda:0"),
    ):
        with pytest.raises(error, match=message):
            lsm.log_softmax(x, out=out)
    with pytest.raises(
        lsm.BackendUnsupportedError, match="on cuda:0 and cuda:1; lsm does not move arrays between devices"
    ):
        lsm.log_softmax_backward(x, cupy.ndarray(held, 1))


@pytest.mark.parametrize("shift", [1, 3, 7])
def test_an_out_that_overlaps_in_part_gives_what_a_new_one_gets(cupy, shift, rng):
    values = rng.standard_normal(60).astype("f4")
    for first, second in ((0, shift), (shift, 0)):
        memory = values.copy()
        # two arrays of their own, as DLPack gives them, of which CuPy would not say that they share memory
        x, out = (cupy.ndarray(memory[i : i + 50].reshape(5, 10), 0) for i in (first, second))
        expected = lsm.log_softmax(cupy.asarray(x.held))
        lsm.log_softmax(x, out=out)
        np.testing.assert_array_equal(out.held, expected.held)


def test_the_device_of_the_array_is_made_the_current_one(cupy, rng):
    x = cupy.ndarray(rng.standard_normal((4, 6)).astype("f4"), 1)
    for axis in (0, 1, None):
        y = lsm.log_softmax(x, axis)
        assert y.data.device_id == 1
        lsm.log_softmax_backward(x, y, axis, out=x)
    assert {device for _, device, _ in cupy_on_cpu.state().launches} == {1}
    assert cupy_on_cpu.state().device == 0


def test_a_kind_of_call_is_made_ready_once(cupy, monkeypatch, rng):
    x = cupy.asarray(rng.standard_normal((4, 6)).astype("f4"))
    lsm.log_softmax(x)
    monkeypatch.setattr(cupy_.plans, "plan", fails(AssertionError("planned again")))
    monkeypatch.setattr(cupy_, "layout", fails(AssertionError("laid out again")))
    n_compiled = cupy.RawModule.n_compiled
    lsm.log_softmax(x)
    assert cupy.RawModule.n_compiled == n_compiled
    with pytest.raises(AssertionError, match="laid out again"):
        lsm.log_softmax(cupy.asarray(np.zeros((5, 6), "f4")))


def test_calls_that_are_kept_ready_are_bounded(cupy, monkeypatch):
    monkeypatch.setattr(cupy_, "_MAX_CACHED_CALLS", 3)
    for n in range(1, 9):
        lsm.log_softmax(cupy.asarray(np.zeros((n, 4), "f4")))
    backend = registry.registry().built_in("cupy").backend
    assert len(backend._devices[0].prepared) <= 3


def test_shared_memory_is_asked_for(cupy, rng):
    x = rng.standard_normal((2, 50_000)).astype("f4")
    assert exact(lsm.log_softmax(cupy.asarray(x)).held, x)  # the shim refuses a launch beyond the requested memory
    x = rng.standard_normal((1, 40_000)).astype("f4")
    assert exact(lsm.log_softmax(cupy.asarray(x)).held, x)


@pytest.fixture
def warm(cupy, monkeypatch, rng):
    """The stand-in, after calls of the kinds that follow; `ordinary` is called whenever one goes the ordinary way."""
    x, out = (cupy.asarray(rng.standard_normal((5, 10)).astype("f4")) for _ in range(2))
    for axis in (0, 1):
        for target in (None, out):
            lsm.log_softmax_backward(x, lsm.log_softmax(x, axis, out=target), axis, out=target)
    cupy.ordinary = []
    take = _interop_cupy.CupyLibrary.validate
    validate = lambda *a, **k: cupy.ordinary.append(a[1:]) or take(*a, **k)  # noqa: E731
    monkeypatch.setattr(_interop_cupy.CupyLibrary, "validate", validate)
    return cupy


def test_a_kind_of_call_that_was_served_is_served_again_at_once(warm, rng):
    for axis in (0, 1, -1, -2):
        held = rng.standard_normal((5, 10)).astype("f4")
        x, out = warm.asarray(held), warm.asarray(np.zeros_like(held))
        y = lsm.log_softmax(x, axis)
        assert lsm.log_softmax(x, axis, out=out) is out and (out.held == y.held).all()
        np.testing.assert_allclose(y.held, lsm.log_softmax(held, axis), rtol=1e-6)
        dx = lsm.log_softmax_backward(x, y, axis, backend=None)
        assert lsm.log_softmax_backward(x, y, axis, out=out) is out and (out.held == dx.held).all()
        np.testing.assert_allclose(dx.held, lsm.log_softmax_backward(held, y.held, axis), rtol=1e-5, atol=1e-6)
        assert lsm.log_softmax(x, axis, out=x) is x and (x.held == y.held).all()
    assert warm.ordinary == []


def test_what_must_be_looked_at_is_not_served_at_once(warm, rng):
    memory = rng.standard_normal(70).astype("f4")
    x = warm.ndarray(memory[:50].reshape(5, 10), 0)
    expected = lsm.log_softmax(warm.asarray(x.held))
    out = warm.ndarray(memory[3:53].reshape(5, 10), 0)
    assert lsm.log_softmax(x, out=out) is out and (out.held == expected.held).all()
    there = warm.ndarray(memory[:50].reshape(5, 10), 1)
    assert lsm.log_softmax(there).data.device_id == 1
    unaligned = warm.ndarray(np.zeros(201, np.uint8)[1:].view("f4").reshape(5, 10), 0)
    for error, arguments, options in (
        (np.exceptions.AxisError, (x, 2), {}),
        (TypeError, (x, 1.0), {}),
        (TypeError, (x, True), {}),
        (TypeError, (unaligned,), {}),
        (TypeError, (x,), {"out": unaligned}),
        (TypeError, (x,), {"out": np.zeros((5, 10), "f4")}),
        (TypeError, (x,), {"out": warm.asarray(np.zeros((5, 10)))}),
        (ValueError, (x,), {"out": warm.asarray(np.zeros((10, 5), "f4"))}),
        (lsm.BackendUnsupportedError, (x,), {"out": there}),
        (lsm.BackendUnsupportedError, (x,), {"backend": "numpy"}),
        (TypeError, (x,), {"backend": 3}),
    ):
        with pytest.raises(error):
            lsm.log_softmax(*arguments, **options)
    with pytest.raises(ValueError, match="shapes"):
        lsm.log_softmax_backward(x, warm.asarray(np.zeros((10, 5), "f4")))
    with pytest.raises(lsm.BackendUnsupportedError, match="on cuda:0 and cuda:1"):
        lsm.log_softmax_backward(x, there)
    assert lsm.log_softmax_backward(x, warm.asarray(np.zeros((5, 10)))).dtype == np.float64


# -- arrays of other libraries, through DLPack ----------------------------------------------------------------------


class Namespace:
    @staticmethod
    def from_dlpack(y):
        return Tensor(np.from_dlpack(cupy_on_cpu._OnCpu(y, 5)), y.data.device_id)


class Tensor:
    """An array of some library on a CUDA device: DLPack, and what the array API asks for."""

    def __init__(self, held, number=0):
        self.held, self.number, self.ordered = held, number, []

    shape = property(lambda self: self.held.shape)
    ndim = property(lambda self: self.held.ndim)
    dtype = property(lambda self: self.held.dtype)

    def __dlpack_device__(self):
        return (2, self.number)

    def __dlpack__(self, *, stream=None, **options):
        self.ordered.append(stream)
        return self.held.__dlpack__(**options)

    def __array__(self, *args, **kwargs):
        raise AssertionError("the data was copied")

    def __array_namespace__(self, api_version=None):
        return Namespace


@pytest.mark.parametrize("number", [0, 1])
def test_any_dlpack_array_on_cuda_is_taken_without_a_copy(cupy, number, monkeypatch, rng):
    held = rng.standard_normal((3, 5)).astype("f4")
    x, seen = Tensor(held, number), []
    original = cupy.from_dlpack
    monkeypatch.setattr(cupy, "from_dlpack", lambda x: seen.append(original(x)) or seen[-1])
    y = lsm.log_softmax(x)
    assert type(y) is Tensor and y.number == number and exact(y.held, held)
    assert np.shares_memory(seen[0].held, held)
    assert x.ordered == [1]  # the library of x orders its work before CuPy's stream
    assert cupy_on_cpu.state().given == [5]  # and CuPy its own before that of the library
    dx = lsm.log_softmax_backward(y, y, 0)
    np.testing.assert_allclose(dx.held, lsm.log_softmax_backward(y.held, y.held, 0), rtol=1e-5, atol=1e-6)
    decision = lsm.explain(x)
    assert (decision.winner, decision.passed_as) == ("cupy", "cupy.ndarray")
    assert ", as cupy.ndarray" in str(decision)
    out = Tensor(np.zeros_like(held), number)
    assert lsm.log_softmax(x, out=out) is out
    np.testing.assert_array_equal(out.held, y.held)
    assert cupy_on_cpu.state().n_waits == 3  # DLPack has no way to tell that x is still read, or that out was written
    assert cupy_on_cpu.state().device == 0


def test_a_view_through_dlpack_is_there_until_it_was_read(cupy, monkeypatch):
    alive = []
    original = cupy.from_dlpack
    monkeypatch.setattr(cupy, "from_dlpack", lambda x: alive.append(ref(view := original(x))) or view)
    stream = SimpleNamespace(ptr=0, synchronize=lambda: alive.append(alive[0]() is not None))
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    lsm.log_softmax(Tensor(np.zeros((3, 5), "f4")))
    assert alive[1:] == [True]


def test_what_is_not_aligned_through_dlpack_is_refused(cupy):
    x, unaligned = Tensor(np.zeros((2, 3), "f4")), Tensor(np.zeros(25, np.uint8)[1:].view("f4").reshape(2, 3))
    for name, call in (
        ("x", lambda: lsm.log_softmax(unaligned)),
        ("out", lambda: lsm.log_softmax(x, out=unaligned)),
        ("output", lambda: lsm.log_softmax_backward(x, unaligned)),
    ):
        with pytest.raises(TypeError, match=f"^{name}: its elements are not aligned to their size, 4 bytes"):
            call()


def test_integers_and_promotion_through_dlpack(cupy, rng):
    assert lsm.log_softmax(Tensor(np.arange(4))).held.dtype == np.float64
    a, b = rng.standard_normal((2, 3, 5))
    assert lsm.log_softmax_backward(Tensor(a.astype("f4")), Tensor(b)).held.dtype == np.float64
    assert lsm.log_softmax(Tensor(a), dtype="float32").held.dtype == np.float32
    with pytest.raises(ValueError, match="shapes"):
        lsm.log_softmax_backward(Tensor(a), Tensor(b[0]))


def test_a_library_without_from_dlpack_gets_cupys_array(cupy, monkeypatch):
    monkeypatch.delattr(Tensor, "__array_namespace__")
    assert type(lsm.log_softmax(Tensor(np.zeros((2, 3), "f4")))) is cupy.ndarray


def test_what_dlpack_refuses_is_an_error_that_says_so(cupy, monkeypatch):
    monkeypatch.setattr(cupy, "from_dlpack", fails(NotImplementedError("CuPy does not support bfloat16")))
    with pytest.raises(
        TypeError, match="^x: this Tensor cannot be imported through DLPack .*CuPy does not support bfloat16"
    ):
        lsm.log_softmax(Tensor(np.zeros(3, "f4")))


def test_what_bfloat16_through_dlpack_needs_is_said(cupy, monkeypatch):
    monkeypatch.setattr(cupy, "from_dlpack", fails(NotImplementedError("no bfloat16")))
    with pytest.raises(TypeError, match=r"needs CuPy 14, ml_dtypes and NumPy 2\.1\.2, or later"):
        lsm.log_softmax(Tensor(np.zeros(3, ml_dtypes.bfloat16)))


def test_without_a_gpu_the_error_says_what_is_missing():
    with (
        built_in(CupyBackend(cupy_on_cpu.module(getDeviceCount=lambda: 0))),
        pytest.raises(
            lsm.BackendUnsupportedError,
            match="cupy unavailable: the driver is loaded, but this process may not use any CUDA device",
        ),
    ):
        lsm.log_softmax(Tensor(np.zeros(3, "f4")))


# -- the whole kit --------------------------------------------------------------------------------------------------


def test_the_kit_passes_through_the_adapter():
    candidate = ADAPTERS["cuda-on-cpu"]
    known = registry.registry()
    known._others = (*known.others(), candidate)
    report = check_backend(candidate.name)
    lsm.refresh_backends()
    failed = [outcome for outcome in report.outcomes if outcome.outcome == "failed"]
    assert not failed, failed[0]
    assert report.count("passed") > 100
