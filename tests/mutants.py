"""Plant faults one at a time in a copy of the checkout, run tests, and print the test files that find each fault.

    python tests/mutants.py                                  every fault, the tests of TESTS
    python tests/mutants.py --faults axes,out --tests tests/test_semantics.py tests/test_kit.py
    python tests/mutants.py --list

A file stops at its first failure, or after --seconds. For a fault in Cython, the kernels are built for one level. The
last line has the cheapest files that together find all faults found by any.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LEVEL = "v3"  # of the kernels built for a fault in them
TESTS = ("accuracy", "semantics", "same_bits", "numerics", "fastpath", "kit", "operations", "dispatch", "registry")
TESTS += ("discovery", "foreign", "dlpack", "threads", "isolation", "without_kernels", "memory", "float_env")
TESTS += ("entropy_kl", "top_k", "cross_entropy", "partials")


class Fault(NamedTuple):
    """A text that occurs once in a file, and its replacement."""

    name: str
    file: str
    text: str
    instead: str


SLICES = "lsm/backends/_slices.py"
GRADIENTS = "lsm/backends/_slices_backward.py"
BLOCKS = "lsm/backends/_blocks.py"
KERNELS = "lsm/backends/_kernels"  # a folder: one of its files has the text
FAULTS = (
    Fault(
        "kernel: a cache line that two rows share begins with the second",
        KERNELS,
        "put_lanes(&v[CHUNK - head], first, False)",
        "put_lanes(v, first, False)",
    ),
    Fault("kernel: a gradient beside others is not NaN", KERNELS, "        if is_nan[j]:\n", "        if False:\n"),
    Fault("kernel: a huge gradient is taken for NaN", KERNELS, "        if not is_nan[j]:\n", "        if False:\n"),
    Fault("kernel: one logsumexp near 0 for several", KERNELS, "place[n_found] = j", "place[n_found] = 0"),
    Fault("kernel: masked and NaN", KERNELS, "== SOFTMAX_BACKWARD or some_frame_is_nan(y, f)", "== SOFTMAX_BACKWARD"),
    Fault("kernel: masked and -0.0", KERNELS, "op == SOFTMAX_BACKWARD or some_frame_is_nan", "some_frame_is_nan"),
    Fault(
        "kernel: of equal p the last is first",
        KERNELS,
        "i - 64 + __builtin_ctzll(bits)",
        "i - 1 - __builtin_clzll(bits)",
    ),
    Fault(
        "kernel: a temperature that is ignored",
        KERNELS,
        "if temperature != 1:  # of the only",
        "if False:  # of the only",
    ),
    Fault("kernel: the first block, altered, for all", KERNELS, "x.at += BLOCK_CLASSES * x.step", "x.at += 0"),
    Fault(
        "kernel: short rows, the last chunk left out of the maximum",
        KERNELS,
        "high[k] = last[k]",
        "high[k] = -INFINITY",
    ),
    Fault("kernel: short rows, the third row added first", KERNELS, "second[k] += third[k]", "first[k] += third[k]"),
    Fault(
        "kernel: short rows, sums of a block continue in the next",
        KERNELS,
        "if i % BLOCK_ROWS == BLOCK_ROWS - 1:",
        "if False:",
    ),
    Fault("kernel: short rows, no y is large", KERNELS, "elif limits_range(op) and is_large(highest):", "elif False:"),
    Fault(
        "kernel: short rows, streamed with the rows of the last group",
        KERNELS,
        "write_long(frame_at(y, 0, 0), n_frames * n,",
        "write_long(frame_at(y, 0, 0), n_frames * n - 1,",
    ),
    Fault("kernel: one class too many in the sum", KERNELS, "(frame.n_largest - 1)", "(frame.n_largest - 0)"),
    Fault("kernel: a wrong digit in float32's exp", KERNELS, "0.1666651964187622", "0.1666551964187622"),
    Fault("kernel: exp(y) may overflow in float64", KERNELS, "not (y < 709)", "not (y < 1e9)"),
    Fault("kernel: of equal classes, the last comes first", KERNELS, "and place < other)", "and place > other)"),
    Fault("kernel: logits far apart lose their differences", KERNELS, "low = low if fabs", "low = 0 * low if fabs"),
    Fault("kernel: a float32 loss overflows", KERNELS, "if loss < FLT_MAX or f.kind == DOUBLE else None", ""),
    Fault(
        "kernel: the labels are not copied", KERNELS, "PyArray_NewCopy(<PyArrayObject*> labels, NPY_CORDER)", "labels"
    ),
    Fault(
        "kernel: the wrong part of S is scaled", KERNELS, "total[0] * 2.0**-40 + error", "error[0] * 2.0**-40 + error"
    ),
    Fault("kernel: a y out of range spoils its slice only", KERNELS, "frame.n_bad += part.n_bad", "frame.n_bad += 0"),
    Fault("kernel: frames left out have a gradient", KERNELS, "if not has_label(of, number):", "if False:"),
    Fault("kernel: one part of wide images", KERNELS, "tile.first = t % n_splits * largest.width", "tile.first = 0"),
    Fault(
        "kernel: a change of default is ignored",
        KERNELS,
        " _fastpath.default, _",
        " default_policy or _fastpath.default, _",
    ),
    # The NumPy backend
    Fault(
        "numpy: log(sum) instead of log1p",
        SLICES,
        "d -= np.log1p(sums.s + (sums.k - 1))",
        "d -= np.log(sums.s + sums.k)",
    ),
    Fault("numpy: +inf is kept", SLICES, "shift = m + m * 0", "shift = np.where(m == np.inf, 0, m)"),
    Fault("numpy: S is not scaled and overflows", GRADIENTS, "twofold_sum(dy * dy", "twofold_sum(dy / dy"),
    Fault("numpy: plain sum", BLOCKS, ", plain_sum(terms - high, at))", ", 0 * high[:1, :1])"),
    Fault("numpy: exp(y) once, for deep classes", GRADIENTS, "is_low = y < -600", "is_low = y < -1e9"),
    Fault("numpy: longdouble in float64", BLOCKS, "np.longdouble if is_long else", "np.float64 if is_long else"),
    # Frames and axes
    Fault("axes: two frames are left out", "lsm/backends/_axes.py", "i != axis and n > 1]", "i != axis and n > 2]"),
    Fault(
        "axes: ordered by the input",
        "lsm/backends/_axes.py",
        "for of_array in reversed(strides)",
        "for of_array in strides",
    ),
    Fault(
        "axes: several are merged in the order given",
        "lsm/_check.py",
        "return tuple(sorted(normalised)) if",
        "return tuple(normalised) if",
    ),
    Fault("axes: a repeated one passes", "lsm/_check.py", "if len(set(normalised)) != len(normalised)", "if False"),
    Fault("axes: merged though they cannot be", "lsm/_check.py", "outer == inner * n for", "outer >= inner * n for"),
    # out and overlap
    Fault(
        "out: overlapping input is not copied",
        "lsm/_execute.py",
        "tuple([x if library.same_or_disjoint(x, target) else library.copy(x) for x in inputs])",
        "inputs",
    ),
    Fault(
        "out: copied into a result that another input shares",
        "lsm/_execute.py",
        "and not (is_direct and len(self.inputs) > 1)",
        "",
    ),
    Fault("out: may overlap itself", "lsm/_check.py", "            return 0 not in shape", "            return False"),
    Fault("out: another dtype is accepted", "lsm/_check.py", "    if found_dtype != dtype:", "    if False:"),
    Fault(
        "out: byte-swapped input is not converted",
        "lsm/_check.py",
        "if not (dtype.isnative and x.flags.aligned)",
        "if not x.flags.aligned",
    ),
    # dtypes
    Fault("dtype: promoted to the narrower", "lsm/_check.py", "return max(a, b, key", "return min(a, b, key"),
    Fault(
        "dtype: float16 and bfloat16 are promoted to one of them",
        "lsm/_check.py",
        "if a != b and _WIDTHS[a]",
        "if False and _WIDTHS[a]",
    ),
    # Rejected arguments
    Fault(
        "rejected: a mask is missed",
        "lsm/_foreign.py",
        'return mask is True or hasattr(mask, "dtype")',
        "return mask is True",
    ),
    Fault(
        "rejected: lists are not searched",
        "lsm/_sequences.py",
        "            if any(_is_foreign(kind) for kind in",
        "            if False and any(_is_foreign(kind) for kind in",
    ),
    # Selection of a backend
    Fault(
        "dispatch: the last plugin wins",
        "lsm/_decide.py",
        "    usable.sort(key=_rank)",
        "    usable.sort(key=_rank, reverse=True)",
    ),
    Fault(
        "dispatch: use_backend loses to the default",
        "lsm/_dispatch.py",
        "_fastpath.in_context.get() or _fastpath.default or",
        "_fastpath.default or _fastpath.in_context.get() or",
    ),
    Fault(
        "dispatch: cached entries outlive refresh",
        "lsm/_dispatch.py",
        "                policy.clear()",
        "                pass",
    ),
    Fault(
        "discovery: a hidden distribution counts",
        "lsm/backends/discovery.py",
        "            if name not in hidden:",
        "            if True:",
    ),
    Fault(
        "discovery: the current directory is searched",
        "lsm/backends/discovery.py",
        "(path is None and _is_current(entry))",
        "False",
    ),
    Fault(
        "registry: a plugin may take the name numpy",
        "lsm/backends/candidate.py",
        "elif self.name in BUILT_IN:",
        "elif False:",
    ),
    Fault(
        "guard: a change of out by a plugin is missed",
        "lsm/_guard.py",
        "        if after != before:",
        "        if False:",
    ),
    # Threads
    Fault("threads: beyond the quota", "lsm/_threads.py", "min(n, self.quota or n)", "n"),
    Fault(
        "threads: OpenMP in a forked child",
        "lsm/_threads.py",
        "    _is_forked_child = True",
        "    _is_forked_child = False",
    ),
    Fault(
        "threads: the block loses to the process", "lsm/_threads.py", "    if n is not None:\n        return n\n", ""
    ),
)


class OneFailure:
    """A pytest plugin that stops a file's tests at the first failure or after `limit_s` seconds, and writes a report.

    Each line has a test file, the seconds of its tests, and whether one of them failed.
    """

    def __init__(self, report, limit_s):
        self.report, self.limit_s = Path(report), limit_s
        self.seconds, self.failed = {}, set()

    def pytest_runtest_setup(self, item):
        file = item.location[0]
        if file in self.failed or self.seconds.get(file, 0) > self.limit_s:
            pytest.skip("decided")

    def pytest_runtest_logreport(self, report):
        file = report.location[0]
        self.seconds[file] = self.seconds.get(file, 0) + report.duration
        if report.failed:
            self.failed.add(file)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)
            self.seconds[report.nodeid] = 0

    def pytest_sessionfinish(self):
        lines = [f"{file} {s:.1f} {int(file in self.failed)}" for file, s in self.seconds.items()]
        self.report.write_text("\n".join(lines))


def pytest_configure(config):
    if "LSM_MUTANT_REPORT" in os.environ:  # `-p mutants`: in a run of `tried`
        report, limit_s = os.environ["LSM_MUTANT_REPORT"].rsplit(",", 1)
        config.pluginmanager.register(OneFailure(report, float(limit_s)))


def place_of(fault, root):
    """The file that has the fault's text once; raises SystemExit unless there is exactly one."""
    path = root / fault.file
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".pxi", ".pyx", ".h"))
    found = [file for file in files if file.read_text().count(fault.text) == 1]
    if len(found) != 1:
        raise SystemExit(f"{fault.name}: {fault.text!r} must occur once in {fault.file}; update FAULTS")
    return found[0]


@contextlib.contextmanager
def planted(fault, root):
    """Plant the fault in the copy, and build the kernels if it is in them; removes it at the end."""
    if fault is None:
        yield
        return
    file = place_of(fault, root)
    before = file.read_text()
    file.write_text(before.replace(fault.text, fault.instead))
    try:
        if fault.file == KERNELS:
            build(root)
        yield
    finally:
        file.write_text(before)


BUILD = """
import sys
from setuptools import Distribution
import setup
command = setup.BuildKernels(Distribution({"ext_modules": setup.extensions([sys.argv[1]])}))
command.inplace = command.force = True
command.ensure_finalized()
command.run()
"""


def build(root):
    done = subprocess.run([sys.executable, "-c", BUILD, LEVEL], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def copied(root):
    """A copy of the working tree, with the kernels that were built in it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.split("\0") if name] + list(ROOT.glob("lsm/**/*.so"))
    for file in filter(Path.is_file, files):
        target = root / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    return root


def tried(root, tests, words, limit_s, level):
    """By test file: seconds, and whether it failed."""
    report = root / "mutants.txt"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mutants", "-p", "no:cacheprovider", "-k", words, *tests]
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"LSM_MUTANT_REPORT": f"{report},{limit_s}"} | ({"LSM_FORCE_ISA": level} if level else {})
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    if not report.exists():  # a crash, or a fault that breaks conftest.py: every file finds it
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        return dict.fromkeys(tests, (0.0, True))
    lines = [line.rsplit(" ", 2) for line in report.read_text().splitlines()]
    return {file: (float(s), failed == "1") for file, s, failed in lines}


def cheapest(found, seconds):
    """Files that find every fault, chosen greedily by the number of new faults per second."""
    left, chosen = {name for name, files in found.items() if files}, []
    while left:
        gain = {file: sum(file in found[name] for name in left) / (seconds[file] + 0.1) for file in seconds}
        chosen.append(max(gain, key=gain.get))
        left = {name for name in left if chosen[-1] not in found[name]}
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the faults")
    parser.add_argument("--faults", default="", metavar="WORD,...", help="only faults with one of these in the name")
    parser.add_argument("--tests", nargs="+", default=[f"tests/test_{name}.py" for name in TESTS], metavar="FILE")
    parser.add_argument("-k", default="not cuda", metavar="WORDS", help="as for pytest (default: 'not cuda')")
    parser.add_argument("--seconds", type=float, default=30, help="time limit of each file (default: 30)")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if any(word in fault.name for word in args.faults.split(","))]
    for fault in faults:
        place = place_of(fault, ROOT)
        if args.list:
            print(f"{fault.name}: {place.relative_to(ROOT)}: {fault.text} -> {fault.instead}")
    if args.list:
        return
    with tempfile.TemporaryDirectory(prefix="lsm-mutants-") as folder:
        root = copied(Path(folder))
        clean = tried(root, args.tests, args.k, args.seconds, "")
        if failed := [file for file, (_, has_failed) in clean.items() if has_failed]:
            raise SystemExit(f"without a fault, these fail: {', '.join(failed)}")
        seconds = {file: s for file, (s, _) in clean.items()}
        print("\n".join(f"{s:7.1f} s  {file}" for file, s in sorted(seconds.items(), key=lambda item: item[1])))
        found = {}
        for fault in sorted(faults, key=lambda fault: fault.file == KERNELS):  # last, since they leave changed kernels
            start = time.monotonic()
            with planted(fault, root):
                results = tried(root, args.tests, args.k, args.seconds, LEVEL if fault.file == KERNELS else "")
            found[fault.name] = {file: s for file, (s, has_failed) in results.items() if has_failed}
            by = [f"{Path(file).stem.removeprefix('test_')} {s:.1f}" for file, s in found[fault.name].items()]
            print(f"{fault.name} ({time.monotonic() - start:.0f} s): {', '.join(by) or 'NOT FOUND'}", flush=True)
    print("cheapest files that find all of these:", ", ".join(cheapest(found, seconds)))


if __name__ == "__main__":
    main()
