"""Checks of the rows of the table of semantics that concern values: -inf, NaN, infinities, warnings."""

import warnings
from functools import partial
from itertools import product

import numpy as np

from lsm._conformance.arrays import Array
from lsm._conformance.oracle import REFERENCES
from lsm._conformance.samples import MASKS, Sample, frames
from lsm._conformance.subject import Check, ConformanceError, Subject, require, show

N_CLASSES = (1, 2, 5, 65, 300)


def places(n: int) -> list[int]:
    """The positions of special values in a frame: its ends, and the boundaries of common vectors."""
    return sorted({i for i in (0, 1, 15, 16, 63, 64, n - 1) if i < n})


def minus_inf(subject: Subject) -> float:
    """Give exactly the result of a masked class for an entry of -inf, and accurate results for the others."""
    rng, worst = subject.rng(), 0.0
    for n in N_CLASSES[1:]:
        x = frames("ordinary", (3, n), subject.dtype, rng)
        x[1, places(n)] = -np.inf
        x[1, n // 2 - (n > 2)] = 1
        worst = max(worst, subject.worst_of(Sample(x, rng), f"beside -inf, {n} classes"))
    return worst


def spoils_its_frame_only(subject: Subject, bad: float) -> None:
    """Give the required result for a frame with a NaN or infinity, and do not change those of the frames beside it.

    It is NaN throughout, except for reductions. -inf masks a class; only in a gradient does it spoil the frame.
    """
    for n in N_CLASSES:
        rng = subject.rng()
        sample = Sample(frames("ordinary", (3, n), subject.dtype, rng), rng)
        for operation in subject.operations:
            inputs, beside = sample.inputs(operation), slice(None, None, 2)
            clean, exact = subject.run(operation, inputs)[beside], sample.exact(operation).part(beside)
            for k, (name, role) in enumerate(operation.inputs):
                signs = (1, -1) if role == "gradient" else (1,)
                for i, also, sign in product(places(n), (None, -np.inf), signs):
                    spoiled = list(inputs)
                    spoiled[k] = inputs[k].copy()
                    if also is not None:
                        spoiled[k][1, i - 1] = also
                    spoiled[k][1, i] = sign * bad
                    result = subject.run(operation, spoiled)
                    what = f"{operation.direction}, {name} holds {sign * bad} at class {i} of {n}"
                    what += "" if also is None else f" beside {also}"
                    require_all(result[1], REFERENCES[operation.name].spoiled(bad), what)
                    subject.agree(result[beside], clean, exact, f"the frames beside: {what}")


def require_all(frame: Array, number: float, what: str) -> None:
    """Raise ConformanceError unless the whole result of a frame is this number, which may be NaN."""
    text = "NaN" if np.isnan(number) else f"{number}"
    require(
        np.array_equal(frame, np.full_like(frame, number), equal_nan=True), f"{what}: {show(frame)}; all must be {text}"
    )


def frames_of_minus_inf(subject: Subject) -> None:
    """Give the required result for frames whose logits or log-probabilities are all -inf: NaN, unless reduced."""
    for n in N_CLASSES:
        rng = subject.rng()
        sample = Sample(frames("ordinary", (3, n), subject.dtype, rng), rng)
        for operation in subject.operations:
            inputs, beside = sample.inputs(operation), slice(None, None, 2)
            masked = [array.copy() for array in inputs]
            for array, (_, role) in zip(masked, operation.inputs, strict=True):
                array[1] = MASKS.get(role, array[1])
            result, what = subject.run(operation, masked), f"{operation.direction} of {n} times -inf"
            require_all(result[1], REFERENCES[operation.name].spoiled(-np.inf), what)
            clean, exact = subject.run(operation, inputs)[beside], sample.exact(operation).part(beside)
            subject.agree(result[beside], clean, exact, f"the frames beside: {what}")


def no_warnings(subject: Subject) -> None:
    """Raise no floating-point warning, and leave the error state unchanged."""
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7, -0.0])
    every = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(subject.dtype)
    state = np.geterr()
    for operation in subject.operations:
        # Except for the first 64 (such as NaN beside NaN), each input has the frames in a different order.
        orders = [np.r_[0:64, np.roll(np.arange(64, len(every)), 67 * k)] for k in range(len(operation.inputs))]
        given = [subject.to_device(every[order]) for order in orders]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                out = subject.to_device(subject.new_out(operation, every.shape, 1))
                getattr(subject.backend, operation.name)(*given, 1, out)
            except Warning as warning:
                raise ConformanceError(f"a warning: {warning}; there must be no floating-point warnings") from warning
        require(np.geterr() == state, "the call changed numpy.geterr(); use numpy.errstate")


CHECKS = (
    Check("-inf entries", minus_inf),
    Check("a NaN spoils its frame and no other", partial(spoils_its_frame_only, bad=np.nan)),
    Check("+inf spoils its frame and no other", partial(spoils_its_frame_only, bad=np.inf)),
    Check("frames of -inf only", frames_of_minus_inf),
    Check("no warnings", no_warnings),
)
