"""The overhead of a call before its kernel, the time to import lsm, and the memory of a call (pytest-benchmark)."""

import subprocess
import sys

import numpy as np
import pytest

import lsm
from lsm.backends._levels import kernels
from lsm.bench.implementation import OUT
from lsm.bench.run import extra_bytes
from lsm.bench.workloads import BACKWARD, FORWARD, Case

pytestmark = pytest.mark.benchmark(disable_gc=True)

FORWARD_CALLS = {
    "the kernel itself": "kernel(x, -1, None)",
    "automatic": "log_softmax(x)",
    "out=": "log_softmax(x, out=out)",
    "backend=": "log_softmax(x, backend='cython')",
    "within use_backend": "log_softmax(x)",
    "list": "log_softmax([1.0, 2.0])",
    "not contiguous": "log_softmax(wide)",
}
BACKWARD_CALLS = {
    "the kernel itself": "kernel(x, y, -1, None)",
    "automatic": "log_softmax_backward(x, y)",
    "out=": "log_softmax_backward(x, y, out=out)",
}
MODULES = {"numpy alone": "numpy", "lsm after numpy": "numpy, lsm", "lsm.bench.run": "numpy, lsm.bench.run"}


def names(kernel):
    x = np.zeros((1, 10), np.float32)
    made = {"x": x, "y": lsm.log_softmax(x), "out": np.empty_like(x), "wide": np.zeros((1, 20), np.float32)[:, ::2]}
    return made | {"log_softmax": lsm.log_softmax, "log_softmax_backward": lsm.log_softmax_backward, "kernel": kernel}


@pytest.mark.parametrize("how", FORWARD_CALLS)
def test_call(benchmark, how):
    benchmark.group = "a call on 1x10 float32, forward"
    call = eval(f"lambda: {FORWARD_CALLS[how]}", names(kernels()["fast"]["log_softmax"]))
    if "use_backend" in how:
        with lsm.use_backend("cython"):
            benchmark(call)
    else:
        benchmark(call)


@pytest.mark.parametrize("how", BACKWARD_CALLS)
def test_call_backward(benchmark, how):
    benchmark.group = "a call on 1x10 float32, backward"
    benchmark(eval(f"lambda: {BACKWARD_CALLS[how]}", names(kernels()["fast"]["log_softmax_backward"])))


def test_explain(benchmark):
    benchmark.group = "lsm.explain"
    x = np.zeros((1, 10), np.float32)
    assert benchmark(lsm.explain, x).winner == "cython"


@pytest.mark.parametrize("what", MODULES)
def test_import(benchmark, what):
    benchmark.group = "a Python process that imports"
    command = [sys.executable, "-c", f"import {MODULES[what]}"]
    benchmark.pedantic(subprocess.run, (command,), {"check": True}, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("op", [FORWARD, BACKWARD])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_memory(benchmark, op, dtype):
    """The memory is in the extra information; the time is that of the process that measures it."""
    benchmark.group = "memory beside inputs and result"
    case = Case("own", (64, 2**17), dtype=dtype, op=op)
    found = benchmark.pedantic(extra_bytes, (["lsm cython"], case, lsm.get_num_threads()), rounds=1)
    benchmark.extra_info["extra_bytes"] = found["lsm cython", OUT]
    assert found["lsm cython", OUT] < 2**18 * lsm.get_num_threads() + 2**20  # the promise plus the measurement error
