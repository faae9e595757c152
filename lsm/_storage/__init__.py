"""Arrays in files: the formats, and functions that open and create arrays in each of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lsm._check import dtype_name
from lsm._files import UnusableFileError, atomic_writes
from lsm._storage import npy, safetensors
from lsm._storage.base import Result, Source, StoredArray, WritableArray, is_zarr
from lsm._storage.raw import open_file
from lsm._version import install_command


class Format(NamedTuple):
    """A file format.

    Attributes
    ----------
    suffixes : tuple of str
        The suffixes of its files.
    cannot_store : tuple of str
        The dtypes of results that its files cannot store.
    has_names : bool
        Whether a file needs a name for each array.
    """

    suffixes: tuple[str, ...]
    cannot_store: tuple[str, ...]
    has_names: bool


FORMATS = {
    "npy": Format((".npy",), ("bfloat16",), has_names=False),
    "safetensors": Format((".safetensors",), ("longdouble",), has_names=True),
    "zarr": Format((".zarr",), ("bfloat16", "longdouble"), has_names=False),
    "hdf5": Format((".h5", ".hdf5"), ("bfloat16",), has_names=True),
}
_REMEDIES = {"bfloat16": "float32, which represents it exactly", "longdouble": "float64"}


def format_of(target: str) -> str:
    """The format of a file to write, by its suffix; npy without one."""
    suffix = Path(target).suffix.lower()
    for name, about in FORMATS.items():
        if suffix in about.suffixes or (name == "npy" and not suffix):
            return name
    known = ", ".join(suffix for about in FORMATS.values() for suffix in about.suffixes)
    why = "an .npz archive cannot be written in blocks" if suffix == ".npz" else "no format has this suffix"
    raise UnusableFileError(
        f"{target!r}: {why}; pass a name that ends in {known}, or --format with one of {', '.join(FORMATS)}"
    )


def check_dtype(format_: str, dtype: str, name: str) -> None:
    """Raise UnusableFileError for a dtype that files of this format cannot store; `name` is the array that has it."""
    about = FORMATS[format_]
    if dtype in about.cannot_store:
        raise UnusableFileError(
            f"{name}: {about.suffixes[0]} files cannot store {dtype}; pass --dtype {_REMEDIES[dtype]}"
        )


@contextmanager
def open_array(source: Source) -> Iterator[StoredArray]:
    """Open an array in a file or directory, whose format is recognised by its contents."""
    if is_zarr(source.path):
        zarr_, _ = _zarr(source.path)
        with zarr_.open_array(source) as array:
            yield array
        return
    with open_file(source.path) as file:
        start, suffix = file.read(9), Path(source.path).suffix.lower()
        file.seek(0)
        if start.startswith(b"\x89HDF\r\n\x1a\n") or suffix in FORMATS["hdf5"].suffixes:
            with _hdf5(source.path).open_array(source) as array:
                yield array
        elif not start.startswith(b"\x93NUMPY") and (suffix == ".safetensors" or start[8:] == b"{"):
            yield safetensors.stored_array(source, file)
        else:
            yield npy.stored_array(source, file)


@contextmanager
def create_arrays(format_: str, results: Sequence[Result], is_resumed: bool) -> Iterator[Sequence[WritableArray]]:
    """Make an array for each result: Zarr chunk by chunk (`zarr_results.create_arrays`), other files atomically."""
    for result in results:
        check_dtype(format_, dtype_name(result.dtype), repr(result.target))
    if format_ == "zarr":
        _, zarr_results = _zarr(results[0].target)
        with zarr_results.create_arrays(results, is_resumed) as arrays:
            yield arrays
        return
    module: Any = {"npy": npy, "safetensors": safetensors}.get(format_) or _hdf5(results[0].target)
    for result in results if FORMATS[format_].has_names else ():
        _check_others(result, module)
    with atomic_writes([result.target for result in results]) as files:
        yield [module.create(*pair) for pair in zip(files, results, strict=True)]


def reopen_result(path: str, name: str, record: dict[str, Any]) -> WritableArray:
    """Open a Zarr array that `create_arrays` has made in another process."""
    _, zarr_results = _zarr(path)
    array: WritableArray = zarr_results.reopen(path, name, record)
    return array


def _check_others(result: Result, module: Any) -> None:
    """Raise UnusableFileError if the file to replace has several arrays, of which all but one would be lost."""
    there: set[str] = set()
    with suppress(OSError, UnusableFileError):  # such as a file of another format
        if Path(result.target).is_file():  # not a FIFO, which would block forever
            there = module.names_in(result.target)
    if len(there) > 1:
        raise UnusableFileError(
            f"{result.target!r} contains {len(there)} arrays, such as {min(there)!r}, which would be lost; pass "
            "another file"
        )


def _zarr(path: str) -> tuple[Any, Any]:
    try:
        from lsm._storage import zarr_, zarr_results
    except ImportError as error:
        raise UnusableFileError(f"{path!r}: zarr is needed ({error}): {install_command('zarr')}") from error
    return zarr_, zarr_results


def _hdf5(path: str) -> Any:
    try:
        from lsm._storage import hdf5
    except ImportError as error:
        raise UnusableFileError(f"{path!r}: h5py is needed ({error}): {install_command('hdf5')}") from error
    return hdf5
