"""The charts of a benchmark run, by matplotlib: ratios as bars, GB/s against size, and curves where there are any."""

import io
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from lsm.bench.overall import elements, geometric_means, speed_ups
from lsm.bench.result import Result, Row
from lsm.bench.wording import plural, shape, times, types, who

# Okabe and Ito (2008): told apart by the colour-blind too; with a sign of its own each, for print in black and white.
BLUE, OTHERS = "#0072B2", ("#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D31", "#7F7F7F")
SIGNS = "osD^vPX*<>"
INK, GREY = "#010203", "#808080"  # the first stands for the colour of the page's text, until the SVG is written
FONT = "DejaVu Sans"  # comes with matplotlib
STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme: dark){svg{color:#e6edf3}}</style>"
WIDTH, BAR, CURVES = 11.0, 0.13, 4.2  # inches: of the figure, of a bar, and the height of the curves
DOTS_PER_INCH = 150

Look = dict[str, tuple[str, str, str]]


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
    rows = [row for row in result.rows if row.sweep is None]
    n_threads = max(result.header.threads)
    look, bars = looks(result.rows), _bars(rows, n_threads)
    curves = [draw for draw, is_there in _curves(result, rows) if is_there]
    heights = [1.4 + BAR * _height(bars)] * bool(bars) + [CURVES] * math.ceil(len(curves) / 2)
    figure = Figure(figsize=(WIDTH, sum(heights) or 1), layout="constrained")
    parts = iter(figure.subfigures(len(heights) or 1, 1, height_ratios=heights or [1], squeeze=False)[:, 0])
    if bars:
        _draw_bars(next(parts), bars, look, n_threads)
    for i in range(0, len(curves), 2):
        places = next(parts).subplots(1, 2)
        for axes, draw in zip(places, curves[i : i + 2], strict=False):
            draw(axes, look)
        for axes in places[len(curves[i:]) :]:
            axes.set_axis_off()
    return figure


def looks(rows: list[Row]) -> Look:
    """A colour, a sign and a hatch for each contestant: lsm's own first and blue; a new result is hatched."""
    entries = {who(entry): entry for row in rows for entry in row.contestants}
    of_lsm = {entry.name for entry in entries.values() if entry.backend is not None}
    names = sorted({entry.name for entry in entries.values()}, key=lambda name: (name not in of_lsm, name))
    found = {}
    for i, name in enumerate(names):
        colour = BLUE if i == 0 else OTHERS[(i - 1) % len(OTHERS)]
        for label, entry in entries.items():
            if entry.name == name:
                found[label] = colour, SIGNS[i % len(SIGNS)], "////" if entry.way == "new" else ""
    return found


Bars = dict[str, dict[str, dict[str, tuple[float, float, float]]]]


def _bars(rows: list[Row], n_threads: int) -> Bars:
    """By operation, workload with dtype, and contestant: the mean ratio and how far it spreads."""
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.threads == n_threads:
            groups[row.op][f"{row.workload} {shape(row)}\n{types(row)}"].append(row)
    bars: Bars = {}
    for op, by_place in groups.items():
        for place, here in by_place.items():
            for name, (mean, _) in geometric_means(here).items():
                ranked = [e for row in here for e in row.contestants if who(e) == name and e.is_ranked and e.ratio]
                low = min(e.p20_ratio or mean for e in ranked)
                high = max(e.p80_ratio or mean for e in ranked)
                bars.setdefault(op, {}).setdefault(place, {})[name] = mean, low, high
    return bars


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
            for name, (mean, low, high) in by_name.items():
                (colour, _, hatch), at = look[name], places[place, name]
                axes.barh(at, mean - 1, 0.86, left=1, color=colour, hatch=hatch, edgecolor="#ffffff", linewidth=0)
                axes.plot([low, high], [at, at], color=GREY, linewidth=1)
                axes.annotate(times(mean), (max(high, 1), at), (3, 0), textcoords="offset points", va="center", size=6)
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
    patches = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="#ffffff", linewidth=0, label=name)
        for name, (colour, _, hatch) in look.items()
        if any(name == other for _, other in places)
    ]
    part.legend(handles=patches, loc="outside upper center", ncols=min(len(patches), 5))


def _curves(result: Result, rows: list[Row]) -> Iterable[tuple[Any, bool]]:
    """How to draw each of the curves, and whether there is anything to draw."""
    sweeps = defaultdict(list)
    for row in result.rows:
        if row.sweep is not None and row.threads == max(result.header.threads):
            sweeps[row.sweep, row.op, types(row)].append(row)
    sizes = [row for row in rows if row.threads == max(result.header.threads)]
    for op in dict.fromkeys(row.op for row in sizes):
        here = [row for row in sizes if row.op == op]
        yield lambda axes, look, op=op, here=here: _draw_sizes(axes, look, op, here, result.header.caches), True
    ups = speed_ups(rows)
    yield lambda axes, look: _draw_speed_ups(axes, look, ups), len(result.header.threads) > 1 and bool(ups)
    for key, swept in sweeps.items():
        title = f"{key[1]}, {key[2]}: more {key[0]}"
        yield lambda axes, look, title=title, swept=swept: _draw_sweep(axes, look, title, swept), True


def _draw_sizes(axes: Any, look: Look, op: str, rows: list[Row], caches: dict[str, int]) -> None:
    """Draw GB/s against bytes below the machine's limit, as a roofline is drawn."""
    rows = sorted(rows, key=lambda row: row.bytes)
    for name, (colour, sign, hatch) in look.items():
        points = [(r.bytes, e.gb_s) for r in rows for e in r.contestants if who(e) == name and e.is_ranked and e.gb_s]
        if points:
            fill = "none" if hatch else colour
            axes.plot(*zip(*points, strict=True), sign, color=colour, markerfacecolor=fill, markersize=5, label=name)
    for limit in dict.fromkeys(row.limit.name for row in rows if row.limit):
        points = [(row.bytes, row.limit.gb_s) for row in rows if row.limit and row.limit.name == limit]
        axes.plot(*zip(*points, strict=True), "-_", color=INK, linewidth=1, label=f"limit: {limit}")
    for name, n_bytes in caches.items():
        axes.axvline(n_bytes, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(name, (n_bytes, 1), xycoords=("data", "axes fraction"), fontsize=8, ha="right", va="top")
    _logarithmic(axes)
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.set_xlabel("read and written")
    axes.set_title(f"GB/s against size, {op}")
    axes.legend(fontsize=7, loc="best")
    _tidy(axes, "both")


def _draw_speed_ups(axes: Any, look: Look, ups: dict[str, dict[int, float]]) -> None:
    """Draw how many times as fast each is with more threads."""
    for name, by in ups.items():
        colour, sign, hatch = look[name]
        axes.plot(list(by), list(by.values()), "--" if hatch else "-", marker=sign, color=colour, label=name)
    counts = sorted({n for by in ups.values() for n in by})
    axes.plot(counts, [n / counts[0] for n in counts], color=INK, linewidth=1, label="in proportion")
    axes.set_xticks(counts)
    axes.set_xlabel("threads")
    axes.set_title(f"times as fast as with {plural(counts[0], 'thread')}")
    axes.legend(fontsize=7)
    _tidy(axes, "both")


def _draw_sweep(axes: Any, look: Look, title: str, rows: list[Row]) -> None:
    """Nanoseconds an element: flat where time grows in proportion to the work."""
    rows = sorted(rows, key=elements)
    for name, (colour, sign, hatch) in look.items():
        found = [(elements(r), e.us) for r in rows for e in r.contestants if who(e) == name and e.is_ranked and e.us]
        if found:
            points = [(n, us * 1e3 / n) for n, us in found]
            style = "--" if hatch else "-"
            axes.plot(*zip(*points, strict=True), style, marker=sign, markersize=4, color=colour, label=name)
    _logarithmic(axes)
    axes.set_xlabel("elements")
    axes.set_title(f"ns an element, {title}")
    axes.legend(fontsize=7)
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
