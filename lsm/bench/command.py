"""`lsm bench`: from the arguments to a run, its report, how it compares with another run, and the exit code."""

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from lsm._errors import LsmError
from lsm._files import UnusableFileError, atomic_write, atomic_writes, write_all
from lsm._texts import describe_error
from lsm._version import install_command
from lsm.bench import report, run
from lsm.bench.options import TOLERANCE_RATIO, Options, from_arguments
from lsm.bench.peers import is_wanted
from lsm.bench.report import BEST, FEW_SAMPLES, WRONG, Line, Report, Table, number, times
from lsm.bench.result import Entry, Result, Row, from_json

EXIT_FAILURE, EXIT_INTERRUPTED = 1, 130
# Exit codes of a comparison; where nothing is judged, nothing has been found to be as fast as before.
SAME, WORSE, NOTHING_COMMON, UNDECIDED = 0, 1, 2, 3
UNJUDGED = "no backend is ranked in both runs, with samples enough in an undisturbed row; measure again"
# What of the machine and the libraries would explain a change.
EXPLAINING = ("processor", "n_processors", "gpu", "system", "caches", "threads", "versions", "environment")


class EnoughError(Exception):
    """The files could be written; they shall stay as they are."""


def main(args: argparse.Namespace) -> int:
    """Do what the arguments ask for, and give the exit code; an error names the argument."""
    for library in ("rich", "threadpoolctl", *["matplotlib"] * bool(args.chart)):
        try:
            import_module(library)
        except ImportError as error:
            raise LsmError(f"lsm bench needs {library} ({error}): {install_command('bench')}") from error
    options = from_arguments(args)
    old = _read(args.compare) if args.compare else None
    # What could not be written at the end is refused before anything is measured.
    with suppress(EnoughError), atomic_writes([name for name in (args.json, args.markdown, args.chart) if name]):
        raise EnoughError
    result, code = (_read(args.measured), 0) if args.measured else _measured(options, args.json)
    if not code and not any(entry.us for row in result.rows for entry in row.implementations):
        print("lsm: error: nothing was measured; the report says why", file=sys.stderr)
        code = EXIT_FAILURE
    shown = report.report(result)
    if old is not None:
        shown, found = compared(shown, old, result, args.tolerance or TOLERANCE_RATIO, args.compare)
        code = code or found
    try:
        if result.rows:  # else an earlier run says more
            if args.json:
                _write(args.json, result.to_json())
            if args.markdown:
                _write(args.markdown, report.markdown(shown))
            if args.chart:
                kind = Path(args.chart).suffix.lower().removeprefix(".")
                _write(args.chart, import_module("lsm.bench.chart").drawn(result, kind))
    finally:  # even if a disk is full: it may have taken hours to measure
        report.write(shown, args.stdout)
    return code


def _measured(options: Options, file: str | None) -> tuple[Result, int]:
    """Measure, and keep what is measured after each row if there is a file for it; give the exit code so far too."""
    kept: Result | None = None

    def after_row(result: Result, n_rows: int) -> None:
        nonlocal kept
        kept, row = result, result.rows[-1]
        ranked = [entry for entry in row.best_first() if entry.is_ranked][:2]
        texts = [f"{e.label} {number(e.us)} us ({times(e.ratio)})" for e in ranked] or ["none ranked"]
        print(f"[{len(result.rows)}/{n_rows}] {row.label}: {', '.join(texts)}", file=sys.stderr, flush=True)
        if file:
            _write(file, result.to_json())

    try:
        result = run.run(options, after_row)
    except Exception as error:
        if kept is None:
            raise
        print(f"lsm: error: {describe_error(error)}; what was measured until then is reported", file=sys.stderr)
        return kept, EXIT_FAILURE
    if result.interrupted:
        print("lsm: interrupted; what was measured is reported", file=sys.stderr)
    return result, EXIT_INTERRUPTED if result.interrupted else 0


def _write(name: str, data: str | bytes) -> None:
    """Write all of it, or leave the file as it was."""
    with atomic_write(name) as file:
        write_all(file, memoryview(data.encode() if isinstance(data, str) else data))


def _read(name: str) -> Result:
    """The result in a file, or an UnusableFileError."""
    try:
        return from_json(Path(name).read_bytes(), name)
    except OSError as error:
        raise UnusableFileError(f"{name!r} cannot be read: {error.strerror or error}") from error


def compared(shown: Report, old: Result, new: Result, tolerance: float, name: str) -> tuple[Report, int]:
    """Add to the report of a run what comparing it with another finds, which `name` names; give the exit code too."""
    lines: list[tuple[float, Line]] = []
    worse, broken, unjudged, marks = list[str](), list[str](), list[str](), list[str]()
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
        return shown._replace(remarks=[("Not compared", [text]), *shown.remarks]), NOTHING_COMMON
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
    remarks = [remark for remark in remarks if remark[1]] + shown.remarks
    return shown._replace(overall=shown.overall + [table] * bool(lines), remarks=remarks), code


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
