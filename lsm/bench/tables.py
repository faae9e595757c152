"""A report as text: in colours on a terminal, plain elsewhere; columns that matter least go where there is no room."""

import textwrap
from collections.abc import Iterable
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lsm.bench.layout import BEST, RAISED, WRONG, Report, Table

STYLES = {BEST: "bold green", WRONG: "bold red", RAISED: "yellow"}
GAP = 2
NARROWEST, PLAIN_WIDTH = 20, 120  # columns: less is not laid out for; lines of text where nobody tells the width


def write(report: Report, file: TextIO) -> None:
    """Print all tables, what was fastest overall last: that is what a terminal then shows."""
    width = Console(file=file).width if file.isatty() else None
    # Wide enough that whoever reads a file or a pipe gets every column, on one line.
    console = Console(file=file, width=max(width, NARROWEST) if width else 10_000, markup=False, highlight=False)
    room = console.width if width else PLAIN_WIDTH
    parts = [_lines(console, [f"{name}: {text}" for name, text in report.head], room)]
    parts += [_table(console, table, room) for table in (*report.rows, *report.sweeps, *report.overall)]
    parts += [_lines(console, [title], room, "bold") + _lines(console, lines, room) for title, lines in report.remarks]
    file.write("\n".join(parts))  # by ourselves: rich ends the process where nobody reads


def _table(console: Console, table: Table, room: int) -> str:
    shown = fitting(table, console.width)
    grid = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for i in shown:
        column = table.columns[i]
        head = Text(_encodable(column.head, console), style="dim")
        grid.add_column(head, justify="right" if column.is_number else "left", no_wrap=len(shown) > 1)
    for line in table.lines:
        cells = (_encodable(line.cells[i], console) for i in shown)
        grid.add_row(*(Text(cell) for cell in cells), style=STYLES.get(line.mark, ""))
    title, notes = _lines(console, [table.title], room, "bold"), _lines(console, table.notes, room, "dim")
    return title + _rendered(console, grid) + notes


def _rendered(console: Console, what: RichTable | Text) -> str:
    """As it is printed, without the spaces that rich fills lines up with."""
    with console.capture() as capture:
        console.print(what)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def fitting(table: Table, n_columns: int) -> list[int]:
    """Choose the columns that fit, dropping those that matter least."""
    widths = [
        max(cell_len(text) for text in (column.head, *(line.cells[i] for line in table.lines)))
        for i, column in enumerate(table.columns)
    ]
    shown = list(range(len(widths)))
    while sum(widths[i] + GAP for i in shown) - GAP > n_columns:
        least = max(shown, key=lambda i: (table.columns[i].dropped, i))
        if not table.columns[least].dropped:
            break
        shown.remove(least)
    return shown


def _lines(console: Console, lines: Iterable[str], room: int, style: str = "") -> str:
    """Paragraphs, not broken at hyphens: names of types and options are copied from here."""
    wrapped = (textwrap.wrap(line, room, subsequent_indent="  ", break_on_hyphens=False) or [""] for line in lines)
    return "".join(_rendered(console, Text(_encodable(part, console), style)) for parts in wrapped for part in parts)


def _encodable(text: str, console: Console) -> str:
    """Spell out what the terminal's encoding lacks: the name of a processor may have any sign."""
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)
