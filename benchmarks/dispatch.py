"""Print what lsm takes in front of the kernel, in nanoseconds, with ten plugins installed and with none.

    python benchmarks/dispatch.py [--repeats 300]

The plugins are written to a temporary folder, as pip would leave them, and all are loaded. A call is measured as a user
makes it, under each kind of policy; what the kernel itself takes, called directly with checked arguments, is measured
beside it and taken off. Each number is the least of many turns. Tensors of PyTorch and arrays of JAX are measured if
those are installed; there the libraries' own way from and to NumPy is counted as front too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path
from typing import Any

import numpy as np

N_PLUGINS = 10
TURN = 100  # calls

PLUGIN = """
class Mine:
    name, api_version, priority = "plugin{i}", 1, {i}
    devices, dtypes, array_types = ("cpu", "npu"), ("float32", "float64"), ("numpy.ndarray", "torch.Tensor")
    def available(self):
        return None
    def log_softmax(self, x, axis, out):
        raise AssertionError("nobody asked for this")
    def log_softmax_backward(self, grad_output, output, axis, out):
        raise AssertionError("nobody asked for this")
backend = Mine()
"""


def install(folder: Path) -> None:
    """Leave ten plugins in a folder."""
    for i in range(N_PLUGINS):
        (folder / f"plugin{i}.py").write_text(PLUGIN.format(i=i))
        info = folder / f"lsm_plugin{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lsm-plugin{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lsm.backends]\nplugin{i} = plugin{i}:backend\n")


def least(code: str, names: dict[str, Any], n_repeats: int) -> float:
    """The least time of a statement in ns."""
    timer = timeit.Timer(code, globals=names)
    timer.timeit(2)  # the first call makes the plan
    return min(timer.repeat(n_repeats, TURN)) / TURN * 1e9


def foreign(n_repeats: int) -> dict[str, float]:
    """What a call takes on the arrays of other libraries that are installed."""
    import lsm

    found: dict[str, float] = {}
    x = np.zeros((1, 10), np.float32)
    names: dict[str, Any] = {"log_softmax": lsm.log_softmax}
    try:
        import torch
    except ImportError:
        pass
    else:
        names |= {"t": torch.from_numpy(x), "out": torch.empty(1, 10), "torch": torch}
        found["torch.Tensor: lsm"] = least("log_softmax(t)", names, n_repeats)
        found["torch.Tensor: lsm, out="] = least("log_softmax(t, out=out)", names, n_repeats)
        found["torch.Tensor: to NumPy and back alone"] = least("torch.from_numpy(t.numpy())", names, n_repeats)
        found["torch.Tensor: torch.log_softmax"] = least("torch.log_softmax(t, -1)", names, n_repeats)
    try:
        import jax
    except ImportError:
        return found
    names |= {"j": jax.numpy.asarray(x), "jax": jax, "x": x}
    found["jax.Array: lsm"] = least("log_softmax(j)", names, n_repeats)
    found["jax.Array: jax.device_put alone"] = least("jax.device_put(x, j.sharding)", names, n_repeats)
    found["jax.Array: jax.nn.log_softmax"] = least("jax.nn.log_softmax(j)", names, n_repeats)
    return found


def measure(n_repeats: int) -> dict[str, float]:
    """Every number, in a process that has the plugins on its path or has not."""
    import lsm
    from lsm.backends.cython_ import kernels

    x = np.zeros((1, 10), np.float32)
    names = {"x": x, "y": x, "lsm": lsm, "log_softmax": lsm.log_softmax, "backward": lsm.log_softmax_backward}
    names["forward_kernel"], names["backward_kernel"] = kernels()["quick"]
    forward = least("forward_kernel(x, -1, None)", names, n_repeats)
    gradient = least("backward_kernel(x, y, -1, None)", names, n_repeats)
    found = {"backends known": float(len(lsm.list_backends()))}
    found["forward, automatic"] = least("log_softmax(x)", names, n_repeats) - forward
    found["backward, automatic"] = least("backward(x, y)", names, n_repeats) - gradient
    lsm.set_default_backend("cython")
    found["forward, set_default_backend"] = least("log_softmax(x)", names, n_repeats) - forward
    lsm.set_default_backend(None)
    with lsm.use_backend("cython"):
        found["forward, use_backend"] = least("log_softmax(x)", names, n_repeats) - forward
    found["forward, backend="] = least("log_softmax(x, backend='cython')", names, n_repeats) - forward
    found["the kernel itself, forward"] = forward
    found["to enter and leave use_backend"] = least("with lsm.use_backend('numpy'): pass", names, n_repeats)
    return found | foreign(n_repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="turns of each (default 300)")
    parser.add_argument("--as-json", action="store_true", help="measure with the plugins that there are")
    options = parser.parse_args()
    if options.as_json:
        print(json.dumps(measure(options.repeats)))
        return
    columns = []
    with tempfile.TemporaryDirectory() as folder:
        for path in ([], [folder]):
            if path:
                install(Path(folder))
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path[1:])])}
            command = [sys.executable, __file__, "--as-json", "--repeats", str(options.repeats)]
            columns.append(json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout))
    print(f"| ns, float32 (1, 10) | no plugin | {N_PLUGINS} plugins |\n|---|---|---|")
    for name, without in columns[0].items():
        print(f"| {name} | {without:.0f} | {columns[1][name]:.0f} |")


if __name__ == "__main__":
    main()
