"""Error beside speed: how far a result is from the exact values, on the same data as the time.

The exact values come from the conformance kit's oracle, which is slow: of large arrays some frames are checked, evenly
chosen. Forward, an error counts in ulps of the exact output. Backward it counts in ulps of the largest of the gradient
and its two terms, as a function of the dy and y that were given; for the data "label" in ulps of the gradient itself.
Forward+backward it is held to the exact gradient by x, and y's own rounding, which moves the second term by
exp(y) * S * |y| for each relative error, counts as a term too; the bound is that of both steps together. The other
operations are held to what the oracle says of them.

A backend of lsm is held to the bound that it declares, element by element. Peers declare none, and near 0 all lose
every digit. They are held to PEER_ULP of the largest of each frame, where their sums count as sum(|dy|): what plain
arithmetic in the dtype gives.
"""

import math
import time
from typing import Any

import numpy as np

from lsm._check import np_dtype
from lsm._conformance import losses, oracle
from lsm._stopping import raise_if_stopped
from lsm._texts import describe_error
from lsm.bench.data import WRITTEN, Array, Data
from lsm.bench.implementation import FUNCTIONS, OUT, Implementation
from lsm.bench.result import Entry
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, SIGNATURES, Case

N_CHECKED = 2**20  # elements of a row that are checked: about a second
N_BY_DECIMAL = 2**10  # elements, where longdouble is not wide enough
PEER_ULP = 4.0  # float32's bound in lsm
# Bounds that both steps keep: one for the second, and two for the first, for an ulp of y may be two of the product
# exp(y) * S * |y|; and exp of y's rounding error, up to 1/16 in bfloat16, is not quite linear.
BOTH_STEPS_RATIO = 3.1


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
            given = ("x", "q") if self.op == "kl_divergence" else ("x",)
            sizes = [np.abs(oracle.log_softmax(self._of(name))) for name in given]
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

    def check(self, result: Array, entry: Entry, declared_ulp: float | None) -> None:
        """Compare a result, and note the worst of all; without a declared bound it is held to the peers', by frames."""
        bound = PEER_ULP if declared_ulp is None else declared_ulp
        bound *= BOTH_STEPS_RATIO if self.op == BOTH else 1
        bound *= 2 if self.op == "kl_divergence" and self._dtype == np.float64 else 1  # which has no wider type
        frames = result[..., np.newaxis] if self._is_reduced else np.moveaxis(result, self.case.axis, -1)
        if result.dtype == self._dtype and frames.shape == self._shape:
            frames = frames[self._index][..., self._classes]
            with np.errstate(all="ignore"):
                off = np.abs((frames.astype(oracle.LD) - self._exact.value) - self._exact.rest)
                off[frames == self._exact.value] = 0  # infinities
                errors = (self._exact.ulps(frames), off.max(axis=-1) / self._frame_ulp, off)
                found = [float(np.nan_to_num(some, nan=np.inf, posinf=np.inf).max()) for some in errors]
        else:
            found = [math.inf] * 3
        before = (entry.max_ulp, entry.max_frame_ulp, entry.max_abs_error)
        worst = [max(new, old or 0) for new, old in zip(found, before, strict=True)]
        entry.max_ulp, entry.max_frame_ulp, entry.max_abs_error = worst
        entry.bound_ulp, entry.bound_is_declared = bound, declared_ulp is not None
        entry.is_right = (worst[1] if declared_ulp is None else worst[0]) <= bound


def check(one: Implementation, entry: Entry, exact: Reference) -> None:
    """Call it and note how far the result is off; an old result does not pass for new, nor an array that is not filled.

    The first such call is timed. One that raises says so in the entry.
    """
    try:
        for name in filter(one.names.__contains__, WRITTEN):
            one.names[name][...] = math.nan
        start = time.perf_counter()
        value: Any = one.call()
        took = time.perf_counter() - start
        raise_if_stopped()
        value = one.names[SIGNATURES[exact.op].result] if one.way == OUT else value
        exact.check(one.to_numpy(value), entry, one.bound_ulp)
    except Exception as error:  # the row goes on without it
        entry.error = describe_error(error)
        return
    if entry.first_call_ms is None:
        entry.first_call_ms = one.setup_ms + took * 1e3
