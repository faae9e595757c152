"""The rules that select a backend for an array type, dtype and device.

A requested backend is never replaced by another: if it does not support the call, the call fails with the reason. If
none is requested, the built-in backend that supports the call is selected, and if there is none, a third-party one, by
priority and then by name. A backend for NumPy arrays also supports arrays of other libraries on the CPU, which are
passed as ndarrays without a copy. Likewise, a backend for CuPy arrays supports other libraries on a CUDA device.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lsm import _fastpath
from lsm._check import BFLOAT16_BITS, CUPY, NUMPY, np_dtype
from lsm._errors import BackendUnavailableError, BackendUnsupportedError, LsmError, UnknownBackendError
from lsm._operations import OF_PART
from lsm._version import install_command

if TYPE_CHECKING:
    from lsm.backends.candidate import Candidate
    from lsm.backends.contract import Declaration
    from lsm.backends.registry import Registry

_ALLOCATED = (NUMPY, "torch.Tensor", "jax.Array")  # types that lsm allocates itself

# By kind of device, the type to which arrays of any other library are converted, without a copy.
_COMMON_TYPES = {"cpu": NUMPY, "cuda": CUPY}


class Policy:
    """The requested backend, if any, and the dispatch entries cached for this request.

    `fast` holds the functions of the fast path, by kind of array.
    """

    __slots__ = ("__weakref__", "entries", "fast", "requested", "rule")

    def __init__(self, requested: str | None, rule: str) -> None:
        self.requested = requested
        self.rule = rule
        self.clear()

    def clear(self) -> None:
        """Drop all cached entries."""
        self.entries: dict[Any, Any] = {}
        self.fast: dict[Any, Any] = {}
        _fastpath.forget()


class Request(NamedTuple):
    """The properties of a call that determine the backend, all of them names."""

    array_type: str
    device: str
    dtypes: tuple[str, ...]  # of the input and of the result
    op: str = "log_softmax"

    def __str__(self) -> str:
        dtypes = " to ".join(dict.fromkeys(self.dtypes))
        return f"{self.array_type} of {dtypes} on {self.device}"


class Decision(NamedTuple):
    """The backend that a call would use, and why; prints as a short table.

    Attributes
    ----------
    winner : str or None
        The name of the backend; None if the call would fail.
    rule : str
        The rule that applied: "backend=", "use_backend", "set_default_backend", "LSM_BACKEND" or "automatic".
    op, array_type, device, dtype : str
        The call; `dtype` is "float16 to float32" if the result has another dtype than the input.
    passed_as : str
        The type of the array passed to the backend: `array_type`, or a view as "numpy.ndarray" or, on a CUDA device,
        "cupy.ndarray".
    distribution, version, file : str
        The origin of the backend.
    reasons : dict of str to str
        The reason why each other backend is not used, by its name or "distribution/name".
    error : LsmError or None
        The error that the call would raise.
    backend : object or None
        The backend itself.
    is_built_in : bool
        Whether it is part of lsm.
    derived_from : str
        The operation of the backend from which lsm derives the function; empty if it is not derived.
    chunks : str
        For a lazy array, its chunks: the decision is that for each of them. Else empty.
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
    derived_from: str = ""
    chunks: str = ""

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        head = f"{self.op} of {self.array_type}, {self.dtype}, on {self.device}: "
        if self.winner is None:
            head += f"fails: {self.error}"
        else:
            head += f"served by {self.winner} ({self.rule})"
            head += f", as {self.passed_as}" if self.passed_as != self.array_type else ""
            head += f", derived from {self.derived_from}" if self.derived_from else ""
        width = max(map(len, self.reasons), default=0)
        head += f"\n{self.chunks}" if self.chunks else ""
        return "\n".join([head, *(f"  {name:<{width}}  {reason}" for name, reason in self.reasons.items())])


def registry() -> "Registry":
    """The registry; imported on first use, along with the backends, to keep `import lsm` fast."""
    found: Registry = _registry_module().registry()
    return found


@cache  # an import statement takes 0.2 us
def _registry_module() -> Any:
    from lsm.backends import registry as module

    return module


def decide(request: Request, policy: Policy) -> Decision:
    """Select the backend for a call; loads a third-party backend only if it may be selected."""
    reasons: dict[str, str] = {}
    winner: Candidate | None = None
    error: LsmError | None = None
    try:
        if policy.requested is None:
            winner = _choose_automatically(request, reasons)
            if winner is None:
                error = _no_backend_error(request, reasons)
        else:
            candidate = registry().get(policy.requested)
            problem = _problem(candidate, request)
            if problem:
                error = _unsupported_error(candidate, problem, policy, request)
                reasons[registry().label(candidate)] = problem
            else:
                winner = candidate
    except UnknownBackendError as caught:
        error = type(caught)(f"{caught} (requested by {policy.rule})")
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
    """Like `decide`, with a reason for every other backend; loads no more backends."""
    decision = decide(request, policy)
    why = "not requested" if policy.requested else f"not needed: {decision.winner} is used"
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
    """The type of the array passed to a backend; empty if the backend does not support the type of the call."""
    if request.array_type in declaration.array_types:
        return request.array_type
    common = _COMMON_TYPES.get(request.device, "")
    return common if common in declaration.array_types else ""


def _problem(candidate: "Candidate", request: Request) -> str:
    """Why this backend cannot be used for a call; empty if it can. Does not load a built-in one that does not match."""
    declaration = candidate.peek_declaration() if candidate.is_built_in else None
    if declaration is not None and declaration.devices:  # so that the reason does not depend on whether it was loaded
        problem = _mismatch(declaration, request)
        if problem:
            return problem
    try:
        candidate.load()
    except BackendUnavailableError:
        return f"{candidate.state}: {candidate.reason}"
    return _mismatch(candidate.declaration, request)


def _mismatch(declaration: "Declaration", request: Request) -> str:
    """The part of a call that a backend does not support; empty if it supports all of it."""
    if request.op not in declaration.operations:
        return f"does not have {request.op}"
    if request.device not in declaration.devices:
        return f"supports devices {', '.join(declaration.devices)}, not {request.device}"
    passed_as = _passed_as(declaration, request)
    if not passed_as:
        return f"supports {', '.join(declaration.array_types)}, not {request.array_type}"
    if passed_as not in _ALLOCATED and not declaration.has_empty:
        return f"has no method empty, which is required for {passed_as}"
    supported: Iterable[str] = declaration.slice_classes if request.op in OF_PART else declaration.dtypes
    missing = [dtype for dtype in dict.fromkeys(request.dtypes) if dtype not in supported]
    if missing:
        return f"supports {', '.join(supported)}, not {', '.join(missing)}"
    takes_bits = passed_as != NUMPY or declaration.takes_bfloat16_bits
    if "bfloat16" in request.dtypes and not takes_bits and np_dtype("bfloat16") is BFLOAT16_BITS:
        return f"needs ml_dtypes for bfloat16: {install_command('bfloat16')}"
    return ""


def _choose_automatically(request: Request, reasons: dict[str, str]) -> "Candidate | None":
    """The backend for a call that requests none; adds to `reasons` why others are not used."""
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
        how = f"priority {first} over {its}" if first != its else f"name, at equal priority {its}"
        reasons[candidate.name] = f"supports it too; {usable[0].name} has precedence by {how}"
    return usable[0] if usable else None


def _built_in_candidates() -> Iterator["Candidate"]:
    """The built-in backends in the order of automatic selection; the first needs no search."""
    from lsm.backends.candidate import BUILT_IN

    for name in BUILT_IN:
        candidate = registry().built_in(name)
        if candidate is not None:
            yield candidate


def _rank(candidate: "Candidate") -> tuple[int, str]:
    return -candidate.declaration.priority, candidate.name


def _capable_backends(request: Request) -> list[str]:
    """The names of backends that support a call; third-party ones are loaded only if no built-in one does."""
    own = [candidate.name for candidate in _built_in_candidates() if not _problem(candidate, request)]
    theirs = [] if own else [candidate for candidate in registry().third_party() if not _problem(candidate, request)]
    return own + [candidate.name for candidate in sorted(theirs, key=_rank)]


def _no_backend_error(request: Request, reasons: dict[str, str]) -> LsmError:
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    text = f"no backend supports {request}: {why}"
    elsewhere = _capable_backends(request._replace(device="cpu")) if request.device != "cpu" else []
    if elsewhere:
        text += f"; lsm does not move arrays between devices; on cpu, use {' or '.join(map(repr, elsewhere))}"
    else:
        text += "; install a backend that supports it (lsm backends lists those installed)"
    return BackendUnsupportedError(text)


def _unsupported_error(candidate: "Candidate", problem: str, policy: Policy, request: Request) -> LsmError:
    """The error if the requested backend cannot be used, with the backends that can."""
    is_usable = candidate.state == "loaded" or (candidate.is_built_in and candidate.state == "discovered")
    if not is_usable:
        return candidate.unavailable_error(f" (requested by {policy.rule})")
    others = " or ".join(f"backend={name!r}" for name in _capable_backends(request))
    remedy = f"use {others}" if others else "no installed backend supports it"
    return BackendUnsupportedError(f"backend {candidate.name!r} (requested by {policy.rule}) {problem}; {remedy}")
