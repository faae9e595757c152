"""Build the Cython kernels with OpenMP, from one source, once per instruction level.

Everything else about the package is in pyproject.toml.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

KERNELS = Path("lsm", "backends", "_kernels")

# Never -ffast-math, which breaks NaN and inf, and permits the compiler to reorder sums.
UNIX_FLAGS = [
    "-O3",
    "-fno-math-errno",  # errno is not used
    "-fno-trapping-math",  # exception flags are not used; permits a comparison to become a blend
    "-fno-signed-zeros",  # sums of exponentials have no negative zero
    "-ffp-contract=fast",  # a * b + c becomes an FMA where available
    # Align loops to cache lines. Otherwise, their position depends on unrelated code: the same code took 8 % longer at
    # (8, 150, 128, 128) after a change in another file.
    "-falign-functions=64",
    "-falign-loops=64",
    "-fno-asynchronous-unwind-tables",  # no exceptions pass through the kernels; saves 60 KB
]

# Flags of gcc, left out if the compiler rejects them, as clang does the first:
PROBED_FLAGS = [
    "-fno-tree-loop-distribute-patterns",  # for 1 KiB, a loop is faster than the memset or memcpy that gcc generates
    # gcc 12 completely unrolls loops of up to 16 iterations before it vectorises, and then assembles vectors element by
    # element: at (64, 4096), axis 0, this took twice the time.
    "--param=max-completely-peel-times=4",
]

# Force inlining: the stages of a row are one function, specialised by constant arguments at each call. gcc considers it
# too large to inline, and the tests at run time take a third more time, at v3 twice. Not for v2, where it would save at
# most a tenth of the time for half a megabyte; nor with sanitizers, where it only makes compilation slow.
INLINE = [("CYTHON_INLINE", "inline __attribute__((always_inline))")]

# v2 is for processors from before about 2013: optimise for size. 0.62 MB become 0.46, for 3 to 12 % more time; 12 KB of
# this are from unaligned loops, which cost nothing.
SMALL = ["-O2", "-ftree-vectorize", "-falign-functions=16", "-falign-loops=1", "-falign-jumps=1"]
# The symbols are stripped, and to make them, as the flags of most Pythons ask for, took half of the time to compile.
NO_SYMBOLS = ["-g0"]
SMALL_LINK = ["-Wl,--strip-all", "-Wl,-z,noseparate-code"]  # without symbols, 6.6 MB become 1.4; no padding of segments

# Python modules that are compiled, because they must not run as bytecode.
COMPILED_MODULES = ("_held",)

# Extensions that are optimised for size; `cpu` detects the processor.
SMALL_EXTENSIONS = ("cpu", *COMPILED_MODULES)

# Built with NumPy 2, the kernels run with this version of NumPy and later ones.
NUMPY_MACROS = [("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"), ("NPY_NO_DEPRECATED_API", "NPY_1_25_API_VERSION")]

# Added if LSM_SANITIZE=1, for .ci/sanitize: accesses out of bounds and undefined behaviour abort the program.
SANITIZE_FLAGS = [
    "-O1",  # -O3 takes three times as long to compile
    "-g1",
    "-fno-omit-frame-pointer",
    "-fno-wrapv",  # Python is often configured with -fwrapv, which disables the detection of overflow
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
]

OPENMP_PROBE = """
#include <omp.h>
int main(void) { int n = 0;
#pragma omp parallel reduction(+:n)
n += omp_get_num_threads() > 0; return n == 0; }
"""

NO_OPENMP = """
lsm: the C compiler cannot build OpenMP programs, which the kernels need for threads.
  Debian, Ubuntu:  apt-get install gcc            (libgomp comes with it)
  Fedora:          dnf install gcc libgomp
  conda:           conda install -c conda-forge compilers
  macOS:           brew install libomp, then
                   export CPPFLAGS="-I$(brew --prefix libomp)/include" LDFLAGS="-L$(brew --prefix libomp)/lib"
Or build without threads:  LSM_NO_OPENMP=1 python -m pip install .
Output of the compiler: {reason}
"""


# The features that each level adds to the previous one; gcc before 11 does not have the name x86-64-v2.
FEATURES = {
    "v2": ["cx16", "sahf", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2"],
    "v3": ["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"],
    "v4": ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
}


def levels() -> list[str]:
    """The instruction levels to build for: three on x86-64, one elsewhere.

    They depend on the target platform, not on the machine: a universal2 build for macOS has "plain" only. LSM_LEVELS
    names some of them, for a build that takes less time.
    """
    is_x86 = sysconfig.get_platform().endswith("x86_64") and sys.maxsize > 2**32
    every = list(FEATURES) if is_x86 else ["plain"]
    return [level for level in every if level in os.environ.get("LSM_LEVELS", "").split()] or every


def march(level: str) -> list[str]:
    """The flags for an instruction level: its features and those of the lower levels."""
    names = list(FEATURES)
    included = names[: names.index(level) + 1] if level in names else []
    return [f"-m{feature}" for name in included for feature in FEATURES[name]]


def is_enabled(variable: str) -> bool:
    """Whether an environment variable is '1'; exits unless it is '1', '0' or empty."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable} is {value!r}; accepted: '0', '1'")
    return value == "1"


class BuildKernels(build_ext):
    """Add flags that depend on the compiler."""

    def build_extensions(self) -> None:
        """Probe for OpenMP, then build all extensions, two at a time."""
        sanitize = SANITIZE_FLAGS if is_enabled("LSM_SANITIZE") else []
        if sanitize and sys.platform != "linux":
            raise SystemExit("LSM_SANITIZE requires gcc or clang on Linux")
        if self.compiler.compiler_type == "msvc":
            flags, openmp = ["/O2"], (["/openmp"], [])
        else:
            known = [flag for flag in PROBED_FLAGS if self.builds("int main(void) { return 0; }", [flag], []) is None]
            flags, openmp = UNIX_FLAGS + known + (sanitize or NO_SYMBOLS), self.openmp_flags()
        link = sanitize or (SMALL_LINK if sys.platform == "linux" else [])
        for extension in self.extensions:
            extension.include_dirs.append(np.get_include())
            extension.define_macros += NUMPY_MACROS
            level = extension.name.rpartition(".")[2]
            extension.extra_link_args = link
            if level in SMALL_EXTENSIONS:
                if self.compiler.compiler_type != "msvc":
                    extension.extra_compile_args = ["-Os", "-fno-asynchronous-unwind-tables", *NO_SYMBOLS]
                    extension.libraries.append("m")  # fesetround
                continue
            is_small = level == "v2" and not sanitize
            if self.compiler.compiler_type != "msvc" and not sanitize and not is_small:
                extension.define_macros += INLINE
            extension.extra_compile_args = flags + SMALL * is_small + march(level) + openmp[0]
            extension.extra_link_args = link + openmp[1]
            if self.compiler.compiler_type != "msvc":
                extension.libraries.append("m")  # not every Python is linked to it: exp and expm1
        self.parallel = self.parallel or 2
        super().build_extensions()

    def builds(self, program: str, compile_flags: list[str], link_flags: list[str]) -> str | None:
        """None if the compiler can build this program, else the error."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=compile_flags)
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=link_flags)
            except (CompileError, LinkError) as error:
                return str(error)
        return None

    def openmp_flags(self) -> tuple[list[str], list[str]]:
        """Compile and link flags for OpenMP; none if LSM_NO_OPENMP=1; exits if OpenMP is not available."""
        if is_enabled("LSM_NO_OPENMP"):
            return [], []
        reason = ""
        for compile_flags, link_flags in (
            (["-fopenmp"], ["-fopenmp"]),
            (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),  # Apple's clang
        ):
            error = self.builds(OPENMP_PROBE, compile_flags, link_flags)
            if error is None:
                return compile_flags, link_flags
            reason = reason or error
        raise SystemExit(NO_OPENMP.format(reason=reason))


def extensions(names: list[str], folder: Path = KERNELS, **options: Any) -> list[Extension]:
    """One extension per name, from the Cython source of that name; `options` are passed to cythonize."""
    return cythonized(
        [Extension(f"lsm.backends._kernels.{name}", [str(folder / f"{name}.pyx")]) for name in names], **options
    )


def cythonized(modules: list[Extension], **options: Any) -> list[Extension]:
    """The extensions, with Cython translated to C."""
    return cythonize(
        modules,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
            "freethreading_compatible": True,
        },
        include_path=[str(KERNELS)],
        **options,
    )


if __name__ == "__main__":  # benchmarks/vectorised.py imports this file
    compiled = cythonized([Extension(f"lsm.{name}", [f"lsm/{name}.py"]) for name in COMPILED_MODULES])
    setup(cmdclass={"build_ext": BuildKernels}, ext_modules=[*compiled, *extensions(["cpu", *levels()])])
