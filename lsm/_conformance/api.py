"""Checks, through lsm's functions, of the rows of the table of semantics that lsm and the backend share."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

import lsm
from lsm._check import DTYPES, dtype_name
from lsm._conformance.arrays import GUARD, Array, bits
from lsm._conformance.oracle import REFERENCES
from lsm._conformance.samples import Sample, frames
from lsm._conformance.subject import Check, ConformanceError, Subject, require, skip
from lsm._operations import Operation


def call(subject: Subject, operation: Operation, inputs: Iterable[Any], axis: Any = -1, **kwargs: Any) -> Any:
    """Call lsm's function for an operation with the backend."""
    return getattr(lsm, operation.name)(*inputs, axis, backend=subject.name, **kwargs)


def kept(subject: Subject, operation: Operation, result: Any) -> Array:
    """A result along the last axis as a NumPy array; a reduction keeps the axis, as exact results do."""
    values = subject.maker.to_numpy(result)
    return values[..., None] if operation.is_reduction else values


def ordinary(subject: Subject, shape: tuple[int, ...]) -> Sample:
    """Ordinary frames of this shape."""
    rng = subject.rng()
    return Sample(frames("ordinary", shape, subject.dtype, rng), rng)


def each(subject: Subject, sample: Sample) -> Iterator[tuple[Operation, list[Any]]]:
    """Yield each operation with its inputs as arrays of the type and device under test."""
    for operation in subject.operations:
        yield operation, [subject.to_device(array) for array in sample.inputs(operation)]


def result_is_of_the_kind(subject: Subject) -> None:
    """Return a result with the type, shape, device and dtype of the input, and the right values."""
    for shape in ((5,), (4, 7), (2, 3, 4)):
        sample = ordinary(subject, shape)
        for operation, given in each(subject, sample):
            op, result = operation.name, call(subject, operation, given)
            want, got = subject.maker.place(given[0]), subject.maker.place(result)
            wanted = operation.result_shape(shape, (len(shape) - 1,))
            is_alike = got == want or not wanted  # 0-d results: see without_dimensions
            require(is_alike, f"{op}: the result is {got}, the input is {want} (type, device, dtype)")
            require(tuple(result.shape) == wanted, f"{op}: the result has shape {tuple(result.shape)}, not {wanted}")
            subject.worst(kept(subject, operation, result), sample.exact(operation), f"lsm.{op}")


def dtype_of_the_result(subject: Subject) -> None:
    """Return the dtype requested by dtype=; reject a dtype that is not claimed."""
    sample = ordinary(subject, (3, 20))
    for operation, given in each(subject, sample):
        if not operation.has_dtype:
            continue
        for dtype in (subject.dtype, *subject.other_dtypes()):
            name = dtype_name(dtype)
            y = kept(subject, operation, call(subject, operation, given, dtype=name))
            subject.worst(y, sample.exact(operation, y.dtype), f"{operation.name}, dtype={name!r}")
            require(y.dtype == dtype, f"{operation.name}: dtype={name!r} gives {y.dtype}")
        for name in DTYPES:
            if name not in subject.backend.dtypes:
                expect(TypeError, f"dtype={name!r}", subject, operation, given, dtype=name)


def axes(subject: Subject) -> None:
    """Accept an axis counted from either end, several axes, or None for all; reject others."""
    shape = (3, 4, 5)
    for axis in (0, 1, 2, -1, -3, (0, 2), (2, 1), (0, 1, 2), None):
        every = range(3) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        merged = tuple(sorted(i % 3 for i in every))
        order = [i for i in range(3) if i not in merged] + list(merged)
        n_classes = math.prod(shape[i] for i in merged)
        sample = ordinary(subject, (60 // n_classes, n_classes))
        apart = [shape[i] for i in order]
        for operation in subject.operations:
            inputs = [array.reshape(apart).transpose(np.argsort(order)) for array in sample.inputs(operation)]
            result = call(subject, operation, map(subject.to_device, inputs), axis)
            result = subject.maker.to_numpy(result)
            if not operation.is_reduction:
                result = result.transpose(order)
            result = result.reshape(sample.shape[0], -1)
            subject.worst(result, sample.exact(operation), f"{operation.direction}, axis={axis}")
    for operation, given in each(subject, ordinary(subject, shape)):
        for axis in (3, -4, (0, 3)):
            expect(AxisError, f"axis={axis} of an array of 3", subject, operation, given, axis)
        expect(ValueError, "axis=(0, -3), one axis twice", subject, operation, given, (0, -3))


def out_is_written(subject: Subject) -> None:
    """Write to out and return it; reject an unsuitable out before writing anything."""
    sample = ordinary(subject, (4, 6))
    for operation, given in each(subject, sample):
        op, shape = operation.name, operation.result_shape(sample.shape, (1,))
        out = subject.to_device(np.full(shape, GUARD, subject.dtype))
        require(call(subject, operation, given, out=out) is out, f"{op}: the returned array is not out")
        subject.worst(kept(subject, operation, out), sample.exact(operation), f"{op} into out")
        wrong = np.full((4, 5), GUARD, subject.dtype), np.full(shape, GUARD, np.int32)
        for error, values in zip((ValueError, TypeError), wrong, strict=True):
            bad = subject.to_device(values)
            expect(error, f"out of shape {values.shape} and {values.dtype}", subject, operation, given, out=bad)
            require((subject.maker.to_numpy(bad) == values).all(), f"{op}: wrote to an out that it rejected")
        if subject.maker.has_read_only:
            bad = subject.to_device(np.full(shape, GUARD, subject.dtype))
            bad.flags.writeable = False
            expect(ValueError, "out is read-only", subject, operation, given, out=bad)


def overlap(subject: Subject) -> None:
    """Give the same result in an out that partly overlaps an input as in a new array."""
    sample = ordinary(subject, (5, 40))
    for operation, given in each(subject, sample):
        inputs = sample.inputs(operation)
        want = subject.run(operation, inputs)
        size, shape = want.size, operation.result_shape(sample.shape, (1,))
        for k, name in enumerate(operation.names):
            for start, out_start in ((1, 0), (7, 0), (0, 1), (0, 7)):
                flat = np.zeros(207, subject.dtype)
                flat[start : start + 200] = inputs[k].ravel()
                memory = subject.to_device(flat)
                overlapped = memory[start : start + 200].reshape((5, 40))
                out = memory[out_start : out_start + size].reshape(shape)
                call(subject, operation, [*given[:k], overlapped, *given[k + 1 :]], out=out)
                result = subject.maker.to_numpy(memory)[out_start : out_start + size].reshape(5, -1)
                subject.agree(result, want, sample.exact(operation), f"{operation.name}, out overlaps {name}")


def empty(subject: Subject) -> None:
    """Return an empty array of the right shape and dtype for no frames or no classes; reductions, their identity."""
    for shape in ((0,), (2, 0), (0, 3), (0, 0), (3, 0, 2)):
        given = subject.to_device(np.empty(shape, subject.dtype))
        for axis in range(len(shape)):
            for operation in subject.operations:
                result = call(subject, operation, [given] * len(operation.inputs), axis)
                what = f"{operation.name}: shape {shape} gives"
                wanted = operation.result_shape(shape, (axis,))
                require(tuple(result.shape) == wanted, f"{what} {tuple(result.shape)}")
                values = subject.maker.to_numpy(result)
                require(not values.size or (values == operation.identity).all(), f"{what} {values!r}")
                want, got = subject.maker.place(given), subject.maker.place(result)
                require(got == want or not wanted, f"{what} {got} of {want} (type, device, dtype)")


def without_dimensions(subject: Subject) -> None:
    """Return a scalar for a 0-d NumPy array, as NumPy does, and for other libraries an array of their own."""
    given = subject.to_device(np.zeros((), subject.dtype))
    is_numpy = subject.maker.type_name == "numpy.ndarray"
    kind = subject.dtype.type.__name__ if is_numpy else type(given).__name__
    for operation in subject.operations:
        inputs, what = [given] * len(operation.inputs), f"{operation.name} of shape ()"
        (right,) = REFERENCES[operation.name].exact(*[np.zeros(1)] * len(inputs), dtype=subject.dtype).value
        for axis in (-1, None, ()):
            result = call(subject, operation, inputs, axis)
            require(type(result).__name__ == kind, f"{what} gives a {type(result).__name__}, not a {kind}")
            values = subject.maker.to_numpy(result)
            require(values.shape == () and values == right, f"{what} gives {values!r}, not {right}")
            require(values.dtype == subject.dtype, f"{what} gives {values.dtype}, not {subject.dtype}")
        out = subject.to_device(np.full((), GUARD, subject.dtype))
        require(call(subject, operation, inputs, out=out) is out, f"{what}: the returned array is not out")
        require(subject.maker.to_numpy(out) == right, f"{what}: out is not written")


def inputs_that_differ(subject: Subject) -> None:
    """Reject inputs of different shapes."""
    for operation in subject.operations:
        for k, name in enumerate(operation.names[1:], 1):
            inputs = [subject.to_device(np.zeros((2, 3), subject.dtype)) for _ in operation.inputs]
            inputs[k] = subject.to_device(np.zeros(3, subject.dtype))
            what = f"{operation.names[0]} of shape (2, 3), {name} of shape (3,)"
            expect(ValueError, what, subject, operation, inputs)


def dtypes_that_differ(subject: Subject) -> None:
    """Promote inputs of different dtypes as NumPy does."""
    sample = ordinary(subject, (3, 5))
    for operation in subject.operations:
        inputs = sample.inputs(operation)
        for dtype in subject.other_dtypes() if len(inputs) > 1 else ():
            differ = [inputs[0], *[array.astype(dtype) for array in inputs[1:]]]
            given = [subject.to_device(array) for array in differ]
            what = f"{operation.names[0]} of {subject.dtype}, {', '.join(operation.names[1:])} of {dtype}"
            try:
                wanted = np.promote_types(subject.dtype, dtype)
            except TypeError:  # float16 and bfloat16 of ml_dtypes before 0.7
                wanted = np.dtype(np.float32)
            if dtype_name(wanted) not in subject.backend.dtypes:
                continue
            result = kept(subject, operation, call(subject, operation, given))
            require(result.dtype == wanted, f"{what}: gives {result.dtype}, not {wanted}")
            exact = REFERENCES[operation.name].exact(*[array.astype(wanted) for array in differ], dtype=wanted)
            subject.worst(result, exact, what)


def any_memory(subject: Subject) -> None:
    """Accept byte-swapped, unaligned and read-only arrays, and a field of a structured array."""
    numpy_only(subject)
    sample = ordinary(subject, (3, 10))
    for operation in subject.operations:
        inputs, exact = sample.inputs(operation), sample.exact(operation)
        for k, name in enumerate(operation.names):
            for memory, array in in_any_memory(inputs[k], subject.dtype_name).items():
                what, before = f"{operation.name}, {name} is {memory}", array.tobytes()
                given = [*inputs[:k], array, *inputs[k + 1 :]]
                result = kept(subject, operation, call(subject, operation, given))
                require(array.tobytes() == before, f"{what}: the input was changed")
                subject.worst(result, exact, what)
                if operation.is_reduction:
                    continue
                out = array.copy() if memory == "read-only" else array
                call(subject, operation, given, out=out)
                subject.worst(out.astype(subject.dtype), exact, f"{what}, in place")


def in_any_memory(values: Array, dtype_name: str) -> dict[str, Array]:
    """The same values in kinds of memory that only NumPy arrays have."""
    unaligned: Array = np.empty(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    unaligned[...] = values
    packed = np.empty(values.shape, [("pad", "u1"), ("x", values.dtype)])
    packed["x"] = values
    read_only = values.copy()
    read_only.flags.writeable = False
    arrays = {"unaligned": unaligned, "a packed field": packed["x"], "read-only": read_only}
    if dtype_name != "bfloat16":  # ml_dtypes cannot swap its bytes
        arrays["byte-swapped"] = values.astype(values.dtype.newbyteorder("S"))
    return arrays


def array_like(subject: Subject) -> None:
    """Convert integers, bool, lists and scalars to float64, as NumPy does."""
    numpy_only(subject)
    if "float64" not in subject.backend.dtypes:
        skip("claims no float64, to which integers are converted")
    for operation in subject.operations:
        op, n_inputs = operation.name, len(operation.inputs)
        wanted = call(subject, operation, [np.array([1.0, 2.0, 0.0])] * n_inputs)
        for x in ([1, 2, 0], (1.0, 2.0, 0.0), np.array([1, 2, 0], np.int8), np.array([1, 2, 0], np.uint64)):
            y = call(subject, operation, [x] * n_inputs)
            require(y.dtype == np.float64 and bits(y) == bits(wanted), f"{op}: {x!r} gives {y!r}, not {wanted!r}")
        y = call(subject, operation, [np.array([True, False])] * n_inputs)
        require(y.dtype == np.float64, f"{op}: bool does not give float64")
        (right,) = np.ravel(call(subject, operation, [np.array([3.0])] * n_inputs))
        y = call(subject, operation, [3.0] * n_inputs)
        require(type(y) is np.float64 and y == right, f"{op}: the scalar 3.0 gives {y!r}, not {right!r}")


def refused(subject: Subject) -> None:
    """Reject complex, object, text, structured and masked arrays with a TypeError."""
    numpy_only(subject)
    for x in (
        np.zeros(3, complex),
        np.array([1, None], object),
        np.array(["1", "2"]),
        np.zeros(3, [("a", "f4")]),
        np.ma.masked_array([1.0, 2.0], mask=[False, True]),
    ):
        for operation in subject.operations:
            for k, name in enumerate(operation.names):
                inputs: list[Any] = [np.zeros(x.shape) for _ in operation.inputs]
                inputs[k] = x
                expect(TypeError, f"{name} of dtype {x.dtype}", subject, operation, inputs)


def numpy_only(subject: Subject) -> None:
    if subject.maker.type_name != "numpy.ndarray":
        skip("applies to NumPy arrays only")


def expect(
    error: type[Exception], what: str, subject: Subject, operation: Operation, *args: Any, **kwargs: Any
) -> None:
    """Raise ConformanceError unless a call raises this error."""
    try:
        call(subject, operation, *args, **kwargs)
    except error:
        return
    except Exception as other:
        found = f"raises {type(other).__name__}, not {error.__name__}: {other}"
        raise ConformanceError(f"{operation.name}, {what}: {found}") from other
    raise ConformanceError(f"{operation.name}, {what}: is accepted; it must raise {error.__name__}")


CHECKS = (
    Check("lsm: the result's type, shape, device, dtype", result_is_of_the_kind),
    Check("lsm: dtype=", dtype_of_the_result),
    Check("lsm: axis=", axes),
    Check("lsm: out=", out_is_written),
    Check("lsm: an out that overlaps the input", overlap),
    Check("lsm: empty arrays", empty),
    Check("lsm: arrays without dimensions", without_dimensions),
    Check("lsm: inputs of different shapes", inputs_that_differ),
    Check("lsm: inputs of different dtypes", dtypes_that_differ),
    Check("lsm: any memory", any_memory),
    Check("lsm: array_like", array_like, per="place"),
    Check("lsm: rejected types", refused, per="place"),
)
