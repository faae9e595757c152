"""CuPy's own log-softmax, on a CUDA device."""

from collections.abc import Iterator

from lsm.bench.contestant import NEW, Absent, Contestant
from lsm.bench.data import Data
from lsm.bench.workloads import FORWARD, Case

NAME = "cupyx"


def contestants(case: Case, data: Data, n_threads: int) -> Iterator[Contestant | Absent]:
    """`cupyx.scipy.special.log_softmax`."""
    if case.op != FORWARD:
        yield Absent(NAME, "has no gradient")
        return
    if case.dtype == "bfloat16":
        yield Absent(NAME, "has no bfloat16")
        return
    import cupy
    from cupyx.scipy.special import log_softmax

    code = f"log_softmax({'x.astype(dtype)' if case.out_dtype else 'x'}, axis)"
    names = {"log_softmax": log_softmax, "axis": case.axis, "dtype": case.result_dtype, **data.cupy}
    wait = cupy.cuda.get_current_stream().synchronize
    yield Contestant(NAME, "cupy", NEW, code, names, to_numpy=cupy.asnumpy, synchronise=wait)
