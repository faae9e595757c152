"""`lsm apply`: from .npy file to .npy file in blocks of frames, so that a file may be larger than memory."""

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
from lsm._identity import inherit

# Large enough that the cost of a call and of a read vanishes, small enough for any machine. Counted at
# ELEMENT_BYTES an element, whatever the file holds: integers become float64, and the NumPy backend
# computes in it.
BLOCK_BYTES = 64 * 2**20
ELEMENT_BYTES = 8

Array = np.ndarray[Any, np.dtype[Any]]
Index = tuple[slice, ...]
Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]  # given all bytes, counts those done


class UnusableFileError(LsmError, ValueError):
    """A file cannot serve as what it was given for; nothing was written."""


@dataclass(frozen=True)
class StoredArray:
    """An array in an open .npy file, whose blocks are read and written where they lie.

    Not memory-mapped: a full disk or a file that becomes shorter would then end the process by SIGBUS,
    without a word, and the pages that were touched would count as its memory.
    """

    name: str
    file: io.FileIO
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    start: int

    def empty(self, index: Index) -> Array:
        """Room for a block, in the order of the file."""
        shape = tuple(part.stop - part.start for part in index)
        return np.empty(shape[::-1], self.dtype).T if self.is_fortran else np.empty(shape, self.dtype)

    def read(self, index: Index) -> Array:
        """One block."""
        block = self.empty(index)
        for place, data in self._runs(index, block):
            self.file.seek(place)
            while data:
                n_read = self.file.readinto(data)
                if not n_read:
                    raise OSError(f"{self.name} became shorter while it was read")
                data = data[n_read:]
        return block

    def write(self, index: Index, block: Array) -> None:
        """Write one block that `empty` made."""
        for place, data in self._runs(index, block):
            self.file.seek(place)
            write_all(self.file, data)

    def _runs(self, index: Index, block: Array) -> Iterator[tuple[int, memoryview]]:
        """Each contiguous piece of a block: its place in the file, and its bytes in memory."""
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
            place = self.start + first + sum(i * size for i, size in zip(row, sizes, strict=False))
            yield place, data[k * n_bytes : (k + 1) * n_bytes]


def write_all(file: io.FileIO, data: memoryview) -> None:
    """Write every byte: one call may take only some of them, as it does on a disk that fills up."""
    while data:
        data = data[file.write(data) :]


def apply(op: str, inputs: Sequence[str], target: str, progress: Progress, *, axis: Any, **options: Any) -> None:
    """Apply an operation of lsm to arrays in files and write the result, whole or not at all.

    Parameters
    ----------
    op : str
        The name of a function of lsm.
    inputs : sequence of str
        The .npy files of its arrays.
    target : str
        The .npy file of the result; may be one of `inputs`.
    progress : callable
        Given the number of bytes to read of the first input, a context manager; that yields what is
        called with the number of bytes of each block that is done.
    axis, **options : optional
        As the operation takes them.

    Raises
    ------
    UnusableFileError
        A file is not there, not readable, not writable, or no .npy file of an array that lsm takes.
    LsmError, TypeError, ValueError, numpy.exceptions.AxisError
        As the operation does. Like the above, before anything is written.
    OSError
        Reading or writing failed on the way.
    """
    function = partial(getattr(lsm, op), axis=axis, **options)
    with ExitStack() as stack:
        arrays = [stack.enter_context(opened(path)) for path in inputs]
        first = arrays[0]
        result = rehearsed(function, arrays)
        with replacing(target) as file:
            out = created(file, first.shape, result, first.is_fortran)
            advance = stack.enter_context(progress(math.prod(first.shape) * first.dtype.itemsize))
            for index in blocks(first.shape, normalised_axes(axis, len(first.shape)), first.is_fortran):
                block = out.empty(index)
                function(*(array.read(index) for array in arrays), out=block)
                out.write(index, block)
                advance(block.size * first.dtype.itemsize)


def rehearsed(function: Callable[..., Array], arrays: Sequence[StoredArray]) -> np.dtype[Any]:
    """Find the dtype of the result by a call on arrays without elements, which raises what the real one would."""
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
        told = ", ".join(f"{array.name} (shape {array.shape}, dtype {array.dtype})" for array in arrays)
        raise UnusableFileError(f"{told}: {error}") from error


def blocks(shape: tuple[int, ...], axes: tuple[int, ...], is_fortran: bool) -> Iterator[Index]:
    """Cut an array into blocks of whole frames, in the order in which the file holds them.

    The axes of frames are taken in whole from the innermost of the file on, as long as the block stays
    within BLOCK_BYTES, so that its pieces are long; the next is cut, and those outside it are walked.
    """
    if 0 in shape:
        return
    steps = list(shape)
    outermost_first = range(len(shape))[:: -1 if is_fortran else 1]
    size = math.prod(shape[axis] for axis in axes)
    for i in reversed(outermost_first):
        if i not in axes:
            steps[i] = min(shape[i], max(1, BLOCK_BYTES // ELEMENT_BYTES // size))
            size *= steps[i]
    for starts in product(*(range(0, shape[i], steps[i]) for i in outermost_first)):
        parts = {i: slice(k, min(k + steps[i], shape[i])) for i, k in zip(outermost_first, starts, strict=True)}
        yield tuple(parts[i] for i in range(len(shape)))


@contextmanager
def opened(path: str) -> Iterator[StoredArray]:
    """Open a .npy file and check it; the contents are not read yet."""
    name = repr(path)
    try:
        status = Path(path).stat()  # before opening, which waits for ever on a FIFO
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UnusableFileError(f"{name} is {kind}; give a .npy file that numpy.save wrote")
        file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 (Path.open has no FileIO; closed below)
    except OSError as error:
        raise UnusableFileError(f"{name} cannot be read: {error.strerror or error}") from error
    with file:
        yield stored(name, file)


def stored(name: str, file: io.FileIO) -> StoredArray:
    """Read the header of an open .npy file, and hold the file to it."""
    start = file.read(6)
    if start != b"\x93NUMPY":
        found = "is empty" if not start else f"is no .npy file (it begins with {start!r})"
        if start.startswith(b"PK"):
            found = "is an .npz archive"
        raise UnusableFileError(f"{name} {found}; give a .npy file of one array, as numpy.save writes it")
    shape, is_fortran, dtype = header(name, file)
    if dtype.hasobject:
        raise UnusableFileError(
            f"{name} holds pickled Python objects, which are never loaded, since loading can run code; save "
            "x.astype(float)"
        )
    if dtype.subdtype is not None:
        raise UnusableFileError(f"{name} has elements that are arrays ({dtype}); save an array of numbers")
    if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2:
        raise UnusableFileError(
            f"{name} holds 2-byte elements of unknown type ({dtype}), as which .npy files keep bfloat16; save "
            "x.astype(numpy.float32), which holds every bfloat16 exactly"
        )
    array = StoredArray(name, file, shape, dtype, is_fortran, file.tell())
    n_bytes, n_there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - array.start
    if n_there < n_bytes:
        raise UnusableFileError(
            f"{name} is cut short: its header tells of shape {shape} and dtype {dtype}, which is {n_bytes} bytes, "
            f"and {n_there} follow; write it anew"
        )
    return array


def header(name: str, file: io.FileIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype, as a .npy file's header gives them; whoever wrote it may mean harm."""
    file.seek(0)
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"format version {version[0]}.{version[1]} is not 1.0, 2.0 or 3.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        text = as_2_0(file) if version == (3, 0) else file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a header from Python 2, or of odd text in one
            shape, is_fortran, dtype = read(text)
        np.broadcast_to(np.zeros((), dtype), shape)  # raises for a shape that no array can have
    except OSError:
        raise
    except Exception as error:  # parsing raises RecursionError and MemoryError too, if the text is made for it
        why = textwrap.shorten(str(error) or type(error).__name__, 160)
        raise UnusableFileError(
            f"{name} has a header that cannot be used ({why}); write the file anew with numpy.save"
        ) from error
    return tuple(map(int, shape)), is_fortran, dtype


def as_2_0(file: io.FileIO) -> io.BytesIO:
    """What follows the magic of a file of format 3.0, as 2.0 has it: NumPy has no public function that reads 3.0.

    The header of 3.0 is in UTF-8, for the names of fields; that of 2.0 in Latin-1. Within quotes an escape is the same
    character.
    """
    n_bytes = int.from_bytes(file.read(4), "little")
    header = file.read(n_bytes)
    if len(header) < n_bytes:
        raise ValueError(f"the file ends within the header, which has {n_bytes} bytes")
    header = header.decode("utf-8").encode("latin-1", "backslashreplace")
    return io.BytesIO(len(header).to_bytes(4, "little") + header)


def created(file: io.FileIO, shape: tuple[int, ...], dtype: np.dtype[Any], is_fortran: bool) -> StoredArray:
    """Begin the file of the result with the header that numpy.save would write."""
    text = io.BytesIO()
    npy.write_array_header_1_0(text, {"descr": npy.dtype_to_descr(dtype), "fortran_order": is_fortran, "shape": shape})
    write_all(file, text.getbuffer())
    return StoredArray("the result", file, shape, dtype, is_fortran, file.tell())


@contextmanager
def replacing(target: str) -> Iterator[io.FileIO]:
    """Open a new file beside the target, which takes its place at the end, or goes if anything fails.

    A symbolic link is followed. A file that is there keeps what `inherit` gives on; what cannot be kept becomes a
    warning. A new one has the usual permissions.
    """
    name = repr(target)
    try:
        path = Path(target).resolve()
        mode = replaceable_mode(path, target)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise UnusableFileError(f"{name} cannot be written: {getattr(error, 'strerror', '') or error}") from error
    temporary = path.with_name(f".lsm-{secrets.token_hex(8)}.tmp")
    try:
        with new_file(temporary, name, 0o666 if mode is None else mode & 0o600) as file:
            yield file
            if mode is not None:
                # By its descriptor, where there is that: another file may have been put at its name.
                lost = inherit(path, file.fileno() if os.chmod in os.supports_fd else temporary)
                if lost:
                    warn(f"{name} is replaced; the new file could not be given the old one's {lost}")
            os.fsync(file.fileno())  # else a crash of the machine could leave the new name with no contents
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def warn(text: str) -> None:
    """Warn whatever the filters say: under one that makes errors of warnings the result would be lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, stacklevel=2)


def new_file(path: Path, name: str, mode: int) -> io.FileIO:
    """Create a file, with these permissions less the umask."""
    try:
        return open(path, "xb", buffering=0, opener=partial(os.open, mode=mode))
    except OSError as error:
        raise UnusableFileError(
            f"{name} cannot be written: its directory {str(path.parent)!r} takes no new file: {error.strerror}"
        ) from error


def replaceable_mode(path: Path, target: str) -> int | None:
    """Tell the permissions of the file that is to be replaced; None if there is none."""
    if path.is_dir() or target.endswith(os.sep):
        raise UnusableFileError(f"{target!r} names a directory; give the name of a file to write")
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError(f"{target!r} is no regular file; give the name of a file to write")
    if not os.access(path, os.W_OK):
        raise UnusableFileError(f"{target!r} cannot be written: it is write-protected; give another name")
    return stat.S_IMODE(status.st_mode) & 0o777
