"""Who takes part in benchmarks/cpu.py, how each is called, and how turns are timed."""

import gc
import math
import os
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lsm
from cpu_workloads import BACKWARD, FORWARD_NEW, Array, Data, Workload, flat
from lsm.backends.cython_ import kernels

PAUSE = 0.01  # seconds before a turn: the threads of whoever came before stop spinning
TURN = 0.02  # seconds that a turn lasts at least: the clock's and the scheduler's grain vanish in it

LIMIT = "limit"


class Contestant(NamedTuple):
    """A statement in Python, and what its names mean.

    A statement and not a function: `timeit` puts it into a loop of its own, whose cost is about 10 ns a call.
    """

    name: str
    code: str
    names: dict[str, Any]

    def timer(self) -> timeit.Timer:
        return timeit.Timer(self.code, globals=self.names)


class UnableError(Exception):
    """A contestant cannot take part in a row; the text says why."""


def of_lsm(workload: Workload, data: Data, op: str, n_threads: int) -> list[Contestant]:
    names = {"log_softmax": lsm.log_softmax, "log_softmax_backward": lsm.log_softmax_backward}
    names |= {"x": data.x, "dy": data.dy, "y": data.y, "out": data.out, "dtype": data.out.dtype}
    axis = "" if workload.axis == -1 else f", {workload.axis}"
    code = {
        BACKWARD: f"log_softmax_backward(dy, y{axis}, out=out)",
        FORWARD_NEW: f"log_softmax(x{axis})",
    }.get(op, f"log_softmax(x{axis}, out=out{', dtype=dtype' if workload.out_dtype else ''})")
    return [Contestant("lsm", code, names)]


def of_torch(workload: Workload, data: Data, op: str, n_threads: int) -> list[Contestant]:
    import torch

    def tensor(a: Array) -> Any:
        # torch knows NumPy's types only, so bfloat16 goes as 16 bits of something.
        return (
            torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
            if a.dtype.name == "bfloat16"
            else torch.from_numpy(a)
        )

    def called(name: str, transposed: bool = False) -> Contestant:
        names = {"torch": torch, "axis": workload.axis, "dtype": getattr(torch, data.out.dtype.name)}
        for key, a in {"x": data.x, "dy": data.dy, "y": data.y, "out": data.out}.items():
            if a is not None:
                names[key] = tensor(a.T if transposed else a)
        if transposed:
            names["axis"] = data.x.ndim - 1 - workload.axis % data.x.ndim
        if op == BACKWARD:
            code = "torch._log_softmax_backward_data(dy, y, axis, dtype, out=out)"
        elif workload.out_dtype:
            code = "torch.log_softmax(x, axis, dtype=dtype, out=out)"
        else:
            code = "torch._log_softmax(x, axis, False, out=out)"
        return Contestant(name, code, names)

    as_is = called("torch")
    code = as_is.code.replace(", out=out", "") if op == BACKWARD else "torch.log_softmax(x, axis)"
    new_result = as_is._replace(name="torch, new result", code=code)
    if workload.order == "F":
        # Such an x is copied, and `_log_softmax` of torch 2.13 fills such an `out` as if it were in C order: wrong.
        # Told that both are C order arrays turned over, it does neither.
        return [new_result, called("torch, transposed", transposed=True)]
    return [as_is, new_result] if op == FORWARD_NEW else [as_is]


def of_onnxruntime(workload: Workload, data: Data, op: str, n_threads: int) -> list[Contestant]:
    if op == BACKWARD:
        raise UnableError("has no gradient")
    if workload.dtype == "bfloat16":
        raise UnableError("has no bfloat16 log-softmax on a CPU")
    import onnx
    import onnxruntime

    x, out, axis = data.x, data.out, workload.axis
    if workload.order == "F":  # it takes C order only: the same memory, turned over
        x, out, axis = x.T, out.T, x.ndim - 1 - axis % x.ndim
    helper = onnx.helper
    in_type, out_type = (helper.np_dtype_to_tensor_dtype(a.dtype) for a in (x, out))
    nodes = [helper.make_node("LogSoftmax", ["x"], ["y"], axis=axis)]
    if in_type != out_type:
        nodes = [helper.make_node("Cast", ["x"], ["wide"], to=out_type), nodes[0]]
        nodes[1].input[0] = "wide"
    infos = [helper.make_tensor_value_info(*of) for of in (("x", in_type, x.shape), ("y", out_type, out.shape))]
    graph = helper.make_graph(nodes, "log_softmax", infos[:1], infos[1:])
    # Versions that a runtime of 2023 reads as well.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
    names = {"session": session, "binding": binding, "arrays": (x, out)}
    return [Contestant("onnxruntime", "session.run_with_iobinding(binding)", names)]


def of_the_machine(workload: Workload, data: Data, op: str, n_threads: int) -> list[Contestant]:
    """The same bytes read and written past the caches, with next to no arithmetic: what no kernel can beat."""
    key = "stream_add" if op == BACKWARD else "stream_copy"
    if key not in kernels():
        raise UnableError(f"this build of the kernels has no {key}")
    arrays = {"x": data.x, "dy": data.dy, "y": data.y, "out": data.out}
    names = {name: flat(a).view(np.uint8) for name, a in arrays.items() if a is not None}
    names |= {key: kernels()[key], "n_threads": n_threads}
    given = "dy, y, out" if op == BACKWARD else "x, out"
    return [Contestant(LIMIT, f"{key}({given}, n_threads)", names)]


PEERS: dict[str, Callable[..., list[Contestant]]] = {"torch": of_torch, "onnxruntime": of_onnxruntime}


def set_threads(n_threads: int, peers: list[str]) -> None:
    """Give every contestant the same number of threads; ONNX Runtime gets them with each session."""
    lsm.set_num_threads(n_threads)
    counts = {"lsm": lsm.get_num_threads()}
    if "torch" in peers:
        import torch

        torch.set_num_threads(n_threads)
        counts["torch"] = torch.get_num_threads()
    for name, count in counts.items():
        if count != n_threads:
            raise SystemExit(f"{n_threads} threads were asked for; {name} would use {count}")


def taking_part(
    workload: Workload, data: Data, op: str, n_threads: int, peers: list[str], with_limit: bool
) -> tuple[list[Contestant], dict[str, str]]:
    """Those that give the right result in this row, lsm first, and why others do not take part."""
    contestants, absent = of_lsm(workload, data, op, n_threads), {}
    places = np.random.default_rng(1).integers(0, data.out.size, 1000)
    out = flat(data.out)

    def result(contestant: Contestant) -> Array:
        out[places] = np.nan
        contestant.timer().timeit(1)
        return out[places].astype(np.float64)

    if op == FORWARD_NEW:
        lsm.log_softmax(data.x, workload.axis, out=data.out)
        expected = out[places].astype(np.float64)
    else:
        expected = result(contestants[0])
    for name in peers:
        try:
            for contestant in PEERS[name](workload, data, op, n_threads):
                # Not a test of accuracy, but one that the same thing is computed.
                writes_out = "new result" not in contestant.name
                if writes_out and not np.allclose(result(contestant), expected, rtol=0.02, atol=0.02):
                    raise UnableError(f"gives another result than lsm: {contestant.code}")
                contestants.append(contestant)
        except Exception as error:  # whatever a peer does not support in its version; the row goes on without it
            absent[name] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if with_limit:
        try:
            contestants += of_the_machine(workload, data, op, n_threads)
        except UnableError as error:
            absent[LIMIT] = str(error)
    return contestants, absent


class Others:
    """How many processors' worth of time the rest of the machine used, since this was made.

    With as many threads as processors, one busy neighbour makes whoever waits for all its threads many times slower,
    for as long as the scheduler lets the neighbour run: such rows tell nothing.
    """

    def __init__(self) -> None:
        self._before = self._seconds()

    def processors(self) -> float | None:
        """None where the system does not tell."""
        if self._before is None:
            return None
        (wall, others), (wall_before, others_before) = self._seconds(), self._before
        return (others - others_before) / (wall - wall_before)

    @staticmethod
    def _seconds() -> tuple[float, float] | None:
        """The clock, and the time that all processors spent at work or with other guests, without this process."""
        try:
            # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen by the host
            ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return None
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy - time.process_time()


def calls_in_a_turn(timer: timeit.Timer) -> int:
    """So many that they last TURN."""
    timer.timeit(1)  # the first call touches new memory and starts threads
    n, seconds = 1, timer.timeit(1)
    while seconds < TURN / 4:
        n = min(10 * n, math.ceil(n * TURN / seconds))
        seconds = timer.timeit(n)
    return max(1, math.ceil(n * TURN / seconds))


def in_turns(contestants: list[Contestant], n_rounds: int) -> dict[str, list[float]]:
    """Microseconds a call, by contestant and round: A B C, A B C, and so on.

    The machine's speed drifts, so only times of one round may be compared. `timeit` keeps the garbage
    collector off meanwhile.
    """
    timers = {contestant.name: contestant.timer() for contestant in contestants}
    n_calls = {name: calls_in_a_turn(timer) for name, timer in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    gc.collect()
    for _ in range(n_rounds):
        for name, timer in timers.items():
            time.sleep(PAUSE)
            timer.timeit(1)  # wakes its threads
            times[name].append(timer.timeit(n_calls[name]) / n_calls[name] * 1e6)
    return times
