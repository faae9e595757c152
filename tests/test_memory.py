"""A call takes its result and at most 256 KiB for each thread, however large the array and in any layout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("the peak of resident memory is measured on Linux only", allow_module_level=True)

PROMISED_BYTES = 256 * 2**10  # for each thread
N_BYTES = 16 * 10**6  # of an input: 8 frames so long that room for one of them would be seen
# What the arrays are made by, of n elements and 8 frames; the keywords of the call.
CONTIGUOUS = "np.empty((8, n // 8), dtype)"
EVERY_SECOND = "np.empty((8, 2 * n // 8), dtype)[:, ::2]"
BLOCKS = "np.empty((8, n // 8 // 64, 8, 8), dtype)"
CASES = {
    "float32": ("float32", CONTIGUOUS, ""),
    "float64": ("float64", CONTIGUOUS, ""),
    "float16": ("float16", CONTIGUOUS, ""),
    "bfloat16": ("bfloat16", CONTIGUOUS, ""),
    "float16 to float32": ("float16", CONTIGUOUS, "dtype=np.float32"),
    "bfloat16 to float32": ("bfloat16", CONTIGUOUS, "dtype=np.float32"),
    "float32, every second class": ("float32", EVERY_SECOND, ""),
    "float16, every second class": ("float16", EVERY_SECOND, ""),
    "float32, axis 0": ("float32", "np.empty((n // 8, 8), dtype)", "axis=0"),
    "float32, axis=(1, 3)": ("float32", BLOCKS, "axis=(1, 3)"),
    "float32, axis=(2, 3)": ("float32", BLOCKS, "axis=(2, 3)"),
    "float32, every second class, axis=None": ("float32", EVERY_SECOND, "axis=None"),
    "float32, backward": ("float32", CONTIGUOUS, ""),
    "float16, backward": ("float16", CONTIGUOUS, ""),
    "bfloat16, backward": ("bfloat16", CONTIGUOUS, ""),
    "float32, axis=(2, 3), backward": ("float32", BLOCKS, "axis=(2, 3)"),
    "float32, every second class, backward": ("float32", EVERY_SECOND, ""),
}
CODE = """
import json, sys
from pathlib import Path
import ml_dtypes, numpy as np
import lsm
from lsm.bench.run import peak
name, layout, keywords, n_bytes, n_inputs = json.loads(sys.argv[1])
dtype = np.dtype(name)
def arrays(n):
    names = {"np": np, "n": n, "dtype": dtype}
    made = [eval(layout, names) for _ in range(n_inputs)]
    for a in made:
        a[...] = -1  # its pages are not the call's own
    return made
call = lsm.log_softmax if n_inputs == 1 else lsm.log_softmax_backward
keywords = eval(f"dict({keywords})")
call(*arrays(2**17), **keywords)  # loads the libraries and starts the threads
given = arrays(n_bytes // dtype.itemsize)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
result = call(*given, **keywords)
print(peak() - before - result.nbytes, lsm.get_num_threads())
"""


@pytest.mark.parametrize("case", CASES)
def test_a_call_takes_little_more_than_its_result(case):
    about = json.dumps([*CASES[case], N_BYTES, 2 if "backward" in case else 1])
    done = subprocess.run([sys.executable, "-c", CODE, about], capture_output=True, text=True, check=True)
    extra, n_threads = map(int, done.stdout.split())
    # Linux counts pages for each processor apart, so the peak may be wrong by 1 MiB.
    assert extra <= n_threads * PROMISED_BYTES + 2**20
