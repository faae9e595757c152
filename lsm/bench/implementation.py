"""An implementation is one way to call one library in one case; here are those of lsm, and the limit of the machine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import lsm
from lsm._decide import Request
from lsm._explain import explain_request
from lsm._texts import printable
from lsm.backends.cython_ import kernels
from lsm.bench.data import GIVEN, Array, Data, from_torch, torch_has_cuda
from lsm.bench.workloads import (
    BACKWARD,
    BOTH,
    FORWARD,
    LOGSUMEXP,
    LOSS,
    LOSS_GRAD,
    REDUCED,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    TOP_K,
    Case,
)

OUT, NEW = "out", "new"
USUAL_LAST_CACHE_BYTES = 32 * 2**20  # where the system does not tell
LIMITS = {FORWARD: "streaming copy", BACKWARD: "streaming add", BOTH: "streaming copy and add"}
LIMITS |= {SOFTMAX: LIMITS[FORWARD], SOFTMAX_BACKWARD: LIMITS[BACKWARD], LOSS_GRAD: LIMITS[FORWARD]}
FUNCTIONS = {FORWARD: "log_softmax", BACKWARD: "log_softmax_backward"}  # of the others the operation is the name
PARTS = {TOP_K: "[0]", LOSS_GRAD: "[1]"}  # of what a function returns, that which is checked


@dataclass(frozen=True)
class Implementation:
    """An expression in Python, and what its names mean.

    An expression and not a function: `timeit` puts it into a loop of its own, whose cost is about 10 ns a call.
    """

    name: str
    library: str
    way: str  # OUT: the result is written into `out` of the data; NEW: the expression's value is the result
    code: str
    names: dict[str, Any]
    backend: str | None = None
    to_numpy: Callable[[Any], Array] = np.asarray
    synchronise: Callable[[], object] | None = None  # waits for the device
    bound_ulp: float | None = None  # what it declares
    setup_ms: float = 0.0  # what making it took, if that is a compilation

    @property
    def key(self) -> tuple[str, str]:
        """What distinguishes it from the others of a row."""
        return self.name, self.way

    def call(self) -> Any:
        """Evaluate the expression once, to the end."""
        value = eval(self.code, dict(self.names))
        if self.synchronise is not None:
            self.synchronise()
        return value


def limit(case: Case, data: Data, n_threads: int) -> Implementation:
    """The same bytes moved with next to no arithmetic: a copy of x, or dy + y, with nontemporal stores."""
    copy, add, about = "copy({}, x)", "add(dy, {}, out=out)", {}
    if data.device == "cpu":
        copy, add = "copy(x, {}, n_threads)", "add(dy, {}, out, n_threads)"
        names: dict[str, Any] = {key: flat(array).view(np.uint8) for key, array in data.host.items()}
        names |= {"copy": kernels()["stream_copy"], "add": kernels()["stream_add"], "n_threads": n_threads}
    elif torch_has_cuda():
        import torch

        names, about = {"copy": torch.Tensor.copy_, "add": torch.add, **data.torch}, on_device("torch")
    else:
        import cupy

        names, about = {"copy": cupy.copyto, "add": cupy.add, **data.cupy}, on_device("cupy")
    both = f"{copy.format('y_out')}; {add.format('y_out')}"
    codes = {FORWARD: copy.format("out"), BACKWARD: add.format("y"), BOTH: both}
    codes |= dict.fromkeys((SOFTMAX, LOSS_GRAD), codes[FORWARD]) | {SOFTMAX_BACKWARD: add.format("p")}
    code = codes[case.op]
    return Implementation(LIMITS[case.op], "the machine", OUT, code, names, **about)


def is_out_of_cache(case: Case, data: Data, caches: dict[str, int]) -> bool:
    """Whether the limit holds: the arrays exceed the last-level cache, or a device's own caches serve the copy too."""
    last_bytes = caches[max(caches)] if caches else USUAL_LAST_CACHE_BYTES
    held_bytes = data.n_bytes(case) - (data.out.nbytes if case.op == BOTH else 0)
    return data.device != "cpu" or held_bytes > last_bytes


def flat(a: Array) -> Array:
    """All elements in the order of the memory, without a copy."""
    view = a.ravel(order="K")
    if not np.may_share_memory(view, a):
        raise ValueError("the array is not contiguous")
    return view


def of_backend(label: str, info: lsm.BackendInfo, case: Case, data: Data, n_threads: int) -> Iterator[Implementation]:
    """The ways to call a backend of lsm, with `out` and without; a LookupError says why it does not serve the case."""
    operations = [FUNCTIONS.get(op, op) for op in case.op.split("+")]
    kind, arrays = _arrays(case, data, info.array_types)
    calls = [Request(kind, data.device, (case.dtype, case.result_dtype), op) for op in operations]
    for call in calls:
        if (error := explain_request(call, label).error) is not None:
            raise LookupError(error)
    is_automatic = all(explain_request(call).winner == label for call in calls)
    about: dict[str, Any] = {"bound_ulp": info.max_ulp.get(case.result_dtype)}
    if data.device != "cpu":
        about |= on_device(kind)
    elif kind == "torch.Tensor":
        about["to_numpy"] = from_torch
    names = {name: getattr(lsm, name) for name in operations} | arrays
    names |= {"backend": label, "dtype": case.result_dtype, "k": case.k}
    axis = "" if case.axis == -1 and case.op != LOGSUMEXP else f", {case.axis}"
    dtype = ", dtype=dtype" if case.out_dtype else ""
    backend = "" if is_automatic else ", backend=backend"
    for way in (OUT, NEW) if data.result(case.op) is not None else (NEW,):
        out = f", out={'total' if case.op in REDUCED else 'out'}" if way == OUT else ""
        more = f"{axis}{out}{', reduction=' + repr('none') if case.op == LOSS else ''}"
        y = f"log_softmax(x{axis}{out.replace('=', '=y_')}{dtype}{backend})"
        if case.op == BOTH:
            code = f"log_softmax_backward(dy, {y}{more}{backend})"
        else:
            takes_dtype = "" if case.op in (BACKWARD, SOFTMAX_BACKWARD) else dtype
            code = f"{operations[0]}({GIVEN[case.op]}{more}{takes_dtype}{backend}){PARTS.get(case.op, '')}"
        yield Implementation(f"lsm {printable(label)}", "lsm", way, code, names, label, **about)


def _arrays(case: Case, data: Data, array_types: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The type of array that a backend is given, and the arrays: NumPy's on a CPU and CuPy's on a GPU, if it can."""
    if data.device == "cpu" and ("numpy.ndarray" in array_types or "torch.Tensor" not in array_types):
        return "numpy.ndarray", data.host
    if data.device != "cpu" and "cupy.ndarray" in array_types and case.dtype != "bfloat16":
        return "cupy.ndarray", data.cupy
    if find_spec("torch") is None:
        raise LookupError("torch is not installed")
    return "torch.Tensor", data.torch


def on_device(kind: str) -> dict[str, Any]:
    """How a result of a library's comes back to the host, and how to wait for it."""
    if kind.startswith("torch"):
        import torch

        return {"to_numpy": from_torch, "synchronise": torch.cuda.synchronize}
    import cupy

    return {"to_numpy": cupy.asnumpy, "synchronise": cupy.cuda.get_current_stream().synchronize}
