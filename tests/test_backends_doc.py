"""docs/backends.md shows the files as they are, and names everything that the contract has."""

import re
from pathlib import Path

import pytest
from test_registry import Site

import lsm
from lsm import _config, testing
from lsm.backends import base, candidate

ROOT = Path(__file__).resolve().parents[1]
MINIMAL = ROOT / "docs" / "examples" / "plugins" / "lsm-minimal"
TEXT = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")


def section(title):
    """The text below a heading, up to the next one of its rank or above."""
    rank = title.split()[0]
    start = TEXT.index(f"\n{title}") + 1
    end = re.compile(rf"^#{{1,{len(rank)}}} ", re.MULTILINE).search(TEXT, start + len(title))
    return TEXT[start : end.start() if end else None]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def without_blank_lines(text):
    return [line for line in text.splitlines() if line]


def table(text):
    """The first column of the tables: what stands in backticks."""
    return re.findall(r"^\| `([^`(]+)", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "language", "file"),
    [
        ("### 1. The module", "python", "lsm_minimal.py"),
        ("### 2. The metadata", "toml", "pyproject.toml"),
        ("### 3. The test", "python", "tests/test_minimal.py"),
    ],
)
def test_the_files_are_shown_whole_and_as_they_are(title, language, file):
    shown = "".join(blocks(section(title), language))
    assert without_blank_lines(shown) == without_blank_lines((MINIMAL / file).read_text(encoding="utf-8"))


def test_the_minimal_plugin_is_minimal():
    n_lines = len((MINIMAL / "lsm_minimal.py").read_text(encoding="utf-8").splitlines())
    assert n_lines < 40
    assert f"plugins/lsm-minimal), {n_lines} lines" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_minimal_plugin_passes_with_the_counts_that_are_shown(tmp_path, monkeypatch):
    site = Site(tmp_path)
    code = (MINIMAL / "lsm_minimal.py").read_text(encoding="utf-8")
    site.add("lsm-minimal", "minimal", code, value="plugin_lsm_minimal:backend")
    monkeypatch.syspath_prepend(str(tmp_path))
    lsm.refresh_backends()
    report = testing.check_backend("minimal")
    lsm.refresh_backends()
    counts = f"{report.count('passed')} passed, {report.count('failed')} failed, {report.count('skipped')} skipped"
    assert f"minimal: {counts}" in section("### 4. Install")


def test_the_reference_names_all_of_the_contract():
    methods = [name for name in vars(base.Backend) if callable(getattr(base.Backend, name)) and name[0] != "_"]
    assert set(table(section("## The contract"))) == {*base.Backend.__annotations__, *methods, "empty"}
    assert f"| `api_version` | int | | the contract: {base.API_VERSION} |" in TEXT


def test_every_variable_is_named():
    assert table(section("## Settings")) == list(_config.ACCEPTED)


def test_every_state_and_error_is_named():
    states = re.findall(r"^(\w+) {2,}\S", candidate.__doc__, re.MULTILINE)
    shown = section("## What can go wrong")
    assert set(states) == set(re.findall(r"^\| (\w+) \| ", shown, re.MULTILINE)) - {"state"}
    for name in re.findall(r"`(\w+Error)`", TEXT):
        assert issubclass(getattr(lsm, name, None) or getattr(testing, name), Exception)


def test_the_code_for_other_types_runs():
    (code,) = blocks(section("## The kit"), "python")
    names = {}
    exec(compile(code, "backends.md", "exec"), names)
    assert issubclass(names["TestMine"], testing.BackendConformance)
    assert names["TestMine"].makers[0].type_name == "my_package.Array"


DOCUMENTS = sorted(file for folder in (".", "docs", "benchmarks") for file in (ROOT / folder).glob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        target, _, heading = link.partition("#")
        if not target.startswith("http"):
            file = document.parent / target if target else document
            assert file.exists(), link
            assert not heading or heading in headings(file), link


def headings(file):
    """The anchors of a document's headings."""
    found = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in found}
