"""The examples, the README's code and the README's table do what they say."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import family
import lsm

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
EXAMPLE = EXAMPLES / "digits.py"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


digits = load(EXAMPLE)
linear = load(EXAMPLES / "linear_cross_entropy.py")
promises = load(ROOT / "benchmarks" / "promises.py")
FAMILY = [row for row in family.FAMILY if f"| {row} |" in README]


def test_the_backends_learn_the_digits_and_agree():
    pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for backend in ("cython", "numpy"):
        row = re.search(rf"^{backend} +([\d.]+) +([\d.]+) +([\d.]+)% ", done.stdout, re.MULTILINE)
        first_loss, last_loss, accuracy = map(float, row.groups())
        assert first_loss == pytest.approx(np.log(10), abs=1e-6)  # zero weights: ten equal classes
        assert last_loss < 0.15
        assert accuracy >= 95
    assert "backends agree" in done.stdout


def test_a_missing_scikit_learn_is_named_with_the_remedy():
    hide_and_run = "import runpy, sys; sys.modules['sklearn'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hide_and_run, EXAMPLE], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "python -m pip install '.[examples]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_gradient_is_that_of_the_loss():
    rng = np.random.default_rng(0)
    images, labels, weights = rng.normal(size=(20, 7)), rng.integers(0, 10, 20), rng.normal(size=(7, 10))
    _, gradient = digits.loss_and_gradient(weights, images, labels)
    step = 1e-5  # the error of a central difference is about step**2 + 1e-16 / step
    for index in np.ndindex(weights.shape):
        losses = []
        for sign in (1, -1):
            moved = weights.copy()
            moved[index] += sign * step
            losses.append(digits.loss_and_gradient(moved, images, labels)[0])
        assert gradient[index] == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-9)


@pytest.mark.parametrize("other", [(2.3, 0.1, 0.96), (2.3, 0.1001, 0.97)])
def test_a_backend_that_learns_something_else_is_noticed(other):
    agree, verdict = digits.compare([digits.Run(2.3, 0.1, 0.97, 1.0), digits.Run(*other, 1.0)])
    assert not agree
    assert "DISAGREE" in verdict


@pytest.mark.parametrize("n_block", [1, 7, 20, 100])
def test_the_loss_of_a_last_layer_in_blocks(n_block):
    rng = np.random.default_rng(0)
    hidden, weight, targets = rng.normal(size=(20, 6)), rng.normal(size=(30, 6)), rng.integers(0, 30, 20)
    targets[3] = -100
    loss, d_hidden, d_weight = linear.linear_cross_entropy(hidden, weight, targets, n_block)
    expected, dx = lsm.cross_entropy_value_and_grad(hidden @ weight.T, targets, ignore_index=-100)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(d_hidden, dx @ weight, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(d_weight, dx.T @ hidden, rtol=1e-9, atol=1e-14)


def test_blocks_take_less_memory_than_all_logits(capsys):
    linear.main()
    whole, blocks = re.findall(r"loss ([\d.]+), +(\d+) MB", capsys.readouterr().out)
    assert float(whole[0]) == pytest.approx(float(blocks[0]), abs=2e-6)
    assert int(blocks[1]) < int(whole[1]) / 3


def test_the_readme_has_code():
    assert PYTHON_BLOCKS


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_the_readme_code_runs(code, capsys):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    y, dx = names["y"], names["dx"]
    np.testing.assert_allclose(np.exp(y).sum(axis=-1), 1, rtol=1e-6)
    wide = y.astype(np.float64)
    np.testing.assert_allclose(dx, -wide + np.exp(wide) * wide.sum(axis=-1, keepdims=True), rtol=1e-5, atol=1e-5)
    assert "served by" in capsys.readouterr().out


# Not the long frame: its error depends on the instruction level, and it takes seconds.
@pytest.mark.parametrize("row", [row for row in promises.PROMISES if not row.startswith("(c)")])
def test_the_readme_table_is_true(row):
    line = next(line for line in README.splitlines() if line.startswith(f"| {row} |"))
    assert promises.PROMISES[row](family.load_lsm()) == line.split("|")[2].strip()


def test_the_readme_examples():
    assert doctest.testfile(str(ROOT / "README.md"), module_relative=False).failed == 0


@pytest.mark.parametrize("row", FAMILY)
def test_the_readme_table_of_the_family_is_true(row):
    line = next(line for line in README.splitlines() if line.startswith(f"| {row} |"))
    assert family.filled(family.FAMILY[row], family.load_lsm()) == line.split("|")[2].strip()


def test_the_table_of_the_family_is_printed():
    done = subprocess.run([sys.executable, promises.__file__, "--family"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {
        line.split(" | ")[0][2:]: line.split(" | ")[1] for line in done.stdout.splitlines() if line.startswith("| ")
    }
    assert set(rows) >= set(family.FAMILY) and len(FAMILY) >= 10
    for row in FAMILY:
        assert f"| {row} | {rows[row]} |" in README
