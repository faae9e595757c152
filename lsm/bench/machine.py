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
from lsm._texts import describe_error
from lsm._threads import cpu_limit
from lsm.backends._levels import kernels
from lsm.bench.options import OptionError

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
STATISTICS = Path("/proc/stat")
ENVIRONMENT = ("LSM_", "OMP_", "GOMP_", "KMP_", "ATEN_CPU_CAPABILITY", "XLA_FLAGS", "MKL_", "OPENBLAS_")


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
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    if (root / ".git").exists():  # else it may be an environment within another project's checkout
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    return None


def environment() -> dict[str, str]:
    """The variables that change what is measured."""
    pairs = sorted(os.environ.items())
    # threadpoolctl sets the one that is left out, and no speed depends on it.
    return {name: text for name, text in pairs if name.startswith(ENVIRONMENT) and name != "KMP_DUPLICATE_LIB_OK"}


Spent = tuple[float, float, int] | None


def spent() -> Spent:
    """The clock; the time that the processors of this process spent on others, guests too; how many they are.

    None where the system does not tell.
    """
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
    """How many of the processors that this process may use the rest of the machine used between two times.

    With as many threads as processors, one busy neighbour makes an implementation that waits for all its threads many
    times slower: such rows say nothing. Where a quota grants less than the affinity mask, others may use the rest.
    """
    if before is None or now is None:
        return None
    return max(0.0, (now[1] - before[1]) / (now[0] - before[0]) - (now[2] - cpu_limit()))


def possible_threads(numbers: Iterable[int]) -> tuple[list[int], dict[str, str]]:
    """Those of the numbers of threads that lsm would use, and why not the others; an OptionError if that is none."""
    possible, absent = [], {}
    for n_threads in numbers:
        with lsm.num_threads(n_threads):
            if (used := lsm.get_num_threads()) == n_threads:
                possible.append(n_threads)
            else:
                absent[f"{n_threads} threads"] = f"lsm would use {used}, the processors that this process may use"
    if not possible:
        raise OptionError("threads", "; ".join(f"{asked} were asked for; {why}" for asked, why in absent.items()))
    return possible, absent


@contextlib.contextmanager
def equal_threads(n_threads: int, names: Collection[str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Give all of them this number of threads, and verify it.

    Several OpenMP runtimes may be in one process, lsm's and those of wheels; threadpoolctl finds and sets them all.
    ONNX Runtime gets the number with each session. Yields each pool of threads with its number, and by name why the
    threads of a library cannot be set.
    """
    from threadpoolctl import threadpool_info, threadpool_limits

    kernels()  # loads lsm's own OpenMP, so that it is among those that are set
    possible_threads([n_threads])
    verified, absent = [f"lsm: {n_threads}"], {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(lsm.num_threads(n_threads))
        stack.enter_context(threadpool_limits(limits=n_threads))
        for library in filter(names.__contains__, ("torch", "jax")):
            try:
                (_set_jax if library == "jax" else import_module("torch").set_num_threads)(n_threads)
                verified.append(f"{library}: {n_threads}")
            except Exception as error:  # a version without the setting, say
                absent[library] = f"its threads cannot be set to {n_threads}: {describe_error(error)}"
        for pool in threadpool_info():
            name = f"{pool['internal_api']} {Path(pool['filepath']).name}"
            # A BLAS is built for a number of threads and may have fewer. No log-softmax computes with it.
            if pool["num_threads"] != n_threads and pool["user_api"] != "blas":
                raise RuntimeError(f"{n_threads} threads were asked for; {name} has {pool['num_threads']}")
            verified.append(f"{name}: {pool['num_threads']}")
        yield list(dict.fromkeys(verified)), absent


def _set_jax(n_threads: int) -> None:
    """XLA reads the size of its pool when its backend starts, so it is started again for another number."""
    import jax
    from jax.extend.backend import clear_backends

    if os.environ.get("PJRT_NPROC") != str(n_threads):
        os.environ["PJRT_NPROC"] = str(n_threads)
        clear_backends()
        jax.devices("cpu")
