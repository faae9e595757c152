"""The signals that ask a process to end: they raise, and whoever works for long asks whether that was lost.

An exception that a signal raises within a callback of the garbage collector, a `__del__` or a callback from C is
discarded by Python, and a bare `except` of some library takes any. So the signal is remembered too.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StoppedError(KeyboardInterrupt):
    """A signal asked the command to end; not an Exception, so that nothing on the way takes it for a failure."""


class _Stop:
    """The signals that have come, and whether somebody ends in order because of them."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.is_noticed = False


_stop = _Stop()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Let the signals that ask a process to end raise, so that no temporary file is left behind; tell which came."""
    global _stop

    def handle(number: int, _: object) -> None:
        stop.numbers.append(number)
        if not (stop.is_noticed or _is_on_its_way()):  # a second one must not interrupt the tidying up
            raise StoppedError(number)

    is_main = threading.current_thread() is threading.main_thread()
    # One that is ignored stays so: nohup and the shell's & rely on it.
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
    """Raise StoppedError if a signal came and nobody has noticed; for between two steps of something long."""
    if _stop.numbers and not _stop.is_noticed:
        raise StoppedError(_stop.numbers[0])


def notice() -> None:
    """Say that the work is being ended in order: no further signal raises."""
    _stop.is_noticed = True


def _is_on_its_way() -> bool:
    """Whether a `finally` or an `except` that the exception has reached is at work now."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, StoppedError):
        error = error.__context__
    return error is not None
