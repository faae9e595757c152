"""The fast path: functions of a backend that a public function calls directly, without any checks.

They are tried first. Arguments that they decline go to `_call`, which has the checks and messages.
"""

from contextvars import ContextVar
from typing import Any

import numpy as np

from lsm._operations import OPERATIONS

_QUICK_ELEMENTS = 2**15  # up to here a log-softmax of all classes fits a cache, and is gathered from at once
_INT64 = np.dtype(np.int64)

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


def take_quickly(x: Any, indices: Any, axis: Any, backend: Any) -> Any:
    """`take_log_softmax` of a small matrix, at one valid class for each of its rows; None for any other call."""
    if type(x) is not np.ndarray or type(indices) is not np.ndarray or x.ndim != 2 or axis not in (-1, 1):
        return None
    n_frames, n_classes = x.shape
    if indices.shape != (n_frames,) or indices.dtype is not _INT64 or not 0 < x.size <= _QUICK_ELEMENTS:
        return None
    fast = fast_functions(x.dtype, backend)
    if fast is None or indices.view(np.uint64).max() >= n_classes:  # negative ones are huge
        return None
    y = fast.log_softmax(x, axis, None)
    return None if y is None else y.reshape(-1)[np.arange(0, x.size, n_classes) + indices]
