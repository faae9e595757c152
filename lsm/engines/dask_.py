"""Dask: calls on dask arrays become lazy arrays, chunk for chunk. This file knows chunks and no numerics.

Only public functions of dask are used. While a graph is made nothing is computed: the arguments are checked by the same
call of lsm on stand-ins, arrays of the same dtypes and shapes with one more axis in front, of length 0. A task makes
the call on its chunks.
"""

import math
from collections.abc import Iterable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

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
from lsm._operations import DERIVED, OPERATIONS
from lsm._targets import check_shape_of_targets, kind, shape_of_taken
from lsm.engines import class_chunks_error, without_defaults
from lsm.engines._dask_tasks import build_of, compute_chunk, reduce_losses

_UNKNOWN = -1  # stands for the unknown length of an axis, which dask gives as NaN
_KEYWORDS = ("where", "temperature", "b", "weight")  # that may be arrays
_PAIRS = ("p_logits", "q_logits")
_UNSERVED = "cross_entropy_value_and_grad"  # its mean would need all targets before the first gradient


class _Argument(NamedTuple):
    """An argument that is an array, of dask or NumPy.

    Attributes
    ----------
    array : dask.array.Array or ndarray
        The array.
    shape : tuple of int
        Its shape, `_UNKNOWN` where that is not known.
    pattern : tuple of int
        For `blockwise`, a number for each of its axes. Those of the logits have 0 to n - 1; n + i is one that takes the
        place of axis i, and 2 * n that of weights.
    """

    array: Any
    shape: tuple[int, ...]
    pattern: tuple[int, ...] = ()

    @property
    def dtype(self) -> Any:
        """The dtype."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


def serve(function: str, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
    """A call of a function of lsm, as one or two lazy arrays; raises what the function would, but for bad values."""
    options = without_defaults(options)
    if "out" in options:
        raise TypeError("out: not accepted for dask arrays, whose results are lazy; use dask.array.store(result, out)")
    given = inputs | {name: options.pop(name) for name in _KEYWORDS if not isinstance(options.get(name), SCALARS)}
    arguments = _checked(function, given, options["axis"])
    first = next(iter(arguments.values()))
    axes = _check.normalised_axes(options["axis"], first.ndim)
    all_axes = options["axis"] is None and first.ndim > 1
    options["axis"] = _negative(options["axis"], axes, first.ndim, _needs_one_axis(function, arguments))
    made = _made_of_stand_ins(function, arguments, options)
    results = made if isinstance(made, tuple) else (made,)
    dtype = _check.dtype_name(results[0].dtype)
    own = _own_dtype(function, arguments)
    for argument, name in zip(arguments.values(), arguments, strict=True):
        _check_chunks(argument, name, axes, first.ndim, takes_all=all_axes)
    if "dtype" in options:
        options["dtype"] = dtype  # a name, so that equal dtypes give equal names of tasks
    options["backend"], backend = name_elsewhere(_request(function, own, dtype), options.get("backend"))
    build, reduction = build_of(backend), options.get("reduction", "none")
    if reduction == "none":
        lazy = _blockwise(function, arguments, axes, options, build, results)
        return lazy if isinstance(made, tuple) else lazy[0]
    _check_reduction(reduction, arguments)
    options |= {"reduction": "none", "dtype": "longdouble" if own == "longdouble" else "float64"}
    frames = (0, *(n for i, n in enumerate(first.shape) if i not in axes))
    results = (np.empty(frames, _check.np_dtype(options["dtype"])),)
    (losses,) = _blockwise(function, arguments, axes, options, build, results)
    return _reduced(losses, arguments["targets"], reduction, options.get("ignore_index"), dtype)


def explain(x: Any, op: str, dtype: Any, backend: str | None) -> Decision:
    """The decision for a chunk; computes nothing."""
    _check_kind(x, "x", op)
    own = NUMPY_LIBRARY.validate(np.empty(0, x.dtype), "x").dtype
    request = Request(_check.NUMPY, "cpu", (own, NUMPY_LIBRARY.result_dtype(own, dtype)), op)
    chunks = " x ".join(map(str, x.numblocks)) or "1"
    decision = explain_request(request, backend)
    return decision._replace(chunks=f"  lazy, in {chunks} chunks; the axis of the classes must be in one chunk")


def _check_kind(x: Any, name: str, function: str) -> None:
    """Raise TypeError unless lsm has this function for a dask array of such chunks, as far as dask knows them."""
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


def _shape(x: Any) -> tuple[int, ...]:
    return tuple([_UNKNOWN if math.isnan(n) else int(n) for n in x.shape])


def _checked(function: str, given: dict[str, Any], axis: Any) -> dict[str, _Argument]:
    """The arguments that are arrays, with their patterns; raises for shapes that do not go together."""
    names = tuple(given)
    arguments: dict[str, _Argument] = {}
    for name, value in given.items():
        if isinstance(value, dask.array.Array):
            _check_kind(value, name, function)
            arguments[name] = _Argument(value, _shape(value))
        else:
            library = library_of(value)
            array = NUMPY_LIBRARY.as_ndarray(value, name) if library is NUMPY_LIBRARY else value
            check_alike(NUMPY_LIBRARY, library, np.empty(0), array, (names[0], name))
            arguments[name] = _Argument(array, array.shape)
    first = arguments[names[0]]
    if not first.ndim:
        raise TypeError(f"{names[0]}: a dask array without dimensions; pass {names[0]}.compute()")
    axes = _check.normalised_axes(axis, first.ndim)
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
            if len(frames.shape) == first.ndim - 1:  # else lsm refuses several axes
                shape_of_taken(argument.shape, first.shape, frames)
        elif name == "targets":
            check_shape_of_targets(argument, first.shape, frames, names[0])
        elif name == "b" and not broadcasts(argument.shape, first.shape):
            raise ValueError(f"b: shape {argument.shape}; accepted for a dask array: what broadcasts to {first.shape}")
    return arguments


def _with_pattern(argument: _Argument, name: str, n: int, axes: tuple[int, ...]) -> _Argument:
    """The argument with its pattern, which is any if it has a wrong number of axes."""
    pattern = tuple(range(n))[n - argument.ndim :]
    if name == "weight":
        pattern = (2 * n,) * argument.ndim
    elif name in ("targets", "indices") and argument.ndim != n:
        pattern = tuple([i for i in range(n) if i not in axes])
    elif name == "indices":
        pattern = tuple([n + i if i in axes else i for i in range(n)])
    return argument._replace(pattern=pattern)


def _check_unknown(arguments: dict[str, _Argument], first: str) -> None:
    """Raise ValueError if an axis has a length in one array that is not known of another."""
    for i, n in enumerate(arguments[first].shape):
        for name, argument in arguments.items():
            other = dict(zip(argument.pattern, argument.shape, strict=False)).get(i, 1)
            if other not in (1, n) and _UNKNOWN in (n, other):
                unknown = first if n == _UNKNOWN else name
                raise ValueError(
                    f"{first}, {name}: the length of an axis is known for one and not for the other; call "
                    f"{unknown}.compute_chunk_sizes()"
                )


def _check_chunks(argument: _Argument, name: str, axes: tuple[int, ...], n: int, takes_all: bool) -> None:
    """Raise ValueError unless each chunk holds whole frames."""
    if isinstance(argument.array, np.ndarray):
        return
    at = [i for i, number in enumerate(argument.pattern) if number in axes or number >= n]
    if any(argument.shape[i] == _UNKNOWN for i in at):
        raise ValueError(f"{name}: the number of classes is not known; call {name}.compute_chunk_sizes()")
    split = [i for i in at if argument.array.numblocks[i] > 1]
    if split:
        whole = ", ".join(f"{i}: -1" for i in split)
        chunks = [argument.array.numblocks[i] for i in split]
        raise class_chunks_error(name, chunks, f"{name}.rechunk({{{whole}}})", takes_all)


def _check_reduction(reduction: str, arguments: dict[str, _Argument]) -> None:
    """Raise ValueError for the mean of weighted labels, whose divisor is a sum of its own."""
    if reduction == "mean" and "weight" in arguments and kind(arguments["targets"]) == "integer":
        raise ValueError(
            "reduction: 'mean' of labels with weights; accepted for dask arrays: 'sum' or 'none'; divide the sum by "
            "that of weight[targets]"
        )


def _needs_one_axis(function: str, arguments: dict[str, _Argument]) -> bool:
    has_labels = "targets" in arguments and kind(arguments["targets"]) != "floating"
    return has_labels or function in ("take_log_softmax", "top_k_log_softmax")


def _negative(axis: Any, axes: tuple[int, ...], n: int, needs_one: bool) -> Any:
    """The axis counted from the end, so that it is that of the stand-ins too; as it is where lsm will refuse it."""
    if needs_one and (isinstance(axis, (tuple, list)) or len(axes) != 1):
        return axis
    return axes[0] - n if len(axes) == 1 else tuple([i - n for i in axes])


def _made_of_stand_ins(function: str, arguments: dict[str, _Argument], options: dict[str, Any]) -> Any:
    """What the call gives for arrays without elements: checks everything but shapes, chunks and values."""
    n = next(iter(arguments.values())).ndim
    stand_ins = {}
    for name, argument in arguments.items():
        lengths = tuple([1 if length == _UNKNOWN else length for length in argument.shape])
        if name in ("where", "temperature", "b"):
            lengths = (1,) * (n - len(lengths)) + lengths
        stand_ins[name] = np.ones(lengths if name == "weight" else (0, *lengths), argument.dtype)
    return getattr(lsm, function)(**stand_ins, **options)


def _own_dtype(function: str, arguments: dict[str, _Argument]) -> str:
    """The dtype that is computed in."""
    names = tuple(arguments)[:1] if function in DERIVED else (*OPERATIONS[function].names, "b")
    names = _PAIRS if function == "kl_divergence" else tuple([name for name in names if name in arguments])
    own = [NUMPY_LIBRARY.validate(np.empty(0, arguments[name].dtype), name).dtype for name in names]
    return own[0] if len(own) == 1 else _check.promoted(own[0], own[1], (names[0], names[1]))


def _request(function: str, own: str, dtype: str) -> Request:
    """What a chunk asks for: the operation, or that which the function is derived from."""
    derived = DERIVED.get(function)
    if derived is None:
        return Request(_check.NUMPY, "cpu", (own, dtype), function)
    result = _check.at_least_float32(own) if derived.is_loss else dtype
    return Request(_check.NUMPY, "cpu", (own, result), derived.source.name)


def _blockwise(
    function: str,
    arguments: dict[str, _Argument],
    axes: tuple[int, ...],
    options: dict[str, Any],
    build: Any,
    results: tuple[Any, ...],
) -> tuple[Any, ...]:
    """The lazy results, of the dtypes and numbers of axes that the stand-ins gave."""
    n = next(iter(arguments.values())).ndim
    chunks: dict[int, Any] = {}
    for argument in arguments.values():
        if isinstance(argument.array, dask.array.Array):
            found = zip(argument.pattern, argument.shape, argument.array.chunks, strict=True)
            chunks = {i: chunk for i, length, chunk in found if length != 1} | chunks
    operands = []
    for argument in arguments.values():
        operands += [_as_dask(argument, chunks), argument.pattern]
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
    lazy = _lazy(task, index, operands, results[0], f"lsm-{function}", new_axes=new)
    if len(results) == 1:
        return (lazy,)
    return tuple(
        [_lazy(itemgetter(i), index, [lazy, index], result, f"lsm-{function}-{i}") for i, result in enumerate(results)]
    )


def _lazy(task: Any, index: tuple[int, ...], operands: Iterable[Any], like: Any, token: str, **more: Any) -> Any:
    meta = np.empty((0,) * len(index), like.dtype)
    return dask.array.blockwise(task, index, *operands, dtype=like.dtype, meta=meta, token=token, **more)


def _as_dask(argument: _Argument, chunks: dict[int, Any]) -> Any:
    """The array, in chunks that go with those of the others."""
    if isinstance(argument.array, dask.array.Array):
        return argument.array
    own = [chunks.get(i, -1) if n != 1 else -1 for i, n in zip(argument.pattern, argument.shape, strict=True)]
    return dask.array.from_array(argument.array, chunks=tuple(own))


def _reduced(losses: Any, targets: _Argument, reduction: str, ignore_index: Any, dtype: str) -> Any:
    """The sum or the mean of losses of frames: a task that has them all, 8 bytes each, so that it is that of lsm."""
    operands = [losses, tuple(range(losses.ndim))]
    if reduction == "mean" and ignore_index is not None:
        operands += [(_as_dask(targets, {}) != ignore_index).sum(), ()]
    task = partial(reduce_losses, reduction, dtype)
    like = np.empty((), _check.np_dtype(dtype))
    return _lazy(task, (), operands, like, f"lsm-{reduction}", concatenate=True)
