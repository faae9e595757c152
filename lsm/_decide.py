"""Who serves a call of this type, dtype and device, and why: the rules themselves, without any state.

A backend that is asked for is never replaced by another: it serves the call or the call fails with the
reason. With no wish the built-in that serves the call is taken, and only where none does, a third-party
one: by priority, then by name.
"""

from typing import Any, NamedTuple

import numpy as np

from lsm._check import dtype_name
from lsm._errors import BackendUnavailableError, BackendUnsupportedError, LsmError
from lsm.backends.registry import BUILT_IN, Candidate, registry


class Policy:
    """A wish for a backend, or none, and the plans that were made under it.

    `quick` holds, by dtype, the backend's functions for small calls on ndarrays, where a plan has found one that
    has such functions.
    """

    __slots__ = ("plans", "quick", "rule", "wish")

    def __init__(self, wish: str | None, rule: str) -> None:
        self.wish = wish
        self.rule = rule
        self.forget()

    def forget(self) -> None:
        """Make every plan anew."""
        self.plans: dict[Any, Any] = {}
        self.quick: dict[np.dtype[Any], Any] = {}


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
