"""The chart of a benchmark run, by matplotlib: ratios as bars, curves of GB/s and of threads, or maps."""

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lsm.bench.report import Cells, Map, maps, number, plural, speed_ups, times
from lsm.bench.result import Result, Row

# Okabe and Ito (2008), which the colour-blind distinguish too; each with a marker, for print in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D31", "#7F7F7F")
MARKERS = "osD^vPX*<>"
INK, GREY = "#010203", "#808080"  # the first stands for the colour of the page's text, until the SVG is written
STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme: dark){svg{color:#e6edf3}}</style>"
WIDTH_IN, BAR_IN, CURVES_IN, MAP_IN = 11.0, 0.13, 4.2, 3.6  # inches
DOTS_PER_INCH = 150

Looks = dict[str, dict[str, Any]]
Curves = tuple[str, str, dict[str, list[tuple[float, float]]]]  # title, label of x, points by name


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
        figure = _maps(found) if found else _figure(result)
        figure.savefig(data, format=kind, transparent=kind == "svg", dpi=DOTS_PER_INCH, metadata=metadata)
    if kind == "png":
        return data.getvalue()
    text = data.getvalue().decode().replace("'DejaVu Sans'", "Verdana, sans-serif")  # of the same width
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)  # of no effect, and a sixth of a map
    return text.replace(INK, "currentColor").replace("<defs>", f"{STYLE}\n <defs>", 1).encode()


def _maps(found: list[Map]) -> Figure:
    """The ratios of each map as colours and numbers, and beside them nanoseconds an element."""
    figure = Figure(figsize=(WIDTH_IN, MAP_IN * len(found)), layout="constrained")
    for (left, right), one in zip(figure.subplots(len(found), 2, squeeze=False), found, strict=True):
        # 1 is white, red is below, and the colours end at 1/3 and 3: those of two runs can be compared.
        _draw_map(left, one, one.ratios, "RdBu", (1 / 3, 3))
        left.set_title(f"{one.title}: time of the peer over lsm's")
        least = min(one.ns.values(), default=1.0)
        _draw_map(right, one, one.ns, "Oranges", (least, 2 * max(one.ns.values(), default=1.0)))
        right.set_title("ns an element" + f"; {one.limit}" * bool(one.limit))
    return figure


def _draw_map(axes: Any, found: Map, cells: Cells, colours: str, ends: tuple[float, float]) -> None:
    """Rectangles of a logarithmic colour with their numbers; cells that do not exist are left out."""
    values = np.array([[cells.get((n, inner), math.nan) for inner in found.inners] for n in found.classes])
    image = axes.imshow(values, cmap=colours, norm=LogNorm(*ends), aspect="auto", interpolation="none")
    for (i, j), value in np.ndenumerate(values):
        if not math.isnan(value):
            ink = "white" if np.dot(image.to_rgba(value)[:3], (0.3, 0.6, 0.1)) < 0.5 else "black"
            axes.text(j, i, number(value), color=ink, size=7, ha="center", va="center")
    axes.grid(visible=False)
    axes.set(xlabel="inner", ylabel="classes")
    axes.set_xticks(range(len(found.inners)), list(map(str, found.inners)))
    axes.set_yticks(range(len(found.classes)), list(map(str, found.classes)))


def _figure(result: Result) -> Figure:
    """Bars above, curves below."""
    rows = [row for row in map(best_way, result.rows) if row.implementations]
    n_threads = max((row.threads for row in rows), default=1)
    is_peer = {entry.name: entry.backend is None for row in rows for entry in row.implementations}
    names = enumerate(sorted(is_peer, key=lambda name: (is_peer[name], name)))  # the backends first
    looks: Looks = {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in names
    }
    bars = [row for row in rows if row.threads == n_threads]
    curves = list(_curves(rows, n_threads))
    n_bars, n_lines = sum(1 + len(row.implementations) for row in bars), math.ceil(len(curves) / 2)
    heights = [1.4 + BAR_IN * n_bars, CURVES_IN * n_lines]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
    if bars:
        parts: Any = figure.subfigures(2, 1, height_ratios=heights)
        above, below = parts
        _draw_bars(above.subplots(), bars, looks, n_threads)
        for axes, some in zip_longest(below.subplots(n_lines, 2).flat, curves):
            _draw_curves(axes, looks, *some) if some else axes.axis("off")
        handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
        above.legend(handles=handles, loc="outside upper center", ncols=6)
    return figure


def best_way(row: Row) -> Row:
    """Each implementation once, as it is at its best: writing into a given result, where it can."""
    timed = [entry for entry in row.implementations if entry.error is None and entry.us]
    chosen = {entry.name: entry for entry in sorted(timed, key=lambda entry: entry.way == "out")}
    return replace(row, implementations=[replace(entry, way="out") for entry in chosen.values()])


def _draw_bars(axes: Any, rows: list[Row], looks: Looks, n_threads: int) -> None:
    """Bars from 1 outwards, which is where an implementation is as fast as lsm; hollow where it is not right."""
    y, ticks = 0, {}
    for row in rows:
        ticks[y + (len(row.implementations) - 1) / 2] = row.case.label
        for entry in sorted(row.implementations, key=lambda entry: list(looks).index(entry.name)):
            ratio, colour = entry.ratio or math.nan, looks[entry.name]["color"]
            fill = {"color": colour} if entry.is_right else {"fill": False, "edgecolor": colour, "hatch": "////"}
            span = [[ratio - (entry.p20_ratio or ratio)], [(entry.p80_ratio or ratio) - ratio]]
            bar = axes.barh(y, ratio - 1, 0.86, left=1, xerr=span, error_kw={"ecolor": GREY, "elinewidth": 1}, **fill)
            axes.bar_label(bar, [times(entry.ratio) + " wrong" * (not entry.is_right)], padding=3, size=6)
            y += 1
        y += 1
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=False, axis="y")
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(y - 1, -1)
    text = "shorter is faster, left of 1 is faster than lsm; grey: 20th to 80th percentile"
    axes.set_xlabel(f"time over that of lsm, {plural(n_threads, 'thread')} (log scale): {text}")


def _curves(rows: list[Row], n_threads: int) -> Iterator[Curves]:
    """GB/s against bytes below the machine's limit, and speed against threads."""
    for op in dict.fromkeys(row.case.op for row in rows):
        points: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row.bytes):
            if (row.case.op, row.threads) == (op, n_threads):
                for entry in row.implementations:
                    points[entry.name].append((row.bytes, entry.gb_s or math.nan))
                if row.limit:
                    points[f"limit: {row.limit.name}"].append((row.bytes, row.limit.gb_s))
        yield f"GB/s against size, {op}", "bytes read and written", points
    ups = speed_ups(rows)
    if any(len(by) > 1 for by in ups.values()):
        fewest = plural(min(n for by in ups.values() for n in by), "thread")
        yield f"times as fast as with {fewest}", "threads", {name: list(by.items()) for name, by in ups.items()}


def _draw_curves(axes: Any, looks: Looks, title: str, label: str, points: dict[str, list[tuple[float, float]]]) -> None:
    for name, some in points.items():
        look = looks.get(name, {"color": INK, "marker": "_", "linewidth": 2})
        axes.plot(*zip(*some, strict=True), linestyle="-", markersize=4, **{"linewidth": 0.5, **look})
        if name not in looks:
            axes.annotate(name, some[-1], (0, 6), textcoords="offset points", ha="right", size=8)
    axes.set(xlabel=label, ylabel="log scale", yscale="log", title=title)
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
