"""Measure the errors of the exponentials of the CPU kernels, on every float32.

    python benchmarks/exponential.py            # all 2^32 float32, for the gradient too: about eight minutes
    python benchmarks/exponential.py --quick    # every 997th: seconds
    python benchmarks/exponential.py --m 0 10000 --json FILE
    LSM_FORCE_ISA=v3 python benchmarks/exponential.py    # another instruction level

The forward pass sums exp(x - m), x <= m. It is tested for each m with every float32 x up to m; x == m is left out of
the sum. The backward pass needs exp(y), y < 88. It is tested by the gradient of frames with dy = (1, 0, 0, ...), which
is -exp(y).

The reference is NumPy's exp of x - m, both in float64. Where the result is not 0, |x - m| < 105: its rounding error is
below 2^-47, and that of exp below 2^-50 of the result. Together, this is less than 2^-22 ulp of float32.
float64 cannot be tested exhaustively. It is compared with longdouble at random numbers, and around the points where the
argument reduction goes from one power of two to the next.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import lsm
from lsm.backends import cython_
from lsm.bench.machine import processor

Array = np.ndarray[Any, np.dtype[Any]]

SHIFTS = (0.0, 88.75, -3.7, 10000.5, -1e6)  # beyond 8192 the kernels subtract m first
CHUNK = 2**18  # inputs at a time: all temporaries fit in the cache
STEP = 997  # prime, so that --quick covers all residues of the low bits
SMALLEST_NORMAL = 2.0**-126
SMALLEST = 2.0**-149
BELOW = -104.0  # below this, exp is less than half of the smallest float32


@dataclass
class Found:
    """The largest errors found, and the wrong results."""

    what: str
    n_tried: int = 0
    ulps: float = 0.0  # where the exact exponential is a normal float32
    at: float = math.nan
    subnormal: float = 0.0  # below, in units of 2^-149
    wrong: list[str] = field(default_factory=list)  # inputs with a wrong result where only one value is right
    seconds: float = 0.0

    def must(self, x: Array, result: Array, holds: Array, what: str) -> None:
        if not holds.all():
            i = int((~holds).argmax())
            self.wrong.append(f"{what}: {x[i]!r} gave {result[i]!r}")

    def compare(self, x: Array, result: Array, exact: Array) -> None:
        """Record the errors; exact: positive float64, accurate to 2^-45."""
        error = np.abs(result.astype(np.float64) - exact)
        is_normal = exact >= SMALLEST_NORMAL
        power = (exact.view(np.int64) & 0x7FF0000000000000).view(np.float64)  # of two, at most the exact value
        ulps = np.where(is_normal, error / (power * 2.0**-23), 0)
        i = int(ulps.argmax())
        if not ulps[i] <= self.ulps:  # NaN counts as the largest error
            self.ulps, self.at = float(ulps[i]), float(x[i])
        if not is_normal.all():
            self.subnormal = max(self.subnormal, float(error[~is_normal].max() / SMALLEST))


def every_float32(step: int) -> Iterator[Array]:
    """Every step-th float32 in the order of their bits, NaNs and infinities included."""
    for start in range(0, 2**32, CHUNK * step):
        yield np.arange(start, min(start + CHUNK * step, 2**32), step, dtype=np.uint64).astype(np.uint32).view("f4")


def level_in_force() -> Any:
    return import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")


def try_forward(kernels: Any, m: float, inputs: Iterable[Array]) -> Found:
    """Check exp(x - m) for every x <= m of the inputs, and NaN for every NaN."""
    found = Found(f"exp(x - m), m = {m:g}")
    start = time.perf_counter()
    top = np.float32(m)
    for some in inputs:
        x = some[~(some > top)]  # NaNs stay
        if not x.size:
            continue
        out = np.full_like(x, -1)
        kernels.exponentials["float"](x, top, out)
        found.n_tried += x.size
        is_nan = np.isnan(x)
        if is_nan.any():
            found.must(x, out, np.isnan(out[is_nan]), "NaN for NaN")
            x, out = x[~is_nan], out[~is_nan]
        with np.errstate(over="ignore"):
            d = x.astype(np.float64) - np.float64(top)
        is_nothing = (d < BELOW) | (d == 0)
        found.must(x[is_nothing], out[is_nothing], out[is_nothing] == 0, "0 for excluded or too small numbers")
        if not is_nothing.all():
            found.compare(x[~is_nothing], out[~is_nothing], np.exp(d[~is_nothing]))
    found.seconds = time.perf_counter() - start
    return found


def try_infinite_shift(kernels: Any) -> Found:
    """Check m = inf: every x gives NaN, as the frame becomes NaN."""
    found = Found("exp(x - m), m = inf")
    x = np.array([-np.inf, -3e38, -1, -0.0, 1e-45, 7, 3e38, np.inf, np.nan], np.float32)
    out = np.zeros_like(x)
    kernels.exponentials["float"](x, np.float32(np.inf), out)
    found.n_tried = x.size
    found.must(x, out, np.isnan(out), "NaN")
    return found


def try_gradient(inputs: Iterable[Array], n_classes: int = 4096) -> Found:
    """Check -exp(y) as the gradient for dy = (1, 0, 0, ...), for every y of the inputs below 88."""
    found = Found("exp(y) in the gradient, y < 88")
    start = time.perf_counter()
    for some in inputs:
        y = some[(some < 88) & (some > -np.inf)]
        if not y.size:
            continue
        n_frames = -(-y.size // (n_classes - 1))
        frames = np.full((n_frames, n_classes), -np.inf, np.float32)
        rest = np.full(n_frames * (n_classes - 1), -1, np.float32)
        rest[: y.size] = y
        frames[:, 1:] = rest.reshape(n_frames, -1)
        dy = np.zeros_like(frames)
        dy[:, 0] = 1
        out = -lsm.log_softmax_backward(dy, frames, backend="cython")[:, 1:].reshape(-1)[: y.size]
        found.n_tried += y.size
        is_nothing = y < BELOW
        found.must(y[is_nothing], out[is_nothing], out[is_nothing] == 0, "0 for too small numbers")
        if not is_nothing.all():
            found.compare(y[~is_nothing], out[~is_nothing], np.exp(y[~is_nothing].astype(np.float64)))
    found.seconds = time.perf_counter() - start
    return found


def borders(dtype: Any, lowest: int) -> Array:
    """The 129 numbers around each (n + 1/2) ln 2, n from -1 down to `lowest`, where the n of the reduction changes."""
    middle = ((np.arange(-1, lowest - 1, -1) + 0.5) * np.log(np.longdouble(2))).astype(dtype)
    ints = middle.view(np.int32 if dtype == np.float32 else np.int64)
    return (ints[:, None] + np.arange(-64, 65)).ravel().view(dtype)


def try_double(kernels: Any, m: float, n: int, rng: Any) -> Found:
    """Check float64: n random d = x - m, half of them uniform and half of any magnitude, and the borders."""
    found = Found(f"float64 exp(x - m), m = {m:g}")
    start = time.perf_counter()
    size = np.exp(rng.uniform(np.log(1e-20), np.log(708), n // 2))
    d = np.concatenate([-rng.uniform(0, 708, n - n // 2), -size, borders(np.float64, -1020)])
    # The argument of the reduction is d for m = 0, otherwise x: so the borders are those of x.
    x = d if m == 0 else np.concatenate([np.float64(m) + d, borders(np.float64, -1020)])
    for part in np.array_split(x[(x < m) & (x > m - 708)], 1 + x.size // 2**20):
        out = np.empty_like(part)
        kernels.exponentials["double"](part, np.float64(m), out)
        exact = np.exp(part.astype(np.longdouble) - np.longdouble(m))
        ulps = np.abs(out - exact) / np.ldexp(np.longdouble(1), np.frexp(exact)[1] - 53)
        i = int(ulps.argmax())
        if not ulps[i] <= found.ulps:
            found.ulps, found.at = float(ulps[i]), float(part[i])
        found.n_tried += part.size
    found.seconds = time.perf_counter() - start
    return found


def with_bar(chunks: Iterable[Array], n: int, what: str) -> Iterable[Array]:
    """The chunks, with a progress bar if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return chunks
    bar: Iterable[Array] = tqdm(chunks, total=n, desc=what, unit="chunk", leave=False, disable=None)
    return bar


def markdown(rows: list[Found]) -> str:
    lines = [
        "| what | inputs tested | largest error, ulp | at | subnormal results, 2^-149 | wrong |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        at = "" if math.isnan(row.at) else f"{row.at:.9g}"
        small = f"{row.subnormal:.4f}" if row.subnormal else ""
        ulps = "" if math.isnan(row.at) else f"{row.ulps:.4f}"
        wrong = "; ".join(row.wrong[:3]) or "none"
        lines.append(f"| {row.what} | {row.n_tried:,} | {ulps} | {at} | {small} | {wrong} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"every {STEP}th float32")
    parser.add_argument("--m", type=float, nargs="+", default=SHIFTS, help="the maxima that are subtracted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    arguments = parser.parse_args()
    if not all(math.isfinite(m) for m in arguments.m):
        parser.error("--m: accepted: finite numbers; infinity is always tested")

    kernels = level_in_force()
    step = STEP if arguments.quick else 1
    n_chunks = -(-(2**32) // (CHUNK * step))
    rng = np.random.default_rng(0)
    machine = {
        "processor": processor(),
        "level": cython_.kernels()["level"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lsm": lsm.__version__,
        "step": step,
    }
    start = time.perf_counter()
    rows = []
    tasks: list[tuple[str, Callable[[Iterable[Array]], Found]]] = [
        (f"m = {m:g}", lambda inputs, m=m: try_forward(kernels, m, inputs)) for m in arguments.m
    ]
    tasks.append(("gradient", try_gradient))
    for what, task in tasks:
        rows.append(task(with_bar(every_float32(step), n_chunks, what)))
    rows.append(try_infinite_shift(kernels))
    if np.finfo(np.longdouble).nmant >= 63:
        rows += [try_double(kernels, m, 10**5 if arguments.quick else 10**7, rng) for m in (0.0, 300.1)]
    print(f"{machine['processor']}, level {machine['level']}; lsm {lsm.__version__}, NumPy {np.__version__};", end=" ")
    print(f"every {'' if step == 1 else f'{step}th '}float32, {time.perf_counter() - start:.0f} s\n")
    print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
