"""One row: who takes part, first calls, errors, turns, and what follows from the times."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lsm._stopping import raise_if_stopped
from lsm._texts import told
from lsm.bench.contestant import OUT, Contestant
from lsm.bench.contestants import taking_part
from lsm.bench.data import Data
from lsm.bench.errors import Found, Reference
from lsm.bench.limits import LIMITS, gb_s, is_out_of_cache, limit
from lsm.bench.machine import Others
from lsm.bench.memory import MIN_BYTES, Probe
from lsm.bench.result import Entry, Limit, Row
from lsm.bench.timing import TURN, Times, in_turns, paired, part, spread
from lsm.bench.wording import reference
from lsm.bench.workloads import Case

LONG_CALL = 0.5  # seconds: of a contestant of longer calls one way is measured, if the row has not the time for both


@dataclass(frozen=True)
class Effort:
    """How much time a row may take."""

    rounds: int
    turn_s: float = TURN
    n_checked: int = 2**20  # elements that are held to the exact values
    budget_s: float = 30.0  # after which no further round begins


def measure(
    case: Case,
    data: Data,
    n_threads: int,
    families: Sequence[str],
    wanted: tuple[str, ...],
    last_cache: int,
    effort: Effort,
    probe: Probe | None = None,
) -> Row:
    """Measure one row; its memory too, if there is a probe."""
    contestants, absent = taking_part(families, wanted, case, data, n_threads)
    row = _empty_row(case, data, n_threads)
    row.absent = absent
    exact = Reference(case, data, effort.n_checked)
    row.n_checked_frames = exact.n_frames
    long_s = max(LONG_CALL, part(effort.budget_s, len(contestants), effort.turn_s))
    timed = []
    for one in contestants:
        other_way = next((e for e in row.contestants if e.name == one.name), None)
        if other_way is not None and (other_way.first_call_ms or 0) > long_s * 1e3:
            row.absent[f"{one.name}, new result"] = "its calls with out= take too long for both ways to be measured"
            continue
        entry = first_call(one, data, exact)
        row.contestants.append(entry)
        if entry.error is None:
            timed.append(one)
    with_limit = list(timed)
    if is_out_of_cache(case, data, last_cache):
        try:
            with_limit.append(limit(case, data, n_threads))
        except Exception as error:  # a build of the kernels without it, say
            row.absent[LIMITS[case.op]] = told(error)
    others = Others()
    times = in_turns(with_limit, effort.rounds, effort.budget_s, effort.turn_s)
    row.others = others.processors()
    fill(row, times)
    for one in timed:
        entry = next(e for e in row.contestants if (e.name, e.way) == one.key)
        if entry.error is None:
            last_call(one, entry, data, exact)
    if probe is not None and data.device == "cpu" and data.out.nbytes < MIN_BYTES:
        row.absent["memory"] = f"not measured of results below {MIN_BYTES // 2**20} MiB, for it is known to 1 MiB alone"
    elif probe is not None and data.device == "cpu":
        try:
            found = probe.extra_bytes(case, n_threads)
        except Exception as error:  # no further process can be started, say; the times are there
            found, row.absent["memory"] = {}, told(error)
        for entry in row.contestants:
            entry.extra_bytes = found.get((entry.name, entry.way))
    return row


def _empty_row(case: Case, data: Data, n_threads: int) -> Row:
    return Row(
        workload=case.workload,
        op=case.op,
        dtype=case.dtype,
        out_dtype=case.result_dtype,
        data=case.data,
        shape=list(case.shape),
        axis=case.axis,
        order=case.order,
        threads=n_threads,
        device=data.device,
        bytes=data.n_bytes(case.op),
        sweep=case.sweep,
        n_frames=case.n_frames,
    )


def first_call(contestant: Contestant, data: Data, exact: Reference) -> Entry:
    """The first call, timed apart, and how far its result is off; one that raises says so."""
    entry = Entry(contestant.name, contestant.library, contestant.way, contestant.code, contestant.backend)
    try:
        took, found = _checked_call(contestant, data, exact)
        entry.first_call_ms = contestant.setup_ms + took * 1e3
        _enter(found, entry)
        entry.bound_is_declared = contestant.bound_ulp is not None
    except Exception as error:  # the row goes on without it
        entry.error = told(error)
    return entry


def last_call(contestant: Contestant, entry: Entry, data: Data, exact: Reference) -> None:
    """Check a call after the turns too, and keep the worse: one may compute once, and nothing from then on."""
    try:
        _, found = _checked_call(contestant, data, exact)
    except Exception as broken:
        entry.error = told(broken)
        return
    before = (entry.max_ulp, entry.max_frame_ulp, entry.max_abs_error)
    ulp, frame_ulp, error = (_larger(a, b) for a, b in zip(before, found[:3], strict=True))
    _enter(Found(ulp, frame_ulp, error, found.bound_ulp, entry.is_right and found.is_right), entry)


def _larger(a: float | None, b: float | None) -> float | None:
    """None, which is not finite, is the largest."""
    return None if a is None or b is None else max(a, b)


def _enter(found: Found, entry: Entry) -> None:
    entry.max_ulp, entry.max_frame_ulp, entry.max_abs_error, entry.bound_ulp, entry.is_right = found


def _checked_call(contestant: Contestant, data: Data, exact: Reference) -> tuple[float, Found]:
    """Seconds of a call, and how far its result is off: an old result does not pass for a new one."""
    on_device = data.device != "cpu"
    for name in ("out", "y_out"):
        if on_device and name in contestant.names:
            contestant.names[name][...] = float("nan")
        elif (array := getattr(data, name)) is not None:
            exact.spoil(array)
    start = time.perf_counter()
    value: Any = contestant.call()
    took = time.perf_counter() - start
    raise_if_stopped()
    if contestant.way == OUT:
        result = contestant.to_numpy(contestant.names["out"]) if on_device else data.out
    else:
        result = contestant.to_numpy(value)
    return took, exact.check(result, contestant.bound_ulp)


def fill(row: Row, times: Times) -> None:
    """Put in what follows from the times: medians, ratios to the reference, shares of the limit."""
    base = reference([row])
    of = times.turns_us.get((base.name, base.way), []) if base else []
    limit_us = times.turns_us.get((LIMITS[row.op], OUT), [])
    if limit_us:
        median = spread(limit_us)
        row.limit = Limit(LIMITS[row.op], *median, gb_s(row.bytes, median.median))
    for entry in row.contestants:
        key = (entry.name, entry.way)
        entry.error = entry.error or times.errors.get(key)
        turns = times.turns_us.get(key)
        if not turns:
            continue
        entry.turns_us = [round(us, 4) for us in turns]
        entry.us, entry.p20_us, entry.p80_us = spread(turns)
        entry.gb_s = gb_s(row.bytes, entry.us)
        if (ratio := paired(turns, of)) is not None:
            entry.ratio, entry.p20_ratio, entry.p80_ratio = ratio
        if (share := paired(limit_us, turns)) is not None:
            entry.share = share.median
