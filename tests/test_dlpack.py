"""Arrays of libraries that lsm does not know, which speak DLPack; and types that a third-party backend takes itself."""

import ml_dtypes
import numpy as np
import pytest

import lsm


class Namespace:
    """Of an array library of its own, whose arrays hold NumPy's."""

    @staticmethod
    def from_dlpack(y):
        return Own(np.from_dlpack(y))


class Bare:
    """An array that NumPy can only take through DLPack; what a result comes back as, it does not say."""

    def __init__(self, held, device=(1, 0)):
        self.held, self.where = held, device

    def __dlpack__(self, **options):
        return self.held.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.where

    def __array__(self, *args, **kwargs):
        raise AssertionError("the data was copied")


class Own(Bare):
    """The same with a namespace, a shape and a dtype: what the array API asks for."""

    @property
    def shape(self):
        return self.held.shape

    @property
    def ndim(self):
        return self.held.ndim

    @property
    def dtype(self):
        return self.held.dtype

    def __array_namespace__(self, api_version=None):
        return Namespace

    def astype(self, dtype):
        return type(self)(self.held.astype(dtype), self.where)

    def transpose(self, order):
        return type(self)(self.held.transpose(order), self.where)

    def reshape(self, shape):
        return type(self)(self.held.reshape(shape), self.where)

    def copy(self):
        return type(self)(self.held.copy(), self.where)

    def __setitem__(self, index, value):
        self.held[index] = value.held


class Elsewhere(Own):
    """On another device, whose memory cannot be read here: ROCm, for which lsm has no backend."""

    def __init__(self, held, where=(10, 0)):
        super().__init__(held, where)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "?"])
def test_taken_without_a_copy_and_given_back_as_its_own(rng, dtype, monkeypatch):
    held = (rng.standard_normal((3, 5)) * 3).astype(dtype)
    expected = lsm.log_softmax(held)
    seen = []
    original = np.from_dlpack
    monkeypatch.setattr(np, "from_dlpack", lambda x: seen.append(original(x)) or seen[-1])
    for x, kind in ((Bare(held), np.ndarray), (Own(held), Own)):
        seen.clear()
        y = lsm.log_softmax(x)
        assert type(y) is kind
        assert np.shares_memory(seen[0], held)
        np.testing.assert_array_equal(y.held if kind is Own else y, expected, strict=True)
        dx = lsm.log_softmax_backward(type(x)(expected), type(x)(expected))
        assert type(dx) is kind
        expected_dx = lsm.log_softmax_backward(expected, expected)
        np.testing.assert_array_equal(dx.held if kind is Own else dx, expected_dx, strict=True)


def test_semantics_are_those_of_numpy(rng):
    held = rng.standard_normal((3, 4, 5)).astype("f4")
    held[1, 2, 3], held[0, 0, 0] = np.nan, -np.inf
    for axis in (-1, 0, (0, 2), None, ()):
        np.testing.assert_array_equal(lsm.log_softmax(Own(held), axis).held, lsm.log_softmax(held, axis))
    for strange in (held[::-1], held.T, held[:, ::2], held[:0], held[0, 0, 0]):
        strange = np.asarray(strange)
        np.testing.assert_array_equal(lsm.log_softmax(Own(strange), -1).held, lsm.log_softmax(strange, -1))
    assert lsm.log_softmax(Own(held), dtype="float64").held.dtype == np.float64
    with pytest.raises(np.exceptions.AxisError):
        lsm.log_softmax(Own(held), 3)
    with pytest.raises(TypeError, match="^dtype: only NumPy has longdouble"):
        lsm.log_softmax(Own(held), dtype="longdouble")
    with pytest.raises(TypeError, match=r"^x: complex64 numbers have no order"):
        lsm.log_softmax(Own(held.astype("c8")))
    with pytest.raises(TypeError, match=r"^x: this Own cannot be imported through DLPack .*numpy.asarray\(x\)"):
        lsm.log_softmax(Own(held.astype(ml_dtypes.bfloat16)))
    with pytest.raises(ValueError, match="^grad_output, output: shapes"):
        lsm.log_softmax_backward(Own(held), Own(held[0]))


def test_libraries_that_fail_to_say_what_they_have():
    class Silent(Bare):
        def __dlpack_device__(self):
            raise NotImplementedError("not yet")

    class Empty(Own):
        def __dlpack__(self, **options):
            raise BufferError("on strike")

    with pytest.raises(TypeError, match=r"^x: the device of this Silent is unknown \(not yet\); pass numpy"):
        lsm.log_softmax(Silent(np.zeros(3)))
    for call in (lsm.log_softmax, lambda x: lsm.log_softmax_backward(x, x)):
        with pytest.raises(TypeError, match=r": this Empty cannot be imported through DLPack \(on strike\)"):
            call(Empty(np.zeros(3)))


def test_out(rng):
    held = rng.standard_normal((3, 5)).astype("f4")
    expected = lsm.log_softmax(held)
    out = Own(np.empty_like(held))
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":  # which cannot write through DLPack
        with pytest.raises(ValueError, match="^out: is read-only"):
            lsm.log_softmax(Own(held), out=out)
        return
    assert lsm.log_softmax(Own(held), out=out) is out
    np.testing.assert_array_equal(out.held, expected)
    memory = np.empty(16, "f4")
    memory[1:] = held.ravel()
    x, out = Own(memory[1:].reshape(3, 5)), Own(memory[:-1].reshape(3, 5))  # partly the same memory
    lsm.log_softmax(x, out=out)
    np.testing.assert_array_equal(out.held, expected)
    x = Own(held.copy())
    assert lsm.log_softmax_backward(x, Own(expected), out=x) is x
    np.testing.assert_array_equal(x.held, lsm.log_softmax_backward(held, expected))
    read_only = np.empty_like(held)
    read_only.flags.writeable = False
    for wrong, error, message in (
        (np.empty_like(held), TypeError, r"a numpy.ndarray; accepted: a test_dlpack.Own of dtype float32 on cpu"),
        (Bare(np.empty_like(held)), TypeError, "a test_dlpack.Bare; accepted: a test_dlpack.Own"),
        (Own(np.empty(15, "f4")), ValueError, "has shape"),
        (Own(np.empty((3, 5))), TypeError, "has dtype float64"),
        (Own(np.empty_like(held), (10, 0)), lsm.BackendUnsupportedError, "is on rocm:0, the result on cpu"),
    ):
        with pytest.raises(error, match=f"^out: .*{message}"):
            lsm.log_softmax(Own(held), out=wrong)
    with pytest.raises((TypeError, ValueError), match="^out: "):
        lsm.log_softmax(Own(held), out=Own(read_only))


def test_two_libraries_are_not_mixed():
    held = np.zeros((2, 3), "f4")
    with pytest.raises(TypeError, match=r"a numpy.ndarray and a test_dlpack.Own; pass numpy.asarray\(output\)"):
        lsm.log_softmax_backward(held, Own(held))
    with pytest.raises(TypeError, match=r"a test_dlpack.Own and a test_dlpack.Bare; pass both as one type"):
        lsm.log_softmax_backward(Own(held), Bare(held))
    with pytest.raises(
        lsm.BackendUnsupportedError, match="on cpu and rocm:0; lsm does not move arrays between devices"
    ):
        lsm.log_softmax_backward(Own(held), Elsewhere(held))
    with pytest.raises(
        lsm.BackendUnsupportedError, match="on rocm:0 and rocm:1; lsm does not move arrays between devices"
    ):
        lsm.log_softmax_backward(Elsewhere(held), Elsewhere(held, (10, 1)))


@pytest.mark.parametrize("is_loaded", [False, True])
def test_nothing_is_moved_and_the_error_says_what_would_serve(is_loaded):
    lsm.refresh_backends()
    lsm.list_backends(load=is_loaded)
    x = Elsewhere(np.zeros((2, 3), "f4"))
    with pytest.raises(lsm.BackendUnsupportedError) as caught:
        lsm.log_softmax(x)
    assert str(caught.value) == (
        "no backend supports test_dlpack.Elsewhere of float32 on rocm: cython supports devices cpu, not rocm; cupy "
        "supports devices cuda, not rocm; numpy supports devices cpu, not rocm; lsm does not move arrays between "
        "devices; on cpu, use 'cython' or 'numpy'"
    )
    assert str(lsm.explain(x).error) == str(caught.value)
    with pytest.raises(TypeError, match="^x: dtype complex64 on rocm is not accepted"):
        lsm.log_softmax(Elsewhere(np.zeros(3, "c8")))


class Native:
    """A third-party backend for the arrays above on a device of theirs, by way of NumPy."""

    name, api_version, priority = "native", 1, 0
    devices, dtypes, array_types = ("rocm",), ("float32", "float64"), ("test_dlpack.Elsewhere",)

    def __init__(self):
        self.calls = []

    def available(self):
        return None

    def empty(self, shape, dtype, like):
        return Elsewhere(np.full(shape, 7, dtype))

    def log_softmax(self, x, axis, out):
        self.calls.append((x, axis, out))
        lsm.log_softmax(x.held, axis, out=out.held, dtype=out.dtype, backend="numpy")

    def log_softmax_backward(self, grad_output, output, axis, out):
        self.calls.append((grad_output, axis, out))
        lsm.log_softmax_backward(grad_output.held, output.held, axis, out=out.held, backend="numpy")


def test_a_backend_is_given_the_arrays_that_it_declares_as_they_are(installed, rng):
    native = installed(Native())
    held = rng.standard_normal((3, 4)).astype("f4")
    x = Elsewhere(held)
    decision = lsm.explain(x)
    assert (decision.winner, decision.passed_as) == ("native", "test_dlpack.Elsewhere")
    assert (decision.distribution, decision.version) == ("acme-lsm", "1.0")
    y = lsm.log_softmax(x)
    assert native.calls[0][0] is x and native.calls[0][2] is y
    np.testing.assert_array_equal(y.held, lsm.log_softmax(held, backend="numpy"))
    out = Elsewhere(np.empty_like(held))
    assert lsm.log_softmax(x, out=out) is out
    np.testing.assert_array_equal(out.held, y.held)
    assert lsm.log_softmax(x, out=x) is x and native.calls[-1][2] is x
    for axis in (0, None, (0, 1), ()):
        expected = lsm.log_softmax_backward(held, y.held, axis, backend="numpy")
        np.testing.assert_array_equal(lsm.log_softmax_backward(Elsewhere(held), y, axis).held, expected)
    assert lsm.log_softmax(Elsewhere(held[:0])).shape == (0, 4)
    assert lsm.log_softmax(Elsewhere(held), dtype="float64").dtype == np.float64
    assert lsm.log_softmax_backward(Elsewhere(held), Elsewhere(held.astype("f8"))).dtype == np.float64
    with pytest.raises(lsm.BackendUnsupportedError, match="^out: is on rocm:1, the result on rocm:0"):
        lsm.log_softmax(x, out=Elsewhere(np.empty_like(held), (10, 1)))
    for wrong, error in ((Elsewhere(np.empty(3, "f4")), ValueError), (Elsewhere(np.empty((3, 4))), TypeError)):
        with pytest.raises(error, match="^out: has"):
            lsm.log_softmax(Elsewhere(held), out=wrong)


def test_a_backend_for_unknown_types_must_make_their_arrays(installed):
    native = Native()
    native.empty = None
    installed(native)
    with pytest.raises(lsm.BackendUnsupportedError, match="native has no method empty, which is required"):
        lsm.log_softmax(Elsewhere(np.zeros(3, "f4")))


@pytest.mark.parametrize(
    ("empty", "message"),
    [
        (lambda shape, dtype, like: Elsewhere(np.empty((2, 2), dtype)), r"returned .*\(2, 2\), 'float32', 'rocm:0'"),
        (lambda shape, dtype, like: Elsewhere(np.empty(shape)), "float64"),
        (lambda shape, dtype, like: Elsewhere(np.empty(shape, dtype), (1, 0)), "'cpu'"),
        (lambda shape, dtype, like: np.empty(shape, dtype), r"empty returned \('numpy.ndarray',\); requested:"),
        (lambda shape, dtype, like: None, r"empty returned \('builtins.NoneType',\)"),
        (lambda shape, dtype, like: 1 / 0, "empty raised ZeroDivisionError"),
    ],
)
def test_an_array_that_is_not_what_was_asked_for(installed, empty, message):
    native = Native()
    native.empty = empty
    installed(native)
    with pytest.raises(lsm.BackendFailedError, match=message) as caught:
        lsm.log_softmax(Elsewhere(np.zeros(3, "f4")))
    assert "backend 'native' (from acme-lsm 1.0, /site/acme/entry_points.txt)" in str(caught.value)


def test_a_device_array_without_dlpack_is_not_copied_to_the_cpu():
    class DeviceArray:
        __cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012

        def __array__(self, *args, **kwargs):
            return np.zeros(3, "f4")

    with pytest.raises(TypeError, match=r"^x: a DeviceArray on a CUDA device, .*cupy\.asarray\(x\)"):
        lsm.log_softmax(DeviceArray())
