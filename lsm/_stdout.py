"""The standard output of the command line: lsm's own lines and nothing else, in any encoding."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any, TextIO


@contextmanager
def escape_unencodable() -> Iterator[None]:
    """Let standard output and error spell out the characters that their encoding lacks, instead of raising."""
    streams: list[Any] = [s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure") and not s.closed]
    strict = [(stream, stream.errors) for stream in streams if stream.errors in ("strict", "surrogateescape")]
    for stream, _ in strict:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in strict:
            with suppress(OSError, ValueError):  # it flushes, and may be closed by now
                stream.reconfigure(errors=errors)


@contextmanager
def reserve_stdout(until_exit: bool) -> Iterator[TextIO]:
    """Give standard output to lsm alone: what others print, in Python or below it, goes to standard error.

    A library in C writes to descriptor 1, and may do so at any time until the process ends: in a thread, or when a
    buffer of its own is flushed at exit. So where the process is the command, `until_exit`, descriptor 1 stays turned,
    and `sys.stdout` is what is given here. Otherwise all is put back.
    """
    before = sys.stdout
    own: TextIO = before or io.StringIO()  # there may be no standard output
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
    """Let descriptor 1 be what 2 is."""
    # One that is closed would be given to the next file that is opened, and what is printed would go into that.
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
                        stream.flush()  # what others wrote to it meanwhile
            os.dup2(kept, 1)
            for number in opened:
                os.close(number)
        os.close(kept)


def _open_if_closed(number: int) -> bool:
    """Let a descriptor that is closed lead nowhere; tell whether it was."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        return True
    return False


def _descriptor(stream: Any) -> int:
    """The number that a stream writes to; -1 if there is none."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return -1


def _drop(stream: TextIO) -> None:
    """Close a stream with what it could not write."""
    with suppress(OSError):
        stream.close()
