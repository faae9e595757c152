"""The CuPy backend: checks whether it is available, compiles kernels on first use, and launches them."""

import threading
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, get_args

import numpy as np

from lsm._signals import reraise_from_handler
from lsm._version import DISTRIBUTION, install_command
from lsm.backends._cuda import plan as plans
from lsm.backends._cuda import source
from lsm.backends._cuda.arrays import CupyArrayOps, TorchTensorOps
from lsm.backends._cuda.layout import layout
from lsm.backends.base import API_VERSION, Backend

# A kernel that needs more shared memory must opt in.
_DEFAULT_SHARED_BYTES = 48 * 1024

_MAX_CACHED_CALLS = 4096  # kinds of call with prepared launches; beyond that, the cache is cleared


class CupyBackend(Backend):
    """CuPy arrays and CUDA tensors of PyTorch, without copies.

    Parameters
    ----------
    library : module, optional
        CuPy; imported on first use by default.
    """

    name = "cupy"
    api_version = API_VERSION
    devices = ("cuda",)
    dtypes = ("float16", "bfloat16", "float32", "float64")
    array_types = ("cupy.ndarray", "torch.Tensor")
    same_bits = True

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._tensors = TorchTensorOps()
        self._devices: dict[int, _Device] = {}
        self._lock = threading.Lock()

    def available(self) -> str | None:
        """None, or what is missing and how to install it; imports CuPy if it is installed."""
        if self._library is None:
            if find_spec("cupy") is None:
                return (
                    f"CuPy is not installed: {install_command('cuda13')}, "
                    f"or '{DISTRIBUTION}[cuda12]' if the driver is older than CUDA 13"
                )
            try:
                self._library = import_module("cupy")
            except Exception as error:
                reraise_from_handler(error)
                return (
                    f"CuPy cannot be imported ({type(error).__name__}: {error}); "
                    "install exactly one of the packages cupy-*, for the CUDA version of the driver"
                )
        try:
            return _unavailable_reason(self._library)
        except Exception as error:  # CuPy is broken in an unknown way
            reraise_from_handler(error)
            return f"CuPy cannot be used ({type(error).__name__}: {error})"

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """A new CuPy array, with the memory order of `like` if the shapes are equal."""
        element = import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        if tuple(like.shape) == tuple(shape):
            return self._library.empty_like(like, dtype=np.dtype(element))
        return self._library.empty(shape, np.dtype(element))

    @property
    def fast_functions(self) -> dict[str, Any]:
        """The functions of the fast path by operation, with the arguments (*inputs, axis, out).

        They accept the user's arguments, and return the result, or None if the launches are not prepared yet or an
        argument must be validated first.
        """
        return {op: partial(self._try_fast_path, op) for op in get_args(plans.Op)}

    def _try_fast_path(self, op: plans.Op, *arguments: Any) -> Any:
        """The result of a call with prepared launches, on arrays on the current device; else None.

        Such calls have valid shapes, strides and dtypes. Overlap is checked again, and anything but equal or clearly
        disjoint memory declines.
        """
        *inputs, axis, out = arguments
        library, x = self._library, inputs[0]
        array_ops = CupyArrayOps(library) if type(x) is library.ndarray else self._tensors
        if type(axis) is not int or not array_ops.fast_pointer(x):
            return None
        number, n_axes, shape, dtype = array_ops.device(x), x.ndim, x.shape, x.dtype
        device = self._devices.get(number)
        if device is None or not -n_axes <= axis < n_axes or library.cuda.runtime.getDevice() != number:
            return None
        result = array_ops.empty_like(x) if out is None else out
        arrays, pointers = (*inputs, result), []
        for a in arrays:
            pointer = array_ops.fast_pointer(a)
            if (
                not pointer
                or a.shape != shape
                or a.dtype != dtype
                or array_ops.device(a) != number
                or pointer % a.itemsize
            ):
                return None
            if not (out is None or array_ops.is_contiguous(a)):
                return None
            pointers.append(pointer)
        if out is not None and any(0 < abs(pointer - pointers[-1]) < out.nbytes for pointer in pointers):
            return None
        prepared = device.prepared.get(_launch_key(array_ops, op, arrays, axis % n_axes))
        if prepared is None:
            return None
        _enqueue(device, array_ops, prepared, result, pointers)
        return result

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax`."""
        self._call("log_softmax", (x, out), axis)

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_backward`."""
        self._call("log_softmax_backward", (grad_output, output, out), axis)

    def _call(self, op: plans.Op, arrays: tuple[Any, ...], axis: int) -> None:
        """Launch the kernels of a call on the device of the arrays, which is made current."""
        library, out = self._library, arrays[-1]
        array_ops = CupyArrayOps(library) if isinstance(out, library.ndarray) else self._tensors
        number = array_ops.device(out)
        device = self._devices.get(number)
        if device is None:
            with self._lock:
                device = self._devices.setdefault(number, _Device(library, number))
        if library.cuda.runtime.getDevice() == number:
            _launch(device, array_ops, op, arrays, axis)
        else:
            with library.cuda.Device(number):
                _launch(device, array_ops, op, arrays, axis)


class _PreparedLaunch(NamedTuple):
    """A launch without the addresses: the kernel, and its arguments after them, in CuPy's form."""

    kernel: Any
    grid: tuple[int]
    block: tuple[int]
    shared: int
    numbers: tuple[np.int64, ...]


class _Device:
    """A device: its limits, its compiled kernels, and the prepared launches."""

    def __init__(self, library: Any, number: int) -> None:
        self.number = number
        self._library = library
        self._lock = threading.Lock()
        self._modules: dict[Any, Any] = {}
        self._kernels: dict[Any, Any] = {}
        self.prepared: dict[Any, tuple[tuple[_PreparedLaunch, ...], int] | None] = {}
        found = library.cuda.Device(number)
        attributes = found.attributes
        self.limits = plans.DeviceLimits(
            shared_per_block=attributes["MaxSharedMemoryPerBlockOptin"],
            shared_per_multiprocessor=attributes["MaxSharedMemoryPerMultiprocessor"],
            n_multiprocessors=attributes["MultiProcessorCount"],
            l2_bytes=attributes["L2CacheSize"],
            architecture=int(found.compute_capability),
        )

    def prepare(
        self, key: Any, op: plans.Op, dtypes: tuple[str, ...], shape: Any, strides: Any, axis: int
    ) -> tuple[tuple[_PreparedLaunch, ...], int] | None:
        """The launches for calls of this key, and the size of their workspace; None if no kernel supports the layout.

        The first call of a kind compiles a kernel, which takes one or two seconds at most; CuPy caches it on disk.
        """
        view = layout(shape, strides, axis)
        made = None
        if view is not None:
            plan = plans.plan(op, dtypes[0], dtypes[-1], *view[:3], self.limits)
            made = (
                tuple(
                    _PreparedLaunch(
                        self._kernel(op, dtypes, plan.family, launch),
                        (launch.grid,),
                        (launch.block,),
                        launch.shared,
                        tuple(map(np.int64, (*view[:3], *view.strides, launch.first_frame, launch.n_frames))),
                    )
                    for launch in plan.launches
                ),
                plan.workspace,
            )
        if len(self.prepared) >= _MAX_CACHED_CALLS:
            self.prepared.clear()
        self.prepared[key] = made
        return made

    def _kernel(self, op: plans.Op, dtypes: tuple[str, ...], family: plans.Family, launch: plans.Launch) -> Any:
        """The kernel of a launch, opted in to the shared memory that it needs."""
        options = plans.module_key(op, dtypes[0], dtypes[-1], family)
        with self._lock:
            if options not in self._modules:
                self._modules[options] = self._library.RawModule(code=source(), options=options)
            key = (options, launch.kernel)
            if key not in self._kernels:
                self._kernels[key] = self._modules[options].get_function(launch.kernel)
            kernel = self._kernels[key]
            if launch.shared > max(_DEFAULT_SHARED_BYTES, kernel.max_dynamic_shared_size_bytes):
                kernel.max_dynamic_shared_size_bytes = launch.shared
        return kernel


def _launch(device: _Device, array_ops: Any, op: plans.Op, arrays: tuple[Any, ...], axis: int) -> None:
    """Launch the kernels of a call on the current device; arrays in an unsupported layout are copied."""
    out = arrays[-1]
    key = _launch_key(array_ops, op, arrays, axis)
    try:
        prepared = device.prepared[key]
    except KeyError:
        dtypes = tuple([str(x.dtype).removeprefix("torch.") for x in arrays])
        prepared = device.prepare(
            key, op, dtypes, tuple(out.shape), [array_ops.element_strides(x) for x in arrays], axis
        )
    if prepared is None:
        new_out = array_ops.contiguous_out(out)
        _launch(device, array_ops, op, (*[array_ops.contiguous(x) for x in arrays[:-1]], new_out), axis)
        if new_out is not out:
            array_ops.copy_into(out, new_out)
        return
    _enqueue(device, array_ops, prepared, out, [array_ops.pointer(x) for x in arrays])


def _launch_key(array_ops: Any, op: plans.Op, arrays: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """The key of calls that share their launches."""
    return (op, axis, arrays[-1].shape, *[(x.dtype, array_ops.strides(x)) for x in arrays])


def _enqueue(
    device: _Device, array_ops: Any, prepared: tuple[tuple[_PreparedLaunch, ...], int], out: Any, pointers: list[int]
) -> None:
    """Launch prepared kernels on arrays at these addresses; the last is that of `out`."""
    launches, n_bytes = prepared
    owner, workspace = array_ops.workspace(n_bytes, out) if n_bytes else (None, 0)
    stream = array_ops.stream(device.number)
    for kernel, grid, block, shared, numbers in launches:
        # `stream` is an undocumented argument of CuPy (in 13.6 and 14.2). Making another library's stream current takes
        # longer, and differs between the two versions.
        kernel(grid, block, (*pointers, workspace, *numbers), shared_mem=shared, stream=stream)
    del owner  # returns the workspace to its pool, which reuses it in stream order


def _unavailable_reason(library: Any) -> str | None:
    """None if CuPy can compile and run kernels, else why not."""
    runtime = library.cuda.runtime
    if runtime.is_hip:
        return "this CuPy is built for ROCm; the kernels need CUDA"
    needs, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    if driver == 0:
        return "no NVIDIA driver is loaded"
    try:
        n_devices = runtime.getDeviceCount()
    except Exception as error:
        reraise_from_handler(error)
        return (
            f"CUDA cannot be initialised ({error}); the driver supports CUDA {_version_text(driver)}, CuPy needs "
            f"{_version_text(needs)}: update the driver, or install the matching '{DISTRIBUTION}[cuda12]' or "
            "'...[cuda13]'"
        )
    if n_devices == 0:
        return "the driver is loaded, but this process may not use any CUDA device (CUDA_VISIBLE_DEVICES?)"
    try:
        # Compile but do not load: loading would create a CUDA context of some hundred MB on the current device, which
        # may not be that of the arrays. Every NVRTC supports this architecture; by default CuPy queries the device.
        library.cuda.compiler.compile_using_nvrtc('extern "C" __global__ void lsm_probe() {}', arch="75")
    except Exception as error:
        reraise_from_handler(error)
        return (
            f"CuPy cannot compile a kernel ({type(error).__name__}: {error}); "
            f"{install_command(f'cuda{needs // 1000}')} installs the compiler, NVRTC, and the headers"
        )
    return None


def _version_text(version: int) -> str:
    """Format a CUDA version number: 12090 is 12.9."""
    return f"{version // 1000}.{version % 1000 // 10}"


backend = CupyBackend()
