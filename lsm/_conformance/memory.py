"""Checks of memory access: layouts, axes, in place, read-only inputs."""

import numpy as np

from lsm._conformance.arrays import CONTIGUOUS, LAYOUTS
from lsm._conformance.samples import Sample, frames, gradient
from lsm._conformance.subject import Check, Subject, skip

SHAPES = ((7,), (1, 1), (5, 9), (3, 4, 6), (2, 3, 2, 3, 2), (257, 5), (2, 1, 3, 2, 2, 2), (2, 1, 2, 2, 1, 2, 2, 3))


def every_axis(subject: Subject) -> float:
    """Every axis of arrays of one to eight dimensions; all of out is written, and nothing else."""
    worst = 0.0
    for shape in SHAPES:
        for axis in range(len(shape)):
            for kind in ("ordinary", "peaked"):
                rng, others = subject.rng(), shape[:axis] + shape[axis + 1 :]
                x = np.moveaxis(frames(kind, (*others, shape[axis]), subject.dtype, rng), -1, axis)
                worst = max(worst, subject.worst_of(Sample(x, rng, axis), f"shape {shape}, axis {axis}"))
    return worst


def every_layout(subject: Subject, of_out: bool) -> float:
    """Strided, transposed and reversed arrays."""
    worst = 0.0
    for axis in range(3):
        rng = subject.rng()
        sample = Sample(frames("ordinary", (3, 4, 6), subject.dtype, rng), rng, axis)
        for layout in LAYOUTS[1:]:
            if subject.maker.has_negative_strides or layout.step > 0:
                given, to = (CONTIGUOUS, layout) if of_out else (layout, CONTIGUOUS)
                what = f"shape {sample.shape}, axis {axis}, inputs: {given.name}, out: {to.name}"
                worst = max(worst, subject.worst_of(sample, what, layout=given, out_layout=to))
    return worst


def in_place(subject: Subject) -> None:
    """Out is one of the inputs itself."""
    for axis in range(2):
        rng = subject.rng()
        sample = Sample(frames("peaked", (9, 21), subject.dtype, rng), rng, axis)
        for operation in subject.operations:
            if operation.is_reduction:
                continue
            inputs, exact = sample.inputs(operation), sample.exact(operation)
            want = subject.run(operation, inputs, axis)
            for layout in LAYOUTS[:2]:
                for name in operation.names:
                    result = subject.run(operation, inputs, axis, in_place=name, layout=layout)
                    subject.agree(result, want, exact, f"{operation.direction}, out={name}")


def read_only(subject: Subject) -> None:
    """Read-only inputs."""
    if not subject.maker.has_read_only:
        skip(f"a {subject.maker.type_name} is never read-only")
    rng = subject.rng()
    sample = Sample(frames("ordinary", (4, 70), subject.dtype, rng), rng)
    for operation in subject.operations:
        inputs, out = sample.inputs(operation), subject.new_out(operation, sample.shape, 1)
        want = subject.run(operation, inputs)
        for array in inputs:
            array.flags.writeable = False
        getattr(subject.backend, operation.name)(*inputs, 1, out)
        subject.agree(out, want, sample.exact(operation), f"{operation.direction}, read-only inputs")


def broadcast(subject: Subject) -> None:
    """Inputs whose elements share memory: a stride of 0."""
    for few in ((1, 33), (4, 1)):
        rng, shape = subject.rng(), (4, 33)
        x = np.broadcast_to(frames("ordinary", few, subject.dtype, rng), shape).copy()
        dy = np.broadcast_to(gradient(x[: few[0], : few[1]], rng), shape).copy()
        sample = Sample(x, rng, given={"gradient": dy})
        for operation in subject.operations:
            inputs, out = sample.inputs(operation), subject.to_device(subject.new_out(operation, shape, 1))
            lean = [subject.maker.broadcast(subject.to_device(a[: few[0], : few[1]]), shape) for a in inputs]
            getattr(subject.backend, operation.name)(*lean, 1, out)
            result, want = subject.maker.to_numpy(out), subject.run(operation, inputs)
            subject.agree(result, want, sample.exact(operation), f"{operation.direction}, broadcast inputs")


CHECKS = (
    Check("every axis; all of out is written, and nothing else", every_axis),
    Check("inputs in every layout", lambda subject: every_layout(subject, of_out=False)),
    Check("out in every layout", lambda subject: every_layout(subject, of_out=True)),
    Check("in place", in_place),
    Check("read-only inputs", read_only),
    Check("broadcast inputs", broadcast),
)
