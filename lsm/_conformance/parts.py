"""Checks of frames in parts, for backends with partials: the contract, the bits of whole frames, the bound."""

from itertools import pairwise
from typing import Any

import numpy as np

from lsm._conformance.arrays import CONTIGUOUS, GUARD, LAYOUTS, Array, GuardedArray, Layout, bits
from lsm._conformance.oracle import LD
from lsm._conformance.samples import Sample, frames
from lsm._conformance.subject import Check, Subject, require, show
from lsm._operations import (
    LOG_SOFTMAX,
    LOG_SOFTMAX_BACKWARD,
    LOGSUMEXP,
    OF_PART,
    PARTIALS,
    PARTIALS_BACKWARD,
    SOFTMAX,
)

KINDS = ("ordinary", "peaked", "masked", "constant")
NEUTRAL = np.array([-np.inf, 0, 0, 0])


def slice_classes(subject: Subject) -> int:
    """The number of classes in a slice."""
    return int(subject.backend.slice_classes[subject.dtype_name])


def call(subject: Subject, method: str, inputs: tuple[Array, ...], axis: int, out: Array, layout: Layout) -> Array:
    """The result that a method writes to an array like `out`; it may change nothing else."""
    made = [GuardedArray(array, subject.maker, subject.device, layout) for array in inputs]
    target = GuardedArray(out, subject.maker, subject.device, CONTIGUOUS if method in OF_PART else layout)
    returned = getattr(subject.backend, method)(*[array.array for array in made], axis, target.array)
    require(returned is None or returned is target.array, f"{method} returned an object; it must return None, or out")
    require(all(array.is_unchanged() for array in made), f"{method} changed an input; it may write only to out")
    require(target.guards_are_unchanged(), f"{method} wrote to memory outside out")
    result = target.values()
    is_left = result == GUARD
    require(not is_left.any(), f"{method} did not write {int(is_left.sum())} of the {result.size} elements of out")
    return result


def partials(subject: Subject, x: Array, axis: int = -1, layout: Layout = CONTIGUOUS) -> Array:
    """The partials of some frames."""
    axis %= x.ndim
    n_slices = -(-x.shape[axis] // slice_classes(subject))
    out = np.full((*x.shape[:axis], n_slices, *x.shape[axis + 1 :], 4), GUARD)
    return call(subject, PARTIALS, (x,), axis, out, layout)


def of_part(subject: Subject, name: str, x: Array, p: Array, axis: int = -1, layout: Layout = CONTIGUOUS) -> Array:
    """The log-softmax or softmax of a part of frames with these partials."""
    return call(subject, f"{name}_of_part", (x, p), axis % x.ndim, np.full(x.shape, GUARD, x.dtype), layout)


def sample(subject: Subject, n: int) -> Sample:
    """Frames of some kinds with n classes."""
    rng = subject.rng()
    return Sample(np.concatenate([frames(kind, (1, n), subject.dtype, rng) for kind in KINDS]), rng)


def cuts(n: int, unit: int) -> list[slice]:
    """Parts of no, one and two slices, and the rest."""
    edges = [0, min(unit, n), min(unit, n), min(3 * unit, n), n]
    return [slice(a, b) for a, b in pairwise(edges)]


def contract(subject: Subject) -> None:
    """Give the largest class, the number equal to it, of all, and the sum of the others; specials as defined."""
    unit = slice_classes(subject)
    n = unit + 3
    x = sample(subject, n).inputs(LOG_SOFTMAX)[0]
    p = partials(subject, x)
    for i, part in enumerate((x[:, :unit], x[:, unit:])):
        m = part.astype(LD).max(axis=1, keepdims=True)
        want = np.concatenate([m, (part == m).sum(axis=1, keepdims=True), np.full(m.shape, part.shape[1])], 1)
        found = p[:, i, [0, 2, 3]]
        require((found == want).all(), f"partials: m, k and n are {show(found)}, not {show(want)}")
        with np.errstate(all="ignore"):
            s = np.where(part < m, np.exp(part.astype(LD) - m), 0).sum(axis=1)
        loose = 2.0**-20 if subject.dtype.itemsize < 8 else 2.0**-48  # the results are checked more strictly below
        require((np.abs(p[:, i, 1] - s) <= loose * s).all(), f"partials: s is {show(p[:, i, 1])}, not {show(s)}")
    x[0, 1], x[1, 1], x[2, :2], x[3, :unit] = np.nan, np.inf, (np.inf, np.nan), -np.inf
    first = [[np.nan, np.nan, 0, unit], [np.inf, np.nan, 0, unit], [np.nan, np.nan, 0, unit], [-np.inf, 0, 0, unit]]
    found = partials(subject, x)[:, 0]
    require(
        bits(found) == bits(np.array(first)), f"partials of NaN, inf, both, -inf only: {found.tolist()}, not {first}"
    )


def whole_frames(subject: Subject) -> float:
    """Give parts the results of whole frames, within the bound; with same_bits, bit by bit, however grouped."""
    unit, worst = slice_classes(subject), 0.0
    for n in (1, 5, 64, 65, unit, 2 * unit + 65, 3 * unit + 1):
        made = sample(subject, n)
        (x,) = made.inputs(LOG_SOFTMAX)
        p = partials(subject, x)
        parts = [partials(subject, x[:, cut]) if cut.start < cut.stop else p[:, :0] for cut in cuts(n, unit)]
        if subject.same_bits:
            require(bits(np.concatenate(parts, 1)) == bits(p), f"partials of {n} classes: different bits from parts")
        neutral = np.broadcast_to(NEUTRAL, (len(x), 1, 4))
        spread = np.concatenate([neutral, *[array for part in parts for array in (part, neutral)]], 1)
        for operation in (LOG_SOFTMAX, SOFTMAX):
            whole = subject.run(operation, (x,)) if operation in subject.operations else None
            exact, what = made.exact(operation), f"{operation.name}_of_part, {n} classes"
            filled = [cut for cut in cuts(n, unit) if cut.start < cut.stop]
            y = np.concatenate([of_part(subject, operation.name, x[:, cut], spread) for cut in filled], 1)
            worst = max(worst, subject.worst(y, exact, what))
            if whole is not None:
                subject.agree(y, whole, exact, what)
            for layout in LAYOUTS[1:4]:
                q = partials(subject, x.T, 0, layout)
                subject.agree(of_part(subject, operation.name, x.T, q, 0, layout).T, y, exact, f"{what}, {layout.name}")
    return worst


def totals(subject: Subject) -> float:
    """Give logsumexp of partials, in ulps of the larger of it and the largest class; NaN, inf and -inf as defined."""
    unit, worst = slice_classes(subject), 0.0
    for n in (5, unit + 7):
        made = sample(subject, n)
        (x,) = made.inputs(LOG_SOFTMAX)
        exact = made.exact(LOGSUMEXP)
        exact = exact._replace(at=np.maximum(np.abs(exact.value), np.abs(x.max(axis=1, keepdims=True))))
        worst = max(worst, subject.worst(_total(subject, partials(subject, x)), exact, f"logsumexp, {n} classes"))
    x[0, 1], x[1, 1], x[2], x[3, [1, -1]] = np.nan, np.inf, -np.inf, (np.nan, np.inf)
    found, want = _total(subject, partials(subject, x))[:, 0], np.array([np.nan, np.inf, -np.inf, np.nan])
    require(np.array_equal(found.astype(LD), want, equal_nan=True), f"logsumexp_of_partials: {found}, not {want}")
    return worst


def _total(subject: Subject, p: Array) -> Any:
    out = np.full((len(p), 1), GUARD, subject.dtype)
    return call(subject, "logsumexp_of_partials", (p,), 1, out, CONTIGUOUS)


def partials_of_gradient(subject: Subject, dy: Array, y: Array, axis: int = -1, layout: Layout = CONTIGUOUS) -> Array:
    """The partials of gradients."""
    axis %= dy.ndim
    n_slices = -(-dy.shape[axis] // slice_classes(subject))
    out = np.full((*dy.shape[:axis], n_slices, *dy.shape[axis + 1 :], 6), GUARD)
    return call(subject, PARTIALS_BACKWARD, (dy, y), axis, out, layout)


def gradient_of_part(
    subject: Subject, dy: Array, y: Array, q: Array, axis: int = -1, layout: Layout = CONTIGUOUS
) -> Array:
    """The gradient of a part of frames with these partials."""
    out = np.full(dy.shape, GUARD, dy.dtype)
    return call(subject, "log_softmax_backward_of_part", (dy, y, q), axis % dy.ndim, out, layout)


def gradient_contract(subject: Subject) -> None:
    """Give the sum with its error, even of huge numbers, and count the classes that make a frame NaN or masked."""
    unit = slice_classes(subject)
    dy, y = sample(subject, unit + 3).inputs(LOG_SOFTMAX_BACKWARD)
    y[0, 1], y[1, 1], y[2, unit:], y[3, [0, -1]] = np.nan, np.inf, -np.inf, 1000
    dy[3, :2] = np.finfo(dy.dtype).max if dy.dtype.kind == "f" else 1
    q = partials_of_gradient(subject, dy, y)
    for i, classes in enumerate((slice(0, unit), slice(unit, None))):
        of_dy, of_y = dy[:, classes].astype(LD), y[:, classes].astype(LD)
        end = 88 if subject.dtype.itemsize < 8 else 709
        want = np.stack([(~(of_y < end)).sum(1), (of_y > -np.inf).sum(1) + np.isnan(of_y).sum(1)], 1)
        found = q[:, i, 3:]
        require((found[:, :2] == want).all(), f"partials_backward: counts {show(found[:, :2])}, not {show(want)}")
        require((found[:, 2] == of_dy.shape[1]).all(), f"partials_backward: {show(found[:, 2])} classes")
        s, loose = of_dy.sum(1), 2.0**-50 * np.abs(of_dy).sum(1)
        scaled = q[:, i, 2].astype(LD) * 2.0**40
        require((np.abs(scaled - s) <= loose).all(), f"partials_backward: S * 2**-40 is {q[:, i, 2]}")
        total = q[:, i, 0].astype(LD) + q[:, i, 1]
        is_right = (np.abs(total - s) <= loose) | (np.abs(s) > np.finfo(np.float64).max)
        require(is_right.all(), f"partials_backward: S and its error are {q[:, i, :2].tolist()}")


def gradients(subject: Subject) -> float:
    """Give parts the gradient of whole frames, within the bound; with same_bits, bit by bit."""
    unit, worst = slice_classes(subject), 0.0
    for n in (1, 5, 64, 65, unit, 2 * unit + 65):
        made = sample(subject, n)
        dy, y = made.inputs(LOG_SOFTMAX_BACKWARD)
        exact, what = made.exact(LOG_SOFTMAX_BACKWARD), f"log_softmax_backward_of_part, {n} classes"
        filled = [cut for cut in cuts(n, unit) if cut.start < cut.stop]
        neutral = np.zeros((len(dy), 1, 6))
        parts = [partials_of_gradient(subject, dy[:, cut], y[:, cut]) for cut in filled]
        q = np.concatenate([neutral, *[array for part in parts for array in (part, neutral)]], 1)
        dx = np.concatenate([gradient_of_part(subject, dy[:, cut], y[:, cut], q) for cut in filled], 1)
        worst = max(worst, subject.worst(dx, exact, what))
        subject.agree(dx, subject.run(LOG_SOFTMAX_BACKWARD, (dy, y)), exact, what)
        for layout in LAYOUTS[1:4]:
            q = partials_of_gradient(subject, dy.T, y.T, 0, layout)
            found = gradient_of_part(subject, dy.T, y.T, q, 0, layout).T
            subject.agree(found, dx, exact, f"{what}, {layout.name}")
    return worst


CHECKS = (
    Check("partials: their values", contract, operation=PARTIALS),
    Check("partials: parts as whole frames", whole_frames, operation=PARTIALS, is_quick=True),
    Check("partials: logsumexp", totals, operation=PARTIALS, is_quick=True),
    Check("partials_backward: their values", gradient_contract, operation=PARTIALS_BACKWARD),
    Check("partials_backward: parts as whole frames", gradients, operation=PARTIALS_BACKWARD, is_quick=True),
)
