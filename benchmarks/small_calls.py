"""Print the time of a small call and its pieces, in nanoseconds, beside PyTorch on one thread if installed.

    python benchmarks/small_calls.py [--repeats 200]

Each number is the minimum of many samples: the time of an undisturbed call. The samples are taken in rounds, so that a
slow phase of the machine affects all alike. The pieces are those of a call on (1, 10); each is measured alone, so their
sum is close, but not equal, to the time of the call.
"""

import argparse
import timeit
from contextvars import copy_context
from typing import Any

import numpy as np

import lsm
from lsm.backends._levels import kernels

SHAPES = ((1, 10), (32, 10), (10, 500), (1500, 32), (60, 1000))
SAMPLE_S = 1e-3

LSM = {
    "forward": "log_softmax(x)",
    "forward, out=": "log_softmax(x, out=out)",
    "backward": "log_softmax_backward(dy, y)",
    "backward, out=": "log_softmax_backward(dy, y, out=out)",
}
TORCH = {
    "forward": "torch.log_softmax(x, -1)",
    "forward, out=": "torch._log_softmax(x, -1, False, out=out)",
    "backward": "torch._log_softmax_backward_data(dy, y, -1, torch.float32)",
    "backward, out=": "torch._log_softmax_backward_data(dy, y, -1, torch.float32, out=out)",
}
PIECES = {
    "a Python function of this signature": "like(x)",
    "checking and computing, no new array": "fast(x, -1, out)",
    "checking, computing, a new array": "fast(x, -1, None)",
    "the whole call": "log_softmax(x)",
}


def least(codes: dict[str, tuple[Any, ...]], n_repeats: int) -> dict[str, float]:
    """The minimum time of each statement, in ns, less that of an empty statement.

    A statement is its code, its names and, optionally, a setup, run before each sample in a copy of the context.
    """
    timers = {name: timeit.Timer(code, *setup, globals=names) for name, (code, names, *setup) in codes.items()}
    timers["nothing"] = timeit.Timer("pass")
    counts = {name: max(1, int(SAMPLE_S * 50 / copy_context().run(timer.timeit, 50))) for name, timer in timers.items()}
    found = dict.fromkeys(timers, float("inf"))
    for _ in range(n_repeats):
        for name, timer in timers.items():
            found[name] = min(found[name], copy_context().run(timer.timeit, counts[name]) / counts[name] * 1e9)
    nothing = found.pop("nothing")
    return {name: time - nothing for name, time in found.items()}


def like(x: Any, axis: int = -1, *, out: Any = None, dtype: Any = None, backend: Any = None) -> None:
    """Do nothing: its time is that of the Python call itself."""


def arrays(shape: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    return {"x": x, "dy": dy, "y": lsm.log_softmax(x), "out": np.empty_like(x)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="samples of each (default 200)")
    n_repeats = parser.parse_args().repeats
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]
    else:
        torch.set_num_threads(1)
    functions = {"log_softmax": lsm.log_softmax, "log_softmax_backward": lsm.log_softmax_backward}
    print("| float32, ns a call | " + " | ".join(LSM) + " |\n" + "|---" * (1 + len(LSM)) + "|")
    for shape in SHAPES:
        ours = arrays(shape)
        codes = {f"lsm {name}": (code, ours | functions) for name, code in LSM.items()}
        if torch is not None:
            theirs = {name: torch.from_numpy(a.copy()) for name, a in ours.items()} | {"torch": torch}
            codes |= {f"torch {name}": (code, theirs) for name, code in TORCH.items()}
        found = least(codes, n_repeats)
        for library in ("lsm", "torch")[: 1 + (torch is not None)]:
            print(f"| {shape} {library} | " + " | ".join(f"{found[f'{library} {name}']:.0f}" for name in LSM) + " |")
    names = arrays((1, 10)) | functions
    names["like"] = like
    names["fast"] = kernels()["fast"]["log_softmax"]
    print("\n| pieces of a call on (1, 10) | ns |\n|---|---|")
    for name, time in least({name: (code, names) for name, code in PIECES.items()}, n_repeats).items():
        print(f"| {name} | {time:.0f} |")


if __name__ == "__main__":
    main()
