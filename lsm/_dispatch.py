"""Who serves a call and why: the order of choice, the plan that is kept of it, and `explain`.

The choice follows the device and dtype of the input. A backend may be asked for, and the most specific
wish counts: the argument ``backend=``, then `use_backend`, then `set_default_backend`, then the
environment variable ``LSM_BACKEND``. What follows from the wish, or from none, stands in `_decide`.
"""

import importlib
import os
import warnings
from _thread import allocate_lock  # threading's own, which takes half a millisecond to import
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from lsm import _fastpath
from lsm._block import Block
from lsm._check import NUMPY
from lsm._config import settings
from lsm._decide import Decision, Policy, Request, decide, explained, registry
from lsm._errors import BackendUnavailableError, PluginWarning
from lsm._held import holding
from lsm._interop import library_of
from lsm._operations import OPERATIONS
from lsm._untraced import untraced

if TYPE_CHECKING:
    from lsm.backends.info import BackendInfo

_PLAN_LIMIT = 512  # a program may have any number of array types

# The policies of all `use_backend` blocks, also of other threads, by id. A WeakSet cannot be gone through while one of
# them ends elsewhere.
_in_blocks: WeakValueDictionary[int, Policy] = WeakValueDictionary()
_lock = allocate_lock()


class Plan(NamedTuple):
    """How a kind of call is served.

    Attributes
    ----------
    backend : Backend
        The backend, guarded if it is a third party's.
    passed_as : str
        The type of array that it is given.
    fast : callable or None
        The backend's function for the operation on plain arrays, if it has one.
    """

    backend: Any
    passed_as: str
    fast: Any


def _after_fork_in_child() -> None:
    """Renew the lock, which a thread of the parent may have held."""
    global _lock
    _lock = allocate_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _policy() -> Policy:
    """The policy in force, apart from ``backend=``."""
    policy: Policy = _fastpath.in_context.get() or _fastpath.default or _environment_policy()
    return policy


def _environment_policy() -> Policy:
    """What is in force until `set_default_backend` is called."""

    def set_default() -> Policy:
        if _fastpath.default is None:
            name = settings().backend
            _fastpath.default = Policy(name, "LSM_BACKEND" if name else "automatic")
        policy: Policy = _fastpath.default
        return policy

    return holding(_lock, set_default)


def plan_for(request: Request, backend: str | None, fast_key: Any = None) -> Plan:
    """Find the backend for a call; the plan is kept in the policy, and its fast function by `fast_key`.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError, BackendUnsupportedError
        As `decide` found.
    """
    by_name = _fastpath.by_name  # of now, as are the plans: another thread may make lsm forget them
    policy = _policy() if backend is None else by_name.get(_checked_name(backend)) or Policy(backend, "backend=")
    plans, fast = policy.plans, policy.fast
    plan: Plan | None = plans.get(request)
    if plan is None:
        decision = decide(request, policy)
        if decision.error is not None:
            raise decision.error
        why_not = decision.reasons.get(registry().default.name, "")
        if why_not.startswith("unavailable: "):
            _warn_without_kernels(why_not)
        plan = _plan(decision)
        if len(plans) < _PLAN_LIMIT:
            plans[request] = plan
            is_given = plan.passed_as in (NUMPY, request.array_type)  # as an ndarray, or as it is
            if is_given and plan.fast is not None and fast_key is not None and len(set(request.dtypes)) == 1:
                setattr(fast.setdefault(fast_key, _fastpath.FastFunctions()), request.op, plan.fast)
        if backend is not None:
            by_name.setdefault(backend, policy)
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
    backend, passed_as = decision.backend, decision.passed_as
    if decision.is_built_in:
        functions = getattr(backend, "fast_functions", {})
        return Plan(backend, passed_as, functions.get(decision.op))
    from lsm._guard import Guarded

    # No fast functions, which a third party's may have inherited: its own methods would be passed over.
    origin = f"backend {decision.winner!r} (from {decision.distribution} {decision.version}, {decision.file})"
    return Plan(Guarded(backend, origin), passed_as, None)


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

    return Block(_fastpath.in_context, entered)


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
        _fastpath.default = policy

    if name is None:
        holding(_lock, set_default, None)
        _environment_policy()
        return
    registry().get(_checked_name(name)).load()
    holding(_lock, set_default, Policy(name, "set_default_backend"))


def list_backends(*, load: bool = True) -> "list[BackendInfo]":
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
        _fastpath.by_name = {}
        if _fastpath.default is not None:
            _fastpath.default = Policy(_fastpath.default.requested, _fastpath.default.rule)
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
        The name of a function of lsm, such as "log_softmax_backward".
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
    array, device, own = library.validate(x, "x")
    request = Request(library.type_name(array), device, (own, library.result_dtype(own, dtype)), op)
    decision = explain_request(request, backend)
    if decision.passed_as == NUMPY:
        library.check_memory(array, "x")
    return decision


def explain_request(request: Request, backend: str | None = None) -> Decision:
    """`explain` of a call that is described, without an array."""
    return explained(request, _policy() if backend is None else Policy(_checked_name(backend), "backend="))
