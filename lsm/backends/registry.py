"""Which backends there are: find them, load them, and remember what went wrong.

A third-party backend passes through these states:

discovered    an entry point names it; none of its code has run
blocked       LSM_PLUGINS or LSM_PLUGINS_ALLOW excludes it, or its name is reserved for lsm
failed        importing it, or asking it, raised; the exception is kept
incompatible  it is no backend, or was written for another version of the contract
unavailable   it says itself that it cannot be used here, and why
loaded        ready

Finding runs no code of a plugin; loading does.
"""

import os
import threading
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

from lsm._config import normalise, settings
from lsm._errors import (
    AmbiguousBackendError,
    BackendBlockedError,
    BackendIncompatibleError,
    BackendLoadError,
    BackendUnavailableError,
    PluginWarning,
    UnknownBackendError,
)
from lsm._version import __version__
from lsm.backends import cython_
from lsm.backends.contract import contract_problem, max_ulp
from lsm.backends.discovery import OWN_DISTRIBUTION, Found, find

_ERRORS = {"blocked": BackendBlockedError, "failed": BackendLoadError, "incompatible": BackendIncompatibleError}

BUILT_IN = ("cython", "cupy", "numpy")  # in the order of automatic choice; the names are reserved


class BackendInfo(NamedTuple):
    """What is known of one backend; a row of `lsm.list_backends`.

    Attributes
    ----------
    name : str
        As an entry point names it.
    state : str
        "discovered", "blocked", "failed", "incompatible", "unavailable" or "loaded".
    reason : str
        Why it is not loaded; empty if it is.
    devices, dtypes, array_types : tuple of str
        What it declares; empty while that is not known.
    priority : int
        Its rank among third-party backends.
    max_ulp : dict of str to float
        For each of `dtypes` the error that it stays within, in ulps.
    same_bits : bool
        Whether it claims that a frame's bits depend on the frame's values only.
    distribution, version : str
        What was installed to bring it.
    file : str
        The metadata file that names it, or for the built-in default the module.
    is_built_in : bool
        Whether it is lsm's own.
    """

    name: str
    state: str
    reason: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    array_types: tuple[str, ...]
    priority: int
    max_ulp: dict[str, float]
    same_bits: bool
    distribution: str
    version: str
    file: str
    is_built_in: bool


class Candidate:
    """One backend on its way from a line of metadata to an object that serves calls."""

    def __init__(self, found: Found, backend: Any = None) -> None:
        self.found = found
        self.name = found.name
        self.address = f"{found.distribution}/{found.name}"
        self.is_built_in = normalise(found.distribution) == OWN_DISTRIBUTION
        self.backend = backend
        self.state = "discovered"
        self.reason = "not loaded: nothing has needed it"
        self.error: BaseException | None = None
        self._lock = threading.RLock()
        self._is_loading = False
        self._screen()

    def _screen(self) -> None:
        """Settle what can be settled without running any of its code."""
        allow = settings().plugins_allow
        if self.found.problem:
            self._settle("failed", self.found.problem)
        elif self.is_built_in:
            return
        elif self.name in BUILT_IN:
            self._settle("blocked", f"the name {self.name!r} is reserved for lsm's own backend")
        elif not settings().plugins:
            self._settle("blocked", "LSM_PLUGINS is 'off'")
        elif allow is not None and normalise(self.found.distribution) not in allow:
            self._settle("blocked", f"LSM_PLUGINS_ALLOW does not name {self.found.distribution!r}")

    def _settle(self, state: str, reason: str, error: BaseException | None = None) -> None:
        self.state, self.reason, self.error = state, reason, error

    def load(self) -> Any:
        """The backend object; loaded once, and a failure is remembered.

        Raises
        ------
        BackendUnavailableError
            It cannot be used; the text says why, and the cause is chained.
        """
        if self.state != "loaded":
            with self._lock:
                if self.state == "discovered":
                    self._load()
        if self.state != "loaded":
            raise self.error_now()
        return self.backend

    def error_now(self, addition: str = "") -> BackendUnavailableError:
        """The error of whoever needs it although it is not loaded, with the cause."""
        error = _ERRORS.get(self.state, BackendUnavailableError)(self.describe() + addition)
        error.__cause__ = self.error
        return error

    def renew_lock(self) -> None:
        """As `Registry.renew_locks`."""
        self._lock = threading.RLock()
        self._is_loading = False

    def origin(self) -> str:
        """Its name, and what was installed to bring it."""
        brought = f" (from {self.found.distribution} {self.found.version}, {self.found.file})"
        return f"backend {self.name!r}" + ("" if self.is_built_in else brought)

    def describe(self) -> str:
        """What keeps it from being used, with its origin and the remedy."""
        return f"{self.origin()} is {self.state}: {self.reason}{self._remedy()}"

    def _remedy(self) -> str:
        distribution = self.found.distribution
        if self.is_built_in:
            return ""
        if self.state == "failed":
            return f"; repair, upgrade or uninstall {distribution}"
        if self.state == "incompatible":
            return f"; install a release of {distribution} that was made for this lsm, or uninstall it"
        if self.state == "blocked" and self.name not in BUILT_IN:
            return f"; LSM_PLUGINS=on without LSM_PLUGINS_ALLOW, or with {distribution} in it, would let it be loaded"
        return ""

    def _load(self) -> None:
        if self._is_loading:  # its own import asks for it
            raise BackendUnavailableError(self.describe())
        self._is_loading = True
        self.reason = "it is being loaded, and what it imports uses it"
        try:
            backend = self.backend or self.found.load()
            problem = contract_problem(backend, self.name)
            if problem:
                self._settle("incompatible", problem)
            else:
                missing = backend.available()
                self.backend = backend
                self._settle("loaded" if missing is None else "unavailable", "" if missing is None else str(missing))
                return
        except Exception as error:  # whatever a plugin raises is its own affair
            self._settle("failed", f"{type(error).__name__}: {error}", error)
        finally:
            self._is_loading = False
        self.warn()

    def warn(self) -> None:
        """Say once that this plugin is broken."""
        with suppress(PluginWarning):  # where warnings are errors, a call that does not need it shall go on
            warnings.warn(f"lsm goes on without it: {self.describe()}", PluginWarning, stacklevel=2)

    def info(self) -> BackendInfo:
        """This candidate as a row for the user."""
        knows = self.backend is not None and self.state in ("loaded", "unavailable")
        return BackendInfo(
            name=self.name,
            state=self.state,
            reason=self.reason,
            devices=tuple(self.backend.devices) if knows else (),
            dtypes=tuple(self.backend.dtypes) if knows else (),
            array_types=tuple(self.backend.array_types) if knows else (),
            priority=int(getattr(self.backend, "priority", 0)) if knows else 0,
            max_ulp=max_ulp(self.backend) if knows else {},
            same_bits=bool(getattr(self.backend, "same_bits", False)) if knows else False,
            distribution=self.found.distribution,
            version=self.found.version,
            file=self.found.file,
            is_built_in=self.is_built_in,
        )


class Registry:
    """All backends that are known, found once when they are first needed."""

    def __init__(self) -> None:
        here = Found("cython", OWN_DISTRIBUTION, __version__, cython_.__file__, "lsm.backends.cython_:backend")
        self.default = Candidate(here, cython_.backend)
        self._others: tuple[Candidate, ...] | None = None
        self._lock = threading.Lock()

    def others(self) -> tuple[Candidate, ...]:
        """Every backend that entry points name, by (name, distribution); scans on the first call."""
        if self._others is None:
            with self._lock:
                if self._others is None:
                    self._others = tuple(Candidate(found) for found in find())
                    for candidate in self._others:
                        if candidate.state == "failed":
                            candidate.warn()
        return self._others

    def renew_locks(self) -> None:
        """Forget who holds what: in a forked child, nobody does."""
        self._lock = threading.Lock()
        for candidate in (self.default, *(self._others or ())):
            candidate.renew_lock()

    def all(self) -> tuple[Candidate, ...]:
        """The default backend and all others."""
        return (self.default, *self.others())

    def built_in(self, name: str) -> Candidate | None:
        """lsm's own backend of this name."""
        if name == self.default.name:
            return self.default
        return next((c for c in self.others() if c.is_built_in and c.name == name), None)

    def third_party(self) -> tuple[Candidate, ...]:
        """The others' backends that may be chosen automatically: usable so far, and alone with their name."""
        theirs = [c for c in self.others() if not c.is_built_in and c.state in ("discovered", "loaded")]
        names = [c.name for c in self.others() if not c.is_built_in]
        return tuple(c for c in theirs if names.count(c.name) == 1)

    def label(self, candidate: Candidate) -> str:
        """The name by which this backend, and no other, can be asked for."""
        alone = [c for c in self.all() if c.name == candidate.name] == [candidate]
        return candidate.name if alone or candidate is self.built_in(candidate.name) else candidate.address

    def get(self, name: str) -> Candidate:
        """The backend of this name, or of this "distribution/name".

        Raises
        ------
        UnknownBackendError
            There is none.
        AmbiguousBackendError
            Several distributions bring one.
        """
        if name == self.default.name:
            return self.default
        matches = [c for c in self.all() if name in (c.name, c.address)]
        own = [c for c in matches if c.is_built_in]
        if name in BUILT_IN and own:
            return own[0]
        if len(matches) == 1:
            return matches[0]
        if matches:
            addresses = ", ".join(repr(c.address) for c in matches)
            raise AmbiguousBackendError(f"backend {name!r} is brought by several distributions; name one: {addresses}")
        known = ", ".join(repr(c.name) for c in self.all())
        raise UnknownBackendError(f"no backend is named {name!r}; known: {known}")


_registry: Registry | None = None
_registry_lock = threading.Lock()


def registry() -> Registry:
    """The registry of this process."""
    global _registry
    if _registry is None:
        with _registry_lock:
            _registry = _registry or Registry()
    return _registry


def _after_fork_in_child() -> None:
    """Renew what a thread of the parent may have held, and search anew if it was in the middle of that."""
    global _registry, _registry_lock
    _registry_lock = threading.Lock()
    if _registry is not None:
        _registry.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def forget() -> None:
    """Drop what was found, so that the next use searches again."""
    global _registry
    with _registry_lock:
        _registry = None
