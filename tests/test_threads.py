"""How many threads: where the number comes from, forks, and many Python threads at once."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import lsm
from lsm import _cgroup, _threads


def run(code, **env):
    """Run code in a fresh interpreter, with this environment on top."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LSM_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=clean | env, capture_output=True, text=True, timeout=60
    )


def n_threads(**env):
    done = run("import lsm; print(lsm.get_num_threads())", **env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def n_threads_after_use(**env):
    code = "import lsm; lsm.log_softmax([1.0]); print(lsm.get_num_threads())"
    done = run(code, **env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


N_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_sources_and_their_order():
    assert n_threads() == n_threads_after_use() == _threads.cpu_limit() <= N_CPUS
    for ask in (n_threads, n_threads_after_use):
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
    assert f"LSM_NUM_THREADS is {value!r}; accepted: a positive integer" in done.stderr


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
_threads.count_threads(10**9)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(lsm.get_num_threads())
time.sleep(2 * _threads.AFFINITY_TTL_SECONDS)
print(_threads.count_threads(10**9))
"""
    done = run(code)
    assert done.stdout.split() == ["1", "1"], done.stdout + done.stderr


V1 = "32 31 0:29 {root} {at}/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "25 20 0:22 {root} {at} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
MEMBER_1, MEMBER_2 = "4:memory:/elsewhere\n3:cpu,cpuacct:{path}\n0::/", "0::{path}"


def quota(at, mount, member, path, files, root="/"):
    """What `cgroup_quota` makes of such a system, whose cgroups are mounted at `at`."""
    for name, text in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)
    escaped = str(at).replace(" ", "\\040")
    (at / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/vda rw\n" + mount.format(root=root, at=escaped) + "\n")
    (at / "cgroup").write_text(member.format(path=path) + "\n")
    return _cgroup.cgroup_quota(str(at))


@pytest.mark.parametrize(
    ("path", "quotas", "expected"),
    [
        ("/", {"": "150000 100000"}, 2),
        ("/", {"": "50000 100000"}, 1),
        ("/", {"": "max 100000"}, None),
        ("/", {"": "nonsense"}, None),
        ("/", {"": ""}, None),
        ("/", {}, None),
        ("/user.slice/mine", {"user.slice/mine": "300000 100000"}, 3),
        ("/user.slice/mine", {"user.slice": "200000 100000", "user.slice/mine": "300000 100000"}, 2),
        ("/user.slice/mine", {"user.slice": "400000 100000", "user.slice/mine": "max 100000"}, 4),
        ("/mine", {"mine": "max 100000", "mine/below": "100000 100000", "other": "100000 100000"}, None),
        ("/../other", {"": "500000 100000", "other": "100000 100000"}, 5),  # it lies beyond this cgroup namespace
    ],
)
def test_quotas_of_the_own_cgroup_and_its_parents(path, quotas, expected, tmp_path):
    of_2 = {f"{folder}/cpu.max".lstrip("/"): f"{text}\n" for folder, text in quotas.items()}
    assert quota(tmp_path / "2", V2, MEMBER_2, path, {"readme": ""} | of_2) == expected
    of_1 = {"readme": ""}
    for folder, text in quotas.items():
        for name, value in zip(("quota", "period"), (*text.replace("max", "-1").split(), "", ""), strict=False):
            of_1[f"cpu/{folder}/cpu.cfs_{name}_us"] = f"{value}\n"
    assert quota(tmp_path / "1", V1, MEMBER_1, path, of_1) == expected


def test_quotas_in_a_container_that_shares_the_hosts_cgroups(tmp_path):
    """`docker --cgroupns=host`: the mount shows the container's own part of the hierarchy."""
    files = {"cpu.max": "200000 100000\n", "a b/cpu.max": "100000 100000\n"}
    assert quota(tmp_path / "a b", V2, MEMBER_2, "/docker/x", files, root="/docker/x") == 2
    assert quota(tmp_path / "c", V2, MEMBER_2, "/docker/x/a b", files, root="/docker/x") == 1
    assert _cgroup.cgroup_quota(str(tmp_path / "no proc here")) is None


def test_the_quota_of_a_real_cgroup():
    """Where this test may make one; the test above has the rest."""
    code = """
import os, pathlib, time
import lsm
from lsm import _threads
lsm.log_softmax([1.0])
before = lsm.get_num_threads(), _threads.count_threads(10**9)
version_2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
with open("/proc/self/cgroup") as lines:
    memberships = [line.strip().split(":", 2) for line in lines]
(own,) = [path for _, names, path in memberships if ("" if version_2 else "cpu") in names.split(",")]
own = pathlib.Path("/sys/fs/cgroup" if version_2 else "/sys/fs/cgroup/cpu", own.lstrip("/"))
new = own / f"lsm-{os.getpid()}"
try:
    new.mkdir()
    files = {"cpu.max": "50000 100000"} if version_2 else {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    for name, value in files.items():
        (new / name).write_text(value)
    (new / "cgroup.procs").write_text(str(os.getpid()))
except OSError as error:
    print("no cgroup can be made here:", error)
else:
    time.sleep(_threads.QUOTA_TTL_SECONDS + 0.1)
    now = lsm.get_num_threads(), _threads.count_threads(10**9)
    (own / "cgroup.procs").write_text(str(os.getpid()))
    assert now == (1, 1), (before, now)
finally:
    if new.is_dir():
        new.rmdir()
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def eight_processors(monkeypatch):
    """A machine with eight, as far as the counting goes."""
    monkeypatch.setattr(_threads, "cgroup_quota", lambda: None)
    monkeypatch.setattr(_threads, "_limit_cache", _threads.ThreadLimitCache())
    monkeypatch.setattr(_threads, "_openmp", _threads._OpenMP(lambda: 8, lambda: 8, 8))
    monkeypatch.setattr(_threads, "_process_setting", None)


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
        with pytest.raises((TypeError, ValueError), match="^n: .*accepted: a positive integer"):
            call(wrong)


def test_small_work_takes_one_thread(eight_processors):
    assert _threads.count_threads(_threads.MIN_PARALLEL_ELEMENTS - 1) == 1
    assert _threads.count_threads(_threads.MIN_PARALLEL_ELEMENTS) == 8
    with lsm.num_threads(3):
        assert _threads.count_threads(10**9) == 3


def test_limits_that_openmp_is_given_while_the_program_runs(eight_processors, monkeypatch):
    """They hold for what is set for the process; a `num_threads` block is nearer to the call."""
    omp_max = [8]
    monkeypatch.setattr(_threads, "_openmp", _threads._OpenMP(lambda: omp_max[0], lambda: 8, 8))
    for omp_max[0], chosen, expected in ((8, None, 8), (3, None, 3), (3, 5, 3), (5, 3, 3), (64, None, 8), (64, 6, 6)):
        monkeypatch.setattr(_threads, "_process_setting", chosen)
        assert lsm.get_num_threads() == _threads.count_threads(10**9) == expected
        with lsm.num_threads(2):
            assert lsm.get_num_threads() == _threads.count_threads(10**9) == 2
    # OMP_NUM_THREADS=2 is no limit, but a default, which `set_num_threads` and LSM_NUM_THREADS replace.
    omp_max = [2]
    monkeypatch.setattr(_threads, "_openmp", _threads._OpenMP(lambda: omp_max[0], lambda: 8, 2))
    for omp_max[0], chosen, expected in ((2, None, 2), (2, 5, 5), (1, 5, 1)):
        monkeypatch.setattr(_threads, "_process_setting", chosen)
        assert lsm.get_num_threads() == _threads.count_threads(10**9) == expected


def test_threadpoolctl_limits_lsm():
    """By OpenMP, which it finds; in this thread, as it does for others."""
    code = """
import lsm, numpy as np, threadpoolctl
from lsm import _threads
x = np.zeros((300, 1000), "f4")
with threadpoolctl.threadpool_limits(1):  # before the kernels are loaded, which changes nothing
    lsm.log_softmax(x)
before = lsm.get_num_threads()
for _ in range(2):
    with threadpoolctl.threadpool_limits(1):
        assert lsm.get_num_threads() == _threads.count_threads(x.size) == 1
    assert lsm.get_num_threads() == _threads.count_threads(x.size) == before
    lsm.set_num_threads(before)
print(before)
"""
    done = run(code)
    assert done.stdout.split() == [str(n_threads_after_use())], done.stderr
    assert run(code, LSM_NUM_THREADS=str(N_CPUS)).returncode == 0


@pytest.mark.parametrize(
    "env",
    [
        {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
        {"OMP_PROC_BIND": "true"},
        {"GOMP_CPU_AFFINITY": f"0-{os.cpu_count() - 1}"},
    ],
    ids=lambda env: next(iter(env)),
)
def test_a_thread_that_openmp_has_bound_does_not_count_for_the_process(env):
    assert n_threads(**env) == n_threads_after_use(**env) == n_threads_after_use()


REGION = """
import os, resource, threading
import numpy as np
import lsm
from lsm import _threads
x = np.random.default_rng(0).standard_normal((300, 1000)).astype("f4")
y, out = lsm.log_softmax(x[:3]), np.empty_like(x)
{limit}
try:
    threading.Thread(target=lambda: None).start()
except RuntimeError:
    pass
else:
    raise SystemExit("the limit does not hold")
for _ in range(3):
    lsm.log_softmax(x, out=out)
    lsm.log_softmax_backward(x, out, out=out)
    lsm.log_softmax(x, out=out)
assert (out[:3] == y).all()
print("served")
"""
MEMORY = """
with open("/proc/self/statm") as pages:
    size = int(pages.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {n_bytes}, resource.RLIM_INFINITY))  # less than the stack of a thread
"""
LARGE = MEMORY.format(n_bytes=2**27) + "threading.stack_size(2**30)\n"
LIMITS = {
    "memory": MEMORY.format(n_bytes=2**21),
    "processes": """
if os.getuid() == 0:  # for whom this limit does not hold
    os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="these limits are Linux's")
@pytest.mark.parametrize("limit", LIMITS)
def test_a_call_that_can_start_no_thread_is_served_by_one(limit):
    done = run(REGION.format(limit=LIMITS[limit]), LSM_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1")
    assert done.stdout.split() == ["served"], done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="these limits are Linux's")
@pytest.mark.parametrize(
    "env",
    [{"OMP_STACKSIZE": "1G"}, {"GOMP_STACKSIZE": " 1024 m "}, {"OMP_STACKSIZE": "1048576", "GOMP_STACKSIZE": "64"}],
    ids=str,
)
def test_openmps_stacks_may_be_larger_than_others(env):
    done = run(REGION.format(limit=LARGE), LSM_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1", **env)
    assert done.stdout.split() == ["served"], done.stdout + done.stderr
    done = run(LEVEL + "print(kernels.region_threads(2))", LSM_NUM_THREADS="2", **env)
    assert done.stdout.split() == ["2"], done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
@pytest.mark.parametrize("value", ["", "64x", "no", "99999999999999999999"])
def test_a_stack_size_that_is_none_is_ignored(value):
    done = run(LEVEL + "print(kernels.region_threads(2))", OMP_STACKSIZE=value, GOMP_STACKSIZE="4 M")
    assert done.stdout.split() == ["2"], done.stdout + done.stderr


LEVEL = """
from importlib import import_module
from lsm.backends import cython_
kernels = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
"""

FORK = """
import os, signal, sys, numpy as np, lsm
x = np.random.default_rng(0).standard_normal((64, 5000)).astype("f4")
y = lsm.log_softmax(x)                      # a parallel region in the parent
dx = lsm.log_softmax_backward(x, y)
pid = {fork}
if pid == 0:
    try:
        signal.alarm(20)
        lsm.set_num_threads(4)
        same = (lsm.log_softmax(x) == y).all() and (lsm.log_softmax_backward(x, y) == dx).all()
        assert {is_serial}
        os._exit(0 if same else 3)
    except BaseException:
        os._exit(4)
_, status = os.waitpid(pid, 0)
assert (lsm.log_softmax(x) == y).all()      # and the parent goes on with all its threads
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    ("fork", "is_serial"),
    [
        ("os.fork()", "lsm.get_num_threads() == 1"),
        ("__import__('ctypes').PyDLL(None).fork()", "True"),  # of which Python hears nothing
    ],
)
def test_fork_after_a_parallel_region(fork, is_serial):
    done = run(FORK.format(fork=fork, is_serial=is_serial), LSM_NUM_THREADS="2")
    assert done.returncode == 0, (done.returncode, done.stderr)


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
    """Also without the GIL, where Python has none: see CONTRIBUTING.md."""
    done = run(POLICIES)
    assert done.stdout.split()[:1] == ["0"], done.stdout + done.stderr


@pytest.mark.parametrize("env", [{"OMP_PLACES": "{0}"}, {"GOMP_CPU_AFFINITY": "0"}], ids=lambda env: next(iter(env)))
def test_threads_are_no_more_than_the_processors_of_the_places(env):
    """On one processor two threads would wait for each other: a call of 0.1 ms took 30."""
    assert n_threads_after_use(**env) == 1


def test_lines_of_another_form_are_no_quota(tmp_path):
    for name, text in (("mountinfo", "nonsense\n\n"), ("cgroup", "nonsense\n")):
        (tmp_path / "mountinfo").write_text(V2.format(root="/", at=tmp_path) + "\n")
        (tmp_path / "cgroup").write_text("0::/\n")
        (tmp_path / name).write_text(text)
        assert _cgroup.cgroup_quota(str(tmp_path)) is None


def test_small_calls_do_not_read_the_limits_of_the_process(monkeypatch, rng):
    """Reading them takes longer than a small call."""
    x, labels = rng.standard_normal((32, 10)).astype(np.float32), np.arange(32) % 10
    mask = x < 1
    monkeypatch.setattr(_threads, "cgroup_quota", lambda: pytest.fail("read"))
    monkeypatch.setattr(_threads, "_limit_cache", _threads.ThreadLimitCache())
    lsm.log_softmax(x, where=mask), lsm.log_softmax(x, temperature=2.0), lsm.logsumexp(x, b=x)
    lsm.take_log_softmax(x, labels), lsm.top_k_log_softmax(x, 3), lsm.entropy(x), lsm.kl_divergence(x, x)
    lsm.cross_entropy(x, labels), lsm.cross_entropy_value_and_grad(x, labels, label_smoothing=0.1)
