"""NVIDIA's runtime compiler, by ctypes: it needs no GPU. The wheels nvidia-cuda-nvrtc and -cu12 bring it."""

import ctypes
import functools
import importlib.metadata
import re
from typing import NamedTuple

WHEELS = {13: "nvidia-cuda-nvrtc", 12: "nvidia-cuda-nvrtc-cu12"}


class Use(NamedTuple):
    """What a compiled kernel takes of a multiprocessor, as ptxas reports it."""

    registers: int
    stack: int
    spilled: int  # bytes stored and loaded


class CompileError(Exception):
    """What the compiler said."""


@functools.cache
def library(major):
    """NVRTC of a major version of CUDA; None where its wheel is not installed."""
    try:
        files = importlib.metadata.files(WHEELS[major]) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    path = next((f for f in files if re.search(rf"libnvrtc\.so\.{major}$|nvrtc64_{major}0_0\.dll$", f.name)), None)
    return ctypes.CDLL(str(path.locate())) if path else None


def compile_cubin(major, source, options):
    """Compile to machine code; the Use of each kernel by name. A warning is an error."""
    nvrtc = library(major)
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    encoded = [o.encode() for o in (*options, "-Xptxas", "-v")]
    status = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    text = re.sub(r"nvrtc: warning: Architectures prior to.*", "", log.value.decode())  # 12.9 says so of sm_70
    if status or re.search(r"\bwarning\b", text):
        raise CompileError(text)
    return used(text)


def used(log):
    """What ptxas -v says of each kernel."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        stack, stores, loads = map(
            int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()
        )
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        found[part.split("'")[0]] = Use(registers, stack, stores + loads)
    return found
