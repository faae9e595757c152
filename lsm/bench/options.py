"""The options of `lsm bench`; light, since the command `lsm` describes them whether they are used or not."""

import argparse
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm._operations import DERIVED

MAP = "map"
SETS = {
    "quick": "takes about a minute on 2 cores (default)",
    "usual": "every workload, in the dtypes that it usually has",
    "full": "every workload, dtype and kind of data; takes hours",
    "cpu": "the shapes of docs/performance.md, up to 2^28 elements",
    "gpu": "the shapes of docs/gpu.md, on a CUDA device",
    MAP: "classes x inner, beside PyTorch, with 1 thread and with all: a table of ratios",
}
OPS = ("forward", "backward", "forward+backward")  # of log_softmax
FAMILY_OPS = ("softmax", "softmax_backward", "logsumexp", *DERIVED)  # by the names of the functions
DTYPES = ("float16", "bfloat16", "float32", "float64")
KINDS_OF_DATA = ("logits", "peaked", "masked", "constant", "offset", "huge", "label")
SWEEPS = ("classes", "frames")
DEVICES = ("cpu", "cuda")
CHARTS = (".svg", ".png")
# Of 192 comparisons of one build with itself on a busy machine, none exceeded 1.3 both by the clock and relative to the
# peers, and 2 exceeded 1.25; by the clock alone 16 exceeded 1.3.
TOLERANCE_RATIO = 1.3

# The arguments that a run needs which is not over yet.
MEASURING = ["set", "only", "op", "dtype", "data", "shape", "axis", "sweep", "memory"]
MEASURING += ["implementations", "threads", "rounds", "device"]

ABOUT = "compare every backend and every library installed: speed, share of the machine's limit, and error"
EPILOG = """exit codes: 0 done; 1 a backend of lsm is slower than in --compare FILE by more than --tolerance, no longer
right, or missing, or the run failed or timed nothing; 2 arguments or files that cannot be used; 3 no backend could be
judged against --compare FILE; 130 interrupted. What was measured is always reported"""


class OptionError(ValueError):
    """A value that no run can serve: `option` is a field of `Options`, `problem` the value and what is accepted."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option, self.problem = option, problem


@dataclass(frozen=True)
class Options:
    """A benchmark run; an empty tuple or None stands for what the set has. A bad value raises an OptionError."""

    set: str = "usual"
    only: tuple[str, ...] = ()  # parts of names of workloads
    op: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None  # instead of the named workloads
    axis: int = -1  # of `shape`
    sweep: str | None = None  # time against the amount of work, instead of the named workloads
    implementations: tuple[str, ...] = ()  # parts of names
    threads: tuple[int, ...] = ()  # as many as lsm would use, if empty
    rounds: int | None = None
    memory: bool | None = None  # needs a process of its own: not in the quick set, unless asked for
    device: str = "cpu"
    command: str = ""  # for the header

    def __post_init__(self) -> None:
        """Refuse what no run can serve."""
        choices = {"set": tuple(SETS), "op": OPS + FAMILY_OPS, "dtype": DTYPES, "data": KINDS_OF_DATA}
        for name, accepted in (choices | {"sweep": SWEEPS, "device": DEVICES}).items():
            given = getattr(self, name) or ()
            for value in (given,) if isinstance(given, str) else given:
                if value not in accepted:
                    raise OptionError(name, f"{value!r}; accepted: {', '.join(accepted)}")
        if self.shape is not None:
            if not -len(self.shape) <= self.axis < len(self.shape):
                raise OptionError("axis", f"{self.axis}; accepted: {-len(self.shape)} to {len(self.shape) - 1}")
            if self.sweep is not None or self.only:
                raise OptionError("shape", "it replaces the named workloads; leave out --only and --sweep")


def from_arguments(args: argparse.Namespace) -> Options:
    """Make the options of parsed arguments."""
    given = {name: value for name in MEASURING if (value := getattr(args, name)) is not None}
    for name in ("only", "op", "dtype", "data", "implementations"):  # each name once
        texts = given.get(name, ())
        given[name] = tuple(dict.fromkeys(part for text in texts for part in text.split(",") if part))
    if args.set == MAP and not given["implementations"]:
        given["implementations"] = ("cython", "torch", *["scipy"] * ("logsumexp" in given["op"]))
    usual = {"set": "quick", "device": "cuda" if args.set == "gpu" else "cpu"}
    return Options(**usual | given, command=shlex.join(args.command_line))


def add_to(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    what = parser.add_argument_group("what is measured")
    sets = what.add_mutually_exclusive_group()
    text = "; ".join(f"{name}: {about}" for name, about in SETS.items())
    sets.add_argument("--set", choices=SETS, help=text)
    for name in ("quick", "usual", "full"):
        sets.add_argument(f"--{name}", dest="set", action="store_const", const=name, help=f"short for --set {name}")
    _add_list(what, "--only", "NAME", "workloads with one of these in their name")
    _add_list(what, "--op", "OP", f"of {', '.join(OPS + FAMILY_OPS)}")
    _add_list(what, "--dtype", "DTYPE", f"of {', '.join(DTYPES)}")
    _add_list(what, "--data", "KIND", f"of {', '.join(KINDS_OF_DATA)}")
    what.add_argument("--shape", type=_shape, metavar="64x128256", help="a shape of your own")
    what.add_argument("--axis", type=int, metavar="N", help="the axis of the classes of --shape (default: -1)")
    what.add_argument("--sweep", choices=SWEEPS, help="time against the amount of work")
    memory = argparse.BooleanOptionalAction
    what.add_argument("--memory", action=memory, help="also the memory of a call (default: not in the quick set)")
    how = parser.add_argument_group("how it is measured")
    _add_list(how, "--implementations", "NAME", "those with one of these in their name (default: all installed)")
    how.add_argument("--threads", type=_counts, metavar="N,...", help="numbers of threads (default: all)")
    how.add_argument("--rounds", type=_count, metavar="N", help="samples of each implementation")
    how.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: that of the set)")
    output = parser.add_argument_group("what is written")
    output.add_argument("--json", metavar="FILE", help="everything, written after each row")
    output.add_argument("--markdown", metavar="FILE", help="the tables")
    output.add_argument("--chart", type=_chart, metavar="FILE", help="ratios, and GB/s or ns: .svg or .png")
    output.add_argument("--from", dest="measured", metavar="FILE", help="measure nothing: report this JSON")
    output.add_argument("--compare", metavar="FILE", help="ratios to the run in this JSON")
    text = f"how many times as long a call may take as in --compare FILE (default: {TOLERANCE_RATIO})"
    output.add_argument("--tolerance", type=_tolerance, metavar="RATIO", help=text)
    parser.epilog = EPILOG


def _add_list(group: argparse._ActionsContainer, flag: str, metavar: str, text: str, **more: Any) -> None:
    """An argument that takes several names, with spaces or commas between."""
    group.add_argument(flag, nargs="+", action="extend", type=str, metavar=metavar, help=text, **more)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: sizes from 1 with x between, such as 64x128256")
    return tuple(map(int, sizes))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: whole numbers from 1")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 1 <= ratio < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a ratio from 1, such as {TOLERANCE_RATIO}")
    return ratio


def _chart(text: str) -> str:
    if Path(text).suffix.lower() not in CHARTS:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a name that ends in {' or '.join(CHARTS)}")
    return text
