"""xarray: calls on the arrays in DataArrays, with the labels restored on the results. Does not import xarray."""

import sys
from collections.abc import Hashable
from typing import Any

import numpy as np

import lsm
from lsm import _check
from lsm._decide import Decision
from lsm._foreign import reject, rule_for
from lsm._interop import engine_for
from lsm._operations import OF_PART, OPERATIONS
from lsm.engines import IN_PARTS, class_chunks_error, without_defaults


def serve(function: str, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
    """Call a function of lsm; the results are DataArrays with the labels, attributes and name of the first argument.

    A coordinate of a dimension that the result lacks, or has with another length, is dropped.
    """
    options = without_defaults(options)
    name, x = next(iter(inputs.items()))
    if not _is_labelled(x):
        name, x = next((name, x) for name, x in inputs.items() if _is_labelled(x))
        reject(x, name)
    if "out" in options:
        raise TypeError(f"out: not accepted with labelled arrays; pass the arrays within, {name}.data and out.data")
    options["axis"] = _numbered(options["axis"], x.dims)
    axes = _check.normalised_axes(options["axis"], x.ndim)
    classes = {x.dims[i] for i in axes}
    takes_all = options["axis"] is None and x.ndim > 1
    for key, value in (inputs | options).items():
        may_be_in_parts = (
            function in (*OF_PART, *IN_PARTS) and len(axes) == 1 and (key in ("where", "output") or value is x)
        )
        if _is_labelled(value) and not may_be_in_parts:
            _check_chunks(value, key, classes, takes_all)
    arrays = {key: _data(value, key, x, name, classes) for key, value in inputs.items()}
    options = {key: _data(value, key, x, name, classes) for key, value in options.items()}
    result = getattr(lsm, function)(**arrays, **options)
    if function in OF_PART:
        return result  # its axes are different
    operation = OPERATIONS.get(function)
    is_map = operation is not None and not operation.is_reduction

    def labelled(y: Any, keeps_classes: bool) -> Any:
        frames = [dim for dim in x.dims if dim not in classes]
        dims = x.dims if np.ndim(y) == x.ndim else frames if np.ndim(y) else ()
        gone = set(x.dims) - set(dims) | (set() if keeps_classes else classes)
        coords = x.coords.to_dataset().drop_vars([key for key, c in x.coords.items() if gone & set(c.dims)]).coords
        return type(x)(y, coords=coords, dims=dims, name=x.name, attrs=x.attrs)

    if not isinstance(result, tuple):
        return labelled(result, is_map)
    of_gradient = function == "cross_entropy_value_and_grad"
    made = [labelled(y, of_gradient and i == 1) for i, y in enumerate(result)]
    return lsm.TopK(*made) if isinstance(result, lsm.TopK) else tuple(made)


def explain(x: Any, op: str, dtype: Any, backend: str | None) -> Decision:
    """The decision for the array in x; reads nothing."""
    return lsm.explain(_held(x, "x"), op, dtype=dtype, backend=backend)


def _is_labelled(x: Any) -> bool:
    return isinstance(x, sys.modules["xarray"].DataArray)


def _held(x: Any, name: str) -> Any:
    """The array in x, if it is in memory or lazy; raises TypeError if it is in a file, masked, or has a unit."""
    held = x.variable._data  # `data` would read a file
    if type(held).__module__.startswith("xarray.") or (engine_for((held,)) is None and rule_for(held) is not None):
        reject(x, name)
    return held


def _check_chunks(x: Any, name: str, classes: set[Hashable], takes_all: bool) -> None:
    """Raise ValueError unless each chunk has whole frames: with the message of dask arrays, but xarray's remedy."""
    split = {dim: -1 for dim, chunks in x.chunksizes.items() if dim in classes and len(chunks) > 1}
    if split:
        raise class_chunks_error(name, [len(x.chunksizes[dim]) for dim in split], f"{name}.chunk({split})", takes_all)


def _numbered(axis: Any, dims: tuple[Hashable, ...]) -> Any:
    """The axis, with numbers in place of dimension names."""
    if isinstance(axis, (tuple, list)):
        return tuple([_numbered(item, dims) for item in axis])
    if not isinstance(axis, str):
        return axis
    if axis not in dims:
        raise ValueError(
            f"axis: {axis!r} is not a dimension; accepted: {', '.join(map(repr, dims))}, ints, or None for all"
        )
    return dims.index(axis)


def _data(value: Any, key: str, x: Any, name: str, classes: set[Hashable]) -> Any:
    """The array in an argument, with its dimensions in the order of x."""
    if not _is_labelled(value):
        return value
    if value is x:
        return _held(x, key)
    unknown = [dim for dim in value.dims if dim not in x.dims]
    if unknown:
        raise ValueError(f"{key}: dimensions {value.dims}; accepted: those of {name}, {x.dims}")
    for dim in value.dims:
        a, b = x.indexes.get(dim), value.indexes.get(dim)
        is_counted = key == "indices" and dim in classes  # the positions along it are not classes
        if a is not None and b is not None and not is_counted and not a.equals(b):
            raise ValueError(
                f"{name}, {key}: the labels along {dim!r} differ; pass both as xarray.align({name}, {key}) returns them"
            )
    _held(value, key)
    ordered = value.transpose(*[dim for dim in x.dims if dim in value.dims])
    data = ordered.data
    if key in ("where", "temperature", "b"):  # these broadcast
        data = data[tuple([slice(None) if dim in value.dims else np.newaxis for dim in x.dims])]
    return data
