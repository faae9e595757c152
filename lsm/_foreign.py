"""Reject arrays that are more than numbers in memory: masked, with a unit, not computed yet, or stored in a file.

Nothing here imports a library, computes or reads anything. An object is recognised by the names of its classes and
their libraries, else by attributes of its classes. Of the attributes that a class generates in `__getattr__`, only a
mask, a unit and methods count, but not arrays of fewer dimensions: in a table, these are columns.
"""

import re
from collections import UserList, deque
from collections.abc import Callable
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple, cast

import numpy as np

Remedy = Callable[[Any, str], str]  # (object, expression for it) -> expression to use instead

SCALARS = (np.generic, float, int, complex, str, bytes, type(None))  # cannot carry a mask or the like
SEQUENCES = (list, tuple, deque, UserList)
_NOT_ARRAYS = SCALARS + SEQUENCES


class Rule(NamedTuple):
    """A kind of object: a text, with {} for its type, on what would be lost; and what to pass instead.

    `applies` decides for an individual object. Without a remedy, the object is passed on to NumPy.
    """

    text: str
    remedy: Remedy | str = ""
    applies: Callable[[Any], bool] = lambda x: True


def _attribute(x: Any, name: str) -> Any:
    """The value of an attribute of x or its class; None for a method, or if there is none."""
    kind: Any = type(x)
    is_method = _is_method(kind, name)
    if is_method is None:
        return getattr(x, "__dict__", {}).get(name)
    return None if is_method else getattr(x, name, None)


@lru_cache(1024)
def _is_method(kind: type, name: str) -> bool | None:
    """Whether this attribute of a class is callable; None if it does not exist."""
    for base in kind.__mro__:
        if name in vars(base):
            return callable(vars(base)[name])
    return None


@lru_cache(1024)
def _is_dynamic(kind: Any) -> bool:
    """Whether instances of a class may have attributes that it generates."""
    return hasattr(kind, "__getattr__") or kind.__getattribute__ is not object.__getattribute__


def _made_up(x: Any, name: str) -> Any:
    """The value of an attribute that the class of x generates; None for a method or a column of a table."""
    kind = cast("Any", type(x))
    value = getattr(x, name, None) if _is_dynamic(kind) and _is_method(kind, name) is None else None
    return None if callable(value) or 0 < getattr(value, "ndim", 0) < getattr(x, "ndim", 0) else value


def _has_mask(x: Any) -> bool:
    mask = _attribute(x, "mask")
    mask = _made_up(x, "mask") if mask is None else mask
    return mask is True or hasattr(mask, "dtype") or isinstance(mask, (list, tuple))


_DIMENSIONLESS = ("", "1", "dimensionless", "1 dimensionless", "1.0 dimensionless")
_METHODS = (BuiltinFunctionType, FunctionType, MethodType)


def _has_unit(x: Any) -> bool:
    for name in ("unit", "units"):
        unit = _attribute(x, name)
        if unit is None:
            made_up = _made_up(x, name)
            unit = None if hasattr(made_up, "__array__") else made_up  # a column
        if unit is not None and not isinstance(unit, _METHODS) and str(unit) not in _DIMENSIONLESS:
            return True
    return False


def _has_nulls(x: Any) -> bool:
    """Whether a pyarrow array, or a part of it with values, has nulls."""
    if x.null_count:
        return True
    parts = [getattr(x, name, None) for name in ("storage", "values", "dictionary")]
    return any(_has_nulls(part) for part in (*getattr(x, "chunks", ()), *parts) if hasattr(part, "null_count"))


# The values with which masked elements of arguments other than logits may be filled, and the effect.
_FILLS = {
    "b": ("0", "which excludes masked classes"),
    "weight": ("0", "which leaves masked classes out as targets"),
    "temperature": ("1", "or another number for masked frames"),
    "indices": ("0", "and drop those results"),
    "targets": ("-1", "with ignore_index=-1"),
    "probabilities": ("0", "which adds nothing to the loss"),
    "where": ("False", "which excludes masked classes"),
}


def _fill(x: Any, name: str) -> tuple[str, str, str]:
    """The conversion of masked logits, which need a floating dtype for -inf; the fill value; and its effect."""
    is_floating = getattr(_attribute(x, "dtype"), "kind", "f") == "f"
    argument = re.split(r"[.\[]", name)[0]
    argument = "probabilities" if argument == "targets" and is_floating else argument
    value, effect = _FILLS.get(argument, ("-numpy.inf", "which excludes masked classes"))
    return "" if is_floating or argument in _FILLS else ".astype(float)", value, effect


def _filled(x: Any, name: str) -> str:
    """Set masked classes to -inf, or elements of other arguments to a suitable value."""
    floating, value, effect = _fill(x, name)
    if not hasattr(type(x), "filled"):
        return f"numpy.where({name}.mask, {value}, {name}), {effect}"
    return f"{name}{floating}.filled({value}), {effect}"


def _without_unit(x: Any, name: str) -> str:
    """Use the numbers alone, or convert dimensionless but scaled units, such as percent."""
    kind = type(x)
    convert = next((method for method in ("to_value", "m_as") if hasattr(kind, method)), "")
    number = next((attribute for attribute in ("value", "magnitude") if hasattr(kind, attribute)), "")
    numbers = f"{name}.{number}" if number else f"numpy.asarray({name})"
    converted = f"{name}.{convert}('')"
    held = x.magnitude if number == "magnitude" else None
    if rule_for(held) is not None:  # pint holds arrays of any library
        numbers, converted = remedy(held, numbers), remedy(held, converted)
    elif _has_mask(x) and hasattr(kind, "filled"):
        numbers, converted = f"{numbers}.filled(-numpy.inf)", f"{converted}.filled(-numpy.inf)"
    elif _has_mask(x):
        numbers = f"numpy.where({name}.mask, -numpy.inf, {numbers})"
    return f"{converted} if it is dimensionless, or {numbers} for the numbers alone" if convert else numbers


def _computed(x: Any, name: str) -> str:
    """Compute it (the result may need a remedy in turn), or fill masked chunks, which computes nothing."""
    meta = _attribute(x, "_meta")
    if isinstance(meta, np.ma.MaskedArray):
        floating, value, effect = _fill(meta, name)
        return f"dask.array.ma.filled({name}{floating}, {value}), {effect}"
    return f"{name}.compute()" if rule_for(meta) is None else remedy(meta, f"{name}.compute()")


def _without_labels(x: Any, name: str) -> str:
    """Use the array in it, which may need a remedy in turn; `data` would read a file."""
    held = getattr(getattr(x, "variable", x), "_data", None)
    if type(held).__module__.startswith("xarray.") or rule_for(held) is None:
        return f"{name}.to_numpy()"
    return remedy(held, f"{name}.data")


def _is_more_than_data(x: Any) -> bool:
    return not hasattr(type(x), "__array__") or _has_mask(x) or _has_unit(x)


def _of_nddata(x: Any, name: str) -> str:
    data = f"{name}.data" if rule_for(x.data) is None else remedy(x.data, f"{name}.data")
    return data if x.mask is None else f"numpy.where({name}.mask, -numpy.inf, {data}), which excludes masked classes"


_PENDING = "{}, whose values are not computed yet; lsm does not trigger computations"
_STORED = "{}, whose values are in a store; lsm does not read stores"
_SPARSE = "a sparse array ({}), but log-probabilities are not sparse"
_FILL_NULLS = "{}.cast('float64').fill_null(-numpy.inf), which excludes these classes"
_NULLS = "{} with nulls, which would become NaN"
_SEVERAL = "{}, which contains several arrays"
_VALUELESS = "{}, a placeholder without values"
_NO_ARRAY = "{}, which is not an array"
_FILL_READ = "numpy.ma.filled({}[...], -numpy.inf), which excludes masked classes"

# By library and name of the object's class or a base class; * for any class of the library.
_BY_NAME = {
    "xarray DataArray": Rule("{}, whose dimensions and coordinates would be lost", _without_labels),
    "xarray Variable": Rule("{}, whose dimensions would be lost", _without_labels),
    "xarray *": Rule(_SEVERAL, "one of them: {}[name].to_numpy()"),
    "zarr Array": Rule(_STORED, "{}[...]"),
    "zarr AsyncArray": Rule(_STORED, "await {}.getitem(...)"),
    "zarr OIndex": Rule(_STORED, "{}.array[...]"),
    "zarr VIndex": Rule(_STORED, "{}.array[...]"),
    "zarr BlockIndex": Rule(_STORED, "{}.array[...]"),
    "zarr Group": Rule(_SEVERAL, "one of them: {}[name][...]"),
    "zarr AsyncGroup": Rule(_SEVERAL, "one of them: await (await {}.getitem(name)).getitem(...)"),
    "zarr *": Rule(_NO_ARRAY, "zarr.open_array({})[...] if it is a store"),
    "h5py Dataset": Rule(_STORED, "{}[...]"),
    "h5py AsTypeView": Rule(_STORED, "{}[...]"),
    "h5py FieldsView": Rule(_STORED, "{}[...]"),
    "h5py Group": Rule(_SEVERAL, "one of them: {}[name][...]"),
    "h5py File": Rule(_SEVERAL, "one of them: {}[name][...]"),
    "h5py *": Rule(_NO_ARRAY, "a dataset: file[name][...]"),
    "scipy netcdf_variable": Rule(_STORED, _FILL_READ),
    "scipy netcdf_file": Rule(_SEVERAL, "one of them: numpy.ma.filled({}.variables[name][...], -numpy.inf)"),
    "netCDF4 Variable": Rule(_STORED, _FILL_READ),
    "netCDF4 *": Rule(_SEVERAL, "one of them: numpy.ma.filled({}[name][...], -numpy.inf)"),
    "nibabel ArrayProxy": Rule(_STORED, "{}[...]"),
    "tables Column": Rule(_STORED, "{}[:]"),
    "tables File": Rule(_SEVERAL, "one of them: {}.root[name][:]"),
    "tables Group": Rule(_SEVERAL, "one of them: {}[name][:]"),
    "tables Leaf": Rule(_STORED, "{}[:]"),
    "tensorstore TensorStore": Rule(_STORED, "{}.read().result()"),
    "tensorstore Future": Rule(_PENDING, "{}.result()"),
    "distributed Future": Rule(_PENDING, "{}.result()"),
    "concurrent Future": Rule(_PENDING, "{}.result()"),
    "ray ObjectRef": Rule("{}, which refers to an object elsewhere", "ray.get({})"),
    "ray Dataset": Rule(_PENDING, "{}.map_batches(lambda batch: dict(y=lsm.log_softmax(batch[name])))"),
    "polars LazyFrame": Rule(_PENDING, "{}.collect()"),
    "pyarrow Array": Rule(_NULLS, _FILL_NULLS, _has_nulls),
    "pyarrow ChunkedArray": Rule(_NULLS, _FILL_NULLS, _has_nulls),
    "pyarrow _Tabular": Rule(
        "{}, whose columns have their own types, chunks and nulls",
        "numpy.column_stack([column.cast('float64').fill_null(-numpy.inf) for column in {}.columns])",
    ),
    "torch DTensor": Rule(
        "{}, which is distributed over several processes",
        "{}.to_local() if each part has whole frames, or {}.full_tensor()",
    ),
    "torch AsyncCollectiveTensor": Rule("{}, which may still be in transfer", "{}.wait()"),
    "torch MaskedTensor": Rule(
        "a masked array ({}), whose mask would be lost", "{}.to_tensor(-torch.inf), which excludes masked classes"
    ),
    "torch NestedTensor": Rule("a nested tensor ({})", "its parts, {}.unbind(), one by one"),
    "torch UninitializedTensorMixin": Rule("{}, which has no values yet", "it after its module has been called once"),
    "torch FakeTensor": Rule(_VALUELESS, "a real tensor, outside of tracing"),
    "torch FunctionalTensor": Rule(_VALUELESS, "a real tensor, outside of tracing"),
    "torch Proxy": Rule(_VALUELESS, "a real tensor, outside of tracing"),
    "astropy Table": Rule(_SEVERAL, "one of them: {}.filled(-numpy.inf)[name]"),
    "astropy NDData": Rule("{}, whose mask, unit and uncertainty would be lost", _of_nddata, _is_more_than_data),
    "astropy TimeBase": Rule(
        "{}, which is a time", "numpy.ma.filled({}.jd, -numpy.inf), which excludes masked classes"
    ),
    "awkward *": Rule(""),  # `mask` is a method that makes a mask
    "pandas *": Rule(""),  # `unit` is the resolution of times
    "pyarrow *": Rule(""),
}

# By attribute of the class, for any library; the first that applies.
_BY_ATTRIBUTES = (
    ("", Rule("a quantity ({}), whose unit would be lost", _without_unit, _has_unit)),
    ("__dask_graph__", Rule(_PENDING, _computed)),
    ("", Rule("a masked array ({}), whose mask would be lost", _filled, _has_mask)),
    ("toarray", Rule(_SPARSE, "{}.toarray()")),
    ("todense", Rule(_SPARSE, "{}.todense()")),
    ("compute", Rule(_PENDING, "{}.compute()")),
    ("__await__", Rule(_PENDING, "await {}")),
    ("chunks", Rule(_STORED, "{}[...]")),
)
LIBRARIES = {key.partition(" ")[0] for key in _BY_NAME} | {"numpy.ma", "astropy", "pint", "unyt", "dask", "scipy"}


@lru_cache(512)
def _rule_by_name(kind: type) -> Rule | None:
    """The rule for this class or a base class, else the one for its library."""
    libraries = [base.__module__.partition(".")[0] for base in kind.__mro__]
    keys = [f"{library} {base.__name__}" for library, base in zip(libraries, kind.__mro__, strict=True)]
    return next((_BY_NAME[key] for key in (*keys, f"{libraries[0]} *") if key in _BY_NAME), None)


@lru_cache(512)
def _rules_by_attribute(kind: type) -> tuple[Rule, ...]:
    """The rules for attributes of this class."""
    return tuple([rule for attribute, rule in _BY_ATTRIBUTES if not attribute or hasattr(kind, attribute)])


def rule_for(x: Any) -> Rule | None:
    """The rule by which x is rejected; None for numbers in memory."""
    kind: Any = type(x)
    if kind is np.ndarray or isinstance(x, _NOT_ARRAYS):
        return None
    named = _rule_by_name(kind)
    if named is not None:
        return named if named.remedy and named.applies(x) else None
    for rule in _rules_by_attribute(kind):
        if rule.applies(x):
            return rule
        if _is_method(kind, "magnitude") is False:  # pint has every attribute that a wrapped array could have
            return rule_for(x.magnitude)
    if _is_dynamic(kind):
        for attribute, rule in _BY_ATTRIBUTES:
            made_up = getattr(x, attribute, None) if attribute else None
            if (callable(made_up) or isinstance(made_up, tuple)) and rule.applies(x):
                return rule
    return None


def remedy(x: Any, name: str) -> str:
    """What to pass instead of x, which is rejected."""
    rule = rule_for(x)
    assert rule is not None
    if rule.applies is not _has_unit and hasattr(type(x), "magnitude"):
        return remedy(x.magnitude, f"{name}.magnitude")
    return rule.remedy(x, name) if callable(rule.remedy) else rule.remedy.replace("{}", name)


def describe(x: Any, rule: Rule) -> str:
    """A description of x, and why it is rejected."""
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    article = "" if rule.text.startswith("a") else "an " if kind[0] in "aehiox" else "a "
    return article + rule.text.replace("{}", kind)


def explain_rejection(out: Any) -> str:
    """The end of a message about an `out` of the wrong type: what would be lost; empty for numbers in memory."""
    rule = rule_for(out)
    return "" if rule is None else f"; this is {describe(out, rule)}"


def reject(x: Any, name: str) -> None:
    """Raise TypeError if x is more than numbers in memory, before anything is computed or read."""
    rule = rule_for(x)
    if rule is not None:
        raise TypeError(f"{name}: {describe(x, rule)}; pass {remedy(x, name)}")
