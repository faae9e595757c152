"""What is compared: the backends of lsm, and other libraries, each called as its users would call it for speed."""

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
from lsm.bench.data import Data, to_numpy
from lsm.bench.implementation import FUNCTIONS, NEW, OUT, PARTS, Implementation, of_backend
from lsm.bench.options import OptionError
from lsm.bench.workloads import BACKWARD, BOTH, FORWARD, SCALE_OPS, SIGNATURES, Case

Made = Iterator[Implementation]

# Expressions by the names of `Data`, and `axis`; {x} is x in the dtype of the result.
_PICKED = "np.take_along_axis(x, at, axis).squeeze(axis)"
_LOGS = "(d := {} - {}.max(axis, keepdims=True)) - np.log(np.exp(d).sum(axis, keepdims=True))".format
_PROBABILITIES = "(e := np.exp(x - x.max(axis, keepdims=True))) / e.sum(axis, keepdims=True)"
_TOTAL = "(m := x.max(axis, keepdims=True)).squeeze(axis) + np.log(np.exp(x - m).sum(axis))"
_BEST = "np.take_along_axis(x, np.argpartition(x, -k, axis).take(range(-k, 0), axis), axis)"
IDIOM = {  # the lines that most people paste, without care for what they lose
    FORWARD: _LOGS("{x}", "x"),
    BACKWARD: "dy - np.exp(y) * dy.sum(axis, keepdims=True)",
    BOTH: f"dy - np.exp({_LOGS('x', 'x')}) * dy.sum(axis, keepdims=True)",
    "softmax": _PROBABILITIES,
    "softmax_backward": "p * (dy - (p * dy).sum(axis, keepdims=True))",
    "logsumexp": _TOTAL,
    "take_log_softmax": f"{_PICKED} - ({_TOTAL})",
    "top_k_log_softmax": f"-np.sort(-{_BEST}, axis) - np.expand_dims({_TOTAL}, axis)",
    "cross_entropy": f"{_TOTAL} - {_PICKED}",
    "cross_entropy_value_and_grad": f"({_PROBABILITIES} - (at == classes)) / labels.size",
    "entropy": f"-(np.exp(y := {_LOGS('x', 'x')}) * y).sum(axis)",
    "kl_divergence": f"(np.exp(y := {_LOGS('x', 'x')}) * (y - ({_LOGS('q', 'q')}))).sum(axis)",
}
SCIPY = {
    FORWARD: "special.log_softmax({x}, axis)",
    "softmax": "special.softmax(x, axis)",
    "logsumexp": "special.logsumexp(x, axis)",  # up to here CuPy has them as well
    "take_log_softmax": f"{_PICKED} - special.logsumexp(x, axis)",
    "cross_entropy": f"special.logsumexp(x, axis) - {_PICKED}",
    "entropy": "special.entr(special.softmax(x, axis)).sum(axis)",
    "kl_divergence": "special.rel_entr(special.softmax(x, axis), special.softmax(q, axis)).sum(axis)",
}
_LOSS = f"jax.nn.logsumexp(x, axis) - {_PICKED}"  # as optax has it
JAX = {  # where `np` is jax.numpy
    FORWARD: "jax.nn.log_softmax({x}, axis)",
    BOTH: "jax.nn.log_softmax(x, axis), jax.vjp(lambda x: jax.nn.log_softmax(x, axis), x)[1](dy)[0]",
    "softmax": "jax.nn.softmax(x, axis)",
    "logsumexp": "jax.nn.logsumexp(x, axis)",
    "take_log_softmax": f"-({_LOSS})",
    "cross_entropy": _LOSS,
    "cross_entropy_value_and_grad": f"jax.value_and_grad(lambda x: ({_LOSS}).mean())(x)",
}
_CROSS_ENTROPY = "F.cross_entropy({}.movedim(axis, min(1, x.ndim - 1)), labels{})"
TORCH = {  # as users write it
    FORWARD: "torch.log_softmax(x, axis)",
    BACKWARD: "torch._log_softmax_backward_data(dy, y, axis, y.dtype)",
    BOTH: "torch.autograd.grad(torch.log_softmax(leaf, axis), leaf, dy)[0]",
    "softmax": "torch.softmax(x, axis)",
    "softmax_backward": "torch._softmax_backward_data(dy, p, axis, p.dtype)",
    "logsumexp": "torch.logsumexp(x, axis)",
    "take_log_softmax": "x.gather(axis, at).squeeze(axis) - torch.logsumexp(x, axis)",
    "top_k_log_softmax": "torch.topk(x, k, axis).values - torch.logsumexp(x, axis, keepdim=True)",
    "cross_entropy": _CROSS_ENTROPY.format("x", ", reduction='none'"),
    "cross_entropy_value_and_grad": f"torch.autograd.grad({_CROSS_ENTROPY.format('leaf', '')}, leaf)[0]",
    "entropy": "torch.special.entr(torch.softmax(x, axis)).sum(axis)",
    "kl_divergence": "F.kl_div("
    "torch.log_softmax(q, axis), torch.log_softmax(x, axis), reduction='none', log_target=True).sum(axis)",
}
TORCH_OUT = {  # with a preallocated result, by the functions below torch's own
    FORWARD: "torch._log_softmax(x, axis, False, out=out)",
    BACKWARD: "torch._log_softmax_backward_data(dy, y, axis, y.dtype, out=out)",
    BOTH: "torch._log_softmax_backward_data("
    "dy, torch._log_softmax(x, axis, False, out=y_out), axis, dy.dtype, out=out)",
    "softmax": "torch.softmax(x, axis, out=out)",
    "softmax_backward": "torch._softmax_backward_data(dy, p, axis, p.dtype, grad_input=out)",
    "logsumexp": "torch.logsumexp(x, axis, out=total)",
}
TORCH_TO_DTYPE = "torch.log_softmax(x, axis, dtype=dtype)"
ON_DASK = {  # of arrays in chunks
    "dask copy": {FORWARD: "x.map_blocks(np.copy)"},
    "lsm on dask": {op: f"lsm.{FUNCTIONS.get(op, op)}({SIGNATURES[op].given}, axis)" for op in SCALE_OPS},
    "dask idiom": {op: IDIOM[op] for op in (FORWARD, "logsumexp")},  # Dask has no take_along_axis
    "scipy on dask": {op: SCIPY[op] for op in (FORWARD, "logsumexp")},
}
_SPECIAL = {"numpy": "numpy", "scipy": "scipy.special", "cupy": "cupyx.scipy.special"}


def _code(table: dict[str, str], case: Case) -> str:
    """The expression that a table has for the operation; a LookupError if it has none."""
    if case.op not in table:
        raise LookupError("has no such function, or it is not measured")
    return table[case.op].format(x="x.astype(dtype)" if case.out_dtype else "x")


def _expression(codes: dict[str, str], name: str, library: str, case: Case, data: Data, n_threads: int) -> Made:
    """What is one expression, of arrays of NumPy or CuPy."""
    code = _code(codes, case)
    names = {"np": np, "special": import_module(_SPECIAL[library]), "axis": case.axis, "k": case.k}
    names |= {"dtype": np_dtype(case.result_dtype), **(data.cupy if library == "cupy" else data.host)}
    if "classes" in code:
        names["classes"] = np.expand_dims(np.arange(case.n_classes), tuple(range(1, len(case.shape[case.axis :]))))
    yield Implementation(name, library, NEW, code, names, wait=data.waits(library))


def _torch(case: Case, data: Data, n_threads: int) -> Made:
    """PyTorch, as its users call it, and by the functions below its own that write into a given result."""
    import torch

    torch.set_num_threads(n_threads)
    # It copies an array in Fortran order, and `_log_softmax` of torch 2.13 fills such an `out` as if it were in C
    # order: wrong. Given the transposed array, which is in C order, it does neither.
    is_transposed, axis = case.order == "F", case.axis % len(case.shape)
    axis = len(case.shape) - 1 - axis if is_transposed else axis
    names: dict[str, Any] = {key: tensor.T if is_transposed else tensor for key, tensor in data.torch.items()}
    names |= {"torch": torch, "F": torch.nn.functional, "axis": axis, "k": case.k}
    names["dtype"] = getattr(torch, case.result_dtype)
    if case.op in (BOTH, "cross_entropy_value_and_grad"):
        names["leaf"] = names["x"].detach().requires_grad_()
    codes = {OUT: TORCH_OUT.get(case.op), NEW: TORCH[case.op]}
    if case.out_dtype:
        codes = {OUT: TORCH_TO_DTYPE.replace(")", ", out=out)"), NEW: TORCH_TO_DTYPE}
    back = (lambda y: to_numpy(y.T)) if is_transposed else to_numpy
    for way, code in codes.items():
        if code:
            yield Implementation("torch", "torch", way, code, names, to_numpy=back, wait=data.waits("torch"))


def _onnxruntime(case: Case, data: Data, n_threads: int) -> Made:
    """A model of one LogSoftmax, with I/O binding and by `run`."""
    if case.op != FORWARD or case.out_dtype or case.dtype == "bfloat16" or case.order == "F":
        raise LookupError("has LogSoftmax only, on a CPU without bfloat16; it takes C order, and gives the same dtype")
    import onnx
    import onnxruntime

    start = time.perf_counter()
    x, out, names = data.x, data.out, {"float16": "float16", "float32": "float", "float64": "double"}
    array = f"{names[case.dtype]}[{','.join(map(str, case.shape))}]"
    # Versions that a runtime of 2023 reads as well.
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        log_softmax ({array} x) => ({array} y) {{ y = LogSoftmax <axis = {case.axis}> (x) }}""")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
    setup_ms = (time.perf_counter() - start) * 1e3
    meanings = {"session": session, "binding": binding, "x": x, "out": out}
    for way, code in ((OUT, "session.run_with_iobinding(binding)"), (NEW, "session.run(None, {'x': x})[0]")):
        yield Implementation("onnxruntime", "onnxruntime", way, code, meanings, setup_ms=setup_ms)


def _jax(case: Case, data: Data, n_threads: int) -> Made:
    """An expression, compiled for the case."""
    import jax
    from jax.extend.backend import clear_backends

    code = _code(JAX, case)
    if os.environ.get("PJRT_NPROC") != str(n_threads):  # which XLA reads when it starts
        os.environ["PJRT_NPROC"] = str(n_threads)
        clear_backends()
    names = SIGNATURES[case.op].given.replace("labels", "at")
    start = time.perf_counter()
    # float64 is off by default; an executable made here has it everywhere.
    with jax.enable_x64(True), jax.default_device(jax.devices(data.device)[0]):
        given = {name: jax.device_put(data.host[name]) for name in names.split(", ")}
        about = {"jax": jax, "np": jax.numpy, "axis": case.axis, "dtype": data.out.dtype}
        compiled = jax.jit(eval(f"lambda {names}: ({code})", about)).lower(*given.values()).compile()
    setup_ms = (time.perf_counter() - start) * 1e3
    part = "[1]" if case.op == BOTH else PARTS.get(case.op, "")
    code = f"compiled({names}){part}.block_until_ready()"
    yield Implementation("jax", "jax", NEW, code, {"compiled": compiled, **given}, setup_ms=setup_ms)


def _on_dask(name: str, case: Case, data: Data, n_threads: int) -> Made:
    """The expression of a lazy array, made and stored anew in each call, by as many threads of Dask's."""
    code = _code(ON_DASK[name], case)
    da, special = import_module("dask.array"), import_module("scipy.special") if name == "scipy on dask" else None
    names: dict[str, Any] = {"np": np, "lsm": lsm, "special": special, "store": da.store, "axis": case.axis}
    x = da.from_array(data.x, case.chunks or "auto", name=False)  # not by a name that hashes the array
    names |= {**data.host, "x": x, "n_threads": n_threads}
    if not isinstance(eval(code, dict(names)), da.Array):
        raise LookupError("SciPy was imported without SCIPY_ARRAY_API=1 in the environment, and computes at once")
    code = f"store({code}, {SIGNATURES[case.op].result}, lock=False, scheduler='threads', num_workers=n_threads)"
    about: dict[str, Any] = {}
    if name == "dask copy":  # which is right if this is
        about = {"to_numpy": partial(lsm.log_softmax, axis=case.axis)}
    elif name == "lsm on dask":
        info = next(info for info in lsm.list_backends() if info.name == lsm.explain(data.x).winner)
        about = {"backend": info.name, "bound_ulp": info.max_ulp.get(case.result_dtype)}
    yield Implementation(name, name.split()[0], OUT, code, names, **about)


class Maker(NamedTuple):
    """How to make the ways to call one implementation in a case; a LookupError says why it does not serve the case."""

    make: Callable[[Case, Data, int], Iterable[Implementation]]
    modules: tuple[str, ...] = ()  # that must be importable
    devices: tuple[str, ...] = ("cpu",)
    reason: str = ""  # why it cannot be used, if so


Makers = dict[str, Maker]
_CUPYX = {op: SCIPY[op] for op in (FORWARD, "softmax", "logsumexp")}
PEERS: Makers = {
    "numpy idiom": Maker(partial(_expression, IDIOM, "numpy idiom", "numpy")),
    "scipy": Maker(partial(_expression, SCIPY, "scipy", "scipy"), ("scipy.special",)),
    "torch": Maker(_torch, ("torch",), ("cpu", "cuda")),
    "onnxruntime": Maker(_onnxruntime, ("onnx", "onnxruntime")),
    "jax": Maker(_jax, ("jax",), ("cpu", "cuda")),
    "cupyx": Maker(partial(_expression, _CUPYX, "cupyx", "cupy"), ("cupy", "cupyx.scipy.special"), ("cuda",)),
}


def peers_of(in_chunks: bool) -> Makers:
    """What is measured beside the backends: of arrays in chunks what computes on Dask, else every peer."""
    if not in_chunks:
        return PEERS
    os.environ.setdefault("SCIPY_ARRAY_API", "1")  # read when SciPy is imported: else it computes lazy arrays at once
    modules = {"scipy on dask": ("dask.array", "scipy.special")}
    return {name: Maker(partial(_on_dask, name), modules.get(name, ("dask.array",))) for name in ON_DASK}


def known(peers: Makers = PEERS) -> Makers:
    """Every backend of lsm, plugins too, which are loaded, and every peer, by name."""
    infos, found = lsm.list_backends(), Makers()
    names = [info.name for info in infos]
    for info in infos:
        is_unique = info.is_built_in or names.count(info.name) == 1
        label = info.name if is_unique else f"{info.distribution}/{info.name}"
        reason = "" if info.state == "loaded" else info.reason
        found[f"lsm {printable(label)}"] = Maker(partial(of_backend, label, info), (), tuple(info.devices), reason)
    return found | peers


def usable(wanted: Iterable[str], device: str, peers: Makers = PEERS) -> tuple[Makers, dict[str, str]]:
    """Those that can be measured, their modules imported, and why others cannot; a wrong name is an OptionError."""
    makers, wanted = known(peers), tuple(wanted)
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
