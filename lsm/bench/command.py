"""`lsm bench`: from the arguments to a run, its report, and the exit code."""

import argparse
import sys
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path

from lsm._errors import LsmError
from lsm._files import UnusableFileError, atomic_write, write_all
from lsm._texts import describe_error
from lsm._version import install_command
from lsm.bench import compare, render, report, run
from lsm.bench.options import MEASURING, TOLERANCE_RATIO, OptionError, from_arguments
from lsm.bench.result import Result, from_json

# Exit codes. Runs that cannot be compared at all are arguments which cannot be used.
EXIT_FAILURE = EXIT_SLOWER = 1
EXIT_USAGE, EXIT_UNDECIDED, EXIT_INTERRUPTED = 2, 3, 130


class MissingLibraryError(LsmError, ImportError):
    """A library is missing that this command needs."""


class UsageError(LsmError, ValueError):
    """Arguments that do not go together."""


def main(args: argparse.Namespace) -> int:
    """Do what the arguments ask for, and give the exit code; an error names the argument."""
    try:
        return _main(args)
    except OptionError as error:
        raise UsageError(f"--{error.option}: {error.problem}") from error


def _main(args: argparse.Namespace) -> int:
    for library in ("rich", "threadpoolctl", *["matplotlib"] * bool(args.chart)):
        try:
            import_module(library)
        except ImportError as error:
            remedy = install_command("bench")
            raise MissingLibraryError(f"lsm bench needs {library}, which cannot be imported: {remedy}") from error
    if args.tolerance is not None and not args.compare:
        raise UsageError(f"--tolerance {args.tolerance:g}: needs --compare FILE")
    if args.axis is not None and args.shape is None:
        raise UsageError(f"--axis {args.axis}: needs --shape; each named workload has its own")
    given = [f"--{name}" for name in MEASURING if getattr(args, name) is not None]
    if args.measured and given:
        raise UsageError(f"{', '.join(given)}: --from reports what was measured before; leave one of them out")
    old = _read(args.compare) if args.compare else None
    _check_outputs(args)
    result, code = (_read(args.measured), 0) if args.measured else _measured(args)
    found = _reported(result, old, args)
    if not code and not any(entry.us is not None for row in result.rows for entry in row.implementations):
        print("lsm: error: nothing was measured; the report says why", file=sys.stderr)
        code = EXIT_FAILURE
    return code or found


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse before anything is measured what could not be written after it."""

    class EnoughError(Exception):
        """The file could be written; it shall stay as it is."""

    outputs = [name for name in (args.json, args.markdown, args.chart) if name]
    for name in outputs:
        with suppress(EnoughError), atomic_write(name):
            raise EnoughError
    if len({Path(name).resolve() for name in outputs}) < len(outputs):
        raise UsageError(f"{', '.join(outputs)}: each output needs a file of its own")


def _measured(args: argparse.Namespace) -> tuple[Result, int]:
    """Measure, and keep what is measured after each row if there is a file for it; give the exit code so far too."""
    kept: Result | None = None

    def after_row(result: Result, n_rows: int) -> None:
        nonlocal kept
        kept = result
        if not result.interrupted:
            row = result.rows[-1]
            ranked = [entry for entry in row.best_first() if entry.is_ranked][:2]
            texts = [f"{e.label} {report.number(e.us)} us ({report.times(e.ratio)})" for e in ranked]
            said = f"[{len(result.rows)}/{n_rows}] {row.label}: {', '.join(texts) or 'none ranked'}"
            print(said, file=sys.stderr, flush=True)
        if args.json:
            _write(args.json, result.to_json())

    try:
        result = run.run(from_arguments(args), after_row)
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
    with ExitStack() as at_the_end:
        at_the_end.callback(lambda: render.write(shown, args.stdout))  # even if a disk is full
        if old is not None:
            try:
                found = compare.compared(old, result, args.tolerance or TOLERANCE_RATIO, args.compare)
            except ValueError as error:
                shown = shown._replace(remarks=[("Not compared", [str(error)]), *shown.remarks])
                code = EXIT_USAGE
            else:
                remarks = [*found.remarks, *shown.remarks]
                shown = shown._replace(overall=[*shown.overall, *found.tables], remarks=remarks)
                code = EXIT_SLOWER if found.is_worse else 0 if found.is_judged else EXIT_UNDECIDED
        if not result.rows:
            return code
        if args.json:
            _write(args.json, result.to_json())
        if args.markdown:
            _write(args.markdown, render.markdown(shown))
        if args.chart:
            kind = Path(args.chart).suffix.lower().removeprefix(".")
            _write(args.chart, import_module("lsm.bench.chart").drawn(result, kind))
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
