"""What is checked: a backend with one type of array, device and dtype of those it claims; and one check of it."""

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

    @property
    def operations(self) -> list[Operation]:
        """The operations that the backend has."""
        return [operation for operation in OPERATIONS.values() if has_operation(self.backend, operation.name)]

    def reading(self, role: str) -> list[Operation]:
        """Those that read an input of this role."""
        return [operation for operation in self.operations if operation.reads(role)]

    def new_out(
        self, operation: Operation, shape: tuple[int, ...], axis: int, dtype: Any = None, fill: float = GUARD
    ) -> Array:
        """What a backend's method may write to, for inputs of this shape."""
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
        """Call the backend's own method as lsm does, with `out` the input `in_place`, and check what it touches."""

        def call(fill: float) -> Array:
            return self._call(operation, inputs, axis, dtype, layout, out_layout, in_place, fill)

        result = call(GUARD)
        is_left = result == GUARD
        if is_left.any():  # or the results are that number: once more with another
            is_left &= call(-GUARD) == -GUARD
        require(
            not is_left.any(),
            f"{operation.name} left {int(is_left.sum())} of the {result.size} elements of out as they were",
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
        """Call the backend's method with an `out` that holds `fill`, and check all but that it is written."""
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
        return result

    def worst_of(
        self, sample: Sample, what: str, operations: Iterable[Operation] | None = None, **options: Any
    ) -> float:
        """The largest error of some operations, or all, on a sample; what is masked out must be exact."""
        worst = 0.0
        for operation in self.operations if operations is None else operations:
            text, inputs = f"{operation.direction}, {what}", sample.inputs(operation)
            result = self.run(operation, inputs, sample.axis, **options)
            if not operation.is_reduction:
                roles = zip(inputs, operation.inputs, strict=True)
                is_masked = np.any([array == MASKS.get(role, np.nan) for array, (_, role) in roles], axis=0)
                wanted = np.broadcast_to(REFERENCES[operation.name].masked(*inputs), result.shape)[is_masked]
                found, where = result[is_masked], "where a class is masked out"
                require((found == wanted).all(), f"{text}: {show(found)} {where}, not {show(wanted)}")
            worst = max(worst, self.worst(result, sample.exact(operation, result.dtype), text))
        return worst

    def worst(self, result: Array, exact: Exact, what: str, slack_ulp: float = 0) -> float:
        """The largest error of a result in ulps; an AccuracyError if it is beyond the bound and what lsm adds to it."""
        if result.size == 0:
            return 0.0
        errors = np.where(np.isnan(result), np.inf, exact.ulps(result))
        i = np.unravel_index(errors.argmax(), errors.shape)
        bound = self.bound(result.dtype) + slack_ulp
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
            raise ConformanceError(f"{what}: different bits than in another call, though same_bits is claimed")


class Check(NamedTuple):
    """One thing that is checked; gives the error that it measured in ulps, or None.

    `per` says of what there is one case each: "dtype", "place" (an array type on a device) or "backend". `operation`
    names the one that is checked alone; a backend without it has no such case. `is_quick`: nor has a dtype whose exact
    values take more than longdouble.
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


def show(array: Array) -> str:
    """A few values for a message."""
    return np.array2string(array.astype(np.float64).ravel(), threshold=4, edgeitems=2, precision=4)
