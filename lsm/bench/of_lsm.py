"""Every backend of lsm as contestants, those of plugins too."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import lsm
from lsm._decide import Call
from lsm._dispatch import OPERATIONS, explain_call
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
        library = _library(case, data, info.array_types)
        if library is None:
            yield Absent(name, info.reason or "torch is not installed")
            continue
        array_type, arrays = library
        operations = {FORWARD: OPERATIONS[:1], BACKWARD: OPERATIONS[1:], BOTH: OPERATIONS}[case.op]
        calls = [Call(array_type, data.device, (case.dtype, case.result_dtype), op) for op in operations]
        errors = [decision.error for call in calls if (decision := explain_call(call, label)).error is not None]
        if errors:
            yield Absent(name, info.reason or str(errors[0]))
            continue
        bound = info.max_ulp.get(case.result_dtype)
        for way in (OUT, NEW):
            yield _contestant(name, label, way, case, arrays, bound)


def _library(case: Case, data: Data, array_types: tuple[str, ...]) -> tuple[str, dict[str, Any]] | None:
    """The type of array that a backend is given, and the arrays: its own type where it has one.

    CUDA tensors are seen as CuPy's arrays, and NumPy's are usual on a CPU.
    """
    has_torch = "torch" in sys.modules or find_spec("torch") is not None
    if data.device == "cpu":
        if "torch.Tensor" in array_types and "numpy.ndarray" not in array_types and has_torch:
            return "torch.Tensor", data.torch
        return "numpy.ndarray", data.host
    if "cupy.ndarray" in array_types and case.dtype != "bfloat16":
        return "cupy.ndarray", data.cupy
    if has_torch:
        return "torch.Tensor", data.torch
    return None


def _contestant(name: str, label: str, way: str, case: Case, arrays: dict[str, Any], bound: float | None) -> Contestant:
    axis = "" if case.axis == -1 else f", {case.axis}"
    dtype = ", dtype=dtype" if case.out_dtype else ""
    out, y_out = (", out=out", ", out=y_out") if way == OUT else ("", "")
    code = {
        FORWARD: f"lsm.log_softmax(x{axis}{out}{dtype}, backend=backend)",
        BACKWARD: f"lsm.log_softmax_backward(dy, y{axis}{out}, backend=backend)",
        BOTH: f"lsm.log_softmax_backward(dy, lsm.log_softmax(x{axis}{y_out}{dtype}, backend=backend){axis}{out}, "
        "backend=backend)",
    }[case.op]
    names = {"lsm": lsm, "backend": label, "dtype": case.result_dtype, **arrays}
    return Contestant(name, "lsm", way, code, names, label, bound_ulp=bound, **_of_device(arrays))


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
