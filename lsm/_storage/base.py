"""The base classes of stored arrays, and the checks common to all formats."""

import os
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsm._check import dtype_name
from lsm._files import UnusableFileError

Array = np.ndarray[Any, np.dtype[Any]]
Index = tuple[slice, ...]


class Source(NamedTuple):
    """The location of an array to read.

    Attributes
    ----------
    path : str
        The file or directory.
    within : str or None
        The name of the array in it; None for the only one.
    flag : str
        The option that gives that name.
    """

    path: str
    within: str | None = None
    flag: str = "--path"


@dataclass(frozen=True, kw_only=True)
class StoredArray(ABC):
    """An array in a file or a directory, read in blocks.

    Attributes
    ----------
    name : str
        The name used in messages.
    path : str
        The file that contains it, or the directory of this array alone.
    within : str or None
        Its name in a file or group that may contain several.
    shape, dtype
        As for an ndarray.
    unit : tuple of int or None
        The shape of the pieces that can only be read or written whole; None if there are none.
    is_fortran : bool
        Whether the first axis is the innermost one in the file.
    """

    name: str
    path: str
    within: str | None = None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: tuple[int, ...] | None = None
    is_fortran: bool = False

    @property
    def native_dtype(self) -> np.dtype[Any]:
        """The dtype in the byte order of this machine."""
        # Bits of bfloat16 are recognised by the identity of their dtype, so do not make a new one.
        return self.dtype if self.dtype.isnative else self.dtype.newbyteorder("=")

    @property
    def source(self) -> Source:
        """The location for another process with the same file system."""
        return Source(os.path.abspath(self.path), self.within)  # noqa: PTH100 (a link may lead elsewhere there)

    @abstractmethod
    def read(self, index: Index) -> Array:
        """Read one block."""

    def warn_of_missing(self) -> None:  # noqa: B027 (in most formats, none can be)
        """Warn if numbers are missing and are read as others."""


class WritableArray(StoredArray):
    """An array that can also be written."""

    def empty(self, index: Index) -> Array:
        """A new array for a block, in the memory order of the file."""
        shape = tuple(part.stop - part.start for part in index)
        return np.empty(shape[::-1], self.dtype).T if self.is_fortran else np.empty(shape, self.dtype)

    def fits(self, index: Index, block: Array) -> bool:
        """Whether the result for `index` can be computed in place, in a block that has been read."""
        shape = tuple(part.stop - part.start for part in index)
        return block.shape == shape and block.dtype == self.dtype and block.flags.writeable

    @abstractmethod
    def write(self, index: Index, block: Array) -> None:
        """Write one block, made by `empty`."""

    @property
    def record(self) -> dict[str, Any]:
        """The record of how the result was made, in formats that store it."""
        return {}

    def is_written(self, index: Index) -> bool:
        """Whether an earlier run has written this block."""
        return False


class Result(NamedTuple):
    """An array to be written.

    Attributes
    ----------
    target : str
        The file or directory.
    dtype, shape
        As for an ndarray.
    unit : tuple of int
        The shape of the chunks, in formats that have them.
    within : str or None
        The name of the array in the file or group.
    like : StoredArray
        The input from which memory order, compression and format version are copied where possible.
    record : dict
        The inputs and the call: a resumed run must have the same. Empty if the format stores none.
    """

    target: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    unit: tuple[int, ...]
    within: str | None
    like: StoredArray
    record: dict[str, Any]


def is_zarr(path: str) -> bool:
    """Whether a path leads to a Zarr array or group."""
    with suppress(OSError):  # reported on opening
        return any(Path(path, name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))
    return False


def brief(error: object) -> str:
    """The message of an error, or its type if it has none, cut short, since a malicious file may be its source."""
    return textwrap.shorten(str(error) or type(error).__name__, 160)


def chosen(name: str, arrays: Iterable[str], source: Source) -> str:
    """The name of the requested array in a file that may contain several."""
    there = sorted(arrays)
    if source.within in there or (source.within is None and len(there) == 1):
        return source.within or there[0]
    if not there:
        raise UnusableFileError(f"{name} contains no array")
    found = f"contains {len(there)} arrays" if source.within is None else f"contains no array {source.within!r}"
    shown = ", ".join(map(repr, there[:8])) + ", ..." * (len(there) > 8)
    raise UnusableFileError(f"{name} {found}; pass {source.flag} with one of {textwrap.shorten(shown, 300)}")


def check_elements(name: str, dtype: np.dtype[Any], files: str) -> None:
    """Raise UnusableFileError for elements that must not be loaded, or whose type is unknown."""
    if dtype.hasobject:
        raise UnusableFileError(
            f"{name} contains pickled Python objects, which are not loaded, because that can run code; save "
            "x.astype(float)"
        )
    if dtype.subdtype is not None:
        raise UnusableFileError(f"{name} has elements that are arrays ({dtype}); save an array of numbers instead")
    if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2 and dtype_name(dtype) != "bfloat16":
        raise UnusableFileError(
            f"{name} has 2-byte elements of unknown type ({dtype}), as {files} of bfloat16 do; save "
            "x.astype(numpy.float32), which represents every bfloat16 exactly"
        )


def check_attributes(name: str, attributes: Mapping[str, Any]) -> None:
    """Raise UnusableFileError if the stored numbers are encoded by the conventions of netCDF."""
    for key in ("scale_factor", "add_offset", "missing_value", "_FillValue"):
        value = attributes.get(key)
        try:
            is_harmless = value is None or (key in ("missing_value", "_FillValue") and np.isnan(value).all())
        except TypeError:  # text, which xarray stores beside Zarr's own fill value
            continue
        if not is_harmless:
            raise UnusableFileError(
                f"{name} has the attribute {key} = {value}, which lsm does not apply; save the decoded numbers, "
                "missing ones as -inf"
            )
