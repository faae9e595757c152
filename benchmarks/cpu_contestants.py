"""Who takes part in a row of benchmarks/cpu.py: lsm, its peers, and the limit of the machine."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import lsm
from cpu_workloads import FORWARD_NEW, Workload
from lsm.bench import contestants
from lsm.bench.contestant import NEW, OUT, Contestant
from lsm.bench.data import Array, Data
from lsm.bench.limits import flat, limit

BACKEND = "lsm cython"
PEERS = ("torch", "onnxruntime")
LIMIT = "limit"


def taking_part(
    workload: Workload, data: Data, op: str, n_threads: int, peers: Sequence[str], with_limit: bool
) -> tuple[list[Contestant], dict[str, str]]:
    """Those that give the right result in this row, lsm first, and why others do not take part.

    Results are preallocated, but where a new one is the subject: there the peers do as they like.
    """
    case, is_new = workload.of(op), op == FORWARD_NEW
    own, _ = contestants.taking_part(["lsm"], (BACKEND,), case, data, n_threads)
    found = [replace(one, name="lsm") for one in own if one.way == (NEW if is_new else OUT)]
    theirs, absent = contestants.taking_part(peers, (), case, data, n_threads)
    places = np.random.default_rng(1).integers(0, data.out.size, 1000)
    expected = _at(places, found[0], data)
    for one in theirs:
        if one.way == OUT or is_new:
            # Not a test of accuracy, but one that the same thing is computed.
            if np.allclose(_at(places, one, data), expected, rtol=0.02, atol=0.02):
                found.append(replace(one, name=one.name + ", new result" * (one.way == NEW)))
            else:
                absent[one.name] = f"gives another result than lsm: {one.code}"
    if with_limit:
        try:
            found.append(replace(limit(case, data, n_threads), name=LIMIT))
        except (lsm.BackendUnavailableError, KeyError) as error:
            absent[LIMIT] = f"this build of the kernels has none ({error})"
    return found, absent


def _at(places: Array, contestant: Contestant, data: Data) -> Array:
    """Some elements of a result."""
    flat(data.out)[places] = np.nan
    value = contestant.call()
    result = data.out if contestant.way == OUT else contestant.to_numpy(value)
    return result.ravel(order="K")[places].astype(np.float64)
