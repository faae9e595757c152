"""What a plugin brought, made fit to be shown: texts on one line without what a terminal obeys, numbers for JSON."""

from typing import Any

_MAX_LENGTH_CHARS = 1000  # characters; an error that quotes itself has no end


def printable(text: str) -> str:
    """The text on one line of bounded length; characters that cannot be printed are spelt out."""
    line = " ".join(text.split())
    line = line if len(line) <= _MAX_LENGTH_CHARS else f"{line[:_MAX_LENGTH_CHARS]} ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def describe_error(error: BaseException) -> str:
    """The kind of an error and what it says, even if it fails to say it."""
    try:
        return printable(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        raise
    except BaseException as another:
        return f"{type(error).__name__} (its text raises {type(another).__name__})"


def for_json(value: Any) -> Any:
    """The same for JSON, which has no infinity: it becomes the text "inf"."""
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return "inf" if value == float("inf") else value


told = describe_error  # for lsm.bench and lsm._conformance, until they use the new name
