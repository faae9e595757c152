"""`lsm apply` on frames larger than a block: the bits of the whole, and never more in memory than a block.

Needs the extra `zoo`, as test_zoo.py; conftest.py leaves this file out where one of its libraries is not installed.
"""

from itertools import cycle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import zarr
from test_apply_stores import in_hdf5, in_zarr, read, state, traced_peak
from test_cli import drive, work  # noqa: F401 (fixture)
from test_cli_apply import same

import lsm
from lsm import _apply
from lsm._storage.hdf5 import HDF5Array
from lsm._storage.raw import RawArray
from lsm._storage.zarr_ import ZarrArray
from lsm.cli import main

N = 40_000  # classes, in 3 slices
N_BLOCK = 2**15  # elements of a block
X = np.random.default_rng(0).normal(scale=3, size=(8, N)).astype(np.float32)
X[1, 20_000] = np.nan
X[2] = -np.inf
X[3, 16384:32768] = -np.inf
X[4, 39_999] = np.inf
X[5] = np.log(1 / N)  # log-probabilities, whose sum the kernels take once more
X[6, ::1000] = 20  # ties
X[7, :16384] -= 500
INDICES = np.random.default_rng(1).integers(0, N, (8, 3))
INDICES[6] = 0, 39_000, 1000
FUNCTIONS = [
    ("log_softmax", {}),
    ("softmax", {}),
    ("logsumexp", {}),
    ("take_log_softmax", {"indices": INDICES[:, 0]}),
    ("take_log_softmax", {"indices": INDICES}),
    ("top_k_log_softmax", {"k": 50}),
]
SOURCES = {
    "npy": (".npy", lambda name, x: np.save(name, x)),
    "npy, Fortran": (".npy", lambda name, x: np.save(name, np.asfortranarray(x))),
    "safetensors": (".safetensors", lambda name, x: safetensors.numpy.save_file({"x": x}, f"{name}.safetensors")),
    "zarr": (".zarr", lambda name, x: in_zarr(name, x, chunks(x, 16384))),
    "zarr 2, other chunks": (".zarr", lambda name, x: in_zarr(name, x, chunks(x, 10_000), 2, compressors="auto")),
    "zarr, shards": (".zarr", lambda name, x: in_zarr(name, x, chunks(x, 4096), shards=chunks(x, 16384))),
    "hdf5": (".h5", in_hdf5),
    "hdf5, chunks": (".h5", lambda name, x: in_hdf5(name, x, chunks=chunks(x, 9999))),
}


def chunks(x, n_classes):
    """The shape of chunks of two frames and so many classes, or of indices of four frames."""
    if N not in x.shape:
        return (2,) * x.ndim
    at = x.shape.index(N)
    return tuple(n_classes if i == at else 2 if i == (at + 1) % x.ndim else 1 for i in range(x.ndim))


@pytest.fixture
def reads(monkeypatch):
    """Blocks of N_BLOCK elements; and how many elements were read at once."""
    sizes = []
    for kind in (RawArray, ZarrArray, HDF5Array):

        def read(self, index, original=kind.read):
            block = original(self, index)
            sizes.append(block.size)
            return block

        monkeypatch.setattr(kind, "read", read)
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 8 * N_BLOCK)
    return sizes


def apply(op, source, target, axis, *args, indices=None, k=None):
    """Run the command with some of FUNCTIONS."""
    if indices is not None:
        np.save("i.npy", indices)
        args = ("--index", "i.npy", *args)
    args = args if k is None else ("--k", str(k), *args)
    return main(["apply", source, target, "--op", op, "--axis", str(axis), *args])


def check(target, expected):
    if isinstance(expected, lsm.TopK):
        root, dot, suffix = target.partition(".")
        same(read(f"{root}.indices{dot}{suffix}"), expected.indices)
        expected = expected.values
    same(read(target), expected)


def first(x):
    """The classes on the first of two axes; of few frames."""
    return np.ascontiguousarray(x[[1, 5]].T)


def middle(x):
    """The classes between two axes."""
    return np.ascontiguousarray(np.moveaxis(x.reshape(4, 2, *x.shape[1:]), 1, -1))


@pytest.mark.parametrize(("arranged", "axis"), [(first, 0), (middle, 1), (np.asarray, 1)])
@pytest.mark.parametrize("source", SOURCES)
def test_every_function_gives_the_bits_of_whole_frames(work, reads, source, arranged, axis):  # noqa: F811
    own, save = SOURCES[source]
    x = arranged(X)
    save("x", x)
    for (op, given), suffix in zip(FUNCTIONS, cycle([".zarr", ".npy", ".safetensors", ".h5"])):
        options = {name: value if name == "k" else arranged(value) for name, value in given.items()}
        reads.clear()
        assert apply(op, f"x{own}", f"y{suffix}", axis, **options) == 0
        check(f"y{suffix}", getattr(lsm, op)(x, axis=axis, **options))
        if op == "logsumexp":  # a frame that is read whole, with those of its chunk
            assert N <= max(reads) < x.size or arranged is first
            reads.remove(max(reads))
        assert max(reads) <= N_BLOCK
        n_indices = 2 * options["indices"].size if "indices" in options else 0  # which are checked first
        assert sum(reads) == x.size * (2 if op in ("log_softmax", "softmax") else 1) + n_indices
    assert not list(work.glob(".lsm-*"))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".zarr", ".h5"])
@pytest.mark.parametrize("op", ["log_softmax", "softmax"])
def test_every_format_is_written_in_pieces(work, reads, suffix, op):  # noqa: F811
    x = np.stack([X, X[::-1]])
    np.save("x.npy", x)
    assert apply(op, "x.npy", f"y{suffix}", 2) == 0
    assert max(reads) <= N_BLOCK
    same(read(f"y{suffix}"), getattr(lsm, op)(x))
    if suffix == ".zarr":
        assert zarr.open_array("y.zarr").chunks == (1, 1, N_BLOCK)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", ">f4"])
@pytest.mark.parametrize("server", ["cython", "numpy"])
def test_dtypes_and_options(work, reads, dtype, server):  # noqa: F811
    with np.errstate(invalid="ignore", over="ignore"):
        x = (X if dtype != "int8" else np.nan_to_num(X, posinf=0, neginf=0)).astype(
            ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        )
    source = "x.safetensors" if dtype == "bfloat16" else "x.npy"
    SOURCES["safetensors" if dtype == "bfloat16" else "npy"][1]("x", x)
    for op, options in FUNCTIONS[:3] + FUNCTIONS[4:]:
        more = {"backend": server} if op == "logsumexp" else {"backend": server, "temperature": 0.7}
        for result in (None, "float64"):
            flags = [f"--{name}={value}" for name, value in more.items()] + [f"--dtype={result}"] * bool(result)
            assert apply(op, source, "y.safetensors", 1, *flags, **options) == 0
            check("y.safetensors", getattr(lsm, op)(x, axis=1, **options, **more, dtype=result))
    assert min(reads) < N


def test_bfloat16_without_its_library(work):  # noqa: F811
    x = X.astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"x": x}, "x.safetensors")
    np.save("i.npy", INDICES)
    code = f"sys.modules['ml_dtypes'] = None; _apply.BLOCK_BYTES = {8 * N_BLOCK}"
    for op, args, options in (
        ("softmax", [], {}),
        ("logsumexp", [], {}),
        ("take_log_softmax", ["--index=i.npy"], {"indices": INDICES}),
        ("top_k_log_softmax", ["--k=50"], {"k": 50}),
    ):
        args = ["--op", op, "--axis=1", "--dtype=float32", *args]
        process = drive(code, "apply", "x.safetensors", "y.safetensors", *args)
        assert process.communicate(timeout=60)[1] == b""
        check("y.safetensors", getattr(lsm, op)(x, axis=1, **options, dtype="float32"))


def test_frames_that_cannot_be_cut_are_read_whole(work, reads):  # noqa: F811
    x = X[6:].astype(np.longdouble)
    np.save("x.npy", x)
    np.save("y.npy", X[6:])
    in_zarr("x", X[6:], (2, N))  # of one chunk
    for source, op in (("x.npy", "log_softmax"), ("y.npy", "entropy"), ("x.zarr", "softmax")):
        reads.clear()
        assert main(["apply", source, "z.npy", "--op", op]) == 0
        assert min(reads) >= N
        expected = getattr(lsm, op)(x if source == "x.npy" else X[6:])
        np.testing.assert_array_equal(np.load("z.npy"), expected, strict=True)
    assert main(["apply", "y.npy", "z.npy", "--axis=all"]) == 0
    same(np.load("z.npy"), lsm.log_softmax(X[6:], None))


@pytest.mark.parametrize("op", ["log_softmax", "logsumexp", "top_k_log_softmax"])
@pytest.mark.parametrize("source", ["npy", "npy, Fortran", "zarr", "hdf5"])
def test_memory_does_not_grow_with_the_frames(work, monkeypatch, source, op):  # noqa: F811
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 2**20)
    x = np.random.default_rng(0).random((2, 2**21), np.float32)  # 16 MiB
    own, save = SOURCES[source]
    save("x", x) if own != ".zarr" else in_zarr("x", x, (1, 2**16))
    args = ["apply", f"x{own}", "y.zarr" if own == ".zarr" else "y.npy", "--op", op, "--axis=1"]
    args += ["--k", "9"] if "top" in op else []
    assert traced_peak(args) < 3 * 2**20


def test_an_interrupted_frame_is_resumed(work, reads, monkeypatch):  # noqa: F811
    in_zarr("x", X[6:], (1, 16384))
    original, calls = lsm.log_softmax, []

    def function(x, *args, **options):
        calls.append(x.size)
        if len(calls) == 3:  # a call on no frames, and that for the first piece, went before
            raise OSError("no more")
        return original(x, *args, **options)

    monkeypatch.setattr(lsm, "log_softmax", function)
    assert main(["apply", "x.zarr", "y.zarr"]) == 1
    assert state("y.zarr")["complete"] is False
    y = read("y.zarr")
    same(y[:1, :N_BLOCK], original(X[6:7])[:, :N_BLOCK])
    assert np.isnan(y[0, N_BLOCK:]).all() and np.isnan(y[1]).all()
    reads.clear()
    assert main(["apply", "x.zarr", "y.zarr", "--resume"]) == 0
    assert sum(reads) == N + (N - N_BLOCK) + 2 * N
    same(read("y.zarr"), original(X[6:]))
