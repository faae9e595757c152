"""Checks of the rows of the table of semantics that values decide: -inf, NaN, infinities, warnings."""

import warnings
from functools import partial
from itertools import product

import numpy as np

from lsm._conformance.accuracy import frames, gradient, rounded
from lsm._conformance.arrays import Array
from lsm._conformance.oracle import exact_backward, exact_log_softmax
from lsm._conformance.subject import Check, ConformanceError, Subject, require

N_CLASSES = (1, 2, 5, 65, 300)


def places(n: int) -> list[int]:
    """Where in a frame a special value is put: its ends, and the borders of common vectors."""
    return sorted({i for i in (0, 1, 15, 16, 63, 64, n - 1) if i < n})


def minus_inf(subject: Subject) -> float:
    """Give -inf exactly for an entry of -inf, the rest right; backward exactly dy there."""
    rng, worst = subject.rng(), 0.0
    for n in N_CLASSES[1:]:
        x = frames("ordinary", (3, n), subject.dtype, rng)
        x[1, places(n)] = -np.inf
        x[1, n // 2 - (n > 2)] = 1
        is_masked = np.isneginf(x)
        y = subject.forward(x)
        require((y[is_masked] == -np.inf).all(), f"forward of -inf, {n} classes: {show(y[is_masked])}, not -inf")
        worst = max(worst, subject.worst(y, exact_log_softmax(x, x.dtype), f"forward beside -inf, {n} classes"))
        y = rounded(exact_log_softmax(x, x.dtype), x.dtype)
        dy = gradient(x, rng)
        dx = subject.backward(dy, y)
        require((dx[is_masked] == dy[is_masked]).all(), f"backward where output is -inf, {n} classes: not dy itself")
        worst = max(worst, subject.worst(dx, exact_backward(dy, y), f"backward beside -inf, {n} classes"))
    return worst


def spoils_its_frame_only(subject: Subject, bad: float) -> None:
    """Make the frame of a NaN or +inf NaN throughout, and leave the frames beside it as they were."""
    for n in N_CLASSES:
        x = frames("ordinary", (3, n), subject.dtype, subject.rng())
        exact_y = exact_log_softmax(x, x.dtype)
        y, dy = rounded(exact_y, x.dtype), gradient(x, subject.rng())
        exact_dx = exact_backward(dy, y)
        clean_y, clean_dx = subject.forward(x), subject.backward(dy, y)
        for i, also in product(places(n), (None, -np.inf)):
            bad_x, bad_y, bad_dy, less_dy = x.copy(), y.copy(), dy.copy(), dy.copy()
            for array in (bad_x, bad_y, bad_dy, less_dy):
                if also is not None:
                    array[1, i - 1] = also
                array[1, i] = bad
            less_dy[1, i] = -bad
            what = f"{bad} at place {i} of {n} classes" + ("" if also is None else f" beside {also}")
            for of, result, clean, exact in (
                ("forward, x holds", subject.forward(bad_x), clean_y, exact_y),
                ("backward, output holds", subject.backward(dy, bad_y), clean_dx, exact_dx),
                ("backward, grad_output holds", subject.backward(bad_dy, y), clean_dx, exact_dx),
                ("backward, grad_output holds minus", subject.backward(less_dy, y), clean_dx, exact_dx),
            ):
                require(np.isnan(result[1]).all(), f"{of} {what}: {show(result[1])}; all must be NaN")
                beside = slice(None, None, 2)
                subject.agree(result[beside], clean[beside], exact.part(beside), f"the frames beside: {of} {what}")


def frames_of_minus_inf(subject: Subject) -> None:
    """Make a frame of -inf only NaN throughout, in x and in output."""
    for n in N_CLASSES:
        x = frames("ordinary", (3, n), subject.dtype, subject.rng())
        x[1] = -np.inf
        y = subject.forward(x)
        require(np.isnan(y[1]).all(), f"forward of {n} times -inf: {show(y[1])}; all must be NaN")
        require(np.isfinite(y[::2]).all(), f"forward beside a frame of {n} times -inf: is not finite")
        masked = np.full_like(x, -1)
        masked[1] = -np.inf
        dx = subject.backward(np.ones_like(x), masked)
        require(np.isnan(dx[1]).all(), f"backward where output is {n} times -inf: {show(dx[1])}; all must be NaN")
        require(np.isfinite(dx[::2]).all(), f"backward beside an output of {n} times -inf: is not finite")


def no_warnings(subject: Subject) -> None:
    """Raise no floating-point warning, and leave the error state as it was."""
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7, -0.0])
    x = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(subject.dtype)
    dy = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(subject.dtype)
    given = [subject.to_device(array) for array in (x, dy, x)]
    state = np.geterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            subject.backend.log_softmax(given[0], 1, given[2])
            subject.backend.log_softmax_backward(given[1], given[0], 1, given[2])
        except Warning as warning:
            raise ConformanceError(f"a warning: {warning}; there must be none from floating point") from warning
    require(np.geterr() == state, "numpy.geterr() is another than before; use numpy.errstate")


def show(array: Array) -> str:
    """A few values for a message."""
    return np.array2string(array.astype(np.float64).ravel(), threshold=4, edgeitems=2, precision=4)


CHECKS = (
    Check("-inf entries", minus_inf),
    Check("a NaN spoils its frame and no other", partial(spoils_its_frame_only, bad=np.nan)),
    Check("+inf spoils its frame and no other", partial(spoils_its_frame_only, bad=np.inf)),
    Check("frames of -inf only", frames_of_minus_inf),
    Check("no warnings", no_warnings),
)
