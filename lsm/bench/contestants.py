"""Who takes part: every backend of lsm, and the peers that are installed."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import NamedTuple

from lsm.bench import of_cupy, of_jax, of_lsm, of_numpy, of_onnxruntime, of_torch
from lsm.bench.contestant import Absent, Contestant
from lsm.bench.data import Data
from lsm.bench.options import OptionError
from lsm.bench.workloads import Case

Make = Callable[[Case, Data, int], Iterable[Contestant | Absent]]


class Family(NamedTuple):
    """The contestants of one library: how to make them for a case, the modules they need, further names."""

    make: Make
    modules: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    others: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "lsm": Family(of_lsm.contestants, devices=("cpu", "cuda")),
    "numpy idiom": Family(of_numpy.idiom),
    "scipy": Family(of_numpy.scipy, ("scipy.special",)),
    "torch": Family(of_torch.contestants, ("torch",), ("cpu", "cuda"), ("torch.compile",)),
    "onnxruntime": Family(of_onnxruntime.contestants, ("onnx", "onnxruntime")),
    "jax": Family(of_jax.contestants, ("jax",)),
    "cupyx": Family(of_cupy.contestants, ("cupy", "cupyx.scipy.special"), ("cuda",)),
}


def check_wanted(wanted: Iterable[str]) -> None:
    """Refuse a wish that names nobody, by an OptionError."""
    known = [each for some in _names().values() for each in some]
    for text in wanted:
        if not any(text in name for name in known):
            raise OptionError("contestants", f"{text!r} is nobody; accepted: {', '.join(known)}, or a part of a name")


def _names() -> dict[str, tuple[str, ...]]:
    """Of each family, the names of those who are of it."""
    names = {name: (name, *family.others) for name, family in FAMILIES.items()}
    return names | {"lsm": tuple(f"lsm {label}" for label in of_lsm.labels())}


def usable(wanted: Iterable[str], device: str) -> tuple[list[str], dict[str, str]]:
    """The families that can take part in a run, all imported, and why others cannot.

    Raises
    ------
    OptionError
        A wish names nobody.
    """
    wanted = tuple(wanted)
    check_wanted(wanted)
    names = _names()
    found, absent = [], {}
    for name, family in FAMILIES.items():
        if not any(is_wanted(each, wanted) for each in names[name]):
            absent[name] = "not asked for"
        elif device not in family.devices:
            absent[name] = f"takes part on {' and '.join(family.devices)} only, not on {device}"
        else:
            try:
                for module in family.modules:
                    import_module(module)
                found.append(name)
            except Exception as error:  # an installation can be broken in many ways
                absent[name] = _reason(error)
    return found, absent


def is_wanted(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a contestant was asked for; all are where nobody was."""
    return not wanted or any(text in name for text in wanted)


def taking_part(
    families: Iterable[str], wanted: tuple[str, ...], case: Case, data: Data, n_threads: int
) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants of a case, and why others do not take part in it."""
    found, absent = [], {}
    for family in families:
        try:
            made = list(FAMILIES[family].make(case, data, n_threads))
        except Exception as error:  # whatever a peer does not support in its version; the row goes on without it
            absent[family] = _reason(error)
            continue
        for one in made:
            if isinstance(one, Absent):
                if is_wanted(one.name, wanted):
                    absent[one.name] = one.reason
            elif is_wanted(one.name, wanted):
                found.append(one)
    return found, absent


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
