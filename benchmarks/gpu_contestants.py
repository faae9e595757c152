"""Who takes part in benchmarks/gpu.py. Each makes of a workload a function that enqueues the work once.

An ImportError, or any other error while it is made, is kept as the reason why it does not take part in a row.
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import lsm
from gpu_workloads import BACKWARD, FORWARD, Workload

Step = Callable[[], Any]


class UnfitError(Exception):
    """A contestant has nothing for this workload."""


def cupy_arrays(workload: Workload) -> tuple[Any, Any, Any]:
    """Of CuPy: x or dy, y, and where to write; the same numbers in every run."""
    cupy = import_module("cupy")
    dtype = import_module("ml_dtypes").bfloat16 if workload.dtype == "bfloat16" else workload.dtype
    random = cupy.random.default_rng(1)
    x = random.standard_normal(workload.shape, dtype=cupy.float32).astype(dtype)
    return x, lsm.log_softmax(x, workload.axis, backend="cupy"), cupy.empty_like(x)


def torch_tensors(workload: Workload) -> tuple[Any, Any]:
    """Of PyTorch: x or dy, and y."""
    torch = import_module("torch")
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(workload.shape, device="cuda", generator=generator).to(getattr(torch, workload.dtype))
    return x, torch.log_softmax(x, workload.axis)


def copy_step(workload: Workload) -> Step:
    """A copy of as many bytes as the workload must move: half of them read, half written."""
    cupy = import_module("cupy")
    a = cupy.zeros(workload.n_moved // 2, cupy.uint8)
    b = cupy.empty_like(a)
    return lambda: b.data.copy_from_device_async(a.data, a.nbytes)


def lsm_step(workload: Workload) -> Step:
    """lsm on arrays of CuPy, into `out`."""
    x, y, out = cupy_arrays(workload)
    if workload.op == FORWARD:
        return lambda: lsm.log_softmax(x, workload.axis, out=out, backend="cupy")
    return lambda: lsm.log_softmax_backward(x, y, workload.axis, out=out, backend="cupy")


def _torch_function(workload: Workload) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    torch = import_module("torch")
    x, y = torch_tensors(workload)
    if workload.op == FORWARD:
        return lambda x: torch.log_softmax(x, workload.axis), (x,)
    backward = torch.ops.aten._log_softmax_backward_data
    return lambda dy, y: backward(dy, y, workload.axis, dy.dtype), (x, y)


def torch_step(workload: Workload) -> Step:
    """PyTorch as it is called."""
    function, arguments = _torch_function(workload)
    return lambda: function(*arguments)


def compiled_step(workload: Workload) -> Step:
    """PyTorch by torch.compile, which tries several kernels, for this very shape.

    It has eight kernels of one function at most, and after that runs it as it is, so it forgets those of other rows.
    """
    function, arguments = _torch_function(workload)
    torch = import_module("torch")
    torch._dynamo.reset()
    if hasattr(torch._dynamo.config, "fail_on_recompile_limit_hit"):  # an error, and no row of something else
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    compiled = torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
    compiled(*arguments)
    return lambda: compiled(*arguments)


def jax_step(workload: Workload) -> Step:
    """JAX, compiled; the gradient by the formula from dy and y, as the others are given it."""
    jax = import_module("jax")
    if workload.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    x = jax.random.normal(jax.random.key(1), workload.shape, workload.dtype)

    def forward(x: Any) -> Any:
        return jax.nn.log_softmax(x, axis=workload.axis)

    if workload.op == FORWARD:
        compiled = jax.jit(forward)
        return lambda: compiled(x)
    gradient = jax.jit(lambda dy, y: dy - jax.numpy.exp(y) * dy.sum(axis=workload.axis, keepdims=True))
    y = forward(x)
    return lambda: gradient(x, y)


def cupyx_step(workload: Workload) -> Step:
    """What CuPy has of SciPy; there is no gradient."""
    if workload.op == BACKWARD:
        raise UnfitError("cupyx has no gradient")
    function = import_module("cupyx.scipy.special").log_softmax
    x = cupy_arrays(workload)[0]
    return lambda: function(x, axis=workload.axis)


def triton_step(workload: Workload) -> Step:
    """A kernel in Triton as its tutorial writes one: a program a row, the row in registers."""
    if workload.axis != len(workload.shape) - 1 or workload.op == BACKWARD:
        raise UnfitError("the kernel in Triton is for the last axis, forward")
    if workload.n_classes > 65_536:
        raise UnfitError("the kernel in Triton holds a row in registers")
    kernel = import_module("gpu_triton").log_softmax
    torch = import_module("torch")
    x = torch_tensors(workload)[0]
    out = torch.empty_like(x)
    n_rows, n = math.prod(workload.shape[:-1]), workload.n_classes
    width = 1 << (n - 1).bit_length()
    return lambda: kernel[(n_rows,)](x, out, n, width=width, num_warps=min(16, max(1, width // 512)))


CONTESTANTS: dict[str, Callable[[Workload], Step]] = {
    "copy": copy_step,
    "lsm": lsm_step,
    "torch": torch_step,
    "torch.compile": compiled_step,
    "jax": jax_step,
    "cupyx": cupyx_step,
    "triton": triton_step,
}


def wait(last: Any) -> None:
    """Wait for all that was enqueued, of which `last` came last: JAX may not have handed it to the device yet."""
    if hasattr(last, "block_until_ready"):
        last.block_until_ready()
    import_module("cupy").cuda.Device().synchronize()
