"""What benchmarks/gpu.py measures and what it must reach: pure functions, for any machine."""

import math
from dataclasses import dataclass
from typing import Any

FORWARD, BACKWARD = "forward", "backward"
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
CLASSES = (10, 33, 100, 256, 1000, 1003, 4096, 4099, 16_384, 32_000, 50_257, 128_256, 262_144, 1_000_003, 16_777_216)
LARGE = 100 * 2**20  # bytes of x from which a share of the copy means something


@dataclass(frozen=True)
class Workload:
    """An array, the axis of its classes, and what is done with it."""

    shape: tuple[int, ...]
    axis: int
    dtype: str
    op: str

    @property
    def name(self) -> str:
        return f"{self.op}-{'x'.join(map(str, self.shape))}-axis{self.axis}-{self.dtype}"

    @property
    def n_bytes(self) -> int:
        """Of x."""
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def n_moved(self) -> int:
        """Bytes that must move at least: x and y, or dy, y and dx."""
        return (3 if self.op == BACKWARD else 2) * self.n_bytes

    @property
    def n_classes(self) -> int:
        return self.shape[self.axis]

    @property
    def target(self) -> float | None:
        """The share of the copy that is to be reached; None where none was set."""
        if self.n_bytes < LARGE or self.n_classes < 256:
            return None
        is_last = self.axis == len(self.shape) - 1
        if is_last and self.n_classes <= 32_768:
            return 0.9
        return 0.8 if self.n_classes <= 131_072 else 0.65


def workloads(n_elements: int = 2**26) -> list[Workload]:
    """Every workload: many frames of each length, few frames, the first axis and a middle one, by dtype."""
    found = []
    for op in (FORWARD, BACKWARD):
        for dtype in SIZES:
            shapes = [((max(1, n_elements // n), n), 1) for n in CLASSES]
            shapes += [((8, n), 1) for n in (1000, 32_000, 128_256, 1_000_003)]
            shapes += [((n, max(1, n_elements // n)), 0) for n in (10, 256, 1003, 2048, 4096, 6000, 8192, 32_000)]
            shapes += [((max(1, n_elements // (n * 65_536)), n, 256, 256), 1) for n in (21, 150, 1000)]
            shapes += [((n_elements // (1000 * 7), 1000, 7), 1)]  # fewer than 32 bytes side by side
            found += [Workload(shape, axis, dtype, op) for shape, axis in shapes]
    return found


def reached(found: dict[str, Any]) -> bool:
    """Whether a summary is what was aimed at: no row misses its target, and lsm is ahead of what peers there are."""
    if found["missed"]:
        return False
    return found["rows_with_peers"] == 0 or (found["geometric_mean"] > 1 and found["share_led"] >= 0.9)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean of the best peer's time by lsm's, rows that lsm leads, and rows that miss their target.

    A row has "times" by contestant, in seconds, "share" of the copy and "target".
    """
    ratios = []
    for row in rows:
        peers = [seconds for name, seconds in row["times"].items() if name != "lsm"]
        if peers and "lsm" in row["times"]:
            ratios.append(min(peers) / row["times"]["lsm"])
    missed = [row["name"] for row in rows if row["target"] is not None and row["share"] < row["target"]]
    return {
        "rows": len(rows),
        "rows_with_peers": len(ratios),
        "geometric_mean": math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None,
        "share_led": sum(ratio > 1 for ratio in ratios) / len(ratios) if ratios else None,
        "missed": missed,
    }
