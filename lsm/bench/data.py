"""The arrays of a case, on the host or on a device, as each library sees them."""

from collections.abc import Callable, Iterable
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import lsm
from lsm._check import np_dtype
from lsm._interop_torch import TorchLibrary
from lsm._version import install_command
from lsm.bench.machine import torch_has_cuda
from lsm.bench.workloads import BOTH, FORWARD, SIGNATURES, Case

Array = np.ndarray[Any, np.dtype[Any]]

WRITTEN = ("out", "y_out", "total")
HUGE = {"float16": 6e4, "bfloat16": 1e30, "float32": 1e30, "float64": 1e300}
TORCH = TorchLibrary()


class Data:
    """The arrays that the operations of `ops` need, by name in `host`, in the case's `order`.

    Read are logits x and q, the gradient dy, log-probabilities y, probabilities p, labels, and `at`: the labels with
    length 1 along the axis. Written are out, of forward+backward y_out too, and total, a number for each frame.
    """

    def __init__(self, case: Case, ops: Iterable[str] = (FORWARD,), device: str = "cpu") -> None:
        if "bfloat16" in (case.dtype, case.out_dtype) and find_spec("ml_dtypes") is None:
            raise ValueError(f"bfloat16 needs ml_dtypes: {install_command('bfloat16')}")
        ops, rng, axis = set(ops), np.random.default_rng(0), case.axis
        in_type, out_type = np_dtype(case.dtype), np_dtype(case.result_dtype)
        layout: Any = {"order": case.order, "copy": False}
        self.device = device
        self.x = x = _logits(case, rng).astype(in_type, **layout)
        self.out = np.empty_like(x, dtype=out_type)
        largest = np.expand_dims(x.argmax(axis), axis)
        self.host = {"x": x, "out": self.out}
        needed = ", ".join(f"{SIGNATURES[op].given}, {SIGNATURES[op].result}" for op in ops).split(", ")
        needed += ["at"] * ("labels" in needed) + ["y_out"] * (BOTH in ops)
        made: dict[str, Callable[[], Array]] = {
            "dy": lambda: _gradient(case, largest, rng).astype(out_type, **layout),
            "y": lambda: lsm.log_softmax(x, axis, out=np.empty_like(self.out), dtype=out_type),
            "p": lambda: lsm.softmax(x, axis, out=np.empty_like(self.out), dtype=out_type),
            "q": lambda: _logits(case, rng).astype(in_type, **layout),
            "at": lambda: largest if case.data == "label" else rng.integers(0, case.n_classes, largest.shape),
            "labels": lambda: self.host["at"].squeeze(axis),
            "total": lambda: np.empty_like(x.take(0, axis), out_type),
            "y_out": lambda: np.empty_like(self.out),
        }
        for name, make in made.items():
            if name in needed:
                self.host[name] = make()

    @cached_property
    def torch(self) -> dict[str, Any]:
        """As tensors of PyTorch, on the CPU the same memory."""
        import_module("torch")
        return {name: TORCH.from_numpy(array, None).to(self.device) for name, array in self.host.items()}

    @cached_property
    def cupy(self) -> dict[str, Any]:
        """As arrays of CuPy: those of PyTorch where it has the device, so that the device holds them once."""
        cupy = import_module("cupy")
        make, arrays = (cupy.from_dlpack, self.torch) if torch_has_cuda() else (cupy.asarray, self.host)
        return {name: make(array) for name, array in arrays.items()}

    def waits(self, library: str) -> Callable[[], object]:
        """What waits until "torch" or "cupy" is done with a device; on the CPU a call returns at its end."""
        if self.device == "cpu":
            return lambda: None
        cuda: Any = import_module(library).cuda
        return lambda: (cuda if library == "torch" else cuda.get_current_stream()).synchronize()

    def n_bytes(self, case: Case) -> int:
        """Bytes that a call moves: each input read once, each result written once, for each operation."""
        given, result, *_ = SIGNATURES[case.op]
        number, label = np_dtype(case.result_dtype).itemsize, np.dtype(np.int64).itemsize
        written = {"out": self.out.nbytes, "total": case.n_frames * number}
        written["best"] = case.n_frames * case.k * (number + label)
        n_read = sum(self.host[name].nbytes for name in given.split(", ") if name != "k")
        return int(n_read + written[result] + (2 * self.out.nbytes if case.op == BOTH else 0))


def to_numpy(result: Any) -> Array:
    """A result of one of the libraries as a NumPy array."""
    library = type(result).__module__.partition(".")[0]
    if library == "torch":
        result = TORCH.view_as_numpy(result.detach().cpu(), "the result")
    return np.asarray(result.get() if library == "cupy" else result)


def _gradient(case: Case, largest: Array, rng: np.random.Generator) -> Array:
    """N(0, 1), or that of a loss that takes the largest class for the label."""
    if case.data != "label":
        return rng.standard_normal(case.shape, np.float64 if case.result_dtype == "float64" else np.float32)
    dy = np.zeros(case.shape, np.float32)
    np.put_along_axis(dy, largest, -1, case.axis)
    return dy


def _logits(case: Case, rng: np.random.Generator) -> Array:
    """Logits of one kind, in float64 only where float32 is not enough: of the largest array that would be 1.6 GB."""
    x: Array = rng.standard_normal(case.shape, np.float64 if case.dtype == "float64" else np.float32)
    x *= 1 if case.data == "huge" else 4
    frames = np.moveaxis(x, case.axis, -1)
    if case.data in ("peaked", "label"):  # one class leads by 5 to 90
        k = rng.integers(0, case.n_classes, (*frames.shape[:-1], 1))
        lead = rng.uniform(5, 90, k.shape).astype(x.dtype)
        np.put_along_axis(frames, k, frames.max(axis=-1, keepdims=True) + lead, axis=-1)
    elif case.data == "masked":  # every other class or so; never all
        frames[rng.random(frames.shape, np.float32) < 0.5] = -np.inf
        frames[..., 0] = 1
    elif case.data == "constant":
        frames[...] = frames[..., :1].copy()
    elif case.data == "offset":
        x += 10_000
    elif case.data == "huge":
        np.multiply(x.clip(-1, 1, out=x), HUGE[case.dtype], out=x)
    return x
