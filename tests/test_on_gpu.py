"""The public functions on a GPU, given what a user has there: arrays of CuPy, tensors of PyTorch, arrays of JAX.

conftest.py leaves this file out where the backend cupy finds no device; test_on_gpu_contents.py runs it on the CPU.
"""

import importlib
import sys

import ml_dtypes
import numpy as np
import oracle
import pytest

import lsm

DTYPES = ("float16", "bfloat16", "float32", "float64")
# A frame in part of a warp, in a warp, in a block and in several; the same for frames that lie side by side.
CASES = [
    ((40, 12), 1),
    ((9, 700), 1),
    ((5, 5000), 1),
    ((2, 130_003), 1),
    ((3, 20, 7), 1),
    ((2000, 9), 0),
    ((9000, 9), 0),
]


@pytest.fixture
def cupy():
    return importlib.import_module("cupy")


@pytest.fixture
def torch():
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return module


@pytest.fixture
def tensor(torch):
    """Makes a CUDA tensor of an ndarray: (values, name of a dtype, number of a device)."""
    return lambda values, dtype, number=0: torch.from_numpy(values).to(f"cuda:{number}", getattr(torch, dtype))


@pytest.fixture
def jax():
    module = pytest.importorskip("jax")
    if module.default_backend() != "gpu":
        pytest.skip("this JAX has no CUDA")
    return module


def host(a):
    """The values of an array or a tensor; in float64, if NumPy has no name for its dtype."""
    if hasattr(a, "get"):
        return a.get()
    return a.double().cpu().numpy() if "bfloat16" in str(a.dtype) else a.cpu().numpy()


def values(shape):
    return np.random.default_rng(1).standard_normal(shape) * 4


def agrees(x, y, axis, dtype):
    """Whether y is the log-softmax of x, both on the host, to the bound of the dtype."""
    own = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    frames, result = (np.moveaxis(a, axis, -1).astype(own) for a in (x, y))
    return oracle.ulps(result, oracle.log_softmax(frames)) <= (0.501 if own.itemsize == 2 else 4)


def check_calls(x, axis, dtype, empty_like, same):
    """Both operations, into a new array, into `out` and in place; twice, since the second time goes another way."""
    kept = host(x).copy()
    for _ in range(2):
        y = lsm.log_softmax(x, axis)
        assert type(y) is type(x) and y.dtype == x.dtype and agrees(kept, host(y), axis, dtype)
        dx = lsm.log_softmax_backward(x, y, axis)
        expected = lsm.log_softmax_backward(host(x).astype(float), host(y).astype(float), axis, backend="numpy")
        scale = np.abs(expected).max()
        relative = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
        np.testing.assert_allclose(host(dx).astype(float), expected, rtol=0, atol=relative * scale)
        out = empty_like(x)
        assert lsm.log_softmax(x, axis, out=out) is out and same(out, y)
        assert lsm.log_softmax_backward(x, y, axis, out=out) is out and same(out, dx)
        assert (host(x) == kept).all()
        assert lsm.log_softmax_backward(out, y, axis, out=out) is out
        assert same(out, lsm.log_softmax_backward(dx, y, axis))


def of_cupy(cupy, shape, dtype):
    if dtype == "bfloat16" and int(cupy.__version__.partition(".")[0]) < 14:
        pytest.skip("CuPy has bfloat16 from version 14 on")
    return cupy.asarray(values(shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_arrays_of_cupy(cupy, shape, axis, dtype):
    x = of_cupy(cupy, shape, dtype)
    check_calls(x, axis, dtype, cupy.empty_like, lambda a, b: (host(a) == host(b)).all())
    assert lsm.explain(x).passed_as == "cupy.ndarray"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_tensors(tensor, shape, axis, dtype):
    torch = sys.modules["torch"]
    x = tensor(values(shape), dtype)
    check_calls(x, axis, dtype, torch.empty_like, torch.equal)
    assert (lsm.explain(x).winner, lsm.explain(x).passed_as) == ("cupy", "torch.Tensor")
    version = x._version
    lsm.log_softmax(x, axis, out=x)
    assert x._version == version + 1


def check_keywords(place, dtype, is_wide_refused=False):
    """Masks, temperatures and factors, which the backend does not know, against those on the host."""
    held = values((6, 5, 40))
    mask, t = held > -3, np.exp(values((6, 1, 40)) / 8)
    x = place(held, dtype)
    close = {"rtol": 8e-3 if dtype == "bfloat16" else 1e-3 if dtype == "float16" else 1e-6, "atol": 1e-5}
    x_host = host(x).astype(float)
    for where in (None, mask):
        m = {} if where is None else {"where": place(where, "bool")}
        for temperature, given in ((None, 1), (0.3, 0.3), (t, t), (t, place(t, "float64"))):
            if is_wide_refused and temperature is not None:
                with pytest.raises(lsm.BackendUnsupportedError, match="^temperature, b: "):
                    lsm.log_softmax(x, 1, temperature=given, **m)
                continue
            options = {"where": where, "temperature": 1 if temperature is None else temperature}
            y = lsm.log_softmax(x, 1, temperature=given, **m)
            assert type(y) is type(x) and y.dtype == x.dtype
            expected = lsm.log_softmax(x_host, 1, **options)
            np.testing.assert_allclose(host(y).astype(float), expected, **close)
            dx = lsm.log_softmax_backward(x, y, 1, temperature=given, **m)
            expected = lsm.log_softmax_backward(x_host, host(y).astype(float), 1, **options)
            np.testing.assert_allclose(host(dx).astype(float), expected, rtol=close["rtol"], atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keywords_of_cupy(cupy, dtype):
    def place(held, name):
        own = ml_dtypes.bfloat16 if name == "bfloat16" else name
        return cupy.asarray(held.astype(own))

    check_keywords(place, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keywords_of_tensors(tensor, dtype):
    check_keywords(tensor, dtype, is_wide_refused=dtype == "float64")


def test_the_stream_of_cupy_is_used(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    held = values((512, 4096)).astype("f4")
    x, late = cupy.asarray(held), cupy.empty_like(cupy.asarray(held))
    for _ in range(3):
        with stream:
            for _ in range(20):  # enough work before it that a kernel on another stream would be early
                late[...] = x
            y = lsm.log_softmax(late)
            late[...] = y  # and this, after it
        stream.synchronize()
        assert (host(late) == host(y)).all() and agrees(held, host(y), 1, "float32")


def test_the_stream_of_pytorch_is_used(torch, tensor):
    held = values((512, 4096))
    x = tensor(held, "float32")
    late = torch.empty_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late.copy_(x)
            y = lsm.log_softmax(late)
            late.zero_()
        stream.synchronize()
        assert agrees(host(x), host(y), 1, "float32")


def test_any_device_of_cupy_whatever_is_current(cupy):
    n_devices = cupy.cuda.runtime.getDeviceCount()
    for number in range(n_devices):
        held = values((30, 100)).astype("f4")
        with cupy.cuda.Device(number):
            x = cupy.asarray(held)
        for current in range(n_devices):
            with cupy.cuda.Device(current):
                for _ in range(2):
                    y = lsm.log_softmax(x)
                    assert y.data.device_id == number
                    assert cupy.cuda.runtime.getDevice() == current
            with cupy.cuda.Device(number):
                assert agrees(held, host(y), 1, "float32")


def test_any_device_of_pytorch_whatever_is_current(torch, tensor):
    before = torch.cuda.current_device()
    try:
        for number in range(torch.cuda.device_count()):
            x = tensor(values((30, 100)), "float32", number)
            for current in range(torch.cuda.device_count()):
                torch.cuda.set_device(current)
                for _ in range(2):
                    y = lsm.log_softmax(x)
                    assert y.device == x.device and agrees(host(x), host(y), 1, "float32")
                assert torch.cuda.current_device() == current
    finally:
        torch.cuda.set_device(before)


def test_there_and_back_with_jax(jax):
    held = values((300, 1000)).astype("f4")
    for _ in range(20):  # whose memory JAX gives to the next one
        x = jax.numpy.asarray(held) + 0
        y = lsm.log_softmax(x)
        del x
        noise = jax.numpy.full(held.shape, 9.0) + 0
        assert isinstance(y, jax.Array) and y.devices() == noise.devices()
        assert agrees(held, np.asarray(y), 1, "float32")
        dx = lsm.log_softmax_backward(y, y)
        expected = lsm.log_softmax_backward(np.asarray(y), np.asarray(y), backend="numpy")
        np.testing.assert_allclose(np.asarray(dx), expected, rtol=1e-5, atol=1e-5)
