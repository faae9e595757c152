"""What holds within a ``with`` block, in one thread or asyncio task: a wish for a backend or a number of threads."""

from contextlib import ContextDecorator
from typing import TypeVar

from lsm._held import Held

T = TypeVar("T")


class Block(ContextDecorator, Held[T]):
    """A value for a ContextVar within a ``with`` block, or within the calls of a function that it decorates."""
