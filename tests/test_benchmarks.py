"""The benchmarks run, with and without peers, and say what they should; how fast anything is, no test can tell."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cpu_report
from cpu_workloads import SWEEP, WORKLOADS

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PEERS = ("torch", "onnxruntime")
HIDE = "import runpy, sys; sys.argv[:] = sys.argv[1:]; sys.path[0] = sys.argv.pop(0)\n"
RUN = "runpy.run_path(sys.argv[0], run_name='__main__')"


def run(script, *arguments, hidden=()):
    """Run a script as a user does; modules in `hidden` are as good as not installed."""
    code = HIDE + "".join(f"sys.modules[{name!r}] = None\n" for name in hidden) + RUN
    command = [sys.executable, "-c", code, str(BENCHMARKS), str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def table(text):
    """The first table of a Markdown text, as a list of dicts."""
    lines = re.search(r"^\|.*?(?=\n\n|\Z)", text.strip(), re.DOTALL | re.MULTILINE).group().splitlines()
    names, rule, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
    assert set("".join(rule)) == {"-"}
    assert all(len(row) == len(names) for row in rows)
    return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.mark.parametrize("hidden", [(), PEERS], ids=["the installed peers", "no peers"])
def test_the_speed_benchmark_measures_and_reports(hidden, tmp_path):
    as_json, as_markdown = tmp_path / "t.json", tmp_path / "t.md"
    wish = ["--only", "tiny", "--rounds", "2", "--threads", "1", "--json", as_json, "--markdown", as_markdown]
    done = run("cpu.py", *wish, hidden=hidden)
    assert done.returncode == 0, done.stderr
    assert "[2/2]" in done.stderr

    result = json.loads(as_json.read_text())
    header = result["header"]
    assert header["processor"] and header["last_cache"] > 0 and header["levels"]["lsm"]
    assert header["threads"] == [1] and header["rounds"] == 2
    assert set(header["absent_peers"]) | set(header["versions"]) == {*PEERS, "python", "numpy", "lsm"}
    if hidden:
        assert header["absent_peers"]["torch"] == "torch is not installed"
    assert [row["op"] for row in result["rows"]] == ["forward, new result", "backward"]
    for row in result["rows"]:
        assert row["workload"] == "tiny-1x10-float32" and row["threads"] == 1
        assert all(len(turns) == 2 and min(turns) > 0 for turns in row["turns_us"].values())
        assert set(row["turns_us"]) == set(row["calls"]) == set(row["us"])
        assert row["share"] is None  # 80 bytes fit into any cache
        if row["peer"]:
            assert row["ratio"]["p20"] <= row["ratio"]["median"] <= row["ratio"]["p80"]
    has_torch = "torch" in header["versions"]
    assert all((row["peer"] is not None) == has_torch for row in result["rows"] if row["op"] == "backward")

    rows = table(as_markdown.read_text())
    assert [(row["workload"], row["shape"], row["op"]) for row in rows] == [
        ("tiny", "1x10", "forward, new result"),
        ("tiny", "1x10", "backward"),
    ]
    assert all(float(row["lsm us"]) > 0 for row in rows)
    assert bool(rows[1]["ratio (p20..p80)"]) == has_torch

    again = run("cpu.py", "--from", as_json)  # what an interrupted run left can be reported
    assert again.stdout.strip() == as_markdown.read_text().strip()

    chart = tmp_path / "t.svg"
    drawn = run("cpu.py", "--from", as_json, "--chart", chart)
    if importlib.util.find_spec("matplotlib"):
        assert drawn.returncode == 0, drawn.stderr
        assert "<svg" in chart.read_text() and "prefers-color-scheme: dark" in chart.read_text()
    else:
        assert drawn.returncode == 1 and "pip install matplotlib" in drawn.stderr


@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        (["--only", "nobody"], "no such workload"),
        (["--threads", "0"], "whole numbers from 1"),
        (["--threads", "1000000", "--only", "tiny"], "threads were asked for"),
        (["--peers", "nobody"], "--peers: accepted: torch, onnxruntime"),
    ],
)
def test_a_wish_that_cannot_be_served_is_refused(wish, answer):
    done = run("cpu.py", *wish, hidden=PEERS)
    assert done.returncode != 0
    assert answer in done.stderr and "Traceback" not in done.stderr


def test_ratios_are_taken_within_a_round():
    # The machine became ten times slower from round to round, and the ratio stayed the same.
    times = {"lsm": [1.0, 10.0, 100.0], "a": [2.0, 20.0, 200.0], "b": [3.0, 30.0, 300.0], "limit": [0.5, 5.0, 50.0]}
    row = cpu_report.figures(times, n_bytes=10_000, limit="limit")
    assert row["peer"] == "a"
    assert set(row["ratio"].values()) == {2.0}
    assert set(row["share"].values()) == {0.5}
    assert row["gb_per_s"] == pytest.approx(1.0)


def test_what_misses_its_target_is_listed():
    slow = {"group": "llm", "shape": [2, 3], "axis": -1, "types": "float32", "is_16_bit": False, "threads": 1}
    slow |= {"op": "forward", "peer": "torch", "ratio": cpu_report.spread([1.2]), "share": cpu_report.spread([0.69])}
    assert len(cpu_report.misses([slow])) == 2
    assert cpu_report.misses([slow | {"ratio": cpu_report.spread([1.3]), "share": None}]) == []
    assert cpu_report.means([slow, slow | {"ratio": cpu_report.spread([4.8])}]) == {
        ("forward", False, 1): (pytest.approx(2.4), 2)
    }


def test_names_of_workloads_are_unique():
    names = [workload.name for workload in WORKLOADS + SWEEP]
    assert len(set(names)) == len(names)


def test_the_memory_benchmark_measures_and_judges():
    done = run("memory.py", "--megabytes", "16")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = table(done.stdout)
    assert {"float32", "float16", "bfloat16", "float32, every second class"} <= {row["case"] for row in rows}
    assert all(row["input MB"] == ("32" if "backward" in row["case"] else "16") for row in rows)
    assert all(row["kept"] == "yes" for row in rows)  # room for one frame would be 2 MB


def test_the_accuracy_benchmark_measures_and_reports(tmp_path):
    as_json = tmp_path / "a.json"
    hidden = ("torch", "jax", "onnxruntime", "scipy.special")
    done = run("accuracy.py", "--classes", "10", "--json", as_json, hidden=hidden)
    assert done.returncode == 0, done.stderr
    result = json.loads(as_json.read_text())
    assert len(result["machine"]["absent"]) == 4 and result["machine"]["classes"] == [10]
    rows = table(done.stdout)
    assert len(rows) == 4 * 6 and {row["forward"] for row in rows} == {"float16", "bfloat16", "float32", "float64"}
    for row in result["rows"]:
        bound = 0.501 if "16" in row["dtype"] else 4
        assert all(ulps <= bound for ulps in row["ulps"].values()), row


def test_the_exponential_benchmark_measures_and_reports(tmp_path):
    as_json = tmp_path / "e.json"
    done = run("exponential.py", "--quick", "--m", "0", "--json", as_json, hidden=("tqdm",))
    assert done.returncode == 0, done.stderr
    rows = json.loads(as_json.read_text())["rows"]
    assert [row["what"] for row in rows[:2]] == ["exp(x - m), m = 0", "exp(y) in the gradient, y < 88"]
    assert rows[0]["n_tried"] > 2e6 and not any(row["wrong"] for row in rows)
    assert "largest error, ulp" in table(done.stdout)[0]


@pytest.mark.parametrize("hidden", [(), PEERS], ids=["the installed peers", "no peers"])
def test_the_benchmark_of_small_calls_prints_both_tables(hidden):
    done = run("small_calls.py", "--repeats", "1", hidden=hidden)
    assert done.returncode == 0, done.stderr
    calls, pieces = done.stdout.split("\n\n")
    rows = [row["float32, ns a call"] for row in table(calls)]
    assert "(1, 10) lsm" in rows
    if hidden:
        assert not any("torch" in row for row in rows)
    assert table(pieces)[-1]["pieces of a call on (1, 10)"] == "the whole call"


def test_the_front_of_a_call_is_measured_with_plugins():
    done = run("dispatch.py", "--repeats", "2")
    assert done.returncode == 0, done.stderr
    rows = {row["ns, float32 (1, 10)"]: row for row in table(done.stdout)}
    known = rows["backends known"]
    assert int(known["10 plugins"]) == int(known["no plugin"]) + 10
    assert all(float(rows[name]["10 plugins"]) > 0 for name in ("forward, automatic", "the kernel itself, forward"))


def test_the_benchmarks_run_under_pytest_and_compare(tmp_path):
    wish = [
        "--benchmark-only",
        "--benchmark-max-time=0.001",
        "--benchmark-min-rounds=1",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    wish += ["--bench-workloads=small", "--bench-contestants=cython,idiom", f"--benchmark-storage={tmp_path}"]
    wish += ["-q", "-p", "no:cacheprovider", "-k", "test_workload or test_call_backward"]
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), *wish]
    # pytest-benchmark times nothing within pytest-xdist, by whose variables it would think itself to be there.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    options = {"capture_output": True, "text": True, "cwd": BENCHMARKS.parent, "env": env}
    saved = subprocess.run([*command, "--benchmark-save=before"], **options)
    assert saved.returncode == 0, saved.stdout + saved.stderr
    (file,) = tmp_path.rglob("*_before.json")
    found = json.loads(file.read_text())["benchmarks"]
    groups = {one["group"] for one in found}
    assert {f"small 32x10 float32 {op}" for op in ("forward", "backward", "forward+backward")} < groups
    assert "a call on 1x10 float32, backward" in groups
    extra = next(one["extra_info"] for one in found if "cython-out" in one["name"])
    assert extra["is_right"] and extra["max_ulp"] <= 4 and extra["gb_s"] > 0 and extra["call"].startswith("log_softmax")
    compared = subprocess.run([*command, "--benchmark-compare"], **options)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "(0001_before)" in compared.stdout and "(NOW)" in compared.stdout


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("threads", "0", "0 threads were asked for; "),
        ("threads", "1000000", "1000000 threads were asked for; "),
        ("workloads", "nonsense", "'nonsense' is none; accepted: small, "),
        ("contestants", "nonsense", "'nonsense' is nobody; accepted: lsm cython, "),
    ],
)
def test_options_that_cannot_be_are_refused_once_under_pytest_benchmark(option, value, why):
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "--benchmark-only", f"--bench-{option}", value]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent, timeout=60)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert len(said) == 1 and said[0].startswith(f"ERROR: --bench-{option}: {why}")
