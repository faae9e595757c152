"""From the arguments of a public function to the method of a backend, and back to the caller's kind of array."""

import math
from types import NoneType
from typing import Any

import numpy as np

from lsm import _check
from lsm._decide import Call
from lsm._dispatch import Plan, quick, serving
from lsm._errors import BackendUnsupportedError
from lsm._foreign import why_refused
from lsm._interop import CUPY_ARRAYS, NUMPY_ARRAYS, TORCH_TENSORS, library_of
from lsm._interop_base import Arrays

FORWARD, BACKWARD = "log_softmax", "log_softmax_backward"


def log_softmax(x: Any, axis: Any, out: Any, dtype: Any, backend: str | None) -> Any:
    """`lsm.log_softmax`, whatever the arguments are."""
    library = library_of(x)
    if dtype is None and (library is TORCH_TENSORS or library is CUPY_ARRAYS):
        served = _quickly if library is TORCH_TENSORS and not x.is_cuda else _quickly_on_cuda
        y = served(library, FORWARD, (x,), axis, out, backend)
        if y is not None:
            return y
    array, device, own = library.take(x, "x", axis)
    result = library.result_dtype(own, dtype)
    call = Call(library.type_name(array), device, (own, result), FORWARD)
    plan = serving(call, backend, library.quick_key(array, own))
    return _serve(plan, library, (array,), ("x",), call, axis, out)


def log_softmax_backward(grad_output: Any, output: Any, axis: Any, out: Any, backend: str | None) -> Any:
    """`lsm.log_softmax_backward`, whatever the arguments are."""
    names = ("grad_output", "output")
    library, other = library_of(grad_output), library_of(output)
    if library is other and (library is TORCH_TENSORS or library is CUPY_ARRAYS):
        served = _quickly if library is TORCH_TENSORS and not grad_output.is_cuda else _quickly_on_cuda
        dx = served(library, BACKWARD, (grad_output, output), axis, out, backend)
        if dx is not None:
            return dx
    taken = [library.take(grad_output, names[0], axis), other.take(output, names[1], axis)]
    dy, y = (array for array, _, _ in taken)
    _check_alike(library, other, dy, y, names)
    dtype = library.result_dtype(_check.promoted(taken[0].dtype, taken[1].dtype, names), None)
    call = Call(library.type_name(dy), taken[0].device, (dtype, dtype), BACKWARD)
    return _serve(serving(call, backend, library.quick_key(dy, dtype)), library, (dy, y), names, call, axis, out)


def _functions(key: Any, backend: Any) -> Any:
    """The quick functions that a plan has found; None if there is none, or `backend` is no name."""
    return quick(key, backend) if isinstance(backend, (str, NoneType)) else None


def _quickly_on_cuda(library: Arrays, op: str, arrays: tuple[Any, ...], axis: Any, out: Any, backend: Any) -> Any:
    """The result of a call of a kind that a plan was made for, on arrays that are given as they are; else None."""
    functions = _functions(("cuda", arrays[0].dtype), backend)
    y = None if functions is None else functions[op == BACKWARD](*arrays, axis, out)
    if y is not None and out is not None:
        library.written(out)
    return y


def _quickly(library: Arrays, op: str, arrays: tuple[Any, ...], axis: Any, out: Any, backend: Any) -> Any:
    """The result where all tensors are ordinary and a plan is made, which saves most of the way; else None."""
    functions = _functions(arrays[0].dtype, backend)
    if functions is None:
        return None
    views = []
    for x in arrays if out is None else (*arrays, out):
        view = TORCH_TENSORS.quick_view(x)
        if view is None:
            return None
        views.append(view)
    if out is None:
        y = functions[op == BACKWARD](*views, axis, None)
        return y if y is None else TORCH_TENSORS.from_numpy(y, arrays[0])
    if functions[op == BACKWARD](*views[:-1], axis, views[-1]) is None:
        return None
    TORCH_TENSORS.written(out)
    return out


def _check_alike(library: Arrays, other: Arrays, a: Any, b: Any, names: tuple[str, str]) -> None:
    """Raise unless both arrays are of one library and on one device."""
    is_apart = library.place(a) != other.place(b) if library is other else library.device(a) != other.device(b)
    if is_apart:
        places = f"{library.place(a)} and {other.place(b)}"
        raise BackendUnsupportedError(
            f"{', '.join(names)}: on {places}; nothing is moved between devices, move one of them"
        )
    if library.type_name(a) != other.type_name(b):
        first, second = (names[1], library) if other is NUMPY_ARRAYS or not other.maker else (names[0], other)
        remedy = f"give {second.maker}({first})" if second.maker else "give both as one type"
        raise TypeError(f"{names[0]}, {names[1]}: a {library.type_name(a)} and a {other.type_name(b)}; {remedy}")


def _serve(
    plan: Plan, library: Arrays, arrays: tuple[Any, ...], names: tuple[str, ...], call: Call, axis: Any, out: Any
) -> Any:
    """Call the backend on arrays that were looked at, as they are or as NumPy's or CuPy's."""
    if out is not None and library is not NUMPY_ARRAYS:
        _check_out(library, out, arrays[0], call)
    if plan.taken_as == _check.NUMPY:
        result = _serve_as_numpy(plan, library, arrays, names, call, axis, out)
    elif plan.taken_as != call.array_type:
        result = _serve_as_cupy(plan, library, arrays, names, call, axis, out)
    else:
        with library.on_device(arrays[0]):
            result = _serve_as_is(plan, library, arrays, names, call, axis, out)
    if out is not None:
        library.written(out)
    return result


def _serve_as_is(
    plan: Plan, library: Arrays, arrays: tuple[Any, ...], names: tuple[str, ...], call: Call, axis: Any, out: Any
) -> Any:
    """Call the backend on arrays of a type that it declares."""
    own, result = call.dtypes
    _check.same_shapes(arrays, names)
    axes = _check.normalised_axes(axis, arrays[0].ndim)
    if out is not None:
        library.check_native_out(out, tuple(arrays[0].shape), result)
    inputs = tuple(library.converted(x, own) for x in arrays)
    return _run(plan.backend, call.op, library, inputs, axes, out, result)


def _serve_as_cupy(
    plan: Plan, library: Arrays, arrays: tuple[Any, ...], names: tuple[str, ...], call: Call, axis: Any, out: Any
) -> Any:
    """Call the backend on the same memory seen as CuPy's arrays, and give the result back as the library's."""
    views = tuple([library.as_cupy(x, name) for x, name in zip(arrays, names, strict=True)])
    target = None if out is None else library.as_cupy(out, "out")
    for view, name in zip(views, names, strict=True):
        CUPY_ARRAYS.check_aligned(view, name)
    if target is not None:
        CUPY_ARRAYS.check_aligned(target, "out")
    with CUPY_ARRAYS.on_device(views[0]):
        y = _serve_as_is(plan, CUPY_ARRAYS, views, names, call, axis, target)
        # DLPack tells a library to wait for what it is given, not for what is written later; nor does it tell that an
        # input is still being read when its view goes, after which the library may give the memory to something else.
        CUPY_ARRAYS.wait()
        return library.from_cupy(y, arrays[0]) if out is None else out


def _check_out(library: Arrays, out: Any, like: Any, call: Call) -> None:
    """Raise unless `out` is of the library that the inputs are of, on their device, and can be written to."""
    if library_of(out) is not library or library.type_name(out) != call.array_type:
        kind = f"{type(out).__module__}.{type(out).__qualname__}"
        accepted = f"a {call.array_type} of dtype {call.dtypes[1]} on {call.device}"
        raise TypeError(f"out: a {kind}; accepted: {accepted}{why_refused(out)}")
    places = library.place(out), library.place(like)
    if places[0] != places[1]:
        raise BackendUnsupportedError(
            f"out: is on {places[0]}, the result on {places[1]}; nothing is moved between devices"
        )
    library.check_out(out)


def _serve_as_numpy(
    plan: Plan, library: Arrays, arrays: tuple[Any, ...], names: tuple[str, ...], call: Call, axis: Any, out: Any
) -> Any:
    """Call the backend on the same memory seen as ndarrays, and give the result back as the library's."""
    own, result = call.dtypes
    views = tuple([library.as_numpy(x, name) for x, name in zip(arrays, names, strict=True)])
    _check.same_shapes(views, names)
    target = library.new_numpy(views[0].shape, result) if out is None else library.seen(out, "out")
    y = None
    if plan.quick is not None and own == result:  # which was tried already on an ndarray, but refuses at once
        y = plan.quick[call.op == BACKWARD](*views, axis, target)
    if y is None:
        axes = _check.normalised_axes(axis, views[0].ndim)
        if target is not None:
            _check.check_out(target, views[0].shape, result)
        inputs = views if len(views) == 1 else tuple([x.astype(_check.np_dtype(own), copy=False) for x in views])
        y = _run(plan.backend, call.op, NUMPY_ARRAYS, inputs, axes, target, result)
    return library.from_numpy(y, arrays[0]) if out is None else out


def _run(
    backend: Any, op: str, library: Arrays, inputs: tuple[Any, ...], axes: tuple[int, ...], out: Any, dtype: str
) -> Any:
    """Call a backend's method on inputs and an output of one shape, with the classes on a single axis."""
    shape = tuple(inputs[0].shape)
    if 0 in shape:
        return library.empty(shape, dtype, inputs[0], backend) if out is None else out
    if len(axes) != 1 or (out is not None and not library.can_be_written(out, inputs)):
        return _run_merged(backend, op, library, inputs, axes, out, dtype)
    result = library.empty(shape, dtype, inputs[0], backend) if out is None else library.plain(out)
    if out is not None:
        inputs = tuple(x if library.is_apart(x, result) else library.copy(x) for x in inputs)
    getattr(backend, op)(*inputs, axes[0], result)
    return result if out is None else out


def _run_merged(
    backend: Any, op: str, library: Arrays, inputs: tuple[Any, ...], axes: tuple[int, ...], out: Any, dtype: str
) -> Any:
    """The same for several axes or none as one, and for an `out` that no backend writes.

    No array is copied where one stride leads through the axes. An input where none does is copied into the result,
    which then is computed in place; and `out`, where none does, is written through a temporary.
    """
    shape = tuple(inputs[0].shape)
    order = [i for i in range(len(shape)) if i not in axes] + list(axes)
    apart = tuple(shape[i] for i in order)
    n_frame_axes = len(shape) - len(axes)
    together = (*apart[:n_frame_axes], math.prod(apart[n_frame_axes:]))

    def is_one_axis(permuted: Any) -> bool:
        strides = library.strides(permuted)
        return bool(strides) and _check.is_one_axis(apart[n_frame_axes:], strides[n_frame_axes:])

    merged = None
    if out is not None and library.can_be_written(out, inputs):
        permuted = library.permuted(library.plain(out), order)
        if is_one_axis(permuted):
            merged = permuted.reshape(together)
    is_direct = merged is not None
    if merged is None:
        merged = library.empty(together, dtype, inputs[0], backend)
    # Whether an input may be copied into the result: what else is read must not be there.
    is_free = bool(library.strides(merged)) and not (is_direct and len(inputs) > 1)
    given = []
    for x in inputs:
        permuted = library.permuted(x, order)
        if is_one_axis(permuted):
            seen = permuted.reshape(together)
            given.append(seen if not is_direct or library.is_apart(seen, merged) else library.copy(seen))
        elif is_free and x.dtype == merged.dtype and (not is_direct or library.is_apart(x, out)):
            merged.reshape(apart)[...] = permuted
            given.append(merged)
            is_free = False
        else:
            given.append(permuted.reshape(together))
    getattr(backend, op)(*given, n_frame_axes, merged)
    if is_direct:
        return out
    result = library.permuted(merged.reshape(apart), [int(i) for i in np.argsort(order)])
    if out is None:
        return result
    out[...] = result
    return out
