"""The run itself: every row of the options, by every implementation, saved as it grows."""

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from operator import truediv
from pathlib import Path

import numpy as np

import lsm
from lsm._stopping import begin_shutdown, raise_if_stopped
from lsm._texts import describe_error, printable
from lsm._threads import cpu_limit
from lsm.bench import machine, peers
from lsm.bench.data import WRITTEN, Data
from lsm.bench.errors import Reference, check
from lsm.bench.implementation import NEW, Budget, interleave, limit
from lsm.bench.options import MAP, SCALE, OptionError, Options
from lsm.bench.peers import Maker, Makers, peers_of
from lsm.bench.result import Entry, Header, Limit, Result, Row, reference
from lsm.bench.workloads import BOTH, SIGNATURES, Case, cases

BUDGETS = {
    "quick": Budget(rounds=5, sample_s=0.01, n_checked=2**17, row_s=2.0),
    "usual": Budget(rounds=11, row_s=6.0),
    "full": Budget(rounds=15, row_s=60.0),
    "cpu": Budget(rounds=15, row_s=30.0),
    "gpu": Budget(rounds=7, sample_s=0.005, n_checked=2**17, row_s=10.0),
    SCALE: Budget(rounds=7, row_s=60.0),
    MAP: Budget(rounds=5, sample_s=0.005, n_checked=2**12, row_s=1.0, is_of_map=True),
}
LONG_CALL_S = 0.5  # from which on one way of two is measured, if the row has not the time for both

TOLERANCE_BYTES = 2**20  # by which the peak may be wrong: Linux adds up the pages of each processor at times only
MIN_RESULT_BYTES = 8 * TOLERANCE_BYTES  # a copy of less could not be told from the tolerance
SMALL_ELEMENTS = 2**14  # of the call before

# What glibc would keep of one call's memory for the next would be missing in the next one's peak.
_NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}


def run(options: Options, after_row: Callable[[Result, int], object] = lambda *_: None) -> Result:
    """Measure what the options ask for; an OptionError if nothing fits them.

    `after_row` gets the result so far, and how many rows there are to measure. After an interruption the result has the
    rows that were complete. A row that cannot be measured is named in `absent`.
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
        environment={k: printable(v) for k, v in sorted(os.environ.items()) if k.startswith(machine.ENVIRONMENT)},
        pools=[],
    )
    result = Result(header, absent | too_many)

    try:
        for row in _rows(options, wanted, makers, result):
            result.rows.append(row)
            after_row(result, len(n_threads) * len(wanted))
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
    for n in result.header.threads:
        with machine.equal_threads(n) as pools:
            result.header.pools += [pool for pool in pools if pool not in result.header.pools]
            for arrays, group in groupby(wanted, key=lambda case: case.arrays):
                some = list(group)
                data = None  # before the next one is made: some take gigabytes
                gc.collect()  # and what the pool of one library keeps leaves no room for another
                if (cupy := sys.modules.get("cupy")) and cupy.cuda.is_available():
                    cupy.get_default_memory_pool().free_all_blocks()
                if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
                for case in some:
                    raise_if_stopped()
                    try:
                        data = data or Data(arrays, [case.op for case in some], options.device)
                        row = measure(case, data, n, makers, result.header.caches, budget)
                        if has_memory and options.device == "cpu":
                            measure_memory(row, data, makers)
                    except Exception as error:  # more memory than there is, say
                        result.absent[Row(case, n, options.device, 0).label] = describe_error(error)
                    else:
                        yield row


def measure(case: Case, data: Data, n_threads: int, makers: Makers, caches: dict[str, int], budget: Budget) -> Row:
    """Measure the times and errors of one row."""
    implementations, absent = peers.made(makers, case, data, n_threads)
    exact = Reference(case, data, budget.n_checked)
    row = Row(case, n_threads, data.device, data.n_bytes(case), n_checked_frames=exact.n_frames, absent=absent)
    long_ms = max(LONG_CALL_S, budget.share_s(len(implementations))) * 1e3
    timed = []
    for one in implementations:
        with_out = next((e for e in row.implementations if e.name == one.name), None)
        if with_out and (budget.is_of_map or (with_out.first_call_ms or 0) > long_ms):
            if not budget.is_of_map:
                row.absent[f"{one.name}, new result"] = "there is no time for both ways; the one with out= is measured"
            continue
        row.implementations.append(one.entry)
        check(one, exact)
        if one.entry.error is None:
            timed.append(one)
    # The limit holds where the arrays exceed the last-level cache, 32 MiB if unknown; those of a device serve it too.
    held_bytes = row.bytes - (data.out.nbytes if case.op == BOTH else 0)
    has_limit = budget.is_of_map or data.device != "cpu" or held_bytes > caches.get(max(caches, default=""), 2**25)
    name = SIGNATURES[case.op].limit
    limits, failed = peers.made({name: Maker(limit)} if name and has_limit else {}, case, data, n_threads)
    row.absent |= failed
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


def extra_bytes(names: Iterable[str], case: Case, n_threads: int) -> dict[tuple[str, str], int]:
    """Peak extra memory of each implementation, of those for which it could be measured; or a RuntimeError."""
    code = f"import sys; sys.path[:] = {sys.path}; from lsm.bench.run import Case, main; "
    command = [sys.executable, "-c", code + f"main({[*names]}, {case}, {n_threads})"]
    environment = os.environ | _NOTHING_KEPT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"the process that measures it exited with {done.returncode}: {done.stderr[-500:]}")
    return {(name, way): n_bytes for name, way, n_bytes in json.loads(done.stdout.splitlines()[-1])}


def main(names: list[str], case: Case, n_threads: int) -> None:
    """Print, in a new process, what each implementation of a case needs; one that raises is left out."""
    found: list[tuple[str, str, int]] = []
    with machine.equal_threads(n_threads):
        known = peers.known(peers.peers_of(bool(case.chunks)))
        makers = {name: known[name] for name in names}
        small_case = replace(case, shape=shrunk(case.shape))
        small = peers.made(makers, small_case, Data(small_case, [case.op]), n_threads)[0]
        data = Data(case, [case.op])
        for name in filter(data.host.__contains__, WRITTEN):
            data.host[name].fill(0)  # else its pages would count as the call's
        large = {one.key: one for one in peers.made(makers, case, data, n_threads)[0]}
        for one in small:
            with suppress(Exception):
                one.call()  # loads the libraries and starts the threads, whose memory is not the large call's own
                Path("/proc/self/clear_refs").write_text("5")  # makes the peak what is resident now
                before, result = peak(), large[one.key].call()
                result_bytes = int(result.nbytes) if one.way == NEW else 0
                found.append((*one.key, max(0, peak() - before - result_bytes)))
    print("\n" + json.dumps(found))


def peak() -> int:
    """Bytes that were resident at most; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmHWM"))


def shrunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of the same dimensions with SMALL_ELEMENTS at most."""
    sizes, size = list(shape), 1
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        sizes[i] = max(1, min(sizes[i], SMALL_ELEMENTS // size))
        size *= sizes[i]
    return tuple(sizes)


def fill(row: Row, limit: Entry | None = None) -> None:
    """Put in what follows from the samples: medians, ratios within a round to the reference, shares of the limit."""

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
