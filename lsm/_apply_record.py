"""The record of how a result of `lsm apply` was made, so that no other run continues it."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm._check import NUMPY, dtype_name
from lsm._decide import Decision, Request, decide
from lsm._dispatch import policy_for
from lsm._interop import NUMPY_LIBRARY
from lsm._operations import DERIVED, OPERATIONS
from lsm._storage.base import StoredArray
from lsm.engines._dask_tasks import build_of


def decision_of(op: str, arrays: Sequence[StoredArray], dtype: np.dtype[Any], options: dict[str, Any]) -> Decision:
    """The backend that computes a result of this dtype; loads no other."""
    n_logits = len(OPERATIONS[op].inputs) if op in OPERATIONS else 1
    own = NUMPY_LIBRARY.validate(np.empty(0, arrays[0].native_dtype), "x").dtype
    result = dtype_name(dtype)
    dtypes = own if n_logits == 1 else result, result  # two inputs are promoted
    request = Request(NUMPY, "cpu", dtypes, DERIVED[op].source.name if op in DERIVED else op)
    decision = decide(request, policy_for(options.get("backend")))
    if decision.error is not None:
        raise decision.error
    return decision


def record_of(
    op: str,
    arrays: Sequence[StoredArray],
    axes: tuple[int, ...],
    dtype: np.dtype[Any],
    options: dict[str, Any],
    decision: Decision,
) -> dict[str, Any]:
    """Everything on which the bits of a result depend, in a form that JSON can hold."""
    version, has_fma = build_of(decision.backend)
    options = {key: value for key, value in options.items() if key not in ("backend", "dtype")}
    return {
        "operation": op,
        "axis": list(axes),
        "options": options,
        "dtype": dtype_name(dtype),
        "backend": decision.winner,
        "version": version,
        "fma": has_fma,
        "source": [source_of(array) for array in arrays],
    }


def source_of(array: StoredArray) -> dict[str, Any]:
    """The entry of an input in a record. Its size and time of change cover all its files."""
    files = [array.path]
    if os.path.isdir(array.path):  # noqa: PTH112 (faster for millions of files)
        files = [os.path.join(folder, name) for folder, _, names in os.walk(array.path) for name in names]  # noqa: PTH118
    states = [os.stat(file) for file in files]  # noqa: PTH116
    return {
        "path": os.path.realpath(array.path),
        "within": array.within,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "size": sum(state.st_size for state in states),
        "mtime": max(state.st_mtime_ns for state in states),
    }
