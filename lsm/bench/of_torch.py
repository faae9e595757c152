"""PyTorch as it is, on the CPU or on a CUDA device, and on a device compiled too."""

from collections.abc import Iterator
from typing import Any

from lsm.bench.contestant import NEW, OUT, Absent, Contestant
from lsm.bench.data import Array, Data, from_torch
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, Case


def contestants(case: Case, data: Data, n_threads: int) -> Iterator[Contestant | Absent]:
    """With a preallocated result, by the functions that torch's own stand on, and as users write it."""
    import torch

    # Given an array in Fortran order torch copies it, and `_log_softmax` of torch 2.13 fills such an `out` as if it
    # were in C order: wrong. Told that it is a C order array turned over, it does neither.
    is_turned = case.order == "F"
    arrays = {key: tensor.T if is_turned else tensor for key, tensor in data.torch.items()}
    axis = len(case.shape) - 1 - case.axis % len(case.shape) if is_turned else case.axis
    names: dict[str, Any] = {"torch": torch, "axis": axis, "dtype": getattr(torch, case.result_dtype), **arrays}

    def to_numpy(tensor: Any) -> Array:
        return from_torch(tensor.T if is_turned else tensor)

    about: dict[str, Any] = {"library": "torch", "to_numpy": to_numpy}
    if data.device != "cpu":
        about["synchronise"] = torch.cuda.synchronize
    if case.op == BOTH:
        names["leaf"] = names["x"].detach().requires_grad_()
    for way, code in _codes(case).items():
        yield Contestant(name="torch", way=way, code=code, names=names, **about)
    if data.device == "cpu":
        yield Absent("torch.compile", "measured on cuda only")
    else:
        # Of its own for each case: shapes that differ would make one function ever more general.
        names = {"compiled": torch.compile(_function(case, torch, axis, names["dtype"]), dynamic=False), **names}
        # autograd compiles the gradient of a compiled function with it.
        code = {
            FORWARD: "compiled(x)",
            BACKWARD: "compiled(dy, y)",
            BOTH: "torch.autograd.grad(compiled(leaf), leaf, dy)[0]",
        }[case.op]
        yield Contestant(name="torch.compile", way=NEW, code=code, names=names, **about)


def _codes(case: Case) -> dict[str, str]:
    """The expression of each way."""
    dtype = ", dtype=dtype" if case.out_dtype else ""
    new = f"torch.log_softmax(x, axis{dtype})"
    out = f"torch.log_softmax(x, axis{dtype}, out=out)" if dtype else "torch._log_softmax(x, axis, False, out=out)"
    backward = "torch._log_softmax_backward_data(dy, {}, axis, {}.dtype, out=out)"
    return {
        FORWARD: {OUT: out, NEW: new},
        BACKWARD: {OUT: backward.format("y", "y"), NEW: "torch._log_softmax_backward_data(dy, y, axis, y.dtype)"},
        BOTH: {
            OUT: backward.format(out.replace("out=out", "out=y_out"), "y_out"),
            NEW: f"torch.autograd.grad({new.replace('(x', '(leaf')}, leaf, dy)[0]",
        },
    }[case.op]


def _function(case: Case, torch: Any, axis: int, dtype: Any) -> Any:
    """What is compiled."""
    if case.op == BACKWARD:
        return lambda dy, y: torch._log_softmax_backward_data(dy, y, axis, dtype)
    return lambda x: torch.log_softmax(x, axis, dtype=dtype)
