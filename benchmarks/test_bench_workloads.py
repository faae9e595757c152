"""Every workload with every implementation, under pytest-benchmark; see benchmarks/README.md on the results."""

import pytest

from lsm.bench.errors import Reference, check

N_CHECKED = 2**15  # elements of a result that are compared with the exact values

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # from the peers, such as of overflow in the NumPy idiom
    pytest.mark.benchmark(disable_gc=True, warmup=False),  # the first call, which is checked, is the warm-up
]


def test_workload(benchmark, stage, case, implementation):
    (one,) = [each for each in stage.implementations(case) if each.key == implementation]
    entry = one.entry
    check(one, Reference(case, stage.data, N_CHECKED))
    assert entry.error is None, entry.error
    benchmark.group = case.label
    figures = ("first_call_ms", "max_ulp", "max_frame_ulp", "max_abs_error", "bound_ulp", "is_right")
    benchmark.extra_info |= {name: getattr(entry, name) for name in figures} | {"call": one.code}
    benchmark(eval(f"lambda: {one.code}", dict(one.names)))
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["gb_s"] = stage.data.n_bytes(case) / benchmark.stats.stats.median / 1e9
    assert entry.is_right or one.library != "lsm", entry
