"""What is an installed distribution, by its metadata, as importlib.metadata and pip say; and what is lsm's own."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from modulefinder import ModuleFinder
from pathlib import Path
from typing import NamedTuple

import entrypoints
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lsm
from lsm.backends import discovery

GROUP = "lsm.backends"
PACKAGE = Path(lsm.__file__).parent


class Dist(NamedTuple):
    """A distribution, and how its metadata lie on the disk."""

    name: str = "acme"  # as METADATA spell it
    version: str = "1.0"
    points: str | bytes | None = "[lsm.backends]\nacme = acme_mod:backend\n"
    stem: str | None = None  # of the folder, if it is not "name-version" in the usual spelling
    suffix: str = ".dist-info"
    has_name: bool = True

    def folder(self):
        return (self.stem or f"{self.name.replace('-', '_')}-{self.version}") + self.suffix

    def files(self, folder):
        """What belongs into its folder of metadata."""
        stated = f"Metadata-Version: 2.1\n{f'Name: {self.name}' if self.has_name else ''}\nVersion: {self.version}\n"
        yield (
            f"{folder}/{'METADATA' if self.suffix == '.dist-info' else 'PKG-INFO'}",
            stated.replace("\n\n", "\n").encode(),
        )
        if self.points is not None:
            points = self.points if isinstance(self.points, bytes) else self.points.encode()
            yield f"{folder}/entry_points.txt", points


def write(entry, dists, kind="folder"):
    """Write an entry of the path: a folder or an archive with distributions, or an egg, which is one of them."""
    eggs = kind.startswith("egg")
    files = [file for dist in dists for file in dist.files("EGG-INFO" if eggs else dist.folder())]
    if kind in ("folder", "egg folder"):
        for name, data in files:
            (entry / name).parent.mkdir(parents=True, exist_ok=True)
            (entry / name).write_bytes(data)
        entry.mkdir(exist_ok=True)
    else:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("a_module.py", "")
            for name, data in files:
                archive.writestr(name, data)
        entry.write_bytes(content.getvalue())
    return str(entry)


def rows(path):
    """What lsm finds."""
    return [
        (item.name, item.distribution, item.version, item.value, bool(item.problem)) for item in discovery.find(path)
    ]


# --- The zoo: each layout has a twin that follows the specification to the letter, which importlib.metadata reads.

SPELLINGS = {
    "acme": ("acme", "Acme"),
    "lsm-acme": ("lsm-acme", "LSM.acme", "lsm_Acme"),
    "lsm-softmax": ("lsm-softmax",),
}
GROUPED = {
    "one": "[lsm.backends]\nacme = acme_mod:backend\n",
    "two": "[console_scripts]\nx = y:z\n\n[lsm.backends]\nacme=acme_mod.sub : backend.a [extra]\nother = other_mod\n",
    "indented": "  [lsm.backends]\n  acme = acme_mod:backend\n    other = other_mod:a\n",
    "percent": "[lsm.backends]\nacme = %(x)s:backend\n",
}
UNGROUPED = {"none": None, "empty": "", "other group": "[console_scripts]\na = b:c\n", "unrelated": b"[x]\ny = \xff\n"}
BROKEN = {
    "not UTF-8": b"\xff\xfe[lsm.backends]\nacme = b:c\n",
    "UTF-16": "[lsm.backends]\nacme = b:c\n".encode("utf-16"),
    "twice": "[lsm.backends]\nacme = b:c\nacme = b:d\n",
    "no header": "acme = b:c\n[lsm.backends]\n",
}
POINTS = GROUPED | UNGROUPED | BROKEN
AS_BROKEN = "[lsm.backends]\n? = broken:broken\n"  # in the twin


class Case(NamedTuple):
    """A distribution that need not follow the specification."""

    dist: Dist
    points: str  # the key in POINTS
    is_leftover: bool

    def twin(self):
        """The same to the letter; None if it is no distribution."""
        if self.is_leftover:
            return None
        points = AS_BROKEN if self.points in BROKEN else None if self.points == "unrelated" else self.dist.points
        return self.dist._replace(points=points, stem=None, has_name=True)


@st.composite
def cases(draw, project, kind):
    points = draw(st.sampled_from(sorted(POINTS)))
    version = draw(st.sampled_from(["1.0", "2.0", "1.10rc1"]))
    suffix = ".egg-info" if kind.startswith("egg") else draw(st.sampled_from([".dist-info", ".egg-info"]))
    name = draw(st.sampled_from(SPELLINGS[project]))
    usual = f"{project.replace('-', '_')}-{version}"
    stem = draw(
        st.sampled_from([None, usual, f"{project}-{version}", f"{usual}.0", usual.partition("-")[0], f"{usual}-py3.11"])
    )
    is_leftover = draw(st.integers(0, 4)) == 0 and not kind.startswith("egg")
    if is_leftover:
        stem = draw(st.sampled_from("~-=")) + usual[1:]
    dist = Dist(name, version, POINTS[points], stem, suffix)
    return Case(dist, points, is_leftover)


@st.composite
def zoos(draw):
    zoo = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["folder", "folder", "zip", "whl", "egg folder", "egg archive"]))
        n_projects = 1 if kind.startswith("egg") else draw(st.integers(0, 3))
        projects = draw(st.permutations(sorted(SPELLINGS)))[:n_projects]
        zoo.append((kind, [draw(cases(project, kind)) for project in projects]))
    return zoo


def entry_of(root, i, kind, dists):
    endings = {"folder": "", "zip": ".zip", "whl": "-py3-none-any.whl", "egg folder": ".egg", "egg archive": ".egg"}
    stem = dists[0].folder().removesuffix(dists[0].suffix) if kind.startswith("egg") else "entry"
    folder = root / str(i)
    folder.mkdir(parents=True)
    return write(folder / (stem + endings[kind]), dists, kind)


def named_as_the_library_does(path):
    """The same by importlib.metadata."""
    before = sys.path
    sys.path = [*path, str(Path(os.__file__).parent)]  # the standard library, which imports as it goes
    try:
        found = metadata.entry_points(group=GROUP)
    finally:
        sys.path = before
    # Spaces around the colon, and extras, are the library's to remove when it loads one.
    return sorted(
        (
            point.name,
            point.dist.metadata["Name"],
            point.dist.version,
            "" if point.name == "?" else point.value.partition("[")[0].replace(" ", ""),
            point.name == "?",
        )
        for point in found
    )


@settings(max_examples=200, deadline=None)
@given(zoos())
def test_it_finds_what_importlib_metadata_finds(zoo):
    with tempfile.TemporaryDirectory() as folder:
        ours, twins = [], []
        for i, (kind, dists) in enumerate(zoo):
            ours.append(entry_of(Path(folder, "ours"), i, kind, [case.dist for case in dists]))
            twin = [case.twin() for case in dists if case.twin() is not None]
            # An archive counts as a folder does; of archives, the library leaves each open.
            as_folder = "egg folder" if kind.startswith("egg") else "folder"
            twins.append(entry_of(Path(folder, "twins"), i, as_folder, twin))
        assert sorted(rows(ours)) == named_as_the_library_does(twins)


# --- Each deliberate difference, and each layout that is rare, alone.


@pytest.mark.parametrize("suffix", [".dist-info", ".egg-info"])
@pytest.mark.parametrize(
    "stem", ["lsm-acme-1.0", "acme-lsm-1.0", "Lsm.Acme-1.0-py3.11", "x", "x-7", "lsm-softmax-0.1.0"]
)
def test_the_name_is_that_of_the_metadata(tmp_path, stem, suffix):
    path = [write(tmp_path / "site", [Dist("lsm-acme", stem=stem, suffix=suffix)])]
    assert rows(path) == [("acme", "lsm-acme", "1.0", "acme_mod:backend", False)]


def test_a_name_in_the_metadata_hides_and_one_of_a_folder_does_not(tmp_path):
    first = write(tmp_path / "a", [Dist("lsm", points=None), Dist("lsm-other", "3", None, "acme-9")])
    second = write(tmp_path / "b", [Dist("lsm-acme", stem="lsm-acme-1.0"), Dist("acme"), Dist("Lsm.Other")])
    assert [row[:2] for row in rows([first, second])] == [("acme", "acme"), ("acme", "lsm-acme")]


@pytest.mark.parametrize("kind", ["folder", "whl"])
@pytest.mark.parametrize("points", [None, "", "[console_scripts]\na = b:c\n", "[lsm.backends]\n"])
def test_a_newer_release_without_a_backend_hides_the_older(tmp_path, points, kind):
    new = write(tmp_path / "new", [Dist("Acme", "2.0", points)], kind)
    old = write(tmp_path / "old", [Dist("acme", "1.0")], kind)
    assert rows([new, old]) == [] and len(rows([old, new])) == 1


def test_an_egg_info_that_is_a_file_hides(tmp_path):
    new, old = tmp_path / "new", write(tmp_path / "old", [Dist()])
    new.mkdir()
    (new / "acme-2.0.egg-info").write_text("Metadata-Version: 1.0\nName: acme\nVersion: 2.0\n")
    assert rows([str(new), old]) == []


@pytest.mark.parametrize(
    "stem", ["~cme-1.0", "-cme-1.0", "~-cme-1.0", "=cme-1.0", "", "-", "_cme-1.0", "a b-1.0", "\u00e4cme-1.0"]
)
def test_what_pip_leaves_behind_is_no_distribution(tmp_path, stem):
    """Nor is any other folder whose name cannot be a distribution's."""
    path = [write(tmp_path / "a", [Dist(stem=stem or None, suffix=".dist-info" if stem else "")])]
    if not stem:
        Path(path[0], "acme-1.0").rename(Path(path[0], ".dist-info"))
    assert rows([*path, write(tmp_path / "b", [Dist(version="2.0")])])[0][2] == "2.0"
    assert len(rows(path)) == 0


@pytest.mark.parametrize("name", ["~acme", "-acme", "acme-", "a c", "lsm/acme", "\u00e4cme", "\x1b[31mred"])
def test_a_name_that_cannot_be_is_none(tmp_path, name):
    assert rows([write(tmp_path / "a", [Dist(name, stem="acme-1.0")])]) == []


@pytest.mark.parametrize("kind", ["folder", "zip", "egg folder", "egg archive"])
def test_without_a_name_in_the_metadata_it_is_that_of_the_folder(tmp_path, kind):
    suffix = ".egg-info" if kind.startswith("egg") else ".dist-info"
    path = [write(tmp_path / "acme_lsm-1.0.egg", [Dist("acme-lsm", has_name=False, suffix=suffix)], kind)]
    assert rows(path) == [("acme", "acme_lsm", "1.0", "acme_mod:backend", False)]


@pytest.mark.parametrize("stem", ["lsm-acme-1.0", "lsm-acme-1.0-py3.11", "lsm-acme"])
def test_and_a_hyphen_in_the_name_of_the_folder_does_not_end_it(tmp_path, stem):
    path = Path(write(tmp_path, [Dist("lsm-acme", stem=stem, suffix=".egg-info")]))
    for text in ("", "\ufeffName: lsm-acme\n"):  # the latter is another field
        (path / f"{stem}.egg-info" / "PKG-INFO").write_text(text, "utf-8")
        version = "" if stem == "lsm-acme" else "1.0"
        assert rows([str(path)]) == [("acme", "lsm-acme", version, "acme_mod:backend", False)]


def test_metadata_that_are_not_utf_8_still_name_the_distribution(tmp_path):
    path = write(tmp_path / "site", [Dist("lsm-acme", stem="lsm-acme-1.0")])
    Path(path, "lsm-acme-1.0.dist-info", "METADATA").write_bytes(b"Author: J\xfcrgen\nName: lsm-acme\nVersion: 1.0\n")
    assert [row[1] for row in rows([path])] == ["lsm-acme"]


@pytest.mark.parametrize("kind", ["folder", "zip", "whl", "egg folder", "egg archive"])
@pytest.mark.parametrize("broken", sorted(BROKEN))
def test_a_file_that_cannot_be_read_is_reported_with_its_place(tmp_path, kind, broken):
    suffix = ".egg-info" if kind.startswith("egg") else ".dist-info"
    entry = tmp_path / "acme-1.0.egg"
    path = [write(entry, [Dist(points=BROKEN[broken], suffix=suffix)], kind)]
    (item,) = discovery.find(path)
    folder = "EGG-INFO" if kind.startswith("egg") else f"acme-1.0{suffix}"
    assert (item.name, item.distribution, item.version) == ("?", "acme", "1.0")
    assert item.file == str(entry / folder / "entry_points.txt")
    assert item.problem.startswith("its metadata file cannot be read: ")


@pytest.mark.parametrize("kind", ["zip", "egg archive", "no archive"])
def test_archives_are_closed(tmp_path, kind):
    entry = tmp_path / "acme-1.0.egg"
    if kind == "no archive":
        entry.write_bytes(b"PK or so")
    else:
        write(entry, [Dist(suffix=".egg-info")], kind)
    code = f"import gc; from lsm.backends import discovery; discovery.find([{str(entry)!r}]); gc.collect()"
    out, err = run(code, [PACKAGE.parent], PYTHONWARNINGS="always::ResourceWarning")
    assert not out and not err


def test_an_archive_that_is_damaged_is_reported(tmp_path):
    path = Path(write(tmp_path / "acme.zip", [Dist()], "zip"))
    path.write_bytes(path.read_bytes().replace(b"acme_mod:backend", b"acme_mod:damaged"))
    (item,) = discovery.find([str(path)])
    assert "BadZipFile" in item.problem and item.distribution == "acme"


def test_of_two_versions_in_one_folder_the_higher_counts(tmp_path):
    dists = [Dist(version=v, points=f"[lsm.backends]\nacme = v{v[2:]}:b\n") for v in ("1.9", "1.10", "1.2")]
    assert [row[2:4] for row in rows([write(tmp_path / "site", dists)])] == [("1.10", "v10:b")]
    dists[1] = dists[1]._replace(points=None)
    assert rows([write(tmp_path / "other", dists)]) == []


def test_versions_are_ordered_as_pip_orders_them():
    ordered = ["1.0.dev5", "1.0a1", "1.0b2", "1.0rc1", "1.0", "1.0.post1", "1.1", "1.9", "1.10"]
    ordered += ["2024.1rc3", "2024.1", "1!0.1"]
    keys = [discovery._version_key(version) for version in ordered]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert discovery._version_key("1.0") == discovery._version_key("1")
    for odd in ("", "unknown", "1.0-py3.11", "1.0+local", "\n"):
        discovery._version_key(odd)


@pytest.mark.parametrize("before", ["Summary: a\n  b\n \n", "Summary: a\x0cb\n", "Summary: a\u2028b\n"])
def test_the_name_is_that_which_pip_reads(before, tmp_path):
    """A line of one blank continues a field, and only line feeds end lines."""
    info = tmp_path / "trusted-1.0.dist-info"
    info.mkdir()
    fields = f"Metadata-Version: 2.1\n{before}Name: evil\nVersion: 1.0\n\nName: trusted\n"
    (info / "METADATA").write_text(fields, "utf-8")
    (info / "entry_points.txt").write_text("[lsm.backends]\nacme = acme:b\n")
    (found,) = metadata.distributions(path=[str(tmp_path)])
    assert [item.distribution for item in discovery.find([str(tmp_path)])] == [found.metadata["Name"]] == ["evil"]


def test_a_finder_that_fails_ends_nothing(tmp_path, monkeypatch):
    class Finder:
        def find_distributions(self, context=None):
            raise RuntimeError("no")

        def find_spec(self, *args):
            return None

    path = [write(tmp_path / "site", [Dist()])]
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert [row[0] for row in rows(path)] == ["acme"]


def test_a_finder_of_another_package_is_asked(monkeypatch):
    class Foreign(metadata.Distribution):
        def read_text(self, filename):
            files = {"METADATA": "Name: frozen-lsm\nVersion: 5\n", "entry_points.txt": "[lsm.backends]\na = b:c\n"}
            return files.get(filename)

        def locate_file(self, path):
            raise NotImplementedError

    class Finder:
        def find_distributions(self, context=None):
            return [Foreign()]

        def find_spec(self, *args):
            return None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert rows(["/nowhere", "/elsewhere"]) == [("a", "frozen-lsm", "5", "b:c", False)]


# --- lsm's own backends, in a fresh process.


def run(code, path, cwd=None, **env):
    """What a fresh Python prints whose path begins with these entries."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LSM_")}
    prelude = "import json, numpy as np\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        env=clean | {"PYTHONPATH": os.pathsep.join(map(str, path))} | env,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


SHOW = """
import lsm
def row(i): return [i.name, i.distribution, i.version, i.state, i.is_built_in, i.reason]
print(json.dumps([row(i) for i in lsm.list_backends()]))
"""


@pytest.mark.parametrize("stem", ["lsm-softmax-acme-1.0", "lsm-acme-1.0", "lsm_softmax-1.0", "lsm_softmax"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_folder_that_is_called_as_lsm_is_gets_no_rights(tmp_path, stem, order):
    """Before lsm on the path or behind it, it is found, and neither its code runs nor is it allowed."""
    write(tmp_path / "site", [Dist("lsm-acme", stem=stem)])
    (tmp_path / "site" / "acme_mod.py").write_text("raise SystemExit('IT RAN')")
    path = [tmp_path / "site", PACKAGE.parent][::order]
    for env, reason in (({"LSM_PLUGINS": "off"}, "'off'"), ({"LSM_PLUGINS_ALLOW": "other,lsm-softmax"}, "'lsm-acme'")):
        out, err = run(SHOW, path, **env)
        (row,) = (row for row in json.loads(out) if row[0] == "acme")
        assert row[1:5] == ["lsm-acme", "1.0", "blocked", False] and reason in row[5] and not err
    out, err = run(SHOW, path, LSM_PLUGINS_ALLOW="lsm-acme")
    assert "failed" in out and "SystemExit: IT RAN" in err


FORGED = {
    "another backend": "acme = evil:backend",
    "a reserved name": "numpy = evil:backend",
    "lsm's module by another name": "acme = lsm.backends.numpy_:backend",
    "another object of lsm's module": "numpy = lsm.backends.numpy_:np.evil",
    "a module below lsm's": "cupy = lsm.backends.evil:backend",
}


@pytest.mark.parametrize("case", sorted(FORGED))
@pytest.mark.parametrize("env", [{"LSM_PLUGINS": "off"}, {"LSM_PLUGINS_ALLOW": "lsm-softmax"}, {}], ids=str)
def test_the_name_of_lsm_gives_no_rights(tmp_path, case, env):
    write(tmp_path / "site", [Dist("LSM.softmax", "99", f"[lsm.backends]\n{FORGED[case]}\n")])
    (tmp_path / "site" / "evil.py").write_text("raise SystemExit('IT RAN')")
    code = (
        SHOW
        + """
lsm.log_softmax(np.zeros(3, "g")), lsm.log_softmax(np.zeros(3), backend="numpy")
print(lsm.explain(np.zeros(3), backend="lsm-softmax/numpy").winner)
"""
    )
    out, err = run(code, [tmp_path / "site"], **env)
    listed, winner = out.splitlines()
    listed = json.loads(listed)
    assert [[*row[:3], row[4]] for row in listed[:3]] == [
        [name, "lsm-softmax", lsm.__version__, True] for name in ("cython", "cupy", "numpy")
    ]
    ((_, distribution, version, state, is_built_in, reason),) = listed[3:]
    assert (distribution, version, state, is_built_in) == ("LSM.softmax", "99", "blocked", False)
    assert "reserved" in reason or "is lsm's own distribution, which has no such backend" in reason
    assert winner == "numpy" and not err


def test_requesting_a_forged_one_gives_the_remedy(tmp_path):
    site = write(tmp_path / "site", [Dist("lsm-softmax", "99")])
    code = """
import lsm
try:
    lsm.log_softmax([1.0], backend="acme")
except lsm.BackendBlockedError as error:
    print(error)
"""
    out, _ = run(code, [site])
    assert "'lsm-softmax' is lsm's own distribution, which has no such backend; reinstall lsm-softmax, or remove" in out


def test_another_distribution_that_names_lsms_own_module_brings_nothing(tmp_path):
    site = write(tmp_path / "site", [Dist("evil", "1", "[lsm.backends]\nnumpy = lsm.backends.numpy_:backend\n")])
    out, _ = run(SHOW, [site])
    assert [row[:1] + row[3:5] for row in json.loads(out)[2:]] == [
        ["numpy", "loaded", True],
        ["numpy", "blocked", False],
    ]


NEEDS_ALL = """
import lsm
assert lsm.__file__ == FILE, lsm.__file__
print([(i.name, i.is_built_in, i.distribution, i.version) for i in lsm.list_backends()])
print(lsm.log_softmax(np.zeros(1, "f4"), backend="numpy"), lsm.log_softmax(np.zeros(1, "g")), lsm.explain([1.0]).winner)
"""


@pytest.mark.parametrize("kind", ["missing", "leftover", "empty", "broken"])
def test_lsm_has_its_backends_whatever_became_of_its_metadata(tmp_path, kind):
    """As in an image that was made small by `rm -rf *.dist-info`."""
    shutil.copytree(PACKAGE, tmp_path / "lsm", ignore=shutil.ignore_patterns("__pycache__"))
    libraries = tmp_path / "libraries"  # what lsm needs, and no metadata at all
    libraries.mkdir()
    site = Path(np.__file__).parents[1]
    for source in (site / "numpy", site / "numpy.libs", Path(entrypoints.__file__)):
        if source.exists():
            (libraries / source.name).symlink_to(source)
    points = {"leftover": None, "empty": "", "broken": b"\xff[lsm.backends]"}
    if kind != "missing":
        write(tmp_path, [Dist("lsm-softmax", points=points[kind], stem="~sm-1" if kind == "leftover" else None)])
    code = f"import sys; sys.path[:0] = {[str(tmp_path), str(libraries)]}\nimport numpy as np\n"
    code += NEEDS_ALL.replace("FILE", repr(str(tmp_path / "lsm" / "__init__.py")))
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listed, results = done.stdout.splitlines()
    own = [(name, True, "lsm-softmax", lsm.__version__) for name in ("cython", "cupy", "numpy")]
    assert eval(listed)[:3] == own and results == "[0.] [0.] cython"
    assert len(eval(listed)) == (4 if kind == "broken" else 3)


def test_lsm_has_its_backends_where_it_lies_in_the_current_directory(tmp_path):
    """`pip install -t .`: the directory is not searched, neither for lsm's own entry points."""
    write(tmp_path, [Dist("lsm-softmax", points="[lsm.backends]\nnumpy = evil:backend\n"), Dist()])
    out, err = run(SHOW, [], cwd=tmp_path)
    assert [row[0] for row in json.loads(out) if row[4]] == ["cython", "cupy", "numpy"]
    assert "acme" not in out and not err


@pytest.mark.parametrize("how", ["'-c'", "the full path"])
def test_where_the_program_was_started_is_not_searched_after_it_has_moved(tmp_path, how):
    write(tmp_path / "here", [Dist()])
    (tmp_path / "there").mkdir()
    first = "" if how == "'-c'" else str(tmp_path / "here")  # as of `python -m`
    code = f"import os, sys; sys.path[0] = {first!r}\nimport lsm\nos.chdir('../there')\n" + SHOW
    out, err = run(code, [PACKAGE.parent], cwd=tmp_path / "here")
    assert "acme" not in out and not err


def test_freezing_tools_find_every_part_of_lsm():
    """PyInstaller, cx_Freeze and others follow the statements that import, wherever they stand."""
    found = ModuleFinder(path=[str(PACKAGE.parent)])
    found.import_hook("lsm")
    seen = {name for name, module in found.modules.items() if module.__file__}
    kernels = {file.name.partition(".")[0] for file in (PACKAGE / "backends" / "_kernels").glob("*.so")}
    expected = {f"lsm.backends._kernels.{name}" for name in kernels}
    for file in (PACKAGE / "backends").rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        expected.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert kernels >= {"cpu"} and expected <= seen, expected - seen


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_pyinstaller_finds_the_hook_that_brings_the_engines_and_the_cuda_sources():
    import tomllib

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    value = project["project"]["entry-points"]["pyinstaller40"]["hook-dirs"]
    (folder,) = discovery.EntryPoint("hook-dirs", "", "", "", value).load()()
    assert "lsm._pyinstaller" in project["tool"]["setuptools"]["packages"]
    hook = Path(folder, "hook-lsm.py").read_text(encoding="utf-8")
    assert "**/*.cu" in hook
    assert all(
        f'"lsm.engines.{file.stem}"' in hook for file in (PACKAGE / "engines").glob("*_.py") if file.stem[0] != "_"
    )
    assert list(PACKAGE.glob("**/*.cu"))
