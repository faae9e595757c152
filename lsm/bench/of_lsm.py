"""Every backend of lsm as contestants, those of plugins too."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import lsm
from lsm._decide import Request
from lsm._dispatch import explain_request
from lsm._operations import OPERATIONS
from lsm._texts import told
from lsm.bench.contestant import NEW, OUT, Absent, Contestant
from lsm.bench.data import Data, from_torch
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, Case


def labels() -> dict[str, lsm.BackendInfo]:
    """Every backend that is known, by the name it can be asked for; loads them."""
    infos = lsm.list_backends()
    names = [info.name for info in infos]
    return {
        info.name if info.is_built_in or names.count(info.name) == 1 else f"{info.distribution}/{info.name}": info
        for info in infos
    }


def contestants(case: Case, data: Data, n_threads: int) -> Iterator[Contestant | Absent]:
    """Each backend that serves the case, with `out` and without."""
    for label, info in labels().items():
        name = f"lsm {label}"
        if info.state != "loaded":
            yield Absent(name, info.reason)
            continue
        try:
            found = list(_of_backend(label, info, case, data))
        except Exception as error:  # an installation of torch or cupy can be broken; the other backends need neither
            found = [Absent(name, told(error))]
        yield from found


def _of_backend(label: str, info: lsm.BackendInfo, case: Case, data: Data) -> Iterator[Contestant | Absent]:
    """Both ways to call one backend, or why it does not serve the case."""
    name = f"lsm {label}"
    if data.device not in info.devices:
        yield Absent(name, f"serves {', '.join(info.devices)}, not {data.device}")
        return
    library = _library(case, data, info.array_types)
    if library is None:
        yield Absent(name, "torch is not installed")
        return
    array_type, arrays = library
    operations = [op.name for op in OPERATIONS.values() if op.direction in case.op.split("+")]
    calls = [Request(array_type, data.device, (case.dtype, case.result_dtype), op) for op in operations]
    errors = [decision.error for call in calls if (decision := explain_request(call, label)).error is not None]
    if errors:
        yield Absent(name, str(errors[0]))
        return
    is_automatic = all(explain_request(call).winner == label for call in calls)
    for way in (OUT, NEW):
        code = _code(case, way, asks=not is_automatic)
        names = {"log_softmax": lsm.log_softmax, "log_softmax_backward": lsm.log_softmax_backward, **arrays}
        names |= {"backend": label, "dtype": case.result_dtype}
        bound = info.max_ulp.get(case.result_dtype)
        yield Contestant(name, "lsm", way, code, names, label, bound_ulp=bound, **_of_device(arrays))


def _library(case: Case, data: Data, array_types: tuple[str, ...]) -> tuple[str, dict[str, Any]] | None:
    """The type of array that a backend is given, and the arrays: its own type where it has one.

    CUDA tensors are seen as CuPy's arrays, and NumPy's are usual on a CPU.
    """
    has_torch = find_spec("torch") is not None
    if data.device == "cpu":
        if "torch.Tensor" in array_types and "numpy.ndarray" not in array_types and has_torch:
            return "torch.Tensor", data.torch
        return "numpy.ndarray", data.host
    if "cupy.ndarray" in array_types and case.dtype != "bfloat16":
        return "cupy.ndarray", data.cupy
    if has_torch:
        return "torch.Tensor", data.torch
    return None


def _code(case: Case, way: str, asks: bool) -> str:
    """The call; whoever would be served by the backend anyway does not ask for it."""
    axis = "" if case.axis == -1 else f", {case.axis}"
    dtype = ", dtype=dtype" if case.out_dtype else ""
    backend = ", backend=backend" if asks else ""
    out, y_out = (", out=out", ", out=y_out") if way == OUT else ("", "")
    y = f"log_softmax(x{axis}{y_out}{dtype}{backend})"
    return {
        FORWARD: f"log_softmax(x{axis}{out}{dtype}{backend})",
        BACKWARD: f"log_softmax_backward(dy, y{axis}{out}{backend})",
        BOTH: f"log_softmax_backward(dy, {y}{axis}{out}{backend})",
    }[case.op]


def _of_device(arrays: dict[str, Any]) -> dict[str, Any]:
    """How a result comes back to the host, and how to wait for it."""
    kind = type(arrays["x"]).__module__.split(".")[0]
    if kind == "torch":
        import torch

        about: dict[str, Any] = {"to_numpy": from_torch}
        return about | ({} if arrays["x"].device.type == "cpu" else {"synchronise": torch.cuda.synchronize})
    if kind == "cupy":
        import cupy

        return {"to_numpy": cupy.asnumpy, "synchronise": cupy.cuda.get_current_stream().synchronize}
    return {}
