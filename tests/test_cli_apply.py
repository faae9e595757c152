"""`lsm apply` with the other functions: the bits of the whole array, one result or two, or one clear line."""

import os
from pathlib import Path

import numpy as np
import pytest
from test_cli import refused, saved, small_blocks, work  # noqa: F401 (fixtures)

import lsm
from lsm import _files
from lsm.cli import main

SHAPES = [((7,), 0), ((50, 3), 1), ((3, 50), 0), ((5, 4, 6), 1), ((1, 40), -1), ((2, 0, 3), 2), ((), -1)]


@pytest.fixture(params=["C", "F"])
def logits(request, rng):
    """Save logits as x.npy."""

    def save(shape, dtype="float32"):
        x = np.asarray(rng.normal(size=shape).astype(dtype), order=request.param)
        np.save("x.npy", x)
        return x

    return save


def apply(op, axis, *args):
    assert main(["apply", "--op", op, "x.npy", "y.npy", "--axis", str(axis), *map(str, args)]) == 0
    return np.load("y.npy")


def same(result, expected):
    assert result.dtype == expected.dtype and result.shape == expected.shape
    assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_every_function_gives_the_bits_of_the_whole_array(work, small_blocks, logits, rng, shape, axis):  # noqa: F811
    x = logits(shape)
    for op in ("softmax", "logsumexp", "entropy"):
        same(apply(op, axis), np.asarray(getattr(lsm, op)(x, axis)))
    n = x.shape[axis] if shape else 1
    values, places = apply("top_k_log_softmax", axis, "--k", min(n, 2)), np.load("y.indices.npy")
    expected = lsm.top_k_log_softmax(x, min(n, 2), axis)
    same(values, np.asarray(expected.values))
    same(places, np.asarray(expected.indices))
    frames = tuple(np.delete(shape, axis)) if shape else ()
    np.save("i.npy", rng.integers(0, n, frames).astype(">i4"))
    same(apply("take_log_softmax", axis, "--index", "i.npy"), lsm.take_log_softmax(x, np.load("i.npy"), axis))


@pytest.mark.parametrize("shape", [(5, 2, 6), (1, 2, 6), (5, 2, 1), (1, 0, 1)])
def test_several_indices_of_each_frame_or_the_same_for_all(work, small_blocks, logits, rng, shape):  # noqa: F811
    x, i = logits((5, 4, 6)), rng.integers(0, 4, shape)
    np.save("i.npy", i)
    same(apply("take_log_softmax", 1, "--index", "i.npy"), lsm.take_log_softmax(x, i, 1))


def test_temperature_dtype_and_backend(work, logits):  # noqa: F811
    x = logits((4, 3), "float16")
    for op in ("log_softmax", "softmax", "entropy"):
        expected = getattr(lsm, op)(x, temperature=0.5, dtype="float64", backend="numpy")
        same(apply(op, -1, "--temperature", 0.5, "--dtype", "float64", "--backend", "numpy"), expected)
    assert apply("entropy", -1).dtype == np.float32


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("entropy --k 2", "--k is an option of --op top_k_log_softmax, not of entropy"),
        ("logsumexp --temperature 2", "--temperature is an option of --op log_softmax, log_softmax_backward, softmax"),
        ("top_k_log_softmax", "top_k_log_softmax needs --k K; IN is x"),
        ("top_k_log_softmax --k two", "--k: invalid int value: 'two'"),
        ("take_log_softmax", "take_log_softmax needs --index FILE.npy; IN is x"),
        (
            "softmax --index i.npy",
            "--index is an input of --op take_log_softmax, not of softmax; the result is written to OUT",
        ),
    ],
)
def test_usage(work, capsys, args, said):  # noqa: F811
    assert main(["apply", "x.npy", "y.npy", "--op", *args.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("top_k_log_softmax --k 6", "k: 6; accepted: from 0 to 5"),
        ("top_k_log_softmax --k 1 --axis 0,1", "axis: (0, 1); accepted: one int"),
        ("take_log_softmax --index i.npy", "indices: 5 at [3, 2]; accepted: 0 to 4; pass numpy.where"),
        ("take_log_softmax --index x.npy", "indices: dtype float64; accepted: integers"),
        ("take_log_softmax --index i.npy --axis 0", "'i.npy' (shape (4, 3), dtype int64)"),
        ("take_log_softmax --index i.npy --axis 0", "indices: shape (4, 3); accepted for x of shape (4, 5): (5,)"),
        ("take_log_softmax --index none.npy", "'none.npy' cannot be read"),
        ("entropy --temperature 0", "temperature: 0.0; accepted"),
        ("softmax --axis 2", "axis 2 is out of bounds"),
    ],
)
def test_what_is_refused(work, small_blocks, capsys, args, said):  # noqa: F811
    np.save("x.npy", np.zeros((4, 5)))
    i = np.zeros((4, 3), int)
    i[3, 2] = 5
    np.save("i.npy", i)
    assert said in refused(capsys, "apply", "x.npy", "y.npy", "--op", *args.split())
    assert sorted(path.name for path in work.iterdir()) == ["i.npy", "x.npy"]


@pytest.mark.parametrize("are_there", [False, True])
@pytest.mark.parametrize("has_links", [False, True])
@pytest.mark.parametrize("error", [OSError(1, "Operation not permitted"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", ["y.npy", "y.indices.npy"])
def test_both_results_are_replaced_or_neither(work, monkeypatch, are_there, has_links, error, failing):  # noqa: F811
    np.save("x.npy", np.zeros((4, 5)))
    for name in ("y.npy", "y.indices.npy") if are_there else ():
        Path(name).write_text(name)
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    replace, failed = Path.replace, []

    def refuses(self, target):
        if Path(target).name == failing and not failed:
            failed.append(target)
            raise error
        return replace(self, target)

    def link(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "replace", refuses)
    if not has_links:
        monkeypatch.setattr(os, "link", link)
    args = ["apply", "x.npy", "y.npy", "--op", "top_k_log_softmax", "--k", "2"]
    assert main(args) == (1 if isinstance(error, OSError) else 130)
    assert failed and {path.name: path.read_bytes() for path in work.iterdir()} == before
    assert main(args) == 0
    assert {path.name for path in work.iterdir()} == {"x.npy", "y.npy", "y.indices.npy"}


def test_the_two_results_need_two_files(work, capsys):  # noqa: F811
    np.save("x.npy", np.zeros((4, 5)))
    (work / "y.indices").symlink_to("y")
    assert "needs a file of its own" in refused(capsys, "apply", "--op", "top_k_log_softmax", "--k", "1", "x.npy", "y")
    assert not (work / "y").exists()


def test_an_interrupt_after_the_last_rename_changes_nothing_more(work, monkeypatch):  # noqa: F811
    old, new = [work / "a", work / "b"], [work / "c", work / "d"]
    for path in (*old, *new):
        path.write_text(path.name)
    replace = Path.replace

    def interrupted(self, target):
        replace(self, target)
        if target == new[1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _files.replace_all(old, new)
    assert {path.name: path.read_text() for path in work.iterdir()} == {"c": "a", "d": "b"}


def test_values_and_indices_may_replace_the_logits(work, small_blocks):  # noqa: F811
    x = np.arange(40.0).reshape(10, 4)
    np.save("x.npy", x)
    assert main(["apply", "--op", "top_k_log_softmax", "--k", "3", "x.npy", "x.npy"]) == 0
    values, places = lsm.top_k_log_softmax(x, 3)
    assert (work / "x.npy").read_bytes() == saved(values) and (work / "x.indices.npy").read_bytes() == saved(places)
