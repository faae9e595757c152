"""Memory that a call needs beside its inputs and its result, measured in a process of its own.

The peak of resident memory is read before and after one call. The arrays are written to first, and a call with the
same arguments on small arrays loads the libraries and starts the threads, for none of that is the call's own. Linux
counts pages for each processor apart and adds up 32 of them at a time or more, so the peak may be wrong by that.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsm.bench import peers
from lsm.bench.data import WRITTEN, Data
from lsm.bench.implementation import NEW, Implementation
from lsm.bench.machine import equal_threads
from lsm.bench.workloads import Case

TOLERANCE_BYTES = 2**20  # by which the peak may be wrong
MIN_RESULT_BYTES = 8 * TOLERANCE_BYTES  # a copy of less could not be told from the tolerance
SMALL_ELEMENTS = 2**14  # of the call before
LONGEST_S = 600  # for one case

# What glibc would keep of one call's memory for the next would be missing in the next one's peak.
_NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}


def extra_bytes(names: Iterable[str], case: Case, n_threads: int) -> dict[tuple[str, str], int]:
    """Peak extra memory of each implementation, of those for which it could be measured; or a RuntimeError."""
    code = f"import sys; sys.path[:] = {sys.path}; from lsm.bench.memory import Case, main; "
    command = [sys.executable, "-c", code + f"main({[*names]}, {case}, {n_threads})"]
    environment = os.environ | _NOTHING_KEPT
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it takes more than {LONGEST_S} s") from None
    if done.returncode:
        raise RuntimeError(f"the process that measures it exited with {done.returncode}: {done.stderr[-500:]}")
    return {(name, way): n_bytes for name, way, n_bytes in json.loads(done.stdout.splitlines()[-1])}


def main(names: list[str], case: Case, n_threads: int) -> None:
    """Print, in a new process, what each implementation of a case needs; one that raises is left out."""
    found: list[tuple[str, str, int]] = []
    with equal_threads(n_threads, names) as (_, absent):  # the row names them
        known = peers.known(peers.peers_of(bool(case.chunks)))
        makers = {name: maker for name, maker in known.items() if name in names and name not in absent}
        small_case = replace(case, shape=shrunk(case.shape))
        small = peers.made(makers, small_case, Data(small_case, [case.op]), n_threads)[0]
        data = Data(case, [case.op])
        for name in filter(data.host.__contains__, WRITTEN):
            data.host[name].fill(0)  # else its pages would count as the call's
        large = {one.key: one for one in peers.made(makers, case, data, n_threads)[0]}
        for one in small:
            with suppress(Exception):
                one.call()
                found.append((*one.key, peak_of_a_call(large[one.key])))
    print("\n" + json.dumps(found))


def peak_of_a_call(implementation: Implementation) -> int:
    """Bytes that were resident at most during a call beside what was before, and beside a new result."""
    Path("/proc/self/clear_refs").write_text("5")  # makes the peak what is resident now
    before = peak()
    result: Any = implementation.call()
    extra = peak() - before
    return max(0, extra - (int(result.nbytes) if implementation.way == NEW else 0))


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
