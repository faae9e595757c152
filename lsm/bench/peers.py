"""The libraries that lsm is compared with, each called as its users would call it for speed."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

import lsm
from lsm._check import np_dtype
from lsm._texts import describe_error, printable
from lsm.bench import idioms
from lsm.bench.data import GIVEN, Data, from_torch
from lsm.bench.implementation import FUNCTIONS, NEW, OUT, PARTS, Implementation, of_backend, on_device
from lsm.bench.options import OptionError
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

Made = Iterator[Implementation]


_PICKED = "np.take_along_axis(x, at, axis).squeeze(axis)"
_SCIPY = {
    FORWARD: "special.log_softmax(x, axis)",
    SOFTMAX: "special.softmax(x, axis)",
    LOGSUMEXP: "special.logsumexp(x, axis)",  # up to here CuPy has them as well
    TAKE: f"{_PICKED} - special.logsumexp(x, axis)",
    LOSS: f"special.logsumexp(x, axis) - {_PICKED}",
    ENTROPY: "special.entr(special.softmax(x, axis)).sum(axis)",
    KL: "special.rel_entr(special.softmax(x, axis), special.softmax(q, axis)).sum(axis)",
}


def _idiom(case: Case, data: Data, n_threads: int) -> Made:
    """The NumPy idiom of each operation."""
    names = {**vars(idioms), **_given(case, data.host)}
    given = GIVEN.get(case.op, "x").replace("x", _wide(case), 1)
    code = f"{FUNCTIONS.get(case.op, case.op)}({given}, axis){PARTS.get(case.op, '')}"
    if case.op == BOTH:
        code = f"log_softmax_backward(dy, log_softmax({given}, axis), axis)"
    yield Implementation("numpy idiom", "numpy", NEW, code, names)


def _scipy(case: Case, data: Data, n_threads: int) -> Made:
    """`scipy.special.log_softmax` and the like."""
    if case.op not in _SCIPY:
        raise LookupError("has no gradient, and no top-k")
    names = {"special": import_module("scipy.special"), "np": np, **_given(case, data.host)}
    yield Implementation("scipy", "scipy", NEW, _SCIPY[case.op].replace("(x", f"({_wide(case)}"), names)


def _cupyx(case: Case, data: Data, n_threads: int) -> Made:
    """`cupyx.scipy.special.log_softmax` and the like."""
    if case.op not in (FORWARD, SOFTMAX, LOGSUMEXP) or case.dtype == "bfloat16":
        raise LookupError("has no bfloat16" if case.dtype == "bfloat16" else "has no gradient, and no losses")
    names = {"special": import_module("cupyx.scipy.special"), **_given(case, data.cupy)}
    code = _SCIPY[case.op].replace("(x", f"({_wide(case)}")
    yield Implementation("cupyx", "cupy", NEW, code, names, **on_device("cupy"))


def _given(case: Case, arrays: dict[str, Any]) -> dict[str, Any]:
    """What the expressions name; `at` are the labels, with length 1 along the axis."""
    given = {"axis": case.axis, "dtype": np_dtype(case.result_dtype), "k": case.k, **arrays}
    return given | ({"at": np.expand_dims(arrays["labels"], case.axis)} if "labels" in arrays else {})


def _wide(case: Case) -> str:
    """The expression for x where the result has another dtype."""
    return "x.astype(dtype)" if case.out_dtype else "x"


def _torch(case: Case, data: Data, n_threads: int, is_compiled: bool = False) -> Made:
    """With a preallocated result by the functions below torch's own, and as users write it; or compiled."""
    import torch

    # torch copies an array in Fortran order, and `_log_softmax` of torch 2.13 fills such an `out` as if it were in
    # C order: wrong. Given the transposed array, which is in C order, it does neither.
    is_transposed = case.order == "F"
    arrays = {key: tensor.T if is_transposed else tensor for key, tensor in data.torch.items()}
    axis = len(case.shape) - 1 - case.axis % len(case.shape) if is_transposed else case.axis
    names: dict[str, Any] = {"torch": torch, "axis": axis, "dtype": getattr(torch, case.result_dtype), **arrays}
    about: dict[str, Any] = {"library": "torch"} | (on_device("torch") if data.device != "cpu" else {})
    about["to_numpy"] = lambda tensor: from_torch(tensor.T if is_transposed else tensor)
    names |= {"F": torch.nn.functional, "k": case.k, "second": min(1, len(case.shape) - 1)}
    if case.op in (BOTH, LOSS_GRAD):
        names["leaf"] = names["x"].detach().requires_grad_()
    if "labels" in names:
        names["at"] = names["labels"].unsqueeze(axis)
    if is_compiled and case.op not in (FORWARD, BACKWARD, BOTH):
        raise LookupError("compiled for log-softmax only")
    if is_compiled:

        def function(*given: Any) -> Any:
            if case.op == BACKWARD:
                return torch._log_softmax_backward_data(*given, axis, names["dtype"])
            return torch.log_softmax(*given, axis, dtype=names["dtype"])

        # It keeps a few kernels of one function, and after that runs it uncompiled: so forget those of other rows.
        torch._dynamo.reset()
        names["compiled"] = torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
        both = "torch.autograd.grad(compiled(leaf), leaf, dy)[0]"  # autograd compiles the gradient as well
        code = {FORWARD: "compiled(x)", BACKWARD: "compiled(dy, y)", BOTH: both}[case.op]
        yield Implementation(name="torch.compile", way=NEW, code=code, names=names, **about)
        return
    dtype, wide = (", dtype=dtype", "x.to(dtype)") if case.out_dtype else ("", "x")
    new, logs = f"torch.log_softmax(x, axis{dtype})", "torch.log_softmax({}, axis)"
    out = f"torch.log_softmax(x, axis{dtype}, out=out)" if dtype else "torch._log_softmax(x, axis, False, out=out)"
    backward = "torch._log_softmax_backward_data(dy, {0}, axis, {0}.dtype{1})"
    both = backward.format("y_out", ", out=out").replace("dy, y_out", f"dy, {out.replace('=out', '=y_out')}")
    codes = {
        FORWARD: (out, new),
        BACKWARD: (backward.format("y", ", out=out"), backward.format("y", "")),
        BOTH: (both, f"torch.autograd.grad({new.replace('(x', '(leaf')}, leaf, dy)[0]"),
        SOFTMAX: (f"torch.softmax(x, axis{dtype}, out=out)", f"torch.softmax(x, axis{dtype})"),
        SOFTMAX_BACKWARD: (
            "torch._softmax_backward_data(dy, p, axis, p.dtype, grad_input=out)",
            "torch._softmax_backward_data(dy, p, axis, p.dtype)",
        ),
        LOGSUMEXP: (f"torch.logsumexp({wide}, axis, out=total)", f"torch.logsumexp({wide}, axis)"),
        TAKE: (None, "x.gather(axis, at).squeeze(axis) - torch.logsumexp(x, axis)"),
        TOP_K: (None, "torch.topk(x, k, axis).values - torch.logsumexp(x, axis, keepdim=True)"),
        LOSS: (None, "F.cross_entropy(x.movedim(axis, second), labels, reduction='none')"),
        LOSS_GRAD: (None, "torch.autograd.grad(F.cross_entropy(leaf.movedim(axis, second), labels), leaf)[0]"),
        ENTROPY: (None, "torch.special.entr(torch.softmax(x, axis)).sum(axis)"),
        KL: (None, f"F.kl_div({logs.format('q')}, {logs.format('x')}, reduction='none', log_target=True).sum(axis)"),
    }[case.op]
    for way, call in zip((OUT, NEW), codes, strict=True):
        if call:
            yield Implementation(name="torch", way=way, code=call, names=names, **about)


def _onnxruntime(case: Case, data: Data, n_threads: int) -> Made:
    """A model of one LogSoftmax, with I/O binding and by `run`."""
    name = "onnxruntime"
    if case.op != FORWARD:
        raise LookupError("has no gradient, and is measured for log-softmax only")
    if case.dtype == "bfloat16" or case.order == "F":
        raise LookupError("takes C order only, and no bfloat16 on a CPU")
    import onnx
    import onnxruntime

    start = time.perf_counter()
    helper, x, out = onnx.helper, data.x, data.out
    in_type, out_type = (helper.np_dtype_to_tensor_dtype(a.dtype) for a in (x, out))
    nodes = [helper.make_node("LogSoftmax", ["x"], ["y"], axis=case.axis)]
    if in_type != out_type:
        nodes = [helper.make_node("Cast", ["x"], ["wide"], to=out_type), nodes[0]]
        nodes[1].input[0] = "wide"
    infos = [helper.make_tensor_value_info(*of) for of in (("x", in_type, x.shape), ("y", out_type, out.shape))]
    graph = helper.make_graph(nodes, "log_softmax", infos[:1], infos[1:])
    # Versions that a runtime of 2023 reads as well.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
    setup_ms = (time.perf_counter() - start) * 1e3
    names = {"session": session, "binding": binding, "x": x, "out": out}
    for way, code in ((OUT, "session.run_with_iobinding(binding)"), (NEW, "session.run(None, {'x': x})[0]")):
        yield Implementation(name, name, way, code, names, setup_ms=setup_ms)


def _jax(case: Case, data: Data, n_threads: int) -> Made:
    """`jax.nn.log_softmax`, and with its gradient by `jax.vjp`, compiled for the case."""
    if case.op in (BACKWARD, SOFTMAX_BACKWARD):
        raise LookupError("has no gradient apart from the function: see forward+backward")
    if case.op in (TOP_K, ENTROPY, KL):
        raise LookupError("is measured for log-softmax, softmax, logsumexp and losses")
    import jax

    axis, dtype = case.axis, data.out.dtype
    logsumexp = jax.scipy.special.logsumexp
    functions = {SOFTMAX: jax.nn.softmax, LOGSUMEXP: logsumexp}

    def loss(x: Any, labels: Any) -> Any:  # as optax has it
        at = jax.numpy.expand_dims(labels, axis)
        return logsumexp(x, axis) - jax.numpy.take_along_axis(x, at, axis).squeeze(axis)

    def forward(x: Any) -> Any:
        return functions.get(case.op, jax.nn.log_softmax)(x.astype(dtype), axis)

    def both(x: Any, dy: Any) -> Any:
        y, gradient = jax.vjp(forward, x)
        return y, gradient(dy)[0]

    start = time.perf_counter()
    # float64 is off by default; an executable made here has it everywhere.
    with jax.enable_x64(True), jax.default_device(jax.devices(data.device)[0]):
        special = {BOTH: both, LOSS: loss, TAKE: lambda x, labels: -loss(x, labels)}
        special[LOSS_GRAD] = jax.value_and_grad(lambda x, labels: loss(x, labels).mean())
        names = GIVEN.get(case.op, "x, dy")
        given = {name: jax.device_put(data.host[name]) for name in names.split(", ")}
        compiled = jax.jit(special.get(case.op, forward)).lower(*given.values()).compile()
    setup_ms = (time.perf_counter() - start) * 1e3
    code = f"compiled({names}){'[1]' * (case.op in (BOTH, LOSS_GRAD))}.block_until_ready()"
    yield Implementation("jax", "jax", NEW, code, {"compiled": compiled, **given}, setup_ms=setup_ms)


class Maker(NamedTuple):
    """How to make the ways to call one implementation in a case; a LookupError says why it does not serve the case."""

    make: Callable[[Case, Data, int], Iterable[Implementation]]
    modules: tuple[str, ...] = ()  # that must be importable
    devices: tuple[str, ...] = ("cpu",)
    reason: str = ""  # why it cannot be used, if so


Makers = dict[str, Maker]
PEERS: Makers = {
    "numpy idiom": Maker(_idiom),
    "scipy": Maker(_scipy, ("scipy.special",)),
    "torch": Maker(_torch, ("torch",), ("cpu", "cuda")),
    "torch.compile": Maker(partial(_torch, is_compiled=True), ("torch",), ("cuda",)),
    "onnxruntime": Maker(_onnxruntime, ("onnx", "onnxruntime")),
    "jax": Maker(_jax, ("jax",), ("cpu", "cuda")),
    "cupyx": Maker(_cupyx, ("cupy", "cupyx.scipy.special"), ("cuda",)),
}


def known() -> Makers:
    """Every backend of lsm, plugins too, which are loaded, and every peer, by name."""
    infos = lsm.list_backends()
    names = [info.name for info in infos]
    found: Makers = {}
    for info in infos:
        is_unique = info.is_built_in or names.count(info.name) == 1
        label = info.name if is_unique else f"{info.distribution}/{info.name}"
        reason = "" if info.state == "loaded" else info.reason
        found[f"lsm {printable(label)}"] = Maker(partial(of_backend, label, info), (), tuple(info.devices), reason)
    return found | PEERS


def usable(wanted: Iterable[str], device: str) -> tuple[Makers, dict[str, str]]:
    """Those that can be measured, their modules imported, and why others cannot; a wrong name is an OptionError."""
    makers, wanted = known(), tuple(wanted)
    for text in wanted:
        if not any(text in name for name in makers):
            accepted = f"{', '.join(makers)}, or a part of a name"
            raise OptionError("implementations", f"{text!r} matches none; accepted: {accepted}")
    if device == "cuda":  # JAX would take 75 % of the device's memory at once
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found, absent = {}, {}
    for name, maker in makers.items():
        if not is_wanted(name, wanted):
            absent[name] = "not asked for"
        elif maker.reason or device not in maker.devices:
            absent[name] = maker.reason or f"measured on {' and '.join(maker.devices)} only, not on {device}"
        else:
            try:
                for module in maker.modules:
                    import_module(module)
                found[name] = maker
            except Exception as error:  # an installation can be broken in many ways
                absent[name] = _reason(error)
    return found, absent


def is_wanted(name: str, wanted: Collection[str]) -> bool:
    """Whether an implementation was asked for; all are where none was."""
    return not wanted or any(text in name for text in wanted)


def made(makers: Makers, case: Case, data: Data, n_threads: int) -> tuple[list[Implementation], dict[str, str]]:
    """The implementations of a case, and why others do not serve it."""
    found, absent = [], {}
    for name, maker in makers.items():
        try:
            found += list(maker.make(case, data, n_threads))
        except Exception as error:  # whatever a library does not support in its version; the row goes on without it
            absent[name] = _reason(error)
    return found, absent


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if type(error) is LookupError:  # raised here
        return str(error.args[0])
    return describe_error(error)
