"""What a run is measured on: the processor, its caches and neighbours, and equal numbers of threads for all."""

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from importlib import import_module
from pathlib import Path

import lsm
from lsm._threads import cpu_limit
from lsm.backends._levels import kernels
from lsm.bench.options import OptionError

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
STATISTICS = Path("/proc/stat")
# The variables that change what is measured, by how they begin.
ENVIRONMENT = ("LSM_", "OMP_", "GOMP_", "KMP_AFF", "KMP_BLOCK", "ATEN_CPU", "XLA_FLAGS", "MKL_", "OPENBLAS_")


def processor() -> str:
    """The processor's name, as far as the system tells."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name[^:]*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


def caches() -> dict[str, int]:
    """Bytes of each cache that the first processor can use, by level: {"L1": 32768, ...}."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        with contextlib.suppress(OSError, ValueError):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes[f"L{level}"] = int(size.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(size[-1], 1)
    return sizes


def versions(modules: Iterable[str]) -> dict[str, str]:
    """The versions of lsm, Python, NumPy and the modules, with the instructions that a library says it uses."""
    found = {"lsm": lsm.__version__, "python": platform.python_version()}
    for top in dict.fromkeys(name.split(".")[0] for name in ("numpy", *modules)):
        found[top] = str(getattr(sys.modules.get(top), "__version__", "unknown"))
    with contextlib.suppress(lsm.BackendUnavailableError):
        found["lsm"] += f" ({kernels()['level']})"
    if "torch" in found:
        found["torch"] += f" ({import_module('torch').backends.cpu.get_cpu_capability()})"
    return found


def torch_has_cuda() -> bool:
    """Whether PyTorch is installed and can use a GPU."""
    try:
        return bool(import_module("torch").cuda.is_available())
    except Exception:  # an installation can be broken in many ways
        return False


def gpu(device: str) -> str | None:
    """The name of the device that is measured; None for the CPU, an OptionError if no library can use it."""
    if device == "cpu":
        return None
    if torch_has_cuda():
        return str(import_module("torch").cuda.get_device_name())
    with contextlib.suppress(Exception):
        cuda = import_module("cupy").cuda
        if cuda.is_available():
            return str(cuda.runtime.getDeviceProperties(cuda.Device().id)["name"].decode())
    raise OptionError("device", f"{device}: neither PyTorch nor CuPy finds a CUDA device here; accepted here: cpu")


def commit() -> str | None:
    """The commit of the checkout that lsm is used from; None for an installed lsm."""
    root = Path(lsm.__file__).resolve().parents[1]
    command = ["git", f"--git-dir={root / '.git'}", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    return None


Spent = tuple[float, float, int] | None


def spent() -> Spent:
    """The clock; the time that the processors of this process spent on others, guests too; how many they are."""
    try:
        mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
        lines = [words for line in STATISTICS.read_text().splitlines() if (words := line.split())[0] in mine]
    except (AttributeError, OSError, IndexError):
        return None
    # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen by the host
    ticks = [[int(text) for text in words[1:9]] for words in lines]
    busy = sum(sum(some) - some[3] - some[4] for some in ticks) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy - time.process_time(), len(ticks)


def used_by_others(before: Spent, now: Spent) -> float | None:
    """How many processors of this process the rest of the machine used between; None if the system does not tell."""
    if before is None or now is None:
        return None
    # Where a quota grants less than the affinity mask, others may use the rest.
    return max(0.0, (now[1] - before[1]) / (now[0] - before[0]) - (now[2] - cpu_limit()))


def possible_threads(numbers: Collection[int]) -> tuple[list[int], dict[str, str]]:
    """Those of the numbers of threads that lsm would use, and why not the others; an OptionError if that is none."""
    with lsm.num_threads(max(numbers)):
        most = lsm.get_num_threads()
    possible = [n for n in numbers if n <= most]
    reason = f"lsm would use {most}, the processors that this process may use"
    absent = {f"{n} threads": reason for n in numbers if n > most}
    if not possible:
        raise OptionError("threads", "; ".join(f"{asked} were asked for; {why}" for asked, why in absent.items()))
    return possible, absent


@contextlib.contextmanager
def equal_threads(n_threads: int) -> Iterator[list[str]]:
    """Give lsm and every OpenMP runtime in the process this number of threads, and verify it; yields all of them."""
    from threadpoolctl import threadpool_info, threadpool_limits

    kernels()  # loads lsm's own OpenMP, so that it is among those that are set; peers set threads of another kind
    possible_threads([n_threads])
    verified = [f"lsm: {n_threads}"]
    with lsm.num_threads(n_threads), threadpool_limits(limits=n_threads):
        for pool in threadpool_info():
            name = f"{pool['internal_api']} {Path(pool['filepath']).name}"
            # A BLAS is built for a number of threads and may have fewer. No log-softmax computes with it.
            if pool["num_threads"] != n_threads and pool["user_api"] != "blas":
                raise RuntimeError(f"{n_threads} threads were asked for; {name} has {pool['num_threads']}")
            verified.append(f"{name}: {pool['num_threads']}")
        yield list(dict.fromkeys(verified))
