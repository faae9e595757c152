"""What benchmarks/cpu.py makes of the times: ratios, means, what misses its target, and tables in Markdown."""

import math
from collections import defaultdict
from typing import Any

import numpy as np

Row = dict[str, Any]

# How many times as fast as the faster peer lsm shall be, by operation and whether a type has 16 bits: in each
# row, and as the geometric mean of all.
TARGETS = {
    ("forward", False): (1.3, 2.0),
    ("backward", False): (1.0, 1.3),
    ("forward", True): (1.5, 1.5),
    ("backward", True): (1.5, 1.5),
}
SHARES = {"forward": 0.7, "backward": 0.85}  # of the limit
DISTURBED = 0.1  # processors in use by others; what the system itself needs is less


def spread(values: Any) -> dict[str, float]:
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"p20": float(low), "median": float(middle), "p80": float(high)}


def figures(times: dict[str, list[float]], n_bytes: int, limit: str) -> Row:
    """What a row says, from the microseconds of each round; ratios are taken within a round."""
    turns = {name: np.array(values) for name, values in times.items()}
    us = {name: spread(values) for name, values in turns.items()}
    peers = [name for name in turns if name not in ("lsm", limit)]
    peer = min(peers, key=lambda name: us[name]["median"], default=None)
    return {
        "us": us,
        "peer": peer,
        "ratio": spread(turns[peer] / turns["lsm"]) if peer else None,
        "share": spread(turns[limit] / turns["lsm"]) if limit in turns else None,
        "gb_per_s": n_bytes / us["lsm"]["median"] / 1e3,
    }


def kind(row: Row) -> tuple[str, bool]:
    return row["op"].split(",")[0], row["is_16_bit"]


def is_sweep(row: Row) -> bool:
    return row["group"].startswith("sweep")


def shape(row: Row) -> str:
    return "x".join(map(str, row["shape"]))


def number(value: float) -> str:
    """Three digits at least, and no more than one behind the point from 100 on."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def ratio(of: dict[str, float] | None) -> str:
    return f"{of['median']:.2f} ({of['p20']:.2f}..{of['p80']:.2f})" if of else ""


def threads(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def label(row: Row) -> str:
    axis = "" if row["axis"] == -1 else f" axis {row['axis']}"
    return f"{row['group']} {shape(row)}{axis} {row['types']}"


def where(row: Row) -> str:
    return f"{label(row)}, {row['op']}, {threads(row['threads'])}"


def one_line(row: Row) -> str:
    peer = f", {row['ratio']['median']:.2f}x {row['peer']}" if row["peer"] else ""
    share = f", {row['share']['median']:.2f} of the limit" if row["share"] else ""
    busy = f"; others used {row['others']:.1f} processors" if (row["others"] or 0) > DISTURBED else ""
    return f"{where(row)}: {number(row['us']['lsm']['median'])} us{peer}{share}{busy}"


def first_lines(header: Row) -> str:
    levels = {name: f" ({level})" for name, level in header["levels"].items()}
    names = [f"{name} {version}{levels.get(name, '')}" for name, version in header["versions"].items()]
    sizes = [f"{name} {size // 2**10:,} KiB" for name, size in header["caches"].items()]
    lines = [
        f"{header['processor']}, {header['n_processors']} processors, {header['system']}; {', '.join(sizes)}.",
        f"{', '.join(names)}. Rounds: {header['rounds']}.",
    ]
    lines += [f"Without {name}: {reason}." for name, reason in header["absent_peers"].items()]
    if header["environment"]:
        lines.append(", ".join(f"{name}={value}" for name, value in header["environment"].items()))
    return "\n".join(lines)


def table(columns: list[str], rows: list[list[Any]]) -> str:
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in cells)


def main_table(rows: list[Row]) -> str:
    columns = ["workload", "shape", "axis", "dtype", "op", "threads", "lsm us", "best peer us"]
    columns += ["ratio (p20..p80)", "share of limit", "GB/s"]
    lines = []
    for row in rows:
        us = {name: number(times["median"]) for name, times in row["us"].items()}
        peer = f"{us[row['peer']]} ({row['peer']})" if row["peer"] else ""
        share = f"{row['share']['median']:.2f}" if row["share"] else ""
        cells = [row["group"], shape(row), row["axis"], row["types"], row["op"], row["threads"], us["lsm"], peer]
        lines.append([*cells, ratio(row["ratio"]), share, f"{row['gb_per_s']:.1f}"])
    return table(columns, lines)


def means(rows: list[Row]) -> dict[tuple[str, bool, int], tuple[float, int]]:
    """Geometric mean of the ratios and their number, by operation, whether 16 bits, and threads."""
    logs = defaultdict(list)
    for row in rows:
        if row["ratio"]:
            logs[(*kind(row), row["threads"])].append(math.log(row["ratio"]["median"]))
    return {key: (math.exp(sum(values) / len(values)), len(values)) for key, values in sorted(logs.items())}


def means_table(rows: list[Row]) -> str:
    lines = []
    for (op, is_16_bit, n_threads), (mean, n) in means(rows).items():
        target = TARGETS[op, is_16_bit][1]
        types = "16 bits" if is_16_bit else "float32, float64"
        lines.append([op, types, n_threads, n, f"{mean:.2f}", target, "yes" if mean >= target else "no"])
    return table(["op", "dtypes", "threads", "rows", "geometric mean", "target", "reached"], lines)


def misses(rows: list[Row]) -> list[str]:
    """A line for every row, and every figure in it, that is below its target."""
    lines = []
    for row in rows:
        each, _ = TARGETS[kind(row)]
        if row["ratio"] and row["ratio"]["median"] < each:
            lines.append(f"{where(row)}: {ratio(row['ratio'])} times as fast as {row['peer']}; target {each}")
        share = SHARES[kind(row)[0]]
        if row["share"] and row["share"]["median"] < share:
            lines.append(f"{where(row)}: {ratio(row['share'])} of the limit; target {share}")
    return lines


def absences(result: Row) -> list[str]:
    """Who could not take part where, and why."""
    reasons = defaultdict(list)
    for row in result["rows"]:
        for name, reason in row["absent"].items():
            if (cell := f"{row['types']} {kind(row)[0]}") not in reasons[f"{name}: {reason}"]:
                reasons[f"{name}: {reason}"].append(cell)
    lines = [f"{reason} ({', '.join(cells)})" for reason, cells in reasons.items()]
    return lines + [f"{name}: {reason}" for name, reason in result["absent_workloads"].items()]


def disturbed(result: Row) -> list[str]:
    """Rows during which somebody else used the processors."""
    rows = [row for row in result["rows"] if row["others"] is not None and row["others"] > DISTURBED]
    return [f"{where(row)}: {row['others']:.2f} processors" for row in rows]


def sweep_table(rows: list[Row]) -> str:
    """Nanoseconds an element: where it stays the same down the column, time grows with the work and no faster."""
    names = list(dict.fromkeys(name for row in rows for name in row["us"] if name != "limit"))
    lines = []
    for row in sorted(rows, key=lambda row: (row["group"], row["op"] != "forward", row["threads"], row["size"])):
        each = [number(row["us"][name]["median"] * 1e3 / row["size"]) if name in row["us"] else "" for name in names]
        lines.append([row["group"].removeprefix("sweep-"), shape(row), row["op"], row["threads"], *each])
    return table(["grows by", "shape", "op", "threads", *(f"{name}, ns/element" for name in names)], lines)


def markdown(result: Row) -> str:
    """All tables."""
    rows = sorted((row for row in result["rows"] if not is_sweep(row)), key=lambda row: row["threads"])
    sweep = [row for row in result["rows"] if is_sweep(row)]
    parts = ["# Time on the CPU", first_lines(result["header"])]
    if rows:
        parts += [main_table(rows), "## Geometric means", means_table(rows)]
        below = misses(rows)
        parts += ["## Below target", "\n".join(f"- {line}" for line in below) or "Nothing."]
    if sweep:
        parts += ["## Time against the amount of work", sweep_table(sweep)]
    if lines := disturbed(result):
        parts += [
            "## Others were at work on this machine: not to be relied on",
            "\n".join(f"- {line}" for line in lines),
        ]
    if lines := absences(result):
        parts += ["## Did not take part", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"
