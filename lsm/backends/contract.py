"""The declaration of a backend, and checks of the contract that do not call its operations."""

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lsm._operations import OF_PART, OPERATIONS, PARTIALS, PARTIALS_BACKWARD
from lsm.backends.base import API_VERSION, DEFAULT_MAX_ULP, Backend


def max_ulp(backend: Any) -> dict[str, float]:
    """The error bound of a backend for each of its dtypes, in ulps."""
    bounds = {**DEFAULT_MAX_ULP, **getattr(backend, "max_ulp", {})}
    return {dtype: float(bounds[dtype]) for dtype in backend.dtypes if dtype in bounds}


def has_operation(backend: Any, name: str) -> bool:
    """Whether a backend implements an operation itself, rather than inherits the base class's method."""
    method = getattr(backend, name, None)
    return method is not None and getattr(method, "__func__", method) is not getattr(Backend, name, None)


# The methods of a backend that supports frames in parts, and the number of arguments that each takes.
PART_METHODS = {
    PARTIALS: {PARTIALS: 3, "log_softmax_of_part": 4, "softmax_of_part": 4, "logsumexp_of_partials": 3},
    PARTIALS_BACKWARD: {PARTIALS_BACKWARD: 4, "log_softmax_backward_of_part": 5},
}


class Declaration(NamedTuple):
    """The attributes of a backend, read once when it is loaded, because later reads could differ or raise."""

    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    array_types: tuple[str, ...] = ()
    priority: int = 0
    max_ulp: Mapping[str, float] = MappingProxyType({})
    same_bits: bool = False
    operations: tuple[str, ...] = ()
    slice_classes: Mapping[str, int] = MappingProxyType({})
    has_empty: bool = False
    takes_bfloat16_bits: bool = False  # only for built-in backends


def read_declaration(backend: Any) -> Declaration:
    """Read the declaration of a backend that has no `contract_problem`."""
    return Declaration(
        devices=tuple(backend.devices),
        dtypes=tuple(backend.dtypes),
        array_types=tuple(backend.array_types),
        priority=int(getattr(backend, "priority", 0)),
        max_ulp=max_ulp(backend),
        same_bits=getattr(backend, "same_bits", False),
        operations=tuple([name for name in (*OPERATIONS, *OF_PART) if has_operation(backend, name)]),
        slice_classes=dict(getattr(backend, "slice_classes", {})),
        has_empty=getattr(backend, "empty", None) is not None,
        takes_bfloat16_bits=bool(getattr(backend, "takes_bfloat16_bits", False)),
    )


def contract_problem(backend: Any, name: str) -> str | None:
    """Why this object cannot be used as the backend `name`; None if it can."""
    import inspect  # takes 5 ms, too slow for `import lsm`

    if isinstance(backend, type):
        return f"the entry point names the class {backend.__name__}; it must name an instance of it"
    version = getattr(backend, "api_version", None)
    if version != API_VERSION:
        return f"its api_version is {version!r}; this version of lsm supports {API_VERSION}"
    if getattr(backend, "name", None) != name:
        return f"its name is {getattr(backend, 'name', None)!r}; the entry point is named {name!r}"
    if not isinstance(getattr(backend, "priority", 0), int):
        return f"its priority is {backend.priority!r}; it must be an int"
    for attribute in ("devices", "dtypes", "array_types"):
        value = getattr(backend, attribute, None)
        if not (isinstance(value, tuple) and value and all(isinstance(item, str) for item in value)):
            return f"its {attribute} are {value!r}; they must be a non-empty tuple of str"
    bounds = getattr(backend, "max_ulp", {})
    if not (isinstance(bounds, Mapping) and all(map(_is_bound, bounds.items()))):
        return f"its max_ulp is {bounds!r}; it must map names of dtypes to positive numbers"
    if not isinstance(getattr(backend, "same_bits", False), bool):
        return f"its same_bits is {backend.same_bits!r}; it must be True or False"
    slices = getattr(backend, "slice_classes", {})
    if not (isinstance(slices, Mapping) and all(isinstance(n, int) and n > 0 for n in slices.values())):
        return f"its slice_classes is {slices!r}; it must map names of dtypes to positive ints"
    methods = {"available": 0}
    for name_of_first, together in PART_METHODS.items():
        methods |= together if has_operation(backend, name_of_first) else {}
    for operation in OPERATIONS.values():
        if operation.is_required or has_operation(backend, operation.name):
            methods[operation.name] = len(operation.inputs) + 2
    if getattr(backend, "empty", None) is not None:
        methods["empty"] = 3
    for method, n_arguments in methods.items():
        function = getattr(backend, method, None)
        is_inherited = method not in ("available", "empty") and not has_operation(backend, method)
        if not callable(function) or is_inherited:
            return f"it has no method {method}"
        try:
            inspect.signature(function).bind(*[None] * n_arguments)
        except TypeError as error:
            return f"its method {method} does not take {n_arguments} arguments: {error}"
        except ValueError:  # a builtin without a signature
            pass
    return None


def _is_bound(item: tuple[Any, Any]) -> bool:
    """Whether this is a name and a positive bound, either infinite or within the range of float."""
    dtype, bound = item
    is_number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
    return isinstance(dtype, str) and is_number and (0 < bound <= sys.float_info.max or bound == float("inf"))
