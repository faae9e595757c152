"""Measure the promises of lsm, beside PyTorch, JAX, ONNX Runtime and SciPy, on this machine.

    python benchmarks/promises.py             # tables in Markdown: log-softmax, and the related functions
    python benchmarks/promises.py --family    # only the second, in seconds

Every library runs in a process of its own, so that none disturbs the threads or memory of another. It is called with
its defaults. The name of an error is shown in its cell. The script measures single properties, not speed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from family import FAMILY, LIBRARIES, Library, filled


def near_zero(library: Library) -> str:
    return f"{library.log_softmax(np.array([[20, 0]], np.float32), -1)[0, 0]:.3g}"


def vanished_gradients(library: Library) -> str:
    """Count frames whose gradient at the largest class is 0 in float32; none of the true ones is below 1e-37."""
    if not hasattr(library, "log_softmax_gradient"):
        return "no gradient"
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1.5, (500, 1000)).astype(np.float32)
    frames = np.arange(len(x))
    x[frames, rng.integers(0, x.shape[1], len(x))] += rng.uniform(5, 90, len(x)).astype(np.float32)
    largest = x.argmax(axis=1)
    dy = np.zeros_like(x)
    dy[frames, largest] = -1
    dx = library.log_softmax_gradient(dy, x, -1)
    return f"{np.count_nonzero(dx[frames, largest] == 0)} of {len(x)}"


def long_frame_error(library: Library) -> str:
    """Find the largest absolute error, for two spreads of the logits, on which the loss in a float32 sum depends."""
    errors = []
    for spread in (1, 3):
        x = np.random.default_rng(1).normal(0, spread, (1, 2**24)).astype(np.float32)
        # In parts, to save memory. Even a longdouble no wider than float64 is wide enough.
        total = sum(np.exp(part, dtype=np.longdouble).sum() for part in np.array_split(x[0], 64))
        reference = x.astype(np.float64) - np.float64(np.log(total))  # rounded to 2e-15
        errors.append(np.abs(library.log_softmax(x, -1) - reference).max())
    return ", ".join(f"{error:.1e}" for error in errors)


def many_equal_float16(library: Library) -> str:
    return f"{library.log_softmax(np.zeros((1, 65_537), np.float16), -1)[0, 0]:.4g}"


def same_bits(library: Library) -> str:
    """List the changes of a frame's surroundings that change its bits: batches of several sizes, classes on axis 0."""
    rng = np.random.default_rng(2)
    changed: dict[str, list[str]] = {}
    for n_classes in (10, 33, 1000):
        x = rng.normal(0, 3, (257, n_classes)).astype(np.float32)
        dy = rng.normal(size=x.shape).astype(np.float32)
        calls = {"forward": ("log_softmax", (x,)), "gradient": ("log_softmax_gradient", (dy, x))}
        for op, (name, arrays) in calls.items():
            if (function := getattr(library, name, None)) is None:
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
    return "yes" if hasattr(library, "log_softmax_gradient") else "yes (no gradient)"


PROMISES: dict[str, Callable[[Library], str]] = {
    "(a) float32 [20, 0]: result at the 20; true is -2.06e-09": near_zero,
    "(b) 500 confident frames: number with gradient 0 at the largest class; true is 0": vanished_gradients,
    "(c) 2^24 float32 classes, N(0, 1) and N(0, 3): largest absolute error": long_frame_error,
    "(d) 65,537 equal logits in float16: result; true is -11.09": many_equal_float16,
    "(e) same bits alone, in a batch, on another axis; if not, what changes (at 10, 33, 1000 classes)": same_bits,
}


def measure(distribution: str, rows: list[str]) -> dict[str, str]:
    """Fill the cells of one library; in place of a result that fails, the name of the error."""
    try:
        library = LIBRARIES[distribution][1]()
    except ModuleNotFoundError as error:  # such as onnx, which writes the models for ONNX Runtime
        return dict.fromkeys(rows, f"needs {error.name}")
    except Exception as error:
        return dict.fromkeys(rows, type(error).__name__)
    cells = {}
    for row in rows:
        try:
            cells[row] = filled((PROMISES | FAMILY)[row], library)
        except Exception as error:  # the next row may work
            cells[row] = type(error).__name__
    return cells


def measure_apart(distribution: str, rows: list[str]) -> dict[str, str]:
    """`measure` in a new process; if the process dies, the cells have its exit status."""
    command = [sys.executable, __file__, "--peer", distribution, "--rows", json.dumps(rows)]
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
    """The backends of lsm that the rows measure."""
    import lsm

    winners = {dtype: lsm.explain(np.zeros(1, dtype)).winner for dtype in ("float32", "float16")}
    return ", ".join(f"{dtype} with its backend {winner}" for dtype, winner in winners.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the promises of lsm beside its peers.")
    parser.add_argument("--family", action="store_true", help="print only the second table, in seconds")
    for internal in ("--peer", "--rows"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(measure(args.peer, json.loads(args.rows))))
        return 0

    from lsm.bench.machine import processor  # not in the process of a peer

    tables = [FAMILY] if args.family else [PROMISES, FAMILY]
    table: dict[str, dict[str, str]] = {}
    missing = []
    for distribution, (name, _) in LIBRARIES.items():
        if installed(distribution) is None:
            missing.append(name)
        else:
            cells = measure_apart(distribution, [row for rows in tables for row in rows])
            table[f"{name} {installed(distribution)}"] = cells
    print(f"{processor()}, {os.cpu_count()} processors; {platform.platform()};", end=" ")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}; lsm: {served_by()}")
    print(f"Not installed: {', '.join(missing) or 'none'}\n")
    for rows in tables:
        print(f"| | {' | '.join(table)} |")
        print(f"|---|{'---|' * len(table)}")
        for row in rows:
            print(f"| {row} | {' | '.join(cells[row] for cells in table.values())} |")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
