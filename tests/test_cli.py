"""The command `lsm`: files of every kind give the right bits or one clear line, and nothing is left half done."""

import contextlib
import errno
import io
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from test_registry import Site

import lsm
from lsm import _apply, _files, _stdout
from lsm._conformance import run as kit
from lsm._operations import DERIVED
from lsm._stopping import StoppedError, begin_shutdown, deferred_signals, raise_if_stopped, stop_signals
from lsm._storage import raw
from lsm.backends.numpy_ import NumpyBackend
from lsm.bench import command as bench_command
from lsm.cli import main

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def run(*args, **options):
    """The command as a user starts it."""
    command = [sys.executable, "-m", "lsm", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def drive(code, *args, **options):
    """A process that runs `code` first, then the command."""
    script = f"import sys, lsm\nfrom lsm import _apply, cli\n{code}\nsys.exit(cli.main())"
    return subprocess.Popen([sys.executable, "-c", script, *map(str, args)], stderr=subprocess.PIPE, **options)


def saved(array):
    """What numpy.save would write, byte for byte."""
    text = io.BytesIO()
    np.save(text, array)
    return text.getvalue()


def refused(capsys, *args):
    """The one line that the command says when it refuses to work."""
    assert main([str(arg) for arg in args]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("lsm: error: ")
    return shown.err


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 elements, so that small files have many."""
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 64)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is computed


SHAPES = [(7,), (50, 3), (3, 50), (5, 4, 6), (2, 3, 2, 5), (1, 40), (40, 1), (2, 1, 9)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", SHAPES)
def test_apply_gives_the_bits_of_the_whole_array(work, small_blocks, rng, shape, order):
    x = np.asarray(rng.normal(size=shape) * 9, np.float32, order=order)
    np.save("x.npy", x)
    for axis in range(-len(shape), len(shape)):
        assert main(["apply", "x.npy", "y.npy", "--axis", str(axis)]) == 0
        assert (work / "y.npy").read_bytes() == saved(lsm.log_softmax(x, axis))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("text", "axis"), [("0,2", (0, 2)), ("-1,-2", (-1, -2)), ("all", None)])
def test_several_axes(work, small_blocks, rng, text, axis, order):
    x = np.asarray(rng.normal(size=(4, 5, 6)), np.float32, order=order)
    np.save("x.npy", x)
    assert main(["apply", "x.npy", "y.npy", f"--axis={text}"]) == 0
    y = np.load("y.npy")
    assert y.tobytes() == lsm.log_softmax(x, axis).tobytes()


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble", "|b1", "<i4", ">u8", "|u1"])
def test_dtypes_and_byte_orders(work, small_blocks, rng, dtype):
    x = (rng.normal(size=(20, 3)) * 5).astype("i8").astype(dtype) if dtype[1] in "biu" else rng.normal(size=(20, 3))
    x = x.astype(dtype)
    np.save("x.npy", x)
    assert main(["apply", "x.npy", "y.npy"]) == 0
    if dtype == "longdouble":  # its padding is whatever was in memory
        np.testing.assert_array_equal(np.load("y.npy"), lsm.log_softmax(x), strict=True)
    else:
        assert (work / "y.npy").read_bytes() == saved(lsm.log_softmax(x))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (2, 0, 4), (1,), (1, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_scalars_and_empty_arrays(work, small_blocks, shape, order):
    x = np.ones(shape, np.float32, order=order)
    np.save("x.npy", x)
    assert main(["apply", "x.npy", "y.npy"]) == 0
    y = np.load("y.npy")
    assert (y.shape, y.dtype, y.tobytes()) == (x.shape, x.dtype, lsm.log_softmax(x).tobytes())


def test_dtype_and_backend(work, small_blocks, rng):
    x = rng.normal(size=(20, 7)).astype(np.float16)
    np.save("x.npy", x)
    assert main(["apply", "x.npy", "y.npy", "--dtype", "float64", "--backend", "numpy"]) == 0
    assert (work / "y.npy").read_bytes() == saved(lsm.log_softmax(x, dtype=np.float64, backend="numpy"))


def test_the_backend_is_the_one_asked_for(work, monkeypatch):
    seen = []
    original = lsm.log_softmax
    monkeypatch.setattr(lsm, "log_softmax", lambda x, **kw: seen.append(kw["backend"]) or original(x, **kw))
    np.save("x.npy", np.ones((2, 2)))
    assert main(["apply", "x.npy", "y.npy", "--backend", "numpy"]) == 0
    assert set(seen) == {"numpy"}


@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_backward(work, small_blocks, rng, orders, axis):
    y = np.asarray(lsm.log_softmax(rng.normal(size=(5, 4, 6)).astype(np.float32), axis), order=orders[1])
    dy = np.asarray(rng.normal(size=y.shape), ">f8", order=orders[0])
    np.save("y.npy", y)
    np.save("dy.npy", dy)
    command = ["apply", "--op", "log_softmax_backward", "dy.npy", "dx.npy", "--output", "y.npy", "--axis", str(axis)]
    assert main(command) == 0
    expected = lsm.log_softmax_backward(dy, y, axis)
    dx = np.load("dx.npy")
    assert dx.dtype == expected.dtype == np.float64
    assert dx.tobytes() == expected.tobytes()
    assert (work / "dx.npy").read_bytes() == saved(np.asarray(expected, order=orders[0]))


# Blocks


@pytest.mark.parametrize("is_fortran", [False, True])
@pytest.mark.parametrize(("shape", "axes"), [((9, 3), (1,)), ((3, 9), (0,)), ((4, 3, 5), (1,)), ((4, 3, 5), (0, 2))])
def test_blocks_cover_every_frame_once_and_stay_small(small_blocks, shape, axes, is_fortran):
    count = np.zeros(shape, int)
    n_classes = np.prod([shape[axis] for axis in axes])
    n_blocks = 0
    for index in _apply.blocks(shape, axes, is_fortran):
        count[index] += 1
        assert all(count[index].shape[axis] == shape[axis] for axis in axes)
        assert count[index].size <= max(8, n_classes)
        n_blocks += 1
    assert (count == 1).all()
    assert n_blocks > 1


def test_a_file_is_processed_in_blocks_of_the_given_size(work, monkeypatch):
    sizes = []
    original = lsm.log_softmax
    monkeypatch.setattr(lsm, "log_softmax", lambda x, **kw: sizes.append(x.size) or original(x, **kw))
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 8 * 30)
    np.save("x.npy", np.ones((10, 10), np.float32))
    assert main(["apply", "x.npy", "y.npy"]) == 0
    assert sizes == [0, 30, 30, 30, 10]  # the first call finds what would be refused


@pytest.mark.parametrize("axis", ["0", "1"])
def test_memory_does_not_grow_with_the_file(work, monkeypatch, axis):
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 2**20)
    np.save("x.npy", np.ones((1024, 8192), np.float32))  # 32 MiB, 64 blocks
    main(["apply", "x.npy", "y.npy", "--axis", axis])  # whatever is made once
    tracemalloc.start()
    try:
        assert main(["apply", "x.npy", "y.npy", "--axis", axis]) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_resident_memory_does_not_grow_with_the_file(work):
    np.save("small.npy", np.ones((2048, 1024), np.float32))
    np.save("x.npy", np.ones((2**15, 1024), np.float32))  # 128 MiB
    code = (
        "import resource\n_apply.BLOCK_BYTES = 4 * 2**20\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "cli.main(['apply', 'small.npy', 'y.npy']); before = peak()\n"
        "assert cli.main(['apply', 'x.npy', 'y.npy']) == 0\n"
        "assert peak() - before < 24, (before, peak())\n"
    )
    process = drive(code, "--version", stdout=subprocess.DEVNULL)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0


def test_a_read_or_write_that_takes_only_some_bytes_is_continued(work, monkeypatch, rng):
    class Reluctant(io.FileIO):
        def readinto(self, data):
            return super().readinto(data[:5])

        def write(self, data):
            return super().write(data[:5])

    x = rng.normal(size=(6, 4))
    np.save("x.npy", x)
    real = open

    def reluctant(path, mode, buffering, opener=None):
        real(path, mode).close()
        return Reluctant(path, "r" if mode == "rb" else "w")

    for module in (_files, raw):
        monkeypatch.setattr(module, "open", reluctant, raising=False)
    assert main(["apply", "x.npy", "y.npy"]) == 0
    assert (work / "y.npy").read_bytes() == saved(lsm.log_softmax(x))


# Where the result goes


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_the_result_may_replace_the_input(work, small_blocks, rng, link):
    x = rng.normal(size=(30, 4))
    np.save("x.npy", x)
    target = work / ("y.npy" if link else "x.npy")
    if link == "symbolic":
        target.symlink_to("x.npy")
    elif link == "hard":
        os.link("x.npy", target)
    assert main(["apply", "x.npy", target.name]) == 0
    assert np.load(target).tobytes() == lsm.log_softmax(x).tobytes()
    assert target.is_symlink() == (link == "symbolic")
    if link == "hard":
        assert np.load("x.npy").tobytes() == x.tobytes()


def test_the_gradient_may_replace_the_output(work, small_blocks, rng):
    y = lsm.log_softmax(rng.normal(size=(30, 4)))
    dy = rng.normal(size=y.shape)
    np.save("y.npy", y)
    np.save("dy.npy", dy)
    assert main(["apply", "--op", "log_softmax_backward", "dy.npy", "y.npy", "--output", "y.npy"]) == 0
    assert np.load("y.npy").tobytes() == lsm.log_softmax_backward(dy, y).tobytes()


def test_a_link_into_another_directory_is_followed(work):
    np.save("x.npy", np.ones((2, 2)))
    (work / "d").mkdir()
    (work / "y.npy").symlink_to("d/new.npy")
    assert main(["apply", "x.npy", "y.npy"]) == 0
    assert (work / "y.npy").is_symlink()
    assert np.load("d/new.npy").shape == (2, 2)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(work, mask):
    np.save("x.npy", np.ones((2, 2)))
    before = os.umask(mask)
    try:
        assert main(["apply", "x.npy", "y.npy"]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((work / "y.npy").stat().st_mode) == 0o666 & ~mask


def test_a_file_that_is_replaced_keeps_its_permissions(work):
    np.save("x.npy", np.ones((2, 2)))
    (work / "x.npy").chmod(0o640)
    before = os.umask(0o077)
    try:
        assert main(["apply", "x.npy", "x.npy"]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((work / "x.npy").stat().st_mode) == 0o640


# user::rw-, user:12345:r--, group::r--, mask::r--, other::--- as the kernel has it.
ACL = b"".join(
    number.to_bytes(size, "little")
    for number, size in [(2, 4)]
    + [
        (value, size)
        for tag, bits, user in [(1, 6, -1), (2, 4, 12345), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
        for value, size in [(tag, 2), (bits, 2), (user % 2**32, 4)]
    ]
)


def identity(path):
    """What of a file a replacement could change."""
    status = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return status.st_uid, status.st_gid, oct(stat.S_IMODE(status.st_mode)), attributes


@pytest.fixture
def old_file(work):
    """A file to replace, with all that it may lose; what only root can give it as root only."""
    np.save("x.npy", np.ones((2, 2)))
    path = work / "x.npy"
    if IS_ROOT:
        os.chown(path, 12345, 12346)
    elif len(os.getgroups()) > 1:
        os.chown(path, -1, next(group for group in os.getgroups() if group != os.getegid()))
    path.chmod(0o640)
    with suppress(OSError):  # a file system without them: then there is nothing to keep
        os.setxattr(path, "user.origin", b"a run")
        os.setxattr(path, "system.posix_acl_access", ACL)
    return path


@pytest.mark.parametrize("command", ["apply", "bench", "check"])
def test_a_file_that_is_replaced_keeps_owner_group_and_attributes(old_file, capfd, monkeypatch, command):
    before, inode, seen = identity(old_file), old_file.stat().st_ino, []
    original = os.chown

    def chown(file, *ids):
        seen.append(stat.S_IMODE(os.fstat(file).st_mode))
        original(file, *ids)

    monkeypatch.setattr(os, "chown", chown)
    if command == "apply":
        assert main(["apply", "x.npy", "x.npy"]) == 0
    elif command == "bench":
        bench_command._write("x.npy", "text")
    else:
        monkeypatch.setattr("lsm._conformance.run.CHECKS", kit.CHECKS[:1])
        assert main(["check", "numpy", "--json", "x.npy"]) == 0
    assert identity(old_file) == before and old_file.stat().st_ino != inode
    assert not any(mode & 0o077 for mode in seen) and (seen or not IS_ROOT)  # closed until it is theirs
    assert capfd.readouterr().err == ""


def test_setuid_is_dropped(work):
    np.save("x.npy", np.ones((2, 2)))
    (work / "x.npy").chmod(0o6755)
    assert main(["apply", "x.npy", "x.npy"]) == 0
    assert stat.S_IMODE((work / "x.npy").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("mode", "fails", "kept"),
    [
        (0o640, {-1}, 0o600),  # the new file's group is another one
        (0o664, {-1}, 0o644),
        (0o604, {-1}, 0o600),  # members of the group could not read it
        (0o640, {0}, 0o640),
        (0o666, {-1, 0}, 0o666),
    ],
)
def test_what_cannot_be_kept_is_said_and_opens_nothing(work, capsys, monkeypatch, mode, fails, kept):
    np.save("x.npy", np.ones((2, 2)))
    path = work / "x.npy"
    path.chmod(mode)
    real, calls = os.stat, []

    def anothers(file, **options):
        """The old file as that of another user and group."""
        status = real(file, **options)
        if isinstance(file, int):
            return status
        return os.stat_result((*status[:4], status.st_uid + 1, status.st_gid + 1, *status[6:]))

    def chown(file, uid, gid):
        calls.append((uid, gid))
        if (0 if gid == -1 else -1) in fails:
            raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "stat", anothers)
    monkeypatch.setattr(os, "chown", chown)
    assert main(["apply", "x.npy", "x.npy"]) == 0
    monkeypatch.undo()
    uid, gid = path.stat().st_uid + 1, path.stat().st_gid + 1
    assert calls == [(-1, gid), (uid, -1)]
    said = capsys.readouterr().err
    assert said.startswith("lsm: warning: 'x.npy' is replaced; the new file does not have the old one's ")
    assert said.count("\n") == 1
    assert (f"group {gid}" in said, f"owner {uid}" in said) == (-1 in fails, 0 in fails)
    assert (f"permissions {mode:04o} (now {kept:04o})" in said) == (mode != kept)
    assert stat.S_IMODE(path.stat().st_mode) == kept
    assert np.load(path).shape == (2, 2)


@pytest.mark.parametrize("filters", ["error", "ignore"])
def test_attributes_that_cannot_be_kept(work, capsys, monkeypatch, filters):
    np.save("x.npy", np.ones((2, 2)))
    (work / "x.npy").chmod(0o640)
    attributes = {"user.a": b"1", "system.posix_acl_access": ACL, "security.capability": b"never", "user.b": b"2"}
    given = {}

    def setxattr(file, name, value):
        if name != "user.b":
            raise OSError(errno.ENOTSUP, "not supported")
        given[name] = value

    monkeypatch.setattr(os, "listxattr", lambda file: list(given if isinstance(file, int) else attributes))
    monkeypatch.setattr(os, "getxattr", lambda file, name: attributes[name])
    monkeypatch.setattr(os, "setxattr", setxattr)
    with warnings.catch_warnings():
        warnings.simplefilter(filters)
        assert main(["apply", "x.npy", "x.npy"]) == 0
    assert capsys.readouterr().err == (
        "lsm: warning: 'x.npy' is replaced; the new file does not have the old one's attribute user.a, "
        "attribute system.posix_acl_access, permissions 0640 (now 0600)\n"
    )
    assert given == {"user.b": b"2"}
    assert stat.S_IMODE((work / "x.npy").stat().st_mode) == 0o600


def test_a_directorys_default_list_opens_nothing(work):
    np.save("x.npy", np.ones((2, 2)))
    (work / "x.npy").chmod(0o640)
    try:
        os.setxattr(work, "system.posix_acl_default", ACL)
    except OSError:
        return  # no such lists here
    before = identity(work / "x.npy")
    assert main(["apply", "x.npy", "x.npy"]) == 0
    assert identity(work / "x.npy") == before
    assert main(["apply", "x.npy", "new.npy"]) == 0
    assert "system.posix_acl_access" in os.listxattr("new.npy")  # as every new file there has


def test_a_file_of_another_owner_in_a_shared_directory(nobodys):
    """A user who may write to the directory and the file may replace it, with a warning of what that changes."""
    np.save("x.npy", np.ones((2, 2)))
    (nobodys / "x.npy").chmod(0o666)
    process = drive(
        "import locale, os; os.setgid(65534); os.setuid(65534)" if IS_ROOT else "", "apply", "x.npy", "x.npy"
    )
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 0
    lost = "group 0, owner 0\n" if IS_ROOT else ""
    assert said == (f"lsm: warning: 'x.npy' is replaced; the new file does not have the old one's {lost}" * IS_ROOT)
    assert stat.S_IMODE((nobodys / "x.npy").stat().st_mode) == 0o666


def test_a_relative_name_and_a_name_of_the_greatest_length(work):
    np.save("x.npy", np.ones((2, 2)))
    name = "y" * 251 + ".npy"
    assert main(["apply", "./x.npy", name]) == 0
    assert np.load(name).shape == (2, 2)


def test_the_contents_are_on_the_disk_before_the_name(work, monkeypatch):
    steps = []
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append((work / "y.npy").exists()))
    np.save("x.npy", np.ones((2, 2)))
    assert main(["apply", "x.npy", "y.npy"]) == 0
    assert steps == [False]


@pytest.mark.parametrize("target", [".", "d", "", "new/", "missing/y.npy", "x.npy/y.npy", "fifo", os.devnull, "loop"])
def test_targets_that_are_no_file(work, capsys, target):
    np.save("x.npy", np.ones((2, 2)))
    (work / "d").mkdir()
    os.mkfifo("fifo")
    (work / "loop").symlink_to("loop")
    before = sorted(work.rglob("*"))
    assert repr(target) in refused(capsys, "apply", "x.npy", target)
    assert sorted(work.rglob("*")) == before
    assert not stat.S_ISREG(Path(os.devnull).stat().st_mode)


@pytest.fixture
def nobodys(monkeypatch):
    """A directory that everybody may use; pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        monkeypatch.chdir(name)
        yield Path(name)


def test_files_without_permission(nobodys):
    np.save("x.npy", np.ones((2, 2)))
    np.save("secret.npy", np.ones((2, 2)))
    (nobodys / "secret.npy").chmod(0o200)
    np.save("fixed.npy", np.zeros((2, 2)))
    (nobodys / "fixed.npy").chmod(0o444)
    (nobodys / "closed").mkdir(mode=0o555)
    # Root may do everything. What is imported late is imported before, since Python may be root's alone.
    drop = "import locale, os; os.setuid(65534)" if IS_ROOT else ""
    assert drive(drop, "apply", "x.npy", "y.npy").communicate(timeout=30) == (None, b"")
    (nobodys / "y.npy").unlink()
    for args, named in (
        (["secret.npy", "y.npy"], "secret.npy"),
        (["x.npy", "fixed.npy"], "fixed.npy"),
        (["x.npy", "closed/y.npy"], "closed/y.npy"),
    ):
        process = drive(drop, "apply", *args)
        said = process.communicate(timeout=30)[1].decode()
        assert process.returncode == 2
        assert said.startswith(f"lsm: error: '{named}' cannot be ")
        assert said.count("\n") == 1
    assert (np.load("fixed.npy") == 0).all()
    assert sorted(path.name for path in nobodys.iterdir()) == ["closed", "fixed.npy", "secret.npy", "x.npy"]


# Files that cannot be used


def with_header(text, data=b"", version=1):
    text = text.encode("utf-8" if version == 3 else "latin1") if isinstance(text, str) else text
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def described(descr="'<f4'", shape="(3,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


HOSTILE = {
    "empty": (b"", "is empty"),
    "one byte": (b"\x93", "is not a .npy file"),
    "magic only": (b"\x93NUMPY", "header"),
    "text": (b"hello, world\n", "is not a .npy file"),
    "npz": (b"PK\x03\x04" + bytes(100), ".npz archive"),
    "version": (b"\x93NUMPY\x09\x00" + bytes(50), "header"),
    "header beyond the file": (b"\x93NUMPY\x01\x00\xff\xff{", "header"),
    "huge header": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{", "header"),
    "no literal": (with_header("__import__('os').system('touch owned')\n"), "header"),
    "not a dict": (with_header("[1, 2]\n"), "header"),
    "missing key": (with_header("{'descr': '<f4', 'shape': (3,)}\n"), "header"),
    "nested": (with_header("(" * 5000 + ")" * 5000 + "\n"), "header"),
    "long int": (with_header(described(shape="(" + "9" * 5000 + ",)")), "header"),
    "long text": (with_header("'" + "x" * 9000 + "\n"), "header"),
    "odd escapes": (with_header("{'\\d': 1}\n"), "header"),
    "binary": (with_header(bytes(range(256))), "header"),
    "bad dtype": (with_header(described("'<q9'")), "header"),
    "bad order": (with_header(described(order="7")), "header"),
    "negative": (with_header(described(shape="(-1, 3)"), bytes(12)), "header"),
    "two negatives": (with_header(described(shape="(-1, -3)"), bytes(12)), "header"),
    "huge": (with_header(described(shape="(99999999999,)"), bytes(12)), "is truncated"),
    "too huge": (with_header(described(shape="(2**70,)"), bytes(12)), "header"),
    "overflow": (with_header(described(shape=f"({2**32}, {2**32}, {2**32})"), bytes(12)), "header"),
    "empty and huge": (with_header(described(shape=f"(0, {2**70})")), "header"),
    "many axes": (with_header(described(shape=f"({'1, ' * 70})"), bytes(4)), "header"),
    "cut short": (with_header(described(), bytes(11)), "is truncated"),
    "no data": (with_header(described()), "is truncated"),
    "objects": (with_header(described("'|O'"), b"\x80\x04."), "pickled"),
    "objects within": (with_header(described("[('a', '|O')]"), b"\x80\x04."), "pickled"),
    "subarray": (with_header(described("('<f4', (3,))"), bytes(36)), "elements that are arrays"),
    "structured": (with_header(described("[('a', '<f4'), ('b', '<f4')]"), bytes(24)), "structured"),
    "structured of 3.0": (with_header(described("[('\u5c71', '<f4'), ('\xfc', '<f4')]"), bytes(24), 3), "structured"),
    "3.0 of no text": (with_header(b"{'descr': '\xff'}\n", version=3), "header"),
    "huge header of 3.0": (b"\x93NUMPY\x03\x00\xff\xff\xff\x7f{", "header"),
    "3.0 cut short": (
        with_header(described("'<f4'", "(0,)").ljust(90), version=3)[:-9],
        "the file ends within its header",
    ),
    "magic of 3.0 only": (b"\x93NUMPY\x03\x00\x01", "header"),
    "complex": (with_header(described("'<c8'"), bytes(24)), "complex64"),
    "text array": (with_header(described("'<U2'"), bytes(24)), "text"),
    "void": (with_header(described("'|V3'"), bytes(9)), "not accepted"),
    "times": (with_header(described("'<M8[s]'"), bytes(24)), "not accepted"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(work, capsys, case):
    contents, said = HOSTILE[case]
    (work / "x.npy").write_bytes(contents)
    line = refused(capsys, "apply", "x.npy", "y.npy")
    assert "'x.npy'" in line
    assert said in line
    assert len(line) < 500
    assert [path.name for path in work.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("contents", [HOSTILE["nested"][0], HOSTILE["text"][0], HOSTILE["no data"][0]])
def test_hostile_files_in_a_process_of_its_own(work, contents):
    (work / "x.npy").write_bytes(contents)
    result = run("apply", "x.npy", "y.npy")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("lsm: error: 'x.npy'")


def test_real_objects_archives_and_bfloat16(work, capsys):
    np.save("objects.npy", np.array([1, "a"], object), allow_pickle=True)
    np.savez("x.npz", np.ones(3))
    np.save("b.npy", np.ones(3, ml_dtypes.bfloat16))
    assert "pickled" in refused(capsys, "apply", "objects.npy", "y.npy")
    assert ".npz archive" in refused(capsys, "apply", "x.npz", "y.npy")
    line = refused(capsys, "apply", "b.npy", "y.npy")
    assert "bfloat16" in line
    assert "astype(numpy.float32)" in line


@pytest.mark.parametrize("name", ["missing.npy", "d", "fifo", "loop", "x.npy/x", "new\nline.npy", ""])
def test_inputs_that_are_no_file(work, capsys, name):
    np.save("x.npy", np.ones(3))
    (work / "d").mkdir()
    os.mkfifo("fifo")
    (work / "loop").symlink_to("loop")
    assert repr(name) in refused(capsys, "apply", name, "y.npy")


def test_trailing_bytes_and_headers_of_version_2_are_taken(work, rng):
    x = rng.normal(size=3)
    (work / "x.npy").write_bytes(with_header(described("'<f8'"), x.tobytes() + b"more", version=2))
    assert main(["apply", "x.npy", "y.npy"]) == 0
    assert (work / "y.npy").read_bytes() == saved(lsm.log_softmax(x))


VALID = {
    "no padding": described("'<f8'", "(2, 3)"),
    "no newline": described("'<f8'", "(2, 3)").strip(),
    "much padding": described("'<f8'", "(2, 3)").strip() + " " * 5000 + "\n",
    "other order of keys": "{'shape': (2, 3), 'fortran_order': False, 'descr': '<f8'}\n",
    "double quotes, no spaces": '{"descr":"<f8","fortran_order":False,"shape":(2,3,),}',
    "name of a dtype": described("'float64'", "(2, 3)"),
    "character of a dtype": described("'d'", "(2, 3)"),
    "native order": described("'=f8'", "(2, 3)"),
    "lists": described("'<f8'", "((2), (3))"),
    "shape of a scalar": described("'<f8'", "()"),
    "tuple of a dtype": described("('<f8', ())", "(2, 3)"),
    "Fortran order": described("'<f8'", "(2, 3)", "True"),
    "big end first, in Fortran order": described("'>f8'", "(2, 3)", "True"),
    "Fortran order of one axis": described("'<f8'", "(6,)", "True"),
    "many axes": described("'<f8'", "(2, 1, 1, 1, 1, 1, 1, 3)"),
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("case", VALID)
def test_every_header_that_numpy_reads_is_taken(work, rng, case, version):
    (work / "x.npy").write_bytes(with_header(VALID[case], rng.normal(size=6).tobytes(), version))
    x = np.load("x.npy")
    assert main(["apply", "x.npy", "y.npy"]) == 0
    np.testing.assert_array_equal(np.load("y.npy"), lsm.log_softmax(x), strict=True)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f4", ">f2", "longdouble", "|b1", "<i8"])
def test_every_version_that_numpy_writes_is_taken(work, dtype, version):
    x = np.arange(12).reshape(3, 4).astype(dtype)
    with open("x.npy", "wb") as file:  # noqa: PTH123
        np.lib.format.write_array(file, x, version=version)
    assert main(["apply", "x.npy", "x.npy"]) == 0  # whose header is that of numpy.save
    np.testing.assert_array_equal(np.load("x.npy"), lsm.log_softmax(x), strict=True)


def test_a_file_of_python_2_is_taken_without_a_word(work, capsys):
    (work / "x.npy").write_bytes(with_header(described(shape="(3L,)"), bytes(12)))
    assert main(["apply", "x.npy", "y.npy"]) == 0
    assert capsys.readouterr() == ("", "")


# What lsm itself refuses


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--axis", "2"], "axis 2 is out of bounds"),
        (["--axis=0,0"], "repeats an axis"),
        (["--backend", "unknown"], "no backend is named 'unknown'"),
        (["--dtype", "int32"], "int32 is not supported"),
        (["--dtype", "nonsense"], "'nonsense' is not a dtype"),
        (["--dtype", "longdouble", "--backend", "cython"], "backend='numpy'"),
    ],
)
def test_what_lsm_refuses_is_a_line(work, capsys, args, said):
    np.save("x.npy", np.ones((2, 2), np.float32))
    assert said in refused(capsys, "apply", "x.npy", "y.npy", *args)
    assert [path.name for path in work.iterdir()] == ["x.npy"]


def test_shapes_that_differ_name_both_files(work, capsys):
    np.save("dy.npy", np.ones((2, 3)))
    np.save("y.npy", np.ones((3, 2)))
    line = refused(capsys, "apply", "--op", "log_softmax_backward", "dy.npy", "dx.npy", "--output", "y.npy")
    for part in ("'dy.npy'", "'y.npy'", "(2, 3)", "(3, 2)"):
        assert part in line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nonsense"], "invalid choice"),
        (["apply", "x.npy"], "OUT"),
        (["apply", "x.npy", "y.npy", "--op", "log_softmax_backward"], "needs --output"),
        (["apply", "x.npy", "y.npy", "--output", "z.npy"], "--output is an input of"),
        (
            ["apply", "a", "b", "--op", "log_softmax_backward", "--output", "y", "--dtype", "float32"],
            "--dtype is an option of --op log_softmax, softmax",
        ),
        (["apply", "x.npy", "y.npy", "--dtype", "bfloat16"], "cannot store bfloat16"),
        (["apply", "x.npy", "y.npy", "--axis", "first"], "accepted: an int"),
        (["explain"], "--dtype"),
        (["explain", "--dtype", "nonsense"], "is not a dtype"),
        (["explain", "--dtype", "float32", "--op", "sin"], "invalid choice"),
    ],
)
def test_usage_errors(work, capsys, args, said):
    assert main(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err


def test_a_setting_that_is_not_understood_is_a_line(work):
    np.save("x.npy", np.ones(3))
    for args in (["backends"], ["explain", "--dtype", "float32"], ["apply", "x.npy", "y.npy"]):
        result = run(*args, env=os.environ | {"LSM_PLUGINS": "maybe"})
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == "lsm: error: LSM_PLUGINS is 'maybe'; accepted: 'on', 'off'\n"


# What goes wrong on the way


def broken(error):
    """A log_softmax that fails on its second block."""
    original, calls = lsm.log_softmax, []

    def function(x, **options):
        calls.append(x)
        if len(calls) == 3:
            raise error
        return original(x, **options)

    return function


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("a plugin is broken"), 1, "RuntimeError: a plugin is broken"),
        (MemoryError("too large"), 1, "MemoryError: too large"),
        (lsm.BackendFailedError("backend 'acme': log_softmax raised"), 1, "backend 'acme': log_softmax raised"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (lsm.LsmError("something"), 2, "something"),
        (KeyboardInterrupt(), 130, "SIGINT"),
    ],
)
def test_an_error_on_the_way_leaves_nothing(work, small_blocks, monkeypatch, capsys, error, code, said):
    np.save("x.npy", np.ones((20, 4)))
    (work / "y.npy").write_bytes(b"old")
    monkeypatch.setattr(lsm, "log_softmax", broken(error))
    assert main(["apply", "x.npy", "y.npy"]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("lsm: error: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(path.name for path in work.iterdir()) == ["x.npy", "y.npy"]
    assert (work / "y.npy").read_bytes() == b"old"


def test_a_disk_that_is_full(work):
    np.save("x.npy", np.ones((1000, 100)))
    (work / "y.npy").write_bytes(b"old")
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); _apply.BLOCK_BYTES = 8000"
    process = drive(code, "apply", "x.npy", "y.npy")
    line = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1
    assert line.startswith("lsm: error: ")
    assert os.strerror(errno.EFBIG) in line
    assert line.count("\n") == 1
    assert sorted(path.name for path in work.iterdir()) == ["x.npy", "y.npy"]
    assert (work / "y.npy").read_bytes() == b"old"


def test_an_input_that_becomes_shorter(work, small_blocks, monkeypatch, capsys):
    np.save("x.npy", np.ones((2000, 4)))
    original, calls = lsm.log_softmax, []

    def shorten(x, **options):
        calls.append(x)
        if len(calls) == 3:
            os.truncate("x.npy", 1000)
        return original(x, **options)

    monkeypatch.setattr(lsm, "log_softmax", shorten)
    assert main(["apply", "x.npy", "y.npy"]) == 1
    assert capsys.readouterr().err == "lsm: error: 'x.npy' was truncated while it was being read\n"
    assert [path.name for path in work.iterdir()] == ["x.npy"]


SLOW = (
    "import time\n_apply.BLOCK_BYTES = 800\noriginal = lsm.log_softmax\n"
    "def slow(x, **kw):\n    time.sleep(0.01)\n    return original(x, **kw)\n"
    "lsm.log_softmax = slow\n"
)


def wait_until(is_so, process):
    """Wait for a process that is to be stopped in the middle."""
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)


def has_begun(work):
    """Whether an `lsm apply` has begun to write."""
    return any(path.stat().st_size > 2000 for path in work.glob(".lsm-*.tmp"))


def stop_in_the_middle(work, number, code=SLOW):
    """Send a signal to an `lsm apply` that has begun to write; the process and what it said."""
    np.save("x.npy", np.ones((20_000, 50)))
    (work / "y.npy").write_bytes(b"old")
    process = drive(code, "apply", "x.npy", "y.npy")
    wait_until(lambda: has_begun(work), process)
    process.send_signal(number)
    return process, process.communicate(timeout=30)[1].decode()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing(work, name, code):
    process, said = stop_in_the_middle(work, getattr(signal, name))
    assert process.returncode == code
    assert said == f"lsm: error: stopped by {name}; nothing was changed\n"
    assert sorted(path.name for path in work.iterdir()) == ["x.npy", "y.npy"]
    assert (work / "y.npy").read_bytes() == b"old"


def test_a_second_signal_does_not_stop_the_tidying_up(work):
    code = SLOW + (
        "import os, signal, pathlib\nremove = pathlib.Path.unlink\n"
        "def interrupted(path, **kw):\n    os.kill(os.getpid(), signal.SIGINT)\n    remove(path, **kw)\n"
        "pathlib.Path.unlink = interrupted\n"
    )
    process, _ = stop_in_the_middle(work, signal.SIGTERM, code)
    assert process.returncode == 143
    assert sorted(path.name for path in work.iterdir()) == ["x.npy", "y.npy"]


# Within a function that C calls, where Python discards what the handler raises.
LOST = """
import ctypes, os, signal
def kill():
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(10))
callback = ctypes.CFUNCTYPE(None)(kill)
"""


def test_a_signal_that_is_lost_stops_between_blocks(work):
    np.save("x.npy", np.ones((20_000, 50)))
    (work / "y.npy").write_bytes(b"old")
    process = drive(LOST + SLOW.replace("time.sleep(0.01)", "callback()"), "apply", "x.npy", "y.npy")
    said = process.communicate(timeout=30)[1].decode()
    assert "Exception ignored" in said
    assert said.endswith("lsm: error: stopped by SIGTERM; nothing was changed\n")
    assert process.returncode == 143
    assert (work / "y.npy").read_bytes() == b"old"
    assert sorted(path.name for path in work.iterdir()) == ["x.npy", "y.npy"]


def test_a_second_signal_stops_what_lost_the_first():
    with stop_signals() as came:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedError, match=str(int(signal.SIGINT))):
            raise_if_stopped()
        begin_shutdown()
        signal.raise_signal(signal.SIGINT)
        raise_if_stopped()
        assert came == [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    raise_if_stopped()


def test_a_signal_is_deferred_once():
    steps = []

    def act(*numbers):
        with stop_signals(), deferred_signals():
            for number in numbers:
                signal.raise_signal(number)
                steps.append(number)
            if not numbers[1:]:
                steps[7]

    with pytest.raises(IndexError):  # an error comes first
        act(signal.SIGTERM)
    assert steps.pop() == signal.SIGTERM
    with pytest.raises(StoppedError, match=str(int(signal.SIGINT))):
        act(signal.SIGTERM, signal.SIGINT)
    assert steps == [signal.SIGTERM]
    with pytest.raises(StoppedError, match=str(int(signal.SIGTERM))), stop_signals(), deferred_signals():
        signal.raise_signal(signal.SIGTERM)


def test_kill_leaves_the_old_result(work):
    process, _ = stop_in_the_middle(work, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (work / "y.npy").read_bytes() == b"old"
    assert len(list(work.iterdir())) == 3


def test_a_signal_that_is_ignored_stays_so(work):
    code = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW.replace(
        "time.sleep(0.01)", "os.kill(os.getpid(), signal.SIGHUP)"
    )
    np.save("x.npy", np.ones((10, 50)))
    process = drive(code, "apply", "x.npy", "y.npy")
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 0
    assert np.load("y.npy").shape == (10, 50)


def test_the_handlers_of_the_caller_come_back(work):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    show = warnings.showwarning
    assert main(["--version"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert warnings.showwarning is show


# What is shown


def on_terminal(*args, code=""):
    """The command on a pseudo-terminal, one that does not tell its width: exit code and all that it showed."""
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ours, theirs = pty.openpty()
    script = f"import sys, lsm\nfrom lsm import _apply, cli\n{code}\nsys.exit(cli.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdout=theirs,
        stderr=theirs,
        env=environ,
    )
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
    return process.wait(timeout=30), shown.decode()


def test_a_progress_bar_on_a_terminal(work):
    np.save("x.npy", np.ones((64, 2**11)))  # 1 MiB
    code, shown = on_terminal("apply", "x.npy", "y.npy", code="_apply.BLOCK_BYTES = 2**16")
    assert code == 0
    assert "100%" in shown
    assert "1.00M/1.00M" in shown
    assert np.load("y.npy").shape == (64, 2**11)


def test_no_progress_bar_elsewhere(work):
    np.save("x.npy", np.ones((64, 2**11)))
    result = run("apply", "x.npy", "y.npy")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_no_progress_bar_without_tqdm(work):
    np.save("x.npy", np.ones((4, 4)))
    assert on_terminal("apply", "x.npy", "y.npy", code="sys.modules['tqdm'] = None") == (0, "")
    assert np.load("y.npy").shape == (4, 4)


def test_backends(capsys, monkeypatch):
    monkeypatch.setenv("LSM_TEST_ONLY", "shown")
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"lsm {lsm.__version__}, kernels: ")
    assert f"threads: {lsm.get_num_threads()}" in lines[0]
    assert "LSM_TEST_ONLY=shown  (lsm has no such variable)" in lines
    assert "not set: " in " ".join(lines)
    head = next(line for line in lines if line.startswith("NAME"))
    row = next(line for line in lines if line.startswith("numpy "))
    for title, text in (
        ("STATE", "loaded"),
        ("FROM", f"lsm-softmax {lsm.__version__}"),
        ("DEVICES", "cpu"),
        ("DTYPES", "float16"),
    ):
        assert row[head.index(title) :].startswith(text)
    for info in lsm.list_backends():
        assert any(line.strip() == info.file for line in lines)


@pytest.mark.parametrize("n_columns", [80, 100, 200])
def test_the_table_fits_the_terminal(capsys, monkeypatch, n_columns):
    reason = "because of this and that, " * 20
    row = lsm.list_backends()[0]._replace(name="other", state="unavailable", reason=reason, file="/a/file", dtypes=())
    monkeypatch.setattr(lsm, "list_backends", lambda: [row, row._replace(name="x", reason="", dtypes=("float16",) * 9)])
    monkeypatch.setenv("COLUMNS", str(n_columns))
    assert main(["backends"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= n_columns
    assert " ".join(out.split()).count(reason.strip()) == 1
    assert out.count("float16") == 9


def test_a_bound_that_is_not_lsms_own_is_shown(capsys, monkeypatch):
    row = lsm.list_backends()[0]
    theirs = row._replace(name="loose", max_ulp={"float32": 1e7, "float64": 4.0, "float16": 0.501})
    monkeypatch.setattr(lsm, "list_backends", lambda: [row, theirs])
    assert main(["backends"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "ulp" in line]
    assert lines == ["accuracy in ulps: float32 1e+07 (lsm: float32 4)"]


def test_backends_as_json(capsys):
    assert main(["backends", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lsm"] == lsm.__version__
    assert report["num_threads"] == lsm.get_num_threads()
    expected = json.loads(json.dumps([info._asdict() for info in lsm.list_backends()]))
    assert report["backends"] == expected
    assert {"name", "state", "reason", "devices", "dtypes", "distribution", "version", "file"} <= set(expected[0])


def test_backends_tells_the_level_and_the_variables():
    environ = os.environ | {"LSM_NUM_THREADS": "1", "LSM_BACKEND": "numpy"}
    report = json.loads(run("backends", "--json", env=environ).stdout)
    assert report["num_threads"] == 1
    assert report["environment"].items() >= {"LSM_NUM_THREADS": "1", "LSM_BACKEND": "numpy"}.items()
    assert report["kernels"] in ("v4", "v3", "v2", "plain")


def test_backends_without_kernels(capsys, monkeypatch):
    def missing():
        raise lsm.BackendUnavailableError("no compiler")

    with monkeypatch.context() as without:
        without.setattr("lsm.backends.cython_.kernels", missing)
        without.setattr("lsm.backends._levels.kernels", missing)
        lsm.refresh_backends()
        assert main(["backends"]) == 0
    lsm.refresh_backends()  # later tests must not find it unavailable
    shown = capsys.readouterr().out
    assert "kernels: none" in shown and "unavailable" in shown and "no compiler" in shown


def test_explain(capsys):
    assert main(["explain", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == f"{lsm.explain(np.zeros(1, np.float32))}\n"
    assert main(["explain", "--dtype", "float64", "--op", "log_softmax_backward", "--backend", "numpy"]) == 0
    assert "log_softmax_backward of numpy.ndarray, float64, on cpu: served by numpy" in capsys.readouterr().out
    assert main(["explain", "--dtype", "bfloat16"]) == 0
    assert "bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize("op", DERIVED)
def test_explain_of_a_function_that_is_derived(capsys, monkeypatch, op):
    for dtype, backend in (("float16", None), ("float64", "numpy")):
        args = ["explain", "--dtype", dtype, "--op", op, *["--backend", backend] * bool(backend)]
        assert main(args) == 0
        shown = capsys.readouterr().out
        assert shown == f"{lsm.explain(np.zeros(1, dtype), op, backend=backend)}\n"
        assert shown.startswith(f"{op} of") and "derived from log_softmax" in shown
    monkeypatch.setattr(NumpyBackend, "devices", ("cuda",))
    monkeypatch.setattr(NumpyBackend, "array_types", ("cupy.ndarray",))
    monkeypatch.setattr(NumpyBackend, "empty", lambda *_: None, raising=False)
    lsm.refresh_backends()
    assert main(["explain", "--dtype", "float32", "--op", op, "--device", "cuda"]) == 1
    assert f"fails: x: is on cuda; lsm.{op} is for arrays on the CPU; " in capsys.readouterr().out
    monkeypatch.undo()
    lsm.refresh_backends()


@pytest.mark.parametrize(
    ("spelling", "dtype"),
    [
        *(("f4", "float32"), ("<f4", "float32"), (">f4", "float32"), ("f", "float32"), ("single", "float32")),
        *(("float", "float64"), ("d", "float64"), ("=f8", "float64"), ("half", "float16"), ("e", "float16")),
        *(("g", "longdouble"), (np.dtype("longdouble").name, "longdouble"), ("bool", "float64")),
    ],
)
def test_explain_takes_every_spelling_of_a_dtype(capsys, spelling, dtype):
    assert main(["explain", "--dtype", spelling]) == 0
    assert f"of numpy.ndarray, {dtype}, on cpu: served by" in capsys.readouterr().out


def test_explain_of_one_device_of_several(capsys, monkeypatch):
    monkeypatch.setenv("LSM_PLUGINS", "off")
    for of_kind, one in (("cpu", "cpu:0"), ("cuda", "cuda:1"), ("mps", "mps:0")):
        codes = [main(["explain", "--dtype", "float32", "--device", device]) for device in (of_kind, one)]
        shown = capsys.readouterr().out
        assert codes[0] == codes[1] and shown[: len(shown) // 2] == shown[len(shown) // 2 :]
        assert "not cuda:1" not in shown
    for device in ("cuda:x", "cuda:", ":0", ""):
        assert main(["explain", "--dtype", "float32", "--device", device]) == 2
        assert "or a device such as cuda:0" in capsys.readouterr().err


def test_explain_of_an_unknown_device_tells_which_there_are():
    own = os.environ | {"LSM_PLUGINS": "off"}
    done = run("explain", "--dtype", "float32", "--device", "gpu", env=own)
    assert done.returncode == 1
    said = done.stdout.splitlines()[-1]
    assert said == "no backend supports devices of kind 'gpu'; supported: cpu, cuda"
    assert "there are backends for" not in run("explain", "--dtype", "float32", "--device", "cuda", env=own).stdout


def test_explain_of_a_call_that_would_fail(capsys):
    assert main(["explain", "--dtype", "longdouble", "--backend", "cython"]) == 1
    assert "fails" in capsys.readouterr().out
    assert "no backend is named" not in refused(capsys, "explain", "--dtype", "complex64")


def test_explain_of_other_arrays(capsys):
    own = os.environ | {"LSM_PLUGINS": "off"}  # a plugin that is installed beside may serve what lsm does not
    for device, array_type in (("cuda", "cupy.ndarray"), ("mps", "torch.Tensor")):
        done = run("explain", "--dtype", "float32", "--device", device, env=own)
        assert done.returncode == 1
        assert f"of {array_type}, float32, on {device}: fails: no backend supports" in done.stdout
    assert main(["explain", "--dtype", "bfloat16", "--array-type", "torch.Tensor"]) == 0
    out = capsys.readouterr().out
    assert "of torch.Tensor, bfloat16, on cpu: served by cython (automatic), as numpy.ndarray" in out
    assert main(["explain", "--dtype", "int32"]) == 0
    assert "of numpy.ndarray, float64, on cpu" in capsys.readouterr().out  # as which it is computed


def test_every_variable_is_shown():
    values = {"LSM_BACKEND": "numpy", "LSM_PLUGINS": "on", "LSM_PLUGINS_ALLOW": "a,b", "LSM_NUM_THREADS": "1"}
    values |= {"LSM_FORCE_ISA": lsm.backends.cython_.kernels()["level"]}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LSM_")}
    shown = run("backends", env=clean | values).stdout.splitlines()
    noted = values | {"LSM_PLUGINS_ALLOW": "a,b  (no plugin is installed from a, b)"}
    assert [line for line in shown if line.startswith("LSM_")] == [f"{n}={v}" for n, v in noted.items()]
    assert json.loads(run("backends", "--json", env=clean | values).stdout)["environment"] == values
    assert json.loads(run("backends", "--json", env=clean).stdout)["environment"] == dict.fromkeys(values)
    shown = run("backends", env=clean).stdout
    assert "not set: " + ", ".join(values) in " ".join(shown.split())


def test_an_unknown_backend_is_pointed_out():
    for value, note in (("torhc", "  (no backend has this name)"), ("numpy", ""), ("lsm-softmax/numpy", "")):
        shown = run("backends", env=os.environ | {"LSM_BACKEND": value}).stdout.splitlines()
        assert f"LSM_BACKEND={value}{note}" in shown


def test_version_and_help():
    assert run("--version").stdout == f"lsm {lsm.__version__}\n"
    alone = run()
    assert alone.returncode == 0
    assert alone.stdout == run("--help").stdout
    for command in ("backends", "explain", "apply"):
        assert command in alone.stdout
        assert run(command, "--help").stdout.startswith(f"usage: lsm {command}")


def test_the_installed_command(work):
    (entry,) = entry_points(group="console_scripts", name="lsm")
    assert entry.load() is main


@pytest.mark.parametrize("args", [["backends"], ["--help"], ["explain", "--dtype", "float32"]])
def test_the_reader_of_the_output_has_exited(args):
    ours, theirs = os.pipe()
    os.close(ours)
    # Unbuffered, argparse itself swallows the error of --help, and the code is 0.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "lsm", *args]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environ)
    os.close(theirs)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written():
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen([sys.executable, "-m", "lsm", "backends"], stdout=full, stderr=subprocess.PIPE)
        said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert said.startswith("lsm: error: ")
    assert os.strerror(errno.ENOSPC) in said
    assert said.count("\n") == 1


# What others print


LOUD = """
import atexit, ctypes, os, subprocess, sys, threading, time
libc = ctypes.CDLL(None)
def shout(when):
    print(when, "print")
    print(when, "the stream itself", file=sys.__stdout__)
    os.write(1, f"{when} write\\n".encode())
    libc.puts(f"{when} puts".encode())  # which stays in C's own buffer until the process ends
    subprocess.run([sys.executable, "-c", f"print({when!r}, 'child')"], check=True)
def later():
    time.sleep(0.5)
    os.write(1, b"thread write\\n")
    print("thread print")
threading.Thread(target=later).start()
atexit.register(os.write, 1, b"exit write\\n")
atexit.register(lambda: print("exit print"))
shout("import")
from lsm.backends.numpy_ import NumpyBackend
class Loud(NumpyBackend):
    name, dtypes, same_bits = "loud", ("float32",), False
    def available(self):
        shout("available")
    def log_softmax(self, x, axis, out):
        os.write(1, b"call write\\n")
        print("call print")
        super().log_softmax(x, axis, out)
backend = Loud()
"""
SHOUTED = [
    f"{when} {how}" for when in ("import", "available") for how in ("print", "the stream itself", "write", "puts")
]
SHOUTED += ["import child", "available child", "thread write", "thread print", "exit write", "exit print"]


@pytest.fixture
def loud(tmp_path):
    """An environment with a plugin that prints in every way."""
    site = Site(tmp_path / "site")
    site.add("acme-loud", "loud", LOUD)
    return os.environ | {"PYTHONPATH": str(site.folder)}


def test_json_is_pure_whatever_a_plugin_prints(loud):
    done = run("backends", "--json", env=loud)
    assert done.returncode == 0
    assert {info["name"]: info["state"] for info in json.loads(done.stdout)["backends"]}["loud"] == "loaded"
    assert set(SHOUTED) <= set(done.stderr.splitlines())
    again = run("backends", env=loud)
    assert again.stdout == run("backends", env=loud | {"PYTHONUNBUFFERED": "1"}).stdout
    assert again.stdout.startswith("lsm ") and not any(line in again.stdout for line in SHOUTED)


def test_the_output_of_every_command_is_its_own(loud, work):
    assert run("explain", "--dtype", "float32", "--backend", "loud", env=loud).stdout.startswith("log_softmax of ")
    np.save("x.npy", np.ones((2, 2), np.float32))
    done = run("apply", "x.npy", "y.npy", "--backend", "loud", env=loud)
    assert (done.returncode, done.stdout) == (0, "") and {"call write", "call print"} <= set(done.stderr.splitlines())
    (done,) = [run("check", "loud", "--json", "r.json", env=loud)]
    assert not any(line in done.stdout for line in (*SHOUTED, "call write", "call print"))
    assert json.loads((work / "r.json").read_text())["failed"] == 0, done.stdout  # "a light import" with them


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_descriptors_that_are_closed_are_not_given_to_a_file(loud, work, closed):
    x = np.ones((2, 2), np.float32)
    np.save("x.npy", x)
    command = [sys.executable, "-m", "lsm", "apply", "x.npy", "y.npy", "--backend", "loud"]
    close = "".join(f" {number}{'<' if number == 0 else '>'}&-" for number in closed)
    done = subprocess.run(["sh", "-c", f'"$@"{close}', "sh", *command], env=loud, timeout=60, capture_output=True)
    assert done.returncode == 0, done
    np.testing.assert_array_equal(np.load("y.npy"), lsm.log_softmax(x, backend="numpy"), strict=True)
    done = subprocess.run(
        ["sh", "-c", f'"$@"{close}', "sh", *command[:3], "backends", "--json"],
        env=loud, timeout=60, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout == b"" if 1 in closed else json.loads(done.stdout)["lsm"] == lsm.__version__


def descriptors():
    """What every open descriptor of this process leads to."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that by which the directory is read
            found[path.name] = path.readlink()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
@pytest.mark.parametrize(
    "args", [["backends", "--json"], ["explain", "--dtype", "float32"], ["check", "absent"], ["no"]]
)
@pytest.mark.parametrize("capture", ["capsys", "capfd"])
def test_a_program_that_calls_the_command_keeps_its_descriptors(request, monkeypatch, capture, args):
    captured = request.getfixturevalue(capture)
    monkeypatch.setattr(lsm, "__version__", "shouted")

    def shouting(*_, **__):
        os.write(1, b"below\n")
        print("above")
        return original()

    original = lsm.list_backends
    monkeypatch.setattr(lsm, "list_backends", shouting)
    before, stream = descriptors(), sys.stdout
    code = main(args)
    assert code == (2 if args[0] in ("check", "no") else 0)
    assert descriptors() == before and sys.stdout is stream
    print("mine")
    out, err = captured.readouterr()
    assert out.endswith("mine\n") and "above" not in out
    if args[0] == "backends":
        assert json.loads(out.removesuffix("mine\n"))["lsm"] == "shouted"
        assert "above\n" in err
        if capture == "capfd":
            assert "below\n" in err


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_signal_at_any_step_leaves_the_descriptors_as_they_were(capfd):
    code, after, is_stopped = 0, 0, False
    files = {_stdout.__file__, contextlib.__file__}

    def trace(frame, event, argument):
        nonlocal n_left, is_stopped
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        n_left -= 1
        if n_left < 0:
            sys.settrace(None)
            is_stopped = True
            signal.raise_signal(signal.SIGINT)
            return None
        return trace

    before, stream = descriptors(), sys.stdout
    while is_stopped or after == 0:
        n_left, is_stopped = after, False
        sys.settrace(trace)
        try:  # noqa: SIM105 (which would be traced too)
            code = main(["explain", "--dtype", "float32"])
        except KeyboardInterrupt:  # before the command has its handlers, or after
            pass
        sys.settrace(None)
        # A new descriptor may be left open, if the signal comes before it is assigned.
        assert before.items() <= descriptors().items() and sys.stdout is stream, after
        after += 1
    assert code == 0 and after > 300
    capfd.readouterr()


def test_a_script_that_runs_the_command_goes_on_printing(loud):
    code = "from lsm import cli\nprint('before')\nassert cli.main(['backends', '--json']) == 0\nprint('after')\n"
    code += "assert cli.main(['explain', '--dtype', 'float32']) == 0\n"
    code += "import sys; sys.argv = ['lsm', 'explain', '--dtype', 'int']; assert cli.main() == 0\nprint('last')\n"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], env=loud, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "Warning" not in done.stderr
    text = done.stdout.replace("thread write\n", "").replace("thread print\n", "")  # they come whenever they come
    first, rest = text.split("\n", 1)
    text, rest = rest.split("after\n")
    assert first == "before" and json.loads(text)
    assert rest.count("log_softmax of ") == 2
    assert "last" not in rest and "last" in done.stderr.splitlines()  # without arguments, main is the command


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "ascii:strict", "cp932", "utf-8", "ascii:xmlcharrefreplace"])
@pytest.mark.parametrize("args", [["backends"], ["explain", "--dtype", "float16", "--backend", "modest"]])
def test_characters_that_cannot_be_encoded_are_spelled_out(tmp_path, encoding, args):
    site = Site(tmp_path / "J\xfcrgen \u5c71")
    reason = "nicht verf\xfcgbar, \u5c71\u7530 \U0001f600"
    site.add("acme-modest", "modest", LOUD.split("class Loud")[0].split("def shout")[0] + MODEST.format(reason))
    environ = os.environ | {"PYTHONPATH": str(site.folder), "PYTHONIOENCODING": encoding, "COLUMNS": "400"}
    command = [sys.executable, "-m", "lsm", *args]
    done = subprocess.run(command, env=environ, timeout=60, capture_output=True)
    assert done.returncode == (0 if args == ["backends"] else 1), done
    codec, _, errors = encoding.partition(":")
    errors = errors if errors == "xmlcharrefreplace" else "backslashreplace"
    for text in (reason, f"J\xfcrgen \u5c71{os.sep}") if args == ["backends"] else (reason,):
        assert text.encode(codec, errors) in done.stdout, done


MODEST = """
from lsm.backends.numpy_ import NumpyBackend
class Modest(NumpyBackend):
    name, dtypes = "modest", ("float16",)
    def available(self):
        return {!r}
backend = Modest()
"""


def test_a_stream_of_the_caller_is_what_it_was(monkeypatch):
    monkeypatch.setattr(lsm, "__version__", "\u5c71")
    for errors in ("strict", "surrogateescape", "replace"):
        stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors)
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["--version"]) == main(["backends"]) == 0
        assert sys.stdout is stream and stream.errors == errors
        stream.flush()
        assert stream.buffer.getvalue().startswith(b"lsm ?" if errors == "replace" else b"lsm \\u5c71")
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["--version"]) == main(["backends"]) == main([]) == 0
        assert sys.stdout is stream
        assert stream is None or stream.getvalue().startswith("lsm \u5c71")


def test_a_warning_is_a_line(work, monkeypatch, capsys):
    np.save("x.npy", np.ones(3))
    original = lsm.log_softmax

    def warn(x, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            if x.size:
                warnings.warn("lsm continues without it", lsm.PluginWarning, stacklevel=1)
        return original(x, **options)

    monkeypatch.setattr(lsm, "log_softmax", warn)
    assert main(["apply", "x.npy", "y.npy"]) == 0
    assert capsys.readouterr().err == "lsm: warning: lsm continues without it\n"


@pytest.mark.parametrize("dtype", ["f4,(", "4(", "U5", "nope"])
def test_a_dtype_that_numpy_refuses_in_whatever_way(work, dtype, capsys):
    np.save(work / "x.npy", np.zeros(3))
    assert main(["apply", str(work / "x.npy"), str(work / "y.npy"), "--dtype", dtype]) == 2
    error = capsys.readouterr().err
    assert "dtype: " in error and "accepted: float16, bfloat16" in error
    assert not (work / "y.npy").exists()


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no such device here")  # noqa: PTH110
@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "link"])
def test_a_descriptor_is_no_file_to_replace(target, tmp_path):
    """It would lead to whatever file it has open, which would be replaced."""
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "log").write_text("precious")
    with (tmp_path / "log").open("a") as log:
        command = [sys.executable, "-m", "lsm", "apply", "x.npy", target]
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=log)
    assert done.returncode == 2
    said = (tmp_path / "log").read_text()
    assert said.startswith("precious") and "is a device or a descriptor; give the name of a file to write" in said
