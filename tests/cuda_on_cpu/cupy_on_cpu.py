"""A stand-in for CuPy without a GPU: as much of it as lsm uses, over NumPy's memory and the kernels on the CPU.

It is stricter than CuPy: new memory holds garbage, work on arrays of a device that is not the current one is an error,
and a launch must be what `cuLaunchKernel` takes.
"""

import math
import threading
from types import ModuleType, SimpleNamespace

import numpy as np

from cuda_on_cpu import HostModule

MAX_GRID = 2**31 - 1
H100 = {
    "MaxSharedMemoryPerBlockOptin": 232448,
    "MaxSharedMemoryPerMultiprocessor": 233472,
    "MultiProcessorCount": 132,
    "L2CacheSize": 50 * 2**20,
}


class _Bytes:
    """Memory that CuPy has got from the device: an address and its owner."""

    def __init__(self, held, device_id):
        self.held, self.device_id, self.ptr = held, device_id, held.ctypes.data


class ndarray:  # noqa: N801
    """cupy.ndarray over NumPy's memory, which nobody but a kernel may read."""

    def __init__(self, held, device_id):
        self.held = held
        self.data = _Bytes(held, device_id)

    shape = property(lambda self: self.held.shape)
    ndim = property(lambda self: self.held.ndim)
    size = property(lambda self: self.held.size)
    nbytes = property(lambda self: self.held.nbytes)
    strides = property(lambda self: self.held.strides)
    dtype = property(lambda self: self.held.dtype)
    itemsize = property(lambda self: self.held.itemsize)
    flags = property(lambda self: SimpleNamespace(c_contiguous=self.held.flags.c_contiguous))

    def _new(self, held):
        self._on_its_device()
        return type(self)(held, self.data.device_id)

    def _on_its_device(self):
        assert _state.device == self.data.device_id, "the current device is not that of the array"

    def astype(self, dtype):
        with np.errstate(all="ignore"):
            return self._new(self.held.astype(dtype))

    def copy(self, order="C"):
        return self._new(self.held.copy(order=order))

    def transpose(self, order):
        return type(self)(self.held.transpose(order), self.data.device_id)

    def reshape(self, *shape):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return type(self)(self.held.reshape(shape), self.data.device_id)

    def __getitem__(self, index):
        return type(self)(np.asarray(self.held[_held(index)]), self.data.device_id)

    def __setitem__(self, index, value):
        self._on_its_device()
        self.held[_held(index)] = _held(value)

    def __bool__(self):
        return bool(self.held)

    def get(self):
        return self.held.copy()

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __dlpack_device__(self):
        return (2, self.data.device_id)

    def __dlpack__(self, *, stream=None, **options):
        _state.given.append(stream)
        return self.held.__dlpack__(**options)

    def __array_namespace__(self, api_version=None):
        raise AssertionError("lsm knows cupy.ndarray and needs no namespace of it")


def _held(given):
    """The memory of arrays, also in a tuple; CuPy refuses arrays of NumPy."""
    assert not isinstance(given, np.ndarray), "Unsupported type <class 'numpy.ndarray'>"
    if isinstance(given, tuple):
        return tuple([_held(item) for item in given])
    return given.held if isinstance(given, ndarray) else given


def _on_arrays(function):
    """A function of NumPy as one of CuPy."""

    def call(*arguments, **options):
        for array in arguments:
            if isinstance(array, ndarray):
                array._on_its_device()
        with np.errstate(all="ignore"):
            made = function(*map(_held, arguments), **options)
        made = [ndarray(np.asarray(part), _state.device) for part in (made if isinstance(made, tuple) else (made,))]
        return tuple(made) if len(made) > 1 else made[0]

    return call


# What lsm does with arrays on a device, apart from kernels.
_OPERATORS = "add radd sub rsub mul rmul truediv rtruediv neg abs lt gt eq ne and or invert iadd"
_METHODS = "any max sum swapaxes"
_FUNCTIONS = """amax array broadcast_to exp floor frexp isfinite isinf ldexp log1p maximum minimum
    ones_like where"""
for _name in [f"__{name}__" for name in _OPERATORS.split()] + _METHODS.split():
    setattr(ndarray, _name, _on_arrays(getattr(np.ndarray, _name)))
ndarray.__hash__ = object.__hash__
ndarray.__module__, ndarray.__qualname__ = "cupy", "ndarray"


class _State(threading.local):
    """The current device, and what happened in this thread."""

    device = 0

    def __init__(self):
        self.given = []  # the streams that DLPack was told
        self.launches = []  # (kernel, device, stream)
        self.n_waits = 0


_state = _State()
_one_at_a_time = threading.Lock()  # the shim has one block of threads


class Device:
    """cupy.cuda.Device: its attributes, and a context in which it is the current one."""

    def __init__(self, number, attributes=H100, compute_capability="90"):
        self.id, self.attributes, self.compute_capability = number, attributes, compute_capability

    def __enter__(self):
        self._before, _state.device = _state.device, self.id
        return self

    def __exit__(self, *_):
        _state.device = self._before


class Stream:
    """cupy.cuda.Stream, on which all is done at once."""

    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        _state.n_waits += 1


class _Kernel:
    """A RawKernel, which passes an int on as 64 bits."""

    def __init__(self, kernel, name):
        self._kernel, self._name = kernel, name

    max_dynamic_shared_size_bytes = property(
        lambda self: self._kernel.max_dynamic_shared_size_bytes,
        lambda self, n: setattr(self._kernel, "max_dynamic_shared_size_bytes", n),
    )

    def __call__(self, grid, block, args, shared_mem=0, stream=None):
        assert all(type(argument) in (int, np.int64) for argument in args)
        assert 1 <= grid[0] <= MAX_GRID and 1 <= block[0] <= 1024 and shared_mem <= 232448
        _state.launches.append((self._name, _state.device, None if stream is None else stream.ptr))
        with _one_at_a_time:
            self._kernel(grid, block, args, shared_mem=shared_mem)


class RawModule:
    """cupy.RawModule, compiled for the CPU."""

    n_compiled = 0

    def __init__(self, *, code, options=()):
        self._code, self._options = code, options

    def get_function(self, name):
        type(self).n_compiled += 1
        return _Kernel(HostModule(self._options, self._code).get_function(name), name)


def garbage(shape, dtype):
    """New memory: NaN in every floating dtype, and no number of frames or classes."""
    dtype = np.dtype(dtype)
    return np.full(math.prod(shape) * dtype.itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)


def _empty(shape, dtype):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return ndarray(garbage(shape, dtype), _state.device)


def _empty_like(like, dtype=None):
    held = np.empty_like(like.held, dtype=dtype)
    held[...] = garbage((), held.dtype)
    return ndarray(held, _state.device)


class _OnCpu:
    """A capsule of memory that says it is a GPU's, for NumPy to take."""

    def __init__(self, owner, stream):
        self._owner, self._stream = owner, stream

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **options):
        return self._owner.__dlpack__(stream=self._stream, **options)


def _from_dlpack(x):
    kind, number = x.__dlpack_device__()
    assert kind == 2, "CPU arrays cannot be directly imported to CuPy."
    return ndarray(np.from_dlpack(_OnCpu(x, 1)), number)


def _wait():
    _state.n_waits += 1


def module(**changes):
    """The module cupy; `changes` replace what runtime says."""
    runtime = {
        "is_hip": False,
        "runtimeGetVersion": lambda: 13020,
        "driverGetVersion": lambda: 13020,
        "getDeviceCount": lambda: 2,
        "getDevice": lambda: _state.device,
    }
    made = ModuleType("cupy")
    made.__version__ = "14.2.0"
    made.ndarray, made.RawModule, made.from_dlpack = ndarray, RawModule, _from_dlpack
    made.empty, made.empty_like = _empty, _empty_like
    for name in _FUNCTIONS.split():
        setattr(made, name, _on_arrays(getattr(np, name)))
    made.float64 = np.float64
    made.asarray = lambda x, dtype=None: ndarray(
        np.array(x.held if isinstance(x, ndarray) else x, dtype), _state.device
    )
    made.cuda = SimpleNamespace(
        Device=Device,
        compiler=SimpleNamespace(compile_using_nvrtc=lambda source, *, arch: (b"", None)),
        Stream=Stream,
        alloc=lambda n: _Bytes(garbage((n,), np.uint8), _state.device),
        get_current_stream=lambda: SimpleNamespace(ptr=0, synchronize=_wait),
        runtime=SimpleNamespace(**runtime | changes),
    )
    return made


def state():
    """What happened in this thread."""
    return _state
