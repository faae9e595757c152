"""Who serves a call of this type, dtype and device, and why: the rules themselves, without any state.

A backend that is asked for is never replaced by another: it serves the call or the call fails with the
reason. With no wish the built-in that serves the call is taken, and only where none does, a third-party
one: by priority, then by name. A backend that takes NumPy arrays takes those of other libraries as well, where
they lie on the CPU: it is given the same memory as an ndarray. So does one that takes CuPy's, on a CUDA device.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from lsm._check import BFLOAT16_BITS, CUPY, NUMPY, np_dtype
from lsm._errors import BackendUnavailableError, BackendUnsupportedError, LsmError, UnknownBackendError
from lsm._version import install_command

if TYPE_CHECKING:
    from lsm.backends.candidate import Candidate
    from lsm.backends.contract import Declaration
    from lsm.backends.registry import Registry

_ALLOCATED = (NUMPY, "torch.Tensor", "jax.Array")  # types of which lsm makes new arrays itself

# By kind of device, the type as which a backend that takes it is given the memory of any other library's array.
_COMMON_TYPES = {"cpu": NUMPY, "cuda": CUPY}


class Policy:
    """The backend that is requested, if one is, and the entries that were made under this request.

    `fast` holds, by kind of array, the functions of the fast path that the entries have found.
    """

    __slots__ = ("__weakref__", "entries", "fast", "requested", "rule")

    def __init__(self, requested: str | None, rule: str) -> None:
        self.requested = requested
        self.rule = rule
        self.clear()

    def clear(self) -> None:
        """Make every plan anew."""
        self.entries: dict[Any, Any] = {}
        self.fast: dict[Any, Any] = {}


class Request(NamedTuple):
    """What of a call decides which backend serves it; the types, devices and dtypes are names."""

    array_type: str
    device: str
    dtypes: tuple[str, ...]  # of the input and of the result
    op: str = "log_softmax"

    def __str__(self) -> str:
        dtypes = " to ".join(dict.fromkeys(self.dtypes))
        return f"{self.array_type} of {dtypes} on {self.device}"


class Decision(NamedTuple):
    """Who would serve a call; printed, a short table.

    Attributes
    ----------
    winner : str or None
        The backend that serves the call; None if the call would fail.
    rule : str
        What decided: "backend=", "use_backend", "set_default_backend", "LSM_BACKEND" or "automatic".
    op, array_type, device, dtype : str
        The call; `dtype` is "float16 to float32" where the result has another than the input.
    passed_as : str
        The type of array that the winner is given: `array_type`, or for the same memory seen as one "numpy.ndarray"
        or, on a CUDA device, "cupy.ndarray".
    distribution, version, file : str
        Where the winner comes from.
    reasons : dict of str to str
        For every other backend, by its name or "distribution/name", why it does not serve the call.
    error : LsmError or None
        What the call would raise.
    backend : object or None
        The winner itself.
    is_built_in : bool
        Whether it is lsm's own.
    """

    winner: str | None
    rule: str
    op: str
    array_type: str
    device: str
    dtype: str
    passed_as: str
    distribution: str
    version: str
    file: str
    reasons: dict[str, str]
    error: LsmError | None = None
    backend: Any = None
    is_built_in: bool = False

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        head = f"{self.op} of {self.array_type}, {self.dtype}, on {self.device}: "
        if self.winner is None:
            head += f"fails: {self.error}"
        else:
            head += f"served by {self.winner} ({self.rule})"
            head += f", as {self.passed_as}" if self.passed_as != self.array_type else ""
        width = max(map(len, self.reasons), default=0)
        return "\n".join([head, *(f"  {name:<{width}}  {reason}" for name, reason in self.reasons.items())])


def registry() -> "Registry":
    """The registry; it and the backends are imported when a call first needs them, since `import lsm` must be fast."""
    from lsm.backends import registry as module

    return module.registry()


def decide(request: Request, policy: Policy) -> Decision:
    """Find who serves a call; loads a third-party backend only if it may be the one."""
    reasons: dict[str, str] = {}
    winner: Candidate | None = None
    error: LsmError | None = None
    try:
        if policy.requested is None:
            winner = _choose_automatically(request, reasons)
            if winner is None:
                error = _no_backend_error(request, reasons)
        else:
            asked = registry().get(policy.requested)
            problem = _problem(asked, request)
            if problem:
                error = _unsupported_error(asked, problem, policy, request)
                reasons[registry().label(asked)] = problem
            else:
                winner = asked
    except UnknownBackendError as caught:
        error = type(caught)(f"{caught} (asked for by {policy.rule})")
    return Decision(
        winner=winner.name if winner else None,
        rule=policy.rule,
        op=request.op,
        array_type=request.array_type,
        device=request.device,
        dtype=" to ".join(dict.fromkeys(request.dtypes)),
        passed_as=_passed_as(winner.declaration, request) if winner else "",
        distribution=winner.entry_point.distribution if winner else "",
        version=winner.entry_point.version if winner else "",
        file=winner.entry_point.file if winner else "",
        reasons=reasons,
        error=error,
        backend=winner.backend if winner else None,
        is_built_in=winner is not None and winner.is_built_in,
    )


def decide_and_explain(request: Request, policy: Policy) -> Decision:
    """The same, with the reason of every other backend; loads no more of them."""
    decision = decide(request, policy)
    why = "not asked for" if policy.requested else f"not needed: {decision.winner} serves the call"
    for candidate in registry().all():
        if candidate.backend is not decision.backend or decision.winner is None:
            reason = why
            if candidate.state not in ("loaded", "discovered"):
                reason = f"{candidate.state}: {candidate.reason}"
            elif candidate.state == "loaded":
                reason = _problem(candidate, request) or why
            decision.reasons.setdefault(registry().label(candidate), reason)
    return decision


def _passed_as(declaration: "Declaration", request: Request) -> str:
    """The type of array that a backend is given in a call; empty if it does not serve the call's type."""
    if request.array_type in declaration.array_types:
        return request.array_type
    common = _COMMON_TYPES.get(request.device, "")
    return common if common in declaration.array_types else ""


def _problem(candidate: "Candidate", request: Request) -> str:
    """Why this backend does not serve a call; empty if it does. Loads it, unless it is lsm's own and not for such."""
    claims = candidate.peek_declaration() if candidate.is_built_in else None
    if claims is not None and claims.devices:  # the same answer whether it has been found unavailable by now or not
        problem = _mismatch(claims, request)
        if problem:
            return problem
    try:
        candidate.load()
    except BackendUnavailableError:
        return f"{candidate.state}: {candidate.reason}"
    return _mismatch(candidate.declaration, request)


def _mismatch(declaration: "Declaration", request: Request) -> str:
    """What of a call a backend does not claim to serve; empty if it claims all of it."""
    if request.op not in declaration.operations:
        return f"does not have {request.op}"
    if request.device not in declaration.devices:
        return f"serves the devices {', '.join(declaration.devices)}, not {request.device}"
    passed_as = _passed_as(declaration, request)
    if not passed_as:
        return f"serves {', '.join(declaration.array_types)}, not {request.array_type}"
    if passed_as not in _ALLOCATED and not declaration.has_empty:
        return f"has no method empty, which would make new arrays of {passed_as}"
    missing = [dtype for dtype in dict.fromkeys(request.dtypes) if dtype not in declaration.dtypes]
    if missing:
        return f"serves {', '.join(declaration.dtypes)}, not {', '.join(missing)}"
    takes_bits = passed_as != NUMPY or declaration.takes_bfloat16_bits
    if "bfloat16" in request.dtypes and not takes_bits and np_dtype("bfloat16") is BFLOAT16_BITS:
        return f"needs ml_dtypes for bfloat16: {install_command('bfloat16')}"
    return ""


def _choose_automatically(request: Request, reasons: dict[str, str]) -> "Candidate | None":
    """The backend for a call that wishes for none; notes why those before it do not serve."""
    for candidate in _built_in_candidates():
        problem = _problem(candidate, request)
        if not problem:
            return candidate
        reasons[candidate.name] = problem
    usable = []
    for candidate in registry().third_party():
        problem = _problem(candidate, request)
        if problem:
            reasons[candidate.name] = problem
        else:
            usable.append(candidate)
    usable.sort(key=_rank)
    for candidate in usable[1:]:
        first, its = usable[0].declaration.priority, candidate.declaration.priority
        how = f"priority {first} to {its}" if first != its else f"name, at the same priority {its}"
        reasons[candidate.name] = f"serves it as well; {usable[0].name} comes first by {how}"
    return usable[0] if usable else None


def _built_in_candidates() -> Iterator["Candidate"]:
    """The built-in backends in the order of automatic choice; nothing is searched for before the first."""
    from lsm.backends.candidate import BUILT_IN

    for name in BUILT_IN:
        candidate = registry().built_in(name)
        if candidate is not None:
            yield candidate


def _rank(candidate: "Candidate") -> tuple[int, str]:
    return -candidate.declaration.priority, candidate.name


def _capable_backends(request: Request) -> list[str]:
    """The names of those that would serve a call if asked; third parties are loaded only if no built-in does."""
    own = [candidate.name for candidate in _built_in_candidates() if not _problem(candidate, request)]
    theirs = [] if own else [candidate for candidate in registry().third_party() if not _problem(candidate, request)]
    return own + [candidate.name for candidate in sorted(theirs, key=_rank)]


def _no_backend_error(request: Request, reasons: dict[str, str]) -> LsmError:
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    text = f"no backend serves {request}: {why}"
    elsewhere = _capable_backends(request._replace(device="cpu")) if request.device != "cpu" else []
    if elsewhere:
        text += f"; nothing is moved between devices, and on cpu {' or '.join(map(repr, elsewhere))} would serve it"
    else:
        text += "; install a backend that serves it: lsm backends lists what there is"
    return BackendUnsupportedError(text)


def _unsupported_error(asked: "Candidate", problem: str, policy: Policy, request: Request) -> LsmError:
    """The error of a call whose wish cannot be met, with who would serve it."""
    is_usable = asked.state == "loaded" or (asked.is_built_in and asked.state == "discovered")
    if not is_usable:
        return asked.unavailable_error(f" (asked for by {policy.rule})")
    others = " or ".join(f"backend={name!r}" for name in _capable_backends(request))
    remedy = f"{others} would serve it" if others else "no backend that is installed would"
    return BackendUnsupportedError(f"backend {asked.name!r} (asked for by {policy.rule}) {problem}; {remedy}")
