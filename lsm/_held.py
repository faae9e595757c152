"""Context variables and locks that are restored and released even if a signal handler raises.

setup.py compiles this file. Python runs signal handlers between bytecodes; compiled code has none, so a handler cannot
raise between an acquisition and the block that releases it.
"""

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ScopedValue(Generic[T]):
    """A value for a ContextVar within a ``with`` block.

    An object can be entered any number of times, even nested and in several threads and tasks at once.
    """

    def __init__(self, variable: ContextVar[T | None], make: Callable[[], T]) -> None:
        self._variable = variable
        self._make = make  # called on each entry
        self._tokens: list[Token[T | None]] = []  # of the active blocks, the latest last

    def __enter__(self) -> None:
        """Set the value."""
        value = self._make()
        self._tokens.append(self._variable.set(value))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function within the block."""
        with self:
            return function(*args, **kwargs)

    def __exit__(self, *_: Any) -> None:
        """Restore the previous value."""
        for token in reversed(self._tokens[:]):
            try:
                self._variable.reset(token)
            except ValueError:  # from another thread or task
                continue
            self._tokens.remove(token)
            return
        raise RuntimeError("a with block of lsm was exited in another thread or asyncio task than it was entered in")


def call_within(context: Any, function: Callable[..., T], *args: Any) -> T:
    """Call a function with a lock held, or within another context manager."""
    with context:
        return function(*args)
