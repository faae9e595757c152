"""How rows, contestants and numbers of a benchmark run are written."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lsm._texts import printable
from lsm.bench.result import Entry, Row

DISTURBED = 0.1  # processors; what the system itself needs is less
FEW_TURNS = 3  # of which a median says more than one turn does


def fit_to_show(value: Any) -> Any:
    """A result with every text in it on one line, without what a terminal obeys: names come from plugins and files."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [fit_to_show(item) for item in value]
    if isinstance(value, dict):
        return {fit_to_show(key): fit_to_show(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: fit_to_show(getattr(value, field.name)) for field in fields(value)})
    return value


def number(value: float) -> str:
    """Three digits at least, and none behind the point from 100 on."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    """A ratio as a multiplier."""
    return "" if ratio is None else f"{number(ratio)}x"


def span(low: float | None, high: float | None) -> str:
    """From the 20th to the 80th percentile."""
    return "" if low is None or high is None else f"{number(low)}..{number(high)}"


def size(n_bytes: int) -> str:
    """Bytes as people say them."""
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(n_bytes) >= bytes_each:
            return f"{number(n_bytes / bytes_each)} {unit}"
    return f"{n_bytes} B"


def plural(n: int, word: str) -> str:
    """'1 thread', '2 threads'."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def shape(row: Row) -> str:
    """'64x128256', with what is not usual about the array."""
    axis = "" if row.axis in (-1, len(row.shape) - 1) else f" axis {row.axis}"
    order = "" if row.order == "C" else f" order {row.order}"
    return "x".join(map(str, row.shape)) + axis + order


def types(row: Row) -> str:
    """'float16', or 'float16 to float32'."""
    return row.dtype if row.out_dtype == row.dtype else f"{row.dtype} to {row.out_dtype}"


def place(row: Row) -> str:
    """A row without its operation: what stands on an axis of a chart."""
    data = "" if row.data == "logits" else f" {row.data}"
    return f"{row.workload} {shape(row)} {types(row)}{data}"


def where(row: Row) -> str:
    """A row in one line."""
    device = "" if row.device == "cpu" else f", on {row.device}"
    return f"{place(row)}, {row.op}, {plural(row.threads, 'thread')}{device}"


def who(entry: Entry) -> str:
    """A contestant, and how it is called where that is not the best way."""
    return entry.name + (", new result" if entry.way == "new" else "")


def is_disturbed(row: Row, n_processors: int) -> bool:
    """Whether others wanted processors meanwhile that the row's threads needed."""
    return row.others is not None and row.others + min(row.threads, n_processors) > n_processors + DISTURBED


def reference(rows: Iterable[Row]) -> Entry | None:
    """Whom the ratios are taken to: the first backend of lsm that writes into a given result."""
    entries = (entry for row in rows for entry in row.contestants)
    return next((e for e in entries if e.library == "lsm" and e.backend and e.way == "out"), None)


def best_first(row: Row) -> list[Entry]:
    """The ranked ones, then those whose result is not right, then those that raised."""

    def key(entry: Entry) -> tuple[bool, bool, bool, float, float]:
        unknown = float("inf")
        ratio = unknown if entry.ratio is None else entry.ratio
        us = unknown if entry.us is None else entry.us
        return entry.error is not None, not entry.is_right, entry.us is None, ratio, us

    return sorted(row.contestants, key=key)


def error_texts(entry: Entry) -> tuple[str, str]:
    """The largest errors in ulps of each element and of each frame; beside the bound where that is held to one."""
    held = (entry.bound_is_declared, not entry.bound_is_declared)
    texts = []
    for ulps, is_held in zip((entry.max_ulp, entry.max_frame_ulp), held, strict=True):
        if ulps is None:
            is_lost = is_held and not entry.is_right and entry.error is None
            texts.append("not finite" if is_lost else "")
        else:
            is_beyond = is_held and entry.bound_ulp is not None and ulps > entry.bound_ulp
            texts.append(f"{ulps:.3g} > {entry.bound_ulp:g}" if is_beyond else f"{ulps:.3g}")
    return texts[0], texts[1]
