"""What people write with NumPy, and SciPy's function."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lsm._check import np_dtype
from lsm.bench.contestant import NEW, Absent, Contestant
from lsm.bench.data import Array, Data
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, Case


def log_softmax(x: Array, axis: int = -1) -> Array:
    """The lines that most people paste."""
    shifted = x - x.max(axis, keepdims=True)
    y: Array = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    return y


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """The lines for its gradient."""
    dx: Array = dy - np.exp(y) * dy.sum(axis, keepdims=True)
    return dx


def idiom(case: Case, data: Data, n_threads: int) -> Iterator[Contestant | Absent]:
    """The NumPy idiom, forward and backward."""
    names = {"log_softmax": log_softmax, "log_softmax_backward": log_softmax_backward, **_given(case, data)}
    forward = f"log_softmax({_wide(case)}, axis)"
    code = {
        FORWARD: forward,
        BACKWARD: "log_softmax_backward(dy, y, axis)",
        BOTH: f"log_softmax_backward(dy, {forward}, axis)",
    }
    yield Contestant("numpy idiom", "numpy", NEW, code[case.op], names)


def scipy(case: Case, data: Data, n_threads: int) -> Iterator[Contestant | Absent]:
    """`scipy.special.log_softmax`."""
    import scipy.special

    if case.op != FORWARD:
        yield Absent("scipy", "has no gradient")
        return
    names = {"log_softmax": scipy.special.log_softmax, **_given(case, data)}
    yield Contestant("scipy", "scipy", NEW, f"log_softmax({_wide(case)}, axis)", names)


def _given(case: Case, data: Data) -> dict[str, Any]:
    return {"axis": case.axis, "dtype": np_dtype(case.result_dtype), **data.host}


def _wide(case: Case) -> str:
    """The expression for x where the result has another dtype."""
    return "x.astype(dtype)" if case.out_dtype else "x"
