"""Two runs side by side: what became slower or faster, and whether by more than a machine varies.

docs/benchmarks.md says what counts as slower, and what is not judged.
"""

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from lsm.bench.peers import is_wanted
from lsm.bench.report import BEST, FEW_SAMPLES, WRONG, Line, Remark, Table, number, times
from lsm.bench.result import Entry, Result, Row

# What was found, as an exit code; where nothing is judged, nothing has been found to be as fast as before.
SAME, WORSE, NOTHING_COMMON, UNDECIDED = 0, 1, 2, 3
UNJUDGED = "no backend is ranked in both runs, with samples enough in an undisturbed row; measure again"

# What of the machine and the libraries would explain a change.
EXPLAINING = ("processor", "n_processors", "gpu", "system", "caches", "threads", "versions", "environment")


class Comparison(NamedTuple):
    """What the comparison of two runs found."""

    tables: list[Table]
    remarks: list[Remark]
    code: int


def compared(old: Result, new: Result, tolerance: float, name: str) -> Comparison:
    """Hold a run to another, which `name` names."""
    lines: list[tuple[float, Line]] = []
    worse: list[str] = []
    broken: list[str] = []
    unjudged: list[str] = []
    marks: list[str] = []
    changed = {library for library, _ in old.header.versions.items() ^ new.header.versions.items()}
    olds = {(row.case, row.threads, row.device): row for row in old.rows}
    for row in new.rows:
        if (old_row := olds.get((row.case, row.threads, row.device))) is None:
            continue
        before = {entry.label: entry for entry in old_row.implementations if entry.is_ranked}
        now = {entry.label: entry for entry in row.implementations}
        broken += _broken(before, now, row, new)
        pairs = {label: (then, now[label]) for label, then in before.items() if label in now and now[label].is_ranked}
        ratios = {label: (entry.us or 0) / (then.us or 1) for label, (then, entry) in pairs.items()}
        # Peers whose version is the same say how fast the machine is.
        measures = {label for label in pairs if now[label].backend is None and now[label].library not in changed}
        is_disturbed = old_row.is_disturbed(old.header.n_processors) or row.is_disturbed(new.header.n_processors)
        for label, (then, entry) in pairs.items():
            ratio, others = ratios[label], [ratios[other] for other in measures - {label}]
            relative = ratio / statistics.median(others) if others else None
            slower, faster = min(ratio, relative or ratio), 1 / max(ratio, relative or ratio)
            cells = [row.label, label, number(then.us), number(entry.us), times(ratio), times(relative)]
            mark, n_samples = "", min(len(then.samples_us), len(entry.samples_us))
            if entry.backend and (is_disturbed or n_samples < FEW_SAMPLES):
                unjudged.append(f"{label}, {row.label}")
            elif entry.backend:
                mark = WRONG if slower > tolerance else BEST if faster > tolerance else ""
                marks.append(mark)
            if mark == WRONG:
                us = f"{cells[2]} to {cells[3]} us, {times(ratio)}"
                worse.append(f"{label}, {row.label}: {us}" + f", {times(relative)} relative to peers" * bool(relative))
            lines.append((-slower, (cells, mark)))
    if not lines and not broken:
        text = f"{name!r} has nothing ranked in a row that this run has too; compare runs of the same choice"
        return Comparison([], [("Not compared", [text])], NOTHING_COMMON)
    headers = [(about, getattr(old.header, about), getattr(new.header, about)) for about in EXPLAINING]
    differences = [f"{about}: {before} then, {now} now" for about, before, now in headers if before != now]
    remarks = [
        ("Nothing was judged", [UNJUDGED] * (not broken and not marks)),
        (f"Slower by more than {tolerance:g}", worse),
        ("Not right any more, missing, or raises now", sorted(broken)),
        (f"Not judged: others used the processors, or fewer than {FEW_SAMPLES} samples", unjudged),
        ("Not the same in both runs", differences),
    ]
    since = f"{old.header.date}, lsm {old.header.versions.get('lsm')}, commit {old.header.commit or 'unknown'}"
    heads = ["row", "implementation", "old us", "new us", "new/old", "relative to peers"]
    counts = f"{marks.count(WRONG)} slower and {marks.count(BEST)} faster by more than {tolerance:g}"
    note = f"of lsm: {counts}, both by the clock and relative to the peers in the same row whose version is the same"
    table = Table(f"compared with {name} ({since})", heads, [line for _, line in sorted(lines)], [note])
    code = WORSE if worse or broken else SAME if marks else UNDECIDED
    return Comparison([table] * bool(lines), [remark for remark in remarks if remark[1]], code)


def _broken(before: dict[str, Entry], now: dict[str, Entry], row: Row, new: Result) -> Iterator[str]:
    """The backends that were ranked and are not any more, though asked for; one way of two may have had no time."""
    names = {entry.name for entry in now.values()}
    for label, then in before.items():
        if then.backend is None:
            continue
        if label in now:
            if not now[label].is_ranked:
                yield f"{label}, {row.label}: {now[label].error or 'the error is beyond the bound'}"
        elif then.name not in names and is_wanted(then.name, new.header.wanted):
            yield f"{label}, {row.label}: {row.absent.get(then.name) or new.absent.get(then.name) or 'missing'}"
