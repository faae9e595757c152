"""The inputs on which operations are tested: logits of many kinds, and inputs of every other role made from them."""

from typing import Any

import numpy as np

from lsm._check import dtype_name
from lsm._conformance.arrays import Array
from lsm._conformance.oracle import REFERENCES, Exact
from lsm._operations import LOG_SOFTMAX, SOFTMAX, Operation

KINDS = {
    "ordinary": "ordinary frames",
    "peaked": "peaked frames",
    "two peaks": "frames of two peaks",
    "constant": "constant frames",
    "masked": "half masked frames",
    "far from 0": "frames far from 0",
    "huge": "huge values",
    "subnormal": "subnormal values",
}
MASKS = {"logits": -np.inf, "log-probabilities": -np.inf, "probabilities": 0}  # by role, the value that masks a class
_RANGES = {"float16": (6e4, 6e-8), "bfloat16": (1e30, 1e-39), "float32": (1e30, 1e-40)}  # other dtypes: see below


def frames(kind: str, shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    """Logits of one kind, rounded to `dtype`, with the classes on the last axis."""
    x = rng.standard_normal(shape) * 3
    huge, tiny = _RANGES.get(dtype_name(dtype), (1e300, 1e-310))
    if kind == "peaked":
        k = rng.integers(0, shape[-1], shape[:-1])[..., None]
        np.put_along_axis(x, k, x.max() + rng.uniform(5, 100, k.shape), axis=-1)
    elif kind == "two peaks":
        x[..., : shape[-1] // 2 + 1] -= 60
        x[..., 0] = x[..., -1] = 30
    elif kind == "constant":
        x[...] = x[..., :1]
    elif kind == "masked":
        x[rng.random(shape) < 0.5] = -np.inf
        x[..., 0] = 1
    elif kind == "far from 0":
        x += rng.uniform(-1e4, 1e4, (*shape[:-1], 1))
    elif kind == "huge":
        x = np.clip(x / 3, -1, 1) * huge
    elif kind == "subnormal":
        x *= tiny
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def gradient(x: Array, rng: np.random.Generator) -> Array:
    """A random gradient of both signs, with the shape and dtype of `x`."""
    return np.asarray(rng.standard_normal(x.shape)).astype(x.dtype)


def rounded(exact: Exact, dtype: np.dtype[Any]) -> Array:
    """The exact values, rounded to `dtype`."""
    with np.errstate(all="ignore"):
        return exact.value.astype(np.float64).astype(dtype) if dtype.itemsize == 2 else exact.value.astype(dtype)


class Sample:
    """Inputs for every operation, made from the same logits, and the exact results, each computed once.

    Parameters
    ----------
    x : array
        Logits.
    rng : Generator
        For the gradient.
    axis : int, optional
        The axis of the classes.
    given : dict of str to array, optional
        By role, inputs to use instead of the defaults: for "gradient", random numbers; for "log-probabilities" and
        "probabilities", the exact log-softmax and softmax of `x`, rounded.
    """

    def __init__(
        self, x: Array, rng: np.random.Generator, axis: int = -1, given: dict[str, Array] | None = None
    ) -> None:
        self.axis, self.shape = axis, x.shape
        self._by_role = {"logits": x, "gradient": gradient(x, rng), **(given or {})}
        self._exact: dict[tuple[str, np.dtype[Any]], Exact] = {}

    def inputs(self, operation: Operation) -> tuple[Array, ...]:
        """The inputs of an operation."""
        return tuple([self._of_role(role) for _, role in operation.inputs])

    def exact(self, operation: Operation, dtype: np.dtype[Any] | None = None) -> Exact:
        """The exact result, to check one of `dtype`, by default the dtype of the inputs."""
        inputs = self.inputs(operation)
        key = operation.name, dtype or inputs[0].dtype
        if key not in self._exact:
            self._exact[key] = REFERENCES[operation.name].exact(*inputs, dtype=key[1], axis=self.axis)
        return self._exact[key]

    def _of_role(self, role: str) -> Array:
        if role not in self._by_role:
            operation = {"log-probabilities": LOG_SOFTMAX, "probabilities": SOFTMAX}[role]
            self._by_role[role] = rounded(self.exact(operation), self._by_role["logits"].dtype)
        return self._by_role[role]
