"""A contestant: one way to call one library in one case."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lsm.bench.data import Array

OUT, NEW = "out", "new"


@dataclass(frozen=True)
class Contestant:
    """An expression in Python, and what its names mean.

    An expression and not a function: `timeit` puts it into a loop of its own, whose cost is about 10 ns a call.
    """

    name: str
    library: str
    way: str  # OUT: the result is written into `out` of the data; NEW: the expression's value is the result
    code: str
    names: dict[str, Any]
    backend: str | None = None
    to_numpy: Callable[[Any], Array] = np.asarray
    synchronise: Callable[[], object] | None = None  # waits for the device
    bound_ulp: float | None = None  # what it declares
    setup_ms: float = 0.0  # what making it took, if that is a compilation

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others of a row."""
        return self.name, self.way

    def call(self) -> Any:
        """Evaluate the expression once, to the end."""
        value = eval(self.code, dict(self.names))
        if self.synchronise is not None:
            self.synchronise()
        return value


class Absent(NamedTuple):
    """Who cannot take part in a case, and why."""

    name: str
    reason: str
