"""Time implementations in rounds of one sample each: A B C, A B C, and so on.

The machine's speed drifts, so only samples of one round may be compared: ratios are taken within a round, and the
median of the ratios counts.
"""

import gc
import math
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lsm._stopping import raise_if_stopped
from lsm._texts import describe_error
from lsm.bench.implementation import Implementation
from lsm.bench.result import Entry

PAUSE_S = 0.01  # before a sample, in which the threads of the implementation before it fall asleep
LONGEST_PAUSE_S = 0.1  # where they do not: those of ONNX Runtime spin for 0.035 s, others if told so for ever
SAMPLE_S = 0.02  # that a sample lasts at least: the clock's and the scheduler's grain vanish in it
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Budget:
    """How much time a row may take."""

    rounds: int
    row_s: float = math.inf  # after which no further round begins
    sample_s: float = SAMPLE_S
    n_checked: int = 2**20  # elements that are held to the exact values
    is_of_map: bool = False  # then each implementation is called in its best way only, and each row has its limit

    def share_s(self, n_implementations: int) -> float:
        """Seconds that each implementation may take."""
        return max(self.row_s / max(1, n_implementations), MIN_ROUNDS * 2 * self.sample_s)


def settle() -> None:
    """Wait until no thread of this process spins: it would take the processors from the next implementation."""
    for _ in range(round(LONGEST_PAUSE_S / PAUSE_S)):
        before = time.process_time()
        time.sleep(PAUSE_S)
        if time.process_time() - before < PAUSE_S / 4:
            return


class Watch:
    """The clock of one implementation, which puts samples in microseconds a call in its entry, or the error."""

    def __init__(self, implementation: Implementation, entry: Entry) -> None:
        self.implementation, self.entry = implementation, entry
        self._timer = timeit.Timer(implementation.code, globals=dict(implementation.names))
        self.n_calls = 1
        self.needs_waking = True

    @property
    def spent_s(self) -> float:
        """Seconds that its samples took."""
        return sum(self.entry.samples_us) * self.n_calls / 1e6

    def seconds(self, n: int) -> float:
        """What n calls take, with the wait for a device at their end; `timeit` keeps the garbage collector off."""
        wait = self.implementation.wait
        if wait is None:
            return self._timer.timeit(n)
        wait()
        start = time.perf_counter()
        self._timer.timeit(n)
        wait()
        return time.perf_counter() - start

    def calibrate(self, sample_s: float) -> None:
        """Find how many calls make a sample; one call that is long enough is a sample already."""
        settle()
        n, took_s = 1, self.seconds(1)
        self.needs_waking = took_s < sample_s  # what is longer wakes its threads within a small part of a call
        if not self.needs_waking:
            self.entry.samples_us.append(took_s * 1e6)
        while took_s < sample_s / 4:
            n = min(10 * n, math.ceil(n * sample_s / max(took_s, 1e-9)))
            took_s = self.seconds(n)
        self.n_calls = max(1, math.ceil(n * sample_s / took_s))

    def sample(self) -> None:
        """Take one sample."""
        settle()
        if self.needs_waking:
            self.seconds(1)
        self.entry.samples_us.append(self.seconds(self.n_calls) / self.n_calls * 1e6)

    def attempt(self, what: Callable[[], None]) -> None:
        """Do it, or note the error: what raises is left out from then on, and its samples stay."""
        try:
            what()
            raise_if_stopped()
        except Exception as error:
            self.entry.error = describe_error(error)


def interleave(watches: Sequence[Watch], budget: Budget) -> None:
    """Take the rounds, or as many as the budget allows, but MIN_ROUNDS. Each has been called once before.

    An implementation that takes more than its share of the budget is in the first rounds only, or the slowest would
    leave the others too few.
    """
    gc.collect()
    start, share_s = time.perf_counter(), budget.share_s(len(watches))
    for watch in watches:
        watch.attempt(partial(watch.calibrate, budget.sample_s))
    for i in range(budget.rounds):
        round_start = time.perf_counter()
        for watch in watches:
            if watch.entry.error is None and watch.spent_s <= share_s and len(watch.entry.samples_us) == i:
                watch.attempt(watch.sample)
        now = time.perf_counter()
        if i + 1 >= MIN_ROUNDS and now - start + (now - round_start) > budget.row_s:
            break
