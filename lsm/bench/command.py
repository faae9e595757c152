"""`lsm bench`: from the arguments to a run, its report, and the exit code."""

import argparse
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from lsm._errors import LsmError
from lsm._files import UnusableFileError, atomic_write, atomic_writes, write_all
from lsm._texts import describe_error
from lsm._version import install_command
from lsm.bench import compare, render, report, run
from lsm.bench.options import TOLERANCE_RATIO, Options, from_arguments
from lsm.bench.result import Result, from_json

EXIT_FAILURE, EXIT_INTERRUPTED = 1, 130


class MissingLibraryError(LsmError, ImportError):
    """A library is missing that this command needs."""


class EnoughError(Exception):
    """The files could be written; they shall stay as they are."""


def main(args: argparse.Namespace) -> int:
    """Do what the arguments ask for, and give the exit code; an error names the argument."""
    for library in ("rich", "threadpoolctl", *["matplotlib"] * bool(args.chart)):
        try:
            import_module(library)
        except ImportError as error:
            remedy = install_command("bench")
            raise MissingLibraryError(f"lsm bench needs {library}, which cannot be imported: {remedy}") from error
    options = from_arguments(args)
    old = _read(args.compare) if args.compare else None
    # What could not be written at the end is refused before anything is measured.
    with suppress(EnoughError), atomic_writes([name for name in (args.json, args.markdown, args.chart) if name]):
        raise EnoughError
    result, code = (_read(args.measured), 0) if args.measured else _measured(options, args.json)
    found = _reported(result, old, args)
    if not code and not any(entry.us is not None for row in result.rows for entry in row.implementations):
        print("lsm: error: nothing was measured; the report says why", file=sys.stderr)
        code = EXIT_FAILURE
    return code or found


def _measured(options: Options, file: str | None) -> tuple[Result, int]:
    """Measure, and keep what is measured after each row if there is a file for it; give the exit code so far too."""
    kept: Result | None = None

    def after_row(result: Result, n_rows: int) -> None:
        nonlocal kept
        kept = result
        row = result.rows[-1]
        ranked = [entry for entry in row.best_first() if entry.is_ranked][:2]
        texts = [f"{e.label} {report.number(e.us)} us ({report.times(e.ratio)})" for e in ranked]
        said = f"[{len(result.rows)}/{n_rows}] {row.label}: {', '.join(texts) or 'none ranked'}"
        print(said, file=sys.stderr, flush=True)
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


def _reported(result: Result, old: Result | None, args: argparse.Namespace) -> int:
    """Write all outputs; give the exit code that follows from the comparison.

    The report is printed whatever happens on the way: it may have taken hours to measure. Where there is no row the
    files stay as they are, for an earlier run says more.
    """
    shown, code = report.report(result), 0
    if old is not None:
        found = compare.compared(old, result, args.tolerance or TOLERANCE_RATIO, args.compare)
        shown = shown._replace(overall=[*shown.overall, *found.tables], remarks=[*found.remarks, *shown.remarks])
        code = found.code
    try:
        if result.rows:
            if args.json:
                _write(args.json, result.to_json())
            if args.markdown:
                _write(args.markdown, render.markdown(shown))
            if args.chart:
                kind = Path(args.chart).suffix.lower().removeprefix(".")
                _write(args.chart, import_module("lsm.bench.chart").drawn(result, kind))
    finally:  # even if a disk is full
        render.write(shown, args.stdout)
    return code


def _write(name: str, data: str | bytes) -> None:
    """Write all of it, or leave the file as it was."""
    with atomic_write(name) as file:
        write_all(file, memoryview(data.encode() if isinstance(data, str) else data))


def _read(name: str) -> Result:
    """The result in a file, or an UnusableFileError."""
    try:
        return from_json(Path(name).read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise UnusableFileError(f"{name!r} is not text in UTF-8 ({error})") from error
    except OSError as error:
        raise UnusableFileError(f"{name!r} cannot be read: {error.strerror or error}") from error
