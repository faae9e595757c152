"""ONNX Runtime: a model of one LogSoftmax, its input and output bound to the arrays."""

import time
from collections.abc import Iterator

from lsm.bench.contestant import NEW, OUT, Absent, Contestant
from lsm.bench.data import Data
from lsm.bench.workloads import FORWARD, Case

NAME = "onnxruntime"


def contestants(case: Case, data: Data, n_threads: int) -> Iterator[Contestant | Absent]:
    """With I/O binding, and by `run`."""
    if case.op != FORWARD:
        yield Absent(NAME, "has no gradient")
        return
    if case.dtype == "bfloat16":
        yield Absent(NAME, "has no bfloat16 log-softmax on a CPU")
        return
    import onnx
    import onnxruntime

    start = time.perf_counter()
    x, out, axis = data.x, data.out, case.axis
    is_turned = case.order == "F"
    if is_turned:  # it takes C order only: the same memory, turned over
        x, out, axis = x.T, out.T, x.ndim - 1 - axis % x.ndim
    helper = onnx.helper
    in_type, out_type = (helper.np_dtype_to_tensor_dtype(a.dtype) for a in (x, out))
    nodes = [helper.make_node("LogSoftmax", ["x"], ["y"], axis=axis)]
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
    names = {"session": session, "binding": binding, "x": x, "arrays": (data.x, data.out)}
    code = "session.run_with_iobinding(binding)"
    yield Contestant(NAME, NAME, OUT, code, names, setup_ms=setup_ms)
    code = "session.run(None, {'x': x})[0]" + (".T" if is_turned else "")
    yield Contestant(NAME, NAME, NEW, code, names, setup_ms=setup_ms)
