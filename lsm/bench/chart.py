"""The chart of a benchmark run, by matplotlib: ratios as bars, or the maps."""

import io
import math
import re
from dataclasses import replace
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lsm.bench.report import Map, maps, number, times
from lsm.bench.result import Result, Row, plural

# Okabe and Ito (2008), which the colour-blind distinguish too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D31", "#7F7F7F")
INK, GREY = "#010203", "#808080"  # the first stands for the colour of the page's text, until the SVG is written
STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme: dark){svg{color:#e6edf3}}</style>"
WIDTH_IN, BAR_IN, MAP_IN = 11.0, 0.13, 3.6  # inches


def drawn(result: Result, kind: str) -> bytes:
    """Draw it as "svg", for a light and for a dark page, or as "png", on white; the same result gives the same file."""
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(inks, INK) | {"font.size": 9, "legend.frameon": False}
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "lsm", "text.parse_math": False}  # a name may have a $ in it
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True}
    settings |= {"grid.color": GREY, "grid.alpha": 0.3, "font.family": "DejaVu Sans"}  # which comes with matplotlib
    data = io.BytesIO()
    with mpl.rc_context(settings):
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        found = maps(result)
        figure = _maps(found) if found else _bars(result)
        figure.savefig(data, format=kind, transparent=kind == "svg", dpi=150, metadata=metadata)
    if kind == "png":
        return data.getvalue()
    text = data.getvalue().decode().replace("'DejaVu Sans'", "Verdana, sans-serif")  # of the same width
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)  # of no effect, and a sixth of a map
    return text.replace(INK, "currentColor").replace("<defs>", f"{STYLE}\n <defs>", 1).encode()


def _maps(found: list[Map]) -> Figure:
    """Of each map the ratios and beside them nanoseconds an element: as colours, logarithmic, and as numbers."""
    figure = Figure(figsize=(WIDTH_IN, MAP_IN * len(found)), layout="constrained")
    panels = []
    for one in found:
        least, most = min(one.ns.values(), default=1.0), max(one.ns.values(), default=1.0)
        # 1 is white, red is below, and the colours end at 1/3 and 3: those of two runs can be compared.
        title = one.table.title.partition(":")[0] + ": time of the peer over lsm's"
        panels.append((one, one.ratios, title, "RdBu", (1 / 3, 3.0)))
        panels.append((one, one.ns, "ns an element" + f"; {one.limit}" * bool(one.limit), "Oranges", (least, 2 * most)))
    for axes, (one, cells, title, colours, ends) in zip(figure.subplots(len(found), 2).flat, panels, strict=True):
        values = np.array([[cells.get((n, inner), math.nan) for inner in one.inners] for n in one.classes])
        image = axes.imshow(values, cmap=colours, norm=LogNorm(*ends), aspect="auto", interpolation="none")
        for (i, j), value in np.ndenumerate(values):
            if not math.isnan(value):  # the others do not exist
                ink = "white" if np.dot(image.to_rgba(value)[:3], (0.3, 0.6, 0.1)) < 0.5 else "black"
                axes.text(j, i, number(value), color=ink, size=7, ha="center", va="center")
        axes.grid(visible=False)
        axes.set(title=title, xlabel="inner", ylabel="classes")
        axes.set_xticks(range(len(one.inners)), list(map(str, one.inners)))
        axes.set_yticks(range(len(one.classes)), list(map(str, one.classes)))
    return figure


def _bars(result: Result) -> Figure:
    """Bars from 1 outwards, which is where an implementation is as fast as lsm; hollow where it is not right."""
    n_threads = max((row.threads for row in result.rows), default=1)
    rows = [row for row in map(best_way, result.rows) if row.implementations and row.threads == n_threads]
    names = {(entry.backend is None, entry.name) for row in rows for entry in row.implementations}
    colours = {name: colour for (_, name), colour in zip(sorted(names), cycle(COLOURS))}  # the backends first
    n_lines = sum(1 + len(row.implementations) for row in rows)
    figure = Figure(figsize=(WIDTH_IN, 1.4 + BAR_IN * n_lines), layout="constrained")
    if not rows:
        return figure
    axes, y, ticks = figure.subplots(), 0, {}
    for row in rows:
        ticks[y + (len(row.implementations) - 1) / 2] = row.case.label
        for entry in sorted(row.implementations, key=lambda entry: list(colours).index(entry.name)):
            width, colour = (entry.ratio or math.nan) - 1, colours[entry.name]
            bar = axes.barh(y, width, 0.86, left=1, color=colour, edgecolor=colour, fill=entry.is_right)
            axes.bar_label(bar, [times(entry.ratio) + " wrong" * (not entry.is_right)], padding=3, size=6)
            y += 1
        y += 1
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=False, axis="y")
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(list(ticks), list(ticks.values()))
    text = "(log scale): shorter is faster, left of 1 is faster than lsm"
    axes.set(ylim=(y - 1, -1), xlabel=f"time over that of lsm, {plural(n_threads, 'thread')} {text}")
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=6)
    return figure


def best_way(row: Row) -> Row:
    """Each implementation once, as it is at its best: writing into a given result, where it can."""
    timed = [entry for entry in row.implementations if entry.error is None and entry.us]
    chosen = {entry.name: entry for entry in sorted(timed, key=lambda entry: entry.way == "out")}
    return replace(row, implementations=list(chosen.values()))
