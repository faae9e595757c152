"""The distribution is lsm-softmax: `lsm` on the package index is another project, which no text may tell to install."""

import re
import sys
from pathlib import Path

import pytest

import lsm
from lsm._version import DISTRIBUTION, install_command

ROOT = Path(__file__).parents[1]
TEXTS = sorted(
    file
    for pattern in ("*.md", "*.toml", "*.py", "docs/**/*.md", "docs/**/*.toml", "docs/**/*.py", "lsm/**/*.py", ".ci/*")
    for file in ROOT.glob(pattern)
    if "build" not in file.relative_to(ROOT).parts
)
# `lsm[extra]`, an installation of lsm, or of a plugin, from the index, and lsm as a dependency.
FORBIDDEN = re.compile(
    r"""(?<![\w-])lsm\[ | install\ (-\S+\ )*['"]?lsm(-torch|-minimal)?(?=['"\s]|$)
      | dependencies\ =\ \[.*["']lsm["'<>=~! ]""",
    re.VERBOSE | re.MULTILINE,
)


def test_the_old_form_is_found():
    for text in (
        "python -m pip install 'lsm[bfloat16]'",
        "pip install lsm",
        "pip install -U 'lsm'",
        'dependencies = ["lsm"]',
        'dependencies = ["numpy", "lsm>=0.1"]',
        "pip install lsm-torch",
    ):
        assert FORBIDDEN.search(text), text
    for text in ("pip install ./lsm-torch", 'dependencies = ["lsm-softmax"]', "'lsm-softmax[bench]'", "installs lsm"):
        assert not FORBIDDEN.search(text), text


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_text_names_a_distribution_that_is_not_ours(file):
    found = [match.group() for match in FORBIDDEN.finditer(file.read_text(encoding="utf-8"))]
    assert not found, f"{file}: {found}; give {DISTRIBUTION}, or a plugin's folder"


def test_the_name_stands_in_one_place_of_the_code():
    files = [f for f in ROOT.glob("lsm/**/*.py") if DISTRIBUTION in f.read_text(encoding="utf-8")]
    assert [f.name for f in files] == ["_version.py"]
    assert install_command("cuda13") == "python -m pip install 'lsm-softmax[cuda13]'"


def test_the_benchmarks_find_lsm_by_its_name():
    import promises

    assert promises.LIBRARIES[DISTRIBUTION][0] == "lsm" and promises.installed(DISTRIBUTION) == lsm.__version__


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_the_metadata_agree():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    for plugin in ("lsm-minimal", "lsm-torch"):
        text = (ROOT / "docs" / "examples" / "plugins" / plugin / "pyproject.toml").read_text(encoding="utf-8")
        assert DISTRIBUTION in tomllib.loads(text)["project"]["dependencies"]


def test_the_hooks_of_pre_commit_are_the_tools_of_ci():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (extra,) = re.findall(r"^lint = (\[.*\])", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    pinned = set(re.findall(r'"([\w-]+==[\d.]+)"', extra))
    assert len(pinned) == 3 and pinned == set(re.findall(r'"([\w-]+==[\d.]+)"', hooks))
