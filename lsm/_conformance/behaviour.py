"""Checks of a backend's behaviour: same bits, threads, a light import, a valid declaration."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from lsm._check import DTYPES
from lsm._conformance.arrays import LAYOUTS, Array, bits
from lsm._conformance.oracle import is_quick
from lsm._conformance.samples import Sample, frames
from lsm._conformance.subject import Check, ConformanceError, Subject, require, skip
from lsm.backends.registry import registry

N_CLASSES = (1, 3, 10, 33, 64, 257, 1000)
N_THREADS, N_ROUNDS = 8, 5
IMPORT_SECONDS, HANGS_SECONDS = 0.5, 60
HEAVY = {"cupy", "jax", "jaxlib", "mlx", "numba", "onnxruntime", "openvino", "paddle", "pandas", "pyopencl", "scipy"}
HEAVY |= {"tensorflow", "torch"}


def same_bits(subject: Subject) -> None:
    """Give a frame the same bits alone, anywhere in any batch, along any axis, when repeated, and in any layout."""
    if not subject.same_bits:
        skip("same_bits is not claimed")
    for n in N_CLASSES:
        rng = subject.rng()
        x = np.concatenate([frames(kind, (5, n), subject.dtype, rng) for kind in ("ordinary", "peaked")])
        sample = Sample(x, rng)
        for operation in subject.operations:
            given, call = sample.inputs(operation), partial(subject.run, operation)
            alone = np.concatenate([call([a[i : i + 1] for a in given]) for i in range(len(x))])
            for what, result in variants(call, given):
                if bits(result) != bits(alone):
                    where = f"{operation.direction}, {n} classes"
                    raise ConformanceError(f"{where}: same_bits is claimed; different bits {what} than alone")


def variants(call: Callable[..., Array], given: tuple[Array, ...]) -> Iterator[tuple[str, Array]]:
    """Yield the results for the same ten frames in different calls."""
    yield "in a batch of 10", call(given)
    yield "when called again", call(given)
    yield "in a batch of 300", call([np.tile(a, (30, 1)) for a in given])[-10:]
    yield "at another place of the batch", np.roll(call([np.roll(a, 3, axis=0) for a in given]), -3, axis=0)
    yield "along the first axis", call([a.T for a in given], 0).T
    middle = call([a.reshape(2, 5, -1).swapaxes(1, 2) for a in given], 1)
    yield "along the middle axis", middle.swapaxes(1, 2).reshape(10, -1)
    for layout in LAYOUTS[1:4]:
        yield f"with inputs and out in another layout ({layout.name})", call(given, layout=layout, out_layout=layout)


def threads(subject: Subject) -> None:
    """Support calls from several threads at once, each with its own result."""
    rng = subject.rng()
    jobs = []
    for n in (3, 10, 64, 257) if is_quick(subject.dtype) else (3, 10):
        for n_frames in (1, 5, 16):
            sample = Sample(frames("ordinary", (n_frames, n), subject.dtype, rng), rng)
            for operation in subject.operations:
                inputs = sample.inputs(operation)
                jobs.append((operation, inputs, subject.run(operation, inputs), sample.exact(operation)))

    def work(job: Any) -> None:
        operation, inputs, alone, exact = job
        result = subject.run(operation, inputs)
        subject.agree(result, alone, exact, f"{operation.direction}, called from several threads at once")

    with ThreadPoolExecutor(N_THREADS) as pool:
        for _ in pool.map(work, jobs * N_ROUNDS):
            pass


_FRESH = """
import json, os, sys, time
answer = os.dup(1)
os.dup2(2, 1)  # anything that the module prints, even a C library at exit
import lsm
before = set(sys.modules)
start = time.perf_counter()
__import__(sys.argv[1])
took = time.perf_counter() - start
modules = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
os.write(answer, json.dumps([took, modules]).encode())
"""


def light_import(subject: Subject) -> None:
    """Import the entry point's module in a fresh process within half a second and without a heavy library."""
    module = registry().get(subject.name).entry_point.value.partition(":")[0]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    took = float("inf")
    for _ in range(3):  # the shortest of three, because the machine may be busy
        command = [sys.executable, "-c", _FRESH, module]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=HANGS_SECONDS, check=False
        )
        require(done.returncode == 0, f"importing {module} in a fresh process failed: {done.stderr.strip()[-500:]}")
        seconds, modules = json.loads(done.stdout)
        heavy = sorted(HEAVY & set(modules))
        require(not heavy, f"importing {module} imports {', '.join(heavy)}; do that in available() or later")
        took = min(took, seconds)
        if took <= IMPORT_SECONDS:
            return
    raise ConformanceError(
        f"importing {module} took {took:.2f} s; the limit is {IMPORT_SECONDS} s: move slow imports to available()"
    )


def declaration(subject: Subject) -> None:
    """Declare only dtypes that lsm supports, and bounds only for these."""
    backend = subject.backend
    unknown = [name for name in backend.dtypes if name not in DTYPES]
    require(not unknown, f"dtypes: {', '.join(map(repr, unknown))}; accepted: {', '.join(DTYPES)}")
    other = sorted(set(getattr(backend, "max_ulp", {})) - set(backend.dtypes))
    require(not other, f"max_ulp has a bound for {', '.join(map(repr, other))}, which dtypes does not contain")


CHECKS = (
    Check("the declaration", declaration, per="backend"),
    Check("a light import", light_import, per="backend"),
    Check("same bits, whatever the surroundings", same_bits),
    Check("calls from several threads", threads),
)
