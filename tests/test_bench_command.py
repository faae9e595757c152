"""`lsm bench`: its arguments, files and exit codes, with an engine that measures nothing."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import planted_results as planted
import pytest

import lsm
import lsm.bench.run
from lsm.bench.options import Options
from lsm.bench.result import from_json
from lsm.cli import main


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """An empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def engine(monkeypatch):
    """Keeps the options it was given, and gives the first rows that are planted in it, or raises `end` after them."""

    def run(options, after_row):
        engine.options = options
        header = planted.header(command=options.command, wanted=list(options.implementations))
        result = replace(engine.result, header=header, rows=[])
        for row in engine.result.rows[: engine.n_rows]:
            result.rows.append(row)
            after_row(result, len(engine.result.rows))
        result.interrupted = len(result.rows) < len(engine.result.rows)
        if engine.end:
            raise engine.end
        return result

    engine = SimpleNamespace(result=planted.all_kinds(), n_rows=None, end=None, options=None)
    monkeypatch.setattr(lsm.bench.run, "run", run)
    return engine


def bench(*args):
    return main(["bench", *map(str, args)])


def refused(capsys, *args):
    """The one line that the command says when it refuses to work."""
    assert bench(*args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    said = [line for line in shown.err.splitlines() if "error: " in line]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        ("", {}),
        ("--set usual --only llm_step,rows small", {"only": ("llm_step", "rows", "small")}),
        ("--op forward --dtype float16 float32", {"op": ("forward",), "dtype": ("float16", "float32")}),
        ("--data peaked --threads 1,2,2 --memory", {"data": ("peaked",), "threads": (1, 2), "memory": True}),
        ("--rounds 3 --device cuda --no-memory", {"rounds": 3, "device": "cuda", "memory": False}),
        ("--set full --shape 64x128256 --axis 0", {"shape": (64, 128256), "axis": 0}),
        ("--set gpu --sweep classes", {"sweep": "classes", "device": "cuda"}),
        ("--set map", {"implementations": ("cython", "torch")}),
        ("--set map --op logsumexp", {"op": ("logsumexp",), "implementations": ("cython", "torch", "scipy")}),
        ("--set scale", {"implementations": ("cython", "dask")}),
        ("--set map --implementations jax", {"implementations": ("jax",)}),
    ],
)
def test_every_argument_reaches_the_engine(work, engine, args, asked):
    assert bench(*args.split()) == 0
    name = args.split()[1] if args.startswith("--set") else "quick"
    assert engine.options == Options(**{"set": name} | asked, command=f"lsm bench {args}".rstrip())
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--axis 1", "error: --axis: 1; needs --shape"),
        ("--shape 3x0", "argument --shape: '0'; accepted: whole numbers from 1"),
        ("--shape 3 --axis 1", "--axis: 1; accepted: -1 to 0"),
        ("--shape 3 --only small", "error: --shape: it replaces the named workloads"),
        ("--threads 1,0", "accepted: whole numbers from 1"),
        ("--tolerance 1.2", "error: --tolerance: 1.2; accepted: a ratio from 1, with --compare FILE"),
        ("--tolerance 0.5 --compare old", "error: --tolerance: 0.5; accepted: a ratio from 1"),
        ("--tolerance nan --compare old", "error: --tolerance: nan; accepted: a ratio from 1"),
        ("--op sideways", "argument --op: 'sideways'; accepted: forward, backward, forward+backward"),
        ("--dtype float32,float8", "argument --dtype: 'float8'; accepted: float16, bfloat16, float32, float64"),
        ("--data odd", "argument --data: 'odd'; accepted: logits, peaked, masked, constant"),
        ("--chart c.pdf", "accepted: a name that ends in .svg or .png"),
        ("--set huge", "choose from"),
        ("--json r.svg --chart ./r.svg", "each result needs a file of its own"),
        ("--only nothing", "error: --only: 'nothing' matches none; accepted: small, "),
        ("--implementations none", "error: --implementations: 'none' matches none; accepted: lsm cython, "),
        ("--threads 999999", "error: --threads: 999999 threads were asked for; lsm would use "),
        ("--from r --threads 2 --memory", "--from: reports what was measured before; leave out --memory, --threads"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_measuring(capsys, args, said):
    assert said in refused(capsys, *args.split())


def test_all_outputs_of_one_run(work, engine, capsys):
    Path("r.md").touch()
    assert bench("--json", "r.json", "--markdown", "r.md", "--chart", "r.svg") == 0
    shown = capsys.readouterr()
    assert "geometric mean" in shown.out and "\x1b" not in shown.out + shown.err
    assert "[1/3] llm_step 1x151936 float32, forward, 2 threads: lsm cython 100 us (1.00x), torch" in shown.err
    assert from_json(Path("r.json").read_text()).rows == engine.result.rows
    assert Path("r.md").read_text().startswith("# lsm bench\n")
    ElementTree.parse("r.svg")
    assert sorted(path.name for path in work.iterdir()) == ["r.json", "r.md", "r.svg"]
    engine.options = None
    assert bench("--from", "r.json", "--chart", "r.png", "--markdown", "r.md") == 0  # an earlier report is replaced
    assert capsys.readouterr().out == shown.out and engine.options is None
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "row", "code", "said"),
    [
        ("", planted.row([planted.entry()]), 0, "of lsm: 0 slower and 0 faster by more than 1.3"),
        ("", planted.row([planted.entry(us=140.0)]), 1, "Slower by more than 1.3\nlsm cython, llm_step 1x151936"),
        ("--tolerance 1.5", planted.row([planted.entry(us=140.0)]), 0, "0 slower and 0 faster by more than 1.5"),
        ("", planted.row([planted.entry("torch")]), 1, "llm_step 1x151936 float32, forward, 2 threads: missing"),
        ("--implementations torch", planted.row([planted.entry("torch")]), 3, "Nothing was judged"),  # on purpose
        ("", planted.row(threads=1), 2, "Not compared"),
        ("", planted.row(workload="senones"), 2, "Not compared\n'old.json' has nothing ranked in a row that this"),
    ],
)
def test_compare_both_ways(engine, capsys, args, row, code, said):
    Path("old.json").write_text(planted.result().to_json())
    engine.result = planted.result([row])
    assert bench("--compare", "old.json", "--json", "new.json", "--markdown", "r.md", *args.split()) == code
    shown = capsys.readouterr().out
    assert "geometric mean" in shown and said in shown
    assert bench("--from", "new.json", "--compare", "old.json", *args.split() * ("--tolerance" in args)) == code
    assert capsys.readouterr().out == shown and said.split("\n")[0] in Path("r.md").read_text()


@pytest.mark.parametrize("flag", ["--json", "--markdown", "--chart"])
@pytest.mark.parametrize("name", ["missing/r.svg", "d.svg", "fifo.svg"])
def test_a_path_that_cannot_be_written_is_refused_before_measuring(work, engine, capsys, flag, name):
    (work / "d.svg").mkdir()
    os.mkfifo("fifo.svg")
    before = sorted(work.rglob("*"))
    assert repr(name) in refused(capsys, flag, name)
    assert engine.options is None
    assert sorted(work.rglob("*")) == before


WHOLE = planted.result().to_json()
HOSTILE = {
    "binary": b"\xff\xfe\x00",
    "no object": b"[1]",
    "another format": WHOLE.replace('"format": 3', '"format": 99').encode(),
    "deep": b"[" * 100_000,
    "more than there is": WHOLE.replace('"threads": 2', '"threads": 2, "more": 1').encode(),
    "less than there is": WHOLE.replace('"case"', '"cage"').encode(),
}


@pytest.mark.parametrize("flag", ["--from", "--compare"])
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_files_that_are_no_result(work, engine, capsys, flag, data):
    Path("r.json").write_bytes(data)
    assert "'r.json': " in refused(capsys, flag, "r.json")
    for name in ("missing.json", str(work)):
        assert f"{name!r} cannot be read: " in refused(capsys, flag, name)
    assert engine.options is None


def test_control_characters_in_a_file_stay_text(capsys):
    rows = [planted.row([planted.entry(), planted.entry("\x1b[31mred\n| x")])]
    Path("r.json").write_text(planted.result(rows).to_json())
    assert bench("--from", "r.json", "--markdown", "r.md", "--chart", "r.svg") == 0
    text = capsys.readouterr().out + Path("r.md").read_text() + Path("r.svg").read_text()
    assert "\x1b" not in text and "\\x1b[31mred" in text


def test_a_full_disk_loses_no_report(engine, capsys, monkeypatch):
    def full(name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lsm.bench.command._write", full)
    assert bench("--markdown", "r.md") == 1
    shown = capsys.readouterr()
    assert "geometric mean" in shown.out and "No space left on device" in shown.err


@pytest.mark.parametrize(("library", "args"), [("rich", ""), ("threadpoolctl", ""), ("matplotlib", "--chart r.svg")])
def test_a_missing_library_is_named_with_the_remedy(engine, capsys, monkeypatch, library, args):
    monkeypatch.setitem(sys.modules, library, None)
    said = refused(capsys, *args.split())
    assert f"lsm bench needs {library}" in said and "python -m pip install 'lsm-softmax[bench]'" in said
    assert engine.options is None


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (None, 130, "lsm: interrupted; what was measured is reported"),
        (ValueError("on fire"), 1, "lsm: error: ValueError: on fire; what was measured until then is reported"),
    ],
)
def test_what_was_measured_before_an_interruption_or_a_failure_is_kept(work, engine, capsys, end, code, said):
    engine.end, engine.n_rows = end, 2
    assert bench("--json", "r.json", "--markdown", "r.md") == code
    shown = capsys.readouterr()
    assert said in shown.err and "interrupted: after 2 rows; what was measured is here" in shown.out
    assert "hasty" in shown.out and "senones" not in shown.out and "hasty" in Path("r.md").read_text()
    kept = from_json(Path("r.json").read_text())
    assert kept.interrupted and kept.rows == engine.result.rows[:2]
    assert sorted(path.name for path in work.iterdir()) == ["r.json", "r.md"]
    assert bench("--from", "r.json") == 0  # the run was interrupted, and not this report


def test_an_interruption_before_the_first_row(engine, capsys):
    engine.n_rows = 0
    old = planted.result().to_json()
    Path("r.json").write_text(old)
    assert bench("--json", "r.json", "--chart", "r.svg", "--compare", "r.json") == 130
    assert "interrupted: after 0 rows" in capsys.readouterr().out
    assert Path("r.json").read_text() == old and not Path("r.svg").exists()


@pytest.mark.parametrize("rows", [[], [planted.row([])], [planted.row([planted.entry(us=None, **planted.RAISED)])]])
def test_a_run_that_timed_nothing_is_no_success(engine, capsys, rows):
    engine.result = planted.result(rows)
    assert bench() == 1
    shown = capsys.readouterr()
    assert "lsm: error: nothing was measured" in shown.err and "jax is not installed" in shown.out


STOPPED = """
import gc, os, signal, sys
from pathlib import Path
def stop(phase, info):
    if phase == "start" and Path("r.json").exists():
        gc.callbacks.remove(stop)
        os.kill(os.getpid(), signal.{})
        sum(range(10))  # Python calls the handler here, and discards what it raises
gc.callbacks.append(stop)
from lsm.cli import main
sys.exit(main())
"""
RUN = "bench --shape 4x6 --op forward backward --dtype float32 float64 float16 --implementations cython --rounds 2"


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_a_run_in_order_even_if_a_callback_swallows_it(work, signal, code):
    command = [sys.executable, "-c", STOPPED.format(signal), *RUN.split(), "--threads", "1", "--json", "r.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Exception ignored" in done.stderr  # else nothing was swallowed, and this tests nothing
    assert done.returncode == code, done.stderr
    assert "interrupted: after" in done.stdout and "lsm: interrupted; what was measured is reported" in done.stderr
    assert [path.name for path in work.iterdir()] == ["r.json"]
    kept = from_json(Path("r.json").read_text())
    assert kept.interrupted and 1 <= len(kept.rows) < 6


def test_the_other_commands_do_without():
    """`import lsm` and `lsm backends` load nothing that only a benchmark needs."""
    code = "import sys, lsm.cli; lsm.cli.main(['backends']); "
    code += "print([m for m in ('rich', 'threadpoolctl', 'matplotlib', 'lsm.bench.command') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
