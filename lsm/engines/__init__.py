"""Engines: one file for each library whose arrays are labelled or lazy, imported when the first array is passed.

An engine has two functions, `serve` for calls and `explain`; `lsm._interop.engine_for` finds it.
"""

from typing import Any

# Functions that support dask arrays with the classes in several chunks.
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
    """The keywords of a call, except those that have their default values."""
    unset = {name for name, value in options.items() if value is None and name != "axis"}
    unset |= {name for name in ("keepdims", "return_sign") if options.get(name) is False}
    if type(options.get("temperature")) in (int, float) and options["temperature"] == 1:
        unset.add("temperature")
    return {name: value for name, value in options.items() if name not in unset}


def class_chunks_error(name: str, chunks: list[int], remedy: str, takes_all: bool) -> ValueError:
    """The error for classes in several chunks: `chunks` is the number by axis; `takes_all`: axis=None was passed."""
    n_chunks, all_axes = " x ".join(map(str, chunks)), "the axis of the classes as axis=, or " if takes_all else ""
    return ValueError(
        f"{name}: the classes are in {n_chunks} chunks; accepted: one (several only along one axis, and for "
        f"{', '.join(IN_PARTS)}; for a loss, only of labels without weights; for the gradient, without where and "
        "temperature; map_blocks would normalise each part of a frame, and be silently wrong); pass "
        f"{all_axes}{remedy}"
    )
