"""The kit bites: each planted fault is found by the case meant for it, and what is right passes all."""

import decimal
import importlib
import json
import re
import subprocess
import sys
import warnings
from contextlib import contextmanager
from fractions import Fraction
from functools import partial, wraps
from pathlib import Path

import mpmath
import numpy as np
import oracle
import planted_backends
import pytest
from test_registry import Site

import lsm
from lsm import cli
from lsm._conformance import oracle as kit_oracle
from lsm._conformance import run as kit_run
from lsm._conformance.run import CHECKS, cases, digest, run
from lsm.cli import main
from lsm.testing import ArrayMaker, BackendConformance, check_backend

# The fault, the case that must find it, and what its message says.
FAULTS = [
    ("Mistaken", "forward: ordinary frames", "ulp off; max_ulp is 4 for longdouble"),
    ("CountsTiesOnce", "partials: their values", "partials: m, k and n are"),
    ("NormalisesPartsAlone", "partials: parts as whole frames", "log_softmax_of_part, "),
    ("FoldsBackwards", "partials: parts as whole frames", "softmax_of_part, "),
    ("TotalsForgetInfinity", "partials: logsumexp", "logsumexp_of_partials: [nan nan"),
    ("CountsNothing", "partials_backward: their values", "partials_backward: counts"),
    ("SumsPartsAlone", "partials_backward: parts as whole frames", "log_softmax_backward_of_part, "),
    ("Float8", "the declaration", "dtypes: 'float8'; accepted: "),
    ("BoundOfAnother", "the declaration", "max_ulp has a bound for 'longdouble', which dtypes does not contain"),
    ("TwoUlpTooMuch", "forward: ordinary frames", "ulp off; max_ulp is 1.9 for float32"),
    ("TwoUlpTooMuchBackward", "backward: ordinary frames", "ulp off; max_ulp is 1.9 for float32"),
    ("Peaked", "forward: peaked frames", "ulp off; max_ulp is 4"),
    ("PeakedAndMore", "forward: peaked frames", "ulp off; max_ulp is 4"),
    ("SixteenBits", "forward: ordinary frames", "max_ulp is 0.501 for float16"),
    ("Overflows", "long frames", "forward, a normal frame of 131073 classes: inf ulp off"),
    ("LongFrames", "long frames", "forward, a normal frame of 131073 classes"),
    ("RoundsTwice", "forward to the other dtypes", "frames, float16 to float"),
    ("Vanishing", "backward: confident frames keep their gradient", "does the gradient vanish"),
    ("WritesOutside", "every axis; all of out is written, and nothing else", "wrote to memory outside out"),
    ("WritesBetween", "out in every layout", "wrote to memory outside out"),
    ("IgnoresStrides", "inputs in every layout", "inputs: Fortran order"),
    ("IgnoresStridesOfOut", "out in every layout", ""),
    ("ChangesInput", "every axis; all of out is written, and nothing else", "log_softmax changed its input x"),
    ("ChangesOutput", "every axis; all of out is written, and nothing else", "changed its input output"),
    ("LeavesTheLast", "every axis; all of out is written, and nothing else", "did not write 1 of the 7 elements"),
    ("ReshapesOut", "every axis; all of out is written, and nothing else", "; it was ('ndarray', 'cpu',"),
    ("IgnoresOut", "every axis; all of out is written, and nothing else", "returned a ndarray"),
    ("LastAxisOnly", "every axis; all of out is written, and nothing else", "shape (5, 9), axis 0"),
    ("ColumnsOtherwise", "every axis; all of out is written, and nothing else", "shape (5, 9), axis 0"),
    ("LargeBatch", "a million elements", "did not write 1031 of the 1056775 elements"),
    ("WritesBeforeItReads", "in place", "out=x"),
    ("WritesBeforeItReadsBackward", "in place", "out=output"),
    ("NeedsWritable", "read-only inputs", "read-only"),
    ("DividesByStride", "broadcast inputs", "ZeroDivisionError"),
    ("MinusInf", "-inf entries", "where a class is masked, not [-inf"),
    ("MinusInfBackward", "-inf entries", "where a class is masked, not ["),
    ("NanLeaks", "a NaN spoils its frame and no other", "the frames beside"),
    ("NanStays", "a NaN spoils its frame and no other", "all must be NaN"),
    ("InfIsOne", "+inf spoils its frame and no other", "all must be NaN"),
    ("InfiniteGradient", "+inf spoils its frame and no other", "grad_output holds -inf"),
    ("OnlyMinusInf", "frames of -inf only", "all must be NaN"),
    ("Warns", "no warnings", "divide by zero"),
    ("ChangesErrorState", "no warnings", "numpy.geterr"),
    ("Batch", "same bits, whatever the surroundings", "different bits in a batch of 300"),
    ("Alternates", "same bits, whatever the surroundings", "different bits"),
    ("SharedScratch", "calls from several threads", "from several threads"),
    ("Exits", "forward: ordinary frames", "raised SystemExit: 0"),
    ("Panics", "forward: peaked frames", "ulp off; max_ulp is 4"),
    ("Panics", "long frames", "raised BaseException: panicked"),
    ("Float16Fails", "forward: ordinary frames", "raised NotImplementedError: no kernel for half"),
    ("Grid", "large batches", "forward, shape (65550, 2), axis 1: "),
    ("GridOfColumns", "large batches", "backward, shape (2, 65550), axis 0: "),
    ("GridOfOuter", "large batches", "forward, shape (32775, 2, 2), axis 1: "),
    ("GridOfEight", "large batches", "forward, shape (1048593, 2), axis 1: "),
    ("Frames65536", "large batches", "forward, shape (65536, 2), axis 1: "),
    ("Frames65536Last", "large batches", "backward, shape (65536, 2), axis 1: "),
    ("FramesMillion", "large batches", "forward, shape (1048593, 2), axis 1: "),
    ("LastFrames", "large batches", "forward, shape (65550, 2), axis 1: "),
    ("OneOpen", "masks of every size", "forward, one class of 5 not masked"),
    ("AllHaveOneOpen", "masks of every size", "backward, one class of 5 not masked"),
    ("TwoOpen", "masks of every size", "forward, two classes of 5 not masked"),
    ("ThreeMasked", "masks of every size", "forward, all to 1 classes of 64 not masked"),
    ("OneOpenAtTheEnd", "masks of every size", "forward, one class of 5 not masked"),
    ("MaskedIsNearlyMinusInf", "masks of every size", "where a class is masked, not ["),
    ("SixAxes", "every axis; all of out is written, and nothing else", "shape (2, 1, 3, 2, 2, 2), axis 0"),
    ("EightAxes", "every axis; all of out is written, and nothing else", "backward, shape (2, 1, 2, 2, 1, 2, 2, 3)"),
    ("Alignment", "every alignment", "inputs offset by"),
    ("AlignmentOfOut", "every alignment", "inputs offset by"),
    ("Value", "every value", "forward, logits of every value"),
    ("ValueOfGradient", "every value", "backward, gradient of every value"),
    ("ValueOfOutput", "every value", "backward, log-probabilities of every value"),
    ("Classes8191", "every number of classes", "forward, 8191 classes"),
    ("Classes8193", "every number of classes", "backward, 8193 classes"),
    ("Classes77", "every number of classes", "forward, 77 classes"),
    ("Classes32767", "every number of classes", "forward, 32767 classes"),
    ("Classes32768", "every number of classes", "backward, 32768 classes"),
    ("Classes32769", "every number of classes", "forward, 32769 classes"),
    ("Classes65536", "every number of classes", "forward, 65536 classes"),
    ("Longer", "every number of classes", "forward, 262145 classes"),
    ("LargeGradient", "gradients of every magnitude", "backward, gradients"),
    ("LargeGradientOfFloat16", "gradients of every magnitude", "gradients up to 6e+04"),
    ("SmallGradient", "gradients of every magnitude", "backward, gradients from"),
    ("Zero", "constant arrays", "forward, logits of 2 classes that are all 0.0"),
    ("ZeroGradient", "constant arrays", "backward, gradient of 1 classes that are all 0.0"),
    ("ZeroOutput", "constant arrays", "backward, log-probabilities of 2 classes that are all 0.0"),
    ("Constant", "constant arrays", "forward, logits of 1 classes that are all 0.0"),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The planted backends, installed; each is found by the name of its class."""
    site = Site(tmp_path_factory.mktemp("site"))
    points = site.add("planted", "good", Path(planted_backends.__file__).read_text())
    names = planted_backends.BACKENDS
    points.write_text("[lsm.backends]\n" + "".join(f"{n} = plugin_planted:backend_{n}\n" for n in names))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site.folder))
        lsm.refresh_backends()
        yield site
    lsm.refresh_backends()


def outcomes_of(name, title):
    return [run(case) for case in cases(name) if case.check.title == title]


@pytest.mark.parametrize(("name", "title", "message"), FAULTS, ids=[f"{fault[0]}: {fault[1]}" for fault in FAULTS])
def test_the_fault_is_found_by_the_case_meant_for_it(planted, name, title, message):
    before = np.geterr()
    try:
        failed = [outcome for outcome in outcomes_of(name, title) if outcome.outcome == "failed"]
    finally:
        np.seterr(**before)
    assert failed
    assert any(message in outcome.detail for outcome in failed), failed


def test_every_fault_is_on_the_list():
    assert {name for name, _, _ in FAULTS} == set(planted_backends.BACKENDS) - {"Good", "Sometimes"}
    assert {title for _, title, _ in FAULTS} <= {check.title for check in CHECKS}


def off(result):
    return np.nextafter(result, -np.inf)


MISTAKES = [
    ("where=", "softmax", lambda right, x, *axis, where=None, **options: right(x, **options)),
    ("where=", "softmax_backward", lambda right, dy, p, *axis, where=None, **options: right(dy, p, **options)),
    ("temperature=", "log_softmax", lambda right, x, temperature=1, **options: right(x / np.float32(temperature))),
    ("take_log_softmax", "take_log_softmax", lambda right, *given, **options: off(right(*given, **options))),
    ("top_k_log_softmax", "top_k_log_softmax", lambda right, x, k, **_: (right(x, k)[0], 32 - right(x[:, ::-1], k)[1])),
    ("top_k_log_softmax", "top_k_log_softmax", lambda right, x, k, **_: tuple(map(off, right(x, k)))),
    ("cross_entropy", "cross_entropy", lambda right, *given, **options: -np.abs(right(*given, **options))),
    ("cross_entropy", "cross_entropy", lambda right, *given, **options: off(right(*given, **options))),
    (
        "its gradient",
        "cross_entropy_value_and_grad",
        lambda right, x, t, **_: (0, lsm.softmax(x) - np.eye(x.shape[1], dtype=x.dtype)[t]),
    ),
    ("entropy, kl_divergence", "entropy", lambda right, x, **_: -(lsm.softmax(x) * lsm.log_softmax(x)).sum(axis=-1)),
    ("entropy, kl_divergence", "kl_divergence", lambda right, p, q, **_: right(q, p)),
]


@pytest.mark.parametrize(("title", "function", "mistaken"), MISTAKES)
def test_a_mistake_in_what_is_derived_is_found(monkeypatch, title, function, mistaken):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        monkeypatch.setattr(lsm, function, wraps(getattr(lsm, function))(partial(mistaken, getattr(lsm, function))))
        (outcome,) = [o for o in outcomes_of("numpy", f"derived: {title}") if o.dtype == "float32"]
    assert outcome.outcome == "failed" and not outcome.detail.startswith("raised"), outcome


def test_an_error_without_bound_is_measured_and_written_as_text(planted, monkeypatch):
    monkeypatch.setattr(kit_run, "CHECKS", [check for check in CHECKS if check.title == "long frames"])
    report = check_backend("Overflows").as_dict()
    assert [(o["dtype"], o["ulps"], o["outcome"]) for o in report["outcomes"]] == [
        ("float16", "inf", "passed"),  # as it declares
        ("float32", "inf", "failed"),
        ("float64", "inf", "failed"),
    ]
    assert report["claims"]["max_ulp"] == {"float16": "inf", "float32": 4, "float64": 4}
    json.dumps(report, allow_nan=False)


def test_what_is_right_passes_every_case(planted):
    report = check_backend("Good")
    assert [o for o in report.outcomes if o.outcome != "passed"] == []
    assert report.has_passed
    assert report.about["sha256"] == digest("plugin_planted") and len(report.about["sha256"]) == 64
    assert (report.about["distribution"], report.about["distribution_version"]) == ("planted", "1.0")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(0.7)", "the limit is 0.5 s"),
        ("import pyopencl", "imports pyopencl; do that in available()"),
    ],
)
def test_an_import_that_is_not_light(planted, code, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopencl", None)  # what the plugin imports here is not to stay
    monkeypatch.delitem(sys.modules, "pyopencl")
    name = "heavy" + code.split()[1].strip(";")
    code += f"\nfrom plugin_planted import Good\nbackend = Good()\nbackend.name = {name!r}\n"
    planted.add(name, name, code)
    (planted.folder / "pyopencl.py").write_text("")
    lsm.refresh_backends()
    (outcome,) = outcomes_of(name, "a light import")
    (planted.folder / "pyopencl.py").unlink()
    assert outcome.outcome == "failed"
    assert message in outcome.detail


class TestCython(BackendConformance):
    backend = "cython"


class TestNumpy(BackendConformance):
    backend = "numpy"


def test_under_pytest(planted, pytester_like):
    done = pytester_like(
        "class TestGood(BackendConformance):\n    backend = 'Good'\n", "-k", "declaration or float32 and frames"
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout and "failed" not in done.stdout
    done = pytester_like("class TestPeaked(BackendConformance):\n    backend = 'Peaked'\n", "-k", "peaked and float32")
    assert done.returncode == 1
    assert "AccuracyError: forward, peaked frames of" in done.stdout


def test_no_case_may_be_expected_to_fail(planted, pytester_like):
    done = pytester_like("@pytest.mark.xfail\nclass TestPeaked(BackendConformance):\n    backend = 'Peaked'\n")
    assert done.returncode != 0
    assert "remove the claim that fails" in done.stdout
    done = pytester_like(
        "pytestmark = pytest.mark.xfail\nclass TestPeaked(BackendConformance):\n    backend = 'Peaked'\n"
    )
    assert done.returncode != 0


# How a mark reaches the cases when they have been collected: (inside the class, conftest.py).
LATE_XFAIL = {
    "by a fixture": (
        "    @pytest.fixture(autouse=True)\n    def _mark(self, request):\n"
        "        request.node.add_marker(pytest.mark.xfail)\n",
        "",
    ),
    "by a fixture, for the error that it raises": (
        "    @pytest.fixture(autouse=True)\n    def _mark(self, request):\n"
        "        request.node.add_marker(pytest.mark.xfail(raises=AssertionError, strict=False, reason='known'))\n",
        "",
    ),
    "by a call in a fixture": (
        "    @pytest.fixture(autouse=True)\n    def _mark(self):\n        pytest.xfail('known')\n",
        "",
    ),
    "by a hook": ("", "def pytest_collection_modifyitems(items):\n    for i in items: i.add_marker('xfail')\n"),
    "by a hook, and not run": (
        "",
        "import pytest\ndef pytest_collection_modifyitems(items):\n"
        "    for i in items: i.add_marker(pytest.mark.xfail(run=False))\n",
    ),
    "by a hook for one, strictly": (
        "",
        "import pytest\ndef pytest_collection_modifyitems(items):\n"
        "    for i in items:\n        if 'peaked' in i.name: i.add_marker(pytest.mark.xfail(strict=True))\n",
    ),
}


@pytest.mark.parametrize("how", list(LATE_XFAIL))
def test_a_mark_that_comes_late_makes_no_failure_an_expected_one(pytester_like, how):
    body, conftest = LATE_XFAIL[how]
    done = pytester_like(
        f"class TestPeaked(BackendConformance):\n    backend = 'Peaked'\n{body}",
        "-k",
        "forward and peaked and float32",
        conftest=conftest,
    )
    assert done.returncode == 1, done.stdout
    assert "remove the claim that fails" in done.stdout
    assert "xfailed" not in done.stdout and "xpassed" not in done.stdout
    if "call" not in how and "not run" not in how:
        assert "AccuracyError: forward, peaked frames of" in done.stdout  # what it would have hidden


def test_a_case_that_passes_may_not_be_expected_to_fail_either(pytester_like):
    body, _ = LATE_XFAIL["by a fixture"]
    code = f"class TestGood(BackendConformance):\n    backend = 'Good'\n{body}"
    done = pytester_like(code, "-k", "peaked")
    assert done.returncode == 1 and "remove the claim that fails" in done.stdout and "xpassed" not in done.stdout
    done = pytester_like(code, "-k", "peaked", "--runxfail")  # by which pytest takes no notice of the mark
    assert done.returncode == 0, done.stdout


def test_other_tests_beside_the_kit_may_be_expected_to_fail(pytester_like):
    done = pytester_like(
        "class TestGood(BackendConformance):\n    backend = 'Good'\n"
        "    @pytest.mark.xfail\n    def test_peaked_of_mine(self):\n        assert False\n",
        "-k",
        "peaked",
    )
    assert done.returncode == 0 and "1 xfailed" in done.stdout, done.stdout


@pytest.fixture
def pytester_like(planted, tmp_path):
    """Run pytest on a file with these tests, in a process of its own."""

    def run_it(code, *options, conftest=""):
        (tmp_path / "test_it.py").write_text(f"import pytest\nfrom lsm.testing import BackendConformance\n{code}")
        (tmp_path / "conftest.py").write_text(conftest)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
        command += options
        path = {"PYTHONPATH": f"{planted.folder}:{Path(lsm.__file__).parents[1]}"}
        return subprocess.run(command, capture_output=True, text=True, env=path, cwd=tmp_path, check=False)

    return run_it


def test_the_kit_needs_neither_pytest_nor_a_library():
    hidden = ("pytest", "mpmath", "torch", "jax", "ml_dtypes", "tqdm")
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
    code += "from lsm.testing import check_backend\nreport = check_backend('cython')\n"
    code += "print({o.detail for o in report.outcomes if o.outcome == 'skipped'}, report.count('failed'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "{'NumPy has bfloat16 with ml_dtypes only: pip install ml_dtypes'} 0\n", done


def test_progress_is_told_of_every_case(planted, monkeypatch, capsys):
    seen = []

    @contextmanager
    def progress(n_all, **_):
        seen.append(n_all)
        yield seen.append

    monkeypatch.setattr(cli, "_progress", progress)
    monkeypatch.setattr(kit_run, "CHECKS", CHECKS[:3])
    assert main(["check", "Good"]) == 0
    assert "Good: 9 passed, 0 failed, 0 skipped" in capsys.readouterr().out
    assert seen == [len(cases("Good"))] + [1] * len(cases("Good"))


def test_lsm_check(planted, capsys, tmp_path):
    file = tmp_path / "report.json"
    assert main(["check", "Peaked", "--json", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "Peaked, from planted 1.0" in shown
    assert re.search(r"^forward: peaked frames .* 1.6\de\+07 !", shown, re.MULTILINE)
    assert re.search(r"^largest error .* 1.6\de\+07 ", shown, re.MULTILINE)
    assert re.search(r"^in place .* FAILED", shown, re.MULTILINE)
    assert "instead of" in shown
    report = json.loads(file.read_text())
    assert shown.splitlines()[-1] == (
        f"Peaked: {report['passed']} passed, {report['failed']} failed, {report['skipped']} skipped"
    )
    assert {o["check"] for o in report["outcomes"] if o["outcome"] == "failed"} >= {"forward: peaked frames"}
    assert len(report["outcomes"]) == report["passed"] + report["failed"] + report["skipped"]
    assert report["lsm"] == lsm.__version__ and report["libraries"]["numpy"] == np.__version__
    before = file.read_bytes()
    assert main(["check", "absent", "--json", str(file)]) == 2
    assert "no backend is named 'absent'" in capsys.readouterr().err
    assert main(["check", "Good", "--json", str(tmp_path / "no" / "such.json")]) == 2  # before anything is checked
    shown = capsys.readouterr()
    assert "such.json' cannot be written" in shown.err and not shown.out
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_skips_are_counted_and_say_why(planted, capsys):
    code = "from plugin_planted import Good\nbackend = Good()\nbackend.name = 'modest'\nbackend.same_bits = False\n"
    code += "backend.dtypes = ('float32',)\nbackend.max_ulp = {}\n"
    code += "backend.array_types = ('numpy.ndarray', 'acme.Array')\nbackend.devices = ('cpu', 'cuda')\n"
    code += "backend.empty = lambda shape, dtype, like: None\n"
    planted.add("modest", "modest", code)
    lsm.refresh_backends()
    assert main(["check", "modest"]) == 0
    shown = capsys.readouterr().out
    assert "skipped: same_bits is not claimed" in shown
    assert "skipped: a numpy.ndarray is never on cuda" in shown
    assert "skipped: the kit cannot make a acme.Array" in shown.replace("\n  ", " ")
    assert "8 skipped" in shown.splitlines()[-1]


TOY = """
import mpmath
import numpy as np
from lsm import Backend
from plugin_planted import Good

class Toy:
    "An array type that lsm and the kit have never heard of; it speaks DLPack."
    def __init__(self, array):
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype
    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)
    def __dlpack_device__(self):
        return self.array.__dlpack_device__()
    def __getitem__(self, index):
        return Toy(self.array[index])
    def __setitem__(self, index, value):
        self.array[index] = value.array
    def reshape(self, shape):
        return Toy(self.array.reshape(shape))
    def transpose(self, order):
        return Toy(self.array.transpose(order))
    def astype(self, dtype):
        return Toy(self.array.astype(dtype))
    def copy(self):
        return Toy(self.array.copy())

class ToyBackend(Backend):
    name, api_version, dtypes, array_types = NAME, 1, ("float32",), ("plugin_NAME.Toy",)
    def empty(self, shape, dtype, like):
        return Toy(np.empty(shape, MADE))
    def log_softmax(self, x, axis, out):
        Good.log_softmax(None, x.array, axis, out.array)
    def log_softmax_backward(self, grad_output, output, axis, out):
        Good.log_softmax_backward(None, grad_output.array, output.array, axis, out.array)

backend = ToyBackend()
"""


@pytest.mark.parametrize("made", ["float32", "float64"])
def test_an_array_type_that_the_kit_is_told_of(planted, made):
    """Its result comes back as its own type; one whose `empty` gives another dtype is found."""
    name = f"toy{made}"
    code = TOY.replace('"plugin_NAME', f'"plugin_{name}').replace("NAME", repr(name)).replace("MADE", repr(made))
    planted.add(name, name, code)
    lsm.refresh_backends()

    class ToyMaker(ArrayMaker):
        type_name = f"plugin_{name}.Toy"

        def from_numpy(self, array, device):
            return importlib.import_module(f"plugin_{name}").Toy(array.copy())

        def to_numpy(self, array):
            return array.array.copy()

        def broadcast(self, array, shape):
            return importlib.import_module(f"plugin_{name}").Toy(np.broadcast_to(array.array, shape))

    report = check_backend(name, makers=(ToyMaker(),))
    failed = {o.check for o in report.outcomes if o.outcome == "failed"}
    assert report.count("passed") > 20
    assert failed == set() if made == "float32" else "lsm: the result's type, shape, device, dtype" in failed, failed


def test_a_digest_follows_the_files(planted, tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("a = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = digest("some_package")
    assert digest("some_package") == before  # and what importing it compiled does not count
    (package / "other.py").write_text("a = 2")
    assert digest("some_package") != before


# -- the oracle -----------------------------------------------------------------------------------------------------


def test_the_decimal_oracle_against_mpmath(rng):
    for lead in (0, 5, 20, 90, 1000):
        x = rng.standard_normal(20).astype(np.longdouble) * 3
        x[7] = x.max() + lead
        x[3] = -np.inf
        exact = kit_oracle.exact_log_softmax(x, x.dtype)
        right = oracle.log_softmax_mp(x)
        assert exact.value[3] == right[3] == -np.inf
        assert oracle.ulps(exact.value, right) <= 1  # both are rounded to longdouble


LONGDOUBLES = {"double": (53, -1074), "x87": (64, -16445), "quad": (113, -16494)}  # digits, and the least exponent


@pytest.mark.parametrize("kind", LONGDOUBLES)
def test_the_oracle_rounds_to_any_longdouble(kind, rng):
    """Also to those that this machine does not have, which are then put together as fractions."""
    digits, smallest = LONGDOUBLES[kind]
    for exponent in (-17000, -16400, -1080, -1060, -200, -1, 0, 70, 900, 16000):
        for n_bits in (1, 2, 31, 32, 33, 52, 53, 54, 63, 64, 65, 112, 113, 114, 200):
            mantissa = (1 << n_bits) - int(rng.integers(2))
            exact = Fraction(mantissa * int(rng.choice([-1, 1]))) * Fraction(2) ** exponent / int(rng.choice([1, 3]))
            m, e = kit_oracle.rounded_ratio(exact.numerator, exact.denominator, digits, smallest)
            assert e >= smallest and abs(m) <= 2**digits
            assert e == smallest or abs(m) >= 2 ** (digits - 1)  # no digit is left unused
            assert abs(m * Fraction(2) ** e - exact) <= Fraction(2) ** (e - 1)
            assert kit_oracle.assembled(m, Fraction) == m
    assert kit_oracle.rounded_ratio(2 * 2**digits + 1, 2, digits, smallest) == (2**digits, 0)  # ties to even
    assert kit_oracle.rounded_ratio(0, 1, digits, smallest)[0] == 0


def test_the_oracles_take_every_digit_of_a_longdouble_and_its_whole_range():
    info = np.finfo(np.longdouble)
    one = np.longdouble(1)
    for x in (one + info.eps, -(one - info.eps / 2), one / 3, info.max, info.smallest_normal, info.smallest_subnormal):
        assert kit_oracle.nearest(*x.as_integer_ratio()) == x
        with mpmath.workdps(200):
            assert oracle.mp_to_ld(oracle.mp_from(x)) == x
            assert oracle.mp_from(x) * mpmath.mpf(x.as_integer_ratio()[1]) == x.as_integer_ratio()[0]
        with decimal.localcontext(kit_oracle._CONTEXT):
            value, rest = kit_oracle._split(kit_oracle._decimal(x))
            assert value == x and abs(rest) <= info.eps * abs(x)
            third, rest = kit_oracle._split(kit_oracle._decimal(x) / 3)
        ratio = Fraction(*third.as_integer_ratio()) + Fraction(*rest.as_integer_ratio())
        exact = Fraction(*x.as_integer_ratio()) / 3
        assert abs(ratio - exact) <= max(abs(exact) / 10**35, Fraction(*info.smallest_subnormal.as_integer_ratio()) / 2)


def test_what_is_beyond_every_longdouble_becomes_0_or_infinite():
    with mpmath.workdps(200):
        assert oracle.mp_to_ld(mpmath.exp(-(mpmath.mpf(10) ** 300))) == 0
        assert oracle.mp_to_ld(-mpmath.exp(mpmath.mpf(10) ** 300)) == -np.inf


def test_where_longdouble_is_no_wider_decimal_takes_over(rng, monkeypatch):
    """As on processors whose longdouble is float64: the same errors are found, and none where there is none."""
    x = rng.standard_normal((3, 40)) * 3
    x[:, 5] += 30
    y, dy = lsm.log_softmax(x), rng.standard_normal((3, 40))
    dx = lsm.log_softmax_backward(dy, y)
    quick = kit_oracle.exact_log_softmax(x, x.dtype).ulps(y), kit_oracle.exact_backward(dy, y).ulps(dx)
    monkeypatch.setattr(kit_oracle, "_SPARE_BITS", 64)
    assert not kit_oracle.is_quick(x.dtype)
    slow = kit_oracle.exact_log_softmax(x, x.dtype).ulps(y), kit_oracle.exact_backward(dy, y).ulps(dx)
    for a, b in zip(quick, slow, strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=0.01)
    assert kit_oracle.exact_log_softmax(x, x.dtype).ulps(y - 9 * np.spacing(y)).min() > 8


def test_an_exact_zero_allows_nothing_else():
    exact = kit_oracle.exact_log_softmax(np.zeros((1, 1)), np.dtype(np.float32))
    assert exact.ulps(np.array([[1e-30]], np.float32)) > 1e10
    assert exact.ulps(np.array([[0.0]], np.float32)) == 0
