"""What lsm promises, measured beside PyTorch, JAX, ONNX Runtime and SciPy on this machine.

    python benchmarks/promises.py                    # tables in Markdown: of log-softmax, and of the family around it
    python benchmarks/promises.py --json FILE        # and the same as JSON

Every library runs in processes of its own, so that none disturbs the threads or the memory of another, and
is called as its users call it, with its defaults. What it raises stands in its cell. Single properties are
measured here and not speed, the last row apart, which wants an idle machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import family
from lsm._version import DISTRIBUTION

Array = np.ndarray[Any, np.dtype[Any]]


class Peer(NamedTuple):
    """A library: log-softmax of x, and if it has one the gradient by x from dy and x."""

    forward: Callable[[Array, int], Array]
    backward: Callable[[Array, Array, int], Array] | None


def load_lsm() -> Peer:
    import lsm

    return Peer(lsm.log_softmax, lambda dy, x, axis: lsm.log_softmax_backward(dy, lsm.log_softmax(x, axis), axis))


def load_torch() -> Peer:
    import torch

    def forward(x: Array, axis: int) -> Array:
        return torch.log_softmax(torch.from_numpy(x), axis).numpy()

    def backward(dy: Array, x: Array, axis: int) -> Array:
        leaf = torch.from_numpy(x).requires_grad_()
        torch.log_softmax(leaf, axis).backward(torch.from_numpy(dy))
        return leaf.grad.numpy()

    return Peer(forward, backward)


def load_jax() -> Peer:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    def forward(x: Array, axis: int) -> Array:
        return np.asarray(jax.nn.log_softmax(x, axis))

    def backward(dy: Array, x: Array, axis: int) -> Array:
        return np.asarray(jax.vjp(lambda x: jax.nn.log_softmax(x, axis), x)[1](dy)[0])

    return Peer(forward, backward)


def load_onnxruntime() -> Peer:
    import onnx
    import onnxruntime

    sessions: dict[Any, Any] = {}

    def forward(x: Array, axis: int) -> Array:
        key = (x.dtype, x.ndim, axis)
        if key not in sessions:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
            x_info, y_info = (onnx.helper.make_tensor_value_info(name, dtype, [None] * x.ndim) for name in "xy")
            node = onnx.helper.make_node("LogSoftmax", ["x"], ["y"], axis=axis)
            graph = onnx.helper.make_graph([node], "log_softmax", [x_info], [y_info])
            # Versions that a runtime of 2023 reads as well.
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
            sessions[key] = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return sessions[key].run(None, {"x": x})[0]

    return Peer(forward, None)


def load_scipy() -> Peer:
    from scipy.special import log_softmax

    return Peer(log_softmax, None)


LIBRARIES = {  # distribution: (its name in the table, how to load it)
    DISTRIBUTION: ("lsm", load_lsm),
    "torch": ("PyTorch", load_torch),
    "jax": ("JAX", load_jax),
    "onnxruntime": ("ONNX Runtime", load_onnxruntime),
    "scipy": ("SciPy", load_scipy),
}


def near_zero(peer: Peer) -> str:
    return f"{peer.forward(np.array([[20, 0]], np.float32), -1)[0, 0]:.3g}"


def vanished_gradients(peer: Peer) -> str:
    """Frames whose gradient at the largest class is 0 in float32, where none is below 1e-37."""
    if peer.backward is None:
        return "no gradient"
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1.5, (500, 1000)).astype(np.float32)
    frames = np.arange(len(x))
    x[frames, rng.integers(0, x.shape[1], len(x))] += rng.uniform(5, 90, len(x)).astype(np.float32)
    largest = x.argmax(axis=1)
    dy = np.zeros_like(x)
    dy[frames, largest] = -1
    dx = peer.backward(dy, x, -1)
    return f"{np.count_nonzero(dx[frames, largest] == 0)} of {len(x)}"


def long_frame_error(peer: Peer) -> str:
    """Find the largest absolute error; what the logits are decides how much a float32 sum loses."""
    errors = []
    for spread in (1, 3):
        x = np.random.default_rng(1).normal(0, spread, (1, 2**24)).astype(np.float32)
        # In parts, to save memory. Where longdouble is no wider than float64, that is still wide enough.
        total = sum(np.exp(part, dtype=np.longdouble).sum() for part in np.array_split(x[0], 64))
        reference = x.astype(np.float64) - np.float64(np.log(total))  # rounded to 2e-15
        errors.append(np.abs(peer.forward(x, -1) - reference).max())
    return ", ".join(f"{error:.1e}" for error in errors)


def many_equal_float16(peer: Peer) -> str:
    return f"{peer.forward(np.zeros((1, 65_537), np.float16), -1)[0, 0]:.4g}"


def same_bits(peer: Peer) -> str:
    """Name the changes around a frame that change its bits: batches of several sizes, classes on axis 0."""
    rng = np.random.default_rng(2)
    changed: dict[str, list[str]] = {}
    for n_classes in (10, 33, 1000):
        x = rng.normal(0, 3, (257, n_classes)).astype(np.float32)
        dy = rng.normal(size=x.shape).astype(np.float32)
        calls = {"forward": (peer.forward, (x,)), "gradient": (peer.backward, (dy, x))}
        for op, (function, arrays) in calls.items():
            if function is None:
                continue
            alone = np.concatenate([function(*(a[i : i + 1] for a in arrays), -1) for i in range(len(x))])
            batches = [function(*(a[:n] for a in arrays), -1) for n in (2, 3, 16, 100, 257)]
            if any(batch.tobytes() != alone[: len(batch)].tobytes() for batch in batches):
                changed.setdefault(f"{op} by batch", []).append(str(n_classes))
            turned = function(*(np.ascontiguousarray(a.T) for a in arrays), 0).T
            if turned.tobytes() != batches[-1].tobytes():
                changed.setdefault(f"{op} by axis", []).append(str(n_classes))
    if changed:
        return "no: " + ", ".join(f"{what} ({', '.join(counts)})" for what, counts in changed.items())
    return "yes" if peer.backward else "yes (no gradient)"


def huge_frame_ms(peer: Peer) -> str:
    """Time the best of 15 calls, after one that warms up."""
    x = np.random.default_rng(3).normal(size=(1, 2**23)).astype(np.float32)
    seconds = []
    for _ in range(16):
        start = time.perf_counter()
        peer.forward(x, -1)
        seconds.append(time.perf_counter() - start)
    return f"{min(seconds[1:]) * 1e3:.0f} ms"


PROMISES: dict[str, Callable[[Peer], str]] = {
    "(a) float32 [20, 0]: result at the 20; true is -2.06e-09": near_zero,
    "(b) 500 confident frames: how many get the gradient 0 at the largest class; true is 0": vanished_gradients,
    "(c) 2^24 float32 classes, N(0, 1) and N(0, 3): largest absolute error": long_frame_error,
    "(d) 65,537 equal logits in float16: result; true is -11.09": many_equal_float16,
    "(e) same bits alone, in a batch, on another axis; else what changes (at 10, 33, 1000 classes)": same_bits,
}
HUGE = "(f) one frame of 2^23 float32 classes: time with one processor, then with all"


def measure(distribution: str, rows: list[str]) -> dict[str, str]:
    """Fill the cells of one library; an error's name stands where its result would."""
    try:
        peer = LIBRARIES[distribution][1]()
    except ModuleNotFoundError as error:  # ONNX Runtime without onnx, which writes its models
        return dict.fromkeys(rows, f"needs {error.name}")
    except Exception as error:
        return dict.fromkeys(rows, type(error).__name__)
    cells = {}
    for row in rows:
        try:
            if row in family.FAMILY:
                cells[row] = family.measure(distribution, row)
            else:
                cells[row] = (PROMISES | {HUGE: huge_frame_ms})[row](peer)
        except Exception as error:  # the next row may work
            cells[row] = type(error).__name__
    return cells


def measure_apart(distribution: str, rows: list[str], one_processor: bool = False) -> dict[str, str]:
    """Do so in a new process; one that dies says how."""
    command = [sys.executable, __file__, "--peer", distribution, "--rows", json.dumps(rows)]
    if one_processor:
        if not hasattr(os, "sched_setaffinity"):
            return dict.fromkeys(rows, "cannot limit")
        command.append("--one-processor")
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}  # SciPy and JAX warn of the overflow that row (d) shows
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=quiet)
    if done.returncode:
        return dict.fromkeys(rows, f"exit status {done.returncode}")
    cells: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return cells


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def served_by() -> str:
    """Tell which backend of lsm the rows measure."""
    import lsm

    winners = {dtype: lsm.explain(np.zeros(1, dtype)).winner for dtype in ("float32", "float16")}
    return ", ".join(f"{dtype} with its backend {winner}" for dtype, winner in winners.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what lsm promises beside what its peers do.")
    parser.add_argument("--family", action="store_true", help="print the second table only, which takes seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as JSON too")
    for internal in ("--peer", "--rows"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--one-processor", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.peer:
        if args.one_processor:  # before the library is imported and counts processors
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(measure(args.peer, json.loads(args.rows))))
        return 0

    from lsm.bench.machine import processor  # not where a peer is alone

    tables = ([] if args.family else [[*PROMISES, HUGE]]) + [list(family.FAMILY)]
    table: dict[str, dict[str, str]] = {}
    missing = []
    for distribution, (name, _) in LIBRARIES.items():
        if installed(distribution) is None:
            missing.append(name)
            continue
        cells = measure_apart(distribution, [row for rows in tables for row in rows if row != HUGE])
        if not args.family:
            times = [measure_apart(distribution, [HUGE], one_processor)[HUGE] for one_processor in (True, False)]
            cells[HUGE] = ", ".join(times)
        table[f"{name} {installed(distribution)}"] = cells

    facts = {
        "processor": processor(),
        "n_processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lsm": served_by(),
    }
    print(f"{facts['processor']}, {facts['n_processors']} processors; {facts['system']};", end=" ")
    print(f"Python {facts['python']}, NumPy {facts['numpy']}; lsm serves {facts['lsm']}")
    print(f"Not installed: {', '.join(missing) or 'none'}\n")
    for rows in tables:
        print(f"| | {' | '.join(table)} |")
        print(f"|---|{'---|' * len(table)}")
        for row in rows:
            print(f"| {row} | {' | '.join(cells[row] for cells in table.values())} |")
        print()
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "missing": missing, "table": table}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
