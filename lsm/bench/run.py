"""The run itself: every row of the options, by every contestant, saved as it grows."""

import gc
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from typing import Protocol

import lsm
from lsm._stopping import notice, raise_if_stopped
from lsm._texts import told
from lsm._threads import cpu_limit
from lsm._version import install_command
from lsm.bench import machine
from lsm.bench.contestants import FAMILIES, usable
from lsm.bench.data import Data
from lsm.bench.memory import Probe
from lsm.bench.options import OptionError, Options
from lsm.bench.result import Header, Result, Row
from lsm.bench.row import Effort, measure
from lsm.bench.threads import equal_threads, possible_threads
from lsm.bench.workloads import Case, cases

EFFORTS = {
    # A minute for the whole run on 2 processors: what rows may take follows from what is left.
    "quick": Effort(rounds=5, turn_s=0.01, n_checked=2**17, budget_s=2.0),
    "usual": Effort(rounds=11, budget_s=6.0),
    "full": Effort(rounds=15, budget_s=60.0),
}
QUICK_S = 30.0  # seconds after which a quick run's rows get the fewest rounds: imports and exact values come on top


class Progress(Protocol):
    """Who is told how far the run is; it prints, the engine does not."""

    def started(self, header: Header, n_rows: int) -> None:
        """Everything is ready, and so many rows follow."""

    def row_started(self, label: str) -> None:
        """A row is being measured; the label names it."""

    def row_done(self, row: Row) -> None:
        """A row is complete."""


class Silent:
    """A `Progress` that tells nobody."""

    def started(self, header: Header, n_rows: int) -> None:
        """Do nothing."""

    def row_started(self, label: str) -> None:
        """Do nothing."""

    def row_done(self, row: Row) -> None:
        """Do nothing."""


def run(options: Options, progress: Progress | None = None, save: Callable[[Result], object] | None = None) -> Result:
    """Measure what the options ask for.

    Parameters
    ----------
    options : Options
    progress : Progress, optional
        Told how far the run is.
    save : callable, optional
        Called with the result as it is after each row, and once more if the run is stopped after one. If it raises,
        a warning says so, for what was measured is still there.

    Returns
    -------
    Result
        After a KeyboardInterrupt, or a signal whose KeyboardInterrupt was lost, it holds the rows that were complete,
        and `interrupted` is True. Any other
        exception passes through, once `save` has been given the same. A row that cannot be measured is named in
        `absent` instead.

    Raises
    ------
    OptionError
        No workload, no contestant or no number of threads fits the options.
    ModuleNotFoundError
        threadpoolctl is not installed.
    """
    n_threads, left_out = possible_threads(options.threads or (lsm.get_num_threads(),))
    gpu = machine.gpu(options.device)
    families, absent = usable(options.contestants, options.device)
    if not families:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise OptionError("contestants", f"nobody can take part ({reasons})")
    absent |= left_out
    wanted = _measurable(cases(options), absent)
    result = Result(_header(options, n_threads, families, gpu), absent)
    progress, save = progress or Silent(), save or (lambda _: None)
    with_memory = options.set != "quick" if options.with_memory is None else options.with_memory
    probe = Probe(families, options.contestants) if with_memory else None
    progress.started(result.header, len(n_threads) * len(wanted))
    try:
        for row in _rows(options, n_threads, wanted, families, result, progress, probe):
            result.rows.append(row)
            _try_to(save, result)
            progress.row_done(row)
        raise_if_stopped()
    except BaseException as stop:
        if isinstance(stop, KeyboardInterrupt):
            notice()
        result.interrupted = True
        if result.rows:
            _try_to(save, result)
        if not isinstance(stop, KeyboardInterrupt):
            raise
    finally:
        if probe is not None:
            probe.close()
    return result


def _try_to(save: Callable[[Result], object], result: Result) -> None:
    """Save, or warn: a full disk shall not end the run."""
    try:
        save(result)
    except Exception as error:
        warnings.warn(f"what was measured so far is not saved: {told(error)}", RuntimeWarning, stacklevel=2)


def _measurable(wanted: list[Case], absent: dict[str, str]) -> list[Case]:
    """Those whose dtype there is; the reason for others goes to the absent."""
    if find_spec("ml_dtypes") is None and any("bfloat16" in (case.dtype, case.out_dtype) for case in wanted):
        absent["bfloat16"] = f"ml_dtypes is not installed: {install_command('bfloat16')}"
        wanted = [case for case in wanted if "bfloat16" not in (case.dtype, case.out_dtype)]
        if not wanted:
            raise OptionError("dtypes", f"bfloat16: {absent['bfloat16']}")
    return wanted


def _rows(
    options: Options,
    n_threads: tuple[int, ...],
    wanted: list[Case],
    families: list[str],
    result: Result,
    progress: Progress,
    probe: Probe | None,
) -> Iterator[Row]:
    """Measure row after row; arrays are made once for all operations on them."""
    effort = EFFORTS[options.set]
    effort = replace(effort, rounds=options.rounds or effort.rounds)
    start, n_left = time.perf_counter(), len(n_threads) * len(wanted)
    for n in n_threads:
        cannot: dict[str, str] = {}
        with equal_threads(n, families, cannot) as pools:
            result.absent |= cannot
            equal = [family for family in families if family not in cannot]
            result.header.openmp += [pool for pool in pools if pool not in result.header.openmp]
            for arrays, group in groupby(wanted, key=lambda case: case.arrays):
                some = list(group)
                try:
                    data = Data(arrays, [case.op for case in some], options.device)
                except Exception as error:  # more memory than there is, say
                    result.absent[arrays.label.removesuffix(f" {arrays.op}")] = told(error)
                    n_left -= len(some)
                    continue
                for case in some:
                    raise_if_stopped()
                    label = f"{case.label}, {n} thread{'s' * (n > 1)}"
                    progress.row_started(label)
                    if options.set == "quick":
                        left = QUICK_S - (time.perf_counter() - start)
                        effort = replace(effort, budget_s=max(0.0, left / n_left))
                    last_cache = result.header.last_cache
                    try:
                        row = measure(case, data, n, equal, options.contestants, last_cache, effort, probe)
                    except Exception as error:
                        result.absent[label] = told(error)
                    else:
                        yield row
                    n_left -= 1
                del data  # before the next one is made: some take gigabytes
                gc.collect()


def _header(options: Options, n_threads: tuple[int, ...], families: list[str], gpu: str | None) -> Header:
    sizes = machine.caches()
    return Header(
        processor=machine.processor(),
        n_processors=cpu_limit(),
        n_cores=machine.n_cores(),
        system=platform.system(),
        date=machine.today(),
        caches=sizes,
        last_cache=machine.last_cache(sizes),
        instruction_levels=machine.instruction_levels(),
        gpu=gpu,
        versions=machine.versions(module for name in families for module in FAMILIES[name].modules),
        commit=machine.commit(),
        command=options.command,
        threads=list(n_threads),
        rounds=options.rounds or EFFORTS[options.set].rounds,
        load_before=machine.load(),
        environment=machine.environment(),
        openmp=[],
    )
