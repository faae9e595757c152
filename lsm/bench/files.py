"""The files of `lsm bench`: written whole or not at all, and looked at before anything is measured."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lsm._apply import UnusableFileError, replacing, write_all
from lsm.bench.result import Result, load


class _EnoughError(Exception):
    """A file could be written; it shall stay as it is."""


def check_writable(name: str) -> None:
    """Raise UnusableFileError if no file of this name can be written or replaced; change nothing."""
    with suppress(_EnoughError), replacing(name):
        raise _EnoughError


def write(name: str, data: str | bytes) -> None:
    """Write all of it, or leave the file as it was."""
    with replacing(name) as file:
        write_all(file, memoryview(data.encode() if isinstance(data, str) else data))


def text_there(name: str) -> str:
    """What a file holds that is to be replaced, its ends of lines as they are; nothing if there is none.

    Raises
    ------
    UnusableFileError
        It cannot be read, or holds no text.
    """
    try:
        return Path(name).read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise UnusableFileError(
            f"{name!r} is not text in UTF-8 ({error}); accepted: such a page, or a new file"
        ) from error
    except OSError as error:
        raise UnusableFileError(f"{name!r} cannot be read: {error.strerror or error}") from error


def read(name: str) -> Result:
    """Read a result that `--json` wrote, or say what is wrong with it."""
    try:
        result = load(Path(name))
    except OSError as error:
        raise UnusableFileError(f"{name!r} cannot be read: {error.strerror or error}") from error
    if impossible := next(_impossible(result), None):
        raise UnusableFileError(f"{name!r}: {impossible}; accepted: what `lsm bench --json` wrote")
    return result


def _impossible(result: Result) -> Iterator[str]:
    """Numbers of the right type that no run can have found."""
    if not result.header.threads or min(result.header.threads) < 1:
        yield f"header.threads is {result.header.threads}"
    for i, row in enumerate(result.rows):
        if not row.shape or min(row.shape) < 1 or min(row.bytes, row.threads) < 1:
            yield f"rows[{i}] has shape {row.shape}, {row.bytes} bytes and {row.threads} threads"
        if row.limit is not None and min(row.limit.us, row.limit.gb_s) <= 0:
            yield f"rows[{i}].limit has a time or a speed that is not above 0"
        for entry in row.contestants:
            for name in ("us", "p20_us", "p80_us", "ratio", "p20_ratio", "p80_ratio", "gb_s"):
                value = getattr(entry, name)
                if value is not None and value <= 0:
                    yield f"rows[{i}], {entry.name}: {name} is {value}"
