"""Checks of what is read and written: layouts, axes, in place, read-only inputs."""

import numpy as np

from lsm._conformance.accuracy import frames, gradient, rounded
from lsm._conformance.arrays import CONTIGUOUS, LAYOUTS, Array, Layout
from lsm._conformance.oracle import exact_backward, exact_log_softmax, is_quick
from lsm._conformance.subject import Check, Subject, skip

SHAPES = ((7,), (1, 1), (5, 9), (3, 4, 6), (2, 3, 2, 3, 2), (257, 5), (2, 1, 3, 2, 2, 2), (2, 1, 2, 2, 1, 2, 2, 3))


def gradient_and_output(x: Array, axis: int, subject: Subject) -> tuple[Array, Array]:
    """A gradient, and the log-softmax of x as its dtype holds it."""
    return gradient(x, subject.rng()), rounded(exact_log_softmax(x, x.dtype, axis), x.dtype)


def is_right(subject: Subject, x: Array, axis: int, layout: Layout, out_layout: Layout) -> float:
    """Both operations in given layouts; the largest error."""
    what = f"shape {x.shape}, axis {axis}, inputs: {layout.name}, out: {out_layout.name}"
    y = subject.forward(x, axis, layout=layout, out_layout=out_layout)
    worst = subject.worst(y, exact_log_softmax(x, x.dtype, axis), f"forward, {what}")
    dy, y = gradient_and_output(x, axis, subject)
    dx = subject.backward(dy, y, axis, layout=layout, out_layout=out_layout)
    return max(worst, subject.worst(dx, exact_backward(dy, y, axis), f"backward, {what}"))


def every_axis(subject: Subject) -> float:
    """Every axis of arrays of one to eight dimensions; nothing outside out is written, and all of it is."""
    worst = 0.0
    for shape in SHAPES:
        for axis in range(len(shape)):
            for kind in ("ordinary", "peaked"):
                others = shape[:axis] + shape[axis + 1 :]
                x = np.moveaxis(frames(kind, (*others, shape[axis]), subject.dtype, subject.rng()), -1, axis)
                worst = max(worst, is_right(subject, x, axis, CONTIGUOUS, CONTIGUOUS))
    return worst


def large_batch(subject: Subject) -> float:
    """A million elements, of which some frames are compared with the exact values; all must be written."""
    n_frames, n_classes = 1025, 1031
    rng, worst = subject.rng(), 0.0
    x = np.resize(frames("ordinary", (64, n_classes), subject.dtype, rng), (n_frames, n_classes))
    n_looked_at = 64 if is_quick(subject.dtype) else 3
    some = np.unique([0, n_frames - 1, *rng.integers(0, n_frames, n_looked_at - 2)])
    exact = exact_log_softmax(x[some], x.dtype)
    dy, y = gradient(x, rng), np.resize(rounded(exact_log_softmax(x[:1], x.dtype), x.dtype), x.shape)
    exact_dx = exact_backward(dy[some], y[some])
    for transposed in (False, True):
        what = f"{n_frames} frames of {n_classes} classes, " + ("along the first axis" if transposed else "the last")
        given = [a.T.copy() if transposed else a for a in (x, dy, y)]
        result = subject.forward(given[0], 0 if transposed else 1)
        worst = max(worst, subject.worst((result.T if transposed else result)[some], exact, f"forward, {what}"))
        result = subject.backward(given[1], given[2], 0 if transposed else 1)
        worst = max(worst, subject.worst((result.T if transposed else result)[some], exact_dx, f"backward, {what}"))
    return worst


def every_layout(subject: Subject, of_out: bool) -> float:
    """Strided, transposed and reversed arrays."""
    worst = 0.0
    x = frames("ordinary", (3, 4, 6), subject.dtype, subject.rng())
    for layout in LAYOUTS[1:]:
        if subject.maker.has_negative_strides or layout.step > 0:
            pair = (CONTIGUOUS, layout) if of_out else (layout, CONTIGUOUS)
            for axis in range(x.ndim):
                worst = max(worst, is_right(subject, x, axis, *pair))
    return worst


def in_place(subject: Subject) -> None:
    """Out is x, grad_output or output itself."""
    for layout in LAYOUTS[:2]:
        for axis in range(2):
            x = frames("peaked", (9, 21), subject.dtype, subject.rng())
            y = subject.forward(x, axis, in_place=True, layout=layout)
            subject.agree(y, subject.forward(x, axis), exact_log_softmax(x, x.dtype, axis), "out=x")
            dy, y = gradient_and_output(x, axis, subject)
            want, exact = subject.backward(dy, y, axis), exact_backward(dy, y, axis)
            for name in ("grad_output", "output"):
                dx = subject.backward(dy, y, axis, in_place=name, layout=layout)
                subject.agree(dx, want, exact, f"out={name}")


def read_only(subject: Subject) -> None:
    """Inputs that may not be written."""
    if not subject.maker.has_read_only:
        skip(f"a {subject.maker.type_name} is never read-only")
    x = frames("ordinary", (4, 70), subject.dtype, subject.rng())
    dy, y = gradient_and_output(x, -1, subject)
    want = subject.forward(x), subject.backward(dy, y)
    out = np.empty_like(x), np.empty_like(x)
    for array in (x, dy, y):
        array.flags.writeable = False
    subject.backend.log_softmax(x, 1, out[0])
    subject.backend.log_softmax_backward(dy, y, 1, out[1])
    subject.agree(out[0], want[0], exact_log_softmax(x, x.dtype), "read-only x")
    subject.agree(out[1], want[1], exact_backward(dy, y), "read-only grad_output and output")


def broadcast(subject: Subject) -> None:
    """Inputs whose elements share memory: a stride of 0."""
    for shape in ((1, 33), (4, 1)):
        few = frames("ordinary", shape, subject.dtype, subject.rng())
        x = np.broadcast_to(few, (4, 33)).copy()
        out = subject.to_device(np.empty(x.shape, x.dtype))
        subject.backend.log_softmax(subject.maker.broadcast(subject.to_device(few), x.shape), 1, out)
        y = subject.maker.to_numpy(out)
        subject.agree(y, subject.forward(x), exact_log_softmax(x, x.dtype), "a broadcast x")


CHECKS = (
    Check("every axis; all of out is written, and nothing else", every_axis),
    Check("a million elements", large_batch),
    Check("inputs in every layout", lambda subject: every_layout(subject, of_out=False)),
    Check("out in every layout", lambda subject: every_layout(subject, of_out=True)),
    Check("in place", in_place),
    Check("read-only inputs", read_only),
    Check("broadcast inputs", broadcast),
)
