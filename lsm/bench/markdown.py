"""A report as GitHub Markdown."""

import re

from lsm.bench.layout import BEST, Report, Table

_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # llm_step needs no escape


def markdown(report: Report) -> str:
    """Lay out everything, what was fastest overall first."""
    parts = ["# lsm bench", "\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in report.head)]
    parts += [text for table in report.overall for text in _table(table)]
    if report.rows:
        parts.append("## Each row")
    parts += [text for table in (*report.rows, *report.sweeps) for text in _table(table, "###")]
    for title, lines in (*report.remarks, *report.calls):
        parts += [f"## {escaped(title)}", "\n".join(f"- {escaped(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table, level: str = "##") -> list[str]:
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
