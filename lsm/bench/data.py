"""The arrays of a case, on the host or on a device, as each library sees them."""

from collections.abc import Iterable
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

import lsm
from lsm._check import np_dtype
from lsm._version import install_command
from lsm.bench.workloads import (
    BACKWARD,
    BOTH,
    ENTROPY,
    FORWARD,
    KL,
    LOGSUMEXP,
    LOSS,
    LOSS_GRAD,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    TAKE,
    TOP_K,
    Case,
)

Array = np.ndarray[Any, np.dtype[Any]]

NAMES = ("x", "dy", "y", "p", "q", "labels", "out", "y_out", "total")
# What each function is given, by these names, beside the axis.
GIVEN = {FORWARD: "x", BACKWARD: "dy, y", SOFTMAX: "x", SOFTMAX_BACKWARD: "dy, p", LOGSUMEXP: "x", ENTROPY: "x"}
GIVEN |= {KL: "x, q", TOP_K: "x, k"} | dict.fromkeys((TAKE, LOSS, LOSS_GRAD), "x, labels")
HUGE = {"float16": 6e4, "bfloat16": 1e30, "float32": 1e30, "float64": 1e300}


class Data:
    """x, the gradient dy, the log-probabilities y, the probabilities p, other logits q, labels, and what is written.

    That is out, for forward+backward y_out too, and total for one number of each frame.

    Arrays that no operation of `ops` needs are None. They are in the case's `order`.
    """

    def __init__(self, case: Case, ops: Iterable[str] = (FORWARD,), device: str = "cpu") -> None:
        if "bfloat16" in (case.dtype, case.out_dtype) and find_spec("ml_dtypes") is None:
            raise ValueError(f"bfloat16 needs ml_dtypes: {install_command('bfloat16')}")
        ops = set(ops)
        rng = np.random.default_rng(0)
        in_type, out_type = np_dtype(case.dtype), np_dtype(case.result_dtype)
        layout: Any = {"order": case.order, "copy": False}
        self.case, self.device = case.arrays, device
        self.x = _logits(case, rng).astype(in_type, **layout)
        self.out = np.empty_like(self.x, dtype=out_type)
        self.dy = self.y = self.p = self.q = self.labels = self.y_out = self.total = None
        if ops & {BACKWARD, BOTH, SOFTMAX_BACKWARD}:
            self.dy = _gradient(case, self.x, rng).astype(out_type, **layout)
        if BACKWARD in ops:
            self.y = lsm.log_softmax(self.x, case.axis, out=np.empty_like(self.out), dtype=out_type)
        if SOFTMAX_BACKWARD in ops:
            self.p = lsm.softmax(self.x, case.axis, out=np.empty_like(self.out), dtype=out_type)
        if ops & {LOGSUMEXP, TAKE}:
            self.total = np.empty_like(self.x.take(0, case.axis), out_type)
        if KL in ops:
            self.q = _logits(case, rng).astype(in_type, **layout)
        if ops & {TAKE, LOSS, LOSS_GRAD}:
            is_largest = case.data == "label"
            frames = self.x.take(0, case.axis).shape
            self.labels = self.x.argmax(case.axis) if is_largest else rng.integers(0, case.n_classes, frames)
        if BOTH in ops:
            self.y_out = np.empty_like(self.out)

    @property
    def host(self) -> dict[str, Array]:
        """As NumPy arrays."""
        return {name: array for name in NAMES if (array := getattr(self, name)) is not None}

    @cached_property
    def torch(self) -> dict[str, Any]:
        """As tensors of PyTorch, on the CPU the same memory."""
        return {name: torch_tensor(array).to(self.device) for name, array in self.host.items()}

    @cached_property
    def cupy(self) -> dict[str, Any]:
        """As arrays of CuPy: those of PyTorch where it has the device, so that the device holds them once."""
        import cupy

        if torch_has_cuda():
            return {name: cupy.from_dlpack(tensor) for name, tensor in self.torch.items()}
        return {name: cupy.asarray(array) for name, array in self.host.items()}

    def n_bytes(self, case: Case) -> int:
        """Bytes that a call moves: each input read once, each result written once, for each operation."""
        forward, backward = self.x.nbytes + self.out.nbytes, 3 * self.out.nbytes
        number, label = np_dtype(case.result_dtype).itemsize, np.dtype(np.int64).itemsize
        reduced = self.x.nbytes + case.n_frames * number
        labelled = reduced + case.n_frames * label
        by_op = {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward, LOGSUMEXP: reduced, ENTROPY: reduced}
        by_op |= {SOFTMAX: forward, SOFTMAX_BACKWARD: backward, TAKE: labelled, LOSS: labelled}
        by_op |= {KL: self.x.nbytes + reduced, LOSS_GRAD: forward + case.n_frames * label}
        by_op[TOP_K] = self.x.nbytes + case.n_frames * case.k * (number + label)
        return int(by_op[case.op])

    def result(self, op: str) -> Array | None:
        """The preallocated result of an operation; None if its function takes none."""
        return self.total if op in (LOGSUMEXP, TAKE) else None if op in (TOP_K, LOSS, ENTROPY, KL) else self.out


def torch_has_cuda() -> bool:
    """Whether PyTorch is installed and can use a GPU."""
    try:
        import torch
    except Exception:  # an installation can be broken in many ways
        return False
    return bool(torch.cuda.is_available())


def torch_tensor(array: Array) -> Any:
    """The same memory as a tensor; torch knows NumPy's own dtypes only, so bfloat16 goes as int16."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: Any) -> Array:
    """A tensor as a NumPy array."""
    import torch

    is_bfloat16 = tensor.dtype == torch.bfloat16
    bits: Array = (tensor.detach().view(torch.int16) if is_bfloat16 else tensor.detach()).cpu().numpy()
    return bits.view(np_dtype("bfloat16")) if is_bfloat16 else bits


def _normal(rng: np.random.Generator, case: Case, dtype: str) -> Array:
    """N(0, 1); as float32 where that is enough, for the largest array as float64 would take 1.6 GB."""
    return rng.standard_normal(case.shape, np.float64 if dtype == "float64" else np.float32)


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
