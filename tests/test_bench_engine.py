"""The engine of benchmark runs: who takes part, what is checked, what is kept; how fast anything is, no test tells."""

import json
import math
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

import lsm
from lsm._threads import cpu_limit
from lsm.bench import contestants, errors, files, machine, memory, of_lsm, of_numpy, row, timing, workloads
from lsm.bench.contestant import NEW, OUT, Absent, Contestant
from lsm.bench.data import Data
from lsm.bench.errors import Reference
from lsm.bench.limits import LIMITS, is_out_of_cache, limit
from lsm.bench.machine import caches, last_cache
from lsm.bench.options import DTYPES, KINDS_OF_DATA, OPS, Options
from lsm.bench.result import Entry, Result, from_json, load
from lsm.bench.row import Effort
from lsm.bench.run import run
from lsm.bench.threads import check_threads, equal_threads
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, WORKLOADS, Case, cases

SMALL = {"shape": (4, 6), "ops": (FORWARD,), "rounds": 3, "set": "quick", "threads": (1,)}
LSM = ("lsm cython", "lsm numpy")
SHAPES = [((1500, 32), -1, "C"), ((5, 7), -1, "C"), ((3, 8, 2, 2), 1, "C"), ((6, 4), 0, "F"), ((9,), 0, "C")]


@pytest.fixture
def plant(monkeypatch):
    """Add a contestant that is called "planted" and computes f(x, out, call number), for one way."""

    def add(function, way=NEW, needs=()):
        calls = []

        def call(x, out):
            calls.append(1)
            return function(x, out, len(calls))

        def make(case, data, n_threads):
            names = {"call": call, "x": data.x, "out": data.out}
            yield Contestant("planted", "planted", way, "call(x, out)", names)

        monkeypatch.setitem(contestants.FAMILIES, "planted", contestants.Family(make, needs))

    return add


def entry(found, name, way=NEW):
    (one,) = [e for e in found.contestants if (e.name, e.way) == (name, way)]
    return one


class Diary:
    """A progress that remembers what it was told, and a save that remembers what it was given."""

    def __init__(self):
        self.told, self.saved = [], []

    def started(self, header, n_rows):
        self.told.append(n_rows)

    def row_started(self, label):
        self.told.append(label)

    def row_done(self, found):
        self.told.append(found)

    def save(self, result):
        self.saved.append(result.to_json())


def test_a_row_has_every_figure():
    diary = Diary()
    result = run(Options(**SMALL | {"ops": OPS}, contestants=(*LSM, "numpy idiom")), diary, diary.save)
    assert [found.op for found in result.rows] == list(OPS)
    assert result.header.threads == [1] and "lsm: 1" in result.header.openmp and result.header.rounds == 3
    assert not result.interrupted
    for found in result.rows:
        assert (found.workload, found.shape, found.axis, found.threads) == ("own", [4, 6], -1, 1)
        assert found.n_checked_frames == found.n_frames == 4
        assert found.bytes == {FORWARD: 2, BACKWARD: 3, BOTH: 5}[found.op] * 4 * 6 * 4
        assert found.limit is None and all(e.share is None for e in found.contestants)  # within the caches
        names = [(e.name, e.way) for e in found.contestants]
        assert names == [(name, way) for name in LSM for way in (OUT, NEW)] + [("numpy idiom", NEW)]
        for e in found.contestants:
            assert len(e.turns_us) == 3 and e.p20_us <= e.us <= e.p80_us and e.is_ranked
            assert e.first_call_ms > 0 and e.max_ulp >= 0 and e.gb_s == pytest.approx(found.bytes / e.us / 1e3)
        assert entry(found, "lsm cython", OUT).ratio == 1
        assert entry(found, "lsm cython", OUT).bound_ulp == (4 if found.op != BOTH else pytest.approx(12.4))
    assert (
        diary.told[0] == 3 and diary.told[1] == "own 4x6 float32 forward, 1 thread" and diary.told[2] is result.rows[0]
    )
    assert [len(from_json(text).rows) for text in diary.saved] == [1, 2, 3]
    assert asdict(from_json(result.to_json())) == asdict(result)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_data_is_computed_right(op, dtype):
    for data in KINDS_OF_DATA:
        for shape, axis, order in SHAPES:
            case = Case("own", shape, axis, dtype, order=order, op=op, data=data)
            arrays = Data(case, [op])
            assert arrays.x.flags.f_contiguous if order == "F" else arrays.x.flags.c_contiguous
            found, absent = contestants.taking_part(["lsm"], LSM, case, arrays, 1)
            assert len(found) == 4 and not absent
            reference = Reference(case, arrays)
            for one in found:
                entry = row.first_call(one, arrays, reference)
                assert entry.is_right and entry.error is None, entry


def test_data_are_as_they_are_called():
    def logits(kind):
        return Data(Case("own", (50, 40), data=kind)).x

    assert 3 < logits("logits").std() < 5
    top = np.sort(logits("peaked"), axis=1)
    assert ((top[:, -1] - top[:, -2]) >= 4.99).all()
    masked = np.isneginf(logits("masked"))
    assert 0.3 < masked.mean() < 0.7 and not masked.all(axis=1).any()
    constant = logits("constant")
    assert (constant == constant[:, :1]).all() and len(np.unique(constant)) > 1


def test_one_that_is_off_by_ten_ulp_is_found_shown_and_not_ranked(plant):
    def off(x, out, _):
        return (lsm.log_softmax(x, out=out).view(np.int32) + 10).view(np.float32)

    plant(off)
    (found,) = run(Options(**SMALL, contestants=("cython", "planted"))).rows
    planted = entry(found, "planted")
    assert 9 <= planted.max_ulp <= 12 and planted.us > 0
    assert not planted.is_right and not planted.is_ranked
    assert entry(found, "lsm cython").is_ranked


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda x, out, _: None, "writes nothing"),
        (lambda x, out, _: out.fill(np.nan), "NaN"),
        (lambda x, out, _: out.__setitem__(slice(3), lsm.log_softmax(x[:3])), "leaves out a frame"),
    ],
)
def test_one_that_does_not_fill_its_result_is_wrong(plant, wrong, what):
    plant(wrong, OUT)
    (found,) = run(Options(**SMALL, contestants=("cython", "planted"))).rows
    planted = entry(found, "planted", OUT)
    assert planted.us > 0 and planted.max_ulp is None and not planted.is_right, what


def test_one_that_computes_once_and_then_nothing_is_wrong(plant):
    def lazy(x, out, n_calls):
        if n_calls == 1:
            lsm.log_softmax(x, out=out)

    plant(lazy, OUT)
    (found,) = run(Options(**SMALL, contestants=("cython", "planted"))).rows
    planted = entry(found, "planted", OUT)
    assert planted.us > 0 and planted.max_ulp is None and not planted.is_right and not planted.is_ranked
    assert entry(found, "lsm cython", OUT).is_ranked


def test_the_worse_of_two_results_is_kept(plant):
    def getting_worse(x, out, n_calls):
        return (lsm.log_softmax(x).view(np.int32) + 10 * (n_calls > 1)).view(np.float32)

    plant(getting_worse)
    (found,) = run(Options(**SMALL, contestants=("cython", "planted"))).rows
    assert 9 <= entry(found, "planted").max_ulp <= 12 and not entry(found, "planted").is_right


@pytest.mark.parametrize("name", ["out", "y_out"])
def test_no_old_result_is_there_when_a_call_is_checked(name):
    case = Case("own", (4, 6), op=BOTH)
    data = Data(case, [BOTH])
    getattr(data, name)[...] = 1
    seen = []
    names = {"see": lambda: seen.append(getattr(data, name).copy())}
    row.first_call(Contestant("a", "a", OUT, "see()", names), data, Reference(case, data))
    assert np.isnan(seen[0]).all()


def test_a_result_of_another_dtype_or_shape_is_wrong(plant):
    for wrong in (lambda x, out, _: lsm.log_softmax(x, dtype="float64"), lambda x, out, _: lsm.log_softmax(x).ravel()):
        plant(wrong)
        (found,) = run(Options(**SMALL, contestants=("cython", "planted"))).rows
        assert not entry(found, "planted").is_right


def test_a_peer_is_held_to_its_frames_and_a_backend_to_what_it_declares():
    case = Case("own", (3, 5))
    data = Data(case)
    data.x[:, 0] = 60  # so that the largest result is nearly 0
    reference = Reference(case, data)
    peer = of_numpy.log_softmax(data.x)
    assert reference.check(peer, None).is_right
    assert not reference.check(peer, 4.0).is_right
    assert reference.check(lsm.log_softmax(data.x), 4.0).is_right


def test_a_backend_that_breaks_costs_no_other_its_place(monkeypatch):
    def library(case, data, array_types):
        if "cupy.ndarray" in array_types:
            raise AssertionError("a backend that is not loaded needs no arrays")
        if library.is_first:
            library.is_first = False
            raise OSError("libgone.so: cannot open")
        return "numpy.ndarray", data.host

    library.is_first = True
    monkeypatch.setattr(of_lsm, "_library", library)
    case = Case("own", (4, 6))
    found, absent = contestants.taking_part(["lsm"], (), case, Data(case), 1)
    assert absent["lsm cython"] == "OSError: libgone.so: cannot open" and "lsm" not in absent
    assert "lsm numpy" in [one.name for one in found]


def test_a_broken_torch_costs_lsm_no_backend(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise OSError('libtorch.so: cannot open')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from lsm.bench.run import run; "
    code += f"from lsm.bench.options import Options; print(run(Options(**{SMALL!r})).to_json())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    result = from_json(done.stdout)
    assert {"lsm cython", "lsm numpy"} <= {e.name for e in result.rows[0].contestants}
    assert result.absent["torch"] == "OSError: libtorch.so: cannot open"
    assert "lsm" not in result.rows[0].absent


def test_one_that_is_missing_is_named(plant):
    plant(lambda x, out, _: None, needs=("no_such_module_anywhere",))
    result = run(Options(**SMALL, contestants=("cython", "planted")))
    assert result.absent["planted"] == "no_such_module_anywhere is not installed"
    assert result.absent["torch"] == "not asked for"
    with pytest.raises(ValueError, match="nobody can take part.*no_such_module_anywhere is not installed"):
        run(Options(**SMALL, contestants=("planted",)))


def test_one_that_cannot_take_part_in_a_row_is_named(monkeypatch):
    def make(case, data, n_threads):
        if case.op == BACKWARD:
            raise RuntimeError("no gradient in this version\nand more")
        yield Absent("planted", "not today")

    monkeypatch.setitem(contestants.FAMILIES, "planted", contestants.Family(make))
    forward, backward = run(Options(**SMALL | {"ops": OPS[:2]}, contestants=("cython", "planted"))).rows
    assert forward.absent == {"planted": "not today"}
    assert backward.absent == {"planted": "RuntimeError: no gradient in this version"}


@pytest.mark.parametrize("at", [1, 2, 12])
def test_one_that_raises_in_the_middle_is_noted_and_the_run_goes_on(plant, monkeypatch, at):
    def raising(x, out, n_calls):
        if n_calls == at:
            raise FloatingPointError("planted")
        return lsm.log_softmax(x)

    monkeypatch.setattr(timing.Watch, "calibrate", lambda watch, turn: (watch.seconds(1), None)[1])
    plant(raising)
    result = run(Options(**SMALL | {"ops": OPS[:2], "rounds": 9}, contestants=("cython", "planted")))
    failed = entry(result.rows[0], "planted")
    assert failed.error == "FloatingPointError: planted" and not failed.is_ranked
    # What was measured before stays: a turn is two calls, after the first one and the calibration.
    assert len(failed.turns_us) == {1: 0, 2: 0, 12: 4}[at]
    assert len(entry(result.rows[0], "lsm cython").turns_us) == 9
    assert len(result.rows) == 2 and entry(result.rows[1], "lsm cython").is_ranked


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_run_keeps_its_rows(stop):
    class Stopping(Diary):
        def row_started(self, label):
            if "1x1000 " in label:
                raise stop

    diary = Stopping()
    options = Options(set="quick", sweep="classes", rounds=3, threads=(1,), contestants=("cython",))
    if stop is KeyboardInterrupt:
        result = run(options, diary, diary.save)
        assert result.interrupted and len(result.rows) == 2
    else:
        with pytest.raises(stop):
            run(options, diary, diary.save)
    last = from_json(diary.saved[-1])
    assert last.interrupted and [found.shape for found in last.rows] == [[1, 10], [1, 100]]
    assert all(found.sweep == "classes" for found in last.rows)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_error_of_a_contestant(plant, stop):
    def interrupt(x, out, n_calls):
        raise stop

    plant(interrupt)
    diary = Diary()
    options = Options(**SMALL, contestants=("cython", "planted"))
    if stop is KeyboardInterrupt:
        assert run(options, diary, diary.save).interrupted
    else:
        with pytest.raises(SystemExit):
            run(options, diary, diary.save)
    assert diary.saved == []  # nothing was measured: what is in the file stays


def test_a_row_that_cannot_be_measured_does_not_end_the_run(monkeypatch):
    def reference(case, data, n_elements):
        if case.op == BACKWARD:
            raise MemoryError("too large")
        return Reference(case, data, n_elements)

    monkeypatch.setattr(row, "Reference", reference)
    result = run(Options(**SMALL | {"ops": OPS}, contestants=("cython",)))
    assert [found.op for found in result.rows] == [FORWARD, BOTH] and not result.interrupted
    assert result.absent["own 4x6 float32 backward, 1 thread"] == "MemoryError: too large"


def test_a_save_that_fails_is_a_warning():
    def full(result):
        raise OSError(28, "No space left on device")

    with pytest.warns(RuntimeWarning, match="not saved: OSError: .*No space left on device"):
        result = run(Options(**SMALL | {"ops": OPS}, contestants=("cython",)), save=full)
    assert len(result.rows) == 3 and not result.interrupted


def test_a_probe_that_fails_leaves_the_times(monkeypatch):
    def fail(probe, case, n_threads):
        raise OSError("no process can be started")

    monkeypatch.setattr(memory.Probe, "extra_bytes", fail)
    monkeypatch.setattr(row, "MIN_BYTES", 1)
    (found,) = run(Options(**SMALL, contestants=("cython",), with_memory=True)).rows
    assert found.absent["memory"] == "OSError: no process can be started"
    assert entry(found, "lsm cython", OUT).is_ranked


def test_arrays_that_cannot_be_made_do_not_end_the_run(monkeypatch):
    def none(case, ops, device):
        if case.shape == (1, 100):
            raise MemoryError("too large")
        return Data(case, ops, device)

    monkeypatch.setattr("lsm.bench.run.Data", none)
    monkeypatch.setattr(workloads, "QUICK_SWEEP", 1000)
    options = Options(set="quick", sweep="classes", rounds=3, threads=(1,), contestants=("cython",))
    result = run(options)
    assert result.absent["sweep_classes 1x100 float32"] == "MemoryError: too large"
    assert [found.shape[1] for found in result.rows] == [10, 1000]


def test_ratios_are_taken_within_a_round():
    # The machine became ten times slower from round to round, and the ratio stayed the same.
    found = row._empty_row(Case("own", (1000, 1000)), Data(Case("own", (1000, 1000))), 1)
    found.contestants = [Entry("lsm a", "lsm", OUT, "", "a"), Entry("b", "b", NEW, ""), Entry("c", "c", NEW, "")]
    turns = {("lsm a", OUT): [1.0, 10.0, 100.0], ("b", NEW): [2.0, 20.0, 200.0], ("c", NEW): [3.0, 30.0]}
    row.fill(found, timing.Times(turns | {("streaming copy", OUT): [0.5, 5.0, 50.0]}, {("c", NEW): "broke"}))
    a, b, c = found.contestants
    assert (a.us, a.ratio, b.us, b.ratio, b.p20_ratio, b.p80_ratio) == (10, 1, 20, 2, 2, 2)
    assert (c.us, c.ratio, c.error, c.turns_us) == (16.5, 3, "broke", [3, 30])
    assert (a.share, b.share) == (0.5, 0.25) and (found.limit.us, found.limit.gb_s) == (5, 8e6 / 5 / 1e3)
    assert a.gb_s == pytest.approx(0.8e3)


def test_the_slowest_do_not_take_the_turns_of_others():
    def sleeping(name, seconds):
        return Contestant(name, name, NEW, "event.wait(seconds)", {"event": threading.Event(), "seconds": seconds})

    times = timing.in_turns([sleeping("slow", 0.06), sleeping("fast", 0.001)], 6, budget_s=0.1, turn_s=0.001)
    assert len(times.turns_us["slow", NEW]) == 1
    assert len(times.turns_us["fast", NEW]) >= timing.MIN_ROUNDS


@pytest.mark.parametrize(("spins_s", "pauses"), [(0, 1), (0.035, 5), (math.inf, 10)])
def test_threads_that_spin_are_waited_for(monkeypatch, spins_s, pauses):
    slept = []

    def process_time():
        return min(sum(slept), spins_s)

    monkeypatch.setattr(timing, "time", SimpleNamespace(sleep=slept.append, process_time=process_time))
    timing.settle()
    assert slept == [timing.PAUSE] * pauses and sum(slept) <= timing.LONGEST_PAUSE + 1e-9


def test_each_turn_begins_settled(monkeypatch):
    log = []
    monkeypatch.setattr(timing, "settle", lambda: log.append("settle"))
    names = {"call": lambda: log.append("call") or threading.Event().wait(0.01)}
    timing.in_turns([Contestant("a", "a", NEW, "call()", names)], 3, turn_s=0.005)
    assert log == ["settle", "call"] * 3


def test_a_call_that_lasts_a_turn_is_one():
    calls = []

    def call():
        calls.append(1)
        threading.Event().wait(0.02)

    times = timing.in_turns([Contestant("slow", "slow", NEW, "call()", {"call": call})], 4, turn_s=0.005)
    assert len(calls) == len(times.turns_us["slow", NEW]) == 4
    assert all(us >= 20_000 for us in times.turns_us["slow", NEW])


def test_of_a_slow_contestant_one_way_is_measured(monkeypatch):
    def make(case, data, n_threads):
        names = {"log_softmax": lsm.log_softmax, "x": data.x, "out": data.out, "event": threading.Event()}
        for seconds, name in ((0.3, "slow"), (0, "quick")):
            for way, code in ((OUT, "log_softmax(x, out=out)"), (NEW, "log_softmax(x)")):
                yield Contestant(name, name, way, f"event.wait({seconds}) or {code}", names)

    monkeypatch.setitem(contestants.FAMILIES, "planted", contestants.Family(make, (), ("cpu",), ("slow", "quick")))
    monkeypatch.setattr(row, "LONG_CALL", 0.2)
    case, effort = Case("own", (4, 6)), Effort(rounds=3, turn_s=0.001, budget_s=0.01)
    found = row.measure(case, Data(case), 1, ["planted"], ("slow", "quick"), last_cache=2**20, effort=effort)
    assert [(e.name, e.way) for e in found.contestants] == [("slow", OUT), ("quick", OUT), ("quick", NEW)]
    assert found.absent == {"slow, new result": "its calls with out= take too long for both ways to be measured"}
    again = row.measure(case, Data(case), 1, ["planted"], ("slow",), 2**20, Effort(rounds=1, turn_s=0.001))
    assert [e.way for e in again.contestants] == [OUT, NEW]  # there is time enough


def test_a_device_is_waited_for():
    log = []
    names = {"call": lambda: log.append("call")}
    one = Contestant("a", "a", NEW, "call()", names, synchronise=lambda: log.append("wait"))
    one.call()
    assert log == ["call", "wait"]
    log.clear()
    timing.Watch(one).seconds(3)
    assert log == ["wait", "call", "call", "call", "wait"]


def test_the_limit_moves_the_bytes(rng):
    for op in OPS:
        case = Case("own", (64, 1024), op=op)
        data = Data(case, OPS)
        one = limit(case, data, 1)
        exec(one.code, dict(one.names))
        if op == FORWARD:
            assert (data.out == data.x).all()
        else:
            assert (data.out == data.dy + (data.y if op == BACKWARD else data.x)).all()


@pytest.mark.parametrize(("op", "held"), [(FORWARD, 2), (BACKWARD, 3), (BOTH, 4)])
def test_only_a_row_out_of_the_caches_has_a_limit(op, held):
    case, effort = Case("own", (64, 1024), op=op), Effort(rounds=3, turn_s=0.001)
    data, size = Data(case, [op]), held * 2**18
    within, beyond = (row.measure(case, data, 1, ["lsm"], ("cython",), cache, effort) for cache in (size, size - 1))
    assert within.limit is None and all(e.share is None for e in within.contestants)
    assert beyond.limit.name == LIMITS[op] and beyond.limit.us > 0
    assert all(e.share > 0 for e in beyond.contestants)


def test_on_a_device_there_is_always_a_limit():
    case = Case("own", (4, 6))
    data = Data(case)
    assert not is_out_of_cache(case, data, 2**30)
    data.device = "cuda"
    assert is_out_of_cache(case, data, 2**30)


def test_a_device_holds_the_arrays_once(fake_cupy, monkeypatch):
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr("lsm.bench.data.torch_tensor", lambda array: SimpleNamespace(to=lambda device: array.copy()))
    sys.modules["cupy"].from_dlpack = lambda tensor: tensor
    for first, second in (("torch", "cupy"), ("cupy", "torch")):
        data = Data(Case("own", (4, 6)), device="cuda")
        one, another = getattr(data, first), getattr(data, second)
        assert set(one) == {"x", "out"} and all(one[name] is another[name] for name in one)
    torch.cuda.is_available = lambda: False
    assert Data(Case("own", (4, 6)), device="cuda").cupy["x"] is not None


def test_threads_are_set_verified_and_set_back():
    before = {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    n_before = lsm.get_num_threads()
    with equal_threads(1, []) as verified:
        assert lsm.get_num_threads() == 1
        pools = threadpoolctl.threadpool_info()
        assert {pool["num_threads"] for pool in pools} <= {1} and len(verified) == 1 + len(pools)
    assert lsm.get_num_threads() == n_before
    after = {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    assert {name: after[name] for name in before} == before


def test_threads_that_nobody_would_use_are_refused():
    with pytest.raises(ValueError, match="threads: 1000000 threads were asked for; lsm would use"):
        check_threads([1, 1_000_000])
    with pytest.raises(ValueError, match="threads were asked for"):
        run(Options(**SMALL | {"threads": (1_000_000,)}))


def test_a_pool_that_keeps_its_number_is_found_out(monkeypatch):
    pool = {"filepath": "/usr/lib/libgomp.so.1", "user_api": "openmp", "internal_api": "openmp", "num_threads": 7}
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [pool])
    answer = r"1 threads were asked for; openmp libgomp\.so\.1 of the system has 7"
    with pytest.raises(RuntimeError, match=answer), equal_threads(1, []):
        pass


def test_a_blas_that_has_fewer_threads_is_noted_and_no_error(monkeypatch):
    # What a wheel's OpenBLAS says on a machine of more processors than it was built for.
    pool = {"filepath": "/usr/lib/libopenblas.so", "user_api": "blas", "internal_api": "openblas", "num_threads": 0}
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [pool])
    with equal_threads(1, []) as verified:
        assert verified[1:] == ["openblas libopenblas.so of the system: 0 (its most)"]


def test_a_peer_whose_threads_cannot_be_set_does_not_take_part(monkeypatch):
    def cannot(n_threads):
        raise ImportError("cannot import name 'clear_backends'")

    def make(case, data, n_threads):
        raise AssertionError("it takes part")

    monkeypatch.setattr("lsm.bench.threads.Pool.set", cannot)
    monkeypatch.setitem(contestants.FAMILIES, "jax", contestants.Family(make))
    result = run(Options(**SMALL, contestants=("cython", "jax")))
    reason = "its threads cannot be set to 1: ImportError: cannot import name 'clear_backends'"
    assert result.absent["jax"] == reason and "jax" not in result.rows[0].absent
    assert entry(result.rows[0], "lsm cython", OUT).is_ranked
    with pytest.raises(ImportError, match="clear_backends"), equal_threads(1, ["jax"]):
        pass


def test_every_peer_that_is_installed_is_right_in_a_small_row():
    result = run(Options(**SMALL | {"ops": OPS}))
    families = set(contestants.FAMILIES) - set(result.absent)
    assert {"lsm", "numpy idiom"} <= families
    for name, reason in result.absent.items():
        assert "is not installed" in reason or "takes part on cuda only" in reason, (name, reason)
    forward, _, _ = result.rows
    assert forward.absent.get("torch.compile", "measured on cuda only") == "measured on cuda only"
    assert ("torch" in families) == ("torch.compile" in forward.absent)
    assert all(e.is_ranked for found in result.rows for e in found.contestants)
    assert {e.name for e in forward.contestants} >= families - {"lsm"}


def test_memory_of_a_copy_is_seen_and_none_is_made_up():
    probe = memory.Probe(["lsm", "numpy idiom"], ("cython", "numpy idiom"))
    case = Case("own", (64, 2**17))  # 32 MiB
    try:
        found = probe.extra_bytes(case, 1)
        again = probe.extra_bytes(replace(case, op=BACKWARD), 1)
    finally:
        probe.close()
    assert set(found) == {("lsm cython", OUT), ("lsm cython", NEW), ("numpy idiom", NEW)} == set(again)
    for one in (found, again):
        assert max(one["lsm cython", OUT], one["lsm cython", NEW]) < 2 * memory.TOLERANCE
        assert abs(one["numpy idiom", NEW] - 2**25) < 2 * memory.TOLERANCE  # exp(...) or so, as large as the result


def test_a_memory_probe_that_dies_is_replaced(monkeypatch):
    probe = memory.Probe(["lsm"], ("cython",))
    monkeypatch.setattr(memory, "_START", "raise SystemExit  # {path}")
    assert probe.extra_bytes(Case("own", (4, 5)), 1) == {}
    monkeypatch.undo()
    try:
        assert set(probe.extra_bytes(Case("own", (4, 5)), 1)) == {("lsm cython", OUT), ("lsm cython", NEW)}
    finally:
        probe.close()


def test_workloads_are_those_of_the_users():
    names = {"small", "speech_frames", "senones", "llm_step", "llm_eval", "segmentation", "rows", "mixture"}
    assert {w.name for w in WORKLOADS} == names
    sizes = {}
    for name in ("quick", "usual", "full"):
        found = cases(Options(set=name))
        assert len(set(found)) == len(found)
        assert {case.workload for case in found} == names and {case.op for case in found} == set(OPS)
        sizes[name] = set(found)
    assert sizes["quick"] <= sizes["usual"] <= sizes["full"]
    assert {case.dtype for case in sizes["full"]} == set(DTYPES)
    assert {case.data for case in sizes["full"]} == set(KINDS_OF_DATA)
    assert len(sizes["quick"]) <= 16 and max(case.size for case in sizes["quick"]) <= 2**23 + 2**18
    # Those on the same arrays follow each other, for they are made once.
    order = [case.arrays for case in cases(Options(set="full"))]
    assert len(set(order)) == sum(a != b for a, b in zip([None, *order], order, strict=False))


def test_workloads_are_chosen_by_what_is_asked_for():
    found = cases(Options(workloads=("llm",), dtypes=("float16",), ops=(BACKWARD,), data=("peaked", "masked")))
    assert {case.workload for case in found} == {"llm_step", "llm_eval"}
    assert {(case.dtype, case.op) for case in found} == {("float16", BACKWARD)}
    assert [case.data for case in found[:2]] == ["peaked", "masked"]
    own = cases(Options(shape=(2, 3, 4), axis=1, dtypes=("float64", "bfloat16")))
    assert [(case.shape, case.axis, case.dtype) for case in own[::3]] == [
        ((2, 3, 4), 1, "float64"),
        ((2, 3, 4), 1, "bfloat16"),
    ]
    assert (own[0].n_classes, own[0].n_frames, own[0].label) == (3, 8, "own 2x3x4 float64 axis 1 forward")
    assert [case.n_frames for case in cases(Options(set="quick", sweep="frames"))] == [1, 10, 100, 1000, 10_000]
    assert max(case.size for case in cases(Options(sweep="classes"))) == 10**8


@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        ({"workloads": ("nobody",)}, "workloads: 'nobody' is none; accepted: small, speech_frames"),
        ({"set": "huge"}, "set: 'huge'; accepted: quick, usual, full"),
        ({"ops": ("sideways",)}, "ops: 'sideways'; accepted: forward"),
        ({"dtypes": ("int8",)}, "dtypes: 'int8'; accepted: float16"),
        ({"rounds": 0}, "rounds: 0; accepted: whole numbers from 1"),
        ({"threads": (2, 0)}, "threads: 2, 0; accepted"),
        ({"shape": (2, 0)}, "shape: .*accepted"),
        ({"shape": (2, 3), "axis": 2}, "axis: 2; accepted: -2 to 1"),
        ({"shape": (2, 3), "workloads": ("small",)}, "shape: it is a workload by itself"),
        (
            {"contestants": ("nobody",)},
            "contestants: 'nobody' is nobody; accepted: lsm cython, .*numpy idiom",
        ),
    ],
)
def test_a_wish_that_cannot_be_served_is_refused(wish, answer):
    with pytest.raises(ValueError, match=answer):
        run(Options(**wish))


def test_numbers_of_threads_that_cannot_be_are_left_out_by_name():
    result = run(Options(**SMALL | {"threads": (1, 1_000_000)}, contestants=("cython",)))
    assert [found.threads for found in result.rows] == result.header.threads == [1]
    assert "as many as the processors that this process may use" in result.absent["1000000 threads"]
    with pytest.raises(ValueError, match=r"^threads: 999999 threads .*; 1000000 threads were asked for"):
        run(Options(**SMALL | {"threads": (999_999, 1_000_000)}))


def test_the_memory_of_small_results_is_left_out_by_name():
    (found,) = run(Options(**SMALL, contestants=("cython",), with_memory=True)).rows
    assert found.absent["memory"].startswith("not measured of results below 8 MiB")
    (found,) = run(Options(**SMALL, contestants=("cython",), with_memory=False)).rows
    assert "memory" not in found.absent


def test_without_ml_dtypes_bfloat16_is_absent(monkeypatch):
    monkeypatch.setattr("lsm.bench.run.find_spec", lambda name: None)
    result = run(Options(**SMALL, dtypes=("bfloat16", "float32"), contestants=("cython",)))
    assert [found.dtype for found in result.rows] == ["float32"] and "ml_dtypes" in result.absent["bfloat16"]
    with pytest.raises(ValueError, match="dtypes: bfloat16: ml_dtypes is not installed"):
        run(Options(**SMALL, dtypes=("bfloat16",), contestants=("cython",)))


def test_a_run_needs_no_network_and_leaves_no_files(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    wish = {"shape": (2, 2**20), "contestants": ("cython",), "with_memory": True}  # 8 MiB: large enough for the probe
    (found,) = run(Options(**SMALL | wish)).rows
    assert all(e.extra_bytes is not None for e in found.contestants)  # a process was there, and wrote
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    result = run(Options(**SMALL, contestants=("cython",)))
    file = tmp_path / "r.json"
    files.write(str(file), result.to_json())
    assert asdict(load(file)) == asdict(result) and list(tmp_path.iterdir()) == [file]

    def interrupt(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    before = file.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        files.write(str(file), Result(result.header).to_json())
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda t: t[:50], "not JSON"),
        (lambda t: "[1]", "not the result of a benchmark run"),
        (lambda t: t.replace('"format": 1', '"format": 2'), "format 2; this lsm reads 1"),
        (lambda t: t.replace('"format": 1', '"format": true'), "format True"),
        (lambda t: t.replace('"threads": 1', '"threads": "1"'), r"rows\[0\]\.threads is '1'; it must be of type int"),
        (lambda t: t.replace('"us": ', '"us": NaN, "was": '), "not JSON"),
        (lambda t: t.replace('"us": ', '"us": 1e999, "p20_us": 1, "x": '), "beyond the format|must be finite"),
        (lambda t: t.replace('"way"', '"manner"'), r"lacks \['way'\] and has \['manner'\]"),
        (lambda t: "[" * 10**6, "not JSON"),
    ],
)
def test_a_foreign_file_is_refused(change, answer):
    result = run(Options(**SMALL, contestants=("cython",)))
    with pytest.raises(ValueError, match=answer):
        from_json(change(result.to_json()), "r.json")


def test_the_caches_are_told():
    sizes = caches()
    assert last_cache(sizes) == (max(sizes.values()) if sizes and sys.platform == "linux" else last_cache({}))
    assert all(size >= 1024 for size in sizes.values())


def test_the_processors_are_those_that_may_be_used(monkeypatch, tmp_path):
    for i in range(4):
        (tmp_path / f"cpu{i}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{i}" / "topology" / "thread_siblings_list").write_text("0-1" if i < 2 else str(i))
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 3}, raising=False)
    header = run(Options(**SMALL, contestants=("cython",))).header
    assert header.n_processors == min(3, cpu_limit()) and header.n_cores == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 9})
    assert machine.n_cores() is None


@pytest.mark.parametrize(("limit", "expected"), [(2, 1.5), (1, 0.5)])
def test_others_count_on_the_processors_that_may_be_used(monkeypatch, tmp_path, limit, expected):
    ticks = machine.os.sysconf("SC_CLK_TCK")
    clock = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: 0, now=0.0)
    monkeypatch.setattr(machine, "time", clock)
    monkeypatch.setattr(machine, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(machine, "cpu_limit", lambda: limit)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 2}, raising=False)

    def tell(*busy):  # seconds of cpu0, cpu1, ...; idle and waiting do not count
        rows = [f"cpu{i} {int(s * ticks)} 0 0 77 88 0 0 0 0 0" for i, s in enumerate(busy)]
        (tmp_path / "stat").write_text("\n".join(["cpu  99999 0 0 0 0 0 0 0 0 0", *rows, "intr 1"]))

    tell(5, 5, 5, 5)
    others = machine.Others()
    clock.now = 10.0
    tell(15, 10, 15, 15)  # 0.5 of cpu1, and all of cpu2
    assert others.processors() == pytest.approx(expected)
    (tmp_path / "stat").unlink()
    assert others.processors() is None


def test_a_file_from_before_a_field_is_read():
    result = run(Options(**SMALL, contestants=("cython",)))
    tree = json.loads(result.to_json())
    del tree["header"]["n_cores"]
    assert from_json(json.dumps(tree)).header.n_cores is None
    del tree["header"]["rounds"]
    with pytest.raises(ValueError, match=r"result\.header lacks \['rounds'\]"):
        from_json(json.dumps(tree))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_a_long_frame_some_classes_are_checked(op, dtype, monkeypatch):
    case = Case("own", (2, 5000, 2), 1, dtype, op=op, data="peaked")
    data = Data(case, [op])
    whole = Reference(case, data)
    monkeypatch.setattr(errors, "LONG", 4999)
    monkeypatch.setattr(errors, "PIECE", 300)
    part = Reference(case, data, 100)
    assert (whole.n_frames, part.n_frames) == (4, 1)
    (found, *_), _ = contestants.taking_part(["lsm"], ("cython",), case, data, 1)
    for reference in (whole, part):
        assert row.first_call(found, data, reference).is_right
    data.out[0, -1, 0] += 1e-3 * abs(data.out).max()
    assert not part.check(data.out, 4.0).is_right and not whole.check(data.out, 4.0).is_right
    exact, of_part = whole._exact, part._exact
    chosen = np.linspace(0, 4999, 100).astype(int)
    assert np.allclose(of_part.value, exact.value[0][chosen], rtol=1e-17, atol=0)
    assert np.allclose(of_part.at, exact.at[0][chosen], rtol=1e-17, atol=0)


@pytest.fixture
def fake_cupy(monkeypatch):
    """CuPy as far as a run uses it, on the CPU; tells how often the device was waited for."""
    waits = []
    stream = SimpleNamespace(synchronize=lambda: waits.append(1))
    properties = SimpleNamespace(getDeviceProperties=lambda i: {"name": b"Fake 9000"})
    cuda = {"is_available": lambda: True, "runtime": properties, "Device": lambda: SimpleNamespace(id=0)}
    fakes = {
        "cupy": {"asarray": np.array, "asnumpy": np.asarray, "copyto": np.copyto, "add": np.add, "__version__": "0"},
        "cupyx": {},
        "cupyx.scipy": {},
        "cupyx.scipy.special": {"log_softmax": of_numpy.log_softmax},
    }
    fakes["cupy"]["cuda"] = SimpleNamespace(**cuda, get_current_stream=lambda: stream)
    for name, attributes in fakes.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    return waits


def test_a_run_on_a_device_waits_for_it(fake_cupy):
    result = run(Options(**SMALL | {"ops": OPS[:2]}, device="cuda", contestants=("cupyx", "cython")))
    assert result.header.gpu == "Fake 9000" and result.header.versions["cupy"] == "0"
    forward, backward = result.rows
    assert forward.device == "cuda" and forward.limit.name == "streaming copy"
    assert forward.absent["lsm cython"] == "serves cpu, not cuda"
    assert entry(forward, "cupyx").is_ranked and entry(forward, "cupyx").share > 0
    assert backward.absent["cupyx"] == "has no gradient" and backward.limit.us > 0
    assert len(fake_cupy) > 2 * 3  # around every turn


def test_a_run_on_a_device_that_is_not_there_is_refused(monkeypatch):
    for name in ("torch", "cupy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="device: cuda: neither PyTorch nor CuPy finds a CUDA device here"):
        run(Options(device="cuda"))
