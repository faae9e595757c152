"""Make text and numbers from plugins safe to display: one line without control characters, and valid JSON."""

from typing import Any

from lsm._signals import reraise_from_handler

_MAX_LENGTH_CHARS = 1000


def printable(text: str) -> str:
    """The text on one line of limited length, with nonprintable characters escaped."""
    line = " ".join(text.split())
    line = line if len(line) <= _MAX_LENGTH_CHARS else f"{line[:_MAX_LENGTH_CHARS]} ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def describe_error(error: BaseException) -> str:
    """The type and message of an error, even if its `__str__` raises."""
    try:
        return printable(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        raise
    except BaseException as another:
        reraise_from_handler(another)
        return f"{type(error).__name__} (its __str__ raises {type(another).__name__})"


def for_json(value: Any) -> Any:
    """The value for JSON, which has no infinity: infinity becomes the string "inf"."""
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return "inf" if value == float("inf") else value
