"""Imports go downward only, and importing lsm is light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy

import lsm

PACKAGE = Path(lsm.__file__).parent

# Each module may import from those below it: the number is its floor.
FLOORS = {
    "lsm.__main__": 9,
    "lsm.cli": 8,
    "lsm._apply": 7.5,
    "lsm._listing": 7.5,
    "lsm._identity": 0,
    "lsm.bench.command": 7.95,
    "lsm.bench.chart": 7.9,
    "lsm.bench.compare": 7.9,
    "lsm.bench.contents": 7.9,
    "lsm.bench.run": 7.9,
    "lsm.bench.overall": 7.85,
    "lsm.bench.progress": 7.85,
    "lsm.bench.files": 7.8,
    "lsm.bench.markdown": 7.8,
    "lsm.bench.page": 7.8,
    "lsm.bench.tables": 7.8,
    "lsm.bench.row": 7.8,
    "lsm.bench.memory": 7.7,
    "lsm.bench.threads": 7.6,
    "lsm.bench.contestants": 7.5,
    "lsm.bench.of_cupy": 7.4,
    "lsm.bench.of_jax": 7.4,
    "lsm.bench.of_lsm": 7.4,
    "lsm.bench.of_numpy": 7.4,
    "lsm.bench.of_onnxruntime": 7.4,
    "lsm.bench.of_torch": 7.4,
    "lsm.bench.limits": 7.4,
    "lsm.bench.timing": 7.4,
    "lsm.bench.contestant": 7.35,
    "lsm.bench.errors": 7.35,
    "lsm.bench.data": 7.3,
    "lsm.bench.wording": 7.2,
    "lsm.bench.workloads": 7.2,
    "lsm.bench.arguments": 7.1,
    "lsm.bench.layout": 7.1,
    "lsm.bench.machine": 7.1,
    "lsm.bench.options": 7.05,
    "lsm.bench.result": 7.1,
    "lsm.bench": 7,
    "lsm.testing": 7.4,
    "lsm._conformance.table": 7.4,
    "lsm._conformance.run": 7.35,
    "lsm._conformance.expected": 7.1,
    "lsm._conformance.api": 7.3,
    "lsm._conformance.behaviour": 7.3,
    "lsm._conformance.memory": 7.3,
    "lsm._conformance.sizes": 7.3,
    "lsm._conformance.special": 7.3,
    "lsm._conformance.accuracy": 7.25,
    "lsm._conformance.subject": 7.2,
    "lsm._conformance.samples": 7.15,
    "lsm._conformance.arrays": 7.1,
    "lsm._conformance.oracle": 7.1,
    "lsm._conformance": 7,
    "lsm": 7,
    "lsm._api": 6,
    "lsm._call": 5.5,
    "lsm._execute": 5,
    "lsm._dispatch": 5,
    "lsm._decide": 4.5,
    "lsm._guard": 4.5,
    "lsm._interop": 4.4,
    "lsm._interop_cupy": 4.3,
    "lsm._interop_torch": 4.3,
    "lsm._interop_jax": 4.3,
    "lsm._interop_base": 4.2,
    "lsm._check": 4,
    "lsm._foreign": 3.5,
    "lsm.backends.registry": 3,
    "lsm.backends.candidate": 2.5,
    "lsm.backends.contract": 2,
    "lsm.backends.discovery": 2,
    "lsm.backends.cupy_": 2,
    "lsm.backends.cython_": 2,
    "lsm.backends.numpy_": 2,
    "lsm.backends._cuda.layout": 1.5,
    "lsm.backends._cuda.arrays": 1,
    "lsm.backends._cuda.plan": 1,
    "lsm.backends._frames": 1,
    "lsm.backends.base": 1,
    "lsm.backends.info": 1,
    "lsm._threads": 1,
    "lsm._config": 0.5,
    "lsm._pyinstaller": 0,
    "lsm._pyinstaller.hook-lsm": 0,
    "lsm._block": 0.1,
    "lsm._held": 0,
    "lsm._fastpath": 0.1,
    "lsm._operations": 0,
    "lsm._cgroup": 0,
    "lsm._errors": 0,
    "lsm._stdout": 0,
    "lsm._stopping": 0,
    "lsm._texts": 0,
    "lsm._untraced": 0,
    "lsm._version": 0,
    "lsm.backends": 0,
    "lsm.backends._cuda": 0,
    "lsm.backends._kernels": 0,
}


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
                yield name if name in FLOORS else node.module


def test_every_module_has_its_floor():
    assert {name for name, _ in modules()} == set(FLOORS)


def test_imports_go_downward():
    for name, file in modules():
        for imported in imports(file):
            assert FLOORS[imported] < FLOORS[name], f"{name} imports {imported}"


def test_backends_import_the_contract_and_not_each_other():
    allowed = {
        "lsm.backends.base",
        "lsm.backends._frames",
        "lsm.backends._kernels",
        "lsm._errors",
        "lsm._config",
        "lsm._threads",
        "lsm._version",
    }
    of_cupy = {name for name in FLOORS if name.startswith("lsm.backends._cuda")}
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
