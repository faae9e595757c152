"""Dask: calls on dask arrays become lazy arrays, chunk for chunk. This file deals with chunks, not with numerics.

Only public functions of dask are used. Nothing is computed while a graph is made: the arguments are checked by the same
call of lsm on stand-ins, arrays of the same dtypes and shapes with one more axis in front, of length 0. Each task makes
the call on its chunks.
"""

from functools import partial
from typing import Any

import dask.array
import numpy as np

import lsm
from lsm import _check
from lsm._decide import Decision, Request
from lsm._dispatch import name_elsewhere
from lsm._explain import explain_request
from lsm._foreign import SCALARS, describe, reject, remedy, rule_for
from lsm._frames import Frames
from lsm._interop import NUMPY_LIBRARY, check_alike, library_of
from lsm._keywords import broadcasts, check_mask_shape, check_temperature_shape
from lsm._operations import DERIVED, OF_PART, OPERATIONS, PARTIALS
from lsm._targets import check_shape_of_targets, kind, shape_of_taken
from lsm.engines import IN_PARTS, class_chunks_error, without_defaults
from lsm.engines._dask_arrays import UNKNOWN, Argument, as_dask, items_of, lazy_array, shape_of
from lsm.engines._dask_classes import ClassChunks, describe_parts, is_in_parts, reduction_for
from lsm.engines._dask_tasks import build_of, compute_chunk, reduce_losses

_KEYWORDS = ("where", "temperature", "b", "weight")  # those that may be arrays
_PAIRS = ("p_logits", "q_logits")
_UNSERVED = "cross_entropy_value_and_grad"  # its mean would need all targets before the first gradient


def serve(function: str, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return the results of a call of lsm as one or two lazy arrays; raises the same errors, except for bad values."""
    options = without_defaults(options)
    if "out" in options:
        raise TypeError("out: not accepted for dask arrays, whose results are lazy; use dask.array.store(result, out)")
    given = inputs | {name: options.pop(name) for name in _KEYWORDS if not isinstance(options.get(name), SCALARS)}
    whole = given.pop("partials", None)
    if whole is not None and function in DERIVED:
        raise TypeError(f"partials: not accepted for dask arrays, for which lsm.{function} computes them itself")
    if not given:  # logsumexp of partials
        given, whole = {"partials": whole}, None
    arguments = _checked(function, given, options["axis"])
    first = next(iter(arguments.values()))
    n_axes = first.ndim - ("partials" in arguments)
    axes = _check.normalised_axes(options["axis"], n_axes)
    all_axes = options["axis"] is None and n_axes > 1
    is_part = whole is not None or "partials" in arguments or function in OF_PART
    options["axis"] = _negative(options["axis"], axes, n_axes, is_part or _needs_one_axis(function, arguments))
    made = _made_of_stand_ins(function, arguments, options, whole)
    results = made if isinstance(made, tuple) else (made,)
    own = _own_dtype(function, arguments)
    dtype = _check.dtype_name(results[0].dtype)
    if "dtype" in options:  # a name, so that equal dtypes give equal names of tasks
        dtype = NUMPY_LIBRARY.result_dtype(own, options["dtype"])
        options["dtype"] = dtype
    in_parts, reduction = is_part or is_in_parts(function, arguments, options, axes), options.get("reduction", "none")
    for name, argument in arguments.items():
        if not in_parts or name in ("indices", "targets", "temperature"):  # others are cut as the logits are
            _check_chunks(argument, name, axes, n_axes, takes_all=all_axes)
    request = _request(function, own, own if function in OF_PART and "dtype" not in options else dtype)
    if reduction != "none":
        _check_reduction(reduction, arguments)
        options |= {"reduction": "none", "dtype": "longdouble" if own == "longdouble" else "float64"}
        frames = (0, *(n for i, n in enumerate(first.shape) if i not in axes))
        results = (np.empty(frames, _check.np_dtype(options["dtype"])),)
    if in_parts:
        parts = ClassChunks(function, arguments, axes[0], options, request.dtypes)
        of_whole = arguments["partials"].array if "partials" in arguments else whole
        lazy = (parts.partials(),) if function in OF_PART else parts.results(results, of_whole)
    else:
        options["backend"], backend = name_elsewhere(request, options.get("backend"))
        lazy = _blockwise(function, arguments, axes, options, build_of(backend), results)
    if reduction != "none":
        return _reduced(lazy[0], arguments["targets"], reduction, options.get("ignore_index"), dtype)
    return lazy if isinstance(made, tuple) else lazy[0]


def explain(x: Any, op: str, dtype: Any, backend: str | None) -> Decision:
    """The decision for a chunk; computes nothing."""
    _check_kind(x, "x", op)
    own = NUMPY_LIBRARY.validate(np.empty(0, x.dtype), "x").dtype
    request = Request(_check.NUMPY, "cpu", (own, NUMPY_LIBRARY.result_dtype(own, dtype)), op)
    chunks = "  lazy, in " + (" x ".join(map(str, x.numblocks)) or "1") + " chunks"
    if op not in (*OF_PART, *IN_PARTS):
        chunks += "; the axis of the classes must be in one chunk"
        return explain_request(request, backend)._replace(chunks=chunks)
    if x.numblocks and x.numblocks[-1] > 1:
        decision = explain_request(request._replace(op=reduction_for(op)), backend)._replace(op=op)
        chunks += describe_parts(x, decision)
        return decision._replace(chunks=chunks)
    return explain_request(request, backend)._replace(chunks=chunks)


def _check_kind(x: Any, name: str, function: str) -> None:
    """Raise TypeError unless lsm has this function for a dask array of such chunks, according to dask's metadata."""
    if function == _UNSERVED:
        reject(x, name)
    rule = rule_for(x._meta)
    if rule is not None:
        raise TypeError(f"{name}: a dask array, each chunk {describe(x._meta, rule)}; pass {remedy(x, name)}")
    if library_of(x._meta) is not NUMPY_LIBRARY:
        kind_of_chunk = f"{type(x._meta).__module__}.{type(x._meta).__qualname__}"
        raise TypeError(
            f"{name}: a dask array of chunks of {kind_of_chunk}; accepted: numpy.ndarray; pass {name}.map_blocks with "
            "a function that converts a chunk"
        )


def _checked(function: str, given: dict[str, Any], axis: Any) -> dict[str, Argument]:
    """The arguments that are arrays, with their patterns; raises for shapes that do not match."""
    names = tuple(given)
    arguments: dict[str, Argument] = {}
    for name, value in given.items():
        if isinstance(value, dask.array.Array):
            _check_kind(value, name, function)
            arguments[name] = Argument(value, shape_of(value))
        else:
            library = library_of(value)
            array = NUMPY_LIBRARY.as_ndarray(value, name) if library is NUMPY_LIBRARY else value
            check_alike(NUMPY_LIBRARY, library, np.empty(0), array, (names[0], name))
            arguments[name] = Argument(array, array.shape)
    first = arguments[names[0]]
    if not first.ndim:
        raise TypeError(f"{names[0]}: a dask array without dimensions; pass {names[0]}.compute()")
    axes = _check.normalised_axes(axis, first.ndim - (names[0] == "partials"))
    arguments = {name: _with_pattern(argument, name, first.ndim, axes) for name, argument in arguments.items()}
    _check_unknown(arguments, names[0])
    if len(arguments) > 1 and names[1] in ("output", "q_logits"):
        _check.same_shapes((first, arguments[names[1]]), names[:2])
    frames = Frames.along(first.shape, axes)
    for name, argument in arguments.items():
        if name == "where":
            check_mask_shape(argument.shape, first.shape, names[0])
        elif name == "temperature":
            kept = tuple([1 if i in axes else n for i, n in enumerate(first.shape)])
            check_temperature_shape(argument.shape, kept)
        elif name == "indices":
            if len(frames.shape) == first.ndim - 1:  # otherwise lsm rejects several axes
                shape_of_taken(argument.shape, first.shape, frames)
        elif name == "targets":
            check_shape_of_targets(argument, first.shape, frames, names[0])
        elif name == "b" and not broadcasts(argument.shape, first.shape):
            raise ValueError(
                f"b: shape {argument.shape}; accepted for a dask array: a shape that broadcasts to {first.shape}"
            )
    return arguments


def _with_pattern(argument: Argument, name: str, n: int, axes: tuple[int, ...]) -> Argument:
    """The argument with its pattern, which is arbitrary if the number of axes is wrong."""
    pattern = tuple(range(n))[n - argument.ndim :]
    if name == "weight":
        pattern = (2 * n,) * argument.ndim
    elif name in ("targets", "indices") and argument.ndim != n:
        pattern = tuple([i for i in range(n) if i not in axes])
    elif name == "indices":
        pattern = tuple([n + i if i in axes else i for i in range(n)])
    return argument._replace(pattern=pattern)


def _check_unknown(arguments: dict[str, Argument], first: str) -> None:
    """Raise ValueError if the length of an axis is known in one array and unknown in another."""
    for i, n in enumerate(arguments[first].shape):
        for name, argument in arguments.items():
            other = dict(zip(argument.pattern, argument.shape, strict=False)).get(i, 1)
            if other not in (1, n) and UNKNOWN in (n, other):
                unknown = first if n == UNKNOWN else name
                raise ValueError(
                    f"{first}, {name}: the length of an axis is known for one and not for the other; call "
                    f"{unknown}.compute_chunk_sizes()"
                )


def _check_chunks(argument: Argument, name: str, axes: tuple[int, ...], n: int, takes_all: bool) -> None:
    """Raise ValueError unless each chunk has whole frames."""
    if isinstance(argument.array, np.ndarray):
        return
    at = [i for i, number in enumerate(argument.pattern) if number in axes or number >= n]
    if any(argument.shape[i] == UNKNOWN for i in at):
        raise ValueError(f"{name}: the number of classes is not known; call {name}.compute_chunk_sizes()")
    split = [i for i in at if argument.array.numblocks[i] > 1]
    if split:
        whole = ", ".join(f"{i}: -1" for i in split)
        chunks = [argument.array.numblocks[i] for i in split]
        raise class_chunks_error(name, chunks, f"{name}.rechunk({{{whole}}})", takes_all)


def _check_reduction(reduction: str, arguments: dict[str, Argument]) -> None:
    """Raise ValueError for the mean of weighted labels, whose divisor is another sum."""
    if reduction == "mean" and "weight" in arguments and kind(arguments["targets"]) == "integer":
        raise ValueError(
            "reduction: 'mean' of labels with weights; accepted for dask arrays: 'sum' or 'none'; divide the sum by "
            "that of weight[targets]"
        )


def _needs_one_axis(function: str, arguments: dict[str, Argument]) -> bool:
    has_labels = "targets" in arguments and kind(arguments["targets"]) != "floating"
    return has_labels or function in ("take_log_softmax", "top_k_log_softmax")


def _negative(axis: Any, axes: tuple[int, ...], n: int, needs_one: bool) -> Any:
    """The axis counted from the end, so that it fits the stand-ins too; unchanged where lsm will reject it."""
    if needs_one and (isinstance(axis, (tuple, list)) or len(axes) != 1):
        return axis
    return axes[0] - n if len(axes) == 1 else tuple([i - n for i in axes])


def _made_of_stand_ins(function: str, arguments: dict[str, Argument], options: dict[str, Any], whole: Any) -> Any:
    """The result of the call for arrays without elements, which checks everything except shapes, chunks and values."""
    n = next(iter(arguments.values())).ndim
    stand_ins = {} if whole is None else {"partials": np.ones((0, *whole.shape), whole.dtype)}
    for name, argument in arguments.items():
        lengths = tuple([1 if length == UNKNOWN else length for length in argument.shape])
        if name in ("where", "temperature", "b"):
            lengths = (1,) * (n - len(lengths)) + lengths
        stand_ins[name] = np.ones(lengths if name == "weight" else (0, *lengths), argument.dtype)
    return getattr(lsm, function)(**stand_ins, **options)


def _own_dtype(function: str, arguments: dict[str, Argument]) -> str:
    """The compute dtype."""
    names = tuple(arguments)[:1]
    if function not in (*DERIVED, PARTIALS) and "partials" not in arguments:
        names = (*OPERATIONS[OF_PART[function].source.name if function in OF_PART else function].names, "b")
    names = _PAIRS if function == "kl_divergence" else tuple([name for name in names if name in arguments])
    own = [NUMPY_LIBRARY.validate(np.empty(0, arguments[name].dtype), name).dtype for name in names]
    return own[0] if len(own) == 1 else _check.promoted(own[0], own[1])


def _request(function: str, own: str, dtype: str) -> Request:
    """The request for a chunk: the operation, or the one from which the function is derived."""
    derived = DERIVED.get(function)
    if derived is None:
        return Request(_check.NUMPY, "cpu", (own, dtype), function)
    result = _check.at_least_float32(own) if derived.is_loss else dtype
    return Request(_check.NUMPY, "cpu", (own, result), derived.source.name)


def _blockwise(
    function: str,
    arguments: dict[str, Argument],
    axes: tuple[int, ...],
    options: dict[str, Any],
    build: Any,
    results: tuple[Any, ...],
) -> tuple[Any, ...]:
    """The lazy results, with the dtypes and numbers of axes of the results of the stand-ins."""
    n = next(iter(arguments.values())).ndim
    chunks: dict[int, Any] = {}
    for argument in arguments.values():
        if isinstance(argument.array, dask.array.Array):
            found = zip(argument.pattern, argument.shape, argument.array.chunks, strict=True)
            chunks = {i: chunk for i, length, chunk in found if length != 1} | chunks
    operands = []
    for argument in arguments.values():
        operands += [as_dask(argument, chunks), argument.pattern]
    lengths = results[0].shape[1:]
    frames = tuple([i for i in range(n) if i not in axes])
    index, new = frames, {}
    if function in OPERATIONS and not OPERATIONS[function].is_reduction:
        index = tuple(range(n))
    elif len(lengths) == n:
        index = tuple([n + i if i in axes else i for i in range(n)])
        known = {number for argument in arguments.values() for number in argument.pattern}
        new = {n + i: lengths[i] for i in axes if n + i not in known}
    task = partial(compute_chunk, function, tuple(arguments), options, build)
    lazy = lazy_array(task, index, operands, results[0].dtype, f"lsm-{function}", new_axes=new)
    return (lazy,) if len(results) == 1 else items_of(lazy, index, results, function)


def _reduced(losses: Any, targets: Argument, reduction: str, ignore_index: Any, dtype: str) -> Any:
    """The sum or mean of the losses of frames: one task for all of them, 8 bytes each, so that the bits are lsm's."""
    operands = [losses, tuple(range(losses.ndim))]
    if reduction == "mean" and ignore_index is not None:
        operands += [(as_dask(targets, {}) != ignore_index).sum(), ()]
    task = partial(reduce_losses, reduction, dtype)
    return lazy_array(task, (), operands, _check.np_dtype(dtype), f"lsm-{reduction}", concatenate=True)
