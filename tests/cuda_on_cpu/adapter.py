"""The CuPy backend for arrays of NumPy, so that every test of a backend is one of its own: they are moved and back.

Two of them: one computes on the CPU by the stand-in for CuPy and serves wherever there is a compiler; the other by
CuPy itself, on a GPU.
"""

from ctypes import c_uint8
from typing import ClassVar

import numpy as np

from cuda_on_cpu import COMPILER
from cuda_on_cpu.cupy_on_cpu import module, ndarray
from lsm.backends.cupy_ import CupyBackend

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # NumPy 1
    from numpy import byte_bounds

_ALIGNMENT = 256  # bytes: where an array lies within them is kept


class Adapter(CupyBackend):
    """The real backend, which is given arrays of a device in the place of NumPy's."""

    devices = ("cpu",)
    array_types = ("numpy.ndarray",)
    fast_functions: ClassVar = {}  # those of the class above are for arrays of CuPy

    def _call(self, op, arrays, axis):
        there = {id(x): self.moved(x) for x in arrays}
        super()._call(op, tuple([there[id(x)] for x in arrays]), axis)
        self.fetch(there[id(arrays[-1])], arrays[-1])


class OnCpu(Adapter):
    """On the CPU: the memory is the same."""

    name = "cuda-on-cpu"

    def __init__(self):
        super().__init__(module())

    def available(self):
        return super().available() if COMPILER else "there is no g++ to compile the kernels with"

    def moved(self, x):
        return ndarray(x, 0)

    def fetch(self, moved, out):
        pass


class OnGpu(Adapter):
    """On a GPU: with the same strides and alignment; what lies between the elements is moved as well, and back."""

    name = "cupy-for-numpy"

    def available(self):
        reason = super().available()
        if reason is None:
            self._library.cuda.set_allocator(None)  # no pool: compute-sanitizer sees where an allocation ends
        return reason

    def moved(self, x):
        low, high = byte_bounds(x)
        before = low % _ALIGNMENT
        start = self._library.cuda.alloc(before + high - low) + before
        self._span(start, high - low).set(_bytes(low, high))
        return self._library.ndarray(x.shape, x.dtype, memptr=start + (x.ctypes.data - low), strides=x.strides)

    def fetch(self, moved, out):
        low, high = byte_bounds(out)
        start = moved.data - (out.ctypes.data - low)
        _bytes(low, high)[...] = self._span(start, high - low).get()

    def _span(self, start, n_bytes):
        return self._library.ndarray((n_bytes,), np.uint8, memptr=start)


def _bytes(low, high):
    """The bytes between two addresses, which the caller keeps."""
    return np.frombuffer((c_uint8 * (high - low)).from_address(low), np.uint8)


on_cpu, on_gpu = OnCpu(), OnGpu()
