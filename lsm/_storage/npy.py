"""Arrays in .npy files."""

import io
import math
import os
import warnings
from typing import Any

import numpy as np
from numpy.lib import format as npy

from lsm._files import UnusableFileError, write_all
from lsm._storage.base import Result, Source, brief, check_elements
from lsm._storage.raw import RawArray, raw_result


def stored_array(source: Source, file: io.FileIO) -> RawArray:
    """The array in an open .npy file, whose size is checked against the header."""
    name = repr(source.path)
    start = file.read(6)
    if start != b"\x93NUMPY":
        found = "is empty" if not start else f"is not a .npy file (it starts with {start!r})"
        if start.startswith(b"PK"):
            found = "is an .npz archive or another ZIP file"
        raise UnusableFileError(
            f"{name} {found}; pass a .npy file of one array, written by numpy.save, or a .safetensors, HDF5 or Zarr "
            "file with its usual suffix"
        )
    if source.within is not None:
        raise UnusableFileError(f"{name} contains one array without a name; leave out {source.flag}")
    shape, is_fortran, dtype = parse_header(name, file)
    check_elements(name, dtype, ".npy files")
    start_of_data = file.tell()
    n_bytes, n_there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - start_of_data
    if n_there < n_bytes:
        raise UnusableFileError(
            f"{name} is truncated: shape {shape} and dtype {dtype} take {n_bytes} bytes, but only {n_there} follow the "
            "header; write the file again"
        )
    return RawArray(
        name=name,
        path=source.path,
        shape=shape,
        dtype=dtype,
        is_fortran=is_fortran,
        file=file,
        start=start_of_data,
    )


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
        raise UnusableFileError(
            f"{name} has an invalid header ({brief(error)}); write the file again with numpy.save"
        ) from error
    return tuple(map(int, shape)), is_fortran, dtype


def as_version_2(file: io.FileIO) -> io.BytesIO:
    """Convert a header of format 3.0 to 2.0, because NumPy has no public function that reads 3.0.

    The header of 3.0 is in UTF-8, for the names of fields, and that of 2.0 in Latin-1, in which escape sequences in
    string literals represent the other characters.
    """
    n_bytes = int.from_bytes(file.read(4), "little")
    header = file.read(n_bytes)
    if len(header) < n_bytes:
        raise ValueError(f"the file ends within its header of {n_bytes} bytes")
    header = header.decode("utf-8").encode("latin-1", "backslashreplace")
    return io.BytesIO(len(header).to_bytes(4, "little") + header)


def create(file: io.FileIO, result: Result) -> RawArray:
    """Write the header of a result, as numpy.save does."""
    text, is_fortran = io.BytesIO(), result.like.is_fortran
    described = {"descr": npy.dtype_to_descr(result.dtype), "fortran_order": is_fortran, "shape": result.shape}
    npy.write_array_header_1_0(text, described)
    write_all(file, text.getbuffer())
    return raw_result(file, result, file.tell(), is_fortran)
