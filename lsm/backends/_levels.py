"""The compiled kernels for the instruction level of this processor, loaded once and set up for its caches."""

from functools import cache
from typing import Any

from lsm import _fastpath
from lsm._config import ISA_LEVELS, settings
from lsm._errors import BackendUnavailableError
from lsm._threads import count_threads, set_openmp


def _cache_bytes(level: int, default: int) -> int:
    """The size of a cache of this machine, as Linux reports it for the first processor."""
    try:
        with open(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size") as file:  # noqa: PTH123
            return int(file.read().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return default


# Larger results use nontemporal stores, which avoid reading the destination: they would not stay in the caches anyway.
# Half of the last-level cache; no more than 32 MiB, since virtual machines report the cache of the whole processor.
NONTEMPORAL_MIN_BYTES = max(8 * 2**20, min(_cache_bytes(3, 32 * 2**20) // 2, 32 * 2**20))

# Larger inputs are assumed to be in memory, and are prefetched.
PREFETCH_MIN_BYTES = max(2**20, min(3 * _cache_bytes(2, 2 * 2**20) // 2, 8 * 2**20))

# The OpenMP libraries that the kernels may be linked to, and how to install them.
_OPENMP = {
    "libgomp": "apt-get install libgomp1 (Debian, Ubuntu), dnf install libgomp (Fedora), apk add libgomp (Alpine), "
    "conda install libgomp (conda)",
    "libomp": "apt-get install libomp5 (Debian, Ubuntu), dnf install libomp (Fedora), brew install libomp (macOS), "
    "conda install llvm-openmp (conda)",
}


@cache
def kernels() -> dict[Any, Any]:
    """The functions and data of the kernels, by name, for the highest instruction level of this processor.

    Raises
    ------
    BackendUnavailableError
        The kernels were not built or cannot be loaded, or the processor does not support the level of LSM_FORCE_ISA.
    """
    cpu = _module("cpu")
    if cpu is None:
        raise BackendUnavailableError("the compiled kernels are missing; rebuild lsm with a C compiler")
    best, forced = cpu.best_level(), settings().force_isa
    if forced and ISA_LEVELS.index(forced) < ISA_LEVELS.index(best):
        raise BackendUnavailableError(
            f"LSM_FORCE_ISA is {forced}, but this processor supports {best}; unset it, or set it to {best}"
        )
    for level in [forced] if forced else ISA_LEVELS[ISA_LEVELS.index(best) :]:
        module = _module(level)
        if module is not None:
            break
    else:
        if forced:
            raise BackendUnavailableError(
                f"the kernels for level {forced} are not part of this build; unset LSM_FORCE_ISA, or rebuild lsm"
            )
        raise BackendUnavailableError(f"this build has no kernels for level {best} or lower; rebuild lsm")
    set_openmp(module.max_threads, module.num_procs)
    module.configure(count_threads, NONTEMPORAL_MIN_BYTES, PREFETCH_MIN_BYTES)
    module.connect(_fastpath)
    return {
        "level": level,
        "scratch": module.SCRATCH,
        "run": module.run,
        "ops": module.OPS,
        "alterations": module.ALTERATIONS,
        "run_part": module.run_part,
        "fold_partials": module.fold_partials,
        "fold_gradients": module.fold_gradients,
        "partial_ops": module.PARTIAL_OPS,
        "n_few": module.N_FEW,
        "kinds": module.KINDS | {"V": module.KINDS["E"]},  # V: bfloat16 without ml_dtypes, as bits
        "fast": module.QUICK,
        "find_top": module.find_top,
        "most_top": module.MOST_TOP,
        "narrow": module.narrow_numbers,
        "run_labels": module.run_labels,
        "put_labels": module.put_labels,
        "stream_copy": module.stream_copy,
        "stream_add": module.stream_add,
    }


def _import_kernels(name: str) -> Any:
    """Import a compiled module by a statement, which tools such as PyInstaller can detect."""
    if name == "cpu":
        import lsm.backends._kernels.cpu as module
    elif name == "v4":
        import lsm.backends._kernels.v4 as module
    elif name == "v3":
        import lsm.backends._kernels.v3 as module
    elif name == "v2":
        import lsm.backends._kernels.v2 as module
    else:
        import lsm.backends._kernels.plain as module
    return module


def _module(name: str) -> Any:
    """A compiled module, or None if it is not part of this build.

    Raises
    ------
    BackendUnavailableError
        It cannot be loaded.
    """
    try:
        return _import_kernels(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == f"lsm.backends._kernels.{name}":
            return None
        text = str(error)
        missing = [how for library, how in _OPENMP.items() if library in text and "no such file" in text.lower()]
        remedy = f"install it: {missing[0]}" if missing else "reinstall or rebuild lsm"
        raise BackendUnavailableError(f"the compiled kernels cannot be loaded: {text}; {remedy}") from error
