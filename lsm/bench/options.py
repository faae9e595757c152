"""The options of `lsm bench`; light, since the command `lsm` describes them whether they are used or not."""

import argparse
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import chain

from lsm._operations import DERIVED

MAP, SCALE = "map", "scale"
SETS = {
    "quick": "takes about a minute on 2 cores (default)",
    "usual": "every workload, in the dtypes that it usually has",
    "full": "every workload, dtype and kind of data; takes hours",
    "cpu": "the shapes of docs/performance.md, up to 2^28 elements",
    "gpu": "the shapes of docs/gpu.md, on a CUDA device",
    MAP: "classes x inner, beside PyTorch, with 1 thread and with all: a table of ratios",
    SCALE: "512 MiB in chunks, through Dask: lsm, SciPy, the usual lines and a copy, with their memory",
}
OPS = ("forward", "backward", "forward+backward")  # of log_softmax
FAMILY_OPS = ("softmax", "softmax_backward", "logsumexp", *DERIVED)  # by the names of the functions
DTYPES = ("float16", "bfloat16", "float32", "float64")
KINDS_OF_DATA = ("logits", "peaked", "masked", "constant", "offset", "huge", "label")
CHARTS = (".svg", ".png")
TOLERANCE_RATIO = 1.3  # docs/benchmarks.md says why

ABOUT = "compare every backend and every library installed: speed, share of the machine's limit, and error"
EPILOG = """exit codes: 0 done; 1 a backend of lsm is slower than in --compare FILE by more than --tolerance, no longer
right, or missing, or the run failed or timed nothing; 2 arguments or files that cannot be used; 3 no backend could be
judged against --compare FILE; 130 interrupted. What was measured is always reported"""


class OptionError(ValueError):
    """A value that no run can serve: `option` is a field of `Options`, `problem` the value and what is accepted."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"--{option}: {problem}")
        self.option, self.problem = option, problem


@dataclass(frozen=True)
class Options:
    """A benchmark run; an empty tuple or None stands for what the set has."""

    set: str = "usual"
    only: tuple[str, ...] = ()  # parts of names of workloads
    op: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None  # instead of the named workloads
    axis: int = -1  # of `shape`
    sweep: str | None = None  # time against the amount of work, instead of the named workloads
    memory: bool | None = None  # needs a process of its own: not in most sets, unless asked for
    implementations: tuple[str, ...] = ()  # parts of names
    threads: tuple[int, ...] = ()  # as many as lsm would use, if empty
    rounds: int | None = None
    device: str = "cpu"
    command: str = ""  # for the header


def from_arguments(args: argparse.Namespace) -> Options:
    """Make the options of parsed arguments; an OptionError if they do not go together."""
    names = [field.name for field in fields(Options) if field.name != "command"]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.tolerance is not None and not (args.compare and 1 <= args.tolerance < math.inf):
        raise OptionError("tolerance", f"{args.tolerance:g}; accepted: a ratio from 1, with --compare FILE")
    if args.chart and not args.chart.lower().endswith(CHARTS):
        raise OptionError("chart", f"{args.chart!r}; accepted: a name that ends in {' or '.join(CHARTS)}")
    if args.measured and given:
        flags = ", ".join(f"--{name}" for name in given)
        raise OptionError("from", f"reports what was measured before; leave out {flags}, or it")
    for name in ("only", "op", "dtype", "data", "implementations"):  # each name once
        given[name] = tuple(dict.fromkeys(chain(*given.get(name, ()))))
    given["threads"] = tuple(dict.fromkeys(given.get("threads", ())))
    n_axes = len(given.get("shape", ()))
    if "axis" in given and not -n_axes <= args.axis < n_axes:
        accepted = f"accepted: {-n_axes} to {n_axes - 1}" if n_axes else "needs --shape"
        raise OptionError("axis", f"{args.axis}; {accepted}")
    if n_axes and (args.sweep or args.only):
        raise OptionError("shape", "it replaces the named workloads; leave out --only and --sweep")
    if args.set in (MAP, SCALE) and not given["implementations"]:
        beside = ("torch", *["scipy"] * ("logsumexp" in given["op"])) if args.set == MAP else ("dask",)
        given["implementations"] = ("cython", *beside)
    usual = {"set": "quick", "device": "cuda" if args.set == "gpu" else "cpu"}
    return Options(**usual | given, command=shlex.join(args.command_line))


def add_to(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""

    def add_list(flag: str, metavar: str, text: str, accepted: tuple[str, ...] = ()) -> None:
        text += f" {', '.join(accepted)}" * bool(accepted)
        group.add_argument(flag, nargs="+", action="extend", type=_names(accepted), metavar=metavar, help=text)

    group = parser.add_argument_group("what is measured")
    text = "; ".join(f"{name}: {about}" for name, about in SETS.items())
    group.add_argument("--set", choices=SETS, help=text)
    add_list("--only", "NAME", "workloads with one of these in their name")
    add_list("--op", "OP", "of", OPS + FAMILY_OPS)
    add_list("--dtype", "DTYPE", "of", DTYPES)
    add_list("--data", "KIND", "of", KINDS_OF_DATA)
    group.add_argument("--shape", type=_counts("x"), metavar="64x128256", help="a shape of your own")
    group.add_argument("--axis", type=int, metavar="N", help="the axis of the classes of --shape (default: -1)")
    group.add_argument("--sweep", choices=("classes", "frames"), help="time against the amount of work")
    memory = argparse.BooleanOptionalAction
    group.add_argument("--memory", action=memory, help="also the memory of a call (default: in usual, full and scale)")
    group = parser.add_argument_group("how it is measured")
    add_list("--implementations", "NAME", "those with one of these in their name (default: all installed)")
    group.add_argument("--threads", type=_counts(","), metavar="N,...", help="numbers of threads (default: all)")
    group.add_argument("--rounds", type=_count, metavar="N", help="samples of each implementation")
    group.add_argument("--device", choices=("cpu", "cuda"), help="default: that of the set")
    group = parser.add_argument_group("what is written")
    group.add_argument("--json", metavar="FILE", help="everything, written after each row")
    group.add_argument("--markdown", metavar="FILE", help="the tables")
    group.add_argument("--chart", metavar="FILE", help="ratios as bars or maps: .svg or .png")
    group.add_argument("--from", dest="measured", metavar="FILE", help="measure nothing: report this JSON")
    group.add_argument("--compare", metavar="FILE", help="ratios to the run in this JSON")
    text = f"how many times as long a call may take as in --compare FILE (default: {TOLERANCE_RATIO})"
    group.add_argument("--tolerance", type=float, metavar="RATIO", help=text)
    parser.epilog = EPILOG


def _names(accepted: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A type of several names with commas between; any are accepted if none are given."""

    def parsed(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if accepted and name not in accepted:
                raise argparse.ArgumentTypeError(f"{name!r}; accepted: {', '.join(accepted)}")
        return names

    return parsed


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: whole numbers from 1")
    return int(text)


def _counts(separator: str) -> Callable[[str], tuple[int, ...]]:
    """A type of several numbers with the separator between."""
    return lambda text: tuple(map(_count, text.split(separator)))
