"""What holds within a ``with`` block, in one thread or asyncio task: a wish for a backend or a number of threads."""

from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Block(ContextDecorator, Generic[T]):
    """A value for a ContextVar within a ``with`` block, or within the calls of a function that it decorates.

    One object may be entered any number of times, also within itself and in several threads and tasks at once.
    """

    def __init__(self, variable: ContextVar[T | None], make: Callable[[], T]) -> None:
        self._variable = variable
        self._make = make  # the value, at each entry
        self._tokens: list[Token[T | None]] = []  # of those who are within, the latest last

    def __enter__(self) -> None:
        """Set the value."""
        self._tokens.append(self._variable.set(self._make()))

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
