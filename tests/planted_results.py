"""Results of benchmark runs that nobody measured: every time is planted, so that what a report says of it is known."""

from lsm.bench.result import Entry, Header, Limit, Result, Row


def header(**changed):
    parts = dict(
        processor="Planted <CPU> | 9000",
        n_processors=2,
        system="Linux",
        date="2026-01-02",
        caches={"L1": 2**15, "L2": 2**20},
        last_cache=2**20,
        instruction_levels={"lsm": "v4", "torch": "AVX512"},
        gpu=None,
        versions={"lsm": "0.1.0", "python": "3.11.7", "numpy": "2.4.6", "torch": "2.13.0"},
        commit="abc1234",
        command="lsm bench --quick",
        threads=[2],
        rounds=5,
        load_before=0.25,
        environment={"OMP_NUM_THREADS": "2"},
        openmp=["libgomp 2 threads (lsm)"],
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
        p20_us=us and us * 0.9,
        p80_us=us and us * 1.1,
        turns_us=[us] * 5 if us else [],
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


def row(contestants=None, **changed):
    parts = dict(
        workload="llm_step",
        op="forward",
        dtype="float32",
        out_dtype="float32",
        data="logits",
        shape=[1, 151936],
        axis=-1,
        order="C",
        threads=2,
        device="cpu",
        bytes=1_215_488,
        limit=Limit("streaming copy", 50.0, 48.0, 55.0, 80.0),
        n_frames=1,
        n_checked_frames=1,
    )
    if contestants is None:
        contestants = [entry(), entry("torch", 200.0, 2.0), entry("numpy idiom", 900.0, 9.0)]
    return Row(**parts | changed, contestants=contestants)


def result(rows=None, **changed):
    parts = dict(header=header(), absent={"jax": "jax is not installed"}, rows=[row()] if rows is None else rows)
    return Result(**parts | changed)


WRONG = dict(is_right=False, max_ulp=370.0, max_frame_ulp=37.0)
RAISED = dict(error="RuntimeError: in the third turn", is_right=False)


def all_kinds():
    """Somebody who is fast and wrong, one that raised in the middle, absent ones, two operations and a sweep."""
    rows = [
        row([entry("hasty", 10.0, 0.1, **WRONG), entry("torch", 200.0, 2.0), entry(), entry("onnxruntime", **RAISED)]),
        row([entry(), entry("torch", 80.0, 0.8), entry("torch", 90.0, 0.9, way="new")], op="backward", dtype="float16"),
        row([entry(), entry("torch", 300.0, 3.0)], workload="senones", shape=[750, 5000], limit=None),
    ]
    rows[1].absent["onnxruntime"] = "has no gradient"
    rows[2].others = 0.7
    rows[2].n_frames, rows[2].n_checked_frames = 750, 40
    sizes = (1000, 10_000, 100_000)
    swept = [entry(us=float(n)) for n in sizes]
    rows += [row([e], workload="sweep", shape=[1, n], sweep="classes") for n, e in zip(sizes, swept, strict=True)]
    return result(rows)
