"""How many threads: where the number comes from, forks, and many Python threads at once."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import lsm
from lsm import _threads


def run(code, **env):
    """Run code in a fresh interpreter, with this environment on top."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LSM_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=clean | env, capture_output=True, text=True, timeout=60
    )


def told(**env):
    done = run("import lsm; print(lsm.get_num_threads())", **env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def told_after_use(**env):
    code = "import lsm; lsm.log_softmax([1.0]); print(lsm.get_num_threads())"
    done = run(code, **env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


N_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_sources_and_their_order():
    assert told() == told_after_use() == _threads.cpu_limit() <= N_CPUS
    for ask in (told, told_after_use):
        assert ask(OMP_NUM_THREADS="1") == 1
        assert ask(OMP_NUM_THREADS="1,2") == 1
        assert ask(LSM_NUM_THREADS="1") == 1
        assert ask(LSM_NUM_THREADS=str(N_CPUS), OMP_NUM_THREADS="1") == _threads.cpu_limit()
        assert ask(LSM_NUM_THREADS="1", OMP_NUM_THREADS="2") == 1
        assert ask(LSM_NUM_THREADS="100000") == _threads.cpu_limit()


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " 2"])
def test_a_count_that_is_not_understood(value):
    done = run("import lsm; lsm.get_num_threads()", LSM_NUM_THREADS=value)
    assert done.returncode != 0
    assert f"LSM_NUM_THREADS is {value!r}; accepted: a whole number from 1" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity_mask_is_obeyed():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import lsm; print(lsm.get_num_threads())"
    )
    assert run(code, LSM_NUM_THREADS="64").stdout.strip() == "1"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_a_mask_that_changes_is_obeyed_soon():
    code = """
import os, time, lsm
from lsm import _threads
lsm.set_num_threads(64)
_threads.end_region(_threads.begin_region(10**9))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(lsm.get_num_threads())
time.sleep(2 * _threads.LIMIT_HOLDS)
print(_threads.begin_region(10**9))
"""
    done = run(code)
    assert done.stdout.split() == ["1", "1"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quota(files, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _threads.cpu_limit(str(tmp_path)) == (limit or 64)


@pytest.fixture
def eight_processors(monkeypatch):
    """A machine with eight, as far as the counting goes."""
    monkeypatch.setattr(_threads, "cpu_limit", lambda: 8)
    monkeypatch.setattr(_threads, "_lately", _threads._Lately())
    monkeypatch.setattr(_threads, "_openmp_limit", 8)
    monkeypatch.setattr(_threads, "_chosen", None)


def test_set_and_context(eight_processors):
    lsm.set_num_threads(5)
    assert lsm.get_num_threads() == 5
    with lsm.num_threads(3):
        assert lsm.get_num_threads() == 3
        with lsm.num_threads(2):
            assert lsm.get_num_threads() == 2
        lsm.set_num_threads(6)
        assert lsm.get_num_threads() == 3
        seen = []
        thread = threading.Thread(target=lambda: seen.append(lsm.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [6]  # the context is this thread's own, the setting is everybody's
    assert lsm.get_num_threads() == 6
    two = lsm.num_threads(2)
    for _ in range(2):
        with two, two:
            assert lsm.get_num_threads() == 2
        assert lsm.get_num_threads() == 6
    with pytest.raises(KeyError), lsm.num_threads(2):
        raise KeyError
    assert lsm.get_num_threads() == 6
    lsm.set_num_threads(np.int64(99))
    assert lsm.get_num_threads() == 8


@pytest.mark.parametrize("wrong", [0, -3, 1.5, "2", None, True])
def test_counts_that_are_refused(wrong):
    for call in (lsm.set_num_threads, lambda n: lsm.num_threads(n).__enter__()):
        with pytest.raises((TypeError, ValueError), match="^n: .*accepted: a whole number from 1"):
            call(wrong)


def test_small_work_opens_no_parallel_region(eight_processors):
    with _threads.threads_for(_threads.MIN_PARALLEL_SIZE - 1) as n:
        assert n == 1
    with _threads.threads_for(_threads.MIN_PARALLEL_SIZE) as n:
        assert n == 8
        with _threads.threads_for(10**9) as inner:  # a region is open: whoever comes second works alone
            assert inner == 1
    with pytest.raises(KeyError), _threads.threads_for(10**9):
        raise KeyError
    with _threads.threads_for(10**9) as n:  # an error has not kept the region
        assert n == 8


FORK = """
import os, sys, numpy as np, lsm
x = np.random.default_rng(0).standard_normal((64, 5000)).astype("f4")
y = lsm.log_softmax(x)                      # a parallel region in the parent
dx = lsm.log_softmax_backward(x, y)
pid = os.fork()
if pid == 0:
    try:
        lsm.set_num_threads(4)
        same = (lsm.log_softmax(x) == y).all() and (lsm.log_softmax_backward(x, y) == dx).all()
        assert lsm.get_num_threads() == 1
        os._exit(0 if same else 3)
    except BaseException:
        os._exit(4)
_, status = os.waitpid(pid, 0)
assert (lsm.log_softmax(x) == y).all()      # and the parent goes on with all its threads
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_after_a_parallel_region():
    done = run(FORK, LSM_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


FORK_INSIDE = """
import multiprocessing, numpy as np, lsm
x = np.random.default_rng(0).standard_normal((64, 5000))
def work(seed):
    return float(lsm.log_softmax(x + seed).sum())
if __name__ == "__main__":
    lsm.log_softmax(x)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert len(pool.map(work, range(8))) == 8
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_multiprocessing_pool_by_fork(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(FORK_INSIDE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_many_python_threads_at_once(backend, rng):
    inputs = [(rng.standard_normal((40, 3000)) * 4).astype(t) for t in ("f4", "f8", "f4", "f8")]
    serial = [lsm.log_softmax(x, backend=backend) for x in inputs]

    def work(i):
        x, y = inputs[i % 4], serial[i % 4]
        out = np.empty_like(x)
        with lsm.num_threads(1 + i % 3):
            lsm.log_softmax(x, out=out, backend=backend)
            dx = lsm.log_softmax_backward(x, out, backend=backend)
        return (out == y).all() and (dx == lsm.log_softmax_backward(x, y, backend=backend)).all()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


def test_first_calls_from_many_threads_at_once():
    code = """
import threading, numpy as np
import lsm
barrier = threading.Barrier(16)
errors = []
def work(i):
    barrier.wait()
    try:
        lsm.log_softmax(np.zeros(5, ["f2", "f4", "f8", "g"][i % 4]))
        lsm.list_backends()
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not errors, errors
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


POLICIES = """
import sys, threading
import numpy as np
is_enabled = getattr(sys, "_is_gil_enabled", lambda: True)
was_enabled = is_enabled()
import lsm
rng = np.random.default_rng(0)
shapes = ((1, 10), (32, 10), (10, 500), (64, 5000), (3, 100_000))
cases = [(rng.standard_normal(shape) * 4).astype(dtype) for shape in shapes for dtype in ("f2", "f4", "f8")]
expected = [lsm.log_softmax(x, backend="cython") for x in cases]
assert is_enabled() == was_enabled, "the kernels have brought the GIL back"
failures = []

def work(seed):
    rng = np.random.default_rng(seed)
    try:
        for round in range(60):
            i = rng.integers(len(cases))
            with lsm.num_threads(int(rng.integers(1, 4))), lsm.use_backend(("cython", "numpy")[round % 2]):
                lsm.log_softmax([1.0, 2.0])
                y = lsm.log_softmax(cases[i], backend="cython")
            assert (y == expected[i]).all() and (lsm.log_softmax(cases[i]) == expected[i]).all()
            if round % 20 == seed:
                lsm.refresh_backends()
                lsm.set_default_backend(None)
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(failures), *failures)
"""


def test_policies_of_many_threads_at_once():
    """Also without the GIL, where Python has none: see docs/development.md."""
    done = run(POLICIES)
    assert done.stdout.split()[:1] == ["0"], done.stdout + done.stderr
