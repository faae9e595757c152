"""Find the items of lists and other sequences that may be more than numbers, to be checked by `_foreign`."""

import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Any, cast

import numpy as np

from lsm._foreign import LIBRARIES, SCALARS, SEQUENCES
from lsm._signals import ignoring

_PLAIN_TYPES = frozenset((float, int, bool, np.float64, np.float32, np.ndarray))
_NESTED = frozenset((list, tuple))
_MAX_DEPTH = 64  # NumPy's maximal number of dimensions; a list may contain itself
_SAMPLE_ITEMS = 1000  # items of a list to check if no library of the table is loaded


def foreign_items(x: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of nested lists that are neither numbers nor ndarrays, with their index, such as "[0][2]".

    Takes a few nanoseconds per number. If no library of the table is loaded, a long list is only sampled.
    """
    level = x if len(x) <= _SAMPLE_ITEMS or _is_any_loaded() else list(islice(x, _SAMPLE_ITEMS))
    for depth in range(_MAX_DEPTH):
        if _PLAIN_TYPES.issuperset(map(type, level)):  # or it is empty
            return
        inner = level
        if not _NESTED.issuperset(map(type, level)):
            kinds = set(map(type, level))
            nested = tuple([kind for kind in kinds if issubclass(kind, SEQUENCES)])
            if any(_is_foreign(kind) for kind in kinds.difference(nested)):
                yield from _search(x, "", {})
                return
            inner = [item for item in level if isinstance(item, nested)]
        if depth and len(set(map(id, inner))) < len(inner):  # a list that contains itself twice would grow forever
            inner = list({id(item): item for item in inner}.values())
        level = list(islice(chain.from_iterable(inner), _SAMPLE_ITEMS))
        if len(level) == _SAMPLE_ITEMS and _is_any_loaded():
            level = list(chain.from_iterable(inner))


def _is_any_loaded() -> bool:
    return any(name in sys.modules for name in LIBRARIES)


def _is_foreign(kind: type) -> bool:
    return kind is not np.ndarray and not issubclass(kind, SCALARS)


def _search(x: Any, index: str, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    seen[id(x)] = x  # kept, so that no other object gets its id
    for i, item in enumerate(x):
        if not isinstance(item, SEQUENCES) and _is_foreign(type(item)):
            yield f"{index}[{i}]", item
        items = as_list(item)
        if items is not None and id(item) not in seen and index.count("[") < _MAX_DEPTH:
            seen[id(item)] = item
            yield from _search(items, f"{index}[{i}]", seen)


def as_list(x: Any) -> Any:
    """The items of x if NumPy would read it as a sequence, like a list; else None."""
    if isinstance(x, SEQUENCES):
        return x
    if not _is_sequence(cast("Any", type(x))):
        return None
    try:
        memoryview(x)
    except TypeError:
        with ignoring(KeyError):  # of something like a dict
            return list(x)
    return None


@lru_cache(1024)
def _is_sequence(kind: Any) -> bool:
    own = ("__array__", "__array_interface__", "__array_struct__")
    is_indexed = hasattr(kind, "__getitem__") and hasattr(kind, "__len__") and not issubclass(kind, (dict, np.ndarray))
    return is_indexed and not issubclass(kind, SCALARS) and not any(hasattr(kind, name) for name in own)
