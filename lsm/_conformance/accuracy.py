"""Checks of the error against the exact value, on every kind of finite frame."""

from functools import partial
from typing import Any
from unittest import SkipTest

import numpy as np

from lsm._check import dtype_name
from lsm._conformance.arrays import Array
from lsm._conformance.oracle import Exact, exact_backward, exact_log_softmax, is_quick
from lsm._conformance.subject import Check, Subject

KINDS = {
    "ordinary": "ordinary frames",
    "peaked": "peaked frames",
    "two peaks": "frames of two peaks",
    "constant": "constant frames",
    "masked": "half masked frames",
    "far from 0": "frames far from 0",
    "huge": "huge values",
    "subnormal": "subnormal values",
}
N_CLASSES = (1, 2, 3, 10, 33, 64, 257, 1000, 4097)
N_CLASSES_BY_DECIMAL = (1, 2, 10, 65)
_RANGES = {"float16": (6e4, 6e-8), "bfloat16": (1e30, 1e-39), "float32": (1e30, 1e-40)}  # of the others below


def frames(kind: str, shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    """Logits of one kind, as `dtype` holds them."""
    x = rng.standard_normal(shape) * 3
    huge, tiny = _RANGES.get(dtype_name(dtype), (1e300, 1e-310))
    if kind == "peaked":
        k = rng.integers(0, shape[-1], shape[:-1])[..., None]
        np.put_along_axis(x, k, x.max() + rng.uniform(5, 100, k.shape), axis=-1)
    elif kind == "two peaks":
        x[..., : shape[-1] // 2 + 1] -= 60
        x[..., 0] = x[..., -1] = 30
    elif kind == "constant":
        x[...] = x[..., :1]
    elif kind == "masked":
        x[rng.random(shape) < 0.5] = -np.inf
        x[..., 0] = 1
    elif kind == "far from 0":
        x += rng.uniform(-1e4, 1e4, (*shape[:-1], 1))
    elif kind == "huge":
        x = np.clip(x / 3, -1, 1) * huge
    elif kind == "subnormal":
        x *= tiny
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def gradient(x: Array, rng: np.random.Generator) -> Array:
    """A gradient by the log-softmax of x, of both signs."""
    return np.asarray(rng.standard_normal(x.shape)).astype(x.dtype)


def shapes(dtype: np.dtype[Any]) -> list[tuple[int, int]]:
    """Frames and classes that are tried: fewer where the exact values take long."""
    if is_quick(dtype):
        return [(max(1, min(60, 6000 // n)), n) for n in N_CLASSES]
    return [(3, n) for n in N_CLASSES_BY_DECIMAL]


def rounded(exact: Exact, dtype: np.dtype[Any]) -> Array:
    """The exact values as `dtype` holds them."""
    with np.errstate(all="ignore"):
        return exact.value.astype(np.float64).astype(dtype) if dtype.itemsize == 2 else exact.value.astype(dtype)


def forward_is_accurate(subject: Subject, kind: str) -> float:
    """Forward on frames of one kind."""
    rng, worst = subject.rng(), 0.0
    for shape in shapes(subject.dtype):
        x = frames(kind, shape, subject.dtype, rng)
        what = f"forward, {KINDS[kind]} of {shape[1]} classes"
        worst = max(worst, subject.worst(subject.forward(x), exact_log_softmax(x, x.dtype), what))
    return worst


def backward_is_accurate(subject: Subject, kind: str) -> float:
    """Backward on frames of one kind, with gradients of both signs; y is the exact one, rounded."""
    rng, worst = subject.rng(), 0.0
    for shape in shapes(subject.dtype):
        x = frames(kind, shape, subject.dtype, rng)
        y = rounded(exact_log_softmax(x, x.dtype), x.dtype)
        dy = gradient(x, rng)
        what = f"backward, {KINDS[kind]} of {shape[1]} classes"
        worst = max(worst, subject.worst(subject.backward(dy, y), exact_backward(dy, y), what))
    return worst


def gradient_does_not_vanish(subject: Subject) -> float:
    """Backward where one class is certain and is the label; the error counts in ulps of the gradient itself."""
    rng, worst = subject.rng(), 0.0
    for shape in shapes(subject.dtype)[1:]:
        x = frames("peaked", shape, subject.dtype, rng)
        y = rounded(exact_log_softmax(x, x.dtype), x.dtype)
        dy = np.zeros(shape, x.dtype)
        np.put_along_axis(dy, x.argmax(axis=-1)[:, None], -1, axis=-1)
        exact = exact_backward(dy, y)
        what = f"backward of a confident frame of {shape[1]} classes (does the gradient vanish?)"
        worst = max(worst, subject.worst(subject.backward(dy, y), exact._replace(at=exact.value), what))
    return worst


def long_frames_are_accurate(subject: Subject) -> float:
    """Frames of 131,073 classes; the gradients have one sign, so that rounding errors would add up."""
    rng, n, worst = subject.rng(), 2**17 + 1 if is_quick(subject.dtype) else 1025, 0.0  # the exact values take long
    for kind, x in (
        ("normal", rng.standard_normal(n) * 3),
        ("constant", np.full(n, 0.3)),
        ("rising", np.linspace(-30, 0, n)),
    ):
        x = x.astype(subject.dtype)
        exact = exact_log_softmax(x, x.dtype)
        y, dy = rounded(exact, x.dtype), rng.random(n).astype(x.dtype)
        what = f"a {kind} frame of {n} classes"
        worst = max(worst, subject.worst(subject.forward(x), exact, f"forward, {what}"))
        worst = max(worst, subject.worst(subject.backward(dy, y), exact_backward(dy, y), f"backward, {what}"))
    return worst


def other_dtypes_are_accurate(subject: Subject) -> None:
    """Forward with out of every other dtype that is claimed: rounded once from the wider of the two."""
    others = subject.other_dtypes()
    if not others:
        raise SkipTest(f"claims no dtype beside {subject.dtype_name}")
    for dtype in others:
        for kind in ("ordinary", "peaked", "masked"):
            x = frames(kind, (4, 65 if is_quick(dtype) else 10), subject.dtype, subject.rng())
            what = f"forward, {KINDS[kind]}, {subject.dtype_name} to {dtype_name(dtype)}"
            subject.worst(subject.forward(x, dtype=dtype), exact_log_softmax(x, dtype), what)


CHECKS = (
    *(Check(f"forward: {title}", partial(forward_is_accurate, kind=kind)) for kind, title in KINDS.items()),
    *(Check(f"backward: {title}", partial(backward_is_accurate, kind=kind)) for kind, title in KINDS.items()),
    Check("backward: confident frames keep their gradient", gradient_does_not_vanish),
    Check("long frames", long_frames_are_accurate),
    Check("forward to the other dtypes", other_dtypes_are_accurate),
)
