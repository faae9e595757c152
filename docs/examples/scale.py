"""Logits larger than the memory of the workers: a notebook as a script, with cells that begin with ``# %%``.

The logits of a language model on a corpus, shape (tokens, words), are in a Zarr store. Two worker processes of 400 MiB
find the log-probability of each token and the best words, write all log-probabilities, and compute the perplexity.

Usage: ``python docs/examples/scale.py [MIB]``, by default with 768 MiB of logits (and as much disk for the results).
Needs ``python -m pip install 'lsm-softmax[dask,zarr]' distributed``.
"""

# %% Sizes: all logits, a chunk of 16 MiB, and the memory limit of a worker, which takes about 200 MiB when idle
import resource
import sys
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from distributed import Client, SubprocessCluster

import lsm

n_words, chunks, limit_mib = 65_536, (128, 32_768), 400
n_tokens = int(sys.argv[1] if len(sys.argv) > 1 else 768) * 2**20 // (4 * n_words)

# %% Two workers with one thread each. In a notebook, LocalCluster does the same; in a script, it needs a main guard
options = {"worker_kwargs": {"memory_limit": f"{limit_mib} MiB"}, "dashboard_address": None}
cluster = SubprocessCluster(n_workers=2, threads_per_worker=1, **options)
client = Client(cluster)
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


# %% The store; in this model, the logit of the right token is 14 nats above the others
def new_store(name: str) -> zarr.Array:
    """An array in a store; missing numbers are read as NaN, since 0 would be the log of probability 1."""
    about = {"shape": (n_tokens, n_words), "chunks": chunks, "dtype": "float32", "compressors": None}
    return zarr.create_array(Path(folder.name, name), fill_value=np.nan, **about)


rng = da.random.default_rng(0)
tokens = np.random.default_rng(0).integers(0, n_words, n_tokens)
words = da.arange(n_words, chunks=chunks[1])
noise = rng.standard_normal((n_tokens, n_words), chunks=chunks, dtype="float32")
right = da.from_array(tokens, chunks=chunks[0])[:, np.newaxis] == words
da.store(3 * noise + right * np.float32(14), new_store("logits.zarr"), lock=False)

# %% Open it: lazy, in chunks along both axes. lsm.explain shows the backend that would be used, and reads nothing
x = da.from_zarr(Path(folder.name, "logits.zarr"))
print(f"{n_tokens:,} tokens x {n_words:,} words: {x.nbytes / 2**20:,.0f} MiB; a worker may take {limit_mib}\n")
print(lsm.explain(x), "\n")

# %% The log-probability of each token: reads the logits once, and returns one number per token
start = time.perf_counter()
scores = lsm.take_log_softmax(x, tokens).compute()
print(f"{len(scores):,} log-probabilities in {time.perf_counter() - start:.1f} s; the first: {scores[:4].round(3)}")

# %% Some of them again, with NumPy in float64
some = np.linspace(0, n_tokens - 1, 16).astype(int)
wide = x[some].compute().astype(np.float64)
m = wide.max(axis=1)
exact = wide[np.arange(16), tokens[some]] - m - np.log(np.exp(wide - m[:, np.newaxis]).sum(axis=1))
error = np.abs(scores[some] - exact).max()
print(f"against NumPy's float64: off by {error:.1e} at most, where a float32 of that size has steps of 4.8e-07")
assert error < 1e-6

# %% The five best words of each token
values, indices = dask.compute(*lsm.top_k_log_softmax(x, 5))
found = (indices == tokens[:, np.newaxis]).any(axis=1).mean()
print(f"the right word is the best for {(indices[:, 0] == tokens).mean():.0%}, among the best five for {found:.0%}")

# %% All log-probabilities, lazily, to another store. No array is in memory as a whole, here or in a worker
start = time.perf_counter()
y = lsm.log_softmax(x)
da.store(y, new_store("log_probabilities.zarr"), lock=False)
print(f"{y.nbytes / 2**20:,.0f} MiB of log-probabilities written in {time.perf_counter() - start:.1f} s")

# %% They have the bits of whole frames on one machine, and their probabilities add up to 1
y = da.from_zarr(Path(folder.name, "log_probabilities.zarr"))
here = y[some].compute()
assert (here == lsm.log_softmax(x[some].compute())).all()
print(f"same bits as on one machine; probabilities add up to {np.exp(here.astype(np.float64)).sum(axis=1).mean():.6f}")

# %% The perplexity of the corpus, one number from the workers
perplexity = np.exp(lsm.cross_entropy(x, tokens, dtype="float64").compute())
print(f"perplexity {perplexity:.3f}; from the log-probabilities above {np.exp(-scores.mean(dtype=np.float64)):.3f}")
peaks = client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10)  # KiB on Linux
print(f"peak memory of a worker: {max(peaks.values())} MiB")
client.close()
cluster.close()
folder.cleanup()
