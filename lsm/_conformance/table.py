"""A report of the kit as text: a table for each kind of array, then the failed and the skipped cases."""

import textwrap
from collections.abc import Iterator

from lsm._conformance.run import Outcome, Report

_CELLS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}


def lines(report: Report, n_columns: int) -> Iterator[str]:
    """Lay a report out for a terminal."""
    about, outcomes = report.about, report.outcomes
    libraries = ", ".join(f"{name} {version}" for name, version in about["libraries"].items())
    yield f"{about['backend']}, from {about['distribution']} {about['distribution_version']}"
    yield f"package {about['package']}, sha256 {about['sha256']}"
    yield f"lsm {about['lsm']}, Python {about['python']}, {libraries}, {about['platform']}"
    claimed = "claimed" if about["claims"]["same_bits"] else "not claimed"
    yield f"same_bits is {claimed}; the numbers are errors in ulps, with ! beyond max_ulp"
    yield ""
    width = max(len(o.check) for o in outcomes)
    for outcome in outcomes:
        if not outcome.array_type:
            yield f"{outcome.check:<{width}}  {_CELLS[outcome.outcome]}"
    for array_type, device in dict.fromkeys((o.array_type, o.device) for o in outcomes if o.array_type):
        here = [o for o in outcomes if (o.array_type, o.device) == (array_type, device)]
        yield ""
        yield from _table(f"{array_type} on {device}", here, about["claims"]["max_ulp"], width)
    yield ""
    yield from _details("failed", outcomes, n_columns)
    yield from _details("skipped", outcomes, n_columns)
    counts = (f"{report.count(outcome)} {outcome}" for outcome in _CELLS)
    yield f"{about['backend']}: {', '.join(counts)}"


def _table(head: str, outcomes: list[Outcome], bounds: dict[str, float], width: int) -> Iterator[str]:
    """One row for each check, one column for each dtype."""
    dtypes = list(dict.fromkeys(o.dtype for o in outcomes if o.dtype))
    yield f"{head:<{width}}" + "".join(f"  {dtype:>10}" for dtype in dtypes)
    if dtypes:
        yield f"{'max_ulp':<{width}}" + "".join(f"  {bounds[dtype]:>10g}" for dtype in dtypes)
        largest = [max((o.ulps or 0 for o in outcomes if o.dtype == dtype), default=0) for dtype in dtypes]
        yield f"{'largest error':<{width}}" + "".join(f"  {ulps:>10.3g}" for ulps in largest)
    for check in dict.fromkeys(o.check for o in outcomes):
        row = {o.dtype: _cell(o) for o in outcomes if o.check == check}
        cells = [row[""]] if "" in row else [row.get(dtype, "") for dtype in dtypes]
        yield (f"{check:<{width}}" + "".join(f"  {cell:>10}" for cell in cells)).rstrip()


def _cell(outcome: Outcome) -> str:
    """The text of a cell: the error if one was measured."""
    if outcome.ulps is not None:
        return f"{outcome.ulps:.3g}" + (" !" if outcome.outcome == "failed" else "")
    return _CELLS[outcome.outcome]


def _details(which: str, outcomes: list[Outcome], n_columns: int) -> Iterator[str]:
    """Each reason once, with its cases below."""
    by_detail: dict[str, list[str]] = {}
    for o in outcomes:
        if o.outcome == which:
            where = ", ".join(text for text in (o.check, o.dtype, o.device and f"{o.array_type} on {o.device}") if text)
            by_detail.setdefault(o.detail, []).append(where)
    for detail, cases in by_detail.items():
        yield from textwrap.wrap(f"{which}: {detail}", max(n_columns, 40), subsequent_indent="  ")
        yield from (f"    {case}" for case in cases)
    if by_detail:
        yield ""
