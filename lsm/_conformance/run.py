"""Make the cases from a backend's claims, run them, and collect the outcomes."""

import hashlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np

from lsm._check import NUMPY
from lsm._conformance import accuracy, api, behaviour, derived, memory, parts, sizes, special
from lsm._conformance.arrays import MAKERS, ArrayMaker, CannotMakeError, numpy_dtype
from lsm._conformance.oracle import is_quick
from lsm._conformance.subject import AccuracyError, Case, Check, ConformanceError, Subject, skip
from lsm._operations import OF_PART, OPERATIONS
from lsm._signals import reraise_from_handler
from lsm._texts import describe_error, for_json
from lsm._version import __version__
from lsm.backends.candidate import Candidate
from lsm.backends.contract import has_operation, max_ulp
from lsm.backends.registry import registry

MODULES = (accuracy, memory, sizes, special, behaviour, api, derived, parts)
CHECKS = tuple([check for module in MODULES for check in module.CHECKS])


class Outcome(NamedTuple):
    """The outcome of one case.

    Attributes
    ----------
    check : str
        The title of the check.
    array_type, device, dtype : str
        The arrays checked; empty if the check does not depend on them.
    outcome : str
        "passed", "failed" or "skipped".
    detail : str
        Why it failed or was skipped.
    ulps : float or None
        The largest measured error, in units in the last place.
    seconds : float
        The time taken.
    """

    check: str
    array_type: str
    device: str
    dtype: str
    outcome: str
    detail: str
    ulps: float | None
    seconds: float


class Report(NamedTuple):
    """The findings of the kit: the backend, the platform, and every outcome.

    Attributes
    ----------
    about : dict
        The backend, its distribution, version and digest, what it claims, and the platform.
    outcomes : list of Outcome
        One for each case.
    """

    about: dict[str, Any]
    outcomes: list[Outcome]

    def count(self, outcome: str) -> int:
        """The number of cases that "passed", "failed" or were "skipped"."""
        return sum(o.outcome == outcome for o in self.outcomes)

    @property
    def has_passed(self) -> bool:
        """Whether something passed and nothing failed."""
        return self.count("failed") == 0 < self.count("passed")

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON, which has no infinity: infinities become the string "inf"."""
        counts = {outcome: self.count(outcome) for outcome in ("passed", "failed", "skipped")}
        report: dict[str, Any] = for_json({**self.about, **counts, "outcomes": [o._asdict() for o in self.outcomes]})
        return report


def cases(name: str, makers: tuple[ArrayMaker, ...] = ()) -> list[Case]:
    """All cases for a backend: every check for every claimed array type, device and dtype.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError
        There is no such backend, or it cannot be used here.
    """
    return list(_cases(name, registry().get(name).load(), {maker.type_name: maker for maker in (*MAKERS, *makers)}))


def _cases(name: str, backend: Any, makers: dict[str, ArrayMaker]) -> Iterator[Case]:
    known = [dtype for dtype in backend.dtypes if dtype in max_ulp(backend)]
    anything = Subject(name, backend, MAKERS[0], backend.devices[0], (known or ["float64"])[0])
    every = [check for check in CHECKS if not check.operation or has_operation(backend, check.operation)]
    yield from (Case(check, anything) for check in every if check.per == "backend")
    for type_name in backend.array_types:
        for device in backend.devices:
            maker = makers.get(type_name) or _Unknown(type_name)
            problem = _why_not(maker, device)
            if problem:
                subject = Subject(name, backend, maker, device, anything.dtype_name)
                yield Case(Check("everything", _skipping(problem), per="place"), subject)
                continue
            subjects = [Subject(name, backend, maker, device, dtype) for dtype in known]
            yield from (Case(check, subjects[0]) for check in every if check.per == "place" and subjects)
            for subject in subjects:
                problem = _why_not(maker, device, subject.dtype_name)
                if problem:
                    yield Case(Check("everything", _skipping(problem)), subject)
                    continue
                can_check = is_quick(subject.dtype)
                of_dtype = [check for check in every if check.per == "dtype" and (can_check or not check.is_quick)]
                has_parts = type_name == NUMPY and subject.dtype_name in getattr(backend, "slice_classes", {})
                yield from (Case(c, subject) for c in of_dtype if has_parts or c.operation not in OF_PART)


class _Unknown(ArrayMaker):
    """A type that the kit cannot make."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def from_numpy(self, array: Any, device: str) -> Any:
        raise CannotMakeError(
            f"the kit cannot make a {self.type_name}; "
            "name an ArrayMaker for it in the attribute makers of a subclass of BackendConformance"
        )


def _why_not(maker: ArrayMaker, device: str, dtype: str = "float32") -> str:
    """The reason why the kit cannot make such arrays here; empty if it can."""
    try:
        maker.from_numpy(np.zeros(1, numpy_dtype(dtype)), device)
    except CannotMakeError as error:
        return str(error)
    return ""


def _skipping(reason: str) -> Callable[[Subject], None]:
    return lambda _: skip(reason)


def check_backend(
    name: str,
    *,
    makers: tuple[ArrayMaker, ...] = (),
    progress: Callable[[list[Case]], Any] = iter,
) -> Report:
    """Check everything that a backend claims.

    Parameters
    ----------
    name : str
        The backend's name in `lsm.list_backends`, or "distribution/name".
    makers : tuple of ArrayMaker, optional
        Makers for array types other than numpy.ndarray, torch.Tensor and cupy.ndarray, which are built in.
    progress : callable, optional
        Called with the list of cases; the kit iterates over its result. ``tqdm.tqdm`` shows a progress bar.

    Returns
    -------
    Report
        With one outcome for each case.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError
        There is no such backend, or it cannot be used here.

    Examples
    --------
    >>> from lsm.testing import check_backend
    >>> report = check_backend("cython")
    >>> report.has_passed, report.count("failed")
    (True, 0)
    """
    todo = cases(name, makers)
    return Report(about(registry().get(name)), [run(case) for case in progress(todo)])


def run(case: Case) -> Outcome:
    """Run one case; whatever the backend raises is a failure."""
    start = time.perf_counter()
    outcome, detail, ulps = "passed", "", None
    try:
        ulps = case.run()
    except SkipTest as reason:
        outcome, detail = "skipped", str(reason)
    except ConformanceError as error:
        outcome, detail = "failed", str(error)
        if isinstance(error, AccuracyError):  # the case ended at the first one: measure the largest
            ulps = _measured(case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # even SystemExit, which could otherwise end lsm check with code 0
        reraise_from_handler(error)
        outcome, detail = "failed", f"raised {describe_error(error)}"
    subject, per = case.subject, case.check.per
    return Outcome(
        check=case.check.title,
        array_type="" if per == "backend" else subject.maker.type_name,
        device="" if per == "backend" else subject.device,
        dtype=subject.dtype_name if per == "dtype" else "",
        outcome=outcome,
        detail=detail,
        ulps=ulps,
        seconds=round(time.perf_counter() - start, 4),
    )


def _measured(case: Case) -> float | None:
    """The largest error of a case, without a bound; None if something else is wrong too."""
    try:
        return case.check.function(replace(case.subject, is_measuring=True))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in `run`
        reraise_from_handler(error)
        return None


def about(candidate: Candidate) -> dict[str, Any]:
    """The subject of a report: the backend, the distribution that provides it, and the machine."""
    info = candidate.info()
    package = candidate.entry_point.value.partition(":")[0].partition(".")[0]
    libraries = sorted({name.partition(".")[0] for name in info.array_types} | {"numpy"})
    return {
        "backend": info.name,
        "distribution": info.distribution,
        "distribution_version": info.version,
        "package": package,
        "sha256": digest(package),
        "claims": {
            "devices": list(info.devices),
            "dtypes": list(info.dtypes),
            "array_types": list(info.array_types),
            "max_ulp": info.max_ulp,
            "same_bits": info.same_bits,
            "operations": [name for name in OPERATIONS if has_operation(candidate.backend, name)],
            "slice_classes": dict(getattr(candidate.backend, "slice_classes", {})),
        },
        "lsm": __version__,
        "python": platform.python_version(),
        "libraries": {name: str(getattr(sys.modules.get(name), "__version__", "not imported")) for name in libraries},
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def digest(package: str) -> str:
    """The SHA-256 of a package's files: the path, length and bytes of each, in the order of the paths."""
    file = Path(str(import_module(package).__file__))
    root = file.parent if file.name.startswith("__init__.") else file
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    total = hashlib.sha256()
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts:
            data = path.read_bytes()
            total.update(f"{path.relative_to(root.parent).as_posix()}\0{len(data)}\0".encode())
            total.update(data)
    return total.hexdigest()
