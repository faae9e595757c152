"""Print the overhead of lsm before the kernel, in nanoseconds, with ten plugins installed and with none.

    python benchmarks/dispatch.py [--repeats 300]

The plugins are written to a temporary folder, as pip would install them, and all are loaded. A user's call is timed
under each kind of policy; the time of the kernel itself, called directly with checked arguments, is measured too, and
subtracted. Each number is the minimum of many samples, taken in rounds, so that a slow phase of the machine affects all
alike. PyTorch tensors and JAX arrays are measured if these libraries are installed; their conversion to and from NumPy
counts as overhead too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import lsm
from lsm.backends._levels import kernels
from small_calls import least

N_PLUGINS = 10

PLUGIN = """
class Mine:
    name, api_version, priority = "plugin{i}", 1, {i}
    devices, dtypes, array_types = ("cpu", "npu"), ("float32", "float64"), ("numpy.ndarray", "torch.Tensor")
    def available(self):
        return None
    def log_softmax(self, x, axis, out):
        raise AssertionError("not requested")
    def log_softmax_backward(self, grad_output, output, axis, out):
        raise AssertionError("this was not asked for")
backend = Mine()
"""


def install(folder: Path) -> None:
    """Write ten plugins to a folder."""
    for i in range(N_PLUGINS):
        (folder / f"plugin{i}.py").write_text(PLUGIN.format(i=i))
        info = folder / f"lsm_plugin{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lsm-plugin{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lsm.backends]\nplugin{i} = plugin{i}:backend\n")


def measure(n_repeats: int) -> dict[str, float]:
    """Every number, in a process with or without the plugins on its path."""
    x = np.zeros((1, 10), np.float32)
    names = {"x": x, "y": x, "lsm": lsm, "log_softmax": lsm.log_softmax, "backward": lsm.log_softmax_backward}
    fast = kernels()["fast"]
    names |= {"forward_kernel": fast["log_softmax"], "backward_kernel": fast["log_softmax_backward"]}
    front = {
        "forward, automatic": "log_softmax(x)",
        "forward, set_default_backend": "log_softmax(x)",
        "forward, use_backend": "log_softmax(x)",
        "forward, backend=": "log_softmax(x, backend='cython')",
        "backward, automatic": "backward(x, y)",
    }
    policies = {
        "forward, set_default_backend": "lsm.set_default_backend('cython')",
        "forward, use_backend": "lsm.use_backend('cython').__enter__()",
    }
    others = {
        "the kernel itself, forward": "forward_kernel(x, -1, None)",
        "the kernel itself, backward": "backward_kernel(x, y, -1, None)",
        "entering and leaving use_backend": "with lsm.use_backend('numpy'): pass",
    }
    if find_spec("torch"):
        names["torch"] = torch = import_module("torch")
        names |= {"t": torch.from_numpy(x), "out": torch.empty(1, 10)}
        others |= {
            "torch.Tensor: lsm": "log_softmax(t)",
            "torch.Tensor: lsm, out=": "log_softmax(t, out=out)",
            "torch.Tensor: to NumPy and back alone": "torch.from_numpy(t.numpy())",
            "torch.Tensor: torch.log_softmax": "torch.log_softmax(t, -1)",
        }
    if find_spec("jax"):
        names["jax"] = jax = import_module("jax")
        names["j"] = jax.numpy.asarray(x)
        others |= {
            "jax.Array: lsm": "log_softmax(j)",
            "jax.Array: jax.device_put alone": "jax.device_put(x, j.sharding)",
            "jax.Array: jax.nn.log_softmax": "jax.nn.log_softmax(j)",
        }
    known = len(lsm.list_backends())
    codes = {}
    for name, code in (front | others).items():  # the first call selects the backend
        codes[name] = (code, names, f"lsm.set_default_backend(None)\n{policies.get(name, 'pass')}\n{code}")
    found = least(codes, n_repeats)
    for name in front:
        found[name] -= found[f"the kernel itself, {name.split(',')[0]}"]
    return {"backends known": known} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="samples of each (default 300)")
    parser.add_argument("--as-json", action="store_true", help="measure with the installed plugins")
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
