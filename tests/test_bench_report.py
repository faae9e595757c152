"""What a benchmark run is reported as, from planted results: nothing is measured here."""

import io
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.image
import planted_results as planted
import pytest
from rich.cells import cell_len

from lsm.bench import chart, command, report

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def shown():
    return report.report(planted.all_kinds())


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def as_text(shown, file=None):
    file = file or io.StringIO()
    report.write(shown, file)
    return file.getvalue()


def words_of(svg):
    return {element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


TEXT = """\
processor: Planted <CPU> | 9000, 2 processors, L1 32 KiB, L2 1,024 KiB
GPU: none
versions: lsm 0.1.0 (v4), python 3.11.7, numpy 2.4.6, torch 2.13.0 (AVX512)
threads: 2 for each implementation; rounds: 5
thread pools: openmp libgomp.so: 2
environment: OMP_NUM_THREADS=2
measured: 2026-01-02 on Linux, commit abc1234, by lsm bench --quick

llm_step 1x151936 float32, forward, 2 threads
     #  implementation    us  ratio    p20..p80  GB/s  of limit  max ulp    of frame  max error  first ms
     1  lsm cython       100  1.00x  0.95..1.05  40.0      0.50     1.25        0.75    2.0e-07      1.50
     2  torch            200  2.00x  1.90..2.10  40.0      0.50     1.25        0.75    2.0e-07      1.50
 wrong  hasty           10.0  0.10x  0.10..0.11  40.0      0.50      370      37 > 4    2.0e-07      1.50
 wrong  lsm numpy        500  5.00x  4.75..5.25  40.0      0.50  370 > 4          37    2.0e-07      1.50
 wrong  numpy idiom      900  9.00x  8.55..9.45  40.0      0.50     1.25  not finite    2.0e-07      1.50
raised  onnxruntime      100  1.00x  0.95..1.05  40.0      0.50     1.25        0.75    2.0e-07      1.50
limit: streaming copy of the same 1.22 MB, 50.0 us (48.0..55.0), 80.0 GB/s

llm_step 1x151936 float16, backward, 2 threads
#  implementation       us  ratio    p20..p80  GB/s  of limit  max ulp  of frame  max error  first ms  extra memory
1  torch              80.0  0.80x  0.76..0.84  40.0      1.21     1.25      0.75    2.0e-07      1.50       12.3 MB
2  torch, new result  90.0  0.90x  0.85..0.95  40.0      0.50     1.25      0.75    2.0e-07      1.50
3  lsm cython          100  1.00x  0.95..1.05  40.0      1.00     1.25      0.75    2.0e-07      1.50       0 bytes
limit: streaming copy of the same 1.22 MB, 50.0 us (48.0..55.0), 80.0 GB/s
1 sample only of torch, new result, for lack of time
beyond the limit, so caches or neighbours had a part in it: torch

senones 750x5000 float32, forward, 2 threads
#  implementation   us  ratio    p20..p80  GB/s  of limit  max ulp  of frame  max error  first ms
1  lsm cython      100  1.00x  0.95..1.05  40.0      0.50     1.25      0.75    2.0e-07      1.50
2  torch           300  3.00x  2.85..3.15  40.0      0.50     1.25      0.75    2.0e-07      1.50
3  hasty           400  4.00x  3.80..4.20  40.0      0.50     1.25      0.75    2.0e-07      1.50
errors: of 40 of 750 frames
others used 0.7 processors meanwhile: not reliable

forward: time over that of lsm cython, geometric mean
#  implementation  mean ratio  ranked in rows  fastest in  wrong in
1  lsm cython           1.00x          2 of 2           2         0
2  torch                2.45x          2 of 2           0         0
3  hasty                4.00x          1 of 2           0         1

backward: time over that of lsm cython, geometric mean
#  implementation     mean ratio  ranked in rows  fastest in  wrong in
1  torch                   0.80x          1 of 1           1         0
2  torch, new result       0.90x          1 of 1           0         0
3  lsm cython              1.00x          1 of 1           0         0

Not measured
jax: jax is not installed
onnxruntime: has no gradient (in 1 of 3 rows)

Raised while it was measured
onnxruntime: RuntimeError: in the third round (in 1 of 3 rows)

How to read this
ratio: how many times as long as lsm cython with out=, the median of the ratios within each round; 1x is as fast
"""


def test_a_pipe_gets_every_column_best_first_and_no_escapes(shown):
    """What is wrong or raised is not ranked, however fast, and in no mean; a peer is held to its frames."""
    text = as_text(shown)
    assert text.startswith(TEXT) and len(text.splitlines()) == len(TEXT.splitlines()) + 7
    assert text.isascii() and ESCAPE not in text


def test_more_threads_have_a_table():
    rows = [planted.row([planted.entry(us=k / n)], shape=(k,), threads=n) for n in (1, 2, 4) for k in (1, 9)]
    rows[-1].implementations[0].is_right = False
    _, table = report.report(planted.result(rows)).overall
    assert table.title == "forward: how many times as fast as with 1 thread, geometric mean"
    assert table.lines == [(["lsm cython", "1.00x", "2.00x", "4.00x"], "")]


@pytest.mark.parametrize(("n_columns", "is_whole"), [(80, False), (160, True)])
def test_tables_fit_the_terminal(monkeypatch, n_columns, is_whole):
    rows = [planted.row([planted.entry("onnxruntime", way="new", extra_bytes=99), planted.entry()])]
    shown, _ = command.compared(report.report(planted.result(rows)), planted.result(), planted.result(rows), 1.3, "old")
    monkeypatch.setenv("COLUMNS", str(n_columns))
    text = re.sub(r"\x1b\[[0-9;]*m", "", as_text(shown, Terminal()))
    assert max(map(cell_len, text.splitlines())) <= n_columns and "…" not in text
    for name in ("us", "ratio", "GB/s", "of limit", "max ulp", "extra memory", "relative to peers"):
        assert re.search(f"^.*implementation .*{name}", text, re.MULTILINE)
    assert ("first ms" in re.search("^# .*", text, re.MULTILINE).group()) == is_whole


def test_colours_on_a_terminal_and_none_if_not_wanted(shown, monkeypatch):
    coloured = as_text(shown, Terminal())
    assert f"{ESCAPE}[1;32m" in coloured and f"{ESCAPE}[1;31m" in coloured  # the best, and what is wrong
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", as_text(shown, Terminal()))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert ESCAPE not in as_text(shown, Terminal())


def test_markdown_has_everything_and_its_tables_are_whole(shown):
    text = report.markdown(shown)
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(found) == len(shown.overall) + len(shown.rows)
    for block in found:
        cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in block.strip().splitlines()]
        assert len({len(row) for row in cells}) == 1
        assert all(re.fullmatch(r" -+:? ", cell) for cell in cells[1])
    assert "| **1** | **lsm cython** | **1.00x** |" in text
    assert "| wrong | hasty |" in text
    assert "Planted \\<CPU> \\| 9000" in text
    assert "- lsm cython, forward: lsm.log_softmax(x)" in text
    assert report.escaped("a_b _c_ *d* `e` [f](g) ~h~ \\") == "a_b \\_c\\_ \\*d\\* \\`e\\` \\[f\\](g) \\~h\\~ \\\\"
    assert text.index("geometric mean") < text.index("## Each row") < text.index("## Not measured")


def test_the_chart_is_svg_with_text_in_it():
    result = planted.all_kinds()
    result.rows.append(planted.row(threads=1, workload="one thread"))
    text = chart.drawn(result, "svg").decode()
    words = words_of(text)
    assert {"lsm cython", "torch", "2.00x", "llm_step 1x151936 float32, forward"} <= words
    assert "0.10x wrong" in words and "0.10x" not in words and "fill: none; stroke: #009e73" in text  # hollow
    assert "0.90x" not in words  # torch with a new result: where it can write into a given one, that is drawn
    assert "onnxruntime" not in words  # it raised
    assert not any("one thread" in str(word) for word in words)  # only those of the most threads
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert text == chart.drawn(result, "svg").decode()  # a new drawing of the same run is no change
    pixels = matplotlib.image.imread(io.BytesIO(chart.drawn(result, "png")), format="png")
    assert pixels.shape[1] > 1000 and pixels[0, 0].tolist() == [1, 1, 1, 1]  # on white


@pytest.mark.parametrize("rows", [[], [planted.row([])], [planted.row([planted.entry(**planted.WRONG)])]])
def test_a_run_with_nothing_to_draw_is_drawn(rows):
    result = planted.result(rows, interrupted=True)
    ElementTree.fromstring(chart.drawn(result, "svg"))
    assert "interrupted" in as_text(report.report(result))
    assert report.report(result).overall == []


def two_runs(lsm_us=100.0, torch_us=200.0, **changed):
    entries = [planted.entry(us=lsm_us), planted.entry("torch", us=torch_us), planted.entry("scipy", us=torch_us * 2)]
    old = planted.result([planted.row([planted.entry(), planted.entry("torch", 200.0), planted.entry("scipy", 400.0)])])
    return old, planted.result([planted.row(entries)], header=planted.header(**changed))


def compared(old, new, tolerance=1.3):
    """The lines of the table, the remarks by title, and the exit code."""
    shown, code = command.compared(report.Report([], [], [], [], ("", [])), old, new, tolerance, "old.json")
    return SimpleNamespace(lines=shown.overall[0].lines, remarks=dict(shown.remarks), code=code)


@pytest.mark.parametrize(
    ("lsm_us", "torch_us", "mark", "ratios"),
    [
        (100.0, 200.0, "", ["1.00x", "1.00x"]),
        (150.0, 200.0, "wrong", ["1.50x", "1.50x"]),
        (50.0, 200.0, "best", ["0.50x", "0.50x"]),
        (150.0, 300.0, "", ["1.50x", "1.00x"]),  # a slow day of the machine
        (50.0, 100.0, "", ["0.50x", "1.00x"]),  # a fast day
        (100.0, 100.0, "", ["1.00x", "2.00x"]),  # the peers became faster
        (100.0, 900.0, "", ["1.00x", "0.22x"]),  # the peers became slower
    ],
)
def test_a_backend_counts_by_the_clock_and_relative_to_the_peers(lsm_us, torch_us, mark, ratios):
    old, new = two_runs(lsm_us, torch_us)
    found = compared(old, new)
    ours = next(line for line in found.lines if line[0][1] == "lsm cython")
    assert ours[1] == mark and ours[0][4:] == ratios
    assert [mark for cells, mark in found.lines if cells[1] != "lsm cython"] == ["", ""]
    assert found.code == (command.WORSE if mark == "wrong" else command.SAME)
    if mark == "wrong":
        (line,) = found.remarks["Slower by more than 1.3"]
        assert line.startswith("lsm cython, llm_step 1x151936 float32, forward, 2 threads: 100 to 150 us, 1.50x")
        assert found.lines[0] == ours  # the worst is first
        assert compared(old, new, tolerance=1.6).code == command.SAME
    else:
        assert found.remarks == {}


def test_a_new_version_of_a_peer_is_no_measure_of_the_machine():
    old, new = two_runs(lsm_us=150.0, torch_us=300.0, versions={"lsm": "0.1.0", "torch": "9"})
    new.rows[0].implementations.pop()  # scipy, whose version stayed the same
    found = compared(old, new)
    assert found.code == command.WORSE and found.lines[0][0][-1] == ""
    assert "'torch': '9'" in found.remarks["Not the same in both runs"][0]


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_disturbed_or_has_few_samples_is_shown_and_not_judged(which):
    for disturb in (
        lambda row: setattr(row, "others", 0.7),
        lambda row: setattr(row.implementations[0], "samples_us", [1.0] * 2),
    ):
        runs = two_runs(lsm_us=150.0)
        disturb(runs[which].rows[0])
        found = compared(*runs)
        assert found.code == command.UNDECIDED and "Nothing was judged" in found.remarks
        assert found.lines[0][0][1:5] == ["lsm cython", "100", "150", "1.50x"]
        (line,) = found.remarks["Not judged: others used the processors, or fewer than 3 samples"]
        assert line == "lsm cython, llm_step 1x151936 float32, forward, 2 threads"


def test_a_backend_that_is_missing_or_not_right_now_is_worse():
    old, new = two_runs()
    others = planted.entry("lsm cython", way="new"), planted.entry("jax")  # had no time left in the new run; a peer
    old.rows[0].implementations += [planted.entry("lsm cuda"), planted.entry("lsm wrong", **planted.WRONG), *others]
    found = compared(old, new)
    assert found.code == command.WORSE
    broken = "Not right any more, missing, or raises now"
    assert found.remarks[broken] == ["lsm cuda, llm_step 1x151936 float32, forward, 2 threads: missing"]
    new.rows[0].absent["lsm cuda"] = "no device"
    assert compared(old, new).remarks[broken][0].endswith("2 threads: no device")
    new.header.wanted = ["cython", "torch"]  # the other backend was not asked for
    assert compared(old, new).code == command.SAME
    for change in (planted.WRONG, planted.RAISED):
        new.rows[0].implementations[0] = planted.entry(**change)
        (line,) = compared(old, new).remarks[broken]
        assert line.startswith("lsm cython, llm_step") and ("third round" in line) == ("error" in change)


def cell(n_classes, inner, ratio, **changed):
    shape = (60, n_classes, inner) if inner > 1 else (60, n_classes)
    entries = [planted.entry(us=0.06 * n_classes * inner), planted.entry("scipy", 9.0, 2 * ratio)]
    entries.append(planted.entry("torch", 3.0, ratio, **changed))
    return planted.row(entries, workload="map", shape=shape, axis=1 if inner > 1 else -1, threads=1)


def test_a_map_is_one_table_of_ratios():
    rows = [cell(2, 1, 2.0), cell(2, 8, 0.5), cell(65, 1, 4.0, **planted.WRONG)]
    rows[0].others = 0.7  # on the second processor
    rows.append(planted.row([planted.entry()], workload="map", shape=(4, 2), op="backward", others=2.0))
    result = planted.result(rows)
    shown = report.report(result)
    table, without_peers = shown.overall
    assert without_peers.lines == [(["2", ""], "")]
    assert without_peers.notes[-1] == "others used the processors in 1 of 1 cells: not reliable"
    assert shown.rows == [] and table.title.startswith("forward, float32, 1 thread: the fastest peer's time over that")
    assert [cells for cells, _ in table.lines] == [["2", "2.00", "0.50"], ["65", "4.00", ""]]
    assert table.heads == ["classes", "1", "8"] and table.marks == {(0, 2): "wrong"}
    assert table.notes == [
        "geometric mean 1.59; 1 of 3 cells below 1; worst 0.50 (2 classes, inner 8, torch)",
        "the error of the fastest peer is beyond the bound in 1 of 3 cells",
        "ns an element: 1.00 to 1.00, median 1.00; streaming copy 52.08 for the same bytes",
    ]
    assert f"2.00  {ESCAPE}[1;31m0.50" in as_text(shown, Terminal())
    assert "| 2 | 2.00 | **0.50** |" in report.markdown(shown) and "Each row" not in report.markdown(shown)
    title = "forward, float32, 1 thread: time of the peer over lsm's"
    assert {"2.00", "0.50", "4.00", "classes", "inner", title} <= words_of(chart.drawn(result, "svg"))
