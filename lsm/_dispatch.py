"""Who serves a call and why: the order of choice, the plan that is kept of it, and `explain`.

The choice follows the device and dtype of the input. A backend may be asked for, and the most specific
wish counts: the argument ``backend=``, then `use_backend`, then `set_default_backend`, then the
environment variable ``LSM_BACKEND``. A backend that is asked for is never replaced by another: it serves
the call or the call fails with the reason. With no wish the built-in that serves the call is taken, and
only where none does, a third-party one: by priority, then by name.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from lsm._check import as_array, dtype_name, on_device, result_dtype
from lsm._config import settings
from lsm._errors import BackendUnavailableError, BackendUnsupportedError, LsmError
from lsm._interop import device_kind
from lsm.backends.registry import BUILT_IN, BackendInfo, Candidate, forget, registry

OPERATIONS = ("log_softmax", "log_softmax_backward")


class Policy:
    """A wish for a backend, or none, and the plans that were made under it."""

    __slots__ = ("plans", "rule", "wish")

    def __init__(self, wish: str | None, rule: str) -> None:
        self.wish = wish
        self.rule = rule
        self.plans: dict[Any, Any] = {}


class Decision(NamedTuple):
    """Who would serve a call; printed, a short table.

    Attributes
    ----------
    winner : str or None
        The backend that serves the call; None if the call would fail.
    rule : str
        What decided: "backend=", "use_backend", "set_default_backend", "LSM_BACKEND" or "automatic".
    op, array_type, device, dtype : str
        The call.
    reasons : dict of str to str
        For every other backend, why it does not serve the call.
    error : LsmError or None
        What the call would raise.
    backend : object or None
        The winner itself.
    """

    winner: str | None
    rule: str
    op: str
    array_type: str
    device: str
    dtype: str
    reasons: dict[str, str]
    error: LsmError | None = None
    backend: Any = None

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        head = f"{self.op} of {self.array_type}, {self.dtype}, on {self.device}: "
        head += f"served by {self.winner} ({self.rule})" if self.winner else f"fails: {self.error}"
        width = max(map(len, self.reasons), default=0)
        return "\n".join([head, *(f"  {name:<{width}}  {reason}" for name, reason in self.reasons.items())])


_PLAN_LIMIT = 512  # dtypes with metadata differ without end

_in_context: ContextVar[Policy | None] = ContextVar("lsm_policy", default=None)
_default: Policy | None = None
_lock = threading.Lock()


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
    global _default
    with _lock:
        if _default is None:
            wish = settings().backend
            _default = Policy(wish, "LSM_BACKEND" if wish else "automatic")
        return _default


def serving(array_type: type, dtype: np.dtype[Any], result: np.dtype[Any], device: str, backend: str | None) -> Any:
    """The backend object for a call; the plan is remembered in the policy.

    Raises
    ------
    UnknownBackendError, BackendUnavailableError, BackendUnsupportedError
        As `decide` found.
    """
    policy = _policy()
    key = (array_type, dtype, result, device, backend if backend is None else _checked_name(backend))
    plan = policy.plans.get(key)
    if plan is None:
        wish = policy if backend is None else Policy(backend, "backend=")
        decision = decide(array_type, (dtype, result), device, wish)
        if decision.error is not None:
            raise decision.error
        plan = decision.backend
        if len(policy.plans) < _PLAN_LIMIT:
            policy.plans[key] = plan
    return plan


def decide(
    array_type: type, dtypes: tuple[np.dtype[Any], ...], device: str, policy: Policy, op: str = "log_softmax"
) -> Decision:
    """Find who serves a call; loads a third-party backend only if it may be the one."""
    names = tuple(dict.fromkeys(dtype_name(dtype) for dtype in dtypes))
    type_name = f"{array_type.__module__}.{array_type.__qualname__}"
    reasons: dict[str, str] = {}
    winner: Candidate | None = None
    error: LsmError | None = None
    try:
        if policy.wish is None:
            winner = _choose(type_name, names, device, reasons)
            if winner is None:
                error = _nobody(type_name, names, device, reasons)
        else:
            asked = registry().get(policy.wish)
            problem = _problem(asked, type_name, names, device)
            if problem:
                error = _refusal(asked, problem, policy, type_name, names, device)
                reasons[policy.wish] = problem
            else:
                winner = asked
    except LsmError as caught:
        error = caught
    return Decision(
        winner=winner.name if winner else None,
        rule=policy.rule,
        op=op,
        array_type=type_name,
        device=device,
        dtype=" to ".join(names),
        reasons=reasons,
        error=error,
        backend=winner.backend if winner else None,
    )


def _problem(candidate: Candidate, type_name: str, dtypes: tuple[str, ...], device: str) -> str:
    """Why this backend does not serve a call; empty if it does. Loads it."""
    try:
        backend = candidate.load()
    except BackendUnavailableError:
        return f"{candidate.state}: {candidate.reason}"
    if device not in backend.devices:
        return f"serves the devices {', '.join(backend.devices)}, not {device}"
    if type_name not in backend.array_types:
        return f"serves {', '.join(backend.array_types)}, not {type_name}"
    missing = [dtype for dtype in dtypes if dtype not in backend.dtypes]
    if missing:
        return f"serves {', '.join(backend.dtypes)}, not {', '.join(missing)}"
    return ""


def _choose(type_name: str, dtypes: tuple[str, ...], device: str, reasons: dict[str, str]) -> Candidate | None:
    """The backend for a call that wishes for none; notes why those before it do not serve."""
    for name in BUILT_IN:
        candidate = registry().built_in(name)
        if candidate is not None:
            problem = _problem(candidate, type_name, dtypes, device)
            if not problem:
                return candidate
            reasons[name] = problem
    usable = []
    for candidate in registry().third_party():
        problem = _problem(candidate, type_name, dtypes, device)
        if problem:
            reasons[candidate.name] = problem
        else:
            usable.append(candidate)
    return min(usable, key=lambda c: (-c.backend.priority, c.name), default=None)


def _nobody(type_name: str, dtypes: tuple[str, ...], device: str, reasons: dict[str, str]) -> LsmError:
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    return BackendUnsupportedError(f"no backend serves {type_name} of {' to '.join(dtypes)} on {device}: {why}")


def _refusal(
    asked: Candidate, problem: str, policy: Policy, type_name: str, dtypes: tuple[str, ...], device: str
) -> LsmError:
    """The error of a call whose wish cannot be met, with who would serve it."""
    if asked.state != "loaded":
        error: LsmError = BackendUnavailableError(f"{asked.describe()} (asked for by {policy.rule})")
        error.__cause__ = asked.error
        return error
    other = _choose(type_name, dtypes, device, {})
    remedy = f"backend={other.name!r} would serve it" if other else "no backend that is installed would"
    return BackendUnsupportedError(f"backend {asked.name!r} (asked for by {policy.rule}) {problem}; {remedy}")


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"backend: {name!r} is a {type(name).__name__}; accepted: the name of a backend, or None")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one backend for every call within a ``with`` block, in this thread or asyncio task.

    A thread that is started inside the block does not see it; `set_default_backend` reaches all threads,
    and ``contextvars.copy_context().run`` carries the block along.

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
    """
    registry().get(_checked_name(name)).load()
    token = _in_context.set(Policy(name, "use_backend"))
    try:
        yield
    finally:
        _in_context.reset(token)


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
    global _default
    if name is None:
        with _lock:
            _default = None
        _environment_policy()
        return
    registry().get(_checked_name(name)).load()
    with _lock:
        _default = Policy(name, "set_default_backend")


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
    >>> [info.name for info in lsm.list_backends()][:2]
    ['cython', 'numpy']
    """
    candidates = sorted(registry().all(), key=lambda c: not c.is_built_in)
    for candidate in candidates:
        if load or candidate.is_built_in:
            with suppress(BackendUnavailableError):  # its state and reason say so
                candidate.load()
    return [candidate.info() for candidate in candidates]


def refresh_backends() -> None:
    """Forget which backends were found, and search again when next needed.

    For a session into which a plugin has been installed. What is imported already is not imported anew.

    Examples
    --------
    >>> import lsm
    >>> lsm.refresh_backends()
    """
    global _default
    forget()
    with _lock:
        _default = None if _default is None else Policy(_default.wish, _default.rule)
    inside = _in_context.get()
    if inside is not None:
        inside.plans.clear()


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
        `x` is nothing that lsm takes.
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
    device = device_kind(x)
    array = as_array(x, "x") if device == "cpu" else on_device(x, "x", device)
    dtypes = (array.dtype, result_dtype(array.dtype, dtype))
    policy = _policy() if backend is None else Policy(_checked_name(backend), "backend=")
    decision = decide(type(array), dtypes, device, policy, op)
    why = "not asked for" if policy.wish else f"not needed: {decision.winner} serves the call"
    for candidate in registry().all():
        if candidate.name != decision.winner:
            broken = candidate.state not in ("loaded", "discovered")
            decision.reasons.setdefault(candidate.name, f"{candidate.state}: {candidate.reason}" if broken else why)
    return decision
