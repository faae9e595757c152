"""Engines: one file for each library whose arrays carry labels or are not computed yet, imported with the first array.

An engine has two functions, `serve` for calls and `explain`; `lsm._interop.engine_for` finds it.
"""

from typing import Any

# Functions that serve dask arrays whose classes are in several chunks.
IN_PARTS = (
    "log_softmax",
    "log_softmax_backward",
    "softmax",
    "logsumexp",
    "take_log_softmax",
    "top_k_log_softmax",
    "cross_entropy",
)


def without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call without those that it need not have named."""
    unset = {name for name, value in options.items() if value is None and name != "axis"}
    unset |= {name for name in ("keepdims", "return_sign") if options.get(name) is False}
    if type(options.get("temperature")) in (int, float) and options["temperature"] == 1:
        unset.add("temperature")
    return {name: value for name, value in options.items() if name not in unset}


def class_chunks_error(name: str, chunks: list[int], remedy: str, takes_all: bool) -> ValueError:
    """The error for classes in so many chunks along each axis; `takes_all` if no axis of the classes was named."""
    n_chunks, all_axes = " x ".join(map(str, chunks)), "the axis of the classes as axis=, or " if takes_all else ""
    return ValueError(
        f"{name}: the classes are in {n_chunks} chunks; accepted: one (several only along one axis, and for "
        f"{', '.join(IN_PARTS)} of labels without weights, of the gradient without where and temperature; map_blocks "
        f"would normalise each part of a frame, and be silently wrong); pass {all_axes}{remedy}"
    )
