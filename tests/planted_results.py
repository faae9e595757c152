"""Results of benchmark runs that were not measured: every time is planted, so that the report of it is known."""

from lsm.bench.result import Entry, Header, Limit, Result, Row
from lsm.bench.workloads import Case


def header(**changed):
    parts = dict(
        processor="Planted <CPU> | 9000",
        n_processors=2,
        system="Linux",
        date="2026-01-02",
        caches={"L1": 2**15, "L2": 2**20},
        gpu=None,
        versions={"lsm": "0.1.0 (v4)", "python": "3.11.7", "numpy": "2.4.6", "torch": "2.13.0 (AVX512)"},
        commit="abc1234",
        command="lsm bench --quick",
        wanted=[],
        threads=[2],
        rounds=5,
        environment={"OMP_NUM_THREADS": "2"},
        pools=["openmp libgomp.so: 2"],
    )
    return Header(**parts | changed)


def entry(name="lsm cython", us=100.0, ratio=1.0, **changed):
    library = name.split()[0]
    parts = dict(
        name=name,
        library=library,
        backend=name.split()[1] if library == "lsm" else None,
        way="out",
        call=f"{library}.log_softmax(x)",
        us=us,
        samples_us=[us] * 5 if us else [],
        ratio=ratio,
        p20_ratio=ratio and ratio * 0.95,
        p80_ratio=ratio and ratio * 1.05,
        gb_s=40.0,
        share=0.5,
        first_call_ms=1.5,
        max_ulp=1.25,
        max_frame_ulp=0.75,
        max_abs_error=2e-7,
        bound_ulp=4.0,
        bound_is_declared=library == "lsm",
        is_right=True,
    )
    return Entry(**parts | changed)


def row(implementations=None, **changed):
    about = dict(workload="llm_step", shape=(1, 151936))
    about |= {name: changed.pop(name) for name in list(changed) if name in Case.__dataclass_fields__}
    parts = dict(case=Case(**about), threads=2, device="cpu", bytes=1_215_488, n_checked_frames=1)
    parts["limit"] = Limit("streaming copy", 50.0, 48.0, 55.0, 80.0)
    if implementations is None:
        implementations = [entry(), entry("torch", 200.0, 2.0), entry("numpy idiom", 900.0, 9.0)]
    return Row(**parts | changed, implementations=implementations)


def result(rows=None, **changed):
    parts = dict(header=header(), absent={"jax": "jax is not installed"}, rows=[row()] if rows is None else rows)
    return Result(**parts | changed)


WRONG = dict(is_right=False, max_ulp=370.0, max_frame_ulp=37.0)
RAISED = dict(error="RuntimeError: in the third round", is_right=False)


def all_kinds():
    """One that is fast and wrong, one that raised in the middle, absent ones, two operations, a disturbed row."""
    rows = [
        row([entry("hasty", 10.0, 0.1, **WRONG), entry("torch", 200.0, 2.0), entry(), entry("onnxruntime", **RAISED)]),
        row([entry(), entry("torch", 80.0, 0.8), entry("torch", 90.0, 0.9, way="new")], op="backward", dtype="float16"),
        row([entry(), entry("torch", 300.0, 3.0)], workload="senones", shape=(750, 5000), limit=None),
    ]
    rows[1].absent["onnxruntime"] = "has no gradient"
    rows[2].others = 0.7
    rows[2].n_checked_frames = 40
    return result(rows)
