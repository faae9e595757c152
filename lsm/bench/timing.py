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

import numpy as np

from lsm._stopping import raise_if_stopped
from lsm._texts import describe_error
from lsm.bench.implementation import Implementation

PAUSE_S = 0.01  # before a sample, in which the threads of the implementation before it fall asleep
LONGEST_PAUSE_S = 0.1  # where they do not: those of ONNX Runtime spin for 0.035 s, others if told so for ever
SAMPLE_S = 0.02  # that a sample lasts at least: the clock's and the scheduler's grain vanish in it
MIN_ROUNDS = 3

Key = tuple[str, str]


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


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the 20th and 80th percentile."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return float(middle), float(low), float(high)


def paired(times: Sequence[float], of: Sequence[float]) -> list[float]:
    """The ratios of two implementations within their rounds; one that failed has the first rounds only."""
    return [a / b for a, b in zip(times, of, strict=False)]


def settle() -> None:
    """Wait until no thread of this process spins: it would take the processors from the next implementation."""
    for _ in range(round(LONGEST_PAUSE_S / PAUSE_S)):
        before = time.process_time()
        time.sleep(PAUSE_S)
        if time.process_time() - before < PAUSE_S / 4:
            return


class Watch:
    """The clock of one implementation, and its samples in microseconds a call."""

    def __init__(self, implementation: Implementation) -> None:
        self._wait = implementation.synchronise
        self._timer = timeit.Timer(implementation.code, globals=dict(implementation.names))
        self.n_calls = 1
        self.needs_waking = True
        self.samples_us: list[float] = []
        self.error: str | None = None

    @property
    def spent_s(self) -> float:
        """Seconds that its samples took."""
        return sum(self.samples_us) * self.n_calls / 1e6

    def seconds(self, n: int) -> float:
        """What n calls take, with the wait for a device at their end; `timeit` keeps the garbage collector off."""
        if self._wait is None:
            return self._timer.timeit(n)
        self._wait()
        start = time.perf_counter()
        self._timer.timeit(n)
        self._wait()
        return time.perf_counter() - start

    def calibrate(self, sample_s: float) -> None:
        """Find how many calls make a sample; one call that is long enough is a sample already."""
        settle()
        n, took_s = 1, self.seconds(1)
        self.needs_waking = took_s < sample_s  # what is longer wakes its threads within a small part of a call
        if not self.needs_waking:
            self.samples_us.append(took_s * 1e6)
        while took_s < sample_s / 4:
            n = min(10 * n, math.ceil(n * sample_s / max(took_s, 1e-9)))
            took_s = self.seconds(n)
        self.n_calls = max(1, math.ceil(n * sample_s / took_s))

    def sample(self) -> None:
        """Take one sample."""
        settle()
        if self.needs_waking:
            self.seconds(1)
        self.samples_us.append(self.seconds(self.n_calls) / self.n_calls * 1e6)

    def attempt(self, what: Callable[[], None]) -> None:
        """Do it, or note the error: what raises is left out from then on, and its samples stay."""
        try:
            what()
            raise_if_stopped()
        except Exception as error:
            self.error = describe_error(error)


def interleaved(implementations: Sequence[Implementation], budget: Budget) -> dict[Key, Watch]:
    """Take the rounds, or as many as the budget allows, but MIN_ROUNDS. Each has been called once before.

    An implementation that takes more than its share of the budget is in the first rounds only, or the slowest would
    leave the others too few.
    """
    gc.collect()
    start, share_s = time.perf_counter(), budget.share_s(len(implementations))
    watches = {one.key: Watch(one) for one in implementations}
    for watch in watches.values():
        watch.attempt(partial(watch.calibrate, budget.sample_s))
    for i in range(budget.rounds):
        round_start = time.perf_counter()
        for watch in watches.values():
            if watch.error is None and watch.spent_s <= share_s and len(watch.samples_us) == i:
                watch.attempt(watch.sample)
        now = time.perf_counter()
        if i + 1 >= MIN_ROUNDS and now - start + (now - round_start) > budget.row_s:
            break
    return watches
