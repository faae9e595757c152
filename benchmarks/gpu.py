"""Run all checks of the backend cupy that need a GPU: tests, the kit, sanitizers, speed and errors.

    python benchmarks/gpu.py RESULTS               # writes the output of each step to this folder
    python benchmarks/gpu.py RESULTS --only bench  # of: tests kit memcheck racecheck bench
    python benchmarks/gpu.py --list                # the commands; needs no GPU

Needs a checkout with `python -m pip install '.[cuda13,test,bench]'` (or cuda12), and for the sanitizers
compute-sanitizer, from the CUDA toolkit. Peers are compared if they are installed: PyTorch with CUDA, JAX with CUDA;
cupyx is part of CuPy. A step that has passed is not run again as long as its file NAME.passed exists.

Exit code: 0 if all requested steps have passed, 1 if one failed, 2 if there is no GPU that the backend can use.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import lsm

ROOT = Path(__file__).resolve().parents[1]

PYTEST = f"{sys.executable} -m pytest -q -p no:cacheprovider --require cupy -k 'cupy or on_gpu'"
LSM = f"{sys.executable} -m lsm"
SANITIZED = "tests/test_semantics.py tests/test_same_bits.py"  # every kind of kernel, in reasonable time
STEPS = {
    "tests": f"{PYTEST} tests",
    "kit": f"{LSM} check cupy --json {{folder}}/kit.json",
    **{
        tool: f"compute-sanitizer --tool {tool} --error-exitcode 9 {PYTEST} {SANITIZED}"
        for tool in ("memcheck", "racecheck")
    },
    "bench": f"{LSM} bench --set gpu --json {{folder}}/bench.json --markdown {{folder}}/bench.md",
}


def why_no_gpu() -> str:
    """The reason why the backend cannot be used here; empty if it can."""
    info = next(info for info in lsm.list_backends() if info.name == "cupy" and info.is_built_in)
    return "" if info.state == "loaded" else info.reason


def has_passed(step: str, folder: Path) -> bool:
    """Run a step in the checkout, unless it has passed before; its output goes to a file."""
    mark = folder / f"{step}.passed"
    if not mark.exists():
        command = shlex.split(STEPS[step].format(folder=shlex.quote(str(folder.resolve()))))
        with (folder / f"{step}.txt").open("w") as file:
            try:
                done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
            except FileNotFoundError as error:
                print(f"{error.filename} is not installed", file=file)
            else:
                if done.returncode == 0:
                    mark.touch()
    print(f"{step}: {'passed' if mark.exists() else f'failed, see {folder / step}.txt'}", flush=True)
    return mark.exists()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("gpu-results"), help="folder for the output")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="these steps")
    parser.add_argument("--list", action="store_true", help="print the commands")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(f"{step}: {STEPS[step]}" for step in args.only))
        return 0
    if reason := why_no_gpu():
        print(f"There is no GPU here that lsm can use, so nothing was measured: {reason}", file=sys.stderr)
        return 2
    args.folder.mkdir(parents=True, exist_ok=True)
    passed = [has_passed(step, args.folder) for step in args.only]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
