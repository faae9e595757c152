"""Standard output of the command line: only the output of lsm, in any encoding."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
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
            with suppress(OSError, ValueError):  # it flushes the stream, which may be closed
                stream.reconfigure(errors=errors)


@contextmanager
def reserve_stdout(until_exit: bool) -> Iterator[TextIO]:
    """Reserve standard output for lsm: output of others, from Python or C, goes to standard error.

    A C library may write to descriptor 1 until the process ends, from a thread or when a buffer is flushed at exit.
    Therefore, with `until_exit`, descriptor 1 stays redirected, and `sys.stdout` is the stream yielded here. Otherwise
    everything is restored.
    """
    before = sys.stdout
    own: TextIO = before or io.StringIO()  # standard output may be missing
    with ExitStack() as stack:
        if _descriptor(before) == 1:
            before.flush()
            number = os.dup(1)
            own = open(number, "w", encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115
            if not until_exit:
                stack.callback(os.close, number)
                stack.callback(_drop, own)
        stack.enter_context(_descriptor_1_to_2(until_exit))
        stack.callback(setattr, sys, "stdout", own if until_exit and before is not None else before)
        stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield own
        finally:
            own.flush()


@contextmanager
def _descriptor_1_to_2(until_exit: bool) -> Iterator[None]:
    """Redirect descriptor 1 to 2."""
    # A closed descriptor would be reused by the next file that is opened, which would then receive the output.
    opened = [number for number in (1, 2) if _open_if_closed(number)]
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        if not until_exit:
            for stream in (sys.stdout, sys.__stdout__):
                if stream is not None and _descriptor(stream) == 1:
                    with suppress(OSError):
                        stream.flush()  # the output of others
            os.dup2(kept, 1)
            for number in opened:
                os.close(number)
        os.close(kept)


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
