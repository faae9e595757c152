"""Time lsm beside PyTorch, in turns within one run, and beside copies and adds of the same bytes.

    python benchmarks/against_torch.py [--threads 1,2] [--rounds 15] [--shape 1024x1000 ...]

Both write into preallocated results: `lsm.log_softmax(x, out=out)` and `torch._log_softmax(x, -1, False, out=out)`,
and likewise for the gradient. The machine's speed drifts, so the contestants take turns and the ratio is taken
within each turn; its median counts, with the 20th and 80th percentiles beside it.
"""

import argparse
import time

import numpy as np
import torch

import lsm

SHAPES = ("1024x1000", "512x32000", "64x128256")
PAUSE = 0.01  # seconds: the threads of whoever came before stop spinning
TURN = 0.02  # seconds that one turn of one contestant lasts at least


def contestants(shape, n_threads):
    """Calls by operation and name, on the same data."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 4).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    y, out = lsm.log_softmax(x), np.empty_like(x)
    # The same memory for both: where an array happens to lie in the caches is worth several percent.
    tx, tdy, ty, tout = (torch.from_numpy(a) for a in (x, dy, y, out))
    torch.set_num_threads(n_threads)
    lsm.set_num_threads(n_threads)
    if n_threads > 1 and lsm.get_num_threads() != n_threads:
        raise SystemExit(f"{n_threads} threads were asked for; this process may use {lsm.get_num_threads()}")
    return {
        "forward": {
            "lsm": lambda: lsm.log_softmax(x, out=out),
            "torch": lambda: torch._log_softmax(tx, -1, False, out=tout),
            "copy": lambda: torch.add(tx, 0, out=tout),
        },
        "backward": {
            "lsm": lambda: lsm.log_softmax_backward(dy, y, out=out),
            "torch": lambda: torch._log_softmax_backward_data(tdy, ty, -1, torch.float32, out=tout),
            "copy": lambda: torch.add(tdy, ty, out=tout),
        },
    }


def turn(call):
    """Seconds for one call, over at least TURN seconds of them."""
    time.sleep(PAUSE)
    call()
    n, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < TURN or n < 2:
        call()
        n += 1
    return spent / n


def main():
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default=",".join(dict.fromkeys(["1", str(lsm.get_num_threads())])))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shape", nargs="+", default=SHAPES)
    arguments = parser.parse_args()
    level = __import__("lsm.backends.cython_", fromlist=["kernels"]).kernels()["level"]
    print(f"lsm {lsm.__version__} ({level}), torch {torch.__version__}; float32, axis -1; microseconds\n")
    print("| shape | threads | operation | lsm | torch | torch / lsm (p20 to p80) | plain copy or add |")
    print("|---|---|---|---|---|---|---|")
    for threads in map(int, arguments.threads.split(",")):
        for text in arguments.shape:
            shape = tuple(map(int, text.split("x")))
            for operation, calls in contestants(shape, threads).items():
                times = {name: [] for name in calls}
                for _ in range(arguments.rounds):
                    for name, call in calls.items():
                        times[name].append(turn(call))
                ratios = np.array(times["torch"]) / np.array(times["lsm"])
                low, middle, high = np.percentile(ratios, [20, 50, 80])
                lsm_us, torch_us, copy_us = (f"{np.median(times[k]) * 1e6:,.0f}" for k in ("lsm", "torch", "copy"))
                print(
                    f"| {text} | {threads} | {operation} | {lsm_us} | {torch_us} "
                    f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {copy_us} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
