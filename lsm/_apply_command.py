"""The arguments of `lsm apply`."""

import argparse
import inspect

import lsm
from lsm import _apply
from lsm._operations import OPERATIONS

FUNCTIONS = (*OPERATIONS, "take_log_softmax", "top_k_log_softmax", "entropy")  # the `op` of the command line

# The inputs after the first, which are files, and other parameters of the functions; with the flag of each.
_ARRAYS = {name: f"--{name}" for operation in OPERATIONS.values() for name in operation.names[1:]}
_ARRAYS["indices"] = "--index"
_NEEDED = _ARRAYS | {"k": "--k"}
_FLAGS = _NEEDED | {"temperature": "--temperature", "dtype": "--dtype"}


def add_to(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    firsts = ", ".join(f"{_parameters(op)[0]} of {op}" for op in FUNCTIONS)
    parser.add_argument("input", metavar="IN", help=f".npy file: {firsts}")
    parser.add_argument("target", metavar="OUT", help=".npy file to write or replace; may be IN")
    parser.add_argument("--op", choices=FUNCTIONS, default="log_softmax", help="default: log_softmax")
    for name, flag in _ARRAYS.items():
        text = f".npy file: {name} of {', '.join(_having(name))}"
        parser.add_argument(flag, dest=name, metavar="FILE", help=text)
    text = "of top_k_log_softmax: how many classes; which they are is written to OUT with .indices before the suffix"
    parser.add_argument("--k", type=int, metavar="K", help=text)
    text = f"of {', '.join(_having('temperature'))} (default: 1)"
    parser.add_argument("--temperature", type=float, metavar="T", help=text)
    parser.add_argument(
        "--axis",
        type=_axis,
        default=-1,
        help="axis of the classes (default: -1); several as --axis=-2,-1; 'all' for all",
    )
    text = f"dtype of the result of {', '.join(_having('dtype'))} (default: that of IN; of entropy at least float32)"
    parser.add_argument("--dtype", help=text)
    parser.add_argument("--backend", metavar="NAME", help="backend to use, without fallback")
    parser.epilog = "; ".join(map(_usage, FUNCTIONS))


def apply(args: argparse.Namespace, progress: _apply.Progress) -> int:
    """Run `lsm apply`."""
    parameters = _parameters(args.op)
    options = {"axis": args.axis, "backend": args.backend}
    inputs = [args.input]
    for name, flag in _FLAGS.items():
        value, which = getattr(args, name), f"--op {', '.join(_having(name))}"
        if name not in parameters and value is not None:
            what, end = ("input", "; the result is written to OUT") if name in _ARRAYS else ("option", "")
            args.usage_error(f"{flag} is an {what} of {which}, not of {args.op}{end}")
        if name in parameters and name in _NEEDED and value is None:
            metavar = "FILE.npy" if name in _ARRAYS else name.upper()
            args.usage_error(f"{args.op} needs {flag} {metavar}; IN is {parameters[0]}")
        if name in _ARRAYS:
            inputs += [value] * (value is not None)
        elif value is not None:
            options[name] = value
    if args.dtype == "bfloat16":
        args.usage_error("--dtype: .npy files cannot store bfloat16; pass float32, which represents it exactly")
    _apply.apply(args.op, inputs, args.target, progress, **options)
    return 0


def _parameters(op: str) -> list[str]:
    """The parameters of a function."""
    return list(inspect.signature(getattr(lsm, op)).parameters)


def _having(parameter: str) -> list[str]:
    """The functions that have a parameter."""
    return [op for op in FUNCTIONS if parameter in _parameters(op)]


def _usage(op: str) -> str:
    """How the command is given a function's arguments."""
    first, *others = _parameters(op)
    needed = {name: "K" if name == "k" else f"{name}.npy" for name in others if name in _NEEDED}
    further = "".join(f" {_NEEDED[name]} {value}" for name, value in needed.items())
    return f"lsm apply --op {op} {first}.npy OUT.npy{further}"


def _axis(text: str) -> int | tuple[int, ...] | None:
    """Parse '-1', '0,2' or 'all'."""
    if text == "all":
        return None
    try:
        axes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: an int, comma-separated ints, or all") from error
    return axes if len(axes) > 1 else axes[0]
