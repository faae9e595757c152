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
    return used(_compiled(major, source, (*options, "-Xptxas", "-v"))[0])


def compile_ptx(major, source, options):
    """The PTX of each kernel by name, for an architecture that is named `compute_90`, not `sm_90`."""
    parts = _compiled(major, source, options)[1].split(".entry ")[1:]
    return {part.partition("(")[0]: part for part in parts}


def _compiled(major, source, options):
    """The compiler's log, and PTX."""
    nvrtc = library(major)
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    encoded = [o.encode() for o in options]
    status = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
    log, ptx = (_text(program, what, nvrtc) for what in ("ProgramLog", "PTX"))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    log = re.sub(r"nvrtc: warning: Architectures prior to.*", "", log)  # 12.9 says so of sm_70
    if status or re.search(r"\bwarning\b", log):
        raise CompileError(log)
    return log, ptx


def _text(program, what, nvrtc):
    size = ctypes.c_size_t()
    if getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)):
        return ""
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    return text.value.decode()


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
