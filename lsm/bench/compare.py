"""Two runs side by side: what became slower or faster, and whether by more than a machine varies.

A machine is not as fast today as yesterday. The peers in a row whose version is the same say by how much: the median of
their ratios is the *drift* of the row. A backend counts as slower if it is so both by the clock and relative to the
drift. Not judged are rows in which others used the same processors, and backends with few samples. A backend that was
ranked and is not any more counts as worse, whatever its times were.
"""

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from lsm.bench.peers import is_wanted
from lsm.bench.report import BEST, FEW_SAMPLES, WRONG, Line, Remark, Table, number, times
from lsm.bench.result import Entry, Header, Result, Row

# What was found, as an exit code; where nothing is judged, nothing has been found to be as fast as before.
SAME, WORSE, NOTHING_COMMON, UNDECIDED = 0, 1, 2, 3
UNJUDGED = "no backend is ranked in both runs, with samples enough in an undisturbed row; measure again"


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
    olds = {(row.case, row.threads, row.device): row for row in old.rows}
    for row in new.rows:
        if (old_row := olds.get((row.case, row.threads, row.device))) is None:
            continue
        before = {entry.label: entry for entry in old_row.implementations if entry.is_ranked}
        now = {entry.label: entry for entry in row.implementations}
        broken += _broken(before, now, row, new)
        ranked = [label for label in before if label in now and now[label].is_ranked]
        ratios = {label: (now[label].us or 0) / (before[label].us or 1) for label in ranked}
        is_disturbed = old_row.is_disturbed(old.header.n_processors) or row.is_disturbed(new.header.n_processors)
        for label, ratio in ratios.items():
            then, entry = before[label], now[label]
            others = [r for other, r in ratios.items() if other != label and _is_measure(now[other], old, new)]
            relative = ratio / statistics.median(others) if others else None
            slower, faster = min(ratio, relative or ratio), 1 / max(ratio, relative or ratio)
            cells = [row.label, label, number(then.us), number(entry.us), times(ratio), times(relative)]
            mark = ""
            if entry.backend is None:
                pass
            elif is_disturbed or min(len(then.samples_us), len(entry.samples_us)) < FEW_SAMPLES:
                unjudged.append(f"{label}, {row.label}")
            else:
                mark = WRONG if slower > tolerance else BEST if faster > tolerance else ""
                marks.append(mark)
            if mark == WRONG:
                us = f"{cells[2]} to {cells[3]} us, {times(ratio)}"
                worse.append(f"{label}, {row.label}: {us}" + f", {times(relative)} relative to peers" * bool(relative))
            lines.append((-slower, (cells, mark)))
    if not lines and not broken:
        text = f"{name!r} has nothing ranked in a row that this run has too; compare runs of the same choice"
        return Comparison([], [("Not compared", [text])], NOTHING_COMMON)
    remarks = [
        ("Nothing was judged", [UNJUDGED] * (not broken and not marks)),
        (f"Slower by more than {tolerance:g}", worse),
        ("Not right any more, missing, or raises now", sorted(broken)),
        (f"Not judged: others used the processors, or fewer than {FEW_SAMPLES} samples", unjudged),
        ("Not the same in both runs", _differences(old.header, new.header)),
    ]
    since = f"{old.header.date}, lsm {old.header.versions.get('lsm')}, commit {old.header.commit or 'unknown'}"
    heads = ["row", "implementation", "old us", "new us", "new/old", "relative to peers"]
    counts = f"{marks.count(WRONG)} slower and {marks.count(BEST)} faster by more than {tolerance:g}"
    note = f"of lsm: {counts}, both by the clock and relative to the peers in the same row whose version is the same"
    table = Table(f"compared with {name} ({since})", heads, [line for _, line in sorted(lines)], [note])
    code = WORSE if worse or broken else SAME if marks else UNDECIDED
    return Comparison([table] * bool(lines), [remark for remark in remarks if remark[1]], code)


def _is_measure(peer: Entry, old: Result, new: Result) -> bool:
    """Whether an implementation says how fast the machine is: a peer whose version is the same as before."""
    versions = (result.header.versions.get(peer.library) for result in (old, new))
    return peer.backend is None and len(set(versions)) == 1


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


def _differences(old: Header, new: Header) -> list[str]:
    """What of the machine and the libraries would explain a change."""
    names = ("processor", "n_processors", "gpu", "system", "caches", "threads", "versions", "environment")
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in names]
    return [f"{name}: {before} then, {now} now" for name, before, now in pairs if before != now]
