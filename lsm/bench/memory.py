"""Memory that a call needs beside its inputs and its result, measured in a process of its own.

The peak of resident memory is read before and after one call. The arrays are written to first, and a call with the
same arguments on small arrays loads the libraries and starts the threads, for none of that is the call's own. Linux
counts pages for each processor apart and adds up 32 of them at a time or more, so the peak may be wrong by that.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Timer
from typing import Any

from lsm.bench.contestant import NEW, Contestant
from lsm.bench.contestants import taking_part, usable
from lsm.bench.data import Data
from lsm.bench.threads import equal_threads
from lsm.bench.workloads import Case

TOLERANCE = 2**20  # bytes by which the peak may be wrong
MIN_BYTES = 8 * TOLERANCE  # of the result: a copy of less could not be told from the tolerance
SMALL = 2**14  # elements of the call before
LONGEST = 600  # seconds for one case

_START = "import sys; sys.path[:] = {path!r}; from lsm.bench.memory import serve; serve()"
# What glibc would keep of one call's memory for the next would be missing in the next one's peak.
_NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}

Found = dict[tuple[str, str], int]


class Probe:
    """A process that calls contestants and tells the memory they needed; it starts when it is first asked."""

    def __init__(self, families: Sequence[str], wanted: tuple[str, ...] = ()) -> None:
        self._wish = {"families": list(families), "wanted": list(wanted)}
        self._child: subprocess.Popen[str] | None = None

    def extra_bytes(self, case: Case, n_threads: int) -> Found:
        """Peak extra memory of each contestant by name and way; of those alone for which it could be measured."""
        if self._child is None:
            command = [sys.executable, "-c", _START.format(path=[p for p in sys.path if isinstance(p, str)])]
            pipe, nowhere, environment = subprocess.PIPE, subprocess.DEVNULL, os.environ | _NOTHING_KEPT
            self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, env=environment)
        stdin: Any = self._child.stdin
        stdout: Any = self._child.stdout
        limit = Timer(LONGEST, self._child.kill)
        limit.start()
        try:
            stdin.write(json.dumps(self._wish | {"case": asdict(case), "n_threads": n_threads}) + "\n")
            stdin.flush()
            return {(name, way): n_bytes for name, way, n_bytes in json.loads(stdout.readline())}
        except (OSError, ValueError):  # it has died, of too little memory say; what was timed stands
            self.close()
            return {}
        finally:
            limit.cancel()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()  # it has nothing to put in order
            with self._child:  # closes the pipes and waits
                self._child = None


def serve() -> None:
    """Answer requests from standard input, one a line; in the process of a `Probe`."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever a library prints
        for line in sys.stdin:
            request = json.loads(line)
            case = Case(**request["case"] | {"shape": tuple(request["case"]["shape"])})
            found = _extra_bytes(request["families"], tuple(request["wanted"]), case, request["n_threads"])
            answers.write(json.dumps([[*key, n_bytes] for key, n_bytes in found.items()]) + "\n")
            answers.flush()


def _extra_bytes(families: list[str], wanted: tuple[str, ...], case: Case, n_threads: int) -> Found:
    """Measure each contestant of a case; one that raises is left out."""
    families = [name for name in usable(wanted, "cpu")[0] if name in families]
    found: Found = {}
    absent: dict[str, str] = {}  # the row names them
    with equal_threads(n_threads, families, absent):
        families = [name for name in families if name not in absent]
        small_case = replace(case, shape=shrunk(case.shape))
        small = taking_part(families, wanted, small_case, Data(small_case, [case.op]), n_threads)[0]
        data = Data(case, [case.op])
        for array in (data.out, data.y_out):
            if array is not None:
                array.fill(0)  # else its pages would count as the call's
        large = {one.key: one for one in taking_part(families, wanted, case, data, n_threads)[0]}
        for one in small:
            with suppress(Exception):  # the row says what it raises
                one.call()
                found[one.key] = peak_of_a_call(large[one.key])
    return found


def peak_of_a_call(contestant: Contestant) -> int:
    """Bytes that were resident at most during a call beside what was before, and beside a new result."""
    forget_peak()
    before = peak()
    result = contestant.call()
    extra = peak() - before
    return max(0, extra - (_n_bytes(result) if contestant.way == NEW else 0))


def _n_bytes(result: Any) -> int:
    """Of an array or a tensor."""
    return int(result.nbytes)


def shrunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of the same dimensions with SMALL elements at most."""
    sizes, size = list(shape), 1
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        sizes[i] = max(1, min(sizes[i], SMALL // size))
        size *= sizes[i]
    return tuple(sizes)


def peak() -> int:
    """Bytes that were resident at most, since `forget_peak` where there is that."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 2**10 for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Make the peak what is resident now; where that cannot be done it is nearly so, for all is written in place."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
