"""The arguments of `lsm bench`; light, since the command `lsm` describes them whether they are used or not."""

import argparse
import math
import shlex
from pathlib import Path

# Of 192 comparisons of one build with itself, on a machine at work for others, none went beyond 1.3 both by the clock
# and beside the peers, and 2 beyond 1.25; by the clock alone 16 went beyond 1.3.
TOLERANCE = 1.3
CHARTS = (".svg", ".png", ".html")
SETS = {
    "quick": "a choice that ends within a minute on 2 cores (default)",
    "usual": "every workload, in the dtypes that it usually has",
    "full": "everything, which takes hours",
}
ABOUT = "compare every backend and every library installed: speed, share of the machine's limit, and error"
EPILOG = """exit codes: 0 done; 1 something of lsm is slower than in --compare FILE by more than --tolerance, not right
any more, or missing, or the run failed or timed nothing; 2 arguments or files that cannot be used; 3 no backend could
be judged beside --compare FILE; 130 interrupted. What was measured is always reported"""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Describe what is measured, with whom, and what is made of it."""
    what = parser.add_argument_group("what is measured")
    sets = what.add_mutually_exclusive_group()
    for name, about in SETS.items():
        sets.add_argument(f"--{name}", dest="set", action="store_const", const=name, help=about)
    _add_list(what, "--only", "NAME", "workloads with one of these in their name")
    _add_list(what, "--op", "OP", "of forward, backward, forward+backward")
    _add_list(what, "--dtype", "DTYPE", "of float16, bfloat16, float32, float64")
    _add_list(what, "--data", "KIND", "of logits, peaked, masked, constant")
    what.add_argument("--shape", type=_shape, metavar="64x128256", help="a shape of your own")
    what.add_argument("--axis", type=int, metavar="N", help="the axis of the classes of --shape (default: -1)")
    what.add_argument("--sweep", choices=("classes", "frames"), help="time against the amount of work")
    what.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        help="also the memory that a call needs, in a process of its own (default: not in the quick set)",
    )
    how = parser.add_argument_group("with whom, and how")
    _add_list(how, "--contestants", "NAME", "those with one of these in their name (default: all that are installed)")
    how.add_argument("--threads", type=_counts, metavar="N,...", help="numbers of threads (default: all)")
    how.add_argument("--rounds", type=_count, metavar="N", help="turns of each contestant")
    how.add_argument("--device", metavar="DEVICE", help="cpu (default) or cuda")
    output = parser.add_argument_group("what is made of it")
    output.add_argument("--json", metavar="FILE", help="everything, written after each row")
    output.add_argument("--markdown", metavar="FILE", help="the tables; into the marked place of a page that has one")
    output.add_argument(
        "--chart", type=_chart, metavar="FILE", help="ratios, and GB/s against size: .svg, .png or .html"
    )
    output.add_argument("--from", dest="measured", metavar="FILE", help="measure nothing: report this JSON")
    output.add_argument("--compare", metavar="FILE", help="ratios to the run in this JSON")
    output.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="RATIO",
        help=f"how many times as long a call may take as in --compare FILE (default: {TOLERANCE})",
    )
    parser.epilog = EPILOG


def _add_list(group: argparse._ActionsContainer, flag: str, metavar: str, text: str) -> None:
    """An argument that takes several names, with spaces or commas between."""
    group.add_argument(flag, nargs="+", action="extend", type=str, metavar=metavar, help=text)


def names(texts: list[str] | None) -> tuple[str, ...]:
    """What such an argument was given, each name once."""
    parts = (part for text in texts or () for part in text.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def contestants(command: str) -> tuple[str, ...]:
    """Who was asked for by the command that a result keeps; () is everybody, or a command that is none."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    _add_list(parser, "--contestants", "NAME", "")
    try:
        found, _ = parser.parse_known_args(shlex.split(command))
    except (ValueError, argparse.ArgumentError):
        return ()
    return names(found.contestants)


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
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a ratio from 1, such as {TOLERANCE}")
    return ratio


def _chart(text: str) -> str:
    if Path(text).suffix.lower() not in CHARTS:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a name that ends in {', '.join(CHARTS)}")
    return text
