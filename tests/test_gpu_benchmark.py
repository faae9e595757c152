"""benchmarks/gpu.py as far as it goes without a GPU: what it would measure, its sums, what it says of none."""

import json
import sys

import pytest
from cuda_on_cpu import cupy_on_cpu
from test_cupy import built_in

import gpu
import gpu_workloads
from gpu_workloads import BACKWARD, FORWARD, Workload, reached, summary, workloads
from lsm.backends.cupy_ import CupyBackend


def test_what_is_measured():
    found = workloads()
    assert len({workload.name for workload in found}) == len(found)
    assert {workload.dtype for workload in found} == set(gpu_workloads.SIZES)
    assert {workload.op for workload in found} == {FORWARD, BACKWARD}
    assert {10, 1003, 16_777_216} <= {workload.n_classes for workload in found}
    assert {0, 1} <= {workload.axis for workload in found}
    assert all(min(workload.shape) > 0 and workload.n_bytes <= 2**30 for workload in found)


@pytest.mark.parametrize(
    ("shape", "axis", "target"),
    [
        ((65_536, 1024), 1, 0.9),
        ((2048, 32_768), 1, 0.9),
        ((512, 131_072), 1, 0.8),
        ((64, 1_048_576), 1, 0.65),
        ((1024, 65_536), 0, 0.8),
        ((8, 1024), 1, None),
        ((10_000_000, 10), 1, None),
    ],
)
def test_targets(shape, axis, target):
    assert Workload(shape, axis, "float32", FORWARD).target == target
    assert Workload(shape, axis, "float32", BACKWARD).n_moved == Workload(shape, axis, "float32", FORWARD).n_moved * 1.5


def test_summary():
    rows = [
        {"name": "a", "times": {"lsm": 1.0, "torch": 2.0, "jax": 8.0}, "share": 0.95, "target": 0.9},
        {"name": "b", "times": {"lsm": 2.0, "torch": 1.0}, "share": 0.5, "target": 0.8},
        {"name": "c", "times": {"lsm": 2.0}, "share": 0.1, "target": None},
    ]
    found = summary(rows)
    assert found["geometric_mean"] == pytest.approx(1.0) and found["share_led"] == 0.5
    assert found["missed"] == ["b"] and (found["rows"], found["rows_with_peers"]) == (3, 2)
    assert summary([])["geometric_mean"] is None


@pytest.mark.parametrize(
    ("seconds", "share", "expected"),
    [
        ([2.0] * 10, 0.95, True),
        ([2.0] * 9 + [0.5], 0.95, True),  # nine rows of ten
        ([2.0] * 8 + [0.9] * 2, 0.95, False),
        ([1.001] * 9 + [0.5], 0.95, False),  # by the geometric mean
        ([2.0] * 10, 0.85, False),
        ([], 0.95, True),
    ],
)
def test_what_is_aimed_at(seconds, share, expected):
    rows = [{"name": "a", "times": {"lsm": 1.0, "torch": t}, "share": share, "target": 0.9} for t in seconds]
    rows.append({"name": "alone", "times": {"lsm": 1.0}, "share": share, "target": 0.9})
    assert reached(summary(rows)) is expected


def test_results_are_kept_at_once_and_not_made_again(tmp_path):
    path = tmp_path / "gpu.json"
    assert gpu.Results(path).get("tests", lambda: {"passed": True}) == {"passed": True}
    assert json.loads(path.read_text()) == {"tests": {"passed": True}}
    again = gpu.Results(path)
    assert again.get("tests", lambda: pytest.fail("made again")) == {"passed": True}


def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path, capsys):
    with built_in(CupyBackend(cupy_on_cpu.module(driverGetVersion=lambda: 0))):
        assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    assert "no GPU here that lsm can use, so nothing was measured: no driver" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_parts_are_commands_that_there_are(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "")
    monkeypatch.setattr(gpu, "machine", dict)
    monkeypatch.setattr(
        gpu, "run_command", lambda *command: ran.append(command) or {"passed": command[2] != "lsm", "said": ""}
    )
    assert gpu.main(["--only", "tests"]) == 0
    assert gpu.main(["--only", "tests", "kit"]) == 1  # one that failed is enough
    pytest_command, kit = ran[-2:]
    assert "check" in kit
    assert {"--require", "cupy or on_gpu"} <= set(pytest_command)  # the names of test_on_gpu.py are not all of cupy
    monkeypatch.undo()
    done = gpu.checked_by_the_kit()  # which says that there is no GPU, and not that it does not know an option
    assert gpu.why_no_gpu() == "" or (not done["passed"] and "cupy" in done["said"] and "usage" not in done["said"])


def test_the_list_needs_no_gpu(capsys):
    assert gpu.main(["--list", "--match", "axis0-float64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and all(": " in line and "target" in line for line in lines)


def test_a_command_that_fails_or_is_not_there():
    assert gpu.run_command(sys.executable, "-c", "print('yes')") == {
        "passed": True,
        "said": "yes\n",
        "seconds": 0.0,
    } | {"seconds": pytest.approx(0, abs=60)}
    assert not gpu.run_command(sys.executable, "-c", "raise SystemExit(3)")["passed"]
    assert gpu.run_command("no-such-command")["said"] == "no-such-command is not installed"
