"""Results in Zarr: where they are written, whether an interrupted run can be resumed, and how they are completed.

A new array is written in place. An existing array is replaced at the end, by one written beside it. Until the end, the
attribute "lsm" marks the array as incomplete, and missing numbers are read as NaN.
"""

import math
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import zarr
from zarr.abc.codec import BytesBytesCodec

from lsm._files import UnusableFileError, check_is_no_descriptor
from lsm._storage.base import Result, brief, is_zarr
from lsm._storage.zarr_ import ATTRIBUTE, ZarrArray, is_complete, unreadable


class _Place(NamedTuple):
    """The place where a result is written, and the array found there.

    Attributes
    ----------
    result : Result
        The result.
    path : Path
        The final place.
    where : Path
        The place where it is written: the final one, or beside an array that it will replace.
    array : zarr.Array or None
        The array left there by an interrupted run.
    """

    result: Result
    path: Path
    where: Path
    array: Any


@contextmanager
def create_arrays(results: Sequence[Result], is_resumed: bool) -> Iterator[list[ZarrArray]]:
    """Make an array for each result, or open that of an interrupted run; on exit, complete and place all."""
    places = [_checked(result, is_resumed) for result in results]
    if len({place.path for place in places}) < len(places):
        raise UnusableFileError(f"{results[0].target!r}: each result needs a directory of its own")
    arrays: list[Any] = []
    try:
        for place in places:
            arrays.append(_create(place) if place.array is None else place.array)
        pairs = zip(places, arrays, strict=True)
        yield [_stored(str(place.where), repr(place.result.target), array) for place, array in pairs]
        for result, array in zip(results, arrays, strict=True):
            array.update_attributes({ATTRIBUTE: result.record | {"complete": True}})
        _replace_all([(place.where, place.path) for place in places if place.where != place.path])
    except BaseException as error:
        if arrays:
            note = f"{results[0].target!r} is incomplete; the same command with --resume completes it"
            vars(error).setdefault("__notes__", []).append(note)  # as `add_note` of Python 3.11 does
        raise


def reopen(path: str, name: str, record: dict[str, Any]) -> ZarrArray:
    """Open an array that another process has made or opened, with this record."""
    array = _opened(Path(path))
    if array is None or array.attrs.get(ATTRIBUTE) != record:
        raise UnusableFileError(f"{name}: the result that this run began at {path!r} is missing")
    return _stored(path, name, array.with_config({"write_empty_chunks": True}))


def _stored(path: str, name: str, array: Any) -> ZarrArray:
    return ZarrArray(
        name=name,
        path=path,
        shape=array.shape,
        dtype=array.dtype,
        unit=array.shards or array.chunks,
        array=array,
    )


def _checked(result: Result, is_resumed: bool) -> _Place:
    """Find the place to write a result; raises before anything is written."""
    target = result.target
    check_is_no_descriptor(target)
    try:
        root = Path(target).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a cycle of links, before Python 3.13
        raise UnusableFileError(f"{target!r} cannot be written: {getattr(error, 'strerror', '') or error}") from error
    if result.within is not None and not all(part.strip(".") for part in result.within.split("/")):
        raise UnusableFileError(f"--name: {result.within!r}; accepted: names of groups and an array, as in 'a/b/c'")
    path = root / (result.within or "")
    if not root.parent.is_dir():
        raise UnusableFileError(f"{target!r} cannot be written: there is no directory {str(root.parent)!r}")
    if root.exists() and not is_zarr(str(root)):
        raise UnusableFileError(f"{target!r} exists and is not a Zarr array; pass another name")
    if result.within is not None and root.exists() and isinstance(_opened(root), zarr.Array):
        raise UnusableFileError(f"{target!r} is an array, not a group; leave out --name")
    beside = path.with_name(f".lsm-{path.name}.partial")
    there, unfinished = _opened(path), _opened(beside)
    if isinstance(there, zarr.Group):
        raise UnusableFileError(f"{target!r} is a Zarr group; name the array in it with --name")
    made = there if unfinished is None else unfinished
    if is_resumed and made is not None:
        where = path if unfinished is None else beside
        _check_record(result, made.attrs.get(ATTRIBUTE))
        for file in where.rglob("*.partial"):  # chunks that the interrupted run was writing
            file.unlink()
        return _Place(result, path, where, made.with_config({"write_empty_chunks": True}))
    if unfinished is not None or (there is not None and not is_complete(there)):
        where = path if unfinished is None else beside
        raise UnusableFileError(
            f"{target!r} is incomplete, since a run was interrupted; complete it with --resume, or delete "
            f"{str(where)!r}"
        )
    return _Place(result, path, path if there is None else beside, None)


def _opened(path: Path) -> Any:
    """The array or the group at a path; None if there is none."""
    if not is_zarr(str(path)):
        return None
    try:
        return zarr.open(str(path), mode="r+")
    except Exception as error:  # malicious metadata can raise anything
        raise unreadable(repr(str(path)), error) from error


def _check_record(result: Result, found: Any) -> None:
    """Raise UnusableFileError unless the same call on the same arrays began the array."""
    if not isinstance(found, dict):
        raise UnusableFileError(
            f"{result.target!r} was not written by lsm apply, and cannot be resumed; without --resume it is replaced"
        )
    was, now = _flat(found), _flat(result.record)
    differences = [f"{key} was {was.get(key)}, now {value}" for key, value in now.items() if was.get(key) != value]
    if differences:
        raise UnusableFileError(
            f"{result.target!r} was begun by another call: {brief('; '.join(differences))}; pass that, or delete it"
        )


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A flattened record; the keys are the names used in messages."""
    sources = enumerate(record.get("source", ()), 1)
    flat = {key: value for key, value in record.items() if key != "source"}
    return flat | {f"{key} of input {i}": value for i, source in sources for key, value in source.items()}


def _create(place: _Place) -> Any:
    """Make the array of a result, and the groups that contain it."""
    result, like = place.result, place.result.like
    array: Any = like.array if isinstance(like, ZarrArray) else None
    version = 3 if array is None else array.metadata.zarr_format
    try:
        if result.within is not None:
            group = zarr.open_group(str(Path(result.target).resolve()), mode="a", zarr_format=None)
            version = group.metadata.zarr_format
            parent = result.within.strip("/").rpartition("/")[0]
            if parent:
                group.require_group(parent)
        is_same = array is not None and array.metadata.zarr_format == version
        compressors = tuple([codec for codec in array.compressors if _is_lossless(codec)]) if is_same else ()
        shards = array.shards if is_same and array.shape == result.shape else None
        return zarr.create_array(
            store=str(place.where),
            shape=result.shape,
            dtype=result.dtype,
            chunks=array.chunks if shards else result.unit,
            shards=shards,
            compressors=compressors or None,
            filters=None,
            fill_value=math.nan if result.dtype.kind == "f" else -1,
            zarr_format=version,
            attributes={ATTRIBUTE: result.record | {"complete": False}},
            config={"write_empty_chunks": True},
        )
    except OSError as error:
        raise UnusableFileError(f"{result.target!r} cannot be written: {error.strerror or brief(error)}") from error


def _is_lossless(codec: Any) -> bool:
    """Whether a codec is lossless; in Zarr 2, not every compressor is."""
    known = ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
    return isinstance(codec, BytesBytesCodec) or getattr(codec, "codec_id", "") in known


def _replace_all(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename each directory to its path, and delete the old array there; if a rename fails, undo all."""
    if pairs and hasattr(os, "sync"):
        os.sync()  # otherwise a system crash could lose both
    olds = [path.with_name(f".lsm-{secrets.token_hex(8)}.tmp") for _, path in pairs]
    with ExitStack() as undo:
        for (new, path), old in zip(pairs, olds, strict=True):
            undo.callback(_rename_back, new, path, old)
            if path.exists():  # not if an earlier run was killed between these two lines
                path.rename(old)
            new.rename(path)
        undo.pop_all()
    for old in filter(Path.exists, olds):
        shutil.rmtree(old)


def _rename_back(new: Path, path: Path, old: Path) -> None:
    if old.exists():
        if path.exists():
            path.rename(new)
        old.rename(path)
