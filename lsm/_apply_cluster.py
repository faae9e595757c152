"""`lsm apply --scheduler`: blocks are tasks of a running Dask cluster; imports distributed when it is used.

A task opens the files by their paths, computes a block and writes it. No array passes through scheduler or client.
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from lsm._apply import Call, Runner, n_elements, run_block
from lsm._decide import registry
from lsm._errors import BackendUnavailableError, LsmError
from lsm._files import UnusableFileError
from lsm._storage import open_array, reopen_result
from lsm._storage.base import Index, Source, StoredArray, WritableArray, brief
from lsm._version import __version__, install_command
from lsm.engines._dask_tasks import build_of, check_build, on_one_thread, place

TIMEOUT = 10  # seconds: for the scheduler to answer, and to have a worker
AHEAD = 1000  # tasks submitted ahead, at least: enough to keep workers busy, without millions in the scheduler
SHARED = (
    "all workers need the files at the same paths, as on a shared file system; without --scheduler, one process does"
)


class Stores(NamedTuple):
    """The data that a worker needs for a block.

    Attributes
    ----------
    call : Call
        The computation.
    build : tuple
        The version and kernels of the client, which determine the bits.
    inputs : tuple of (Source, shape, dtype, int)
        Each input, and the time of its last change, in seconds.
    results : tuple of (path, name, record)
        Each result: the arguments of `reopen_result`.
    """

    call: Call
    build: tuple[str, bool | None]
    inputs: tuple[tuple[Source, tuple[int, ...], Any, int], ...]
    results: tuple[tuple[str, str, dict[str, Any]], ...]


@contextmanager
def cluster(address: str) -> Iterator[Runner]:
    """Connect to a scheduler; yields a function that has its workers compute all blocks.

    Raises
    ------
    LsmError
        dask or distributed is not installed.
    OSError
        The scheduler does not answer.
    """
    try:
        import distributed
    except ImportError as error:
        raise LsmError(f"--scheduler: dask and distributed are needed ({error}): {install_command('dask')}") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it also raises what it logs
    accepted = "accepted: the address of a running Dask scheduler, such as tcp://host:8786"
    try:
        distributed.comm.get_address_host_port(address, strict=True)  # a Client that fails takes 20 s to be deleted
        client = distributed.Client(address, timeout=TIMEOUT, set_as_default=False)
    except ValueError as error:
        raise ValueError(f"--scheduler: {address!r} is not an address ({brief(error)}); {accepted}") from error
    except (OSError, TimeoutError) as error:
        raise OSError(f"--scheduler: {address!r} does not answer within {TIMEOUT} s; {accepted}") from error
    with client:
        yield partial(run_there, client)


def run_there(
    client: Any,
    call: Call,
    arrays: Sequence[StoredArray],
    outs: Sequence[WritableArray],
    tasks: Iterable[Index],
    advance: Callable[[int], Any],
) -> None:
    """Have the workers compute all blocks. Blocks of a worker that dies are run again; any error ends the run."""
    import distributed

    stores = Stores(
        call,
        build_of(registry().get(call.options["backend"]).load()),
        tuple([(array.source, array.shape, array.dtype, _changed(array)) for array in arrays]),
        tuple([(out.path, out.name, out.record) for out in outs]),
    )
    check_workers(client, stores)
    token, numbered = secrets.token_hex(4), enumerate(tasks)
    finished, pending = distributed.as_completed(loop=client.loop), {}

    def submit(n: int) -> None:
        for number, task in islice(numbered, n):
            future = client.submit(partial(run_task, stores, task), key=f"lsm-apply-{token}-{number}", pure=False)
            pending[future] = n_elements(task) * arrays[0].dtype.itemsize
            finished.add(future)

    try:
        submit(max(AHEAD, 4 * sum(client.nthreads().values())))
        for future in finished:
            future.result()
            advance(pending.pop(future))
            submit(1)
    except CancelledError as error:
        raise OSError(f"the scheduler has lost or cancelled blocks: {brief(error)}") from error
    finally:
        if pending:
            client.cancel(list(pending))


def check_workers(client: Any, stores: Stores) -> None:
    """Have each worker open all files; raises an error with the address of a worker that cannot."""
    try:
        client.wait_for_workers(1, timeout=TIMEOUT)
    except TimeoutError as error:
        address = client.scheduler.address
        raise OSError(
            f"--scheduler: {address!r} has no workers after {TIMEOUT} s; start some, as by `dask worker {address}`"
        ) from error
    for address, found in client.run(check_worker, stores, on_error="return").items():
        if isinstance(found, (LsmError, OSError)):
            raise _noted(found, f"on the worker {address}; {SHARED}")
        if found is not None:  # such as an ImportError
            raise BackendUnavailableError(
                f"the worker {address} cannot run lsm {__version__} ({type(found).__name__}: {brief(found)}); install "
                "the same version and packages there"
            ) from found


def check_worker(stores: Stores) -> None:
    """Raise an error if this process cannot process the files: some are missing, or differ at the same paths."""
    check_build(stores.call.options["backend"], stores.build)
    with _opened(stores) as (arrays, outs):
        for array, (*_, changed) in zip(arrays, stores.inputs, strict=True):
            if _changed(array) != changed:
                raise UnusableFileError(f"{array.name}: {array.path!r} is a different file there, or was changed")
        for out in outs:
            if not os.access(out.path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                raise UnusableFileError(f"{out.name} cannot be written: {out.path!r} is write-protected")


def run_task(stores: Stores, task: Index) -> None:
    """The task of a block."""
    check_build(stores.call.options["backend"], stores.build)
    remedy = f"; {SHARED}"
    try:
        with _opened(stores) as (arrays, outs):
            remedy = ""
            on_one_thread(partial(run_block, stores.call, arrays, outs, task, _ignore))
    except Exception as error:
        _noted(error, f"on {place()}{remedy}")
        raise


@contextmanager
def _opened(stores: Stores) -> Iterator[tuple[list[StoredArray], list[WritableArray]]]:
    with ExitStack() as stack:
        arrays = [stack.enter_context(open_array(source)) for source, *_ in stores.inputs]
        for array, (_, shape, dtype, _) in zip(arrays, stores.inputs, strict=True):
            if (array.shape, array.dtype) != (shape, dtype):
                raise UnusableFileError(
                    f"{array.name} is a different array there, of shape {array.shape} and dtype {array.dtype}"
                )
        yield arrays, [reopen_result(*result) for result in stores.results]


def _changed(array: StoredArray) -> int:
    """The time of the last change of the file or directory itself, in whole seconds, for any file system."""
    return int(os.stat(array.path).st_mtime)  # noqa: PTH116


def _noted(error: Exception, note: str) -> Exception:
    vars(error).setdefault("__notes__", []).append(note)  # as `add_note` of Python 3.11 does
    return error


def _ignore(n_bytes: int) -> None:
    """Do nothing: progress is shown for whole blocks."""
