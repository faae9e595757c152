"""The charts of a benchmark run, by matplotlib: ratios as bars, GB/s against size, and curves where there are any."""

import io
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from lsm.bench.overall import elements, speed_ups
from lsm.bench.result import Entry, Result, Row
from lsm.bench.wording import plural, shape, times, types

# Okabe and Ito (2008): told apart by the colour-blind too; with a sign of its own each, for print in black and white.
BLUE, OTHERS = "#0072B2", ("#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D31", "#7F7F7F")
SIGNS = "osD^vPX*<>"
INK, GREY = "#010203", "#808080"  # the first stands for the colour of the page's text, until the SVG is written
FONT = "DejaVu Sans"  # comes with matplotlib
STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme: dark){svg{color:#e6edf3}}</style>"
WIDTH, BAR, CURVES = 11.0, 0.13, 4.2  # inches: of the figure, of a bar, and the height of the curves
DOTS_PER_INCH = 150

Look = dict[str, tuple[str, str]]


def svg(result: Result) -> str:
    """Draw it for a light and for a dark page; the same result gives the same text."""
    text = _drawn(result, format="svg", transparent=True, metadata={"Date": None, "Creator": None}).decode()
    # One family instead of matplotlib's list of ten with every word; it was laid out for this width.
    text = text.replace(f"'{FONT}'", "Verdana, sans-serif")
    return text.replace(INK, "currentColor").replace("<defs>", f"{STYLE}\n <defs>", 1)


def png(result: Result) -> bytes:
    """Draw it on white."""
    return _drawn(result, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _drawn(result: Result, **how: Any) -> bytes:
    """Draw and save it, both with settings of our own; names of contestants may have a $ in them."""
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(inks, INK) | {"font.size": 9, "legend.frameon": False}
    settings |= {"font.family": FONT, "svg.fonttype": "none", "svg.hashsalt": "lsm", "text.parse_math": False}
    data = io.BytesIO()
    with mpl.rc_context(settings):
        _figure(result).savefig(data, **how)
    return data.getvalue()


def _figure(result: Result) -> Figure:
    """Bars above, curves below."""
    rows, n_threads = [one_way(row) for row in result.rows], max(result.header.threads)
    look, bars = looks(rows), _bars(rows, n_threads)
    curves = list(_curves(rows, n_threads, result.header.caches))
    heights = [1.4 + BAR * _height(bars)] * bool(bars) + [CURVES] * math.ceil(len(curves) / 2)
    figure = Figure(figsize=(WIDTH, sum(heights) or 1), layout="constrained")
    parts = iter(figure.subfigures(len(heights) or 1, 1, height_ratios=heights or [1], squeeze=False)[:, 0])
    if bars:
        _draw_bars(next(parts), bars, look, n_threads)
    for i in range(0, len(curves), 2):
        part = next(parts)
        places = part.subplots(1, 2)
        for axes, draw in zip(places, curves[i : i + 2], strict=False):
            draw(axes, look)
        _legend(part, [Line2D([], [], color=c, marker=sign, label=name) for name, (c, sign) in look.items()])
        for axes in places[len(curves[i:]) :]:
            axes.set_axis_off()
    return figure


def one_way(row: Row) -> Row:
    """Each contestant once, as it is at its best: writing into a given result, where it can."""
    chosen: dict[str, Entry] = {}
    for entry in row.contestants:
        if entry.error is None and entry.us and (entry.name not in chosen or entry.way == "out"):
            chosen[entry.name] = replace(entry, way="out")
    return replace(row, contestants=list(chosen.values()))


def looks(rows: list[Row]) -> Look:
    """A colour and a sign for each contestant: the backends first, lsm's default blue."""
    is_peer = {entry.name: entry.backend is None for row in rows for entry in row.contestants}
    names = sorted(is_peer, key=lambda name: (is_peer[name], name))
    colours = [BLUE, *(OTHERS[i % len(OTHERS)] for i in range(len(names)))]
    return {name: (colour, SIGNS[i % len(SIGNS)]) for i, (name, colour) in enumerate(zip(names, colours, strict=False))}


Bars = dict[str, dict[str, dict[str, tuple[float, float, float, bool]]]]


def _bars(rows: list[Row], n_threads: int) -> Bars:
    """By operation, workload with dtype, and contestant: the mean ratio, its spread, whether it is right."""
    found: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for row in rows:
        for entry in row.contestants:
            if row.threads == n_threads and row.sweep is None and entry.ratio:
                found[row.op, f"{row.workload} {shape(row)}\n{types(row)}", entry.name].append(entry)
    bars: Bars = {}
    for (op, place, name), entries in found.items():
        ratios = [entry.ratio or 1 for entry in entries]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        low = min(entry.p20_ratio or mean for entry in entries)
        high = max(entry.p80_ratio or mean for entry in entries)
        is_right = all(entry.is_right for entry in entries)
        bars.setdefault(op, {}).setdefault(place, {})[name] = mean, low, high, is_right
    return bars


def _legend(part: Any, handles: list[Any]) -> None:
    part.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))


def _height(bars: Bars) -> int:
    """How many bars stand above each other, with a gap after each place."""
    pairs = {(place, name) for groups in bars.values() for place, by in groups.items() for name in by}
    return len(pairs) + len({place for place, _ in pairs})


def _draw_bars(part: Any, bars: Bars, look: Look, n_threads: int) -> None:
    """Bars from 1 outwards, which is where a contestant is as fast as lsm; the same places for every operation."""
    places: dict[tuple[str, str], float] = {}
    ticks, y = {}, 0
    for place in dict.fromkeys(place for groups in bars.values() for place in groups):
        names = [name for name in look if any(name in groups.get(place, {}) for groups in bars.values())]
        places |= {(place, name): y + i for i, name in enumerate(names)}
        ticks[place] = y + (len(names) - 1) / 2
        y += len(names) + 1
    all_axes = part.subplots(1, len(bars), squeeze=False, sharey=True)[0]
    for axes, (op, groups) in zip(all_axes, bars.items(), strict=True):
        for place, by_name in groups.items():
            for name, (mean, low, high, is_right) in by_name.items():
                (colour, _), at = look[name], places[place, name]
                fill = {"color": colour} if is_right else {"facecolor": "none", "edgecolor": colour, "hatch": "////"}
                axes.barh(at, mean - 1, 0.86, left=1, **fill)
                axes.plot([low, high], [at, at], color=GREY, linewidth=1)
                text = times(mean) + (" wrong" if not is_right else "")
                axes.annotate(text, (max(high, 1), at), (3, 0), textcoords="offset points", va="center", size=6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.12)
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_title(op)
        _tidy(axes, "x")
    all_axes[0].set_yticks(list(ticks.values()), list(ticks))
    all_axes[0].set_ylim(y - 1, -1)
    text = "shorter is faster, left of 1 is faster than lsm; grey: 20th to 80th percentile"
    part.supxlabel(f"time over that of lsm, {plural(n_threads, 'thread')} (log scale): {text}", fontsize=9)
    _legend(part, [Patch(color=look[name][0], label=name) for name in look if any(name == n for _, n in places)])


def _curves(rows: list[Row], n_threads: int, caches: dict[str, int]) -> Iterator[Any]:
    """Functions that draw each of the curves for which there is anything."""
    named = [row for row in rows if row.sweep is None and row.contestants]
    for op in dict.fromkeys(row.op for row in named if row.threads == n_threads):
        here = sorted((row for row in named if (row.op, row.threads) == (op, n_threads)), key=lambda row: row.bytes)
        yield partial(_draw_sizes, op=op, rows=here, caches=caches)
    ups = speed_ups(named)
    if any(len(by) > 1 for by in ups.values()):
        yield partial(_draw_speed_ups, ups=ups)
    sweeps = defaultdict(list)
    for row in rows:
        if row.sweep is not None and row.threads == n_threads:
            sweeps[f"{row.op}, {types(row)}: more {row.sweep}"].append(row)
    for title, swept in sweeps.items():
        yield partial(_draw_sweep, title=title, rows=sorted(swept, key=elements))


def _draw_sizes(axes: Any, look: Look, op: str, rows: list[Row], caches: dict[str, int]) -> None:
    """Draw GB/s against bytes below the machine's limit, as a roofline is drawn; hollow for what is not right."""
    for row in rows:
        for entry in row.contestants:
            if entry.gb_s:
                colour, sign = look[entry.name]
                fill = colour if entry.is_right else "none"
                axes.plot(row.bytes, entry.gb_s, sign, color=colour, markerfacecolor=fill, markersize=5)
    for limit in dict.fromkeys(row.limit.name for row in rows if row.limit):
        points = [(row.bytes, row.limit.gb_s) for row in rows if row.limit and row.limit.name == limit]
        axes.plot(*zip(*points, strict=True), "-_", color=INK, linewidth=1, label=f"limit: {limit}")
    for name, n_bytes in caches.items():
        axes.axvline(n_bytes, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(name, (n_bytes, 0), xycoords=("data", "axes fraction"), fontsize=8, ha="right", va="bottom")
    _logarithmic(axes)
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.set_xlabel("read and written")
    axes.set_title(f"GB/s against size, {op}")
    if any(row.limit for row in rows):
        axes.legend(loc="best")
    _tidy(axes, "both")


def _draw_speed_ups(axes: Any, look: Look, ups: dict[str, dict[int, float]]) -> None:
    """Draw how many times as fast each is with more threads."""
    counts = sorted({n for by in ups.values() for n in by})
    for name, by in ups.items():
        colour, sign = look[name]
        axes.plot(list(by), list(by.values()), marker=sign, color=colour)
    axes.plot(counts, [n / counts[0] for n in counts], color=INK, linewidth=1, label="in proportion")
    axes.set_xticks(counts)
    axes.set_xlabel("threads")
    axes.set_title(f"times as fast as with {plural(counts[0], 'thread')}")
    axes.legend(loc="best")
    _tidy(axes, "both")


def _draw_sweep(axes: Any, look: Look, title: str, rows: list[Row]) -> None:
    """Nanoseconds an element: flat where time grows in proportion to the work."""
    for name, (colour, sign) in look.items():
        found = [(elements(r), e.us) for r in rows for e in r.contestants if e.name == name and e.is_ranked and e.us]
        if found:
            points = [(n, us * 1e3 / n) for n, us in found]
            axes.plot(*zip(*points, strict=True), marker=sign, markersize=4, color=colour)
    _logarithmic(axes)
    axes.set_xlabel("elements")
    axes.set_title(f"ns an element, {title}")
    _tidy(axes, "both")


def _logarithmic(axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter("{x:g}")


def _tidy(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=GREY, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
