"""Let exceptions of signal handlers pass through code that catches other exceptions.

Python runs a handler between two bytecodes of any code, even that of a plugin or another library, which is not at
fault.
"""

# Built in: the file of `signal` cannot always be opened, for lack of permissions or descriptors.
from _signal import getsignal, valid_signals  # type: ignore[import-not-found]
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any


def reraise_from_handler(error: BaseException) -> None:
    """Raise the exception of a signal handler, if this is one or was caused by one.

    It is recognised by the frame of the handler in its traceback. Handlers written in C have none.
    """
    handlers = {_code(getsignal(number)) for number in valid_signals()} - {None}
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and not any(found is other for other in seen):
        trace = found.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in handlers:
                raise found
            trace = trace.tb_next
        seen.append(found)
        found = found.__cause__ or found.__context__


@contextmanager
def ignoring(*kinds: type[BaseException]) -> Iterator[None]:
    """Like ``contextlib.suppress``, except for exceptions raised by a signal handler."""
    try:
        yield
    except kinds as error:
        reraise_from_handler(error)


def _code(handler: Any) -> CodeType | None:
    """The code of a handler: a function, a method, a partial or an object with a method __call__."""
    if not callable(handler):  # SIG_DFL, SIG_IGN, or None for a handler in C
        return None
    function = getattr(handler, "func", handler)
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None
