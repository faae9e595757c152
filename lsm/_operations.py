"""What lsm computes: one row for each operation, read by everything that must know which operations there are."""

from typing import NamedTuple


class Input(NamedTuple):
    """An array that an operation reads.

    Attributes
    ----------
    name : str
        The parameter of the public function and of a backend's method.
    role : str
        "logits", "log-probabilities" (what `log_softmax` gave), or "gradient" (of a loss by the output).
    """

    name: str
    role: str


class Operation(NamedTuple):
    """One operation on frames; its result has the shape of its inputs.

    Attributes
    ----------
    name : str
        The public function, the method of a backend, and the `op` of `lsm.explain` and of the command line.
    direction : str
        What reports call it: "forward" or "backward".
    inputs : tuple of Input
        In the order of the parameters.
    has_dtype : bool
        Whether ``dtype=`` chooses the dtype of the result; otherwise it is that to which the inputs are promoted.
    is_required : bool
        Whether every backend must have the method.
    """

    name: str
    direction: str
    inputs: tuple[Input, ...]
    has_dtype: bool
    is_required: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple([array.name for array in self.inputs])

    def reads(self, role: str) -> bool:
        """Whether one of the inputs has this role."""
        return any(array.role == role for array in self.inputs)


LOG_SOFTMAX = Operation("log_softmax", "forward", (Input("x", "logits"),), has_dtype=True, is_required=True)
LOG_SOFTMAX_BACKWARD = Operation(
    "log_softmax_backward",
    "backward",
    (Input("grad_output", "gradient"), Input("output", "log-probabilities")),
    has_dtype=False,
    is_required=True,
)

OPERATIONS = {operation.name: operation for operation in (LOG_SOFTMAX, LOG_SOFTMAX_BACKWARD)}
