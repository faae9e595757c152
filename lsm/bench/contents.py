"""What a report says of a result: the machine, each row best first, who was left out and why."""

from collections.abc import Iterator
from itertools import groupby

from lsm.bench import overall
from lsm.bench.layout import BEST, RAISED, WRONG, Column, Line, Remark, Report, Table
from lsm.bench.result import Entry, Header, Result, Row
from lsm.bench.wording import (
    FEW_TURNS,
    best_first,
    error_texts,
    is_disturbed,
    number,
    plural,
    reference,
    size,
    span,
    times,
    where,
    who,
)

MOST_NAMED = 3  # rows that a line names before it counts the others


def report(result: Result) -> Report:
    """Everything that is shown of a result."""
    return Report(
        head=tuple(head(result)),
        overall=tuple(overall.tables(result)),
        rows=tuple(row_table(row, result.header.n_processors) for row in result.rows if row.sweep is None),
        sweeps=tuple(overall.sweep_tables(result)),
        remarks=tuple((title, tuple(lines)) for title, lines in _remarks(result) if lines),
        calls=tuple(_calls(result)),
    )


def head(result: Result) -> Iterator[tuple[str, str]]:
    """What was measured on and with."""
    header = result.header
    caches = ", ".join(f"{name} {n_bytes // 2**10:,} KiB" for name, n_bytes in header.caches.items())
    processors = plural(header.n_processors, "processor")
    if n_cores := header.n_cores:
        processors += f" on {plural(n_cores, 'core')}"
    yield "processor", f"{header.processor}, {processors}, {caches or 'caches unknown'}"
    yield "GPU", header.gpu or "none"
    yield "versions", _versions(header)
    threads = ", ".join(map(str, header.threads))
    load = "" if header.load_before is None else f"; load before: {header.load_before:.1f}"
    yield "threads", f"{threads} for each contestant; rounds: {header.rounds}{load}"
    if header.openmp:
        yield "thread pools", "; ".join(header.openmp)
    if header.environment:
        yield "environment", " ".join(f"{name}={value}" for name, value in sorted(header.environment.items()))
    yield "measured", f"{header.date} on {header.system}, commit {header.commit or 'unknown'}, by {header.command}"
    if result.interrupted:
        yield "interrupted", f"after {plural(len(result.rows), 'row')}; what was measured is here"


def _versions(header: Header) -> str:
    levels = {name: f" ({level})" for name, level in header.instruction_levels.items()}
    return ", ".join(f"{name} {version}{levels.get(name, '')}" for name, version in header.versions.items())


def row_table(row: Row, n_processors: int) -> Table:
    """One row, best first; whoever cannot be compared stands below the others and has no rank."""
    entries = best_first(row)
    columns = [
        (Column("#"), _ranks(entries)),
        (Column("contestant", is_number=False), [who(e) for e in entries]),
        (Column("us"), [_known(e.us) for e in entries]),
        (Column("ratio"), [times(e.ratio) for e in entries]),
        (Column("p20..p80", dropped=4), [span(e.p20_ratio, e.p80_ratio) for e in entries]),
        (Column("GB/s", dropped=3), [_known(e.gb_s) for e in entries]),
        (Column("of limit", dropped=2), ["" if e.share is None else f"{e.share:.2f}" for e in entries]),
        (Column("max ulp", dropped=1), [error_texts(e)[0] for e in entries]),
        (Column("of frame", dropped=5), [error_texts(e)[1] for e in entries]),
        (
            Column("max error", dropped=7),
            ["" if e.max_abs_error is None else f"{e.max_abs_error:.1e}" for e in entries],
        ),
        (Column("first ms", dropped=6), [_known(e.first_call_ms) for e in entries]),
        (Column("extra memory", dropped=8), ["" if e.extra_bytes is None else size(e.extra_bytes) for e in entries]),
    ]
    # A column that is empty throughout tells nothing: the share within the caches, the memory that nobody measured.
    columns = [(column, cells) for column, cells in columns if any(cells) or not column.dropped]
    marks = [_mark(entry) for entry in entries]
    if entries and entries[0].is_ranked:
        marks[0] = BEST
    lines = tuple(map(Line, zip(*(cells for _, cells in columns), strict=True), marks))
    return Table(where(row), tuple(column for column, _ in columns), lines, tuple(_notes(row, n_processors)))


def _known(value: float | None) -> str:
    return "" if value is None else number(value)


def _mark(entry: Entry) -> str:
    if entry.error is not None:
        return RAISED
    return "" if entry.is_right else WRONG


def _ranks(entries: list[Entry]) -> list[str]:
    return [str(i) if entry.is_ranked else _mark(entry) for i, entry in enumerate(entries, 1)]


def _notes(row: Row, n_processors: int) -> Iterator[str]:
    """What has to be said below a row's table."""
    if row.limit is not None:
        took = f"{number(row.limit.us)} us ({span(row.limit.p20_us, row.limit.p80_us)})"
        yield f"limit: {row.limit.name} of the same {size(row.bytes)}, {took}, {number(row.limit.gb_s)} GB/s"
    for entry in row.contestants:
        if entry.error is not None:
            yield f"{who(entry)} raised after {plural(len(entry.turns_us), 'turn')}: {entry.error}"
    turns = [len(entry.turns_us) for entry in row.contestants if entry.error is None]
    few = [who(entry) for entry in row.contestants if entry.error is None and len(entry.turns_us) < FEW_TURNS]
    if len(few) > len(turns) // 2:
        yield f"{plural(min(turns), 'turn')} of each at least, for time ran out: the spread means little"
    elif few:
        yield f"{plural(min(turns), 'turn')} only of {', '.join(few)}, for lack of time"
    if beyond := [who(entry) for entry in row.contestants if entry.share is not None and round(entry.share, 2) > 1]:
        yield f"beyond the limit, so caches or neighbours had a part in it: {', '.join(beyond)}"
    if row.n_checked_frames < row.n_frames:
        yield f"errors: of {row.n_checked_frames:,} of {row.n_frames:,} frames"
    if is_disturbed(row, n_processors):
        yield f"others used {row.others:.1f} processors meanwhile: not to be relied on"


def _remarks(result: Result) -> Iterator[Remark]:
    """What holds for more than one row."""
    absent = [f"{name}: {reason}" for name, reason in result.absent.items()]
    reasons = [(f"{name}: {reason}", row) for row in result.rows for name, reason in row.absent.items()]
    yield "Did not take part", (*absent, *_gathered(reasons, len(result.rows)))
    wrong = [(who(e), row) for row in result.rows for e in row.contestants if e.error is None and not e.is_right]
    yield "Shown and not ranked, for the error is beyond the bound", tuple(_gathered(wrong, len(result.rows)))
    raised = [(f"{who(e)}: {e.error}", row) for row in result.rows for e in row.contestants if e.error is not None]
    yield "Raised while it was measured", tuple(_gathered(raised, len(result.rows)))
    if result.rows:
        yield "How to read this", tuple(_legend(result))


def _gathered(found: list[tuple[str, Row]], n_rows: int) -> Iterator[str]:
    """Each text once, with the rows that it holds for."""
    for text, pairs in groupby(sorted(found, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        rows = list(dict.fromkeys(where(row) for _, row in pairs))
        named = [*rows[:MOST_NAMED], *[f"and {len(rows) - MOST_NAMED} more"] * (len(rows) > MOST_NAMED)]
        yield f"{text} ({'every row' if len(rows) == n_rows > 1 else '; '.join(named)})"


def _legend(result: Result) -> Iterator[str]:
    of = reference(result.rows)
    name = of.name if of else "the first backend of lsm"
    yield f"ratio: how many times as long as {name} with out=, the median of the ratios within each turn; 1x is as fast"
    yield "geometric mean: of the ratios in the rows in which a contestant is ranked, which are not the same for all"
    yield "GB/s: each input read once and each result written once, over the median time"
    yield "of limit: the share of what a copy (forward) or an addition (backward) of the same bytes reaches"
    yield "max ulp, max error: against the exact values on the same data, in ulps of each element, and absolute"
    yield "of frame: in ulps of the largest element of each frame; peers, which declare no bound, are held to this one"
    yield "new result: called without out=; first ms: the first call, with what is compiled or loaded in it"


def _calls(result: Result) -> Iterator[Remark]:
    """How each was called."""
    calls: dict[str, None] = {}
    for row in result.rows:
        for entry in row.contestants:
            calls[f"{who(entry)}, {row.op}: {entry.call}"] = None
    if calls:
        yield "How each was called", tuple(sorted(calls))
