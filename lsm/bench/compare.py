"""Two runs beside each other: what became slower or faster, and whether beyond what a machine does by itself.

A machine is not as fast today as yesterday. The peers in a row, measured in the same turns and of the same version as
before, tell by how much: the median of their ratios is the *drift* of the row. A backend counts as slower if it is so
both by the clock and beside the peers. The limit is no such measure: it drifts by itself. Where others wanted the same
processors no figure helps: such a row is shown and not judged, and neither is a backend that had few turns. A backend
that was ranked and is not any more is broken, whatever its times were.
"""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lsm.bench.contestants import is_wanted
from lsm.bench.layout import BEST, WRONG, Column, Line, Remark, Table
from lsm.bench.result import Entry, Header, Result, Row
from lsm.bench.wording import FEW_TURNS, is_disturbed, number, times, where, who
from lsm.bench.workloads import Case

UNJUDGED = "no backend is ranked in both runs, with turns enough in a row without neighbours; measure anew"

# All that makes two rows the same one: workload, operation, array, threads, device.
Key = tuple[object, ...]
Rows = dict[Key, tuple[Row, dict[str, Entry]]]


@dataclass(frozen=True)
class Change:
    """A contestant in a row of both runs; times in microseconds."""

    row: Row
    old: Entry
    new: Entry
    drift: float | None  # of the row; None where no other was measured both times
    is_disturbed: bool = False  # in either run

    @property
    def is_judged(self) -> bool:
        """Whether it counts: a backend, a plugin's too, and no peer, with turns enough in a row without neighbours."""
        return self.new.backend is not None and not self.is_disturbed and not self.has_few_turns

    @property
    def has_few_turns(self) -> bool:
        """Whether there are so few times, in either run, that one bad moment changes their median."""
        return min(len(self.old.turns_us), len(self.new.turns_us)) < FEW_TURNS

    @property
    def by_the_clock(self) -> float:
        """The new time over the old one."""
        return (self.new.us or 0) / (self.old.us or 1)

    @property
    def beside_others(self) -> float | None:
        """The same over the drift."""
        return None if self.drift is None else self.by_the_clock / self.drift

    @property
    def slower(self) -> float:
        """How many times as slow it is for certain: the smaller of the two."""
        return min(self.by_the_clock, self.beside_others or self.by_the_clock)

    @property
    def faster(self) -> float:
        """How many times as fast it is for certain."""
        return 1 / max(self.by_the_clock, self.beside_others or self.by_the_clock)


@dataclass(frozen=True)
class Comparison:
    """What there is to say of two runs."""

    tables: tuple[Table, ...]
    remarks: tuple[Remark, ...]
    is_worse: bool
    is_judged: bool  # whether anything is: where nothing is, nothing has been found to be as fast as before


def compared(old: Result, new: Result, tolerance: float, name: str, wanted: tuple[str, ...] = ()) -> Comparison:
    """Hold a run to another, which `name` names; of `wanted`, parts of names, or of all, nobody may be missing.

    Raises
    ------
    ValueError
        They have no row and contestant in common.
    """
    olds, news = _rows(old), _rows(new)
    changes, broken = [], []
    for key in [key for key in olds if key in news]:
        (old_row, before), (row, now) = olds[key], news[key]
        was_disturbed = is_disturbed(old_row, old.header.n_processors) or is_disturbed(row, new.header.n_processors)
        ratios = _peer_ratios(before, now, old.header, new.header)
        for name_of in [name for name in before if name in now]:
            then, entry = before[name_of], now[name_of]
            if then.is_ranked and entry.is_ranked:
                others = [ratio for other, ratio in ratios.items() if other != name_of]
                drift = statistics.median(others) if others else None
                changes.append(Change(row, then, entry, drift, was_disturbed))
            elif then.is_ranked and entry.backend is not None:
                broken.append(f"{name_of}, {where(row)}: {entry.error or 'the error is beyond the bound'}")
        broken += [f"{gone}, {where(row)}: {why}" for gone, why in _vanished(old_row, row, new, wanted)]
    if not changes and not broken:
        raise ValueError(f"{name!r} has nobody ranked in a row that this run has too; compare runs of the same choice")
    changes.sort(key=lambda change: (-change.slower, where(change.row), who(change.new)))
    slower = [change for change in changes if change.is_judged and change.slower > tolerance]
    is_judged = bool(broken) or any(change.is_judged for change in changes)
    unjudged = list(dict.fromkeys(where(change.row) for change in changes if change.is_disturbed))
    few = [f"{who(c.new)}, {where(c.row)}" for c in changes if c.new.backend is not None and c.has_few_turns]
    remarks = (
        ("Nothing was judged", [] if is_judged else [UNJUDGED]),
        (f"Slower by more than {tolerance:g}", [_line(change) for change in slower]),
        ("Not right any more, missing, or raises now", sorted(broken)),
        ("Not judged, for others wanted the same processors", unjudged),
        (f"Not judged, for there were fewer than {FEW_TURNS} turns", few),
        ("Not the same in both runs", list(_differences(old.header, new.header))),
        (f"Only in {name}", list(_only(olds, news))),
        ("Only in this run", list(_only(news, olds))),
    )
    return Comparison(
        tables=(_table(old.header, changes, tolerance, name),) if changes else (),
        remarks=tuple((title, tuple(lines)) for title, lines in remarks if lines),
        is_worse=bool(slower or broken),
        is_judged=is_judged,
    )


def _vanished(old: Row, new: Row, run: Result, wanted: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The backends that were ranked and have no entry of any kind now, though asked for; and why, where that is known.

    One that is not called for a new result any more, for lack of time, is still there.
    """
    there = {entry.name for entry in new.contestants}
    gone = {e.name: e.library for e in old.contestants if e.is_ranked and e.backend is not None and e.name not in there}
    for name, library in gone.items():
        if is_wanted(name, wanted):
            reasons = (absent.get(key) for absent in (new.absent, run.absent) for key in (name, library))
            yield name, next((reason for reason in reasons if reason), "missing")


def _rows(result: Result) -> Rows:
    """Every row, with its contestants by name."""
    rows: Rows = {}
    for row in result.rows:
        about = (row.workload, row.dtype, row.out_dtype, row.data, tuple(row.shape), row.axis, row.order, row.op)
        rows[(*about, row.sweep, row.threads, row.device)] = row, {who(entry): entry for entry in row.contestants}
    return rows


def has_any(old: Result, cases: Iterable[Case], n_threads: Iterable[int], device: str) -> bool:
    """Whether a run has a row with somebody ranked among those that are about to be measured."""
    there = {key for key, (_, entries) in _rows(old).items() if any(entry.is_ranked for entry in entries.values())}
    wanted = (
        (c.workload, c.dtype, c.result_dtype, c.data, c.shape, c.axis, c.order, c.op, c.sweep, n, device)
        for c in cases
        for n in n_threads
    )
    return any(key in there for key in wanted)


def _peer_ratios(before: dict[str, Entry], now: dict[str, Entry], old: Header, new: Header) -> dict[str, float]:
    """How many times as long each peer takes whose version is the same as before."""
    return {
        name: entry.us / before[name].us  # type: ignore[operator]
        for name, entry in now.items()
        if entry.backend is None
        and old.versions.get(entry.library) == new.versions.get(entry.library)
        and entry.is_ranked
        and name in before
        and before[name].is_ranked
    }


def _table(old: Header, changes: list[Change], tolerance: float, name: str) -> Table:
    """All changes, the worst first."""
    heads = [("row", 0), ("contestant", 0), ("old us", 4), ("new us", 3), ("new/old", 0), ("beside others", 1)]
    lines = []
    for change in changes:
        us = [number(entry.us or 0) for entry in (change.old, change.new)]
        cells = (where(change.row), who(change.new), *us, times(change.by_the_clock), times(change.beside_others))
        mark = WRONG if change.slower > tolerance else BEST if change.faster > tolerance else ""
        lines.append(Line(cells, mark if change.is_judged else ""))
    columns = tuple(Column(head, i > 1, dropped) for i, (head, dropped) in enumerate(heads))
    since = f"{old.date}, lsm {old.versions.get('lsm', 'unknown')}, commit {old.commit or 'unknown'}"
    faster = sum(line.mark == BEST for line in lines)
    slower = sum(line.mark == WRONG for line in lines)
    note = f"of lsm: {slower} slower and {faster} faster by more than {tolerance:g}, both by the clock and beside the "
    note += "peers in the same row whose version is the same (the median of what became of them)"
    return Table(f"compared with {name} ({since})", columns, tuple(lines), (note,))


def _line(change: Change) -> str:
    beside = "" if change.beside_others is None else f", {times(change.beside_others)} beside the others"
    us = f"{number(change.old.us or 0)} to {number(change.new.us or 0)} us"
    return f"{who(change.new)}, {where(change.row)}: {us}, {times(change.by_the_clock)}{beside}"


def _differences(old: Header, new: Header) -> Iterator[str]:
    """What of the machine and the libraries would explain a change by itself."""
    for name in ("processor", "n_processors", "gpu", "system", "caches", "threads"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            yield f"{name.replace('n_processors', 'processors')}: {_shown(before)} then, {_shown(now)} now"
    for kind in ("versions", "instruction_levels", "environment"):
        before, now = getattr(old, kind), getattr(new, kind)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                of = {"versions": key, "instruction_levels": f"instructions of {key}"}.get(kind, f"variable {key}")
                yield f"{of}: {_shown(before.get(key))} then, {_shown(now.get(key))} now"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _only(these: Rows, others: Rows) -> Iterator[str]:
    """Rows and contestants that the other run has not."""
    for key, (row, entries) in these.items():
        if key not in others:
            yield where(row)
        elif missing := [name for name in entries if name not in others[key][1]]:
            yield f"{where(row)}: {', '.join(missing)}"
