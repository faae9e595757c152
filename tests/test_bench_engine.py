"""The engine of benchmark runs: what is measured, checked and kept; how fast anything is, no test can say."""

import itertools
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
from lsm.bench.options import DTYPES, FAMILY_OPS, KINDS_OF_DATA, OPS, SETS, Options
from lsm.bench.result import Entry, Row, from_json
from lsm.bench.run import run
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, SIGNATURES, Case, cases
from lsm.cli import main

SMALL = {"shape": (4, 6), "op": (FORWARD,), "rounds": 3, "set": "quick", "threads": (1,)}
LSM = ("lsm cython", "lsm numpy")
SHAPES = [((1500, 32), -1, "C"), ((5, 7), -1, "C"), ((3, 8, 2, 2), 1, "C"), ((6, 4), 0, "F"), ((9,), 0, "C")]
TWO = ("cython", "planted")
LLM = {"llm_step", "llm_eval", "llm_train"}
WAYS = (OUT, NEW)
CYTHON = peers.usable(("lsm cython",), "cpu")[0]


@pytest.fixture
def plant(monkeypatch):
    """Add an implementation that is called "planted" and computes f(x, out, call number), for one way."""

    def add(function, way=NEW, needs=()):
        numbers = itertools.count(1)

        def make(case, data, n_threads):
            names = {"f": function, "x": data.x, "out": data.out, "numbers": numbers}
            yield Implementation("planted", "planted", way, "f(x, out, next(numbers))", names)

        monkeypatch.setitem(peers.PEERS, "planted", peers.Maker(make, needs))

    return add


def is_right(result, reference, bound_ulp):
    """Whether a result is held to be right."""
    one = Implementation("a", "a", NEW, "y", {"y": result}, bound_ulp=bound_ulp)
    check(one, reference)
    return one.entry.is_right


def entry(found, name, way=NEW):
    (one,) = [e for e in found.implementations if (e.name, e.way) == (name, way)]
    return one


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
        assert (found.others is None) == (machine.spent() is None)
        names = [(e.name, e.way) for e in found.implementations]
        ways = WAYS[not SIGNATURES[op].has_out :]
        assert names == [(name, way) for name in LSM for way in ways] + [("numpy idiom", NEW)]
        for e in found.implementations:
            assert len(e.samples_us) == 3 and min(e.samples_us) <= e.us <= max(e.samples_us) and e.is_ranked
            assert e.first_call_ms > 0 and e.max_ulp >= 0 and e.gb_s == pytest.approx(found.bytes / e.us / 1e3)
            assert ("backend=backend" in e.call) == (e.name == "lsm numpy")
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
                check(one, reference)
                assert one.entry.is_right and one.entry.error is None, (case, one)


def test_the_kinds_of_data_are_what_their_names_say():
    found = {kind: Data(Case("own", (50, 9), data=kind), ["cross_entropy"]) for kind in KINDS_OF_DATA}
    x = {kind: np.sort(data.x) for kind, data in found.items()}
    for kind in ("peaked", "label"):
        assert (x[kind][:, -1] - x[kind][:, -2]).min() > 4.9  # rounded
    assert (found["label"].host["labels"] == found["label"].x.argmax(-1)).all()
    assert np.isneginf(x["masked"]).any() and np.isfinite(x["masked"][:, -1]).all()
    assert (np.ptp(x["constant"], -1) == 0).all() and x["offset"].min() > 9900 and x["huge"].max() > 1e29


def off_by_ten_ulp(is_wrong_call):
    return lambda x, out, n: (lsm.log_softmax(x).view(np.int32) + 10 * is_wrong_call(n)).view(np.float32)


@pytest.mark.parametrize(
    ("way", "wrong", "ulps"),
    [
        (NEW, off_by_ten_ulp(lambda n: n == 1), 10.5),
        (NEW, off_by_ten_ulp(lambda n: n >= 2), 10.5),
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
    result = run(Options(**SMALL, implementations=TWO))
    planted = entry(result.rows[0], "planted", way)
    assert entry(result.rows[0], "lsm cython").is_ranked
    assert planted.us > 0 and planted.max_ulp == pytest.approx(ulps, abs=1.5)
    assert not planted.is_right and not planted.is_ranked
    (kept,) = from_json(result.to_json()).rows
    assert entry(kept, "planted", way).max_ulp == (planted.max_ulp if ulps < np.inf else None)


def test_a_peer_is_held_to_its_frames_and_a_backend_to_what_it_declares():
    case = Case("own", (3, 5))
    data = Data(case)
    data.x[:, 0] = 60  # so that the largest result is nearly 0
    reference = Reference(case, data)
    peer = data.x - data.x.max(-1, keepdims=True)
    peer -= np.log(np.exp(peer).sum(-1, keepdims=True))
    assert is_right(peer, reference, None) and not is_right(peer, reference, 4.0)
    assert is_right(lsm.log_softmax(data.x), reference, 4.0)


def test_what_cannot_be_measured_is_named_with_the_reason_and_the_run_goes_on(plant, monkeypatch):
    def reference(case, data, n_elements):
        if case.op == BACKWARD:
            raise MemoryError("too large")
        return Reference(case, data, n_elements)

    plant(lambda x, out, _: None, needs=("no_such_module_anywhere",))
    monkeypatch.setitem(peers.PEERS, "failing", peers.Maker(lambda case, data, n_threads: 1 // 0))
    monkeypatch.setattr(engine, "Reference", reference)
    options = SMALL | {"op": OPS, "threads": (1, 1_000_000)}
    result = run(Options(**options, implementations=(*TWO, "failing")))
    assert result.absent["own 4x6 float32, backward, 1 thread"] == "MemoryError: too large"
    assert result.absent["planted"] == "no_such_module_anywhere is not installed"
    assert result.absent["torch"] == "not asked for"
    assert "the processors that this process may use" in result.absent["1000000 threads"]
    assert [found.case.op for found in result.rows] == [FORWARD, BOTH] and not result.interrupted
    for found in result.rows:
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


def test_an_error_of_the_caller_ends_a_run_that_keeps_its_rows():
    def after_row(result, n_rows):
        saved.append(result)
        raise OSError(28, "No space left on device")

    saved = []
    with pytest.raises(OSError, match="No space left"):
        run(Options(**SMALL | {"op": OPS}, implementations=("cython",)), after_row)
    assert saved[0].interrupted and [found.case.op for found in saved[0].rows] == [FORWARD]


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
    n_slow, n_fast = map(len, samples(Budget(rounds=100, row_s=0.1, sample_s=0.001), slow, fast))
    assert n_slow == 1 and implementation.MIN_ROUNDS <= n_fast < 20  # each takes at least 0.01 s with its pause


def test_a_call_that_is_long_enough_is_a_sample_and_each_begins_settled(monkeypatch):
    log, budget = [], Budget(rounds=4, sample_s=0.005)
    monkeypatch.setattr(implementation, "settle", lambda: log.append("settle"))
    names = {"call": lambda: log.append("call") or threading.Event().wait(0.02)}
    (found,) = samples(budget, Implementation("a", "a", NEW, "call()", names, wait=lambda: log.append("wait")))
    assert log == ["settle", "wait", "call", "wait"] * 4 and len(found) == 4 and min(found) >= 20_000
    monkeypatch.setattr(Implementation, "seconds", lambda one, n: n * 1e-3)  # of a short one, five calls make a sample
    assert samples(budget, Implementation("a", "a", NEW, "", {})) == [pytest.approx([1000] * 4)]


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
    assert (data.out == moved).all() and (data.host.get("y_out", data.x) == data.x).all()


def test_threads_are_set_verified_and_set_back(monkeypatch):
    pools = lambda: {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}  # noqa: E731
    with lsm.num_threads(2), threadpoolctl.threadpool_limits(2):
        before, n_before = pools(), lsm.get_num_threads()
        with machine.equal_threads(1) as verified:
            assert {lsm.get_num_threads(), *pools().values()} == {1} and len(verified) == 1 + len(pools())
        assert lsm.get_num_threads() == n_before and before.items() <= pools().items()
    pool = {"filepath": "/usr/lib/libgomp.so.1", "user_api": "openmp", "internal_api": "openmp", "num_threads": 7}
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [pool])
    with pytest.raises(RuntimeError, match=r"1 threads were asked for; openmp libgomp\.so\.1 has 7"):
        machine.equal_threads(1).__enter__()


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
    case = Case("own", (6, 4), 0, order="F")
    data = Data(case)
    for one in peers.made(peers.usable((), "cpu")[0], case, data, 1)[0]:
        check(one, Reference(case, data))
        assert one.entry.is_right, one
    assert n_threads == [1] * 3
    if "jax" in names:
        assert os.environ["PJRT_NPROC"] == "1"  # which XLA reads when it starts: it is started again for others
        (device,) = sys.modules["jax"].devices("cpu")
        for n in (2, 1):
            next(peers.PEERS["jax"].make(case, data, n))
            assert os.environ["PJRT_NPROC"] == str(n) and sys.modules["jax"].devices("cpu")[0] is not device


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
    options = SMALL | {"shape": (64, 2**17), "op": OPS[:2], "memory": True}  # 32 MiB
    for row in run(Options(**options, implementations=("lsm cython", "idiom"))).rows:
        *ours, idiom = [e.extra_bytes for e in row.implementations]
        assert len(ours) == 2
        idiom -= 2**25  # exp(...) or so, as large as the result
        assert max(*ours, abs(idiom)) < 2 * engine.TOLERANCE_BYTES
    (small,) = run(Options(**SMALL, implementations=("cython",), memory=True)).rows
    assert all(e.extra_bytes is None for e in small.implementations)
    assert small.absent["memory"].startswith("not measured for results below 8 MiB")


def test_the_sets_have_the_workloads_of_users():
    names = LLM | {"small", "speech_frames", "senones", "segmentation", "rows", "mixture"}
    sizes = {}
    for name in SETS:
        found = cases(Options(set=name))
        assert len(set(found)) == len(found) and all(case.k == 1 or "top_k" in case.op for case in found)
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
    assert {case.workload for case in found} == LLM
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
        idle = int(7 * clock.now)
        rows = [f"cpu{i} {s * os.sysconf('SC_CLK_TCK')} 0 0 {idle} {idle} 0 0 0 0 0" for i, s in enumerate(busy)]
        (tmp_path / "stat").write_text("\n".join(["cpu  99999 0 0 0 0 0 0 0 0 0", *rows, "intr 1"]))
        return machine.spent()

    before, clock.now = spent(5, 5, 5, 5), 10.0
    after = spent(15, 10, 15, 15)  # 0.5 of cpu1, and all of cpu2
    for n_granted, used in ((2, 1.5), (1, 0.5)):  # a quota: the others may use the rest
        monkeypatch.setattr(machine, "cpu_limit", lambda n=n_granted: n)
        assert machine.used_by_others(before, after) == pytest.approx(used)
    (tmp_path / "stat").unlink()
    assert machine.used_by_others(before, machine.spent()) is None


def test_caches_are_named_by_level_without_those_of_instructions(monkeypatch, tmp_path):
    for i, words in enumerate(("1 Data 48K", "1 Instruction 32K", "2 Unified 2M")):
        (tmp_path / f"index{i}").mkdir()
        for name, word in zip(("level", "type", "size"), words.split(), strict=True):
            (tmp_path / f"index{i}" / name).write_text(f"{word}\n")
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert machine.caches() == {"L1": 48 * 2**10, "L2": 2 * 2**20}


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
    found["rows"].append(found["rows"][0] | {"ulps": {"lsm cython": 1e6}})
    text = "\n".join(errors.lines(found))
    assert "| float16 | logits | 1e+06 |" in text  # the worst over all numbers of classes
    assert text.count("| float16 | huge |") == 3 and "cupyx: measured on cuda only, not on cpu" in text
    monkeypatch.setattr(lsm, "log_softmax", lambda x, **options: x)
    wrong = errors.measured("cython", lambda cases: cases[:1], n_classes=(10,))
    assert "beyond the bound: lsm cython (forward, float16, logits, 10 classes)" in errors.lines(wrong)
    with pytest.raises(ValueError, match="there is no backend 'none'; accepted: cython"):
        errors.measured("none", iter)
    monkeypatch.setattr(errors, "measured", lambda wanted, progress: wrong)
    assert main(["check", "--peers"]) == 1


def test_a_run_on_a_device_waits_for_it_and_is_refused_without_one(monkeypatch):
    waits = []  # with a CuPy that computes on the CPU
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
    result = run(Options(**SMALL | {"op": OPS[:2]}, device="cuda", implementations=("cupyx", "cython")))
    assert result.header.gpu == "Fake 9000" and result.header.versions["cupy"] == "0"
    forward, backward = result.rows
    assert forward.device == "cuda" and forward.limit.name == "streaming copy"
    assert result.absent["lsm cython"] == "measured on cpu only, not on cuda"
    assert entry(forward, "cupyx").is_ranked and entry(forward, "cupyx").share > 0
    assert backward.absent["cupyx"] == "has no such function, or it is not measured" and backward.limit.us > 0
    assert len(waits) > 2 * 3  # around every sample
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match="device: cuda: neither PyTorch nor CuPy finds a CUDA device here"):
        run(Options(device="cuda"))
