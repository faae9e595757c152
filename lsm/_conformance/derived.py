"""Checks of the features that lsm derives from the backend's methods: keywords, selected classes, losses, entropies."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

import lsm
from lsm._check import dtype_name
from lsm._conformance import losses, samples
from lsm._conformance.api import call, kept
from lsm._conformance.arrays import Array
from lsm._conformance.oracle import LD, Exact, log_softmax
from lsm._conformance.samples import Sample, frames
from lsm._conformance.subject import AccuracyError, Check, Subject, require, show, skip
from lsm._operations import LOG_SOFTMAX

SHAPE = (9, 33)
TEMPERATURE = 0.7
KINDS = ("ordinary", "peaked", "masked")
# lsm computes these itself, in float64 or longdouble; for a float64 divergence there may be no wider type.
MAX_ULP = {"entropy": 4.0, "kl_divergence": 8.0}


def derived(check: Callable[[Subject], Any]) -> Callable[[Subject], Any]:
    """Skip a check, with the reason, where lsm derives nothing from such a backend."""

    @wraps(check)
    def checked(subject: Subject) -> Any:
        if subject.device != "cpu":
            skip("lsm derives functions on the CPU only")
        try:
            return check(subject)
        except lsm.BackendUnsupportedError as error:
            return skip(str(error))

    return checked


def logits(subject: Subject) -> Array:
    """Ordinary, peaked and half masked frames; the last one has equal logits."""
    rng = subject.rng()
    x = np.concatenate([frames(kind, (SHAPE[0] // 3, SHAPE[1]), subject.dtype, rng) for kind in KINDS])
    x[-1] = 1
    return x


def run(subject: Subject, function: str, *inputs: Any, **options: Any) -> Any:
    """Call a function of lsm with the backend, on copies of NumPy arrays; the results are NumPy arrays too."""
    given = [subject.to_device(array) if isinstance(array, np.ndarray) else array for array in inputs]
    options = {name: subject.to_device(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    result = getattr(lsm, function)(*given, backend=subject.name, **options)
    results = result if isinstance(result, tuple) else (result,)
    # lsm returns an ndarray where it cannot make an array of the type.
    made = [np.asarray(r) if isinstance(r, (np.ndarray, np.generic)) else subject.maker.to_numpy(r) for r in results]
    return made if isinstance(result, tuple) else made[0]


@derived
def take(subject: Subject) -> None:
    """Give the bits of log_softmax at the indices, with one or several for each frame."""
    x, rng = logits(subject), subject.rng()
    y = run(subject, "log_softmax", x)
    for k in (None, 4):
        indices = rng.integers(0, SHAPE[1], (SHAPE[0], k or 1))
        want, exact = np.take_along_axis(y, indices, -1), losses.at_classes(x, indices, y.dtype)
        found = run(subject, "take_log_softmax", x, indices if k else indices[:, 0])
        subject.agree(found.reshape(want.shape), want, exact, f"take_log_softmax of {k or 1} classes per frame")


@derived
def top_k(subject: Subject) -> None:
    """Give the largest classes in order (of equal ones, the lowest first), with the bits of log_softmax."""
    x = np.concatenate([logits(subject), subject.rng().integers(-3, 3, SHAPE).astype(subject.dtype)])
    y = run(subject, "log_softmax", x)
    for k in (1, 5, SHAPE[1]):
        values, indices = run(subject, "top_k_log_softmax", x, k)
        right, what = losses.largest(x, k), f"top_k_log_softmax, k={k}"
        require((indices == right).all(), f"{what}: {indices.tolist()}, not {right.tolist()}")
        subject.agree(values, np.take_along_axis(y, right, -1), losses.at_classes(x, right, y.dtype), what)


@derived
def cross_entropy(subject: Subject) -> None:
    """Give 0 - log_softmax at the label, never -0.0, with or without the gradient."""
    x, labels = logits(subject), subject.rng().integers(0, SHAPE[1], SHAPE[0])
    loss = run(subject, "cross_entropy", x, labels, reduction="none")
    y = run(subject, "take_log_softmax", x, labels, dtype=dtype_name(loss.dtype))
    exact = Exact(*[-part[:, 0] for part in losses.at_classes(x, labels[:, None], loss.dtype)])
    subject.agree(loss, 0 - y, exact, "cross_entropy, reduction='none'")
    require(not np.signbit(loss).any(), "cross_entropy: a loss is negative, or -0.0")
    beside, _ = run(subject, "cross_entropy_value_and_grad", x, labels, reduction="none")
    subject.agree(beside, loss, exact, "cross_entropy_value_and_grad, the loss")


@derived
def gradient(subject: Subject) -> float:
    """Give a gradient that does not vanish where the label is certain."""
    x, worst = logits(subject), 0.0
    for labels in (x.argmax(axis=-1), subject.rng().integers(0, SHAPE[1], SHAPE[0])):
        _, dx = run(subject, "cross_entropy_value_and_grad", x, labels, reduction="sum")
        exact, what = losses.exact(losses.gradient(x, labels[:, None])), "cross_entropy_value_and_grad, the gradient"
        worst = max(worst, subject.worst(dx, exact, what, slack_ulp=1))
    return worst


def filled(x: Any, keep: Any, value: float) -> Any:
    """A copy of x with `value` where `keep` is False; NumPy 1 does not promote bfloat16 and a Python float."""
    return np.where(keep, x, np.asarray(value, x.dtype))


@derived
def masks(subject: Subject) -> None:
    """With where=, give the bits of -inf in place of the masked values, and exactly the masked results there."""
    x, keep = logits(subject), subject.rng().random(SHAPE) < 0.6
    keep[:, 0] = True
    x[:, 0] = 1
    lean, dirty = filled(x, keep, -np.inf), filled(x, keep, np.nan)
    dy = filled(samples.gradient(x, subject.rng()), keep, 0)
    sample = Sample(lean, subject.rng(), given={"gradient": dy})
    for operation in subject.operations:
        if "where" not in inspect.signature(getattr(lsm, operation.name)).parameters:
            continue
        inputs, what = sample.inputs(operation), f"{operation.name}, where="
        spoiled = [filled(array, keep, np.nan) for array in inputs]
        want = kept(subject, operation, call(subject, operation, map(subject.to_device, inputs)))
        given, where = map(subject.to_device, spoiled), subject.to_device(keep)
        found = kept(subject, operation, call(subject, operation, given, where=where))
        if not operation.is_reduction:
            want[~keep] = -np.inf if operation is LOG_SOFTMAX else 0
            masked, right = found[~keep], want[~keep]
            require((masked == right).all(), f"{what}: {show(masked)} where it is False, not {show(right)}")
        subject.agree(found, want, sample.exact(operation), what)
    first = np.zeros((SHAPE[0], 1), int)
    found, want = (run(subject, "take_log_softmax", array, first, where=keep) for array in (dirty, lean))
    subject.agree(found, want, losses.at_classes(lean, first, x.dtype), "take_log_softmax, where=")


@derived
def temperature(subject: Subject) -> float:
    """Divide differences of the logits, so that nothing is lost near 0."""
    x = logits(subject)
    wide = x.astype(LD)
    exact = losses.exact(log_softmax((wide - wide.max(axis=-1, keepdims=True)) / LD(TEMPERATURE)))
    return subject.worst(run(subject, "log_softmax", x, temperature=TEMPERATURE), exact, "temperature=", slack_ulp=1)


@derived
def entropies(subject: Subject) -> float:
    """Give entropies and divergences that are accurate near 0."""
    x, worst = logits(subject), 0.0
    q = frames("ordinary", SHAPE, subject.dtype, subject.rng())
    for op, given, value in (
        ("entropy", (x,), losses.entropy(x)),
        ("kl_divergence", (x, q), losses.divergence(x, q)),
    ):
        ulps = float(losses.exact(value[:, 0]).ulps(run(subject, op, *given)).max())
        if not ulps <= MAX_ULP[op] and not subject.is_measuring:
            raise AccuracyError(f"{op}: {ulps:.4g} ulp off; lsm promises at most {MAX_ULP[op]:g}")
        worst = max(worst, ulps)
    return worst


CHECKS = (
    Check("derived: where=", masks),
    Check("derived: temperature=", temperature, is_quick=True),
    Check("derived: take_log_softmax", take),
    Check("derived: top_k_log_softmax", top_k),
    Check("derived: cross_entropy", cross_entropy),
    Check("derived: its gradient", gradient),
    Check("derived: entropy, kl_divergence", entropies, is_quick=True),
)
