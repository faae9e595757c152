"""The arguments of `lsm apply`."""

import argparse
import inspect
from contextlib import nullcontext

import lsm
from lsm import _apply, _apply_cluster, _apply_files
from lsm._operations import OPERATIONS
from lsm._storage import FORMATS, check_dtype, format_of
from lsm._storage.base import Source

FUNCTIONS = (*OPERATIONS, "take_log_softmax", "top_k_log_softmax", "entropy")  # the `op` of the command line

# The flags: of the inputs after the first, which are files, and of other parameters of the functions.
_ARRAYS = {name: f"--{name}" for operation in OPERATIONS.values() for name in operation.names[1:]}
_ARRAYS["indices"] = "--index"
_NEEDED = _ARRAYS | {"k": "--k"}
_FLAGS = _NEEDED | {"temperature": "--temperature", "dtype": "--dtype"}


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    firsts = ", ".join(f"{_parameters(op)[0]} of {op}" for op in FUNCTIONS)
    suffixes = ", ".join(suffix for about in FORMATS.values() for suffix in about.suffixes)
    parser.add_argument("input", metavar="IN", help=f"file ({suffixes}): {firsts}")
    parser.add_argument(
        "target", metavar="OUT", help="file to write or replace, in the format of its suffix; may be IN"
    )
    parser.add_argument("--op", choices=FUNCTIONS, default="log_softmax", help="default: log_softmax")
    for name, flag in _ARRAYS.items():
        text = f"file: {name} of {', '.join(_having(name))}"
        parser.add_argument(flag, dest=name, metavar="FILE", help=text)
    text = "of top_k_log_softmax: the number of classes; the indices are written to OUT with .indices before the suffix"
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
    parser.add_argument(
        "--format", choices=FORMATS, help="format of OUT, whatever its suffix; those of the inputs are detected"
    )
    text = (
        "the array in IN, if there are several: a tensor of .safetensors, a dataset of HDF5, an array of a Zarr group"
    )
    parser.add_argument("--path", metavar="NAME", help=text)
    for name, flag in _ARRAYS.items():
        parser.add_argument(f"{flag}-path", dest=f"{name}_path", metavar="NAME", help=f"likewise in the file of {flag}")
    text = "name of the result in OUT (default: that in IN, or OP; in Zarr, OUT itself is the array)"
    parser.add_argument("--name", metavar="NAME", help=text)
    text = "continue an interrupted run of the same command, whose OUT is Zarr; begin if there was none"
    parser.add_argument("--resume", action="store_true", help=text)
    text = "have the workers of a Dask cluster compute the blocks, such as tcp://host:8786; OUT is Zarr, all files are "
    parser.add_argument("--scheduler", metavar="ADDRESS", help=text + "shared")
    parser.epilog = "; ".join(map(_usage, FUNCTIONS))


def apply(args: argparse.Namespace, progress: _apply_files.Progress) -> int:
    """Run `lsm apply`."""
    parameters = _parameters(args.op)
    options = {"axis": args.axis, "backend": args.backend}
    inputs = [Source(args.input, args.path)]
    for name, flag in _FLAGS.items():
        value, which = getattr(args, name), f"--op {', '.join(_having(name))}"
        if name not in parameters and value is not None:
            what, end = ("input", "; the result is written to OUT") if name in _ARRAYS else ("option", "")
            args.usage_error(f"{flag} is an {what} of {which}, not of {args.op}{end}")
        if name in parameters and name in _NEEDED and value is None:
            metavar = "FILE.npy" if name in _ARRAYS else name.upper()
            args.usage_error(f"{args.op} needs {flag} {metavar}; IN is {parameters[0]}")
        if name in _ARRAYS:
            inputs += [Source(value, getattr(args, f"{name}_path"), f"{flag}-path")] if value is not None else []
        elif value is not None:
            options[name] = value
    format_ = args.format or format_of(args.target)
    if args.dtype is not None:
        check_dtype(format_, args.dtype, "--dtype")
    if args.name is not None and format_ == "npy":
        args.usage_error("--name names an array in .safetensors, HDF5 or Zarr; the array of a .npy file has no name")
    if args.resume and format_ != "zarr":
        args.usage_error(f"--resume is for results in Zarr; {format_} files are written as a whole or not at all")
    target = _apply_files.Target(args.target, format_, args.name, args.resume)
    if args.scheduler is not None and format_ != "zarr":
        args.usage_error(
            f"--scheduler is for results in Zarr, the only format that several processes can write, not {format_}; "
            "name OUT with the suffix .zarr, or leave out --scheduler"
        )
    with nullcontext(_apply.run_here) if args.scheduler is None else _apply_cluster.cluster(args.scheduler) as run_all:
        _apply_files.apply(args.op, inputs, target, progress, run_all, **options)
    return 0


def _parameters(op: str) -> list[str]:
    """The parameters of a function."""
    return list(inspect.signature(getattr(lsm, op)).parameters)


def _having(parameter: str) -> list[str]:
    """The functions that have a parameter."""
    return [op for op in FUNCTIONS if parameter in _parameters(op)]


def _usage(op: str) -> str:
    """How a function's arguments are passed to the command."""
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
