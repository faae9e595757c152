"""Build the Cython kernels: one source, once for each instruction level, with OpenMP.

Everything else about the package stands in pyproject.toml.
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

# Each for its reason, and never -ffast-math, which breaks NaN and inf, and lets the compiler reorder sums:
UNIX_FLAGS = [
    "-O3",
    "-fno-math-errno",  # nobody reads errno
    "-fno-trapping-math",  # nobody reads the exception flags, so a comparison may become a blend
    "-fno-signed-zeros",  # a sum of exponentials has no sign of zero to keep
    "-ffp-contract=fast",  # a * b + c is one FMA where there is one
    # A loop begins a cache line of instructions. Otherwise the bits of a change elsewhere decide on which byte it does:
    # the same code took 8 % longer at (8, 150, 128, 128) after another file had changed.
    "-falign-functions=64",
    "-falign-loops=64",
    "-fno-asynchronous-unwind-tables",  # nothing is thrown through the kernels; 60 KB
]

# Those of gcc, left out where the compiler refuses them, as clang does the first:
PROBED_FLAGS = [
    "-fno-tree-loop-distribute-patterns",  # a loop over 1 KiB is faster than the memset or memcpy gcc makes of it
    # gcc 12 takes loops of 16 rounds or fewer apart before it makes vectors, and then builds them number by number: at
    # (64, 4096), axis 0, that took twice the time.
    "--param=max-completely-peel-times=4",
]

# What is inline in the kernels is so in earnest: the passes of rows.pxi are one function, of which each use leaves
# out what it does not wish. gcc thinks it too large, and looks at every row what is wished: a third more time, at v3
# twice. Not at v2, where half a megabyte saves a tenth of the time at most; nor where the sanitizers are: there it
# takes long to compile, and nothing is gained.
INLINE = [("CYTHON_INLINE", "inline __attribute__((always_inline))")]

# v2 is for processors of before 2013 or so: small counts there. 0.62 MB become 0.46, for 3 to 12 % of the time; that
# loops begin anywhere is 12 KB of it, and costs nothing.
SMALL = ["-O2", "-ftree-vectorize", "-falign-functions=16", "-falign-loops=1", "-falign-jumps=1"]
SMALL_LINK = ["-Wl,--strip-all", "-Wl,-z,noseparate-code"]  # no symbols: 6.6 MB become 1.4; no padding between parts

# Modules of Python that are compiled, since they must not run as bytecode.
COMPILED_MODULES = ("_held",)

# The extensions that are built for size: one asks what the processor has.
SMALL_EXTENSIONS = ("cpu", *COMPILED_MODULES)

# Built with NumPy 2, the kernels run with every NumPy from this one on.
NUMPY_MACROS = [("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"), ("NPY_NO_DEPRECATED_API", "NPY_1_25_API_VERSION")]

# Added where LSM_SANITIZE=1, for .ci/sanitize: a read or write out of bounds, or undefined behaviour, ends the program.
SANITIZE_FLAGS = [
    "-O1",  # -O3 takes three times as long to compile
    "-g",
    "-fno-omit-frame-pointer",
    "-fno-wrapv",  # many a Python is configured with -fwrapv, under which an overflow is not looked for
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
lsm: the C compiler cannot build OpenMP programs, which the kernels need to use several threads.
  Debian, Ubuntu:  apt-get install gcc            (libgomp comes with it)
  Fedora:          dnf install gcc libgomp
  conda:           conda install -c conda-forge compilers
  macOS:           brew install libomp, then
                   export CPPFLAGS="-I$(brew --prefix libomp)/include" LDFLAGS="-L$(brew --prefix libomp)/lib"
Or build without threads:  LSM_NO_OPENMP=1 python -m pip install .
The compiler said: {reason}
"""


# What each level adds to the one before, feature by feature: gcc before 11 does not know the name x86-64-v2.
FEATURES = {
    "v2": ["cx16", "sahf", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2"],
    "v3": ["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"],
    "v4": ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
}


def levels() -> list[str]:
    """The instruction levels to build for: three on x86-64, one elsewhere.

    The platform that is built for decides, not the machine that builds: a universal2 build for macOS has "plain" only.
    """
    is_x86 = sysconfig.get_platform().endswith("x86_64") and sys.maxsize > 2**32
    return list(FEATURES) if is_x86 else ["plain"]


def march(level: str) -> list[str]:
    """The flags for an instruction level: its own features, and those of the levels below it."""
    names = list(FEATURES)
    included = names[: names.index(level) + 1] if level in names else []
    return [f"-m{feature}" for name in included for feature in FEATURES[name]]


def is_enabled(variable: str) -> bool:
    """Whether an environment variable is '1'; stops where it is neither that nor '0' nor empty."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable} is {value!r}; accepted: '0', '1'")
    return value == "1"


class BuildKernels(build_ext):
    """Add the flags that only the compiler at hand can tell."""

    def build_extensions(self) -> None:
        """Probe for OpenMP, then build all the extensions, two at a time."""
        sanitize = SANITIZE_FLAGS if is_enabled("LSM_SANITIZE") else []
        if sanitize and sys.platform != "linux":
            raise SystemExit("LSM_SANITIZE is for gcc or clang on Linux")
        if self.compiler.compiler_type == "msvc":
            flags, openmp = ["/O2"], (["/openmp"], [])
        else:
            known = [flag for flag in PROBED_FLAGS if self.builds("int main(void) { return 0; }", [flag], []) is None]
            flags, openmp = UNIX_FLAGS + known + sanitize, self.openmp_flags()
        link = sanitize or (SMALL_LINK if sys.platform == "linux" else [])
        for extension in self.extensions:
            extension.include_dirs.append(np.get_include())
            extension.define_macros += NUMPY_MACROS
            level = extension.name.rpartition(".")[2]
            extension.extra_link_args = link
            if level in SMALL_EXTENSIONS:
                if self.compiler.compiler_type != "msvc":
                    extension.extra_compile_args = ["-Os", "-fno-asynchronous-unwind-tables"]
                continue
            is_small = level == "v2" and not sanitize
            if self.compiler.compiler_type != "msvc" and not sanitize and not is_small:
                extension.define_macros += INLINE
            extension.extra_compile_args = flags + SMALL * is_small + march(level) + openmp[0]
            extension.extra_link_args = link + openmp[1]
            if self.compiler.compiler_type != "msvc":
                extension.libraries.append("m")  # exp and expm1: not every Python brings libm along
        self.parallel = self.parallel or 2
        super().build_extensions()

    def builds(self, program: str, compile_flags: list[str], link_flags: list[str]) -> str | None:
        """None if the compiler makes a program of it, else what it said."""
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
        """Compile and link flags for OpenMP; none if LSM_NO_OPENMP=1; stops where there is no OpenMP."""
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
    """One extension for each name, from the Cython source of that name; `options` go to cythonize."""
    return cythonized(
        [Extension(f"lsm.backends._kernels.{name}", [str(folder / f"{name}.pyx")]) for name in names], **options
    )


def cythonized(modules: list[Extension], **options: Any) -> list[Extension]:
    """The extensions with C in place of Cython."""
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


if __name__ == "__main__":  # benchmarks/vectorised.py imports the rest
    compiled = cythonized([Extension(f"lsm.{name}", [f"lsm/{name}.py"]) for name in COMPILED_MODULES])
    setup(cmdclass={"build_ext": BuildKernels}, ext_modules=[*compiled, *extensions(["cpu", *levels()])])
