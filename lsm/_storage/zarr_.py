"""Arrays in Zarr directories, with zarr."""

import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from lsm._files import UnusableFileError, warn
from lsm._stopping import deferred_signals
from lsm._storage.base import Array, Index, Source, WritableArray, brief, check_attributes, check_elements, chosen

ATTRIBUTE = "lsm"
# With older versions, an interrupted run could leave half a chunk.
_NEEDED = (3, 1, 3)
if tuple(map(int, re.findall(r"\d+", zarr.__version__)[:3])) < _NEEDED:
    raise ImportError(f"version {'.'.join(map(str, _NEEDED))} or newer; {zarr.__version__} is installed")


@dataclass(frozen=True, kw_only=True)
class ZarrArray(WritableArray):
    """An array in a directory of its own."""

    array: Any

    def read(self, index: Index) -> Array:
        """Read one block."""
        try:
            with deferred_signals():
                return np.asarray(self.array[index])
        except (OSError, RuntimeError, ValueError) as error:
            raise OSError(f"{self.name} cannot be read: {brief(error)}") from error

    def write(self, index: Index, block: Array) -> None:
        """Write one block of whole chunks."""
        with deferred_signals():
            self.array[index] = block

    def is_written(self, index: Index) -> bool:
        """Whether all chunks of a block exist; zarr renames a chunk to its final name once it is complete."""
        units = zip(index, self.unit or (), strict=True)
        numbers = product(*(range(part.start // n, -(-part.stop // n)) for part, n in units))
        keys = map(self.array.metadata.encode_chunk_key, numbers)
        return all(os.path.exists(f"{self.path}/{key}") for key in keys)  # noqa: PTH110 (faster)

    @property
    def record(self) -> dict[str, Any]:
        """The record that lsm has stored with a result."""
        found: dict[str, Any] = self.array.attrs[ATTRIBUTE]
        return found

    @property
    def source(self) -> Source:
        """See `StoredArray.source`."""
        return Source(os.path.abspath(self.path))  # noqa: PTH100

    def warn_of_missing(self) -> None:
        """Warn of missing chunks, unless they are read as NaN, which shows in the result."""
        n_missing, fill = self.count_missing(), self.array.fill_value
        if n_missing > 0 and not (fill is not None and np.isnan(fill)):
            what = "shards" if self.array.shards else "chunks"
            warn(f"{self.name}: {n_missing} {what} are missing, and are read as the fill value {fill}")

    def count_missing(self) -> int:
        """The number of missing chunks, or shards; zarr's own count takes longer than reading the array."""
        names = chain.from_iterable(names for _, _, names in os.walk(self.path))
        n_there = sum(not (name.startswith(".") or name.endswith((".json", ".partial"))) for name in names)
        return math.prod(-(-n // k) for n, k in zip(self.shape, self.unit or (), strict=True)) - n_there


@contextmanager
def open_array(source: Source) -> Iterator[ZarrArray]:
    """Open an array and check it."""
    name = repr(source.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other files in a directory
            array = zarr.open(source.path, mode="r")
            within = None
            if isinstance(array, zarr.Group):
                names = [key for key, node in array.members(max_depth=None) if isinstance(node, zarr.Array)]
                within = chosen(name, names, source)
                name, array = f"{name}, array {within!r}", array[within]
            elif source.within is not None:
                raise UnusableFileError(f"{name} is an array, not a group; leave out {source.flag}")
            np.broadcast_to(np.zeros((), array.dtype), array.shape)  # raises for an impossible shape
            unit = array.shards or array.chunks
            if any(k == 0 < n for k, n in zip(unit, array.shape, strict=True)):
                raise ValueError(f"chunks of shape {unit}")
    except UnusableFileError:
        raise
    except Exception as error:  # malicious metadata can raise anything
        raise unreadable(name, error) from error
    check_elements(name, array.dtype, "Zarr arrays")
    check_attributes(name, array.attrs)
    if not is_complete(array):
        raise UnusableFileError(f"{name} is incomplete: lsm apply was interrupted; complete it first with --resume")
    yield ZarrArray(
        name=name,
        path=str(Path(source.path, within or "")),
        within=within,
        shape=array.shape,
        dtype=array.dtype,
        unit=tuple(max(1, n) for n in unit),
        array=array,
    )


def unreadable(name: str, error: Exception) -> UnusableFileError:
    """The error for an array that zarr cannot open."""
    return UnusableFileError(f"{name} cannot be read as a Zarr array: {brief(error)}")


def is_complete(array: Any) -> bool:
    """Whether an array is not left over from an interrupted run."""
    record = array.attrs.get(ATTRIBUTE)
    return not isinstance(record, dict) or record.get("complete") is True
