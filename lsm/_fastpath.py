"""The fast path: functions of a backend that a public function calls directly, without any checks.

They are tried first. Arguments that they decline go to `_call`, which has the checks and messages.
"""

from contextvars import ContextVar
from typing import Any

from lsm._operations import OPERATIONS

# The current policies, set by `_dispatch`: of a `use_backend` block, of the process, and by the name passed as
# ``backend=``, after a first call.
in_context: ContextVar[Any] = ContextVar("lsm_policy", default=None)
default: Any = None
by_name: dict[str, Any] = {}


def _declines(*_: Any) -> None:
    """Decline, for an operation for which no backend has been selected yet."""


class FastFunctions:
    """By operation, a function of (*inputs, axis, out) that returns the result, or None if it declines.

    The arguments are the caller's, but for those that no such function is given: ``dtype=`` and ``keepdims=True``. A
    0-d result of NumPy arrays is a scalar, unless it is `out`.
    """

    __slots__ = tuple(OPERATIONS)  # the fastest attributes to read

    def __init__(self) -> None:
        for name in OPERATIONS:
            setattr(self, name, _declines)


def fast_functions(key: Any, backend: Any) -> Any:
    """The functions for one kind of array, a dtype or (device, dtype); None before a first call."""
    if backend is None:
        try:  # takes 10 ns less than to ask
            return (in_context.get() or default).fast[key]
        except (AttributeError, KeyError):  # before a first call, or the first of this kind
            return None
    if type(backend) is str:
        policy = by_name.get(backend)
        return None if policy is None else policy.fast.get(key)
    return None
