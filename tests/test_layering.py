"""Imports go downward only, and importing lsm is light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy

import lsm

PACKAGE = Path(lsm.__file__).parent

# From the bottom up: a module imports from the lines above its own, and from no other.
FLOORS = [
    "lsm._errors lsm._frames lsm._held lsm._identity lsm._operations lsm._signals lsm._stopping",
    "lsm._cgroup lsm._stdout lsm._texts lsm._untraced lsm.engines",
    "lsm._block lsm._fastpath lsm._files lsm._pyinstaller lsm._pyinstaller.hook-lsm lsm._version",
    "lsm.backends lsm.backends._cuda lsm.backends._kernels",
    "lsm._arithmetic lsm._config lsm.backends.info",
    "lsm._threads lsm.backends._cuda.arrays lsm.backends._cuda.plan lsm.backends._axes lsm.backends.base"
    " lsm.backends._blocks",
    "lsm.backends._cuda.layout lsm.backends._slices",
    "lsm.backends._levels lsm.backends._slices_backward",
    "lsm.backends.contract lsm.backends.cupy_ lsm.backends.cython_ lsm.backends.discovery lsm.backends.numpy_",
    "lsm.backends.candidate",
    "lsm.backends.registry",
    "lsm._foreign",
    "lsm._check lsm._sequences",
    "lsm._storage.base",
    "lsm._storage.raw lsm._storage.zarr_",
    "lsm._storage.hdf5 lsm._storage.npy lsm._storage.safetensors lsm._storage.zarr_results",
    "lsm._storage",
    "lsm._interop_base",
    "lsm._interop_cupy lsm._interop_jax lsm._interop_torch",
    "lsm._interop",
    "lsm._decide lsm._guard lsm._keywords",
    "lsm._dispatch lsm._execute lsm._twofold",
    "lsm._explain lsm._reduce lsm._signed_sum lsm._temperature",
    "lsm._derived lsm._derived_loss",
    "lsm._call",
    "lsm._logits",
    "lsm._losses lsm._select lsm._targets",
    "lsm._derived_calls lsm._parts",
    "lsm._part_gradient",
    "lsm._part_calls",
    "lsm._api",
    "lsm._api_entropy lsm._api_gradient lsm._api_loss lsm._api_partials lsm._api_reduce lsm._api_select",
    "lsm lsm._conformance lsm.bench",
    "lsm.engines._dask_arrays lsm.engines._dask_tasks lsm.engines.xarray_",
    "lsm.engines._dask_classes",
    "lsm.engines.dask_",
    "lsm._conformance.arrays lsm._conformance.expected lsm._conformance.oracle lsm.bench.options",
    "lsm._conformance.losses lsm._conformance.samples lsm.bench.machine lsm.bench.workloads",
    "lsm._conformance.subject",
    "lsm._conformance.accuracy lsm.bench.data lsm.bench.result",
    "lsm._conformance.api lsm._conformance.behaviour lsm._conformance.memory lsm._conformance.parts"
    " lsm._conformance.sizes lsm._conformance.special",
    "lsm._conformance.derived",
    "lsm._conformance.run lsm.bench.implementation",
    "lsm._conformance.table lsm.testing lsm.bench.peers lsm.bench.report",
    "lsm._apply_parts lsm._apply_record",
    "lsm._apply",
    "lsm._apply_cluster lsm._apply_files",
    "lsm._listing lsm.bench.chart lsm.bench.errors",
    "lsm._apply_command lsm.bench.run",
    "lsm.bench.command",
    "lsm.cli",
    "lsm.__main__",
]
FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names.split()}


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ("lsm", *file.relative_to(PACKAGE).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(file):
    """Every module of lsm that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.split(".")[0] == "lsm")
            # The compiled modules count as their folder.
            yield from (name.rpartition(".")[0] if "._kernels." in name else name for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "lsm"):
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in FLOOR_OF else node.module


def test_every_module_has_its_floor():
    assert {name for name, _ in modules()} == set(FLOOR_OF)


def test_imports_go_downward():
    for name, file in modules():
        for imported in imports(file):
            assert FLOOR_OF[imported] < FLOOR_OF[name], f"{name} imports {imported}"


def test_backends_import_the_contract_and_not_each_other():
    allowed = {
        "lsm.backends.base",
        "lsm.backends._axes",
        "lsm.backends._blocks",
        "lsm.backends._slices",
        "lsm.backends._slices_backward",
        "lsm.backends._kernels",
        "lsm.backends._levels",
        "lsm._arithmetic",
        "lsm._errors",
        "lsm._fastpath",
        "lsm._held",
        "lsm._config",
        "lsm._signals",
        "lsm._threads",
        "lsm._version",
    }
    of_cupy = {name for name in FLOOR_OF if name.startswith("lsm.backends._cuda")}
    for name, file in modules():
        if name.startswith("lsm.backends.") and name.endswith("_"):
            assert set(imports(file)) <= allowed | (of_cupy if name == "lsm.backends.cupy_" else set()), name


def test_first_lines_say_what_a_file_is_for():
    for name, file in modules():
        assert ast.get_docstring(ast.parse(file.read_text())), name
    for file in PACKAGE.rglob("*.p[yx][xi]"):
        assert file.read_text().startswith("# "), file


# What `import lsm` must leave for later: each takes milliseconds, or only a search or a command needs it. NumPy may
# have loaded some of them.
NOT_AT_IMPORT = {
    "argparse",
    "asyncio",
    "concurrent",
    "configparser",
    "ctypes",
    "email",
    "entrypoints",
    "importlib.metadata",
    "importlib.resources",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "pathlib",
    "shutil",
    "subprocess",
    "tempfile",
    "typing_extensions",
    "urllib",
    "zipfile",
}


def fresh(code, **env):
    """What a Python prints that has imported nothing: without `site`, whose .pth files import what they like."""
    path = [str(PACKAGE.parent), str(Path(numpy.__file__).parents[1])]
    command = [sys.executable, "-S", "-c", f"import sys\nsys.path[:0] = {path}\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_scans_nothing():
    out = fresh("import numpy\nbefore = set(sys.modules)\nimport lsm\nprint(*sorted(set(sys.modules) - before))")
    new = set(out.split())
    assert not {name for name in new if name.startswith(("lsm.bench", "lsm.testing", "lsm._conformance", "lsm.cli"))}
    # What Cython's modules share is empty, and named after its version.
    others = {name.partition(".")[0] for name in new} - {"lsm", "cython_runtime"}
    assert {name for name in others if not name.startswith("_cython_")} <= sys.stdlib_module_names
    assert not {name for name in new if any(f"{name}.".startswith(f"{heavy}.") for heavy in NOT_AT_IMPORT)}


def test_importing_lsm_takes_at_most_a_tenth_of_importing_numpy(tmp_path):
    """Both in one process, turn by turn; the least of several turns each, since other programs only add to it."""
    code = """
from time import perf_counter
start = perf_counter()
import numpy
between = perf_counter()
import lsm
print(between - start, perf_counter() - between)
"""
    compiled = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    fresh(code, **compiled)
    turns = []
    while len(turns) < 40:
        turns.append(tuple(map(float, fresh(code, **compiled).split())))
        of_numpy, of_lsm = map(min, zip(*turns, strict=True))
        if len(turns) >= 5 and of_lsm <= of_numpy / 10:
            return
    raise AssertionError(f"import numpy takes {of_numpy:.4f} s, import lsm {of_lsm:.4f} s after it")


def test_a_call_that_the_default_serves_scans_nothing():
    code = """
import sys, numpy as np
import lsm
x = np.zeros((2, 3), "f4")
lsm.log_softmax(x), lsm.log_softmax_backward(x, x), lsm.log_softmax(x, (0, 1)), lsm.log_softmax([1.0])
with lsm.use_backend("cython"):
    lsm.log_softmax(x, dtype="float64")
print([m for m in sys.modules if m in ("entrypoints", "importlib.metadata")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_public_names_have_docstrings_and_are_all_there():
    for name in lsm.__all__:
        assert getattr(lsm, name) is not None
        assert name == "__version__" or getattr(lsm, name).__doc__
