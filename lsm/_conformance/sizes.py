"""Checks of inputs common in use but rare in tests, and of edge cases: sizes, masks, alignments, magnitudes, values."""

from collections.abc import Iterable

import numpy as np

from lsm._check import dtype_name
from lsm._conformance.arrays import CONTIGUOUS, Array
from lsm._conformance.oracle import is_quick
from lsm._conformance.samples import Sample, frames, gradient
from lsm._conformance.subject import Check, Subject

N_REPEATED = 23  # different frames in a large batch; prime, so that frames a power of two apart differ
# More than the 65,535 blocks of a grid on some GPUs; 2^16; and more than a million.
N_FRAMES = (65_550, 65_536, 1_048_593)
HUGE = {"float16": 6e4, "bfloat16": 1e33, "float32": 1e33}  # the largest gradients; for other dtypes, 1e300
SMALLEST = {"float16": -7, "bfloat16": -40, "float32": -44}  # powers of ten; for other dtypes, -320


def numbers_of_classes(is_quick: bool) -> Iterable[int]:
    """Every number up to 130, and those around powers of two; fewer where the exact values take long."""
    last, largest = (130, 13) if is_quick else (33, 8)
    yield from range(1, last + 1)
    for power in range(last.bit_length(), largest + 1):
        yield from (2**power - 1, 2**power, 2**power + 1)
    if is_quick:
        yield from (2**14 + 1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1, 2**16, 2**16 + 1, 2**18 + 1)


def every_number_of_classes(subject: Subject) -> float:
    """Many numbers of classes, in few frames."""
    rng, worst = subject.rng(), 0.0
    for n in numbers_of_classes(is_quick(subject.dtype)):
        sample = Sample(frames("ordinary", (2 if n < 5000 else 1, n), subject.dtype, rng), rng)
        worst = max(worst, subject.worst_of(sample, f"{n} classes"))
    return worst


def large_batches(subject: Subject) -> float:
    """At least 2^16 frames, with the classes on the last, the first and a middle axis."""
    rng, worst = subject.rng(), 0.0
    sample = Sample(frames("ordinary", (N_REPEATED, 2), subject.dtype, rng), rng)
    for n in N_FRAMES if is_quick(subject.dtype) else N_FRAMES[:1]:
        middle = [((2,), (n // 2,)), ((n // 2,), (2,))] if n == N_FRAMES[0] else []
        for outer, inner in (((n,), ()), ((), (n,)), *middle):
            worst = max(worst, worst_repeated(subject, sample, outer, inner))
    return worst


def large_arrays(subject: Subject) -> float:
    """A million elements, with the classes on the last and the first axis."""
    rng = subject.rng()
    sample = Sample(frames("ordinary", (41 if is_quick(subject.dtype) else 5, 1031), subject.dtype, rng), rng)
    return max(worst_repeated(subject, sample, (1025,), ()), worst_repeated(subject, sample, (), (1025,)))


def worst_repeated(subject: Subject, sample: Sample, outer: tuple[int, ...], inner: tuple[int, ...]) -> float:
    """The largest error on the frames of a sample, repeated along axes before and after that of the classes."""
    worst, (n_frames, n_classes) = 0.0, sample.shape
    shape, axis = (*outer, n_classes, *inner), len(outer)
    for operation in subject.operations:
        given = [np.resize(array, (*outer, *inner, n_classes)) for array in sample.inputs(operation)]
        result = subject.run(operation, [np.moveaxis(array, -1, axis) for array in given], axis)
        found = np.moveaxis(result, axis, -1).reshape(-1, result.shape[axis])
        n_whole = len(found) // n_frames * n_frames
        rest, repeated = found[n_whole:], found[:n_whole].reshape(-1, n_frames, result.shape[axis])
        # All results of equal frames lie between these two; a NaN is both.
        for reduce in (np.minimum, np.maximum):
            extreme = reduce.reduce(repeated, axis=0)
            extreme[: len(rest)] = reduce(extreme[: len(rest)], rest)
            what = f"{operation.direction}, shape {shape}, axis {axis}"
            worst = max(worst, subject.worst(extreme, sample.exact(operation), what))
    return worst


def masks(subject: Subject) -> float:
    """All classes but one masked, all but two, and every other number; the unmasked ones at every position.

    Frame 0 begins with an unmasked class, to reveal an error in the very first element.
    """
    rng, worst = subject.rng(), 0.0
    for n in (2, 3, 5, 16, 33, 64, 130) if is_quick(subject.dtype) else (2, 5, 9):
        values = frames("ordinary", (n, n), subject.dtype, rng)
        one = np.eye(n, dtype=bool)
        two = one | one[(np.arange(n) + 1 + np.arange(n) % (n - 1)) % n]
        every = rng.permuted(np.tri(n, dtype=bool)[::-1], axis=1)
        for what, is_open in (("one class", one), ("two classes", two), ("all to 1 classes", every)):
            sample = Sample(np.where(is_open, values, np.asarray(-np.inf, subject.dtype)), rng)
            worst = max(worst, subject.worst_of(sample, f"{what} of {n} not masked"))
    return worst


def constants(subject: Subject) -> float:
    """Arrays with one value throughout, especially 0: for the inputs of each role, and for all inputs."""
    rng, worst = subject.rng(), 0.0
    for n in (1, 2, 33, 1000) if is_quick(subject.dtype) else (1, 2, 33):
        x = frames("ordinary", (3, n), subject.dtype, rng)
        for number in (0.0, -0.0, 1.0, -7.0):
            same = np.full((3, n), number, subject.dtype)
            what = f"of {n} classes that are all {number}"
            worst = max(worst, subject.worst_of(Sample(same, rng), f"logits {what}"))
            roles = ["gradient"] + ["log-probabilities"] * (number == 0) + ["probabilities"] * (number in (0, 1))
            for role in roles:
                sample = Sample(x, rng, given={role: same})
                worst = max(worst, subject.worst_of(sample, f"{role} {what}", subject.reading(role)))
            sample = Sample(same, rng, given={"gradient": same})
            worst = max(worst, subject.worst_of(sample, f"logits and gradient {what}", subject.reading("gradient")))
    return worst


def alignments(subject: Subject) -> float:
    """Inputs that begin at every possible offset within 64 bytes, and out at another one."""
    rng, worst = subject.rng(), 0.0
    sample = Sample(frames("ordinary", (3, 37 if is_quick(subject.dtype) else 5), subject.dtype, rng), rng)
    n_places = max(2, 64 // subject.dtype.itemsize)
    for place in range(n_places):
        layout = CONTIGUOUS._replace(offset=place)
        for shift in (0, 1):
            to = CONTIGUOUS._replace(offset=(place * (1 + 2 * shift) + shift) % n_places)
            what = f"inputs offset by {place} elements, out by {to.offset}"
            worst = max(worst, subject.worst_of(sample, what, layout=layout, out_layout=to))
    return worst


def magnitudes(subject: Subject) -> float:
    """Gradients from the smallest numbers to nearly the largest, in frames of one magnitude."""
    rng, worst = subject.rng(), 0.0
    name = dtype_name(subject.dtype)
    huge = HUGE.get(name, 1e300)
    scales = 10.0 ** np.arange(SMALLEST.get(name, -320), np.log10(huge), 1 if name in HUGE else 10)
    with np.errstate(all="ignore"):
        for n in (2, 33, 1000) if is_quick(subject.dtype) else (2, 10):
            x = frames("ordinary", (len(scales), n), subject.dtype, rng)
            # The signs alternate and no number is small, so that the sum stays within the range of the dtype.
            signs = rng.uniform(0.5, 1, x.shape) * (1 - 2 * (np.arange(n) % 2))
            rising, largest = (signs * scales[:, None]).astype(x.dtype), (signs[:3] * huge).astype(x.dtype)
            for what, logits, dy in (
                (f"gradients from {scales[0]:.0e} on, {n} classes", x, rising),
                (f"gradients up to {huge:.0e}, {n} classes", np.zeros_like(x[:3]), largest),
            ):
                sample = Sample(logits, rng, given={"gradient": dy})
                worst = max(worst, subject.worst_of(sample, what, subject.reading("gradient")))
    return worst


def values(subject: Subject) -> float:
    """Every 16-bit number, in the inputs of each role; for float32 and wider, those of float16."""
    rng, worst, n = subject.rng(), 0.0, 31
    own = subject.dtype if subject.dtype.itemsize == 2 else np.dtype(np.float16)
    every = np.arange(2**16, dtype=np.uint16).view(own)
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
        every = np.sort(every[np.isfinite(every)]).astype(subject.dtype)[:: 1 if is_quick(subject.dtype) else 50]

    def in_frames(chosen: Array) -> Array:
        return np.resize(chosen, (-(-len(chosen) // n), n))

    # Alternating signs keep the sums small, and so no result equals the fill value of out.
    dy = in_frames(every[(every >= 0) & (every <= 512)]) * (1 - 2 * (np.arange(n) % 2)).astype(subject.dtype)
    for role, array in (
        ("logits", in_frames(every)),
        ("gradient", dy),
        ("gradient", -dy),
        ("log-probabilities", in_frames(every[every <= 0])),
        ("probabilities", in_frames(every[(every >= 0) & (every <= 1)])),
    ):
        x = frames("ordinary", array.shape, subject.dtype, rng)
        sample = Sample(x, rng, given={"gradient": gradient(x, rng), role: array})
        worst = max(worst, subject.worst_of(sample, f"{role} of every value", subject.reading(role)))
    return worst


CHECKS = (
    Check("every number of classes", every_number_of_classes),
    Check("large batches", large_batches),
    Check("a million elements", large_arrays),
    Check("masks of every size", masks),
    Check("constant arrays", constants),
    Check("every alignment", alignments),
    Check("gradients of every magnitude", magnitudes),
    Check("every value", values),
)
