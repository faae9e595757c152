"""Checks of the error against the exact value, on finite frames of every kind."""

from functools import partial
from typing import Any
from unittest import SkipTest

import numpy as np

from lsm._check import dtype_name
from lsm._conformance.oracle import is_quick
from lsm._conformance.samples import KINDS, Sample, frames
from lsm._conformance.subject import Check, Subject
from lsm._operations import LOG_SOFTMAX_BACKWARD, OPERATIONS, Operation

N_CLASSES = (1, 2, 3, 10, 33, 64, 257, 1000, 4097)
N_CLASSES_BY_DECIMAL = (1, 2, 10, 65)


def shapes(dtype: np.dtype[Any]) -> list[tuple[int, int]]:
    """The tested numbers of frames and classes: fewer where the exact values take long."""
    if is_quick(dtype):
        return [(max(1, min(60, 6000 // n)), n) for n in N_CLASSES]
    return [(3, n) for n in N_CLASSES_BY_DECIMAL]


def is_accurate(subject: Subject, operation: Operation, kind: str) -> float:
    """One operation on frames of one kind; gradients have both signs, log-probabilities are the exact ones, rounded."""
    rng, worst = subject.rng(), 0.0
    for shape in shapes(subject.dtype):
        sample = Sample(frames(kind, shape, subject.dtype, rng), rng)
        worst = max(worst, subject.worst_of(sample, f"{KINDS[kind]} of {shape[1]} classes", [operation]))
    return worst


def gradient_does_not_vanish(subject: Subject, operation: Operation) -> float:
    """Where one class is certain and is the label, errors are measured in ulps of the gradient itself."""
    rng, worst = subject.rng(), 0.0
    for shape in shapes(subject.dtype)[1:]:
        x = frames("peaked", shape, subject.dtype, rng)
        dy = np.zeros_like(x)
        np.put_along_axis(dy, x.argmax(axis=-1)[:, None], -1, axis=-1)
        sample = Sample(x, rng, given={"gradient": dy})
        exact = sample.exact(operation)
        what = f"{operation.direction} of a confident frame of {shape[1]} classes (does the gradient vanish?)"
        result = subject.run(operation, sample.inputs(operation))
        worst = max(worst, subject.worst(result, exact._replace(at=exact.value), what))
    return worst


def reduction_near_zero_is_accurate(subject: Subject, operation: Operation) -> float:
    """Logits that are log-probabilities: their exponentials sum to 1, up to rounding."""
    rng, worst = subject.rng(), 0.0
    for shape in shapes(subject.dtype)[1:]:
        x = Sample(frames("ordinary", shape, subject.dtype, rng), rng).inputs(LOG_SOFTMAX_BACKWARD)[1]
        what = f"log-probabilities of {shape[1]} classes"
        worst = max(worst, subject.worst_of(Sample(x, rng), what, [operation]))
    return worst


def long_frames_are_accurate(subject: Subject) -> float:
    """Frames of 131,073 classes; the gradients have one sign, so that rounding errors would add up."""
    rng, n, worst = subject.rng(), 2**17 + 1 if is_quick(subject.dtype) else 1025, 0.0  # the exact values take long
    for kind, x in (
        ("normal", rng.standard_normal(n) * 3),
        ("constant", np.full(n, 0.3)),
        ("rising", np.linspace(-30, 0, n)),
    ):
        sample = Sample(x.astype(subject.dtype), rng, given={"gradient": rng.random(n).astype(subject.dtype)})
        worst = max(worst, subject.worst_of(sample, f"a {kind} frame of {n} classes"))
    return worst


def other_dtypes_are_accurate(subject: Subject, operation: Operation) -> None:
    """A result of any other claimed dtype is rounded once, from the wider of the two."""
    others = subject.other_dtypes()
    if not others:
        raise SkipTest(f"claims no dtype other than {subject.dtype_name}")
    for dtype in others:
        for kind in ("ordinary", "peaked", "masked"):
            rng = subject.rng()
            sample = Sample(frames(kind, (4, 65 if is_quick(dtype) else 10), subject.dtype, rng), rng)
            what = f"{KINDS[kind]}, {subject.dtype_name} to {dtype_name(dtype)}"
            subject.worst_of(sample, what, [operation], dtype=dtype)


def _of_operation(operation: Operation, title: str, function: Any, **options: Any) -> Check:
    checked = partial(function, operation=operation, **options)
    return Check(f"{operation.direction}{title}", checked, operation=operation.name)


CHECKS = (
    *(
        _of_operation(operation, f": {title}", is_accurate, kind=kind)
        for operation in OPERATIONS.values()
        for kind, title in KINDS.items()
    ),
    *(
        _of_operation(operation, ": confident frames keep their gradient", gradient_does_not_vanish)
        for operation in OPERATIONS.values()
        if operation.reads("gradient")
    ),
    *(
        _of_operation(operation, ": log-probabilities, near 0", reduction_near_zero_is_accurate)
        for operation in OPERATIONS.values()
        if operation.is_reduction
    ),
    Check("long frames", long_frames_are_accurate),
    *(
        _of_operation(operation, " to the other dtypes", other_dtypes_are_accurate)
        for operation in OPERATIONS.values()
        if operation.has_dtype
    ),
)
