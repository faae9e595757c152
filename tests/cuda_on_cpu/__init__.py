"""The CUDA kernels on the CPU: compiled by g++ with shim.h before them, called as CuPy's RawKernel is."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from lsm.backends import _cuda
from lsm.backends._cuda.plan import DeviceLimits, module_key, plan

SHIM = Path(__file__).with_name("shim.h")
COMPILER = shutil.which("g++")

# The kernels' arithmetic is to be the same to the bit: no contraction; -march=native for its FMA, which else is slow.
FLAGS = ("-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-march=native")
FLAGS += ("-fno-strict-aliasing", "-w")  # as nvcc does; of pragmas that it does not know
SANITIZE = ("-O0", "-g1", "-fsanitize=address,alignment", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


H100 = DeviceLimits(232448, 233472, 132, 50 * 2**20, 90)
# The least that the kernels need, so that frames of few classes are split: of 9,217 and more in float32, and of 1,025
# and more where they lie side by side.
SMALL = DeviceLimits(40960, 65536, 1, 2**17, 75)


class LaunchError(Exception):
    """What would hang, be undefined or be refused on a GPU."""


def build(source, options=(), flags=()):
    """The path of the library of a CUDA source, compiled with its -D options, in the folder that conftest.py names."""
    command = [COMPILER or "g++", *FLAGS, *flags, *(o for o in options if o.startswith("-D")), "-include", str(SHIM)]
    key = hashlib.sha256("\0".join([source, SHIM.read_text(), *command]).encode()).hexdigest()[:32]
    library = Path(os.environ["CUDA_ON_CPU_LIBRARIES"], f"{key}.so")
    if not library.exists():
        new = library.with_suffix(f".{os.getpid()}.new")
        subprocess.run([*command, "-", "-o", str(new)], input=source, text=True, check=True)
        new.replace(library)
    return library


class HostModule:
    """What RawModule is: a source compiled with options, and its kernels by name."""

    def __init__(self, options=(), source=None, flags=()):
        self.library = ctypes.CDLL(str(build(source or _cuda.source(), options, flags)))
        self.library.lsm_launch.restype = ctypes.c_char_p

    def get_function(self, name):
        """A kernel."""
        return HostKernel(self.library, name)


class HostKernel:
    """What RawKernel is: kernel(grid, block, arguments, shared_mem=bytes)."""

    seed = 0  # of the order of warps

    def __init__(self, library, name):
        self.name = name
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self._launch = library.lsm_launch
        self._kernel = ctypes.cast(getattr(library, name), ctypes.c_void_p)

    def __call__(self, grid, block, args, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise LaunchError(f"{self.name}: {shared_mem} bytes of shared memory, not opted in to")
        values = [a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in args]
        n_most = 16
        if len(values) > n_most:
            raise LaunchError(f"{self.name}: {len(values)} arguments; shim.h passes {n_most} on")
        array = (ctypes.c_int64 * n_most)(*(ctypes.c_int64(v).value for v in values))
        n_blocks, n_threads = (int(np.prod(np.asarray(n, dtype=np.int64))) for n in (grid, block))
        error = self._launch(
            self._kernel,
            ctypes.c_int64(n_blocks),
            ctypes.c_int64(n_threads),
            ctypes.c_int64(shared_mem),
            array,
            ctypes.c_uint64(HostKernel.seed),
        )
        if error:
            raise LaunchError(f"{self.name}: {error.decode()}")


@functools.cache
def module(options):
    """A part of lsm's kernels."""
    return HostModule(options)


def apply(op, arrays, out, limits=H100, module=module):
    """Run a plan's launches on arrays (outer, classes, inner), whose inner stride is 1; the plan."""
    dtype, out_dtype = arrays[0].dtype.name, out.dtype.name
    wanted = plan(op, dtype, out_dtype, *out.shape, limits)
    workspace = np.full(wanted.workspace + 8, 0xFF, np.uint8)  # NaN, if it is read before it is written
    strides = [np.int64(a.strides[i] // a.itemsize) for a in (*arrays, out) for i in (0, 1)]
    for launch in wanted.launches:
        kernel = module(module_key(op, dtype, out_dtype, wanted.family)).get_function(launch.kernel)
        kernel.max_dynamic_shared_size_bytes = limits.shared_per_block
        counts = [np.int64(n) for n in out.shape]
        part = (np.int64(launch.first_frame), np.int64(launch.n_frames))
        arguments = (*arrays, out, workspace, *counts, *strides, *part)
        kernel((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)
    return wanted
