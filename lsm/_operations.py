"""The table of operations, used by all other modules."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Input(NamedTuple):
    """An array that an operation reads.

    Attributes
    ----------
    name : str
        The parameter of the public function.
    role : str
        "logits", "log-probabilities" (a result of `log_softmax`), "probabilities" (of `softmax`), or "gradient" (of a
        loss, by the output).
    """

    name: str
    role: str

    @property
    def masked(self) -> float:
        """The value that replaces a masked class."""
        return -math.inf if self.role in ("logits", "log-probabilities") else 0.0


class Operation(NamedTuple):
    """An operation on frames: a map, whose result has the shape of the inputs, or a reduction to one number per frame.

    Attributes
    ----------
    name : str
        The name of the public function and of the backend's method; the `op` of `lsm.explain` and the command line.
    direction : str
        Its name in reports: "forward" or "backward".
    inputs : tuple of Input
        The inputs, in the order of the parameters.
    has_dtype : bool
        Whether ``dtype=`` sets the dtype of the result; otherwise it is the one to which the inputs are promoted.
    is_required : bool
        Whether every backend must implement it.
    identity : float or None
        The result of a reduction for a frame of no classes; None for a map.
    """

    name: str
    direction: str
    inputs: tuple[Input, ...]
    has_dtype: bool
    is_required: bool
    identity: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple([array.name for array in self.inputs])

    def reads(self, role: str) -> bool:
        """Whether one of the inputs has this role."""
        return any(array.role == role for array in self.inputs)

    @property
    def masked(self) -> float:
        """The result of a map for a masked class."""
        return -math.inf if self.name == "log_softmax" else 0.0

    @property
    def is_reduction(self) -> bool:
        """Whether the result has one number per frame."""
        return self.identity is not None

    def result_shape(self, shape: Sequence[int], axes: Sequence[int], keepdims: bool = False) -> tuple[int, ...]:
        """The shape of the result; a backend's method receives the one with `keepdims`."""
        if not self.is_reduction:
            return tuple(shape)
        if keepdims:
            return tuple([1 if i in axes else n for i, n in enumerate(shape)])
        return tuple([n for i, n in enumerate(shape) if i not in axes])


LOG_SOFTMAX = Operation("log_softmax", "forward", (Input("x", "logits"),), has_dtype=True, is_required=True)
LOG_SOFTMAX_BACKWARD = Operation(
    "log_softmax_backward",
    "backward",
    (Input("grad_output", "gradient"), Input("output", "log-probabilities")),
    has_dtype=False,
    is_required=True,
)
SOFTMAX = Operation("softmax", "softmax", (Input("x", "logits"),), has_dtype=True, is_required=False)
SOFTMAX_BACKWARD = Operation(
    "softmax_backward",
    "softmax backward",
    (Input("grad_output", "gradient"), Input("output", "probabilities")),
    has_dtype=False,
    is_required=False,
)
LOGSUMEXP = Operation(
    "logsumexp", "logsumexp", (Input("a", "logits"),), has_dtype=True, is_required=False, identity=float("-inf")
)

OPERATIONS = {
    operation.name: operation for operation in (LOG_SOFTMAX, LOG_SOFTMAX_BACKWARD, SOFTMAX, SOFTMAX_BACKWARD, LOGSUMEXP)
}

# Other methods that backends may have, for frames in parts; each group is named after its first method.
PARTIALS, PARTIALS_BACKWARD = "partials", "partials_backward"


class Derived(NamedTuple):
    """A function that lsm derives from an operation, with any backend that supports the operation.

    Attributes
    ----------
    name : str
        The name of the public function; the `op` of `lsm.explain`.
    source : Operation
        The operation.
    is_loss : bool
        Whether the result for 16-bit logits is float32 instead of 16 bits.
    elsewhere : str
        The remedy in messages about a device for which it is not derived.
    """

    name: str
    source: Operation
    is_loss: bool
    elsewhere: str

    def refusal(self, name: str, place: str) -> str:
        """The message for logits on a device for which it is not derived."""
        return f"{name}: is on {place}; lsm.{self.name} is for arrays on the CPU; {self.elsewhere}"


_INDEX, _BY_HAND = "index the result of lsm.log_softmax", "compute it from the result of lsm.log_softmax"

DERIVED = {
    name: Derived(name, LOG_SOFTMAX, is_loss, elsewhere)
    for name, is_loss, elsewhere in (
        ("take_log_softmax", False, _INDEX),
        ("top_k_log_softmax", False, _INDEX),
        ("cross_entropy", True, _INDEX),
        ("cross_entropy_value_and_grad", True, "use lsm.log_softmax and lsm.log_softmax_backward"),
        ("entropy", True, _BY_HAND),
        ("kl_divergence", True, _BY_HAND),
    )
}

# The same for functions whose logits, or gradients, are parts of frames.
OF_PART = {
    name: Derived(name, source, False, f"gather the classes, and use lsm.{source.name}")
    for name, source in ((PARTIALS, LOG_SOFTMAX), (PARTIALS_BACKWARD, LOG_SOFTMAX_BACKWARD))
}
