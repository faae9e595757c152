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
from typing import Any, NamedTuple

import numpy as np

from lsm._check import np_dtype
from lsm._conformance import losses, oracle
from lsm.bench.data import Array, Data
from lsm.bench.workloads import (
    BACKWARD,
    BOTH,
    ENTROPY,
    FORWARD,
    KL,
    LOGSUMEXP,
    LOSS,
    LOSS_GRAD,
    REDUCED,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    TAKE,
    TOP_K,
    Case,
)

N_CHECKED = 2**20  # elements of a row that are checked: about a second
N_BY_DECIMAL = 2**10  # elements, where longdouble is not wide enough
PEER_ULP = 4.0  # float32's bound in lsm
# Bounds that both steps keep: one for the second, and two for the first, for an ulp of y may be two of the product
# exp(y) * S * |y|; and exp of y's rounding error, up to 1/16 in bfloat16, is not quite linear.
BOTH_STEPS_RATIO = 3.1


class Accuracy(NamedTuple):
    """How far off a result is at most."""

    max_ulp: float
    max_frame_ulp: float
    max_abs_error: float
    bound_ulp: float
    is_right: bool


class Reference:
    """The exact values of some frames of a case; of a single long one those of some classes."""

    def __init__(self, case: Case, data: Data, n_elements: int = N_CHECKED) -> None:
        dtype = np_dtype(case.result_dtype)
        n = n_elements if oracle.is_quick(dtype) else N_BY_DECIMAL
        self.op, self._dtype, self._axis = case.op, dtype, case.axis
        axis, length = case.axis % len(case.shape), [] if case.op in REDUCED else [case.n_classes]
        length = [case.k] if case.op == TOP_K else length
        self._shape = (*case.shape[:axis], *length, *case.shape[axis + 1 :])
        self.n_frames = max(1, min(case.n_frames, n // case.n_classes))
        frames = np.linspace(0, case.n_frames - 1, self.n_frames).astype(int)
        shape = np.moveaxis(data.out, case.axis, -1).shape[:-1]
        self._index: Any = np.unravel_index(frames, shape) if shape else ()
        self._classes: Any = slice(None)  # of a long frame, some
        sizes = self._second_terms(data)
        self._exact = self._values(case, data)
        if case.data == "label":
            y = oracle.log_softmax(self._of(data.x)) if case.op == BOTH else np.zeros(1)  # its rounding counts
            at = np.maximum(np.abs(self._exact.value), np.exp(y) * np.abs(y))
            self._exact = self._exact._replace(at=at)
        at = np.where(np.isfinite(self._exact.at), np.abs(self._exact.at), 0)
        self._frame_ulp = oracle.spacing(np.maximum(at.max(axis=-1), sizes), dtype)
        if (n_there := self._exact.value.shape[-1]) > n:
            self._classes = np.linspace(0, n_there - 1, n).astype(int)
            self._exact = self._exact.part((..., self._classes))

    def _second_terms(self, data: Data) -> Any:
        """What of each frame is subtracted from another number, at most, and about: exp(y) * sum(|dy|), say."""
        if self.op in (FORWARD, SOFTMAX):
            return 0
        if self.op in (ENTROPY, LOSS_GRAD):  # probabilities from 1
            return 1.0 if self.op == ENTROPY else 1 / data.case.n_frames
        if self.op in (TAKE, TOP_K, LOSS, KL):
            given = [data.x] if data.q is None or self.op != KL else [data.x, data.q]
            sizes = [np.abs(oracle.log_softmax(self._of(array))) for array in given]
            return sum(np.where(np.isfinite(size), size, 0).max(axis=-1) for size in sizes)
        if self.op == LOGSUMEXP:
            return np.abs(self._of(data.x).max(axis=-1).astype(oracle.LD))
        with np.errstate(all="ignore"):
            if self.op == SOFTMAX_BACKWARD:
                p = self._of(data.p).astype(np.float64)
                return p.max(axis=-1) * (p * np.abs(self._of(data.dy).astype(np.float64))).sum(axis=-1)
            if self.op == BACKWARD:
                p = np.exp(self._of(data.y).max(axis=-1).astype(np.float64))
            else:
                x = self._of(data.x).astype(np.float32 if data.x.dtype.itemsize < 4 else data.x.dtype)
                p = 1 / np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1, dtype=np.float64)
            return p * np.abs(self._of(data.dy).astype(p.dtype)).sum(axis=-1)

    def _values(self, case: Case, data: Data) -> oracle.Exact:
        """The exact values; of what is reduced, with length 1 along the last axis."""
        x, dtype, of = self._of(data.x), self._dtype, self._of
        labels = np.zeros(1) if data.labels is None else data.labels[self._index][..., np.newaxis]
        by_op = {
            FORWARD: lambda: oracle.exact_log_softmax(x, dtype),
            BACKWARD: lambda: oracle.exact_backward(of(data.dy), of(data.y)),
            BOTH: lambda: oracle.exact_gradient(of(data.dy), x),
            SOFTMAX: lambda: oracle.exact_softmax(x, dtype),
            SOFTMAX_BACKWARD: lambda: oracle.exact_softmax_backward(of(data.dy), of(data.p)),
            LOGSUMEXP: lambda: oracle.exact_logsumexp(x, dtype),
            TAKE: lambda: losses.at_classes(x, labels, dtype),
            TOP_K: lambda: losses.at_classes(x, losses.largest(x, case.k), dtype),
            LOSS: lambda: oracle.Exact(*[-part for part in losses.at_classes(x, labels, dtype)]),
            LOSS_GRAD: lambda: losses.exact(losses.gradient(x, labels) / case.n_frames),
            ENTROPY: lambda: losses.exact(losses.entropy(x)),
            KL: lambda: losses.exact(losses.divergence(x, of(data.q))),
        }
        return by_op[case.op]()

    def spoil(self, out: Array) -> None:
        """Make the checked frames of a preallocated result NaN, so that an old result does not pass for a new one."""
        self._frames(out)[self._index] = np.nan

    def check(self, result: Array, declared_ulp: float | None) -> Accuracy:
        """Compare a result; without a declared bound it is held to the peers', by frames."""
        bound = PEER_ULP if declared_ulp is None else declared_ulp
        bound *= BOTH_STEPS_RATIO if self.op == BOTH else 1
        bound *= 2 if self.op == KL and self._dtype == np.float64 else 1  # which has no wider type
        if result.dtype != self._dtype or result.shape != self._shape:
            return Accuracy(math.inf, math.inf, math.inf, bound, is_right=False)
        frames = self._frames(result)[self._index][..., self._classes]
        exact = self._exact
        with np.errstate(all="ignore"):
            off = np.abs((frames.astype(oracle.LD) - exact.value) - exact.rest)
            off[frames == exact.value] = 0  # infinities
            errors = (exact.ulps(frames), off.max(axis=-1) / self._frame_ulp, off)
            ulps, frame_ulps, largest = (float(np.nan_to_num(some, nan=np.inf, posinf=np.inf).max()) for some in errors)
        is_right = (frame_ulps if declared_ulp is None else ulps) <= bound
        return Accuracy(ulps, frame_ulps, largest, bound, is_right)

    def _frames(self, result: Array) -> Array:
        """A result with the classes along the last axis."""
        return result[..., np.newaxis] if self.op in REDUCED else np.moveaxis(result, self._axis, -1)

    def _of(self, array: Any) -> Array:
        """What is checked of an array; classes along the last axis."""
        frames: Array = np.moveaxis(array, self._axis, -1)[self._index]
        return frames
