"""The chart of benchmarks/cpu.py, as SVG that can be read on a light and on a dark page."""

import io
from typing import Any

from cpu_report import is_sweep, kind, label, threads

Row = dict[str, Any]

COLOURS = {"forward": "#3b82f6", "backward": "#f59e0b"}
SWEEP_COLOURS = {"lsm": "#3b82f6", "torch": "#ef4444", "onnxruntime": "#10b981"}
INK = "#010203"  # stands for the colour of the page's text, until the SVG is written
STYLE = "<style>svg{color:#24292f}@media (prefers-color-scheme: dark){svg{color:#e6edf3}}</style>"


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit("--chart needs matplotlib: python -m pip install matplotlib") from error


def bars(axes: Any, rows: list[Row], places: dict[str, int], figure: str) -> None:
    """A bar for forward and one for backward by the most threads; a dot beside it for each other number."""
    most = max(row["threads"] for row in rows)
    for row in rows:
        if row[figure] is None:
            continue
        op = kind(row)[0]
        place = places.get((row["workload"], "new" in row["op"]), places.get((row["workload"], True)))
        y = place + (-0.2 if op == "forward" else 0.2)
        if row["threads"] == most:
            # From 1 outwards, which is where lsm and its peer are alike; a share starts at 0.
            start = 1 if figure == "ratio" else 0
            axes.barh(y, row[figure]["median"] - start, 0.38, left=start, color=COLOURS[op])
        else:
            axes.plot(row[figure]["median"], y, "o", markersize=3, color=INK)


def svg(result: Row) -> str:
    """Ratio to the faster peer and share of the limit, row by row, and the sweep if there is one."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if not is_sweep(row)]
    sweep = [row for row in result["rows"] if is_sweep(row)]
    inks = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "lsm", "font.size": 9, "legend.frameon": False}
    with mpl.rc_context(settings | inks):
        labels = {(row["workload"], "new" in row["op"]): label(row) for row in rows if row["op"] != "backward"}
        heights = [0.9 + 0.3 * len(labels)] * bool(rows) + [3.2] * bool(sweep)
        figure = Figure(figsize=(11, 0.4 + sum(heights)), layout="constrained")
        parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        if rows:
            draw_rows(next(parts), rows, labels)
        if sweep:
            draw_sweep(next(parts), sweep)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue().replace(INK, "currentColor").replace("<defs>", f"{STYLE}\n <defs>", 1)


def draw_rows(part: Any, rows: list[Row], labels: dict[Any, str]) -> None:
    from matplotlib.patches import Patch

    places = {key: i for i, key in enumerate(labels)}
    left, right = part.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    bars(left, rows, places, "ratio")
    bars(right, rows, places, "share")
    names = [text + ", new result" * is_new for (_, is_new), text in labels.items()]
    left.set_yticks(list(places.values()), names)
    left.set_ylim(len(places) - 0.4, -0.6)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.axvline(1, color=INK, linewidth=1)
    left.set_title("time of the faster peer / time of lsm", fontsize=9)
    right.set_xlim(left=0)
    right.axvline(1, color=INK, linewidth=1)
    right.set_title("share of the machine's limit, out of cache", fontsize=9)
    for axes in (left, right):
        axes.grid(axis="x", color="#808080", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    *fewer, most = sorted({row["threads"] for row in rows})
    dots = f"; dots: {', '.join(map(str, fewer))}" if fewer else ""
    part.suptitle(f"bars: {threads(most)}{dots}", fontsize=9)
    handles = [Patch(color=colour, label=op) for op, colour in COLOURS.items()]
    right.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1.02), ncols=2)


def draw_sweep(part: Any, rows: list[Row]) -> None:
    """Nanoseconds an element by size, forward: flat where time grows in proportion to the work."""
    rows = [row for row in rows if row["op"] == "forward"]
    groups = {"sweep-frames": "frames of 1000 classes", "sweep-classes": "one frame"}
    for axes, (group, title) in zip(part.subplots(1, 2, sharey=True), groups.items(), strict=True):
        for n_threads in sorted({row["threads"] for row in rows}):
            for name, colour in SWEEP_COLOURS.items():
                points = sorted(
                    (row["size"], row["us"][name]["median"] * 1e3 / row["size"])
                    for row in rows
                    if row["group"] == group and row["threads"] == n_threads and name in row["us"]
                )
                if points:
                    style = "--" if n_threads == min(row["threads"] for row in rows) else "-"
                    text = f"{name}, {threads(n_threads)}"
                    axes.plot(*zip(*points, strict=True), f"o{style}", markersize=3, color=colour, label=text)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("elements")
        axes.set_title(f"nanoseconds an element, forward, {title}", fontsize=9)
        axes.grid(color="#808080", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
