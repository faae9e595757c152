"""Broken plugins, each a wheel that pip installs: lsm goes on, says once what is wrong, and whose fault it is."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

GOOD = """
class Mine:
    name, api_version, priority = {name!r}, 1, 0
    devices, dtypes, array_types = ("cpu",), ("float32", "longdouble"), ("numpy.ndarray",)
    def available(self):
        return None
    def log_softmax(self, x, axis, out):
        out[...] = 42
    def log_softmax_backward(self, grad_output, output, axis, out):
        out[...] = 43
backend = Mine()
"""


def good(name, method="pass", more=""):
    """A plugin; `method` replaces the body of its log_softmax."""
    body = f"def log_softmax(self, x, axis, out):\n    {method}\nMine.log_softmax = log_softmax\n"
    return GOOD.format(name=name) + body + more


# name: (distribution, code, state, error, what the reason says)
CANNOT_BE_LOADED = {
    "nomodule": ("acme-nomodule", "import no_such_module_at_all", "failed", "BackendLoadError", "No module named"),
    "nolibrary": (
        "acme-nolibrary",
        "import ctypes; ctypes.CDLL('libacme-of-another-machine.so.9')",
        "failed",
        "BackendLoadError",
        "OSError: libacme-of-another-machine.so.9: cannot open shared object file",
    ),
    "nosyntax": ("acme-nosyntax", "def (", "failed", "BackendLoadError", "SyntaxError: invalid syntax"),
    "nobackend": ("acme-nobackend", "backend = 3", "incompatible", "BackendIncompatibleError", "api_version is None"),
    "otherapi": (
        "acme-otherapi",
        good("otherapi", more="Mine.api_version = 7"),
        "incompatible",
        "BackendIncompatibleError",
        "its api_version is 7; this version of lsm supports 1",
    ),
    "othersignature": (
        "acme-othersignature",
        good("othersignature", more="Mine.log_softmax = lambda self, x, out: None"),
        "incompatible",
        "BackendIncompatibleError",
        "its method log_softmax does not take 3 arguments",
    ),
    "raising": (
        "acme-raising",
        good("raising", more="def no(self): raise RuntimeError('the licence has expired')\nMine.available = no"),
        "failed",
        "BackendLoadError",
        "RuntimeError: the licence has expired",
    ),
    # As pyo3 has it for an extension in Rust: its panics are no Exception.
    "panics": (
        "acme-panics",
        "class PanicException(BaseException): pass\nraise PanicException('index out of bounds')",
        "failed",
        "BackendLoadError",
        "PanicException: index out of bounds",
    ),
    "panicslater": (
        "acme-panicslater",
        good("panicslater", more="def no(self): raise GeneratorExit('closed')\nMine.available = no"),
        "failed",
        "BackendLoadError",
        "GeneratorExit: closed",
    ),
    "untold": (
        "acme-untold",
        "class E(BaseException):\n    def __str__(self): raise GeneratorExit\nraise E",
        "failed",
        "BackendLoadError",
        "E (its __str__ raises GeneratorExit)",
    ),
}
SETS_STATE = "out.__setstate__((1, {}, False, out.tobytes()))"
# name: (body of log_softmax, what the error says)
FAIL_IN_A_CALL = {
    "overclaims": ("raise NotImplementedError('no kernel for float32')", "log_softmax raised NotImplementedError: no"),
    "returns": ("return x - x.max()", "log_softmax returned a ndarray; it must write the result to `out`"),
    # In place, as unpickling does it: NumPy no longer lets the attributes be set.
    "reshapes": (SETS_STATE.format("(*out.shape, 1), out.dtype"), "log_softmax changed `out` from ((2, 3)"),
    "retypes": (SETS_STATE.format("out.shape, __import__('numpy').dtype('i4')"), "dtype('int32')"),
    "raises": ("raise OSError('the device has gone')", "log_softmax raised OSError: the device has gone"),
    "panicsincalls": ("raise BaseException('index out of bounds')", "log_softmax raised BaseException: index out"),
    "misuses": ("import lsm; lsm.log_softmax(x, axis, backend='nope')", "log_softmax raised UnknownBackendError"),
}


def wheel(folder, distribution, name, code, entry_points=None):
    """Write a wheel of one module that names one backend."""
    stem = distribution.replace("-", "_")
    files = {
        f"plugin_{stem}.py": code,
        f"{stem}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n",
        f"{stem}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}-1.0.dist-info/entry_points.txt": f"[lsm.backends]\n{name} = plugin_{stem}:backend\n",
    }
    digests = {file: hashlib.sha256(text.encode()).digest() for file, text in files.items()}
    record = [f"{file},sha256={base64.urlsafe_b64encode(d).decode().rstrip('=')}," for file, d in digests.items()]
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{stem}-1.0.dist-info/RECORD", "\n".join([*record, f"{stem}-1.0.dist-info/RECORD,,", ""]))
    return path


def install(site, wheels):
    """Install wheels with pip, as a user would."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    done = subprocess.run([*command, "--target", str(site), *map(str, wheels)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Site:
    """What pip installed, and a Python that has it on its path."""

    def __init__(self, folder):
        self.folder = folder

    def file(self, distribution):
        return str(self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info" / "entry_points.txt")

    def run(self, code, **env):
        """What a fresh Python prints, and its standard error."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LSM_")}
        prelude = (
            "import json, numpy as np, lsm\nx = np.zeros((2, 3), 'f4'); f2, long = x.astype('f2'), x.astype('g')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", prelude + code],
            env=clean | {"PYTHONPATH": str(self.folder)} | env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr


@pytest.fixture(scope="session")
def broken(tmp_path_factory):
    """One environment with all of them, and a good one among them."""
    folder = tmp_path_factory.mktemp("wheels")
    wheels = [wheel(folder, dist, name, code) for name, (dist, code, *_) in CANNOT_BE_LOADED.items()]
    wheels += [wheel(folder, f"acme-{name}", name, good(name, body)) for name, (body, _) in FAIL_IN_A_CALL.items()]
    wheels.append(wheel(folder, "acme-interrupts", "interrupts", good("interrupts", "raise KeyboardInterrupt")))
    wheels.append(wheel(folder, "acme-exits", "exits", good("exits", "raise SystemExit(3)")))  # as on SIGTERM
    wheels.append(wheel(folder, "acme-exhausts", "exhausts", good("exhausts", "raise MemoryError('too large')")))
    wheels.append(wheel(folder, "acme-impostor", "numpy", "raise SystemExit('it ran')"))
    wheels += [wheel(folder, f"acme-{which}", "twin", good("twin", f"out[...] = {i}")) for i, which in enumerate("ab")]
    wheels.append(wheel(folder, "zeta-good", "good", GOOD.format(name="good")))
    for how in ("malformed", "latin", "twice"):
        wheels.append(wheel(folder, f"acme-{how}", how, good(how)))
    site = tmp_path_factory.mktemp("site")
    install(site, wheels)
    damaged = {  # pip would not install these, but a disk or another installer can leave them
        "malformed": b"malformed = plugin_acme_malformed:backend\n[lsm.backends]\n",
        "latin": b"[lsm.backends]\nlatin = plugin_acme_latin:backend ; caf\xe9\n",
        "twice": b"[lsm.backends]\ntwice = plugin_acme_twice:backend\ntwice = plugin_acme_twice:other\n",
    }
    for name, text in damaged.items():
        Path(Site(site).file(f"acme-{name}")).write_bytes(text)
    return Site(site)


def test_calls_that_need_none_of_them_hear_nothing(broken):
    out, err = broken.run("""
for a in (x, f2, x.astype("f8"), [1, 2]):
    y = lsm.log_softmax(a)
    print(lsm.log_softmax_backward(y, y).dtype)
""")
    assert out.split() == ["float32", "float16", "float64", "float64"] and not err


def test_each_is_listed_with_its_reason_and_said_once(broken):
    out, err = broken.run("""
rows = lsm.list_backends()
lsm.list_backends(), lsm.log_softmax(x, backend="good"), lsm.log_softmax(x)
print(json.dumps([row._asdict() for row in rows]))
""")
    rows = {row["distribution"]: row for row in json.loads(out) if row["distribution"] != "lsm-softmax"}
    assert len(rows) == len(CANNOT_BE_LOADED) + len(FAIL_IN_A_CALL) + 10
    warned = [line for line in err.splitlines() if "PluginWarning: lsm continues without it" in line]
    for distribution, _, state, _, reason in CANNOT_BE_LOADED.values():
        row = rows[distribution]
        assert row["state"] == state and reason in row["reason"]
        assert row["version"] == "1.0" and row["file"] == broken.file(distribution)
        (line,) = [line for line in warned if broken.file(distribution) in line]
        assert reason in line and distribution in line
    for distribution, what in (
        ("acme-malformed", "MissingSectionHeaderError"),
        ("acme-latin", "UnicodeDecodeError"),
        ("acme-twice", "DuplicateOptionError"),
    ):
        row = rows[distribution]
        assert row["state"] == "failed" and f"its metadata file cannot be read: {what}" in row["reason"]
        assert row["file"] == broken.file(distribution)
        assert len([line for line in warned if broken.file(distribution) in line]) == 1
    assert rows["acme-impostor"]["state"] == "blocked"
    assert rows["zeta-good"]["state"] == rows["acme-overclaims"]["state"] == "loaded"
    assert len(warned) == len(CANNOT_BE_LOADED) + 3


@pytest.mark.parametrize("name", list(CANNOT_BE_LOADED))
def test_requesting_it_gives_the_reason_and_the_remedy(broken, name):
    distribution, _, state, error, reason = CANNOT_BE_LOADED[name]
    out, err = broken.run(f"""
for ask in (lambda: lsm.log_softmax(x, backend={name!r}), lambda: lsm.set_default_backend({name!r}),
            lambda: lsm.use_backend({name!r}).__enter__()):
    try:
        ask()
    except lsm.{error} as error:
        assert isinstance(error, lsm.BackendUnavailableError)
        assert (error.__cause__ is not None) == ({state!r} == "failed")
        print(error)
print(lsm.explain(x, backend={name!r}).error)
lsm.log_softmax(x)
""")
    lines = out.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert f"backend {name!r} (from {distribution} 1.0, {broken.file(distribution)})" in line
        assert reason in line and f"{distribution}" in line.split(";")[-1]
    assert err.count("PluginWarning: ") == 1 + 3  # the metadata files that cannot be read are found on the way


@pytest.mark.parametrize("name", list(FAIL_IN_A_CALL))
def test_what_fails_in_a_call_is_the_backends_fault(broken, name):
    _, what = FAIL_IN_A_CALL[name]
    out, _ = broken.run(f"""
for call in (lambda: lsm.log_softmax(x, backend={name!r}), lambda: lsm.log_softmax(x, None, backend={name!r})):
    try:
        call()
    except lsm.BackendFailedError as error:
        assert (error.__cause__ is not None) == ("raised" in str(error))
        print(error)
print(lsm.log_softmax_backward(x, x, backend={name!r})[0, 0], lsm.log_softmax(x)[0, 0])
""")
    first, second, after = out.splitlines()
    assert what in first
    assert second.startswith(f"backend {name!r} (from acme-{name} 1.0, {broken.file(f'acme-{name}')}): log_softmax")
    assert after.split() == ["43.0", "-1.0986123"]  # nothing else was spoilt


def test_what_is_not_the_backends_fault_passes_through(broken):
    out, _ = broken.run("""
for name in ("interrupts", "exits", "exhausts"):
    try:
        lsm.log_softmax(x, backend=name)
    except BaseException as error:
        print(type(error).__name__)
""")
    assert out.split() == ["KeyboardInterrupt", "SystemExit", "MemoryError"]


def test_one_name_from_two_distributions_and_a_reserved_one(broken):
    out, _ = broken.run("""
for name in ("twin", "acme_impostor/numpy"):
    try:
        lsm.log_softmax(x, backend=name)
    except (lsm.AmbiguousBackendError, lsm.BackendBlockedError) as error:
        print(type(error).__name__, error)
print(lsm.log_softmax(x, backend="acme_a/twin")[0, 0], lsm.log_softmax(x, backend="acme-b/twin")[0, 0])
decision = lsm.explain(x, backend="acme_b/twin")
print(decision.distribution, decision.reasons["acme-a/twin"], decision.reasons["acme-impostor/numpy"])
print(lsm.log_softmax(x, backend="numpy")[0, 0])
""")
    lines = out.splitlines()
    assert lines[0].startswith("AmbiguousBackendError") and "use one of 'acme-a/twin', 'acme-b/twin'" in lines[0]
    assert lines[1].startswith("BackendBlockedError") and "the name 'numpy' is reserved" in lines[1]
    assert lines[2].split() == ["0.0", "1.0"]
    assert lines[3] == "acme-b not requested blocked: the name 'numpy' is reserved for lsm's own backend"
    assert lines[4].startswith("-1.09")


def test_a_request_in_the_environment_works_or_fails(broken):
    code = """
try:
    print(lsm.log_softmax(x)[0, 0])
except lsm.LsmError as error:
    print(type(error).__name__, error)
"""
    assert broken.run(code, LSM_BACKEND="good")[0].split() == ["42.0"]
    out, _ = broken.run(code, LSM_BACKEND="nomodule")
    assert out.startswith("BackendLoadError") and "(requested by LSM_BACKEND)" in out
    out, _ = broken.run(code, LSM_BACKEND="nope")
    assert out.startswith("UnknownBackendError") and "(requested by LSM_BACKEND)" in out
    out, _ = broken.run(code, LSM_BACKEND="good", LSM_PLUGINS_ALLOW="acme-a")
    assert out.startswith("BackendBlockedError") and "unset LSM_PLUGINS_ALLOW or add zeta-good to it" in out


def test_the_command_line_lists_them_all(broken):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LSM_")} | {"PYTHONPATH": str(broken.folder)}
    command = [sys.executable, "-m", "lsm", "backends"]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    for distribution, *_ in CANNOT_BE_LOADED.values():
        assert broken.file(distribution) in done.stdout


def test_a_plugin_that_hangs_is_not_waited_for_unless_it_is_needed(tmp_path):
    plugin = wheel(tmp_path, "acme-slow", "slow", "import time; time.sleep(5)\n" + GOOD.format(name="slow"))
    site = Site(tmp_path / "site")
    install(site.folder, [plugin])
    out, err = site.run("""
import time
start = time.perf_counter()
lsm.log_softmax(x), lsm.log_softmax(f2), lsm.log_softmax(long), lsm.explain(x), lsm.list_backends(load=False)
with lsm.use_backend("numpy"):
    lsm.log_softmax(x)
try:
    lsm.log_softmax(long, backend="cython")
except lsm.BackendUnsupportedError as error:
    assert "use backend='numpy'" in str(error)
without = time.perf_counter() - start
assert lsm.log_softmax(x, backend="slow")[0, 0] == 42
print(without, time.perf_counter() - start)
""")
    without, whole = map(float, out.split())
    assert whole - without > 4.5 > without and not err
