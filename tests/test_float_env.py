"""The floating-point environment that a caller has set changes no result, and is left as it was."""

import ctypes
import platform
import subprocess
import sys

import numpy as np
import pytest

import lsm

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not (IS_X86 or platform.machine() == "aarch64"), reason="glibc's fenv_t is read here"
)


class Env(ctypes.Structure):
    """glibc's fenv_t: on x86-64 28 bytes of the x87, then MXCSR; on aarch64 FPCR and FPSR."""

    _fields_ = [
        ("x87", ctypes.c_uint32 * (7 if IS_X86 else 0)),
        ("control", ctypes.c_uint32),
        ("rest", ctypes.c_uint32),
    ]


LIBM = ctypes.CDLL("libm.so.6") if sys.platform == "linux" else None
# Bits of the control word: 4 rounding modes, flush-to-zero, denormals-are-zero, and unmasked exceptions.
if IS_X86:
    ROUNDING = {"nearest": 0, "down": 0x2000, "up": 0x4000, "to zero": 0x6000}
    FLUSHED = {"subnormals": 0, "FTZ": 0x8000, "DAZ": 0x40, "both": 0x8040}
    DEFAULT, CONTROL = 0x1F80, 0xFFC0
else:
    ROUNDING = {"nearest": 0, "up": 1 << 22, "down": 2 << 22, "to zero": 3 << 22}
    FLUSHED = {"subnormals": 0, "both": 1 << 24}
    DEFAULT, CONTROL = 0, 0x01C09F00


def control():
    env = Env()
    LIBM.fegetenv(ctypes.byref(env))
    if IS_X86:
        assert env.x87[0] & 0xC00 == (env.control & 0x6000) >> 3
    return env.control & CONTROL


class Within:
    """This control word in the calling thread, within a block."""

    def __init__(self, bits):
        self.bits = bits

    def __enter__(self):
        self.before, env = Env(), Env()
        LIBM.fegetenv(ctypes.byref(self.before))
        LIBM.fegetenv(ctypes.byref(env))
        env.control = self.bits
        if IS_X86:  # longdouble has its own rounding mode
            env.x87[0] = env.x87[0] & ~0xC00 | (self.bits & 0x6000) >> 3
        LIBM.fesetenv(ctypes.byref(env))

    def __exit__(self, *_):
        LIBM.fesetenv(ctypes.byref(self.before))


def cases(rng):
    """Arrays whose results, or parts of whose sums, are subnormal or depend on the rounding mode."""
    for dtype in ("f2", "f4", "f8"):
        tiny = np.finfo(dtype).tiny
        far = -np.log(float(tiny))
        for shape, axis in (
            ((7,), 0),
            ((400, 20), 1),
            ((3, 5000), 1),
            ((40, 30, 50), 1),
            ((2, 150_000), 1),
            ((150_000, 2), 0),
        ):
            x = rng.normal(0, 5, shape).astype(dtype)
            np.moveaxis(x, axis, -1)[..., 0] += np.asarray(rng.uniform(far * 0.99, far * 1.2), dtype)
            dy = (rng.normal(0, 1, shape) * float(tiny)).astype(dtype)
            yield x, dy, axis


def results(x, dy, axis):
    """All that is computed from one case, on plain arrays and with strides."""
    for a, b in ((x, dy), (x[..., ::2], dy[..., ::2])):
        y = lsm.log_softmax(a, axis)
        yield from (y, lsm.log_softmax_backward(b, y, axis))
        if x.dtype == np.float16:
            yield lsm.log_softmax(a, axis, dtype=np.float32)


@pytest.mark.parametrize("flushed", FLUSHED)
@pytest.mark.parametrize("rounding", ROUNDING)
def test_the_same_bits_in_every_environment(rounding, flushed, rng):
    bits = DEFAULT | ROUNDING[rounding] | FLUSHED[flushed]
    for case in cases(rng):
        with lsm.num_threads(1):
            expected = [y.tobytes() for y in results(*case)]
        for n_threads in (1, 2):
            with lsm.num_threads(n_threads), Within(bits):
                found = list(results(*case))
                assert control() == bits & CONTROL
            assert [y.tobytes() for y in found] == expected, case[0].shape


def every_function(dtype, rng):
    """All that lsm computes, by a kernel or by NumPy, from small arrays of the kind of `cases`."""
    far = -np.log(float(np.finfo(dtype).tiny) if dtype != "g" else 1e-300)
    x = rng.normal(0, 5, (6, 20)).astype(dtype)
    x[:, 0] += np.asarray(rng.uniform(far * 0.99, far * 1.2, 6), dtype)
    dy = (rng.normal(0, 1, x.shape) * float(np.finfo("f8" if dtype == "g" else dtype).tiny)).astype(dtype)
    y, p, labels = lsm.log_softmax(x), lsm.softmax(x), np.arange(6) % 3
    where, temperature = np.arange(120).reshape(6, 20) % 3 != 1, np.linspace(0.7, 3, 6).reshape(6, 1)
    weight, long_y = np.linspace(0.1, 1, 20), y.astype("g")
    whole = np.arange(2**60, 2**60 + 60).reshape(3, 20) * [[1], [-1], [3]]  # needs rounding in float64
    yield from (
        lambda: lsm.softmax(x),
        lambda: lsm.softmax_backward(dy, p),
        lambda: lsm.logsumexp(x, -1),
        lambda: lsm.logsumexp(whole, -1),
        lambda: lsm.log_softmax_backward(dy, long_y),
        lambda: lsm.logsumexp(x, -1, b=dy),
        lambda: lsm.log_softmax(x, where=where, temperature=temperature),
        lambda: lsm.softmax(x, temperature=3.0),
        lambda: lsm.log_softmax_backward(dy, y, temperature=temperature),
        lambda: lsm.take_log_softmax(x, labels),
        lambda: lsm.top_k_log_softmax(x, 2)[0],
        lambda: lsm.cross_entropy(x, labels),
        lambda: lsm.cross_entropy(x, labels, label_smoothing=0.1, z_loss=0.1, weight=weight),
        lambda: lsm.cross_entropy(x, p, temperature=temperature),
        lambda: lsm.cross_entropy_value_and_grad(x, labels, reduction="sum")[1],
        lambda: lsm.entropy(x, -1),
        lambda: lsm.kl_divergence(x, x[::-1], -1),
        lambda: lsm.log_softmax(x, backend="numpy"),
        lambda: lsm.log_softmax_backward(dy, y, backend="numpy"),
    )


@pytest.mark.parametrize("flushed", FLUSHED)
@pytest.mark.parametrize("rounding", ROUNDING)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
def test_what_numpy_computes_is_the_same_too(dtype, rounding, flushed, rng):
    bits = DEFAULT | ROUNDING[rounding] | FLUSHED[flushed]
    for i, call in enumerate(every_function(dtype, rng)):
        expected = call()
        with Within(bits):
            found = call()
            assert control() == bits & CONTROL
        np.testing.assert_array_equal(found, expected, strict=True, err_msg=f"call {i}")
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_threads_that_openmp_started_in_another_environment():
    """A new thread has the environment of the one that starts it: here the first region is opened with FTZ."""
    code = """
import numpy as np, lsm
from test_float_env import DEFAULT, FLUSHED, ROUNDING, Within
x = np.zeros((4000, 20), "f4")
x[:, 0] = np.random.default_rng(0).uniform(88, 103, 4000)
with lsm.num_threads(1):
    y = lsm.log_softmax(x)
    dx = lsm.log_softmax_backward(x, y)
assert (y[:, 0] != 0).all()
with lsm.num_threads(2):
    with Within(DEFAULT | FLUSHED["both"] | ROUNDING["up"]):
        found = [lsm.log_softmax(x), lsm.log_softmax_backward(x, y)]
    found += [lsm.log_softmax(x), lsm.log_softmax_backward(x, y)]
for a, b in zip(found, (y, dx, y, dx)):
    assert a.tobytes() == b.tobytes()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not IS_X86, reason="no traps here")
def test_a_caller_that_traps_floating_point_exceptions_is_not_stopped():
    code = """
import numpy as np, lsm
from test_float_env import Within
x = np.array([[0, -np.inf, 200, -300], [np.nan, 1, 2, 3], [np.inf, 0, 0, 0], [1e-45, 0, 0, 0]], "f4")
expected = lsm.log_softmax(x), lsm.log_softmax_backward(x, x)
with Within(0):  # all exceptions unmasked
    found = lsm.log_softmax(x), lsm.log_softmax_backward(x, x)
for a, b in zip(found, expected):
    assert a.tobytes() == b.tobytes()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
