"""The two forms of a report: plain text, in colours on a terminal, and Markdown."""

import re
from collections.abc import Iterable
from typing import TextIO

from lsm.bench.report import BEST, DROPPED, RAISED, WRONG, Report, Table

STYLES = {BEST: "bold green", WRONG: "bold red", RAISED: "yellow"}
NARROWEST_COLUMNS, PLAIN_COLUMNS, WIDE_COLUMNS = 20, 120, 10_000  # of characters

LEFT = ("implementation", "row")  # columns of text


def write(report: Report, file: TextIO) -> None:
    """Print all tables, what was fastest overall last: that is what a terminal then shows.

    In colours on a terminal, without the columns that matter least where it is narrow; plain and whole elsewhere.
    """
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    width = max(Console(file=file).width, NARROWEST_COLUMNS) if file.isatty() else None
    console = Console(file=file, width=width or WIDE_COLUMNS, markup=False, highlight=False)

    def paragraphs(lines: Iterable[str], style: str = "") -> None:
        for line in lines:
            console.print(Text(line, style), width=width or PLAIN_COLUMNS)

    with console.capture() as capture:
        paragraphs(report.head)
        for table in (*report.rows, *report.overall):
            paragraphs(["", table.title], "bold")
            grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            shown = fitting(table, console.width)
            for head in (table.heads[i] for i in shown):
                grid.add_column(Text(head, "dim"), justify="left" if head in LEFT else "right", no_wrap=len(shown) > 1)
            for line, (cells, mark) in enumerate(table.lines):
                texts = (Text(cells[i], STYLES.get(table.marks.get((line, i), ""), "")) for i in shown)
                grid.add_row(*texts, style=STYLES.get(mark, ""))
            console.print(grid)
            paragraphs(table.notes, "dim")
        for title, lines in report.remarks:
            paragraphs(["", title], "bold")
            paragraphs(lines)
    file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def fitting(table: Table, n_columns: int) -> list[int]:
    """Choose the columns that fit, dropping those that matter least."""
    widths = [2 + max(map(len, (head, *(cells[i] for cells, _ in table.lines)))) for i, head in enumerate(table.heads)]
    shown = list(range(len(widths)))
    for head in reversed(DROPPED):
        if sum(widths[i] for i in shown) - 2 > n_columns:
            shown = [i for i in shown if table.heads[i] != head]
    return shown


_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # llm_step needs no escape


def markdown(report: Report) -> str:
    """As GitHub Markdown."""
    parts = ["# lsm bench", "\n".join(f"- {escaped(line)}" for line in report.head)]
    for level, tables in (("##", report.overall), ("###", report.rows)):
        parts += ["## Each row"] * (tables is report.rows and bool(tables))
        for title, heads, lines, notes, marks in tables:
            rows = [[escaped(head) for head in heads], ["---" if head in LEFT else "---:" for head in heads]]
            for line, (cells, mark) in enumerate(lines):
                bold = ["**" if mark == BEST or (line, i) in marks else "" for i in range(len(cells))]
                rows.append([f"{b}{escaped(cell)}{b}" if cell else "" for b, cell in zip(bold, cells, strict=True)])
            grid = "\n".join("| " + " | ".join(row) + " |" for row in rows)
            parts += [f"{level} {escaped(title)}", grid, *map(escaped, notes)]
    for title, some in (*report.remarks, report.calls):
        parts += [f"## {escaped(title)}", "\n".join(f"- {escaped(line)}" for line in some)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Let nothing in a text be taken for Markdown or HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(lambda sign: "\\" + sign.group(), text)
