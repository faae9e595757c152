"""The fast path: the functions by which a backend serves plain arrays straight from a public function, past all checks.

A public function asks for them first. What they do not serve is left to `_call`, where the checks and messages stand.
"""

from contextvars import ContextVar
from typing import Any

from lsm._operations import OPERATIONS

# The policies in force, which `_dispatch` sets: of a `use_backend` block, of the process, and by the name that
# ``backend=`` gave. The last are those only that have served a call.
in_context: ContextVar[Any] = ContextVar("lsm_policy", default=None)
default: Any = None
by_name: dict[str, Any] = {}


def _declines(*_: Any) -> None:
    """The function of an operation for which no backend has been found yet."""


class FastFunctions:
    """By operation, functions of (*inputs, axis, out) that return the result, or None for what is not plain."""

    __slots__ = tuple(OPERATIONS)  # whose values are the fastest to get

    def __init__(self) -> None:
        for name in OPERATIONS:
            setattr(self, name, _declines)


def fast_functions(key: Any, backend: Any) -> Any:
    """The functions for arrays of one kind, a dtype or (device, dtype); None before a first call."""
    if backend is None:
        policy = in_context.get() or default
    elif type(backend) is str:
        policy = by_name.get(backend)
    else:
        return None
    return None if policy is None else policy.fast.get(key)
