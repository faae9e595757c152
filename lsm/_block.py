"""What holds within a ``with`` block, in one thread or asyncio task: a backend, or a number of threads."""

from collections.abc import Callable, Coroutine
from functools import partial, wraps
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar, cast

from lsm._held import ScopedValue

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

# A result whose type has one of these is not there yet: a coroutine, an iterator, an asynchronous one, a future.
_RUNS_LATER = ("__await__", "__next__", "__anext__", "add_done_callback")
_REMEDY = "enter the block with `with` in the body instead, around the calls of lsm and not around a yield"


class ContextOverride(ScopedValue[T]):
    """A value for a ContextVar within a ``with`` block, or within the calls of a function that it decorates."""

    def __call__(self, function: Function) -> Function:
        """Decorate a function or a coroutine function: the block holds while its body runs.

        Raises
        ------
        TypeError
            The body of `function` does not run in its calls: a generator function, or something that is no function.
            The decorated function raises it where what is returned runs later.
        """
        import inspect  # 5 ms, which `import lsm` must not cost

        if isinstance(function, (type, staticmethod, classmethod)) or not callable(function):
            raise TypeError(
                f"{function!r} cannot be decorated by a block of lsm; accepted: a function or a coroutine function "
                "(below @staticmethod, @classmethod or @property)"
            )
        # What runs where an object with a method __call__ is decorated; inspect sees through methods and partials.
        is_object = not (inspect.isroutine(function) or isinstance(function, partial))
        code = type(function).__call__ if is_object else function
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            raise TypeError(f"{function!r} is a generator function, whose body runs after its call; {_REMEDY}")

        if inspect.iscoroutinefunction(code):

            @wraps(function)
            async def within(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return _check_finished(await function(*args, **kwargs), function)
        else:

            @wraps(function)
            def within(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return _check_finished(function(*args, **kwargs), function)

        return cast(Function, within)


def _check_finished(result: Any, function: Callable[..., Any]) -> Any:
    """Give a result back, unless it is work that would be done after the block."""
    if isinstance(result, (partial, BuiltinFunctionType, FunctionType, MethodType)) or any(
        hasattr(type(result), a) for a in _RUNS_LATER
    ):
        if isinstance(result, Coroutine):
            result.close()  # else Python warns that nothing awaits it
        raise TypeError(
            f"{function!r} is decorated by a block of lsm and returned a {type(result).__name__}, which runs after the "
            f"block has ended; {_REMEDY}"
        )
    return result
