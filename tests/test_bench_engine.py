"""The engine of benchmark runs: what is measured, checked and kept; how fast anything is, no test can say."""

import os
import re
import sys
import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

import lsm
from lsm.bench import errors, implementation, machine, peers, workloads
from lsm.bench import run as engine
from lsm.bench.data import Data
from lsm.bench.errors import Reference, check
from lsm.bench.implementation import NEW, OUT, Budget, Implementation, limit
from lsm.bench.machine import equal_threads
from lsm.bench.options import DTYPES, FAMILY_OPS, KINDS_OF_DATA, OPS, SETS, Options
from lsm.bench.result import Entry, Row, from_json
from lsm.bench.run import run
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, SIGNATURES, Case, cases
from lsm.cli import main

SMALL = {"shape": (4, 6), "op": (FORWARD,), "rounds": 3, "set": "quick", "threads": (1,)}
LSM = ("lsm cython", "lsm numpy")
SHAPES = [((1500, 32), -1, "C"), ((5, 7), -1, "C"), ((3, 8, 2, 2), 1, "C"), ((6, 4), 0, "F"), ((9,), 0, "C")]
TWO = ("cython", "planted")
WAYS = (OUT, NEW)
CYTHON = peers.usable(("lsm cython",), "cpu")[0]


@pytest.fixture
def plant(monkeypatch):
    """Add an implementation that is called "planted" and computes f(x, out, call number), for one way."""

    def add(function, way=NEW, needs=()):
        calls = []

        def call(x, out):
            calls.append(1)
            return function(x, out, len(calls))

        def make(case, data, n_threads):
            names = {"call": call, "x": data.x, "out": data.out}
            yield Implementation("planted", "planted", way, "call(x, out)", names)

        monkeypatch.setitem(peers.PEERS, "planted", peers.Maker(make, needs))

    return add


def checked(one, reference):
    """What a row would say of an implementation that takes no time."""
    check(one, reference)
    one.entry.us = 1.0
    return one.entry


def is_right(result, reference, bound_ulp):
    """Whether a result is held to be right."""
    return checked(Implementation("a", "a", NEW, "y", {"y": result}, bound_ulp=bound_ulp), reference).is_right


def entry(found, name, way=NEW):
    (one,) = [e for e in found.implementations if (e.name, e.way) == (name, way)]
    return one


def planted_entry(way=NEW, **options):
    """What one row says of the implementation that is planted."""
    (found,) = run(Options(**SMALL | options, implementations=TWO)).rows
    assert entry(found, "lsm cython").is_ranked
    return entry(found, "planted", way)


def test_a_row_has_every_figure():
    saved = []
    ops, options = OPS + FAMILY_OPS, Options(**SMALL | {"op": OPS + FAMILY_OPS}, implementations=(*LSM, "numpy idiom"))
    result = run(options, lambda result, n_rows: saved.append((n_rows, result.to_json())))
    assert [found.case.op for found in result.rows] == list(ops)
    assert result.header.threads == [1] and "lsm: 1" in result.header.pools and result.header.rounds == 3
    assert not result.interrupted
    # x has 24 numbers, and what has one for each frame 4; an index is as long as two numbers of float32
    n_numbers = [2 * 24, 3 * 24, 5 * 24, 2 * 24, 3 * 24, 28, 36, 36, 36, 56, 28, 52]
    for found, n in zip(result.rows, n_numbers, strict=True):
        op = found.case.op
        assert found.label == f"own 4x6 float32{' k 1' * ('top_k' in op)}, {op}, 1 thread"
        assert found.n_checked_frames == found.case.n_frames == 4 and found.bytes == 4 * n
        assert found.limit is None and all(e.share is None for e in found.implementations)  # within the caches
        names = [(e.name, e.way) for e in found.implementations]
        ways = WAYS[not SIGNATURES[op].has_out :]
        assert names == [(name, way) for name in LSM for way in ways] + [("numpy idiom", NEW)]
        for e in found.implementations:
            assert len(e.samples_us) == 3 and min(e.samples_us) <= e.us <= max(e.samples_us) and e.is_ranked
            assert e.first_call_ms > 0 and e.max_ulp >= 0 and e.gb_s == pytest.approx(found.bytes / e.us / 1e3)
        first = found.implementations[0]
        assert first.ratio == 1 and first.bound_ulp == (4 if op != BOTH else pytest.approx(12.4))
    assert [(n_rows, len(from_json(text).rows)) for n_rows, text in saved] == [(12, n + 1) for n in range(12)]
    assert asdict(from_json(result.to_json())) == asdict(result)


@pytest.mark.parametrize("op", OPS + FAMILY_OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_data_is_computed_right(op, dtype):
    makers, ways = peers.usable(LSM, "cpu")[0], WAYS[not SIGNATURES[op].has_out :]
    for data in KINDS_OF_DATA:
        for shape, axis, order in SHAPES:
            case = Case("own", shape, axis, dtype, order=order, op=op, data=data)
            arrays = Data(case, [op])
            assert arrays.x.flags.f_contiguous if order == "F" else arrays.x.flags.c_contiguous
            found, absent = peers.made(makers, case, arrays, 1)
            assert not absent and [one.key for one in found] == [(name, way) for name in LSM for way in ways]
            reference = Reference(case, arrays)
            for one in found:
                assert checked(one, reference).is_ranked, (case, one)


def off_by_ten_ulp(first_wrong_call):
    return lambda x, out, n: (lsm.log_softmax(x).view(np.int32) + 10 * (n >= first_wrong_call)).view(np.float32)


@pytest.mark.parametrize(
    ("way", "wrong", "ulps"),
    [
        (NEW, off_by_ten_ulp(first_wrong_call=1), 10.5),
        (NEW, off_by_ten_ulp(first_wrong_call=2), 10.5),
        (OUT, lambda x, out, _: None, np.inf),
        (OUT, lambda x, out, _: out.fill(np.nan), np.inf),
        (OUT, lambda x, out, _: out.__setitem__(slice(3), lsm.log_softmax(x[:3])), np.inf),  # leaves out a frame
        (OUT, lambda x, out, n: lsm.log_softmax(x, out=out) if n == 1 else None, np.inf),  # once, and then nothing
        (NEW, lambda x, out, _: lsm.log_softmax(x, dtype="float64"), np.inf),
        (NEW, lambda x, out, _: lsm.log_softmax(x).ravel(), np.inf),
    ],
)
def test_a_result_that_is_wrong_at_first_or_later_is_found_and_not_ranked(plant, way, wrong, ulps):
    plant(wrong, way)
    planted = planted_entry(way)
    assert planted.us > 0 and planted.max_ulp == pytest.approx(ulps, abs=1.5)
    assert not planted.is_right and not planted.is_ranked


def test_a_peer_is_held_to_its_frames_and_a_backend_to_what_it_declares():
    case = Case("own", (3, 5))
    data = Data(case)
    data.x[:, 0] = 60  # so that the largest result is nearly 0
    reference = Reference(case, data)
    peer = data.x - data.x.max(-1, keepdims=True)
    peer -= np.log(np.exp(peer).sum(-1, keepdims=True))
    assert is_right(peer, reference, None) and not is_right(peer, reference, 4.0)
    assert is_right(lsm.log_softmax(data.x), reference, 4.0)


def test_what_cannot_be_measured_is_named_with_the_reason(plant, monkeypatch):
    plant(lambda x, out, _: None, needs=("no_such_module_anywhere",))
    monkeypatch.setitem(peers.PEERS, "failing", peers.Maker(lambda case, data, n_threads: 1 // 0))
    result = run(Options(**SMALL | {"threads": (1, 1_000_000)}, implementations=(*TWO, "failing")))
    assert result.absent["planted"] == "no_such_module_anywhere is not installed"
    assert result.absent["torch"] == "not asked for"
    assert "the processors that this process may use" in result.absent["1000000 threads"]
    (found,) = result.rows
    assert [found.threads] == result.header.threads == [1] and entry(found, "lsm cython", OUT).is_ranked
    assert found.absent == {"failing": "ZeroDivisionError: integer division or modulo by zero"}
    with pytest.raises(ValueError, match="none can be measured.*no_such_module_anywhere is not installed"):
        run(Options(**SMALL, implementations=("planted",)))


@pytest.mark.parametrize("at", [1, 2, 12])
def test_an_implementation_that_raises_is_noted_and_the_run_goes_on(plant, monkeypatch, at):
    def raising(x, out, n_calls):
        if n_calls == at:
            raise FloatingPointError("planted")
        return lsm.log_softmax(x)

    monkeypatch.setattr(Implementation, "calibrate", lambda one, sample_s: (one.seconds(1), None)[1])
    plant(raising)
    result = run(Options(**SMALL | {"op": OPS[:2], "rounds": 9}, implementations=TWO))
    failed = entry(result.rows[0], "planted")
    assert failed.error == "FloatingPointError: planted" and not failed.is_ranked
    # What was measured before stays: a sample is two calls, after the first one and the calibration.
    assert len(failed.samples_us) == {1: 0, 2: 0, 12: 4}[at]
    assert len(entry(result.rows[0], "lsm cython").samples_us) == 9
    assert len(result.rows) == 2 and entry(result.rows[1], "lsm cython").is_ranked


def test_a_run_that_ends_early_keeps_its_rows():
    def after_row(result, n_rows):
        saved.append(result)
        if len(result.rows) == 2:
            raise OSError(28, "No space left on device")

    saved, options = [], Options(set="quick", sweep="classes", rounds=3, threads=(1,), implementations=("cython",))
    with pytest.raises(OSError, match="No space left"):
        run(options, after_row)
    assert saved[-1].interrupted and [found.case.shape for found in saved[-1].rows] == [(1, 10), (1, 100)]


def test_a_row_that_cannot_be_measured_does_not_end_the_run(monkeypatch):
    def reference(case, data, n_elements):
        if case.op == BACKWARD:
            raise MemoryError("too large")
        return Reference(case, data, n_elements)

    monkeypatch.setattr(engine, "Reference", reference)
    result = run(Options(**SMALL | {"op": OPS}, implementations=("cython",)))
    assert [found.case.op for found in result.rows] == [FORWARD, BOTH] and not result.interrupted
    assert result.absent["own 4x6 float32, backward, 1 thread"] == "MemoryError: too large"


def test_ratios_are_taken_within_a_round():
    # The machine became ten times slower from round to round, and the ratio stayed the same.
    found = Row(Case("own", (1000, 1000)), 1, "cpu", 8_000_000)
    samples = {("lsm a", "a"): [1.0, 10.0, 100.0], ("b", None): [2.0, 20.0, 200.0], ("c", None): [3.0, 30.0]}
    for (name, backend), us in samples.items():
        found.implementations.append(Entry(name, name.split()[0], NEW, "", backend, samples_us=us))
    engine.fill(found, Entry("streaming copy", "the machine", OUT, "", samples_us=[0.5, 5.0, 50.0]))
    a, b, c = found.implementations
    assert (a.us, a.ratio, b.us, b.ratio, b.p20_ratio, b.p80_ratio) == (10, 1, 20, 2, 2, 2)
    assert (c.us, c.ratio, c.samples_us) == (16.5, 3, [3, 30])
    assert (a.share, b.share) == (0.5, 0.25) and (found.limit.us, found.limit.gb_s) == (5, 8e6 / 5 / 1e3)
    assert a.gb_s == pytest.approx(0.8e3)


def samples(budget, *implementations):
    """The samples of each implementation."""
    implementation.interleave(implementations, budget)
    return [one.entry.samples_us for one in implementations]


def test_the_slowest_do_not_take_the_samples_of_others():
    names = {"event": threading.Event()}
    slow, fast = (Implementation("a", "a", NEW, f"event.wait({seconds})", names) for seconds in (0.06, 0.001))
    n_slow, n_fast = map(len, samples(Budget(rounds=6, row_s=0.1, sample_s=0.001), slow, fast))
    assert n_slow == 1 and n_fast >= implementation.MIN_ROUNDS


def test_a_call_that_is_long_enough_is_a_sample_and_each_begins_settled(monkeypatch):
    log = []
    monkeypatch.setattr(implementation, "settle", lambda: log.append("settle"))
    names = {"call": lambda: log.append("call") or threading.Event().wait(0.02)}
    (found,) = samples(Budget(rounds=4, sample_s=0.005), Implementation("a", "a", NEW, "call()", names))
    assert log == ["settle", "call"] * 4 and len(found) == 4 and min(found) >= 20_000


def test_of_a_slow_implementation_one_way_is_measured(monkeypatch):
    def make(case, data, n_threads):
        names = {"log_softmax": lsm.log_softmax, "x": data.x, "out": data.out, "event": threading.Event()}
        for seconds, name in ((0.3, "slow"), (0, "quick")):
            for way, code in ((OUT, "log_softmax(x, out=out)"), (NEW, "log_softmax(x)")):
                yield Implementation(name, name, way, f"event.wait({seconds}) or {code}", names)

    monkeypatch.setattr(engine, "LONG_CALL_S", 0.2)
    case, budget = Case("own", (4, 6)), Budget(rounds=3, sample_s=0.001, row_s=0.01)
    makers = {"planted": peers.Maker(make)}
    found = engine.measure(case, Data(case), 1, makers, {}, budget)
    assert [(e.name, e.way) for e in found.implementations] == [("slow", OUT), ("quick", OUT), ("quick", NEW)]
    assert found.absent == {"slow, new result": "there is no time for both ways; the one with out= is measured"}
    again = engine.measure(case, Data(case), 1, makers, {}, Budget(rounds=1, sample_s=0.001))
    assert [e.way for e in again.implementations] == [OUT, NEW] * 2  # there is time enough


@pytest.mark.parametrize(("op", "held"), [(FORWARD, 2), (BACKWARD, 3), (BOTH, 4)])
def test_a_row_out_of_the_caches_has_a_limit_which_moves_the_bytes(op, held):
    case, budget, size = Case("own", (64, 1024), op=op), Budget(rounds=3, sample_s=0.001), held * 2**18
    data = Data(case, [op])
    for cache in (size, size - 1):
        row = engine.measure(case, data, 1, CYTHON, {"L1": 1, "L2": cache}, budget)
        if cache == size:
            assert row.limit is None and all(e.share is None for e in row.implementations)
        else:
            assert row.limit.name == SIGNATURES[op].limit and row.limit.us > 0
            assert all(e.share > 0 for e in row.implementations)
    (one,) = limit(case, data, 1)
    exec(one.code, dict(one.names))
    moved = data.host["y" if op == BACKWARD else "x"] + (data.host["dy"] if op != FORWARD else 0)
    assert (data.out == moved).all()


def test_threads_are_set_verified_and_set_back(monkeypatch):
    pools = lambda: {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}  # noqa: E731
    before, n_before = pools(), lsm.get_num_threads()
    with equal_threads(1) as verified:
        assert {lsm.get_num_threads(), *pools().values()} == {1} and len(verified) == 1 + len(pools())
    assert lsm.get_num_threads() == n_before and before.items() <= pools().items()
    pool = {"filepath": "/usr/lib/libgomp.so.1", "user_api": "openmp", "internal_api": "openmp", "num_threads": 7}
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [pool])
    with pytest.raises(RuntimeError, match=r"1 threads were asked for; openmp libgomp\.so\.1 has 7"):
        equal_threads(1).__enter__()


def test_every_peer_that_is_installed_is_right_in_a_small_row():
    def after_row(result, n_rows):
        n_threads.append(sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 1)

    n_threads = []
    result = run(Options(**SMALL | {"op": OPS}), after_row)
    names = set(peers.known()) - set(result.absent)
    assert {*LSM, "numpy idiom"} <= names
    expected = "is not installed|no NVIDIA driver|the driver is loaded|measured on cuda only"
    assert not {name: reason for name, reason in result.absent.items() if not re.search(expected, reason)}
    assert all(e.is_ranked for found in result.rows for e in found.implementations)
    assert {e.name for e in result.rows[0].implementations} == names
    assert n_threads == [1] * 3 and ("jax" not in names or os.environ["PJRT_NPROC"] == "1")


def test_a_map_has_each_implementation_at_its_best_and_the_limit_of_each_cell(monkeypatch):
    cells = [w for w in workloads.SETS_OF_THEIR_OWN["map"] if w.n_classes in (2, 5) and w.inner in (1, 5)]
    assert [w.shape for w in cells] == [(1_000_000, 2), (200_000, 2, 5), (400_000, 5), (80_000, 5, 5)]
    cells = tuple(replace(w, shape=(4, *w.shape[1:])) for w in cells)
    monkeypatch.setitem(workloads.SETS_OF_THEIR_OWN, "map", cells)
    rows = run(Options(set="map", threads=(1,), implementations=("lsm", "idiom"))).rows
    assert [found.case.shape for found in rows[::2]] == [(4, 2), (4, 2, 5), (4, 5), (4, 5, 5)]
    assert {found.case.op for found in rows} == {FORWARD, BACKWARD} and all(found.limit for found in rows)
    assert {e.label for e in rows[0].implementations} == {*LSM, "numpy idiom, new result"} and not rows[0].absent
    usual = run(Options(set="map", op=(FORWARD,), implementations=("cython",)))
    assert usual.header.threads == sorted({1, lsm.get_num_threads()})


def test_the_memory_of_a_copy_is_measured_and_none_is_made_up():
    for op in (FORWARD, BACKWARD):
        found = engine.extra_bytes(["lsm cython", "numpy idiom"], Case("own", (64, 2**17), op=op), 1)  # 32 MiB
        idiom = found.pop(("numpy idiom", NEW)) - 2**25  # exp(...) or so, as large as the result
        assert {*found} == {("lsm cython", OUT), ("lsm cython", NEW)}
        assert max(*found.values(), abs(idiom)) < 2 * engine.TOLERANCE_BYTES
    (small,) = run(Options(**SMALL, implementations=("cython",), memory=True)).rows
    assert small.absent["memory"].startswith("not measured for results below 8 MiB")


def test_the_sets_have_the_workloads_of_users():
    names = {
        "llm_step",
        "llm_eval",
        "llm_train",
        "small",
        "speech_frames",
        "senones",
        "segmentation",
        "rows",
        "mixture",
    }
    sizes = {}
    for name in SETS:
        found = cases(Options(set=name))
        assert len(set(found)) == len(found)
        # Those on the same arrays follow each other, for they are made once.
        order = [case.arrays for case in found]
        assert len(set(order)) == sum(a != b for a, b in zip([None, *order], order, strict=False))
        sizes[name] = set(found)
    for name in ("quick", "usual", "full"):
        assert {case.workload for case in sizes[name]} == names
        assert {case.op for case in sizes[name]} == {*OPS, *FAMILY_OPS}
    assert sizes["quick"] <= sizes["usual"] <= sizes["full"]
    assert {case.dtype for case in sizes["full"]} == set(DTYPES) == {case.dtype for case in sizes["gpu"]}
    assert len(sizes["quick"]) <= 25 and max(np.prod(case.shape) for case in sizes["quick"]) <= 2**23 + 2**18
    assert {10, 1003, 2**24} <= {case.n_classes for case in sizes["gpu"]}
    assert all(min(case.shape) > 0 and np.prod(case.shape) <= 2**27 for case in sizes["gpu"])


def test_workloads_are_chosen_by_what_is_asked_for():
    found = cases(Options(only=("llm",), dtype=("float16",), op=(BACKWARD,), data=("peaked", "masked")))
    assert {case.workload for case in found} == {"llm_step", "llm_eval", "llm_train"}
    assert {(case.dtype, case.op) for case in found} == {("float16", BACKWARD)}
    assert [case.data for case in found[:2]] == ["peaked", "masked"]
    own = cases(Options(shape=(2, 3, 4), axis=1, dtype=("float64", "bfloat16")))
    assert [(c.shape, c.axis, c.dtype) for c in own[::3]] == [((2, 3, 4), 1, t) for t in ("float64", "bfloat16")]
    assert (own[0].n_classes, own[0].n_frames, own[0].label) == (3, 8, "own 2x3x4 axis 1 float64, forward")
    (in_chunks,) = cases(Options(set="scale", shape=(4, 6), op=(FORWARD,)))
    assert in_chunks.chunks == (1, 2) and in_chunks.label == "own 4x6 float32 in 1x2, forward"
    assert [case.n_frames for case in cases(Options(set="quick", sweep="frames"))] == [1, 10, 100, 1000, 10_000]
    assert max(case.n_classes for case in cases(Options(sweep="classes"))) == 10**7


def test_others_count_on_the_processors_that_may_be_used(monkeypatch, tmp_path):
    clock = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: 0, now=0.0)
    monkeypatch.setattr(machine, "time", clock)
    monkeypatch.setattr(machine, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 2}, raising=False)

    def spent(*busy):  # seconds of cpu0, cpu1, ...; idle and waiting do not count
        rows = [f"cpu{i} {s * os.sysconf('SC_CLK_TCK')} 0 0 77 88 0 0 0 0 0" for i, s in enumerate(busy)]
        (tmp_path / "stat").write_text("\n".join(["cpu  99999 0 0 0 0 0 0 0 0 0", *rows, "intr 1"]))
        return machine.spent()

    before, clock.now = spent(5, 5, 5, 5), 10.0
    after = spent(15, 10, 15, 15)  # 0.5 of cpu1, and all of cpu2
    for n_granted, used in ((2, 1.5), (1, 0.5)):  # a quota: the others may use the rest
        monkeypatch.setattr(machine, "cpu_limit", lambda n=n_granted: n)
        assert machine.used_by_others(before, after) == pytest.approx(used)
    (tmp_path / "stat").unlink()
    assert machine.used_by_others(before, machine.spent()) is None


@pytest.mark.parametrize("op", OPS)
def test_of_a_long_frame_some_classes_are_checked(op):
    case = Case("own", (2, 5000, 2), 1, op=op, data="peaked")
    data = Data(case, [op])
    (one, *_), _ = peers.made(CYTHON, case, data, 1)
    one.call()
    references = [Reference(case, data), Reference(case, data, 100)]
    assert [reference.n_frames for reference in references] == [4, 1]
    assert all(is_right(data.out, reference, 4.0) for reference in references)
    data.out[0, -1, 0] += 1e-3 * abs(data.out).max()
    assert not any(is_right(data.out, reference, 4.0) for reference in references)


def test_the_errors_beside_the_peers(monkeypatch):
    monkeypatch.setattr(errors, "DTYPES", ("float16", "float32"))
    found = errors.measured("cython", iter, n_classes=(10,))
    assert len(found["rows"]) == 2 * (7 * 3 - 1) and "torch" in {*found["absent"], *found["rows"][0]["ulps"]}
    for row in found["rows"]:
        assert not row["beyond"] and "lsm numpy" not in row["ulps"] and row["ulps"]["lsm cython"] <= 12.4
    label = next(row["ulps"] for row in found["rows"] if (row["data"], row["dtype"]) == ("label", "float32"))
    assert label["lsm cython"] < 4 < 1e5 < label["numpy idiom"]  # whose gradient vanishes
    text = "\n".join(errors.lines(found))
    assert text.count("| float16 | huge |") == 3 and "cupyx: measured on cuda only, not on cpu" in text
    found["rows"][0]["beyond"] = ["lsm cython"]
    assert "beyond the bound: lsm cython (forward, float16, logits, 10 classes)" in errors.lines(found)
    with pytest.raises(ValueError, match="there is no backend 'none'; accepted: cython"):
        errors.measured("none", iter)
    monkeypatch.setattr(errors, "measured", lambda wanted, progress: found)
    assert main(["check", "--peers"]) == 1


@pytest.fixture
def fake_cupy(monkeypatch):
    """CuPy as far as a run uses it, on the CPU; counts how often the device was waited for."""
    waits = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        runtime=SimpleNamespace(getDeviceProperties=lambda i: {"name": b"Fake 9000"}),
        Device=lambda: SimpleNamespace(id=0),
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: waits.append(1)),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    functions = {"asarray": np.array, "copyto": np.copyto, "add": np.add, "get_default_memory_pool": lambda: pool}
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="0", cuda=cuda, **functions))
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", SimpleNamespace(log_softmax=lsm.log_softmax))
    monkeypatch.setitem(sys.modules, "torch", None)
    return waits


def test_a_run_on_a_device_waits_for_it(fake_cupy):
    result = run(Options(**SMALL | {"op": OPS[:2]}, device="cuda", implementations=("cupyx", "cython")))
    assert result.header.gpu == "Fake 9000" and result.header.versions["cupy"] == "0"
    forward, backward = result.rows
    assert forward.device == "cuda" and forward.limit.name == "streaming copy"
    assert result.absent["lsm cython"] == "measured on cpu only, not on cuda"
    assert entry(forward, "cupyx").is_ranked and entry(forward, "cupyx").share > 0
    assert backward.absent["cupyx"] == "has no such function, or it is not measured" and backward.limit.us > 0
    assert len(fake_cupy) > 2 * 3  # around every sample


def test_a_run_on_a_device_that_is_not_there_is_refused(monkeypatch):
    for name in ("torch", "cupy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="device: cuda: neither PyTorch nor CuPy finds a CUDA device here"):
        run(Options(device="cuda"))
