"""A report as GitHub Markdown."""

import re

from lsm.bench.layout import BEST, Report, Table

_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # llm_step needs no escape

HEAD = "# lsm bench"
BEGIN, END = "<!-- lsm bench: begin -->", "<!-- lsm bench: end -->"
_OURS = re.compile(rf"{HEAD}\n\n- processor: ")


def markdown(report: Report, page: str = "", name: str = "the page") -> str:
    """Lay out everything, what was fastest overall first.

    On a page that has a place for it, between the lines BEGIN and END, it goes there and the rest of the page stays.

    Raises
    ------
    ValueError
        As `place` does.
    """
    if (found := place(page, name)) is None:
        return f"{HEAD}\n\n{_body(report, '##')}"
    begin, end = found
    lines = page.splitlines(keepends=True)
    ending = "\r\n" if lines[begin].endswith("\r\n") else "\n"
    body = f"{_body(report, '###')}\n".replace("\n", ending)
    return "".join([*lines[: begin + 1], body, *lines[end:]])


def place(page: str, name: str) -> tuple[int, int] | None:
    """Which lines of a page are BEGIN and END; None for one that may be replaced: an empty one, or a report throughout.

    Raises
    ------
    ValueError
        Neither: somebody's page would be lost; `name` says which file it is.
    """
    lines = [line.strip() for line in page.splitlines()]
    begins, ends = ([i for i, line in enumerate(lines) if line == mark] for mark in (BEGIN, END))
    if len(begins) == len(ends) == 1 and begins[0] < ends[0]:
        return begins[0], ends[0]
    if not begins and not ends and (not page.strip() or _OURS.match("\n".join(lines))):
        return None
    has = f"{len(begins)} lines {BEGIN} and {len(ends)} lines {END}"
    raise ValueError(f"{name}: {has}; accepted: one of each, in this order, an earlier report, or a new file")


def _body(report: Report, level: str) -> str:
    parts = ["\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in report.head)]
    parts += [text for table in report.overall for text in _table(table, level)]
    if report.rows:
        parts.append(f"{level} Each row")
    parts += [text for table in (*report.rows, *report.sweeps) for text in _table(table, f"{level}#")]
    for title, lines in (*report.remarks, *report.calls):
        parts += [f"{level} {escaped(title)}", "\n".join(f"- {escaped(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table, level: str) -> list[str]:
    rows = [[escaped(column.head) for column in table.columns]]
    rows.append(["---:" if column.is_number else "---" for column in table.columns])
    for line in table.lines:
        cells = [escaped(cell) for cell in line.cells]
        rows.append([f"**{cell}**" if cell else "" for cell in cells] if line.mark == BEST else cells)
    grid = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return [f"{level} {escaped(table.title)}", grid, *map(escaped, table.notes)]


def escaped(text: str) -> str:
    """Let nothing in a text be taken for Markdown or HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(lambda sign: "\\" + sign.group(), text)
