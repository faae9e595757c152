"""What benchmarks/cpu.py times: the shapes that docs/performance.md has aims for."""

from dataclasses import dataclass, replace

from lsm.bench.workloads import BACKWARD, FORWARD, Case

FORWARD_NEW = "forward, new result"


@dataclass(frozen=True)
class Workload:
    """A case, and what is done with it."""

    case: Case
    ops: tuple[str, ...] = (FORWARD, BACKWARD)

    @property
    def name(self) -> str:
        case = self.case
        parts = [case.workload, "x".join(map(str, case.shape)), case.dtype]
        return "-".join(parts + [case.out_dtype] * bool(case.out_dtype) + ["fortran"] * (case.order == "F"))

    @property
    def types(self) -> str:
        case = self.case
        return case.dtype + (f" to {case.out_dtype}" if case.out_dtype else "") + " Fortran" * (case.order == "F")

    def of(self, op: str) -> Case:
        """The case of one operation."""
        return replace(self.case, op=BACKWARD if op == BACKWARD else FORWARD)


def _workload(
    group: str, shape: tuple[int, ...], ops: tuple[str, ...] = (FORWARD, BACKWARD), axis: int = -1, **about: str
) -> Workload:
    return Workload(Case(group, shape, axis, **about), ops)


def _table() -> list[Workload]:
    llm = [(1, 151_936), (64, 128_256), (512, 32_000), (4096, 50_257)]
    return [
        # Here the call costs more than the arithmetic, so it counts as users write it: without `out`.
        _workload("tiny", (1, 10), (FORWARD_NEW, BACKWARD)),
        *(_workload("small", shape, (FORWARD, FORWARD_NEW, BACKWARD)) for shape in [(32, 10), (10, 500)]),
        *(_workload("frames", (1_000_000, n_classes)) for n_classes in (10, 32)),
        _workload("classifier", (1024, 1000)),
        *(_workload("speech", shape) for shape in [(1500, 32), (750, 5000), (1000, 6000)]),
        *(_workload("llm", shape) for shape in llm),
        *(_workload("llm", shape, dtype=dtype) for dtype in ("float16", "bfloat16") for shape in llm),
        *(_workload("llm", shape, (FORWARD,), dtype="float16", out_dtype="float32") for shape in llm),
        _workload("giant", (1, 2**24)),
        *(_workload("segmentation", shape, axis=1) for shape in [(1, 21, 512, 512), (8, 150, 128, 128)]),
        _workload("columns", (50_000, 64), axis=0),
        *(_workload("mixture", (100_000, 500), dtype="float64", order=order) for order in "CF"),
    ]


WORKLOADS = _table()
SWEEP = [
    *(_workload("sweep-frames", (10**power, 1000)) for power in range(6)),
    *(_workload("sweep-classes", (1, 10**power)) for power in range(3, 9)),
]
QUICK_SIZE = 2**25  # elements: what is larger takes most of the time
