"""The fast path: functions of a backend that a public function calls directly, without any checks.

They are tried first. If they decline the arguments, `_call` takes over, with checks and messages.
"""

from contextvars import ContextVar
from functools import partial
from typing import Any

from lsm._operations import DERIVED, OPERATIONS

# The current policies, set by `_dispatch`: of a `use_backend` block, of the process, and by the name passed as
# ``backend=``, after a first call.
in_context: ContextVar[Any] = ContextVar("lsm_policy", default=None)
default: Any = None
by_name: dict[str, Any] = {}


def forget() -> None:
    """Notify the kernels, which replace this function, that policies have changed."""


def set_default(policy: Any) -> None:
    """Set the policy of the process."""
    global default
    default = policy
    forget()


def _declines(*_: Any) -> None:
    """Decline, for an operation for which no backend has been selected yet."""


class FastFunctions:
    """By operation, a function of (*inputs, axis, out) that returns the result, or None if it declines.

    The arguments are the caller's, except ``dtype=`` and ``keepdims=True``, which are never passed to such a function.
    A 0-d result of NumPy arrays is a scalar, unless it is `out`.
    """

    __slots__ = (*OPERATIONS, *DERIVED)  # the fastest attributes to read

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, _declines)


def fast_functions(key: Any, backend: Any) -> Any:
    """The functions for one kind of array, given as a dtype or (device, dtype); None before the first call."""
    if backend is None:
        try:  # takes 10 ns less than a check
            return (in_context.get() or default).fast[key]
        except (AttributeError, KeyError):  # before the first call, or the first of this kind
            return None
    if type(backend) is str:
        policy = by_name.get(backend)
        return None if policy is None else policy.fast.get(key)
    return None


def _by_policy(name: str, *arguments: Any) -> Any:
    *inputs, axis, out, where, temperature, backend = arguments
    if where is not None or type(temperature) is not float or temperature != 1.0:
        return None
    functions = fast_functions(inputs[0].dtype, backend)
    return None if functions is None else getattr(functions, name)(*inputs, axis, out)


# The public functions call these first if their first argument is an ndarray, with (*inputs, axis, out, where,
# temperature, backend). The kernels replace them by faster ones, which also look up the policy.
quick: Any = FastFunctions()
for _name in OPERATIONS:
    setattr(quick, _name, partial(_by_policy, _name))
