"""A report as one HTML file that needs nothing else: the tables, and the chart drawn into it."""

import re
from html import escape

from lsm.bench.layout import Report, Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
h1, h2, h3 { line-height: 1.2 } h3 { margin: 1.6em 0 .3em; font-size: 1em }
div { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15em .8em .15em 0; text-align: left; white-space: nowrap; border-bottom: 1px solid #8884 }
th { font-weight: normal; opacity: .7 } .number { text-align: right } .note { opacity: .7; margin: .2em 0 }
.best { font-weight: bold } .wrong { color: #b3261e } .raised { color: #8a5a00 } svg { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3 } .wrong { color: #ff8a80 } .raised { color: #f2c14e } }
"""


def page(report: Report, chart: str) -> str:
    """Lay out everything; `chart` is SVG."""
    head = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in report.head)
    parts = [f"<h1>lsm bench</h1><ul>{head}</ul>", f"<div>{_inline(chart)}</div>"]
    parts += [_table(table, "h2") for table in report.overall]
    parts += ["<h2>Each row</h2>"] if report.rows else []
    parts += [_table(table, "h3") for table in (*report.rows, *report.sweeps)]
    for title, lines in (*report.remarks, *report.calls):
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        parts.append(f"<h2>{escape(title)}</h2><ul>{items}</ul>")
    about = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    about += f"<title>lsm bench</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{about}</head>\n<body>\n{body}\n</body></html>\n'


def _table(table: Table, level: str) -> str:
    kinds = [' class="number"' if column.is_number else "" for column in table.columns]
    heads = "".join(f"<th{kind}>{escape(c.head)}</th>" for kind, c in zip(kinds, table.columns, strict=True))
    rows = []
    for line in table.lines:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, line.cells, strict=True))
        rows.append(f'<tr class="{line.mark}">{cells}</tr>' if line.mark else f"<tr>{cells}</tr>")
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    title = f"<{level}>{escape(table.title)}</{level}>"
    return f"{title}<div><table><tr>{heads}</tr>{''.join(rows)}</table></div>{notes}"


def _inline(svg: str) -> str:
    """Leave only the drawing: a page knows what SVG is, and needs no names of namespaces or licences."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
