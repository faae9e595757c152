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
from lsm.backends._levels import kernels
from lsm.bench.data import Array, Data, to_numpy
from lsm.bench.machine import torch_has_cuda
from lsm.bench.result import Entry
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, SIGNATURES, Case

OUT, NEW = "out", "new"
USUAL_LAST_CACHE_BYTES = 32 * 2**20  # where the system does not tell

FUNCTIONS = {FORWARD: "log_softmax", BACKWARD: "log_softmax_backward"}  # of lsm; else the operation is the name
# Of what a function returns, that which is checked.
PARTS = {"top_k_log_softmax": "[0]", "cross_entropy_value_and_grad": "[1]"}

Key = tuple[str, str]


@dataclass(frozen=True)
class Implementation:
    """An expression in Python, and what its names mean.

    An expression and not a function: `timeit` puts it into a loop of its own, whose cost is about 10 ns a call.
    """

    name: str
    library: str
    way: str  # OUT: the result is written into an array of the data; NEW: the expression's value is the result
    code: str
    names: dict[str, Any]
    backend: str | None = None
    to_numpy: Callable[[Any], Array] = to_numpy
    wait: Callable[[], object] | None = None  # for the device
    bound_ulp: float | None = None  # what it declares
    setup_ms: float = 0.0  # what making it took, if that is a compilation

    @property
    def key(self) -> Key:
        """What distinguishes it from the others of a row."""
        return self.name, self.way

    def entry(self) -> Entry:
        """What a row says of it, before anything is measured."""
        return Entry(self.name, self.library, self.way, self.code, self.backend)

    def call(self) -> Any:
        """Evaluate the expression once, to the end."""
        value = eval(self.code, dict(self.names))
        if self.wait is not None:
            self.wait()
        return value


def limit(case: Case, data: Data, n_threads: int) -> Implementation:
    """The same bytes moved with next to no arithmetic: a copy of x, or dy + y, with nontemporal stores."""
    copy, add, wait = "copy({}, x)", "add(dy, {}, out=out)", None
    if data.device == "cpu":
        copy, add = "copy(x, {}, n_threads)", "add(dy, {}, out, n_threads)"
        names: dict[str, Any] = {key: array.ravel("K").view(np.uint8) for key, array in data.host.items()}
        names |= {"copy": kernels()["stream_copy"], "add": kernels()["stream_add"], "n_threads": n_threads}
    elif torch_has_cuda():
        import torch

        names, wait = {"copy": torch.Tensor.copy_, "add": torch.add, **data.torch}, data.waits("torch")
    else:
        import cupy

        names, wait = {"copy": cupy.copyto, "add": cupy.add, **data.cupy}, data.waits("cupy")
    codes = dict.fromkeys((FORWARD, "softmax", "cross_entropy_value_and_grad"), copy.format("out"))
    codes |= {BACKWARD: add.format("y"), "softmax_backward": add.format("p")}
    codes[BOTH] = f"{copy.format('y_out')}; {add.format('y_out')}"
    name = SIGNATURES[case.op].limit
    return Implementation(name, "the machine", OUT, codes[case.op], names, wait=wait)


def is_out_of_cache(case: Case, data: Data, caches: dict[str, int]) -> bool:
    """Whether the limit holds: the arrays exceed the last-level cache, or a device's own caches serve the copy too."""
    last_bytes = caches[max(caches)] if caches else USUAL_LAST_CACHE_BYTES
    held_bytes = data.n_bytes(case) - (data.out.nbytes if case.op == BOTH else 0)
    return data.device != "cpu" or held_bytes > last_bytes


def of_backend(label: str, info: lsm.BackendInfo, case: Case, data: Data, n_threads: int) -> Iterator[Implementation]:
    """A backend of lsm, with `out` and without; on NumPy's arrays on a CPU and CuPy's on a GPU, if it takes them."""
    kind = "torch.Tensor"
    if data.device == "cpu" and ("numpy.ndarray" in info.array_types or kind not in info.array_types):
        kind = "numpy.ndarray"
    elif data.device != "cpu" and "cupy.ndarray" in info.array_types and case.dtype != "bfloat16":
        kind = "cupy.ndarray"
    elif find_spec("torch") is None:
        raise LookupError("torch is not installed")
    functions = [FUNCTIONS.get(op, op) for op in case.op.split("+")]
    calls = [Request(kind, data.device, (case.dtype, case.result_dtype), name) for name in functions]
    for call in calls:
        if (error := explain_request(call, label).error) is not None:
            raise LookupError(error)
    backend = "" if all(explain_request(call).winner == label for call in calls) else ", backend=backend"
    library = kind.partition(".")[0]
    names = {name: getattr(lsm, name) for name in functions}
    names |= data.host if library == "numpy" else getattr(data, library)
    names |= {"backend": label, "dtype": case.result_dtype, "k": case.k}
    given, result, has_out, _ = SIGNATURES[case.op]
    axis = "" if case.axis == -1 and case.op != "logsumexp" else f", {case.axis}"
    dtype = ", dtype=dtype" if case.out_dtype else ""
    for way in (OUT, NEW) if has_out else (NEW,):
        out = f", out={result}" if way == OUT else ""
        if case.op == BOTH:
            given = f"dy, log_softmax(x{axis}{out.replace('=', '=y_')}{dtype}{backend})"
        more = ", reduction='none'" if case.op == "cross_entropy" else dtype if case.op == FORWARD else ""
        code = f"{functions[-1]}({given}{axis}{out}{more}{backend}){PARTS.get(case.op, '')}"
        about: dict[str, Any] = {"wait": data.waits(library), "backend": label}
        about["bound_ulp"] = info.max_ulp.get(case.result_dtype)
        yield Implementation(f"lsm {printable(label)}", "lsm", way, code, names, **about)
