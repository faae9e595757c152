"""Checks of what is rare in tests and usual in use, or at a border: sizes, masks, alignments, magnitudes, values."""

from collections.abc import Iterable

import numpy as np

from lsm._check import dtype_name
from lsm._conformance.accuracy import frames, gradient, rounded
from lsm._conformance.arrays import CONTIGUOUS, Array
from lsm._conformance.oracle import exact_backward, exact_log_softmax, is_quick
from lsm._conformance.subject import Check, Subject, require

N_REPEATED = 23  # different frames of a large batch: a prime, so that no frame stands where a power of two leads
N_FRAMES = (23 * 2850, 23 * 22_796)  # more than the 65,535 blocks of a grid on some GPUs, and than 8 times as many
HUGE = {"float16": 6e4, "bfloat16": 1e33, "float32": 1e33}  # the largest gradients; of the others, 1e300
SMALLEST = {"float16": -7, "bfloat16": -40, "float32": -44}  # powers of ten; of the others, -320


def numbers_of_classes(is_quick: bool) -> Iterable[int]:
    """Every number up to 130, and those around powers of two; fewer where the exact values take long."""
    last, largest = (130, 13) if is_quick else (33, 8)
    yield from range(1, last + 1)
    for power in range(last.bit_length(), largest + 1):
        yield from (2**power - 1, 2**power, 2**power + 1)
    if is_quick:
        yield from (2**14 + 1, 2**16 + 1, 2**18 + 1)


def every_number_of_classes(subject: Subject) -> float:
    """Both operations for many numbers of classes, in few frames."""
    rng, worst = subject.rng(), 0.0
    for n in numbers_of_classes(is_quick(subject.dtype)):
        x = frames("ordinary", (2 if n < 5000 else 1, n), subject.dtype, rng)
        worst = max(worst, both(subject, x, gradient(x, rng), f"{n} classes"))
    return worst


def both(subject: Subject, x: Array, dy: Array, what: str) -> float:
    """Forward and backward along the last axis; the largest error. Masked classes must keep -inf and dy exactly."""
    exact = exact_log_softmax(x, x.dtype)
    result = subject.forward(x)
    worst = subject.worst(result, exact, f"forward, {what}")
    y = rounded(exact, x.dtype)
    dx = subject.backward(dy, y)
    worst = max(worst, subject.worst(dx, exact_backward(dy, y), f"backward, {what}"))
    is_masked = np.isneginf(x)
    require((result[is_masked] == -np.inf).all(), f"forward, {what}: a masked class is not -inf")
    require((dx[is_masked] == dy[is_masked]).all(), f"backward, {what}: a masked class is not dy itself")
    return worst


def large_batches(subject: Subject) -> float:
    """More frames than 16 bits count, with the classes last, first and in the middle; every frame is looked at."""
    rng, worst, n = subject.rng(), 0.0, 2
    for n_frames in N_FRAMES if is_quick(subject.dtype) else N_FRAMES[:1]:
        x = frames("ordinary", (N_REPEATED, n), subject.dtype, rng)
        exact = exact_log_softmax(x, x.dtype)
        dy, y = gradient(x, rng), rounded(exact, x.dtype)
        exact_dx = exact_backward(dy, y)
        # The other axes before and behind that of the classes.
        places: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((n_frames,), ()), ((), (n_frames,))]
        if n_frames == N_FRAMES[0]:
            places += [((2,), (n_frames // 2,)), ((n_frames // 2,), (2,))]
        for outer, inner in places:
            shape, axis = (*outer, n, *inner), len(outer)
            given = [np.moveaxis(np.resize(a, (*outer, *inner, n)), -1, axis).copy() for a in (x, dy, y)]
            results = subject.forward(given[0], axis), subject.backward(given[1], given[2], axis)
            for op, result, right in zip(("forward", "backward"), results, (exact, exact_dx), strict=True):
                what = f"{op}, shape {shape}, axis {axis}"
                repeated = np.moveaxis(result, axis, -1).reshape(-1, N_REPEATED, n)
                # All results of equal frames lie between these two; a NaN is both.
                for extreme in (repeated.min(axis=0), repeated.max(axis=0)):
                    worst = max(worst, subject.worst(extreme, right, what))
    return worst


def masks(subject: Subject) -> float:
    """All classes but one masked, all but two, and every number; the open ones at every place.

    Frame 0 begins with an open class, so that an error in the first element of all shows.
    """
    rng, worst = subject.rng(), 0.0
    for n in (2, 3, 5, 16, 33, 64, 130) if is_quick(subject.dtype) else (2, 5, 9):
        values = frames("ordinary", (n, n), subject.dtype, rng)
        one = np.eye(n, dtype=bool)
        two = one | one[(np.arange(n) + 1 + np.arange(n) % (n - 1)) % n]
        every = rng.permuted(np.tri(n, dtype=bool)[::-1], axis=1)
        for what, is_open in (("one class", one), ("two classes", two), ("all to 1 classes", every)):
            x = np.where(is_open, values, np.asarray(-np.inf, subject.dtype))
            worst = max(worst, both(subject, x, gradient(x, rng), f"{what} of {n} not masked"))
    return worst


def constants(subject: Subject) -> float:
    """Arrays that hold one number only, 0 above all: x, the gradient, and the output."""
    rng, worst = subject.rng(), 0.0
    for n in (1, 2, 33, 1000) if is_quick(subject.dtype) else (1, 2, 33):
        for number in (0.0, -0.0, 1.0, -7.0):
            constant = np.full((3, n), number, subject.dtype)
            x = frames("ordinary", constant.shape, subject.dtype, rng)
            what = f"{n} classes that are all {number}"
            worst = max(worst, both(subject, constant, gradient(x, rng), f"x of {what}"))
            worst = max(worst, both(subject, x, constant, f"grad_output of {what}"))
            worst = max(worst, both(subject, constant, constant, f"x and grad_output of {what}"))
            if number == 0:
                dy = gradient(x, rng)
                dx = subject.backward(dy, constant)
                worst = max(worst, subject.worst(dx, exact_backward(dy, constant), f"output of {what}"))
    return worst


def alignments(subject: Subject) -> float:
    """Every place within 64 bytes at which an array may begin, and out at another one."""
    rng, worst = subject.rng(), 0.0
    x = frames("ordinary", (3, 37 if is_quick(subject.dtype) else 5), subject.dtype, rng)
    exact = exact_log_softmax(x, x.dtype)
    dy, y = gradient(x, rng), rounded(exact, x.dtype)
    exact_dx = exact_backward(dy, y)
    n_places = max(2, 64 // subject.dtype.itemsize)
    for place in range(n_places):
        layout = CONTIGUOUS._replace(offset=place)
        for shift in (0, 1):
            to = CONTIGUOUS._replace(offset=(place * (1 + 2 * shift) + shift) % n_places)
            what = f"inputs that begin {place} elements further, out {to.offset}"
            worst = max(worst, subject.worst(subject.forward(x, layout=layout, out_layout=to), exact, what))
            worst = max(worst, subject.worst(subject.backward(dy, y, layout=layout, out_layout=to), exact_dx, what))
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
            # The signs alternate, and no number is small: the sum stays within the range of the dtype.
            signs = rng.uniform(0.5, 1, x.shape) * (1 - 2 * (np.arange(n) % 2))
            dy = (signs * scales[:, None]).astype(x.dtype)
            worst = max(worst, both(subject, x, dy, f"gradients from {scales[0]:.0e} on, {n} classes"))
            x, dy = np.zeros_like(x[:3]), (signs[:3] * huge).astype(x.dtype)
            worst = max(worst, both(subject, x, dy, f"gradients up to {huge:.0e}, {n} classes"))
    return worst


def values(subject: Subject) -> float:
    """Every number of 16 bits, as x, as gradient and as output; float32 and wider hold those of float16."""
    rng, worst, n = subject.rng(), 0.0, 31
    own = subject.dtype if subject.dtype.itemsize == 2 else np.dtype(np.float16)
    every = np.arange(2**16, dtype=np.uint16).view(own)
    with np.errstate(invalid="ignore"):  # which ml_dtypes warns of for signalling NaNs
        every = np.sort(every[np.isfinite(every)]).astype(subject.dtype)[:: 1 if is_quick(subject.dtype) else 50]

    def in_frames(chosen: Array) -> Array:
        return np.resize(chosen, (-(-len(chosen) // n), n))

    x = in_frames(every)
    exact = exact_log_softmax(x, x.dtype)
    worst = max(worst, subject.worst(subject.forward(x), exact, "forward, x of every value"))
    # Signs in turn: the sums stay small, and no result is what out was filled with.
    dy = in_frames(every[(every >= 0) & (every <= 512)]) * (1 - 2 * (np.arange(n) % 2)).astype(x.dtype)
    y = rounded(exact_log_softmax(frames("ordinary", dy.shape, x.dtype, rng), x.dtype), x.dtype)
    for sign in (dy, -dy):
        worst = max(
            worst, subject.worst(subject.backward(sign, y), exact_backward(sign, y), "grad_output of every value")
        )
    y = in_frames(every[every <= 0])
    dy = gradient(y, rng)
    return max(worst, subject.worst(subject.backward(dy, y), exact_backward(dy, y), "output of every value"))


CHECKS = (
    Check("every number of classes", every_number_of_classes),
    Check("large batches", large_batches),
    Check("masks of every size", masks),
    Check("constant arrays", constants),
    Check("every alignment", alignments),
    Check("gradients of every magnitude", magnitudes),
    Check("every value", values),
)
