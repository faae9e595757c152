"""What a report says of a result, as headed tables of texts."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from statistics import geometric_mean, median
from typing import NamedTuple

from lsm.bench.options import MAP
from lsm.bench.result import Entry, Result, Row, reference

BEST, WRONG, RAISED = "best", "wrong", "raised"  # what a line can be marked as
FEW_SAMPLES = 3  # of which a median says more than one sample does
MOST_NAMED_ROWS = 3  # before a line counts the others


# Columns that a narrow terminal does without, the last ones first; without figures they are not shown at all.
DROPPED = ["max ulp", "of limit", "GB/s", "p20..p80", "of frame", "first ms", "max error", "extra memory"]
DROPPED += ["relative to peers", "fastest in", "ranked in rows", "wrong in", "new us", "old us"]

LEGEND = (
    "ratio: how many times as long as {} with out=, the median of the ratios within each round; 1x is as fast",
    "geometric mean: of the ratios in the rows in which an implementation is ranked, which are not the same for all",
    "GB/s: each input read once and each result written once, over the median time",
    "of limit: the share of what a copy (forward) or an addition (backward) of the same bytes reaches",
    "max ulp, max error: against the exact values on the same data, in ulps of each element, and absolute",
    "of frame: in ulps of the largest element of each frame; peers, which declare no bound, are held to this one",
    "new result: called without out=; first ms: the first call, with what is compiled or loaded in it",
)

Line = tuple[list[str], str]  # a text for each column, and a mark
Remark = tuple[str, list[str]]  # a title, and lines
Cells = dict[tuple[int, int], float]  # of a map, by classes and inner


class Table(NamedTuple):
    """A titled table, with the notes below it."""

    title: str
    heads: list[str]
    lines: list[Line]
    notes: list[str] = []  # noqa: RUF012 (never changed)
    marks: dict[tuple[int, int], str] = {}  # noqa: RUF012 (of single cells, by line and column)


class Map(NamedTuple):
    """The cells of one operation, dtype, kind of data and number of threads."""

    title: str
    classes: list[int]
    inners: list[int]
    ratios: Cells  # the time of the fastest peer over lsm's
    ns: Cells  # of lsm, an element
    limit: str  # what the machine itself takes, as a text, if that was measured
    table: Table  # a line for each number of classes, a column for each inner; what is below 1 stands out


class Report(NamedTuple):
    """All that is shown of a result; the calls in Markdown only."""

    head: list[str]
    rows: list[Table]
    overall: list[Table]
    remarks: list[Remark]
    calls: Remark


def number(value: float | None) -> str:
    """Three digits at least, and none behind the point from 100 on."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    """A ratio as a multiplier."""
    return "" if ratio is None else f"{number(ratio)}x"


def plural(n: int, word: str) -> str:
    """'1 thread', '2 threads'."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{number(low)}..{number(high)}"


def _size(n_bytes: int) -> str:
    unit = max(0, min(3, (len(str(n_bytes)) - 1) // 3))
    return f"{number(n_bytes / 1000**unit)} {('B', 'kB', 'MB', 'GB')[unit]}" if n_bytes else "0 B"


def report(result: Result) -> Report:
    """Everything that is shown of a result."""
    calls = {f"{e.label}, {row.case.op}: {e.call}" for row in result.rows for e in row.implementations}
    rows = [row for row in result.rows if row.case.workload != MAP]
    return Report(
        head=list(_head(result)),
        rows=[row_table(row, result.header.n_processors) for row in rows],
        overall=[*_overall(rows), *(found.table for found in maps(result))],
        remarks=[(title, lines) for title, lines in _remarks(result) if lines],
        calls=("How each was called", sorted(calls)),
    )


def _head(result: Result) -> Iterator[str]:
    """What was measured on and with."""
    header = result.header
    caches = ", ".join(f"{name} {n_bytes // 2**10:,} KiB" for name, n_bytes in header.caches.items())
    yield f"processor: {header.processor}, {plural(header.n_processors, 'processor')}, {caches or 'caches unknown'}"
    yield f"GPU: {header.gpu or 'none'}"
    yield f"versions: {', '.join(f'{name} {version}' for name, version in header.versions.items())}"
    threads = ", ".join(map(str, header.threads))
    yield f"threads: {threads} for each implementation; rounds: {header.rounds}"
    yield f"thread pools: {'; '.join(header.pools)}"
    if header.environment:
        yield "environment: " + " ".join(f"{name}={value}" for name, value in header.environment.items())
    yield f"measured: {header.date} on {header.system}, commit {header.commit or 'unknown'}, by {header.command}"
    if result.interrupted:
        yield f"interrupted: after {plural(len(result.rows), 'row')}; what was measured is here"


def row_table(row: Row, n_processors: int) -> Table:
    """One row, best first; what cannot be compared stands below the others and has no rank."""
    entries = row.best_first()
    marks = [RAISED if e.error is not None else "" if e.is_right else WRONG for e in entries]
    columns = {
        "#": [mark or str(i) for i, mark in enumerate(marks, 1)],
        "implementation": [e.label for e in entries],
        "us": [number(e.us) for e in entries],
        "ratio": [times(e.ratio) for e in entries],
        "p20..p80": [_span(e.p20_ratio, e.p80_ratio) for e in entries],
        "GB/s": [number(e.gb_s) for e in entries],
        "of limit": ["" if e.share is None else f"{e.share:.2f}" for e in entries],
        "max ulp": [_ulps(e, e.max_ulp, e.bound_is_declared) for e in entries],
        "of frame": [_ulps(e, e.max_frame_ulp, not e.bound_is_declared) for e in entries],
        "max error": ["" if e.max_abs_error is None else f"{e.max_abs_error:.1e}" for e in entries],
        "first ms": [number(e.first_call_ms) for e in entries],
        "extra memory": ["" if e.extra_bytes is None else _size(e.extra_bytes) for e in entries],
    }
    columns = {head: cells for head, cells in columns.items() if any(cells) or head not in DROPPED}
    if entries and entries[0].is_ranked:
        marks[0] = BEST
    lines = [(list(cells), mark) for *cells, mark in zip(*columns.values(), marks, strict=True)]
    return Table(row.label, list(columns), lines, list(_notes(row, n_processors)))


def _ulps(entry: Entry, ulps: float | None, is_held: bool) -> str:
    """An error, beside the bound where it is held to one and beyond it."""
    if ulps is None or math.isinf(ulps):
        return "not finite" if is_held and not entry.is_right and entry.error is None else ""
    return f"{ulps:.3g} > {entry.bound_ulp:g}" if is_held and ulps > (entry.bound_ulp or math.inf) else f"{ulps:.3g}"


def _notes(row: Row, n_processors: int) -> Iterator[str]:
    """The notes below a row's table."""
    if row.limit is not None:
        took = f"{number(row.limit.us)} us ({_span(row.limit.p20_us, row.limit.p80_us)})"
        yield f"limit: {row.limit.name} of the same {_size(row.bytes)}, {took}, {number(row.limit.gb_s)} GB/s"
    for entry in row.implementations:
        if entry.error is not None:
            yield f"{entry.label} raised after {plural(len(entry.samples_us), 'sample')}: {entry.error}"
    counts = {e.label: len(e.samples_us) for e in row.implementations if e.error is None}
    if few := [label for label, n in counts.items() if n < FEW_SAMPLES]:
        yield f"{plural(min(counts.values()), 'sample')} only of {', '.join(few)}, for lack of time"
    if beyond := [e.label for e in row.implementations if round(e.share or 0, 2) > 1]:
        yield f"beyond the limit, so caches or neighbours had a part in it: {', '.join(beyond)}"
    if row.n_checked_frames < row.case.n_frames:
        yield f"errors: of {row.n_checked_frames:,} of {row.case.n_frames:,} frames"
    if row.is_disturbed(n_processors):
        yield f"others used {row.others:.1f} processors meanwhile: not reliable"


def _overall(rows: list[Row]) -> Iterator[Table]:
    """For each operation the geometric means of what is ranked, best first, and what more threads brought."""
    for op in dict.fromkeys(row.case.op for row in rows):
        here = [row for row in rows if row.case.op == op]
        entries, ratios = [e for row in here for e in row.implementations], defaultdict(list)
        for entry in entries:
            if entry.is_ranked and entry.ratio:
                ratios[entry.label].append(entry.ratio)
        firsts = [row.best_first()[0].label for row in here if row.implementations]
        wrong = [e.label for e in entries if e.error is None and not e.is_right]
        lines: list[Line] = []
        for name, some in sorted(ratios.items(), key=lambda item: (geometric_mean(item[1]), len(item[1]))):
            counts = [f"{len(some)} of {len(here)}", str(firsts.count(name)), str(wrong.count(name))]
            cells = [str(len(lines) + 1), name, times(geometric_mean(some)), *counts]
            lines.append((cells, "" if lines else BEST))
        if lines:
            of = reference(here)
            heads = ["#", "implementation", "mean ratio", "ranked in rows", "fastest in", "wrong in"]
            yield Table(f"{op}: time over that of {of.name if of else 'lsm'}, geometric mean", heads, lines)
        ups = speed_ups(here)
        if len(counts_of := sorted({n for by in ups.values() for n in by})) > 1:
            lines = [([name, *(times(by.get(n)) for n in counts_of)], "") for name, by in ups.items()]
            title = f"{op}: how many times as fast as with {plural(counts_of[0], 'thread')}, geometric mean"
            yield Table(title, ["implementation", *(plural(n, "thread") for n in counts_of)], lines)


def maps(result: Result) -> list[Map]:
    """The maps that a run has measured."""
    groups = defaultdict(list)
    for row in result.rows:
        if row.case.workload == MAP:
            words = [row.case.op, row.case.dtype, *[row.case.data] * (row.case.data != "logits")]
            groups[", ".join([*words, plural(row.threads, "thread")])].append(row)
    return [_map(title, rows, result.header.n_processors) for title, rows in groups.items()]


def _map(title: str, rows: list[Row], n_processors: int) -> Map:
    fastest: dict[tuple[int, int], Entry] = {}
    ns: Cells = {}
    limits: list[float] = []
    for row in rows:
        cell, base, n_elements = (row.case.n_classes, row.case.inner), reference([row]), math.prod(row.case.shape)
        limits += [row.limit.us * 1e3 / n_elements] if row.limit else []
        if base and base.is_ranked:
            ns[cell] = (base.us or math.nan) * 1e3 / n_elements
            # Also those whose error is beyond the bound, as PyTorch's is in many cells: a line says in how many.
            peers = [e for e in row.implementations if e.backend is None and e.error is None and e.ratio]
            fastest |= {cell: min(peers, key=lambda entry: entry.ratio or math.inf)} if peers else {}
    ratios = {cell: entry.ratio or math.nan for cell, entry in fastest.items()}
    limit = f"{rows[0].limit.name} {median(limits):.2f}" if rows[0].limit else ""
    notes = []
    if ratios:
        (n_classes, inner), worst = min(ratios.items(), key=lambda item: item[1])
        n_below, where = sum(round(ratio, 2) < 1 for ratio in ratios.values()), f"{n_classes} classes, inner {inner}"
        text = f"geometric mean {geometric_mean(ratios.values()):.2f}; {n_below} of {len(ratios)} cells below 1"
        notes = [f"{text}; worst {worst:.2f} ({where}, {fastest[n_classes, inner].name})"]
        if n_wrong := sum(not entry.is_right for entry in fastest.values()):
            notes.append(f"the error of the fastest peer is beyond the bound in {n_wrong} of {len(ratios)} cells")
    if ns:
        text = f"ns an element: {min(ns.values()):.2f} to {max(ns.values()):.2f}, median {median(ns.values()):.2f}"
        notes.append(text + f"; {limit} for the same bytes" * bool(limit))
    if n_disturbed := sum(row.is_disturbed(n_processors) for row in rows):
        notes.append(f"others used the processors in {n_disturbed} of {len(rows)} cells: not reliable")
    of, head = reference(rows), "the fastest peer's time over that of"
    classes, inners = sorted({row.case.n_classes for row in rows}), sorted({row.case.inner for row in rows})
    texts = [[str(n), *(number(ratios.get((n, inner))) for inner in inners)] for n in classes]
    below = [cell for cell, ratio in ratios.items() if round(ratio, 2) < 1]
    table = Table(
        f"{title}: {head} {of.name if of else 'lsm'}; classes by inner",
        ["classes", *map(str, inners)],
        [(cells, "") for cells in texts],
        notes,
        {(classes.index(n), 1 + inners.index(inner)): WRONG for n, inner in below},
    )
    return Map(title, classes, inners, ratios, ns, limit, table)


def speed_ups(rows: Iterable[Row]) -> dict[str, dict[int, float]]:
    """How many times as fast each implementation is with more threads than with the fewest, by the number; the mean."""
    found: dict[tuple[object, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        for entry in (e for e in row.implementations if e.is_ranked):
            found[row.case, entry.label][row.threads] = entry.us or math.nan
    ratios: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (_, name), us in found.items():
        for n_threads, took in us.items():
            ratios[name][n_threads].append(us[min(us)] / took)
    return {name: {n: geometric_mean(some) for n, some in sorted(by.items())} for name, by in ratios.items()}


def _remarks(result: Result) -> Iterator[Remark]:
    """What holds for more than one row."""
    entries = [(e, row) for row in result.rows for e in row.implementations]
    absent = [f"{name}: {reason}" for name, reason in result.absent.items()]
    reasons = [(f"{name}: {reason}", row) for row in result.rows for name, reason in row.absent.items()]
    yield "Not measured", [*absent, *_gathered(reasons, len(result.rows))]
    wrong = [(e.label, row) for e, row in entries if e.error is None and not e.is_right]
    yield "Shown and not ranked, for the error is beyond the bound", _gathered(wrong, len(result.rows))
    raised = [(f"{e.label}: {e.error}", row) for e, row in entries if e.error is not None]
    yield "Raised while it was measured", _gathered(raised, len(result.rows))
    of = reference(result.rows)
    legend = [line.format(of.name if of else "the first backend of lsm") for line in LEGEND]
    yield "How to read this", legend if result.rows else []


def _gathered(found: list[tuple[str, Row]], n_rows: int) -> list[str]:
    """Each text once, with the rows that it holds for."""
    lines = []
    for text, pairs in groupby(sorted(found, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        rows = list(dict.fromkeys(row.label for _, row in pairs))
        more = [f"and {len(rows) - MOST_NAMED_ROWS} more"] * (len(rows) > MOST_NAMED_ROWS)
        where = "every row" if len(rows) == n_rows > 1 else "; ".join([*rows[:MOST_NAMED_ROWS], *more])
        lines.append(f"{text} ({where})")
    return lines
