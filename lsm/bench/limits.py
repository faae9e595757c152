"""The limit of the machine: the same bytes moved with next to no arithmetic, which no kernel can beat."""

import math
from typing import Any

import numpy as np

from lsm.backends.cython_ import kernels
from lsm.bench.contestant import OUT, Contestant
from lsm.bench.data import Array, Data, torch_has
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, Case

LIMITS = {FORWARD: "streaming copy", BACKWARD: "streaming add", BOTH: "streaming copy and add"}


def limit(case: Case, data: Data, n_threads: int) -> Contestant:
    """Copy x to the result, or add dy and y: on a CPU past the caches, on a device as its library does."""
    name = LIMITS[case.op]
    if data.device == "cpu":
        codes = {FORWARD: "copy(x, {}, n_threads)", BACKWARD: "add(dy, {}, out, n_threads)"}
        names: dict[str, Any] = {key: flat(array).view(np.uint8) for key, array in data.host.items()}
        names |= {"copy": kernels()["stream_copy"], "add": kernels()["stream_add"], "n_threads": n_threads}
        about: dict[str, Any] = {}
    else:
        codes = {FORWARD: "copy({}, x)", BACKWARD: "add(dy, {}, out=out)"}
        names, about = _on_device(data)
    codes = {FORWARD: codes[FORWARD].format("out"), BACKWARD: codes[BACKWARD].format("y")} | {
        BOTH: f"{codes[FORWARD].format('y_out')}; {codes[BACKWARD].format('y_out')}"
    }
    return Contestant(name, "the machine", OUT, codes[case.op], names, **about)


def _on_device(data: Data) -> tuple[dict[str, Any], dict[str, Any]]:
    """The functions and arrays of a device, and how to wait for it."""
    if not torch_has(data.device):
        import cupy

        wait = cupy.cuda.get_current_stream().synchronize
        return {"copy": cupy.copyto, "add": cupy.add, **data.cupy}, {"synchronise": wait}
    import torch

    names = {"copy": lambda to, x: to.copy_(x), "add": torch.add, **data.torch}
    return names, {"synchronise": torch.cuda.synchronize}


def is_out_of_cache(case: Case, data: Data, last_cache: int) -> bool:
    """Whether all arrays together are larger than the last-level cache; within it the limit is another one.

    A device's caches are its own, and its library's copy is subject to them too: there the limit always holds.
    """
    return data.device != "cpu" or data.held_bytes(case.op) > last_cache


def flat(a: Array) -> Array:
    """All elements in the order of the memory, without a copy."""
    view = a.ravel(order="K")
    if not np.may_share_memory(view, a):
        raise ValueError("the array is not contiguous")
    return view


def gb_s(n_bytes: int, us: float) -> float:
    """10^9 bytes a second."""
    return n_bytes / us / 1e3 if us else math.inf
