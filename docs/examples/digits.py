"""Teach a softmax regression to read handwritten digits, with NumPy and lsm, once on every backend.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn ships; nothing is downloaded. An image is a
row of X, its logits are the 10 numbers x = X W, and two formulas do the rest:

    forward    y  = x - logsumexp(x)            log-probabilities; the loss is the mean of -y[label]
    backward   dx = dy - exp(y) * sum(dy)       the loss by the logits, from y alone; then dW = X^T dx

Run it: ``python docs/examples/digits.py``. It exits with 1 if the backends disagree.
"""

import sys
import time
from typing import NamedTuple

import numpy as np

import lsm

N_STEPS, STEP_SIZE, WEIGHT_DECAY = 400, 0.5, 1e-3

# The loss is convex and the steps are short: none enlarges what those before it have rounded away. That leaves
# about one float32 rounding (6e-8) for each of the ~100 sums that a loss goes through.
TOLERANCE = 1e-5


class Run(NamedTuple):
    """What training on one backend gave."""

    first_loss: float
    last_loss: float
    accuracy: float
    seconds: float


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels to learn from (four fifths), then images and labels held out, always the same."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("The digits come with scikit-learn, which is not installed: python -m pip install '.[examples]'")
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    learn, held_out = np.split(order, [len(order) * 4 // 5])
    mean, spread = pixels[learn].mean(axis=0), pixels[learn].std(axis=0)
    scaled = (pixels - mean) / np.where(spread > 0, spread, 1)  # some pixels at the edge are never inked
    images = np.column_stack([scaled, np.ones(len(scaled))]).astype(np.float32)  # the ones carry the bias
    return images[learn], labels[learn], images[held_out], labels[held_out]


def loss_and_gradient(weights: np.ndarray, images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean negative log-likelihood with weight decay, and its gradient by the weights."""
    rows = np.arange(len(labels))
    y = lsm.log_softmax(images @ weights)
    dy = np.zeros_like(y)
    dy[rows, labels] = -1 / len(labels)
    gradient = images.T @ lsm.log_softmax_backward(dy, y) + WEIGHT_DECAY * weights
    return float(-y[rows, labels].mean() + WEIGHT_DECAY / 2 * (weights**2).sum()), gradient


def train(images: np.ndarray, labels: np.ndarray, held_out: np.ndarray, held_out_labels: np.ndarray) -> Run:
    """Go downhill from zero weights, then count the held-out images that are read right."""
    start = time.perf_counter()
    weights = np.zeros((images.shape[1], 10), images.dtype)
    first_loss, gradient = loss_and_gradient(weights, images, labels)
    for _ in range(N_STEPS):
        weights -= STEP_SIZE * gradient
        last_loss, gradient = loss_and_gradient(weights, images, labels)
    seconds = time.perf_counter() - start
    is_right = (held_out @ weights).argmax(axis=1) == held_out_labels
    return Run(first_loss, last_loss, float(is_right.mean()), seconds)


def compare(runs: list[Run]) -> tuple[bool, str]:
    """Whether the runs agree, and a line that says so."""
    if len(runs) == 1:
        return True, "One backend serves float32 here: nothing to compare."
    first, last, accuracy, _ = np.array(runs).T
    apart = max(np.ptp(first) / first.min(), np.ptp(last) / last.min())
    agree = np.ptp(accuracy) == 0 and apart <= TOLERANCE
    differ = f"accuracy differs by {np.ptp(accuracy):.1%}, losses by {apart:.0e}"
    verdict = f"The {len(runs)} backends {'agree' if agree else 'DISAGREE'}: {differ}"
    return bool(agree), f"{verdict} (allowed, for float32 rounding: 0 and {TOLERANCE:.0e})."


def main() -> int:
    """Train on each backend that serves float32 arrays of NumPy, and compare."""
    data = load()
    print(f"{len(data[0])} images to learn from, {len(data[2])} held out, {N_STEPS} steps\n")
    print("backend       first loss   last loss  held out  seconds")
    runs: list[Run] = []
    for info in lsm.list_backends():
        decision = lsm.explain(data[0], backend=info.name)
        if decision.error is not None:
            print(f"{info.name:<12} skipped: {decision.error}")
            continue
        with lsm.use_backend(info.name):
            run = train(*data)
        runs.append(run)
        print(f"{info.name:<12} {run[0]:>11.7f} {run[1]:>11.7f} {run.accuracy:>9.1%} {run.seconds:>8.2f}")
    agree, verdict = compare(runs)
    print(f"\n{verdict}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
