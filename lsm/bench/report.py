"""What a report says of a result, as headed tables of texts; as plain text, in colours on a terminal, and Markdown."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from statistics import geometric_mean, median
from typing import NamedTuple, TextIO

from lsm.bench.options import MAP
from lsm.bench.result import Entry, Result, Row, plural, reference

BEST, WRONG, RAISED = "best", "wrong", "raised"  # what a line can be marked as
STYLES = {BEST: "bold green", WRONG: "bold red", RAISED: "yellow"}
LEFT = ("implementation", "row")  # columns of text
PLAIN_COLUMNS, WIDE_COLUMNS = 120, 10_000  # of characters
FEW_SAMPLES = 3  # of which a median says more than one sample does

# Columns that are not shown without figures, and those that only a wide terminal shows.
OPTIONAL = ("p20..p80", "GB/s", "of limit", "max ulp", "of frame", "max error", "first ms", "extra memory")
WIDE = ("p20..p80", "of frame", "max error", "first ms", "old us", "new us")

LEGEND = (
    "ratio: how many times as long as {} with out=, the median of the ratios within each round; 1x is as fast",
    "geometric mean: of the ratios in the rows in which an implementation is ranked, which are not the same for all",
    "GB/s: each input read once and each result written once, over the median time",
    "of limit: the share of what a copy (forward) or an addition (backward) of the same bytes reaches",
    "max ulp, max error: against the exact values on the same data, in ulps of each element, and absolute",
    "of frame: in ulps of the largest element of each frame; peers, which declare no bound, are held to this one",
    "wrong: the error is beyond the bound, so that the time is shown and not ranked",
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


def report(result: Result) -> Report:
    """Everything that is shown of a result."""
    rows = [row for row in result.rows if row.case.workload != MAP]
    entries = [(e, row) for row in result.rows for e in row.implementations]
    reasons = [f"{name}: {reason}" for row in result.rows for name, reason in row.absent.items()]
    of = reference(result.rows)
    remarks = {
        "Not measured": [f"{name}: {reason}" for name, reason in result.absent.items()] + _counted(reasons, result),
        "Raised while it was measured": _counted([f"{e.label}: {e.error}" for e, _ in entries if e.error], result),
        "How to read this": [line.format(of.name if of else "lsm") for line in LEGEND] * bool(entries),
    }
    return Report(
        head=list(_head(result)),
        rows=[row_table(row, result.header.n_processors) for row in rows],
        overall=[*_overall(rows), *(found.table for found in maps(result))],
        remarks=[(title, lines) for title, lines in remarks.items() if lines],
        calls=("How each was called", sorted({f"{e.label}, {row.case.op}: {e.call}" for e, row in entries})),
    )


def _counted(texts: list[str], result: Result) -> list[str]:
    """Each text once, with the number of rows that it holds for."""
    return [f"{text} (in {n} of {plural(len(result.rows), 'row')})" for text, n in sorted(Counter(texts).items())]


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
    from rich.filesize import decimal

    entries = row.best_first()
    marks = [RAISED if e.error is not None else "" if e.is_right else WRONG for e in entries]
    columns = {
        "#": [mark or str(i) for i, mark in enumerate(marks, 1)],
        "implementation": [e.label for e in entries],
        "us": [number(e.us) for e in entries],
        "ratio": [times(e.ratio) for e in entries],
        "p20..p80": [f"{number(e.p20_ratio)}..{number(e.p80_ratio)}" if e.ratio else "" for e in entries],
        "GB/s": [number(e.gb_s) for e in entries],
        "of limit": ["" if e.share is None else f"{e.share:.2f}" for e in entries],
        "max ulp": [_ulps(e, e.max_ulp, e.bound_is_declared) for e in entries],
        "of frame": [_ulps(e, e.max_frame_ulp, not e.bound_is_declared) for e in entries],
        "max error": ["" if e.max_abs_error is None else f"{e.max_abs_error:.1e}" for e in entries],
        "first ms": [number(e.first_call_ms) for e in entries],
        "extra memory": ["" if e.extra_bytes is None else decimal(e.extra_bytes) for e in entries],
    }
    columns = {head: cells for head, cells in columns.items() if any(cells) or head not in OPTIONAL}
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
        took = f"{number(row.limit.us)} us ({number(row.limit.p20_us)}..{number(row.limit.p80_us)})"
        yield f"limit: {row.limit.name} of the same {number(row.bytes / 1e6)} MB, {took}, {number(row.limit.gb_s)} GB/s"
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
        us = {(row.case, e.label, row.threads): e.us or 0 for row in here for e in row.implementations if e.is_ranked}
        fewest, *more = threads = sorted({row.threads for row in here})
        if more:
            ups: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
            for (case, name, n), took in us.items():
                if first := us.get((case, name, fewest)):
                    ups[name][n].append(first / took)
            means = {name: {n: times(geometric_mean(some)) for n, some in by.items()} for name, by in ups.items()}
            lines = [([name, *(by.get(n, "") for n in threads)], "") for name, by in means.items()]
            title = f"{op}: how many times as fast as with {plural(fewest, 'thread')}, geometric mean"
            yield Table(title, ["implementation", *(plural(n, "thread") for n in threads)], lines)


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
    for row in rows:
        cell, base = (row.case.n_classes, row.case.inner), reference([row])
        if base and base.us and base.is_ranked:
            ns[cell] = base.us * 1e3 / math.prod(row.case.shape)
            # Also those whose error is beyond the bound, as PyTorch's is in many cells: a line says in how many.
            if peers := [e for e in row.implementations if e.backend is None and e.error is None and e.ratio]:
                fastest[cell] = min(peers, key=lambda entry: entry.ratio or math.inf)
    limits = [(row.limit.name, row.limit.us * 1e3 / math.prod(row.case.shape)) for row in rows if row.limit]
    limit = f"{limits[0][0]} {median(ns for _, ns in limits):.2f}" if limits else ""
    ratios = {cell: entry.ratio or math.nan for cell, entry in fastest.items()}
    below = [cell for cell, ratio in ratios.items() if round(ratio, 2) < 1]
    notes = []
    if ratios:
        n_classes, inner = worst = min(ratios, key=lambda cell: ratios[cell])
        text = (
            f"geometric mean {geometric_mean(ratios.values()):.2f}; {len(below)} of {len(ratios)} cells below 1; worst"
        )
        where = f"{n_classes} classes, inner {inner}, {fastest[worst].name}"
        notes = [f"{text} {ratios[worst]:.2f} ({where})"]
        if n_wrong := sum(not entry.is_right for entry in fastest.values()):
            notes.append(f"the error of the fastest peer is beyond the bound in {n_wrong} of {len(ratios)} cells")
    if ns:
        text = f"ns an element: {min(ns.values()):.2f} to {max(ns.values()):.2f}, median {median(ns.values()):.2f}"
        notes.append(text + f"; {limit} for the same bytes" * bool(limit))
    if n_disturbed := sum(row.is_disturbed(n_processors) for row in rows):
        notes.append(f"others used the processors in {n_disturbed} of {len(rows)} cells: not reliable")
    classes, inners = sorted({row.case.n_classes for row in rows}), sorted({row.case.inner for row in rows})
    of = reference(rows)
    table = Table(
        f"{title}: the fastest peer's time over that of {of.name if of else 'lsm'}; classes by inner",
        ["classes", *map(str, inners)],
        [([str(n), *(number(ratios.get((n, inner))) for inner in inners)], "") for n in classes],
        notes,
        {(classes.index(n), 1 + inners.index(inner)): WRONG for n, inner in below},
    )
    return Map(classes, inners, ratios, ns, limit, table)


def write(report: Report, file: TextIO) -> None:
    """Print all tables, what was fastest overall last, in colours on a terminal, and less where it is narrow."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    width = Console(file=file).width if file.isatty() else None
    console = Console(file=file, width=width or WIDE_COLUMNS, markup=False, highlight=False)

    def paragraphs(lines: Iterable[str], style: str = "") -> None:
        for line in lines:
            console.print(Text(line, style), width=width or PLAIN_COLUMNS)

    with console.capture() as capture:
        paragraphs(report.head)
        for table in (*report.rows, *report.overall):
            paragraphs(["", table.title], "bold")
            grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            shown = [i for i, head in enumerate(table.heads) if console.width >= PLAIN_COLUMNS or head not in WIDE]
            for head in (table.heads[i] for i in shown):
                is_text = head in LEFT
                grid.add_column(Text(head, "dim"), justify="left" if is_text else "right", no_wrap=not is_text)
            for line, (cells, mark) in enumerate(table.lines):
                texts = (Text(cells[i], STYLES.get(table.marks.get((line, i), ""), "")) for i in shown)
                grid.add_row(*texts, style=STYLES.get(mark, ""))
            console.print(grid)
            paragraphs(table.notes, "dim")
        for title, lines in report.remarks:
            paragraphs(["", title], "bold")
            paragraphs(lines)
    file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def markdown(report: Report) -> str:
    """As GitHub Markdown."""
    parts = ["# lsm bench", "\n".join(f"- {escaped(line)}" for line in report.head)]
    for level, tables in (("##", report.overall), ("###", report.rows)):
        parts += ["## Each row"] * (tables is report.rows and bool(tables))
        for title, heads, lines, notes, marks in tables:
            rows = [[escaped(head) for head in heads], ["---" if head in LEFT else "---:" for head in heads]]
            for line, (cells, mark) in enumerate(lines):
                bold = ["**" if mark == BEST or (line, i) in marks else "" for i in range(len(cells))]
                rows.append([f"{b}{escaped(cell)}{b}" if cell else "" for b, cell in zip(bold, cells, strict=True)])
            grid = "\n".join("| " + " | ".join(row) + " |" for row in rows)
            parts += [f"{level} {escaped(title)}", grid, *map(escaped, notes)]
    for title, some in (*report.remarks, report.calls):
        parts += [f"## {escaped(title)}", "\n".join(f"- {escaped(line)}" for line in some)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Let nothing in a text be taken for Markdown or HTML; within a word, _ is neither."""
    return re.sub(r"[\\`*\[\]|~<&]|\b_|_\b", r"\\\g<0>", text)
