"""The kit for authors of backends: it holds a backend to everything that it claims.

In a test of the plugin, with pytest::

    from lsm.testing import BackendConformance

    class TestMine(BackendConformance):
        backend = "mine"

Without a test, and with a report: ``lsm check mine``, or `check_backend`.
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

    A backend that cannot be used here is an error, not a skip. No case may be marked as expected to fail: one that is,
    on the class, by a fixture or by a hook, fails whether the claim holds or not.

    Attributes
    ----------
    backend : str
        The backend, as `lsm.list_backends` has it, or "distribution/name". It must be installed.
    makers : tuple of ArrayMaker
        How to make arrays of types that the kit does not know. It knows numpy.ndarray, torch.Tensor and cupy.ndarray.
    """

    backend: str
    makers: tuple[ArrayMaker, ...] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test of each case; pytest calls this."""
        if "case" not in metafunc.fixturenames:
            return
        if any(metafunc.definition.iter_markers("xfail")):
            raise ConformanceError(f"{type(self).__name__} is marked xfail: a claim holds, or it is not to be made")
        # It imports pytest, which the kit's other face does without.
        import_module("lsm._conformance.expected").refuse_xfail(metafunc.config, BackendConformance)
        found = cases(self.backend, self.makers)
        metafunc.parametrize("case", found, ids=[case.name for case in found])

    def test_contract(self, case: Case) -> None:
        """Run one case."""
        case.run()
