"""What benchmarks/cpu.py times: named shapes that users have, and the arrays for them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    import ml_dtypes
except ModuleNotFoundError:
    ml_dtypes = None

Array = np.ndarray[Any, np.dtype[Any]]

FORWARD, FORWARD_NEW, BACKWARD = "forward", "forward, new result", "backward"


@dataclass(frozen=True)
class Workload:
    """A shape that somebody has, and what is done with it."""

    group: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    out_dtype: str = ""  # that of x, if empty
    order: str = "C"
    ops: tuple[str, ...] = (FORWARD, BACKWARD)

    @property
    def name(self) -> str:
        parts = [self.group, "x".join(map(str, self.shape)), self.dtype]
        return "-".join(parts + [self.out_dtype] * bool(self.out_dtype) + ["fortran"] * (self.order == "F"))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def types(self) -> str:
        return self.dtype + (f" to {self.out_dtype}" if self.out_dtype else "") + " Fortran" * (self.order == "F")

    @property
    def is_16_bit(self) -> bool:
        return self.dtype in ("float16", "bfloat16")


def _table() -> list[Workload]:
    llm = [(1, 151_936), (64, 128_256), (512, 32_000), (4096, 50_257)]
    return [
        # Here the call costs more than the arithmetic, so it counts as users write it: without `out`.
        Workload("tiny", (1, 10), ops=(FORWARD_NEW, BACKWARD)),
        *(Workload("small", shape, ops=(FORWARD, FORWARD_NEW, BACKWARD)) for shape in [(32, 10), (10, 500)]),
        *(Workload("frames", (1_000_000, n_classes)) for n_classes in (10, 32)),
        Workload("classifier", (1024, 1000)),
        *(Workload("speech", shape) for shape in [(1500, 32), (750, 5000), (1000, 6000)]),
        *(Workload("llm", shape) for shape in llm),
        *(Workload("llm", shape, dtype=dtype) for dtype in ("float16", "bfloat16") for shape in llm),
        *(Workload("llm", shape, dtype="float16", out_dtype="float32", ops=(FORWARD,)) for shape in llm),
        Workload("giant", (1, 2**24)),
        *(Workload("segmentation", shape, axis=1) for shape in [(1, 21, 512, 512), (8, 150, 128, 128)]),
        Workload("columns", (50_000, 64), axis=0),
        *(Workload("mixture", (100_000, 500), dtype="float64", order=order) for order in "CF"),
    ]


WORKLOADS = _table()
SWEEP = [
    *(Workload("sweep-frames", (10**power, 1000)) for power in range(6)),
    *(Workload("sweep-classes", (1, 10**power)) for power in range(3, 9)),
]
QUICK_SIZE = 2**25  # elements: what is larger takes most of the time


def absent_dtype(workload: Workload) -> str | None:
    """Say why a workload cannot be measured here, if so."""
    return "ml_dtypes is not installed" if workload.dtype == "bfloat16" and ml_dtypes is None else None


class Data:
    """The arrays of one workload: x, the gradient dy, the log-probabilities y, and out, which is written."""

    def __init__(self, workload: Workload) -> None:
        import lsm

        rng = np.random.default_rng(0)
        in_type, out_type = (
            np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
            for name in (workload.dtype, workload.out_dtype or workload.dtype)
        )
        # As float32, where that is enough: the largest array as float64 would take 1.6 GB.
        drawn = np.float64 if in_type == np.float64 else np.float32

        def normal(scale: int) -> Array:
            a = rng.standard_normal(workload.shape, drawn)
            a *= scale
            return a.astype(in_type, order=workload.order, copy=False)

        self.x = normal(4)
        self.out = np.empty_like(self.x, dtype=out_type)
        self.y = self.dy = None
        if BACKWARD in workload.ops:
            self.dy = normal(1)
            self.y = lsm.log_softmax(self.x, workload.axis, out=np.empty_like(self.out))


def flat(a: Array) -> Array:
    """All elements in the order of the memory, without a copy."""
    view = a.ravel(order="K")
    if not np.may_share_memory(view, a):
        raise ValueError("the array is not contiguous")
    return view
