"""Arrays in chunks, for the set "scale": lsm on Dask, a copy by Dask, and what else computes on Dask."""

import os
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import lsm
from lsm.bench.data import Data
from lsm.bench.implementation import FUNCTIONS, OUT, Implementation
from lsm.bench.peers import IDIOM, PEERS, SCIPY, Made, Maker, Makers
from lsm.bench.workloads import FORWARD, SCALE_OPS, SIGNATURES, Case

_LAZY = {
    "dask copy": {FORWARD: "x.map_blocks(np.copy)"},
    "lsm on dask": {op: f"lsm.{FUNCTIONS.get(op, op)}({SIGNATURES[op].given}, axis)" for op in SCALE_OPS},
    "dask idiom": {op: IDIOM[op].format(x="x") for op in (FORWARD, "logsumexp")},  # Dask has no take_along_axis
    "scipy on dask": {op: SCIPY[op].format(x="x") for op in (FORWARD, "logsumexp")},
}


def _on_dask(name: str, case: Case, data: Data, n_threads: int) -> Made:
    """The expression of a lazy array, made and stored anew in each call, by as many threads of Dask's."""
    if case.op not in _LAZY[name]:
        raise LookupError("has no such function, or it is not measured")
    da, special = import_module("dask.array"), import_module("scipy.special") if name == "scipy on dask" else None
    names: dict[str, Any] = {"np": np, "lsm": lsm, "special": special, "store": da.store, "axis": case.axis}
    x = da.from_array(data.x, case.chunks or "auto", name=False)  # not by a name that hashes the array
    names |= {**data.host, "x": x, "n_threads": n_threads}
    code = _LAZY[name][case.op]
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


def peers_of(in_chunks: bool) -> Makers:
    """What is measured beside the backends: of arrays in chunks what computes on Dask, else every peer."""
    if not in_chunks:
        return PEERS
    os.environ.setdefault("SCIPY_ARRAY_API", "1")  # read when SciPy is imported: else it computes lazy arrays at once
    modules = {"scipy on dask": ("dask.array", "scipy.special")}
    return {name: Maker(partial(_on_dask, name), modules.get(name, ("dask.array",))) for name in _LAZY}
