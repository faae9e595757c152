"""docs/cli.md shows what the commands give, those at least whose output does not depend on the machine."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lsm.backends.candidate import BUILT_IN
from lsm.cli import main

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")


def shown():
    """Each command that is shown with output, and the output."""
    for block in re.findall(r"^```text\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            if output.strip():
                yield command, output


SHOWN = dict(shown())


def given(command, work):
    """What the command gives, in a process of its own, where no variable of lsm is set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LSM_")}
    process = [sys.executable, "-m", "lsm", *shlex.split(command)[1:]]
    done = subprocess.run(process, cwd=work, env=clean | {"COLUMNS": "80"}, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def comparable(text):
    """Its lines, without what differs between machines: versions, directories, counts, the widths of columns."""
    lines = [re.sub(r"\S*/(?=[^/ ]+$)", "", " ".join(line.split())) for line in text.splitlines()]
    lines = [re.sub(r"^lsm \S+, kernels: \S+, threads: \d+$", "lsm, its kernels and threads", line) for line in lines]
    return [re.sub(r"\blsm \d+\.\d\S*", "lsm VERSION", line) for line in lines if line]


def by_backend(lines):
    """The lines before the first backend of lsm's own under "", and those of each; others' are left out."""
    found, name = {"": []}, ""
    for line in lines:
        words = line.split()
        if words[0] in BUILT_IN or re.match(r"\S+ (loaded|unavailable|failed|blocked|incompatible|discovered) ", line):
            name = words[0]
        found.setdefault(name, []).append(line)
    return {name: lines for name, lines in found.items() if name in ("", *BUILT_IN)}


def test_the_commands_are_found():
    assert {"lsm backends", "lsm explain --dtype longdouble", "lsm apply b.npy y.npy"} <= set(SHOWN)


@pytest.mark.parametrize("command", [command for command in SHOWN if command.startswith("lsm explain ")])
def test_explain_is_shown_as_it_is(command, tmp_path):
    first, *others = comparable(SHOWN[command])
    now_first, *now = comparable(given(command, tmp_path))
    assert now_first == first
    assert [line for line in now if line.split()[0] in BUILT_IN] == others  # a plugin may be installed here


def test_backends_is_shown_as_it_is(tmp_path):
    ours, now = (by_backend(comparable(text)) for text in (SHOWN["lsm backends"], given("lsm backends", tmp_path)))
    assert set(ours) == {"", *BUILT_IN}
    for name in ours:
        if name != "cupy" or find_spec("cupy") is None:  # the state is that of a machine without CuPy
            assert now[name] == ours[name]


def test_apply_is_shown_as_it_is(tmp_path):
    np.save(tmp_path / "b.npy", np.ones((2, 3), ml_dtypes.bfloat16))
    assert given("lsm apply b.npy y.npy", tmp_path) == SHOWN["lsm apply b.npy y.npy"]


def test_the_options_of_bench_are_all_listed(capsys):
    assert main(["bench", "--help"]) == 0
    flags = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", capsys.readouterr().out)) - {"--help"}
    table = TEXT.partition("## `lsm bench`")[2].partition("## `lsm apply")[0]
    assert flags <= set(re.findall(r"--[a-z]+(?:-[a-z]+)*", table))
