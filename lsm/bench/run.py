"""The run itself: every row of the options, by every implementation, saved as it grows."""

import gc
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from operator import truediv

import numpy as np

import lsm
from lsm._stopping import begin_shutdown, raise_if_stopped
from lsm._texts import describe_error, printable
from lsm._threads import cpu_limit
from lsm.bench import machine, peers
from lsm.bench.data import Data
from lsm.bench.errors import Reference, check
from lsm.bench.implementation import OUT, Budget, Implementation, interleave, is_out_of_cache, limit
from lsm.bench.memory import MIN_RESULT_BYTES, extra_bytes
from lsm.bench.options import MAP, SCALE, OptionError, Options
from lsm.bench.peers import Makers, peers_of
from lsm.bench.result import Entry, Header, Limit, Result, Row, reference
from lsm.bench.workloads import SIGNATURES, Case, cases

BUDGETS = {
    # A minute for the whole run on 2 processors: what rows may take follows from what is left.
    "quick": Budget(rounds=5, sample_s=0.01, n_checked=2**17, row_s=2.0),
    "usual": Budget(rounds=11, row_s=6.0),
    "full": Budget(rounds=15, row_s=60.0),
    "cpu": Budget(rounds=15, row_s=30.0),
    "gpu": Budget(rounds=7, sample_s=0.005, n_checked=2**17, row_s=10.0),
    SCALE: Budget(rounds=7, row_s=60.0),
    MAP: Budget(rounds=5, sample_s=0.005, n_checked=2**12, row_s=1.0, is_of_map=True),
}
QUICK_S = 30.0  # after which a quick run's rows get the fewest rounds: imports and exact values come on top
# From here on one way of calling an implementation is measured, if the row has not the time for both.
LONG_CALL_S = 0.5

AfterRow = Callable[[Result, int], object]  # the result so far, and how many rows there are to measure


def run(options: Options, after_row: AfterRow = lambda *_: None) -> Result:
    """Measure what the options ask for; an OptionError if nothing fits them.

    `after_row` is called after each row; if it raises, a warning says so. After a KeyboardInterrupt, or a signal whose
    KeyboardInterrupt was lost, the result has the rows that were complete, and `interrupted` is True, as it is after
    any other exception, which passes through. A row that cannot be measured is named in `absent`.
    """
    usual = (1,) * (options.set == MAP) + (lsm.get_num_threads(),)
    n_threads, too_many = machine.possible_threads(options.threads or tuple(dict.fromkeys(usual)))
    gpu = machine.gpu(options.device)
    makers, absent = peers.usable(options.implementations, options.device, peers_of(options.set == SCALE))
    if not makers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise OptionError("implementations", f"none can be measured ({reasons})")
    wanted = cases(options)
    header = Header(
        processor=printable(machine.processor()),
        n_processors=cpu_limit(),
        system=platform.system(),
        date=time.strftime("%Y-%m-%d"),
        caches=machine.caches(),
        gpu=gpu,
        versions=machine.versions(module for maker in makers.values() for module in maker.modules),
        commit=machine.commit(),
        command=printable(options.command),
        wanted=list(options.implementations),
        threads=n_threads,
        rounds=options.rounds or BUDGETS[options.set].rounds,
        environment={name: printable(value) for name, value in machine.environment().items()},
        pools=[],
    )
    result = Result(header, absent | too_many)

    try:
        for row in _rows(options, wanted, makers, result):
            result.rows.append(row)
            try:
                after_row(result, len(n_threads) * len(wanted))
            except Exception as error:  # a full disk shall not end the run
                text = f"what was measured so far is not saved: {describe_error(error)}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        raise_if_stopped()
    except BaseException as stop:
        result.interrupted = True
        if not isinstance(stop, KeyboardInterrupt):
            raise
        begin_shutdown()
    return result


def _rows(options: Options, wanted: list[Case], makers: Makers, result: Result) -> Iterator[Row]:
    """Measure row after row; arrays are made once for all operations on them."""
    budget = replace(BUDGETS[options.set], rounds=result.header.rounds)
    has_memory = options.set in ("usual", "full", SCALE) if options.memory is None else options.memory
    start, n_left = time.perf_counter(), len(result.header.threads) * len(wanted)
    for n in result.header.threads:
        with machine.equal_threads(n, makers) as (pools, cannot):
            result.absent |= cannot
            equal = {name: maker for name, maker in makers.items() if name not in cannot}
            result.header.pools += [pool for pool in pools if pool not in result.header.pools]
            for arrays, group in groupby(wanted, key=lambda case: case.arrays):
                some = list(group)
                data = None  # before the next one is made: some take gigabytes
                _free_memory()
                for case in some:
                    raise_if_stopped()
                    if options.set == "quick":
                        left_s = QUICK_S - (time.perf_counter() - start)
                        budget = replace(budget, row_s=max(0.0, left_s / n_left))
                    n_left -= 1
                    try:
                        data = data or Data(arrays, [case.op for case in some], options.device)
                        row = measure(case, data, n, equal, result.header.caches, budget)
                        if has_memory and options.device == "cpu":
                            measure_memory(row, data, makers)
                    except Exception as error:  # more memory than there is, say
                        result.absent[Row(case, n, options.device, 0).label] = describe_error(error)
                    else:
                        yield row


def _free_memory() -> None:
    """Return what no array holds: the pool of one library would leave no room for the arrays of another."""
    gc.collect()
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    if cupy is not None and cupy.cuda.is_available():
        cupy.get_default_memory_pool().free_all_blocks()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def measure(case: Case, data: Data, n_threads: int, makers: Makers, caches: dict[str, int], budget: Budget) -> Row:
    """Measure the times and errors of one row."""
    implementations, absent = peers.made(makers, case, data, n_threads)
    if budget.is_of_map:
        writing = {one.name for one in implementations if one.way == OUT}
        implementations = [one for one in implementations if one.way == OUT or one.name not in writing]
    exact = Reference(case, data, budget.n_checked)
    row = Row(case, n_threads, data.device, data.n_bytes(case), n_checked_frames=exact.n_frames, absent=absent)
    long_ms = max(LONG_CALL_S, budget.share_s(len(implementations))) * 1e3
    timed = []
    for one in implementations:
        if any(e.name == one.name and (e.first_call_ms or 0) > long_ms for e in row.implementations):
            row.absent[f"{one.name}, new result"] = "its calls with out= take too long for both ways to be measured"
            continue
        row.implementations.append(one.entry)
        check(one, exact)
        if one.entry.error is None:
            timed.append(one)
    limits: list[Implementation] = []
    if (name := SIGNATURES[case.op].limit) and (budget.is_of_map or is_out_of_cache(case, data, caches)):
        try:
            limits = [limit(case, data, n_threads)]
        except Exception as error:  # CuPy alone has no bfloat16, say
            row.absent[name] = describe_error(error)
    spent = machine.spent()
    interleave(timed + limits, budget)
    row.others = machine.used_by_others(spent, machine.spent())
    fill(row, limits[0].entry if limits else None)
    for one in timed:
        if one.entry.error is None:  # once more: one may compute at its first call, and nothing from then on
            check(one, exact)
    return row


def measure_memory(row: Row, data: Data, makers: Makers) -> None:
    """Put in the memory that each implementation needs, or why it is not known."""
    if data.out.nbytes < MIN_RESULT_BYTES:
        row.absent["memory"] = f"not measured for results below {MIN_RESULT_BYTES // 2**20} MiB: known to 1 MiB only"
        return
    try:
        found = extra_bytes(makers, row.case, row.threads)
    except Exception as error:  # no further process can be started, say; the times are there
        found, row.absent["memory"] = {}, describe_error(error)
    for entry in row.implementations:
        entry.extra_bytes = found.get((entry.name, entry.way))


def fill(row: Row, limit: Entry | None = None) -> None:
    """Put in what follows from the samples: medians, ratios within a round to the reference, shares of the limit.

    What failed has the first rounds only.
    """

    def spread(values: Iterable[float]) -> tuple[float, float, float]:
        low, middle, high = np.percentile(list(values), [20, 50, 80]).tolist()
        return middle, low, high

    base = reference([row])
    if limit and limit.samples_us:
        us = spread(limit.samples_us)
        row.limit = Limit(limit.name, *us, row.bytes / us[0] / 1e3)
    for entry in row.implementations:
        if samples := entry.samples_us:
            entry.us = spread(samples)[0]
            entry.gb_s = row.bytes / entry.us / 1e3
            if base and base.samples_us:
                entry.ratio, entry.p20_ratio, entry.p80_ratio = spread(map(truediv, samples, base.samples_us))
            if row.limit and limit:
                entry.share = spread(map(truediv, limit.samples_us, samples))[0]
