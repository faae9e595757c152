"""Compiled kernels that are not there or cannot be loaded: the call is served, and the user learns why it is slow."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

# Put before what is run: imports of some compiled modules fail as the dynamic linker or an incomplete build makes them.
PRELUDE = """
import json, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name.startswith("lsm.backends._kernels.") and name.rpartition(".")[2] in {modules!r}:
            if {text!r}:
                raise ImportError({text!r}, name=name, path="/site/lsm/kernel.so")
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder)
import numpy as np, lsm
f4, g = np.zeros(3, "f4"), np.zeros(3, "g")
"""
LEVELS = ("v4", "v3", "v2", "plain")
GLIBC = "libgomp.so.1: cannot open shared object file: No such file or directory"
# Messages of the dynamic linker, and the remedy.
CANNOT_LOAD = {
    "glibc": (GLIBC, "apt-get install libgomp1 (Debian, Ubuntu), dnf install libgomp (Fedora)"),
    "musl": (
        "Error loading shared library libgomp.so.1: No such file or directory (needed by /site/lsm/v3.so)",
        "apk add libgomp (Alpine)",
    ),
    "clang": (GLIBC.replace("libgomp.so.1", "libomp.so.5"), "apt-get install libomp5 (Debian, Ubuntu)"),
    "macos": (
        "dlopen(/site/lsm/plain.so, 0x0002): Library not loaded: /opt/homebrew/opt/libomp/lib/libomp.dylib\n"
        "  Referenced from: <1> /site/lsm/plain.so\n  Reason: tried: '/opt/homebrew/opt/libomp/lib/libomp.dylib' "
        "(no such file)",
        "brew install libomp (macOS)",
    ),
    "too-old": (
        "/lib/x86_64-linux-gnu/libm.so.6: version `GLIBC_2.29' not found (required by /site/lsm/v3.so)",
        "reinstall or rebuild lsm",
    ),
}


def run(code, *options, modules=LEVELS, text="", **env):
    """What a fresh Python prints, what it says on stderr, and its exit status."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LSM_")}
    done = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE.format(modules=modules, text=text) + code],
        env=clean | env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize("name", CANNOT_LOAD)
def test_what_cannot_be_loaded_is_said_and_what_to_install(name):
    text, remedy = CANNOT_LOAD[name]
    out, _, _ = run("i = lsm.list_backends()[0]; print(json.dumps([i.name, i.state, i.reason]))", text=text)
    name, state, reason = json.loads(out)
    assert (name, state) == ("cython", "unavailable")
    assert reason.startswith(f"the compiled kernels cannot be loaded: {' '.join(text.split())}; ") and remedy in reason
    assert "not part of this build" not in reason and "LSM_FORCE_ISA" not in reason
    out, err, status = run("lsm.log_softmax(f4, backend='cython')", text=text)
    assert status == 1 and " ".join(text.split()) in err and "BackendUnavailableError" in err


def test_a_call_that_goes_on_without_kernels_warns_once():
    code = """
for x in (f4, f4.astype("f8"), g, f4):
    print(lsm.log_softmax(x)[0].round(2))
lsm.refresh_backends()
lsm.log_softmax_backward(f4, f4)
print(lsm.explain(f4).winner)
"""
    out, err, status = run(code, "-W", "always", text=GLIBC)
    assert out.split() == ["-1.1"] * 4 + ["numpy"] and status == 0
    assert err.count("PluginWarning: lsm runs without its compiled kernels") == 1
    assert GLIBC in err and "apt-get install libgomp1" in err and "LSM_BACKEND=numpy" in err


@pytest.mark.parametrize(
    ("code", "env"),
    [
        ("lsm.log_softmax(f4, backend='numpy')", {}),
        ("lsm.log_softmax(f4)", {"LSM_BACKEND": "numpy"}),
        ("lsm.log_softmax(g)", {}),  # which the kernels do not serve
        ("lsm.explain(f4), lsm.list_backends(), lsm.log_softmax(g)", {}),  # which say so themselves
    ],
)
def test_what_does_not_go_on_without_kernels_does_not_warn(code, env):
    _, err, status = run(code, "-W", "error", text=GLIBC, **env)
    assert status == 0 and not err


def test_where_warnings_are_errors_every_call_that_would_be_slow_fails():
    code = """
for _ in range(2):
    try:
        lsm.log_softmax(f4)
    except lsm.PluginWarning as error:
        print(error)
"""
    out, err, status = run(code, "-W", "error", text=GLIBC)
    assert out.count(GLIBC) == 2 and status == 0, err


def test_a_build_without_the_level_of_this_processor_takes_the_next_one_below():
    best = "from lsm.backends import _levels; print(_levels._module('cpu').best_level())"
    best = run(best, modules=())[0].strip()
    code = "from lsm.backends import cython_; print(cython_.kernels()['level'])"
    levels = [level for level in LEVELS[LEVELS.index(best) :] if find_spec(f"lsm.backends._kernels.{level}")]
    assert levels
    for level in levels:
        above = LEVELS[: LEVELS.index(level)]
        out, err, _ = run(code, "-W", "error", modules=above)
        assert out.strip() == level, err


def test_a_build_without_any_level_or_without_kernels_says_so():
    code = "print(lsm.list_backends()[0].reason)"
    assert "this build has no kernels for level" in run(code)[0]
    assert "rebuild lsm with a C compiler" in run(code, modules=("cpu",))[0]
    assert "the kernels for level plain are not part of this build" in run(code, LSM_FORCE_ISA="plain")[0]
