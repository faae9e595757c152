"""An implementation is one way to call one library in one case; here are those of lsm, and the limit of the machine."""

import gc
import math
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import lsm
from lsm._decide import Request
from lsm._explain import explain_request
from lsm._stopping import raise_if_stopped
from lsm._texts import describe_error, printable
from lsm.backends._levels import kernels
from lsm.bench.data import Array, Data, to_numpy
from lsm.bench.machine import torch_has_cuda
from lsm.bench.result import Entry
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, SIGNATURES, Case

OUT, NEW = "out", "new"
PAUSE_S = 0.01  # before a sample, in which the threads of the implementation before it fall asleep
LONGEST_PAUSE_S = 0.1  # where they do not: those of ONNX Runtime spin for 0.035 s, others if told so for ever
SAMPLE_S = 0.02  # that a sample lasts at least: the clock's and the scheduler's grain vanish in it
MIN_ROUNDS = 3

FUNCTIONS = {FORWARD: "log_softmax", BACKWARD: "log_softmax_backward"}  # of lsm; else the operation is the name
# Of what a function returns, that which is checked.
PARTS = {"top_k_log_softmax": "[0]", "cross_entropy_value_and_grad": "[1]"}


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


@dataclass
class Implementation:
    """An expression in Python, what its names mean, and its clock, which puts samples or the error in its entry.

    An expression and not a function: `timeit` puts it into a loop of its own, whose cost is about 10 ns a call.
    """

    name: str
    library: str
    way: str  # OUT: the result is written into an array of the data; NEW: the expression's value is the result
    code: str
    names: dict[str, Any]
    backend: str | None = None
    to_numpy: Callable[[Any], Array] = to_numpy
    wait: Callable[[], object] = lambda: None  # for the device
    bound_ulp: float | None = None  # what it declares
    setup_ms: float = 0.0  # what making it took, if that is a compilation

    def __post_init__(self) -> None:
        self.key = self.name, self.way  # what distinguishes it from the others of a row
        self.entry = Entry(self.name, self.library, self.way, self.code, self.backend)
        self._timer = timeit.Timer(self.code, globals=dict(self.names))
        self._n_calls = 1  # that make a sample
        self._needs_waking = True

    def call(self) -> Any:
        """Evaluate the expression once, to the end."""
        value = eval(self.code, dict(self.names))
        self.wait()
        return value

    def seconds(self, n: int) -> float:
        """What n calls take, with the wait for a device at their end; `timeit` keeps the garbage collector off."""
        self.wait()
        start = time.perf_counter()
        self._timer.timeit(n)
        self.wait()
        return time.perf_counter() - start

    def calibrate(self, sample_s: float) -> None:
        """Find how many calls make a sample; one call that is long enough is a sample already."""
        settle()
        n, took_s = 1, self.seconds(1)
        self._needs_waking = took_s < sample_s  # what is longer wakes its threads within a small part of a call
        if not self._needs_waking:
            self.entry.samples_us.append(took_s * 1e6)
        while took_s < sample_s / 4:
            n = min(10 * n, math.ceil(n * sample_s / max(took_s, 1e-9)))
            took_s = self.seconds(n)
        self._n_calls = max(1, math.ceil(n * sample_s / took_s))

    def sample(self, i: int, share_s: float) -> None:
        """Take the sample of a round, unless there is one, or this has missed a round, or has spent its share."""
        samples = self.entry.samples_us
        if len(samples) == i and sum(samples) * self._n_calls <= share_s * 1e6:
            settle()
            if self._needs_waking:
                self.seconds(1)
            samples.append(self.seconds(self._n_calls) / self._n_calls * 1e6)

    def attempt(self, what: Callable[..., None], *args: Any) -> None:
        """Do it, or note the error: what raises is left out from then on, and its samples stay."""
        try:
            if self.entry.error is None:
                what(*args)
                raise_if_stopped()
        except Exception as error:
            self.entry.error = describe_error(error)


def settle() -> None:
    """Wait until no thread of this process spins: it would take the processors from the next implementation."""
    for _ in range(round(LONGEST_PAUSE_S / PAUSE_S)):
        before = time.process_time()
        time.sleep(PAUSE_S)
        if time.process_time() - before < PAUSE_S / 4:
            return


def interleave(implementations: Sequence[Implementation], budget: Budget) -> None:
    """Take the rounds, or as many as the budget allows, but MIN_ROUNDS; the slowest are in the first ones only."""
    gc.collect()
    start, share_s = time.perf_counter(), budget.share_s(len(implementations))
    for one in implementations:
        one.attempt(one.calibrate, budget.sample_s)
    for i in range(budget.rounds):
        round_start = time.perf_counter()
        for one in implementations:
            one.attempt(one.sample, i, share_s)
        now = time.perf_counter()
        if i + 1 >= MIN_ROUNDS and now - start + (now - round_start) > budget.row_s:
            break


def limit(case: Case, data: Data, n_threads: int) -> Iterator[Implementation]:
    """The same bytes moved with next to no arithmetic: a copy of x, or dy + y, with nontemporal stores."""
    given, _, _, name = SIGNATURES[case.op]
    code = f"add({given}, out=out)" if given.startswith("dy") else "copy(out, x)"
    if case.op == BOTH:
        code = "copy(y_out, x); add(dy, y_out, out=out)"
    if data.device == "cpu":
        library, copy, add = "torch", kernels()["stream_copy"], kernels()["stream_add"]
        names: dict[str, Any] = {key: array.ravel("K").view(np.uint8) for key, array in data.host.items()}
        names |= {"copy": lambda out, x: copy(x, out, n_threads), "add": partial(add, n_threads=n_threads)}
    else:
        library = "torch" if torch_has_cuda() else "cupy"
        module = import_module(library)
        copy = module.Tensor.copy_ if library == "torch" else module.copyto
        names = {"copy": copy, "add": module.add, **getattr(data, library)}
    yield Implementation(name, "the machine", OUT, code, names, wait=data.waits(library))


def of_backend(label: str, info: lsm.BackendInfo, case: Case, data: Data, n_threads: int) -> Iterator[Implementation]:
    """A backend of lsm, with `out` and without; on NumPy's arrays on a CPU and CuPy's on a GPU, if it takes them."""
    kind = "torch.Tensor"
    if data.device == "cpu" and ("numpy.ndarray" in info.array_types or kind not in info.array_types):
        kind = "numpy.ndarray"
    elif data.device != "cpu" and "cupy.ndarray" in info.array_types and case.dtype != "bfloat16":
        kind = "cupy.ndarray"
    functions = [FUNCTIONS.get(op, op) for op in case.op.split("+")]
    calls = [Request(kind, data.device, (case.dtype, case.result_dtype), name) for name in functions]
    for call in calls:
        if (error := explain_request(call, label).error) is not None:
            raise LookupError(error)
    backend = "" if all(explain_request(call).winner == label for call in calls) else ", backend=backend"
    library = kind.partition(".")[0]
    names = {name: getattr(lsm, name) for name in functions}
    names |= data.host if library == "numpy" else getattr(data, library)
    names |= {"backend": label, "dtype": case.result_dtype, "k": case.k}
    given, result, has_out, _ = SIGNATURES[case.op]
    axis = "" if case.axis == -1 and case.op != "logsumexp" else f", {case.axis}"
    dtype = ", dtype=dtype" if case.out_dtype else ""
    for way in (OUT, NEW) if has_out else (NEW,):
        out = f", out={result}" if way == OUT else ""
        if case.op == BOTH:
            given = f"dy, log_softmax(x{axis}{out.replace('=', '=y_')}{dtype}{backend})"
        more = ", reduction='none'" if case.op == "cross_entropy" else dtype if case.op == FORWARD else ""
        code = f"{functions[-1]}({given}{axis}{out}{more}{backend}){PARTS.get(case.op, '')}"
        about: dict[str, Any] = {"wait": data.waits(library), "backend": label}
        about["bound_ulp"] = info.max_ulp.get(case.result_dtype)
        yield Implementation(f"lsm {printable(label)}", "lsm", way, code, names, **about)
