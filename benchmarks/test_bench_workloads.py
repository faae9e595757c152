"""Every workload by every contestant, under pytest-benchmark; benchmarks/README.md says how to read it."""

import pytest

from lsm.bench.errors import Reference
from lsm.bench.limits import gb_s
from lsm.bench.row import first_call

N_CHECKED = 2**15  # elements of a result that are held to the exact values

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the peers' own: NumPy's idiom warns of the overflow that it has
    pytest.mark.benchmark(disable_gc=True, warmup=False),  # the first call, which is checked, warms up
]


def test_workload(benchmark, stage, case, contestant):
    (one,) = [each for each in stage.contestants(case) if each.key == contestant]
    entry = first_call(one, stage.data, Reference(case, stage.data, N_CHECKED))
    assert entry.error is None, entry.error
    benchmark.group = case.label
    figures = ("first_call_ms", "max_ulp", "max_frame_ulp", "max_abs_error", "bound_ulp", "is_right")
    benchmark.extra_info |= {name: getattr(entry, name) for name in figures} | {"call": one.code}
    benchmark(eval(f"lambda: {one.code}", dict(one.names)))
    if benchmark.stats is not None:  # there are none with --benchmark-disable
        n_bytes = stage.data.n_bytes(case.op)
        benchmark.extra_info["gb_s"] = gb_s(n_bytes, benchmark.stats.stats.median * 1e6)
    assert entry.is_right or one.library != "lsm", entry
