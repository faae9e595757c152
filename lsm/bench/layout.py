"""A result as headed tables of texts: what every output shows, decided once."""

from dataclasses import dataclass

BEST, WRONG, RAISED = "best", "wrong", "raised"  # what a line can be marked as


@dataclass(frozen=True)
class Column:
    """Of a table; one with a number in `dropped` goes where there is no room, the largest first."""

    head: str
    is_number: bool = True
    dropped: int = 0


@dataclass(frozen=True)
class Line:
    """Of a table: a text for each column."""

    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """With what has to be said about it below."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


Remark = tuple[str, tuple[str, ...]]  # a title, and lines


@dataclass(frozen=True)
class Report:
    """All that is shown of a result."""

    head: tuple[tuple[str, str], ...]
    overall: tuple[Table, ...]
    rows: tuple[Table, ...]
    sweeps: tuple[Table, ...]
    remarks: tuple[Remark, ...]
    calls: tuple[Remark, ...]
