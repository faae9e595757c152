"""`lsm apply`: .npy file to .npy file in blocks of frames, for files larger than memory."""

import io
import math
import os
import secrets
import stat
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

import lsm
from lsm._check import normalised_axes
from lsm._errors import LsmError
from lsm._identity import copy_metadata
from lsm._operations import OPERATIONS

# Large enough to hide the cost of calls and reads, small enough for any machine. Every element counts as
# ELEMENT_BYTES, whatever its dtype: integers become float64, and the NumPy backend computes in float64.
BLOCK_BYTES = 64 * 2**20
ELEMENT_BYTES = 8

Array = np.ndarray[Any, np.dtype[Any]]
Index = tuple[slice, ...]
Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]  # (total bytes) -> advance(bytes)


class UnusableFileError(LsmError, ValueError):
    """A file cannot be used as input or output; nothing was written."""


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


def write_all(file: io.FileIO, data: memoryview) -> None:
    """Write every byte: a single call may write only some of them, as when a disk fills up."""
    while data:
        data = data[file.write(data) :]


def apply(op: str, inputs: Sequence[str], target: str, progress: Progress, *, axis: Any, **options: Any) -> None:
    """Apply an operation to arrays in files and write the result, either all of it or nothing.

    Parameters
    ----------
    op : str
        The name of a function of lsm.
    inputs : sequence of str
        The .npy files of the inputs.
    target : str
        The .npy file of the result; may be one of `inputs`.
    progress : callable
        Called with the total number of bytes of the first input; returns a context manager that yields a function,
        which is called with the number of bytes of each finished block.
    axis, **options : optional
        Arguments of the operation.

    Raises
    ------
    UnusableFileError
        A file is missing, not readable, not writable, or not a .npy file of an array that lsm supports.
    LsmError, TypeError, ValueError, numpy.exceptions.AxisError
        From the operation. These and the above are raised before anything is written.
    OSError
        A read or write failed.
    """
    function = partial(getattr(lsm, op), axis=axis, **options)
    with ExitStack() as stack:
        arrays = [stack.enter_context(open_array(path)) for path in inputs]
        first = arrays[0]
        result = dry_run(function, arrays)
        with atomic_write(target) as file:
            axes = normalised_axes(axis, len(first.shape))
            is_map = not OPERATIONS[op].is_reduction
            kept = [i for i in range(len(first.shape)) if is_map or i not in axes]  # the axes of the result
            out = create_result(file, tuple(first.shape[i] for i in kept), result, first.is_fortran)
            advance = stack.enter_context(progress(math.prod(first.shape) * first.dtype.itemsize))
            for index in blocks(first.shape, axes, first.is_fortran):
                given = [array.read(index) for array in arrays]
                part = tuple(index[i] for i in kept)
                block = out.empty(part)
                function(*given, out=block)
                out.write(part, block)
                advance(given[0].size * first.dtype.itemsize)


def dry_run(function: Callable[..., Array], arrays: Sequence[StoredArray]) -> np.dtype[Any]:
    """Find the dtype of the result by a call on empty arrays, which raises the errors that the real call would."""
    for array in arrays[1:]:
        if array.shape != arrays[0].shape:
            raise UnusableFileError(
                f"{arrays[0].name} and {array.name}: the shapes {arrays[0].shape} and {array.shape} differ; "
                "they must be the same"
            )
    try:
        return function(*(np.zeros((0,) * len(a.shape), a.dtype.newbyteorder("=")) for a in arrays)).dtype
    except LsmError:
        raise
    except (TypeError, ValueError) as error:
        files = ", ".join(f"{array.name} (shape {array.shape}, dtype {array.dtype})" for array in arrays)
        raise UnusableFileError(f"{files}: {error}") from error


def blocks(shape: tuple[int, ...], axes: tuple[int, ...], is_fortran: bool) -> Iterator[Index]:
    """Split an array into blocks of whole frames, in file order.

    To make contiguous pieces long, a block spans the frame axes from the innermost of the file outward as long as it
    stays within BLOCK_BYTES; the next axis is split, and the outer ones are iterated over.
    """
    if any(n == 0 for i, n in enumerate(shape) if i not in axes):
        return
    steps = [max(1, n) for n in shape]  # of the classes there may be none
    outermost_first = range(len(shape))[:: -1 if is_fortran else 1]
    size = math.prod(steps[axis] for axis in axes)
    for i in reversed(outermost_first):
        if i not in axes:
            steps[i] = min(shape[i], max(1, BLOCK_BYTES // ELEMENT_BYTES // size))
            size *= steps[i]
    for starts in product(*(range(0, max(1, shape[i]), steps[i]) for i in outermost_first)):
        parts = {i: slice(k, min(k + steps[i], shape[i])) for i, k in zip(outermost_first, starts, strict=True)}
        yield tuple(parts[i] for i in range(len(shape)))


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


def create_result(file: io.FileIO, shape: tuple[int, ...], dtype: np.dtype[Any], is_fortran: bool) -> StoredArray:
    """Write the header of the result, as numpy.save does."""
    text = io.BytesIO()
    npy.write_array_header_1_0(text, {"descr": npy.dtype_to_descr(dtype), "fortran_order": is_fortran, "shape": shape})
    write_all(file, text.getbuffer())
    return StoredArray("the result", file, shape, dtype, is_fortran, file.tell())


@contextmanager
def atomic_write(target: str) -> Iterator[io.FileIO]:
    """Open a temporary file beside the target; on success it replaces the target, on failure it is deleted.

    Symbolic links are followed. The metadata of an existing file is kept (`copy_metadata`), with a warning for what
    cannot be. A new file has default permissions.
    """
    name = repr(target)
    try:
        check_is_no_descriptor(target)
        path = Path(target).resolve()
        mode = replaceable_mode(path, target)
    except (OSError, RuntimeError) as error:  # RuntimeError: a cycle of links, before Python 3.13
        raise UnusableFileError(f"{name} cannot be written: {getattr(error, 'strerror', '') or error}") from error
    temporary = path.with_name(f".lsm-{secrets.token_hex(8)}.tmp")
    try:
        with new_file(temporary, name, 0o666 if mode is None else mode & 0o600) as file:
            yield file
            if mode is not None:
                # By descriptor where supported: the name may refer to another file by now.
                lost = copy_metadata(path, file.fileno() if os.chmod in os.supports_fd else temporary)
                if lost:
                    warn(f"{name} is replaced; the new file does not have the old one's {lost}")
            os.fsync(file.fileno())  # else a system crash could leave the target empty
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def warn(text: str) -> None:
    """Warn regardless of filters: if the warning became an error, the result would be lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, stacklevel=2)


def check_is_no_descriptor(target: str) -> None:
    """Raise UnusableFileError for /dev/stdout and the like, which lead to whatever file a descriptor has open."""
    path = Path(target).absolute()
    for _ in range(40):  # the links that a path may lead through
        if path.parts[1:2] in (("dev",), ("proc",)) and path.parts[2:3] != ("shm",):
            raise UnusableFileError(f"{target!r} is a device or a descriptor; give the name of a file to write")
        if not path.is_symlink():
            return
        path = Path(os.path.normpath(path.parent / path.readlink()))


def new_file(path: Path, name: str, mode: int) -> io.FileIO:
    """Create a file with these permissions, minus the umask."""
    try:
        return open(path, "xb", buffering=0, opener=partial(os.open, mode=mode))
    except OSError as error:
        raise UnusableFileError(
            f"{name} cannot be written: no file can be created in {str(path.parent)!r}: {error.strerror}"
        ) from error


def replaceable_mode(path: Path, target: str) -> int | None:
    """Get the permissions of the file to replace; None if there is none."""
    if path.is_dir() or target.endswith(os.sep):
        raise UnusableFileError(f"{target!r} is a directory; pass the name of a file")
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError(f"{target!r} is not a regular file; pass another name")
    if not os.access(path, os.W_OK):
        raise UnusableFileError(f"{target!r} cannot be written: it is write-protected; pass another name")
    return stat.S_IMODE(status.st_mode) & 0o777
