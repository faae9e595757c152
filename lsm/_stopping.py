"""Signals that stop the command: they raise an exception, and long loops check for one that was lost.

Python discards an exception raised in a callback of the garbage collector, in `__del__` or in a callback from C, and a
bare `except` in a library catches any exception. So the signal is recorded too.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StoppedError(KeyboardInterrupt):
    """A signal stopped the command; not an Exception, so that it is not handled as a failure."""


class _Stop:
    """The signals received so far, and whether an orderly shutdown has begun."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.is_shutting_down = self.is_deferring = False


_stop = _Stop()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Raise on signals that would end the process, so that temporary files are deleted; yields the signals received."""
    global _stop

    def handle(number: int, _: object) -> None:
        stop.numbers.append(number)
        if stop.is_deferring and len(stop.numbers) == 1:
            return
        if not (stop.is_shutting_down or _is_propagating()):  # a second signal must not interrupt the cleanup
            raise StoppedError(number)

    is_main = threading.current_thread() is threading.main_thread()
    # Ignored signals stay ignored, as nohup and the shell's & require.
    ours = [number for number in _STOPS if is_main and signal.getsignal(number) not in (signal.SIG_IGN, None)]
    outer, stop = _stop, _Stop()
    _stop = stop
    before = {number: signal.signal(number, handle) for number in ours}
    try:
        yield stop.numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop = outer


def raise_if_stopped() -> None:
    """Raise StoppedError if a signal was received but its exception was lost; for long loops."""
    if _stop.numbers and not _stop.is_shutting_down:
        raise StoppedError(_stop.numbers[0])


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Raise for a first signal only at the end: for libraries that leave tasks behind when interrupted."""
    _stop.is_deferring = True
    try:
        yield
    finally:
        _stop.is_deferring = False
    raise_if_stopped()


def begin_shutdown() -> None:
    """Begin an orderly shutdown: further signals do not raise."""
    _stop.is_shutting_down = True


def _is_propagating() -> bool:
    """Whether a `finally` or an `except` is running because of the exception."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, StoppedError):
        error = error.__context__
    return error is not None
