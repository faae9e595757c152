"""Arrays in .safetensors files: 8 bytes with the length of a header, the header in JSON, the numbers in C order."""

import io
import json
import math
import os
from typing import Any

import numpy as np

from lsm._check import dtype_name, np_dtype
from lsm._files import UnusableFileError, write_all
from lsm._storage.base import Result, Source, brief, chosen
from lsm._storage.raw import RawArray, raw_result

_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1"}
_DTYPES |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}
_NAMES = {np.dtype(text).name: name for name, text in _DTYPES.items()} | {"bfloat16": "BF16"}


def stored_array(source: Source, file: io.FileIO) -> RawArray:
    """A tensor in an open .safetensors file, whose size is checked against the header."""
    header, start = read_header(repr(source.path), file)
    within = chosen(repr(source.path), header, source)
    name = f"{source.path!r}, tensor {within!r}"
    code, shape, (begin, end) = (header[within][key] for key in ("dtype", "shape", "data_offsets"))
    if code != "BF16" and code not in _DTYPES:
        raise UnusableFileError(f"{name} has dtype {brief(code)}; accepted: {', '.join([*_DTYPES, 'BF16'])}")
    dtype = np_dtype("bfloat16") if code == "BF16" else np.dtype(_DTYPES[code])
    try:
        np.broadcast_to(np.zeros((), dtype), shape)  # raises for an impossible shape
    except ValueError as error:
        raise UnusableFileError(f"{name} has an impossible shape ({brief(error)})") from error
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UnusableFileError(
            f"{name} is damaged: shape {tuple(shape)} and dtype {code} take {math.prod(shape) * dtype.itemsize} bytes, "
            f"but it has {end - begin}; write the file again"
        )
    return RawArray(
        name=name,
        path=source.path,
        within=within,
        shape=tuple(shape),
        dtype=dtype,
        file=file,
        start=start + begin,
    )


def read_header(name: str, file: io.FileIO) -> tuple[dict[str, Any], int]:
    """The header of a file, which may be malicious, as a dict of its tensors; and the offset of the numbers."""
    n_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    n_header = int.from_bytes(file.read(8), "little")
    try:
        if n_header > min(_MAX_HEADER_BYTES, n_bytes - 8):
            raise ValueError(f"its length is {n_header} bytes, in a file of {n_bytes}")
        header = json.loads(file.read(n_header).decode(), object_pairs_hook=_without_duplicates)
        if type(header) is not dict:
            raise ValueError("not a JSON object")
        header.pop("__metadata__", None)
        n_data = _check_spans(header)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnusableFileError(f"{name} has an invalid header ({brief(error)}); write the file again") from error
    n_there = n_bytes - 8 - n_header
    if n_data != n_there:
        what = "is truncated" if n_there < n_data else "is damaged"
        raise UnusableFileError(
            f"{name} {what}: its tensors take {n_data} bytes, but {n_there} follow the header; write the file again"
        )
    return header, 8 + n_header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is repeated")
    return made


def _check_spans(header: dict[str, Any]) -> int:
    """Raise ValueError unless the tensors are contiguous, without gaps; returns their size in bytes."""
    spans = []
    for name, about in header.items():
        shape, span = about["shape"], about["data_offsets"]
        if not (type(about["dtype"]) is str and _are_sizes(shape) and _are_sizes(span) and len(span) == 2):
            raise ValueError(f"tensor {name!r}: shape {shape}, data_offsets {span}")
        spans.append((*span, name))
    end = 0
    for first, last, name in sorted(spans):
        if first != end or last < first:
            raise ValueError(f"tensor {name!r} lies from {first} to {last}, and the one before it ends at {end}")
        end = last
    return end


def _are_sizes(value: Any) -> bool:
    return type(value) is list and all(type(n) is int and n >= 0 for n in value)


def names_in(path: str) -> set[str]:
    """The names of the tensors in a file."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (Path.open has no FileIO)
        return {*read_header(repr(path), file)[0]}


def create(file: io.FileIO, result: Result) -> RawArray:
    """Write the header of a file of one tensor."""
    n_bytes = math.prod(result.shape) * result.dtype.itemsize
    about = {"dtype": _NAMES[dtype_name(result.dtype)], "shape": result.shape, "data_offsets": [0, n_bytes]}
    text = json.dumps({result.within: about}).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
    return raw_result(file, result, file.tell())
