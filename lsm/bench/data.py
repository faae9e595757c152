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

    They are x, the gradient dy, the log-probabilities y, the probabilities p, other logits q, labels, and `at`, which
    is the labels with length 1 along the axis. Written are out, for forward+backward y_out too, and total for one
    number of each frame.
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
        self.host = {"x": x, "out": self.out}
        needed = ", ".join(f"{SIGNATURES[op].given}, {SIGNATURES[op].result}" for op in ops).split(", ")
        made: dict[str, Callable[[], Array]] = {
            "dy": lambda: _gradient(case, x, rng).astype(out_type, **layout),
            "y": lambda: lsm.log_softmax(x, axis, out=np.empty_like(self.out), dtype=out_type),
            "p": lambda: lsm.softmax(x, axis, out=np.empty_like(self.out), dtype=out_type),
            "q": lambda: _logits(case, rng).astype(in_type, **layout),
            "labels": lambda: _labels(case, x, rng),
            "total": lambda: np.empty_like(x.take(0, axis), out_type),
        }
        self.host |= {name: make() for name, make in made.items() if name in needed}
        if "labels" in needed:
            self.host["at"] = np.expand_dims(self.host["labels"], axis)
        if BOTH in ops:
            self.host["y_out"] = np.empty_like(self.out)

    @cached_property
    def torch(self) -> dict[str, Any]:
        """As tensors of PyTorch, on the CPU the same memory."""
        import_module("torch")
        return {name: TORCH.from_numpy(array, None).to(self.device) for name, array in self.host.items()}

    @cached_property
    def cupy(self) -> dict[str, Any]:
        """As arrays of CuPy: those of PyTorch where it has the device, so that the device holds them once."""
        import cupy

        if torch_has_cuda():
            return {name: cupy.from_dlpack(tensor) for name, tensor in self.torch.items()}
        return {name: cupy.asarray(array) for name, array in self.host.items()}

    def waits(self, library: str) -> Callable[[], object] | None:
        """What waits until "torch" or "cupy" is done; None on the CPU, where a call returns at its end."""
        if self.device == "cpu":
            return None
        cuda: Any = import_module(library).cuda
        found: Callable[[], object] = cuda.synchronize if library == "torch" else cuda.get_current_stream().synchronize
        return found

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


def _normal(rng: np.random.Generator, case: Case, dtype: str) -> Array:
    """N(0, 1); as float32 where that is enough, for the largest array as float64 would take 1.6 GB."""
    return rng.standard_normal(case.shape, np.float64 if dtype == "float64" else np.float32)


def _labels(case: Case, x: Array, rng: np.random.Generator) -> Array:
    """A class of each frame: any, or the largest for the data "label"."""
    largest = x.argmax(case.axis)
    return np.asarray(largest if case.data == "label" else rng.integers(0, case.n_classes, largest.shape))


def _gradient(case: Case, x: Array, rng: np.random.Generator) -> Array:
    """N(0, 1), or that of a loss that takes the largest class for the label."""
    if case.data != "label":
        return _normal(rng, case, case.result_dtype)
    dy = np.zeros(case.shape, np.float32)
    np.put_along_axis(dy, np.expand_dims(x.argmax(case.axis), case.axis), -1, case.axis)
    return dy


def _logits(case: Case, rng: np.random.Generator) -> Array:
    """Logits of one kind, in float32 or float64."""
    x = _normal(rng, case, case.dtype)
    if case.data == "huge":
        np.clip(x, -1, 1, out=x)
        x *= HUGE[case.dtype]
        return x
    x *= 4
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
    return x
