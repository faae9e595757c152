"""What must be given back whatever happens: values for a ``with`` block, and locks.

setup.py compiles this file. Compiled, nothing here runs as bytecode, so no handler of a signal can raise between taking
something and the block that holds it, nor before it is given back.
"""

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ScopedValue(Generic[T]):
    """A value for a ContextVar within a ``with`` block.

    One object may be entered any number of times, also within itself and in several threads and tasks at once.
    """

    def __init__(self, variable: ContextVar[T | None], make: Callable[[], T]) -> None:
        self._variable = variable
        self._make = make  # the value, at each entry
        self._tokens: list[Token[T | None]] = []  # of those who are within, the latest last

    def __enter__(self) -> None:
        """Set the value."""
        value = self._make()
        self._tokens.append(self._variable.set(value))

    def __exit__(self, *_: Any) -> None:
        """Set the value from before."""
        for token in reversed(self._tokens[:]):
            try:
                self._variable.reset(token)
            except ValueError:  # of another thread or task
                continue
            self._tokens.remove(token)
            return
        raise RuntimeError("a block of lsm is left in a thread or asyncio task in which it was not entered")


def call_locked(lock: Any, function: Callable[..., T], *args: Any) -> T:
    """Call a function with a lock held."""
    with lock:
        return function(*args)
