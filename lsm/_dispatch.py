"""Dispatch of calls to backends: the order of precedence, and the cache of decisions.

A backend can be requested by the argument ``backend=``, `use_backend`, `set_default_backend` or the environment
variable ``LSM_BACKEND``, in this order of precedence. `_decide` has the rules that apply to a request, or to none.
"""

import importlib
import os
import warnings
from _thread import RLock  # the RLock of threading, whose import takes 0.5 ms
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from lsm import _fastpath
from lsm._block import ContextOverride
from lsm._check import NUMPY
from lsm._config import settings
from lsm._decide import Decision, Policy, Request, decide, registry
from lsm._errors import BackendUnavailableError, PluginWarning
from lsm._held import call_within

if TYPE_CHECKING:
    from lsm.backends.info import BackendInfo

_MAX_CACHED_ENTRIES = 512  # a program may use any number of array types

# The policies of all `use_backend` blocks in all threads, by id. A WeakSet cannot be iterated over while a block ends
# in another thread.
_block_policies: WeakValueDictionary[int, Policy] = WeakValueDictionary()
_lock = RLock()


class DispatchEntry(NamedTuple):
    """The cached decision for a kind of call.

    Attributes
    ----------
    backend : Backend
        The backend; a third-party one is wrapped in a `GuardedBackend`.
    passed_as : str
        The type of the array passed to it.
    fast : callable or None
        The backend's function for the fast path, if it has one.
    dtypes : tuple of str
        The dtypes that it accepts.
    """

    backend: Any
    passed_as: str
    fast: Any
    dtypes: tuple[str, ...]


def _after_fork_in_child() -> None:
    """Replace the lock, which a thread of the parent may have held."""
    global _lock
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def policy_for(backend: str | None) -> Policy:
    """The policy of a call with this ``backend=``; for a name, a new one, not the one that caches its decisions."""
    if backend is not None:
        return Policy(_checked_name(backend), "backend=")
    policy: Policy = _fastpath.in_context.get() or _fastpath.default or _environment_policy()
    return policy


def _environment_policy() -> Policy:
    """The policy until `set_default_backend` is called."""

    def set_default() -> Policy:
        if _fastpath.default is None:
            name = settings().backend
            _fastpath.set_default(Policy(name, "LSM_BACKEND" if name else "automatic"))
        policy: Policy = _fastpath.default
        return policy

    return call_within(_lock, set_default)


def find_entry(request: Request, backend: str | None, fast_key: Any = None) -> DispatchEntry:
    """Find the backend for a call; caches the entry in the policy, and its fast function under `fast_key`.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError, BackendUnsupportedError
        From `decide`.
    """
    by_name = _fastpath.by_name  # kept in locals, like the entries below: another thread may replace them
    policy = (None if backend is None else by_name.get(_checked_name(backend))) or policy_for(backend)
    entries, fast = policy.entries, policy.fast
    entry: DispatchEntry | None = entries.get(request)
    if entry is None:
        decision = decide(request, policy)
        if decision.error is not None:
            raise decision.error
        why_not = decision.reasons.get(registry().default.name, "")
        if why_not.startswith("unavailable: "):
            _warn_without_kernels(why_not)
        entry = _make_entry(decision)
        if len(entries) < _MAX_CACHED_ENTRIES:
            entries[request] = entry
        if backend is not None:
            by_name.setdefault(backend, policy)
    if entry.fast is not None and fast_key is not None:
        # The entry may have been cached by a call without a key, such as one on arrays that had to be converted.
        is_known = getattr(fast.get(fast_key), request.op, None) is entry.fast
        is_native = entry.passed_as in (NUMPY, request.array_type)
        if not is_known and is_native and len(set(request.dtypes)) == 1 and request in entries:
            setattr(fast.setdefault(fast_key, _fastpath.FastFunctions()), request.op, entry.fast)
    return entry


def name_elsewhere(request: Request, backend: str | None) -> tuple[str, Any]:
    """The name by which another process can request the backend selected for a call; and the backend in this process.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError, BackendUnsupportedError
        From `decide`.
    """
    policy = policy_for(backend)
    decision = decide(request, policy)
    if decision.error is not None:
        raise decision.error
    assert decision.winner is not None
    return policy.requested or decision.winner, decision.backend


@cache  # once per reason, even after refresh_backends
def _warn_without_kernels(why_not: str) -> None:
    """Warn that automatic selection skips the default backend; where warnings are errors, the call fails."""
    warnings.warn(
        f"lsm runs without its compiled kernels, which is slower: backend {registry().default.name!r} is {why_not}. "
        "Set LSM_BACKEND=numpy to use the reference without this warning",
        PluginWarning,
        stacklevel=3,
    )


def _make_entry(decision: Decision) -> DispatchEntry:
    backend, passed_as = decision.backend, decision.passed_as
    if decision.is_built_in:
        functions = getattr(backend, "fast_functions", {})
        return DispatchEntry(backend, passed_as, functions.get(decision.op), backend.dtypes)
    from lsm._guard import GuardedBackend

    # No fast functions: a third-party backend may have inherited them, and they would bypass its own methods.
    origin = f"backend {decision.winner!r} (from {decision.distribution} {decision.version}, {decision.file})"
    return DispatchEntry(GuardedBackend(backend, origin), passed_as, None, tuple(backend.dtypes))


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"backend: {name!r} is a {type(name).__name__}; accepted: the name of a backend, or None")
    return name


def use_backend(name: str) -> ContextOverride[Policy]:
    """Use a backend for all calls within a ``with`` block, in this thread or asyncio task.

    The backend is loaded when the block is entered. The returned object can be entered repeatedly, even nested and in
    several threads. It can also decorate functions and coroutine functions, but not generator functions, whose body
    runs after the call. Do not put a `yield` in the block: between two steps, the block would apply to the caller.

    Threads and pool workers do not inherit the block. Use ``contextvars.copy_context().run`` to pass it on, or
    `set_default_backend` for all threads.

    Parameters
    ----------
    name : str
        The name of a backend, or "distribution/name".

    Raises
    ------
    UnknownBackendError
        No backend has this name.
    BackendUnavailableError
        The backend cannot be used.

    Examples
    --------
    >>> import lsm
    >>> with lsm.use_backend("numpy"):
    ...     y = lsm.log_softmax([1.0, 2.0])

    In a thread pool:

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from contextvars import copy_context
    >>> with ThreadPoolExecutor() as pool, lsm.use_backend("numpy"):
    ...     work = pool.submit(copy_context().run, lsm.log_softmax, [1.0, 2.0])
    >>> work.result().round(3)
    array([-1.313, -0.313])
    """
    _checked_name(name)

    def make_policy() -> Policy:
        registry().get(name).load()
        policy = Policy(name, "use_backend")
        call_within(_lock, _block_policies.__setitem__, id(policy), policy)
        return policy

    return ContextOverride(_fastpath.in_context, make_policy)


def set_default_backend(name: str | None) -> None:
    """Set the default backend of the process, for all threads.

    Parameters
    ----------
    name : str or None
        The name of a backend, or "distribution/name"; None restores ``LSM_BACKEND`` or automatic selection.

    Raises
    ------
    UnknownBackendError
        No backend has this name.
    BackendUnavailableError
        The backend cannot be used.

    Examples
    --------
    >>> import lsm
    >>> lsm.set_default_backend("numpy")
    >>> lsm.set_default_backend(None)
    """
    if name is None:
        call_within(_lock, _fastpath.set_default, None)
        _environment_policy()
        return
    registry().get(_checked_name(name)).load()
    call_within(_lock, _fastpath.set_default, Policy(name, "set_default_backend"))


def list_backends(*, load: bool = True) -> "list[BackendInfo]":
    """List all known backends, with their state and the reason for it.

    Parameters
    ----------
    load : bool, optional
        Whether to load plugins, which runs their code, to read their declarations. If False, no plugin code runs, and
        the state of plugins that are not loaded is "discovered".

    Returns
    -------
    list of BackendInfo
        The built-in backends first, then the others by name.

    Examples
    --------
    >>> import lsm
    >>> [info.name for info in lsm.list_backends()][:3]
    ['cython', 'cupy', 'numpy']
    """
    candidates = sorted(registry().all(), key=lambda c: not c.is_built_in)
    for candidate in candidates:
        if load or candidate.is_built_in:
            with suppress(BackendUnavailableError):  # shown by its state and reason
                candidate.load()
    return [candidate.info() for candidate in candidates]


def refresh_backends() -> None:
    """Search for backends again when they are next needed.

    Call this after installing a plugin into a running session. It also calls ``importlib.invalidate_caches``; modules
    that are already imported are not reloaded.

    Examples
    --------
    >>> import lsm
    >>> lsm.refresh_backends()
    """
    from lsm.backends.registry import reset_registry

    def clear_entries() -> None:
        _fastpath.by_name = {}
        if _fastpath.default is not None:
            _fastpath.set_default(Policy(_fastpath.default.requested, _fastpath.default.rule))
        for reference in _block_policies.valuerefs():
            policy = reference()
            if policy is not None:
                policy.clear()
        _fastpath.forget()

    importlib.invalidate_caches()
    reset_registry()
    call_within(_lock, clear_entries)
