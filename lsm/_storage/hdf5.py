"""Arrays in HDF5 files, with h5py."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from lsm._files import UnusableFileError, write_all
from lsm._storage.base import Array, Index, Result, Source, StoredArray, brief, check_attributes, check_elements, chosen
from lsm._storage.raw import RawArray, raw_result


@dataclass(frozen=True, kw_only=True)
class HDF5Array(StoredArray):
    """A dataset of an open file."""

    dataset: Any

    def read(self, index: Index) -> Array:
        """Read one block."""
        try:
            return np.asarray(self.dataset[index])
        except (OSError, RuntimeError, ValueError) as error:
            raise OSError(f"{self.name} cannot be read: {brief(error)}") from error


@contextmanager
def open_array(source: Source) -> Iterator[HDF5Array]:
    """Open a file and check the dataset."""
    name = repr(source.path)
    try:
        file = h5py.File(source.path, "r")
    except OSError as error:
        raise UnusableFileError(f"{name} cannot be read: {brief(error)}") from error
    with file:
        within = (source.within or "").strip("/")
        dataset = file.get(within) if within else None
        if not isinstance(dataset, h5py.Dataset):
            within = chosen(name, _datasets(file), source._replace(within=within or None))
            dataset = file[within]
        name = f"{name}, dataset {within!r}"
        if dataset.shape is None:
            raise UnusableFileError(f"{name} has no elements (H5S_NULL); save an array")
        check_elements(name, dataset.dtype, "HDF5 files")
        check_attributes(name, dataset.attrs)
        yield HDF5Array(
            name=name,
            path=source.path,
            within=within,
            shape=dataset.shape,
            dtype=dataset.dtype,
            unit=dataset.chunks,
            dataset=dataset,
        )


def names_in(path: str) -> set[str]:
    """The datasets of a file."""
    with h5py.File(path, "r") as file:
        return _datasets(file)


def _datasets(file: Any) -> set[str]:
    found: set[str] = set()
    file.visititems(lambda name, node: found.add(name) if isinstance(node, h5py.Dataset) else None)
    return found


def create(file: io.FileIO, result: Result) -> RawArray:
    """Make a file of one dataset in place of an open, empty one.

    HDF5 writes the metadata of the dataset, and lsm the numbers: if HDF5 itself finds the disk full, closing the file
    can end the process by SIGSEGV (seen with HDF5 2.0.0).
    """
    n_described = 2**16  # more than enough
    write_all(file, memoryview(bytes(n_described)))
    file.truncate(math.prod(result.shape) * result.dtype.itemsize + n_described)  # raises if this is too large
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(file.name, "w") as opened:
        dataset = opened.create_dataset(result.within, result.shape, result.dtype, dcpl=properties)
        if not result.shape:
            dataset[()] = 0  # h5py ignores the properties for a scalar
        start = dataset.id.get_offset() or 0  # None without elements
    return raw_result(file, result, start)
