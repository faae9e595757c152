"""`lsm check --peers`: the largest errors of lsm's backends and of the peers, in ulps against exact values."""

import gc
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lsm.bench import peers
from lsm.bench.data import Data
from lsm.bench.errors import Reference, check
from lsm.bench.options import DTYPES, KINDS_OF_DATA
from lsm.bench.result import Entry
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, Case

N_CLASSES = (10, 1000, 50_257, 2**20)
N_ELEMENTS = 2**17  # of a case, where its frames are shorter

Progress = Callable[[list[Any]], Iterable[Any]]


def measured(wanted: str | None, progress: Progress, n_classes: tuple[int, ...] = N_CLASSES) -> dict[str, Any]:
    """Measure one backend of lsm, or all, and every peer on every case, over which `progress` iterates.

    Gives "absent" libraries with the reason, and "rows": op, dtype, data, classes; by implementation "ulps", a number,
    "inf" for a result that is not finite, or why there is none; and in "beyond" the backends beyond their bound.
    """
    makers, absent = peers.usable((), "cpu")
    backends = [name.removeprefix("lsm ") for name in makers if name.startswith("lsm ")]
    if wanted is not None and wanted not in backends:
        raise ValueError(f"there is no backend {wanted!r}; accepted: {', '.join(backends)}")
    cases = [
        Case(data, (max(1, N_ELEMENTS // n), n), dtype=dtype, op=op, data=data)
        for dtype in DTYPES
        for n in n_classes
        for data in KINDS_OF_DATA
        for op in ((BACKWARD, BOTH) if data == "label" else (FORWARD, BACKWARD, BOTH))
    ]
    rows = []
    warnings.simplefilter("ignore")  # the peers' own: NumPy's idiom overflows
    for case in progress(cases):
        data = Data(case, [case.op])
        exact = Reference(case, data, data.x.size)
        entries: dict[str, Entry] = {}
        for one in peers.made(makers, case, data, 1)[0]:
            if one.name not in entries and (one.backend is None or wanted in (None, one.backend)):
                entries[one.name] = one.entry()
                check(one, entries[one.name], exact)
        ulps = {name: e.error or ("inf" if e.max_ulp == math.inf else e.max_ulp) for name, e in entries.items()}
        beyond = [name for name, entry in entries.items() if entry.backend and not entry.is_right]
        about = {"op": case.op, "dtype": case.dtype, "data": case.data, "classes": case.n_classes}
        rows.append(about | {"ulps": ulps, "beyond": beyond})
        gc.collect()
    return {"absent": absent, "rows": rows}


def has_passed(found: dict[str, Any]) -> bool:
    """Whether every backend keeps its bound."""
    return not any(row["beyond"] for row in found["rows"])


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A table in Markdown for each operation; the worst over all numbers of classes."""
    rows = found["rows"]
    for op in (FORWARD, BACKWARD, BOTH):
        here = [row for row in rows if row["op"] == op]
        names = list(dict.fromkeys(name for row in here for name in row["ulps"]))
        yield f"| {op} | data | {' | '.join(names)} |"
        yield f"|---|---|{'---|' * len(names)}"
        for dtype, data in dict.fromkeys((row["dtype"], row["data"]) for row in here):
            some = [row["ulps"] for row in here if (row["dtype"], row["data"]) == (dtype, data)]
            cells = (_largest([ulps[name] for ulps in some if name in ulps]) for name in names)
            yield f"| {dtype} | {data} | {' | '.join(cells)} |"
        yield ""
    yield from (f"{name}: {reason}" for name, reason in found["absent"].items())
    for row in rows:
        if row["beyond"]:
            about = f"{row['op']}, {row['dtype']}, {row['data']}, {row['classes']} classes"
            yield f"beyond the bound: {', '.join(row['beyond'])} ({about})"


def _largest(cells: list[Any]) -> str:
    if not cells:
        return "none"
    if texts := [cell for cell in cells if isinstance(cell, str)]:
        return texts[0]
    value = float(max(cells))
    return f"{value:.3f}" if value < 10 else f"{value:.0f}" if value < 1e4 else f"{value:.1e}"
