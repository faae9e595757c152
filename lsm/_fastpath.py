"""The fast path: plain arrays go from a public function to a backend's own function for them, past all checks.

What is not plain is left to `_call`, where the checks and messages stand. setup.py compiles this file.
"""

from contextvars import ContextVar
from typing import Any

from numpy import ndarray

# The policies in force, which `_dispatch` sets: of a `use_backend` block, of the process, and by the name that
# ``backend=`` gave. The last are those only that have served a call.
in_context: ContextVar[Any] = ContextVar("lsm_policy", default=None)
default: Any = None
by_name: dict[str, Any] = {}


def find_function(name: str, key: Any, backend: Any) -> Any:
    """A backend's function for an operation on arrays of a kind; None before a call has found the backend."""
    if backend is None:
        policy = in_context.get() or default
    elif type(backend) is str:
        policy = by_name.get(backend)
    else:
        return None
    functions = None if policy is None else policy.fast.get(name)
    return None if functions is None else functions.get(key)


def try_fast_path(name: str, x: Any, others: tuple[Any, ...], axis: Any, out: Any, backend: Any) -> Any:
    """The result of an operation on plain ndarrays, `x` and the others; None for any other call."""
    if type(x) is not ndarray:
        return None
    function = find_function(name, x.dtype, backend)
    return None if function is None else function(x, *others, axis, out)


def try_fast_path_of(library: Any, name: str, arrays: tuple[Any, ...], axis: Any, out: Any, backend: Any) -> Any:
    """The same for plain arrays of another library, which a backend takes as they are or as ndarrays."""
    function = find_function(name, library.fast_key(arrays[0]), backend)
    if function is None:
        return None
    views = library.fast_views(arrays if out is None else (*arrays, out))
    if views is None:
        return None
    if out is None:
        y = function(*views, axis, None)
        return None if y is None else library.fast_result(y, arrays[0])
    if function(*views[:-1], axis, views[-1]) is None:
        return None
    library.bump_version(out)
    return out
