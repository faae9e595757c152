"""Files that are replaced atomically."""

import io
import os
import secrets
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from lsm._errors import LsmError
from lsm._identity import copy_metadata


class UnusableFileError(LsmError, ValueError):
    """A file cannot be used as input or output; nothing was written."""


def write_all(file: io.FileIO, data: memoryview) -> None:
    """Write every byte: a single call may write only some of them, as when a disk fills up."""
    while data:
        data = data[file.write(data) :]


@contextmanager
def atomic_write(target: str) -> Iterator[io.FileIO]:
    """`atomic_writes` of one target."""
    with atomic_writes([target]) as (file,):
        yield file


@contextmanager
def atomic_writes(targets: Sequence[str]) -> Iterator[list[io.FileIO]]:
    """Open a temporary file beside each target; on success all replace the targets, on failure they are deleted.

    Symbolic links are followed. The metadata of an existing file is kept (`copy_metadata`), with a warning for anything
    that cannot be kept. A new file has default permissions.
    """
    found = [checked(target) for target in targets]
    paths = [path for path, _ in found]
    if len({*paths}) < len(paths):
        raise UnusableFileError(f"{', '.join(map(repr, targets))}: each result needs a file of its own")
    temporaries = [beside(path) for path in paths]
    files = []
    try:
        with ExitStack() as stack:
            for target, temporary, (_, mode) in zip(targets, temporaries, found, strict=True):
                file = new_file(temporary, repr(target), 0o666 if mode is None else mode & 0o600)
                files.append(stack.enter_context(file))
            yield files
            for target, temporary, (path, mode), file in zip(targets, temporaries, found, files, strict=True):
                if mode is not None:
                    # By descriptor where supported: the name may refer to another file by now.
                    lost = copy_metadata(path, file.fileno() if os.chmod in os.supports_fd else temporary)
                    if lost:
                        warn(f"{target!r} is replaced; the new file does not have the old one's {lost}")
                os.fsync(file.fileno())  # otherwise a system crash could leave the target empty
        replace_all(temporaries, paths)
    except BaseException:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise


def checked(target: str) -> tuple[Path, int | None]:
    """The file to which a target leads, and its permissions; None if there is none yet."""
    try:
        check_is_no_descriptor(target)
        path = Path(target).resolve()
        return path, replaceable_mode(path, target)
    except (OSError, RuntimeError) as error:  # RuntimeError: a cycle of links, before Python 3.13
        raise UnusableFileError(f"{target!r} cannot be written: {getattr(error, 'strerror', '') or error}") from error


def beside(path: Path) -> Path:
    """A new name in the same directory."""
    return path.with_name(f".lsm-{secrets.token_hex(8)}.tmp")


def replace_all(temporaries: Sequence[Path], paths: Sequence[Path]) -> None:
    """Rename every temporary file to its path; if one rename fails, restore all paths."""
    *others, (last, last_path) = zip(temporaries, paths, strict=True)
    olds = [beside(path) for _, path in others]
    try:
        for (temporary, path), old in zip(others, olds, strict=True):
            if path.exists():
                try:
                    os.link(path, old)
                except OSError:  # such as a file system without hard links
                    path.replace(old)
            temporary.replace(path)
        last.replace(last_path)
    except BaseException:
        if last.exists():  # otherwise all are renamed
            for (temporary, path), old in zip(others, olds, strict=True):
                if old.exists():
                    old.replace(path)
                elif not temporary.exists():
                    path.unlink()
        raise
    finally:
        for old in olds:
            old.unlink(missing_ok=True)


def warn(text: str) -> None:
    """Warn regardless of filters: if the warning became an error, the result would be lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, stacklevel=2)


def check_is_no_descriptor(target: str) -> None:
    """Raise UnusableFileError for paths such as /dev/stdout, which lead to the open file of a descriptor."""
    path = Path(target).absolute()
    for _ in range(40):  # the largest number of links that a path may have
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
