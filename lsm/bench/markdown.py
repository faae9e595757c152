"""A report as GitHub Markdown."""

import re

from lsm.bench.layout import BEST, Report, Table

_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # llm_step needs no escape


BEGIN, END = "<!-- lsm bench: begin -->", "<!-- lsm bench: end -->"


def markdown(report: Report, page: str = "") -> str:
    """Lay out everything, what was fastest overall first.

    On a page that has a place for it, between the lines BEGIN and END, it goes there and the rest of the page stays.
    """
    before, begin, rest = page.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if begin and end:
        return f"{before}{begin}\n{_body(report, '###')}\n{end}{after}"
    return f"# lsm bench\n\n{_body(report, '##')}"


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
