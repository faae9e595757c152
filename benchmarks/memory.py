"""Measure how much memory a call needs beside its input and its result, and fail where that is more than promised.

    python benchmarks/memory.py [--megabytes 64]

A call may take 256 KiB for each thread, however large the array. Each case runs in a process of its own, whose peak
of resident memory is read before and after one call. The arrays are written to first, and a small call with the same
arguments loads the libraries and starts the threads, for none of that is the call's own. Linux counts pages for each
processor apart and adds up 32 of them at a time or more, so the peak may be wrong by that: TOLERANCE is allowed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import lsm
from lsm.bench.memory import TOLERANCE, forget_peak, peak

PROMISED = 256 * 2**10  # bytes for each thread
# Frames so long that room for one of them in each thread would be seen as well.
N_FRAMES = 8

Array = np.ndarray[Any, np.dtype[Any]]


class Case(NamedTuple):
    """An input, and the call on it."""

    dtype: str = "float32"
    keywords: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    is_backward: bool = False
    layout: Callable[[int, Any], Array] = lambda n, dtype: np.empty((N_FRAMES, n // N_FRAMES), dtype)


def every_second(n: int, dtype: Any) -> Array:
    return np.empty((N_FRAMES, 2 * n // N_FRAMES), dtype)[:, ::2]


def blocks(n: int, dtype: Any) -> Array:
    return np.empty((N_FRAMES, n // N_FRAMES // 64, 8, 8), dtype)


def columns(n: int, dtype: Any) -> Array:
    return np.empty((n // N_FRAMES, N_FRAMES), dtype)


CASES = {
    "float32": Case(),
    "float64": Case("float64"),
    "float16": Case("float16"),
    "bfloat16": Case("bfloat16"),
    "float16, dtype=float32": Case("float16", {"dtype": np.float32}),
    "bfloat16, dtype=float32": Case("bfloat16", {"dtype": np.float32}),
    "float32, every second class": Case(layout=every_second),
    "float16, every second class": Case("float16", layout=every_second),
    "float32, axis 0": Case(keywords={"axis": 0}, layout=columns),
    "float32, backward": Case(is_backward=True),
    "float16, backward": Case("float16", is_backward=True),
    "bfloat16, backward": Case("bfloat16", is_backward=True),
    "float32, axis=(1, 3)": Case(keywords={"axis": (1, 3)}, layout=blocks),
    "float32, axis=(2, 3)": Case(keywords={"axis": (2, 3)}, layout=blocks),
    "float32, every second class, axis=None": Case(keywords={"axis": None}, layout=every_second),
    "float32, axis=(2, 3), backward": Case(keywords={"axis": (2, 3)}, is_backward=True, layout=blocks),
    "float32, every second class, backward": Case(is_backward=True, layout=every_second),
}


def measure(name: str, n_bytes: int) -> dict[str, int]:
    """Run one case; in a process of its own."""
    case = CASES[name]
    dtype: Any = case.dtype
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16

    def arrays(n: int) -> list[Array]:
        made = [case.layout(n, dtype) for _ in range(1 + case.is_backward)]
        for a in made:
            a[...] = -1
        return made

    call: Callable[..., Array] = lsm.log_softmax_backward if case.is_backward else lsm.log_softmax
    call(*arrays(2**17), **case.keywords)
    given = arrays(n_bytes // np.dtype(dtype).itemsize)
    forget_peak()
    before = peak()
    result = call(*given, **case.keywords)
    extra = peak() - before - result.nbytes
    return {"input": sum(a.nbytes for a in given), "result": result.nbytes, "extra": extra}


def measure_apart(name: str, n_bytes: int) -> dict[str, int] | str:
    """Do so in a new process; or say why not."""
    command = [sys.executable, __file__, "--case", name, "--megabytes", str(n_bytes // 10**6)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"
    sizes: dict[str, int] = json.loads(done.stdout)
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the memory of one call beside its input and result.")
    parser.add_argument("--megabytes", type=int, default=64, help="of each input (64)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.megabytes < 16:
        parser.error("--megabytes: accepted: 16 and more, or a hidden copy could not be told from the tolerance")
    n_bytes = arguments.megabytes * 10**6
    if arguments.case:
        print(json.dumps(measure(arguments.case, n_bytes)))
        return 0

    n_threads = lsm.get_num_threads()
    allowed = n_threads * PROMISED + TOLERANCE
    print(f"lsm {lsm.__version__}, {n_threads} threads; promised: {PROMISED // 2**10} KiB a thread;", end=" ")
    print(f"tolerance of the measurement: {TOLERANCE // 2**10} KiB in all\n")
    print("| case | input MB | result MB | extra KiB a thread | kept |")
    print("|---|---|---|---|---|")
    kept = True
    for name in CASES:
        sizes = measure_apart(name, n_bytes)
        if isinstance(sizes, str):
            print(f"| {name} | | | | not measured: {sizes} |", flush=True)
            kept &= "No module named" in sizes  # an optional one; any other failure is one
            continue
        is_kept = sizes["extra"] <= allowed
        kept &= is_kept
        extra = max(0, sizes["extra"]) / n_threads / 2**10
        megabytes = [f"{sizes[key] / 1e6:.0f}" for key in ("input", "result")]
        print(f"| {name} | {' | '.join(megabytes)} | {extra:,.0f} | {'yes' if is_kept else 'no'} |", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
