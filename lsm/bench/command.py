"""`lsm bench`: from the arguments to a run, its report, and the exit code."""

import argparse
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from lsm._errors import LsmError
from lsm.bench import files
from lsm.bench.arguments import names
from lsm.bench.options import Options
from lsm.bench.result import Result

WORSE, INTERRUPTED = 1, 130
REMEDY = "python -m pip install 'lsm[bench]'"


class MissingLibraryError(LsmError, ImportError):
    """A library is missing that this command needs."""


class MisusedError(LsmError, ValueError):
    """Arguments that do not go together."""


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask for.

    Returns
    -------
    int
        0; WORSE if --compare found so; INTERRUPTED, after what was measured has been reported.
    """
    _need("rich", "threadpoolctl", *["matplotlib"] * bool(args.chart))
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
    if not args.measured:
        result = _measured(args)
    is_worse = _reported(result, old, args)
    if result.interrupted and not args.measured:
        return INTERRUPTED
    return WORSE if is_worse else 0


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


def _measured(args: argparse.Namespace) -> Result:
    """Measure, and keep what is measured after each row if there is a file for it."""
    engine, progress = import_module("lsm.bench.run"), import_module("lsm.bench.progress")
    wanted = options(args)

    def save(result: Result) -> None:
        if args.json:
            files.write(args.json, result.to_json())

    with progress.shown(sys.stderr) as tell:
        result: Result = engine.run(wanted, tell, save)
    if result.interrupted:
        print("lsm: interrupted; what was measured is reported", file=sys.stderr)
    return result


def _reported(result: Result, old: Result | None, args: argparse.Namespace) -> bool:
    """Write all outputs; tell whether something of lsm became worse."""
    contents, tables = import_module("lsm.bench.contents"), import_module("lsm.bench.tables")
    fit_to_show = import_module("lsm.bench.wording").fit_to_show
    shown, is_worse = fit_to_show(result), False
    report = contents.report(shown)
    if old is not None:
        compared = import_module("lsm.bench.compare").compared
        comparison = compared(fit_to_show(old), shown, args.tolerance, args.compare)
        report = replace(
            report,
            overall=(*report.overall, *comparison.tables),
            remarks=(*comparison.remarks, *report.remarks),
        )
        is_worse = comparison.is_worse
    with ExitStack() as at_the_end:
        at_the_end.callback(tables.write, report, sys.stdout)  # even if a disk is full
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
    return is_worse
