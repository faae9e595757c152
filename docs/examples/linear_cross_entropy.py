"""The loss of a language model's last layer and its gradients, without the logits of all tokens at once.

The logits are ``hidden @ weight.T``: for 8,192 tokens x 128,256 words they take 4.2 GB in float32, and so does their
gradient. Here, the tokens are processed in blocks, and `lsm.cross_entropy_value_and_grad` overwrites the logits of a
block with their gradient.

Usage: ``python docs/examples/linear_cross_entropy.py`` compares the memory with that of all tokens in one block.
"""

import tracemalloc

import numpy as np

import lsm


def linear_cross_entropy(
    hidden: np.ndarray, weight: np.ndarray, targets: np.ndarray, n_block: int = 256, ignore_index: int = -100
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean cross-entropy, and its gradients with respect to `hidden` (n_tokens, n_hidden) and `weight`."""
    loss, d_hidden, d_weight = 0.0, np.empty_like(hidden), np.zeros_like(weight)
    buffer = np.empty((min(n_block, len(hidden)), len(weight)), hidden.dtype)
    for start in range(0, len(hidden), n_block):
        rows = slice(start, start + n_block)
        x = hidden[rows]
        logits = np.matmul(x, weight.T, out=buffer[: len(x)])
        value, dx = lsm.cross_entropy_value_and_grad(
            logits, targets[rows], ignore_index=ignore_index, reduction="sum", dtype=np.float64, out=logits
        )
        loss += float(value)
        np.matmul(dx, weight, out=d_hidden[rows])
        d_weight += dx.T @ x
    n_counted = np.count_nonzero(targets != ignore_index)
    d_hidden /= n_counted
    d_weight /= n_counted
    return loss / n_counted, d_hidden, d_weight


def main() -> None:
    """Compare one block with several."""
    rng = np.random.default_rng(0)
    hidden, weight = (rng.normal(size=(n, 64)).astype(np.float32) for n in (2048, 8192))
    targets = rng.integers(0, len(weight), len(hidden))
    for n_block in (len(hidden), 256):
        tracemalloc.start()
        loss, *_ = linear_cross_entropy(hidden, weight, targets, n_block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"blocks of {n_block:>4} tokens: loss {loss:.6f}, {peak / 1e6:>3.0f} MB")


if __name__ == "__main__":
    main()
