"""The standard output of the command: only the output of lsm, in any encoding."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def escape_unencodable() -> Iterator[None]:
    """Escape characters that the encoding of standard output or error lacks, instead of raising."""
    streams: list[Any] = [s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure") and not s.closed]
    strict = [(stream, stream.errors) for stream in streams if stream.errors in ("strict", "surrogateescape")]
    for stream, _ in strict:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in strict:
            with suppress(OSError, ValueError):  # this flushes the stream, which may be closed
                stream.reconfigure(errors=errors)


def reserve_stdout(stack: ExitStack, until_exit: bool) -> TextIO:
    """Reserve standard output for lsm: output of others, from Python or C, goes to standard error.

    Others may print until the process ends: from a thread, in a function of atexit, or when a buffer of C is flushed.
    Therefore, with `until_exit`, `sys.stdout` and descriptor 1 stay redirected. Otherwise the stack restores both;
    each step is registered before it is done, because a signal may come between the two.
    """
    before = sys.stdout
    own: TextIO = before or io.StringIO()  # standard output may be missing
    # A closed descriptor would be reused by the next file that is opened, which would then receive the output.
    for number in filter(_open_if_closed, (1, 2)):
        if not until_exit:
            stack.callback(os.close, number)
    if _descriptor(before) == 1:
        before.flush()
        number = os.dup(1)
        own = open(number, "w", encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115
        if not until_exit:
            stack.callback(os.close, number)
            stack.callback(_drop, own)
    if not until_exit:
        kept = os.dup(1)
        stack.callback(_restore, kept, before)
    stack.callback(_flush, own)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return own


def _restore(kept: int, stdout: TextIO) -> None:
    """Restore descriptor 1 and `sys.stdout`."""
    for stream in (stdout, sys.__stdout__):
        if stream is not None and _descriptor(stream) == 1:
            with suppress(OSError):
                stream.flush()  # the output of others
    os.dup2(kept, 1)
    os.close(kept)
    sys.stdout = stdout


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        discard(stream)
        raise


def discard(stream: TextIO) -> None:
    """Discard buffered output that cannot be written, so that flushing at exit does not fail."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):  # it may not be a file
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _open_if_closed(number: int) -> bool:
    """Open a closed descriptor on os.devnull; returns whether it was closed."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        return True
    return False


def _descriptor(stream: Any) -> int:
    """The file descriptor of a stream; -1 if there is none."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return -1


def _drop(stream: TextIO) -> None:
    """Close a stream and ignore errors from flushing it."""
    with suppress(OSError):
        stream.close()
