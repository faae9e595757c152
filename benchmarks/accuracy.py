"""The largest errors of lsm's backends and of its peers, in ulps, against longdouble.

    python benchmarks/accuracy.py                 # 10 to 2^20 classes: about two minutes, and 0.9 GB
    python benchmarks/accuracy.py --full          # and 2^24, which takes more than a quarter of an hour, and 2 GB
    python benchmarks/accuracy.py --json FILE     # each number of classes by itself

Forward: ulps of the exact output. Backward: ulps of the largest of the result and of its terms, dy and exp(y) * S,
S = sum(dy); where float64 adds up, S counts there as sum(|dy|). lsm and PyTorch are given dy and y, the same ones, and
held to the exact gradient of these. JAX is given dy and x, and held to the exact gradient of those. In the last row,
"one label", dy is -1 at the largest class and 0 elsewhere, S is exact, and the ulps are of the result itself.
A result of 0 where a number should be, and any lost digit near 0, makes large figures; "inf" is an infinity where the
exact value is finite.

Peers are optional: `python -m pip install '.[peers]'`. The longdouble of x86 is needed: one as narrow as float64 is no
reference.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lsm
from lsm._version import DISTRIBUTION
from lsm.backends import cython_
from lsm.bench.machine import processor
from promises import LIBRARIES, installed

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import oracle

Array = np.ndarray[Any, np.dtype[Any]]

N_CLASSES = (10, 1000, 50257, 2**20)
N_FULL = 2**24
N_ELEMENTS = 2**17  # of a case, where its frames are shorter
HUGE = {"float16": 6e4, "bfloat16": 1e30, "float32": 1e30, "float64": 1e300}
LABEL = "peaked, one label"
KINDS = ("N(0, 3)", "peaked by 5 to 90", "constant", "half masked", "1e4 from 0", "huge")


class Contestant(NamedTuple):
    """forward(x) and backward(dy, y), or by `from_x` backward(dy, x), along the last axis."""

    forward: Callable[[Array], Array]
    backward: Callable[[Array, Array], Array] | None
    from_x: bool = False


def of_lsm(backend: str) -> Contestant:
    return Contestant(
        lambda x: lsm.log_softmax(x, backend=backend), lambda dy, y: lsm.log_softmax_backward(dy, y, backend=backend)
    )


def of_torch() -> Contestant:
    import torch

    def tensor(x: Array) -> Any:
        if x.dtype.name == "bfloat16":  # which NumPy and PyTorch do not know of each other
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    def array(x: Any, like: Array) -> Array:
        if like.dtype.name == "bfloat16":
            return x.view(torch.int16).numpy().view(like.dtype)
        return x.numpy()

    def forward(x: Array) -> Array:
        return array(torch.log_softmax(tensor(x), -1), x)

    def backward(dy: Array, y: Array) -> Array:
        a, b = tensor(dy), tensor(y)
        return array(torch.ops.aten._log_softmax_backward_data(a, b, -1, b.dtype), dy)  # what autograd calls

    return Contestant(forward, backward)


def of_peer(distribution: str) -> Contestant:
    """One that benchmarks/promises.py knows how to load."""
    forward, backward = LIBRARIES[distribution][1]()
    if backward is None:
        return Contestant(lambda x: forward(x, -1), None)
    return Contestant(lambda x: forward(x, -1), lambda dy, x: backward(dy, x, -1), from_x=True)


def contestants() -> tuple[dict[str, Contestant], list[str]]:
    """Who takes part by name and version, and who is absent with the reason."""
    found, absent = {}, []
    for backend in ("cython", "numpy"):
        found[f"lsm {backend}"] = of_lsm(backend)
    os.environ["JAX_ENABLE_X64"] = "1"  # else it has no float64
    for distribution, (name, _) in LIBRARIES.items():
        if distribution == DISTRIBUTION:
            continue
        try:
            made = of_torch() if distribution == "torch" else of_peer(distribution)
            found[f"{name} {installed(distribution)}"] = made
        except Exception as error:  # an installation can be broken in many ways
            missing = isinstance(error, ModuleNotFoundError)
            absent.append(f"{name} ({error.name} is not installed)" if missing else f"{name} ({error})")
    return found, absent


def dtypes() -> dict[str, Any]:
    found: dict[str, Any] = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        return found
    return {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16} | found


def frames(kind: str, shape: tuple[int, int], dtype: Any, rng: Any) -> Array:
    """Logits of one kind, as the dtype holds them."""
    x = rng.normal(0, 3, shape)
    if kind == "peaked by 5 to 90":
        k = rng.integers(0, shape[1], (shape[0], 1))
        np.put_along_axis(x, k, x.max(axis=1, keepdims=True) + rng.uniform(5, 90, k.shape), axis=1)
    elif kind == "constant":
        x[...] = x[:, :1]
    elif kind == "half masked":
        x[rng.random(shape) < 0.5] = -np.inf
        x[:, 0] = 1
    elif kind == "1e4 from 0":
        x += 1e4
    elif kind == "huge":
        x = np.clip(x / 3, -1, 1) * HUGE[np.dtype(dtype).name]
    return x.astype(dtype)


def outcome(function: Callable[..., Array], *arrays: Array) -> Array | str:
    """The result, or why there is none. Some are served by copies that can be written to only."""
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(function(*(a.copy() for a in arrays)))
    except Exception as error:  # a dtype that it does not take
        return f"no {arrays[0].dtype.name} ({type(error).__name__})"
    if result.dtype != arrays[0].dtype:
        return f"gives {result.dtype.name}"
    return result


def worst(results: dict[str, Array | str], pieces: Any) -> dict[str, float | str]:
    """The largest error of each, in one pass over the pieces of what is exact: (index, exact[, at])."""
    errors: dict[str, float | str] = {name: r if isinstance(r, str) else 0.0 for name, r in results.items()}
    for index, *exact in pieces:
        for name, result in results.items():
            if not isinstance(result, str):
                with np.errstate(all="ignore"):
                    errors[name] = float(np.maximum(errors[name], oracle.ulps(result[index], *exact)))  # keeps NaN
    return errors


def measure(kind: str, n: int, dtype: Any, taking_part: dict[str, Contestant]) -> list[dict[str, Any]]:
    """The rows of one kind of frames: forward, backward, and for peaked frames also of one label."""
    rng = np.random.default_rng(n)
    x = frames(kind, (max(1, N_ELEMENTS // n), n), dtype, rng)
    about = {"dtype": np.dtype(dtype).name, "classes": n}
    results = {name: outcome(c.forward, x) for name, c in taking_part.items()}
    rows = [about | {"op": "forward", "kind": kind, "ulps": worst(results, oracle.log_softmax_in_pieces(x))}]
    y: Any = results["lsm cython"]
    del results
    exact_y = None
    if any(c.from_x for c in taking_part.values()):
        exact_y = np.empty(x.shape, oracle.LD)
        for index, part in oracle.log_softmax_in_pieces(x):
            exact_y[index] = part
    gradients = {kind: rng.standard_normal(x.shape).astype(dtype)}
    if kind == "peaked by 5 to 90":
        gradients[LABEL] = np.zeros_like(x)
        np.put_along_axis(gradients[LABEL], x.argmax(axis=1)[:, None], -1, axis=1)
    for name_of_dy, dy in gradients.items():
        ulps = {}
        for from_x, given, of in ((False, y, y), (True, x, exact_y)):
            able = {name: c for name, c in taking_part.items() if c.backward and c.from_x == from_x}
            if able:
                results = {name: outcome(c.backward, dy, given) for name, c in able.items()}
                pieces = oracle.backward_in_pieces(dy, of)
                ulps |= worst(results, (p[:2] for p in pieces) if name_of_dy == LABEL else pieces)
        rows.append(about | {"op": "backward", "kind": name_of_dy, "ulps": ulps})
    return rows


def largest(cells: list[float | str]) -> str:
    """The worst over the numbers of classes, as it stands in a table."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    if texts:
        return texts[0]
    value = float(np.max(cells))
    return f"{value:.3f}" if value < 10 else f"{value:.0f}" if value < 1e4 else f"{value:.1e}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for each operation; the worst over all numbers of classes."""
    lines = []
    for op in ("forward", "backward"):
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if row["op"] == op:
                groups.setdefault((row["dtype"], row["kind"]), []).append(row["ulps"])
        names = list(next(iter(groups.values()))[0])
        lines += [f"| {op} | frames | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
        for (dtype, kind), ulps in groups.items():
            lines.append(f"| {dtype} | {kind} | {' | '.join(largest([u[name] for u in ulps]) for name in names)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="2^24 classes too")
    parser.add_argument("--classes", type=int, nargs="+", metavar="N", help="these numbers of classes and no others")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    arguments = parser.parse_args()
    if np.finfo(np.longdouble).nmant < 63:
        parser.error("longdouble is no wider than float64 here, and the reference needs one that is")
    counts = arguments.classes or (*N_CLASSES, *([N_FULL] if arguments.full else []))
    if min(counts) < 1:
        parser.error("--classes: accepted: whole numbers from 1")

    taking_part, absent = contestants()
    if "bfloat16" not in dtypes():
        absent.append("bfloat16 (ml_dtypes is not installed)")
    cases = [(name, n, kind) for name in dtypes() for n in counts for kind in KINDS]
    try:
        from tqdm import tqdm

        shown = tqdm(cases, unit="case", file=sys.stderr, leave=False, disable=None)  # a file gets no bar
    except ModuleNotFoundError:
        shown = cases
    start = time.perf_counter()
    rows = []
    for name, n, kind in shown:
        rows += measure(kind, n, dtypes()[name], taking_part)
        gc.collect()
    machine = {
        "processor": processor(),
        "level": cython_.kernels()["level"],
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lsm": lsm.__version__,
        "classes": list(counts),
        "absent": absent,
    }
    print(f"{machine['processor']}, level {machine['level']}; lsm {lsm.__version__},", end=" ")
    print(f"Python {machine['python']}, NumPy {machine['numpy']}; {', '.join(map(str, counts))} classes;", end=" ")
    print(f"absent: {', '.join(absent) or 'none'}; {time.perf_counter() - start:.0f} s\n")
    print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
