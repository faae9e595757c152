"""The benchmarks run, with and without peers, and report what they should; how fast anything is, no test can say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu import cupy_on_cpu
from test_cupy import built_in

import gpu
from lsm.backends.cupy_ import CupyBackend

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PEERS = ("torch", "onnxruntime")
HIDE = "import runpy, sys; sys.argv[:] = sys.argv[1:]; sys.path[0] = sys.argv.pop(0)\n"
RUN = "runpy.run_path(sys.argv[0], run_name='__main__')"


def printed(script, *arguments, hidden=()):
    """What a script prints, run as a user does; modules in `hidden` are as good as not installed."""
    code = HIDE + "".join(f"sys.modules[{name!r}] = None\n" for name in hidden) + RUN
    command = [sys.executable, "-c", code, str(BENCHMARKS), str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(text):
    """The first table of a Markdown text, as a list of dicts."""
    lines = re.search(r"^\|.*?(?=\n\n|\Z)", text.strip(), re.DOTALL | re.MULTILINE).group().splitlines()
    names, rule, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
    assert set("".join(rule)) == {"-"}
    assert all(len(row) == len(names) for row in rows)
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_the_exponential_benchmark_measures_and_reports(tmp_path):
    as_json = tmp_path / "e.json"
    text = printed("exponential.py", "--quick", "--m", "0", "--json", as_json, hidden=("tqdm",))
    rows = json.loads(as_json.read_text())["rows"]
    assert [row["what"] for row in rows[:2]] == ["exp(x - m), m = 0", "exp(y) in the gradient, y < 88"]
    assert rows[0]["n_tried"] > 2e6 and not any(row["wrong"] for row in rows)
    assert "largest error, ulp" in table(text)[0]


@pytest.mark.parametrize("hidden", [(), PEERS], ids=["the installed peers", "no peers"])
def test_the_benchmark_of_small_calls_prints_both_tables(hidden):
    calls, pieces = printed("small_calls.py", "--repeats", "1", hidden=hidden).split("\n\n")
    rows = [row["float32, ns a call"] for row in table(calls)]
    assert "(1, 10) lsm" in rows and not (hidden and any("torch" in row for row in rows))
    assert table(pieces)[-1]["pieces of a call on (1, 10)"] == "the whole call"


def test_the_front_of_a_call_is_measured_with_plugins():
    rows = {row["ns, float32 (1, 10)"]: row for row in table(printed("dispatch.py", "--repeats", "2"))}
    known = rows["backends known"]
    assert int(known["10 plugins"]) == int(known["no plugin"]) + 10
    assert all(float(rows[name]["10 plugins"]) > 0 for name in ("forward, automatic", "the kernel itself, forward"))


def test_the_benchmarks_run_under_pytest_and_compare(tmp_path):
    given = "-q -p no:cacheprovider --benchmark-only --benchmark-max-time=0.001 --benchmark-min-rounds=1"
    given += f" --bench-only=small --bench-implementations=cython,idiom --benchmark-storage={tmp_path}"
    command = [sys.executable, "-m", "pytest", BENCHMARKS, *given.split(), "-k", "test_workload or test_call_backward"]
    # pytest-benchmark times nothing within pytest-xdist, by whose variables it would think itself to be there.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    options = {"capture_output": True, "text": True, "cwd": BENCHMARKS.parent, "env": env}
    saved = subprocess.run([*command, "--benchmark-save=before"], **options)
    assert saved.returncode == 0, saved.stdout + saved.stderr
    (file,) = tmp_path.rglob("*_before.json")
    found = json.loads(file.read_text())["benchmarks"]
    groups = {one["group"] for one in found}
    assert {f"small 32x10 float32, {op}" for op in ("forward", "backward", "forward+backward")} < groups
    assert "a call on 1x10 float32, backward" in groups
    extra = next(one["extra_info"] for one in found if "cython-out" in one["name"])
    assert extra["is_right"] and extra["max_ulp"] <= 4 and extra["gb_s"] > 0 and extra["call"].startswith("log_softmax")
    compared = subprocess.run([*command, "--benchmark-compare"], **options)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "(0001_before)" in compared.stdout and "(NOW)" in compared.stdout


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("threads", "0", "0 is not a number of threads; "),
        ("threads", "1000000", "1000000 threads were asked for; "),
        ("only", "nonsense", "'nonsense' matches none; accepted: small, "),
        ("implementations", "nonsense", "'nonsense' matches none; accepted: lsm cython, "),
    ],
)
def test_options_that_cannot_be_are_refused_once_under_pytest_benchmark(option, value, why):
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "--benchmark-only", f"--bench-{option}", value]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent, timeout=60)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert len(said) == 1 and said[0].startswith(f"ERROR: --bench-{option}: {why}")


def test_the_gpu_benchmark_says_that_there_is_no_gpu(tmp_path, capsys):
    with built_in(CupyBackend(cupy_on_cpu.module(driverGetVersion=lambda: 0))):
        assert gpu.main([str(tmp_path / "results")]) == 2
    assert "no GPU here that lsm can use, so nothing was measured: no NVIDIA driver" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert gpu.main(["--list", "--only", "bench"]) == 0
    assert "lsm bench --set gpu --json" in capsys.readouterr().out


def test_the_gpu_benchmark_runs_its_steps_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "")
    steps = {"tests": "-c 'print(1)'", "kit": "-c 'raise SystemExit(3)'"}
    steps = {name: f"{sys.executable} {code}" for name, code in steps.items()} | {"bench": "no-such-command"}
    monkeypatch.setattr(gpu, "STEPS", steps)
    assert gpu.main([str(tmp_path), "--only", "tests"]) == 0
    assert gpu.main([str(tmp_path), "--only", "tests", "kit", "bench"]) == 1
    assert capsys.readouterr().out.split("\n")[1] == "tests: passed"
    assert (tmp_path / "tests.txt").read_text() == "1\n"
    assert (tmp_path / "bench.txt").read_text() == "no-such-command is not installed\n"
    assert sorted(path.name for path in tmp_path.glob("*.passed")) == ["tests.passed"]


def test_the_gpu_benchmark_runs_commands_that_there_are():
    for step in ("kit", "bench"):  # they say that there is no GPU, and not that they do not know an option
        done = subprocess.run([sys.executable, "-m", *gpu.STEPS[step].split()[2:4], "--help"], capture_output=True)
        known = set(re.findall(r"--[a-z]+", done.stdout.decode()))
        assert set(re.findall(r"--[a-z]+", gpu.STEPS[step])) <= known
    assert "--require cupy -k 'cupy or on_gpu'" in gpu.PYTEST  # the names of test_on_gpu.py are not all of cupy
