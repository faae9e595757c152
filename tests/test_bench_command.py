"""`lsm bench`: its arguments, files and exit codes, with an engine that measures nothing."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import planted_results as planted
import pytest

import lsm.bench.chart
import lsm.bench.run
from lsm.bench import files
from lsm.bench.arguments import contestants
from lsm.bench.options import DTYPES, KINDS_OF_DATA, OPS, Options
from lsm.bench.result import from_json
from lsm.cli import main


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def engine(monkeypatch):
    """Tells what it was asked for, and gives what is planted in it; may be stopped after some rows."""

    class Engine:
        result = planted.all_kinds()
        stopped_after = failed_after = None

        def __call__(self, options, progress, save):
            self.options = options
            header = planted.header(command=options.command)
            rows, result = self.result.rows, planted.result([], absent=self.result.absent, header=header)
            progress.started(result.header, len(rows))
            try:
                for i, row in enumerate(rows):
                    progress.row_started(row.workload)
                    if i == self.stopped_after:
                        os.kill(os.getpid(), signal.SIGINT)
                        time.sleep(5)
                    if i == self.failed_after:
                        raise ValueError("the machine is on fire")
                    result.rows.append(row)
                    progress.row_done(row)
                    save(result)
            except (KeyboardInterrupt, ValueError) as stop:
                result.interrupted = True
                if result.rows:
                    save(result)
                if isinstance(stop, ValueError):
                    raise
            return result

    planted_engine = Engine()
    monkeypatch.setattr(lsm.bench.run, "run", planted_engine)
    return planted_engine


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing here needs a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


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


# What is asked for


def test_the_plain_command_asks_for_the_quick_set(work, engine, capsys):
    assert bench() == 0
    assert engine.options == Options(set="quick", command="lsm bench")
    assert list(work.iterdir()) == []


def test_every_argument_reaches_the_engine(work, engine, capsys):
    text = "--usual --only llm_step,senones small --op forward --dtype float16 float32 --data peaked --threads 1,2,2"
    text += " --contestants lsm torch --rounds 3 --memory --device cuda"
    assert bench(*text.split()) == 0
    assert engine.options == Options(
        set="usual",
        workloads=("llm_step", "senones", "small"),
        ops=("forward",),
        dtypes=("float16", "float32"),
        data=("peaked",),
        threads=(1, 2),
        contestants=("lsm", "torch"),
        rounds=3,
        with_memory=True,
        device="cuda",
        command=f"lsm bench {text}",
    )
    assert bench("--full", "--shape", "64x128256", "--axis", "0") == 0
    assert (engine.options.set, engine.options.shape, engine.options.axis) == ("full", (64, 128256), 0)
    assert engine.options.with_memory is None  # the engine's own choice
    assert bench("--no-memory") == 0
    assert engine.options.with_memory is False
    assert bench("--sweep", "classes") == 0
    assert engine.options.sweep == "classes"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--axis", "1"], "--axis 1: it is for --shape"),
        (["--tolerance", "1.2"], "--tolerance 1.2: it is for --compare FILE"),
        (["--shape", "3x0"], "accepted: sizes from 1 with x between, such as 64x128256"),
        (["--shape", "3", "--axis", "1"], "--axis: 1; accepted: -1 to 0"),
        (["--threads", "1,0"], "accepted: whole numbers from 1"),
        (["--rounds", "-1"], "accepted: whole numbers from 1"),
        (["--tolerance", "0.5"], "accepted: a ratio from 1"),
        (["--tolerance", "nan"], "accepted: a ratio from 1"),
        (["--op", "sideways"], "error: --op: 'sideways'; accepted: forward, backward, forward+backward"),
        (["--dtype", "float8"], "error: --dtype: 'float8'; accepted: float16, bfloat16, float32, float64"),
        (["--data", "odd"], "error: --data: 'odd'; accepted: logits, peaked, masked, constant"),
        (["--device", "abacus"], "error: --device: 'abacus'; accepted: cpu, cuda"),
        (["--sweep", "up"], "choose from"),
        (["--chart", "c.pdf"], "accepted: a name that ends in .svg, .png, .html"),
        (["--quick", "--full"], "not allowed with"),
    ],
)
def test_wishes_that_make_no_sense(work, engine, capsys, args, said):
    assert said in refused(capsys, *args)
    assert not hasattr(engine, "options")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--only", "nothing"], "error: --only: 'nothing' is none; accepted: small, "),
        (["--contestants", "nobody"], "error: --contestants: 'nobody' is nobody; accepted: lsm cython, "),
        (["--threads", "1000000"], "error: --threads: 1000000 threads were asked for; lsm would use "),
        (["--shape", "3", "--sweep", "classes"], "error: --shape: it is a workload by itself"),
        (["--contestants", "jax", "--device", "cuda"], "error: --"),
    ],
)
def test_what_the_engine_refuses_is_called_as_it_was_given(work, capsys, args, said):
    assert said in refused(capsys, *args)


def test_the_help_names_what_there_is(capsys):
    assert bench("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for names in (OPS, DTYPES, KINDS_OF_DATA):
        assert f"of {', '.join(names)}" in shown
    assert "exit codes: 0 done; 1" in shown


# What comes out


def test_all_outputs_of_one_run(work, engine, capsys):
    assert bench("--json", "r.json", "--markdown", "r.md", "--chart", "r.svg") == 0
    shown = capsys.readouterr()
    assert "geometric mean" in shown.out and "\x1b" not in shown.out + shown.err
    assert "[1/6] llm_step 1x151936 float32, forward, 2 threads: lsm cython 100 us (1.00x), torch" in shown.err
    assert from_json(Path("r.json").read_text()).rows == engine.result.rows
    assert Path("r.md").read_text().startswith("# lsm bench\n")
    ElementTree.parse("r.svg")
    assert sorted(path.name for path in work.iterdir()) == ["r.json", "r.md", "r.svg"]
    for name in ("r.png", "r.html"):
        assert bench("--from", "r.json", "--chart", name) == 0
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")
    assert Path("r.html").read_text().startswith("<!doctype html>")
    assert "<svg" in Path("r.html").read_text()


def test_a_report_of_an_older_run_is_the_same(work, engine, capsys):
    bench("--json", "r.json")
    before = capsys.readouterr().out
    del engine.options
    assert bench("--from", "r.json") == 0
    assert capsys.readouterr().out == before
    assert not hasattr(engine, "options")


@pytest.mark.parametrize("args", [["--quick"], ["--threads", "2"], ["--memory"], ["--device", "cpu"], ["--axis", "0"]])
def test_what_was_measured_before_is_not_measured_otherwise(work, engine, capsys, args):
    Path("r.json").write_text(engine.result.to_json())
    assert f"{args[0]}: --from reports what was measured before" in refused(capsys, "--from", "r.json", *args)


def test_names_with_control_characters_stay_text(work, capsys):
    rows = [planted.row([planted.entry(), planted.entry("\x1b[31mred\n| x")])]
    Path("r.json").write_text(planted.result(rows).to_json())
    assert bench("--from", "r.json", "--markdown", "r.md", "--chart", "r.html") == 0
    text = capsys.readouterr().out + Path("r.md").read_text() + Path("r.html").read_text()
    assert "\x1b" not in text and "\\x1b[31mred" in text


# --compare


def compared(capsys, *args, us=100.0):
    Path("old.json").write_text(planted.result().to_json())
    Path("new.json").write_text(planted.result([planted.row([planted.entry(us=us)])]).to_json())
    code = bench("--from", "new.json", "--compare", "old.json", *args)
    return code, capsys.readouterr().out


SAME = ("--usual", "--threads", "2")  # has a row that planted.result() has


def test_compare_both_ways(work, capsys):
    code, shown = compared(capsys)
    assert code == 0 and "of lsm: 0 slower and 0 faster by more than 1.3" in shown
    code, shown = compared(capsys, us=140.0)
    assert code == 1 and "Slower by more than 1.3" in shown and "100 to 140 us, 1.40x" in shown
    code, shown = compared(capsys, "--tolerance", "1.5", us=140.0)
    assert code == 0 and "Slower by" not in shown
    code, shown = compared(capsys, us=60.0)
    assert code == 0 and "of lsm: 0 slower and 1 faster" in shown
    assert "Only in old.json\nllm_step 1x151936 float32, forward, 2 threads: torch, numpy idiom" in shown


def test_the_comparison_is_in_every_output(work, capsys):
    code, _ = compared(capsys, "--markdown", "r.md", "--chart", "r.html", us=140.0)
    assert code == 1
    assert "## Slower by more than 1.3" in Path("r.md").read_text()
    assert "<h2>Slower by more than 1.3</h2>" in Path("r.html").read_text()


def test_a_run_may_replace_what_it_is_compared_with(work, engine, capsys):
    Path("base.json").write_text(planted.result().to_json())
    assert bench(*SAME, "--compare", "base.json", "--json", "base.json") == 0
    assert len(from_json(Path("base.json").read_text()).rows) == len(engine.result.rows)


def test_a_backend_that_is_gone_is_an_exit_code(work, capsys):
    Path("old.json").write_text(planted.result().to_json())
    Path("new.json").write_text(planted.result([planted.row([planted.entry("torch", 200.0)])]).to_json())
    assert bench("--from", "new.json", "--compare", "old.json") == 1
    assert "lsm cython, llm_step 1x151936 float32, forward, 2 threads: missing" in capsys.readouterr().out


def test_who_is_left_out_on_purpose_is_not_gone(work, engine, capsys):
    old = [planted.entry(), planted.entry("lsm numpy")]
    Path("old.json").write_text(planted.result([planted.row(old)]).to_json())
    engine.result = planted.result([planted.row([planted.entry()])])
    assert bench(*SAME, "--compare", "old.json", "--json", "new.json", "--contestants", "cython") == 0
    assert bench("--from", "new.json", "--compare", "old.json") == 0
    assert bench(*SAME, "--compare", "old.json") == 1


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("lsm bench --only small --contestants cython,torch jax --json 'a b'", ("cython", "torch", "jax")),
        ("lsm bench --contestants=cython --compare x.json", ("cython",)),
        ("lsm bench", ()),
        ("lsm bench --contestants", ()),
        ("it's no command", ()),
    ],
)
def test_a_result_keeps_who_was_asked_for(command, found):
    assert contestants(command) == found


def test_a_comparison_that_judges_nothing_is_no_success(work, capsys):
    Path("old.json").write_text(planted.result([planted.row(others=1.0)]).to_json())
    assert bench("--from", "old.json", "--compare", "old.json") == 3
    shown = capsys.readouterr().out
    assert shown.index("Nothing was judged") < shown.index("Not judged, for others wanted the same processors")


@pytest.mark.parametrize("args", [["--threads", "2"], ["--usual", "--threads", "1"], [*SAME, "--dtype", "float64"]])
def test_what_cannot_be_compared_is_told_before_measuring(work, engine, capsys, args):
    Path("old.json").write_text(planted.result().to_json())
    said = refused(capsys, *args, "--compare", "old.json")
    assert "'old.json' has nobody ranked in a row that would be measured" in said
    assert not hasattr(engine, "options")


def test_a_run_that_cannot_be_compared_after_all_is_reported(work, engine, capsys):
    Path("old.json").write_text(planted.result().to_json())
    engine.result = planted.result([planted.row(workload="senones")])
    assert bench(*SAME, "--compare", "old.json", "--json", "r.json") == 2
    shown = capsys.readouterr().out
    assert "geometric mean" in shown and "Not compared\n'old.json' has nobody ranked" in shown
    assert from_json(Path("r.json").read_text()).rows == engine.result.rows


# Files that cannot be used


@pytest.mark.parametrize("flag", ["--json", "--markdown", "--chart"])
@pytest.mark.parametrize("name", ["missing/r.svg", "d.svg", "fifo.svg"])
def test_a_path_that_cannot_be_written_is_told_before_measuring(work, engine, capsys, flag, name):
    (work / "d.svg").mkdir()
    os.mkfifo("fifo.svg")
    before = sorted(work.rglob("*"))
    assert repr(name) in refused(capsys, flag, name)
    assert not hasattr(engine, "options")
    assert sorted(work.rglob("*")) == before


def test_a_file_stays_as_it_is_until_there_is_a_report(work):
    Path("r.json").write_text("old")
    files.check_writable("r.json")
    files.check_writable("new.json")
    assert [(path.name, path.read_text()) for path in work.iterdir()] == [("r.json", "old")]


@pytest.mark.parametrize("page", [b"# Ours\n", b"\xff\xfe", b"<!-- lsm bench: end -->"])
def test_a_page_that_has_no_place_is_refused_before_measuring(work, engine, capsys, page):
    Path("ours.md").write_bytes(page)
    assert "'ours.md'" in refused(capsys, "--markdown", "ours.md")
    assert not hasattr(engine, "options")
    assert Path("ours.md").read_bytes() == page


def test_the_report_replaces_an_earlier_one_on_its_page(work, engine, capsys):
    page = "# Ours\r\n<!-- lsm bench: begin -->\r\nold\r\n<!-- lsm bench: end -->"
    Path("ours.md").write_bytes(page.encode())
    for _ in range(2):
        assert bench("--markdown", "ours.md", "--json", "r.json") == 0
        text = Path("ours.md").read_bytes().decode()
        assert "Each row\r\n" in text and "old\r\n" not in text
        assert text.startswith(page[:35]) and text.endswith("\r\n<!-- lsm bench: end -->")


def test_two_outputs_do_not_share_a_file(work, engine, capsys):
    assert "each output needs a file of its own" in refused(capsys, "--json", "r.svg", "--chart", "./r.svg")


def deeply(change):
    """A result whose JSON is changed somewhere deep."""
    tree = json.loads(planted.result().to_json())
    change(tree)
    return json.dumps(tree)


HOSTILE = {
    "empty": "",
    "binary": b"\xff\xfe\x00",
    "no object": "[1]",
    "another program's": '{"format": "png"}',
    "another format": '{"format": 99}',
    "nothing else": '{"format": 1}',
    "deep": "[" * 100_000,
    "infinite": deeply(lambda tree: None).replace("100.0", "Infinity"),
    "text for a number": deeply(lambda tree: tree["rows"][0]["contestants"][0].update(us="fast")),
    "no time": deeply(lambda tree: tree["rows"][0]["contestants"][0].update(us=0.0)),
    "a negative ratio": deeply(lambda tree: tree["rows"][0]["contestants"][1].update(ratio=-2.0)),
    "no threads": deeply(lambda tree: tree["header"].update(threads=[])),
    "no shape": deeply(lambda tree: tree["rows"][0].update(shape=[])),
    "no limit": deeply(lambda tree: tree["rows"][0]["limit"].update(gb_s=0.0)),
    "more than there is": deeply(lambda tree: tree["rows"][0].update(extra=1)),
    "less than there is": deeply(lambda tree: tree["rows"][0].pop("op")),
}


@pytest.mark.parametrize("flag", ["--from", "--compare"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_files_that_are_no_result(work, engine, capsys, flag, text):
    Path("r.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "r.json" in refused(capsys, flag, "r.json")
    assert not hasattr(engine, "options")


@pytest.mark.parametrize("flag", ["--from", "--compare"])
@pytest.mark.parametrize("name", ["missing.json", "."])
def test_files_that_cannot_be_read(work, engine, capsys, flag, name):
    assert f"{name!r} cannot be read: " in refused(capsys, flag, name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_loses_no_report(work, engine, capsys, monkeypatch):
    def full(name, data):
        with Path("/dev/full").open("w", buffering=1) as file:
            file.write("\n")

    monkeypatch.setattr(files, "write", full)
    assert bench("--markdown", "r.md") == 1
    shown = capsys.readouterr()
    assert "geometric mean" in shown.out and "No space left on device" in shown.err


@pytest.mark.parametrize("library", ["rich", "threadpoolctl"])
def test_a_missing_library_is_named_with_the_remedy(work, engine, capsys, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    said = refused(capsys)
    assert f"lsm bench needs {library}" in said and "python -m pip install 'lsm-softmax[bench]'" in said


def test_matplotlib_is_needed_for_charts_only(work, engine, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "python -m pip install 'lsm-softmax[bench]'" in refused(capsys, "--chart", "r.svg")
    assert not hasattr(engine, "options")
    assert bench() == 0


# Runs that end early


def test_what_was_measured_before_an_interruption_is_kept(work, engine, capsys):
    engine.stopped_after = 2
    assert bench("--json", "r.json", "--markdown", "r.md") == 130
    shown = capsys.readouterr()
    assert "lsm: interrupted; what was measured is reported" in shown.err
    assert "interrupted: after 2 rows; what was measured is here" in shown.out
    assert "hasty" in shown.out and "senones" not in shown.out
    kept = from_json(Path("r.json").read_text())
    assert kept.interrupted and kept.rows == engine.result.rows[:2]
    assert sorted(path.name for path in work.iterdir()) == ["r.json", "r.md"]
    assert bench("--from", "r.json") == 0  # the run was interrupted, and not this report


def test_an_interruption_before_the_first_row(work, engine, capsys):
    engine.stopped_after = 0
    old = planted.result().to_json()
    Path("r.json").write_text(old)
    assert bench(*SAME, "--json", "r.json", "--chart", "r.html", "--compare", "r.json") == 130
    assert "interrupted: after 0 rows" in capsys.readouterr().out
    assert Path("r.json").read_text() == old and not Path("r.html").exists()


def test_what_was_measured_before_a_failure_is_reported(work, engine, capsys):
    engine.failed_after = 2
    assert bench("--json", "r.json", "--markdown", "r.md") == 1
    shown = capsys.readouterr()
    assert "lsm: error: ValueError: the machine is on fire; what was measured until then is reported" in shown.err
    assert "interrupted: after 2 rows" in shown.out and "hasty" in shown.out
    assert from_json(Path("r.json").read_text()).interrupted and "hasty" in Path("r.md").read_text()


def test_a_failure_before_the_first_row_is_an_error_as_it_is(work, engine, capsys):
    engine.failed_after = 0
    Path("r.json").write_text("old")
    assert "lsm: error: the machine is on fire" in refused(capsys, "--json", "r.json")
    assert Path("r.json").read_text() == "old"


@pytest.mark.parametrize("rows", [[], [planted.row([])], [planted.row([planted.entry(us=None, **planted.RAISED)])]])
def test_a_run_that_timed_nothing_is_no_success(work, engine, capsys, rows):
    engine.result = planted.result(rows)
    assert bench() == 1
    shown = capsys.readouterr()
    assert "lsm: error: nothing was measured" in shown.err and "jax is not installed" in shown.out


def test_an_interruption_of_the_report_loses_no_table(work, engine, capsys, monkeypatch):
    monkeypatch.setattr(lsm.bench.chart, "svg", lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert bench("--chart", "r.svg") == 130
    assert "geometric mean" in capsys.readouterr().out


PLANTED_RUN = """
import sys, time
sys.path.insert(0, {tests!r})
import planted_results as planted
import lsm.bench.run
from lsm.cli import main
def run(options, progress, save):
    result = planted.result([])
    progress.started(result.header, 3)
    try:
        for row in planted.all_kinds().rows[:3]:
            progress.row_started("llm_step forward")
            result.rows.append(row)
            save(result)
            progress.row_done(row)
            time.sleep({seconds})
    except KeyboardInterrupt:
        result.interrupted = True
    return result
lsm.bench.run.run = run
sys.exit(main())
"""


def process(*args, seconds=0.0, **options):
    code = PLANTED_RUN.format(tests=str(Path(__file__).parent), seconds=seconds)
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    environ["TERM"] = "xterm"
    return subprocess.Popen([sys.executable, "-c", code, "bench", *args], env=environ, **options)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_run_in_order(work, name, code):
    running = process("--json", "r.json", seconds=30, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not Path("r.json").exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(getattr(signal, name))
    out, err = running.communicate(timeout=30)
    assert running.returncode == code
    assert "interrupted: after 1 row" in out and "Traceback" not in err
    assert from_json(Path("r.json").read_text()).interrupted
    assert [path.name for path in work.iterdir()] == ["r.json"]


SWALLOWED = """
import gc, os, signal, sys
from pathlib import Path
def collected(phase, info):
    if phase == "start" and Path("r.json").exists():
        gc.callbacks.remove(collected)
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(10))  # Python calls the handler here, and discards what it raises
gc.callbacks.append(collected)
from lsm.cli import main
sys.exit(main())
"""


def test_a_signal_that_a_callback_swallows_ends_a_run_too(work):
    text = "bench --shape 4x6 --op forward backward --dtype float32 float64 float16 --contestants cython --rounds 2"
    command = [sys.executable, "-c", SWALLOWED, *text.split(), "--threads", "1"]
    done = subprocess.run([*command, "--json", "r.json"], capture_output=True, text=True, timeout=120)
    assert "Exception ignored" in done.stderr  # else nothing was swallowed, and this tests nothing
    assert done.returncode == 130, done.stderr
    assert "lsm: interrupted; what was measured is reported" in done.stderr
    kept = from_json(Path("r.json").read_text())
    assert kept.interrupted and 1 <= len(kept.rows) < 6


def test_a_bar_on_a_terminal(work):
    ours, theirs = pty.openpty()
    running = process(stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert running.wait(timeout=30) == 0
    text = shown.decode()
    assert "llm_step forward" in text and "3/3" in text
    assert "[1/3]" not in text
    assert re.search(r"\x1b\[1;32m.*lsm cython", text)


def test_nobody_reads_the_output(work):
    running = process("--json", "r.json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.close()
    assert running.stderr.read().count(b"Traceback") == 0
    running.stderr.close()
    assert running.wait(timeout=30) == 141
    assert len(from_json(Path("r.json").read_text()).rows) == 3  # the files are written before


def test_the_other_commands_do_without(tmp_path):
    """`import lsm` and `lsm backends` load nothing that only a benchmark needs."""
    code = "import sys, lsm.cli; lsm.cli.main(['backends']); "
    code += "print([m for m in ('rich', 'threadpoolctl', 'matplotlib', 'lsm.bench.command') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
