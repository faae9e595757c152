"""Texts that a plugin brought, such as an error's, made fit to be shown: one line, without what a terminal obeys."""

_LONGEST = 1000  # characters; an error that quotes itself has no end


def printable(text: str) -> str:
    """The text on one line of bounded length; characters that cannot be printed are spelt out."""
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def told(error: BaseException) -> str:
    """The kind of an error and what it says, even if it fails to say it."""
    try:
        return printable(f"{type(error).__name__}: {error}")
    except Exception as another:
        return f"{type(error).__name__} (its text raises {type(another).__name__})"
