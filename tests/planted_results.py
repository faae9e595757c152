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
    """Two operations; what is fast and wrong, what raised, what is absent, and all that a note is made of."""
    forward = [entry("hasty", 10.0, 0.1, **WRONG), entry("torch", 200.0, 2.0), entry()]
    forward += [entry("lsm numpy", 500.0, 5.0, **WRONG), entry("onnxruntime", **RAISED)]
    forward += [entry("numpy idiom", 900.0, 9.0, is_right=False, max_frame_ulp=None)]  # not finite
    # Of three samples a median is one; a share of 1.004 is that of the limit; memory was measured of two.
    backward = [entry(samples_us=[100.0] * 3, share=1.004, extra_bytes=0)]
    backward += [entry("torch", 80.0, 0.8, share=1.21, extra_bytes=12_300_000)]
    backward += [entry("torch", 90.0, 0.9, way="new", samples_us=[90.0])]
    rows = [
        row(forward),
        row(backward, op="backward", dtype="float16", absent={"onnxruntime": "has no gradient"}),
        row([entry(), entry("torch", 300.0, 3.0), entry("hasty", 400.0, 4.0)], workload="senones", shape=(750, 5000)),
    ]
    rows[2].limit, rows[2].others, rows[2].n_checked_frames = None, 0.7, 40
    return result(rows)
