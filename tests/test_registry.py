"""The registry with third-party backends, broken ones above all: installed as files, used in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lsm
from lsm.backends import discovery

GOOD = """
import numpy as np
class Mine:
    name = {name!r}
    api_version = 1
    priority = {priority}
    devices = ("cpu",)
    dtypes = ("float32", "float8")
    array_types = ("numpy.ndarray",)
    def available(self):
        return None
    def log_softmax(self, x, axis, out):
        out[...] = {priority} + 42
    def log_softmax_backward(self, grad_output, output, axis, out):
        out[...] = 43
backend = Mine()
"""


class Site:
    """A folder of installed distributions, and a Python that has it on its path."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, distribution, name, code, value=None, version="1.0"):
        """Install a distribution that names one backend."""
        module = f"plugin_{distribution.replace('-', '_').replace('.', '_')}"
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[lsm.backends]\n{name} = {value or module + ':backend'}\n")
        if code is not None:
            (self.folder / f"{module}.py").write_text(code)
        return info / "entry_points.txt"

    def run(self, code, cwd=None, **env):
        """What a fresh Python prints, and its warnings."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LSM_")}
        clean["PYTHONPATH"] = str(self.folder)
        prelude = "import json, numpy as np, lsm\nf2, f4 = np.zeros(3, 'f2'), np.zeros(3, 'f4')\n"
        done = subprocess.run(
            [sys.executable, "-c", prelude + code],
            env=clean | env, cwd=cwd, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    def states(self, **env):
        """(state, reason) by name, and the warnings."""
        code = "print(json.dumps([[i.name, i.state, i.reason, i.file] for i in lsm.list_backends()]))"
        out, err = self.run(code, **env)
        return {name: (state, reason, file) for name, state, reason, file in json.loads(out)}, err


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


def test_a_good_plugin(site):
    file = site.add("acme-lsm", "acme", GOOD.format(name="acme", priority=0))
    states, err = site.states()
    assert states["acme"] == ("loaded", "", str(file)) and not err
    out, _ = site.run("print(lsm.log_softmax(f4, backend='acme'), lsm.log_softmax(f4))")
    assert out.startswith("[42. 42. 42.] [-1.09")  # and installing it changes nothing else
    out, _ = site.run("print(lsm.log_softmax_backward(f4, f4))", LSM_BACKEND="acme")
    assert out.strip() == "[43. 43. 43.]"
    out, _ = site.run("i = [i for i in lsm.list_backends() if i.name == 'acme'][0]; print(i.distribution, i.version)")
    assert out.split() == ["acme-lsm", "1.0"]
    out, _ = site.run("i = lsm.list_backends(); print([(i.max_ulp, i.same_bits) for i in i if i.name == 'acme'])")
    assert out.strip() == "[({'float32': 4.0}, False)]"  # what it leaves out
    out, _ = site.run("print([i.state for i in lsm.list_backends(load=False) if i.name == 'acme'])")
    assert "discovered" in out


BROKEN = {
    "import error": ("import no_such_module_at_all\n", "failed", "ModuleNotFoundError: No module named 'no_such"),
    "missing library": ("raise OSError('libfast.so.9: cannot open shared object file')", "failed", "OSError: libfast"),
    "syntax error": ("def (\n", "failed", "SyntaxError"),
    "no such attribute": ("", "failed", "AttributeError"),
    "not a backend": ("backend = 3", "incompatible", "api_version is None"),
    "a class": (GOOD.format(name="acme", priority=0) + "\nbackend = Mine", "incompatible", "names the class Mine"),
    "another version": (
        GOOD.format(name="acme", priority=0) + "\nMine.api_version = 2",
        "incompatible",
        "this version of lsm supports 1",
    ),
    "another name": (GOOD.format(name="other", priority=0), "incompatible", "the entry point is named 'acme'"),
    "no method": (
        GOOD.format(name="acme", priority=0) + "\ndel Mine.log_softmax",
        "incompatible",
        "no method log_softmax",
    ),
    "another signature": (
        GOOD.format(name="acme", priority=0) + "\nMine.log_softmax = lambda self, x: x",
        "incompatible",
        "log_softmax does not take 3 arguments",
    ),
    "dtypes as text": (
        GOOD.format(name="acme", priority=0) + "\nMine.dtypes = 'float32'",
        "incompatible",
        "tuple of str",
    ),
    "priority as text": (
        GOOD.format(name="acme", priority=0) + "\nMine.priority = '1'",
        "incompatible",
        "must be an int",
    ),
    "bounds that are no numbers": (
        GOOD.format(name="acme", priority=0) + "\nMine.max_ulp = {'float32': 'good'}",
        "incompatible",
        "its max_ulp is {'float32': 'good'}; it must map names of dtypes to positive numbers",
    ),
    "bounds of 0": (
        GOOD.format(name="acme", priority=0) + "\nMine.max_ulp = {'float32': 0}",
        "incompatible",
        "positive numbers",
    ),
    "same bits perhaps": (
        GOOD.format(name="acme", priority=0) + "\nMine.same_bits = 'perhaps'",
        "incompatible",
        "its same_bits is 'perhaps'; it must be True or False",
    ),
    "empty of another signature": (
        GOOD.format(name="acme", priority=0) + "\nMine.empty = lambda self, shape: None",
        "incompatible",
        "empty does not take 3 arguments",
    ),
    "bounds that no float holds": (
        GOOD.format(name="acme", priority=0) + "\nMine.max_ulp = {'float32': 10**400}",
        "incompatible",
        "its max_ulp is {'float32': 1000",
    ),
    "available says False": (
        GOOD.format(name="acme", priority=0) + "\nMine.available = lambda self: False",
        "incompatible",
        "its method available returned False; it must return None, or a reason as str",
    ),
    "available says nothing": (
        GOOD.format(name="acme", priority=0) + "\nMine.available = lambda self: ' '",
        "incompatible",
        "its method available returned ' '",
    ),
    "an error that cannot be described": (
        "class E(Exception):\n    def __str__(self): 1 / 0\nraise E",
        "failed",
        "E (its __str__ raises ZeroDivisionError)",
    ),
    "an error for the terminal": (
        "raise OSError('\\x1b[2J\\nlost' + '\\udc80' + 5000 * 'x')",
        "failed",
        "OSError: \\x1b[2J lost\\udc80xxx",
    ),
    "an exit": ("raise SystemExit(3)", "failed", "SystemExit: 3"),
    "available raises": (
        GOOD.format(name="acme", priority=0) + "\ndef no(self): 1 / 0\nMine.available = no",
        "failed",
        "ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_broken_plugin_is_said_once_and_stops_nothing(site, case):
    code, state, reason = BROKEN[case]
    file = site.add("acme-lsm", "acme", code)
    _, err = site.run("print(lsm.log_softmax(f4), lsm.log_softmax(f2), lsm.log_softmax_backward(f4, f4))")
    assert not err  # it was not needed
    states, err = site.states()
    assert states["acme"][0] == state and reason in states["acme"][1]
    assert err.count("PluginWarning") == 1 and str(file) in err and "acme-lsm 1.0" in err
    _, err = site.run(
        """
for _ in range(3):
    try:
        lsm.log_softmax(f4, backend="acme")
    except lsm.BackendUnavailableError as error:
        assert "acme" in str(error), error
        assert (error.__cause__ is not None) == (STATE == "failed"), error.__cause__
    else:
        raise SystemExit("it served the call")
assert lsm.log_softmax(f4)[0] < -1
""".replace("STATE", repr(state))
    )
    assert err.count("PluginWarning") == 1


def test_unavailable_says_why_and_is_no_fault(site):
    site.add("acme-lsm", "acme", GOOD.format(name="acme", priority=0).replace("return None", "return 'no such chip'"))
    states, err = site.states()
    assert states["acme"][:2] == ("unavailable", "no such chip") and not err
    out, _ = site.run("""
try:
    lsm.log_softmax(f4, backend="acme")
except lsm.BackendUnavailableError as error:
    print(error)
""")
    assert "no such chip" in out


def test_a_slow_import_is_not_waited_for(site):
    site.add("acme-lsm", "acme", "import time; time.sleep(30)")
    out, _ = site.run("""
import time
start = time.perf_counter()
lsm.log_softmax(f4), lsm.log_softmax(f2), lsm.explain(f4), lsm.list_backends(load=False)
with lsm.use_backend("numpy"):
    lsm.log_softmax(f4)
print(time.perf_counter() - start)
""")
    assert float(out) < 10


def test_an_interrupt_passes_through_and_is_forgotten(site):
    site.add(
        "acme-lsm",
        "acme",
        "import os\nif 'NO' in os.environ: raise KeyboardInterrupt\n" + GOOD.format(name="acme", priority=0),
    )
    out, _ = site.run("""
import os
os.environ["NO"] = ""
try:
    lsm.log_softmax(f4, backend="acme")
except KeyboardInterrupt:
    print(lsm.list_backends(load=False)[-1].reason)
del os.environ["NO"]
print(lsm.log_softmax(f4, backend="acme"))
""")
    assert out.splitlines() == ["not loaded: not needed so far", "[42. 42. 42.]"]


def test_a_backend_that_changes_its_mind_is_not_asked_again(site):
    more = """
asked = []
def devices(self):
    asked.append(1)
    if len(asked) > 3:
        raise RuntimeError("no more")
    return ("cpu",)
Mine.devices = property(devices)
"""
    site.add("acme-lsm", "acme", GOOD.format(name="acme", priority=0) + more)
    out, err = site.run("""
for _ in range(5):
    rows, decision = lsm.list_backends(), lsm.explain(f4, backend="acme")
print(rows[-1].devices, decision.winner, lsm.log_softmax(f4, backend="acme"))
""")
    assert out.split() == ["('cpu',)", "acme", "[42.", "42.", "42.]"] and not err


def test_json_has_no_infinity(site):
    code = GOOD.format(name="acme", priority=0) + "\nMine.max_ulp = {'float32': float('inf')}"
    site.add("acme-lsm", "acme", code)
    out, _ = site.run("from lsm.cli import main\nmain(['backends', '--json'])")
    report = json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert report["backends"][-1]["max_ulp"]["float32"] == "inf"


def test_what_a_plugin_prints_while_it_is_loaded_does_not_reach_the_output_of_the_command(site):
    code = "print('a banner')\n" + GOOD.format(name="acme", priority=0)
    site.add("acme-lsm", "acme", code.replace("return None", "print('a notice')"))
    out, err = site.run("from lsm.cli import main\nmain(['backends', '--json'])\nprint('mine')")
    assert out.endswith("mine\n") and err == "a banner\na notice\n"
    assert json.loads(out.removesuffix("mine\n"))["backends"][-1]["state"] == "loaded"
    out, err = site.run("lsm.list_backends()")  # a library leaves stdout to the program
    assert out == "a banner\na notice\n" and not err


@pytest.mark.parametrize("name", ["n" * 10_000, "\x1b[31mred", "lsm/numpy"])
def test_a_name_that_cannot_be_shown_or_typed(site, name):
    file = site.add("acme-lsm", name, GOOD.format(name=name, priority=0))
    out, err = site.run("""
row = lsm.list_backends()[-1]
print(row.name, row.state, row.reason)
print(lsm.log_softmax(f4, backend="lsm-softmax/numpy"))
""")
    shown, served = out.splitlines()
    assert shown.startswith("? failed an entry point has a name of ") and len(shown) < 300 and shown.isprintable()
    assert served.startswith("[-1.09") and err.count("PluginWarning") == 1 and str(file) in err


def test_the_remedy_for_each_state(site):
    site.add("acme-a", "absent", GOOD.format(name="absent", priority=0).replace("return None", "return 'no such chip'"))
    site.add("acme-b", "cython", "")
    site.add("acme-c", "itself", "import lsm\nlsm.log_softmax([1.0], backend='itself')")
    out, _ = site.run("""
import warnings
warnings.simplefilter("ignore")
for name in ("absent", "acme_b/cython", "itself", "nope"):
    try:
        lsm.log_softmax(f4, backend=name)
    except lsm.LsmError as error:
        print(error)
""")
    absent, reserved, itself, nope = out.splitlines()
    assert "no such chip; when that is fixed, call lsm.refresh_backends()" in absent
    assert "reserved for lsm's own backend; its author must rename it; until then, uninstall acme-b" in reserved
    assert "neither may use it" in itself
    assert (
        "known: 'cython', 'cupy', 'numpy', 'absent', " in nope
        and "After installing one, call lsm.refresh_backends()" in nope
    )


@pytest.mark.parametrize("name", ["cython", "numpy", "cupy"])
def test_built_in_names_are_reserved(site, name):
    site.add("evil", name, "raise SystemExit('it ran')")
    out, _ = site.run(f"""
print(lsm.log_softmax(f4), lsm.log_softmax(f2))
row = [i for i in lsm.list_backends() if i.distribution == "evil"][0]
print(row.state, row.reason)
try:
    lsm.log_softmax(f4, backend="evil/{name}")
except lsm.BackendUnavailableError as error:
    print(error)
""")
    assert f"blocked the name {name!r} is reserved" in out
    assert out.count("reserved") == 2


def test_two_distributions_with_one_name(site):
    site.add("acme-a", "acme", GOOD.format(name="acme", priority=1))
    site.add("acme-b", "acme", GOOD.format(name="acme", priority=2))
    out, _ = site.run("""
print(sorted(i.distribution for i in lsm.list_backends() if i.name == "acme"))
print(lsm.log_softmax(f4, backend="acme-a/acme"), lsm.log_softmax(f4, backend="acme_b/acme"))
try:
    lsm.log_softmax(f4, backend="acme")
except lsm.UnknownBackendError as error:
    print(error)
""")
    assert "['acme-a', 'acme-b']" in out
    assert "[43. 43. 43.] [44. 44. 44.]" in out
    assert "use one of 'acme-a/acme', 'acme-b/acme'" in out


def test_a_distribution_may_be_spelt_in_any_way(site):
    """It is called what its metadata state, else as the folder is."""
    info = site.add("Acme-Torch.Lsm", "acme", GOOD.format(name="acme", priority=0)).parent
    others = {  # by backend, what METADATA has
        "none": None,
        "nothing": "",
        "late": "Version: 1.0\n\nName: late\n",
        "binary": "\udc80\udcff\0Name: bina\ry",
    }
    site.add("some-other", "other", None).with_name("METADATA").write_text("Name: acme-other\n")
    for name, text in others.items():
        file = site.add(f"some-{name}", name, GOOD.format(name=name, priority=0)).with_name("METADATA")
        file.unlink() if text is None else file.write_text(text, errors="surrogateescape")
    assert info.name == "Acme_Torch.Lsm-1.0.dist-info"
    out, err = site.run("""
for spelling in ("acme-torch-lsm", "Acme-Torch.Lsm", "acme_torch_lsm", "ACME.Torch_Lsm"):
    assert lsm.log_softmax(f4, backend=spelling + "/acme")[0] == 42
    assert lsm.explain(f4, backend=spelling + "/acme").winner == "acme"
for wrong in ("acme/acme", "/acme", "acme-torch-lsm/", "x/acme-torch-lsm/acme", "acme-torch-lsm/Acme"):
    try:
        lsm.use_backend(wrong).__enter__()
    except lsm.UnknownBackendError:
        pass
    else:
        raise SystemExit(wrong)
print({i.name: i.distribution for i in lsm.list_backends(load=False) if not i.is_built_in})
""")
    assert eval(out) == {"acme": "Acme-Torch.Lsm", "other": "acme-other"} | {name: f"some_{name}" for name in others}
    assert not err


def test_automatic_choice_of_third_parties(site):
    """Only for what no built-in serves; then by priority, then by name; never one of two with the same name."""
    for distribution, name, priority in (("d1", "zeta", 5), ("d2", "beta", 5), ("d3", "alpha", 1)):
        site.add(distribution, name, GOOD.format(name=name, priority=priority).replace('"cpu",', '"cpu", "tpu"'))
    site.add("d4", "twin", GOOD.format(name="twin", priority=99).replace('"cpu",', '"cpu", "tpu"'))
    site.add("d5", "twin", GOOD.format(name="twin", priority=98).replace('"cpu",', '"cpu", "tpu"'))
    out, _ = site.run("""
from lsm._decide import Policy, Request, decide
def winner(device):
    return decide(Request("numpy.ndarray", device, ("float32",)), Policy(None, "automatic")).winner
print(winner("cpu"), winner("tpu"), winner("npu"))
reasons = decide(Request("numpy.ndarray", "tpu", ("float32",)), Policy(None, "automatic")).reasons
print(reasons["alpha"]), print(reasons["zeta"])
""")
    winners, alpha, zeta = out.splitlines()
    assert winners.split() == ["cython", "beta", "None"]
    assert alpha == "supports it too; beta has precedence by priority 5 over 1"
    assert zeta == "supports it too; beta has precedence by name, at equal priority 5"


def test_plugins_can_be_switched_off_and_allowed_by_distribution(site):
    site.add("acme-lsm", "acme", "raise SystemExit('it ran')")
    site.add("other.lsm", "other", GOOD.format(name="other", priority=0))
    states, _ = site.states(LSM_PLUGINS="off")
    assert states["acme"][:2] == states["other"][:2] == ("blocked", "LSM_PLUGINS is 'off'")
    assert states["numpy"][0] == "loaded"
    states, _ = site.states(LSM_PLUGINS_ALLOW="something, Other-LSM")
    assert states["acme"][0] == "blocked" and "LSM_PLUGINS_ALLOW does not include 'acme-lsm'" in states["acme"][1]
    assert states["other"][0] == "loaded"


def test_a_distribution_that_is_allowed_and_not_there_is_pointed_out(site):
    site.add("acme-lsm", "acme", GOOD.format(name="acme", priority=0))
    for value, note in (
        ("Acme_LSM", ""),
        ("acme-slm", "  (no plugin is installed from acme-slm)"),
        ("acme-lsm, Acme-LMS,lsm", "  (no plugin is installed from Acme-LMS, lsm)"),
    ):
        out, _ = site.run("from lsm.cli import main\nmain(['backends'])", LSM_PLUGINS_ALLOW=value)
        assert f"LSM_PLUGINS_ALLOW={value}{note}" in out.splitlines()


CORRUPT = {
    "no section header": b"acme = plugin_acme:backend\n[lsm.backends]\n",
    "a key twice": b"[lsm.backends]\nacme = plugin_acme:backend\nacme = plugin_acme:backend\n",
    "a percent sign": b"[lsm.backends]\nacme = %(x)s:backend\n",
    "not UTF-8": b"[lsm.backends]\nacme = plugin_acme:backend \xff\xfe\n",
    "binary": bytes(range(256)) + b"lsm.backends",
    "a spec that is no spec": b"[lsm.backends]\nacme = ???\n",
    "empty": b"",
}


@pytest.mark.parametrize("case", list(CORRUPT))
def test_corrupt_metadata_does_not_end_the_scan(site, case):
    file = site.add("acme", "acme", GOOD.format(name="acme", priority=0))
    file.write_bytes(CORRUPT[case])
    site.add("zzz", "good", GOOD.format(name="good", priority=0))
    states, err = site.states()
    assert states["good"][0] == "loaded" and states["numpy"][0] == "loaded"
    if case == "empty":
        assert not err and "acme" not in states and "?" not in states
    else:
        assert str(file) in err and err.count("PluginWarning") == 1
        read = case in ("a percent sign", "a spec that is no spec")  # and its module does not exist
        assert ("failed: ModuleNotFoundError" if read else "its metadata file cannot be read: ") in err
    out, _ = site.run("print(lsm.log_softmax(f2), lsm.log_softmax(f4, backend='good'))")
    assert "[42. 42. 42.]" in out


def test_unrelated_corrupt_metadata_is_not_lsms_business(site):
    file = site.add("acme", "acme", None)
    file.write_bytes(b"[console_scripts]\nx = \xff\n")
    site.add("zzz", "good", GOOD.format(name="good", priority=0))
    states, err = site.states()
    assert states["good"][0] == "loaded" and not err and "?" not in states


def test_the_current_directory_is_not_searched(site, tmp_path):
    here = Site(tmp_path / "here")
    here.add("acme", "acme", "raise SystemExit('it ran')")
    site.folder.mkdir()
    out, _ = site.run("print([i.name for i in lsm.list_backends()])", cwd=here.folder)
    assert "acme" not in out
    assert [f.name for f in discovery.find([str(here.folder)])] == ["acme"]


def test_warnings_as_errors_stop_no_call_that_needs_no_plugin(site):
    site.add("acme", "acme", None).write_bytes(b"[lsm.backends]\nacme = \xff\n")
    site.run("import warnings; warnings.simplefilter('error'); lsm.log_softmax(f2)")


def test_fork_while_a_thread_searches(site):
    site.folder.mkdir()
    site.run("""
import os, threading, time
from lsm.backends import registry
def slow(find=registry.find):
    time.sleep(1)
    return find()
registry.find = slow
threading.Thread(target=lambda: lsm.log_softmax(f2)).start()
time.sleep(0.3)
pid = os.fork()
if pid == 0:
    lsm.log_softmax(f2)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""")


def test_order_on_disk_decides_nothing(tmp_path, monkeypatch):
    for i, distribution in enumerate(("b", "c", "a")):
        Site(tmp_path).add(distribution, f"name{i % 2}", None)
    found = discovery.find([str(tmp_path)])
    forward = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: forward(folder)[::-1])
    assert discovery.find([str(tmp_path)]) == found
    assert [(f.name, f.distribution) for f in found] == [("name0", "a"), ("name0", "b"), ("name1", "c")]


def test_what_comes_first_on_the_path_hides_the_rest(tmp_path):
    Site(tmp_path / "one").add("acme", "new", None, version="2.0")
    Site(tmp_path / "two").add("Acme", "old", None, version="1.0")
    found = discovery.find([str(tmp_path / "one"), str(tmp_path / "two"), "", str(tmp_path / "absent")])
    assert [(f.name, f.version) for f in found] == [("new", "2.0")]


def test_refresh_finds_what_was_installed_meanwhile(site):
    site.folder.mkdir()
    out, _ = site.run(f"""
import os, sys
from pathlib import Path
before = [i.name for i in lsm.list_backends()]
stamp = os.stat({str(site.folder)!r}).st_mtime_ns
info = Path({str(site.folder)!r}, "acme-1.0.dist-info"); info.mkdir()
(info / "entry_points.txt").write_text("[lsm.backends]\\nacme = plugin_new:backend\\n")
Path({str(site.folder)!r}, "plugin_new.py").write_text({GOOD.format(name="acme", priority=0)!r})
os.utime({str(site.folder)!r}, ns=(stamp, stamp))  # as it is where the clock of the disk is coarse
assert [i.name for i in lsm.list_backends()] == before
lsm.refresh_backends()
print([i.name for i in lsm.list_backends()], lsm.log_softmax(f4, backend="acme"))
""")
    assert "'acme'" in out and "42." in out


def test_a_plugin_that_uses_lsm_while_it_is_imported(site):
    code = "import lsm\nlsm.log_softmax([1.0])\n" + GOOD.format(name="acme", priority=0)
    site.add("acme", "acme", code)
    site.add("self", "self", "import lsm\nlsm.log_softmax([1.0], backend='self')\n")
    states, _ = site.states()
    assert states["acme"][0] == "loaded"
    assert states["self"][0] == "failed" and "it is being loaded" in states["self"][1]


def test_built_ins_are_listed_first_with_their_file():
    rows = lsm.list_backends()
    assert [row.name for row in rows[:3]] == ["cython", "cupy", "numpy"]
    for row in rows[:3]:
        assert (row.distribution, row.is_built_in) == ("lsm-softmax", True)
        assert row.version == lsm.__version__ and Path(row.file).is_file()
        assert row.devices == (("cuda",) if row.name == "cupy" else ("cpu",)) and "float32" in row.dtypes
        assert (row.state, row.reason) == ("loaded", "") or row.name == "cupy"


def test_metadata_of_a_source_tree_has_its_version_in_a_file(tmp_path):
    info = tmp_path / "acme.egg-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[lsm.backends]\nacme = acme:backend\n")
    assert [f.version for f in discovery.find([str(tmp_path)])] == [""]
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 3.1\n")
    assert [f.version for f in discovery.find([str(tmp_path)])] == ["3.1"]


def test_what_built_ins_claim():
    for row in lsm.list_backends()[:2]:
        assert row.same_bits and set(row.max_ulp) == set(row.dtypes)
        assert row.max_ulp["float32"] == 4 and row.max_ulp["float16"] == 0.501
