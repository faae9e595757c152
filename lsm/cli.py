"""The command `lsm`: list, explain, check and compare backends, and apply log-softmax to files."""

import argparse
import json
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from typing import Any

import numpy as np

import lsm
from lsm import _apply_command, _files, _listing
from lsm._check import DTYPES, as_array, dtype_name
from lsm._decide import Request
from lsm._explain import explain_request
from lsm._operations import DERIVED, OPERATIONS
from lsm._stdout import discard, escape_unencodable, reserve_stdout
from lsm._stopping import StoppedError, begin_shutdown, raise_if_stopped, stop_signals
from lsm._texts import for_json
from lsm.bench import options

EXIT_SIGNAL, EXIT_FAILURE, EXIT_USAGE = 128, 1, 2  # exit codes; EXIT_SIGNAL plus the signal's number, as in shells


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `lsm`.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the name of the command; default: those of the process. In this case standard
        output stays redirected to standard error until the process ends (see `lsm._stdout.reserve_stdout`).

    Returns
    -------
    int
        The exit code: 0; 1 after a failure; 2 if arguments or files cannot be used; 128 plus the number of the signal
        that stopped it.
    """
    with stop_signals() as stopped_by, warnings.catch_warnings(), escape_unencodable():
        warnings.showwarning = _show_warning
        code = _run(argv)
        # After a signal, `lsm bench` still reports what it has measured.
        return EXIT_SIGNAL + stopped_by[0] if stopped_by else code


def _run(argv: Sequence[str] | None) -> int:
    """Parse the arguments and run the command; convert errors to a message and an exit code."""
    try:
        code = _parse_and_run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        begin_shutdown()
        number = stop.args[0] if isinstance(stop, StoppedError) else signal.SIGINT
        state = _notes(stop) or "; nothing was changed"
        return _failed(EXIT_SIGNAL + number, f"stopped by {signal.Signals(number).name}{state}")
    except lsm.BackendFailedError as error:
        return _failed(EXIT_FAILURE, f"{error}{_notes(error)}")
    except (lsm.LsmError, TypeError, ValueError) as error:
        return _failed(EXIT_USAGE, f"{error}{_notes(error)}")
    except BrokenPipeError:  # the reader of the output has exited
        if sys.stdout is not None:
            discard(sys.stdout)
        return EXIT_SIGNAL + 13  # SIGPIPE
    except OSError as error:
        if sys.stdout is not None:
            discard(sys.stdout)
        return _failed(EXIT_FAILURE, f"{error}{_notes(error)}")
    except Exception as error:  # such as MemoryError
        return _failed(EXIT_FAILURE, f"{type(error).__name__}: {error}{_notes(error)}")


def _parse_and_run(argv: Sequence[str] | None) -> int:
    """Parse the arguments and run the command."""
    try:
        parser = _parser()
        args = parser.parse_args(argv)
        if args.run is None:
            parser.print_help()
            return 0
        args.command_line = ["lsm", *(sys.argv[1:] if argv is None else argv)]
        args.n_columns = shutil.get_terminal_size().columns
        with ExitStack() as stack:
            try:
                args.stdout = reserve_stdout(stack, until_exit=argv is None)
                code = int(args.run(args))
                args.stdout.flush()
                return code
            finally:
                begin_shutdown()  # a signal must not interrupt the restoring
    except SystemExit as stop:  # argparse has printed a message
        return int(stop.code or 0)


def _notes(error: BaseException) -> str:
    """The notes added to an error on its way, such as those on files left behind."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def _failed(code: int, message: str) -> int:
    """Print an error message on one line, and return the exit code."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"lsm: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning on one line, without its source location, which is not useful here."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"lsm: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    """The parser of the arguments of `lsm`."""
    parser = argparse.ArgumentParser(prog="lsm", description="log-softmax and its gradient.")
    parser.add_argument("--version", action="version", version=f"lsm {lsm.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    about = "list all backends, their state, and the reason for it (loads plugins, which runs their code)"
    backends = commands.add_parser("backends", help=about, description=about)
    backends.add_argument("--json", action="store_true", help="as one JSON object")
    backends.set_defaults(run=_backends)

    about = "show which backend a call would use, and why not the others; exit code 1 if the call would fail"
    explain = commands.add_parser("explain", help=about, description=about)
    explain.add_argument("--dtype", type=_dtype, required=True, help="dtype of the array, such as float32")
    explain.add_argument(
        "--device", type=_device, default="cpu", help="device of the array: cpu (default), cuda, mps, ..."
    )
    explain.add_argument(
        "--array-type",
        metavar="TYPE",
        help="numpy.ndarray (default on cpu), cupy.ndarray (default on cuda), torch.Tensor (default elsewhere), ...",
    )
    explain.add_argument("--op", choices=(*OPERATIONS, *DERIVED), default="log_softmax", help="default: log_softmax")
    explain.add_argument("--backend", metavar="NAME", help="backend to use, without fallback")
    explain.set_defaults(run=_explain)

    about = "test everything that a backend claims (loads it); exit code 1 if a claim does not hold"
    check = commands.add_parser("check", help=about, description=about)
    check.add_argument("name", metavar="NAME", nargs="?", help="the backend, or distribution/name")
    text = "instead, print the errors of NAME (default: of every backend) beside those of installed libraries"
    check.add_argument("--peers", action="store_true", help=text)
    check.add_argument("--json", metavar="FILE", help="write the report to this file too")
    check.set_defaults(run=_check_backend, usage_error=check.error)

    about = "apply log-softmax, or another function, to an array in a file of any size, and write another"
    apply = commands.add_parser("apply", help=about, description=about)
    _apply_command.add_to(apply)
    apply.set_defaults(run=lambda args: _apply_command.apply(args, _progress), usage_error=apply.error)

    bench = commands.add_parser("bench", help=options.ABOUT, description=options.ABOUT)
    options.add_to(bench)
    bench.set_defaults(run=_bench)
    return parser


def _dtype(text: str) -> Any:
    """Parse the name of a dtype."""
    try:
        return text if text in DTYPES else np.dtype(text)
    except Exception as error:  # as in lsm._check.result_dtype
        raise argparse.ArgumentTypeError(f"{text!r} is not a dtype ({error}); pass one such as float32") from error


def _device(text: str) -> str:
    """Parse 'cuda' or 'cuda:0' to 'cuda': a backend supports all devices of a kind."""
    kind, colon, index = text.partition(":")
    if not kind or (colon and not index.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"{text!r}; accepted: a kind of device such as cuda, or a device such as cuda:0"
        )
    return kind


def _backends(args: argparse.Namespace) -> int:
    """`lsm backends`."""
    warnings.simplefilter("ignore", lsm.PluginWarning)  # the list has the same information
    status = _listing.status()
    if args.json:
        print(json.dumps(for_json(status), indent=2), file=args.stdout)
    else:
        print("\n".join(_listing.lines(status, args.n_columns)), file=args.stdout)
    return 0


def _explain(args: argparse.Namespace) -> int:
    """`lsm explain`."""
    warnings.simplefilter("ignore", lsm.PluginWarning)  # as in _backends
    default_type = {"cpu": "numpy.ndarray", "cuda": "cupy.ndarray"}.get(args.device, "torch.Tensor")
    dtype = args.dtype
    if not isinstance(dtype, str):
        dtype = dtype_name(as_array(np.zeros(1, dtype), "x").dtype)
    request = Request(args.array_type or default_type, args.device, (dtype, dtype), args.op)
    decision = explain_request(request, args.backend)
    print(decision, file=args.stdout)
    if decision.winner:
        return 0
    kinds = {device for info in lsm.list_backends(load=False) for device in info.devices}
    if args.device not in kinds:
        print(
            f"no backend supports devices of kind {args.device!r}; supported: {', '.join(sorted(kinds))}",
            file=args.stdout,
        )
    return EXIT_FAILURE


def _check_backend(args: argparse.Namespace) -> int:
    """`lsm check`."""
    if args.name is None and not args.peers:
        args.usage_error("give the NAME of a backend, or --peers")
    # Not needed by other commands.
    testing, table = import_module("lsm.testing"), import_module("lsm._conformance.table")
    accuracy = import_module("lsm.bench.errors") if args.peers else None

    def with_bar(cases: list[Any]) -> Iterator[Any]:
        with _progress(len(cases), unit="case", unit_scale=False) as done:
            for case in cases:
                yield case
                done(1)

    with ExitStack() as stack:
        # Opened first, so that an unwritable path is reported before the checks run.
        file = None if args.json is None else stack.enter_context(_files.atomic_write(args.json))
        if accuracy is not None:
            found = accuracy.measured(args.name, with_bar)
            has_passed, lines = not any(row["beyond"] for row in found["rows"]), accuracy.lines(found)
        else:
            report = testing.check_backend(args.name, progress=with_bar)
            found, has_passed = report.as_dict(), report.has_passed
            lines = table.lines(report, args.n_columns)
        print("\n".join(lines), file=args.stdout)
        if file is not None:
            _files.write_all(file, memoryview((json.dumps(found, indent=2) + "\n").encode()))
    return 0 if has_passed else EXIT_FAILURE


def _bench(args: argparse.Namespace) -> int:
    """`lsm bench`."""
    return int(import_module("lsm.bench.command").main(args))  # not needed by other commands


@contextmanager
def _progress(n_all: int, unit: str = "B", unit_scale: bool = True) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar on a terminal if tqdm is installed; each update checks for signals."""

    def advance(n: int) -> None:
        raise_if_stopped()
        if bar is not None:
            bar.update(n)

    tqdm = bar = None
    if sys.stderr is not None and sys.stderr.isatty():
        with suppress(ImportError):
            tqdm = import_module("tqdm").tqdm
    with ExitStack() as stack:
        if tqdm is not None:
            size = shutil.get_terminal_size()  # tqdm shows nothing on a terminal that reports a size of 0
            shape = {"ncols": size.columns, "nrows": size.lines}
            bar = stack.enter_context(tqdm(total=n_all, unit=unit, unit_scale=unit_scale, unit_divisor=1024, **shape))
        yield advance
