"""What a benchmark run is reported as, from planted results: nothing is measured here."""

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.image
import planted_results as planted
import pytest
from rich.cells import cell_len

from lsm.bench import chart, compare, contents, markdown, page, tables
from lsm.bench.overall import geometric_means, speed_ups
from lsm.bench.result import from_json
from lsm.bench.wording import fit_to_show

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def report():
    return contents.report(planted.all_kinds())


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def as_text(report, file=None, **environment):
    file = file or io.StringIO()
    tables.write(report, file)
    return file.getvalue()


def text_of_html(text):
    """All text between the tags, and the tags with their attributes; fails if a tag is left open."""

    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.words, self.attributes = [], [], []

        def handle_starttag(self, tag, attrs):
            self.attributes += [(tag, *pair) for pair in attrs]
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag, attrs):
            self.attributes += [(tag, *pair) for pair in attrs]

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            self.words.append(data)

    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return " ".join(reader.words), reader.attributes


def row_table(row):
    return contents.row_table(row, n_processors=2)


def lines_of(table):
    """A table's lines by the contestant in them: heads and cells."""
    heads = [column.head for column in table.columns]
    return {line.cells[1]: dict(zip(heads, line.cells, strict=True)) for line in table.lines}


# What is said


def test_a_row_is_best_first_with_multipliers():
    table = row_table(planted.row())
    assert [line.cells[:4] for line in table.lines] == [
        ("1", "lsm cython", "100", "1.00x"),
        ("2", "torch", "200", "2.00x"),
        ("3", "numpy idiom", "900", "9.00x"),
    ]
    assert [line.mark for line in table.lines] == ["best", "", ""]
    assert (
        lines_of(table)["torch"] | {"p20..p80": "1.90..2.10", "GB/s": "40.0", "of limit": "0.50", "max ulp": "1.25"}
        == (lines_of(table)["torch"])
    )
    assert table.title == "llm_step 1x151936 float32, forward, 2 threads"
    assert "streaming copy" in table.notes[0] and "80.0 GB/s" in table.notes[0]


def test_who_is_wrong_or_raised_is_shown_and_not_ranked(report):
    table = report.rows[0]
    assert [line.cells[:2] for line in table.lines] == [
        ("1", "lsm cython"),
        ("2", "torch"),
        ("wrong", "hasty"),  # ten times as fast as everybody
        ("raised", "onnxruntime"),
    ]
    # One that declares no bound is held to lsm's own in ulps of each frame, for near 0 all lose every digit.
    assert (lines_of(table)["hasty"]["max ulp"], lines_of(table)["hasty"]["of frame"]) == ("370", "37 > 4")
    wrong = row_table(planted.row([planted.entry(**planted.WRONG)]))
    assert (lines_of(wrong)["lsm cython"]["max ulp"], lines_of(wrong)["lsm cython"]["of frame"]) == ("370 > 4", "37")
    assert [line.mark for line in table.lines] == ["best", "", "wrong", "raised"]
    assert "onnxruntime raised after 5 turns: RuntimeError: in the third turn" in table.notes
    for overall in report.overall:
        assert "hasty" not in lines_of(overall) and "onnxruntime" not in lines_of(overall)
    remarks = dict(report.remarks)
    assert remarks["Shown and not ranked, for the error is beyond the bound"][0].startswith("hasty (llm_step")
    assert remarks["Raised while it was measured"][0].startswith("onnxruntime: RuntimeError")


def test_one_that_is_nowhere_near_is_not_finite():
    table = row_table(planted.row([planted.entry(), planted.entry("nan", is_right=False, max_frame_ulp=None)]))
    assert lines_of(table)["nan"]["of frame"] == "not finite"


def test_one_that_raised_at_once_has_no_time():
    never = dict(
        us=None,
        ratio=None,
        gb_s=None,
        share=None,
        max_ulp=None,
        max_frame_ulp=None,
        max_abs_error=None,
        first_call_ms=None,
    )
    table = row_table(planted.row([planted.entry(), planted.entry("dud", **never, **planted.RAISED)]))
    assert set(lines_of(table)["dud"].values()) == {"raised", "dud", ""}


def test_a_row_in_which_nobody_is_right_has_no_best():
    table = row_table(planted.row([planted.entry(**planted.WRONG)]))
    assert [line.mark for line in table.lines] == ["wrong"]
    assert contents.report(planted.result([planted.row([planted.entry(**planted.WRONG)])])).overall == ()


def test_the_absent_are_listed_with_the_reason(report):
    lines = dict(report.remarks)["Did not take part"]
    assert lines == (
        "jax: jax is not installed",
        "onnxruntime: has no gradient (llm_step 1x151936 float16 to float32, backward, 2 threads)",
    )
    rows = [planted.row(threads=n) for n in range(1, 6)]
    for row in rows:
        row.absent["onnxruntime"] = "has no gradient"
    everywhere, _ = dict(contents.report(planted.result(rows)).remarks)["Did not take part"][::-1]
    assert everywhere == "onnxruntime: has no gradient (every row)"
    del rows[0].absent["onnxruntime"]
    some = dict(contents.report(planted.result(rows)).remarks)["Did not take part"][1]
    assert some.endswith("; and 1 more)") and some.count("threads") == 3


def test_the_head_tells_the_machine(report):
    head = dict(report.head)
    assert head["processor"] == "Planted <CPU> | 9000, 2 processors, L1 32 KiB, L2 1,024 KiB"
    assert head["GPU"] == "none"
    assert head["versions"] == "lsm 0.1.0 (v4), python 3.11.7, numpy 2.4.6, torch 2.13.0 (AVX512)"
    assert head["threads"].startswith("2 for each contestant; rounds: 5")
    assert "libgomp" in head["thread pools"] and head["environment"] == "OMP_NUM_THREADS=2"
    assert head["measured"] == "2026-01-02 on Linux, commit abc1234, by lsm bench --quick"
    assert "interrupted" not in head


def test_an_interrupted_run_says_so():
    head = dict(contents.report(planted.result(interrupted=True)).head)
    assert head["interrupted"] == "after 1 row; what was measured is here"


def test_the_mean_is_geometric_and_of_ranked_rows_only():
    rows = [
        planted.row([planted.entry(), planted.entry("torch", ratio=2.0)]),
        planted.row([planted.entry(), planted.entry("torch", ratio=8.0)]),
        planted.row([planted.entry(), planted.entry("torch", ratio=1000.0, **planted.WRONG)]),
    ]
    assert geometric_means(rows) == {"lsm cython": (1.0, 3), "torch": (pytest.approx(4.0), 2)}
    (table,) = contents.report(planted.result(rows)).overall
    assert lines_of(table)["torch"] == {
        "#": "2",
        "contestant": "torch",
        "mean ratio": "4.00x",
        "ranked in rows": "2 of 3",
        "fastest in": "0",
        "wrong in": "1",
    }


def test_more_threads_and_more_work_have_tables():
    rows = [planted.row([planted.entry(us=100.0 / n)], threads=n) for n in (1, 2, 4)]
    assert speed_ups(rows) == {"lsm cython": pytest.approx({1: 1.0, 2: 2.0, 4: 4.0})}
    report = contents.report(planted.result(rows, header=planted.header(threads=[1, 2, 4])))
    assert report.overall[1].lines[0].cells == ("lsm cython", "1.00x", "2.00x", "4.00x")
    (sweep,) = contents.report(planted.all_kinds()).sweeps
    assert sweep.title == "more classes, forward, float32, logits, 2 threads: ns an element"
    assert [line.cells for line in sweep.lines] == [("1x1000", "1,000"), ("1x10000", "1,000"), ("1x100000", "1,000")]


def test_memory_has_a_column_if_it_was_measured():
    assert "extra memory" not in lines_of(row_table(planted.row()))["torch"]
    entries = [planted.entry(extra_bytes=0), planted.entry("torch", extra_bytes=12_300_000)]
    assert lines_of(row_table(planted.row(entries)))["torch"]["extra memory"] == "12.3 MB"


def test_few_frames_checked_and_busy_neighbours_are_told(report):
    assert report.rows[2].notes == (
        "errors: of 40 of 750 frames",
        "others used 0.7 processors meanwhile: not to be relied on",
    )


def test_a_row_for_which_there_was_little_time_says_so():
    slow = planted.entry("torch", turns_us=[200.0])
    (_, note) = row_table(planted.row([planted.entry(), slow])).notes
    assert note == "1 turn only of torch, for lack of time"
    (_, note) = row_table(planted.row([planted.entry(turns_us=[100.0]), slow])).notes
    assert note == "1 turn of each at least, for time ran out: the spread means little"


def test_who_is_beyond_the_limit_is_named():
    entries = [planted.entry(share=1.004), planted.entry("torch", share=1.21), planted.entry("jax", share=None)]
    note = row_table(planted.row(entries)).notes[1]
    assert note == "beyond the limit, so caches or neighbours had a part in it: torch"


def test_the_head_tells_the_cores_where_the_system_does():
    result = planted.result(header=planted.header(n_cores=1))
    assert dict(contents.head(result))["processor"].startswith("Planted <CPU> | 9000, 2 processors on 1 core, L1")


# As text


def test_a_pipe_gets_every_column_and_no_escapes(report):
    text = as_text(report)
    assert ESCAPE not in text
    assert text.isascii()
    assert "first ms" in text and "max error" in text
    assert not re.search(r" $", text, re.MULTILINE)
    assert text.index("senones") < text.index("geometric mean") < text.index("Did not take part")


@pytest.mark.parametrize("n_columns", [20, 40, 60, 80, 100, 160])
def test_tables_fit_the_terminal(report, monkeypatch, n_columns):
    monkeypatch.setenv("COLUMNS", str(n_columns))
    text = re.sub(r"\x1b\[[0-9;]*m", "", as_text(report, Terminal()))
    for name in ("lsm", "torch", "hasty"):
        assert name in text
    if n_columns >= 40:
        assert max(map(cell_len, text.splitlines())) <= n_columns
        assert "lsm cython    100  1.00x" in text  # who, how long, and how many times as long: never dropped
    assert bool(re.search("^ +# .* first ms$", text, re.MULTILINE)) == (n_columns >= 100)


def test_colours_on_a_terminal_and_none_if_not_wanted(report, monkeypatch):
    coloured = as_text(report, Terminal())
    assert f"{ESCAPE}[1;32m" in coloured and f"{ESCAPE}[1;31m" in coloured  # the best, who is wrong
    monkeypatch.setenv("NO_COLOR", "1")
    plain = as_text(report, Terminal())
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert ESCAPE not in as_text(report, Terminal())


HOSTILE = "\x1b[31m[bold]$\\x$|<script>alert(1)</script> `x` *y* &amp;\n# head"


def hostile():
    rows = [planted.row([planted.entry(), planted.entry(HOSTILE, call=HOSTILE, error=HOSTILE)], workload=HOSTILE)]
    rows[0].absent[HOSTILE] = HOSTILE
    header = planted.header(processor=HOSTILE, versions={"lsm": HOSTILE, HOSTILE: "1"})
    return fit_to_show(planted.result(rows, absent={HOSTILE: HOSTILE}, header=header))


def test_names_are_text_and_nothing_else():
    report = contents.report(hostile())
    text = as_text(report)
    assert ESCAPE not in text and "\n# head" not in text and "[bold]$\\x$|<script>" in text
    md = markdown.markdown(report)
    assert ESCAPE not in md and "<script" not in md and "\n# head" not in md
    words, attributes = text_of_html(page.page(report, chart.svg(hostile())))
    assert "<script>alert(1)</script>" in words
    assert not any(name.startswith("on") for _, name, _ in attributes)
    assert "<script" not in page.page(report, "<svg></svg>")


def test_a_terminal_that_knows_ascii_only():
    class Ascii(Terminal):
        encoding = "ascii"

    report = contents.report(planted.result(header=planted.header(processor="Prozessor für µs")))
    assert "Prozessor f\\xfcr \\xb5s" in as_text(report, Ascii())


# As Markdown


def markdown_tables(text):
    """Every table as rows of cells."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        yield [re.split(r"(?<!\\)\|", line.strip("|"))[0:] for line in block.strip().splitlines()]


def test_markdown_has_everything_and_its_tables_are_whole(report):
    text = markdown.markdown(report)
    found = list(markdown_tables(text))
    assert len(found) == len(report.overall) + len(report.rows) + len(report.sweeps)
    for table in found:
        assert len({len(row) for row in table}) == 1
        assert all(re.fullmatch(r" -+:? ", cell) for cell in table[1])
    assert "| **1** | **lsm cython** | **1.00x** |" in text
    assert "| wrong | hasty |" in text
    assert "Planted &lt;CPU> \\| 9000" in text
    assert "- lsm cython, forward: lsm.log\\_softmax" not in text  # within a word _ means nothing
    assert "- lsm cython, forward: lsm.log_softmax(x)" in text
    assert text.index("geometric mean") < text.index("## Each row") < text.index("## Did not take part")


def test_markdown_goes_into_its_place_on_a_page(report):
    page = f"# Ours\n\n{markdown.BEGIN}\nwhat was there\n{markdown.END}\n\nThe end.\n"
    text = markdown.markdown(report, page)
    assert text.startswith("# Ours\n") and text.endswith("\nThe end.\n") and "what was there" not in text
    assert "\n### Each row\n" in text and "# lsm bench\n" not in text
    assert markdown.markdown(report, text) == text  # once more changes nothing
    assert markdown.markdown(report, markdown.markdown(report)) == markdown.markdown(report)  # its own page


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_marks_are_found_whatever_is_around_them(report, ending):
    lines = ["# Ours", f"  {markdown.BEGIN} ", "what was there", f"{markdown.END}"]
    text = markdown.markdown(report, ending.join(lines))
    assert text.startswith(ending.join(lines[:2])) and text.endswith(ending + markdown.END)
    assert "what was there" not in text and "### Each row" in text
    assert text.count("\n") == text.count(ending)


@pytest.mark.parametrize(
    "page",
    [
        "# Ours\n",
        "# lsm bench notes\n\n- processor: mine\n",
        f"# Ours\n{markdown.BEGIN}\nno end\n",
        f"# lsm bench\n\n- processor: x\n{markdown.END}\n",
        f"{markdown.END}\n{markdown.BEGIN}\n",
        f"{markdown.BEGIN}\n{markdown.BEGIN}\n{markdown.END}\n",
        f"Between {markdown.BEGIN} and {markdown.END} it goes.\n",
    ],
)
def test_a_page_without_a_place_is_somebodys(report, page):
    with pytest.raises(ValueError, match=r"'ours.md': \d lines <!-- .*accepted: one of each"):
        markdown.markdown(report, page, "'ours.md'")


# As a chart and a page


def test_the_chart_is_svg_with_text_in_it():
    result = planted.all_kinds()
    text = chart.svg(result)
    root = ElementTree.fromstring(text)
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"forward", "backward", "lsm cython", "torch", "2.00x", "L1", "L2"} <= words
    assert {"GB/s against size, forward", "limit: streaming copy"} <= words
    assert "ns an element, forward, float32: more classes" in words
    assert "0.10x wrong" in words and "0.10x" not in words
    assert "0.90x" not in words  # torch with a new result: where it can write into a given one, that is drawn
    assert "onnxruntime" not in words  # it raised
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert text == chart.svg(result)  # a new drawing of the same run is no change


def test_the_legend_is_in_the_same_order_whoever_is_fast():
    names = ["torch", "lsm numpy", "lsm cython", "jax", "a-plugin"]
    entries = [planted.entry(name, us=1.0 + i) for i, name in enumerate(names)]
    entries[-1].backend = "a-plugin"
    order = ["a-plugin", "lsm cython", "lsm numpy", "jax", "torch"]
    assert list(chart.looks([planted.row(entries)])) == order
    assert list(chart.looks([planted.row(entries[::-1])])) == order
    assert len({colour for colour, _ in chart.looks([planted.row(entries)]).values()}) == len(names)


def test_the_threads_have_a_curve():
    rows = [planted.row([planted.entry(us=100.0 / n)], threads=n) for n in (1, 2)]
    text = chart.svg(planted.result(rows, header=planted.header(threads=[1, 2])))
    assert "times as fast as with 1 thread" in text


@pytest.mark.parametrize("rows", [[], [planted.row([])], [planted.row([planted.entry(**planted.WRONG)])]])
def test_a_run_with_nothing_to_draw_is_drawn(rows):
    result = planted.result(rows, interrupted=True)
    ElementTree.fromstring(chart.svg(result))
    text_of_html(page.page(contents.report(result), chart.svg(result)))
    assert "interrupted" in as_text(contents.report(result))


def test_the_chart_is_png():
    pixels = matplotlib.image.imread(io.BytesIO(chart.png(planted.all_kinds())), format="png")
    assert pixels.shape[1] > 1000 and pixels[0, 0].tolist() == [1, 1, 1, 1]  # on white


def test_the_page_needs_nothing_else(report):
    text = page.page(report, chart.svg(planted.all_kinds()))
    words, attributes = text_of_html(text)
    assert "hasty" in words and "Planted <CPU> | 9000" in words and "lsm.log_softmax(x)" in words
    assert "http" not in text and "//" not in re.sub(r"/\*.*?\*/", "", text)
    assert "<script" not in text and "<link" not in text and "@import" not in text
    references = [value for _, name, value in attributes if name in ("src", "href", "xlink:href")]
    assert references and all(value.startswith("#") for value in references)
    assert all(inner.startswith("#") for inner in re.findall(r"url\((.*?)\)", text))
    assert ("svg", "viewbox") in {(tag, name) for tag, name, _ in attributes}


# Two runs


def two_runs(lsm_us=100.0, torch_us=200.0, **changed):
    entries = [planted.entry(us=lsm_us), planted.entry("torch", us=torch_us), planted.entry("scipy", us=torch_us * 2)]
    old = planted.result([planted.row([planted.entry(), planted.entry("torch", 200.0), planted.entry("scipy", 400.0)])])
    return old, planted.result([planted.row(entries)], header=planted.header(**changed))


def compared(old, new, tolerance=1.3):
    return compare.compared(old, new, tolerance, "old.json")


def test_the_same_run_is_neither_better_nor_worse():
    old, new = two_runs()
    comparison = compared(old, new)
    assert not comparison.is_worse and comparison.remarks == ()
    assert {line.cells[4:] for line in comparison.tables[0].lines} == {("1.00x", "1.00x")}
    assert {line.mark for line in comparison.tables[0].lines} == {""}


def test_slower_beyond_the_tolerance_is_worse():
    old, new = two_runs(lsm_us=150.0)
    comparison = compared(old, new)
    assert comparison.is_worse
    worst = comparison.tables[0].lines[0]
    assert worst.cells[1:] == ("lsm cython", "100", "150", "1.50x", "1.50x") and worst.mark == "wrong"
    (line,) = dict(comparison.remarks)["Slower by more than 1.3"]
    assert line.startswith("lsm cython, llm_step 1x151936 float32, forward, 2 threads: 100 to 150 us, 1.50x")
    assert not compared(old, new, tolerance=1.6).is_worse


def test_faster_is_better():
    old, new = two_runs(lsm_us=50.0)
    comparison = compared(old, new)
    assert not comparison.is_worse
    marks = {line.cells[1]: line.mark for line in comparison.tables[0].lines}
    assert marks == {"lsm cython": "best", "torch": "", "scipy": ""}
    assert "0 slower and 1 faster" in comparison.tables[0].notes[0]


def test_a_slow_day_of_the_machine_is_not_held_against_a_backend():
    old, new = two_runs(lsm_us=150.0, torch_us=300.0)
    comparison = compared(old, new)
    assert not comparison.is_worse
    assert {line.cells[4:] for line in comparison.tables[0].lines} == {("1.50x", "1.00x")}


def test_a_fast_day_of_the_machine_neither():
    assert not compared(*two_runs(lsm_us=100.0, torch_us=100.0)).is_worse


def test_a_new_version_of_a_peer_is_no_measure_of_the_machine():
    old, new = two_runs(lsm_us=150.0, torch_us=300.0, versions={"lsm": "0.1.0", "torch": "9"})
    new.rows[0].contestants.pop()  # scipy, whose version stayed the same
    comparison = compared(old, new)
    assert comparison.is_worse
    assert "torch: 2.13.0 then, 9 now" in dict(comparison.remarks)["Not the same in both runs"]
    assert comparison.tables[0].lines[0].cells[-1] == ""


def test_a_peer_that_became_slower_is_nobodys_fault():
    comparison = compared(*two_runs(torch_us=900.0))
    assert not comparison.is_worse
    assert comparison.tables[0].lines[0].mark == ""


@pytest.mark.parametrize("which", [0, 1])
def test_a_row_with_neighbours_is_shown_and_not_judged(which):
    runs = two_runs(lsm_us=150.0)
    runs[which].rows[0].others = 0.7
    comparison = compared(*runs)
    assert not comparison.is_worse and not comparison.is_judged
    assert comparison.remarks[0][0] == "Nothing was judged"
    assert comparison.tables[0].lines[0].cells[1:5] == ("lsm cython", "100", "150", "1.50x")
    title = "Not judged, for others wanted the same processors"
    assert dict(comparison.remarks)[title] == ("llm_step 1x151936 float32, forward, 2 threads",)
    runs[which].rows[0].threads = runs[1 - which].rows[0].threads = 1  # there are two processors
    assert compared(*runs).is_worse


def test_more_threads_than_processors_disturb_nobody():
    old, new = two_runs(lsm_us=150.0)
    for row in (old.rows[0], new.rows[0]):
        row.threads, row.others = 8, 0.01
    assert compared(old, new).is_worse
    new.rows[0].others = 0.7
    assert not compared(old, new).is_judged


@pytest.mark.parametrize("which", [0, 1])
def test_who_had_few_turns_is_shown_and_not_judged(which):
    runs = two_runs(lsm_us=150.0)
    runs[which].rows[0].contestants[0].turns_us = [150.0] * 2
    runs[which].rows[0].contestants[1].turns_us = [200.0]  # no remark: peers are not judged anyway
    comparison = compared(*runs)
    assert not comparison.is_worse and not comparison.is_judged
    (line,) = dict(comparison.remarks)["Not judged, for there were fewer than 3 turns"]
    assert line == "lsm cython, llm_step 1x151936 float32, forward, 2 threads"
    assert comparison.tables[0].lines[0].mark == ""
    runs[which].rows[0].contestants[0].turns_us = [150.0] * 3
    assert compared(*runs).is_worse


def test_peers_alone_are_no_judgement():
    old, new = two_runs()
    for run in (old, new):
        del run.rows[0].contestants[0]
    comparison = compared(old, new)
    assert not comparison.is_worse and not comparison.is_judged
    assert comparison.remarks[0][0] == "Nothing was judged"


def test_a_backend_that_is_missing_now_is_worse():
    old, new = two_runs()
    old.rows[0].contestants.append(planted.entry("lsm cuda"))
    old.rows[0].contestants.append(planted.entry("lsm cython", way="new"))  # had no time left in the new run
    old.rows[0].contestants.append(planted.entry("jax"))  # a peer
    old.rows[0].contestants.append(planted.entry("lsm wrong", **planted.WRONG))
    comparison = compared(old, new)
    assert comparison.is_worse and comparison.is_judged
    broken = "Not right any more, missing, or raises now"
    assert dict(comparison.remarks)[broken] == ("lsm cuda, llm_step 1x151936 float32, forward, 2 threads: missing",)
    new.rows[0].absent["lsm cuda"] = "no device"
    assert dict(compared(old, new).remarks)[broken][0].endswith("2 threads: no device")
    new.rows[0].contestants.clear()  # the row failed
    new.absent["lsm"] = "cannot be loaded"
    reasons = [line.rpartition(": ")[2] for line in dict(compared(old, new).remarks)[broken]]
    assert reasons == ["no device", "cannot be loaded"]


def test_who_was_not_asked_for_is_not_missing():
    old, new = two_runs()
    old.rows[0].contestants.append(planted.entry("lsm cuda"))
    assert not compare.compared(old, new, 1.3, "old.json", ("cython", "torch")).is_worse
    assert compare.compared(old, new, 1.3, "old.json", ("lsm",)).is_worse


@pytest.mark.parametrize("change", [planted.WRONG, planted.RAISED])
def test_who_is_not_right_any_more_is_worse(change):
    old, new = two_runs()
    new.rows[0].contestants[0] = planted.entry(**change)
    comparison = compared(old, new)
    assert comparison.is_worse
    (line,) = dict(comparison.remarks)["Not right any more, missing, or raises now"]
    assert line.startswith("lsm cython, llm_step") and ("third turn" in line) == ("error" in change)


def test_rows_and_contestants_of_one_run_only_are_named():
    old, new = two_runs()
    old.rows.append(planted.row(workload="senones"))
    new.rows.append(planted.row(threads=1))
    new.rows[0].contestants.append(planted.entry("jax"))
    remarks = dict(compared(old, new).remarks)
    assert remarks["Only in old.json"] == ("senones 1x151936 float32, forward, 2 threads",)
    assert remarks["Only in this run"] == (
        "llm_step 1x151936 float32, forward, 2 threads: jax",
        "llm_step 1x151936 float32, forward, 1 thread",
    )


def test_another_machine_is_warned_about():
    old, new = two_runs(processor="Another", gpu="H100", caches={}, environment={}, instruction_levels={"lsm": "v3"})
    assert dict(compared(old, new).remarks)["Not the same in both runs"] == (
        "processor: Planted <CPU> | 9000 then, Another now",
        "gpu: none then, H100 now",
        "caches: L1 32768, L2 1048576 then, none now",
        "instructions of lsm: v4 then, v3 now",
        "instructions of torch: AVX512 then, none now",
        "variable OMP_NUM_THREADS: 2 then, none now",
    )


def test_runs_with_nothing_in_common_cannot_be_compared():
    old, new = two_runs()
    new.rows[0].workload = "senones"
    with pytest.raises(ValueError, match=r"'old.json' has nobody ranked in a row that this run has too"):
        compared(old, new)


def test_a_result_survives_its_file():
    result = planted.all_kinds()
    again = from_json(result.to_json())
    assert again == result
    assert as_text(contents.report(again)) == as_text(contents.report(result))
