"""`lsm apply` with .safetensors files, by a reader and a writer of the tests' own; and how formats are chosen."""

import errno
import json
import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from test_cli import SLOW, drive, has_begun, refused, small_blocks, wait_until, work  # noqa: F401 (fixtures)
from test_cli_apply import SHAPES, same

import lsm
from lsm import _apply
from lsm.cli import main

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "BOOL": "?"}
DTYPES |= {f"{code}{8 * n}": f"<{code.lower()}{n}" for code in "IU" for n in (1, 2, 4, 8)}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


def contents(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


def save(path, **arrays):
    header, data = {"__metadata__": {"format": "np"}}, b""
    for name, x in arrays.items():
        offsets = [len(data), len(data) + x.nbytes]
        header[name] = {"dtype": CODES[x.dtype], "shape": list(x.shape), "data_offsets": offsets}
        data += x.tobytes()
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(contents(header, data))


def load(path):
    """The tensors of a file; what lsm writes has no gap."""
    with open(path, "rb") as file:  # noqa: PTH123
        n = int.from_bytes(file.read(8), "little")
        header, data = json.loads(file.read(n)), file.read()
    assert n % 8 == 0
    found, end = {}, 0
    for name, about in header.items():
        first, last = about["data_offsets"]
        assert first == end
        found[name] = np.frombuffer(data[first:last], DTYPES[about["dtype"]]).reshape(about["shape"])
        end = last
    assert end == len(data)
    return found


@pytest.mark.parametrize("source", ["x.safetensors", "x.npy"])
@pytest.mark.parametrize("target", ["y.safetensors", "y.npy"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_every_function_gives_the_bits_of_the_whole_array(work, small_blocks, rng, source, target, shape, axis):  # noqa: F811
    x = rng.normal(size=shape).astype(np.float32)
    i = rng.integers(0, shape[axis] if shape else 1, np.delete(shape, axis).astype(int) if shape else ())
    np.save("x.npy", x)
    save("x.safetensors", x=x)
    save("i.safetensors", i=np.asarray(i))

    def given(op, *args, indices=""):
        assert main(["apply", source, target, "--op", op, "--axis", str(axis), *args]) == 0
        for name in (target, target.replace(".", ".indices."))[: 1 + bool(indices)]:
            yield np.load(name) if name.endswith(".npy") else load(name)["x" if source[2] == "s" else op]

    for op in ("log_softmax", "softmax", "logsumexp", "entropy"):
        same(*given(op), np.asarray(getattr(lsm, op)(x, axis)))
    same(*given("take_log_softmax", "--index", "i.safetensors"), np.asarray(lsm.take_log_softmax(x, i, axis)))
    for found, expected in zip(
        given("top_k_log_softmax", "--k", "1", indices="too"), lsm.top_k_log_softmax(x, 1, axis), strict=True
    ):
        same(found, np.asarray(expected))


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype(work, small_blocks, rng, code):  # noqa: F811
    x = (rng.normal(size=(20, 3)) * 5).astype("i8" if code[0] in "IUB" else "f8").astype(DTYPES[code])
    save("x.safetensors", x=x)
    assert main(["apply", "x.safetensors", "y.safetensors"]) == 0
    same(load("y.safetensors")["x"], lsm.log_softmax(x))


def test_bfloat16_without_ml_dtypes(work, rng):  # noqa: F811
    save("x.safetensors", x=rng.normal(size=(20, 3)).astype(ml_dtypes.bfloat16))
    assert main(["apply", "x.safetensors", "y.npy", "--dtype", "float32"]) == 0
    code, args = "sys.modules['ml_dtypes'] = None; _apply.BLOCK_BYTES = 64", ("apply", "x.safetensors", "z.npy")
    said = drive(code, *args).communicate(timeout=60)[1].decode()
    assert said.endswith("NumPy has bfloat16 only with ml_dtypes: python -m pip install 'lsm-softmax[bfloat16]'\n")
    assert not Path("z.npy").exists()
    assert drive(code, *args, "--dtype", "float32").communicate(timeout=60) == (None, b"")
    same(np.load("z.npy"), np.load("y.npy"))


def test_bfloat16_of_other_formats(work, capsys):  # noqa: F811
    x = np.ones((4, 3), ml_dtypes.bfloat16)
    save("x.safetensors", x=x)
    np.save("w.npy", np.ones((4, 3), np.float32))
    line = refused(capsys, "apply", "x.safetensors", "y.npy")
    assert ".npy files cannot store bfloat16; pass --dtype float32, which represents it exactly" in line
    assert main(["apply", "x.safetensors", "y.npy", "--dtype", "float32"]) == 0
    same(np.load("y.npy"), lsm.log_softmax(x, dtype="float32"))
    assert main(["apply", "w.npy", "y.safetensors", "--dtype", "bfloat16"]) == 0
    same(load("y.safetensors")["log_softmax"], lsm.log_softmax(np.load("w.npy"), dtype="bfloat16"))
    np.save("x.npy", np.ones((4, 3), np.longdouble))
    assert "cannot store longdouble; pass --dtype float64" in refused(capsys, "apply", "x.npy", "y.safetensors")


def test_names(work, capsys, rng):  # noqa: F811
    x, i = rng.normal(size=(4, 3)), rng.integers(0, 3, 4)
    save("x.safetensors", logits=x, tokens=i)
    assert main(["apply", "x.safetensors", "y.safetensors", "--path", "logits"]) == 0
    same(load("y.safetensors")["logits"], lsm.log_softmax(x))
    take = "--op take_log_softmax --path logits --index x.safetensors --index-path"
    assert main(["apply", "x.safetensors", "y.safetensors", *take.split(), "tokens", "--name", "s/\u5c71"]) == 0
    (name,) = found = load("y.safetensors")
    assert name == "s/\u5c71"
    same(found[name], lsm.take_log_softmax(x, i))
    said = "contains 2 arrays; pass --path with one of 'logits', 'tokens'"
    assert said in refused(capsys, "apply", "x.safetensors", "z.npy")
    said = "contains no array 'more'; pass --index-path with one of 'logits', 'tokens'"
    assert said in refused(capsys, "apply", "x.safetensors", "z.npy", *take.split(), "more")
    save("none.safetensors")
    assert "contains no array" in refused(capsys, "apply", "none.safetensors", "z.npy")
    np.save("x.npy", x)
    assert "leave out --path" in refused(capsys, "apply", "x.npy", "z.npy", "--path", "x")
    assert not (work / "z.npy").exists()


def test_a_file_of_several_tensors_is_not_replaced(work, capsys):  # noqa: F811
    x = np.ones((4, 3))
    save("x.safetensors", a=x, b=x)
    before = (work / "x.safetensors").read_bytes()
    line = refused(capsys, "apply", "x.safetensors", "x.safetensors", "--path", "a")
    assert "contains 2 arrays, such as 'a', which would be lost" in line
    assert (work / "x.safetensors").read_bytes() == before
    save("x.safetensors", a=x)
    assert main(["apply", "x.safetensors", "x.safetensors"]) == 0
    same(load("x.safetensors")["a"], lsm.log_softmax(x))
    (work / "y.safetensors").write_bytes(b"anything else")
    assert main(["apply", "x.safetensors", "y.safetensors"]) == 0


@pytest.mark.parametrize("target", ["fifo.safetensors", "d.safetensors", "missing/y.safetensors", "loop.safetensors"])
def test_targets_that_are_no_file(work, capsys, target):  # noqa: F811
    np.save("x.npy", np.ones((4, 3)))
    os.mkfifo("fifo.safetensors")
    (work / "d.safetensors").mkdir()
    (work / "loop.safetensors").symlink_to("loop.safetensors")
    before = sorted(work.rglob("*"))
    assert repr(target) in refused(capsys, "apply", "x.npy", target)
    assert sorted(work.rglob("*")) == before


def tensor(shape=(3,), span=(0, 12), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


HOSTILE = {
    "empty": (b"", "header"),
    "short": (b"\x02\0\0", "header"),
    "length only": (bytes(8), "header"),
    "huge length": (b"\xff" * 8 + b"{}", "header"),
    "length beyond the file": (b"\x09" + bytes(7) + b"{}", "header"),
    "no JSON": (contents(b"{nonsense}"), "header"),
    "no text": (contents(b'{"\xff": 1}'), "header"),
    "nested": (contents(b'{"a":' * 9000 + b"1" + b"}" * 9000), "header"),
    "long int": (contents(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"), "header"),
    "a list": (contents([1, 2]), "not a JSON object"),
    "a number for a tensor": (contents({"a": 7}), "header"),
    "a key is missing": (contents({"a": {"dtype": "F32", "shape": [3]}}, bytes(12)), "data_offsets"),
    "twice": (contents(b'{"a": 1, "a": 1}'), "a key is repeated"),
    "twice within": (contents(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "a key is repeated"),
    "negative": (contents({"a": tensor((-3,))}, bytes(12)), "shape [-3]"),
    "two negatives": (contents({"a": tensor((-3, -1))}, bytes(12)), "shape [-3, -1]"),
    "a fraction": (contents({"a": tensor((3.0,))}, bytes(12)), "shape [3.0]"),
    "true": (contents({"a": tensor((True, 3))}, bytes(12)), "shape [True, 3]"),
    "no shape": (contents({"a": tensor() | {"shape": "3"}}, bytes(12)), "header"),
    "no dtype": (contents({"a": tensor(dtype=None)}, bytes(12)), "header"),
    "negative offset": (contents({"a": tensor(span=(-12, 0))}, bytes(12)), "data_offsets [-12, 0]"),
    "one offset": (contents({"a": tensor(span=(0,))}, bytes(12)), "data_offsets [0]"),
    "backwards": (contents({"a": tensor(span=(0, 12)), "b": tensor(span=(12, 0))}, bytes(12)), "lies from 12 to 0"),
    "overlap": (contents({"a": tensor(), "b": tensor(span=(8, 20))}, bytes(20)), "lies from 8 to 20"),
    "the same place": (contents({"a": tensor(), "b": tensor()}, bytes(12)), "lies from 0 to 12"),
    "a gap": (contents({"a": tensor(), "b": tensor(span=(16, 28))}, bytes(28)), "lies from 16 to 28"),
    "a gap at the start": (contents({"a": tensor(span=(4, 16))}, bytes(16)), "lies from 4 to 16"),
    "too many bytes": (contents({"a": tensor(span=(0, 16))}, bytes(16)), "take 12 bytes, but it has 16"),
    "too few bytes": (contents({"a": tensor(span=(0, 8))}, bytes(8)), "take 12 bytes, but it has 8"),
    "huge": (contents({"a": tensor((2**62, 4))}, bytes(12)), "impossible shape"),
    "empty and huge": (contents({"a": tensor((0, 2**70), (0, 0))}), "impossible shape"),
    "many axes": (contents({"a": tensor((1,) * 70, (0, 4))}, bytes(4)), "impossible shape"),
    "cut short": (contents({"a": tensor()}, bytes(11)), "is truncated"),
    "no data": (contents({"a": tensor()}), "is truncated"),
    "bytes after the end": (contents({"a": tensor()}, bytes(13)), "is damaged"),
    "8 bits": (contents({"a": tensor(dtype="F8_E4M3")}, bytes(12)), "dtype F8_E4M3; accepted: F64, F32"),
    "long dtype": (contents({"a": tensor(dtype="F" * 9000)}, bytes(12)), "dtype"),
    "many": (contents({f"{'n' * 100}{i}": tensor((0,), (0, 0)) for i in range(99)}), "99 arrays; pass --path with"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(work, capsys, case):  # noqa: F811
    data, said = HOSTILE[case]
    (work / "x.safetensors").write_bytes(data)
    line = refused(capsys, "apply", "x.safetensors", "y.npy")
    assert "'x.safetensors'" in line
    assert said in line
    assert len(line) < 600
    assert [path.name for path in work.iterdir()] == ["x.safetensors"]


def test_a_header_beyond_the_limit_is_not_read(work, capsys):  # noqa: F811
    with open("x.safetensors", "wb") as file:  # noqa: PTH123
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        assert "its length is 100000001 bytes" in refused(capsys, "apply", "x.safetensors", "y.npy")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_padding_metadata_and_order_in_the_file(work, rng):  # noqa: F811
    x = rng.normal(size=(4, 3)).astype(np.float32)
    header = {"b": tensor((4, 3), (12, 60)), "__metadata__": {"any": "thing"}, "a": tensor()}
    (work / "x.safetensors").write_bytes(contents(json.dumps(header).encode() + b" " * 5, bytes(12) + x.tobytes()))
    assert main(["apply", "x.safetensors", "y.npy", "--path", "b"]) == 0
    same(np.load("y.npy"), lsm.log_softmax(x))


def test_memory_does_not_grow_with_the_file(work, monkeypatch):  # noqa: F811
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 2**20)
    save("x.safetensors", x=np.ones((1024, 8192), np.float32))  # 32 MiB
    main(["apply", "x.safetensors", "y.safetensors"])  # whatever is made once
    tracemalloc.start()
    try:
        assert main(["apply", "x.safetensors", "y.safetensors"]) == 0
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_a_disk_that_is_full(work):  # noqa: F811
    save("x.safetensors", x=np.ones((1000, 100)))
    (work / "y.safetensors").write_bytes(b"old")
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); _apply.BLOCK_BYTES = 8000"
    process = drive(code, "apply", "x.safetensors", "y.safetensors")
    assert os.strerror(errno.EFBIG) in process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1
    assert {path.name for path in work.iterdir()} == {"x.safetensors", "y.safetensors"}
    assert (work / "y.safetensors").read_bytes() == b"old"


def test_an_input_that_becomes_shorter(work, small_blocks, monkeypatch, capsys):  # noqa: F811
    save("x.safetensors", x=np.ones((2000, 4)))
    original, calls = lsm.log_softmax, []

    def shorten(x, **options):
        calls.append(x)
        if len(calls) == 3:
            os.truncate("x.safetensors", 1000)
        return original(x, **options)

    monkeypatch.setattr(lsm, "log_softmax", shorten)
    assert main(["apply", "x.safetensors", "y.npy"]) == 1
    said = "lsm: error: 'x.safetensors', tensor 'x' was truncated while it was being read\n"
    assert capsys.readouterr().err == said
    assert [path.name for path in work.iterdir()] == ["x.safetensors"]


def test_kill_leaves_the_old_result(work):  # noqa: F811
    save("x.safetensors", x=np.ones((20_000, 50)))
    (work / "y.safetensors").write_bytes(b"old")
    process = drive(SLOW, "apply", "x.safetensors", "y.safetensors")
    wait_until(lambda: has_begun(work), process)
    process.kill()
    process.communicate(timeout=30)
    assert (work / "y.safetensors").read_bytes() == b"old"


# How a format is chosen


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("x.npy y.npz", "'y.npz': an .npz archive cannot be written in blocks; pass a name that ends in .npy, .safet"),
        ("x.npy y.pt", "'y.pt': no format has this suffix; pass a name that ends in .npy, .safetensors, .zarr, .h5, "),
        ("x.npy y.pt", "or --format with one of npy, safetensors, zarr, hdf5"),
        ("x.npy y.npy --format csv", "--format: invalid choice: 'csv'"),
        ("x.npy y.npy --name y", "--name names an array in .safetensors, HDF5 or Zarr"),
        ("x.npy y.safetensors --resume", "--resume is for results in Zarr; safetensors files are written as a whole"),
        ("x.npy y.zarr --dtype bfloat16", "--dtype: .zarr files cannot store bfloat16; pass --dtype float32"),
    ],
)
def test_formats_and_options_that_are_refused(work, capsys, args, said):  # noqa: F811
    np.save("x.npy", np.ones((4, 3)))
    assert main(["apply", *args.split()]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in work.iterdir()] == ["x.npy"]


def test_inputs_are_known_by_their_contents(work, rng):  # noqa: F811
    x = rng.normal(size=(4, 3))
    save("a", x=x)
    with open("b.safetensors", "wb") as file:  # noqa: PTH123
        np.save(file, x)
    for source in ("a", "b.safetensors"):
        assert main(["apply", source, "y.bin", "--format", "safetensors"]) == 0
        same(*load("y.bin").values(), lsm.log_softmax(x))
    assert main(["apply", "a", "y"]) == 0
    same(np.load("y"), lsm.log_softmax(x))


@pytest.mark.parametrize(("library", "extra", "target"), [("zarr", "zarr", "y.zarr"), ("h5py", "hdf5", "y.h5")])
def test_a_library_that_is_missing(work, library, extra, target):  # noqa: F811
    np.save("x.npy", np.ones((4, 3)))
    process = drive(f"sys.modules[{library!r}] = None", "apply", "x.npy", target)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 2
    assert said.startswith(f"lsm: error: '{target}': {library} is needed (")
    assert said.endswith(f": python -m pip install 'lsm-softmax[{extra}]'\n")
    assert [path.name for path in work.iterdir()] == ["x.npy"]
