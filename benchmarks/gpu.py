"""What only a GPU can tell of the backend cupy, in one go: tests, sanitizers, bandwidth beside peers, launch cost.

    python benchmarks/gpu.py --json docs/gpu.json             # everything; goes on where it was stopped
    python benchmarks/gpu.py --json t.json --only bandwidth   # of: tests kit memcheck racecheck bandwidth launch
    python benchmarks/gpu.py --list                           # what would be measured; needs no GPU

Needs a checkout with `python -m pip install '.[cuda13,test]'` (or cuda12), and for the sanitizers compute-sanitizer,
which the CUDA toolkit brings. Peers take part if they are installed: PyTorch with CUDA, JAX with CUDA, Triton; cupyx
comes with CuPy. JAX is told not to take 75 % of the memory at once (XLA_PYTHON_CLIENT_PREALLOCATE=false, unless set).

What is done is written to the JSON file at once, and not done again; remove an entry, or the file, to repeat it.

Contestants take turns; in a turn one enqueues its work often enough to fill some milliseconds, and is waited for. The
median turn counts. The copy of as many bytes, on the same device in the same turns, is the limit. Exit code: 0 if all
that was asked for has passed, 1 if something failed, 2 if there is no GPU that the backend can use.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lsm
from gpu_contestants import CONTESTANTS, Step, wait
from gpu_workloads import Workload, reached, summary, workloads

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "kit", "memcheck", "racecheck", "bandwidth", "launch")
N_TURNS, TURN = 7, 5e-3  # seconds that a turn lasts at least
N_CALLS = 2000  # of which the launch cost is taken

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--require", "cupy", "-k", "cupy or on_gpu")
KIT = (sys.executable, "-m", "lsm", "check", "cupy")
SANITIZED = ("tests/test_semantics.py", "tests/test_same_bits.py")  # every kind of kernel, in reasonable time


class Results:
    """What was found so far, in a file that is written anew after each entry."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.entries: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The entry, which is made if it is not there."""
        if key not in self.entries:
            self.entries[key] = make()
            if self._path is not None:
                text = json.dumps(self.entries, indent=1) + "\n"
                new = self._path.with_suffix(".new")
                new.write_text(text)
                new.replace(self._path)
        return self.entries[key]


def why_no_gpu() -> str:
    """Why the backend cannot be used here; empty if it can."""
    info = next(info for info in lsm.list_backends() if info.name == "cupy" and info.is_built_in)
    return "" if info.state == "loaded" else info.reason


def machine() -> dict[str, str]:
    """On what it was measured."""
    cupy = import_module("cupy")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    found = {
        "device": properties["name"].decode(),
        "compute_capability": cupy.cuda.Device().compute_capability,
        "driver": str(cupy.cuda.runtime.driverGetVersion()),
        "runtime": str(cupy.cuda.runtime.runtimeGetVersion()),
        "lsm": lsm.__version__,
        "cupy": cupy.__version__,
    }
    for name in ("torch", "jax", "triton"):
        module = sys.modules.get(name)
        found[name] = str(module.__version__) if module is not None else "not used"
    return found


def run_command(*command: str) -> dict[str, Any]:
    """Run it in the checkout; what it said last, and whether it went well."""
    start = time.time()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return {"passed": False, "said": f"{error.filename} is not installed", "seconds": 0}
    said = (done.stdout + done.stderr)[-4000:]
    return {"passed": done.returncode == 0, "said": said, "seconds": round(time.time() - start, 1)}


def checked(tool: str) -> dict[str, Any]:
    """The tests of every kernel under a tool of compute-sanitizer."""
    return run_command("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *PYTEST, *SANITIZED)


def checked_by_the_kit() -> dict[str, Any]:
    """What `lsm check` finds of the backend on arrays of its own, every outcome."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kit.json")
        found = run_command(*KIT, "--json", str(path))
        return found | {"outcomes": json.loads(path.read_text()) if path.exists() else None}


def seconds_a_call(step: Step, done: Callable[[Any], Any], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        last = step()
    done(last)
    return (time.perf_counter() - start) / n


def measured(workload: Workload) -> dict[str, Any]:
    """One row: the median time of each contestant, and who does not take part and why."""
    free_memory()  # of the row before, whose arrays are gone by now
    steps, absent = {}, {}
    for name, make in CONTESTANTS.items():
        try:
            steps[name] = make(workload)
            steps[name]()
        except Exception as error:  # not installed, no memory, nothing for this workload
            steps.pop(name, None)
            absent[name] = f"{type(error).__name__}: {error}"[:300]
    counts = {name: max(1, int(TURN / seconds_a_call(step, wait, 3))) for name, step in steps.items()}
    turns: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(N_TURNS):
        for name, step in steps.items():
            turns[name].append(seconds_a_call(step, wait, counts[name]))
    times = {name: statistics.median(turn) for name, turn in turns.items()}
    copy = times.pop("copy", None)
    share = copy / times["lsm"] if copy and "lsm" in times else 0.0  # without lsm the row is a failure
    rate = workload.n_moved / times["lsm"] / 1e9 if "lsm" in times else 0.0
    return {
        "name": workload.name,
        "times": times,
        "copy": copy,
        "share": round(share, 3),
        "target": workload.target,
        "GB/s": round(rate, 1),
        "absent": absent,
    }


def free_memory() -> None:
    """Give back what no array holds, or the pool of one library leaves no room for the arrays of another."""
    import_module("cupy").get_default_memory_pool().free_all_blocks()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def launch_costs() -> dict[str, float]:
    """Microseconds of host time that a call takes, with `out`, on 8 frames of 100 classes; the device keeps up."""
    cupy = import_module("cupy")
    kinds = {"cupy": (cupy.zeros((8, 100), "f4"), cupy.empty((8, 100), "f4"))}
    try:
        torch = import_module("torch")
        kinds["torch"] = (torch.zeros((8, 100), device="cuda"), torch.empty((8, 100), device="cuda"))
    except Exception as error:
        print(f"tensors are left out: {error}")
    found = {}
    for name, (x, out) in kinds.items():
        calls = {
            f"log_softmax, {name}": lambda x=x, out=out: lsm.log_softmax(x, out=out),
            f"log_softmax_backward, {name}": lambda x=x, out=out: lsm.log_softmax_backward(x, x, out=out),
        }
        for what, call in calls.items():
            call()
            best = float("inf")
            for _ in range(5):
                cupy.cuda.Device().synchronize()
                best = min(best, seconds_a_call(call, lambda _: None, N_CALLS // 5))
            found[what] = round(best * 1e6, 2)
    return found


def report(results: Results, rows: list[dict[str, Any]]) -> None:
    """Print what was measured, the rows that miss their target first."""
    for row in sorted(rows, key=lambda row: row["share"] - (row["target"] or 0)):
        peers = ", ".join(f"{name} {row['times']['lsm'] / t:.2f}" for name, t in row["times"].items() if name != "lsm")
        target = "" if row["target"] is None else f" (target {row['target']})"
        print(f"{row['name']}: {row['share']:.2f} of the copy{target}, {row['GB/s']} GB/s; speed of peers: {peers}")
    if rows:
        print(json.dumps(results.entries["summary"], indent=1))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where results are kept, such as docs/gpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--match", default="", help="of the bandwidth those rows whose name contains this")
    parser.add_argument("--elements", type=int, default=2**26, help="of an array of many frames")
    parser.add_argument("--list", action="store_true", help="name the rows of the bandwidth and their targets; no GPU")
    args = parser.parse_args(arguments)
    chosen = [workload for workload in workloads(args.elements) if args.match in workload.name]
    if args.list:
        for workload in chosen:
            print(f"{workload.name}: {workload.n_bytes / 2**20:.1f} MiB, target {workload.target}")
        return 0
    reason = why_no_gpu()
    if reason:
        print(f"There is no GPU here that lsm can use, so nothing was measured: {reason}", file=sys.stderr)
        return 2
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX is imported
    results = Results(args.json)
    passed = []
    if "tests" in args.only:
        passed.append(results.get("tests", lambda: run_command(*PYTEST, "tests"))["passed"])
    if "kit" in args.only:
        passed.append(results.get("kit", checked_by_the_kit)["passed"])
    for tool in ("memcheck", "racecheck"):
        if tool in args.only:
            passed.append(results.get(tool, lambda tool=tool: checked(tool))["passed"])
    rows = []
    if "bandwidth" in args.only:
        for workload in chosen:
            rows.append(results.get(f"bandwidth {workload.name}", lambda workload=workload: measured(workload)))
            print(f"{workload.name}: {rows[-1]['share']}", flush=True)
        results.entries.pop("summary", None)
        passed.append(reached(results.get("summary", lambda: summary(rows))))
        passed += ["lsm" in row["times"] for row in rows]
    if "launch" in args.only:
        costs = results.get("launch", launch_costs)
        print(json.dumps(costs, indent=1))
        passed.append(max(costs.values()) <= 10)
    results.entries.pop("machine", None)
    print(json.dumps(results.get("machine", machine), indent=1))
    report(results, [row for row in rows if "lsm" in row["times"]])
    for part in ("tests", "kit", "memcheck", "racecheck"):
        if part in args.only:
            print(f"{part}: {'passed' if results.entries[part]['passed'] else results.entries[part]['said']}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
