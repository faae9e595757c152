"""Error beside speed: how far a result is from the exact values, on the same data as the time; and `lsm check --peers`.

docs/benchmarks.md says in what an error counts, and what bound holds. A gradient is a function of the dy and y that
were given; for the data "label" its error counts in ulps of the gradient itself. Forward+backward it is held to the
exact gradient by x, and y's own rounding, which moves the second term by exp(y) * S * |y|, counts as a term too.
"""

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lsm._check import np_dtype
from lsm._conformance import losses, oracle
from lsm._stopping import raise_if_stopped
from lsm._texts import describe_error, for_json
from lsm.bench import peers
from lsm.bench.data import WRITTEN, Array, Data
from lsm.bench.implementation import FUNCTIONS, OUT, Implementation
from lsm.bench.options import DTYPES, KINDS_OF_DATA
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, SIGNATURES, Case

N_CHECKED = 2**20  # elements of a row that are checked: about a second
N_BY_DECIMAL = 2**10  # elements, where longdouble is not wide enough
PEER_ULP = 4.0  # float32's bound in lsm
# Bounds that both steps keep: one for the second, and two for the first, for an ulp of y may be two of the product
# exp(y) * S * |y|; and exp of y's rounding error, up to 1/16 in bfloat16, is not quite linear.
BOTH_STEPS_RATIO = 3.1

# Of `lsm check --peers`.
N_CLASSES = (10, 1000, 50_257, 2**20)
N_ELEMENTS = 2**17  # of a case, where its frames are shorter


class Reference:
    """The exact values of some frames of a case; of a single long one those of some classes."""

    def __init__(self, case: Case, data: Data, n_elements: int = N_CHECKED) -> None:
        self.case, self.op, self._host = case, case.op, data.host
        self._dtype = dtype = np_dtype(case.result_dtype)
        self._signature = SIGNATURES[case.op]
        n = n_elements if oracle.is_quick(dtype) else N_BY_DECIMAL
        self.n_frames = max(1, min(case.n_frames, n // case.n_classes))
        shape = np.moveaxis(data.out, case.axis, -1).shape[:-1]
        frames = np.linspace(0, case.n_frames - 1, self.n_frames).astype(int)
        self._index: Any = np.unravel_index(frames, shape) if shape else ()
        length = {"out": case.n_classes, "total": 1, "best": case.k}[self._signature.result]
        self._shape, self._is_reduced = (*shape, length), self._signature.result == "total"
        self._classes: Any = slice(None)  # of a long frame, some
        sizes, exact = self._sizes(), self._values()
        if case.data == "label":
            y = oracle.log_softmax(self._of("x")) if case.op == BOTH else np.zeros(1)  # its rounding counts
            exact = exact._replace(at=np.maximum(np.abs(exact.value), np.exp(y) * np.abs(y)))
        at = np.where(np.isfinite(exact.at), np.abs(exact.at), 0)
        self._frame_ulp = oracle.spacing(np.maximum(at.max(axis=-1), sizes), dtype)
        if (n_there := exact.value.shape[-1]) > n:
            self._classes = np.linspace(0, n_there - 1, n).astype(int)
            exact = exact.part((..., self._classes))
        self._exact = exact

    def _of(self, name: str) -> Array:
        """What is checked of an array; classes along the last axis."""
        frames: Array = np.moveaxis(self._host[name], self.case.axis, -1)[self._index]
        return frames

    def _sizes(self) -> Any:
        """What of each frame is subtracted from another number, at most, and about: exp(y) * sum(|dy|), say."""
        if self.op in (FORWARD, "softmax"):
            return 0
        if self.op in ("entropy", "cross_entropy_value_and_grad"):  # probabilities from 1
            return 1.0 if self.op == "entropy" else 1 / self.case.n_frames
        if self.op == "logsumexp":
            return np.abs(self._of("x").max(axis=-1).astype(oracle.LD))
        if self.op in ("take_log_softmax", "top_k_log_softmax", "cross_entropy", "kl_divergence"):
            sizes = [np.abs(oracle.log_softmax(self._of(name))) for name in ("x", "q") if name in self._signature.given]
            return sum(np.where(np.isfinite(size), size, 0).max(axis=-1) for size in sizes)
        dy = np.abs(self._of("dy").astype(np.float64))
        if self.op == "softmax_backward":
            p = self._of("p").astype(np.float64)
            return p.max(axis=-1) * (p * dy).sum(axis=-1)
        y = self._of("y") if self.op == BACKWARD else oracle.log_softmax(self._of("x"))
        with np.errstate(all="ignore"):
            return np.exp(y.max(axis=-1).astype(np.float64)) * dy.sum(axis=-1)

    def _values(self) -> oracle.Exact:
        """The exact values; of what is reduced, with length 1 along the last axis."""
        dtype, of, n_frames = self._dtype, self._of, self.case.n_frames
        by_op = {
            BOTH: lambda: oracle.exact_gradient(of("dy"), of("x")),
            "take_log_softmax": lambda: losses.at_classes(of("x"), of("at"), dtype),
            "top_k_log_softmax": lambda: losses.at_classes(of("x"), losses.largest(of("x"), self.case.k), dtype),
            "cross_entropy": lambda: oracle.Exact(*[-part for part in losses.at_classes(of("x"), of("at"), dtype)]),
            "cross_entropy_value_and_grad": lambda: losses.exact(losses.gradient(of("x"), of("at")) / n_frames),
            "entropy": lambda: losses.exact(losses.entropy(of("x"))),
            "kl_divergence": lambda: losses.exact(losses.divergence(of("x"), of("q"))),
        }
        if self.op in by_op:
            return by_op[self.op]()
        inputs = [of(name) for name in self._signature.given.split(", ")]
        return oracle.REFERENCES[FUNCTIONS.get(self.op, self.op)].exact(*inputs, dtype=dtype)

    def check(self, result: Array, one: Implementation) -> None:
        """Compare a result, and note the worst of all; without a declared bound it is held to the peers', by frames."""
        entry, is_declared = one.entry, one.bound_ulp is not None
        bound = one.bound_ulp if one.bound_ulp is not None else PEER_ULP
        bound *= BOTH_STEPS_RATIO if self.op == BOTH else 1
        bound *= 2 if self.op == "kl_divergence" and self._dtype == np.float64 else 1  # which has no wider type
        frames = result[..., np.newaxis] if self._is_reduced else np.moveaxis(result, self.case.axis, -1)
        found = [math.inf] * 3
        if result.dtype == self._dtype and frames.shape == self._shape:
            frames = frames[self._index][..., self._classes]
            with np.errstate(all="ignore"):
                off = np.abs((frames.astype(oracle.LD) - self._exact.value) - self._exact.rest)
                off[frames == self._exact.value] = 0  # infinities
                errors = (self._exact.ulps(frames), off.max(axis=-1) / self._frame_ulp, off)
                found = [float(np.nan_to_num(some, nan=np.inf, posinf=np.inf).max()) for some in errors]
        before = (entry.max_ulp, entry.max_frame_ulp, entry.max_abs_error)
        worst = [max(new, old or 0) for new, old in zip(found, before, strict=True)]
        entry.max_ulp, entry.max_frame_ulp, entry.max_abs_error = worst
        entry.bound_ulp, entry.bound_is_declared = bound, is_declared
        entry.is_right = worst[0 if is_declared else 1] <= bound


def check(one: Implementation, exact: Reference) -> None:
    """Call it and note how far the result is off; one that is old, or not filled, does not pass for new."""
    try:
        for name in filter(one.names.__contains__, WRITTEN):
            one.names[name][...] = math.nan
        start = time.perf_counter()
        value: Any = one.call()
        took = time.perf_counter() - start
        raise_if_stopped()
        exact.check(one.to_numpy(one.names[SIGNATURES[exact.op].result] if one.way == OUT else value), one)
        one.entry.first_call_ms = one.entry.first_call_ms or one.setup_ms + took * 1e3
    except Exception as error:  # the row goes on without it
        one.entry.error = describe_error(error)


def measured(
    wanted: str | None, progress: Callable[[list[Any]], Iterable[Any]], n_classes: Iterable[int] = N_CLASSES
) -> dict[str, Any]:
    """Measure one backend of lsm, or all, and every peer on every case, over which `progress` iterates.

    In the "rows", "ulps" has by implementation a number, "inf" for a result that is not finite, or why there is none.
    """
    makers, absent = peers.usable((), "cpu")
    backends = [name.removeprefix("lsm ") for name in makers if name.startswith("lsm ")]
    if wanted is not None and wanted not in backends:
        raise ValueError(f"there is no backend {wanted!r}; accepted: {', '.join(backends)}")
    cases = [
        Case(data, (max(1, N_ELEMENTS // n), n), dtype=dtype, op=op, data=data)
        for dtype in DTYPES
        for n in n_classes
        for data in KINDS_OF_DATA
        for op in ((BACKWARD, BOTH) if data == "label" else (FORWARD, BACKWARD, BOTH))
    ]
    rows = []
    warnings.simplefilter("ignore")  # the peers' own: NumPy's idiom overflows
    for case in progress(cases):
        data, entries = Data(case, [case.op]), {}
        exact = Reference(case, data, data.x.size)
        for one in peers.made(makers, case, data, 1)[0]:
            if one.name not in entries and (one.backend is None or wanted in (None, one.backend)):
                entries[one.name] = one.entry
                check(one, exact)
        row = {"op": case.op, "dtype": case.dtype, "data": case.data, "classes": case.n_classes}
        row["ulps"] = {name: e.error or for_json(e.max_ulp) for name, e in entries.items()}
        row["beyond"] = [name for name, entry in entries.items() if entry.backend and not entry.is_right]
        rows.append(row)
        gc.collect()
    return {"absent": absent, "rows": rows}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A table in Markdown for each operation; the worst over all numbers of classes."""
    rows = found["rows"]
    for op in (FORWARD, BACKWARD, BOTH):
        here = [row for row in rows if row["op"] == op]
        names = list(dict.fromkeys(name for row in here for name in row["ulps"]))
        yield f"| {op} | data | {' | '.join(names)} |"
        yield f"|---|---|{'---|' * len(names)}"
        for dtype, data in dict.fromkeys((row["dtype"], row["data"]) for row in here):
            some = [row["ulps"] for row in here if (row["dtype"], row["data"]) == (dtype, data)]
            cells = (_largest([ulps[name] for ulps in some if name in ulps]) for name in names)
            yield f"| {dtype} | {data} | {' | '.join(cells)} |"
        yield ""
    yield from (f"{name}: {reason}" for name, reason in found["absent"].items())
    for row in rows:
        if row["beyond"]:
            about = f"{row['op']}, {row['dtype']}, {row['data']}, {row['classes']} classes"
            yield f"beyond the bound: {', '.join(row['beyond'])} ({about})"


def _largest(cells: list[Any]) -> str:
    texts = [cell for cell in cells if isinstance(cell, str)]
    return texts[0] if texts else f"{max(cells):.3g}" if cells else "none"
