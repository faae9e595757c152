"""`lsm bench`: from the arguments to a run, its report, and the exit code."""

import argparse
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from lsm._errors import LsmError
from lsm._texts import told
from lsm._threads import get_num_threads
from lsm._version import install_command
from lsm.bench import files
from lsm.bench.arguments import TOLERANCE, contestants, names
from lsm.bench.layout import Report
from lsm.bench.options import OptionError, Options
from lsm.bench.result import Result

# Exit codes. One run cannot be held to the other at all: that is an argument which cannot be used.
FAILED = WORSE = 1
MISUSED, UNJUDGED, INTERRUPTED = 2, 3, 130
REMEDY = install_command("bench")


# What the command calls the options that have another name in the engine.
FLAGS = {"workloads": "only", "ops": "op", "dtypes": "dtype", "with_memory": "memory"}


class MissingLibraryError(LsmError, ImportError):
    """A library is missing that this command needs."""


class MisusedError(LsmError, ValueError):
    """Arguments that do not go together."""


def run(args: argparse.Namespace) -> int:
    """`_run`, whose errors name the arguments as they were given."""
    try:
        return _run(args)
    except OptionError as error:
        raise MisusedError(f"--{FLAGS.get(error.option, error.option)}: {error.problem}") from error


def _run(args: argparse.Namespace) -> int:
    """Do what the arguments ask for.

    Returns
    -------
    int
        0; FAILED if the run failed on the way or nothing was timed; WORSE, UNJUDGED or MISUSED if --compare found so;
        INTERRUPTED, after what was measured has been reported.
    """
    _need("rich", "threadpoolctl", *["matplotlib"] * bool(args.chart))
    if args.tolerance is not None and not args.compare:
        raise MisusedError(f"--tolerance {args.tolerance:g}: it is for --compare FILE; nothing is compared without")
    old = files.read(args.compare) if args.compare else None
    if args.measured:
        _refuse_with_from(args)
        result = files.read(args.measured)
    outputs = [name for name in (args.json, args.markdown, args.chart) if name]
    for name in outputs:
        files.check_writable(name)
    if args.markdown:
        import_module("lsm.bench.markdown").place(files.text_there(args.markdown), repr(args.markdown))
    if len({Path(name).resolve() for name in outputs}) < len(outputs):
        raise MisusedError(f"{', '.join(outputs)}: each output needs a file of its own")
    code = 0
    if not args.measured:
        result, code = _measured(args, old)
    found = _reported(result, old, args)
    if not code and not any(entry.us is not None for row in result.rows for entry in row.contestants):
        print("lsm: error: nothing was measured; the report tells who did not take part, and why", file=sys.stderr)
        code = FAILED
    return code or found


def _need(*libraries: str) -> None:
    """Stop before anything is measured if a library is missing."""
    for library in libraries:
        try:
            import_module(library)
        except ImportError as error:
            raise MissingLibraryError(f"lsm bench needs {library}, which cannot be imported: {REMEDY}") from error


def _refuse_with_from(args: argparse.Namespace) -> None:
    """Say so if something was asked for that a run would need which is over."""
    flags = ["set", "only", "op", "dtype", "data", "shape", "axis", "sweep", "memory"]
    flags += ["contestants", "threads", "rounds", "device"]
    given = [f"--{args.set if flag == 'set' else flag}" for flag in flags if getattr(args, flag) is not None]
    if given:
        raise MisusedError(f"{', '.join(given)}: --from reports what was measured before; leave one of them out")


def options(args: argparse.Namespace) -> Options:
    """What the engine is asked for."""
    if args.axis is not None and args.shape is None:
        raise MisusedError(f"--axis {args.axis}: it is for --shape; each named workload has its own")
    return Options(
        set=args.set or "quick",
        workloads=names(args.only),
        ops=names(args.op),
        dtypes=names(args.dtype),
        data=names(args.data),
        shape=args.shape,
        axis=-1 if args.axis is None else args.axis,
        threads=args.threads or (),
        sweep=args.sweep,
        rounds=args.rounds,
        contestants=names(args.contestants),
        with_memory=args.memory,
        device=args.device or "cpu",
        command=shlex.join(args.command_line),
    )


def _measured(args: argparse.Namespace, old: Result | None) -> tuple[Result, int]:
    """Measure, and keep what is measured after each row if there is a file for it; give the exit code so far too."""
    engine, progress = import_module("lsm.bench.run"), import_module("lsm.bench.progress")
    wanted = options(args)
    if old is not None:
        _refuse_to_compare(wanted, old, args.compare)
    kept: Result | None = None

    def save(result: Result) -> None:
        nonlocal kept
        kept = result
        if args.json:
            files.write(args.json, result.to_json())

    try:
        with progress.shown(sys.stderr) as tell:
            result: Result = engine.run(wanted, tell, save)
    except Exception as error:
        if kept is None:
            raise
        print(f"lsm: error: {told(error)}; what was measured until then is reported", file=sys.stderr)
        return kept, FAILED
    if result.interrupted:
        print("lsm: interrupted; what was measured is reported", file=sys.stderr)
    return result, INTERRUPTED if result.interrupted else 0


def _refuse_to_compare(wanted: Options, old: Result, name: str) -> None:
    """Say before a long run what could only be said after it."""
    has_any, cases = import_module("lsm.bench.compare").has_any, import_module("lsm.bench.workloads").cases(wanted)
    n_threads = wanted.threads or (get_num_threads(),)
    if not has_any(old, cases, n_threads, wanted.device):
        about = f"threads: {', '.join(map(str, n_threads))}; device: {wanted.device}"
        raise MisusedError(
            f"{name!r} has nobody ranked in a row that would be measured ({about}); accepted: a run of "
            f"the same choice, such as that by {old.header.command!r}"
        )


def _reported(result: Result, old: Result | None, args: argparse.Namespace) -> int:
    """Write all outputs; give the exit code that follows from the comparison.

    The report is printed whatever happens on the way: it may have taken hours to measure. Where there is no row the
    files stay as they are, for an earlier run says more.
    """
    contents, tables = import_module("lsm.bench.contents"), import_module("lsm.bench.tables")
    fit_to_show = import_module("lsm.bench.wording").fit_to_show
    shown, code = fit_to_show(result), 0
    report = contents.report(shown)
    with ExitStack() as at_the_end:
        at_the_end.callback(lambda: tables.write(report, args.stdout))  # even if a disk is full
        if old is not None:
            report, code = _beside(report, shown, fit_to_show(old), args)
        if not result.rows:
            return code
        if args.json:
            files.write(args.json, result.to_json())
        if args.markdown:
            markdown, page = import_module("lsm.bench.markdown").markdown, files.text_there(args.markdown)
            files.write(args.markdown, markdown(report, page, repr(args.markdown)))
        if args.chart:
            chart, ending = import_module("lsm.bench.chart"), Path(args.chart).suffix.lower()
            if ending == ".png":
                files.write(args.chart, chart.png(shown))
            elif ending == ".svg":
                files.write(args.chart, chart.svg(shown))
            else:
                files.write(args.chart, import_module("lsm.bench.page").page(report, chart.svg(shown)))
    return code


def _beside(report: Report, result: Result, old: Result, args: argparse.Namespace) -> tuple[Report, int]:
    """Add to a report what the comparison found, or why there is none; give the exit code too."""
    compared = import_module("lsm.bench.compare").compared
    try:
        found = compared(old, result, args.tolerance or TOLERANCE, args.compare, contestants(result.header.command))
    except ValueError as error:
        return replace(report, remarks=(("Not compared", (str(error),)), *report.remarks)), MISUSED
    report = replace(report, overall=(*report.overall, *found.tables), remarks=(*found.remarks, *report.remarks))
    return report, WORSE if found.is_worse else 0 if found.is_judged else UNJUDGED
