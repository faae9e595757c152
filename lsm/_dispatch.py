"""Who serves a call and why: the order of choice, the plan that is kept of it, and `explain`.

The choice follows the device and dtype of the input. A backend may be asked for, and the most specific
wish counts: the argument ``backend=``, then `use_backend`, then `set_default_backend`, then the
environment variable ``LSM_BACKEND``. What follows from the wish, or from none, stands in `_decide`.
"""

import importlib
import os
import threading
import warnings
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from lsm._block import Block
from lsm._check import NUMPY
from lsm._config import settings
from lsm._decide import Call, Decision, Policy, decide, explained, registry
from lsm._errors import BackendUnavailableError, PluginWarning
from lsm._held import holding
from lsm._interop import library_of
from lsm._untraced import untraced
from lsm.backends.info import BackendInfo

OPERATIONS = ("log_softmax", "log_softmax_backward")
_PLAN_LIMIT = 512  # a program may have any number of array types

_in_context: ContextVar[Policy | None] = ContextVar("lsm_policy", default=None)
_default: Policy | None = None
# The policies of all `use_backend` blocks, also of other threads, by id. A WeakSet cannot be gone through while one of
# them ends elsewhere.
_in_blocks: WeakValueDictionary[int, Policy] = WeakValueDictionary()
_asked: dict[str, Policy] = {}  # by the name that ``backend=`` gave; those alone that have served a call
_lock = threading.Lock()


class Plan(NamedTuple):
    """How a kind of call is served: by whom, given which type of array, and the functions for small ones."""

    backend: Any
    taken_as: str
    quick: Any


def _after_fork_in_child() -> None:
    """Renew the lock, which a thread of the parent may have held."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _policy() -> Policy:
    """The policy in force, apart from ``backend=``."""
    return _in_context.get() or _default or _environment_policy()


def _environment_policy() -> Policy:
    """What is in force until `set_default_backend` is called."""

    def set_default() -> Policy:
        global _default
        if _default is None:
            wish = settings().backend
            _default = Policy(wish, "LSM_BACKEND" if wish else "automatic")
        return _default

    return holding(_lock, set_default)


def serving(call: Call, backend: str | None, quick_key: Any = None) -> Plan:
    """Find the backend for a call; the plan is remembered in the policy.

    Its quick functions are remembered by `quick_key`, with the device before it if that is not the CPU.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError, BackendUnsupportedError
        As `decide` found.
    """
    asked = _asked  # of now, as are the plans: another thread may make lsm forget them
    policy = _policy() if backend is None else asked.get(_checked_name(backend)) or Policy(backend, "backend=")
    plans, quick_functions = policy.plans, policy.quick
    key = (call.array_type, call.device, call.dtypes)
    plan: Plan | None = plans.get(key)
    if plan is None:
        decision = decide(call, policy)
        if decision.error is not None:
            raise decision.error
        why_not = decision.reasons.get(registry().default.name, "")
        if why_not.startswith("unavailable: "):
            _warn_without_kernels(why_not)
        plan = _plan(decision)
        if len(plans) < _PLAN_LIMIT:
            plans[key] = plan
            is_given = plan.taken_as in (NUMPY, call.array_type)  # as an ndarray, or as it is
            if is_given and plan.quick is not None and quick_key is not None and len(set(call.dtypes)) == 1:
                quick_functions[quick_key if call.device == "cpu" else (call.device, quick_key)] = plan.quick
        if backend is not None:
            asked.setdefault(backend, policy)
    return plan


@cache  # once for a reason, also after refresh_backends
def _warn_without_kernels(why_not: str) -> None:
    """Say that the automatic choice goes on without the default backend; where warnings are errors, the call fails."""
    warnings.warn(
        f"lsm goes on without its compiled kernels, which is slower: backend {registry().default.name!r} is {why_not}. "
        "LSM_BACKEND=numpy chooses the reference without this warning",
        PluginWarning,
        stacklevel=3,
    )


def _plan(decision: Decision) -> Plan:
    backend, taken_as = decision.backend, decision.taken_as
    if decision.is_built_in:
        return Plan(backend, taken_as, getattr(backend, "quick_functions", None))
    from lsm._guard import Guarded

    # No quick functions, which a third party's may have inherited: its own methods would be passed over.
    origin = f"backend {decision.winner!r} (from {decision.distribution} {decision.version}, {decision.file})"
    return Plan(Guarded(backend, origin), taken_as, None)


def quick(key: Any, backend: str | None) -> Any:
    """The functions for calls of a kind by whom `backend` names; None without a plan.

    The key is the dtype on the CPU, (device, dtype) elsewhere.

    Each takes the positional arguments of its operation and `out`, and returns None for what it does not serve.
    """
    policy = _in_context.get() or _default if backend is None else _asked.get(backend)
    return None if policy is None else policy.quick.get(key)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"backend: {name!r} is a {type(name).__name__}; accepted: the name of a backend, or None")
    return name


def use_backend(name: str) -> Block[Policy]:
    """Use one backend for every call within a ``with`` block, in this thread or asyncio task.

    The backend is looked up and loaded where the block begins. What is returned may be kept, and entered again, also
    within itself and in several threads. It also decorates functions and coroutine functions, for their calls. What
    runs after its call, as a generator does, is refused with a TypeError. In a generator, do not put a `yield` into the
    block: between two steps it would hold for the caller.

    A thread, or a worker of a pool, does not see the block in which it is started or given work:
    ``contextvars.copy_context().run`` carries the block along, and `set_default_backend` reaches all threads.

    Parameters
    ----------
    name : str
        Of a backend, or "distribution/name".

    Raises
    ------
    UnknownBackendError
        No backend has this name.
    BackendUnavailableError
        It cannot be used here.

    Examples
    --------
    >>> import lsm
    >>> with lsm.use_backend("numpy"):
    ...     y = lsm.log_softmax([1.0, 2.0])

    In a pool of threads, with the backend of the block:

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from contextvars import copy_context
    >>> with ThreadPoolExecutor() as pool, lsm.use_backend("numpy"):
    ...     work = pool.submit(copy_context().run, lsm.log_softmax, [1.0, 2.0])
    >>> work.result().round(3)
    array([-1.313, -0.313])
    """
    _checked_name(name)

    def entered() -> Policy:
        registry().get(name).load()
        policy = Policy(name, "use_backend")
        holding(_lock, _in_blocks.__setitem__, id(policy), policy)
        return policy

    return Block(_in_context, entered)


def set_default_backend(name: str | None) -> None:
    """Use one backend for every call of the process, in all threads, that names no other.

    Parameters
    ----------
    name : str or None
        Of a backend, or "distribution/name"; None goes back to ``LSM_BACKEND``, or to automatic choice.

    Raises
    ------
    UnknownBackendError
        No backend has this name.
    BackendUnavailableError
        It cannot be used here.

    Examples
    --------
    >>> import lsm
    >>> lsm.set_default_backend("numpy")
    >>> lsm.set_default_backend(None)
    """

    def set_default(policy: Policy | None) -> None:
        global _default
        _default = policy

    if name is None:
        holding(_lock, set_default, None)
        _environment_policy()
        return
    registry().get(_checked_name(name)).load()
    holding(_lock, set_default, Policy(name, "set_default_backend"))


def list_backends(*, load: bool = True) -> list[BackendInfo]:
    """List every backend that is known, its state and the reason for it.

    Parameters
    ----------
    load : bool, optional
        Load what is not loaded yet, which runs code of third-party plugins, to learn what it declares.
        With False no such code runs, and their state stays "discovered".

    Returns
    -------
    list of BackendInfo
        The built-in backends first, the others by name.

    Examples
    --------
    >>> import lsm
    >>> [info.name for info in lsm.list_backends()][:3]
    ['cython', 'cupy', 'numpy']
    """
    candidates = sorted(registry().all(), key=lambda c: not c.is_built_in)
    for candidate in candidates:
        if load or candidate.is_built_in:
            with suppress(BackendUnavailableError):  # its state and reason say so
                candidate.load()
    return [candidate.info() for candidate in candidates]


def refresh_backends() -> None:
    """Forget which backends were found, and search again when next needed.

    For a session into which a plugin has been installed. Python is told to look for new modules as well
    (``importlib.invalidate_caches``); what is imported already is not imported anew.

    Examples
    --------
    >>> import lsm
    >>> lsm.refresh_backends()
    """
    from lsm.backends.registry import forget

    def forget_plans() -> None:
        global _asked, _default
        _asked = {}
        _default = None if _default is None else Policy(_default.wish, _default.rule)
        for reference in _in_blocks.valuerefs():
            policy = reference()
            if policy is not None:
                policy.forget()

    importlib.invalidate_caches()
    forget()
    holding(_lock, forget_plans)


def explain(x: Any, op: str = "log_softmax", *, dtype: Any = None, backend: str | None = None) -> Decision:
    """Tell who would serve a call and why, and why not the others; computes nothing.

    Parameters
    ----------
    x : array_like
        As for `log_softmax`.
    op : str, optional
        "log_softmax" or "log_softmax_backward".
    dtype, backend : optional
        As for `log_softmax`.

    Returns
    -------
    Decision
        With the error that the call would raise, if it would. Printed, it is a short table.

    Raises
    ------
    TypeError
        `x` is nothing that lsm takes; the message is that of the call.
    ValueError
        `op` is no operation of lsm.

    Examples
    --------
    >>> import lsm, numpy
    >>> decision = lsm.explain(numpy.zeros(3, "float32"))
    >>> decision.winner, decision.rule
    ('cython', 'automatic')
    """
    if op not in OPERATIONS:
        raise ValueError(f"op: {op!r} is not an operation; accepted: {', '.join(map(repr, OPERATIONS))}")
    return untraced(_explain)(x, op, dtype, backend)


def _explain(x: Any, op: str, dtype: Any, backend: str | None) -> Decision:
    library = library_of(x)
    array, device, own = library.take(x, "x")
    call = Call(library.type_name(array), device, (own, library.result_dtype(own, dtype)), op)
    decision = explain_call(call, backend)
    if decision.taken_as == NUMPY:
        library.check_memory(array, "x")
    return decision


def explain_call(call: Call, backend: str | None = None) -> Decision:
    """`explain` of a call that is described, without an array."""
    return explained(call, _policy() if backend is None else Policy(_checked_name(backend), "backend="))
