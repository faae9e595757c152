"""What is checked: a backend with one type of array, device and dtype of those it claims; and one check of it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np

from lsm._check import dtype_name
from lsm._conformance.arrays import (
    CONTIGUOUS,
    GUARD,
    Array,
    ArrayMaker,
    CannotMakeError,
    Guarded,
    Layout,
    bits,
    numpy_dtype,
)
from lsm._conformance.oracle import Exact
from lsm.backends.contract import max_ulp


class ConformanceError(AssertionError):
    """The backend does something else than it claims, or than the contract says."""


class AccuracyError(ConformanceError):
    """A result is further from the exact value than the backend declares."""


@dataclass(frozen=True)
class Subject:
    """A backend, and the arrays that it is given here.

    Attributes
    ----------
    name : str
        By which lsm finds the backend.
    backend : Backend
        The object.
    maker : ArrayMaker
        Makes arrays of the type that is checked.
    device, dtype_name : str
        The kind of device and the dtype.
    is_measuring : bool
        Whether any error will do, so that the largest can be told.
    """

    name: str
    backend: Any
    maker: ArrayMaker
    device: str
    dtype_name: str
    is_measuring: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype as NumPy has it."""
        return numpy_dtype(self.dtype_name)

    @property
    def same_bits(self) -> bool:
        """Whether the backend claims that a frame's bits depend on its values only."""
        return bool(getattr(self.backend, "same_bits", False))

    def bound(self, dtype: np.dtype[Any]) -> float:
        """The error that the backend declares for results of a dtype."""
        return float("inf") if self.is_measuring else max_ulp(self.backend)[dtype_name(dtype)]

    def other_dtypes(self) -> list[np.dtype[Any]]:
        """The other dtypes that are claimed and that NumPy has here."""
        found = []
        for name in self.backend.dtypes:
            with suppress(CannotMakeError, TypeError):  # what comes of that dtype says why
                found += [numpy_dtype(name)] if name != self.dtype_name else []
        return found

    def rng(self) -> np.random.Generator:
        """The same random numbers for every check."""
        return np.random.default_rng(20260101)

    def to_device(self, values: Array) -> Any:
        """An array for `lsm` itself, which the backend shall be given."""
        return self.maker.from_numpy(np.asarray(values), self.device)

    def forward(
        self,
        x: Array,
        axis: int = -1,
        *,
        dtype: np.dtype[Any] | None = None,
        layout: Layout = CONTIGUOUS,
        out_layout: Layout = CONTIGUOUS,
        in_place: bool = False,
    ) -> Array:
        """Call the backend's own log_softmax as lsm does, and look after what it may not touch."""
        given = Guarded(x, self.maker, self.device, layout)
        out = given if in_place else self._room(x.shape, dtype or x.dtype, out_layout)
        returned = self.backend.log_softmax(given.array, axis % x.ndim, out.array)
        return self._written("log_softmax", returned, {"x": given}, out)

    def backward(
        self,
        dy: Array,
        y: Array,
        axis: int = -1,
        *,
        layout: Layout = CONTIGUOUS,
        out_layout: Layout = CONTIGUOUS,
        in_place: str = "",
    ) -> Array:
        """The same for its log_softmax_backward; in place of "grad_output" or "output"."""
        given = {
            "grad_output": Guarded(dy, self.maker, self.device, layout),
            "output": Guarded(y, self.maker, self.device, layout),
        }
        out = given[in_place] if in_place else self._room(dy.shape, dy.dtype, out_layout)
        arrays = [array.array for array in given.values()]
        returned = self.backend.log_softmax_backward(*arrays, axis % dy.ndim, out.array)
        return self._written("log_softmax_backward", returned, given, out)

    def _room(self, shape: tuple[int, ...], dtype: np.dtype[Any], layout: Layout) -> Guarded:
        return Guarded(np.full(shape, GUARD, dtype), self.maker, self.device, layout)

    def _written(self, op: str, returned: Any, given: dict[str, Guarded], out: Guarded) -> Array:
        """What the call wrote into `out`, once nothing else has changed."""
        if returned is not None and returned is not out.array:
            kind = type(returned).__name__
            raise ConformanceError(f"{op} returned a {kind}; it must write its result into out and return None")
        for name, array in given.items():
            if array is not out and not array.is_unchanged():
                raise ConformanceError(f"{op} changed its input {name}; only out may be written")
        if not out.guards_are_unchanged():
            raise ConformanceError(f"{op} wrote into memory outside out (around it, or between its elements)")
        result = out.values()
        is_now, was = out.kind(), out.kind_before
        if is_now != was:
            raise ConformanceError(f"{op} made {is_now} of out, which was {was} (type, device, dtype, shape)")
        n_left = int((result == GUARD).sum())
        if n_left:
            raise ConformanceError(f"{op} left {n_left} of the {result.size} elements of out as they were")
        return result

    def worst(self, result: Array, exact: Exact, what: str) -> float:
        """The largest error of a result in ulps; an AccuracyError if it is beyond the bound."""
        if result.size == 0:
            return 0.0
        errors = np.where(np.isnan(result), np.inf, exact.ulps(result))
        i = np.unravel_index(errors.argmax(), errors.shape)
        bound = self.bound(result.dtype)
        if not errors[i] <= bound or np.isnan(result[i]):  # a NaN among the errors is no pass
            raise AccuracyError(
                f"{what}: {float(errors[i]):.4g} ulp off, where max_ulp is {bound:g} for {dtype_name(result.dtype)}: "
                f"{float(result[i])!r} instead of {float(exact.value[i])!r} at index {tuple(map(int, i))}"
            )
        return float(errors[i])

    def agree(self, result: Array, want: Array, exact: Exact, what: str) -> None:
        """Raise unless a result is right, and where the backend claims same_bits, `want` to the last bit."""
        self.worst(result, exact, what)
        if self.same_bits and bits(result) != bits(want):
            raise ConformanceError(f"{what}: other bits than otherwise, though same_bits is claimed")


class Check(NamedTuple):
    """One thing that is checked; gives the error that it measured in ulps, or None.

    `per` says of what there is one case each: "dtype", "place" (an array type on a device) or "backend".
    """

    title: str
    function: Callable[[Subject], float | None]
    per: str = "dtype"


class Case(NamedTuple):
    """A check of one subject. It raises ConformanceError, SkipTest, or whatever the backend raised."""

    check: Check
    subject: Subject

    @property
    def name(self) -> str:
        """What tells it from all others."""
        subject = self.subject
        place = f"{subject.maker.type_name} on {subject.device}"
        where = {"dtype": f", {subject.dtype_name}, {place}", "place": f", {place}", "backend": ""}
        return self.check.title + where[self.check.per]

    def run(self) -> float | None:
        """Run the check."""
        return self.check.function(self.subject)


def require(condition: Any, message: str) -> None:
    """Raise ConformanceError unless the condition holds."""
    if not condition:
        raise ConformanceError(message)


def skip(reason: str) -> None:
    """Leave the case out, which is counted and shown."""
    raise SkipTest(reason)
