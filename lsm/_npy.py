"""Arrays in .npy files, read and written in blocks."""

import io
import math
import os
import stat
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from lsm._files import UnusableFileError, write_all

Array = np.ndarray[Any, np.dtype[Any]]
Index = tuple[slice, ...]


@dataclass(frozen=True)
class StoredArray:
    """An array in an open .npy file, read and written in blocks.

    It is not memory-mapped, because a full disk or a truncated file would then end the process by SIGBUS without a
    message, and mapped pages count as memory of the process.
    """

    name: str
    file: io.FileIO
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    start: int

    def empty(self, index: Index) -> Array:
        """A new array for a block, in the order of the file."""
        shape = tuple(part.stop - part.start for part in index)
        return np.empty(shape[::-1], self.dtype).T if self.is_fortran else np.empty(shape, self.dtype)

    def read(self, index: Index) -> Array:
        """Read one block."""
        block = self.empty(index)
        for offset, data in self._contiguous_pieces(index, block):
            self.file.seek(offset)
            while data:
                n_read = self.file.readinto(data)
                if not n_read:
                    raise OSError(f"{self.name} was truncated while it was being read")
                data = data[n_read:]
        return block

    def write(self, index: Index, block: Array) -> None:
        """Write one block, made by `empty`."""
        for offset, data in self._contiguous_pieces(index, block):
            self.file.seek(offset)
            write_all(self.file, data)

    def _contiguous_pieces(self, index: Index, block: Array) -> Iterator[tuple[int, memoryview]]:
        """Each contiguous piece of a block: its offset in the file, and its bytes in memory."""
        if self.is_fortran:
            shape, index, block = self.shape[::-1], index[::-1], block.T
        else:
            shape = self.shape
        data = block.reshape(-1).view(np.uint8).data
        sizes = [self.dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape))]
        cut = max((i for i, part in enumerate(index) if part.stop - part.start < shape[i]), default=0)
        first, n_bytes = 0, len(data)
        if shape:
            first, n_bytes = index[cut].start * sizes[cut], (index[cut].stop - index[cut].start) * sizes[cut]
        rows = product(*(range(part.start, part.stop) for part in index[:cut]))
        for k, row in enumerate(rows):
            offset = self.start + first + sum(i * size for i, size in zip(row, sizes, strict=False))
            yield offset, data[k * n_bytes : (k + 1) * n_bytes]


@contextmanager
def open_array(path: str) -> Iterator[StoredArray]:
    """Open a .npy file and check its header."""
    name = repr(path)
    try:
        status = Path(path).stat()  # before opening, which blocks forever on a FIFO
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UnusableFileError(f"{name} is {kind}; pass a .npy file written by numpy.save")
        file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 (Path.open has no FileIO; closed below)
    except OSError as error:
        raise UnusableFileError(f"{name} cannot be read: {error.strerror or error}") from error
    with file:
        yield stored_array(name, file)


def stored_array(name: str, file: io.FileIO) -> StoredArray:
    """Read the header of an open .npy file, and check the file against it."""
    start = file.read(6)
    if start != b"\x93NUMPY":
        found = "is empty" if not start else f"is not a .npy file (it starts with {start!r})"
        if start.startswith(b"PK"):
            found = "is an .npz archive"
        raise UnusableFileError(f"{name} {found}; pass a .npy file of one array, written by numpy.save")
    shape, is_fortran, dtype = parse_header(name, file)
    if dtype.hasobject:
        raise UnusableFileError(
            f"{name} contains pickled Python objects, which are not loaded, because that can run code; save "
            "x.astype(float)"
        )
    if dtype.subdtype is not None:
        raise UnusableFileError(f"{name} has elements that are arrays ({dtype}); save an array of numbers instead")
    if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2:
        raise UnusableFileError(
            f"{name} has 2-byte elements of unknown type ({dtype}), as .npy files of bfloat16 do; save "
            "x.astype(numpy.float32), which represents every bfloat16 exactly"
        )
    array = StoredArray(name, file, shape, dtype, is_fortran, file.tell())
    n_bytes, n_there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - array.start
    if n_there < n_bytes:
        raise UnusableFileError(
            f"{name} is truncated: shape {shape} and dtype {dtype} take {n_bytes} bytes, but only {n_there} follow the "
            "header; write the file again"
        )
    return array


def parse_header(name: str, file: io.FileIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, order and dtype from the header of a .npy file, which may be malicious."""
    file.seek(0)
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"format version {version[0]}.{version[1]} is not 1.0, 2.0 or 3.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        text = as_version_2(file) if version == (3, 0) else file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers from Python 2, or invalid escapes
            shape, is_fortran, dtype = read(text)
        np.broadcast_to(np.zeros((), dtype), shape)  # raises for an impossible shape
    except OSError:
        raise
    except Exception as error:  # a malicious header can raise RecursionError or MemoryError too
        why = textwrap.shorten(str(error) or type(error).__name__, 160)
        raise UnusableFileError(
            f"{name} has an invalid header ({why}); write the file again with numpy.save"
        ) from error
    return tuple(map(int, shape)), is_fortran, dtype


def as_version_2(file: io.FileIO) -> io.BytesIO:
    """Convert a header of format 3.0 to 2.0, because NumPy has no public function that reads 3.0.

    The header of 3.0 is UTF-8, for the names of fields, and that of 2.0 Latin-1. In a string literal, an escape
    sequence stands for the same character.
    """
    n_bytes = int.from_bytes(file.read(4), "little")
    header = file.read(n_bytes)
    if len(header) < n_bytes:
        raise ValueError(f"the file ends within its header of {n_bytes} bytes")
    header = header.decode("utf-8").encode("latin-1", "backslashreplace")
    return io.BytesIO(len(header).to_bytes(4, "little") + header)


def create_result(file: io.FileIO, dtype: np.dtype[Any], shape: tuple[int, ...], is_fortran: bool) -> StoredArray:
    """Write the header of the result, as numpy.save does."""
    text = io.BytesIO()
    npy.write_array_header_1_0(text, {"descr": npy.dtype_to_descr(dtype), "fortran_order": is_fortran, "shape": shape})
    write_all(file, text.getbuffer())
    return StoredArray("the result", file, shape, dtype, is_fortran, file.tell())
