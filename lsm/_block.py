"""Settings for a ``with`` block, in one thread or asyncio task: a backend, or a number of threads."""

from collections.abc import Callable, Coroutine
from functools import partial, wraps
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar, cast

from lsm._held import ScopedValue

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

# Attributes of results that are computed after the call: coroutines, iterators, asynchronous iterators, futures.
_DEFERRED = ("__await__", "__next__", "__anext__", "__enter__", "__aenter__", "add_done_callback")
_CONTAINERS = (list, tuple, set, frozenset)
_REMEDY = "use a with block in the body instead, around the calls of lsm and not around a yield"


class ContextOverride(ScopedValue[T]):
    """A value for a ContextVar within a ``with`` block or the calls of a decorated function."""

    def __reduce__(self) -> Any:
        raise TypeError(
            "a block of lsm applies to one thread of one process and cannot be pickled; in the other process, pass "
            "backend=, or call lsm.set_default_backend or lsm.set_num_threads"
        )

    def __call__(self, function: Function) -> Function:
        """Decorate a function or a coroutine function: the value is set while its body runs.

        Raises
        ------
        TypeError
            `function` is a generator function or not a function. Also raised by the decorated function if its result
            is computed after the call.
        """
        import inspect  # takes 5 ms, too slow for `import lsm`

        if isinstance(function, (type, staticmethod, classmethod)) or not callable(function):
            raise TypeError(
                f"lsm cannot decorate {function!r}; accepted: a function or a coroutine function "
                "(below @staticmethod, @classmethod or @property)"
            )
        # For an object with a method __call__, inspect that method; inspect itself unwraps methods and partials.
        is_object = not (inspect.isroutine(function) or isinstance(function, partial))
        code = type(function).__call__ if is_object else function
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            raise TypeError(f"{function!r} is a generator function, whose body runs after the call; {_REMEDY}")

        if inspect.iscoroutinefunction(code):

            @wraps(function)
            async def within(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return _check_finished(await function(*args, **kwargs), function)
        else:

            @wraps(function)
            def within(*args: Any, **kwargs: Any) -> Any:
                return _check_finished(self.call(function, args, kwargs), function)

        return cast(Function, within)


def _check_finished(result: Any, function: Callable[..., Any]) -> Any:
    """Return a result; raises TypeError if it, or an item of it, is work that would run after the block."""
    items = result.values() if isinstance(result, dict) else result if isinstance(result, _CONTAINERS) else ()
    examples = dict(zip(map(type, items), items, strict=True)) | {type(result): result}  # one of each type
    deferred = next(filter(_is_deferred, examples.values()), None)
    if deferred is None:
        return result
    for item in (result, *items):
        if isinstance(item, Coroutine):
            item.close()  # otherwise Python warns that it was never awaited
    raise TypeError(
        f"{function!r} is decorated by lsm and returned a {type(deferred).__name__}, which runs after the block has "
        f"ended; {_REMEDY}"
    )


def _is_deferred(x: Any) -> bool:
    """Whether this is a function, or is computed after the call; a file is neither."""
    is_file = hasattr(x, "close") and (hasattr(x, "read") or hasattr(x, "write"))
    is_function = isinstance(x, (partial, BuiltinFunctionType, FunctionType, MethodType))
    return is_function or (not is_file and any(hasattr(type(x), name) for name in _DEFERRED))
