"""Checks of the rows of the table of semantics that lsm and the backend hold together, through lsm's functions."""

import math
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

import lsm
from lsm._check import DTYPES, dtype_name
from lsm._conformance.accuracy import frames, gradient, rounded
from lsm._conformance.arrays import GUARD, Array, bits
from lsm._conformance.oracle import exact_backward, exact_log_softmax
from lsm._conformance.subject import Check, ConformanceError, Subject, require, skip


def forward(subject: Subject, x: Any, *args: Any, **kwargs: Any) -> Any:
    """`lsm.log_softmax` by the backend."""
    return lsm.log_softmax(x, *args, backend=subject.name, **kwargs)


def backward(subject: Subject, *args: Any, **kwargs: Any) -> Any:
    """`lsm.log_softmax_backward` by the backend."""
    return lsm.log_softmax_backward(*args, backend=subject.name, **kwargs)


def result_is_of_the_kind(subject: Subject) -> None:
    """Give a result of the type, shape, device and dtype of the input, with the right values."""
    for shape in ((5,), (4, 7), (2, 3, 4)):
        x = frames("ordinary", shape, subject.dtype, subject.rng())
        exact = exact_log_softmax(x, x.dtype)
        dy, y = gradient(x, subject.rng()), rounded(exact, x.dtype)
        given = subject.to_device(x)
        for op, result, right in (
            ("log_softmax", forward(subject, given), exact),
            ("log_softmax_backward", backward(subject, *map(subject.to_device, (dy, y))), exact_backward(dy, y)),
        ):
            want, got = subject.maker.place(given), subject.maker.place(result)
            require(got == want, f"{op}: the result is {got}, the input is {want} (type, device, dtype)")
            require(tuple(result.shape) == shape, f"{op}: the result has shape {tuple(result.shape)}, not {shape}")
            subject.worst(subject.maker.to_numpy(result), right, f"lsm.{op}")


def dtype_of_the_result(subject: Subject) -> None:
    """Give the dtype that dtype= asks for, or refuse one that is not claimed."""
    x = frames("ordinary", (3, 20), subject.dtype, subject.rng())
    for dtype in (subject.dtype, *subject.other_dtypes()):
        name = dtype_name(dtype)
        y = subject.maker.to_numpy(forward(subject, subject.to_device(x), dtype=name))
        subject.worst(y, exact_log_softmax(x, y.dtype), f"dtype={name!r}")
        require(y.dtype == dtype, f"dtype={name!r} gives {y.dtype}")
    for name in DTYPES:
        if name not in subject.backend.dtypes:
            expect(TypeError, f"dtype={name!r}", forward, subject, subject.to_device(x), dtype=name)


def axes(subject: Subject) -> None:
    """Take an axis from either end, several axes, or None for all, and refuse others."""
    x = frames("ordinary", (3, 4, 5), subject.dtype, subject.rng())
    given = subject.to_device(x)
    for axis in (0, 1, 2, -1, -3, (0, 2), (2, 1), (0, 1, 2), None):
        every = range(3) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        merged = tuple(sorted(i % 3 for i in every))
        order = [i for i in range(3) if i not in merged] + list(merged)
        frames_last = x.transpose(order).reshape(-1, math.prod(x.shape[i] for i in merged))
        y = subject.maker.to_numpy(forward(subject, given, axis)).transpose(order).reshape(frames_last.shape)
        exact = exact_log_softmax(frames_last, x.dtype)
        subject.worst(y, exact, f"forward, axis={axis}")
        dx = backward(subject, given, given, axis)
        exact = exact_backward(frames_last, frames_last)
        dx = subject.maker.to_numpy(dx).transpose(order).reshape(frames_last.shape)
        subject.worst(dx, exact, f"backward, axis={axis}")
    for axis in (3, -4, (0, 3)):
        expect(AxisError, f"axis={axis} of an array of 3", forward, subject, given, axis)
    expect(ValueError, "axis=(0, -3), one axis twice", forward, subject, given, (0, -3))


def out_is_written(subject: Subject) -> None:
    """Write into out and return it; refuse one that does not fit before anything is written."""
    x = frames("ordinary", (4, 6), subject.dtype, subject.rng())
    dy, y = gradient(x, subject.rng()), rounded(exact_log_softmax(x, x.dtype), x.dtype)
    given = [subject.to_device(a) for a in (x, dy, y)]
    for what, call, args, exact in (
        ("log_softmax", forward, given[:1], exact_log_softmax(x, x.dtype)),
        ("log_softmax_backward", backward, given[1:], exact_backward(dy, y)),
    ):
        out = subject.to_device(np.full(x.shape, GUARD, x.dtype))
        require(call(subject, *args, out=out) is out, f"{what}: what is returned is not out")
        subject.worst(subject.maker.to_numpy(out), exact, f"{what} into out")
        wrong = np.full((4, 5), GUARD, x.dtype), np.full(x.shape, GUARD, np.int32)
        for error, values in zip((ValueError, TypeError), wrong, strict=True):
            bad = subject.to_device(values)
            expect(error, f"{what}, out of shape {values.shape} and {values.dtype}", call, subject, *args, out=bad)
            require((subject.maker.to_numpy(bad) == values).all(), f"{what}: an out that was refused is written to")
        if subject.maker.has_read_only:
            bad = subject.to_device(np.full(x.shape, GUARD, x.dtype))
            bad.flags.writeable = False
            expect(ValueError, f"{what}, out is read-only", call, subject, *args, out=bad)


def overlap(subject: Subject) -> None:
    """Give with an out that overlaps the input in part what a new out gets."""
    values = frames("ordinary", (207,), subject.dtype, subject.rng())
    for shift in (1, 7):
        for first, second in ((slice(shift, shift + 200), slice(0, 200)), (slice(0, 200), slice(shift, shift + 200))):
            x = values[first].reshape(5, 40)
            memory = subject.to_device(values)
            forward(subject, memory[first].reshape((5, 40)), out=memory[second].reshape((5, 40)))
            y = subject.maker.to_numpy(memory)[second].reshape(5, 40)
            subject.agree(y, subject.forward(x), exact_log_softmax(x, x.dtype), "out overlaps x")


def empty(subject: Subject) -> None:
    """Give an empty array of the right shape and dtype for no frames or no classes."""
    for shape in ((0,), (2, 0), (0, 3), (0, 0), (3, 0, 2)):
        given = subject.to_device(np.empty(shape, subject.dtype))
        for axis in range(len(shape)):
            for result in (forward(subject, given, axis), backward(subject, given, given, axis)):
                require(tuple(result.shape) == shape, f"shape {shape} gives {tuple(result.shape)}")
                want, got = subject.maker.place(given), subject.maker.place(result)
                require(got == want, f"shape {shape} gives {got} of {want} (type, device, dtype)")


def without_dimensions(subject: Subject) -> None:
    """Give a scalar for an array of NumPy without dimensions, as NumPy does, and the library's own array for others."""
    given = subject.to_device(np.zeros((), subject.dtype))
    is_numpy = subject.maker.type_name == "numpy.ndarray"
    for axis in (-1, None, ()):
        for what, result in (
            ("log_softmax", forward(subject, given, axis)),
            ("log_softmax_backward", backward(subject, given, given, axis)),
        ):
            want = subject.dtype.type.__name__ if is_numpy else type(given).__name__
            require(type(result).__name__ == want, f"{what} of shape () gives a {type(result).__name__}, not a {want}")
            values = subject.maker.to_numpy(result)
            require(values.shape == () and values == 0, f"{what} of shape () gives {values!r}, not 0")
            require(values.dtype == subject.dtype, f"{what} of shape () gives {values.dtype}, not {subject.dtype}")
    out = subject.to_device(np.full((), GUARD, subject.dtype))
    require(forward(subject, given, out=out) is out, "shape (): what is returned is not out")
    require(subject.maker.to_numpy(out) == 0, "shape (): out is not written")


def inputs_that_differ(subject: Subject) -> None:
    """Refuse a gradient and an output of different shapes."""
    dy, y = (subject.to_device(np.zeros(shape, subject.dtype)) for shape in ((2, 3), (3,)))
    expect(ValueError, "grad_output of shape (2, 3), output of shape (3,)", backward, subject, dy, y)


def dtypes_that_differ(subject: Subject) -> None:
    """Give a gradient and an output of different dtypes the dtype that NumPy promotes both to."""
    x = frames("ordinary", (3, 5), subject.dtype, subject.rng())
    claimed = subject.backend.dtypes
    for dtype in subject.other_dtypes():
        y = rounded(exact_log_softmax(x, x.dtype), dtype)
        given = subject.to_device(x), subject.to_device(y)
        try:
            wanted = np.promote_types(x.dtype, dtype)
        except TypeError:
            expect(TypeError, f"grad_output of {x.dtype}, output of {dtype}", backward, subject, *given)
            continue
        if dtype_name(wanted) not in claimed:
            continue
        dx = subject.maker.to_numpy(backward(subject, *given))
        require(dx.dtype == wanted, f"grad_output of {x.dtype}, output of {dtype}: gives {dx.dtype}, not {wanted}")
        subject.worst(dx, exact_backward(x.astype(wanted), y.astype(wanted)), f"output of {dtype}")


def any_memory(subject: Subject) -> None:
    """Take byte-swapped, unaligned and read-only arrays, and a field of a structured one."""
    numpy_only(subject)
    x = frames("ordinary", (3, 10), subject.dtype, subject.rng())
    exact = exact_log_softmax(x, x.dtype)
    unaligned: Array = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    packed = np.empty(x.shape, [("pad", "u1"), ("x", x.dtype)])
    packed["x"] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    arrays = {"unaligned": unaligned, "a packed field": packed["x"], "read-only": read_only}
    if subject.dtype_name != "bfloat16":  # ml_dtypes has no byte-swapped one
        arrays["byte-swapped"] = x.astype(x.dtype.newbyteorder("S"))
    for what, array in arrays.items():
        before = array.tobytes()
        y = forward(subject, array)
        require(array.tobytes() == before, f"{what}: the input was changed")
        subject.worst(y, exact, f"forward, {what}")
        out = array.copy() if what == "read-only" else array
        forward(subject, array, out=out)
        subject.worst(out.astype(x.dtype), exact, f"forward in place, {what}")


def array_like(subject: Subject) -> None:
    """Take integers, bool, lists and scalars as NumPy does: as float64."""
    numpy_only(subject)
    if "float64" not in subject.backend.dtypes:
        skip("claims no float64, which integers become")
    wanted = forward(subject, np.array([1.0, 2.0, 0.0]))
    for x in ([1, 2, 0], (1.0, 2.0, 0.0), np.array([1, 2, 0], np.int8), np.array([1, 2, 0], np.uint64)):
        y = forward(subject, x)
        require(y.dtype == np.float64 and bits(y) == bits(wanted), f"{x!r} gives {y!r}, not {wanted!r}")
    require(forward(subject, np.array([True, False])).dtype == np.float64, "bool does not give float64")
    scalar = forward(subject, 3.0)
    require(type(scalar) is np.float64 and scalar == 0, f"the scalar 3.0 gives {scalar!r}, not numpy.float64(0.0)")


def refused(subject: Subject) -> None:
    """Refuse complex, object, text, structured and masked arrays with a TypeError."""
    numpy_only(subject)
    for x in (
        np.zeros(3, complex),
        np.array([1, None], object),
        np.array(["1", "2"]),
        np.zeros(3, [("a", "f4")]),
        np.ma.masked_array([1.0, 2.0], mask=[False, True]),
    ):
        expect(TypeError, f"an array of dtype {x.dtype}", forward, subject, x)


def numpy_only(subject: Subject) -> None:
    if subject.maker.type_name != "numpy.ndarray":
        skip("is about what NumPy holds")


def expect(error: type[Exception], what: str, call: Any, *args: Any, **kwargs: Any) -> None:
    """Raise ConformanceError unless a call raises this error."""
    try:
        call(*args, **kwargs)
    except error:
        return
    except Exception as other:
        raise ConformanceError(f"{what}: raises {type(other).__name__}, not {error.__name__}: {other}") from other
    raise ConformanceError(f"{what}: is taken; it must raise {error.__name__}")


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
    Check("lsm: types that are refused", refused, per="place"),
)
