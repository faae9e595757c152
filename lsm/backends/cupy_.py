"""The CuPy backend: finds out whether it can be used, compiles the kernels when they are needed, and launches them."""

import threading
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, get_args

import numpy as np

from lsm._version import DISTRIBUTION, install_command
from lsm.backends._cuda import plan as plans
from lsm.backends._cuda import source
from lsm.backends._cuda.arrays import CupyArrays, TorchTensors
from lsm.backends._cuda.layout import layout
from lsm.backends.base import API_VERSION, Backend

# More shared memory than this must be asked for, kernel by kernel.
_SHARED_UNASKED = 48 * 1024

_MOST_READY = 4096  # kinds of call that are kept ready; a program that has more starts over


class CupyBackend(Backend):
    """Arrays of CuPy and CUDA tensors of PyTorch, read and written where they lie.

    Parameters
    ----------
    library : module, optional
        CuPy; by default it is imported when it is first needed.
    """

    name = "cupy"
    api_version = API_VERSION
    devices = ("cuda",)
    dtypes = ("float16", "bfloat16", "float32", "float64")
    array_types = ("cupy.ndarray", "torch.Tensor")
    same_bits = True

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._tensors = TorchTensors()
        self._devices: dict[int, _Device] = {}
        self._lock = threading.Lock()

    def available(self) -> str | None:
        """None, or what is missing and how to get it; imports CuPy if it is installed."""
        if self._library is None:
            if find_spec("cupy") is None:
                return (
                    f"CuPy is not installed: {install_command('cuda13')}, "
                    f"or '{DISTRIBUTION}[cuda12]' for a driver older than CUDA 13"
                )
            try:
                self._library = import_module("cupy")
            except Exception as error:
                return (
                    f"CuPy cannot be imported ({type(error).__name__}: {error}); "
                    "only one of the packages cupy-* may be installed, at the version of CUDA that the driver has"
                )
        try:
            return _why_not(self._library)
        except Exception as error:  # a CuPy that is broken in another way than those that are known
            return f"CuPy cannot be used ({type(error).__name__}: {error})"

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """A new array of CuPy, in the order of the axes of `like` in memory if it has the same shape."""
        own = import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        if tuple(like.shape) == tuple(shape):
            return self._library.empty_like(like, dtype=np.dtype(own))
        return self._library.empty(shape, np.dtype(own))

    @property
    def fast_functions(self) -> dict[str, Any]:
        """The operations on arrays and tensors as they are, by name: functions of (*inputs, axis, out).

        They take arguments as the user gave them, and return the result, or None for what was not served before or
        must be validated first.
        """
        return {op: partial(self._try_fast_path, op) for op in get_args(plans.Op)}

    def _try_fast_path(self, op: plans.Op, *arguments: Any) -> Any:
        """The result of a call of a kind that has been served, on plain arrays of the current device; else None.

        That it was served says that shape, strides and dtypes are right. Whether memory overlaps is asked anew, and
        must be plain to see.
        """
        *inputs, axis, out = arguments
        library, x = self._library, inputs[0]
        own = CupyArrays(library) if type(x) is library.ndarray else self._tensors
        if type(axis) is not int or not own.plain_pointer(x):
            return None
        number, n_axes, shape, dtype = own.device(x), x.ndim, x.shape, x.dtype
        device = self._devices.get(number)
        if device is None or not -n_axes <= axis < n_axes or library.cuda.runtime.getDevice() != number:
            return None
        result = own.empty_like(x) if out is None else out
        arrays, pointers = (*inputs, result), []
        for a in arrays:
            pointer = own.plain_pointer(a)
            if not pointer or a.shape != shape or a.dtype != dtype or own.device(a) != number or pointer % a.itemsize:
                return None
            if not (out is None or own.is_in_order(a)):
                return None
            pointers.append(pointer)
        if out is not None and any(0 < abs(pointer - pointers[-1]) < out.nbytes for pointer in pointers):
            return None
        ready = device.ready.get(_kind(own, op, arrays, axis % n_axes))
        if ready is None:
            return None
        _enqueue(device, own, ready, result, pointers)
        return result

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax`."""
        self._call("log_softmax", (x, out), axis)

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_backward`."""
        self._call("log_softmax_backward", (grad_output, output, out), axis)

    def _call(self, op: plans.Op, arrays: tuple[Any, ...], axis: int) -> None:
        """Launch what serves a call on the device that holds the arrays, which is made the current one."""
        library, out = self._library, arrays[-1]
        own = CupyArrays(library) if isinstance(out, library.ndarray) else self._tensors
        number = own.device(out)
        device = self._devices.get(number)
        if device is None:
            with self._lock:
                device = self._devices.setdefault(number, _Device(library, number))
        if library.cuda.runtime.getDevice() == number:
            _launch(device, own, op, arrays, axis)
        else:
            with library.cuda.Device(number):
                _launch(device, own, op, arrays, axis)


class _Ready(NamedTuple):
    """A launch but for the addresses: the kernel, and its arguments after them, as CuPy passes them on."""

    kernel: Any
    grid: tuple[int]
    block: tuple[int]
    shared: int
    numbers: tuple[np.int64, ...]


class _Device:
    """What is known of one device: its limits, the kernels that were compiled for it, and the calls made ready."""

    def __init__(self, library: Any, number: int) -> None:
        self.number = number
        self._library = library
        self._lock = threading.Lock()
        self._modules: dict[Any, Any] = {}
        self._kernels: dict[Any, Any] = {}
        self.ready: dict[Any, tuple[tuple[_Ready, ...], int] | None] = {}
        found = library.cuda.Device(number)
        attributes = found.attributes
        self.limits = plans.Limits(
            shared_per_block=attributes["MaxSharedMemoryPerBlockOptin"],
            shared_per_multiprocessor=attributes["MaxSharedMemoryPerMultiprocessor"],
            n_multiprocessors=attributes["MultiProcessorCount"],
            l2_bytes=attributes["L2CacheSize"],
            architecture=int(found.compute_capability),
        )

    def make_ready(
        self, key: Any, op: plans.Op, dtypes: tuple[str, ...], shape: Any, strides: Any, axis: int
    ) -> tuple[tuple[_Ready, ...], int] | None:
        """The launches for calls of this key and the bytes of their workspace; None where no kernel serves the layout.

        The first call of a kind compiles, which takes up to a second or two; CuPy keeps the result on disk.
        """
        lies = layout(shape, strides, axis)
        made = None
        if lies is not None:
            plan = plans.plan(op, dtypes[0], dtypes[-1], *lies[:3], self.limits)
            made = (
                tuple(
                    _Ready(
                        self._kernel(op, dtypes, plan.family, launch),
                        (launch.grid,),
                        (launch.block,),
                        launch.shared,
                        tuple(map(np.int64, (*lies[:3], *lies.strides, launch.first_frame, launch.n_frames))),
                    )
                    for launch in plan.launches
                ),
                plan.workspace,
            )
        if len(self.ready) >= _MOST_READY:
            self.ready.clear()
        self.ready[key] = made
        return made

    def _kernel(self, op: plans.Op, dtypes: tuple[str, ...], family: plans.Family, launch: plans.Launch) -> Any:
        """The kernel of a launch, allowed the shared memory that this one needs."""
        options = plans.module_key(op, dtypes[0], dtypes[-1], family)
        with self._lock:
            if options not in self._modules:
                self._modules[options] = self._library.RawModule(code=source(), options=options)
            key = (options, launch.kernel)
            if key not in self._kernels:
                self._kernels[key] = self._modules[options].get_function(launch.kernel)
            kernel = self._kernels[key]
            if launch.shared > max(_SHARED_UNASKED, kernel.max_dynamic_shared_size_bytes):
                kernel.max_dynamic_shared_size_bytes = launch.shared
        return kernel


def _launch(device: _Device, own: Any, op: plans.Op, arrays: tuple[Any, ...], axis: int) -> None:
    """Launch what serves a call on the current device; arrays in a layout that no kernel takes are copied."""
    out = arrays[-1]
    key = _kind(own, op, arrays, axis)
    try:
        ready = device.ready[key]
    except KeyError:
        dtypes = tuple([str(x.dtype).removeprefix("torch.") for x in arrays])
        ready = device.make_ready(key, op, dtypes, tuple(out.shape), [own.elements(x) for x in arrays], axis)
    if ready is None:
        room = own.room(out)
        _launch(device, own, op, (*[own.in_order(x) for x in arrays[:-1]], room), axis)
        if room is not out:
            own.write(out, room)
        return
    _enqueue(device, own, ready, out, [own.pointer(x) for x in arrays])


def _kind(own: Any, op: plans.Op, arrays: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """What a call has in common with others that are served by the same launches."""
    return (op, axis, arrays[-1].shape, *[(x.dtype, own.strides(x)) for x in arrays])


def _enqueue(device: _Device, own: Any, ready: tuple[tuple[_Ready, ...], int], out: Any, pointers: list[int]) -> None:
    """Launch what was made ready on arrays at these addresses, of which `out` is the last."""
    launches, n_bytes = ready
    owner, workspace = own.workspace(n_bytes, out) if n_bytes else (None, 0)
    stream = own.stream(device.number)
    for kernel, grid, block, shared, numbers in launches:
        # `stream` is an argument of CuPy's function that its documentation leaves out (read in 13.6 and 14.2). To
        # make another library's stream CuPy's current one takes longer, and how to do so differs between the two.
        kernel(grid, block, (*pointers, workspace, *numbers), shared_mem=shared, stream=stream)
    del owner  # the workspace goes back to its pool, which gives it to what comes later on this stream


def _why_not(library: Any) -> str | None:
    """None if CuPy can compile and run kernels here, else why not."""
    runtime = library.cuda.runtime
    if runtime.is_hip:
        return "this CuPy is built for ROCm; the kernels are CUDA's"
    needs, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    if driver == 0:
        return "no driver of NVIDIA is loaded here"
    try:
        n_devices = runtime.getDeviceCount()
    except Exception as error:
        return (
            f"CUDA cannot be started ({error}); the driver is for CUDA {_spelt(driver)}, CuPy for {_spelt(needs)}: "
            f"update the driver, or install the CuPy for its version, '{DISTRIBUTION}[cuda12]' or '...[cuda13]'"
        )
    if n_devices == 0:
        return "there is a driver, but no CUDA device that this process may use (CUDA_VISIBLE_DEVICES?)"
    try:
        # Compiled and not loaded: that would start a CUDA context, some hundred MB, on the current device, which may
        # not be the one that holds the arrays. The architecture is one that every NVRTC has; CuPy asks the device.
        library.cuda.compiler.compile_using_nvrtc('extern "C" __global__ void lsm_probe() {}', arch="75")
    except Exception as error:
        return (
            f"CuPy cannot compile a kernel ({type(error).__name__}: {error}); "
            f"{install_command(f'cuda{needs // 1000}')} brings the compiler, NVRTC, and the headers that it asks for"
        )
    return None


def _spelt(version: int) -> str:
    """A version as CUDA counts it, 12090, as it is written, 12.9."""
    return f"{version // 1000}.{version % 1000 // 10}"


backend = CupyBackend()
