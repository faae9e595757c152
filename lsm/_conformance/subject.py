"""The subject of a check: a backend with one array type, device and dtype of those it claims; and the check itself."""

from collections.abc import Callable, Iterable, Sequence
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
    GuardedArray,
    Layout,
    bits,
    numpy_dtype,
)
from lsm._conformance.oracle import REFERENCES, Exact
from lsm._conformance.samples import MASKS, Sample
from lsm._operations import OPERATIONS, Operation
from lsm.backends.contract import has_operation, max_ulp


class ConformanceError(AssertionError):
    """The backend does not do what it claims, or what the contract requires."""


class AccuracyError(ConformanceError):
    """A result is further from the exact value than the backend declares."""


@dataclass(frozen=True)
class Subject:
    """A backend, and the arrays passed to it.

    Attributes
    ----------
    name : str
        The name by which lsm finds the backend.
    backend : Backend
        The object.
    maker : ArrayMaker
        The maker of arrays of the type under test.
    device, dtype_name : str
        The kind of device and the dtype.
    is_measuring : bool
        Whether errors are measured without a bound, to find the largest.
    """

    name: str
    backend: Any
    maker: ArrayMaker
    device: str
    dtype_name: str
    is_measuring: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype as a NumPy dtype."""
        return numpy_dtype(self.dtype_name)

    @property
    def same_bits(self) -> bool:
        """Whether the backend claims that a frame's bits depend only on its values."""
        return bool(getattr(self.backend, "same_bits", False))

    def bound(self, dtype: np.dtype[Any]) -> float:
        """The error that the backend declares for results of a dtype."""
        return float("inf") if self.is_measuring else max_ulp(self.backend)[dtype_name(dtype)]

    def other_dtypes(self) -> list[np.dtype[Any]]:
        """The other claimed dtypes that are available in NumPy."""
        found = []
        for name in self.backend.dtypes:
            with suppress(CannotMakeError, TypeError):  # the case of that dtype reports the reason
                found += [numpy_dtype(name)] if name != self.dtype_name else []
        return found

    def rng(self) -> np.random.Generator:
        """The same random numbers for every check."""
        return np.random.default_rng(20260101)

    def to_device(self, values: Array) -> Any:
        """An array of the type and device under test, to pass to `lsm` or the backend."""
        return self.maker.from_numpy(np.asarray(values), self.device)

    @property
    def operations(self) -> list[Operation]:
        """The operations that the backend implements."""
        return [operation for operation in OPERATIONS.values() if has_operation(self.backend, operation.name)]

    def reading(self, role: str) -> list[Operation]:
        """The operations that read an input of this role."""
        return [operation for operation in self.operations if operation.reads(role)]

    def new_out(
        self, operation: Operation, shape: tuple[int, ...], axis: int, dtype: Any = None, fill: float = GUARD
    ) -> Array:
        """A new output for a backend's method, for inputs of this shape."""
        return np.full(operation.result_shape(shape, (axis % len(shape),), keepdims=True), fill, dtype or self.dtype)

    def run(
        self,
        operation: Operation,
        inputs: Sequence[Array],
        axis: int = -1,
        *,
        dtype: np.dtype[Any] | None = None,
        layout: Layout = CONTIGUOUS,
        out_layout: Layout = CONTIGUOUS,
        in_place: str = "",
    ) -> Array:
        """Call the backend's method as lsm does, with the input `in_place` as `out`, and check what it writes."""

        def call(fill: float) -> Array:
            return self._call(operation, inputs, axis, dtype, layout, out_layout, in_place, fill)

        result = call(GUARD)
        is_left = result == GUARD
        if is_left.any():  # unless the results equal that number: repeat with another
            is_left &= call(-GUARD) == -GUARD
        require(
            not is_left.any(),
            f"{operation.name} did not write {int(is_left.sum())} of the {result.size} elements of out",
        )
        return result

    def _call(
        self,
        operation: Operation,
        inputs: Sequence[Array],
        axis: int,
        dtype: np.dtype[Any] | None,
        layout: Layout,
        out_layout: Layout,
        in_place: str,
        fill: float,
    ) -> Array:
        """Call the backend's method with `out` full of `fill`; check all but whether every element is written."""
        op, first = operation.name, inputs[0]
        made = [GuardedArray(array, self.maker, self.device, layout) for array in inputs]
        given = dict(zip(operation.names, made, strict=True))
        if in_place:
            out = given[in_place]
        else:
            empty = self.new_out(operation, first.shape, axis, dtype or first.dtype, fill)
            out = GuardedArray(empty, self.maker, self.device, out_layout)
        arguments = [*[array.array for array in made], axis % first.ndim, out.array]
        returned = getattr(self.backend, op)(*arguments)
        if returned is not None and returned is not out.array:
            kind = type(returned).__name__
            raise ConformanceError(f"{op} returned a {kind}; it must write its result to out and return None")
        for name, array in given.items():
            if array is not out and not array.is_unchanged():
                raise ConformanceError(f"{op} changed its input {name}; it may write only to out")
        if not out.guards_are_unchanged():
            raise ConformanceError(f"{op} wrote to memory outside out (around it, or between its elements)")
        result = out.values()
        is_now, was = out.kind(), out.kind_before
        if is_now != was:
            raise ConformanceError(f"{op} changed out to {is_now}; it was {was} (type, device, dtype, shape)")
        return result

    def worst_of(
        self, sample: Sample, what: str, operations: Iterable[Operation] | None = None, **options: Any
    ) -> float:
        """The largest error of some or all operations on a sample; results of masked classes must be exact."""
        worst = 0.0
        for operation in self.operations if operations is None else operations:
            text, inputs = f"{operation.direction}, {what}", sample.inputs(operation)
            result = self.run(operation, inputs, sample.axis, **options)
            if not operation.is_reduction:
                roles = zip(inputs, operation.inputs, strict=True)
                is_masked = np.any([array == MASKS.get(role, np.nan) for array, (_, role) in roles], axis=0)
                wanted = np.broadcast_to(REFERENCES[operation.name].masked(*inputs), result.shape)[is_masked]
                found, where = result[is_masked], "where a class is masked"
                require((found == wanted).all(), f"{text}: {show(found)} {where}, not {show(wanted)}")
            worst = max(worst, self.worst(result, sample.exact(operation, result.dtype), text))
        return worst

    def worst(self, result: Array, exact: Exact, what: str, slack_ulp: float = 0) -> float:
        """The largest error of a result in ulps; raises AccuracyError above the backend's bound plus `slack_ulp`."""
        if result.size == 0:
            return 0.0
        errors = np.where(np.isnan(result), np.inf, exact.ulps(result))
        i = np.unravel_index(errors.argmax(), errors.shape)
        bound = self.bound(result.dtype) + slack_ulp
        if not errors[i] <= bound or np.isnan(result[i]):  # a NaN among the errors must fail
            raise AccuracyError(
                f"{what}: {float(errors[i]):.4g} ulp off; max_ulp is {bound:g} for {dtype_name(result.dtype)}: "
                f"{float(result[i])!r} instead of {float(exact.value[i])!r} at index {tuple(map(int, i))}"
            )
        return float(errors[i])

    def agree(self, result: Array, want: Array, exact: Exact, what: str) -> None:
        """Raise unless a result is accurate and, if the backend claims same_bits, equal to `want` to the last bit."""
        self.worst(result, exact, what)
        if self.same_bits and bits(result) != bits(want):
            raise ConformanceError(f"{what}: different bits than in another call, though same_bits is claimed")


class Check(NamedTuple):
    """One check; its function returns the measured error in ulps, or None.

    There is one case for each `per`: "dtype", "place" (an array type on a device) or "backend". `operation` names the
    only operation checked, if any; backends without it have no such case. With `is_quick`, there is none for dtypes
    whose exact values need more than longdouble.
    """

    title: str
    function: Callable[[Subject], float | None]
    per: str = "dtype"
    operation: str = ""
    is_quick: bool = False


class Case(NamedTuple):
    """A check of one subject. It raises ConformanceError, SkipTest, or whatever the backend raised."""

    check: Check
    subject: Subject

    @property
    def name(self) -> str:
        """A unique name."""
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
    """Skip the case; it is counted and shown."""
    raise SkipTest(reason)


def show(array: Array) -> str:
    """A few values for a message."""
    return np.array2string(array.astype(np.float64).ravel(), threshold=4, edgeitems=2, precision=4)
