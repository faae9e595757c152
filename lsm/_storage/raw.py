"""Arrays stored in a file as in memory, read and written in blocks."""

import io
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from lsm._files import UnusableFileError, write_all
from lsm._storage.base import Array, Index, Result, WritableArray


@dataclass(frozen=True, kw_only=True)
class RawArray(WritableArray):
    """An array in an open file, from the byte `start` on.

    It is not memory-mapped, because a full disk or a truncated file would then end the process by SIGBUS without a
    message, and mapped pages count as memory of the process.
    """

    file: io.FileIO
    start: int

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


def raw_result(file: io.FileIO, result: Result, start: int, is_fortran: bool = False) -> RawArray:
    """The array of a result whose header has been written."""
    return RawArray(
        name=repr(result.target),
        path=result.target,
        within=result.within,
        shape=result.shape,
        dtype=result.dtype,
        is_fortran=is_fortran,
        file=file,
        start=start,
    )


@contextmanager
def open_file(path: str) -> Iterator[io.FileIO]:
    """Open a regular file for reading."""
    name = repr(path)
    try:
        status = Path(path).stat()  # before opening, which blocks forever on a FIFO
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UnusableFileError(f"{name} is {kind}; pass a .npy file written by numpy.save, or a Zarr array")
        file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 (Path.open has no FileIO; closed below)
    except OSError as error:
        raise UnusableFileError(f"{name} cannot be read: {error.strerror or error}") from error
    with file:
        yield file
