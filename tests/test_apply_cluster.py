"""`lsm apply --scheduler` with a real cluster: the bits of one process, whichever process dies; or one clear line.

Needs the extra `zoo`, as test_zoo.py; conftest.py leaves this file out where one of its libraries is not installed.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from test_apply_stores import in_hdf5, in_zarr, read, state
from test_cli import drive, refused, wait_until, work  # noqa: F401 (fixture)
from test_cli_apply import same

import lsm
from lsm import _apply, _apply_cluster, _threads, cli
from lsm.cli import main

X = np.random.default_rng(0).normal(scale=3, size=(120, 50)).astype(np.float32)

# Two workers, and what the tests do to them: each line is evaluated.
CLUSTER = """
import os, resource, sys, time
import lsm
from distributed import Client, LocalCluster
from lsm._api import log_softmax
from lsm.engines import _dask_tasks

def be_slow(seconds, original=log_softmax):
    lsm.log_softmax = lambda x, *args, **options: (time.sleep(seconds), original(x, *args, **options))[1]

def limit_files(n_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))

def set_version(version):
    _dask_tasks.__version__ = version

def protect(is_protected, access=os.access):
    os.access = (lambda *args, **options: False) if is_protected else access

def count_tasks(dask_scheduler):
    return len(dask_scheduler.tasks)

if __name__ == "__main__":
    options = {"threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        print(cluster.scheduler_address, flush=True)
        for line in sys.stdin:
            print(repr(eval(line)), flush=True)
"""


class Cluster:
    """The process that has the scheduler, which starts the workers."""

    def __init__(self, folder):
        (folder / "cluster.py").write_text(CLUSTER)
        command = [sys.executable, "-W", "ignore", str(folder / "cluster.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, cwd=folder, text=True, stderr=log, **pipes)
        self.address = self.process.stdout.readline().strip()
        assert self.address, (folder / "log").read_text()

    def ask(self, code):
        """What the code gives there."""
        print(code, file=self.process.stdin, flush=True)
        return eval(self.process.stdout.readline())

    @contextmanager
    def with_workers(self, code, back, which=None):
        """Run code on all workers or one, and something else at the end."""
        which = "" if which is None else f", workers=[{which!r}]"
        self.ask(f"client.run({code}{which})")
        try:
            yield
        finally:
            self.ask(f"client.run({back}{which})")

    def is_idle(self):
        return self.ask("client.run_on_scheduler(count_tasks)") == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster for all tests of this file."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.process.communicate(timeout=60)


@pytest.fixture
def zarr_input(work, monkeypatch):  # noqa: F811
    """x.zarr, of 40 chunks of 3 frames, each of them a block."""
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 8)
    in_zarr("x", X, (3, 50))
    return work


def command(cluster, *args):
    return ["apply", "x.zarr", "y.zarr", "--scheduler", cluster.address, *args]


def chunks():
    """When each chunk of the result was written."""
    return {path: path.stat().st_mtime_ns for path in Path("y.zarr").glob("c/*/0")}


def begun(cluster, n_chunks):
    """The command in a process of its own, which has written so many chunks."""
    process = drive("_apply.BLOCK_BYTES = 8", *command(cluster))
    wait_until(lambda: len(chunks()) >= n_chunks, process)
    return process


def wait_for_idle(cluster):
    end = time.monotonic() + 30
    while not cluster.is_idle():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_every_function_gives_the_bits_of_one_process(cluster, zarr_input, monkeypatch):
    monkeypatch.setattr(_apply, "BLOCK_BYTES", 8 * 3 * 50)
    np.save("x.npy", X)
    in_hdf5("i", X.argmin(1))
    wide = np.random.default_rng(1).normal(size=(2, 40_000)).astype("f4")
    in_zarr("w", wide, (1, 16384))
    finished = []

    @contextmanager
    def progress(n_all):
        finished.clear()
        yield finished.append
        assert sum(finished) == n_all

    monkeypatch.setattr(cli, "_progress", progress)
    for args, x, expected in (
        ("x.zarr", X, lsm.log_softmax(X)),
        ("x.npy --op logsumexp", X, lsm.logsumexp(X, -1)),
        ("x.npy --op take_log_softmax --index i.h5", X, lsm.take_log_softmax(X, X.argmin(1))),
        ("x.zarr --op log_softmax_backward --output x.npy", X, lsm.log_softmax_backward(X, X)),
        ("w.zarr --op softmax --backend numpy", wide, lsm.softmax(wide, backend="numpy")),
    ):
        source, *more = args.split()
        assert main(["apply", source, "y.zarr", *more, "--scheduler", cluster.address]) == 0
        same(read("y.zarr"), expected)
        assert len(finished) == sum(path.is_file() for path in Path("y.zarr/c").rglob("*")) or x is wide
    top = main(["apply", "x.npy", "z.zarr", "--op=top_k_log_softmax", "--k=3", "--scheduler", cluster.address])
    assert top == 0
    same(read("z.zarr"), lsm.top_k_log_softmax(X, 3).values)
    same(read("z.indices.zarr"), lsm.top_k_log_softmax(X, 3).indices)
    assert cluster.is_idle()


@pytest.mark.parametrize("resumed_there", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_client_that_is_stopped_at_a_third(cluster, zarr_input, number, code, resumed_there):
    with cluster.with_workers("be_slow, 0.05", "be_slow, 0"):
        process = begun(cluster, 13)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1].decode()
        wait_for_idle(cluster)
    assert process.returncode == code
    if number == signal.SIGINT:
        resume = "'y.zarr' is incomplete; the same command with --resume completes it"
        assert said == f"lsm: error: stopped by SIGINT; {resume}\n"
    before = chunks()
    assert 13 <= len(before) < 40
    assert np.isnan(read("y.zarr")).any()
    args = command(cluster, "--resume")
    assert main(args if resumed_there else [*args[:3], "--resume"]) == 0
    after = chunks()
    assert len(after) == 40
    assert after | before == after
    same(read("y.zarr"), lsm.log_softmax(X))
    assert state("y.zarr")["complete"] is True


def test_a_run_that_was_begun_here_goes_on_there(cluster, zarr_input, monkeypatch):
    calls = []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) == 20:
            raise OSError("no more")
        return lsm._api.log_softmax(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lsm, "log_softmax", fail)
        assert main(["apply", "x.zarr", "y.zarr"]) == 1
    before = chunks()
    assert len(before) == 18  # the first call is on no frames
    assert main(command(cluster, "--resume")) == 0
    assert chunks() | before == chunks()
    same(read("y.zarr"), lsm.log_softmax(X))


def test_a_worker_that_is_killed(cluster, zarr_input):
    with cluster.with_workers("be_slow, 0.05", "be_slow, 0"):
        process = begun(cluster, 5)
        os.kill(max(cluster.ask("client.run(os.getpid)").values()), signal.SIGKILL)
        assert process.communicate(timeout=60)[1].decode() == ""
        assert process.returncode == 0
        cluster.ask("client.wait_for_workers(2)")
    same(read("y.zarr"), lsm.log_softmax(X))
    assert not list(zarr_input.rglob("*.partial"))


def test_a_disk_that_is_full_on_a_worker(cluster, zarr_input, capsys):
    worker = min(cluster.ask("client.run(os.getpid)"))
    with cluster.with_workers("limit_files, 100", "limit_files, -1", worker):
        assert main(command(cluster)) == 1
        wait_for_idle(cluster)
    said = capsys.readouterr().err
    assert said == (
        f"lsm: error: [Errno 27] File too large; on the worker {worker}; 'y.zarr' is incomplete; the same command "
        "with --resume completes it\n"
    )
    before = chunks()
    assert main(command(cluster, "--resume")) == 0
    assert chunks() | before == chunks()
    same(read("y.zarr"), lsm.log_softmax(X))


def test_files_that_a_worker_does_not_have(cluster, zarr_input, capsys):
    worker = min(cluster.ask("client.run(os.getpid)"))
    np.save("x.npy", X)
    here = "/proc/self/cwd/x.npy"  # which is in another directory for each process
    assert main(["apply", here, "y.zarr", "--scheduler", cluster.address]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lsm: error: '{here}' cannot be read: No such file or directory; on the worker tcp://")
    assert f"; {_apply_cluster.SHARED}; 'y.zarr' is incomplete" in said
    home = Path(cluster.ask(f"client.run(os.getcwd)[{worker!r}]"))
    for other, said in ((X[1:], "different array there, of shape (119, 50)"), (X + 1, "different file there, or was")):
        np.save(home / "x.npy", other)
        os.utime(home / "x.npy", (0, 0))
        assert main(["apply", here, "y.zarr", "--resume", "--scheduler", cluster.address]) == 2
        assert said in capsys.readouterr().err
    (home / "x.npy").unlink()
    with cluster.with_workers("protect, True", "protect, False", worker):
        line = refused(capsys, *command(cluster)[:2], "z.zarr", "--scheduler", cluster.address)
    place = f"{str(zarr_input / 'z.zarr')!r} is write-protected; on the worker {worker}; all workers need"
    assert f"'z.zarr' cannot be written: {place}" in line
    assert main(["apply", "x.zarr", "z.zarr", "--resume", "--scheduler", cluster.address]) == 0
    same(read("z.zarr"), lsm.log_softmax(X))


def test_a_worker_with_another_version(cluster, zarr_input, capsys):
    worker = max(cluster.ask("client.run(os.getpid)"))
    with cluster.with_workers("set_version, '0.0.1'", f"set_version, {lsm.__version__!r}", worker):
        line = refused(capsys, *command(cluster))
    assert f"has lsm 0.0.1, but lsm {lsm.__version__} made the graph" in line
    assert f"; on the worker {worker}; " in line
    assert not chunks()


def test_a_source_that_changed(cluster, zarr_input, capsys):
    worker = min(cluster.ask("client.run(os.getpid)"))
    with cluster.with_workers("limit_files, 100", "limit_files, -1", worker):
        assert main(command(cluster)) == 1
    capsys.readouterr()
    chunk = Path("x.zarr/c/2/0")
    os.utime(chunk, ns=(0, chunk.stat().st_mtime_ns + 10**9))
    assert "mtime of input 1 was" in refused(capsys, *command(cluster, "--resume"))


def test_other_results_than_zarr_are_refused(zarr_input, capsys):
    for target in ("y.npy", "y.h5", "y.safetensors", "y"):
        assert main(["apply", "x.zarr", target, "--scheduler", "tcp://127.0.0.1:1"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "--scheduler is for results in Zarr, the only format that several processes can write" in said
        assert "name OUT with the suffix .zarr, or leave out --scheduler" in said


def test_schedulers_that_are_not_there(zarr_input, capsys, monkeypatch):
    monkeypatch.setattr(_apply_cluster, "TIMEOUT", 1)
    start = time.monotonic()
    assert main(["apply", "x.zarr", "y.zarr", "--scheduler", "tcp://127.0.0.1:1"]) == 1
    assert time.monotonic() < start + 5
    said = capsys.readouterr().err
    assert said.startswith(
        "lsm: error: --scheduler: 'tcp://127.0.0.1:1' does not answer within 1 s; accepted: the addr"
    )
    for address in ("nothing", "ship://a:1", "tcp://127.0.0.1"):
        assert f"--scheduler: {address!r} is not an address" in refused(
            capsys, "apply", "x.zarr", "y.zarr", "--scheduler", address
        )
    assert not Path("y.zarr").exists()


def test_a_scheduler_without_workers(zarr_input, capsys, monkeypatch):
    monkeypatch.setattr(_apply_cluster, "TIMEOUT", 1)
    code = "from distributed import LocalCluster\nimport sys, time\n"
    code += "with LocalCluster(n_workers=0, dashboard_address=None) as c:\n"
    code += "    print(c.scheduler_address, flush=True)\n    sys.stdin.read()\n"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], text=True, **pipes) as process:
        address = process.stdout.readline().strip()
        assert main(["apply", "x.zarr", "y.zarr", "--scheduler", address]) == 1
        process.stdin.close()
    said = capsys.readouterr().err
    assert f"--scheduler: {address!r} has no workers after 1 s; start some, as by `dask worker {address}`" in said


def test_without_distributed(work):  # noqa: F811
    in_zarr("x", X)
    process = drive("sys.modules['distributed'] = None", "apply", "x.zarr", "y.zarr", "--scheduler", "tcp://a:1")
    said = process.communicate(timeout=60)[1].decode()
    assert "--scheduler: dask and distributed are needed" in said
    assert "python -m pip install 'lsm-softmax[dask]'" in said
    assert process.returncode == 2
    code = "import atexit; atexit.register(lambda: print({'dask', 'distributed'} & set(sys.modules), file=sys.stderr))"
    assert drive(code, "apply", "x.zarr", "y.zarr").communicate(timeout=60)[1].decode() == "set()\n"


def test_a_task_uses_one_thread_unless_the_process_has_set_more(monkeypatch):
    seen = []
    monkeypatch.setattr(_apply_cluster, "run_block", lambda *args: seen.append(lsm.get_num_threads()))
    call = _apply.Call("log_softmax", {"axis": 1, "backend": "cython"}, (1,), (2, 3), (1, 1), None)
    build = _apply_cluster.build_of(_apply_cluster.registry().get("cython").load())
    with lsm.num_threads(2):
        _apply_cluster.run_task(_apply_cluster.Stores(call, build, (), ()), ())
    monkeypatch.setattr(_threads, "_process_setting", 2)
    _apply_cluster.run_task(_apply_cluster.Stores(call, build, (), ()), ())
    assert seen == [1, min(2, os.cpu_count())]
