"""Every block of docs/scale.md that is marked ``python`` does what it says, in a process of its own.

Needs the extra `zoo`, jax, and pyspark with Java: `python -m pytest tests/recipes.py`; .ci/full runs it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import zarr
from pyarrow import parquet

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
N_TOKENS, N_CLASSES = 40, 32_768  # two slices, so that shards on two devices have the bits of the whole

SCORES = "lsm.take_log_softmax(logits, tokens)"
OF_TABLE = "parquet.read_table('scores.parquet').sort_by('token')['score'].to_numpy()"
# By the library that a block imports: what it has made, and what that should be.
MADE = {
    "dask.array": ("scores.compute()", SCORES),
    "ray": (OF_TABLE, SCORES),
    "pyspark": (OF_TABLE, SCORES),
    "cubed": ("zarr.open('log_probabilities.zarr')[:]", "lsm.log_softmax(logits)"),
    "jax": ("np.asarray(y) if len(y.sharding.device_set) == 2 else None", "lsm.log_softmax(logits)"),
}
CHECK = """
import lsm, numpy as np, zarr
from pyarrow import parquet
logits, tokens = zarr.open('logits.zarr')[:], zarr.open('tokens.zarr')[:]
made, expected = {}, {}
assert made.dtype == expected.dtype and np.array_equal(made, expected), (made, expected)
print('the same bits')
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with logits.zarr, tokens.zarr, and both as logits.parquet; the tokens are sorted."""
    rng = np.random.default_rng(0)
    logits = (4 * rng.standard_normal((N_TOKENS, N_CLASSES))).astype(np.float32)
    tokens = np.sort(rng.permutation(N_CLASSES)[:N_TOKENS])
    for name, array, chunks in (("logits", logits, (16, 16_384)), ("tokens", tokens, (16,))):
        zarr.create_array(tmp_path / f"{name}.zarr", shape=array.shape, chunks=chunks, dtype=array.dtype)[...] = array
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(logits.ravel()), N_CLASSES)
    parquet.write_table(pyarrow.table({"logits": lists, "token": tokens}), tmp_path / "logits.parquet")
    return tmp_path


def test_every_block_is_run():
    assert len(BLOCKS) == len(MADE)


@pytest.mark.parametrize("library", MADE)
def test_a_recipe_has_the_bits_of_one_machine(library, folder):
    (block,) = [block for block in BLOCKS if re.search(rf"^(import|from) .*\b{re.escape(library)}\b", block, re.M)]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [sys.executable, "-c", block + CHECK.format(*MADE[library])]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "the same bits" in done.stdout, done.stdout + done.stderr
