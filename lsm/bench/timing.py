"""Time contestants in turns: A B C, A B C, and so on.

The machine's speed drifts, so only times of one round may be compared: ratios are taken within a round, and the median
of the ratios counts.
"""

import gc
import math
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lsm._stopping import raise_if_stopped
from lsm._texts import told
from lsm.bench.contestant import Contestant

PAUSE = 0.01  # seconds before a turn, in which the threads of whoever came before fall asleep
LONGEST_PAUSE = 0.1  # where they do not: those of ONNX Runtime spin for 0.035 s, others if told so for ever
TURN = 0.02  # seconds that a turn lasts at least: the clock's and the scheduler's grain vanish in it
MIN_ROUNDS = 3

Key = tuple[str, str]


class Spread(NamedTuple):
    """The median and what lies around it."""

    median: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """The median, 20th and 80th percentile."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return Spread(float(middle), float(low), float(high))


def paired(times: Sequence[float], of: Sequence[float]) -> Spread | None:
    """The ratios of two contestants within their rounds; None without a common one."""
    n = min(len(times), len(of))  # one that failed on the way has the first rounds only
    return spread([a / b for a, b in zip(times[:n], of[:n], strict=True)]) if n else None


def settle() -> None:
    """Wait until no thread of this process spins, or they would take the processors from whoever is next."""
    for _ in range(round(LONGEST_PAUSE / PAUSE)):
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < PAUSE / 4:
            return


@dataclass
class Times:
    """What turns took, in microseconds a call, and who failed on the way."""

    turns_us: dict[Key, list[float]] = field(default_factory=dict)
    errors: dict[Key, str] = field(default_factory=dict)


class Watch:
    """The clock of one contestant."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self._timer = timeit.Timer(contestant.code, globals=dict(contestant.names))
        self.n_calls = 1
        self.needs_waking = True
        self.spent_s = 0.0

    def seconds(self, n: int) -> float:
        """What n calls take, the wait for a device at their end included; `timeit` keeps the garbage collector off."""
        wait = self.contestant.synchronise
        if wait is None:
            return self._timer.timeit(n)
        wait()
        start = time.perf_counter()
        self._timer.timeit(n)
        wait()
        return time.perf_counter() - start

    def calibrate(self, turn: float) -> float | None:
        """Find how many calls last a turn; a first call has touched the memory and started the threads.

        One call that lasts a turn or longer is a turn by itself, and its microseconds are given.
        """
        settle()
        n, took = 1, self.seconds(1)
        self.needs_waking = took < turn  # what is longer wakes its threads within a small part of a call
        while took < turn / 4:
            n = min(10 * n, math.ceil(n * turn / max(took, 1e-9)))
            took = self.seconds(n)
        self.n_calls = max(1, math.ceil(n * turn / took))
        if self.needs_waking:
            return None
        self.spent_s += took
        return took * 1e6

    def turn_us(self) -> float:
        """Microseconds a call, of one turn."""
        settle()
        if self.needs_waking:
            self.seconds(1)
        seconds = self.seconds(self.n_calls)
        self.spent_s += seconds
        return seconds / self.n_calls * 1e6


def part(budget_s: float, n_contestants: int, turn_s: float = TURN) -> float:
    """Seconds that each contestant may take of a row's budget."""
    return max(budget_s / max(1, n_contestants), MIN_ROUNDS * 2 * turn_s)


def in_turns(
    contestants: Sequence[Contestant],
    n_rounds: int,
    budget_s: float = math.inf,
    turn_s: float = TURN,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Let the contestants take turns, for so many rounds, or as many as the budget allows, but MIN_ROUNDS.

    One that takes more than its part of the budget is in the first rounds only, or the slowest would leave the others
    too few; one whose turns are short is not left out before MIN_ROUNDS, however little time there is. One that raises
    takes no further part; what it took before stays. Each has been called once before. Calls that last a turn by
    themselves have their first turn while the others find out how many calls make one.
    """
    start = clock()
    part_s = part(budget_s, len(contestants), turn_s)
    times = Times({contestant.key: [] for contestant in contestants})
    watches: dict[Key, Watch] = {}

    def attempt(key: Key, what: Callable[[], Any]) -> Any:
        try:
            found = what()
            raise_if_stopped()
            return found
        except Exception as error:
            times.errors[key] = told(error)
            watches.pop(key, None)
            return None

    gc.collect()
    for contestant in contestants:
        watch = watches[contestant.key] = Watch(contestant)
        took = attempt(contestant.key, partial(watch.calibrate, turn_s))
        if took is not None:
            times.turns_us[contestant.key].append(took)
    for i in range(n_rounds):
        round_start = clock()
        for key, watch in list(watches.items()):
            if watch.spent_s > part_s:
                del watches[key]
                continue
            if len(times.turns_us[key]) > i:
                continue
            took = attempt(key, watch.turn_us)
            if took is not None:
                times.turns_us[key].append(took)
        now = clock()
        if i + 1 >= MIN_ROUNDS and now - start + (now - round_start) > budget_s:
            break
    return times
