"""The conformance kit for authors of backends: tests of everything that a backend claims.

In the plugin's tests, with pytest::

    from lsm.testing import BackendConformance

    class TestMine(BackendConformance):
        backend = "mine"

On the command line, with a report: ``lsm check mine``. From Python: `check_backend`.
"""

from importlib import import_module
from typing import Any

from lsm._conformance.arrays import ArrayMaker, CannotMakeError
from lsm._conformance.run import Outcome, Report, cases, check_backend
from lsm._conformance.subject import Case, ConformanceError

__all__ = [
    "ArrayMaker",
    "BackendConformance",
    "CannotMakeError",
    "ConformanceError",
    "Outcome",
    "Report",
    "check_backend",
]


class BackendConformance:
    """All cases of the kit as tests; subclass it under a name that pytest collects.

    A backend that is not available is an error, not a skip. Cases cannot be marked xfail on the class, by a fixture or
    by a hook: such a case always fails.

    Attributes
    ----------
    backend : str
        The name of an installed backend, or "distribution/name".
    makers : tuple of ArrayMaker
        Makers of arrays of types other than numpy.ndarray, torch.Tensor and cupy.ndarray.
    """

    backend: str
    makers: tuple[ArrayMaker, ...] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test per case; called by pytest."""
        if "case" not in metafunc.fixturenames:
            return
        if any(metafunc.definition.iter_markers("xfail")):
            raise ConformanceError(f"{type(self).__name__} is marked xfail; instead, remove the claim that fails")
        # This module imports pytest, which `lsm check` does not need.
        import_module("lsm._conformance.expected").refuse_xfail(metafunc.config, BackendConformance)
        found = cases(self.backend, self.makers)
        metafunc.parametrize("case", found, ids=[case.name for case in found])

    def test_contract(self, case: Case) -> None:
        """Run one case."""
        case.run()
