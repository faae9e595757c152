"""One table describes every operation: what follows from a row, also from that of an operation that is made up."""

import inspect
import subprocess
import sys

import pytest

import lsm
from lsm import _check, _operations
from lsm._conformance.oracle import REFERENCES
from lsm._operations import OPERATIONS

# What CONTRIBUTING.md lists for a new operation, and nothing else: a row, a public function, a backend's method, and
# what the kit needs. The row is there before lsm is imported.
MADE_UP = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lsm._operations", {_operations.__file__!r})
operations = sys.modules["lsm._operations"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(operations)
inputs = (operations.Input("x", "logits"),)
row = operations.Operation("made_up", "made up", inputs, has_dtype=True, is_required=False)
operations.OPERATIONS["made_up"] = row

import numpy as np
import lsm
from lsm._call import call
from lsm._conformance import oracle
from lsm.backends.numpy_ import NumpyBackend

def made_up(x, axis=-1, *, out=None, dtype=None, backend=None):
    return call(row, (x,), axis, out, dtype, backend)

def method(self, x, axis, out):  # 2 * log_softmax: exact, but at the ends of the range
    self.log_softmax(x, axis, out)
    with np.errstate(all="ignore"):
        out *= 2

def exact(x, dtype, axis=-1):
    return oracle.Exact(*[2 * part for part in oracle.exact_log_softmax(x, dtype, axis)])

lsm.made_up, NumpyBackend.made_up = made_up, method
oracle.REFERENCES["made_up"] = oracle.Reference(exact, masked=lambda x: -np.inf)
"""


# A reduction: the largest class. In place of the map.
REDUCTION = """
row = row._replace(identity=-np.inf)
operations.OPERATIONS["made_up"] = row

def made_up(x, axis=-1, *, out=None, dtype=None, backend=None, keepdims=False):
    return call(row, (x,), axis, out, dtype, backend, keepdims)

def method(self, x, axis, out):
    out[...] = x.max(axis=axis, keepdims=True)

def exact(x, dtype, axis=-1):
    largest = x.max(axis=axis, keepdims=True).astype(oracle.LD)
    return oracle.Exact(largest, np.zeros_like(largest), largest)

lsm.made_up, NumpyBackend.made_up = made_up, method
oracle.REFERENCES["made_up"] = oracle.Reference(exact, spoiled=lambda number: number)
"""


def with_made_up(code, **options):
    command = [sys.executable, "-W", "error", "-c", MADE_UP + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_a_row_says_what_the_public_function_takes(operation):
    own = {"b", "keepdims", "n_classes", "partials", "return_sign", "temperature", "where"}
    parameters = [name for name in inspect.signature(getattr(lsm, operation.name)).parameters if name not in own]
    assert parameters == [*operation.names, "axis", "out", *["dtype"] * operation.has_dtype, "backend"]
    assert operation.name in lsm.__all__
    assert operation.name in vars(lsm.Backend) or not operation.is_required


def test_every_operation_has_a_reference_and_a_title_of_its_own():
    assert set(REFERENCES) == set(OPERATIONS)
    assert len({operation.direction for operation in OPERATIONS.values()}) == len(OPERATIONS)


def test_a_made_up_operation_is_served_explained_and_refused():
    out = with_made_up("""
x = np.log(np.array([[1, 3], [1, 1]], np.float32))
print(np.exp(lsm.made_up(x) / 2).round(6).tolist())
print(lsm.made_up(x.astype(np.float16), None, dtype="float64", backend="numpy").dtype)
decision = lsm.explain(x, "made_up")
print(decision.winner, decision.reasons["cython"])
try:
    lsm.made_up(x, backend="cython")
except lsm.BackendUnsupportedError as error:
    print(error)
""")
    assert out[:3] == [
        "[[0.25, 0.75], [0.5, 0.5]]",
        "float64",
        "numpy does not have made_up",
    ]
    assert "does not have made_up" in out[3] and "backend='numpy'" in out[3]


def test_the_kit_tries_a_made_up_operation_on_the_backends_that_have_it():
    out = with_made_up("""
from lsm._conformance import run
NumpyBackend.dtypes = ("float32",)
report = run.check_backend("numpy")
print(sum(o.check.startswith("made up") for o in report.outcomes), report.has_passed)
print(report.about["claims"]["operations"][-1])
print(any(case.check.title.startswith("made up") for case in run.cases("cython")))

def inexact(self, x, axis, out):
    method(self, x, axis, out)
    out -= 9 * np.spacing(out)

NumpyBackend.made_up = inexact
titles = ("made up: peaked frames", "forward: peaked frames", "in place", "-inf entries", "lsm: out=")
run.CHECKS = [check for check in run.CHECKS if check.title in titles]
print([o.check for o in run.check_backend("numpy").outcomes if o.outcome == "failed"])
""")
    assert out == [
        "9 True",
        "made_up",
        "False",
        "['made up: peaked frames', 'in place', '-inf entries', 'lsm: out=']",
    ]


def test_lsm_apply_takes_a_made_up_operation(tmp_path):
    out = with_made_up(
        """
from lsm.cli import main
x = np.array([[1.0, 2.0], [0.0, 0.0]])
np.save("x.npy", x)
print(main(["apply", "--op", "made_up", "x.npy", "y.npy"]), (np.load("y.npy") == lsm.made_up(x)).all())
print(main(["explain", "--op", "made_up", "--dtype", "float32", "--backend", "numpy"]))
""",
        cwd=tmp_path,
    )
    assert out[0] == "0 True" and out[1].startswith("made_up of numpy.ndarray") and out[-1] == "0"


def test_a_made_up_reduction_is_served_along_any_axes_and_into_out():
    out = with_made_up(
        REDUCTION
        + """
x = np.arange(24.0).reshape(2, 3, 4)
for axis in (0, 1, -1, (0, 2), (2, 1), None, ()):
    for view in (x, x.T, x[:, ::2], x[::-1]):
        for keepdims in (False, True):
            wanted = view.max(axis=axis, keepdims=keepdims)
            y = lsm.made_up(view, axis, keepdims=keepdims)
            assert np.shape(y) == wanted.shape and (y == wanted).all(), (axis, y, wanted)
            for dtype in ("f8", ">f8"):
                out = np.zeros((*wanted.shape, 2), dtype)[..., 0]
                assert lsm.made_up(view, axis, out=out, keepdims=keepdims) is out
                assert (out == wanted).all(), (axis, out, wanted)
memory = x.copy()
assert (lsm.made_up(memory, 0, out=memory[0]) == x[1]).all()
print(type(lsm.made_up(x, None)), lsm.made_up(np.empty((2, 0))), lsm.made_up(np.empty((0, 2))), lsm.made_up(3.5))
for wrong in (np.empty((2, 3, 4)), np.empty((2, 3, 1)), np.empty(6)):
    try:
        lsm.made_up(x, out=wrong)
    except ValueError as error:
        print(error)
"""
    )
    assert out == [
        "<class 'numpy.float64'> [-inf -inf] [] 3.5",
        "out: has shape (2, 3, 4); the result has shape (2, 3)",
        "out: has shape (2, 3, 1); the result has shape (2, 3)",
        "out: has shape (6,); the result has shape (2, 3)",
    ]


def test_the_kit_tries_a_made_up_reduction():
    out = with_made_up(
        REDUCTION
        + """
from lsm._conformance import run
NumpyBackend.dtypes = ("float32",)
report = run.check_backend("numpy")
print([o for o in report.outcomes if o.outcome == "failed"])

def wrong(self, x, axis, out):
    out[...] = np.nanmax(x, axis=axis, keepdims=True)

NumpyBackend.made_up = wrong
print([o.check for o in run.check_backend("numpy").outcomes if o.outcome == "failed"])
"""
    )
    assert out == ["[]", "['a NaN spoils its frame and no other', 'no warnings']"]


def test_lsm_apply_takes_a_made_up_reduction(tmp_path):
    out = with_made_up(
        REDUCTION
        + """
from lsm import _apply
from lsm.cli import main
_apply.BLOCK_BYTES = 64
for x in (np.random.default_rng(0).normal(size=(5, 3, 4)), np.zeros((2, 0, 3)), np.zeros((0, 3)), np.array(3.0)):
    for values in (x, np.asfortranarray(x)):
        for axis in ([str(i) for i in range(x.ndim)] + ["all"]):
            np.save("x.npy", values)
            assert main(["apply", "--op", "made_up", "--axis", axis, "x.npy", "y.npy"]) == 0
            y = np.load("y.npy")
            wanted = lsm.made_up(x, None if axis == "all" else int(axis))
            assert y.shape == np.shape(wanted) and (y == wanted).all(), (x.shape, axis)
""",
        cwd=tmp_path,
    )
    assert out == []


def test_the_contract_takes_an_optional_operation_and_asks_for_none():
    out = with_made_up("""
from lsm.backends.contract import contract_problem, has_operation

class Two(lsm.Backend):
    name, api_version, dtypes = "two", 1, ("float32",)
    def log_softmax(self, x, axis, out): pass
    def log_softmax_backward(self, grad_output, output, axis, out): pass

class Three(Two):
    def made_up(self, x, axis, out): pass

class Wrong(Two):
    def made_up(self, x): pass

for backend in (Two(), Three(), Wrong()):
    print(contract_problem(backend, "two"), has_operation(backend, "made_up"))
""")
    assert out[:2] == ["None False", "None True"]
    assert "made_up" in out[2] and "3 arguments" in out[2]


class Shape:
    def __init__(self, *shape):
        self.shape = shape


def test_the_shapes_of_any_number_of_inputs_are_compared():
    _check.same_shapes((Shape(2, 3), Shape(2, 3), Shape(2, 3)), ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"a, b, c: shapes \(2, 3\) and \(3,\) and \(2, 3\) differ"):
        _check.same_shapes((Shape(2, 3), Shape(3), Shape(2, 3)), ("a", "b", "c"))
