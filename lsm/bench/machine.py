"""What a run was measured on and with, and how busy the rest of the machine was meanwhile."""

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import lsm
from lsm._threads import cpu_limit
from lsm.backends.cython_ import kernels
from lsm.bench.options import OptionError

CPUS = Path("/sys/devices/system/cpu")
CACHES = CPUS / "cpu0/cache"
STATISTICS = Path("/proc/stat")
USUAL_LAST_CACHE = 32 * 2**20  # bytes, where the system does not tell
ENVIRONMENT = ("LSM_", "OMP_", "GOMP_", "KMP_", "ATEN_CPU_CAPABILITY", "XLA_FLAGS", "MKL_", "OPENBLAS_")


def processor() -> str:
    """The processor's name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def n_cores() -> int | None:
    """How many cores the processors belong to that this process may use; None where the system does not tell."""
    try:
        cores = {(CPUS / f"cpu{i}/topology/thread_siblings_list").read_text() for i in _usable_processors() or ()}
    except OSError:
        return None
    return len(cores) or None


def _usable_processors() -> set[int] | None:
    """The numbers of those in the affinity mask; None where the system does not tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity else None


def caches() -> dict[str, int]:
    """Bytes of each cache that the first processor can use, by level: {"L1": 32768, ...}."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        with contextlib.suppress(OSError, ValueError):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes[f"L{level}"] = int(size.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(size[-1], 1)
    return sizes


def last_cache(sizes: dict[str, int]) -> int:
    """Bytes of the last level of `caches`."""
    return sizes[max(sizes)] if sizes else USUAL_LAST_CACHE


def instruction_levels() -> dict[str, str]:
    """Which instructions each library uses, as far as it is loaded and tells."""
    found = {}
    with contextlib.suppress(lsm.BackendUnavailableError):
        found["lsm"] = str(kernels()["level"])
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = str(torch.backends.cpu.get_cpu_capability())
    return found


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Of lsm, Python, NumPy and the modules, by their names."""
    found = {"lsm": lsm.__version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in modules:
        top = name.split(".")[0]
        found[top] = str(getattr(sys.modules.get(top), "__version__", "unknown"))
    return found


def gpu(device: str) -> str | None:
    """The name of the device that is measured; None for the CPU.

    Raises
    ------
    OptionError
        There is none that a library can use.
    """
    if device == "cpu":
        return None
    for name, named in _GPU_NAMES.items():
        with contextlib.suppress(Exception):  # an installation can be broken in many ways
            library = import_module(name)
            if library.cuda.is_available():
                return str(named(library))
    raise OptionError("device", f"{device}: neither PyTorch nor CuPy finds a CUDA device here; accepted here: cpu")


def _cupy_name(cupy: Any) -> str:
    name: str = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return name


_GPU_NAMES: dict[str, Callable[[Any], str]] = {"torch": lambda torch: torch.cuda.get_device_name(), "cupy": _cupy_name}


def commit() -> str | None:
    """The commit of the checkout that lsm is used from; None for an installed lsm."""
    root = Path(lsm.__file__).resolve().parents[1]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # an environment within somebody else's checkout
        return None
    name = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{name} with changes" if name and changed else name


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def load() -> float | None:
    """Processors that were in use in the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def environment() -> dict[str, str]:
    """The variables that change what is measured."""
    chosen = {name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)}
    chosen.pop("KMP_DUPLICATE_LIB_OK", None)  # threadpoolctl sets it, and no speed depends on it
    return chosen


def today() -> str:
    """The date."""
    return time.strftime("%Y-%m-%d")


class Others:
    """How many of the processors that this process may use the rest of the machine used, since this was made.

    With as many threads as processors, one busy neighbour makes whoever waits for all its threads many times slower,
    for as long as the scheduler lets the neighbour run: such rows tell nothing. Where a quota grants less than the
    affinity mask has, others may use the difference without taking anything away.
    """

    def __init__(self) -> None:
        self._before = self._seconds()

    def processors(self) -> float | None:
        """None where the system does not tell."""
        now = self._seconds()
        if self._before is None or now is None:
            return None
        (wall, others, n), (wall_before, others_before, _) = now, self._before
        return max(0.0, (others - others_before) / (wall - wall_before) - (n - cpu_limit()))

    @staticmethod
    def _seconds() -> tuple[float, float, int] | None:
        """The clock; the time that all these processors spent on others, guests too; how many they are."""
        mine = _usable_processors()
        try:
            lines = [line.split() for line in STATISTICS.read_text().splitlines() if line.startswith("cpu")]
        except OSError:
            return None
        # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen by the host
        ticks = [[int(text) for text in line[1:9]] for line in lines if _number(line[0]) in (mine or ())]
        if not ticks:
            return None
        busy = sum(sum(some) - some[3] - some[4] for some in ticks) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy - time.process_time(), len(ticks)


def _number(name: str) -> int | None:
    """7 of "cpu7"; None of "cpu", which stands for all."""
    return int(name[3:]) if name[3:].isdecimal() else None
