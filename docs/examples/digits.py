"""Train a softmax regression on handwritten digits, with NumPy and lsm, once per backend.

The data are the 1,797 images of 8 x 8 pixels that come with scikit-learn; nothing is downloaded. An image is a row of
X, its logits are the 10 numbers x = X W, and `lsm.cross_entropy_value_and_grad` computes the loss and its gradient:

    loss = logsumexp(x) - x[label]              the mean over all images
    dx   = softmax(x) - (class == label)        divided by the number of images; then dW = X^T dx

Usage: ``python docs/examples/digits.py``. The exit code is 1 if the backends disagree.
"""

import sys
import time
from typing import NamedTuple

import numpy as np

import lsm

N_STEPS, STEP_SIZE, WEIGHT_DECAY = 400, 0.5, 1e-3

# The loss is convex and the steps are short, so rounding errors are not amplified from step to step. What is left is
# about one float32 rounding error (6e-8) for each of the ~100 additions in a loss.
TOLERANCE = 1e-5


class Run(NamedTuple):
    """The result of training with one backend."""

    first_loss: float
    last_loss: float
    accuracy: float
    seconds: float


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels (four fifths), then held-out images and labels, always the same split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("The digits need scikit-learn, which is not installed: python -m pip install '.[examples]'")
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    training, held_out = np.split(order, [len(order) * 4 // 5])
    mean, std = pixels[training].mean(axis=0), pixels[training].std(axis=0)
    scaled = (pixels - mean) / np.where(std > 0, std, 1)  # some pixels at the edge are always 0
    images = np.column_stack([scaled, np.ones(len(scaled))]).astype(np.float32)  # a column of ones for the bias
    return images[training], labels[training], images[held_out], labels[held_out]


def loss_and_gradient(weights: np.ndarray, images: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean negative log-likelihood with weight decay, and its gradient with respect to the weights."""
    loss, dx = lsm.cross_entropy_value_and_grad(images @ weights, labels)
    return float(loss + WEIGHT_DECAY / 2 * (weights**2).sum()), images.T @ dx + WEIGHT_DECAY * weights


def train(images: np.ndarray, labels: np.ndarray, held_out: np.ndarray, held_out_labels: np.ndarray) -> Run:
    """Gradient descent from zero weights, then the accuracy on held-out images."""
    start = time.perf_counter()
    weights = np.zeros((images.shape[1], 10), images.dtype)
    first_loss, gradient = loss_and_gradient(weights, images, labels)
    for _ in range(N_STEPS):
        weights -= STEP_SIZE * gradient
        last_loss, gradient = loss_and_gradient(weights, images, labels)
    seconds = time.perf_counter() - start
    is_correct = (held_out @ weights).argmax(axis=1) == held_out_labels
    return Run(first_loss, last_loss, float(is_correct.mean()), seconds)


def compare(runs: list[Run]) -> tuple[bool, str]:
    """Whether the runs agree, and a line to print."""
    if len(runs) == 1:
        return True, "Only one backend supports float32 here: nothing to compare."
    first, last, accuracy, _ = np.array(runs).T
    apart = max(np.ptp(first) / first.min(), np.ptp(last) / last.min())
    agree = np.ptp(accuracy) == 0 and apart <= TOLERANCE
    differ = f"accuracy differs by {np.ptp(accuracy):.1%}, losses by {apart:.0e}"
    verdict = f"The {len(runs)} backends {'agree' if agree else 'DISAGREE'}: {differ}"
    return bool(agree), f"{verdict} (allowed, for float32 rounding: 0 and {TOLERANCE:.0e})."


def main() -> int:
    """Train with each backend that supports float32 NumPy arrays, and compare."""
    data = load()
    print(f"{len(data[0])} training images, {len(data[2])} held out, {N_STEPS} steps\n")
    print("backend       first loss   last loss  accuracy  seconds")
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
