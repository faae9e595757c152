"""`lsm apply` with Zarr and HDF5: the bits of the whole array, and after an interruption a resumed run or an error.

Needs the extra `zoo`, as test_zoo.py; conftest.py leaves this file out where one of its libraries is not installed.
"""

import errno
import json
import os
import signal
import tracemalloc
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import safetensors.numpy
import zarr
from test_cli import SLOW, drive, has_begun, refused, small_blocks, wait_until, work  # noqa: F401 (fixtures)
from test_cli_apply import same

import lsm
from lsm import _apply
from lsm.cli import main

X = np.random.default_rng(0).normal(scale=3, size=(30, 4, 5)).astype(np.float32)
INDICES = np.random.default_rng(1).integers(0, 5, (30, 4))
FUNCTIONS = {
    "log_softmax": {},
    "softmax": {},
    "logsumexp": {},
    "entropy": {},
    "take_log_softmax": {"indices": INDICES},
    "top_k_log_softmax": {"k": 2},
}


def in_zarr(name, x, chunks=(4, 2, 3), version=3, **options):
    options = {"chunks": chunks[: x.ndim], "zarr_format": version, "compressors": None} | options
    return zarr.create_array(store=f"{name}.zarr", data=x, overwrite=True, **options)


def in_hdf5(name, x, **options):
    with h5py.File(f"{name}.h5", "w") as file:
        file.create_dataset("x", data=x, **options)


class Rounded(numcodecs.Zlib):
    """A compressor that keeps 16 bits of a float64, as zfpy may."""

    codec_id = "rounded"

    def encode(self, x):
        return super().encode(np.asarray(x).view("f8").astype("f2").astype("f8"))


numcodecs.register_codec(Rounded)

# Each saves an array under a name, with its own suffix.
SOURCES = {
    "npy": (".npy", lambda name, x: np.save(name, x)),
    "npy, Fortran": (".npy", lambda name, x: np.save(name, np.asfortranarray(x))),
    "safetensors": (".safetensors", lambda name, x: safetensors.numpy.save_file({"x": x}, f"{name}.safetensors")),
    "zarr 2": (".zarr", lambda name, x: in_zarr(name, x, version=2)),
    "zarr 2, Fortran": (".zarr", lambda name, x: in_zarr(name, x, version=2, order="F")),
    "zarr 3": (".zarr", in_zarr),
    "zarr, zstd": (".zarr", lambda name, x: in_zarr(name, x, compressors=zarr.codecs.ZstdCodec())),
    "zarr, shards": (".zarr", lambda name, x: in_zarr(name, x, (2, 2, 5), shards=(4, 4, 5)[: x.ndim])),
    "zarr, one chunk": (".zarr", lambda name, x: in_zarr(name, x, (99, 99, 99))),
    "hdf5": (".h5", in_hdf5),
    "hdf5, chunks": (".h5", lambda name, x: in_hdf5(name, x, chunks=(4, 2, 3)[: x.ndim], compression="gzip")),
}


def read(path):
    """The only array of a file, by the libraries."""
    if path.endswith(".npy"):
        return np.load(path)
    if path.endswith(".safetensors"):
        (x,) = safetensors.numpy.load_file(path).values()
        return x
    if path.endswith(".zarr"):
        return np.asarray(zarr.open_array(path, mode="r")[...])
    with h5py.File(path) as file:
        (name,) = file
        return file[name][()]


def state(path):
    return zarr.open_array(path, mode="r").attrs["lsm"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".zarr", ".h5"])
def test_every_function_gives_the_bits_of_the_whole_array(work, small_blocks, source, suffix):  # noqa: F811
    own, save = SOURCES[source]
    save("x", X), save("i", INDICES)
    for op, options in FUNCTIONS.items():
        args = ["--index", f"i{own}"] if "indices" in options else ["--k", "2"] if options else []
        assert main(["apply", f"x{own}", f"y{suffix}", "--op", op, *args]) == 0
        expected = getattr(lsm, op)(X, axis=-1, **options)
        if op == "top_k_log_softmax":
            same(read(f"y.indices{suffix}"), expected.indices)
            expected = expected.values
        same(read(f"y{suffix}"), expected)
    for axis in (0, 1, (0, 2)):
        for op in ("log_softmax", "logsumexp"):
            flag = "--axis=" + str(axis).strip("()").replace(" ", "")
            assert main(["apply", f"x{own}", f"y{suffix}", "--op", op, flag]) == 0
            same(read(f"y{suffix}"), getattr(lsm, op)(X, axis))
    target = f"x{own}" if own == suffix else f"y{suffix}"  # the result may replace the input
    assert main(["apply", f"x{own}", target]) == 0
    same(read(target), lsm.log_softmax(X))
    assert not list(work.glob(".lsm-*"))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (1, 1), (7,)])
@pytest.mark.parametrize("source", ["npy", "zarr 2", "zarr 3", "hdf5"])
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_scalars_and_empty_arrays(work, small_blocks, shape, source, suffix):  # noqa: F811
    own, save = SOURCES[source]
    if "zarr" in source:
        in_zarr("x", np.ones(shape), tuple(max(1, n) for n in shape), version=int(source[-1]))
    else:
        save("x", np.ones(shape))
    for op in ("log_softmax", "logsumexp", "top_k_log_softmax --k 0"):
        assert main(["apply", f"x{own}", f"y{suffix}", "--op", *op.split()]) == 0
        expected = (
            lsm.top_k_log_softmax(np.ones(shape), 0).values if "0" in op else getattr(lsm, op)(np.ones(shape), -1)
        )
        same(read(f"y{suffix}"), np.asarray(expected))


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8", "?", "<i8", ">u2", "|i1"])
@pytest.mark.parametrize("source", ["zarr 2", "zarr 3", "hdf5"])
def test_dtypes_and_byte_orders(work, small_blocks, dtype, source):  # noqa: F811
    own, save = SOURCES[source]
    x = X.astype("i8").astype(dtype) if dtype[-2:] not in ("f2", "f4", "f8") else X.astype(dtype)
    save("x", x)
    for suffix in (".zarr", ".h5"):
        assert main(["apply", f"x{own}", f"y{suffix}"]) == 0
        same(read(f"y{suffix}"), lsm.log_softmax(x))


def test_dtypes_that_cannot_be_stored(work, capsys):  # noqa: F811
    np.save("x.npy", X.astype(np.longdouble))
    assert ".zarr files cannot store longdouble; pass --dtype float64" in refused(capsys, "apply", "x.npy", "y.zarr")
    assert main(["apply", "x.npy", "y.h5"]) == 0
    np.testing.assert_array_equal(read("y.h5"), lsm.log_softmax(X.astype(np.longdouble)), strict=True)
    assert main(["apply", "y.h5", "z.npy"]) == 0
    in_hdf5("b", X.astype("<f2").view("V2"))
    assert "2-byte elements of unknown type (|V2), as HDF5 files of bfloat16 do" in refused(
        capsys, "apply", "b.h5", "y.npy"
    )


# How a Zarr array is made


def test_an_array_of_the_same_shape_has_the_layout_of_the_input(work):  # noqa: F811
    for version, options in ((2, {"compressors": "auto"}), (3, {"compressors": "auto"}), (3, {"shards": (8, 4, 5)})):
        x = in_zarr("x", X, (4, 2, 5), version, **options)
        assert main(["apply", "x.zarr", "y.zarr"]) == 0
        y = zarr.open_array("y.zarr", mode="r")
        assert (y.chunks, y.shards, y.compressors) == (x.chunks, x.shards, x.compressors)
        assert y.metadata.zarr_format == version
        assert np.isnan(y.fill_value)
        same(y[...], lsm.log_softmax(X))


def test_a_lossy_compressor_is_not_taken_over(work):  # noqa: F811
    x = X.astype("f8")
    in_zarr("x", x, version=2, compressors=Rounded())
    assert main(["apply", "x.zarr", "y.zarr"]) == 0
    y = zarr.open_array("y.zarr", mode="r")
    assert y.compressors == ()
    same(y[...], lsm.log_softmax(zarr.open_array("x.zarr")[...]))


def test_other_arrays_have_chunks_of_many_frames(work, monkeypatch):  # noqa: F811
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 8 * 1000)  # 10 frames
    x = np.random.default_rng(2).normal(size=(1200, 100))
    np.save("x.npy", x)
    assert main(["apply", "x.npy", "y.zarr"]) == 0
    assert zarr.open_array("y.zarr").chunks == (10, 100)
    assert main(["apply", "x.npy", "y.zarr", "--op", "logsumexp"]) == 0
    assert zarr.open_array("y.zarr").chunks == (1000,)  # in which a block's memory has room for its numbers
    monkeypatch.setattr(_apply, "BLOCKS_A_CHUNK", 30)
    assert main(["apply", "x.npy", "y.zarr", "--op", "logsumexp"]) == 0
    assert zarr.open_array("y.zarr").chunks == (300,)
    in_zarr("x", x, (7, 100))
    assert main(["apply", "x.zarr", "y.zarr", "--op", "top_k_log_softmax", "--k", "5"]) == 0
    for name, expected, fill in zip(("y", "y.indices"), lsm.top_k_log_softmax(x, 5), (np.nan, -1), strict=True):
        y = zarr.open_array(f"{name}.zarr")
        assert y.chunks == (196, 5)  # what 20 blocks of 10 frames have, in whole chunks of the input
        np.testing.assert_equal(y.fill_value, fill)
        same(y[...], expected)


def test_what_the_attribute_says(work, monkeypatch):  # noqa: F811
    in_zarr("x", X)
    np.save("i.npy", INDICES)
    args = "--op take_log_softmax --index i.npy --temperature 2 --dtype float64 --backend numpy"
    assert main(["apply", "x.zarr", "y.zarr", *args.split()]) == 0
    chunks = [path.stat() for path in Path("x.zarr").rglob("*") if path.is_file()]
    logits = {"path": os.path.realpath("x.zarr"), "within": None, "shape": [30, 4, 5], "dtype": "float32"}
    logits |= {"size": sum(s.st_size for s in chunks), "mtime": max(s.st_mtime_ns for s in chunks)}
    indices = {"path": os.path.realpath("i.npy"), "within": None, "shape": [30, 4], "dtype": "int64"}
    indices |= {"size": Path("i.npy").stat().st_size, "mtime": Path("i.npy").stat().st_mtime_ns}
    assert state("y.zarr") == {
        "operation": "take_log_softmax",
        "axis": [2],
        "options": {"temperature": 2.0},
        "dtype": "float64",
        "backend": "numpy",
        "version": lsm.__version__,
        "fma": None,
        "source": [logits, indices],
        "complete": True,
    }
    assert main(["apply", "x.zarr", "y.zarr", "--backend", "cython"]) == 0
    assert type(state("y.zarr")["fma"]) is bool


# Names within


def test_names_in_zarr(work, capsys):  # noqa: F811
    group = zarr.open_group("g.zarr", mode="w", zarr_format=2)
    group.create_array("a/x", data=X, chunks=(4, 4, 5))
    group.create_array("i", data=INDICES)
    assert "contains 2 arrays; pass --path with one of 'a/x', 'i'" in refused(capsys, "apply", "g.zarr", "y.npy")
    said = "contains no array 'a'; pass --path with one of"
    assert said in refused(capsys, "apply", "g.zarr", "y.npy", "--path", "a")
    take = "apply g.zarr g.zarr --path a/x --op take_log_softmax --index g.zarr --index-path i --name b/y"
    assert main(take.split()) == 0
    assert sorted(name for name, _ in zarr.open_group("g.zarr", mode="r").members(None)) == [
        "a",
        "a/x",
        "b",
        "b/y",
        "i",
    ]
    same(zarr.open_group("g.zarr")["b/y"][...], lsm.take_log_softmax(X, INDICES))
    assert main(["apply", "g.zarr/a/x", "y.zarr"]) == 0  # which is a directory too
    same(read("y.zarr"), lsm.log_softmax(X))
    assert main(["apply", "y.zarr", "new.zarr", "--name", "y"]) == 0
    same(zarr.open_group("new.zarr", mode="r")["y"][...], lsm.log_softmax(lsm.log_softmax(X)))
    for args, said in (
        ("y.zarr g.zarr", "'g.zarr' is a Zarr group; name the array in it with --name"),
        ("y.zarr g.zarr --name a", "is a Zarr group; name the array"),
        ("g.zarr y.zarr --path i --name y", "'y.zarr' is an array, not a group; leave out --name"),
        ("y.zarr z.npy --path x", "'y.zarr' is an array, not a group; leave out --path"),
        ("y.zarr g.zarr --name ../z", "--name"),
        ("y.zarr g.zarr --name /z", "--name"),
    ):
        assert said in refused(capsys, "apply", *args.split())


def test_names_in_hdf5(work, capsys):  # noqa: F811
    with h5py.File("x.h5", "w") as file:
        file["a/x"], file["i"] = X, INDICES
    assert "contains 2 arrays; pass --path with one of 'a/x', 'i'" in refused(capsys, "apply", "x.h5", "y.npy")
    assert "contains no array 'a'; pass" in refused(capsys, "apply", "x.h5", "y.npy", "--path", "a")
    assert "contains 2 arrays, such as 'a/x', which would be lost" in refused(
        capsys, "apply", "x.h5", "x.h5", "--path", "i"
    )
    take = "apply x.h5 y.h5 --path /a/x --op take_log_softmax --index x.h5 --index-path i"
    assert main(take.split()) == 0
    with h5py.File("y.h5") as file:
        same(file["a/x"][...], lsm.take_log_softmax(X, INDICES))
    assert main([*take.split(), "--name", "scores"]) == 0
    with h5py.File("y.h5") as file:
        assert list(file) == ["scores"]


# Interrupted and resumed


def failing(n):
    """A log_softmax that fails at its call number n; and how many frames it was given."""
    original, calls = lsm.log_softmax, []

    def function(x, **options):
        calls.append(x.shape[0])
        if len(calls) == n:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(x, **options)

    return function, calls


@pytest.fixture
def interrupted(work, monkeypatch, capsys):  # noqa: F811
    """x.zarr with 30 frames in chunks of 3, and y.zarr of a run that failed after 12 of them."""
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 8)
    in_zarr("x", X[:, 0], (3, 5))
    function, _ = failing(6)
    with monkeypatch.context() as patch:
        patch.setattr(lsm, "log_softmax", function)
        assert main(["apply", "x.zarr", "y.zarr"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "lsm: error: [Errno 28] No space left on device; 'y.zarr' is incomplete; the same command with --resume "
        "completes it\n"
    )
    return work


def test_what_is_missing_reads_as_nan_and_is_not_taken_for_a_result(interrupted, capsys):
    y = read("y.zarr")
    same(y[:12], lsm.log_softmax(X[:12, 0]))
    assert np.isnan(y[12:]).all()
    assert state("y.zarr")["complete"] is False
    line = refused(capsys, "apply", "x.zarr", "y.zarr")
    assert line.startswith(
        "lsm: error: 'y.zarr' is incomplete, since a run was interrupted; complete it with --resume, or"
    )
    assert "'y.zarr' is incomplete: lsm apply was interrupted" in refused(capsys, "apply", "y.zarr", "z.npy")
    same(read("y.zarr"), y)


def test_a_resumed_run_does_only_what_is_missing(interrupted, monkeypatch):
    expected = lsm.log_softmax(X[:, 0])
    function, calls = failing(0)
    monkeypatch.setattr(lsm, "log_softmax", function)
    assert main(["apply", "x.zarr", "y.zarr", "--resume"]) == 0
    assert sum(calls) == 18
    same(read("y.zarr"), expected)
    assert state("y.zarr")["complete"] is True
    assert main(["apply", "x.zarr", "y.zarr", "--resume"]) == 0  # nothing is left to do
    assert sum(calls) == 18
    assert main(["apply", "x.zarr", "z.zarr", "--resume"]) == 0  # there is nothing to resume
    same(read("z.zarr"), expected)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--op softmax", "operation was log_softmax, now softmax"),
        ("--axis 0", "axis was [1], now [0]"),
        ("--temperature 2", "options was {}, now {'temperature': 2.0}"),
        ("--dtype float64", "dtype was float32, now float64"),
        ("--backend numpy", "backend was cython, now numpy"),
    ],
)
def test_another_call_does_not_resume(interrupted, capsys, args, said):
    line = refused(capsys, "apply", "x.zarr", "y.zarr", "--resume", *args.split())
    assert f"'y.zarr' was begun by another call: {said}" in line
    assert state("y.zarr")["complete"] is False


def test_another_source_does_not_resume(interrupted, capsys):
    chunk = Path("x.zarr/c/2/0")
    os.utime(chunk, ns=(0, chunk.stat().st_mtime_ns + 10**9))
    assert "mtime of input 1 was" in refused(capsys, "apply", "x.zarr", "y.zarr", "--resume")
    np.save("x.npy", X[:, 0])
    assert "path of input 1 was" in refused(capsys, "apply", "x.npy", "y.zarr", "--resume")
    in_zarr("x", X[:7, 0], (3, 5))
    assert "shape of input 1 was [30, 5], now [7, 5]" in refused(capsys, "apply", "x.zarr", "y.zarr", "--resume")


def test_another_version_does_not_resume(interrupted, capsys):
    y = zarr.open_array("y.zarr")
    y.attrs["lsm"] = y.attrs["lsm"] | {"version": "0.0.7", "fma": None}
    line = refused(capsys, "apply", "x.zarr", "y.zarr", "--resume")
    assert f"version was 0.0.7, now {lsm.__version__}; fma was None, now" in line


def test_an_array_of_others_is_replaced_but_not_resumed(work, capsys):  # noqa: F811
    in_zarr("x", X)
    in_zarr("y", X + 1)
    assert "'y.zarr' was not written by lsm apply" in refused(capsys, "apply", "x.zarr", "y.zarr", "--resume")
    assert main(["apply", "x.zarr", "y.zarr"]) == 0
    same(read("y.zarr"), lsm.log_softmax(X))


def test_a_chunk_of_nan_is_not_done_again(work, small_blocks, monkeypatch):  # noqa: F811
    x = np.ones((6, 4))
    x[:3] = np.nan
    in_zarr("x", x, (1, 4), compressors="auto")
    function, calls = failing(4)
    with monkeypatch.context() as patch:
        patch.setattr(lsm, "log_softmax", function)
        assert main(["apply", "x.zarr", "y.zarr"]) == 1
    function, calls = failing(0)
    with monkeypatch.context() as patch:
        patch.setattr(lsm, "log_softmax", function)
        assert main(["apply", "x.zarr", "y.zarr", "--resume"]) == 0
    assert sum(calls) == 2
    same(read("y.zarr"), lsm.log_softmax(x))


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_is_stopped(work, monkeypatch, is_there, number, code):  # noqa: F811
    x = np.random.default_rng(3).normal(size=(3000, 50))
    in_zarr("x", x, (10, 50))
    where = Path(".lsm-y.zarr.partial" if is_there else "y.zarr")
    if is_there:
        in_zarr("y", x[:5])
    process = drive(SLOW, "apply", "x.zarr", "y.zarr")
    wait_until(lambda: len(list(where.glob("c/*"))) > 100, process)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == code
    if number != signal.SIGKILL:
        name = signal.Signals(number).name
        resume = "'y.zarr' is incomplete; the same command with --resume completes it"
        assert said == f"lsm: error: stopped by {name}; {resume}\n"
    if is_there:
        same(read("y.zarr"), x[:5])
    (where / "c/7/0.0123.partial").write_bytes(b"what a killed process leaves of a chunk")
    n_there = sum(path.name == "0" for path in where.rglob("c/*/*"))
    assert 100 <= n_there < 300
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 800)  # as in SLOW
    function, calls = failing(0)
    with monkeypatch.context() as patch:
        patch.setattr(lsm, "log_softmax", function)
        assert main(["apply", "x.zarr", "y.zarr", "--resume"]) == 0
    assert sum(calls) == 3000 - 10 * n_there
    same(read("y.zarr"), lsm.log_softmax(x))
    assert sorted(path.name for path in work.iterdir()) == ["x.zarr", "y.zarr"]
    assert not list(work.rglob("*.partial"))


def test_a_disk_that_is_full(work):  # noqa: F811
    x = np.random.default_rng(3).normal(size=(1000, 100))
    np.save("x.npy", x)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); _apply.BLOCK_BYTES = 8000"
    in_hdf5("y", X)
    before = Path("y.h5").read_bytes()
    for n in (100, 100_000):
        process = drive(limit.format(n), "apply", "x.npy", "y.h5")
        assert process.communicate(timeout=60)[1].decode() == "lsm: error: [Errno 27] File too large\n"
        assert process.returncode == 1
        assert Path("y.h5").read_bytes() == before
    process = drive(limit.format(5000), "apply", "x.npy", "y.zarr")
    assert b"File too large; 'y.zarr' is incomplete; the same" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert sorted(path.name for path in work.iterdir()) == ["x.npy", "y.h5", "y.zarr"]
    assert np.isnan(read("y.zarr")).all()
    assert main(["apply", "x.npy", "y.zarr", "--resume"]) == 0
    same(read("y.zarr"), lsm.log_softmax(x))


def test_killed_or_truncated_hdf5(work, capsys):  # noqa: F811
    in_hdf5("x", np.ones((20_000, 50)))
    (work / "y.h5").write_bytes(b"old")
    process = drive(SLOW, "apply", "x.h5", "y.h5")
    wait_until(lambda: has_begun(work), process)
    process.kill()
    process.communicate(timeout=30)
    assert (work / "y.h5").read_bytes() == b"old"
    os.truncate("x.h5", 1_000_000)
    assert "'x.h5' cannot be read: Unable to" in refused(capsys, "apply", "x.h5", "z.npy")
    assert not (work / "z.npy").exists()


def test_both_results_are_replaced_or_neither(work, monkeypatch, capsys):  # noqa: F811
    in_zarr("x", X)
    in_zarr("y", X[0]), in_zarr("y.indices", X[1])
    rename, failed = Path.rename, []

    def refuses(self, target):
        if Path(target).name == "y.indices.zarr" and not failed:
            failed.append(self)
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    args = ["apply", "x.zarr", "y.zarr", "--op", "top_k_log_softmax", "--k", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuses)
        assert main(args) == 1
    assert failed and "Permission denied; 'y.zarr' is incomplete" in capsys.readouterr().err
    same(read("y.zarr"), X[0]), same(read("y.indices.zarr"), X[1])
    assert "'y.zarr' is incomplete" in refused(capsys, *args)
    assert main([*args, "--resume"]) == 0
    expected = lsm.top_k_log_softmax(X, 2)
    same(read("y.zarr"), expected.values), same(read("y.indices.zarr"), expected.indices)
    assert sorted(path.name for path in work.iterdir()) == ["x.zarr", "y.indices.zarr", "y.zarr"]


def test_a_process_that_is_killed_between_two_renames(work):  # noqa: F811
    in_zarr("x", X)
    in_zarr("y", X[0])
    process = drive("import os; os.sync = lambda: os.kill(os.getpid(), 9)", "apply", "x.zarr", "y.zarr")
    process.communicate(timeout=60)
    Path("y.zarr").rename(".lsm-0123.tmp")
    assert main(["apply", "x.zarr", "y.zarr", "--resume"]) == 0
    same(read("y.zarr"), lsm.log_softmax(X))


def test_one_of_two_results_is_missing(work, capsys):  # noqa: F811
    in_zarr("x", X)
    args = ["apply", "x.zarr", "y.zarr", "--op", "top_k_log_softmax", "--k", "2"]
    assert main(args) == 0
    Path("y.indices.zarr/c/0/0/0").unlink()
    y = zarr.open_array("y.indices.zarr")
    y.attrs["lsm"] = y.attrs["lsm"] | {"complete": False}
    assert (y[:] == -1).any()
    assert "'y.indices.zarr' is incomplete" in refused(capsys, *args)
    assert main([*args, "--resume"]) == 0
    same(read("y.indices.zarr"), lsm.top_k_log_softmax(X, 2).indices)


# What is not replaced


def test_directories_that_are_no_array_are_not_replaced(work, capsys):  # noqa: F811
    np.save("x.npy", X)
    (work / "d.zarr").mkdir()
    (work / "d.zarr/precious").write_text("data")
    (work / "f.zarr").write_text("data")
    (work / "loop.zarr").symlink_to("loop.zarr")
    before = sorted(work.rglob("*"))
    for target in ("d.zarr", "f.zarr", "d.zarr/", ".", "missing/y.zarr", "x.npy/y.zarr", "loop.zarr", os.devnull):
        assert repr(target) in refused(capsys, "apply", "x.npy", target, "--format", "zarr")
    assert sorted(work.rglob("*")) == before


def test_a_link_is_followed(work):  # noqa: F811
    np.save("x.npy", X)
    (work / "d").mkdir()
    (work / "y.zarr").symlink_to("d/new.zarr")
    for op in ("softmax", "log_softmax"):
        assert main(["apply", "x.npy", "y.zarr/", "--op", op]) == 0
        same(read("d/new.zarr"), getattr(lsm, op)(X))
    assert (work / "y.zarr").is_symlink()
    assert [path.name for path in (work / "d").iterdir()] == ["new.zarr"]


# Inputs that are damaged, hostile or not what they seem


def test_damaged_chunks(work, capsys):  # noqa: F811
    for options in ({"compressors": None}, {"compressors": "auto"}, {"version": 2, "compressors": "auto"}):
        in_zarr("x", X, (30, 4, 5), **options)
        chunk = Path("x.zarr", "0.0.0" if "version" in options else "c/0/0/0")
        whole = chunk.read_bytes()
        for damaged in (whole[:-7], whole[: len(whole) // 2], b"", b"nonsense"):
            chunk.write_bytes(damaged)
            assert main(["apply", "x.zarr", "y.npy"]) == 1
            assert capsys.readouterr().err.startswith("lsm: error: 'x.zarr' cannot be read: ")
            assert not Path("y.npy").exists()


def test_missing_chunks_are_pointed_out(work, capsys):  # noqa: F811
    for version in (2, 3):
        x = in_zarr("x", X, (30, 4, 1), version, fill_value=7.0)
        Path("x.zarr", x.metadata.encode_chunk_key((0, 0, 3))).unlink()
        assert main(["apply", "x.zarr", "y.npy"]) == 0
        said = "lsm: warning: 'x.zarr': 1 chunks are missing, and are read as the fill value 7.0\n"
        assert capsys.readouterr().err == said
    in_zarr("x", X, (2, 4, 5), shards=(6, 4, 5))
    Path("x.zarr/c/0/0/0").unlink()
    assert main(["apply", "x.zarr", "y.npy"]) == 0
    assert "1 shards are missing, and are read as the fill value 0" in capsys.readouterr().err
    in_zarr("x", X, (30, 4, 1), fill_value=np.nan)
    Path("x.zarr/c/0/0/3").unlink()
    assert main(["apply", "x.zarr", "y.npy"]) == 0
    assert capsys.readouterr().err == ""
    assert np.isnan(np.load("y.npy")).all()


def zarray(**changes):
    about = {"zarr_format": 2, "shape": [2, 3], "chunks": [2, 3], "dtype": "<f4", "compressor": None}
    return {".zarray": json.dumps(about | {"fill_value": 0, "order": "C", "filters": None} | changes)}


HOSTILE = {
    "empty": ({"zarr.json": ""}, "cannot be read"),
    "no JSON": ({"zarr.json": "{"}, "cannot be read"),
    "no object": ({"zarr.json": "[1]"}, "cannot be read"),
    "no array": ({"zarr.json": json.dumps({"zarr_format": 3, "node_type": "ship"})}, "cannot be read"),
    "nested": ({"zarr.json": '{"a":' * 90_000}, "cannot be read"),
    "negative": (zarray(shape=[-2, -3]), "cannot be read"),
    "no chunks": (zarray(chunks=[0, 0]), "cannot be read"),
    "many axes": (zarray(shape=[1] * 70, chunks=[1] * 70), "cannot be read"),
    "fraction": (zarray(shape=[2.5, 3]), "cannot be read"),
    "dtype": (zarray(dtype="<q9"), "cannot be read"),
    "unknown codec": (zarray(compressor={"id": "nonsense"}), "cannot be read"),
    "pickle": (zarray(compressor={"id": "pickle"}), "cannot be read"),
    "pickled filter": (zarray(filters=[{"id": "delta", "dtype": "<f4"}, {"id": "pickle"}]), "cannot be read"),
    "objects": (zarray(dtype="|O", filters=[{"id": "pickle"}]), "cannot be read"),
    "text": (zarray(dtype="<U3", fill_value=""), "text"),
    "complex": (zarray(dtype="<c8", fill_value=[0, 0]), "complex64"),
    "structured": (zarray(dtype=[["a", "<f4"]], fill_value=None), "structured"),
    "no nodes": ({".zgroup": '{"zarr_format": 2}'}, "contains no array"),
}


@pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_zarr(work, capsys, case):  # noqa: F811
    files, said = HOSTILE[case]
    (work / "x.zarr").mkdir()
    for name, text in files.items():
        (work / "x.zarr" / name).write_text(text)
    (work / "x.zarr/0.0").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    line = refused(capsys, "apply", "x.zarr", "y.npy")
    assert "'x.zarr'" in line
    assert said in line
    assert len(line) < 600
    assert [path.name for path in work.iterdir()] == ["x.zarr"]


def test_a_huge_shape_takes_no_time(work, capsys):  # noqa: F811
    (work / "x.zarr").mkdir()
    (work / "x.zarr/.zarray").write_text(zarray(shape=[10**15], chunks=[1])[".zarray"])
    assert main(["apply", "x.zarr", "y.npy", "--op", "entropy"]) == 1
    said = capsys.readouterr().err
    assert f"{10**15} chunks are missing" in said and "Unable to allocate" in said
    assert [path.name for path in work.iterdir()] == ["x.zarr"]


def test_hostile_hdf5(work, capsys):  # noqa: F811
    with h5py.File("x.h5", "w") as file:
        file["text"] = ["a", "b"]
        file["null"] = h5py.Empty("f4")
        file["fields"] = np.zeros(3, [("a", "f4"), ("b", "f4")])
        file["complex"] = np.zeros(3, "c8")
        file.create_dataset("lists", 3, h5py.vlen_dtype("f4"))
        file["soft"] = h5py.SoftLink("/nothing")
        file["far"] = h5py.ExternalLink("nothing.h5", "/x")
        file["times"] = np.zeros(3, "u8").view(h5py.opaque_dtype("M8[s]"))
    for name, said in {
        "text": "pickled Python objects",
        "null": "has no elements",
        "fields": "structured",
        "complex": "complex64",
        "lists": "pickled Python objects",
        "soft": "contains no array 'soft'",
        "far": "contains no array 'far'",
        "times": "not accepted",
    }.items():
        assert said in refused(capsys, "apply", "x.h5", "y.npy", "--path", name)
    (work / "x.h5").write_bytes(b"nonsense")
    assert "'x.h5' cannot be read: " in refused(capsys, "apply", "x.h5", "y.npy")
    (work / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90))
    assert "'x.h5' cannot be read: " in refused(capsys, "apply", "x.h5", "y.npy")
    with h5py.File("x.h5", "w") as file:
        file.create_group("g")
    assert "contains no array" in refused(capsys, "apply", "x.h5", "y.npy")
    assert [path.name for path in work.iterdir()] == ["x.h5"]


@pytest.mark.parametrize(
    ("key", "value", "is_harmless"),
    [
        ("scale_factor", 0.1, False),
        ("add_offset", 3.0, False),
        ("_FillValue", -999.0, False),
        ("missing_value", 1e20, False),
        ("_FillValue", np.nan, True),
        ("_FillValue", "AAAAAAAA+H8=", True),
        ("units", "nats", True),
    ],
)
def test_scaled_and_masked_numbers_are_not_taken_as_they_are(work, capsys, key, value, is_harmless):  # noqa: F811
    in_zarr("x", X, attributes={key: value})
    with h5py.File("x.h5", "w") as file:
        file["x"] = X
        file["x"].attrs[key] = value
    for source in ("x.zarr", "x.h5"):
        if is_harmless:
            assert main(["apply", source, "y.npy"]) == 0
        else:
            assert f"has the attribute {key} = {value}, which lsm does not apply" in refused(
                capsys, "apply", source, "y.npy"
            )


def traced_peak(args):
    """The most bytes that Python held during a second run of the command."""
    main(args)  # whatever is made once
    tracemalloc.start()
    try:
        assert main(args) == 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("suffix", "op"), [(".zarr", "log_softmax"), (".zarr", "logsumexp"), (".h5", "log_softmax")])
def test_memory_does_not_grow_with_the_file(work, monkeypatch, suffix, op):  # noqa: F811
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 2**20)
    x = np.ones((256, 8192), np.float32)  # 8 MiB, 16 blocks
    in_zarr("x", x, (16, 8192)), in_hdf5("x", x)
    args = ["apply", f"x{suffix}", f"y{suffix}", "--op", op]
    assert traced_peak(args) < 3 * 2**20


def test_an_old_zarr_is_refused(work):  # noqa: F811
    np.save("x.npy", X)
    process = drive("import zarr; zarr.__version__ = '3.1.2'", "apply", "x.npy", "y.zarr")
    said = "zarr is needed (version 3.1.3 or newer; 3.1.2 is installed): python -m pip install 'lsm-softmax[zarr]'"
    assert said in process.communicate(timeout=60)[1].decode()
    assert process.returncode == 2


def test_no_library_is_imported_that_is_not_needed(work):  # noqa: F811
    np.save("x.npy", X)
    code = "import atexit; atexit.register(lambda: print({'zarr', 'h5py'} & set(sys.modules), file=sys.stderr))"
    for target, found in (("y.safetensors", "set()"), ("y.h5", "{'h5py'}"), ("y.zarr", "{'zarr'}")):
        assert drive(code, "apply", "x.npy", target).communicate(timeout=60)[1].decode() == f"{found}\n"
