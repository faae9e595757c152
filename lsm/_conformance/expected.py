"""Under pytest, no case of the kit may be marked as expected to fail, by any means."""

from collections.abc import Generator
from typing import Any

import pytest

_NAME = "lsm: no case is expected to fail"


def refuse_xfail(config: pytest.Config, kit: type) -> None:
    """From now on, fail the cases of subclasses of `kit` that pytest would report as xfailed or xpassed.

    A case can be marked in many ways: on a class, in a hook of a conftest, by a fixture or a call while it runs, or
    with ``run=False``. All of them show in pytest's report of the case.
    """
    if not config.pluginmanager.has_plugin(_NAME):
        config.pluginmanager.register(_NoXfail(kit), _NAME)


class _NoXfail:
    """A pytest plugin that edits the reports of the kit's cases."""

    def __init__(self, kit: type) -> None:
        self.kit = kit

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest's own hook, which marks the report as expected
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, pytest.TestReport]:
        report: pytest.TestReport = yield
        if hasattr(report, "wasxfail") and self._is_case(item):
            result = "" if call.excinfo is None else f"\n{call.excinfo.exconly()}"
            report.outcome = "failed"
            report.longrepr = (
                f"{item.name}: is expected to fail ({report.wasxfail or 'no reason given'}); "
                f"instead, remove the claim that fails{result}"
            )
            del report.wasxfail
        return report

    def _is_case(self, item: pytest.Item) -> bool:
        cls = getattr(item, "cls", None)
        return isinstance(cls, type) and issubclass(cls, self.kit) and "case" in getattr(item, "fixturenames", ())
