"""Zarr to Zarr with worker processes under a memory limit: lsm, a copy, SciPy and the NumPy idiom on Dask, in turn.

Usage: ``SCIPY_ARRAY_API=1 python benchmarks/cluster.py [--tokens N] [--classes N] [--limit MIB] [--rounds N]
[--only NAME ...]``; needs ``python -m pip install '.[dask,zarr]' distributed scipy``, and Linux. Each run has new
worker processes; the peak is their largest resident memory, about 200 MiB when idle. For a run that fails, the error is
shown.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from dask.graph_manipulation import clone
from distributed import Client, LocalCluster

import lsm

MIB = 2**20


def idiom(x):
    """The usual lines of NumPy."""
    d = x - x.max(axis=-1, keepdims=True)
    return d - np.log(np.exp(d).sum(axis=-1, keepdims=True))


def scipy(x):
    from scipy import special

    return special.log_softmax(x, axis=-1)


def whole(x):
    return lsm.log_softmax(x.rechunk({-1: -1}))


WAYS = {  # the store to read, and the computation
    "copy, frames": ("frames", lambda x, labels: x.map_blocks(np.copy)),
    "lsm, frames": ("frames", lambda x, labels: lsm.log_softmax(x)),
    "SciPy, frames": ("frames", lambda x, labels: scipy(x)),
    "copy, classes": ("classes", lambda x, labels: x.map_blocks(np.copy)),
    "lsm, classes": ("classes", lambda x, labels: lsm.log_softmax(x)),
    "lsm, classes, clone": ("classes", lambda x, labels: lsm.log_softmax(clone(x), partials=lsm.partials(x))),
    "lsm take, classes": ("classes", lambda x, labels: lsm.take_log_softmax(x, labels)),
    "SciPy, classes": ("classes", lambda x, labels: scipy(x)),
    "idiom, classes": ("classes", lambda x, labels: idiom(x)),
    "rechunk({-1: -1}), then lsm": ("classes", lambda x, labels: whole(x)),
}


def new_store(path, like, chunks):
    shutil.rmtree(path, ignore_errors=True)
    about = {"shape": like.shape, "dtype": like.dtype, "chunks": chunks, "compressors": None}
    return zarr.create_array(path, fill_value=np.nan, **about)


def make_stores(folder, n_tokens, n_classes, chunks):
    rng = np.random.default_rng(0)
    like = np.broadcast_to(np.float32(0), (n_tokens, n_classes))
    stores = {name: new_store(folder / name, like, some) for name, some in chunks.items()}
    for start in range(0, n_tokens, 256):
        x = 4 * rng.standard_normal((min(256, n_tokens - start), n_classes), np.float32)
        for store in stores.values():
            store[start : start + 256] = x


def peak():
    """The peak resident memory of this process in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def run(folder, name, labels, limit):
    """The seconds, tasks, peak memory of the workers, and number of pauses; or the error."""
    store, way = WAYS[name]
    options = {"memory_limit": f"{limit} MiB", "dashboard_address": ":0", "silence_logs": 50}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        client.run(lambda: np.isfinite(lsm.log_softmax(np.zeros(3))).all())  # loads lsm and its kernels
        start = time.perf_counter()
        y = way(da.from_zarr(folder / store), labels)
        if y.ndim == 2:
            y = da.store(y, new_store(folder / "out", y, y.chunksize), lock=False, compute=False)
        n_tasks = len(dict(dask.optimize(y)[0].__dask_graph__()))
        try:
            dask.compute(y)
        except Exception as error:
            return f"{type(error).__name__}, with {n_tasks} tasks"
        seconds = time.perf_counter() - start
        logs = client.get_worker_logs().values()
        n_pauses = sum("Pausing worker" in text for lines in logs for _, text in lines)
        return seconds, n_tasks, max(client.run(peak).values()), n_pauses


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--classes", type=int, default=131_072)
    parser.add_argument("--limit", type=int, default=500, metavar="MIB", help="memory of each of the two workers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="ways with one of these in the name")
    args = parser.parse_args()
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        parser.error("SCIPY_ARRAY_API is not 1, so SciPy would compute lazy arrays here, at once; set it to 1")
    names = [name for name in WAYS if any(text in name for text in args.only)]
    labels = np.random.default_rng(1).integers(0, args.classes, args.tokens)
    found = {name: [] for name in names}
    n_frames = max(1, 8 * MIB // args.classes)  # 32 MiB of float32
    chunks = {"frames": (n_frames, args.classes), "classes": (4 * n_frames, -(-args.classes // 4))}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
        folder = Path(text)
        make_stores(folder, args.tokens, args.classes, chunks)
        for _ in range(args.rounds):
            for name in names:
                found[name].append(run(folder, name, labels, args.limit))
    size = args.tokens * args.classes * 4 / MIB
    print(f"{args.tokens} x {args.classes} float32, {size:,.0f} MiB; 2 workers with {args.limit} MiB each")
    print("| what | tasks | seconds | peak of a worker, MiB | pauses |\n|---|---|---|---|---|")
    for name, runs in found.items():
        done = [one for one in runs if not isinstance(one, str)]
        failed = [one for one in runs if isinstance(one, str)]
        if done:
            seconds, n_tasks, peaks, n_pauses = zip(*done, strict=True)
            spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
            print(f"| {name} | {n_tasks[0]} | {spread} | {max(peaks):.0f} | {max(n_pauses)} |")
        if failed:
            print(f"| {name} | {len(failed)} of {len(runs)} runs: {failed[0]} | | | |")


if __name__ == "__main__":
    main()
