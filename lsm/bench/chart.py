"""The chart of a benchmark run, by matplotlib: ratios as bars, curves of GB/s and of threads, or maps."""

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lsm.bench.report import Cells, Map, maps, number, plural, speed_ups, times
from lsm.bench.result import Entry, Result, Row

# Okabe and Ito (2008), which the colour-blind distinguish too; each with a marker, for print in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D31", "#7F7F7F")
MARKERS = "osD^vPX*<>"
INK, GREY = "#010203", "#808080"  # the first stands for the colour of the page's text, until the SVG is written
STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme: dark){svg{color:#e6edf3}}</style>"
WIDTH_IN, BAR_IN, CURVES_IN, MAP_IN = 11.0, 0.13, 4.2, 3.6  # inches
DOTS_PER_INCH = 150

Look = dict[str, dict[str, Any]]
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
        found = list(maps(result))
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
        ns = list(one.ns.values()) or [1.0]
        _draw_map(right, one, one.ns, "Oranges", (min(ns), 2 * max(ns)))
        right.set_title("ns an element" + f"; {one.limit} {number(one.limit_ns)}" * bool(one.limit))
    return figure


def _draw_map(axes: Any, found: Map, cells: Cells, colours: str, ends: tuple[float, float]) -> None:
    """Rectangles of a logarithmic colour with their numbers; cells that do not exist are left out."""
    values = np.array([[cells.get((n, inner), math.nan) for inner in found.inners] for n in found.classes])
    scale = (np.log(values) - math.log(ends[0])) / math.log(ends[1] / ends[0])
    image = mpl.colormaps[colours](np.ma.masked_invalid(scale))
    axes.imshow(image, aspect="auto", interpolation="none")
    for (i, j), value in np.ndenumerate(values):
        if not math.isnan(value):
            ink = "white" if image[i, j, :3] @ (0.3, 0.6, 0.1) < 0.5 else "black"
            axes.text(j, i, number(value), color=ink, size=7, ha="center", va="center")
    axes.grid(visible=False)
    axes.set(xlabel="inner", ylabel="classes")
    axes.set_xticks(range(len(found.inners)), list(map(str, found.inners)))
    axes.set_yticks(range(len(found.classes)), list(map(str, found.classes)))


def _figure(result: Result) -> Figure:
    """Bars above, curves below."""
    rows, n_threads = [best_way(row) for row in result.rows], max(result.header.threads)
    rows = [row for row in rows if row.implementations]
    look = looks(rows)
    bars = [row for row in rows if row.threads == n_threads]
    curves = list(_curves(rows, n_threads))
    n_bars = sum(1 + len(row.implementations) for row in bars)
    heights = [1.4 + BAR_IN * n_bars] * bool(bars) + [CURVES_IN] * math.ceil(len(curves) / 2)
    figure = Figure(figsize=(WIDTH_IN, sum(heights) or 1), layout="constrained")
    parts = list(figure.subfigures(len(heights) or 1, 1, height_ratios=heights or [1], squeeze=False)[:, 0])
    if bars:
        _draw_bars(parts[0].subplots(), bars, look, n_threads)
    for i, part in enumerate(parts[bool(bars) :] if curves else []):
        for axes, some in zip(part.subplots(1, 2), [*curves[2 * i : 2 * i + 2], None], strict=False):
            _draw_curves(axes, look, some)
    for part in parts:
        handles = [Line2D([], [], label=name, **style) for name, style in look.items()]
        part.legend(handles=handles, loc="outside upper center", ncols=6)
    return figure


def best_way(row: Row) -> Row:
    """Each implementation once, as it is at its best: writing into a given result, where it can."""
    chosen: dict[str, Entry] = {}
    for entry in row.implementations:
        if entry.error is None and entry.us and (entry.name not in chosen or entry.way == "out"):
            chosen[entry.name] = replace(entry, way="out")
    return replace(row, implementations=list(chosen.values()))


def looks(rows: list[Row]) -> Look:
    """A colour and a marker for each implementation: the backends first."""
    is_peer = {entry.name: entry.backend is None for row in rows for entry in row.implementations}
    names = enumerate(sorted(is_peer, key=lambda name: (is_peer[name], name)))
    return {name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in names}


def _draw_bars(axes: Any, rows: list[Row], look: Look, n_threads: int) -> None:
    """Bars from 1 outwards, which is where an implementation is as fast as lsm; hollow where it is not right."""
    y, ticks = 0, {}
    for row in rows:
        ticks[y + (len(row.implementations) - 1) / 2] = row.case.label
        for entry in sorted(row.implementations, key=lambda entry: list(look).index(entry.name)):
            ratio, colour = entry.ratio or math.nan, look[entry.name]["color"]
            fill = {"color": colour} if entry.is_right else {"fill": False, "edgecolor": colour, "hatch": "////"}
            axes.barh(y, ratio - 1, 0.86, left=1, **fill)
            span = entry.p20_ratio or ratio, entry.p80_ratio or ratio
            axes.plot(span, (y, y), color=GREY, linewidth=1)
            text = times(entry.ratio) + " wrong" * (not entry.is_right)
            axes.annotate(text, (max(span[1], 1), y), (3, 0), textcoords="offset points", va="center", size=6)
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


def _draw_curves(axes: Any, look: Look, curves: Curves | None) -> None:
    if curves is None:
        axes.set_axis_off()
        return
    title, label, points = curves
    for name, some in points.items():
        style = look.get(name, {"color": INK, "marker": "_", "linewidth": 2})
        axes.plot(*zip(*some, strict=True), linestyle="-", markersize=4, **{"linewidth": 0.5, **style})
        if name not in look:
            axes.annotate(name, some[-1], (0, 6), textcoords="offset points", ha="right", size=8)
    axes.set(xlabel=label, ylabel="log scale", yscale="log", title=title)
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
