"""JAX on the CPU, compiled for the case."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsm.bench.contestant import NEW, Absent, Contestant
from lsm.bench.data import Data
from lsm.bench.workloads import BACKWARD, BOTH, Case

NAME = "jax"
_POOL = "tf_XLAEigen"  # the name of the threads that XLA computes with
_SIZE = "PJRT_NPROC"  # XLA reads the size of its pool from here when a backend starts


class Pool:
    """The threads of XLA, whose number is fixed when its backend starts: for another one it is started anew."""

    n_threads: int | None = None

    @classmethod
    def set(cls, n_threads: int) -> str:
        """Have so many threads, and say how that was verified.

        Raises
        ------
        RuntimeError
            It has another number.
        """
        import jax
        from jax.extend.backend import clear_backends

        if cls.n_threads != n_threads:
            before, kept = _count(), os.environ.get(_SIZE)
            os.environ[_SIZE] = str(n_threads)
            try:
                clear_backends()
                jax.devices("cpu")
            finally:
                del os.environ[_SIZE]
                if kept is not None:
                    os.environ[_SIZE] = kept
            started = None if before is None else (_count() or 0) - before
            if started not in (None, n_threads):
                raise RuntimeError(f"{n_threads} threads were asked for; its pool has {started}")
            cls.n_threads = n_threads
        how = "set" if _count() is None else "set and counted"
        return f"XLA of jax {jax.__version__}: {n_threads} ({how})"


def _count() -> int | None:
    """Threads of XLA in this process; None where the system does not tell."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        return None
    n = 0
    for task in tasks.iterdir():
        try:
            n += (task / "comm").read_text().startswith(_POOL)
        except OSError:  # it has ended
            continue
    return n


def contestants(case: Case, data: Data, n_threads: int) -> Iterator[Contestant | Absent]:
    """`jax.nn.log_softmax`, and with its gradient by `jax.vjp`."""
    if case.op == BACKWARD:
        yield Absent(NAME, "has no gradient apart from the function: see forward+backward")
        return
    import jax

    axis, dtype = case.axis, data.out.dtype

    def forward(x: Any) -> Any:
        return jax.nn.log_softmax(x.astype(dtype), axis)

    def both(x: Any, dy: Any) -> Any:
        y, gradient = jax.vjp(forward, x)
        return y, gradient(dy)[0]

    start = time.perf_counter()
    # float64 is off by default; an executable made here has it everywhere.
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        given = {"x": jax.device_put(data.x)}
        if case.op == BOTH:
            given["dy"] = jax.device_put(data.dy)
        compiled = jax.jit(both if case.op == BOTH else forward).lower(*given.values()).compile()
    setup_ms = (time.perf_counter() - start) * 1e3
    names = {"compiled": compiled, **given}
    code = "compiled(x, dy)[1].block_until_ready()" if case.op == BOTH else "compiled(x).block_until_ready()"
    yield Contestant(NAME, NAME, NEW, code, names, setup_ms=setup_ms)
